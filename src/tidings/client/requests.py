"""What can be asked of the API: each function makes one `Call` from its arguments. Pure; both clients share them.

An argument that is None is left out of the request, so that the server's default holds. Wherever a POST is made,
`idempotency_key` may name the operation; without one the client makes its own, which covers its own retries.
What is about users stands in `people`, what is about many at once in `broadcasts`, and what is about types, templates
and the like in `directory`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypedDict

import msgspec

from tidings.client.answers import (
    Accepted,
    BatchAnswer,
    Cancelled,
    DeadLetter,
    EventResults,
    Explanation,
    Notification,
    NotificationSummary,
    Readiness,
    Replayed,
)
from tidings.client.calls import (
    Call,
    ChannelName,
    GuaranteeName,
    Listing,
    PriorityName,
    ask,
    encode,
    given,
    post,
    to_path,
    to_query,
)
from tidings.client.calls import get as get_one
from tidings.client.records import Blob

BATCH_ITEMS: Final = 1_000
BATCH_BYTES: Final = 15_000_000
"""Limits of one batch request; the server's is 16 MB with the envelope."""


class To(TypedDict, total=False):
    """Whom to tell: exactly one of these. All but the first are ad hoc, without a stored user."""

    user: str
    email: str
    phone: str
    webhook: str
    push: str | Mapping[str, Any]
    chat: str


class Attachment(TypedDict, total=False):
    """A file for the e-mails of a notification: its `content`, or the id of a `blob` that holds it."""

    filename: str
    content_type: str
    content: bytes
    blob: str
    content_id: str


class NotificationRequest(TypedDict, total=False):
    """One notification of a batch; the fields are the arguments of `send`."""

    to: To | Mapping[str, Any]
    type: str
    data: Mapping[str, Any]
    priority: PriorityName
    channels: Sequence[ChannelName]
    send_at: datetime | str
    expires_at: datetime | str
    locale: str
    metadata: Mapping[str, str]
    content: Mapping[str, Any]
    options: Mapping[str, Mapping[str, Any]]
    attachments: Sequence[Attachment | Mapping[str, Any]]
    guarantee: GuaranteeName
    once: str
    idempotency_key: str


# ---------------------------------------------------------------- notifications


def send(
    *,
    to: To | Mapping[str, Any],
    type: str | None = None,
    data: Mapping[str, Any] | None = None,
    priority: PriorityName | None = None,
    channels: Sequence[ChannelName] | None = None,
    send_at: datetime | str | None = None,
    expires_at: datetime | str | None = None,
    locale: str | None = None,
    metadata: Mapping[str, str] | None = None,
    content: Mapping[str, Any] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    attachments: Sequence[Attachment | Mapping[str, Any]] | None = None,
    guarantee: GuaranteeName | None = None,
    once: str | None = None,
    idempotency_key: str | None = None,
    traceparent: str | None = None,
) -> Call[Accepted]:
    """Tell somebody something. When this returns, the notification is stored and will not be lost.

    Args:
        to: `{"user": id}`, or ad hoc `{"email": …}`, `{"phone": …}`, `{"webhook": url}`, `{"push": …}`, `{"chat": …}`.
        type: what is told; or `content` says it directly, without a type.
        data: the template's variables.
        channels: narrows the type's channels; it never beats the user's preferences.
        send_at: not before then; `expires_at`: not after. Aware datetimes, or RFC 3339 text.
        locale: beats the user's.
        metadata: kept with the notification and shown again; vendors that carry such pairs get them too.
        content: for example `{"subject": "Hi", "text": "Hello", "html": "<p>Hello</p>"}`.
        options: by channel, for example `{"email": {"cc": ["bob@example.com"], "tags": ["invoice"]}}`.
        attachments: files for e-mails; `content` takes bytes. Large ones are stored before with `blobs.create`.
        guarantee: what to do when nobody knows whether the provider took it; beats the type's.
        once: at most one notification with this key ever reaches the user or the address, whatever its type.
        idempotency_key: names the operation; the same key never sends twice within 24 hours.
        traceparent: W3C trace context to continue, passed on to the provider.
    """
    body = given(
        to=to,
        type=type,
        data=data,
        priority=priority,
        channels=channels,
        send_at=send_at,
        expires_at=expires_at,
        locale=locale,
        metadata=metadata,
        content=content,
        options=options,
        attachments=attachments,
        guarantee=guarantee,
        once=once,
    )
    return post("/api/v1/notifications", Accepted, body, idempotency_key, traceparent)


