"""Asks an endpoint: what it can tell is found by asking once, and every answer is taken apart."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from evalq.audit.answers import Answer, parse_answer
from evalq.errors import EndpointError
from evalq.models.transport import Refused, Transport, TransportSettings

__all__ = ["Api", "Ask", "Capabilities", "Client"]

Api = Literal["completions", "chat"]

_REFUSALS = frozenset({400, 404, 405, 415, 422, 501})
_DEPTHS = (20, 5, 1)
_USED = 5
"""As many as calibration looks at."""
_EXTRAS: Mapping[str, Any] = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "repeat_penalty": 1.0,
    "cache_prompt": False,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
}
"""Fields beyond OpenAI's own: samplers that servers fill with defaults of theirs (vLLM from the
model's generation config, llama.cpp top_k 40 and min_p .05), and token ids."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an endpoint does, as found by asking.

    Args:
        api: ``completions`` or ``chat``.
        models: that it lists; empty where it lists none.
        extras: takes the samplers and the token ids beyond OpenAI's fields.
        seed: takes one.
        logprobs: tokens whose log-probabilities it gives at each place; 0 for none.
        token_ids: names tokens by id.
        token_prompts: takes prompts as token ids.
        echo: gives the log-probabilities of a prompt's own tokens.
        usage: counts tokens.
    """

    api: Api = "completions"
    models: tuple[str, ...] = ()
    extras: bool = False
    seed: bool = False
    logprobs: int = 0
    token_ids: bool = False
    token_prompts: bool = False
    echo: bool = False
    usage: bool = False

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "models": list(self.models)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Capabilities:
        """From ``as_dict``."""
        return cls(**{**data, "models": tuple(data["models"])})


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    Args:
        prompt: the text; one user message for chat.
        max_tokens: at most so many new tokens.
        temperature: 0 or 1.
        seed: above 0.
    """

    prompt: str
    max_tokens: int
    temperature: float
    seed: int


@dataclass
class _Shape:
    """A form of request that is tried."""

    api: Api
    extras: bool
    depth: int
    seed: bool = True
    notes: list[str] = field(default_factory=list)


