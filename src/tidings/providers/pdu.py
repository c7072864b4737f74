"""SMPP 3.4 on the wire: protocol data units, and a session that keeps requests of both sides apart.

https://smpp.org/SMPP_v3_4_Issue1_2.pdf; numbers in parentheses are its sections.

This room knows the protocol's form; it knows no configuration, no meaning of a status and no receipt.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import Awaitable, Callable
from datetime import timedelta
from enum import IntEnum
from typing import Final

import msgspec

from tidings.providers.guard import to_sentence

_PDU_MAX: Final = 70_000  # octets; a message_payload holds up to 65,535
_HEADER: Final = struct.Struct("!IIII")  # length, command, status, sequence number


class Command(IntEnum):
    """command_id; an answer's has the highest bit set."""

    generic_nack = 0x80000000
    bind_transmitter = 0x02
    bind_transceiver = 0x09
    submit_sm = 0x04
    deliver_sm = 0x05
    enquire_link = 0x15
    unbind = 0x06


_RESPONSE: Final = 0x80000000
_TAKING_MAX: Final = 100  # deliver_sm that may be worked on at a time
TRY_AGAIN: Final = 0x64  # ESME_RX_T_APPN: the centre keeps it and delivers it again
UDHI: Final = 0x40  # esm_class: the text begins with a user data header
TAG_RECEIPTED_ID: Final = 0x001E
TAG_PAYLOAD: Final = 0x0424
TAG_STATE: Final = 0x0427
_UNKNOWN_COMMAND: Final = 0x03  # ESME_RINVCMDID


class Broken(Exception):
    """What came is not SMPP, or the session has ended. The message says which."""


class Delivered(msgspec.Struct, frozen=True):
    """A deliver_sm: a receipt, or what somebody wrote."""

    source: str
    destination: str
    esm_class: int
    data_coding: int
    text: bytes
    options: dict[int, bytes]


def to_c_string(text: str) -> bytes:
    """An octet string with its end mark."""
    return text.encode("ascii") + b"\0"