def plan_batches(
    notifications: Iterable[NotificationRequest | Mapping[str, Any]], traceparent: str | None = None
) -> Iterator[Call[BatchAnswer]]:
    """The requests that together send all `notifications`, in order, each within the limits of one batch.

    Items without an `idempotency_key` get one here, before the first attempt, so that a repeated request repeats no
    item even if the first one was carried out in part.
    """
    chunk: list[bytes] = []
    size = 0

    def flush() -> Call[BatchAnswer]:
        return Call(
            method="POST",
            path="/api/v1/notifications/batch",
            answer=BatchAnswer,
            body=b'{"notifications":[' + b",".join(chunk) + b"]}",
            idempotency_key=str(uuid.uuid4()),
            traceparent=traceparent,
        )

    for notification in notifications:
        item = encode({"idempotency_key": str(uuid.uuid4()), **notification})
        if chunk and (len(chunk) == BATCH_ITEMS or size + len(item) > BATCH_BYTES):
            yield flush()
            chunk, size = [], 0
        chunk.append(item)
        size += len(item) + 1
    if chunk:
        yield flush()


def get(id: str) -> Call[Notification]:
    """A notification with its deliveries and its timeline."""
    return get_one(to_path("notifications", id), Notification)


def explain(id: str) -> Call[Explanation]:
    """Why a notification is where it is: each rule that was asked, its answer, and where that comes from."""
    return get_one(to_path("notifications", id, "explain"), Explanation)


def what_if(
    notification: NotificationRequest | Mapping[str, Any], *, at: datetime | str | None = None
) -> Call[Explanation]:
    """What would become of a notification. Nothing is stored, counted or sent.

    Args:
        notification: the arguments of `send`.
        at: as if it were planned then; without: now, or at its `send_at`.
    """
    body = given(notification=notification, at=at)
    return ask(to_path("explain"), Explanation, body)


def list_notifications(
    *,
    type: str | None = None,
    user: str | None = None,
    status: str | None = None,
    channel: ChannelName | None = None,
    since: datetime | str | None = None,
    limit: int | None = None,
) -> Listing[NotificationSummary]:
    """Notifications, newest first. `status` and `channel` filter their deliveries; `limit` is the size of a page."""
    query = to_query(type=type, user=user, status=status, channel=channel, since=since, limit=limit)
    return Listing(path=to_path("notifications"), item=NotificationSummary, query=query)


def cancel(id: str, *, idempotency_key: str | None = None) -> Call[Cancelled]:
    """Stop a notification. The answer is definite: `cancelled`, `too_late` or `partly`."""
    return post(to_path("notifications", id, "cancel"), Cancelled, {}, idempotency_key)


def create_blob(content: bytes) -> Call[Blob]:
    """Store a file of at most 10 MB, to be attached by its id. Storing it again changes nothing."""
    return Call(
        method="POST",
        path=to_path("blobs"),
        answer=Blob,
        body=content,
        content_type="application/octet-stream",
    )


# ---------------------------------------------------------------- events


def send_events(events: Sequence[Mapping[str, Any]]) -> Call[EventResults]:
    """Say what happened: up to 1,000 CloudEvents in their JSON form. The project's rules make notifications of them.

    Delivered again within 24 hours, the same event (its `source` and `id`) makes nothing new.
    """
    return Call(
        method="POST",
        path=to_path("events"),
        answer=EventResults,
        body=msgspec.json.encode(events),
        content_type="application/cloudevents-batch+json",
    )


# ---------------------------------------------------------------- operations


def list_dead_letters(
    *, channel: ChannelName | None = None, reason: str | None = None, limit: int | None = None
) -> Listing[DeadLetter]:
    """Deliveries that ended in failure, newest first."""
    query = to_query(channel=channel, reason=reason, limit=limit)
    return Listing(path=to_path("dead_letters"), item=DeadLetter, query=query)


def replay_dead_letter(delivery: str, *, idempotency_key: str | None = None) -> Call[Replayed]:
    """Send one dead letter again."""
    return post(to_path("dead_letters", delivery, "replay"), Replayed, {}, idempotency_key)


def replay_dead_letters(deliveries: Sequence[str], *, idempotency_key: str | None = None) -> Call[Replayed]:
    """Send these dead letters again."""
    return post(to_path("dead_letters", "replay"), Replayed, {"deliveries": deliveries}, idempotency_key)


def replay_all_dead_letters(
    *,
    channel: ChannelName | None = None,
    reason: str | None = None,
    limit: int | None = None,
    idempotency_key: str | None = None,
) -> Call[Replayed]:
    """Send all dead letters again, or up to `limit` of them."""
    body = given(channel=channel, reason=reason, limit=limit)
    return post(to_path("dead_letters", "replay"), Replayed, body, idempotency_key)


def get_health() -> Call[Readiness]:
    """Whether the API process is alive. Needs no key."""
    return Call(method="GET", path="/healthz", answer=Readiness)


def get_readiness() -> Call[Readiness]:
    """Whether the server can do its work: database, migrations, partitions. Needs no key; "no" is an answer too."""
    return Call(method="GET", path="/readyz", answer=Readiness, also_good=frozenset({503}))
