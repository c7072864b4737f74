"""E-mail over SMTP (RFC 5321): kept connections, TLS, authentication, pipelining, and what a server's "no" means.

`aiosmtplib` opens a connection (greeting, EHLO, STARTTLS, AUTH); the mail transaction itself runs on it here, with
MAIL, RCPT and DATA in one write where the server announces PIPELINING (RFC 2920). That is two round trips a mail and
about a quarter of the processor time of `aiosmtplib`'s own transaction, and it lets us know exactly where the bytes
stood when a connection broke: before the last byte of the mail had left, nothing was delivered; after it, only the
answer would tell.

File order: configuration, the table of answers, one connection, the provider with its pool.
This room knows SMTP; it knows no account, no retry policy. The mail's bytes are made in `mime.py`.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from enum import IntEnum
from typing import ClassVar, Final, Literal, cast

import aiosmtplib
import msgspec
from pydantic import Field, SecretStr, field_validator, model_validator

from tidings.model.messages import Deferred, Email, Message, Rejected, SendResult, Sent, Throttled, Uncertain
from tidings.model.words import Channel, Reason
from tidings.providers.guard import TransportFailure, to_sentence
from tidings.providers.http import to_result
from tidings.providers.mime import MailRefused, parse_envelope_address, parse_mailbox, render_mail
from tidings.providers.port import Capability, Config, ProviderSpec, Surroundings, find_unsupported

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9._:\[\]-]{1,253}")
_REPLY_CAP: Final = 32_768  # octets of unread answers; a server that sends more is not speaking SMTP


class SmtpConfig(Config):
    """One SMTP server, with or without a user's credentials."""

    guards_secrets: ClassVar[frozenset[str]] = frozenset({"host", "port", "security", "verify_certificates", "ca_pem"})

    host: str
    port: int = Field(default=587, ge=1, le=65535)
    security: Literal["none", "starttls", "tls"] = "starttls"
    """`tls` from the first byte (port 465), `starttls` required before anything is said, or `none`."""
    username: str | None = None
    password: SecretStr | None = None
    from_address: str
    """The sender of mails whose template names none: `Name <address>` or an address."""
    helo_name: str | None = None
    """What we call ourselves; None takes this machine's name."""
    verify_certificates: bool = True
    ca_pem: str | None = None
    """Certificates (PEM) to trust instead of the system's."""
    max_connections: int = Field(default=10, ge=1, le=200)
    """At most so many at a time from one worker process."""
    max_mails_per_connection: int = Field(default=1_000, ge=1)
    idle_seconds: float = Field(default=20.0, gt=0, le=300)
    """A connection that was not used for so long is closed."""

    @field_validator("host", "helo_name")
    @classmethod
    def _check_host(cls, value: str | None) -> str | None:
        if value is not None and not _HOST_NAME.fullmatch(value):
            raise ValueError("must be a host name or an IP address")
        return value

    @field_validator("from_address")
    @classmethod
    def _check_from_address(cls, value: str) -> str:
        parse_mailbox("from_address", value)
        return value

    @field_validator("ca_pem")
    @classmethod
    def _check_ca_pem(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ssl.create_default_context(cadata=value)
            except ssl.SSLError:
                raise ValueError("must be one or more certificates in PEM") from None
        return value

    @model_validator(mode="after")
    def _check_credentials(self) -> SmtpConfig:
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password go together")
        if self.password is not None and self.security == "none":
            raise ValueError("a password is only sent over TLS: set security to starttls or tls")
        return self


# --- what an answer means ---------------------------------------------------------------------------------------------


class Reply(msgspec.Struct, frozen=True):
    """One SMTP answer, continuation lines joined by spaces."""

    code: int
    text: str

    @property
    def enhanced(self) -> str:
        """The enhanced status code (RFC 3463) that the text begins with, or nothing."""
        found = _ENHANCED.match(self.text)
        return found[0] if found else ""

    @property
    def evidence(self) -> str:
        """Code and words, short. Servers quote addresses, never credentials."""
        return f"{self.code} {self.text}"[:300]


_ENHANCED: Final = re.compile(r"[245]\.\d{1,3}\.\d{1,3}(?=\s|$)")


class Stage(IntEnum):
    """How far a mail has come; also what an answer was an answer to."""

    waiting = 0  # for a free connection
    connecting = 1  # until the connection is ready, authentication included
    mail = 2  # MAIL FROM
    rcpt = 3  # RCPT TO
    data = 4  # DATA
    body = 5  # the mail itself has been handed to the kernel


# Subject and detail of the enhanced code (RFC 3463 and its IANA registry), for the classes 4 and 5 alike: with class 4
# the result is Deferred, with class 5 Rejected. The word of a specific entry beats the basic code.
_BY_DETAIL: Final[dict[str, Reason]] = {
    "1.1": Reason.bounced,  # bad destination mailbox address
    "1.2": Reason.bounced,  # bad destination system address
    "1.3": Reason.invalid_address,  # bad destination mailbox address syntax
    "1.6": Reason.bounced,  # mailbox has moved
    "1.7": Reason.rejected,  # bad sender's mailbox address syntax
    "1.8": Reason.rejected,  # bad sender's system address
    "1.10": Reason.bounced,  # null MX
    "2.1": Reason.bounced,  # mailbox disabled
    "2.2": Reason.mailbox_full,
    "2.3": Reason.too_large,  # message length exceeds administrative limit
    "3.4": Reason.too_large,  # message too big for system
    "4.1": Reason.bounced,  # no answer from host; Exchange Online says it of unknown recipients
    "4.4": Reason.bounced,  # unable to route
    "6.7": Reason.unsupported,  # non-ASCII addresses not permitted
    "7.8": Reason.unauthorized,  # authentication credentials invalid
    "7.9": Reason.unauthorized,  # authentication mechanism too weak
    "7.11": Reason.unauthorized,  # encryption required
    "7.14": Reason.unauthorized,  # trust relationship required
}

# Where only the subject is known: "5.6.x" is about the content, whatever x. `7` depends on the stage, see below.
_BY_SUBJECT: Final[dict[str, Reason]] = {"6": Reason.content_rejected}

# Without an enhanced code: the basic one (RFC 5321, 4.2.3; RFC 4954; RFC 7504), by what it answered.
_BY_CODE: Final[dict[int, Reason]] = {
    521: Reason.bounced,  # host does not accept mail
    530: Reason.unauthorized,  # authentication required
    534: Reason.unauthorized,
    535: Reason.unauthorized,
    538: Reason.unauthorized,
    552: Reason.too_large,
    556: Reason.bounced,  # domain does not accept mail
}
_BY_CODE_AT_RCPT: Final[dict[int, Reason]] = {
    550: Reason.bounced,  # mailbox unavailable
    551: Reason.bounced,  # user not local
    552: Reason.mailbox_full,  # exceeded storage allocation
    553: Reason.invalid_address,  # mailbox name not allowed
}
_BY_CODE_AT_BODY: Final[dict[int, Reason]] = {
    550: Reason.content_rejected,
    554: Reason.content_rejected,  # transaction failed: spam filters say this
}
_BY_CODE_EARLIER: Final[dict[int, Reason]] = {
    550: Reason.blocked,  # refused before the recipient was named: it is about us
    554: Reason.blocked,
}


def decide_result(reply: Reply, stage: Stage) -> SendResult:
    """What a refusal (4xx, 5xx, or an answer that makes no sense here) at a stage means for the mail.

    Temporary (4xx) refusals, by the enhanced code, else by code and stage:

    | answer                                 | result                                                              |
    |----------------------------------------|---------------------------------------------------------------------|
    | 421 4.7.x, 4.7.x before RCPT           | Throttled: too many connections or mails, it is about the account   |
    | 421 otherwise                          | Deferred(provider_error): the server is going down                  |
    | 4.2.2                                  | Deferred(mailbox_full)                                              |
    | 4.7.x at RCPT or later; 450/451 without an enhanced code at RCPT | Deferred(greylisted)                      |
    | 454 4.7.0 while authenticating, others | Deferred(provider_error)                                            |

    Permanent (5xx) ones: the tables above; 5.7.x is `blocked` (about us) until the body was sent and
    `content_rejected` after it; what none of them knows is `rejected`.
    """
    code, enhanced, evidence = reply.code, reply.enhanced, reply.evidence
    _, _, tail = enhanced.partition(".")
    subject = tail.partition(".")[0]
    if 400 <= code < 500:
        if code == 421:
            return Throttled(detail=evidence) if subject == "7" else Deferred(Reason.provider_error, detail=evidence)
        if tail == "2.2":
            return Deferred(Reason.mailbox_full, detail=evidence)
        if subject == "7":
            if stage >= Stage.rcpt:
                return Deferred(Reason.greylisted, detail=evidence)
            if stage is Stage.mail:
                return Throttled(detail=evidence)
        if not enhanced and code in (450, 451) and stage is Stage.rcpt:
            return Deferred(Reason.greylisted, detail=evidence)
        return Deferred(Reason.provider_error, detail=evidence)
    if 500 <= code < 600:
        if (reason := _BY_DETAIL.get(tail) or _BY_SUBJECT.get(subject)) is None:
            if subject == "7":
                reason = Reason.content_rejected if stage is Stage.body else Reason.blocked
            if code in (530, 534, 535, 538):
                reason = Reason.unauthorized
        if reason is None:
            if stage is Stage.rcpt:
                by_stage = _BY_CODE_AT_RCPT
            else:
                by_stage = _BY_CODE_AT_BODY if stage is Stage.body else _BY_CODE_EARLIER
            reason = by_stage.get(code) or _BY_CODE.get(code) or Reason.rejected
        return Rejected(reason, evidence)
    if stage is Stage.body:
        return Uncertain(f"the server answered the mail with {evidence}")
    return Deferred(Reason.bad_answer, detail=evidence)


# --- one connection ---------------------------------------------------------------------------------------------------


class _ConnectionLost(Exception):
    """The connection broke, or what came over it is not SMTP. The message says which."""


class _Mail:
    """One mail on its way: what to write, and how far it has come."""

    __slots__ = ("content", "sender", "stage", "to", "utf8")

    def __init__(self, sender: str, to: str, utf8: bool) -> None:
        self.sender = sender
        self.to = to
        self.utf8 = utf8
        """Whether an address needs SMTPUTF8 (RFC 6531)."""
        self.stage = Stage.waiting
        self.content = b""

    def decide_lost(self, detail: str) -> SendResult:
        """What it means that the talk ended here without an answer."""
        if self.stage is Stage.waiting:
            return Throttled(detail="all connections of this account are busy")
        if self.stage is Stage.body:
            return Uncertain(f"{detail}, after the whole mail was sent")
        return Deferred(Reason.connect_failed, detail=f"{detail}, before the mail was sent")


class _Connection(asyncio.Protocol):
    """An open, authenticated connection, taken over from aiosmtplib. Runs one mail transaction at a time."""

    def __init__(self, transport: asyncio.Transport, extensions: dict[str, str]) -> None:
        self.transport = transport
        self.mails = 0
        self.idle_since = 0.0
        self.usable = True
        self.eight_bit = "8bitmime" in extensions
        self.smtputf8 = "smtputf8" in extensions
        self.pipelining = "pipelining" in extensions
        size = extensions.get("size", "")
        self.size_limit = int(size) if size.isascii() and size.isdigit() else 0
        """Octets that the server takes; 0 when it did not say."""
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._lines: list[str] = []
        self._replies: deque[Reply] = deque()
        self._expected = 0
        self._waiter: asyncio.Future[None] | None = None
        self._lost: str | None = None
        self._kernel_has_all = True
        # With no high-water mark, pause_writing says "not everything could be handed to the kernel at once", and
        # resume_writing "now it has all": that is how we know whether the end of a mail has left.
        transport.set_write_buffer_limits(high=0)

    # asyncio.Protocol

    def pause_writing(self) -> None:
        self._kernel_has_all = False

    def resume_writing(self) -> None:
        self._kernel_has_all = True

    def data_received(self, data: bytes) -> None:
        data = self._received + data
        lines = data.split(b"\n")
        self._received = lines.pop()
        for line in lines:
            code, mark = line[:3], line[3:4]
            if len(code) != 3 or not code.isdigit() or mark not in (b" ", b"-", b"\r", b""):
                return self._fail("the server's answer is not SMTP")
            self._lines.append(line[4:].decode("utf-8", "replace").strip())
            if mark != b"-":
                self._replies.append(Reply(int(code), " ".join(self._lines)))
                self._lines.clear()
        if len(self._received) + sum(map(len, self._lines)) + len(self._lines) > _REPLY_CAP:
            return self._fail("the server's answer does not end")
        if len(self._replies) > self._expected:
            # Unasked, such as "421 closing" on an idle connection: never to be taken for the next command's answer.
            return self._fail(self._replies[-1].evidence)
        if self._waiter is not None and len(self._replies) == self._expected and not self._waiter.done():
            self._waiter.set_result(None)
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"connection lost ({type(exc).__name__})" if exc else "connection closed by the server")

    def _fail(self, why: str) -> None:
        self.usable = False
        if self._lost is None:
            self._lost = why
        self.transport.abort()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # the talk

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise _ConnectionLost(self._lost)

    async def _ask(self, data: bytes, answers: int) -> list[Reply]:
        """Write, and wait for so many answers; fewer, but not none, if the connection ended before.

        Raises:
            _ConnectionLost: no answer came.
        """
        self._raise_if_lost()
        self._expected = answers
        self.transport.write(data)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._expected = 0
        replies = list(self._replies)
        self._replies.clear()
        if not replies:
            raise _ConnectionLost(self._lost)
        return replies

    async def transact(self, mail: _Mail) -> SendResult:
        """Send one mail. `mail.stage` follows the progress.

        Raises:
            _ConnectionLost: no answer came any more.
        """
        self.mails += 1
        mail.stage = Stage.mail
        options = f" SIZE={len(mail.content)}" if self.size_limit else ""
        if self.eight_bit and not mail.content.isascii():
            options += " BODY=8BITMIME"
        if mail.utf8:
            options += " SMTPUTF8"
        envelope = (f"MAIL FROM:<{mail.sender}>{options}\r\n", f"RCPT TO:<{mail.to}>\r\n", "DATA\r\n")
        if self.pipelining:
            replies = await self._ask("".join(envelope).encode(), 3)
            refusal = _find_refusal(mail, replies)
        else:
            replies, refusal = [], None
            for command in envelope:
                replies += await self._ask(command.encode(), 1)
                if (refusal := _find_refusal(mail, replies)) is not None:
                    break
        if refusal is not None:
            if refusal.code == 421 and mail.stage is Stage.mail and self.mails > 1:
                raise _ConnectionLost(refusal.evidence)  # "you have been idle for too long": not about this mail
            await self._abandon(replies)
            return decide_result(refusal, mail.stage)
        if len(replies) < len(envelope):
            raise _ConnectionLost(self._lost)
        answer = await self._send_content(mail)
        if answer.code == 421 or not self._kernel_has_all:
            self.close()
        if 200 <= answer.code < 300:
            return Sent(detail=answer.evidence)
        return decide_result(answer, Stage.body)

    async def _send_content(self, mail: _Mail) -> Reply:
        # RFC 5321, 4.5.2; the first line is a header field and begins with no dot.
        data = mail.content.replace(b"\r\n.", b"\r\n..") + b".\r\n"
        self._raise_if_lost()
        mail.stage = Stage.body
        try:
            return (await self._ask(data, 1))[0]
        except BaseException:  # lost, or cancelled by the time limit
            if not self._kernel_has_all:
                mail.stage = Stage.data  # the end never left, so the server cannot have taken the mail
            raise

    async def _abandon(self, replies: list[Reply]) -> None:
        """After a refusal: bring the connection back to where a new transaction can start, or close it."""
        if any(reply.code == 421 for reply in replies):
            return self.close()
        try:
            if len(replies) == 3 and replies[2].code == 354:
                # A pipelining server took DATA with no recipient left: it waits for a mail that must be empty
                # (RFC 2920, 3.1), and refuses it; nobody gets it in any case.
                await self._ask(b".\r\n", 1)
            if (await self._ask(b"RSET\r\n", 1))[0].code != 250:
                self.close()
        except _ConnectionLost:
            self.close()
        return None

    def close(self) -> None:
        """Say goodbye without waiting for the answer."""
        if self.usable:
            self.usable = False
            self._expected = 1
            self.transport.write(b"QUIT\r\n")
            self.transport.close()

    def abort(self) -> None:
        """Drop the connection in the middle of whatever it is doing."""
        self.usable = False
        self.transport.abort()


