"""What django-anymail, an independent implementation, makes of e-mails: its cases as messages of ours.

Only so far as our model can say what a case says: the rest raises :class:`NotOurs`, and the case has to be listed in
`exceptions.toml`. A case with several recipients becomes a message for each, as Tidings makes a delivery of each.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.contract import golden
from tests.contract.golden import NotOurs
from tests.contract.provider_case import DELIVERY, FixedClock
from tests.contract.servers import HttpVendor, http_answer
from tidings.errors import Invalid
from tidings.ids import to_public
from tidings.model.messages import Attachment, Email, Message, SendResult, Sent
from tidings.model.words import Channel, EventKind, Reason
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport
from tidings.providers.mail_api import parse_address
from tidings.providers.port import Provider, Surroundings
from tidings.providers.registry import create, parse_config

KEY = to_public("dlv", DELIVERY)

_SAYABLE = frozenset(
    {"subject", "body", "content_subtype", "from_email", "to", "cc", "bcc", "reply_to", "extra_headers", "alternatives"}
    | {"attachments", "metadata", "tags", "track_opens", "track_clicks", "merge_metadata", "merge_headers"}
)

KINDS: Mapping[str, EventKind] = {
    "queued": EventKind.sent,
    "sent": EventKind.sent,
    "delivered": EventKind.delivered,
    "bounced": EventKind.failed,
    "rejected": EventKind.failed,
    "failed": EventKind.failed,
    "deferred": EventKind.retrying,
    "opened": EventKind.opened,
    "clicked": EventKind.clicked,
    "complained": EventKind.complained,
    "unsubscribed": EventKind.unsubscribed,
}
"""Its event types as ours."""

REASONS: Mapping[str, Reason] = {
    "bounced": Reason.bounced,
    "invalid": Reason.invalid_address,
    "spam": Reason.complained,
    "timed_out": Reason.attempts_exhausted,
}
"""Its reject reasons, where they say as much as ours."""


def pair_calls(case: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Mapping[str, Any] | None]]:
    """Each e-mail of the case with the request that it led to, if it led to one."""
    calls = list(case["http_calls"])
    if len(calls) == len(case["messages"]):
        return list(zip(case["messages"], calls, strict=True))
    return [(sent, calls.pop(0) if calls and not sent.get("exception") else None) for sent in case["messages"]]


def to_messages(sent: Mapping[str, Any], files: Sequence[tuple[str, bytes]] = ()) -> list[Message]:
    """A message for each recipient.

    Args:
        files: content type and content of the attachments in the request: the case's own e-mail does not always show
            them.
    """
    mail = sent["message"]
    if unsayable := set(mail) - _SAYABLE:
        raise NotOurs(", ".join(sorted(unsayable)))
    text = html = None
    if mail.get("content_subtype") == "html":
        html = mail["body"]
    else:
        text = mail.get("body")
    for alternative in mail.get("alternatives", ()):
        if alternative["mimetype"] != "text/html" or html is not None:
            raise NotOurs(f"a second body, {alternative['mimetype']}")
        html = alternative["content"]
    headers = dict(mail.get("extra_headers", {}))
    headers.pop("Message-ID", None)  # the vendor's to make
    in_headers = [headers.pop(name) for name in list(headers) if name.lower() == "reply-to"]
    reply_to = mail.get("reply_to", in_headers)
    if len(reply_to) > 1:
        raise NotOurs("several addresses to reply to")
    if not mail.get("to"):
        raise NotOurs("no recipient")
    given = mail.get("attachments", ())
    if files and len(files) != len(given):
        raise NotOurs("a file that is no part of its own in the request")
    attachments = tuple(
        _to_attachment(each, *file) for each, file in zip(given, files or [("", b"")] * len(given), strict=True)
    )
    messages = []
    for to in (parse_address("to", each).address for each in mail["to"]):
        email = Email(
            mail["subject"],
            text=text,
            html=html,
            from_=mail["from_email"],
            reply_to=reply_to[0] if reply_to else None,
            headers=tuple({**headers, **mail.get("merge_headers", {}).get(to, {})}.items()),
            cc=tuple(mail.get("cc", ())),
            bcc=tuple(mail.get("bcc", ())),
            attachments=attachments,
            tags=tuple(mail.get("tags", ())),
            track_opens=mail.get("track_opens"),
            track_clicks=mail.get("track_clicks"),
        )
        pairs = {**mail.get("metadata", {}), **mail.get("merge_metadata", {}).get(to, {})}
        metadata = tuple((name, str(value)) for name, value in pairs.items())
        messages.append(Message(DELIVERY, Channel.email, to, email, metadata=metadata))
    return messages


def _to_attachment(given: Mapping[str, Any], content_type: str, content: bytes) -> Attachment:
    headers = dict(given.get("headers", ()))
    content_id = headers.get("Content-ID", "").strip("<>") or None
    if headers.get("Content-Disposition", "").startswith("inline") and content_id is None:
        raise NotOurs("an inline image without a name")
    return Attachment(given["filename"] or "", content_type, content, content_id)


def was_taken(sent: Mapping[str, Any], message: Message) -> bool:
    """Whether the independent implementation holds that the vendor took it for this recipient."""
    if sent.get("exception"):
        return False
    status = sent["anymail_status"]["recipients"].get(message.to, {}).get("status")
    return bool(sent.get("sent")) if status is None else status in ("sent", "queued", "unknown")


def check_taken(result: SendResult, sent: Mapping[str, Any], message: Message) -> None:
    """The vendor takes ours exactly where the independent implementation holds that it took theirs."""
    golden.check_taken(isinstance(result, Sent), was_taken(sent, message), result)


@asynccontextmanager
async def provider(name: str, config: Mapping[str, Any]) -> AsyncIterator[Provider]:
    """A provider with this raw configuration."""
    guard = Guard(["127.0.0.0/8"])
    http = AiohttpTransport(guard)
    try:
        parsed = parse_config(name, config)
    except Invalid as problem:
        raise NotOurs(f"no account can be like this: {problem}") from None
    made = create(name, parsed, Surroundings(http, guard, FixedClock()))
    try:
        yield made
    finally:
        await made.close()
        await http.close()


async def send(
    name: str, config: Mapping[str, Any], message: Message, mock: Mapping[str, Any], *headers: str
) -> tuple[SendResult, HttpVendor]:
    """Send it to a vendor that answers as the case says."""
    body = mock["body"] if isinstance(mock["body"], str) else json.dumps(mock["body"])
    async with HttpVendor(http_answer(mock["status"], *headers, body=body.encode())) as vendor:
        assert isinstance(vendor, HttpVendor)
        async with provider(name, {**config, "base_url": f"http://127.0.0.1:{vendor.port}"}) as made:
            return await made.send(message, KEY), vendor
