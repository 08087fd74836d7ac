"""Real benchmark items, and a model that answers by the hash of what it is asked."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from evalq.schema import Request, Response


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real benchmark items, which the project does not carry."""
    root = Path(__file__).resolve().parents[2]
    named = os.environ.get("EVALQ_SHARED_DATA")
    folder = Path(named) if named else root.parent / "shared" / "data"
    if not (folder / "gsm8k").is_dir():
        pytest.skip(f"no real benchmark items at {folder} (set EVALQ_SHARED_DATA)")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.getbasetemp() / "evalq-cache"
    monkeypatch.setenv("EVALQ_CACHE_DIR", str(folder))


class Oracle:
    """Deterministic answers: right for items whose prompt it knows, else drawn from the hash."""

    def __init__(self, known: dict[str, str] | None = None) -> None:
        self.known = known or {}

    def logprob(self, context: str, continuation: str) -> tuple[float, bool]:
        digest = hashlib.sha256(f"{context}\0{continuation}".encode()).digest()
        return -int.from_bytes(digest[:4], "big") / 2**28, digest[4] % 2 == 0

    def text(self, context: str) -> str:
        if context in self.known:
            return self.known[context]
        digest = hashlib.sha256(context.encode()).digest()
        return f" It is {digest[0]}, so the answer is {digest[1] % 4}.\n#### {digest[1] % 4}"

    def answer(self, request: Request) -> Response:
        if request.kind == "generate_until":
            return Response(text=self.text(request.context), tokens_in=3, tokens_out=2)
        logprob, greedy = self.logprob(request.context, request.continuation)
        return Response(logprob=logprob, greedy=greedy, tokens_in=3, tokens_out=1)
