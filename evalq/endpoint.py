"""How an OpenAI-compatible endpoint is named in a plan and on the command line.

A key is never part of it: it is read from the environment when the endpoint is asked, so neither a
plan nor a run directory can hold one.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from evalq.errors import PlanError

__all__ = ["DEFAULT_KEY_VARIABLE", "Api", "EndpointPlan", "check_url", "parse_endpoint"]

DEFAULT_KEY_VARIABLE = "EVALQ_API_KEY"

Api = Literal["completions", "chat"]

_OURS = frozenset(
    {
        "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "seed",
        "stop", "stream", "n", "echo", "logprobs", "top_logprobs", "api_key", "authorization",
    }
)  # fmt: skip
"""Fields of a request that evalq sets, or that a plan must not hold."""

_PATIENCE = ("concurrency", "timeout", "attempts", "max_wait", "key_variable")
"""Settings that change no answer."""


def check_url(url: str) -> None:
    """Refuse what is no server's address, and what may hold a secret.

    Raises:
        PlanError: no ``http(s)://HOST…``, or a user name, password, query or fragment in it. What
            may be secret is not repeated in the message.
    """
    parts = urlsplit(url)
    if parts.username or parts.password or "@" in parts.netloc:
        raise PlanError(
            f"the endpoint's URL holds credentials (host {parts.hostname})",
            hint=f"Keys come from the environment only: set {DEFAULT_KEY_VARIABLE}, or another "
            "variable and name it as key_variable.",
        )
    if parts.query or parts.fragment:
        raise PlanError(
            f"the endpoint's URL ends in a query or a fragment (host {parts.hostname})",
            hint="Give http://HOST:PORT/v1 alone; keys come from the environment.",
        )
    try:
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        usable = False
    if not usable or any(c.isspace() for c in url):
        raise PlanError(
            f"{url!r} is no URL of a server", hint="Give http://HOST:PORT/v1 or https://HOST/v1."
        )


class EndpointPlan(BaseModel):
    """A model behind an OpenAI-compatible server.

    Args:
        url: ``http://HOST:PORT/v1``; a path that ends in ``/completions`` or ``/chat/completions``
            chooses the API.
        model: the served model's name; empty for the only one that the endpoint lists.
        api: ``completions`` sends prompts as they are, ``chat`` as messages that the server puts
            into its own chat template.
        body: further fields of every request (``{"top_k": 1}``, ``{"reasoning_effort": "low"}``).
        token_limit: the field that bounds new tokens; OpenAI's reasoning models take only
            ``max_completion_tokens``.
        concurrency: requests under way at once.
        timeout: seconds without a byte until an attempt is given up.
        attempts: of one request, the first included.
        max_wait: longest wait between two attempts in seconds, and the longest ``Retry-After`` that
            is waited for.
        key_variable: environment variable that holds the key; none is sent where it is unset.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    model: str = Field("", max_length=500)
    api: Api = "completions"
    body: dict[str, Any] = Field(default_factory=dict)
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    concurrency: int = Field(8, ge=1, le=1024)
    timeout: float = Field(60.0, gt=0, allow_inf_nan=False)
    attempts: int = Field(10, ge=1)
    max_wait: float = Field(60.0, gt=0, allow_inf_nan=False)
    key_variable: str = DEFAULT_KEY_VARIABLE

    @model_validator(mode="before")
    @classmethod
    def _read_url(cls, data: Any) -> Any:
        """The base URL, and the API that its path names."""
        if isinstance(data, str):
            data = {"url": data}
        if not isinstance(data, dict) or not isinstance(data.get("url"), str):
            return data
        url = data["url"].strip()
        check_url(url)
        parts = urlsplit(url)
        path, named = parts.path.rstrip("/"), ""
        for ending, api in (("/chat/completions", "chat"), ("/completions", "completions")):
            if path.endswith(ending):
                path, named = path.removesuffix(ending), api
                break
        if named and data.get("api", named) != named:
            raise ValueError(f"the URL is of {named}, and api says {data['api']!r}")
        base = urlunsplit((parts.scheme, parts.netloc, path or "/v1", "", ""))
        return {**data, "url": base, **({"api": named} if named else {})}

    @field_validator("key_variable")
    @classmethod
    def _variable_is_a_name(cls, value: str) -> str:
        # Not repeated in the message: it may be the key itself, put here by mistake.
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):
            raise PlanError(
                "key_variable is not the name of an environment variable in capitals",
                hint=f"For example {DEFAULT_KEY_VARIABLE}: the variable that holds the key.",
            )
        return value

    @field_validator("body")
    @classmethod
    def _body_is_extra(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(_OURS & {str(name).lower() for name in value})
        if taken:
            raise ValueError(f"{taken[0]!r} is not set by hand")
        return value

    @property
    def label(self) -> str:
        """The model's name without its folders; the host where no name is given."""
        name = PurePosixPath(self.model).name or urlsplit(self.url).netloc
        return "".join(c if c.isprintable() else "?" for c in name)[:80].strip() or "endpoint"

    def measured(self) -> dict[str, Any]:
        """The settings that change an answer, as JSON values."""
        data = self.model_dump(mode="json")
        return {name: value for name, value in data.items() if name not in _PATIENCE}


def parse_endpoint(text: str) -> dict[str, Any]:
    """``URL[,KEY=VALUE…]`` as the settings of an endpoint; values stay text.

    >>> parse_endpoint("http://127.0.0.1:8080/v1,model=m,api=chat")
    {'url': 'http://127.0.0.1:8080/v1', 'model': 'm', 'api': 'chat'}

    Raises:
        PlanError: a part that is no ``KEY=VALUE``, or a key given twice.
    """
    url, *rest = text.split(",")
    out: dict[str, Any] = {"url": url}
    for part in rest:
        key, found, value = part.partition("=")
        if not found or key in out:
            # The part itself is not shown: a URL with a comma may hold a secret.
            raise PlanError(
                "an endpoint is written URL[,KEY=VALUE…], each key once",
                hint="For example endpoint=http://127.0.0.1:8080/v1,model=NAME,api=chat.",
            )
        out[key] = value
    return out
