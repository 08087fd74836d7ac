"""An engine behind an OpenAI-compatible endpoint: completions or chat."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any

from evalq.endpoint import EndpointPlan
from evalq.errors import EndpointError, TaskError
from evalq.models.echo import Scored, counted_border, find_border, read_columns, score_columns
from evalq.models.encode import DEFAULT_MAX_TOKENS, move_spaces
from evalq.models.transport import Malformed, Refused, Transport, TransportSettings
from evalq.schema import Request, RequestKind, Response, content_hash

__all__ = ["EndpointEngine"]

_REVISION = 2
_STOPS = 4
"""Stop strings that a request may carry; further ones only cut the text here."""

_UNSUPPORTED = frozenset({200, 400, 422, 501})
"""Answers to an ``echo`` request that mean: not here."""

_OF_ONE_PROMPT = frozenset({200, 400, 413, 422})
"""Refusals that may be of one prompt (too long, say), so that a user has to know which."""


class EndpointEngine:
    """Answers requests by asking an endpoint.

    Every request is sent until it is answered, and answered once. Log-likelihoods need an endpoint
    that returns the log-probabilities of a prompt's own tokens (``echo`` with ``logprobs`` of the
    completions API: vLLM does); whether it does is tried once, with one request. Chat endpoints
    never do.

    An endpoint's batches are its own: the same request may be answered in other bits tomorrow.

    Args:
        plan: where it is, what is asked, and how patiently.
        repeat: tells answers to the same requests apart that are asked anew (the control's).
        sleep: waits so many seconds (tests pass their own).

    Raises:
        EndpointError: a key that no header can carry, or an endpoint that does not name its model.
    """

    def __init__(
        self,
        plan: EndpointPlan,
        repeat: str = "",
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        settings = TransportSettings(
            timeout=plan.timeout,
            attempts=plan.attempts,
            first_wait=min(0.5, plan.max_wait),
            max_wait=plan.max_wait,
            key_variable=plan.key_variable,
        )
        self._transport = Transport(plan.url, settings, plan.concurrency, sleep)
        self._plan = plan
        self._repeat = repeat
        self.url, self.api = plan.url, plan.api
        self.model = plan.model or self._only_model()
        self._echo: bool | None = False if self.api == "chat" else None
        self._lock = threading.Lock()
        self._fingerprints: set[str] = set()
        self._lengths: dict[str, int] = {}

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that changes an answer and that we know of."""
        own = {
            "engine": "endpoint",
            "revision": _REVISION,
            **self._plan.measured(),
            "model": self.model,
            "max_tokens": DEFAULT_MAX_TOKENS,
        }
        return {**own, "repeat": self._repeat} if self._repeat else own

    @property
    def identity(self) -> str:
        """Stands in for a content hash: what is served can only be known by its name and place."""
        return content_hash({"endpoint": {**self._plan.measured(), "model": self.model}})

    @property
    def place(self) -> dict[str, str]:
        """Where answers come from: ``{"url", "model", "api"}``."""
        return {"url": self.url, "model": self.model, "api": self.api}

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
        """Close all connections; requests under way are given up."""
        self._transport.close()

    def supports(self, kind: RequestKind) -> bool:
        """Whether requests of that kind can be answered; log-likelihoods are tried once."""
        if kind == "generate_until":
            return True
        if self._echo is None:
            self._echo = self._try_echo()
        return self._echo

    def refuses(self, request: Request) -> str:
        """Why this one request cannot be asked here; empty where it can."""
        if self.api == "chat" and request.messages and request.messages[-1][0] == "assistant":
            return "its prompts begin the answer, which a chat endpoint does not continue"
        return ""

    def check(self) -> None:
        """Ask for a few tokens, to find a wrong URL, key or model before the work begins.

        Raises:
            EndpointError: the endpoint refuses, or gives no usable answer.
        """
        self._generate(Request("generate_until", "Hello", max_tokens=16))

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """All requests in their order: no answer depends on what is asked beside it."""
        return [list(range(len(requests)))] if requests else []

    def answer(self, requests: Sequence[Request]) -> list[Response]:
        """The responses to one batch, in its order.

        Raises:
            TaskError: a log-likelihood that this endpoint cannot give.
            EndpointError: a request that it refuses, or never answers.
        """
        for kind in sorted({r.kind for r in requests}):
            if not self.supports(kind):
                raise TaskError(
                    f"{self.url} ({self.api}) cannot answer {kind} requests",
                    hint="They need the log-probabilities of a prompt's tokens: use a completions "
                    "endpoint that serves them (echo with logprobs), or generation tasks only.",
                )
        found = dict(self.stream(requests))
        return [found[i] for i in range(len(requests))]

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Response]]:
        """Each request's index and response as it arrives.

        The first failure stops what has not begun; what is under way is still yielded, then the
        error is raised.

        Raises:
            EndpointError: a request that the endpoint refuses, or never answers.
        """
        todo: SimpleQueue[int] = SimpleQueue()
        done: SimpleQueue[tuple[int, Response | BaseException] | None] = SimpleQueue()
        stop = threading.Event()
        for i in range(len(requests)):
            todo.put(i)

        def work() -> None:
            while not stop.is_set():
                try:
                    i = todo.get_nowait()
                except Empty:
                    break
                try:
                    done.put((i, self._one(requests[i])))
                except BaseException as error:  # told to the thread that waits
                    done.put((i, error))
            done.put(None)

        # Daemons: an interrupt must not wait for a server that is silent.
        workers = min(self._plan.concurrency, len(requests))
        for _ in range(workers):
            threading.Thread(target=work, daemon=True).start()
        failed: BaseException | None = None
        try:
            while workers:
                found = done.get()
                if found is None:
                    workers -= 1
                elif isinstance(found[1], BaseException):
                    stop.set()
                    failed = failed or found[1]
                else:
                    yield found[0], found[1]
        except BaseException:
            self._transport.close()
            raise
        finally:
            stop.set()
        if failed is not None:
            raise failed

    def _one(self, request: Request) -> Response:
        start = time.perf_counter()
        ask = self._generate if request.kind == "generate_until" else self._score
        try:
            found = ask(request)
        except Refused as error:
            if error.status not in _OF_ONE_PROMPT:
                raise
            raise Refused(
                f"{error.message} (the prompt ends in {request.context[-60:]!r})",
                error.status,
                hint=error.hint or "Leave its task out, or serve the model with a longer context.",
            ) from None
        return replace(found, seconds=time.perf_counter() - start)

    def _generate(self, request: Request) -> Response:
        limit = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        stops = [s for s in request.until if s]
        body: dict[str, Any] = {
            **self._plan.body,
            "model": self.model,
            self._plan.token_limit: limit,
            "temperature": request.temperature,
        }
        if stops:
            body["stop"] = stops[:_STOPS]
        if request.temperature > 0:
            body["seed"] = request.seed
        if self.api == "chat":
            messages = request.messages or (("user", request.context),)
            body["messages"] = [{"role": role, "content": text} for role, text in messages]
            path = "chat/completions"
        else:
            body["prompt"] = request.context
            path = "completions"

        def parse(answer: Any) -> tuple[str, bool, int, int]:
            choice = self._choice(answer)
            ended = choice.get("finish_reason")
            if self.api == "chat":
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
            found = self._echoed("", request.context, rolling=True)
            return Response(logprob=found.logprob, tokens_out=found.tokens)
        context, continuation = move_spaces(request.context, request.continuation)
        found = self._echoed(context, continuation)
        return Response(
            logprob=found.logprob,
            greedy=found.greedy,
            tokens_in=found.before,
            tokens_out=found.tokens,
        )

    def _echoed(self, context: str, continuation: str, rolling: bool = False) -> Scored:
        """Score the tokens of ``continuation`` after ``context``."""
        text = context + continuation
        body = {
            **self._plan.body,
            "model": self.model,
            "prompt": text,
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": 1,
            "echo": True,
        }

        def parse(answer: Any) -> tuple[dict[str, Any], int]:
            return self._choice(answer), _usage(answer)[0]

        choice, count = self._transport.post("completions", body, parse)
        columns = read_columns(choice)
        border = find_border(columns.tokens, context, text)
        if border is None:
            before = self._length(context) if context else 0
            border = counted_border(columns, before, count)
        return score_columns(columns, *border, rolling)

    def _length(self, context: str) -> int:
        """Tokens of a prompt as the endpoint counts them; asked once."""
        if context not in self._lengths:
            body = {"model": self.model, "prompt": context, "max_tokens": 1, "temperature": 0.0}
            found = self._transport.post("completions", body, lambda answer: _usage(answer)[0])
            self._lengths[context] = found
        return self._lengths[context]

    def _try_echo(self) -> bool:
        try:
            found = self._echoed("The sun", " rises in the east.")
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


def _usage(answer: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens read and written as the endpoint counts them; 0 where it does not say."""
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    read, written = (c if isinstance(c, int) and c >= 0 else 0 for c in counts)
    return read, written
