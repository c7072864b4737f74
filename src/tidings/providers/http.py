"""HTTP to vendors and receivers: one port, one real implementation, and a closed set of failures.

What matters to the road is whether the request may have left: `failure.sent` says so, and :func:`to_result` turns it
into "try again" or "nobody knows". Redirects are never followed, cookies never kept, environment proxies never used,
and no answer is read beyond its cap.

This room knows HTTP; it knows no vendor, no signature and no retry policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import aiohttp
import msgspec

from tidings.model.messages import Deferred, Rejected, SendResult, Uncertain
from tidings.model.words import Reason
from tidings.providers.guard import (
    ConnectFailed,
    Guard,
    TargetRefused,
    TransportFailure,
    find_refusal,
    to_sentence,
)

__all__ = [
    "AiohttpTransport",
    "BrokenAnswer",
    "ConnectFailed",
    "HttpAnswer",
    "HttpTransport",
    "TargetRefused",
    "TimedOut",
    "TransportFailure",
    "to_result",
]


class TimedOut(TransportFailure):
    """No answer came in time."""

    def __init__(self, message: str | None = None, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class BrokenAnswer(TransportFailure):
    """The connection broke, or what came was not HTTP."""

    def __init__(self, message: str | None = None, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class HttpAnswer(msgspec.Struct, frozen=True):
    """A complete answer; `body` is cut off at the request's `read_cap`, and still compressed if it came so."""

    status: int
    headers: Mapping[str, str]
    """Names are matched without regard to case; of a repeated one, the first."""
    body: bytes


class HttpTransport(Protocol):
    """Sends one request. Many may be in flight."""

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: float,
        read_cap: int,
    ) -> HttpAnswer:
        """Send it, and read at most `read_cap` bytes of the answer, all within `timeout` seconds.

        Raises:
            TransportFailure: one of ConnectFailed, TimedOut, BrokenAnswer, TargetRefused; nothing else.
        """
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


_SKIPPED: Final = ("User-Agent", "Content-Type", "Accept", "Accept-Encoding")
_DEFAULT_HEADERS: Final = {
    "User-Agent": "Tidings (+https://tidings.dev)",
    "Accept": "*/*",
    # Nothing compressed comes in, so no small answer can unfold into a large one.
    "Accept-Encoding": "identity",
}


class AiohttpTransport:
    """The real one: a session of kept-alive connections.

    Guarded and unguarded traffic never share a session: make one transport for each.

    Args:
        guard: decides on every resolved address; None only for targets that an operator fixed.
        connections: how many at most, over all hosts.
        per_host: how many at most to one host and port.
    """

    def __init__(self, guard: Guard | None, *, connections: int = 1000, per_host: int = 200) -> None:
        self._guard = guard
        self._connections = connections
        self._per_host = per_host
        self._session: aiohttp.ClientSession | None = None
        self._timeouts: dict[float, aiohttp.ClientTimeout] = {}

    def _open_session(self) -> aiohttp.ClientSession:
        # Not in the constructor: a session belongs to the loop that it is made in.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._connections,
                limit_per_host=self._per_host,
                socket_factory=self._guard.make_socket if self._guard else None,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            raise_for_status=False,
            skip_auto_headers=_SKIPPED,
            trust_env=False,
        )
        return self._session

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: float,
        read_cap: int,
    ) -> HttpAnswer:
        session = self._session or self._open_session()
        limits = self._timeouts.get(timeout)
        if limits is None:
            # Connecting has half the time, so running out of it there is told apart from running out after sending.
            limits = aiohttp.ClientTimeout(total=timeout, connect=timeout / 2)
            self._timeouts[timeout] = limits
        try:
            answer = await session.request(
                method,
                url,
                headers={**_DEFAULT_HEADERS, **headers},
                data=body,
                timeout=limits,
                allow_redirects=False,
            )
            try:
                content = await _read_capped(answer, read_cap)
            finally:
                # After the last byte the connection is already back in the pool; otherwise this drops it.
                answer.close()
            return HttpAnswer(answer.status, answer.headers, content)
        except aiohttp.ConnectionTimeoutError:
            raise TimedOut(f"no connection within {timeout / 2:g} s", sent=False) from None
        except aiohttp.ClientConnectorError as failure:  # resolving, connecting, TLS
            raise find_refusal(failure.os_error) or ConnectFailed(to_sentence(failure.os_error)) from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as failure:
            raise TargetRefused(f"not a usable URL ({type(failure).__name__})") from None
        except TimeoutError:
            raise TimedOut(f"no answer within {timeout:g} s", sent=True) from None
        except (aiohttp.ClientError, OSError, ValueError) as failure:
            # A reused connection may have been closed before it took the request; from here it looks the same.
            raise BrokenAnswer(_to_evidence(failure), sent=True) from None

    async def close(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()


async def _read_capped(answer: aiohttp.ClientResponse, cap: int) -> bytes:
    chunk = await answer.content.read(cap)
    if len(chunk) >= cap or answer.content.at_eof():
        return chunk
    chunks, size = [chunk], len(chunk)
    while size < cap and (chunk := await answer.content.read(cap - size)):
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)


def _to_evidence(failure: BaseException) -> str:
    """What broke, without the URL that aiohttp puts into some of its messages (it may carry a token)."""
    if isinstance(failure, aiohttp.ClientResponseError):
        return f"the answer is not HTTP: {failure.message}"[:200]
    if isinstance(failure, OSError):
        return to_sentence(failure)
    return type(failure).__name__


def to_result(failure: TransportFailure) -> SendResult:
    """What a send that ended without an answer means for the message."""
    if isinstance(failure, TargetRefused):
        return Rejected(Reason.target_refused, str(failure))
    if failure.sent:
        return Uncertain(str(failure))
    return Deferred(Reason.connect_failed, detail=str(failure))
