"""The two clients: how a call of `requests` and its kin is carried out over `httpx.Client` and `httpx.AsyncClient`."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast
from urllib.parse import urlsplit

import httpx
import msgspec

from tidings.client import requests
from tidings.client.answers import Accepted, Problem
from tidings.client.attempts import Patience, Retries, parse_retry_after
from tidings.client.calls import Call, Listing
from tidings.client.errors import (
    BatchInterrupted,
    ServerFailed,
    TidingsClientError,
    TidingsConnectionError,
    to_error,
)
from tidings.client.groups import Groups
from tidings.client.requests import NotificationRequest

T = TypeVar("T")

DEFAULT_URL: Final = "http://127.0.0.1:8000"

# Failures of a try that another try may mend. Not among them: a URL that makes no sense, a broken local set-up.
_TRANSIENT: Final = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)


# ---------------------------------------------------------------- what both share, without I/O


class _Connection:
    """Where the server is and how to speak to it."""

    def __init__(
        self,
        url: str | None,
        api_key: str | None,
        retries: Retries | None,
        rng: random.Random | None,
        monotonic: Callable[[], float],
    ) -> None:
        self.url: Final = (url or os.environ.get("TIDINGS_URL") or DEFAULT_URL).rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError(f"{self.url!r} is not the address of a server; write it as https://host or {DEFAULT_URL}")
        key = api_key or os.environ.get("TIDINGS_API_KEY") or ""
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ValueError("the API key has characters that no key has; copy it again, without spaces or line ends")
        self.retries: Final = retries or Retries()
        self.rng: Final = rng or random.Random()  # noqa: S311 - jitter, not secrets
        self.monotonic: Final = monotonic
        self.headers: Final = {"Accept": "application/json", "User-Agent": f"tidings-python/{_version()}"}
        if key:
            self.headers["Authorization"] = f"Bearer {key}"
        # A proxy from the environment has no business between this process and its own machine, nor with our key.
        self.trust_env: Final = not _is_loopback(parts.hostname)

    def request(self, call: Call[Any], timeout: float) -> dict[str, Any]:
        """The arguments of httpx's `request`."""
        headers = {}
        if call.body is not None:
            headers["Content-Type"] = call.content_type
        if call.idempotency_key is not None:
            headers["Idempotency-Key"] = call.idempotency_key
        if call.traceparent is not None:
            headers["traceparent"] = call.traceparent
        return {
            "method": call.method,
            "url": self.url + call.path,
            "params": call.query or None,
            "content": call.body,
            "headers": headers,
            "timeout": timeout,
        }

    def to_failure(self, call: Call[Any], error: httpx.TransportError) -> TidingsConnectionError:
        """What a try without an answer means to the caller."""
        if isinstance(error, httpx.TimeoutException):
            what = f"{self.url} did not answer in time"
        else:
            why = str(error) or type(error).__name__
            what = f"{self.url} cannot be reached ({why}); is the address right, and is the API running?"
        failure = TidingsConnectionError(what)
        failure.retryable = isinstance(error, _TRANSIENT)
        failure.idempotency_key = call.idempotency_key
        failure.__cause__ = error
        return failure


def _parse_answer(call: Call[T], response: httpx.Response, *, repeated: bool) -> T:
    """The answer's value.

    Raises:
        TidingsAPIError: the server refused, or what answered does not speak like a Tidings server.
    """
    status = response.status_code
    if call.method == "DELETE" and call.answer is None and status == 404 and repeated:
        return cast(T, None)  # an earlier try, whose answer was lost, has done it
    if status >= 300 and status not in call.also_good:
        error = to_error(_parse_problem(response))
        error.retry_after = parse_retry_after(response.headers.get("Retry-After"))
        error.idempotency_key = call.idempotency_key
        raise error
    if call.answer is None or status == 204:
        return cast(T, None)
    try:
        return cast(T, msgspec.json.decode(response.content, type=call.answer))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ServerFailed(
            status=status,
            type="about:blank",
            title="Unreadable answer",
            detail=f"{response.url.host} answered something that is not of the Tidings API ({error}); check the URL",
        ) from error


