"""From what a plan says of calibration text to windows of tokens, with nothing of it evaluated.

A source is what :func:`evalq.texts.resolve_text` reads; a mixture names several with a share each,
and the number of windows of each is its share by largest remainder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from evalq.errors import PlanError
from evalq.plan import CalibrationPlan

if TYPE_CHECKING:
    from evalq.quantize.calibration import Calibration
    from evalq.tasks import BuiltTask, Evaluated
    from evalq.texts import TextSource

__all__ = ["quotas", "read_calibration"]

_NAMED = 5


def quotas(shares: Mapping[str, float], windows: int) -> dict[str, int]:
    """Windows of each source by largest remainder (Hamilton's method); they add up to ``windows``.

    Every source gets the whole part of its share; what is left goes to the largest fractions, the
    earlier source first where two are equal.

    Raises:
        PlanError: a share so small that its source would give no window.
    """
    exact = {name: share * windows for name, share in shares.items()}
    # A share of 0.3 of 10 windows is 3, and not the 2.9999999999999996 that floats make of it.
    found = {name: math.floor(value + 1e-9) for name, value in exact.items()}
    order = sorted(exact, key=lambda name: round(found[name] - exact[name], 9))
    for name in order[: windows - sum(found.values())]:
        found[name] += 1
    empty = [name for name, count in found.items() if count == 0]
    if empty:
        raise PlanError(
            f"calibration: a share of {shares[empty[0]]:g} of {windows} windows gives "
            f"{empty[0]!r} none",
            hint="Ask for more windows (samples), or leave that source out.",
        )
    return found


def read_calibration(
    plan: CalibrationPlan,
    tokenizer: Any,
    *,
    builtin_parent: bool,
    seed: int,
    data_dir: str = "",
    tasks: Sequence[BuiltTask] = (),
) -> Calibration:
    """The plan's calibration windows, as tokens of the parent's tokenizer.

    Args:
        plan: source or mixture, windows and their length, and whether overlap is allowed.
        tokenizer: of the parent.
        builtin_parent: what ``auto`` means.
        seed: that windows are drawn with; each source after the first has the next one.
        data_dir: where local copies of datasets are.
        tasks: that are evaluated; their items must not be in the text.

    Raises:
        TaskError: no text in a source, or a source that cannot be read.
        QuantizationError: too little text for that many windows.
        PlanError: an evaluated item is in the text and overlap is not allowed.
    """
    import torch

    from evalq.quantize.calibration import Calibration, calibration_from_texts
    from evalq.tasks import evaluated_items
    from evalq.texts import resolve_text

    items = evaluated_items(tasks) if tasks else []
    wanted = quotas(plan.shares, plan.samples)
    drawn, records = [], []
    found: dict[str, str] = {}
    for number, (name, windows) in enumerate(wanted.items()):
        source = resolve_text(name, "calibration", builtin_parent, data_dir)
        found |= {item: place for item, place in _overlap(items, source) if item not in found}
        texts = (document.text for document in source.documents)
        part = calibration_from_texts(
            texts, tokenizer, windows, plan.length, seed + number, source.name
        )
        drawn.append(part)
        records.append(
            {
                "source": source.name,
                "share": plan.shares[name],
                "windows": windows,
                "documents": len(source.documents),
                "text_hash": source.hash,
                "hash": part.hash,
                "seed": seed + number,
            }
        )
    if found and not plan.allow_overlap:
        _refuse(found, len(items))
    label = drawn[0].source
    if len(drawn) > 1:
        label = ", ".join(f"{r['source']} ({r['share']:g})" for r in records)
    joined = Calibration.from_tokens(torch.cat([part.tokens for part in drawn]), label, seed)
    overlap = {
        "checked_items": len(items),
        "items": len(found),
        "examples": dict(list(found.items())[:_NAMED]),
        "allowed": plan.allow_overlap,
    }
    return replace(joined, parts=tuple(records), overlap=overlap)


def _overlap(items: Sequence[Evaluated], source: TextSource) -> list[tuple[str, str]]:
    """Evaluated items that a source holds, each with the document that it is in."""
    from evalq.tasks import find_overlap

    if not items:
        return []
    documents = source.documents
    found = find_overlap(items, ((d.text, d.doc_hash) for d in documents))
    return [(item, documents[number].document) for item, number in found.items()]


def _refuse(found: Mapping[str, str], items: int) -> None:
    first = "; ".join(f"{item} in {place}" for item, place in list(found.items())[:_NAMED])
    raise PlanError(
        f"the calibration text holds {len(found)} of the {items} items that are evaluated: {first}",
        hint="Take them out of the text, or out of the evaluation. With --allow-overlap "
        "(calibration.allow_overlap: true) they stay, and every report says so.",
    )
