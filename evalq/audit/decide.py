"""From weighed answers to a verdict that may be asked for after every answer.

Three questions, each an e-process against a null, with a third of alpha each: do the flips stay
within the noise floor of a reference (phase 1), are sampled tokens as likely under the parent's
benign ways as under the tiers (phase 2), do returned log-probabilities stay within their floor
(phase 3). A reference that phases 1 or 3 reject is out, whatever the likelihoods say of it: so an
unlisted recipe is not the listed one that is the least unlike it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evalq.audit.calibration import Calibration
from evalq.audit.evidence import Weighed
from evalq.audit.panel import BASE
from evalq.audit.state import CLEAR, State, gather, largest, least
from evalq.stats.mixture import fit_mixture, mixture_interval

__all__ = ["GOES_ON", "VERDICTS", "Decision", "Rules", "Verdict", "decide"]

Floats = NDArray[np.float64]
Verdict = Literal["PARENT-LIKE", "TIER", "MIXED", "UNLISTED", "NOT_COMPARABLE", "UNDERPOWERED"]
VERDICTS: tuple[Verdict, ...] = (
    "PARENT-LIKE",
    "TIER",
    "MIXED",
    "UNLISTED",
    "NOT_COMPARABLE",
    "UNDERPOWERED",
)
GOES_ON: tuple[Verdict, ...] = ("PARENT-LIKE", "TIER", "UNDERPOWERED")
"""Verdicts of phase 1 that samples may confirm or change."""
_LEAST_SHARE = 0.02
_HESITATE, _MIXES = 3.0, 6.0
"""Nats that a mixture has to gain to go on asking, and to be named."""
_FAR = 2.0
"""Nats from which a request is counted as one of the likelier of two references."""


@dataclass(frozen=True, slots=True)
class Rules:
    """When to stop, and on what.

    Args:
        alpha: chance of accusing an endpoint that serves the parent.
        declare: posterior from which a tier is named.
        prompts: of phase 1 when nothing is settled earlier.
        least: prompts before any tier is named.
    """

    alpha: float = 0.01
    declare: float = 0.99
    prompts: int = 40
    least: int = 12


@dataclass(frozen=True, slots=True)
class Decision:
    """What the evidence shows so far.

    Args:
        verdict: the best statement now; ``UNDERPOWERED`` while nothing is shown.
        settled: more of the planned requests would not be worth their price.
        tier: the named tier.
        posterior: of the parent and the tiers, as if one of them were served.
        log_e: against the parent, nats; the largest of the phases so far.
        against: largest log e-value against each reference, from phases 1 and 3.
        share: of the requests that ``tier`` answers, and its 95 % interval (``MIXED``).
        components: names of the two that are mixed.
        reasons: sentences.
        warnings: sentences.
    """

    verdict: Verdict
    settled: bool
    tier: str | None
    posterior: Mapping[str, float]
    log_e: float
    against: Mapping[str, float]
    share: tuple[float, float, float] | None = None
    components: tuple[str, str] | None = None
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def decide(
    rows: Sequence[Weighed], calibration: Calibration, rules: Rules, final: bool
) -> Decision:
    """The verdict on what was answered so far.

    Args:
        rows: in the order they were asked.
        calibration: that they were weighed with.
        rules: when to stop.
        final: nothing more will be asked.
    """
    state = gather(rows, calibration, rules.alpha)
    if not state.prompts and state.sampled_log_e < state.bar:
        return _made(state, "UNDERPOWERED", False, reasons=("no answer could be used",))
    out = state.out
    if not out[0]:
        return _parent(state, calibration, rules, final)
    tiers = [i for i in range(1, len(out)) if not out[i]]
    if tiers:
        return _tier(state, tiers, rules, final)
    if not final and state.prompts < rules.prompts:
        return _made(state, "UNLISTED", False)
    return _none_fits(state, calibration)


def _made(state: State, verdict: Verdict, settled: bool, **more: Any) -> Decision:
    against = np.maximum(state.flips, state.logprobs if state.use_logprobs else 0.0)
    return Decision(
        verdict=verdict,
        settled=settled,
        tier=more.get("tier"),
        posterior=dict(zip(state.names, (float(p) for p in state.posterior), strict=True)),
        log_e=state.log_e,
        against=dict(zip(state.names, (float(a) for a in against), strict=True)),
        share=more.get("share"),
        components=more.get("components"),
        reasons=tuple(more.get("reasons", ())),
        warnings=(*state.warnings, *more.get("warnings", ())),
    )


def _parent(state: State, calibration: Calibration, rules: Rules, final: bool) -> Decision:
    """Nothing speaks against the parent: are the tiers ruled out?"""
    open_ = [
        name
        for i, name in enumerate(state.names)
        if i
        and name not in calibration.near
        and not state.out[i]
        and state.posterior[i] > (1 - rules.declare) * max(state.posterior[0], 1e-300)
    ]
    if open_:
        what = ", ".join(open_)
        reason = f"neither the parent nor {what} is ruled out by what was served so far"
        return _made(state, "UNDERPOWERED", False, reasons=(reason,))
    distinct = [i for i, n in enumerate(state.names) if n not in calibration.near]
    if _gain(state, 0, distinct) > _MIXES:
        reason = "a few requests speak against the parent, too few to say so"
        return _made(state, "UNDERPOWERED", state.prompts >= rules.prompts, reasons=(reason,))
    if state.doubtful:
        reason = (
            "the served tokens are the parent's within its noise floor, and the log-probabilities "
            "are not: an unlisted recipe close to it, or an endpoint that alters log-probabilities"
        )
        return _made(state, "UNDERPOWERED", state.prompts >= rules.prompts, reasons=(reason,))
    near = [n for n in calibration.near if not state.out[state.names.index(n)]]
    notes = []
    if near:
        notes.append(
            f"{', '.join(near)} cannot be told from the parent at this noise floor"
            + ("" if final else ", with these requests")
        )
    enough = state.prompts >= rules.prompts
    return _made(
        state,
        "PARENT-LIKE" if enough or (final and state.prompts >= rules.least) else "UNDERPOWERED",
        enough,
        reasons=("what was served lies within the noise floor of the parent",),
        warnings=notes,
    )


def _tier(state: State, tiers: Sequence[int], rules: Rules, final: bool) -> Decision:
    """The parent is ruled out, and some tier is not."""
    best = max(tiers, key=lambda i: state.posterior[i])
    name = state.names[best]
    mass = float(state.posterior[best])
    gain = _gain(state, best)
    if gain > _HESITATE and not final and state.prompts < rules.prompts:
        reason = f"some requests speak for {name}, others do not"
        return _made(state, "UNDERPOWERED", False, reasons=(reason,))
    if gain > _MIXES:
        mixed = _mixture(state)
        if mixed is not None:
            return mixed
        reason = f"some requests speak against {name}, and no mixture of two explains all"
        return _made(state, "UNDERPOWERED", False, reasons=(reason,))
    if mass >= rules.declare and (state.prompts >= rules.least or final):
        reason = f"{name} explains what was served, within its own noise floor; nothing else does"
        return _made(state, "TIER", state.prompts >= rules.least, tier=name, reasons=(reason,))
    rest = ", ".join(state.names[i] for i in tiers)
    reason = f"the parent is ruled out, but not which of {rest} is served"
    return _made(state, "UNDERPOWERED", False, reasons=(reason,))


def _gain(state: State, single: int, among: Sequence[int] | None = None) -> float:
    """Nats by which the best mixture explains the requests better than one reference."""
    columns = list(range(len(state.names))) if among is None else list(among)
    if not state.prompts:
        return 0.0
    table = state.by_request[:, columns]
    alone = float(state.by_request[:, single].sum())
    return fit_mixture(table).log_likelihood - alone


def _none_fits(state: State, calibration: Calibration) -> Decision:
    """Every reference alone is ruled out."""
    mixed = _mixture(state)
    if mixed is not None:
        return mixed
    if state.looks_sampled:
        reason = (
            "answers to temperature 0 are as unlikely as samples: the temperature is not honoured, "
            "or another model or a hidden prompt stands behind them, so nothing can be compared"
        )
        return _made(state, "NOT_COMPARABLE", True, reasons=(reason,))
    reasons = (
        "no listed tier, nor a mixture of two, explains what was served",
        "an unlisted recipe, a hidden prompt or another model would look like this",
    )
    return _made(state, "UNLISTED", True, reasons=reasons)


def _mixture(state: State) -> Decision | None:
    """Two references, each request answered by one: only where that explains every request."""
    if state.prompts < 8 or len(state.names) < 2:
        return None
    weights = fit_mixture(state.by_request).weights
    order = np.argsort(-weights)
    first, second = sorted(int(i) for i in order[:2])
    if min(weights[first], weights[second]) < _LEAST_SHARE:
        return None
    if float(largest(least(state.e, first, second))[0]) >= CLEAR:
        return None
    shown = least(state.e_logprobs, first, second)
    if state.use_logprobs and float(largest(shown)[0]) >= state.bar:
        return None
    share = mixture_interval(state.by_request[:, first], state.by_request[:, second])
    if share[1] <= 0 or share[2] >= 1:
        return None
    # No single answer accuses: each of the two is far the likelier one of several requests.
    clear = state.by_request[:, second] - state.by_request[:, first]
    if min((clear > _FAR).sum(), (clear < -_FAR).sum()) < 2:
        return None
    a, b = state.names[first], state.names[second]
    reasons = [f"each request is explained by {a} or by {b}, and neither explains all"]
    notes = []
    when = _ordered(state.by_request[:, second] - state.by_request[:, first])
    if when is not None:
        notes.append(f"the model changed on the way: {when} (rank test, p < .001)")
    return _made(
        state, "MIXED", True, tier=b if a == BASE else None, share=share, components=(a, b),
        reasons=reasons, warnings=notes,
    )  # fmt: skip


def _ordered(difference: Floats) -> str | None:
    """Whether requests of one component come before those of the other."""
    from scipy.stats import mannwhitneyu

    clear = np.abs(difference) > _FAR
    where, which = np.flatnonzero(clear), difference[clear] > 0
    if which.sum() < 3 or (~which).sum() < 3:
        return None
    if float(mannwhitneyu(where[which], where[~which]).pvalue) >= 0.001:
        return None
    early = np.median(where[which]) < np.median(where[~which])
    return "the second of the two came first" if early else "the first of the two came first"
