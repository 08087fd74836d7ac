"""JSON over HTTP to a server that refuses, stalls and breaks off: retried until it answers."""

from __future__ import annotations

import datetime
import email.utils
import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from evalq.errors import EndpointError

__all__ = ["DEFAULT_KEY_VARIABLE", "Malformed", "Refused", "Transport", "TransportSettings"]

DEFAULT_KEY_VARIABLE = "EVALQ_API_KEY"

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
_SNIPPET = 300

_Answer = TypeVar("_Answer")


class Malformed(Exception):  # noqa: N818
    """An answer that is not what was asked for; asked again, it may be."""


class Refused(EndpointError):  # noqa: N818
    """The server understood, and will not; asking again is of no use.

    Args:
        status: of HTTP; 200 for an answer that lacks what was asked for.
    """

    def __init__(self, message: str, status: int, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """How often and how patiently a server is asked. None of it changes an answer.

    Args:
        timeout: seconds without a byte until an attempt is given up.
        attempts: of one request, the first included.
        first_wait: seconds before the second attempt; doubled for each further one.
        max_wait: longest wait between two attempts, and the longest ``Retry-After`` that is
            waited for.
        key_variable: environment variable that holds the key; none is sent where it is unset.
    """

    timeout: float = 60.0
    attempts: int = 10
    first_wait: float = 0.5
    max_wait: float = 60.0
    key_variable: str = DEFAULT_KEY_VARIABLE


class Transport:
    """A client of one server. Threads may share it.

    The key is read from the environment here, sent as a bearer token to this server only, and never
    part of a message. Redirects are not followed: they would carry the key elsewhere.

    Args:
        base: URL that paths are put after.
        settings: patience.
        connections: open at once.
        sleep: waits so many seconds (tests pass their own).

    Raises:
        EndpointError: a URL that is none, or that holds a name and password.
    """

    def __init__(
        self,
        base: str,
        settings: TransportSettings,
        connections: int = 8,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urlsplit(base)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EndpointError(
                f"{base!r} is no URL of a server",
                hint="Give http://HOST:PORT/v1 or https://HOST/v1.",
            )
        if parts.username or parts.password:
            raise EndpointError(
                f"the endpoint's URL holds credentials ({parts.hostname})",
                hint=f"Keys come from the environment only: set {settings.key_variable}.",
            )
        self._settings = settings
        self._key = os.environ.get(settings.key_variable, "")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.Client(
            base_url=base.rstrip("/") + "/",
            headers=headers,
            timeout=httpx.Timeout(settings.timeout),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            follow_redirects=False,
        )
        self._sleep = sleep
        self._lock = threading.Lock()
        # Jitter spreads retries; it changes no answer, so its seed need not be chosen.
        self._random = random.Random(0)
        self._not_before = 0.0
        self.retries = 0

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def post(self, path: str, body: Mapping[str, Any], parse: Callable[[Any], _Answer]) -> _Answer:
        """Send ``body`` and return what ``parse`` makes of the JSON that comes back.

        Args:
            path: below the base URL.
            body: JSON.
            parse: raises ``Malformed`` for an answer that is not usable.

        Raises:
            Refused: the server refuses the request.
            EndpointError: no attempt brought a usable answer.
        """
        return self._ask("POST", path, body, parse)

    def get(self, path: str, parse: Callable[[Any], _Answer]) -> _Answer:
        """As ``post``, without a body."""
        return self._ask("GET", path, None, parse)

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        parse: Callable[[Any], _Answer],
    ) -> _Answer:
        trouble = ""
        for attempt in range(self._settings.attempts):
            if attempt:
                with self._lock:
                    self.retries += 1
            self._wait_for_turn()
            try:
                response = self._client.request(method, path, json=body)
            except httpx.TransportError as error:
                trouble = f"{type(error).__name__}: {error}"
                self._back_off(attempt, None)
                continue
            except httpx.InvalidURL as error:
                raise EndpointError(f"{path!r} gives no URL: {error}") from None
            if response.status_code in _RETRIED:
                trouble = self._describe(response)
                self._back_off(attempt, _retry_after(response))
                continue
            if not response.is_success:
                raise Refused(
                    f"the endpoint refuses {method} {path}: {self._describe(response)}",
                    response.status_code,
                    hint=self._advice(response.status_code),
                )
            try:
                return parse(json.loads(response.content))
            except (ValueError, Malformed) as error:
                trouble = f"an answer that cannot be used ({error})"
                self._back_off(attempt, None)
        raise EndpointError(
            f"the endpoint gave no usable answer to {method} {path} in "
            f"{self._settings.attempts} attempts; the last brought {self._hide(trouble)}",
            hint="Answers so far are kept: run again when it serves again, or lower its "
            "concurrency.",
        )

    def _wait_for_turn(self) -> None:
        while True:
            with self._lock:
                left = self._not_before - time.monotonic()
            if left <= 0:
                return
            self._sleep(left)

    def _back_off(self, attempt: int, asked: float | None) -> None:
        """Wait before the next attempt; a ``Retry-After`` holds back all requests."""
        limits = self._settings
        if attempt + 1 >= limits.attempts:
            return
        if asked is not None:
            with self._lock:
                until = time.monotonic() + min(asked, limits.max_wait)
                self._not_before = max(self._not_before, until)
        # "Equal jitter": half the wait is fixed, so that a retry never comes at once.
        longest = min(limits.max_wait, limits.first_wait * 2**attempt)
        with self._lock:
            share = self._random.random()
        self._sleep(longest * (0.5 + 0.5 * share))

    def _describe(self, response: httpx.Response) -> str:
        body = " ".join(response.text[:_SNIPPET].split())
        return self._hide(f"{response.status_code} {response.reason_phrase} {body}".strip())

    def _hide(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            return f"Set the key in the environment variable {self._settings.key_variable}."
        if status == 404:
            return "Check the URL (most servers want /v1 at its end) and the model's name."
        if 300 <= status < 400:
            return "Give the URL that it redirects to."
        return ""


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait: a number or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    return max(0.0, (when - datetime.datetime.now(datetime.UTC)).total_seconds())
