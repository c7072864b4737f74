"""HTTP/2 to one origin: many requests at a time over few connections (RFC 9113), with `h2` for the protocol.

As with `http.py`, what matters to the road is whether a request may have been processed: `failure.sent` says so. HTTP/2
often lets us know: a stream above the last one that a GOAWAY names, or one reset with REFUSED_STREAM, was not touched
(RFC 9113, 8.7) and is sent once more on another connection.

What leaves within one turn of the event loop goes out in one write. File order: a stream, a connection, the client.
This room knows HTTP/2; it knows no vendor and no retry policy.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings
from hpack import NeverIndexedHeaderTuple
from hyperframe.frame import Frame, GoAwayFrame
from multidict import CIMultiDict
from yarl import URL

from tidings.providers.guard import ConnectFailed, Guard, TargetRefused, TransportFailure, to_sentence
from tidings.providers.http import BrokenAnswer, HttpAnswer, TimedOut

STREAMS_MAX: Final = 250
"""Requests that one connection has open at most, whatever the server allows: `h2` walks all open streams for every new
one."""
_UNREAD_MAX: Final = 16 * 1024 * 1024
"""Octets that may wait for a server that does not read them: more than all streams with the largest bodies."""
_LAST_STREAM: Final = 2**31 - 2 * STREAMS_MAX
"""Stream ids are not used twice, so a connection is given up before it runs out of them."""

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case. `NeverIndexedHeaderTuple` keeps one out of the compression tables."""


class _Protocol(H2Connection):
    """`h2` takes a GOAWAY for the end of everything and refuses what comes after it. But streams that the server had
    begun are still answered (RFC 9113, 6.8), so only the event is kept."""

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        event = ConnectionTerminated()
        event.error_code = frame.error_code
        event.last_stream_id = frame.last_stream_id
        event.additional_data = frame.additional_data or None
        return [], [event]


class _Stream:
    """One request on its way and what has come of its answer."""

    __slots__ = ("answer", "body", "cap", "chunks", "complete", "headers", "id", "sent", "size", "status")

    def __init__(self, id_: int, body: bytes, cap: int, answer: asyncio.Future[HttpAnswer]) -> None:
        self.id = id_
        self.body = body
        """What of it has not been framed yet."""
        self.cap = cap
        self.answer = answer
        self.complete = False
        """All of it is framed."""
        self.sent = False
        """All of it was handed to the transport; before that, the server cannot have processed it."""
        self.status = 0
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.chunks: list[bytes] = []
        self.size = 0


