"""A byte-for-byte proxy before PostgreSQL that can speak TLS, change bytes, and break off at a chosen moment."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from urllib.parse import parse_qs, urlsplit

SSL_REQUEST = bytes.fromhex("00000008 04d2162f")  # PostgreSQL protocol, "SSLRequest"


class Cut(Exception):
    """Raised by a hook: forward what came so far, then break the client's connection."""


def unchanged(data: bytes) -> bytes:
    return data


@contextlib.asynccontextmanager
async def proxy(
    dsn: str,
    *,
    to_server: Callable[[bytes], bytes] = unchanged,
    to_client: Callable[[bytes], bytes] = unchanged,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """Listens on 127.0.0.1 and gives the port; speaks to the Unix socket or the TCP address of `dsn`."""
    parts = urlsplit(dsn)
    query = parse_qs(parts.query)
    port = int(query.get("port", [parts.port or 5432])[0])
    host = parts.hostname or query["host"][0]
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await relay(reader, writer)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if tls is not None:
            assert await reader.readexactly(8) == SSL_REQUEST
            writer.write(b"S")
            await writer.drain()
            try:
                await writer.start_tls(tls)
            except (OSError, ssl.SSLError):
                return
        if host.startswith("/"):
            server_reader, server_writer = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            server_reader, server_writer = await asyncio.open_connection(host, port)

        async def pump(
            source: asyncio.StreamReader, sink: asyncio.StreamWriter, hook: Callable[[bytes], bytes]
        ) -> None:
            with contextlib.suppress(OSError, ssl.SSLError):
                while data := await source.read(65536):
                    try:
                        sink.write(hook(data))
                    except Cut:
                        sink.write(data)
                        await sink.drain()
                        writer.transport.abort()
                        break
                    await sink.drain()

        both = [
            asyncio.ensure_future(pump(reader, server_writer, to_server)),
            asyncio.ensure_future(pump(server_reader, writer, to_client)),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pumping in both:
                pumping.cancel()
            await asyncio.wait(both)
            server_writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(list(tasks))


def through(dsn: str, port: int, host: str = "127.0.0.1", **parameters: str) -> str:
    """The URL of `dsn`'s database behind the proxy's port."""
    parts = urlsplit(dsn)
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    return f"postgresql://{parts.username}:{parts.password}@{host}:{port}{parts.path}" + (f"?{query}" if query else "")
