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

import httpx

from evalq.endpoint import DEFAULT_KEY_VARIABLE, check_url
from evalq.errors import EndpointError, PlanError

__all__ = ["Malformed", "Refused", "Transport", "TransportSettings"]

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
_SNIPPET = 300
_PAGES = 3
"""Web pages in place of answers after which another service is taken to be there: a proxy's page
now and then goes away by itself."""
_SECRET = 12
"""Characters from which on a key cannot be a placeholder."""

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
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        try:
            check_url(base)
        except PlanError as error:
            raise EndpointError(error.message, hint=error.hint) from None
        self._settings = settings
        self._key = os.environ.get(settings.key_variable, "").strip()
        if not all("!" <= c <= "~" for c in self._key):
            raise EndpointError(
                f"the key in {settings.key_variable} holds characters that no header can carry",
                hint="Set the variable to the key alone, without quotes, spaces or line breaks.",
            )
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.Client(
            base_url=base.rstrip("/") + "/",
            headers=headers,
            timeout=httpx.Timeout(settings.timeout),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            follow_redirects=False,
        )
        self._closed = threading.Event()
        self._sleep: Callable[[float], object] = sleep or self._closed.wait
        self._lock = threading.Lock()
        # Jitter spreads retries; it changes no answer, so its seed need not be chosen.
        self._random = random.Random(0)
        self._not_before = 0.0
        self.retries = 0

    def close(self) -> None:
        """Close all connections; what still waits for an answer gives up."""
        self._closed.set()
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
        trouble, pages = "", 0
        for attempt in range(self._settings.attempts):
            if attempt:
                with self._lock:
                    self.retries += 1
            self._wait_for_turn()
            if self._closed.is_set():
                raise EndpointError("the connection to the endpoint was closed")
            try:
                response = self._client.request(method, path, json=body)
            except httpx.RequestError as error:
                trouble = f"{type(error).__name__}: {error}"
                self._back_off(attempt, None)
                continue
            except httpx.InvalidURL as error:
                raise EndpointError(f"{path!r} gives no URL: {error}") from None
            except RuntimeError as error:  # httpx: the client was closed meanwhile
                raise EndpointError(f"the connection to the endpoint was closed: {error}") from None
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
            if _is_page(response):
                pages += 1
                trouble = f"a web page: {self._describe(response)}"
                if pages >= _PAGES:
                    raise Refused(
                        f"the endpoint answers {method} {path} with {trouble}",
                        response.status_code,
                        hint=self._advice(404),
                    )
                self._back_off(attempt, None)
                continue
            try:
                return parse(json.loads(self._clean(response.content)))
            except (ValueError, RecursionError, Malformed) as error:
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
            if left <= 0 or self._closed.is_set():
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
        # Hidden before it is cut: half a key is a secret, too.
        body = " ".join(self._hide(response.text).split())[:_SNIPPET]
        return f"{response.status_code} {self._hide(response.reason_phrase)} {body}".strip()

    def _hide(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text

    def _clean(self, content: bytes) -> bytes:
        """An answer without the key, should a server repeat it: answers are stored. A placeholder
        such as ``EMPTY`` may stand in any text and is left alone."""
        if len(self._key) < _SECRET:
            return content
        return content.replace(self._key.encode("ascii"), b"[key]")

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            return f"Set the key in the environment variable {self._settings.key_variable}."
        if status == 404:
            return "Check the URL (most servers want /v1 at its end) and the model's name."
        if 300 <= status < 400:
            return "Give the URL that it redirects to."
        return ""


def _is_page(response: httpx.Response) -> bool:
    """Whether a success is a web page; one may come without its type, so that it is looked at."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind in ("text/html", "application/xhtml+xml") or response.content.lstrip()[
        :15
    ].lower().startswith((b"<!doctype", b"<html"))


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