class _Connection(asyncio.Protocol):
    """One open connection.

    Args:
        changed: is called when room may have become free, and when the connection has ended.
    """

    def __init__(
        self, changed: Callable[[], None], *, ping_after: float, ping_timeout: float, idle_after: float
    ) -> None:
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the server has said how many streams it allows."""
        self.answered = False
        """At least one answer has come."""
        self.lost: str | None = None
        """Why no connection is there any more."""
        self.streams: dict[int, _Stream] = {}
        self._changed = changed
        self._ping_after = ping_after
        self._ping_timeout = ping_timeout
        self._idle_after = idle_after
        self._loop = asyncio.get_running_loop()
        self._h2 = _Protocol(
            H2Configuration(client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False)
        )
        # The server may send nothing that was not asked for.
        self._h2.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.MAX_HEADER_LIST_SIZE: H2Connection.DEFAULT_MAX_HEADER_LIST_SIZE,
            },
        )
        self._transport: asyncio.Transport | None = None
        self._limit = 0
        self._leaving = False
        """No new streams; the open ones end."""
        self._paused = False
        self._blocked: dict[int, _Stream] = {}
        """Streams whose body waits for the server to take more (flow control)."""
        self._unsent: list[_Stream] = []
        self._flush_is_due = False
        self._received_at = self._used_at = self._loop.time()
        self._pinged = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def usable(self) -> bool:
        return self.lost is None and not self._leaving

    @property
    def room(self) -> int:
        """How many streams may be opened now."""
        if self.lost is not None or self._leaving or self._paused:
            return 0
        return max(0, self._limit - len(self.streams))

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._h2.initiate_connection()
        self._flush()
        self._timer = self._loop.call_later(self._ping_after, self._watch)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._changed()

    def data_received(self, data: bytes) -> None:
        self._received_at = self._loop.time()
        self._pinged = False
        try:
            events = self._h2.receive_data(data)
        except H2Error as failure:
            self._flush()  # tells the server what was wrong
            return self.fail(f"what the server says is not HTTP/2 ({type(failure).__name__})")
        for event in events:
            self._handle(event)
        self._flush()
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(f"connection lost ({to_sentence(exc)})" if exc else "connection closed by the server")

    # requests

    def start(self, headers: Headers, body: bytes, cap: int) -> _Stream:
        """Open a stream; only where there is `room`."""
        id_ = self._h2.get_next_available_stream_id()
        self._h2.send_headers(id_, headers, end_stream=not body)
        stream = _Stream(id_, body, cap, self._loop.create_future())
        self.streams[id_] = stream
        self._used_at = self._loop.time()
        if id_ > _LAST_STREAM:
            self._leaving = True
        self._frame_body(stream)
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)
        return stream

    def cancel(self, stream: _Stream) -> None:
        """The answer is not waited for any more."""
        if self.streams.pop(stream.id, None) is not None:
            self._reset(stream)
            self._flush()
            self._settle_down()

    def _frame_body(self, stream: _Stream) -> None:
        h2 = self._h2
        while stream.body:
            window = min(h2.local_flow_control_window(stream.id), h2.max_outbound_frame_size)
            if window <= 0:
                self._blocked[stream.id] = stream
                return
            chunk, stream.body = stream.body[:window], stream.body[window:]
            h2.send_data(stream.id, chunk, end_stream=not stream.body)
        self._blocked.pop(stream.id, None)
        stream.complete = True
        self._unsent.append(stream)

    def _flush(self) -> None:
        self._flush_is_due = False
        if self.lost is not None or self._transport is None:
            return
        if data := self._h2.data_to_send():
            self._transport.write(data)
            if self._transport.get_write_buffer_size() > _UNREAD_MAX:
                # It asks and asks and does not read what we answer.
                self.fail("the server does not read")
                return
        for stream in self._unsent:
            stream.sent = True
        self._unsent.clear()

    def _reset(self, stream: _Stream) -> None:
        self._blocked.pop(stream.id, None)
        try:
            self._h2.reset_stream(stream.id, ErrorCodes.CANCEL)
        except H2Error:
            return  # the server has closed it already

    # answers

    def _handle(self, event: Event) -> None:
        if isinstance(event, ResponseReceived):
            if (stream := self.streams.get(event.stream_id)) is not None:
                for name, value in event.headers:
                    if name == b":status":
                        stream.status = int(value) if value.isdigit() else 0
                    else:
                        stream.headers.add(_to_text(name), _to_text(value))
        elif isinstance(event, StreamEnded):
            if (stream := self.streams.get(event.stream_id)) is not None:
                self._finish(stream, reset=not stream.complete)
        elif isinstance(event, DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if (stream := self.streams.get(event.stream_id)) is not None:
                stream.chunks.append(event.data[: stream.cap - stream.size])
                stream.size += len(stream.chunks[-1])
                if stream.size >= stream.cap:
                    self._finish(stream, reset=True)
        elif isinstance(event, StreamReset):
            if (stream := self.streams.pop(event.stream_id, None)) is not None:
                self._blocked.pop(stream.id, None)
                touched = stream.sent and event.error_code != ErrorCodes.REFUSED_STREAM
                _fail(stream, f"the server reset the stream ({_to_name(event.error_code)})", sent=touched)
                self._settle_down()
        elif isinstance(event, WindowUpdated | RemoteSettingsChanged):
            if isinstance(event, RemoteSettingsChanged):
                self._limit = min(self._h2.remote_settings.max_concurrent_streams, STREAMS_MAX)
                if not self.ready.done():
                    self.ready.set_result(None)
                self._changed()
            for stream in list(self._blocked.values()):
                self._frame_body(stream)
        elif isinstance(event, ConnectionTerminated):
            self._leave(event)

    def _finish(self, stream: _Stream, *, reset: bool) -> None:
        del self.streams[stream.id]
        if reset:
            self._reset(stream)
        self.answered = True
        if stream.status == 0:
            _fail(stream, "the answer has no status", sent=stream.sent)
        elif not stream.answer.done():
            stream.answer.set_result(HttpAnswer(stream.status, stream.headers, b"".join(stream.chunks)))
        self._settle_down()

    def _leave(self, event: ConnectionTerminated) -> None:
        """GOAWAY: what the server has not touched is free to go elsewhere, the rest may still be answered."""
        self._leaving = True
        said = f": {event.additional_data[:200].decode('utf-8', 'replace')}" if event.additional_data else ""
        why = f"the server goes away ({_to_name(event.error_code)}{said})"
        last = event.last_stream_id if event.last_stream_id is not None else 0
        for stream in [stream for stream in self.streams.values() if stream.id > last]:
            del self.streams[stream.id]
            self._reset(stream)
            _fail(stream, why, sent=False)
        self._settle_down()

    def _settle_down(self) -> None:
        if self._leaving and not self.streams:
            self.close()
        self._changed()

    # the end

    def _watch(self) -> None:
        """Ask for a sign of life where none came for some time; end what is dead, and what nobody has used for long."""
        now = self._loop.time()
        if self._pinged:
            return self.fail(f"no answer to a ping within {self._ping_timeout:g} s")
        if not self.streams and now - self._used_at >= self._idle_after:
            return self.close()
        wait = self._received_at + self._ping_after - now
        if wait <= 0:
            self._pinged = True
            self._h2.ping(b"tidings.")
            self._flush()
            wait = self._ping_timeout
        self._timer = self._loop.call_later(wait, self._watch)
        return None

    def close(self) -> None:
        """Say goodbye. Streams that are still open end without an answer."""
        if self.lost is None:
            self._h2.close_connection()
            self._flush()
            self._end("the connection was closed", abort=False)

    def fail(self, why: str) -> None:
        """The connection is of no use any more."""
        if self.lost is None:
            self._end(why, abort=True)

    def _end(self, why: str, *, abort: bool) -> None:
        self.lost = why
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            if abort:
                self._transport.abort()
            else:
                self._transport.close()
        if not self.ready.done():
            self.ready.set_exception(ConnectFailed(why))
            self.ready.exception()  # it may be that nobody waits
        for stream in self.streams.values():
            _fail(stream, why, sent=stream.sent)
        self.streams.clear()
        self._blocked.clear()
        self._changed()


def _fail(stream: _Stream, why: str, *, sent: bool) -> None:
    if not stream.answer.done():
        stream.answer.set_exception(BrokenAnswer(why, sent=sent))
        stream.answer.exception()  # its request may have been cancelled meanwhile


def _to_text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


def _to_name(code: ErrorCodes | int | None) -> str:
    try:
        return ErrorCodes(code or 0).name
    except ValueError:
        return f"error {code}"


class Http2Client:
    """Requests to one origin. Connections are opened when they are needed, and further ones, up to `connections`, when
    all streams that the server allows are in use.

    Args:
        base_url: scheme, host and port. `http` (with prior knowledge, RFC 9113, 3.3) only where an operator opened the
            network.
        make_tls: builds the TLS context, once, in a thread.
        ping_after: seconds of silence after which the server is asked for a sign of life.
        ping_timeout: seconds that it has for giving one.
        idle_after: seconds without a request after which a connection is closed.
    """

    def __init__(
        self,
        base_url: str,
        guard: Guard,
        make_tls: Callable[[], ssl.SSLContext],
        *,
        connections: int = 3,
        ping_after: float = 30.0,
        ping_timeout: float = 10.0,
        idle_after: float = 3600.0,
    ) -> None:
        url = URL(base_url)
        self._secure = url.scheme == "https"
        self._host = url.host or ""
        self._port = url.port or 443
        self._fixed = (
            (b":method", b"POST"),
            (b":scheme", url.scheme.encode()),
            (b":authority", url.raw_authority.encode()),
        )
        self._guard = guard
        self._make_tls = make_tls
        self._tls: ssl.SSLContext | None = None
        self._most = connections
        self._timing = {"ping_after": ping_after, "ping_timeout": ping_timeout, "idle_after": idle_after}
        self._connections: list[_Connection] = []
        self._opening: asyncio.Task[None] | None = None
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closed = False

    async def post(self, path: str, headers: Headers, body: bytes, *, timeout: float, read_cap: int) -> HttpAnswer:
        """Send a POST, and read at most `read_cap` octets of the answer's body, all within `timeout` seconds.

        Args:
            path: ASCII. It is kept out of the compression tables: no two requests share one.

        Raises:
            TransportFailure: one of ConnectFailed, TimedOut, BrokenAnswer, TargetRefused; nothing else.
        """
        all_headers = [*self._fixed, NeverIndexedHeaderTuple(b":path", path.encode()), *headers]
        connection: _Connection | None = None
        stream: _Stream | None = None
        again = False
        try:
            async with asyncio.timeout(timeout):
                while True:
                    # Who comes later does not overtake those who wait.
                    connection = None if self._waiters else self._pick()
                    connection = connection or await self._wait_for_room(timeout)
                    stream = connection.start(all_headers, body, read_cap)
                    try:
                        return await stream.answer
                    except BrokenAnswer as failure:
                        if failure.sent or again or self._closed:
                            raise
                    again, stream = True, None
        except TimeoutError:
            if stream is None:
                raise TimedOut(f"no free connection within {timeout:g} s", sent=False) from None
            raise TimedOut(f"no answer within {timeout:g} s", sent=stream.sent) from None
        finally:
            if stream is not None and connection is not None:
                connection.cancel(stream)  # does nothing where it has ended

    # connections

    def _pick(self) -> _Connection | None:
        for connection in self._connections:
            if connection.room:
                return connection
        return None

    async def _wait_for_room(self, timeout: float) -> _Connection:
        again = False
        while True:
            if self._closed:
                raise ConnectFailed("the account was closed")
            self._grow(timeout)
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if again:
                self._waiters.appendleft(waiter)
            else:
                self._waiters.append(waiter)
            self._wake()
            try:
                await waiter
            except BaseException:
                if waiter.done() and not waiter.cancelled():
                    self._wake()  # it was our turn: somebody else's now
                elif waiter in self._waiters:
                    self._waiters.remove(waiter)
                raise
            if (connection := self._pick()) is not None:
                return connection
            again = True

    def _grow(self, timeout: float) -> None:
        """Open one connection more, if the limit allows it. A server may allow one stream until the first request has
        proved who we are, as Apple's does; that is no reason for a second connection."""
        if (
            self._opening is None
            and len(self._connections) < self._most
            and all(connection.answered for connection in self._connections)
        ):
            self._opening = asyncio.get_running_loop().create_task(self._open(timeout))

    async def _open(self, timeout: float) -> None:
        failure: TransportFailure | None = None
        try:
            # Half the time, so that no connection is told apart from no answer.
            connection = await self._connect(timeout / 2)
            self._connections.append(connection)
        except TransportFailure as caught:
            failure = caught
        finally:
            self._opening = None
        if failure is not None and not self._connections:
            self._refuse_waiters(failure)
        self._wake()

    def _refuse_waiters(self, failure: TransportFailure) -> None:
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(failure)
                waiter.exception()  # it may have been cancelled meanwhile

    async def _connect(self, timeout: float) -> _Connection:
        """A connection that the server has greeted.

        Raises:
            TransportFailure: there is none.
        """
        if self._secure:
            self._tls = self._tls or await asyncio.to_thread(self._make_tls)
        elif not await self._guard.permits_plain(self._host, self._port):
            raise TargetRefused("the API's URL has to start with https://")
        loop = asyncio.get_running_loop()
        connection = _Connection(self._changed, **self._timing)
        try:
            async with asyncio.timeout(timeout):
                sock = await self._guard.connect(self._host, self._port, timeout)
                transport, _ = await loop.create_connection(
                    lambda: connection,
                    sock=sock,
                    ssl=self._tls if self._secure else None,
                    server_hostname=self._host if self._secure else None,
                )
                tls = transport.get_extra_info("ssl_object")
                if tls is not None and tls.selected_alpn_protocol() != "h2":
                    raise ConnectFailed("the server does not speak HTTP/2")
                await connection.ready
        except BaseException as failure:
            connection.fail("given up while connecting")
            if isinstance(failure, TimeoutError):
                raise ConnectFailed(f"no HTTP/2 connection within {timeout:g} s") from None
            if isinstance(failure, OSError):  # TLS too
                raise ConnectFailed(to_sentence(failure)) from None
            raise
        return connection

    def _changed(self) -> None:
        self._connections = [connection for connection in self._connections if connection.lost is None]
        if self._waiters:
            self._wake()

    def _wake(self) -> None:
        """Let as many go on as there is room for; where there is no connection left at all, one that opens one."""
        room = sum(connection.room for connection in self._connections)
        if not self._connections and self._opening is None:
            room = 1
        while room > 0 and self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                room -= 1

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        for connection in list(self._connections):
            connection.close()
        self._refuse_waiters(ConnectFailed("the account was closed"))