def to_validity(left: timedelta) -> str:
    """How long from now a message is of use (7.1.1, relative), from a second to 63 days."""
    seconds = min(max(int(left.total_seconds()), 1), 63 * 86_400)
    months, days = divmod(seconds // 86_400, 30)
    hours, minutes = divmod(seconds % 86_400 // 60, 60)
    return f"00{months:02d}{days:02d}{hours:02d}{minutes:02d}{seconds % 60:02d}000R"


def parse_delivered(body: bytes) -> Delivered:
    """The body of a deliver_sm (4.6.1).

    Raises:
        ValueError: it is none.
    """
    try:
        _, rest = body.split(b"\0", 1)  # service_type
        source, rest = rest[2:].split(b"\0", 1)
        destination, rest = rest[2:].split(b"\0", 1)
        esm_class = rest[0]
        _, _, rest = rest[3:].split(b"\0", 2)  # schedule_delivery_time, validity_period
        _, _, data_coding, _, length = rest[:5]
        text, rest = rest[5 : 5 + length], rest[5 + length :]
        options = {}
        while len(rest) >= 4:
            tag, size = struct.unpack_from("!HH", rest)
            options[tag], rest = rest[4 : 4 + size], rest[4 + size :]
    except IndexError:
        raise ValueError("a deliver_sm that ends too early") from None
    text = text or options.pop(TAG_PAYLOAD, b"")
    return Delivered(source.decode("latin-1"), destination.decode("latin-1"), esm_class, data_coding, text, options)


class Session(asyncio.Protocol):
    """A connection to the centre. Requests may be in flight at the same time, in both directions.

    Args:
        take: what to do with a deliver_sm; answers with the command_status to give.
    """

    def __init__(self, take: Callable[[bytes], Awaitable[int]], enquire_seconds: float) -> None:
        self.lost: str | None = None
        """Why the session ended; None while it lives."""
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._take = take
        self._enquire_seconds = enquire_seconds
        self._received = bytearray()
        self._pending: dict[int, asyncio.Future[tuple[int, bytes]]] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard = self._probing = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._timer = self._loop.call_later(self._enquire_seconds, self._tick)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        self._received += data
        while len(self._received) >= _HEADER.size and self.lost is None:
            length, command, status, number = _HEADER.unpack_from(self._received)
            if not _HEADER.size <= length <= _PDU_MAX:
                return self.abort("the centre's answer is not SMPP")
            if len(self._received) < length:
                break
            body = bytes(self._received[_HEADER.size : length])
            del self._received[:length]
            self._dispatch(command, status, number, body)
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.abort(f"connection lost ({to_sentence(exc)})" if exc else "connection closed by the centre")

    # what comes

    def _dispatch(self, command: int, status: int, number: int, body: bytes) -> None:
        if command & _RESPONSE:
            waiting = self._pending.pop(number, None)  # none: somebody has stopped waiting, or a probe's
            if waiting is not None and not waiting.done():
                nack = command == Command.generic_nack and not status
                waiting.set_result((_UNKNOWN_COMMAND if nack else status, body))
        elif command == Command.deliver_sm:
            if len(self._tasks) >= _TAKING_MAX:
                # Not by reading more slowly: answers to our own requests come on the same line.
                return self._write(command | _RESPONSE, TRY_AGAIN, number, b"\0")
            task = self._loop.create_task(self._answer(number, body))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif command == Command.enquire_link:
            self._write(command | _RESPONSE, 0, number)
        elif command == Command.unbind:
            self._write(command | _RESPONSE, 0, number)
            self.abort("the centre ended the session", flush=True)
        else:
            self._write(Command.generic_nack, _UNKNOWN_COMMAND, number)
        return None

    async def _answer(self, number: int, body: bytes) -> None:
        status = await self._take(body)
        if self.lost is None:
            self._write(Command.deliver_sm | _RESPONSE, status, number, b"\0")

    def _tick(self) -> None:
        """Every `enquire_seconds`: probe the link if nothing came, give it up if the probe was not answered."""
        if not self._heard and self._probing:
            return self.abort("the centre does not answer any more")
        self._probing = not self._heard
        if self._probing:
            self._write(Command.enquire_link, 0, self._next_number())
        self._heard = False
        self._timer = self._loop.call_later(self._enquire_seconds, self._tick)
        return None

    # what goes

    def _next_number(self) -> int:
        return next(self._numbers) % 0x7FFFFFFF + 1

    def _write(self, command: int, status: int, number: int, body: bytes = b"") -> None:
        self._transport.write(_HEADER.pack(_HEADER.size + len(body), command, status, number) + body)

    async def request(self, command: Command, body: bytes) -> tuple[int, bytes]:
        """Send one, and wait for the command_status and the body of its answer.

        Raises:
            Broken: none came, and none will.
        """
        if self.lost is not None:
            raise Broken(self.lost)
        number = self._next_number()
        waiting: asyncio.Future[tuple[int, bytes]] = self._loop.create_future()
        self._pending[number] = waiting
        self._write(command, 0, number, body)
        try:
            return await waiting
        finally:
            self._pending.pop(number, None)

    def abort(self, why: str, *, flush: bool = False) -> None:
        """End the session; whoever waits for an answer learns why."""
        if self.lost is not None:
            return
        self.lost = why
        self._timer.cancel()
        if flush:
            self._transport.close()
        else:
            self._transport.abort()
        for waiting in self._pending.values():
            if not waiting.done():
                waiting.set_exception(Broken(why))
        self._pending.clear()
        self.ended.set_result(None)

    def close(self) -> None:
        """Say goodbye without waiting for the answer."""
        if self.lost is None:
            self._write(Command.unbind, 0, self._next_number())
            self.abort("closed", flush=True)
