"""``evalq cost``: what a model would take, from its configuration alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["command"]


def _bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} bytes"


def _parts(found: dict[str, Any]) -> list[str]:
    """What the weights consist of, where they are quantized."""
    parts = found["weight_parts"]
    if not parts["codes"]:
        return []
    sizes = {part: _bytes(count) for part, count in parts.items()}
    return [
        f"                   {sizes['codes']} of codes, {sizes['scales']} of scales, "
        f"{sizes['dense']} kept in 16 bits (embeddings, head, norms)"
    ]


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [
        "All numbers are modelled from the configuration and data sheets; none is measured.",
        f"  parameters       {found['parameters']:,}",
        f"  weights          {_bytes(found['weight_bytes'])} at {found['scheme']} "
        f"({found['bits_per_weight']:.2f} bits a weight; {_bytes(found['dense_bytes'])} at 16)",
        *_parts(found),
        f"  KV cache         {_bytes(found['kv_bytes_a_user'])} a user of {found['context']:,} "
        f"tokens ({_bytes(found['kv_bytes_a_token'])} a token at {found['kv_bits']} bits)",
        f"  smallest GPU     {found['smallest_gpu'] or 'none holds it alone'}",
        f"  smallest laptop  {found['smallest_laptop'] or 'none'}",
    ]
    serving = found.get("serving")
    if serving:
        what = f"{serving['devices']} x {serving['device']}"
        room = serving["users_that_fit"]
        lines.append(f"  on {what}: {room} user{'s' * (room != 1)} fit{'s' * (room == 1)}; at "
                     f"{100 * serving['efficiency']:.0f} % of the bandwidth:")  # fmt: skip
        for name in ("alone", "full") if serving["full"]["users"] > 1 else ("alone",):
            speed = serving[name]
            one = "s" * (speed["users"] != 1)
            text = f"    {speed['users']} user{one}: {speed['tokens_per_second']:,.0f} tokens/s"
            text += (
                f" ({speed['tokens_per_second_a_user']:,.1f} each, bound by {speed['bound_by']})"
            )
            if "dollars_per_million_tokens" in speed:
                text += f", ${speed['dollars_per_million_tokens']:,.3f} per million tokens"
            lines.append(text)
    return lines + [f"  note: {note}" for note in found["notes"]]


def command(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.json", help="A model's config.json, or its directory.")
    ],
    bits: Annotated[
        str, typer.Option(help="BITS[:gSIZE|channel][:asym] of the weights; 16 leaves them.")
    ] = "4",
    context: Annotated[int, typer.Option(min=1, help="Tokens a user, prompt and answer.")] = 8192,
    kv_bits: Annotated[int, typer.Option(help="Of the KV cache: 16, 8, 4 or 2.")] = 16,
    gpu: Annotated[str, typer.Option(help="Device to serve on, e.g. h100.")] = "",
    price_per_hour: Annotated[
        float | None, typer.Option(help="Dollars an hour of one device.")
    ] = None,
    users: Annotated[int | None, typer.Option(min=1, help="At once; all that fit.")] = None,
    efficiency: Annotated[
        float, typer.Option(help="Share of the bandwidth that decoding reaches.")
    ] = 0.5,
    json_output: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Model memory, users, speed and price of any model, without loading it.

    Example: evalq cost CONFIG.json --bits 4 --context 8192 --gpu h100 --price-per-hour 2.5
    """
    from evalq.cost.devices import find_device
    from evalq.cost.model import Question, model_cost, read_config
    from evalq.errors import PlanError
    from evalq.plan import VariantPlan, parse_variant

    if price_per_hour is not None and not gpu:
        raise PlanError("a price per hour of no device", hint="Name it with --gpu.")
    scheme = None
    if bits != "16":
        scheme = VariantPlan.model_validate(parse_variant(f"rtn:{bits}")).scheme.weights
    question = Question(
        scheme=scheme,
        context=context,
        kv_bits=kv_bits,
        device=find_device(gpu) if gpu else None,
        price_per_hour=price_per_hour,
        users=users,
        efficiency=efficiency,
    )
    found = model_cost(read_config(config), question)
    if json_output:
        typer.echo(json.dumps(found))
        return
    for line in _lines(found):
        typer.echo(line)
