"""Operating characteristics: audits of endpoints whose tier is known, by the code of every audit.

Each endpoint is served on loopback, and asked over HTTP. Audits that were done are kept, one line
each. Where serving is slow, answers to every probe are recorded once, and audits are resampled from
them by prompt: another seed, another choice and order of prompts, the same answers.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta

from evalq.audit.calibration import SAFETY, Calibration
from evalq.audit.client import Client
from evalq.audit.decide import GOES_ON, Decision, Rules, decide
from evalq.audit.evidence import Kind, Weighed
from evalq.audit.journal import AuditJournal
from evalq.audit.panel import BASE, BENIGN, Member, Panel
from evalq.audit.session import AuditSettings, Session
from evalq.errors import PlanError
from evalq.models.transport import TransportSettings
from evalq.progress import NullProgress, Progress
from evalq.schema import content_hash
from evalq.serve.app import ServeSettings
from evalq.serve.engine import ServeEngine
from evalq.serve.server import running

__all__ = [
    "ACCUSES",
    "DTYPES",
    "Characteristics",
    "OperateSettings",
    "operate",
    "replay",
    "upper",
    "without",
]

ACCUSES = ("TIER", "MIXED", "UNLISTED")
"""Verdicts that say that something else than the parent is served."""

DTYPES = ("float32", "bfloat16", "float16")
"""What an endpoint may compute in."""

_SECRET = "You are a helpful assistant. Answer briefly and in English."
_SHARES = (0.1, 0.25, 0.5)
_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class OperateSettings:
    """What is simulated.

    Args:
        audits: of each endpoint.
        null: resampled audits of the parent under a benign way that calibration does not know.
        resample: audits of every endpoint from recorded answers, instead of asked anew.
        cases: mixtures and hidden prompts as well.
        left_out: name of the benign way of the null.
        mode, alpha, prompts, max_tokens, sampled, sampled_tokens: of every audit.
        seed: of the first audit; the others count on from it.
        dtype: that every endpoint computes in.
    """

    audits: int = 30
    null: int = 2000
    resample: bool = False
    cases: bool = True
    left_out: str = "bfloat16-eager"
    mode: str = "auto"
    alpha: float = 0.01
    prompts: int = 40
    max_tokens: int = 64
    sampled: int = 160
    sampled_tokens: int = 128
    seed: int = 1000
    dtype: str = "float32"

    def audit(self, seed: int) -> AuditSettings:
        """The settings of one audit."""
        return AuditSettings(
            mode=self.mode,  # type: ignore[arg-type]  # checked by the class
            alpha=self.alpha,
            prompts=self.prompts,
            max_tokens=self.max_tokens,
            sampled=self.sampled,
            sampled_tokens=self.sampled_tokens,
            seed=seed,
        )


@dataclass(frozen=True, slots=True)
class Characteristics:
    """What came out.

    Args:
        audits: a mapping an audit: endpoint, seed, kind, tier, tokens, requests, share.
        null: the same of the resampled audits of the parent, with ``left_out``.
        names: the parent and the tiers.
        settings: as they ran.
    """

    audits: tuple[Mapping[str, Any], ...]
    null: tuple[Mapping[str, Any], ...]
    names: tuple[str, ...]
    settings: OperateSettings


@dataclass(frozen=True, slots=True)
class _Served:
    """An endpoint of known truth."""

    name: str
    shares: Mapping[str, float]
    system_prompt: str = ""
    usage: bool = True


class _Log:
    """Audits done, a line of JSON each."""

    def __init__(self, path: Path, identity: str) -> None:
        self._path = path
        self.done: dict[tuple[str, int], dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        # A line torn by a kill has no end: the next entry must not be joined to it.
        self._lead = "\n" if text and not text.endswith("\n") else ""
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # torn by a kill: that audit is done again
            if entry.pop("identity", None) != identity:
                raise PlanError(
                    f"{path} holds audits of another calibration or other settings",
                    hint="Choose another --out.",
                )
            self.done[entry["endpoint"], entry["seed"]] = entry
        self._identity = identity

    def put(self, entry: dict[str, Any]) -> None:
        with open(self._path, "a", encoding="utf-8") as stream:
            line = json.dumps({**entry, "identity": self._identity})
            stream.write(f"{self._lead}{line}\n")
        self._lead = ""
        self.done[entry["endpoint"], entry["seed"]] = entry


def operate(
    panel: Panel,
    others: Panel,
    calibration: Calibration,
    settings: OperateSettings,
    out: Path,
    progress: Progress | None = None,
) -> Characteristics:
    """Audit every endpoint of known truth, or go on with that.

    Args:
        panel: parent and tiers, as listed.
        others: tiers that are served and not listed (its parent is not used).
        calibration: of ``panel``.
        settings: how many, and how.
        out: directory of ``audits.jsonl``.
        progress: is told.

    Raises:
        PlanError: ``out`` holds other audits.
    """
    progress = progress or NullProgress()
    shape = asdict(replace(settings, audits=0, null=0, cases=True))
    if settings.dtype == "float32":  # as it was before endpoints had a dtype: those audits go on
        del shape["dtype"]
    log = _Log(out / "audits.jsonl", content_hash([calibration.hash, shape]))
    endpoints = list(_endpoints(panel, others, calibration, settings))
    progress.start("audits", len(endpoints) * settings.audits, "audits")
    wanted = []
    for served in endpoints:
        seeds = [settings.seed + i for i in range(settings.audits)]
        missing = [s for s in seeds if (served.name, s) not in log.done]
        if missing:
            engines = {n: _engine(panel, others, n, settings.dtype) for n in served.shares}
            for entry in _audits(panel, calibration, settings, served, engines, missing):
                log.put(entry)
                progress.advance(detail=f"{served.name}: {entry['kind']}")
        wanted += [log.done[served.name, s] for s in seeds]
    null: list[dict[str, Any]] = []
    if settings.null:
        progress.start("null", settings.null, "resampled audits")
        null = list(_null(panel, calibration, settings, progress))
    return Characteristics(tuple(wanted), tuple(null), tuple(calibration.names), settings)


def _endpoints(
    panel: Panel, others: Panel, calibration: Calibration, settings: OperateSettings
) -> Iterator[_Served]:
    for name in calibration.names:
        yield _Served(name, {name: 1.0})
    for name in others.tiers:
        yield _Served(f"unlisted {name}", {f"@{name}": 1.0})
    if not settings.cases or settings.resample:
        return
    far = [n for n in panel.tiers if n not in calibration.near]
    four = [n for n in far if calibration.bits[n] == 4] or far
    if four:
        for share in _SHARES:
            yield _Served(f"mix {share:g} of {four[0]}", {BASE: 1 - share, four[0]: share})
    yield _Served("hidden prompt", {BASE: 1.0}, _SECRET)
    yield _Served("hidden prompt, no usage", {BASE: 1.0}, _SECRET, usage=False)


def _engine(panel: Panel, others: Panel, name: str, dtype: str) -> ServeEngine:
    source, name = (others, name[1:]) if name.startswith("@") else (panel, name)
    member = source.members[name]
    if dtype != member.how.dtype:
        how = replace(member.how, name=dtype, dtype=dtype)
        member = replace(member, name=f"{name}@served-{dtype}", how=how)
        source.add(member)
    return ServeEngine(source.model(member.name))


def _audits(
    panel: Panel,
    calibration: Calibration,
    settings: OperateSettings,
    served: _Served,
    engines: Mapping[str, ServeEngine],
    seeds: Sequence[int],
) -> Iterator[dict[str, Any]]:
    if settings.resample:
        rows = _record(panel, calibration, settings, served, engines)
        for seed in seeds:
            decision, tokens, asked = replay(rows, calibration, settings, seed)
            yield _entry(served.name, seed, decision, tokens, asked)
        return
    with _serving(served, engines, seeds[0]) as url, ThreadPoolExecutor(_AT_ONCE) as pool:

        def one(seed: int) -> dict[str, Any]:
            with _session(url, panel, calibration, settings, seed) as session:
                found = session.run()
            return _entry(served.name, seed, found.decision, found.tokens, found.requests)

        # Audits share the server's batches, as those of many customers would.
        yield from pool.map(one, seeds)


def _entry(name: str, seed: int, d: Decision, tokens: int, requests: int) -> dict[str, Any]:
    return {
        "endpoint": name,
        "seed": seed,
        "kind": d.verdict,
        "tier": d.tier,
        "verdict": d.tier if d.verdict == "TIER" else d.verdict,
        "tokens": tokens,
        "requests": requests,
        "log_e": d.log_e,
        "share": None if d.share is None else list(d.share),
        "components": None if d.components is None else list(d.components),
    }


@contextmanager
def _serving(served: _Served, engines: Mapping[str, ServeEngine], seed: int) -> Iterator[str]:
    """The endpoint on loopback; its URL."""
    how = ServeSettings(
        "served", served.shares, served.system_prompt, seed=seed, usage=served.usage
    )
    with running(engines, how) as url:
        yield url


@contextmanager
def _session(
    url: str, panel: Panel, calibration: Calibration, settings: OperateSettings, seed: int
) -> Iterator[Session]:
    """One audit over HTTP."""
    with tempfile.TemporaryDirectory() as folder:
        client = Client(url, "served", TransportSettings(attempts=3, timeout=600))
        with closing(client), closing(AuditJournal(Path(folder) / "journal", "")) as journal:
            yield Session(client, panel, calibration, settings.audit(seed), journal)


def _record(
    panel: Panel,
    calibration: Calibration,
    settings: OperateSettings,
    served: _Served,
    engines: Mapping[str, ServeEngine],
) -> dict[Kind, list[Weighed]]:
    """Answers to every probe, once at temperature 0 and once at 1, weighed."""
    count = len(calibration.probes)
    whole = replace(settings, prompts=count)
    rows: dict[Kind, list[Weighed]] = {}
    with (
        _serving(served, engines, settings.seed) as url,
        _session(url, panel, calibration, whole, settings.seed) as session,
    ):
        rows["greedy"] = session.collect("greedy", count)
        rows["sampled"] = session.collect("sampled", min(count, settings.sampled))
    return rows


def replay(
    rows: Mapping[Kind, Sequence[Weighed]],
    calibration: Calibration,
    settings: OperateSettings,
    seed: int,
) -> tuple[Decision, int, int]:
    """One audit from recorded answers: prompts drawn and ordered anew, looked at in blocks.

    Returns:
        The last decision, the tokens and the requests that it took.
    """
    rng = np.random.default_rng([settings.seed, seed])
    one = settings.audit(seed)
    rules = Rules(one.alpha, prompts=min(one.prompts, len(rows["greedy"])))
    asked: list[Weighed] = []
    decision = decide(asked, calibration, rules, False)
    kinds: tuple[Kind, ...] = ("greedy", "sampled")
    for kind in kinds:
        if kind == "sampled" and decision.verdict not in GOES_ON:
            break
        limit = one.prompts if kind == "greedy" else one.sampled
        order = rng.permutation(len(rows[kind]))[:limit]
        for start in range(0, len(order), one.block):
            asked += [rows[kind][int(i)] for i in order[start : start + one.block]]
            decision = decide(asked, calibration, rules, False)
            if decision.settled:
                break
    if not decision.settled:
        decision = decide(asked, calibration, rules, True)
    return decision, sum(w.spent for w in asked), len(asked)


def without(calibration: Calibration, way: str) -> Calibration:
    """The calibration as if a benign way had never been tried: its floors without it.

    Raises:
        PlanError: no such way, or the only one.
    """
    kept = [m for m in calibration.benign if m.name != f"{BASE}@{way}"]
    if len(kept) in (0, len(calibration.benign)):
        known = ", ".join(m.name.removeprefix(f"{BASE}@") for m in calibration.benign)
        raise PlanError(f"no benign way {way!r} can be left out", hint=f"Known: {known}.")
    floor = SAFETY * max(1e-4, *(max(m.sigma_ci[1], m.spread) for m in kept))
    loudest = max(kept, key=lambda m: m.rms)
    return replace(
        calibration,
        benign=tuple(kept),
        floor=floor,
        rms_centre=loudest.rms + math.log(SAFETY),
        rms_spread=max(0.25, loudest.rms_spread),
        null=tuple(n for n in calibration.null if n["name"] != f"{BASE}@{way}"),
        near=tuple(m.name for m in calibration.ladder if max(m.sigma, m.spread) <= 2 * floor),
    )


def _null(
    panel: Panel, calibration: Calibration, settings: OperateSettings, progress: Progress
) -> Iterator[dict[str, Any]]:
    """The parent, served in a way that its calibration has not seen."""
    reduced = without(calibration, settings.left_out)
    name = f"{BASE}@served"
    how = next(w for w in BENIGN if w.name == settings.left_out)
    panel.add(Member(name, panel.members[BASE].spec, how))
    served = _Served(f"parent, {settings.left_out}", {name: 1.0})
    engines = {name: ServeEngine(panel.model(name))}
    rows = _record(panel, reduced, settings, served, engines)
    for i in range(settings.null):
        decision, tokens, asked = replay(rows, reduced, settings, i)
        progress.advance()
        yield _entry(served.name, i, decision, tokens, asked)


def upper(hits: int, of: int, confidence: float = 0.95) -> float:
    """Upper end of the two-sided Clopper-Pearson interval of a share."""
    tail = (1 - confidence) / 2
    return 1.0 if hits == of else float(beta.ppf(1 - tail, hits + 1, of - hits))
