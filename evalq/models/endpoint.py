"""An engine behind an OpenAI-compatible endpoint: completions or chat."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args
from urllib.parse import urlsplit, urlunsplit

from evalq.errors import EndpointError, PlanError, TaskError, nearest
from evalq.models.encode import DEFAULT_MAX_TOKENS, move_spaces
from evalq.models.transport import (
    DEFAULT_KEY_VARIABLE,
    Malformed,
    Refused,
    Transport,
    TransportSettings,
)
from evalq.schema import Request, RequestKind, Response, content_hash

__all__ = ["EndpointEngine", "EndpointOptions", "endpoint_options"]

_REVISION = 1
_STOPS = 4
"""Stop strings that a request may carry; further ones only cut the text here."""

_UNSUPPORTED = frozenset({200, 400, 422, 501})
"""Answers to an ``echo`` request that mean: not here."""

Api = Literal["completions", "chat"]


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """What an endpoint is asked, and how.

    Args:
        model: the served model's name; empty for the only one that the endpoint lists.
        api: ``completions`` sends prompts as they are, ``chat`` as one user message each.
        concurrency: requests under way at once.
        batch: requests that are journalled together.
        timeout: seconds without a byte until an attempt is given up.
        attempts: of one request, the first included.
        max_wait: longest wait between two attempts, in seconds.
        key_variable: environment variable that holds the key.
    """

    model: str = ""
    api: Api = "completions"
    concurrency: int = 8
    batch: int = 64
    timeout: float = 60.0
    attempts: int = 10
    max_wait: float = 60.0
    key_variable: str = DEFAULT_KEY_VARIABLE

    def __post_init__(self) -> None:
        if self.api not in get_args(Api):
            raise PlanError(
                f"an endpoint's api is completions or chat, not {self.api!r}",
                hint=nearest(str(self.api), get_args(Api)),
            )
        for name in ("concurrency", "batch", "timeout", "attempts", "max_wait"):
            value = getattr(self, name)
            whole = name in ("concurrency", "batch", "attempts")
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise PlanError(f"endpoint option {name} is no number: {value!r}")
            if value <= 0:
                raise PlanError(f"endpoint option {name} is not positive: {value}")
        for name in ("model", "key_variable"):
            if not isinstance(getattr(self, name), str):
                raise PlanError(f"endpoint option {name} is no text: {getattr(self, name)!r}")


def endpoint_options(values: Mapping[str, Any]) -> EndpointOptions:
    """Options from a plan.

    Raises:
        PlanError: an unknown option or a value that cannot be.
    """
    known = [f.name for f in fields(EndpointOptions)]
    for name in values:
        if name not in known:
            raise PlanError(f"unknown endpoint option {name!r}", hint=nearest(name, known))
    return EndpointOptions(**values)


@dataclass(frozen=True, slots=True)
class _Scored:
    logprob: float
    greedy: bool
    tokens: int


class EndpointEngine:
    """Answers requests by asking an endpoint.

    Every request is sent until it is answered, and answered once. Log-likelihoods need an endpoint
    that returns the log-probabilities of a prompt's own tokens (``echo`` with ``logprobs`` of the
    completions API: vLLM does); whether it does is tried once, with one request. Chat endpoints
    never do.

    An endpoint's batches are its own: the same request may be answered in other bits tomorrow.

    Args:
        url: ``http://HOST:PORT`` or ``…/v1``; a URL that ends in ``/completions`` or
            ``/chat/completions`` chooses the API.
        options: what is asked, and how.
        sleep: waits so many seconds (tests pass their own).

    Raises:
        EndpointError: no URL, credentials in it, or an endpoint that does not name its model.
    """

    def __init__(
        self,
        url: str,
        options: EndpointOptions | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        options = options or EndpointOptions()
        self.url, api = _split(url)
        self._api: Api = api or options.api
        self._options = options
        settings = TransportSettings(
            timeout=options.timeout,
            attempts=options.attempts,
            first_wait=min(0.5, options.max_wait),
            max_wait=options.max_wait,
            key_variable=options.key_variable,
        )
        self._transport = Transport(self.url, settings, options.concurrency, sleep)
        self.model = options.model or self._only_model()
        self._echo: bool | None = False if self._api == "chat" else None
        self._lock = threading.Lock()
        self._fingerprints: set[str] = set()

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that changes an answer and that we know of."""
        return {
            "engine": "endpoint",
            "revision": _REVISION,
            "url": self.url,
            "model": self.model,
            "api": self._api,
            "max_tokens": DEFAULT_MAX_TOKENS,
        }

    @property
    def identity(self) -> str:
        """Stands in for a content hash: what is served can only be known by its name and place."""
        return content_hash({"endpoint": self.url, "model": self.model, "api": self._api})

    @property
    def events(self) -> list[str]:
        """What a reader of the results should know: retries, and changes of the server's build."""
        found = []
        if self._transport.retries:
            found.append(f"{self._transport.retries} attempts failed and were repeated")
        if len(self._fingerprints) > 1:
            found.append(
                "the endpoint changed its system_fingerprint on the way: "
                + ", ".join(sorted(self._fingerprints))
            )
        return found

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    def supports(self, kind: RequestKind) -> bool:
        """Whether requests of that kind can be answered; log-likelihoods are tried once."""
        if kind == "generate_until":
            return True
        if self._echo is None:
            self._echo = self._try_echo()
        return self._echo

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Requests in their order, ``batch`` at a time."""
        size = self._options.batch
        return [
            list(range(start, min(start + size, len(requests))))
            for start in range(0, len(requests), size)
        ]

    def answer(self, requests: Sequence[Request]) -> list[Response]:
        """The responses to one batch, in its order.

        Raises:
            TaskError: a log-likelihood that this endpoint cannot give.
            EndpointError: a request that it refuses, or never answers.
        """
        for kind in sorted({r.kind for r in requests}):
            if not self.supports(kind):
                raise TaskError(
                    f"{self.url} ({self._api}) cannot answer {kind} requests",
                    hint="They need the log-probabilities of a prompt's tokens: use a completions "
                    "endpoint that serves them (echo with logprobs), or generation tasks only.",
                )
        pool = ThreadPoolExecutor(self._options.concurrency)
        try:
            return list(pool.map(self._one, requests))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _one(self, request: Request) -> Response:
        start = time.perf_counter()
        ask = self._generate if request.kind == "generate_until" else self._score
        return replace(ask(request), seconds=time.perf_counter() - start)

    def _generate(self, request: Request) -> Response:
        limit = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        stops = [s for s in request.until if s]
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": limit,
            "temperature": request.temperature,
        }
        if stops:
            body["stop"] = stops[:_STOPS]
        if request.temperature > 0:
            body["seed"] = request.seed
        if self._api == "chat":
            body["messages"] = [{"role": "user", "content": request.context}]
            path = "chat/completions"
        else:
            body["prompt"] = request.context
            path = "completions"

        def parse(answer: Any) -> tuple[str, bool, int, int]:
            choice = self._choice(answer)
            ended = choice.get("finish_reason")
            if self._api == "chat":
                message = choice.get("message")
                text = message.get("content") if isinstance(message, dict) else None
                if text is None and ended == "length":
                    # All of its tokens went into reasoning that is not part of the answer.
                    text = ""
            else:
                text = choice.get("text")
            if not isinstance(text, str):
                raise Malformed("no text in its choice")
            return text, ended == "length", *_usage(answer)

        text, cut, read, written = self._transport.post(path, body, parse)
        found = [text.find(s) for s in stops]
        # A stop string that was not sent may stand in the text: it was not cut by the limit.
        cut = cut and all(at < 0 for at in found)
        for stop in stops:
            text = text.split(stop)[0]
        return Response(text, None, None, read, written, cut)

    def _score(self, request: Request) -> Response:
        if request.kind == "loglikelihood_rolling":
            if not request.context:
                return Response(logprob=0.0)
            found = self._echoed(request.context, 0, rolling=True)
            return Response(logprob=found.logprob, tokens_out=found.tokens)
        context, continuation = move_spaces(request.context, request.continuation)
        found = self._echoed(context + continuation, len(context))
        return Response(logprob=found.logprob, greedy=found.greedy, tokens_out=found.tokens)

    def _echoed(self, text: str, start: int, rolling: bool = False) -> _Scored:
        """Score the tokens of ``text`` that reach beyond its first ``start`` characters.

        A token that reaches over that border counts: it holds the beginning of what is scored.
        """
        body = {
            "model": self.model,
            "prompt": text,
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": 1,
            "echo": True,
        }

        def parse(answer: Any) -> _Scored:
            return _score_echo(self._choice(answer), text, start, rolling)

        return self._transport.post("completions", body, parse)

    def _try_echo(self) -> bool:
        try:
            found = self._echoed("The sun rises in the east.", 3)
        except Refused as error:
            if error.status in _UNSUPPORTED:
                return False
            raise
        return found.tokens > 0

    def _choice(self, answer: Any) -> dict[str, Any]:
        if not isinstance(answer, dict):
            raise Malformed("no JSON object")
        choices = answer.get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise Malformed("not exactly one choice")
        fingerprint = answer.get("system_fingerprint")
        if isinstance(fingerprint, str):
            with self._lock:
                self._fingerprints.add(fingerprint)
        found: dict[str, Any] = choices[0]
        return found

    def _only_model(self) -> str:
        def parse(answer: Any) -> list[str]:
            data = answer.get("data") if isinstance(answer, dict) else None
            if not isinstance(data, list):
                raise Malformed("no list of models")
            return [str(m["id"]) for m in data if isinstance(m, dict) and "id" in m]

        names = self._transport.get("models", parse)
        if len(names) != 1:
            listed = ", ".join(names[:5]) or "none"
            raise EndpointError(
                f"{self.url} serves {len(names)} models", hint=f"Name one of them: {listed}."
            )
        return names[0]


def _score_echo(choice: Mapping[str, Any], text: str, start: int, rolling: bool) -> _Scored:
    """Sum the log-probabilities of a prompt's own tokens from an ``echo`` answer."""
    found = choice.get("logprobs")
    found = found if isinstance(found, dict) else {}
    columns = [found.get(name) for name in ("tokens", "token_logprobs", "top_logprobs")]
    if not all(isinstance(c, list) and len(c) == len(columns[0] or ()) for c in columns):
        raise _unfit("it returns no log-probabilities of the prompt's tokens")
    tokens, values, tops = (list(c or ()) for c in columns)
    at, total, greedy, count = 0, 0.0, True, 0
    for i in range(_prompt_start(tokens, text), len(tokens)):
        if at >= len(text):
            break
        end = at + len(tokens[i])
        if end > start:
            if values[i] is not None:
                ranked = [float(v) for v in (tops[i] or {}).values()]
                if not ranked:
                    raise _unfit("it returns no top_logprobs")
                total += float(values[i])
                greedy = greedy and float(values[i]) >= max(ranked)
                count += 1
            elif at or not rolling:
                # Without a BOS nothing stands before a text's first token, so it has no
                # probability: a perplexity goes without it, a choice cannot.
                raise _unfit("a scored token has no log-probability: is the prompt empty?")
        at = end
    return _Scored(total, greedy, count)


def _unfit(what: str) -> Refused:
    return Refused(
        f"the endpoint cannot score prompts: {what}",
        200,
        hint="Use a completions endpoint that serves echo with logprobs, or generation tasks only.",
    )


def _prompt_start(tokens: Sequence[Any], text: str) -> int:
    """Index of the first token that is part of ``text``; a BOS may stand before it."""
    if all(isinstance(t, str) for t in tokens):
        for first in range(min(2, len(tokens))):
            if "".join(tokens[first:]).startswith(text):
                return first
    raise _unfit("its tokens do not make up the prompt")


def _usage(answer: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens read and written as the endpoint counts them; 0 where it does not say."""
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    read, written = (c if isinstance(c, int) and c >= 0 else 0 for c in counts)
    return read, written


def _split(url: str) -> tuple[str, Api | None]:
    """The base URL and the API that its path names."""
    parts = urlsplit(url.strip())
    path = parts.path.rstrip("/")
    api: Api | None = None
    if path.endswith("/chat/completions"):
        path, api = path.removesuffix("/chat/completions"), "chat"
    elif path.endswith("/completions"):
        path, api = path.removesuffix("/completions"), "completions"
    return urlunsplit((parts.scheme, parts.netloc, path or "/v1", "", "")), api
