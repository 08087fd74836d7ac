"""A faulty OpenAI-compatible server on loopback, over a fake model that a test can compute."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def fake_logprob(token: str, before: str) -> float:
    digest = hashlib.sha256(f"{before}|{token}".encode()).digest()
    return -0.01 - digest[0] / 100


def fake_tokens(text: str) -> list[str]:
    """Pieces of at most three characters."""
    return [text[i : i + 3] for i in range(0, len(text), 3)]


def byte_tokens(text: str) -> list[bytes]:
    """Pieces of two bytes: many are no whole characters."""
    raw = text.encode()
    return [raw[i : i + 2] for i in range(0, len(raw), 2)]


class Faulty(ThreadingHTTPServer):
    """Answers rightly, except that each request fails in one of ``faults`` with ``share``.

    Args:
        faults: of "429", "500", "reset", "half", "silence", "nochoice".
        share: of the replies that are faulty.
    """

    daemon_threads = True

    def __init__(self, faults=(), share=0.3, seed=0, echo=True, key="", bos=False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults, self.share, self.echo, self.key, self.bos = faults, share, echo, key, bos
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.served: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.bodies: list[dict] = []
        self.under_way = self.most_under_way = 0
        self.silence = 30.0
        self.refused = ""  # a prompt that gets a 400
        self.page = b""  # answered in place of JSON
        self.status = 0  # of every reply, if not 0
        self.refuse_after = 0  # right replies before page and status rule
        self.requests = 0
        self.delay = 0.0  # seconds before each reply
        self.cut = ""  # how tokens that are no whole characters are named
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def fault(self) -> str:
        with self.lock:
            if self.faults and self.random.random() < self.share:
                return self.random.choice(self.faults)
        return ""

    def handle_error(self, request, client_address) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Faulty

    def log_message(self, *args) -> None:
        pass

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._send(200, json.dumps({"data": [{"id": "fake"}]}).encode())

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            self._answer(body)
        finally:
            with server.lock:
                server.under_way -= 1

    def _answer(self, body: dict) -> None:
        server = self.server
        if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
            given = self.headers.get("Authorization", "")
            self._send(401, json.dumps({"error": f"bad key {given}"}).encode())
            return
        with server.lock:
            server.requests += 1
            refusing = server.requests > server.refuse_after
        time.sleep(server.delay)
        if refusing and (server.page or server.status):
            self._send(server.status or 200, server.page or b'{"error": "no"}')
            return
        if server.refused and body.get("prompt") == server.refused:
            self._send(400, b'{"error": "too long"}')
            return
        fault = server.fault()
        if fault:
            with server.lock:
                server.failed[fault] += 1
        if fault == "429":
            self._send(429, b'{"error": "slow down"}', Retry_After="0.02")
            return
        if fault == "500":
            self._send(500, b"<html>oops</html>")
            return
        if fault == "reset":
            # A linger of 0 makes close() send a reset.
            self.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
            )
            self.connection.close()
            return
        if fault == "silence":
            time.sleep(server.silence)
            return
        if fault == "nochoice":
            self._send(200, b'{"choices": []}')
            return
        answer = self._right(body)
        if answer is None:
            self._send(400, b'{"error": "echo is not supported"}')
            return
        raw = json.dumps(answer).encode()
        if fault == "half":
            self._send(200, raw[: len(raw) // 2])
            return
        self._send(200, raw)
        with server.lock:
            server.served[json.dumps(body, sort_keys=True)] += 1
            server.bodies.append(body)

    def _right(self, body: dict) -> dict | None:
        if self.path.endswith("/chat/completions"):
            text = "said: " + body["messages"][-1]["content"][::-1]
            choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        elif body.get("echo"):
            if not self.server.echo:
                return None
            choice = {"text": body["prompt"] + "!", "logprobs": self._echo(body["prompt"])}
        else:
            text = body["prompt"][::-1]
            ended = "length" if len(text) > body["max_tokens"] else "stop"
            choice = {"text": text[: body["max_tokens"]], "finish_reason": ended}
        read = 1 + len(byte_tokens(body["prompt"])) if self.server.cut else 3
        return {
            "choices": [choice],
            "usage": {"prompt_tokens": read, "completion_tokens": 2},
            "system_fingerprint": "one",
        }

    def _echo_bytes(self, prompt: str) -> dict:
        tokens = ["<s>"]
        for piece in byte_tokens(prompt):
            try:
                tokens.append(piece.decode())
            except UnicodeDecodeError:
                named = "bytes:" + "".join(f"\\x{b:02x}" for b in piece)
                tokens.append(named if self.server.cut == "bytes" else "\ufffd")
        values = [None, *(fake_logprob(str(i), "") for i in range(len(tokens) - 1))]
        tops = [None if v is None else {"other": -1.0} for v in values]
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops}

    def _echo(self, prompt: str) -> dict:
        if self.server.cut:
            return self._echo_bytes(prompt)
        tokens = [*fake_tokens(prompt), "!"]
        values: list[float | None] = [
            fake_logprob(t, "".join(tokens[:i])) for i, t in enumerate(tokens)
        ]
        if self.server.bos:
            tokens, values = ["<s>", *tokens], [None, *values]
        else:
            values[0] = None
        tops = [
            None if v is None else {t: v, "other": -1.0}
            for t, v in zip(tokens, values, strict=True)
        ]
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops}
