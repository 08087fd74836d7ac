"""Models against the reference on held-out text: flips, moved margins, KL."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evalq.audit.panel import BASE, Panel, Row, TokenScores
from evalq.stats.agreement import flip_scale

__all__ = ["Measured", "centred", "divergences", "log_rms", "measure", "references"]

Floats = NDArray[np.float64]
_TOP = 5


@dataclass(frozen=True, slots=True)
class Measured:
    """One model against the reference.

    Args:
        name: of the tier or the benign way.
        sigma: scale of flips by maximum likelihood, nats.
        sigma_ci: its 95 % bootstrap interval by window.
        spread: the same scale from how far margins moved, which needs no flip: the 95th percentile
            of |change| over 1.96, nats, where the reference's top-two margin is below 2.
        flips, positions: that ``sigma`` rests on.
        kl: mean KL(reference || this), nats a token.
        rms: mean over windows of ln(root mean square of centred differences of the five likeliest
            tokens' log-probabilities).
        rms_spread: its standard deviation over windows.
    """

    name: str
    sigma: float
    sigma_ci: tuple[float, float]
    spread: float
    flips: int
    positions: int
    kl: float
    rms: float
    rms_spread: float


def references(panel: Panel, rows: Sequence[Row]) -> tuple[list[Row], list[TokenScores]]:
    """Rows that ask for the reference's five likeliest tokens, and its scores of them."""
    asked = []
    for row, logp in zip(rows, panel.distributions(BASE, rows), strict=True):
        ids = logp.topk(min(_TOP, logp.shape[-1]), -1).indices.tolist()
        asked.append(Row(row.prompt, row.tokens, tuple(tuple(i) for i in ids)))
    return asked, panel.score(BASE, asked)


def measure(
    panel: Panel,
    rows: Sequence[Row],
    reference: Sequence[TokenScores],
    scores: Mapping[str, Sequence[TokenScores]],
    seed: int,
) -> dict[str, Measured]:
    """Every member against the reference.

    Args:
        panel: parent, benign ways and tiers.
        rows: windows of text.
        reference: the reference's scores of its own five likeliest tokens.
        scores: each member's scores of those tokens, by name.
        seed: of the bootstrap.
    """
    names = list(scores)
    # One more pass of the reference gives what it thinks of everything that another one chose.
    chosen = [
        Row(row.prompt, row.tokens,
            tuple(tuple(int(scores[n][i].best[t]) for n in names) for t in range(len(row.tokens))))
        for i, row in enumerate(rows)
    ]  # fmt: skip
    looked = panel.score(BASE, chosen)
    divergence = _kl_from_reference(panel, names, rows)
    out = {}
    for k, name in enumerate(names):
        gaps, flips, labels, moved, rms = [], [], [], [], []
        for i, (ref, got) in enumerate(zip(reference, scores[name], strict=True)):
            top = np.array([a[0] for a in ref.asked])
            second = np.array([a[1] for a in ref.asked])
            own = np.array([a[k] for a in looked[i].asked])
            flip = own < top - 1e-12
            gaps.append(np.where(flip, top - own, top - second))
            flips.append(flip)
            labels.append(np.full(len(flip), i))
            theirs = np.array([a[0] - a[1] for a in got.asked])
            close = top - second < 2
            moved.append((theirs - (top - second))[close])
            rms.append(log_rms([centred(a, b) for a, b in zip(got.asked, ref.asked, strict=True)]))
        scale = flip_scale(
            np.concatenate(gaps), np.concatenate(flips), np.concatenate(labels),
            np.random.default_rng(seed),
        )  # fmt: skip
        change = np.concatenate(moved)
        out[name] = Measured(
            name=name,
            sigma=scale.sigma,
            sigma_ci=scale.ci,
            spread=float(np.quantile(np.abs(change), 0.95)) / 1.96 if change.size else 0.0,
            flips=scale.flips,
            positions=scale.positions,
            kl=divergence[name],
            rms=float(np.mean(rms)),
            rms_spread=float(np.std(rms)),
        )
    return out


def centred(a: Floats, b: Floats) -> Floats:
    """Differences of log-probabilities of the same tokens, without their common shift."""
    d = a - b
    out: Floats = d - d.mean()
    return out


def log_rms(parts: Sequence[Floats]) -> float:
    """ln of the root mean square of all of them; never below that of 1e-7."""
    values = np.concatenate(list(parts))
    return math.log(max(1e-7, float(np.sqrt(np.mean(np.square(values))))))


def _kl_from_reference(panel: Panel, names: Sequence[str], rows: Sequence[Row]) -> dict[str, float]:
    part = rows[:: max(1, len(rows) // 8)][:8]
    base = list(panel.distributions(BASE, part))
    out = {}
    for name in names:
        values = [
            float((p.double().exp() * (p.double() - q.double())).sum(-1).mean())
            for p, q in zip(base, panel.distributions(name, part), strict=True)
        ]
        out[name] = max(0.0, float(np.mean(values)))
    return out


def divergences(panel: Panel, rows: Sequence[Row]) -> tuple[tuple[float, ...], ...]:
    """KL(row || column), nats a token, of the parent and the tiers, on eight of the windows."""
    part = rows[:: max(1, len(rows) // 8)][:8]
    names = [BASE, *panel.tiers]
    kept = {n: [d.half() for d in panel.distributions(n, part)] for n in names}
    table = []
    for a in names:
        line = []
        for b in names:
            values = [
                float((p.double().exp() * (p.double() - q.double())).sum(-1).mean())
                for p, q in zip(kept[a], kept[b], strict=True)
            ]
            line.append(0.0 if a == b else max(0.0, float(np.mean(values))))
        table.append(tuple(line))
    return tuple(table)
