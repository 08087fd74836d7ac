"""Is the gate calibrated? False fails, false passes, power and coverage, by simulation.

Run as ``python -m benchmarks.gate_calibration`` (``make bench-gate``); seeded. Verdicts are made
by the code that gates a run (``evalq.gate``), from simulated flips in the place of measured ones.
``--write`` replaces this benchmark's section of ``benchmarks/RESULTS.md``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, ndtri, stdtr, xlogy

from evalq import stats
from evalq.compare import SliceResult
from evalq.gate.checks import judge_accuracy
from evalq.gate.decide import correct, decide
from evalq.gate.result import OVERALL

RESULTS = Path(__file__).with_name("RESULTS.md")
HEADING = "## The release gate"
SLICES = 8
ALPHA = 0.05
CONFIDENCE = 1 - 2 * ALPHA

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """Items of one slice: ``clusters`` documents of ``each`` items, sharing luck by ``rho``."""

    clusters: int = 100
    each: int = 4
    rho: float = 0.3


def draw(rng: np.random.Generator, shape: Shape, flip: Floats, loss: Floats) -> Floats:
    """Differences ``[R, S, G, m]`` in {-1, 0, 1}: flips and true losses ``[R, S]``.

    A Gaussian copula: items of a document share a normal of variance rho, so that losses (and
    gains) come in bunches. The lowest share of it is lost, the highest gained.
    """
    size = (*flip.shape, shape.clusters)
    shared = rng.standard_normal((*size, 1), dtype=np.float32)
    own = rng.standard_normal((*size, shape.each), dtype=np.float32)
    latent = np.sqrt(shape.rho) * shared + np.sqrt(1 - shape.rho) * own
    lost, gained = (flip + loss) / 2, np.maximum(flip - loss, 0) / 2
    low = ndtri(lost)[..., None, None]
    high = ndtri(1 - gained)[..., None, None]
    return (latent > high).astype(np.float64) - (latent < low)


def measure(d: Floats, groups: int) -> dict[str, Floats]:
    """Vectorized ``stats.paired_clustered`` over the leading axes of ``[..., G, m]``."""
    n = groups * d.shape[-1]
    b, c = (d < 0).sum((-1, -2)).astype(float), (d > 0).sum((-1, -2)).astype(float)
    mean = (c - b) / n
    sums = (d - mean[..., None, None]).sum(-1)
    clustered = groups / (groups - 1) * (sums**2).sum(-1) / n**2
    single = ((b + c) / n - mean**2) / (n - 1)
    effect = np.ones_like(mean)
    np.divide(clustered, single, out=effect, where=single > 0)
    effect = np.maximum(effect, 1.0)
    low, high = stats.clustered_tango(b, c, n, groups, effect, CONFIDENCE)
    flips = np.maximum(b + c, 1)
    score = stdtr(groups - 1, (c - b) / np.sqrt(flips * effect))
    p = np.where(b + c > 0, np.maximum(stats.mcnemar_worse(b, c), score), 1.0)
    return {"b": b, "c": c, "low": low, "high": high, "p": p}


def slice_result(
    found: dict[str, Floats], at: tuple[int, ...], name: str, shape: Shape
) -> SliceResult:
    """One simulated slice as the comparison of a run gives it."""
    groups = shape.clusters * (SLICES if name == OVERALL else 1)
    n = groups * shape.each
    b, c = int(found["b"][at]), int(found["c"][at])
    return SliceResult(
        slice=name,
        leaf=name != OVERALL,
        items=n,
        clusters=groups,
        accuracy=0.8 + (c - b) / n,
        parent_accuracy=0.8,
        delta=(c - b) / n,
        ci=(float(found["low"][at]), float(found["high"][at])),
        lost=b,
        gained=c,
        p_worse=float(found["p"][at]),
        p_holm=None,
        p_two_sided_midp=None,
        confidence=CONFIDENCE,
        method="",
        warnings=(),
    )


def release_verdicts(
    d: Floats, shape: Shape, margins: tuple[float, float]
) -> list[tuple[str, list[str]]]:
    """For each release of ``[R, S, G, m]`` the gate's verdict and its checks', pooled first."""
    releases, count = d.shape[:2]
    slices = measure(d, shape.clusters)
    pooled = measure(
        d.reshape(releases, count * shape.clusters, shape.each), count * shape.clusters
    )
    out = []
    for r in range(releases):
        checks = [
            judge_accuracy(
                slice_result(pooled, (r,), OVERALL, shape), margins[0], "mandatory",
                (OVERALL, "metrics.accuracy", 1),
            )
        ]  # fmt: skip
        for s in range(count):
            name = f"slice{s}"
            found = slice_result(slices, (r, s), name, shape)
            place = (name, "slices.default", 1)
            checks.append(judge_accuracy(found, margins[1], "mandatory", place))
        corrected = correct(checks, ALPHA)
        out.append((decide(corrected)[0], [c.verdict for c in corrected]))
    return out


@dataclass(frozen=True)
class Rates:
    """Shares of simulated releases."""

    passed: float
    failed: float
    slice_passed: float
    alone_failed: float


def simulate(
    seed: int, releases: int, shape: Shape, margins: tuple[float, float], loss: float
) -> Rates:
    """Releases with flips of 2 to 15 % a slice and a true ``loss`` in the first slice only."""
    verdicts = []
    for start in range(0, releases, 250):
        rng = np.random.default_rng([seed, start])
        rows = min(250, releases - start)
        flip = rng.uniform(max(0.02, loss), 0.15, (rows, SLICES))
        losses = np.zeros((rows, SLICES))
        losses[:, 0] = loss
        verdicts += release_verdicts(draw(rng, shape, flip, losses), shape, margins)
    overall = np.array([v for v, _ in verdicts])
    first = np.array([checks[1] for _, checks in verdicts])
    return Rates(
        passed=float((overall == "pass").mean()),
        failed=float((overall == "fail").mean()),
        slice_passed=float((first == "pass").mean()),
        alone_failed=float((first == "fail").mean()),
    )


def planned_power(seed: int, releases: int) -> list[tuple[float, float, float, int, float, float]]:
    """(flip rate, margin, true loss, n, planned, simulated) at the planned n, independent items."""
    out = []
    for flip in (0.02, 0.05, 0.09, 0.13, 0.15):
        for margin in (0.01, 0.02):
            for loss in (0.0, margin / 2):
                n = stats.items_needed(flip, margin, loss)
                rng = np.random.default_rng([seed, int(1000 * flip), int(1000 * margin)])
                p = [(flip + loss) / 2, (flip - loss) / 2, 1 - flip]
                found = rng.multinomial(n, p, releases)
                low, _ = stats.tango_interval(found[:, 0], found[:, 1], n, CONFIDENCE)
                power = stats.planned_power(flip, margin, n, loss)
                out.append((flip, margin, loss, n, power, float((low > -margin).mean())))
    return out


def exact_coverage(n: int, flip: float, one_way: float, confidence: float = 0.95) -> float:
    """Coverage of Tango's interval, summed over all counts: no simulation error.

    Args:
        one_way: share of the flips that are losses; .5 is a variant that lost nothing.
    """
    lost, gained = flip * one_way, flip * (1 - one_way)
    b, c = (x.ravel() for x in np.meshgrid(_likely(n, lost), _likely(n, gained)))
    b, c = b[b + c <= n], c[b + c <= n]
    log_p = (
        gammaln(n + 1) - gammaln(b + 1) - gammaln(c + 1) - gammaln(n - b - c + 1)
        + xlogy(b, lost) + xlogy(c, gained) + xlogy(n - b - c, 1 - flip)
    )  # fmt: skip
    inside = np.abs(stats.tango_z(b, c, n, gained - lost)) <= ndtri((1 + confidence) / 2)
    return float(np.exp(log_p)[inside].sum())


def _likely(n: int, p: float) -> Floats:
    spread = 7 * np.sqrt(n * p * (1 - p)) + 8
    return np.arange(max(0, int(n * p - spread)), min(n, int(n * p + spread)) + 1, dtype=float)


def coverage_grid(one_way: float) -> list[tuple[int, float, float]]:
    """(n, flip rate, coverage) over the grid."""
    sizes = (50, 75, 100, 150, 200, 300, 400, 500, 750, 1000, 1500, 2000)
    rates = (0.01, 0.02, 0.03, 0.05, 0.07, 0.10, 0.15, 0.20, 0.25, 0.30)
    return [(n, p, exact_coverage(n, p, one_way)) for n in sizes for p in rates]


def adaptive(seed: int, runs: int, items: int = 2000) -> list[tuple[float, float, float]]:
    """(flip rate, false losses, false passes at a loss of 2 pp), looking after every item."""
    out = []
    for flip in (0.02, 0.05, 0.15):
        rng = np.random.default_rng([seed, int(1000 * flip)])
        u = rng.random((runs, items))
        fair = (u > 1 - flip / 2).astype(float) - (u < flip / 2)
        lossy = (u > 1 - (flip - 0.02) / 2).astype(float) - (u < (flip + 0.02) / 2)
        loss = np.mean([stats.monitor(d, alpha=ALPHA).loss_at is not None for d in fair])
        kept = [stats.monitor(d, margin=0.02, alpha=ALPHA).pass_at is not None for d in lossy]
        out.append((flip, float(loss), float(np.mean(kept))))
    return out


def _error(p: float, runs: int) -> float:
    """Three standard errors of a simulated share."""
    return 3 * float(np.sqrt(max(p * (1 - p), 1e-6) / runs))


def report(releases: int, seed: int) -> str:
    """All figures, as the section of RESULTS.md."""
    lines = [
        HEADING,
        "",
        f"`make bench-gate`: seed {seed}, {releases:,} releases a row, {SLICES} slices, alpha "
        f"{ALPHA:g}; items of a document share luck (Gaussian copula, rho .3); flips of 2 to 15 % "
        "a slice. Verdicts are those of the code that gates a run.",
        "",
        "| truth | documents x items a slice | margins, pooled and slice | false fail or pass | "
        "the lossy slice alone |",
        "| --- | --- | --- | --- | --- |",
    ]
    settings = (
        (Shape(100, 4), (0.01, 0.02)),
        (Shape(100, 4), (0.005, 0.01)),
        (Shape(60, 10), (0.01, 0.02)),
    )
    for shape, margins in settings:
        null = simulate(seed, releases, shape, margins, 0.0)
        lossy = simulate(seed + 1, releases, shape, margins, margins[1])
        size = f"{shape.clusters} x {shape.each}"
        words = f"{100 * margins[0]:g} pp, {100 * margins[1]:g} pp"
        lines += [
            f"| nothing lost | {size} | {words} | false fail {100 * null.failed:.2f} % "
            f"(± {100 * _error(null.failed, releases):.2f}) | |",
            f"| one slice loses its margin | {size} | {words} | false pass "
            f"{100 * lossy.passed:.2f} % | false pass {100 * lossy.slice_passed:.2f} % "
            f"(± {100 * _error(lossy.slice_passed, releases):.2f}) |",
        ]
    lines += _power_lines(releases, seed) + _coverage_lines() + _adaptive_lines(releases, seed)
    return "\n".join(lines) + "\n"


def _power_lines(releases: int, seed: int) -> list[str]:
    lines = ["", "Power at the planned number of items (independent items):", ""]
    lines += ["| flips | margin | true loss | items | planned | simulated |", "| --- " * 6 + "|"]
    for flip, margin, loss, n, planned, found in planned_power(seed, releases):
        lines.append(
            f"| {100 * flip:g} % | {100 * margin:g} pp | {100 * loss:g} pp | {n:,} | "
            f"{100 * planned:.1f} % | {100 * found:.1f} % |"
        )
    return lines


def _coverage_lines() -> list[str]:
    lines = [
        "",
        "Coverage of Tango's 95 % interval, exact (summed over all counts), n from 50 to 2,000, "
        "flip rates from .01 to .3:",
        "",
        "| losses among the flips | least | least, ten flips expected or more | most of those |",
        "| --- | --- | --- | --- |",
    ]
    for one_way in (0.5, 0.6, 0.75, 0.9, 1.0):
        grid = coverage_grid(one_way)
        ten = [c for n, p, c in grid if n * p >= 10]
        lines.append(
            f"| {100 * one_way:g} % | {100 * min(c for *_, c in grid):.2f} % | "
            f"{100 * min(ten):.2f} % | {100 * max(ten):.2f} % |"
        )
    return lines


def _adaptive_lines(releases: int, seed: int) -> list[str]:
    runs = min(releases, 4000)
    lines = [
        "",
        f"Looking after every one of 2,000 items, stopping when one likes ({runs:,} runs, alpha "
        f"{ALPHA:g}):",
        "",
        "| flips | a loss found where there is none | a margin of 2 pp passed at a loss of 2 pp |",
        "| --- | --- | --- |",
    ]
    for flip, loss, kept in adaptive(seed, runs):
        lines.append(f"| {100 * flip:g} % | {100 * loss:.2f} % | {100 * kept:.2f} % |")
    return lines


def _replace_section(text: str, section: str) -> str:
    start = text.find(HEADING)
    if start < 0:
        return (text.rstrip() + "\n\n" if text.strip() else "# Measured\n\n") + section
    end = text.find("\n## ", start + len(HEADING))
    return text[:start] + section + ("" if end < 0 else text[end:])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--releases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--write", action="store_true", help="replace the section of RESULTS.md")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    section = report(options.releases, options.seed)
    print(section)
    print(f"{time.perf_counter() - started:.0f} s")
    if options.write:
        before = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
        RESULTS.write_text(_replace_section(before, section), encoding="utf-8")


if __name__ == "__main__":
    main()
