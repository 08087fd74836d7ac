"""Asks an endpoint: what it can tell is found by asking once, and every answer is taken apart."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from evalq.errors import EndpointError
from evalq.models.transport import Malformed, Refused, Transport, TransportSettings

__all__ = ["Answer", "Api", "Ask", "Capabilities", "Client", "Shown"]

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


@dataclass(frozen=True, slots=True)
class Shown:
    """One served token as the endpoint names it.

    Args:
        name: its text, ``token_id:…`` or ``bytes:…``; ``None`` where only an id is given.
        token: its id, where it is given.
        top: log-probabilities by name (or by id, as text ``token_id:…``).
    """

    name: str | None
    token: int | None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Args:
        text: as served, the key taken out should it be in it.
        shown: a served token each; ``None`` where the endpoint names none.
        ended: the model ended by itself (``finish_reason`` is ``stop``).
        prompt_tokens, completion_tokens: as counted by the endpoint; ``None`` where it does not.
        prompt_ids: the prompt as tokens, where the endpoint tells.
        fingerprint: of the endpoint's build.
        seconds: it took.
    """

    text: str
    shown: tuple[Shown, ...] | None = None
    ended: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_ids: tuple[int, ...] | None = None
    fingerprint: str = ""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON values, for the journal."""
        out = asdict(self)
        out["shown"] = (
            None if self.shown is None else [[s.name, s.token, s.top] for s in self.shown]
        )
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Answer:
        """From ``as_dict``."""
        shown = data["shown"]
        ids = data["prompt_ids"]
        return cls(
            **{
                **data,
                "prompt_ids": None if ids is None else tuple(ids),
                "shown": None
                if shown is None
                else tuple(
                    Shown(name, token, tuple((str(n), float(v)) for n, v in top))
                    for name, token, top in shown
                ),
            }
        )


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
            except Refused:
                continue
            found.append(answer)
            works = answer.prompt_tokens in (None, len(ids))
            if name == "echo":
                works = answer.text.startswith("The sun") and len(answer.shown or ()) > 2
            self.capabilities = replace(self.capabilities, **{name: works})
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


def parse_answer(raw: Any) -> Answer:
    """An answer in any of the forms that servers give it (OpenAI, vLLM, llama.cpp).

    Raises:
        Malformed: not one choice with a text.
    """
    if not isinstance(raw, dict):
        raise Malformed("no JSON object")
    choices = raw.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise Malformed("not exactly one choice")
    choice = choices[0]
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    if text is None and choice.get("finish_reason") == "length":
        text = ""
    if not isinstance(text, str):
        raise Malformed("no text in its choice")
    usage = raw.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    prompt_ids = choice.get("prompt_token_ids")
    fingerprint = raw.get("system_fingerprint")
    return Answer(
        text=text,
        shown=_shown(choice),
        ended=choice.get("finish_reason") == "stop",
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        prompt_ids=_ids(prompt_ids),
        fingerprint=fingerprint[:200] if isinstance(fingerprint, str) else "",
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _ids(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, list) and value and all(_count(v) is not None for v in value):
        return tuple(value)
    return None


def _shown(choice: Mapping[str, Any]) -> tuple[Shown, ...] | None:
    """Tokens with their log-probabilities, from the columns of completions, the list of chat
    (which llama.cpp gives for both), or a bare list of ids."""
    ids = _ids(choice.get("token_ids"))
    found = choice.get("logprobs")
    out: list[Shown] | None = None
    if isinstance(found, dict) and isinstance(found.get("content"), list):
        out = [_entry(e) for e in found["content"] if isinstance(e, dict)]
    elif isinstance(found, dict) and isinstance(found.get("tokens"), list):
        tokens, tops = found["tokens"], found.get("top_logprobs")
        tops = tops if isinstance(tops, list) and len(tops) == len(tokens) else [None] * len(tokens)
        out = [
            Shown(t if isinstance(t, str) else None, _id_of(t), _top(top))
            for t, top in zip(tokens, tops, strict=True)
        ]
    if ids is not None:
        if out is None or len(out) < len(ids):
            return tuple(Shown(None, i) for i in ids)
        if len(out) == len(ids):
            return tuple(replace(s, token=i) for s, i in zip(out, ids, strict=True))
    return tuple(out) if out else None


def _entry(entry: Mapping[str, Any]) -> Shown:
    tops = entry.get("top_logprobs")
    pairs = []
    for top in tops if isinstance(tops, list) else ():
        if isinstance(top, dict) and _finite(top.get("logprob")):
            pairs.append((_called(top), float(top["logprob"])))
    token = _count(entry.get("id"))
    name = _called(entry)
    return Shown(name, token if token is not None else _id_of(name), tuple(pairs))


def _called(entry: Mapping[str, Any]) -> str:
    """A token's name that leads back to it: its id, else its bytes, else its text."""
    token = _count(entry.get("id"))
    if token is not None:
        return f"token_id:{token}"
    name = entry.get("token")
    if isinstance(name, str) and name.startswith("token_id:"):
        return name
    raw = entry.get("bytes")
    if isinstance(raw, list) and raw and all(isinstance(b, int) and 0 <= b < 256 for b in raw):
        return "bytes:" + "".join(f"\\x{b:02x}" for b in raw)
    return name if isinstance(name, str) else ""


def _id_of(name: Any) -> int | None:
    if isinstance(name, str) and name.startswith("token_id:"):
        digits = name.removeprefix("token_id:")
        return int(digits) if digits.isascii() and digits.isdigit() else None
    return None


def _finite(value: Any) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value <= 1e-3
    )


def _top(column: Any) -> tuple[tuple[str, float], ...]:
    if not isinstance(column, dict):
        return ()
    return tuple((str(k), float(v)) for k, v in column.items() if _finite(v))


def journal_line(value: Mapping[str, Any]) -> str:
    """One line of the journal."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))
