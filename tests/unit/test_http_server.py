"""The HTTP server takes no request whose head has no end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from starlette.types import Receive, Scope, Send

from tidings.web.server import HEAD_MAX, serve


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the number of octets in the body."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": str(size).encode()})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with serve(_echo, "127.0.0.1", 0, timedelta(seconds=1)) as url:
        yield int(url.rpartition(":")[2])


async def _ask(port: int, *pieces: bytes) -> bytes:
    """What the server answers; each piece is sent by itself, as long as the server listens."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return await reader.read()
    except ConnectionError:
        return b"cut"
    finally:
        writer.transport.abort()


PIECES = [b"a" * 16_384] * (4 * HEAD_MAX // 16_384)


@pytest.mark.parametrize(
    "beginning",
    [
        b"GET /",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: ",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Trailer: ",
    ],
    ids=["path", "field", "trailer"],
)
async def test_a_head_without_end_is_cut_off(port: int, beginning: bytes) -> None:
    answer = await _ask(port, beginning, *PIECES)
    assert answer == b"cut" or answer.startswith(b"HTTP/1.1 400 "), answer


async def test_bodies_are_the_business_of_the_application(port: int) -> None:
    told = b"\r\n%d\r\n" % sum(map(len, PIECES))
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % sum(map(len, PIECES))
    assert told in await _ask(port, head, *PIECES)
    chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in PIECES]
    assert told in await _ask(port, chunked, *chunks, b"0\r\n\r\n")
