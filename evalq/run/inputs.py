"""What a run reads beside its tasks; all of it before the first request, so that a fault in it does
not cost an hour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalq.calibrate import read_calibration
from evalq.errors import PlanError
from evalq.fidelity import Window, cut_windows
from evalq.plan import Plan
from evalq.run.make import open_variant
from evalq.schema import TASK_TEXT

if TYPE_CHECKING:
    from evalq.artifacts.base import Artifact
    from evalq.models.base import LoadedModel
    from evalq.quantize.calibration import Calibration
    from evalq.tasks.bridge import BuiltTask
    from evalq.texts import TextSource

__all__ = ["Inputs", "note_calibration", "read_inputs"]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Text and artifacts of a run.

    Args:
        calibration: for methods that need it; ``None`` where none does.
        text: that distributions are compared on, or ``None``.
        windows: of that text, then of ``texts``.
        given: artifacts that the user ships already, by label.
        texts: the user's own and what is evaluated, beside ``text``.
    """

    calibration: Calibration | None
    text: TextSource | None
    windows: list[Window]
    given: dict[str, Artifact]
    texts: tuple[TextSource, ...] = ()

    @property
    def text_record(self) -> dict[str, Any]:
        """What run.json says of the texts."""
        if self.text is None:
            return {}

        def tokens(name: str) -> dict[str, int]:
            own = [w for w in self.windows if w.text == name]
            return {"windows": len(own), "tokens": sum(len(w.ids) - 1 for w in own)}

        return {
            "text": self.text.name,
            "hash": self.text.hash,
            "windows": len(self.windows),
            "tokens": sum(len(w.ids) - 1 for w in self.windows),
            "texts": [
                {
                    "name": source.name,
                    "hash": source.hash,
                    "slices": sorted({d.slice for d in source.documents}),
                    **tokens(source.name),
                }
                for source in self.texts
            ],
        }

    @property
    def text_hashes(self) -> list[str]:
        """Of everything that distributions are compared on."""
        return [] if self.text is None else [self.text.hash, *(t.hash for t in self.texts)]


def read_inputs(plan: Plan, parent: LoadedModel | None, tasks: Sequence[BuiltTask]) -> Inputs:
    """Everything that ``plan`` names; of an endpoint as the parent nothing but artifacts.

    Raises:
        EvalqError: no such text, too little of it, an evaluated item in the calibration text, or a
            directory that is no artifact.
    """
    from evalq.quantize.config import METHODS
    from evalq.texts import named_text, resolve_text, task_text

    given = {v.label: open_variant(Path(v.artifact)) for v in plan.variants if v.artifact}
    calibration = text = None
    windows: list[Window] = []
    texts: tuple[TextSource, ...] = ()
    if parent is None:
        return Inputs(None, None, windows, given)
    builtin = parent.source.demonstration
    if any(v.method and METHODS.get(v.method).needs_calibration for v in plan.variants):
        calibration = read_calibration(
            plan.calibration,
            parent.tokenizer,
            builtin_parent=builtin,
            seed=plan.seed,
            data_dir=plan.data_dir,
            tasks=tasks,
        )
    if plan.fidelity.enabled:
        text = resolve_text(plan.fidelity.source, "fidelity", builtin, plan.data_dir)
        size = (plan.fidelity.length, plan.fidelity.windows)
        windows = cut_windows(text, parent.tokenizer, *size)
        texts = tuple(named_text(own) for own in plan.fidelity.texts)
        own_text = (task_text(tasks),) if plan.fidelity.tasks else ()
        for source in texts:
            if source.name in (text.name, TASK_TEXT):
                raise PlanError(
                    f"a text is named {source.name!r}, as another one is",
                    hint="Give it another name: --text NAME=FILE.",
                )
            windows += cut_windows(source, parent.tokenizer, *size, named=True)
        for source in own_text:
            windows += cut_windows(source, parent.tokenizer, *size, named=True, ends=True)
        texts += own_text
    return Inputs(calibration, text, windows, given, texts)


def note_calibration(info: dict[str, Any], calibration: Calibration | None) -> None:
    """Put what variants are calibrated on into ``info`` (run.json), with a warning where variants
    are judged by that very text."""
    from evalq.quantize.calibration import overlap_warning

    record = None if calibration is None else calibration.record()
    info["calibration"] = record
    warning = overlap_warning(record)
    if warning and warning not in info["warnings"]:
        info["warnings"].append(warning)
