"""What goes to a provider, and the closed set of what can come back."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from tidings.model.words import Channel, Reason


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


class Sms(msgspec.Struct, frozen=True):
    """A rendered text message."""

    text: str


class InApp(msgspec.Struct, frozen=True):
    """A rendered item for the user's inbox."""

    title: str
    body: str = ""
    url: str | None = None


class Webhook(msgspec.Struct, frozen=True):
    """A JSON document for the receiver's endpoint; `body` is what is signed, byte for byte."""

    body: bytes


type_of_content = {Channel.email: Email, Channel.sms: Sms, Channel.in_app: InApp, Channel.webhook: Webhook}

Content = Email | Sms | InApp | Webhook


class Message(msgspec.Struct, frozen=True):
    """One rendered delivery, ready for a provider. Knows no project and no account."""

    delivery: UUID
    channel: Channel
    to: str
    """The address: an e-mail address, an E.164 number, a URL, or a user's id for in-app."""
    content: Content
    template_version: int | None = None
    """The same number means the same template text: a provider may cache what it builds from it."""
    traceparent: str | None = None
    """W3C trace context to pass on where the vendor's protocol has room for it."""
    expires_at: datetime | None = None


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
