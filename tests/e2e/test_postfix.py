"""A real mail server: Postfix takes our mails, and its real delivery reports come back to our listener.

Postfix runs from a folder of its own, on free ports of the loopback interface, and is ended by the process id in there.
Where it is not installed, the test installs Debian's package if it may (root, apt-get); else these tests are skipped.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import dkim
import pytest
from aiohttp import web
from aiosmtpd.smtp import SMTP
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tidings.bounces import Courier, Handed, Listener
from tidings.clock import SystemClock
from tidings.ids import to_public
from tidings.model.messages import Attachment, Email, Message, Sent
from tidings.model.words import Channel, EventKind, Reason
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport
from tidings.providers.port import RawRequest, Report, Surroundings
from tidings.providers.registry import parse_config
from tidings.providers.smtp import SmtpConfig, SmtpProvider

DAEMONS = Path("/usr/lib/postfix/sbin")
DELIVERY = UUID("019a0000-0000-7000-8000-000000000001")
KEY = to_public("dlv", DELIVERY)
SIGNING = rsa.generate_private_key(65537, 2048)
PEM = SIGNING.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()

MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
daemon_directory = {daemons}
maillog_file = {folder}/mail.log
maillog_file_prefixes = {folder}
myhostname = mx.test
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtp_dns_support_level = disabled
smtp_host_lookup = native
mydestination = here.test
local_recipient_maps =
alias_maps =
transport_maps = texthash:{folder}/transport
virtual_alias_maps = texthash:{folder}/aliases
"""
MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
local unix - n n - - local
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


@dataclass
class Postfix:
    port: int
    bounces: int
    """Where it brings mails for bounce.test."""
    elsewhere: int
    """Where it brings mails for elsewhere.test."""
    folder: Path

    @property
    def log(self) -> str:
        file = self.folder / "mail.log"
        return file.read_text(encoding="utf-8") if file.exists() else ""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


@pytest.fixture(scope="module")
def postfix(debian: Any) -> Iterator[Postfix]:
    if os.geteuid() != 0:
        pytest.skip("Postfix can only be started by root")
    # Without a configuration, so that the package starts nothing.
    debian("postfix", "postfix", answers=b"postfix postfix/main_mailer_type select No configuration\n")
    # Not pytest's folder: the servers drop root, and would not get into it.
    folder = Path(tempfile.mkdtemp(prefix="postfix-"))
    folder.chmod(0o755)
    port, bounces, elsewhere = free_ports(3)
    config = folder / "config"
    for name in (config, folder / "queue", folder / "data"):
        name.mkdir()
    shutil.chown(folder / "data", "postfix")
    (config / "main.cf").write_text(MAIN.format(folder=folder, daemons=DAEMONS))
    (config / "master.cf").write_text(MASTER.format(port=port))
    (folder / "transport").write_text(
        f"bounce.test smtp:[127.0.0.1]:{bounces}\nelsewhere.test smtp:[127.0.0.1]:{elsewhere}\n"
    )
    (folder / "aliases").write_text("forwarded@here.test gone@elsewhere.test\n")
    running = Postfix(port, bounces, elsewhere, folder)
    try:
        started = subprocess.run(["/usr/sbin/postfix", "-c", config, "start"], capture_output=True, timeout=60)
        if started.returncode != 0:
            pytest.skip(f"Postfix does not start here: {started.stderr.decode()} {running.log}")
        try:
            yield running
        finally:
            # By the process id in its own folder; it ends its own children, and waits for them.
            subprocess.run(["/usr/sbin/postfix", "-c", config, "stop"], capture_output=True, timeout=60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Desk:
    """Our side: the account's callback as a small HTTP server, and what came in."""

    provider: SmtpProvider
    reports: asyncio.Queue[Report]
    handed: asyncio.Queue[Handed]

    async def send(self, to: str, content: Email) -> Sent:
        result = await self.provider.send(Message(DELIVERY, Channel.email, to, content), KEY)
        assert isinstance(result, Sent), result
        return result


@pytest.fixture
async def desk(postfix: Postfix) -> AsyncIterator[Desk]:
    guard = Guard(["127.0.0.0/8"])
    http = AiohttpTransport(guard)
    config: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": postfix.port,
        "security": "none",
        "from_address": "The Shop <shop@shop.test>",
        "helo_name": "localhost",
        "return_path": "bounces+{key}@bounce.test",
        "verp_secret": "a-secret-for-the-tags",
        "dkim_domain": "shop.test",
        "dkim_selector": "s1",
        "dkim_private_key": PEM,
    }
    parsed = parse_config("smtp", config)
    assert isinstance(parsed, SmtpConfig)
    provider = SmtpProvider(parsed, Surroundings(http, guard, SystemClock()))
    reports: asyncio.Queue[Report] = asyncio.Queue()
    handed: asyncio.Queue[Handed] = asyncio.Queue()

    async def callback(request: web.Request) -> web.Response:
        raw = RawRequest("POST", str(request.url), dict(request.headers), await request.read())
        receipts = await provider.receive(raw, datetime.now(UTC))
        for report in receipts.reports:
            reports.put_nowait(report)
        return web.Response(body=receipts.body, content_type="application/json")

    app = web.Application(client_max_size=4 * 1024 * 1024)
    app.router.add_post("/callbacks/shop/smtp/mail/secret", callback)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with Courier(f"http://127.0.0.1:{port}/callbacks/shop/smtp/mail/secret") as courier:
        listener = Listener(courier, handed.put_nowait)
        await listener.start("127.0.0.1", postfix.bounces)
        try:
            yield Desk(provider, reports, handed)
        finally:
            await listener.stop()
            await provider.close()
            await http.close()
            await runner.cleanup()


