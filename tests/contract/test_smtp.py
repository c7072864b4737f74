"""SMTP beyond what every provider has to do: where the bytes stood, kept connections, TLS, a real parser."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import ipaddress
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.handlers import Message as MessageHandler
from aiosmtpd.smtp import SMTP, AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.provider_case import DELIVERY, FixedClock
from tests.contract.servers import Act, SmtpScript, SmtpVendor
from tidings.errors import Invalid
from tidings.ids import to_public
from tidings.model.messages import Deferred, Email, Message, Rejected, SendResult, Sent, Throttled, Uncertain
from tidings.model.words import Channel, Reason
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport
from tidings.providers.port import Surroundings
from tidings.providers.registry import parse_config
from tidings.providers.smtp import SmtpProvider
from tidings.providers.smtp_talk import Reply, Stage, decide_result

KEY = to_public("dlv", DELIVERY)
MAIL = Email("Hi", text="Hello")
BIG = Email("Hi", text="x" * 70 + "\n" + "0123456789\n" * 1_500_000)
"""More than the socket buffers of two ends can hold."""


@asynccontextmanager
async def provider(
    port: int, *, guard: Guard | None = None, timeout: timedelta | None = None, **config: Any
) -> AsyncIterator[SmtpProvider]:
    guard = guard or Guard(["127.0.0.0/8", "::1/128"])
    raw = {"host": "127.0.0.1", "port": port, "security": "none", "from_address": "shop@example.com", **config}
    kind: Callable[[Any, Surroundings], SmtpProvider] = SmtpProvider
    if timeout is not None:
        spec = dataclasses.replace(SmtpProvider.spec, timeout=timeout)
        kind = type("QuickSmtp", (SmtpProvider,), {"spec": spec})
    parsed = parse_config("smtp", {"helo_name": "client.example.com", **raw})
    smtp = kind(parsed, Surroundings(AiohttpTransport(guard), guard, FixedClock()))
    try:
        yield smtp
    finally:
        await smtp.close()


async def send(smtp: SmtpProvider, content: Email = MAIL, to: str = "ada@example.com") -> SendResult:
    return await smtp.send(Message(DELIVERY, Channel.email, to, content), KEY)


# --- where the bytes stood --------------------------------------------------------------------------------------------


async def test_connection_lost_in_the_middle_of_the_mail_is_definite() -> None:
    script = SmtpScript(extensions=("PIPELINING",), inside_data=Act.reset)
    async with SmtpVendor(script) as vendor, provider(vendor.port) as smtp:
        result = await send(smtp, BIG)
        assert isinstance(result, Deferred)
        assert result.reason is Reason.connect_failed


async def test_time_out_in_the_middle_of_the_mail_is_definite() -> None:
    script = SmtpScript(extensions=("PIPELINING",), inside_data=Act.stall)
    async with SmtpVendor(script) as vendor, provider(vendor.port, timeout=timedelta(seconds=1)) as smtp:
        result = await send(smtp, BIG)
        assert isinstance(result, Deferred)
        assert result.reason is Reason.connect_failed


async def test_connection_lost_after_the_whole_mail_is_uncertain() -> None:
    # A small mail is in the kernel at once: whether the server got all of it cannot be known.
    async with SmtpVendor(SmtpScript(inside_data=Act.reset)) as vendor, provider(vendor.port) as smtp:
        assert isinstance(await send(smtp, Email("Hi", text="x\n" * 2000)), Uncertain)


# --- kept connections -------------------------------------------------------------------------------------------------


async def test_a_connection_that_the_server_gave_up_is_replaced_in_silence() -> None:
    async with SmtpVendor(SmtpScript(close_after_mail=True)) as vendor, provider(vendor.port) as smtp:
        for n in range(1, 4):
            assert isinstance(await send(smtp), Sent)
            assert vendor.connections == n
        assert len(vendor.mails) == 3


@pytest.mark.parametrize("extensions", [("PIPELINING",), ()])
@pytest.mark.parametrize("stale", [b"421 4.4.2 idle for too long\r\n", Act.close, Act.reset])
async def test_a_kept_connection_that_fails_at_mail_is_tried_again_once(stale: bytes | Act, extensions: Any) -> None:
    ok = b"250 ok\r\n"
    script = SmtpScript(extensions=extensions, mail=[ok, stale, ok])
    async with SmtpVendor(script) as vendor, provider(vendor.port) as smtp:
        assert isinstance(await send(smtp), Sent)
        assert isinstance(await send(smtp), Sent)
        assert vendor.connections == 2
        assert len(vendor.mails) == 2
    script = SmtpScript(extensions=extensions, mail=[ok, stale])
    async with SmtpVendor(script) as vendor, provider(vendor.port) as smtp:
        assert isinstance(await send(smtp), Sent)
        assert isinstance(await send(smtp), Deferred)
        assert vendor.connections == 2


async def test_a_refusal_leaves_the_connection_usable() -> None:
    refused, ok, go = b"550 5.1.1 no\r\n", b"250 ok\r\n", b"354 go\r\n"
    for script in (
        SmtpScript(rcpt=[refused, ok]),
        SmtpScript(rcpt=[refused, ok], data=[go, go]),
        SmtpScript(rcpt=[refused, ok], extensions=()),
        SmtpScript(mail=[refused, ok]),
        SmtpScript(data=[refused, b"354 go ahead\r\n"]),
        SmtpScript(body=[refused, b"250 ok\r\n"]),
    ):
        async with SmtpVendor(script) as vendor, provider(vendor.port) as smtp:
            assert isinstance(await send(smtp), Rejected)
            assert vendor.mails == []
            assert isinstance(await send(smtp), Sent)
            assert (vendor.connections, len(vendor.mails)) == (1, 1)


async def test_connections_are_recycled_after_so_many_mails() -> None:
    async with SmtpVendor() as vendor, provider(vendor.port, max_mails_per_connection=2) as smtp:
        for _ in range(5):
            assert isinstance(await send(smtp), Sent)
        assert vendor.connections == 3


async def test_idle_connections_are_closed() -> None:
    async with SmtpVendor() as vendor, provider(vendor.port, idle_seconds=0.05) as smtp:
        assert isinstance(await send(smtp), Sent)
        await vendor.wait_until_nobody_is_connected()
        assert isinstance(await send(smtp), Sent)
        assert vendor.connections == 2


async def test_no_more_connections_than_configured_and_waiting_for_one_costs_no_attempt() -> None:
    async with SmtpVendor() as vendor, provider(vendor.port, max_connections=2) as smtp:
        assert all(isinstance(r, Sent) for r in await asyncio.gather(*(send(smtp) for _ in range(20))))
        assert vendor.connections <= 2
        assert len(vendor.mails) == 20
    script, quick = SmtpScript(body=[Act.hang]), timedelta(milliseconds=600)
    async with SmtpVendor(script) as vendor, provider(vendor.port, max_connections=1, timeout=quick) as smtp:
        results = await asyncio.gather(send(smtp), send(smtp))
        assert [type(r) for r in results] == [Uncertain, Throttled]


async def test_a_cancelled_send_makes_room_for_the_next() -> None:
    script = SmtpScript(body=[Act.hang, b"250 ok\r\n"])
    async with SmtpVendor(script) as vendor, provider(vendor.port, max_connections=1) as smtp:
        first = asyncio.create_task(send(smtp))
        await vendor.reached.wait()
        second = asyncio.create_task(send(smtp))
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert isinstance(await second, Sent)


async def test_an_old_server_without_ehlo_or_extensions() -> None:
    async with SmtpVendor(SmtpScript(extensions=())) as vendor, provider(vendor.port) as smtp:
        assert isinstance(await send(smtp, Email("Grüße", text="Zoë")), Sent)
        assert vendor.mails[0].isascii()
        assert vendor.commands[1] == b"MAIL FROM:<shop@example.com>"


async def test_addresses_that_need_smtputf8() -> None:
    async with SmtpVendor() as vendor, provider(vendor.port) as smtp:
        assert isinstance(await send(smtp, to="zoë@bücher.example"), Sent)
        assert "RCPT TO:<zoë@xn--bcher-kva.example>".encode() in vendor.commands
        assert any(command.endswith(b" SMTPUTF8") for command in vendor.commands)
    async with SmtpVendor(SmtpScript(extensions=())) as vendor, provider(vendor.port) as smtp:
        result = await send(smtp, to="zoë@example.com")
        assert isinstance(result, Rejected)
        assert result.reason is Reason.unsupported


async def test_what_cannot_be_sent_never_reaches_the_server() -> None:
    async with SmtpVendor(SmtpScript(extensions=("PIPELINING", "SIZE 500"))) as vendor, provider(vendor.port) as smtp:
        for content, to, reason in (
            (MAIL, "a@x.de>\r\nRCPT TO:<b@x.de", Reason.invalid_address),
            (Email("a\r\nBcc: b@x.de", text="x"), "a@x.de", Reason.content_rejected),
            (Email("a", text="x", headers=(("X-A", "1\n2"),)), "a@x.de", Reason.content_rejected),
            (Email("a", text="x", from_="a@x.de\r\nX: y"), "a@x.de", Reason.content_rejected),
            (Email("a", text="x" * 500), "a@x.de", Reason.too_large),
        ):
            result = await send(smtp, content, to)
            assert isinstance(result, Rejected)
            assert result.reason is reason, result
        assert not any(command.startswith(b"MAIL") for command in vendor.commands)


async def test_the_guard_stands_before_smtp_hosts_too() -> None:
    async with SmtpVendor() as vendor, provider(vendor.port, guard=Guard()) as smtp:
        result = await send(smtp)
        assert isinstance(result, Rejected)
        assert result.reason is Reason.target_refused
        assert vendor.connections == 0


# --- copies -----------------------------------------------------------------------------------------------------------

COPIES = Email("Hi", text="Hello", cc=("Bob <bob@example.com>", "ada@example.com"), bcc=("eve@example.com",))


@pytest.mark.parametrize("extensions", [("PIPELINING",), ()])
async def test_copies_go_in_the_same_transaction(extensions: Any) -> None:
    async with SmtpVendor(SmtpScript(extensions=extensions)) as vendor, provider(vendor.port) as smtp:
        assert isinstance(await send(smtp, COPIES), Sent)
        assert isinstance(await send(smtp), Sent)
        assert vendor.connections == 1
        (mail, _) = vendor.mails
    recipients = [command for command in vendor.commands if command.startswith(b"RCPT")]
    assert recipients == [b"RCPT TO:<%b@example.com>" % name for name in (b"ada", b"bob", b"eve", b"ada")]
    assert b"\r\nCc: Bob <bob@example.com>,\r\n ada@example.com\r\n" in mail
    assert b"eve" not in mail


@pytest.mark.parametrize("extensions", [("PIPELINING",), ()])
async def test_a_refused_copy_does_not_fail_the_message(extensions: Any) -> None:
    ok, no = b"250 2.1.5 ok\r\n", b"550 5.1.1 no such user\r\n"
    script = SmtpScript(extensions=extensions, rcpt=[ok, no, ok])
    async with SmtpVendor(script) as vendor, provider(vendor.port) as smtp:
        result = await send(smtp, COPIES)
        assert isinstance(result, Sent)
        assert result.detail == "250 2.0.0 queued as 4711; a copy was refused: 550 5.1.1 no such user"
        assert len(vendor.mails) == 1


@pytest.mark.parametrize("extensions", [("PIPELINING",), ()])
async def test_nobody_gets_a_mail_that_the_recipient_does_not_get(extensions: Any) -> None:
    ok = b"250 2.1.5 ok\r\n"
    for refusal, expected in ((b"550 5.1.1 no\r\n", Rejected), (b"450 4.7.1 greylisted\r\n", Deferred)):
        script = SmtpScript(extensions=extensions, rcpt=[refusal, ok])
        async with SmtpVendor(script) as vendor, provider(vendor.port) as smtp:
            assert isinstance(await send(smtp, COPIES), expected)
            assert vendor.mails == []
            assert isinstance(await send(smtp), Sent)
            assert (vendor.connections, len(vendor.mails)) == (1, 1)
    async with SmtpVendor(SmtpScript(rcpt=[ok, Act.close])) as vendor, provider(vendor.port) as smtp:
        result = await send(smtp, COPIES)
        assert isinstance(result, Deferred)
        assert result.reason is Reason.connect_failed


async def test_a_copy_that_is_no_address_is_refused() -> None:
    async with SmtpVendor() as vendor, provider(vendor.port) as smtp:
        for content in (Email("Hi", text="x", cc=("bob",)), Email("Hi", text="x", bcc=("a@x.de>\r\nDATA",))):
            result = await send(smtp, content)
            assert isinstance(result, Rejected)
            assert result.reason is Reason.content_rejected
        assert vendor.mails == []


# --- return paths and delivery reports --------------------------------------------------------------------------------

SECRET = "sixteen-characters-and-more"
VERP: Mapping[str, Any] = {"return_path": "bounces+{key}@bounce.example.com", "verp_secret": SECRET}


async def test_the_return_path_names_the_delivery() -> None:
    async with SmtpVendor() as vendor, provider(vendor.port, **VERP) as smtp:
        result = await send(smtp)
        assert isinstance(result, Sent)
        sender = vendor.commands[1].decode()
        found = re.fullmatch(r"MAIL FROM:<bounces\+(dlv_\w{26}-[0-9a-f]{16})@bounce\.example\.com> SIZE=\d+", sender)
        assert found is not None, sender
        assert found[1].startswith(KEY)
        assert result.provider_id == f"{found[1]}@example.com"
        assert f"Message-ID: <{result.provider_id}>".encode() in vendor.mails[0]
    async with SmtpVendor() as vendor, provider(vendor.port, return_path="bounces@example.com") as smtp:
        assert isinstance(await send(smtp), Sent)
        assert vendor.commands[1].startswith(b"MAIL FROM:<bounces@example.com> ")


async def test_delivery_reports_are_asked_to_name_the_delivery() -> None:
    script = SmtpScript(extensions=("PIPELINING", "DSN"))
    async with SmtpVendor(script) as vendor, provider(vendor.port) as smtp:
        assert isinstance(await send(smtp, to="ada+x=y@example.com"), Sent)
        assert vendor.commands[1] == f"MAIL FROM:<shop@example.com> RET=HDRS ENVID={KEY}".encode()
        assert vendor.commands[2] == b"RCPT TO:<ada+x=y@example.com> ORCPT=rfc822;ada+2Bx+3Dy@example.com"


# --- what answers mean ------------------------------------------------------------------------------------------------


@given(
    st.sampled_from([*range(200, 600), -1, 0, 999]), st.sampled_from(Stage), st.from_regex(r"([245]\.\d\.\d\d? )?no")
)
def test_no_refusal_is_ever_sent_and_only_5xx_are_final(code: int, stage: Stage, text: str) -> None:
    result = decide_result(Reply(code, text), stage)
    assert not isinstance(result, Sent)
    assert isinstance(result, Rejected) == (500 <= code < 600)


def test_authentication_refusals() -> None:
    assert decide_result(Reply(535, "5.7.8 bad credentials"), Stage.connecting) == Rejected(
        Reason.unauthorized, "535 5.7.8 bad credentials"
    )
    assert decide_result(Reply(535, "bad"), Stage.connecting) == Rejected(Reason.unauthorized, "535 bad")
    assert isinstance(decide_result(Reply(454, "4.7.0 temporary"), Stage.connecting), Deferred)


# --- TLS, authentication, a real parser: against aiosmtpd -------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ssl.SSLContext]:
    """A self-signed certificate for `localhost` (PEM), and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = signed.public_bytes(serialization.Encoding.PEM)
    path = Path(tmp_path_factory.mktemp("tls")) / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(pem + private)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path)
    return pem.decode(), context


