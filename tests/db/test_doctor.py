"""`tidings doctor` on a real database and a real mail server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tidings import doctor
from tidings.client import Account, AsyncClient, Retries
from tidings.db.pool import Database
from tidings.demo.catcher import MailCatcher

Examine = Callable[[], Awaitable[dict[str, doctor.Finding]]]


@pytest.fixture
def examine(database: Database, monkeypatch: pytest.MonkeyPatch) -> Examine:
    monkeypatch.setenv("TIDINGS_DATABASE_URL", database.dsn)
    monkeypatch.setenv("TIDINGS_SECRET_KEY", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")

    async def examine() -> dict[str, doctor.Finding]:
        return {finding.subject: finding for finding in await doctor.examine(url="http://127.0.0.1:1", api_key=None)}

    return examine


async def test_a_sound_database(examine: Examine) -> None:
    found = await examine()
    for subject in ("settings", "database", "clocks", "schema", "partitions"):
        assert found[subject].state == "ok", found[subject]
    assert found["API"].state == "fail"
    assert found["API"].advice


async def test_what_is_missing_is_told(examine: Examine, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIDINGS_SECRET_KEY")
    await database.execute("DROP TABLE notification")
    found = await examine()
    assert found["secret key"].state == "fail"
    assert found["partitions"].state == "fail"
    await database.execute("DROP TABLE alembic_version")
    found = await examine()
    assert "0001" in found["schema"].detail
    assert "tidings migrate" in found["schema"].advice
    monkeypatch.setenv("TIDINGS_PROT", "1")
    assert [finding.subject for finding in (await examine()).values()] == ["settings"]


@pytest.fixture
async def catcher() -> AsyncIterator[MailCatcher]:
    async with MailCatcher(smtp_port=0, http_port=0) as catcher:
        yield catcher


def account(port: int, security: str) -> Account:
    config = {"host": "127.0.0.1", "port": port, "security": security}
    return Account(key="mail", channel="email", provider="smtp", config=config)


async def test_a_mail_server(catcher: MailCatcher) -> None:
    finding = await doctor._examine_account(account(catcher.smtp_port, "none"))
    assert finding is not None
    assert (finding.state, finding.detail) == ("ok", f"127.0.0.1:{catcher.smtp_port} takes mail")
    finding = await doctor._examine_account(account(catcher.smtp_port, "starttls"))
    assert finding is not None
    assert finding.state == "fail"
    assert "STARTTLS" in finding.detail
    assert catcher.mails == ()


@pytest.mark.parametrize("greeting", [b"554 go away\r\n", b"HTTP/1.1 400 Bad Request\r\n", b"", b"x" * 100_000])
async def test_not_a_mail_server(greeting: bytes) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        finding = await doctor._examine_account(account(server.sockets[0].getsockname()[1], "none"))
    assert finding is not None
    assert finding.state == "fail"


@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (200, {"outcome": "ok", "detail": None}, ("ok", "the vendor accepts the credentials")),
        (200, {"outcome": "failed", "detail": "no such key"}, ("fail", "no such key")),
        (200, {"outcome": "unknown", "detail": "may only send"}, None),
        (403, {"type": "https://tidings.dev/errors#forbidden", "title": "Forbidden", "status": 403}, None),
        (
            500,
            {"type": "https://tidings.dev/errors#internal", "title": "Internal error", "status": 500},
            ("fail", None),
        ),
    ],
)
async def test_the_vendor_is_asked_by_way_of_the_api(
    status: int, answer: dict[str, object], expected: tuple[str, str | None] | None
) -> None:
    asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.append(head.split("\r\n")[0])
        body = json.dumps(answer).encode()
        headers = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close"
        writer.write(f"HTTP/1.1 {status} x\r\n{headers}\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, AsyncClient(url, "tdg_p_live_x", retries=Retries(attempts=1)) as client:
        finding = await doctor._ask_vendor(client, Account(key="mail", channel="email", provider="postmark"))
        skipped = await doctor._ask_vendor(client, Account(key="x", channel="email", provider="smtp", enabled=False))
    assert asked == ["POST /api/v1/accounts/mail/check HTTP/1.1"]
    assert skipped is None
    if expected is None:
        assert finding is None
    else:
        assert finding is not None
        assert finding.state == expected[0]
        assert expected[1] in (None, finding.detail)


async def test_what_is_not_connected_to() -> None:
    assert await doctor._examine_account(Account(key="i", channel="in_app", provider="inbox")) is None
    finding = await doctor._examine_account(Account(key="i", channel="in_app", provider="inbox", enabled=False))
    assert finding is not None
    assert finding.state == "warn"
