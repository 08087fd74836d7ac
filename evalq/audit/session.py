"""One audit: ask in blocks, journal each answer, look after each block, stop once it is settled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evalq.audit.answers import Answer
from evalq.audit.calibration import Calibration
from evalq.audit.client import Ask, Client
from evalq.audit.comparable import Rendering, check_rendering
from evalq.audit.decide import GOES_ON, Decision, Rules, decide
from evalq.audit.evidence import Kind, Weighed, Weigher
from evalq.audit.journal import AuditJournal
from evalq.audit.panel import Panel
from evalq.audit.served import read_served
from evalq.errors import EndpointError, PlanError
from evalq.models.vocabulary import Vocabulary
from evalq.progress import NullProgress, Progress

__all__ = ["AuditSettings", "Mode", "Outcome", "Session"]

Mode = Literal["auto", "logprobs", "tokens", "text"]


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """What may be asked, and how a verdict is reached.

    Args:
        mode: ``logprobs`` needs an endpoint that returns them; ``tokens`` leaves them out;
            ``text`` compares texts alone; ``auto`` uses what there is.
        alpha: chance of accusing an endpoint that serves the parent.
        prompts, max_tokens: of phase 1, temperature 0.
        sampled, sampled_tokens: requests and tokens of phase 2, temperature 1.
        block: requests between two looks.
        max_tokens_total: tokens read and written; 0 for no limit.
        budget_usd: 0 for no limit; needs prices.
        price_in, price_out: US dollars for a million tokens.
        seed: of the order of the probes and of the requests' own seeds.
    """

    mode: Mode = "auto"
    alpha: float = 0.01
    prompts: int = 40
    max_tokens: int = 64
    sampled: int = 160
    sampled_tokens: int = 128
    block: int = 8
    max_tokens_total: int = 0
    budget_usd: float = 0.0
    price_in: float = 0.0
    price_out: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("auto", "logprobs", "tokens", "text"):
            raise PlanError(f"an audit's mode is auto, logprobs, tokens or text, not {self.mode!r}")
        if not 0 < self.alpha < 0.5:
            raise PlanError(f"alpha {self.alpha} is not between 0 and 0.5")
        for name in ("prompts", "max_tokens", "sampled_tokens", "block"):
            if getattr(self, name) < 2:
                raise PlanError(f"{name} of an audit is less than 2")
        for name in ("sampled", "max_tokens_total", "budget_usd", "price_in", "price_out", "seed"):
            if getattr(self, name) < 0:
                raise PlanError(f"{name} of an audit is below 0")
        if self.budget_usd and not (self.price_in or self.price_out):
            raise PlanError(
                "a budget in dollars needs prices",
                hint="Give --price-in and --price-out, in dollars for a million tokens.",
            )


@dataclass
class Outcome:
    """What an audit came to.

    Args:
        decision: the last one.
        weighed: every answer, in the order of asking.
        timeline: tokens spent and log e-value against the parent after each block.
        tokens: read and written, as the endpoint counts them, else as counted here.
        requests: that were answered.
        usd: at the prices given; ``None`` without prices.
        warnings: sentences.
        stopped: why nothing more was asked.
        examples: probe, prompt, text served, whether the parent agrees; for the report.
    """

    decision: Decision
    weighed: list[Weighed] = field(default_factory=list)
    timeline: list[tuple[int, float]] = field(default_factory=list)
    tokens: int = 0
    requests: int = 0
    usd: float | None = None
    warnings: list[str] = field(default_factory=list)
    stopped: str = ""
    examples: list[dict[str, Any]] = field(default_factory=list)


class Session:
    """Runs phases 0 to 3 against one endpoint.

    Args:
        client: the endpoint; its capabilities are found here unless the journal has them.
        panel, calibration: what is held locally.
        settings: how much is asked.
        journal: answers so far.
        progress: is told.
    """

    def __init__(
        self,
        client: Client,
        panel: Panel,
        calibration: Calibration,
        settings: AuditSettings,
        journal: AuditJournal,
        progress: Progress | None = None,
    ) -> None:
        self.client, self.panel, self.calibration = client, panel, calibration
        self.settings, self.journal = settings, journal
        self._progress = progress or NullProgress()
        self._tokenizer: Any = panel.parent.tokenizer
        self._vocabulary = Vocabulary(self._tokenizer)
        self._weigher = Weigher(panel, calibration)
        self._ends = _ends(panel)
        self._rendering = Rendering()
        self._lock = threading.Lock()
        self._spent_in = self._spent_out = 0
        self._answered = 0
        self.rules = Rules(settings.alpha, prompts=min(settings.prompts, len(calibration.probes)))
        rng = np.random.default_rng(settings.seed)
        # A fresh order for every seed: probes that came in the same order would be recognized.
        self._order = [int(i) for i in rng.permutation(len(calibration.probes))]
        self._seeds = [int(s) for s in rng.integers(1, 2**31 - 1, 4096)]

    @property
    def tokens(self) -> int:
        """Spent so far."""
        return self._spent_in + self._spent_out

    @property
    def usd(self) -> float | None:
        """Spent so far; ``None`` without prices."""
        s = self.settings
        if not (s.price_in or s.price_out):
            return None
        return (self._spent_in * s.price_in + self._spent_out * s.price_out) / 1e6

    def run(self) -> Outcome:
        """Ask until it is settled, or the budget is spent.

        Raises:
            EndpointError: the endpoint cannot be asked at all, or not in the mode wanted.
        """
        self._discover()
        if self.settings.mode == "logprobs" and not self.client.capabilities.logprobs:
            raise EndpointError(
                "the endpoint returns no log-probabilities",
                hint="Use --mode tokens, or auto.",
            )
        outcome = Outcome(decide([], self.calibration, self.rules, False))
        self._phase(outcome, "greedy")
        # What is unlisted or mixed stays so, whatever samples say of it.
        if not outcome.stopped and outcome.decision.verdict in GOES_ON:
            self._phase(outcome, "sampled")
        if outcome.decision.verdict != "NOT_COMPARABLE" or outcome.weighed:
            self._conclude(outcome)
        outcome.tokens, outcome.requests, outcome.usd = self.tokens, self._answered, self.usd
        outcome.warnings += self._remarks(outcome)
        return outcome

    def collect(self, kind: Kind, count: int) -> list[Weighed]:
        """Answers to so many requests, weighed, whatever they show; ``operate`` resamples them.

        Raises:
            EndpointError: the endpoint stops answering, or reads other prompts.
        """
        self._discover()
        outcome = Outcome(decide([], self.calibration, self.rules, False))
        out: list[Weighed] = []
        for start in range(0, count, 32):
            asks = [self._ask(kind, n) for n in range(start, min(start + 32, count))]
            answers = self._block(kind, asks, outcome)
            if answers is None or self._incomparable(outcome, answers):
                raise EndpointError(f"the answers cannot be recorded: {outcome.stopped}")
            out += self._weigh(kind, answers, outcome)
        return out

    def _discover(self) -> None:
        stored = self.journal.capabilities()
        if stored is not None:
            self.client.capabilities = stored[0]
            self._spent_in, self._spent_out, self._answered = stored[1:]
            return
        probe = self.calibration.probes[0]
        api: Any = self.calibration.settings.api
        for answer in self.client.discover(probe.text, probe.ids, api):
            self._count(answer, len(probe.ids), len(answer.shown or ()) or 2)
        self.journal.put_capabilities(
            self.client.capabilities, self._spent_in, self._spent_out, self._answered
        )

    def _phase(self, outcome: Outcome, kind: Kind) -> None:
        s = self.settings
        greedy = kind == "greedy"
        total = min(s.prompts, len(self._order)) if greedy else s.sampled
        self._progress.start("phase 1" if greedy else "phase 2", total, "requests")
        for start in range(0, total, s.block):
            numbers = range(start, min(start + s.block, total))
            asks = [self._ask(kind, n) for n in numbers]
            if not self._affordable([a for _, a in asks]):
                outcome.stopped = "the budget is spent"
                return
            answers = self._block(kind, asks, outcome)
            if answers is None:
                return
            if greedy and self._incomparable(outcome, answers):
                return
            outcome.weighed += self._weigh(kind, answers, outcome)
            outcome.decision = decide(outcome.weighed, self.calibration, self.rules, False)
            outcome.timeline.append((self.tokens, outcome.decision.log_e))
            self._progress.advance(len(numbers), outcome.decision.verdict)
            if outcome.decision.settled:
                return

    def _ask(self, kind: Kind, number: int) -> tuple[int, Ask]:
        probe = self._order[number % len(self._order)]
        greedy = kind == "greedy"
        s = self.settings
        seed = self._seeds[(number if greedy else 2048 + number) % len(self._seeds)]
        text = self.calibration.probes[probe].text
        limit = s.max_tokens if greedy else s.sampled_tokens
        return probe, Ask(text, limit, 0.0 if greedy else 1.0, seed)

    def _affordable(self, asks: Sequence[Ask]) -> bool:
        s = self.settings
        read = sum(len(self._tokenizer(a.prompt)["input_ids"]) for a in asks)
        written = sum(a.max_tokens for a in asks)
        if s.max_tokens_total and self.tokens + read + written > s.max_tokens_total:
            return False
        more = (read * s.price_in + written * s.price_out) / 1e6
        return not s.budget_usd or (self.usd or 0.0) + more <= s.budget_usd

    def _block(
        self, kind: Kind, asks: Sequence[tuple[int, Ask]], outcome: Outcome
    ) -> list[tuple[int, Answer]] | None:
        """Answers of one block; ``None`` where the endpoint stopped answering."""
        failed: list[str] = []

        def one(entry: tuple[int, Ask]) -> tuple[int, Answer] | None:
            probe, ask = entry
            stored = self.journal.get(kind, ask)
            if stored is None:
                try:
                    stored = self.client.ask(ask)
                except EndpointError as error:
                    with self._lock:
                        failed.append(error.message)
                    return None
                self.journal.put(kind, ask, stored)
            return probe, stored

        found = self._together(one, asks)
        out = [f for f in found if f is not None]
        for probe, answer in out:
            self._count(answer, len(self.calibration.probes[probe].ids), len(answer.shown or ()))
        if failed:
            outcome.warnings.append(
                f"{len(failed)} of {len(asks)} requests failed for good; the first: {failed[0]}"
            )
        if len(failed) * 2 > len(asks):
            outcome.stopped = "the endpoint stopped answering"
            return None
        return out

    def _together(
        self,
        one: Callable[[tuple[int, Ask]], tuple[int, Answer] | None],
        asks: Sequence[tuple[int, Ask]],
    ) -> list[tuple[int, Answer] | None]:
        pool = ThreadPoolExecutor(min(32, len(asks)))
        try:
            return list(pool.map(one, asks))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _count(self, answer: Answer, read: int, written: int) -> None:
        self._answered += 1
        self._spent_in += read if answer.prompt_tokens is None else answer.prompt_tokens
        self._spent_out += (
            (written or len(self._tokenizer(answer.text)["input_ids"]))
            if answer.completion_tokens is None
            else answer.completion_tokens
        )

    def _incomparable(self, outcome: Outcome, answers: Sequence[tuple[int, Answer]]) -> bool:
        """Phase 0, with the prompts of phase 1: does the endpoint read what the parent would?"""
        pairs = [(self.calibration.probes[p].ids, a) for p, a in answers]
        self._rendering = check_rendering(self._rendering, pairs, self._tokenizer)
        if not self._rendering.problem:
            return False
        outcome.decision = replace(
            decide(outcome.weighed, self.calibration, self.rules, False),
            verdict="NOT_COMPARABLE",
            settled=True,
            tier=None,
            reasons=(self._rendering.problem,),
        )
        outcome.stopped = "phase 0"
        return True

    def _weigh(
        self, kind: Kind, answers: Sequence[tuple[int, Answer]], outcome: Outcome
    ) -> list[Weighed]:
        entries = []
        for probe, answer in answers:
            asked = self.calibration.probes[probe]
            ids = self._rendering.apply(asked.ids, self._tokenizer)
            prompt = (
                asked.text
                if self.calibration.settings.api == "completions"
                else self._vocabulary.text(ids)
            )
            served = read_served(answer, self._vocabulary, self._tokenizer, prompt, self._ends)
            spent = (answer.prompt_tokens or len(ids)) + len(served.tokens)
            entries.append((probe, ids, served, spent))
        with_logprobs = kind == "greedy" and self.settings.mode in ("auto", "logprobs")
        found = self._weigher.weigh(kind, entries, with_logprobs)
        for (probe, answer), (_, _, served, _), weighed in zip(
            answers, entries, found, strict=True
        ):
            outcome.examples.append(
                {
                    "kind": kind,
                    "prompt": self.calibration.probes[probe].text,
                    "text": answer.text,
                    "tokens": len(served.tokens),
                    "source": served.source,
                    "flips": None if weighed is None else int(weighed.flip[0].sum()),
                }
            )
        return [w for w in found if w is not None]

    def _conclude(self, outcome: Outcome) -> None:
        """Nothing more will be asked: the last word."""
        comparable = outcome.decision.verdict != "NOT_COMPARABLE"
        if comparable and not outcome.decision.settled:
            outcome.decision = decide(outcome.weighed, self.calibration, self.rules, True)

    def _remarks(self, outcome: Outcome) -> list[str]:
        out = []
        client, rendering = self.client, self._rendering
        if client.retries:
            out.append(f"{client.retries} attempts failed and were repeated")
        if len(client.fingerprints) > 1:
            out.append("the endpoint changed its system_fingerprint on the way")
        if rendering.note:
            out.append(rendering.note)
        if not client.capabilities.usage:
            out.append("the endpoint counts no tokens, so a hidden prompt cannot be excluded")
        if any(e["source"] == "text" for e in outcome.examples):
            out.append("the endpoint names no tokens: its texts were tokenized again")
        models = client.capabilities.models
        if models and client.model and client.model not in models:
            out.append(f"the endpoint does not list {client.model!r}")
        eight = [n for n, b in self.calibration.bits.items() if b == 8]
        if eight and outcome.decision.verdict == "PARENT-LIKE" and self.tokens < 10_000:
            out.append(
                f"underpowered for 8 bits ({', '.join(eight)}): fewer than 10,000 tokens were spent"
            )
        return out


def _ends(panel: Panel) -> tuple[int, ...]:
    from evalq.serve.engine import ServeEngine

    return tuple(sorted(ServeEngine(panel.parent).ends))


def settings_dict(settings: AuditSettings) -> dict[str, Any]:
    """JSON values."""
    return asdict(settings)


def journal_path(out: Path) -> Path:
    """Of an audit's directory."""
    return out / "journal.jsonl"
