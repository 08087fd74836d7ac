"""What is measured before any endpoint is asked: the noise floor, the tiers, the probes.

Everything is on this machine and is stored, so that many audits can use it. The reference is the
parent in float32. Half of the text calibrates, prompts are chosen from the other half.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evalq.audit.measure import Measured, divergences, measure, references
from evalq.audit.panel import BASE, BENIGN, Benign, Member, Panel
from evalq.audit.probes import Probe, candidates, continuations, half, own_probes, rate, windows
from evalq.errors import PlanError, StoreError
from evalq.progress import NullProgress, Progress
from evalq.schema import content_hash
from evalq.stats.agreement import BETS
from evalq.store.files import atomic_write
from evalq.texts import resolve_text

if TYPE_CHECKING:
    from evalq.texts import TextSource

__all__ = [
    "SAFETY",
    "Calibration",
    "CalibrationSettings",
    "Measured",
    "calibrate",
    "load_calibration",
]

Floats = NDArray[np.float64]
VERSION = 1

SAFETY = 1.5
"""The floor is this much above the noisiest benign way: others exist that nobody tried here."""
_SAME = 1e-8
"""Nats of KL below which two ways to run a model are one in the null of phase 2."""
_LEAST = 1e-4


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """How much is measured.

    Args:
        api: prompts are rendered for ``completions`` or ``chat``.
        text: as for ``evalq run``'s fidelity; ``auto``.
        windows, window_tokens: of text, for the noise and the tiers.
        candidates: prompts that are tried.
        pool: best ones that are kept.
        prompt_tokens: of a prompt, about; a tokenizer of bytes gets three times as many.
        max_tokens: of an answer in phase 1.
        seed: of the candidates.
        probes: a file of the user's own prompts, all of which are kept.
    """

    api: str = "completions"
    text: str = "auto"
    windows: int = 48
    window_tokens: int = 96
    candidates: int = 192
    pool: int = 96
    prompt_tokens: int = 32
    max_tokens: int = 64
    seed: int = 0
    probes: str = ""

    def __post_init__(self) -> None:
        for name in ("windows", "window_tokens", "candidates", "pool", "prompt_tokens"):
            if getattr(self, name) < 8:
                raise PlanError(f"{name} of a calibration is less than 8")
        if self.max_tokens < 2:
            raise PlanError("an answer of fewer than 2 tokens shows nothing")


@dataclass(frozen=True, slots=True)
class Calibration:
    """All of it; ``as_dict`` is what is stored.

    Args:
        parent: ``name``, ``hash`` and ``spec``.
        tiers: the same with ``bits``, in the order they were listed.
        settings: that it was made with.
        text: name and hash of the text.
        benign, ladder: the parent's benign ways, and the tiers.
        floor: scale that flips of a benign endpoint stay within, nats.
        rms_centre, rms_spread: the same for returned log-probabilities (natural logarithms).
        near: tiers that this floor cannot tell from the parent.
        null: benign ways that stand for all of them in phase 2.
        kl: ``[names, names]`` KL(row || column), nats a token, of parent and tiers.
        growth: mean growth of the log e-value a prompt of phase 1, by tier; expected tokens follow.
        probes: best first.
    """

    parent: Mapping[str, Any]
    tiers: tuple[Mapping[str, Any], ...]
    settings: CalibrationSettings
    text: Mapping[str, str]
    benign: tuple[Measured, ...]
    ladder: tuple[Measured, ...]
    floor: float
    rms_centre: float
    rms_spread: float
    near: tuple[str, ...]
    null: tuple[Mapping[str, Any], ...]
    kl: tuple[tuple[float, ...], ...]
    growth: Mapping[str, float]
    probes: tuple[Probe, ...]

    @property
    def names(self) -> list[str]:
        """``parent`` and the tiers: what a posterior is over."""
        return [BASE, *(str(t["name"]) for t in self.tiers)]

    @property
    def bits(self) -> dict[str, int | None]:
        """Bits of the weights, by tier."""
        return {str(t["name"]): t["bits"] for t in self.tiers}

    def expected_tokens(self, name: str, alpha: float) -> int | None:
        """Tokens of phase 1 until a tier's endpoint is told from the parent; ``None``: never."""
        growth = self.growth.get(name, 0.0)
        if growth <= 0.02:
            return None
        each = float(np.mean([len(p.ids) for p in self.probes])) + self.settings.max_tokens
        return math.ceil(math.log(2 / alpha) / growth) * round(each)

    def expected_sampled(self, name: str, alpha: float) -> int | None:
        """Tokens of phase 2, ln(1/alpha) / KL(tier || parent)."""
        kl = self.kl[self.names.index(name)][0]
        return math.ceil(math.log(1 / alpha) / kl) if kl > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        out = {
            "version": VERSION,
            "parent": dict(self.parent),
            "tiers": [dict(t) for t in self.tiers],
            "settings": asdict(self.settings),
            "text": dict(self.text),
            "benign": [asdict(m) for m in self.benign],
            "ladder": [asdict(m) for m in self.ladder],
            "floor": self.floor,
            "rms_centre": self.rms_centre,
            "rms_spread": self.rms_spread,
            "near": list(self.near),
            "null": [dict(n) for n in self.null],
            "kl": [list(row) for row in self.kl],
            "growth": dict(self.growth),
            "probes": [p.as_dict() for p in self.probes],
        }
        return out

    @property
    def hash(self) -> str:
        """By content."""
        return content_hash(self.as_dict())

    def save(self, path: Path) -> None:
        """Write it whole, or not at all."""
        with atomic_write(path) as stream:
            stream.write(json.dumps(self.as_dict(), indent=1).encode())


