"""The demo's mail catcher, by real SMTP and real HTTP on the loopback interface."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.message import EmailMessage

import aiohttp
import aiosmtplib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.demo.catcher import Mail, MailCatcher


@pytest.fixture
async def catcher() -> AsyncIterator[MailCatcher]:
    async with MailCatcher(smtp_port=0, http_port=0) as catcher:
        yield catcher


@pytest.fixture
async def browser(catcher: MailCatcher) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(catcher.url) as session:
        yield session


def compose(
    subject: str = "Hello", html: str | None = None, text: str = "Plain text", to: str = "ada@example.com"
) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "Shop <shop@example.com>"
    message["To"] = to
    message["Subject"] = subject
    message.set_content(text)
    if html is not None:
        message.add_alternative(html, subtype="html")
    return message


async def deliver(catcher: MailCatcher, *messages: EmailMessage) -> None:
    async with aiosmtplib.SMTP(hostname="127.0.0.1", port=catcher.smtp_port, start_tls=False) as smtp:
        for message in messages:
            await smtp.send_message(message)


async def test_a_mail_is_shown(catcher: MailCatcher, browser: aiohttp.ClientSession) -> None:
    await deliver(catcher, compose("Grüße 👋", html="<p>Hi <b>Ada</b></p>", text="Hi Ada ä"))
    async with browser.get("/") as answer:
        listed = await answer.text()
    assert "Grüße 👋" in listed
    assert "shop@example.com" in listed
    assert "http-equiv=refresh" in listed
    async with browser.get("/mails/1") as answer:
        shown = await answer.text()
    assert "Hi Ada ä" in shown
    assert "sandbox=" in shown
    assert "<b>Ada</b>" not in shown
    async with browser.get("/mails/1/html") as answer:
        assert "<b>Ada</b>" in await answer.text()
        policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("sandbox ")
    assert "allow-scripts" not in policy
    assert "allow-same-origin" not in policy
    assert "default-src 'none'" in policy
    async with browser.get("/mails/1/raw") as answer:
        assert (await answer.text()).startswith("From: Shop <shop@example.com>")
        assert answer.content_type == "text/plain"
    async with browser.get("/mails.json", params={"to": "ada@example.com", "after": "0"}) as answer:
        [mail] = await answer.json()
    assert mail["subject"] == "Grüße 👋"
    assert mail["text"].strip() == "Hi Ada ä"
    assert mail["to"] == ["ada@example.com"]


async def test_nothing_of_a_mail_gets_into_a_page(catcher: MailCatcher, browser: aiohttp.ClientSession) -> None:
    evil = "</title><script>alert(1)</script>'\"<img src=x onerror=alert(2)>"
    message = compose(evil, html="<script>alert(3)</script>", text="</pre><script>alert(4)</script>")
    message["X-Evil"] = evil
    await deliver(catcher, message)
    for path in ("/", "/mails/1"):
        async with browser.get(path) as answer:
            page = await answer.text()
            assert "<script" not in page
            assert "<img" not in page
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_smtputf8(catcher: MailCatcher) -> None:
    await deliver(catcher, compose(to="jürgen@exämple.com"))
    [mail] = catcher.mails
    assert mail.recipients == ("jürgen@exämple.com",)


async def test_only_loopback_names(catcher: MailCatcher, browser: aiohttp.ClientSession) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "[", ""):
        async with browser.get("/", headers={"Host": host}) as answer:
            assert answer.status in (400, 403), host
    for host in ("localhost", f"127.0.0.1:{catcher.http_port}", "[::1]:80"):
        async with browser.get("/", headers={"Host": host}) as answer:
            assert answer.status == 200, host


async def test_what_is_not_there(catcher: MailCatcher, browser: aiohttp.ClientSession) -> None:
    for path in ("/mails/1", "/mails/1/html", "/mails/0", "/nothing"):
        async with browser.get(path) as answer:
            assert answer.status == 404
            assert "Content-Security-Policy" in answer.headers
    async with browser.get("/mails.json", params={"after": "x"}) as answer:
        assert answer.status == 400


async def test_the_oldest_go() -> None:
    async with MailCatcher(smtp_port=0, http_port=0, max_mails=3, max_bytes=3_000) as catcher:
        await deliver(catcher, *(compose(f"mail {n}") for n in range(5)))
        assert [mail.n for mail in catcher.mails] == [3, 4, 5]
        await deliver(catcher, compose(text="x\n" * 900))
        assert [mail.n for mail in catcher.mails] == [6]


async def test_waiting_for_a_mail(catcher: MailCatcher) -> None:
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(catcher.wait_for(lambda mail: mail.subject == "second"))
        await deliver(catcher, compose("first"), compose("second"))
    assert waiting.result().n == 2
    assert (await catcher.wait_for(lambda mail: mail.subject == "first")).n == 1


async def test_stop_frees_the_ports_with_a_client_connected() -> None:
    catcher = MailCatcher(smtp_port=0, http_port=0)
    await catcher.start()
    smtp_port, http_port = catcher.smtp_port, catcher.http_port
    reader, writer = await asyncio.open_connection("127.0.0.1", smtp_port)
    assert (await reader.readline()).startswith(b"220 ")
    async with asyncio.timeout(10):
        await catcher.stop()
        while await reader.read(1024):
            pass
    writer.close()
    async with MailCatcher(smtp_port=smtp_port, http_port=http_port) as again:
        assert again.url == f"http://127.0.0.1:{http_port}/"


async def test_a_taken_port_leaves_nothing_open(catcher: MailCatcher) -> None:
    second = MailCatcher(smtp_port=0, http_port=catcher.http_port)
    with pytest.raises(OSError, match="address already in use"):
        await second.start()
    with pytest.raises(OSError, match=str(second.smtp_port)):
        await asyncio.open_connection("127.0.0.1", second.smtp_port)


LINES = st.lists(
    st.sampled_from(
        [
            b"Subject: =?utf-8?q?=ff=fe?=",
            b"Subject: =?nonsense?x?y?=",
            b"To: @@@, <<>>, a:b;c",
            b"Content-Type: text/html; charset=klingon",
            b"Content-Type: multipart/alternative; boundary=x",
            b"Content-Transfer-Encoding: base64",
            b"Content-Disposition: attachment; filename*0*=x'",
            b"--x",
            b"",
            b"\xff\xfe\x00",
            b"!!!not base64!!!",
        ]
    )
    | st.binary(max_size=40),
    max_size=12,
)


@given(LINES)
def test_any_bytes_can_be_shown(lines: list[bytes]) -> None:
    mail = Mail(1, datetime(2026, 1, 1, tzinfo=UTC), "", ("a@example.com",), b"\r\n".join(lines))
    shown = mail.to_dict()
    for value in (shown["subject"], shown["text"], shown["html"], *(x for pair in shown["headers"] for x in pair)):
        if value is not None:
            value.encode()