class Catcher(MessageHandler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Any] = []

    def handle_message(self, message: Any) -> None:
        self.messages.append(message)


@asynccontextmanager
async def aiosmtpd_server(
    context: ssl.SSLContext | None, *, tls: bool = False, starttls: bool = False
) -> AsyncIterator[tuple[int, Catcher]]:
    catcher = Catcher()

    def authenticate(server: Any, session: Any, envelope: Any, mechanism: Any, data: Any) -> AuthResult:
        return AuthResult(success=(data.login, data.password) == (b"ada", b"s3cret-word"), handled=False)

    def make() -> SMTP:
        return SMTP(
            catcher,
            hostname="localhost",
            tls_context=context if starttls else None,
            require_starttls=starttls,
            authenticator=authenticate if context is not None else None,
            auth_require_tls=starttls,
            auth_required=starttls,  # without STARTTLS it would not know that the connection is encrypted
            loop=asyncio.get_running_loop(),
        )

    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0, ssl=context if tls else None)
    async with server:
        yield server.sockets[0].getsockname()[1], catcher


@pytest.mark.parametrize("security", ["starttls", "tls"])
async def test_tls_with_authentication(security: str, certificate: tuple[str, ssl.SSLContext]) -> None:
    pem, context = certificate
    async with aiosmtpd_server(context, tls=security == "tls", starttls=security == "starttls") as (port, catcher):
        config: dict[str, Any] = {"security": security, "ca_pem": pem, "username": "ada", "password": "s3cret-word"}
        async with provider(port, host="localhost", **config) as smtp:
            for _ in range(2):
                result = await send(smtp, Email("Grüße", text=".\nHello\n", html="<p>Zoë</p>" + "x" * 5000))
                assert isinstance(result, Sent), result
        assert [str(m["to"]) for m in catcher.messages] == ["ada@example.com"] * 2
        plain, html = catcher.messages[0].get_payload()
        assert plain.get_payload(decode=True) == b".\r\nHello\r\n"
        assert html.get_payload(decode=True).decode() == "<p>Zoë</p>" + "x" * 5000
        async with provider(port, host="localhost", **{**config, "password": "another-word"}) as smtp:
            result = await send(smtp)
            assert isinstance(result, Rejected)
            assert result.reason is Reason.unauthorized
            assert "another-word" not in repr(result)
        async with provider(port, host="localhost", **{**config, "ca_pem": None}) as smtp:
            result = await send(smtp)
            assert isinstance(result, Deferred), "an unknown certificate is not trusted"
            assert result.reason is Reason.connect_failed
        async with provider(port, host="localhost", **{**config, "ca_pem": None, "verify_certificates": False}) as smtp:
            assert isinstance(await send(smtp), Sent)


