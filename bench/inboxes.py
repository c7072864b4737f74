"""A thousand live inboxes, as cheap as a client can be: one protocol object per stream, which notes when items come."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, cast

import msgspec

_ITEM: Final = re.compile(rb"event: item\nid: \d+\ndata: (\{[^\n]*\})\n\n")


class _Item(msgspec.Struct):
    id: str
    created_at: datetime


_decode: Final = msgspec.json.Decoder(_Item).decode


class Told(msgspec.Struct, frozen=True):
    """An item that came over a stream."""

    id: str
    stored_at: float
    """Seconds since 1970, when the transaction that stored it began."""
    told_at: float
    """The same clock, when it was read from the socket."""
    told_ns: int
    """The monotonic clock."""


class Inboxes:
    """Many open streams."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.ready = 0
        self._news = asyncio.Event()
        self._open: list[asyncio.Transport] = []

    async def open(self, port: int, tokens: Sequence[str]) -> None:
        """Open a stream for each token, and wait until each has said where it stands."""
        loop = asyncio.get_running_loop()
        for token in tokens:
            transport, _ = await loop.create_connection(lambda token=token: _Stream(self, token), "127.0.0.1", port)  # type: ignore[misc]  # a default binds the loop's variable
            self._open.append(transport)
        async with asyncio.timeout(30):
            while self.ready < len(tokens):
                await self._wait()

    async def take(self, n: int) -> list[Told]:
        """The next `n` items."""
        async with asyncio.timeout(30):
            while len(self.told) < n:
                await self._wait()
        told, self.told = self.told, []
        return told

    async def _wait(self) -> None:
        self._news.clear()
        await self._news.wait()

    def close(self) -> None:
        """Close all."""
        for transport in self._open:
            transport.close()

    def heard(self) -> None:
        """Something came."""
        self._news.set()


class _Stream(asyncio.Protocol):
    def __init__(self, inboxes: Inboxes, token: str) -> None:
        self._inboxes = inboxes
        self._token = token
        self._buffer = b""
        self._greeted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        request = f"GET /api/v1/inbox/stream HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {self._token}\r\n\r\n"
        cast(Any, transport).write(request.encode())

    def data_received(self, data: bytes) -> None:
        now, now_ns = time.time(), time.monotonic_ns()
        self._buffer += data
        if not self._greeted and b"event: counts" in self._buffer:
            self._greeted = True
            self._inboxes.ready += 1
        end = 0
        for found in _ITEM.finditer(self._buffer):
            item = _decode(found[1])
            self._inboxes.told.append(Told(item.id, item.created_at.timestamp(), now, now_ns))
            end = found.end()
        self._buffer = self._buffer[end:]
        self._inboxes.heard()
