"""Text messages over SMPP 3.4 (the SMS Forum's "Short Message Peer to Peer Protocol Specification v3.4", Issue 1.2).

https://smpp.org/SMPP_v3_4_Issue1_2.pdf

One session is kept for each account: bound as a transceiver where somebody listens for receipts, else as a transmitter,
so that no receipt goes to a process that cannot keep it. Up to a window of messages waits for its answer at a time;
while nothing comes the link is probed with enquire_link, and given up when that is not answered. A text of several
parts is cut with user data headers, or handed over whole as message_payload.

The client is our own: `aiosmpplib` 0.7 opens its connections itself (no TLS, and past the guard of targets a project
may choose), takes messages from a queue of its own and retries them there, writes texts and the password to its log,
and drops the session at a command status that is not in the specification, as most vendors have some. What is needed
of the protocol is small; the tests speak it with `aiosmpplib`'s codec on the other side.

SMPP carries nothing of ours back in receipts: they are matched by the id that the message was given.

The form of what goes over the wire is in `pdu.py`. File order: configuration, tables of codes, what is sent, receipts
and inbound messages, the provider.
This room knows SMPP; it knows no account, no retry policy. Which sender is used is decided in `senders.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from enum import IntEnum
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field, SecretStr, StringConstraints, field_validator

from tidings.model.messages import Deferred, Message, Rejected, SendResult, Sent, Sms, Throttled, Uncertain
from tidings.model.segments import decode_gsm, encode_gsm, split_text
from tidings.model.words import Channel, EventKind, Reason
from tidings.providers.guard import TargetRefused, TransportFailure, to_sentence
from tidings.providers.http import to_result
from tidings.providers.pdu import (
    TAG_PAYLOAD,
    TAG_RECEIPTED_ID,
    TAG_STATE,
    TRY_AGAIN,
    UDHI,
    Broken,
    Command,
    Delivered,
    Session,
    parse_delivered,
    to_c_string,
    to_validity,
)
from tidings.providers.port import (
    Capability,
    Config,
    Inbound,
    ProviderSpec,
    Receipts,
    Report,
    Surroundings,
    find_unsupported,
)
from tidings.providers.senders import SenderConfig, SenderKind, Senders, choose_sender, parse_keyword, to_e164

Handle = Callable[[Receipts], Awaitable[None]]
"""Where a worker takes what came over the session."""

_SHORT_MAX: Final = 254  # octets that short_message takes; more goes into message_payload
_RECEIPT_KINDS: Final = 0x3C  # esm_class: not 0 for receipts and acknowledgements
_ENCODINGS: Final = {1: "ascii", 3: "latin-1", 8: "utf-16-be"}
"""data_coding (5.2.19); 0 is the centre's own, 2 and 4 are binary."""
_RECONNECT: Final = (1.0, 60.0)  # seconds between attempts of a listener, from and to


