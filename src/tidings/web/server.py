"""The HTTP server: uvicorn, bounded where it is not, and stopped by us.

Workers serve their health with it as well, so it knows nothing of the web application.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from tidings.errors import SettingsError

HEAD_MAX: Final = 64 * 1024
"""Octets of a request's line and header fields."""

WEBSOCKET_MAX: Final = 16 * 1024
"""Octets of a message that comes over a WebSocket: commands are short."""


class _Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, with a bound on what is kept of a request before the application sees it: the parser gathers
    head and trailers of any length, from anybody."""

    _gathered = 0
    """Octets since the last that were passed on."""

    def data_received(self, data: bytes) -> None:
        self._gathered += len(data)
        before = self._gathered
        super().data_received(data)
        # Looked at after parsing: the octets that end a head may bring a body of any length with them.
        if before == self._gathered > HEAD_MAX and not self.transport.is_closing():
            self.send_400_response(f"The head of a request has at most {HEAD_MAX} octets.")

    def on_headers_complete(self) -> None:
        self._gathered = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._gathered = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._gathered = 0
        super().on_message_complete()


class _WebSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, which takes an answer instead of the handshake for what it is."""

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # else it logs an error: the application had not completed one


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: the composition root decides when it stops."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@contextlib.asynccontextmanager
async def serve(
    app: ASGIApp, host: str, port: int, grace: timedelta, *, draining: asyncio.Event | None = None
) -> AsyncIterator[str]:
    """Serve an ASGI application; gives its URL.

    Args:
        draining: is set when the server stops: what does not end by itself (live streams) ends then.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol by name: asyncio switches off Nagle only where it is said, and each answer would wait 40 ms without.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws=_WebSocket,
        ws_max_size=WEBSOCKET_MAX,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=2048,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, int(grace.total_seconds() * 0.8)),
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        while not server.started:
            await asyncio.sleep(0.01)
            if task.done():
                task.result()
                raise SettingsError(f"the HTTP server on {host}:{port} did not start")
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        if draining is not None:
            draining.set()
        await task
        listening.close()
