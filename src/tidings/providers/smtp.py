"""E-mail over SMTP (RFC 5321): kept connections, TLS, authentication, pipelining, and what a server's "no" means.

`aiosmtplib` opens a connection (greeting, EHLO, STARTTLS, AUTH); the mail transaction itself is `smtp_talk.py`'s: two
round trips a mail, about a quarter of the processor time of `aiosmtplib`'s own transaction, and it lets us know exactly
where the bytes stood when a connection broke.

What a server refuses later comes back as a mail, to the envelope's sender. With `return_path` that address names the
delivery and carries a tag that only we can make (VERP); `tidings bounces` hands such mails to `receive`.

File order: configuration, what comes back, the provider with its pool.
This room knows SMTP; it knows no account, no retry policy. The mail's bytes are made in `mime.py` and signed in
`dkim.py`; mails that come back are read in `bounces.py`.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import ClassVar, Final, Literal, cast

import aiosmtplib
import msgspec
from pydantic import Field, SecretStr, field_validator, model_validator

from tidings.model.messages import Deferred, Email, Message, Rejected, SendResult, Sent
from tidings.model.words import Channel, EventKind, Reason
from tidings.providers.bounces import Returned, parse_bounce
from tidings.providers.dkim import DkimSigner
from tidings.providers.guard import TransportFailure, to_sentence
from tidings.providers.http import to_result
from tidings.providers.mime import MailRefused, parse_envelope_address, parse_mailbox, render_mail
from tidings.providers.port import (
    Capability,
    Config,
    ProviderSpec,
    RawRequest,
    ReceiptAuth,
    Receipts,
    Report,
    Surroundings,
    find_unsupported,
)
from tidings.providers.smtp_talk import Connection, ConnectionLost, OutgoingMail, Reply, Stage, decide_result

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9._:\[\]-]{1,253}")
_LOCAL_PART_MAX: Final = 64  # octets (RFC 5321, 4.5.3.1.1)
_VERP_SECRET_MIN: Final = 16
_TAG_LENGTH: Final = 16  # hexadecimal: 64 bits, and each guess costs a mail
_KEY_LENGTH: Final = 30
_TAGGED_LENGTH: Final = _KEY_LENGTH + 1 + _TAG_LENGTH


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
    return_path: str | None = None
    """Where bounces go (the envelope's sender), such as `bounces+{key}@bounce.example.com`: `{key}` becomes the
    delivery's id with a tag. None takes the From address."""
    verp_secret: SecretStr | None = None
    """What the tag is made with: 16 characters or more, needed for `{key}`. It is also put into Message-IDs, and from
    then on only bounces with a right tag count, so that nobody can forge one."""
    dkim_domain: str | None = None
    """Sign with DKIM for this domain; needs the selector and the key too."""
    dkim_selector: str | None = None
    dkim_private_key: SecretStr | None = None
    """RSA or Ed25519, PEM."""

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

    @field_validator("return_path")
    @classmethod
    def _check_return_path(cls, value: str | None) -> str | None:
        if value is not None:
            local, _, domain = value.rpartition("@")
            if value.count("{key}") > 1 or "{" in domain:
                raise ValueError("{key} may stand once, before the @")
            if len(local.replace("{key}", "x" * _TAGGED_LENGTH)) > _LOCAL_PART_MAX:
                raise ValueError(f"too long: before the @ there is room for {_LOCAL_PART_MAX - _TAGGED_LENGTH} octets")
            try:
                plain = parse_envelope_address("return_path", value.replace("{key}", "key"))
            except MailRefused:
                raise ValueError("must be an address, such as bounces+{key}@bounce.example.com") from None
            if not plain.isascii():
                raise ValueError("must be ASCII")
        return value

    @field_validator("verp_secret")
    @classmethod
    def _check_verp_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < _VERP_SECRET_MIN:
            raise ValueError(f"must have {_VERP_SECRET_MIN} characters at least")
        return value

    @model_validator(mode="after")
    def _check_bounces(self) -> SmtpConfig:
        if "{key}" in (self.return_path or "") and self.verp_secret is None:
            raise ValueError("a return_path with {key} needs a verp_secret")
        return self

    @model_validator(mode="after")
    def _check_dkim(self) -> SmtpConfig:
        self.make_signer()
        return self

    def make_signer(self) -> DkimSigner | None:
        """The signer that the fields describe, if they do.

        Raises:
            ValueError: one of them is missing or cannot be used.
        """
        domain, selector, key = self.dkim_domain, self.dkim_selector, self.dkim_private_key
        if domain is None and selector is None and key is None:
            return None
        if domain is None or selector is None or key is None:
            raise ValueError("dkim_domain, dkim_selector and dkim_private_key go together")
        return DkimSigner(domain, selector, key.get_secret_value())

    @model_validator(mode="after")
    def _check_credentials(self) -> SmtpConfig:
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password go together")
        if self.password is not None and self.security == "none":
            raise ValueError("a password is only sent over TLS: set security to starttls or tls")
        return self


# --- what comes back --------------------------------------------------------------------------------------------------


class _ReturnAddress:
    """Makes the ids that mails carry out, and knows them again when they come back."""

    def __init__(self, config: SmtpConfig) -> None:
        self._template = config.return_path
        self._secret = config.verp_secret.get_secret_value().encode() if config.verp_secret is not None else None

    def to_tagged(self, key: str) -> str:
        """The delivery's id, with a tag if there is a secret."""
        return key if self._secret is None else f"{key}-{self._make_tag(self._secret, key)}"

    def to_address(self, key: str, sender: str) -> str:
        """The envelope's sender."""
        return sender if self._template is None else self._template.replace("{key}", self.to_tagged(key))

    def find_key(self, returned: Returned) -> str | None:
        """The delivery that the mail is about: by the address it came to, the envelope's id, or the Message-ID of the
        original; a tag is needed where there is a secret. Addresses may come back in capitals."""
        for text in (*returned.addressees, returned.envelope_id, *returned.message_ids):
            for key, tag in _TAGGED.findall(text.lower()):
                if self._secret is None or hmac.compare_digest(self._make_tag(self._secret, key), tag):
                    return cast(str, key)
        return None

    @staticmethod
    def _make_tag(secret: bytes, key: str) -> str:
        return hmac.new(secret, key.encode(), "sha256").hexdigest()[:_TAG_LENGTH]


_TAGGED: Final = re.compile(rf"(?<![a-z0-9])(dlv_[0-9a-z]{{26}})(?:-([0-9a-f]{{{_TAG_LENGTH}}}))?(?![0-9a-z])")


# --- the provider -----------------------------------------------------------------------------------------------------


class SmtpProvider:
    """Sends e-mail through one SMTP server, over connections that it keeps."""

    spec: ClassVar[ProviderSpec] = ProviderSpec(
        name="smtp",
        channels=frozenset({Channel.email}),
        config=SmtpConfig,
        capabilities=frozenset(
            {Capability.html, Capability.text, Capability.headers, Capability.reply_to, Capability.cc, Capability.bcc}
            | {Capability.attachments, Capability.inline_images}
        ),
        idempotent=False,
        confirms_delivery=False,
        timeout=timedelta(seconds=30),
        docs="https://www.rfc-editor.org/rfc/rfc5321",
        # Any mail system may hand over a mail, and none signs it in a way that proves anything: the path is the secret.
        receipts=ReceiptAuth.hidden_path,
        echoes_key=True,  # in the return path, the envelope's id and the Message-ID; what names none is not ours
        reports=frozenset(
            {EventKind.sent, EventKind.delivered, EventKind.failed, EventKind.retrying}
            | {EventKind.complained, EventKind.unsubscribed}
        ),
        delivery_reports_are_rare=True,  # few servers send those of success (RFC 3461, NOTIFY=SUCCESS)
        verified_by=(
            "Postfix (mails, signatures, real delivery reports), aiosmtpd, dkimpy's verifier, and the 391 mails of"
            " Sisimai's set: all 220 standard reports and complaints, 154 of 171 bounces in free words"
        ),
    )

    def __init__(self, config: SmtpConfig, surroundings: Surroundings) -> None:
        self._config = config
        self._guard = surroundings.guard
        self._clock = surroundings.clock
        self._timeout = surroundings.time_for(self.spec)
        self._slots = asyncio.Semaphore(config.max_connections)
        self._idle: list[Connection] = []
        """The one that was used last is taken first, so that those not needed become idle and are closed."""
        self._sweep: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None
        self._helo_name = config.helo_name
        self._return = _ReturnAddress(config)
        self._signer = config.make_signer()
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
            copies = [parse_mailbox("cc", text).address for text in email.cc]
            copies += [parse_mailbox("bcc", text).address for text in email.bcc]
        except MailRefused as no:
            return Rejected(Reason.content_rejected, str(no))
        if copies:
            copies = [address for address in dict.fromkeys(copies) if address != to]
        tagged = self._return.to_tagged(key)
        mail = OutgoingMail(
            self._return.to_address(key, sender.address),
            to,
            copies,
            utf8=not "".join((sender.address, to, reply_to, *copies)).isascii(),
            envelope_id=tagged,
        )
        message_id = f"{tagged}@{sender.domain}"

        def render(connection: Connection) -> SendResult | None:
            """The mail as this connection can carry it; the refusal if it cannot."""
            at = self._clock.now()
            if mail.utf8 and not connection.smtputf8:
                return Rejected(Reason.unsupported, "the server does not take addresses with non-ASCII characters")
            try:
                mail.content = render_mail(
                    email,
                    sender=sender,
                    to=to,
                    message_id=message_id,
                    boundary=f"=_{key}",
                    at=at,
                    # A relay that recodes a signed mail breaks the signature (RFC 6376, 5.3).
                    eight_bit=connection.eight_bit and self._signer is None,
                )
                if self._signer is not None:
                    mail.content = self._signer.sign(mail.content, int(at.timestamp())) + mail.content
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
        except ConnectionLost as lost:
            return mail.decide_lost(str(lost))
        except TransportFailure as failure:
            return to_result(failure)
        except aiosmtplib.SMTPResponseException as no:  # greeting, EHLO, STARTTLS, AUTH
            return decide_result(Reply(no.code, " ".join(no.message.split())), Stage.connecting)
        except (aiosmtplib.SMTPException, OSError) as failure:
            # What aiosmtplib wraps says more than its own words.
            return Deferred(Reason.connect_failed, detail=to_sentence(failure.__cause__ or failure))
        return Sent(message_id, result.detail) if isinstance(result, Sent) else result

    async def check(self) -> str | None:
        """Connects, says EHLO, begins TLS and logs in, as far as the account asks for them, and leaves."""
        try:
            connection = await self._open()
        except TransportFailure as failure:
            return str(failure)
        except aiosmtplib.SMTPResponseException as no:
            return f"the server says {no.code}"  # its words may repeat what it was told
        except (aiosmtplib.SMTPException, OSError) as failure:
            return to_sentence(failure.__cause__ or failure)
        connection.close()
        return None

    async def receive(self, request: RawRequest, now: datetime) -> Receipts:
        """One mail that came back, as `message/rfc822`. Whoever knows the path is believed to be our own mail system;
        the mail itself is anybody's, which is what the tag in our ids is for. A mail that is no bounce, or not of ours,
        reports nothing. The answer says in JSON what was understood.
        """
        returned = await asyncio.to_thread(parse_bounce, request.body)  # a large mail takes a tenth of a second
        key = None if returned is None else self._return.find_key(returned)
        reports: list[Report] = []
        if returned is not None and key is not None:
            for n, bounce in enumerate(returned.bounces):
                if bounce.kind is None:
                    continue
                evidence = {"form": returned.form, "feedback_type": returned.feedback_type, "action": bounce.action}
                evidence |= {"status": bounce.status, "diagnostic": bounce.diagnostic, "remote": bounce.remote}
                evidence |= {"final_recipient": bounce.final_recipient}
                reports.append(
                    Report(
                        kind=bounce.kind,
                        key=key,
                        address=bounce.recipient or None,
                        reason=bounce.reason,
                        at=min(returned.at, now) if returned.at is not None else None,
                        event_id=f"{returned.id}-{n}",
                        detail={name: value for name, value in evidence.items() if value},
                    )
                )
        told = [{"kind": r.kind.name, "reason": r.reason, "key": r.key} for r in reports]
        form = returned.form if returned is not None else None
        body = msgspec.json.encode({"form": form, "reports": told})
        return Receipts(tuple(reports), content_type="application/json", body=body)

    async def _send_on_a_connection(
        self, mail: OutgoingMail, render: Callable[[Connection], SendResult | None]
    ) -> SendResult:
        connection = self._take_idle()
        while True:
            kept = connection is not None
            mail.stage = Stage.connecting
            connection = connection or await self._open()
            try:
                result = render(connection) or await connection.transact(mail)
            except ConnectionLost:
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

    def _take_idle(self) -> Connection | None:
        while self._idle:
            if (connection := self._idle.pop()).usable:
                return connection
        return None

    def _give_back(self, connection: Connection) -> None:
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

    async def _open(self) -> Connection:
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
        taken = Connection(cast(asyncio.Transport, transport), client.esmtp_extensions)
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