async def test_starttls_is_never_left_out() -> None:
    async with SmtpVendor() as vendor, provider(vendor.port, security="starttls") as smtp:
        result = await send(smtp)
        assert isinstance(result, Deferred)
        assert result.reason is Reason.connect_failed
        assert not any(command.startswith(b"MAIL") for command in vendor.commands)


@pytest.mark.parametrize(
    ("config", "pointer"),
    [
        ({"username": "ada"}, "/config"),
        ({"username": "ada", "password": "do-not-repeat", "security": "none"}, "/config"),
        ({"host": "a b"}, "/config/host"),
        ({"host": "a\r\n"}, "/config/host"),
        ({"from_address": "shop"}, "/config/from_address"),
        ({"ca_pem": "x"}, "/config/ca_pem"),
        ({"port": 0}, "/config/port"),
        ({"security": "ssl"}, "/config/security"),
        ({"return_path": "bounces+{key}@example.com"}, "/config"),
        ({"return_path": "bounces@{key}.example.com", "verp_secret": SECRET}, "/config/return_path"),
        ({"return_path": "a-long-word-before-the+{key}@example.com", "verp_secret": SECRET}, "/config/return_path"),
        ({"return_path": "a b@example.com"}, "/config/return_path"),
        ({"return_path": "b@example.com>\r\nDATA"}, "/config/return_path"),
        ({"verp_secret": "short"}, "/config/verp_secret"),
    ],
)
def test_unusable_configurations(config: dict[str, Any], pointer: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_config("smtp", {"host": "mail.example.com", "from_address": "shop@example.com", **config})
    (error,) = caught.value.errors
    assert error.pointer == pointer
    assert "do-not-repeat" not in str(caught.value.to_dict())