def load_calibration(path: Path) -> Calibration:
    """A stored calibration.

    Raises:
        StoreError: no such file, another version, or one that is broken.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("version") != VERSION:
            raise StoreError(
                f"{path} is a calibration of version {data.get('version')!r}",
                hint="Make it again with this evalq.",
            )
        return Calibration(
            parent=data["parent"],
            tiers=tuple(data["tiers"]),
            settings=CalibrationSettings(**data["settings"]),
            text=data["text"],
            benign=tuple(_measured(m) for m in data["benign"]),
            ladder=tuple(_measured(m) for m in data["ladder"]),
            floor=float(data["floor"]),
            rms_centre=float(data["rms_centre"]),
            rms_spread=float(data["rms_spread"]),
            near=tuple(data["near"]),
            null=tuple(data["null"]),
            kl=tuple(tuple(row) for row in data["kl"]),
            growth=data["growth"],
            probes=tuple(Probe(p["text"], tuple(p["ids"]), p["score"]) for p in data["probes"]),
        )
    except OSError as error:
        raise StoreError(f"cannot read the calibration {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StoreError(f"{path} is no calibration", hint="Make it again.") from None


def _measured(data: Mapping[str, Any]) -> Measured:
    return Measured(**{**data, "sigma_ci": tuple(data["sigma_ci"])})


def calibrate(
    panel: Panel,
    settings: CalibrationSettings,
    benign: Sequence[Benign] = BENIGN,
    progress: Progress | None = None,
) -> Calibration:
    """Measure the noise floor and the tiers, and choose the probes.

    Args:
        panel: parent and tiers.
        settings: how much.
        benign: ways to run the parent that count as noise.
        progress: is told.

    Raises:
        EvalqError: a model or a text that cannot be used.
    """
    progress = progress or NullProgress()
    source = resolve_text(settings.text, "fidelity", panel.parent.name == "builtin", "")
    tokenizer: Any = panel.parent.tokenizer
    rows = windows(half(source, False), tokenizer, settings.windows, settings.window_tokens)
    spec = panel.members[BASE].spec
    for how in benign:
        panel.add(Member(f"{BASE}@{how.name}", spec, how))
    others = [f"{BASE}@{how.name}" for how in benign] + panel.tiers
    progress.start("calibrate", len(others) + 2, "models")
    looked, reference = references(panel, rows)
    progress.advance(detail=BASE)
    scores = {}
    for name in others:
        scores[name] = panel.score(name, looked)
        progress.advance(detail=name)
    measured = measure(panel, rows, reference, scores, settings.seed)
    panel.drop([f"{BASE}@{how.name}" for how in benign])
    ways = [measured[f"{BASE}@{how.name}"] for how in benign]
    ladder = [measured[name] for name in panel.tiers]
    floor = SAFETY * max([_LEAST, *(max(m.sigma_ci[1], m.spread) for m in ways)])
    loudest = max(ways, key=lambda m: m.rms)
    null = _representatives(ways, benign)
    probes, growth = _probes(panel, source, settings, floor, progress)
    return Calibration(
        parent={"name": panel.parent.name, "hash": panel.parent.hash, "spec": spec},
        tiers=tuple(_tier(panel, name) for name in panel.tiers),
        settings=settings,
        text={"name": source.name, "hash": source.hash},
        benign=tuple(ways),
        ladder=tuple(ladder),
        floor=floor,
        rms_centre=loudest.rms + math.log(SAFETY),
        rms_spread=max(0.25, loudest.rms_spread),
        near=tuple(m.name for m in ladder if max(m.sigma, m.spread) <= 2 * floor),
        null=tuple(null),
        kl=divergences(panel, rows),
        growth=growth,
        probes=tuple(probes),
    )


def _representatives(ways: Sequence[Measured], benign: Sequence[Benign]) -> list[dict[str, Any]]:
    """Ways that differ from the reference, and from one another in more than the batch."""
    kept: list[tuple[Measured, Benign]] = []
    for found, how in zip(ways, benign, strict=True):
        twins = [m for m, h in kept if (h.dtype, h.attention) == (how.dtype, how.attention)]
        if found.kl > _SAME and not any(abs(m.kl - found.kl) < _SAME for m in twins):
            kept.append((found, how))
    return [{"name": m.name, "how": asdict(h)} for m, h in kept]


def _tier(panel: Panel, name: str) -> dict[str, Any]:
    member = panel.members[name]
    return {
        "name": name,
        "spec": member.spec,
        "hash": panel.hashes.get(name, ""),
        "bits": member.bits,
    }


def _probes(
    panel: Panel,
    source: TextSource,
    settings: CalibrationSettings,
    floor: float,
    progress: Progress,
) -> tuple[list[Probe], dict[str, float]]:
    tokenizer: Any = panel.parent.tokenizer
    if settings.probes:
        found = own_probes(Path(settings.probes), tokenizer, settings.api)
    else:
        # A tokenizer of bytes needs more of them to say as much.
        texts = half(source, True)
        sample = " ".join(texts)[:20000]
        many = len(tokenizer(sample)["input_ids"]) > 0.6 * len(sample.encode())
        length = settings.prompt_tokens * (3 if many else 1)
        rng = np.random.default_rng(settings.seed)
        found = candidates(texts, tokenizer, settings.api, settings.candidates, length, rng)
    progress.note(f"choosing probes among {len(found)} prompts")
    spoken = continuations(panel, found, settings.max_tokens)
    rated, evidence = rate(panel, found, spoken, floor)
    if len(rated) < 8:
        raise PlanError(
            "the parent answers fewer than 8 of the prompts",
            hint="Give prompts of your own with --probes.",
        )
    kept = len(rated) if settings.probes else settings.pool
    growth = {
        name: max(float(np.mean(np.log1p(b * (values[:kept] - 1)))) for b in BETS)
        for name, values in evidence.items()
    }
    return rated[:kept], growth
