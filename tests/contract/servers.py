"""Vendors played by small, scripted servers on real sockets, so that every fault is the network's own."""

from __future__ import annotations

import asyncio
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Self


class Act(Enum):
    """What a server does instead of answering."""

    hang = auto()  # keeps the connection and says nothing
    stall = auto()  # does not even read any more
    close = auto()
    reset = auto()


class Vendor(ABC):
    """A server on a free port of the loopback interface."""

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        self.reached = asyncio.Event()
        """Set when the point where `Act.hang` hangs was reached."""
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._all_closed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open.add(writer)
        self._all_closed.clear()
        self.connections += 1
        try:
            await self.talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._open.discard(writer)
            self._tasks.discard(task)
            if not self._open:
                self._all_closed.set()

    async def wait_until_nobody_is_connected(self) -> None:
        if self._open:
            await asyncio.wait_for(self._all_closed.wait(), 5)

    @abstractmethod
    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None: ...

    async def perform(self, act: Act, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Do it; never returns to the script."""
        self.reached.set()
        if act is Act.hang:
            await reader.read()  # until the other side gives up
        if act is Act.stall:
            await asyncio.Event().wait()
        if act is Act.reset:
            # Lingering for no time makes the kernel send RST.
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        raise ConnectionResetError


@dataclass
class HttpRequest:
    method: str
    target: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


def http_answer(status: int, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


class HttpVendor(Vendor):
    """Gives one answer after the other; the last one again and again. Keeps connections."""

    def __init__(self, *script: bytes | Act) -> None:
        super().__init__()
        self.script = list(script) or [http_answer(200)]
        self.requests: list[HttpRequest] = []

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head[:-4].split("\r\n")
            method, target, _ = first.split(" ")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.requests.append(HttpRequest(method, target, headers, body))
            answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            if isinstance(answer, Act):
                await self.perform(answer, reader, writer)
            else:
                writer.write(answer)
                await writer.drain()


@dataclass
class SmtpScript:
    """What an SMTP server says. A list gives one answer after the other; the last one again and again."""

    greeting: bytes | Act = b"220 fake ESMTP\r\n"
    extensions: tuple[str, ...] = ("PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE 1000000")
    mail: list[bytes | Act] = field(default_factory=lambda: [b"250 2.1.0 ok\r\n"])
    rcpt: list[bytes | Act] = field(default_factory=lambda: [b"250 2.1.5 ok\r\n"])
    data: list[bytes | Act] = field(default_factory=lambda: [b"354 go ahead\r\n"])
    body: list[bytes | Act] = field(default_factory=lambda: [b"250 2.0.0 queued as 4711\r\n"])
    inside_data: Act | None = None
    """What to do after the first thousand octets of the mail, instead of reading on."""
    close_after_mail: bool = False
    """Close the connection in silence after each mail that was taken, as servers do after some idle time."""


class SmtpVendor(Vendor):
    """Speaks SMTP by the script, and never takes a command for the text of a mail or the other way round."""

    def __init__(self, script: SmtpScript | None = None) -> None:
        super().__init__()
        self.script = script or SmtpScript()
        self.mails: list[bytes] = []
        """Taken mails, dots unstuffed, with their last CRLF."""
        self.commands: list[bytes] = []

    async def say(
        self, answers: list[bytes | Act], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Act):
            await self.perform(answer, reader, writer)
        assert isinstance(answer, bytes)
        writer.write(answer)
        await writer.drain()
        if answer.startswith(b"421"):
            writer.close()
            raise ConnectionResetError
        return answer

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = self.script
        await self.say([script.greeting], reader, writer)
        sender_ok = rcpt_ok = False
        while line := await reader.readline():
            self.commands.append(line.rstrip())
            verb = line[:4].upper()
            if verb in (b"EHLO", b"HELO"):
                lines = ["fake", *(script.extensions if verb == b"EHLO" else ())]
                marked = [f"250-{text}\r\n" for text in lines[:-1]] + [f"250 {lines[-1]}\r\n"]
                writer.write("".join(marked).encode())
            elif verb == b"MAIL":
                sender_ok = (await self.say(script.mail, reader, writer)).startswith(b"2")
            elif verb == b"RCPT":
                if not sender_ok:
                    writer.write(b"503 5.5.1 MAIL first\r\n")
                else:
                    rcpt_ok = (await self.say(script.rcpt, reader, writer)).startswith(b"2")
            elif verb == b"DATA":
                if not rcpt_ok and script.data == [b"354 go ahead\r\n"]:
                    writer.write(b"503 5.5.1 RCPT first\r\n")
                elif (await self.say(script.data, reader, writer)).startswith(b"354"):
                    await self.take_mail(reader, writer, rcpt_ok)
                    sender_ok = rcpt_ok = False
            elif verb == b"RSET":
                sender_ok = rcpt_ok = False
                writer.write(b"250 2.0.0 ok\r\n")
            elif verb == b"QUIT":
                writer.write(b"221 2.0.0 bye\r\n")
                return
            else:
                writer.write(b"502 5.5.1 what?\r\n")

    async def take_mail(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rcpt_ok: bool) -> None:
        script = self.script
        if script.inside_data is not None:
            await reader.readexactly(1000)
            await self.perform(script.inside_data, reader, writer)
        lines = []
        while (line := await reader.readline()) != b".\r\n":
            if not line:
                raise ConnectionResetError
            lines.append(line[1:] if line.startswith(b".") else line)
        if not rcpt_ok:
            writer.write(b"554 5.5.1 no valid recipients\r\n")
            return
        if (await self.say(script.body, reader, writer)).startswith(b"250"):
            self.mails.append(b"".join(lines))
        if script.close_after_mail:
            writer.close()
            raise ConnectionResetError


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