class SmppConfig(Config):
    """One account at an SMS centre or aggregator that speaks SMPP 3.4, and the senders that it has."""

    guards_secrets: ClassVar[frozenset[str]] = frozenset({"host", "port", "security", "verify_certificates", "ca_pem"})

    host: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:\[\]-]{1,253}$")]
    port: int = Field(default=3550, ge=1, le=65535)
    security: Literal["tls", "none"] = "tls"
    """`none` sends everything in the clear, and only to networks that an operator has opened."""
    verify_certificates: bool = True
    ca_pem: str | None = None
    """Certificates (PEM) to trust instead of the system's."""
    system_id: Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,15}$")]
    password: SecretStr
    system_type: Annotated[str, StringConstraints(pattern=r"^[\x20-\x7e]{0,12}$")] = ""
    senders: Senders
    """Numbers, short codes and names."""
    default_alphabet: Literal["gsm", "latin-1"] = "gsm"
    """What the centre takes data coding 0 for."""
    long_messages: Literal["udh", "payload"] = "udh"
    """Texts of several parts: cut by us, with a user data header each; or whole, in message_payload."""
    receipt_ids: Literal["same", "decimal"] = "same"
    """`decimal`: receipts name in decimal what the answer to the message named in hexadecimal."""
    window: int = Field(default=10, ge=1, le=1000)
    """Messages that may wait for their answer at a time."""
    enquire_seconds: float = Field(default=30.0, gt=0, le=600)
    """After so long without a word the link is probed, and after as long again given up."""

    @field_validator("password")
    @classmethod
    def _check_password(cls, password: SecretStr) -> SecretStr:
        if not re.fullmatch(r"[\x20-\x7e]{0,64}", password.get_secret_value()):
            raise ValueError("must have at most 64 characters, all of ASCII")
        return password

    @field_validator("ca_pem")
    @classmethod
    def _check_ca_pem(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ssl.create_default_context(cadata=value)
            except ssl.SSLError:
                raise ValueError("must be one or more certificates in PEM") from None
        return value


# --- what the codes mean ----------------------------------------------------------------------------------------------

# command_status of an answer (5.1.3 of the specification). 0x400 to 0x4FF are the vendors' own.
_REASONS: Final[dict[int, Reason]] = {
    0x01: Reason.too_large,  # ESME_RINVMSGLEN
    0x0A: Reason.no_sender,  # ESME_RINVSRCADR
    0x0B: Reason.invalid_address,  # ESME_RINVDSTADR
    0x0D: Reason.unauthorized,  # ESME_RBINDFAIL
    0x0E: Reason.unauthorized,  # ESME_RINVPASWD
    0x0F: Reason.unauthorized,  # ESME_RINVSYSID
    0x48: Reason.no_sender,  # ESME_RINVSRCTON
    0x49: Reason.no_sender,  # ESME_RINVSRCNPI
    0x53: Reason.unauthorized,  # ESME_RINVSYSTYP
    0x62: Reason.rejected,  # ESME_RINVEXPIRY
    0x65: Reason.rejected,  # ESME_RX_P_APPN, for good
    0x66: Reason.rejected,  # ESME_RX_R_APPN
    0xFE: Reason.rejected,  # ESME_RDELIVERYFAILURE
}
_SLOW_DOWN: Final = frozenset({0x14, 0x58})  # ESME_RMSGQFUL, ESME_RTHROTTLED
_LATER: Final = frozenset(
    {
        0x04,  # ESME_RINVBNDSTS: the centre has lost our session
        0x05,  # ESME_RALYBND: bound already, as often as allowed
        0x08,  # ESME_RSYSERR
        0x45,  # ESME_RSUBMITFAIL
        0x64,  # ESME_RX_T_APPN, for now
        0xFF,  # ESME_RUNKNOWNERR
    }
)

# `stat` of a receipt's text, and the number of the parameter message_state (appendix B, 5.2.28); what is not here is
# ignored. UNDELIV does not say whether the number is dead or the phone is off, so no number is given up for it.
_STATES: Final[dict[str, tuple[EventKind, Reason | None]]] = {
    "ENROUTE": (EventKind.sent, None),
    "ACCEPTD": (EventKind.sent, None),
    "DELIVRD": (EventKind.delivered, None),
    "EXPIRED": (EventKind.failed, Reason.expired),
    "DELETED": (EventKind.failed, Reason.cancelled),
    "UNDELIV": (EventKind.failed, Reason.rejected),
    "REJECTD": (EventKind.failed, Reason.blocked),
}
_STATE_NAMES: Final = {1: "ENROUTE", 2: "DELIVRD", 3: "EXPIRED", 4: "DELETED", 5: "UNDELIV", 6: "ACCEPTD", 8: "REJECTD"}


def decide_result(status: int) -> SendResult:
    """What a command_status other than 0 means for the message."""
    detail = f"command_status 0x{status:08X}"
    if status in _SLOW_DOWN:
        return Throttled(detail=detail)
    if status in _LATER:
        return Deferred(Reason.provider_error, detail=detail)
    return Rejected(_REASONS.get(status, Reason.rejected), detail)


# --- what is sent ----------------------------------------------------------------------------------------------------


def to_address(sender: SenderConfig | str) -> bytes:
    """Type of number, numbering plan and digits or name of a sender, or of a recipient (5.2.5 to 5.2.9)."""
    if isinstance(sender, str):
        return b"\x01\x01" + to_c_string(sender.removeprefix("+"))  # international, ISDN
    if sender.kind is SenderKind.alphanumeric:
        return b"\x05\x00" + to_c_string(sender.id)
    if sender.kind is SenderKind.short_code:
        return b"\x03\x00" + to_c_string(sender.id)  # network specific
    return to_address(sender.id)


def encode_parts(text: str, reference: int, config: SmppConfig) -> tuple[int, list[bytes]]:
    """data_coding and the octets of each part; those of several begin with a user data header that holds `reference`
    (3GPP TS 23.040, 9.2.3.24.1)."""
    encoding, parts = split_text(text)
    encode: Callable[[str], bytes] = encode_gsm
    if encoding == "GSM-7" and config.default_alphabet == "latin-1":
        try:
            text.encode("latin-1")
        except UnicodeEncodeError:  # the euro and Greek capitals, which only telephones have
            encoding, parts = split_text(text, "UCS-2")
        else:
            encode = _encode_latin
    data_coding = 0
    if encoding == "UCS-2":
        data_coding, encode = 8, _encode_ucs2
    if len(parts) == 1 or config.long_messages == "payload":
        return data_coding, [encode(text)]
    header = (0x05, 0x00, 0x03, reference & 0xFF, len(parts))
    return data_coding, [bytes((*header, number)) + encode(part) for number, part in enumerate(parts, 1)]


def _encode_latin(text: str) -> bytes:
    return text.encode("latin-1")


def _encode_ucs2(text: str) -> bytes:
    return text.encode("utf-16-be")


def to_submit(
    sender: SenderConfig, to: str, data_coding: int, octets: bytes, *, joined: bool, receipt: bool, validity: str
) -> bytes:
    """The body of a submit_sm (4.4.1).

    Args:
        joined: whether `octets` begin with a user data header.
        receipt: whether to ask for a receipt, of the end as well as of a failure.
    """
    fits = len(octets) <= _SHORT_MAX
    short, payload = (octets, b"") if fits else (b"", struct.pack("!HH", TAG_PAYLOAD, len(octets)) + octets)
    return b"".join(
        (
            b"\0",  # service_type
            to_address(sender),
            to_address(to),
            bytes((UDHI if joined else 0, 0, 0)),  # esm_class, protocol_id, priority_flag
            b"\0",  # schedule_delivery_time
            to_c_string(validity),
            bytes((1 if receipt else 0, 0)),  # registered_delivery, replace_if_present_flag
            bytes((data_coding, 0, len(short))),  # data_coding, sm_default_msg_id, sm_length
            short,
            payload,
        )
    )


# --- receipts and inbound messages ------------------------------------------------------------------------------------

_FIELD: Final = re.compile(r"\b(id|stat|err|sub|dlvrd|submit date|done date):\s*(\S*)", re.IGNORECASE)
_TEXT_FIELD: Final = re.compile(r"\btext:.*", re.IGNORECASE | re.DOTALL)


def to_receipts(delivered: Delivered, config: SmppConfig) -> Receipts:
    """What a deliver_sm tells: what became of a message (appendix B), or what somebody wrote. Long messages that come
    in are told part by part.

    Raises:
        ValueError: a receipt that names no message.
    """
    octets = delivered.text
    if delivered.esm_class & UDHI and octets:
        octets = octets[1 + octets[0] :]
    kind = delivered.esm_class & _RECEIPT_KINDS
    if not kind and TAG_RECEIPTED_ID not in delivered.options:
        if delivered.data_coding in (2, 4):  # binary
            return Receipts()
        text = _decode(octets, delivered.data_coding, config)
        sender, recipient = to_e164(delivered.source), to_e164(delivered.destination)
        return Receipts(inbound=(Inbound(sender, recipient, text, keyword=parse_keyword(text)),))
    if kind not in (0, 0x04, 0x20):  # acknowledgements by the telephone or its owner
        return Receipts()
    words = _TEXT_FIELD.sub("", _decode(octets, delivered.data_coding, config))  # `text:` holds the message's beginning
    fields = {name.lower(): value for name, value in _FIELD.findall(words)}
    named = delivered.options.get(TAG_RECEIPTED_ID)
    id_ = to_message_id(named, config) if named else _to_receipted_id(fields.get("id", ""), config)
    if not id_:
        raise ValueError("a receipt that names no message")
    state = _STATE_NAMES.get(int.from_bytes(delivered.options.get(TAG_STATE, b""), "big"))
    found = _STATES.get(state or fields.get("stat", "").upper())
    if found is None:
        return Receipts()
    event, reason = found
    if kind == 0x20 and event is EventKind.failed:  # an intermediate notification: the centre tries again
        event = EventKind.retrying
    detail: dict[str, Any] = {"receipt": words.strip(), "state": state}
    report = Report(event, provider_id=id_, address=to_e164(delivered.source), reason=reason, detail=detail)
    return Receipts((report,))


def _decode(octets: bytes, data_coding: int, config: SmppConfig) -> str:
    if (encoding := _ENCODINGS.get(data_coding)) is not None:
        return octets.decode(encoding, "replace")
    return decode_gsm(octets) if config.default_alphabet == "gsm" else octets.decode("latin-1")


def to_message_id(octets: bytes, config: SmppConfig) -> str:
    """The id of a message, in the form that receipts name it in."""
    text = octets.partition(b"\0")[0].decode("latin-1")
    if config.receipt_ids == "decimal":
        with contextlib.suppress(ValueError):
            return str(int(text, 16))
    return text


def _to_receipted_id(text: str, config: SmppConfig) -> str:
    return str(int(text)) if config.receipt_ids == "decimal" and text.isascii() and text.isdigit() else text


# --- the provider -----------------------------------------------------------------------------------------------------


class _BindRefused(Exception):
    """The centre does not let us in."""

    def __init__(self, status: int) -> None:
        super().__init__(f"command_status 0x{status:08X}")
        self.status = status


class _Stage(IntEnum):
    """How far a message has come when its time runs out."""

    waiting = 0  # for a place in the window
    connecting = 1
    sent = 2


class SmppProvider:
    """Sends over one kept session, which also brings receipts and inbound messages to whoever listens."""

    spec: ClassVar[ProviderSpec] = ProviderSpec(
        name="smpp",
        channels=frozenset({Channel.sms}),
        config=SmppConfig,
        capabilities=frozenset({Capability.sender}),
        idempotent=False,
        confirms_delivery=False,
        timeout=timedelta(seconds=20),
        docs="https://smpp.org/SMPP_v3_4_Issue1_2.pdf",
        receipts=None,  # over the session, not by callback
        reports=frozenset({EventKind.sent, EventKind.delivered, EventKind.failed, EventKind.retrying}),
        verified_by=(
            "the specification, and a centre in the tests that speaks with aiosmpplib's codec. What a particular "
            "centre puts into receipts, and which type of number it wants of a sender, only that centre can confirm."
        ),
    )

    def __init__(self, config: SmppConfig, surroundings: Surroundings) -> None:
        self._config = config
        self._guard = surroundings.guard
        self._clock = surroundings.clock
        self._timeout = surroundings.time_for(self.spec)
        self._window = asyncio.Semaphore(config.window)
        self._opening = asyncio.Lock()
        self._session: Session | None = None
        self._handle: Handle | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._tls: ssl.SSLContext | None = None
        self._references = itertools.count(1)

    async def send(self, message: Message, key: str) -> SendResult:
        if (refused := find_unsupported(self.spec, message)) is not None:
            return refused
        content = message.content
        assert isinstance(content, Sms)
        sender = choose_sender(self._config.senders, message)
        if isinstance(sender, Rejected):
            return sender
        data_coding, parts = encode_parts(content.text, next(self._references), self._config)
        validity = to_validity(message.expires_at - self._clock.now()) if message.expires_at is not None else ""
        stage, taken, id_ = _Stage.waiting, 0, ""
        try:
            async with asyncio.timeout(self._timeout), self._place_in_window():
                stage = _Stage.connecting
                session = await self._ensure_session()
                stage = _Stage.sent
                for octets in parts:
                    # One receipt for the message: of the last part, whose id is the message's.
                    last, joined = taken == len(parts) - 1, len(parts) > 1
                    body = to_submit(
                        sender, message.to, data_coding, octets, joined=joined, receipt=last, validity=validity
                    )
                    status, said = await session.request(Command.submit_sm, body)
                    if status:
                        result = decide_result(status)
                        return (
                            Uncertain(f"{taken} of {len(parts)} parts were taken; {result.detail}") if taken else result
                        )
                    taken += 1
                    id_ = to_message_id(said, self._config)
        except TimeoutError:
            if stage is _Stage.waiting:
                return Throttled(detail="the account's window is full")
            detail = f"no answer within {self._timeout:g} s"
            return Uncertain(detail) if stage is _Stage.sent else Deferred(Reason.connect_failed, detail=detail)
        except Broken as broken:
            detail = str(broken)
            return Uncertain(detail) if stage is _Stage.sent else Deferred(Reason.connect_failed, detail=detail)
        except _BindRefused as no:
            result = decide_result(no.status)
            return Rejected(Reason.unauthorized, result.detail) if isinstance(result, Rejected) else result
        except TransportFailure as failure:
            return to_result(failure)
        except OSError as failure:  # TLS
            return Deferred(Reason.connect_failed, detail=to_sentence(failure))
        return Sent(id_ or None)

    @contextlib.asynccontextmanager
    async def _place_in_window(self) -> AsyncIterator[None]:
        """Wait for a place, for half the time at most: the other half is for the answer.

        Raises:
            TimeoutError: none became free.
        """
        async with asyncio.timeout(self._timeout / 2):
            await self._window.acquire()
        try:
            yield
        finally:
            self._window.release()

    def listen(self, handle: Handle) -> None:
        """Keep a session from now on, and give `handle` what comes over it. If it fails, the centre is asked to
        deliver again."""
        self._handle = handle
        if self._session is not None:
            self._session.close()  # bound as a transmitter
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep_session())

    async def _keep_session(self) -> None:
        least, most = _RECONNECT
        delay = least
        while True:
            with contextlib.suppress(TimeoutError, Broken, _BindRefused, TransportFailure, OSError):
                async with asyncio.timeout(self._timeout):
                    session = await self._ensure_session()
                await asyncio.shield(session.ended)
                delay = least
            await self._clock.sleep(delay * (0.5 + self._clock.random.random()))
            delay = min(2 * delay, most)

    async def _take(self, body: bytes) -> int:
        """Hand a deliver_sm on; the command_status to answer with."""
        if self._handle is None:
            return TRY_AGAIN
        try:
            receipts = to_receipts(parse_delivered(body), self._config)
        except ValueError:
            return 0  # it would not be better the second time
        if not receipts.reports and not receipts.inbound:
            return 0
        try:
            await self._handle(receipts)
        except Exception:  # whatever it was: the centre keeps it until we have it
            return TRY_AGAIN
        return 0

    async def _ensure_session(self) -> Session:
        """The session, bound; a new one if there is none or it has ended.

        Raises:
            TransportFailure, OSError: no connection.
            Broken: it ended before it was bound.
            _BindRefused: the centre said no.
        """
        if self._session is not None and self._session.lost is None:
            return self._session
        async with self._opening:
            if self._session is None or self._session.lost is not None:
                self._session = await self._open()
            return self._session

    async def _open(self) -> Session:
        config, loop = self._config, asyncio.get_running_loop()
        if config.security == "none" and not await self._guard.permits_plain(config.host, config.port):
            raise TargetRefused("the centre has to be reached over TLS")
        if self._tls is None and config.security == "tls":
            self._tls = await asyncio.to_thread(_make_tls_context, config)
        sock = await self._guard.connect(config.host, config.port, self._timeout / 2)
        session = Session(self._take, config.enquire_seconds)
        try:
            name = config.host if self._tls is not None else None
            await loop.create_connection(lambda: session, sock=sock, ssl=self._tls, server_hostname=name)
        except BaseException:
            sock.close()
            raise
        try:
            command = Command.bind_transmitter if self._handle is None else Command.bind_transceiver
            status, _ = await session.request(command, _to_bind(config))
            if status:
                raise _BindRefused(status)
        except BaseException:
            session.abort("not bound")
            raise
        return session

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        if self._session is not None:
            self._session.close()
            self._session = None


def _to_bind(config: SmppConfig) -> bytes:
    """The body of a bind (4.1.5): who we are, version 3.4, no address range."""
    names = (config.system_id, config.password.get_secret_value(), config.system_type)
    return b"".join(map(to_c_string, names)) + b"\x34\0\0\0"


def _make_tls_context(config: SmppConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=config.ca_pem)
    if not config.verify_certificates:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