async def wait_for_report(desk: Desk, postfix: Postfix) -> Report:
    try:
        return await asyncio.wait_for(desk.reports.get(), 20)
    except TimeoutError:
        pytest.fail(f"no report came; {desk.handed}; the log of Postfix:\n{postfix.log}")


MAILS = {
    "plain": Email("Hi", text="Hello"),
    "files": Email(
        "Grüße",
        text="Zoë",
        html='<img src="cid:logo">',
        attachments=(Attachment("logo.png", "image/png", bytes(range(256)) * 50, "logo"),),
    ),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("content", MAILS.values(), ids=MAILS)
async def test_a_mail_to_nobody_comes_back_as_a_bounce(desk: Desk, postfix: Postfix, content: Email) -> None:
    await desk.send("nobody-of-this-name@here.test", content)
    report = await wait_for_report(desk, postfix)
    assert (report.kind, report.key, report.reason) == (EventKind.failed, KEY, Reason.bounced)
    assert report.address == "nobody-of-this-name@here.test"
    assert report.detail["status"] == "5.1.1"
    assert report.at is not None
    assert abs(datetime.now(UTC) - report.at) < timedelta(minutes=5)
    assert (await desk.handed.get()).state == "reported"


class Mailboxes:
    """The server behind ours: it takes what comes, and keeps it as it came."""

    def __init__(self) -> None:
        self.mails: asyncio.Queue[bytes] = asyncio.Queue()

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:
        self.mails.put_nowait(envelope.content)
        return "250 2.0.0 ok"


def dns(name: bytes, timeout: int = 5) -> bytes:
    assert name == b"s1._domainkey.shop.test."
    public = SIGNING.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("content", MAILS.values(), ids=MAILS)
async def test_a_signature_is_good_behind_postfix(desk: Desk, postfix: Postfix, content: Email) -> None:
    loop = asyncio.get_running_loop()
    mailboxes = Mailboxes()
    server = await loop.create_server(
        lambda: SMTP(mailboxes, hostname="elsewhere.test", loop=loop), "127.0.0.1", postfix.elsewhere
    )
    async with server:
        await desk.send("ada@elsewhere.test", content)
        mail = await asyncio.wait_for(mailboxes.mails.get(), 20)
    assert b"Received: from" in mail
    assert dkim.verify(mail, dnsfunc=dns)


class Full:
    """The server behind a forwarding address: its mailboxes are full."""

    async def handle_RCPT(self, *_: object) -> str:
        return "552 5.2.2 mailbox is over its quota"


@pytest.mark.timeout(600)
async def test_a_bounce_behind_a_forwarding_address_names_whom_we_sent_to(desk: Desk, postfix: Postfix) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(Full(), hostname="elsewhere.test", loop=loop), "127.0.0.1", postfix.elsewhere
    )
    async with server:
        await desk.send("forwarded@here.test", MAILS["plain"])
        report = await wait_for_report(desk, postfix)
    assert (report.key, report.reason) == (KEY, Reason.mailbox_full)
    assert report.address == "forwarded@here.test", "by the ORCPT that we gave"
    assert report.detail["final_recipient"] == "gone@elsewhere.test"
    assert report.detail["status"] == "5.2.2"
    assert "over its quota" in report.detail["diagnostic"]