class Client:
    """One endpoint and one model of it.

    Args:
        url: ``…/v1``.
        model: the served model's name.
        settings: patience; the key's environment variable.
        connections: at once.
        sleep: waits so many seconds (tests pass their own).

    Raises:
        EndpointError: no URL, or one with credentials in it.
    """

    def __init__(
        self,
        url: str,
        model: str,
        settings: TransportSettings,
        connections: int = 8,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url, self.model = url.rstrip("/"), model
        self._key = os.environ.get(settings.key_variable, "")
        self._transport = Transport(self.url, settings, connections, sleep)
        self.capabilities = Capabilities()
        self.fingerprints: set[str] = set()

    @property
    def retries(self) -> int:
        """Attempts that failed and were repeated."""
        return self._transport.retries

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    def discover(self, probe: str, ids: tuple[int, ...], wanted: Api | None) -> list[Answer]:
        """Find out what the endpoint does; the answers that it took, for the budget.

        Args:
            probe: a text to ask with.
            ids: its tokens.
            wanted: the only API to use; ``None`` prefers completions.

        Raises:
            EndpointError: it answers in no form that is known, or not at all.
        """
        models = self._models()
        apis: tuple[Api, ...] = (wanted,) if wanted else ("completions", "chat")
        answers: list[Answer] = []
        trouble: EndpointError | None = None
        for api in apis:
            for shape in _shapes(api):
                try:
                    answer = self._send(Ask(probe, 2, 0.0, 7), shape)
                except Refused as error:
                    if error.status not in _REFUSALS:
                        raise
                    trouble = error
                    if error.status in (404, 405, 501):
                        break
                    continue
                answers.append(answer)
                self.capabilities = _read(answer, shape, models)
                answers += self._further(ids, shape)
                return answers
        assert trouble is not None
        raise trouble

    def _models(self) -> tuple[str, ...]:
        def parse(answer: Any) -> list[str]:
            data = answer.get("data") if isinstance(answer, dict) else None
            if not isinstance(data, list):
                raise Refused("no list of models", 404)
            return [str(m["id"])[:200] for m in data if isinstance(m, dict) and "id" in m]

        try:
            return tuple(sorted(self._transport.get("models", parse))[:1000])
        except Refused as error:
            if error.status in (401, 403):
                raise
            return ()

    def _further(self, ids: tuple[int, ...], shape: _Shape) -> list[Answer]:
        """Token prompts and echo, which only completions have; neither has to work."""
        if shape.api != "completions":
            return []
        found = []
        body = self._body(Ask("", 1, 0.0, 7), shape)
        for name, change in (
            ("token_prompts", {"prompt": list(ids)}),
            ("echo", {"prompt": "The sun rises.", "echo": True, "logprobs": 1}),
        ):
            try:
                answer = self._transport.post("completions", {**body, **change}, self._parse)
            except EndpointError:
                # Refused, or a fault that only this form meets: the audit needs neither.
                continue
            found.append(answer)
            if name == "echo":
                works = answer.text.startswith("The sun") and len(answer.shown or ()) > 2
                self.capabilities = replace(self.capabilities, echo=works)
            else:
                works = answer.prompt_tokens in (None, len(ids))
                self.capabilities = replace(self.capabilities, token_prompts=works)
        return found

    def ask(self, ask: Ask) -> Answer:
        """One answer.

        Raises:
            Refused: the endpoint refuses the request.
            EndpointError: no attempt brought a usable answer.
        """
        known = self.capabilities
        depth = min(known.logprobs, _USED)
        return self._send(ask, _Shape(known.api, known.extras, depth, known.seed))

    def _body(self, ask: Ask, shape: _Shape) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "top_p": 1.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "n": 1,
            "stream": False,
        }
        if shape.seed:
            body["seed"] = ask.seed
        if shape.extras:
            body |= _EXTRAS
        if shape.api == "chat":
            body["messages"] = [{"role": "user", "content": ask.prompt}]
            if shape.depth:
                body |= {"logprobs": True, "top_logprobs": shape.depth}
        else:
            body["prompt"] = ask.prompt
            if shape.depth:
                body["logprobs"] = shape.depth
        return body

    def _send(self, ask: Ask, shape: _Shape) -> Answer:
        path = "chat/completions" if shape.api == "chat" else "completions"
        start = time.perf_counter()
        answer = self._transport.post(path, self._body(ask, shape), self._parse)
        if answer.fingerprint:
            self.fingerprints.add(answer.fingerprint)
        return replace(answer, seconds=time.perf_counter() - start)

    def _parse(self, raw: Any) -> Answer:
        if self._key:
            # A server that repeats the request's headers must not get the key into our files.
            raw = _without(raw, self._key)
        return parse_answer(raw)


def _without(value: Any, key: str) -> Any:
    if isinstance(value, str):
        return value.replace(key, "[key]")
    if isinstance(value, list):
        return [_without(v, key) for v in value]
    if isinstance(value, dict):
        return {_without(k, key): _without(v, key) for k, v in value.items()}
    return value


def _shapes(api: Api) -> list[_Shape]:
    shapes = [_Shape(api, True, d) for d in _DEPTHS] + [_Shape(api, False, d) for d in _DEPTHS]
    return [*shapes, _Shape(api, True, 0), _Shape(api, False, 0), _Shape(api, False, 0, seed=False)]


def _read(answer: Answer, shape: _Shape, models: tuple[str, ...]) -> Capabilities:
    shown = answer.shown or ()
    deepest = max((len(s.top) for s in shown), default=0)
    return Capabilities(
        api=shape.api,
        models=models,
        extras=shape.extras,
        seed=shape.seed,
        # What came back counts, not what was asked: some answer with fewer, or with none.
        logprobs=min(shape.depth, deepest) if deepest else 0,
        token_ids=bool(shown) and all(s.token is not None for s in shown),
        usage=answer.prompt_tokens is not None,
    )
