"""What goes to a provider, and the closed set of what can come back."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from tidings.model.words import Channel, Priority, Reason


class Attachment(msgspec.Struct, frozen=True):
    """A file that goes with an e-mail."""

    filename: str
    content_type: str
    content: bytes
    content_id: str | None = None
    """Set: an inline image that the HTML names as `cid:<content_id>`; no angle brackets."""


class Email(msgspec.Struct, frozen=True):
    """A rendered e-mail. At least one of `text` and `html` is set."""

    subject: str
    text: str | None = None
    html: str | None = None
    from_: str | None = None
    """Sender, `Name <address>` or an address; None takes the account's."""
    reply_to: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    """Further header fields; no CR or LF, checked when rendered and again by the provider."""
    cc: tuple[str, ...] = ()
    bcc: tuple[str, ...] = ()
    """Further recipients, each `Name <address>` or an address. They get the same mail; what becomes of their copies is
    not followed."""
    attachments: tuple[Attachment, ...] = ()
    tags: tuple[str, ...] = ()
    """Labels that the vendor's statistics show."""
    track_opens: bool | None = None
    track_clicks: bool | None = None
    """Whether the *vendor* rewrites the mail to track it; None leaves it to the vendor's own settings."""


class Sms(msgspec.Struct, frozen=True):
    """A rendered text message; with media it is an MMS."""

    text: str
    media: tuple[str, ...] = ()
    """URLs of pictures and the like, which the vendor fetches."""
    sender: str | None = None
    """The number or name that it shall come from; None lets the account choose among its senders."""


class PushAction(msgspec.Struct, frozen=True):
    """A button on a push message."""

    id: str
    title: str
    url: str | None = None


class Push(msgspec.Struct, frozen=True):
    """A rendered push message. Without a title and body it is silent: the application is woken with `data`."""

    title: str | None = None
    body: str | None = None
    url: str | None = None
    """What a tap opens."""
    image: str | None = None
    """URL of a picture."""
    data: tuple[tuple[str, str], ...] = ()
    actions: tuple[PushAction, ...] = ()
    badge: int | None = None
    """The number on the application's icon; 0 takes it away."""
    sound: str | None = None
    collapse_key: str | None = None
    """A later message with the same key replaces this one on the device."""
    silent: bool = False


class InAppAction(msgspec.Struct, frozen=True):
    """A button on an inbox item."""

    id: str
    title: str
    url: str | None = None


class InApp(msgspec.Struct, frozen=True):
    """A rendered item for the user's inbox."""

    title: str
    body: str = ""
    url: str | None = None
    actions: tuple[InAppAction, ...] = ()


class Webhook(msgspec.Struct, frozen=True):
    """A JSON document for the receiver's endpoint; `body` is what is signed, byte for byte."""

    body: bytes


class Chat(msgspec.Struct, frozen=True):
    """A rendered message to a chat room."""

    text: str
    title: str | None = None
    url: str | None = None
    """What the title links to."""
    payload: bytes | None = None
    """A JSON object in the vendor's own form (Slack's `blocks`, Discord's `embeds`), merged over the above."""


type_of_content = {
    Channel.email: Email,
    Channel.sms: Sms,
    Channel.push: Push,
    Channel.in_app: InApp,
    Channel.webhook: Webhook,
    Channel.chat: Chat,
}

Content = Email | Sms | Push | InApp | Webhook | Chat


class Message(msgspec.Struct, frozen=True):
    """One rendered delivery, ready for a provider. Knows no project and no account."""

    delivery: UUID
    channel: Channel
    to: str
    """The address: an e-mail address, an E.164 number, a URL, a user's id for in-app; for push and chat with the scheme
    of its vendor in front, such as `fcm:` (see :func:`split_scheme`)."""
    content: Content
    template_version: int | None = None
    """The same number means the same template text: a provider may cache what it builds from it."""
    traceparent: str | None = None
    """W3C trace context to pass on where the vendor's protocol has room for it."""
    expires_at: datetime | None = None
    """After this it is of no use: where the vendor knows a time to live, this sets it."""
    priority: Priority = Priority.medium
    category: str = ""
    """The type's category, by which senders are chosen; empty for a message without a type."""
    metadata: tuple[tuple[str, str], ...] = ()
    """The request's, for vendors that carry such pairs and give them back in receipts."""
    barred: frozenset[str] = frozenset()
    """Senders from which this recipient wants nothing (they answered STOP)."""
    report_url: str | None = None
    """Where the device itself tells that a push message was delivered, opened or clicked; signed for this delivery."""


def split_scheme(address: str) -> tuple[str, str]:
    """A push or chat address as its vendor's scheme and what the vendor calls the target: `fcm:abc` is `fcm`, `abc`."""
    scheme, _, rest = address.partition(":")
    return scheme, rest


class Sent(msgspec.Struct, frozen=True):
    """The provider took the message (or, if it confirms delivery, the receiver did)."""

    provider_id: str | None = None
    detail: str | None = None
    """The vendor's words, kept as evidence. No secrets, no message content."""


class Rejected(msgspec.Struct, frozen=True):
    """A definite no. The effect of `reason` says what follows."""

    reason: Reason
    detail: str | None = None


class Deferred(msgspec.Struct, frozen=True):
    """Not now: a later attempt may succeed. Nothing was delivered by this one."""

    reason: Reason
    retry_after: timedelta | None = None
    detail: str | None = None


class Throttled(msgspec.Struct, frozen=True):
    """The vendor asks this account to slow down. Costs no attempt of the message."""

    retry_after: timedelta | None = None
    detail: str | None = None


class Uncertain(msgspec.Struct, frozen=True):
    """The bytes left and no answer came: it may have been delivered."""

    detail: str | None = None


SendResult = Sent | Rejected | Deferred | Throttled | Uncertain


def to_evidence(result: SendResult) -> dict[str, Any]:
    """The result as plain data, for the event's `detail`."""
    return {"result": type(result).__name__.lower(), **{k: v for k, v in msgspec.to_builtins(result).items() if v}}
