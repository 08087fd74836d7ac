"""``evalq workload``: a look at the user's own items before anything runs."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

__all__ = ["app", "check_answer"]

app = typer.Typer(help="Check a file of your own items.", no_args_is_help=True)

FLIP_RATE = 0.10
"""Share of items assumed to change between parent and variant, for planning only."""


def check_answer(
    file: str, show: int = 3, parent: str = "", allow_code: bool = False
) -> dict[str, Any]:
    """What ``evalq workload check`` prints.

    Args:
        file: see ``evalq.tasks.workloads.load_workload``.
        show: prompts of each task to show.
        parent: whose tokenizer counts tokens: ``builtin``, ``smollm2``, a directory, a GGUF file
            or a hub name; empty for none.
        allow_code: see ``evalq.tasks.consent``.

    Returns:
        ``{file, items, tasks: [{task, kind, items, metric, slices, characters, tokens, prompts}],
        detectable_pp, flip_rate}``; ``tokens`` is ``None`` without a tokenizer.

    Raises:
        TaskError: a fault in the file, with its line number.
        PlanError: an unknown scorer, code that is not allowed.
        ParentError: no such parent, or no tokenizer there.
    """
    from evalq.models.counting import token_counter
    from evalq.stats import detectable_margin
    from evalq.tasks.bridge import build_workload

    count = token_counter(parent) if parent else None
    built = build_workload(file, allow_code=allow_code)
    tasks = []
    for task in built:
        lengths = [len(item.prompt) for item in task.items]
        slices: dict[str, int] = {}
        for item in task.items:
            slices[item.slice] = slices.get(item.slice, 0) + 1
        tokens = count([item.prompt for item in task.items]) if count else None
        tasks.append(
            {
                "task": task.name,
                "kind": "choices" if task.requests[0].kind == "loglikelihood" else "free",
                "items": len(task.items),
                "metric": task.metric,
                "slices": dict(sorted(slices.items())),
                "characters": _spread(lengths),
                "tokens": _spread(tokens) if tokens else None,
                "prompts": [
                    {"id": item.item_id, "prompt": item.prompt, "target": item.target}
                    for item in task.items[:show]
                ],
            }
        )
    total = sum(len(task.items) for task in built)
    return {
        "file": file,
        "items": total,
        "tasks": tasks,
        "detectable_pp": 100 * detectable_margin(FLIP_RATE, total),
        "flip_rate": FLIP_RATE,
    }


def _spread(values: list[int]) -> dict[str, float]:
    ordered = sorted(values)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return {"min": ordered[0], "median": median, "max": ordered[-1]}


@app.command("check")
def check(
    file: Annotated[str, typer.Argument(help="JSONL file, with :SCORER if you like.")],
    show: Annotated[int, typer.Option(min=0, help="Prompts to show of each task.")] = 3,
    parent: Annotated[
        str,
        typer.Option(help="builtin, smollm2, a directory or a GGUF file, to count tokens."),
    ] = "",
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Load Python that the workload names.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Check a workload: its items, its first prompts, and the smallest loss it can resolve.

    Example: evalq workload check mine.jsonl:numeric
    """
    answer = check_answer(file, show, parent, allow_code)
    if json_:
        typer.echo(json.dumps(answer, ensure_ascii=False))
        return
    for task in answer["tasks"]:
        typer.echo(f"{task['task']}: {task['items']:,} items, {task['kind']}, {task['metric']}")
        for name, items in task["slices"].items():
            typer.echo(f"  slice {name}: {items:,}")
        for unit in ("characters", "tokens"):
            if task[unit]:
                low, mid, high = (task[unit][k] for k in ("min", "median", "max"))
                typer.echo(f"  {unit} a prompt: {low:,} to {high:,}, median {mid:,g}")
        for entry in task["prompts"]:
            typer.echo(f"  [{_printable(entry['id'])}] {_printable(entry['prompt'])}")
            typer.echo(f"      expected: {_printable(entry['target'])}")
    typer.echo(
        f"{answer['items']:,} items can resolve a loss of {answer['detectable_pp']:.2f} pp "
        f"(power 80 %, if {100 * answer['flip_rate']:g} % of the items change)"
    )


def _printable(text: str, width: int = 400) -> str:
    """A text on one line, what a terminal would act on escaped."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:width])
    return shown + (f" … ({len(text) - width:,} more characters)" if len(text) > width else "")
