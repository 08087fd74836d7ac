"""From what a user names to a running server."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from evalq.artifacts.identity import MANIFEST
from evalq.errors import EvalqError, PlanError
from evalq.models.load import load_artifact, load_parent
from evalq.plan import EnginePlan
from evalq.serve.app import ServeSettings, create_app
from evalq.serve.engine import ServeEngine

if TYPE_CHECKING:
    from fastapi import FastAPI

    from evalq.models.base import LoadedModel

__all__ = ["free_socket", "load_any", "parse_mix", "running", "serve_forever"]


def load_any(spec: str, engine: EnginePlan) -> LoadedModel:
    """An artifact where ``spec`` is a quantized directory, else a parent.

    Raises:
        EvalqError: neither can be loaded.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        from evalq.artifacts.files import open_files

        if (path / MANIFEST).is_file() or open_files(path).settings:
            return load_artifact(path, engine)
    return load_parent(spec, engine)


def parse_mix(text: str) -> dict[str, float]:
    """``--tier-mix``'s value, ``a:0.7,b:0.3``: shares by name, which sum to 1.

    >>> parse_mix("builtin:0.75,out/w4:0.25")
    {'builtin': 0.75, 'out/w4': 0.25}

    Raises:
        PlanError: not of that form, a share below 0, or another sum.
    """
    hint = "Write NAME:SHARE,NAME:SHARE with shares that sum to 1, for example builtin:0.7,out:0.3."
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, found, value = part.strip().rpartition(":")
        try:
            share = float(value) if found and name else math.nan
        except ValueError:
            share = math.nan
        if not 0 <= share <= 1 or name in shares:
            raise PlanError(f"--tier-mix {text!r} cannot be read", hint=hint)
        shares[name] = share
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise PlanError(f"the shares of --tier-mix sum to {sum(shares.values()):g}", hint=hint)
    return shares


def free_socket(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes any free one.

    Raises:
        EvalqError: the port is taken, or the host is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise EvalqError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="Choose another --port, or stop what listens there.",
        ) from None
    return found


def serve_forever(app: FastAPI, listening: socket.socket) -> None:
    """Serve in the foreground until interrupted."""
    import uvicorn

    try:
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
    finally:
        app.state.service.queue.close()


@contextmanager
def running(
    engines: Mapping[str, ServeEngine], settings: ServeSettings, app: FastAPI | None = None
) -> Iterator[str]:
    """A server on a free loopback port in a thread of its own; its base URL (``…/v1``).

    Args:
        engines: by tier.
        settings: how it behaves.
        app: another application around it, with the same ``state``; for tests.
    """
    import uvicorn

    app = app or create_app(engines, settings)
    listening = free_socket("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        for _ in range(1000):
            if server.started:
                break
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
        app.state.service.queue.close()
