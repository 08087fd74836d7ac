"""``evalq serve``: an OpenAI-compatible endpoint of a precision that is known."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    model: Annotated[
        str, typer.Argument(help="An artifact's directory, builtin, smollm2, or any parent.")
    ] = "",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    tier_mix: Annotated[
        str, typer.Option(help="NAME:SHARE,NAME:SHARE: each request is answered by one of them.")
    ] = "",
    system_prompt: Annotated[
        str, typer.Option(help="Put before every prompt, without telling.")
    ] = "",
    served_name: Annotated[str, typer.Option(help="Name of the model in the API.")] = "",
    batch: Annotated[int, typer.Option(help="Most requests in one pass.", min=1)] = 32,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto by default.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of --tier-mix and of requests without one.")] = 0,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
) -> None:
    """Serve a model by OpenAI's API, on this machine only unless --host says otherwise.

    There is no authentication. Quantized artifacts run dequantized: the answers are the format's,
    the speed is not.

    Example: evalq serve out/w4 --port 8001
    """
    from evalq.errors import PlanError
    from evalq.plan import parse_plan
    from evalq.serve.server import free_socket, load_any, parse_mix, serve_forever

    if bool(model) == bool(tier_mix):
        raise PlanError(
            "name one model to serve, or --tier-mix, and not both",
            hint="evalq serve builtin, or evalq serve --tier-mix builtin:0.7,out/w4:0.3.",
        )
    shares = parse_mix(tier_mix) if tier_mix else {model: 1.0}
    plan = parse_plan(
        {
            "engine": {
                "device": device,
                "dtype": dtype,
                "threads": threads,
                "trust_remote_code": trust_remote_code,
            }
        },
        "evalq serve",
    )
    listening = free_socket(host, port)

    import torch

    from evalq.serve.app import ServeSettings, create_app
    from evalq.serve.engine import ServeEngine

    if threads is not None:
        torch.set_num_threads(threads)
    engines = {name: ServeEngine(load_any(name, plan.engine)) for name in shares}
    first = next(iter(engines.values()))
    name = served_name or first.model.name
    app = create_app(engines, ServeSettings(name, shares, system_prompt, batch, seed))
    address = listening.getsockname()
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    sys.stderr.write(f"serving {name!r} at http://{shown}:{address[1]}/v1\n")
    if address[0] not in ("127.0.0.1", "::1"):
        sys.stderr.write("warning: this address can be reached from elsewhere, without a key\n")
    sys.stderr.flush()
    serve_forever(app, listening)