def _find_refusal(mail: _Mail, replies: list[Reply]) -> Reply | None:
    """The first answer that is no yes; `mail.stage` becomes the stage of the last one that was looked at."""
    for stage, reply in zip((Stage.mail, Stage.rcpt, Stage.data), replies, strict=False):
        mail.stage = stage
        if (reply.code != 354) if stage is Stage.data else not 200 <= reply.code < 300:
            return reply
    return None


# --- the provider -----------------------------------------------------------------------------------------------------


class SmtpProvider:
    """Sends e-mail through one SMTP server, over connections that it keeps."""

    spec: ClassVar[ProviderSpec] = ProviderSpec(
        name="smtp",
        channels=frozenset({Channel.email}),
        config=SmtpConfig,
        capabilities=frozenset({Capability.html, Capability.text, Capability.headers, Capability.reply_to}),
        idempotent=False,
        confirms_delivery=False,
        timeout=timedelta(seconds=30),
        docs="https://www.rfc-editor.org/rfc/rfc5321",
    )

    def __init__(self, config: SmtpConfig, surroundings: Surroundings) -> None:
        self._config = config
        self._guard = surroundings.guard
        self._clock = surroundings.clock
        self._timeout = surroundings.time_for(self.spec)
        self._slots = asyncio.Semaphore(config.max_connections)
        self._idle: list[_Connection] = []
        """The one that was used last is taken first, so that those not needed become idle and are closed."""
        self._sweep: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None
        self._helo_name = config.helo_name
        self._closed = False

    async def send(self, message: Message, key: str) -> SendResult:
        if (refused := find_unsupported(self.spec, message)) is not None:
            return refused
        email = message.content
        assert isinstance(email, Email)
        try:
            to = parse_envelope_address("to", message.to)
        except MailRefused as no:
            return Rejected(Reason.invalid_address, str(no))
        try:
            sender = parse_mailbox("from", email.from_ or self._config.from_address)
            reply_to = parse_mailbox("reply_to", email.reply_to).address if email.reply_to is not None else ""
        except MailRefused as no:
            return Rejected(Reason.content_rejected, str(no))
        mail = _Mail(sender.address, to, utf8=not (sender.address + to + reply_to).isascii())
        message_id = f"{key}@{sender.domain}"

        def render(connection: _Connection) -> SendResult | None:
            """The mail as this connection can carry it; the refusal if it cannot."""
            if mail.utf8 and not connection.smtputf8:
                return Rejected(Reason.unsupported, "the server does not take addresses with non-ASCII characters")
            try:
                mail.content = render_mail(
                    email,
                    sender=sender,
                    to=to,
                    message_id=message_id,
                    boundary=f"=_{key}",
                    at=self._clock.now(),
                    eight_bit=connection.eight_bit,
                )
            except MailRefused as no:
                return Rejected(Reason.content_rejected, str(no))
            if 0 < connection.size_limit < len(mail.content):
                return Rejected(Reason.too_large, f"the server takes mails up to {connection.size_limit} octets")
            return None

        try:
            async with asyncio.timeout(self._timeout):
                await self._take_slot()
                try:
                    result = await self._send_on_a_connection(mail, render)
                finally:
                    self._slots.release()
        except TimeoutError:
            return mail.decide_lost(f"no answer within {self._timeout:g} s")
        except _ConnectionLost as lost:
            return mail.decide_lost(str(lost))
        except TransportFailure as failure:
            return to_result(failure)
        except aiosmtplib.SMTPResponseException as no:  # greeting, EHLO, STARTTLS, AUTH
            return decide_result(Reply(no.code, " ".join(no.message.split())), Stage.connecting)
        except (aiosmtplib.SMTPException, OSError) as failure:
            # What aiosmtplib wraps says more than its own words.
            return Deferred(Reason.connect_failed, detail=to_sentence(failure.__cause__ or failure))
        return Sent(message_id, result.detail) if isinstance(result, Sent) else result

    async def _send_on_a_connection(
        self, mail: _Mail, render: Callable[[_Connection], SendResult | None]
    ) -> SendResult:
        connection = self._take_idle()
        while True:
            kept = connection is not None
            mail.stage = Stage.connecting
            connection = connection or await self._open()
            try:
                result = render(connection) or await connection.transact(mail)
            except _ConnectionLost:
                if kept and mail.stage is Stage.mail:
                    connection = None  # the server gave it up while it was idle; once more, on a fresh one
                    continue
                raise
            except BaseException:
                connection.abort()
                raise
            self._give_back(connection)
            return result

    # the pool

    async def _take_slot(self) -> None:
        """Wait until one connection more is allowed, for half the time at most: the other half is for sending.

        Raises:
            TimeoutError: none became free.
        """
        if not self._slots.locked():
            await self._slots.acquire()  # at once
            return
        async with asyncio.timeout(self._timeout / 2):
            await self._slots.acquire()

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            if (connection := self._idle.pop()).usable:
                return connection
        return None

    def _give_back(self, connection: _Connection) -> None:
        if self._closed or connection.mails >= self._config.max_mails_per_connection:
            connection.close()
        elif connection.usable:
            loop = asyncio.get_running_loop()
            connection.idle_since = loop.time()
            self._idle.append(connection)
            if self._sweep is None:
                self._sweep = loop.call_later(self._config.idle_seconds, self._close_idle)

    def _close_idle(self) -> None:
        loop = asyncio.get_running_loop()
        limit = loop.time() - self._config.idle_seconds
        for connection in self._idle:
            if connection.idle_since <= limit:
                connection.close()
        self._idle = [connection for connection in self._idle if connection.usable]
        self._sweep = None
        if self._idle:
            oldest = min(connection.idle_since for connection in self._idle)
            self._sweep = loop.call_at(oldest + self._config.idle_seconds, self._close_idle)

    async def _open(self) -> _Connection:
        """A connection that is ready for MAIL.

        Raises:
            TransportFailure: no connection.
            aiosmtplib.SMTPException, OSError: the server, or TLS, said no.
        """
        config = self._config
        if self._tls is None and config.security != "none":
            self._tls = await asyncio.to_thread(_make_tls_context, config)
        connection = await self._guard.connect(config.host, config.port, self._timeout / 2)
        client = aiosmtplib.SMTP(
            hostname=config.host,
            sock=connection,
            username=config.username,
            password=config.password.get_secret_value() if config.password is not None else None,
            local_hostname=self._helo_name,
            timeout=self._timeout / 2,
            use_tls=config.security == "tls",
            start_tls=config.security == "starttls",
            tls_context=self._tls,
        )
        try:
            await client.connect()
            if client.is_ehlo_or_helo_needed:
                try:
                    await client.ehlo()
                except aiosmtplib.SMTPHeloError:
                    await client.helo()
            transport = client.transport
            if transport is None:
                raise aiosmtplib.SMTPServerDisconnected("the server closed the connection after its greeting")
        except BaseException:
            client.close()
            raise
        self._helo_name = client.local_hostname  # looked up once
        taken = _Connection(cast(asyncio.Transport, transport), client.esmtp_extensions)
        taken.transport.set_protocol(taken)
        return taken

    async def close(self) -> None:
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        while self._idle:
            self._idle.pop().close()


def _make_tls_context(config: SmtpConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=config.ca_pem)
    if not config.verify_certificates:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
