"""The load generator: one process that speaks HTTP/1.1 (or SMTP) straight on asyncio's protocols, to cost little.

    echo '{"kind": "closed", …}' | python -m bench.load

It reads one `Spec` as JSON from standard input, makes every byte it will send, does the load, and prints one `Outcome`.
Three kinds:

- `closed`: so many connections, each sends its next request when the last one was answered;
- `paced`: one request at a time, the next one after a random gap; remembers when each was sent and what was answered;
- `smtp`: so many connections that hand over mails as fast as the server takes them.

Times are `time.monotonic_ns()`, which all processes of one machine share.
"""

from __future__ import annotations

import asyncio
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import msgspec
import uvloop


class Spec(msgspec.Struct, kw_only=True):
    """What to do."""

    kind: Literal["closed", "paced", "smtp"]
    port: int
    path: str = "/"
    api_key: str = ""
    connections: int = 1
    requests: int
    """At most so many, …"""
    seconds: float = 600.0
    """… and none begins after so many seconds."""
    bodies: list[msgspec.Raw] = []
    """JSON values; requests take them in turn."""
    gap_ms: tuple[float, float] = (0.0, 0.0)
    """`paced`: shortest and longest gap between an answer and the next request."""
    seed: int = 1


class Outcome(msgspec.Struct, kw_only=True):
    """What happened."""

    requests: int
    """Answered with 2xx (250 for mails)."""
    errors: int
    first_error: str = ""
    began_ns: int
    ended_ns: int
    cpu_seconds: float
    """Of this process, from the first request to the last answer."""
    latencies_ms: list[float] = []
    """p50, p90, p99, the longest."""
    sent: list[tuple[int, str]] = []
    """`paced`: when each request left, and the `id` in its answer."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.ended_ns - self.began_ns) / 1e9


class HttpConnection(asyncio.Protocol):
    """Sends the next request when the last one is answered; understands answers with a Content-Length."""

    transport: asyncio.Transport

    def __init__(self, run: Run) -> None:
        self._run = run
        self._buffer = b""
        self._sent_ns = 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._run.fail("the connection was closed")
            self.done.set_result(None)

    def send(self) -> None:
        """Send the next request; without one left, finish."""
        request = self._run.next_request()
        if request is None:
            self.done.set_result(None)
            self.transport.close()
            return
        self._sent_ns = time.monotonic_ns()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer = self._buffer + data if self._buffer else data
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = buffer[:end].lower()
        at = head.find(b"content-length:")
        stop = head.find(b"\r\n", at)
        length = int(head[at + 15 : stop if stop >= 0 else end])
        if len(buffer) < end + 4 + length:
            return
        self._buffer = b""
        now = time.monotonic_ns()
        self._run.answered(buffer[9] == 0x32, buffer, end + 4, self._sent_ns, now)
        gap = self._run.gap()
        if gap is None:
            self.send()
        else:
            asyncio.get_running_loop().call_later(gap, self.send)


_MAIL_BODY = (
    b"From: Load <load@example.com>\r\nTo: ada@example.com\r\nSubject: Order A-1 is on its way\r\n"
    b"Message-ID: <load@example.com>\r\nMIME-Version: 1.0\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"
    + b"<p>Your order has left our house. Follow it on its way.</p>\r\n" * 30
    + b".\r\n"
)
_MAIL_ENVELOPE = b"MAIL FROM:<load@example.com>\r\nRCPT TO:<ada@example.com>\r\nDATA\r\n"


class SmtpConnection(asyncio.Protocol):
    """Envelope in one write, mail in the next: two round trips a mail, as the product does it."""

    transport: asyncio.Transport

    def __init__(self, run: Run) -> None:
        self._run = run
        self._lines = 0
        self._in_data = False
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._run.fail("the connection was closed")
            self.done.set_result(None)

    def send(self) -> None:
        """Send the next envelope."""
        if self._run.next_request() is None:
            self.done.set_result(None)
            self.transport.close()
            return
        self._sent_ns = time.monotonic_ns()
        self._lines = 0
        self.transport.write(_MAIL_ENVELOPE)

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"220"):
            return
        self._lines += data.count(b"\r\n")
        if self._in_data:
            self._in_data = False
            self._run.answered(data.startswith(b"250"), data, 0, self._sent_ns, time.monotonic_ns())
            self.send()
        elif self._lines >= 3:
            self._in_data = True
            self.transport.write(_MAIL_BODY)


class Run:
    """One load: hands out requests, takes answers."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._payloads = [_to_request(spec, bytes(body)) for body in spec.bodies] or [b""]
        self._left = spec.requests
        self._turn = 0
        self._until = 0.0
        self._latencies: list[int] = []
        self._sent: list[tuple[int, str]] = []
        self._errors = 0
        self._first_error = ""
        self._rng = random.Random(spec.seed)
        self._last_ns = 0

    def next_request(self) -> bytes | None:
        """The next request; None when there is none."""
        if self._left <= 0 or time.monotonic() > self._until:
            return None
        self._left -= 1
        self._turn += 1
        return self._payloads[self._turn % len(self._payloads)]

    def gap(self) -> float | None:
        """Seconds to wait before the next request; None: none."""
        return self._rng.uniform(*self._spec.gap_ms) / 1000 if self._spec.kind == "paced" else None

    def answered(self, good: bool, answer: bytes, body_at: int, sent_ns: int, now_ns: int) -> None:
        """Book an answer."""
        self._last_ns = now_ns
        if not good:
            self.fail(answer[:400].decode("latin-1"))
            return
        self._latencies.append(now_ns - sent_ns)
        if self._spec.kind == "paced":
            self._sent.append((sent_ns, str(msgspec.json.decode(answer[body_at:])["id"])))

    def fail(self, what: str) -> None:
        """Book an error."""
        self._errors += 1
        self._first_error = self._first_error or what

    async def go(self) -> Outcome:
        """Do it."""
        loop = asyncio.get_running_loop()
        factory: Callable[[], Any] = lambda: (SmtpConnection if self._spec.kind == "smtp" else HttpConnection)(self)  # noqa: E731 -- a typed factory
        made = [
            await loop.create_connection(factory, "127.0.0.1", self._spec.port) for _ in range(self._spec.connections)
        ]
        await asyncio.sleep(0.05)  # greetings
        self._until = time.monotonic() + self._spec.seconds
        cpu = _cpu()
        began = time.monotonic_ns()
        for _, connection in made:
            connection.send()
        await asyncio.gather(*(connection.done for _, connection in made))
        return Outcome(
            requests=len(self._latencies),
            errors=self._errors,
            first_error=self._first_error,
            began_ns=began,
            ended_ns=self._last_ns or time.monotonic_ns(),
            cpu_seconds=_cpu() - cpu,
            latencies_ms=list(_percentiles(self._latencies)),
            sent=self._sent,
        )


def _to_request(spec: Spec, body: bytes) -> bytes:
    return (
        f"POST {spec.path} HTTP/1.1\r\nHost: 127.0.0.1:{spec.port}\r\nAuthorization: Bearer {spec.api_key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def _percentiles(nanoseconds: list[int]) -> Iterator[float]:
    ordered = sorted(nanoseconds)
    if ordered:
        for part in (0.5, 0.9, 0.99, 1.0):
            yield ordered[min(len(ordered) - 1, int(part * len(ordered)))] / 1e6


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    spec = msgspec.json.decode(sys.stdin.buffer.read(), type=Spec)

    async def go() -> Outcome:
        return await Run(spec).go()

    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(go())))


if __name__ == "__main__":
    main()
