"""``evalq policy``: check a policy, or write the first one for a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(help="Check a policy, or write one that a run can resolve.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.command("check")
def check(
    policy: Annotated[Path, typer.Argument(help="The policy.", show_default=False)],
    run: Annotated[
        Path | None, typer.Option(help="A run: do the rules match it, can it resolve the margins?")
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Take this variant's flip rates, not the calmest one's.")
    ] = None,
    json_: Json = False,
) -> None:
    """Check a policy: errors with line numbers, and with --run what the run cannot do for it.

    Exit 2 when the policy is wrong or a rule matches no slice; margins that the items cannot
    resolve are told, with the items they need, and leave it at 0.

    Example: evalq policy check policy.yaml --run runs/demo
    """
    from evalq.errors import PlanError
    from evalq.gate.policy import load_policy

    loaded = load_policy(policy)
    if run is None:
        if json_:
            typer.echo(json.dumps({"ok": True, "problems": [], "margins": []}))
        else:
            typer.echo(f"{policy}: fine. With --run RUN it is held against the slices of a run.")
        return
    from dataclasses import asdict

    from evalq.compare import load_run
    from evalq.gate.advise import policy_problems, resolutions

    opened = load_run(run)
    problems = policy_problems(loaded, opened)
    label = None if variant is None else opened.resolve(variant)
    margins = resolutions(loaded, opened, label)
    if json_:
        rows = [{**asdict(m), "reached": m.reached} for m in margins]
        answer = {"ok": not problems, "problems": problems, "margins": rows}
        typer.echo(json.dumps(answer, indent=1))
        raise typer.Exit(2 if problems else 0)
    short = [m for m in margins if not m.reached]
    for m in short:
        typer.echo(
            f"{policy}:{m.line}: {m.rule}: slice {m.slice!r}: a margin of {100 * m.margin:.3g} pp "
            f"needs {m.needed:,} items at a flip rate of {100 * m.flip_rate:.1f} % ({m.variant}); "
            f"the run has {m.items:,}, which resolve {100 * m.detectable:.2f} pp"
        )
    if problems:
        raise PlanError("\n".join(problems))
    typer.echo(
        f"{policy}: fine; the run resolves {len(margins) - len(short)} of {len(margins)} margins "
        "with a power of 80 %"
    )


@app.command("init")
def init(
    run: Annotated[Path, typer.Argument(help="A finished run directory.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Write it there, not to standard output; never replaces.")
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(help="Take this variant's flip rates, not those of all near the parent."),
    ] = None,
    alpha: Annotated[float, typer.Option(help="One-sided error of a pass.")] = 0.05,
) -> None:
    """Write a policy with margins that the run can resolve, commented.

    Example: evalq policy init runs/demo --out policy.yaml
    """
    from evalq.compare import load_run
    from evalq.errors import PlanError
    from evalq.gate.advise import draft_policy

    if not 0 < alpha < 0.5:
        raise PlanError(f"--alpha {alpha:g} is not between 0 and 0.5")
    text = draft_policy(load_run(run), variant, alpha)
    if out is None:
        typer.echo(text, nl=False)
        return
    if out.exists():
        raise PlanError(f"{out} exists already", hint="Move it away, or give another --out.")
    from evalq.store.files import atomic_write

    with atomic_write(out) as stream:
        stream.write(text.encode())
    typer.echo(f"written: {out}")
