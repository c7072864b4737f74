"""Live streams of an inbox on the wire: server-sent events, and a WebSocket that takes commands as well.

Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) are written by hand, as a plain
response: the framework's own would change the version of our OpenAPI document, and would not know when to stop.

    event: item          a new item, whole; `update`: one that changed, whole; `counts`: after each batch of them
    id: 42               where the stream stands; comes back as `Last-Event-ID`
    data: {…}

The WebSocket says the same as `{"event": …, "id": …, "data": …}` and takes `{"read": ["dlv_…"]}` for every mark.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import structlog
from fastapi import APIRouter, Header, Query, Response, WebSocket
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from tidings import ids
from tidings.errors import FieldError, Invalid
from tidings.flow.inbox import Mark
from tidings.web.deps import Deps, Given
from tidings.web.edge import ClientGone, read_headers
from tidings.web.inbox.door import PATH, SUBPROTOCOL, AsUser, Door
from tidings.web.inbox.live import End, Live, Stream, Told
from tidings.web.problems import to_problem, to_response

router = APIRouter(prefix="/inbox", tags=["inbox"])
_log = structlog.get_logger(__name__)

SOCKET: Final = f"{PATH}/socket"
"""Where the WebSocket is."""
RETRY_MS: Final = (1_000, 4_000)
"""When a client shall connect again, drawn anew for each, so that those of a stopped process do not come as one."""
COMMAND_MAX: Final = 16 * 1024
"""Octets of a message from a client."""
_IDS_MAX: Final = 100
"""Items that one command marks."""
_COMMANDS_PER_SECOND: Final = 20.0
_BURST: Final = 60.0
_SEQ_DIGITS: Final = 18

_encode: Final = msgspec.json.Encoder().encode
_decode_command: Final = msgspec.json.Decoder(dict[Mark, list[str]]).decode

CLOSE_CODES: Final = {
    End.gone: 1000,
    End.draining: 1012,  # service restart
    End.expired: 1008,  # policy
    End.deleted: 1008,
    End.too_fast: 1008,
}
"""By why a stream ends: the WebSocket's close code (RFC 6455, section 7.4, and IANA's registry)."""


def parse_place(text: str | None) -> int | None:
    """Where a stream goes on; None: with what comes now.

    Raises:
        Invalid: it is no number of ours.
    """
    if text is None or not text.strip():
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= _SEQ_DIGITS):
        raise Invalid(errors=[FieldError("must be the id of an event of this stream", parameter="after")])
    return int(text)


def _events(told: Told) -> Iterator[tuple[str, int, Any]]:
    for name, item in told.items:
        yield name, item.changed_seq, item
    counts = told.counts
    yield "counts", told.after, {"total": counts.total, "unseen": counts.unseen, "unread": counts.unread}


# ---------------------------------------------------------------- server-sent events


class EventStream(Response):
    """The answer that does not end by itself."""

    media_type = "text/event-stream"

    def __init__(self, live: Live, stream: Stream, retry_ms: int) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._live = live
        self._stream = stream
        self._retry_ms = retry_ms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(self._watch(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._write(send, f"retry: {self._retry_ms}\n\n".encode())
            while not isinstance(told := await self._live.next(self._stream), End):
                await self._write(send, b":\n\n" if told is None else _to_events(told))
            if told is not End.gone:
                await self._write(send, f": {told.value}\n\n".encode(), more=False)
        finally:
            self._live.close(self._stream)
            watch.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._live.end(self._stream, End.gone)

    async def _write(self, send: Send, data: bytes, *, more: bool = True) -> None:
        try:
            async with asyncio.timeout(self._live.send_max):
                await send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError:
            raise ClientGone from None


def _to_events(told: Told) -> bytes:
    return b"".join(
        b"event: %b\nid: %d\ndata: %b\n\n" % (name.encode(), number, _encode(data))
        for name, number, data in _events(told)
    )


_STREAM_TOLD: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Events: `item`, `update` (both with the whole item) and `counts`; a comment every 15 s.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.get("/stream", response_class=Response, responses=_STREAM_TOLD)
async def stream_inbox(
    deps: Given,
    user: AsUser,
    after: str | None = Query(
        default=None, description="Tell what changed after this number; without it, what changes from now on."
    ),
    last_event_id: str | None = Header(default=None, description="The same, as browsers say it when they come back."),
) -> Response:
    """What happens in the inbox, as server-sent events."""
    stream = deps.live.open(user, parse_place(last_event_id or after))
    return EventStream(deps.live, stream, deps.clock.random.randint(*RETRY_MS))


# ---------------------------------------------------------------- WebSocket


@router.websocket("/socket")
async def open_socket(websocket: WebSocket) -> None:
    """What happens in the inbox, and commands that mark items."""
    deps: Deps = websocket.app.state.deps
    try:
        headers = read_headers(websocket.scope)
        subprotocols = websocket.scope["subprotocols"]
        user = await Door(deps.tokens, deps.access).authenticate_socket(headers, subprotocols)
        stream = deps.live.open(user, parse_place(websocket.query_params.get("after")))
    except Exception as error:
        status, head, body = to_response(to_problem(error))
        await websocket.send_denial_response(_Denial(status, head, body))
        return
    began, why = time.monotonic(), End.gone
    try:
        with contextlib.suppress(WebSocketDisconnect):  # it went away before it heard that it may stay
            await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in subprotocols else None)
            why = await _Socket(deps, websocket, stream).run()
    finally:
        deps.live.close(stream)
        seconds = round(time.monotonic() - began, 1)
        _log.info("inbox.socket", project=user.project_key, seconds=seconds, ended=why.name)


class _Denial(Response):
    """A problem instead of the handshake."""

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        super().__init__(body, status)
        self.raw_headers = headers


class _Socket:
    """One accepted WebSocket."""

    def __init__(self, deps: Deps, websocket: WebSocket, stream: Stream) -> None:
        self._deps = deps
        self._live = deps.live
        self._websocket = websocket
        self._stream = stream
        self._tokens = _BURST
        self._filled_at = deps.clock.monotonic()

    async def run(self) -> End:
        """Tells and listens until one side ends it."""
        listening = asyncio.create_task(self._listen())
        try:
            while not isinstance(told := await self._live.next(self._stream), End):
                for name, number, data in _events(told) if told is not None else ():
                    await self._send({"event": name, "id": number, "data": data})
            if told is not End.gone:
                await self._websocket.close(CLOSE_CODES[told], told.value)
            return told
        except (WebSocketDisconnect, TimeoutError):
            return End.gone
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening

    async def _send(self, message: dict[str, Any]) -> None:
        async with asyncio.timeout(self._live.send_max):
            await self._websocket.send_text(_encode(message).decode())

    async def _listen(self) -> None:
        try:
            while (message := await self._websocket.receive())["type"] == "websocket.receive":
                if not self._may_command():
                    self._live.end(self._stream, End.too_fast)
                    return
                try:
                    await self._obey(message.get("text"))
                except Exception as error:
                    await self._send({"event": "problem", "data": to_problem(error).to_dict()})
        except (WebSocketDisconnect, TimeoutError):
            pass
        self._live.end(self._stream, End.gone)

    def _may_command(self) -> bool:
        now = self._deps.clock.monotonic()
        self._tokens = min(_BURST, self._tokens + (now - self._filled_at) * _COMMANDS_PER_SECOND) - 1.0
        self._filled_at = now
        return self._tokens >= 0.0

    async def _obey(self, text: str | None) -> None:
        for mark, delivery_ids in parse_command(text).items():
            await self._deps.inbox.mark(self._stream.user.owner, delivery_ids, mark)


def parse_command(text: str | None) -> dict[Mark, list[Any]]:
    """The items to mark, by mark.

    Raises:
        Invalid: it is no command, or marks too many.
    """
    if text is None or len(text) > COMMAND_MAX:
        raise Invalid(f"A command is JSON text of at most {COMMAND_MAX // 1024} kB.")
    try:
        command = _decode_command(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        marks = ", ".join(Mark)
        raise Invalid(f'A command reads {{"read": ["dlv_…"]}}; instead of read it may say {marks}.') from None
    if sum(map(len, command.values())) > _IDS_MAX:
        raise Invalid(f"A command marks at most {_IDS_MAX} items.")
    parsed = {mark: [ids.parse_public(ids.DELIVERY, text) for text in listed] for mark, listed in command.items()}
    if any(id_ is None for listed in parsed.values() for id_ in listed):
        raise Invalid("An item's id begins with `dlv_` and 26 characters follow.")
    return parsed