def _parse_problem(response: httpx.Response) -> Problem:
    """The problem details of a refusal; made up from the status when something else answered, such as a proxy."""
    try:
        problem = msgspec.json.decode(response.content, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = Problem()
    if problem.status != response.status_code or not problem.title:
        detail = problem.detail
        if not detail and response.is_redirect:
            detail = f"it points to {response.headers.get('Location', 'elsewhere')}; give the client the final address"
        problem = msgspec.structs.replace(
            problem, status=response.status_code, title=response.reason_phrase or "Refused", detail=detail
        )
    return problem


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


@functools.cache
def _version() -> str:
    try:
        return version("tidings")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0"


# ---------------------------------------------------------------- sync


class Client(Groups["Client"]):
    """The sync client. Safe to share between threads; close it, or use it in a `with` block."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        retries: Retries | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: default: the environment's TIDINGS_URL, else http://127.0.0.1:8000.
            api_key: default: the environment's TIDINGS_API_KEY.
            retries: how patient to be.
            transport: replaces the network, e.g. by an `httpx.WSGITransport`.
            sleep, monotonic, rng: time and chance, for tests.

        Raises:
            ValueError: the URL or the key cannot be one.
        """
        super().__init__(self)
        self._at = _Connection(url, api_key, retries, rng, monotonic)
        self._sleep = sleep
        self._http = httpx.Client(headers=self._at.headers, trust_env=self._at.trust_env, transport=transport)

    def send_batch(
        self,
        notifications: Iterable[NotificationRequest | Mapping[str, Any]],
        *,
        traceparent: str | None = None,
    ) -> _Outcomes:
        """Tell many people, in requests of at most 1,000 items; the outcomes come in the order of the input.

        An item that is refused spoils no other: its outcome is the `Problem`.

        Raises:
            BatchInterrupted: one of the requests failed as a whole; it holds the outcomes so far.
        """
        items = tuple(notifications)
        outcomes: _Outcomes = []
        for call in requests.plan_batches(items, traceparent):
            try:
                answer = self.run(call)
            except TidingsClientError as error:
                raise BatchInterrupted(outcomes, len(items), error) from error
            outcomes += [item.to_outcome() for item in answer.results]
        return outcomes

    def run(self, call: Call[T]) -> T:
        """Carries out one call of `tidings.client.requests`, with retries."""
        at = self._at
        patience = Patience(at.retries, at.monotonic())
        while True:
            timeout = patience.begin(at.monotonic())
            try:
                response = self._http.request(**at.request(call, timeout))
                return _parse_answer(call, response, repeated=patience.attempts > 1)
            except httpx.TransportError as error:
                failure: TidingsClientError = at.to_failure(call, error)
            except TidingsClientError as error:
                failure = error
            self._sleep(patience.decide_wait(failure, at.monotonic(), at.rng))

    def pages(self, listing: Listing[T]) -> Iterator[T]:
        """Iterates over a list of `tidings.client.requests`."""
        cursor: str | None = None
        while True:
            page = self.run(listing.page(cursor))
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._at.url!r})"


# ---------------------------------------------------------------- async


class AsyncClient(Groups["AsyncClient"]):
    """The client for asyncio; the same methods, awaited. Close it, or use it in an `async with` block."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        retries: Retries | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        """Nothing is sent yet; the arguments are those of `Client`.

        Raises:
            ValueError: the URL or the key cannot be one.
        """
        super().__init__(self)
        self._at = _Connection(url, api_key, retries, rng, monotonic)
        self._sleep = sleep
        self._http = httpx.AsyncClient(headers=self._at.headers, trust_env=self._at.trust_env, transport=transport)

    async def send_batch(
        self,
        notifications: Iterable[NotificationRequest | Mapping[str, Any]],
        *,
        traceparent: str | None = None,
    ) -> _Outcomes:
        """Tell many people, in requests of at most 1,000 items; the outcomes come in the order of the input.

        An item that is refused spoils no other: its outcome is the `Problem`.

        Raises:
            BatchInterrupted: one of the requests failed as a whole; it holds the outcomes so far.
        """
        items = tuple(notifications)
        outcomes: _Outcomes = []
        for call in requests.plan_batches(items, traceparent):
            try:
                answer = await self.run(call)
            except TidingsClientError as error:
                raise BatchInterrupted(outcomes, len(items), error) from error
            outcomes += [item.to_outcome() for item in answer.results]
        return outcomes

    async def run(self, call: Call[T]) -> T:
        """Carries out one call of `tidings.client.requests`, with retries."""
        at = self._at
        patience = Patience(at.retries, at.monotonic())
        while True:
            timeout = patience.begin(at.monotonic())
            try:
                response = await self._http.request(**at.request(call, timeout))
                return _parse_answer(call, response, repeated=patience.attempts > 1)
            except httpx.TransportError as error:
                failure: TidingsClientError = at.to_failure(call, error)
            except TidingsClientError as error:
                failure = error
            await self._sleep(patience.decide_wait(failure, at.monotonic(), at.rng))

    async def pages(self, listing: Listing[T]) -> AsyncIterator[T]:
        """Iterates over a list of `tidings.client.requests`."""
        cursor: str | None = None
        while True:
            page = await self.run(listing.page(cursor))
            for item in page.items:
                yield item
            cursor = page.next_cursor
            if cursor is None:
                return

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self._at.url!r})"


# Named here because inside the clients `list` is the method.
_Outcomes = list[Accepted | Problem]
