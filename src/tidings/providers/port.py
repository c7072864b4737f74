"""The port between the road and the vendors.

A provider knows its vendor's API and nothing else: no database, queue, retry policy or project. It is made once per
account, is used for many sends at a time, and answers with a value of the closed set `SendResult`; it raises only for
bugs. What a vendor can say is turned into our reasons in the provider's own file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar, Final, Protocol, runtime_checkable

import msgspec
from pydantic import BaseModel, ConfigDict

from tidings.clock import Clock
from tidings.errors import ProviderError
from tidings.model.messages import (
    Chat,
    Email,
    InApp,
    Message,
    Push,
    Rejected,
    SendResult,
    Sms,
    Webhook,
    type_of_content,
)
from tidings.model.words import Channel, EventKind, Reason
from tidings.providers.guard import Guard
from tidings.providers.http import HttpTransport


class Capability(StrEnum):
    """What a message may ask of a provider. Asking for one that is not declared is refused loudly."""

    # e-mail
    html = "html"
    text = "text"
    headers = "headers"
    reply_to = "reply_to"
    cc = "cc"
    bcc = "bcc"
    attachments = "attachments"
    inline_images = "inline_images"
    tags = "tags"
    tracking = "tracking"  # the vendor's own open and click tracking can be switched per message
    # text messages
    media = "media"
    sender = "sender"
    # push
    data = "data"
    image = "image"
    actions = "actions"
    badge = "badge"
    sound = "sound"
    collapse_key = "collapse_key"
    silent = "silent"
    # chat
    heading = "title"  # `str` has a method `title`
    payload = "payload"
    # any
    url = "url"
    metadata = "metadata"  # carried along and given back in receipts; dropped, not refused, where it is not declared


class ReceiptAuth(StrEnum):
    """How a vendor's callbacks prove where they come from."""

    signature = "signature"  # of the vendor, over the raw request, with a key of the account's configuration
    hidden_path = "hidden_path"  # the vendor signs nothing: the callback's address holds a secret that only it knows


