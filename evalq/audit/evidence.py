"""One answer, weighed under the parent and under every tier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from evalq.audit.calibration import Calibration
from evalq.audit.measure import centred, log_rms
from evalq.audit.panel import BASE, Benign, Member, Panel, Row, TokenScores
from evalq.audit.served import Served, doubtful
from evalq.models.vocabulary import Vocabulary
from evalq.stats.agreement import flip_log_likelihood, prompt_e_values, scale_e_values

__all__ = ["Kind", "Weighed", "Weigher"]

Floats = NDArray[np.float64]
Kind = Literal["greedy", "sampled"]

_SCALES = 10
_NU = 4.0
_TEMPER = 0.5
"""Differences at one place share their error: they count half."""
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Weighed:
    """What one answer says; K references are the parent and the tiers, R adds the null of phase 2.

    Args:
        kind: temperature 0 or 1.
        probe: index of the prompt.
        spent: tokens read and written.
        tokens: that were scored.
        e: ``[K]`` e-value against "this reference, up to the noise floor", from flips.
        fit: ``[K, S]`` log-likelihood of the flips at scales up to the floor.
        e_logprobs: ``[K]`` the same e-value from returned log-probabilities; NaN without them.
        fit_logprobs: ``[K, S]`` their log-likelihood; 0 without them.
        rms_logprobs: ``[K]`` ln of the root mean square of their differences; NaN without them.
        nll, entropy, variance: ``[R]`` summed over tokens, at temperature 1.
        excess: nats by which all served tokens are less likely under the parent than its own
            likeliest ones: 0 where the parent would have chosen every token.
        gap, flip: a vector for each of K.
    """

    kind: Kind
    probe: int
    spent: int
    tokens: int
    e: Floats
    fit: Floats
    e_logprobs: Floats
    fit_logprobs: Floats
    rms_logprobs: Floats
    nll: Floats
    entropy: Floats
    variance: Floats
    excess: float
    gap: tuple[Floats, ...]
    flip: tuple[NDArray[np.bool_], ...]


class Weigher:
    """Scores answers with the panel.

    Args:
        panel: parent and tiers; the null's ways to run the parent are added to it.
        calibration: of that panel.
    """

    def __init__(self, panel: Panel, calibration: Calibration) -> None:
        self.panel, self.calibration = panel, calibration
        self._vocabulary = Vocabulary(panel.parent.tokenizer)
        spec = panel.members[BASE].spec
        self.null = []
        for way in calibration.null:
            name = str(way["name"])
            if name not in panel.members:
                panel.add(Member(name, spec, Benign(**way["how"])))
            self.null.append(name)
        steps = 2.0 ** -np.arange(_SCALES)
        self._scales = calibration.floor * steps
        self._rms = float(np.exp(calibration.rms_centre)) * steps

    def weigh(
        self,
        kind: Kind,
        entries: Sequence[tuple[int, tuple[int, ...], Served, int]],
        logprobs: bool,
    ) -> list[Weighed | None]:
        """Weigh several answers at once, in their order.

        Args:
            kind: of all of them.
            entries: probe, the prompt's tokens, what was served, tokens spent.
            logprobs: use returned log-probabilities.

        Returns:
            ``None`` for an answer without a token.
        """
        usable = [i for i, (_, _, served, _) in enumerate(entries) if served.tokens]
        rows = [self._row(entries[i][1], entries[i][2], logprobs) for i in usable]
        names = self.calibration.names
        scores: dict[str, list[TokenScores]] = {n: self.panel.score(n, rows) for n in names}
        if kind == "sampled":
            plain = [replace(r, asked=()) for r in rows]
            scores |= {n: self.panel.score(n, plain) for n in self.null}
        out: list[Weighed | None] = [None] * len(entries)
        for place, i in enumerate(usable):
            probe, _, served, spent = entries[i]
            mine = {n: s[place] for n, s in scores.items()}
            out[i] = self._one(kind, probe, spent, served, mine, rows[place])
        return out

    def _row(self, prompt: tuple[int, ...], served: Served, logprobs: bool) -> Row:
        if not (logprobs and served.tops):
            return Row(prompt, served.tokens)
        asked = tuple(tuple(t for t, _ in _highest(top)) for top in served.tops)
        return Row(prompt, served.tokens, asked)

    def _one(
        self,
        kind: Kind,
        probe: int,
        spent: int,
        served: Served,
        scores: dict[str, TokenScores],
        row: Row,
    ) -> Weighed:
        names = self.calibration.names
        floor = self.calibration.floor
        gaps, flips, e, fit = [], [], [], []
        for name in names:
            found = scores[name]
            sure = ~doubtful(served, found.best, found.flip, self._vocabulary)
            gap, flip = found.gap[sure], found.flip[sure]
            gaps.append(gap)
            flips.append(flip)
            zeros = np.zeros(len(gap), dtype=np.int64)
            e.append(float(prompt_e_values(gap, flip, zeros, floor)[0]) if len(gap) else 1.0)
            fit.append(flip_log_likelihood(gap, flip, self._scales).sum(0))
        e3, fit3, rms3 = self._logprobs(served, [scores[n] for n in names], bool(row.asked))
        everyone = [*names, *(self.null if kind == "sampled" else ())]
        return Weighed(
            kind=kind,
            probe=probe,
            spent=spent,
            tokens=len(served.tokens),
            e=np.array(e) if kind == "greedy" else np.ones(len(names)),
            fit=np.array(fit) if kind == "greedy" else np.zeros((len(names), _SCALES)),
            e_logprobs=e3,
            fit_logprobs=fit3,
            rms_logprobs=rms3,
            nll=np.array([-scores[n].logp.sum() for n in everyone]),
            entropy=np.array([scores[n].entropy.sum() for n in everyone]),
            variance=np.array([scores[n].variance.sum() for n in everyone]),
            excess=float(scores[BASE].gap[scores[BASE].flip].sum()),
            gap=tuple(gaps),
            flip=tuple(flips),
        )

    def _logprobs(
        self, served: Served, scores: Sequence[TokenScores], asked: bool
    ) -> tuple[Floats, Floats, Floats]:
        count = len(scores)
        none = np.full(count, np.nan), np.zeros((count, _SCALES)), np.full(count, np.nan)
        if not asked:
            return none
        e, fit, rms = [], [], []
        for found in scores:
            parts = [
                centred(np.array([v for _, v in _highest(top)]), local)
                for top, local in zip(served.tops, found.asked, strict=True)
                if len(local) > 1
            ]
            if not parts:
                return none
            value = log_rms(parts)
            rms.append(value)
            centre, spread = self.calibration.rms_centre, self.calibration.rms_spread
            e.append(float(scale_e_values([value], centre, spread)[0]))
            z = np.concatenate(parts)[:, None] / self._rms
            density: Any = student.logpdf(z, _NU) - np.log(self._rms)
            fit.append(_TEMPER * density.sum(0))
        return np.array(e), np.array(fit), np.array(rms)


def _highest(top: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The five likeliest of the returned tokens: as many as calibration looked at."""
    return sorted(top, key=lambda pair: -pair[1])[:_SHOWN]
