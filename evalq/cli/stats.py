"""``evalq stats``: the calculator behind the gate, for counts typed in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from evalq.errors import PlanError

__all__ = ["app", "monitor_answer", "paired_answer", "power_answer"]

app = typer.Typer(help="The calculator behind the gate, for counts typed in.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Confidence = Annotated[
    float, typer.Option(help="Of the two-sided interval; .90 makes each end a one-sided .95 bound.")
]


def paired_answer(
    lost: int, gained: int, items: int, margin_pp: float, confidence: float = 0.90
) -> dict[str, Any]:
    """What ``evalq stats paired`` prints: interval, tests, verdict, items to settle it.

    ``items_needed`` is the items, all told, that would settle an open verdict if what was seen is
    the truth (power .80), and ``None`` when the verdict is settled.

    Raises:
        StatisticsError: counts that do not fit, a confidence or a margin out of range.
        PlanError: a margin outside (0, 100) pp.
    """
    from evalq import stats

    margin = _share(margin_pp, "--margin-pp")
    result = stats.paired_binary(lost, gained, items, confidence)
    verdict = stats.verdict(result.ci, result.delta, margin)
    needed = None
    if verdict.verdict == "inconclusive":
        needed = stats.items_to_settle(
            result.delta, result.flip_rate, result.items, margin, confidence
        ).items
    return {
        "delta": result.delta,
        "ci": list(result.ci),
        "p_worse": result.p_worse,
        "p_two_sided_midp": result.p_two_sided_midp,
        "verdict": verdict.verdict,
        "detected_loss": verdict.detected_loss,
        "items_needed": needed,
    }


def power_answer(
    flip_rate: float,
    margin_pp: float,
    true_loss_pp: float = 0.0,
    items: int | None = None,
    confidence: float = 0.90,
) -> dict[str, Any]:
    """What ``evalq stats power`` prints: items for a margin, and the margin that ``items`` resolve.

    Power is .80. ``detectable_pp`` is of the ``items`` given, and else of ``items_needed``.

    Raises:
        StatisticsError: a number outside its range.
        PlanError: a margin outside (0, 100) pp.
    """
    from evalq import stats

    margin, loss = _share(margin_pp, "--margin-pp"), true_loss_pp / 100
    needed = stats.items_needed(flip_rate, margin, loss, confidence)
    count = needed if items is None else items
    detectable = stats.detectable_margin(flip_rate, count, loss, confidence)
    return {"items_needed": needed, "detectable_pp": 100 * detectable}


def monitor_answer(
    run: Path, variant: str, margin_pp: float | None = None, alpha: float = 0.05
) -> dict[str, Any]:
    """What ``evalq stats monitor`` prints: e-values over a run's items in the order of its records.

    Raises:
        StoreError, ComparisonError: a run or a variant that cannot be read or paired.
        StatisticsError: alpha out of range, or no scored item.
        PlanError: a margin outside (0, 100) pp.
    """
    from dataclasses import asdict

    from evalq import stats
    from evalq.compare import load_run, pair

    margin = None if margin_pp is None else _share(margin_pp, "--margin-pp")
    frame = pair(load_run(run), variant).scored.sort_values("variant_row")
    difference = (frame["variant_score"] - frame["baseline_score"]).to_numpy(dtype=float)
    found = asdict(stats.monitor(difference, frame["cluster"].to_numpy(), margin, alpha))
    # JSON has neither NaN (no margin given) nor infinity (beyond any doubt).
    open_ended = {k for k, v in found.items() if isinstance(v, float) and not math.isfinite(v)}
    return {k: None if k in open_ended else v for k, v in found.items()}


def _share(points: float, option: str) -> float:
    """Accuracy points as a share, strictly between 0 and 1."""
    if not 0 < points < 100:
        raise PlanError(
            f"{option} {points:g} is not between 0 and 100",
            hint="A margin is a positive number of accuracy points, for example 1.0.",
        )
    return points / 100


@app.command("paired")
def paired(
    lost: Annotated[int, typer.Option(help="Items that only the parent gets right.")],
    gained: Annotated[int, typer.Option(help="Items that only the variant gets right.")],
    items: Annotated[int, typer.Option(help="All items that both answered.")],
    margin_pp: Annotated[float, typer.Option(help="Loss you would accept, in accuracy points.")],
    confidence: Confidence = 0.90,
    json_: Json = False,
) -> None:
    """Judge counts of flips: interval, p-values and verdict.

    Example: evalq stats paired --lost 60 --gained 20 --items 1000 --margin-pp 2
    """
    answer = paired_answer(lost, gained, items, margin_pp, confidence)
    if json_:
        typer.echo(json.dumps(answer))
        return
    from evalq import stats

    low, high = (100 * x for x in answer["ci"])
    level = f"{100 * confidence:g} %"
    typer.echo(f"difference   {100 * answer['delta']:+.2f} pp, {level} [{low:+.2f}, {high:+.2f}]")
    typer.echo(f"is it worse  p = {answer['p_worse']:.4g} (exact McNemar, one-sided)")
    typer.echo(f"two-sided    p = {answer['p_two_sided_midp']:.4g} (mid-p McNemar)")
    note = ", and a loss is detected" if answer["detected_loss"] else ""
    typer.echo(f"verdict      {answer['verdict']} at a margin of {margin_pp:g} pp{note}")
    if answer["items_needed"] is not None:
        more = answer["items_needed"] - items
        typer.echo(
            f"to settle    about {answer['items_needed']:,} items ({more:,} more), "
            "if what was seen is the truth"
        )
    for warning in stats.paired_binary(lost, gained, items, confidence).warnings:
        typer.echo(f"note         {warning}")


@app.command("power")
def power(
    flip_rate: Annotated[float, typer.Option(help="Share of items that change, either way.")],
    margin_pp: Annotated[float, typer.Option(help="Loss you would accept, in accuracy points.")],
    true_loss_pp: Annotated[float, typer.Option(help="True loss assumed, in points.")] = 0.0,
    items: Annotated[
        int | None, typer.Option(help="Items at hand: which margin is it for?")
    ] = None,
    confidence: Confidence = 0.90,
    json_: Json = False,
) -> None:
    """Plan a run: items for a margin, at a power of 80 %.

    Example: evalq stats power --flip-rate .09 --margin-pp 1
    """
    answer = power_answer(flip_rate, margin_pp, true_loss_pp, items, confidence)
    if json_:
        typer.echo(json.dumps(answer))
        return
    typer.echo(
        f"{answer['items_needed']:,} items pass a margin of {margin_pp:g} pp with a power of 80 % "
        f"when {100 * flip_rate:g} % flip and {true_loss_pp:g} pp are lost"
    )
    if flip_rate < 2.5 * margin_pp / 100:
        typer.echo(
            "note: with so few flips for the margin the normal theory is optimistic; "
            "the gate will want up to a third more"
        )
    if items is not None:
        typer.echo(f"{items:,} items resolve a margin of {answer['detectable_pp']:.2f} pp")


@app.command("monitor")
def monitor(
    run: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    variant: Annotated[str, typer.Option(help="The variant to watch.", show_default=False)],
    margin_pp: Annotated[
        float | None, typer.Option(help="Also watch whether this loss is kept, in points.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="Error over all looks together.")] = 0.05,
    json_: Json = False,
) -> None:
    """Watch an adaptive run: evidence that may be read after every item, and stopped on.

    Example: evalq stats monitor runs/demo --variant gptq-w4-g128 --margin-pp 2
    """
    answer = monitor_answer(run, variant, margin_pp, alpha)
    if json_:
        typer.echo(json.dumps(answer))
        return
    typer.echo(f"{answer['units']:,} units: {answer['lost']} lost, {answer['gained']} gained")
    where = f"shown after {answer['loss_at']:,} units" if answer["loss_at"] else "not shown"
    typer.echo(f"a loss       {where} (anytime-valid p = {answer['loss_p']:.3g})")
    if margin_pp is not None:
        where = f"shown after {answer['pass_at']:,} units" if answer["pass_at"] else "not shown"
        typer.echo(f"margin kept  {where}, {margin_pp:g} pp")