class Config(BaseModel):
    """Base of each vendor's account configuration. Fields of type `SecretStr` are stored encrypted and never shown."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    guards_secrets: ClassVar[frozenset[str]] = frozenset()
    """Fields that say to whom the secrets are sent, and how safely. Whoever changes one gives the secrets anew: else
    anybody who may edit the account could have them sent to a server of their own."""

    def serves(self, target: str) -> bool:
        """Whether an account that is configured so serves this target (an address without its scheme), for accounts
        that addresses call by a name."""
        return True


@dataclass(frozen=True)
class ProviderSpec:
    """What is known of a provider without an account."""

    name: str
    channels: frozenset[Channel]
    config: type[Config]
    capabilities: frozenset[Capability]
    idempotent: bool
    """The vendor (or the receiver's protocol) drops a second send with the same key."""
    confirms_delivery: bool
    """`Sent` means that the receiver has it: the delivery is `delivered`, not only `sent`."""
    timeout: timedelta
    """How long one send may take; the lease must outlast it."""
    docs: str
    """The page that the adapter was written from."""
    per_address: bool = False
    """Each address is a server of its own, so a failure says nothing about the account's other messages."""
    local: bool = False
    """Ours, not a vendor's: needs no credentials (the simulator, the inbox)."""
    receipts: ReceiptAuth | None = None
    """Whether the vendor reports by callback what became of a message, and how that is verified; None: it does not."""
    echoes_key: bool = False
    """Its receipts name our delivery; else they are matched by the vendor's own id, which costs a row per message."""
    reports: frozenset[EventKind] = frozenset()
    """Which facts its receipts can tell."""
    delivery_reports_are_rare: bool = False
    """It can report that a message was delivered, but mostly does not: nobody may wait for it."""
    schemes: frozenset[str] = frozenset()
    """The address schemes that it serves (see `split_scheme`); empty: every address of its channels."""
    verified_by: str = ""
    """What the adapter was checked against, and what only the vendor itself could confirm; for the provider table."""


@dataclass(frozen=True)
class Surroundings:
    """What a provider may use of the world."""

    http: HttpTransport
    """Guarded: a project may choose where it goes."""
    guard: Guard
    """For protocols that open their own sockets."""
    clock: Clock
    callback_url: str | None = None
    """Where this account's vendor may report, for vendors that are told with each message; None: nowhere."""
    timeout: timedelta | None = None
    """The longest that the operator lets one send take; None leaves it to the provider."""

    def time_for(self, spec: ProviderSpec) -> float:
        """Seconds that one send of this provider may take here."""
        return min(spec.timeout, self.timeout or spec.timeout).total_seconds()


class RawRequest(msgspec.Struct, frozen=True):
    """A callback as it came, before anybody believes it."""

    method: str
    url: str
    """The whole URL as the vendor was told it, with the query: some sign it."""
    headers: Mapping[str, str]
    """Names in lower case; of a repeated one, the values joined by a comma."""
    body: bytes


class Report(msgspec.Struct, frozen=True):
    """One fact that a vendor told about one message."""

    kind: EventKind
    """sent, delivered, failed, retrying (deferred by the receiver), opened, clicked, complained, unsubscribed."""
    provider_id: str | None = None
    """The vendor's id of the message, as `Sent.provider_id` had it."""
    key: str | None = None
    """Our delivery's public id, where the vendor echoes it."""
    address: str | None = None
    """Whom it is about, where the vendor says so. A report about somebody else (a copy's recipient) moves nothing."""
    reason: Reason | None = None
    """Of a failure or a delay."""
    at: datetime | None = None
    """When it happened by the vendor's clock."""
    machine: bool = False
    """An open or click that a program made: a prefetcher, a scanner, a privacy proxy."""
    url: str | None = None
    """What was clicked."""
    event_id: str | None = None
    """The vendor's own id of this event, by which a repetition is known."""
    detail: Mapping[str, Any] = {}
    """The raw evidence: what the vendor said, without credentials."""


class Inbound(msgspec.Struct, frozen=True):
    """A text message that somebody sent to one of the account's senders."""

    sender: str
    """Who wrote, E.164."""
    recipient: str
    """The account's sender that it came to."""
    text: str
    provider_id: str | None = None
    at: datetime | None = None
    keyword: str | None = None
    """`stop`, `start` or `help` where the vendor itself has understood it as one."""


class Receipts(msgspec.Struct, frozen=True):
    """What one callback told, and what the vendor wants to hear."""

    reports: tuple[Report, ...] = ()
    inbound: tuple[Inbound, ...] = ()
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"
    body: bytes = b""


class ReceiptRefused(ProviderError):
    """The callback does not prove where it comes from."""


class ReceiptMalformed(ProviderError):
    """The callback is signed, but says nothing that is understood."""


class CannotCheck(ProviderError):
    """The vendor does not say whether it knows the account without sending something; the reason in a sentence."""


@runtime_checkable
class Provider(Protocol):
    """One vendor on one channel, configured as one account."""

    spec: ClassVar[ProviderSpec]

    def __init__(self, config: Config, surroundings: Surroundings) -> None: ...

    async def send(self, message: Message, key: str) -> SendResult:
        """Hand the message over, within `spec.timeout`.

        Args:
            key: the delivery's public id (`dlv_…`): the same for every attempt of one delivery.
        """
        ...

    async def receive(self, request: RawRequest, now: datetime) -> Receipts:
        """What a callback says. The signature is checked on the raw bytes before anything else is looked at.

        A provider without receipts (`spec.receipts` None) need not have this; nor need it have the other optional ones,

            def listen(self, handle: Callable[[Receipts], Awaitable[None]]) -> None

        by which a worker tells a provider whose vendor pushes receipts over its own connection where to put them, and

            async def check(self) -> str | None

        which asks the vendor whether it knows the account, without sending anything: None if so, else what is wrong, in
        a sentence without credentials; `CannotCheck` where credentials that may send may not ask.

        Raises:
            ReceiptRefused: no signature, a wrong one, one too old, or the account lacks the key to check it.
            ReceiptMalformed: signed, and not to be understood.
        """
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...


_USES: Final[Mapping[type, tuple[tuple[Capability, Callable[[Any], bool]], ...]]] = {
    Email: (
        (Capability.html, lambda c: c.html is not None),
        (Capability.text, lambda c: c.text is not None),
        (Capability.reply_to, lambda c: c.reply_to is not None),
        (Capability.headers, lambda c: bool(c.headers)),
        (Capability.cc, lambda c: bool(c.cc)),
        (Capability.bcc, lambda c: bool(c.bcc)),
        (Capability.attachments, lambda c: bool(c.attachments)),
        (Capability.inline_images, lambda c: any(a.content_id for a in c.attachments)),
        (Capability.tags, lambda c: bool(c.tags)),
        (Capability.tracking, lambda c: c.track_opens is not None or c.track_clicks is not None),
    ),
    Sms: (
        (Capability.media, lambda c: bool(c.media)),
        (Capability.sender, lambda c: c.sender is not None),
    ),
    Push: (
        (Capability.url, lambda c: c.url is not None),
        (Capability.image, lambda c: c.image is not None),
        (Capability.data, lambda c: bool(c.data)),
        (Capability.actions, lambda c: bool(c.actions)),
        (Capability.badge, lambda c: c.badge is not None),
        (Capability.sound, lambda c: c.sound is not None),
        (Capability.collapse_key, lambda c: c.collapse_key is not None),
        (Capability.silent, lambda c: c.silent),
    ),
    InApp: (),
    Webhook: (),
    Chat: (
        (Capability.heading, lambda c: c.title is not None),
        (Capability.url, lambda c: c.url is not None),
        (Capability.payload, lambda c: c.payload is not None),
    ),
}
"""By content: what asks for which capability."""


def find_unsupported(spec: ProviderSpec, message: Message) -> Rejected | None:
    """A refusal that names what the message asks for and the provider never declared; None if there is nothing."""
    channel = message.channel
    if channel not in spec.channels:
        return Rejected(Reason.unsupported, f"{spec.name} does not do the channel {channel.name}")
    content = message.content
    expected: type = type_of_content[channel]
    if type(content) is not expected:
        return Rejected(Reason.unsupported, f"{type(content).__name__} is not the content of an {channel.name} message")
    declared = spec.capabilities
    for capability, uses in _USES[expected]:
        if capability not in declared and uses(content):
            return Rejected(Reason.unsupported, f"{spec.name} cannot send {capability.value}")
    return None
