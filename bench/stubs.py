"""Receivers that do next to nothing: an HTTP sink and an SMTP sink, each one process, for benchmarks.

    python -m bench.stubs http --port 0 --latency-ms 50 --status 200
    python -m bench.stubs http --status 201 --body '{"sid": "SM{n}"}' --token-path /token
    python -m bench.stubs smtp --port 0

The first line of output is `{"port": …, "control_port": …}`. On the control port (for HTTP the same port):

    GET /stats      {"count", "first_ns", "last_ns", "connections", "errors", "in_flight"}
    GET /receipts   {"<id>": ns, …}   with --record: when each id (`webhook-id`, or the Message-ID) came first
    POST /reset     forgets everything

Times are `time.monotonic_ns()`, which all processes of one machine share. A receipt is counted when the request is
complete, before the simulated latency.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import time
from collections.abc import Callable
from typing import Final, cast

import httptools
import uvloop


class Tally:
    """What a sink has received."""

    def __init__(self, record: bool) -> None:
        self.record = record
        self.connections = 0
        self.in_flight = 0
        self.reset()

    def reset(self) -> None:
        self.count = 0
        self.errors = 0
        self.first_ns: int | None = None
        self.last_ns: int | None = None
        self.receipts: dict[str, int] = {}

    def add(self, id_: bytes | None) -> None:
        """Count one receipt, now."""
        now = time.monotonic_ns()
        self.count += 1
        self.last_ns = now
        if self.first_ns is None:
            self.first_ns = now
        if id_ is not None:
            self.receipts.setdefault(id_.decode("latin-1"), now)

    def to_answer(self, method: bytes, path: bytes) -> bytes | None:
        """The HTTP answer of the control port; None if it is no control request."""
        if method == b"GET" and path == b"/stats":
            names = ("count", "first_ns", "last_ns", "connections", "errors", "in_flight")
            return _to_http(200, json.dumps({name: getattr(self, name) for name in names}).encode())
        if method == b"GET" and path == b"/receipts":
            return _to_http(200, json.dumps(self.receipts).encode())
        if method == b"POST" and path == b"/reset":
            self.reset()
            return _to_http(200, b"{}")
        return None


def _to_http(status: int, body: bytes, extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status} Stub\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


_TOKEN: Final = _to_http(200, b'{"access_token": "bench", "expires_in": 3600, "token_type": "Bearer"}')


class Answer:
    """What every request is answered with; `{n}` in the body is a number of its own, as a vendor's ids are."""

    def __init__(self, status: int, body: bytes, extra: str, token_path: str | None) -> None:
        self.token_path = token_path.encode() if token_path is not None else None
        """Where OAuth tokens are had; what is asked there counts as no message."""
        before, found, after = body.partition(b"{n}")
        self._whole = _to_http(status, before + b"0" * 32 + after if found else body, extra)
        self._before, _, self._after = self._whole.partition(b"0" * 32) if found else (self._whole, b"", b"")
        self._numbered = bool(found)

    def to(self, url: bytes, count: int) -> bytes:
        """The bytes for this request, the `count`-th."""
        return b"%b%032x%b" % (self._before, count, self._after) if self._numbered else self._whole


class HttpSink(asyncio.Protocol):
    """Answers every request alike; keep-alive, pipelining in order."""

    transport: asyncio.Transport

    def __init__(self, tally: Tally, answer: Answer, latency: float) -> None:
        self.tally = tally
        self.answer = answer
        self.latency = latency
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""
        self.id: bytes | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self.tally.connections += 1

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.tally.errors += 1
            self.transport.abort()

    def on_message_begin(self) -> None:
        self.url = b""
        self.id = None

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.tally.record and name.lower() == b"webhook-id":
            self.id = value

    def on_message_complete(self) -> None:
        control = self.tally.to_answer(self.parser.get_method(), self.url)
        if control is not None:
            self.transport.write(control)
            return
        if self.url == self.answer.token_path:
            self.transport.write(_TOKEN)
            return
        self.tally.add(self.id)
        if self.latency:
            self.tally.in_flight += 1
            asyncio.get_running_loop().call_later(self.latency, self._answer_late, self.url)
        else:
            self.transport.write(self.answer.to(self.url, self.tally.count))

    def _answer_late(self, url: bytes) -> None:
        self.tally.in_flight -= 1
        self.transport.write(self.answer.to(url, self.tally.count))


_SMTP_HELLO: Final = b"250-stub\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 SIZE 33554432\r\n"


class SmtpSink(asyncio.Protocol):
    """Takes every mail."""

    transport: asyncio.Transport

    def __init__(self, tally: Tally, latency: float) -> None:
        self.tally = tally
        self.latency = latency
        self.buffer = b""
        self.in_data = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self.tally.connections += 1
        self.transport.write(b"220 stub ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        answers = bytearray()
        while True:
            if self.in_data:
                end = self.buffer.find(b"\r\n.\r\n")
                if end < 0:
                    break
                mail, self.buffer = self.buffer[:end], self.buffer[end + 5 :]
                self.in_data = False
                self.tally.add(self._find_id(mail) if self.tally.record else None)
                answers += b"250 2.0.0 taken\r\n"
            else:
                end = self.buffer.find(b"\r\n")
                if end < 0:
                    break
                line, self.buffer = self.buffer[:end], self.buffer[end + 2 :]
                answers += self._answer(line[:4].upper())
        if not answers:
            return
        if self.latency:
            asyncio.get_running_loop().call_later(self.latency, self.transport.write, bytes(answers))
        else:
            self.transport.write(answers)

    def _answer(self, verb: bytes) -> bytes:
        if verb in (b"MAIL", b"RCPT", b"RSET", b"NOOP", b"HELO"):
            return b"250 2.1.0 ok\r\n"
        if verb == b"DATA":
            self.in_data = True
            return b"354 go ahead\r\n"
        if verb == b"EHLO":
            return _SMTP_HELLO
        if verb == b"QUIT":
            return b"221 2.0.0 bye\r\n"
        self.tally.errors += 1
        return b"502 5.5.1 not here\r\n"

    @staticmethod
    def _find_id(mail: bytes) -> bytes | None:
        _, found, rest = mail.partition(b"\r\nMessage-ID: <")
        return rest.partition(b">")[0] if found else None


async def serve(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    tally = Tally(options.record)
    latency = options.latency_ms / 1000
    extra = f"Retry-After: {options.retry_after}\r\n" if options.retry_after is not None else ""
    answer = Answer(options.status, options.body.encode(), extra, options.token_path)

    def http() -> HttpSink:
        return HttpSink(tally, answer, latency)

    def smtp() -> SmtpSink:
        return SmtpSink(tally, latency)

    main: Callable[[], asyncio.Protocol] = http if options.kind == "http" else smtp
    server = await loop.create_server(main, options.host, options.port, backlog=1024)
    port = server.sockets[0].getsockname()[1]
    control = server if options.kind == "http" else await loop.create_server(http, options.host, 0)
    print(json.dumps({"port": port, "control_port": control.sockets[0].getsockname()[1]}), flush=True)
    await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.stubs", description="Sinks for benchmarks.")
    parser.add_argument("kind", choices=["http", "smtp"])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency-ms", type=float, default=0)
    parser.add_argument("--status", type=int, default=200, help="of every HTTP answer")
    parser.add_argument("--body", default="{}", help="of every HTTP answer; {n} becomes a number of its own")
    parser.add_argument("--token-path", help="where an OAuth token is answered instead")
    parser.add_argument("--retry-after", help="header of every HTTP answer")
    parser.add_argument("--record", action="store_true", help="remember when each id came")
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
