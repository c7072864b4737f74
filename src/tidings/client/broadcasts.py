"""What can be asked about many users at once: broadcasts, and importing them. As in `requests`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypedDict

from tidings.client.answers import Broadcast, Estimate, Imported
from tidings.client.calls import Call, ChannelName, GuaranteeName, Listing, PriorityName, given, post, to_path, to_query
from tidings.client.calls import get as get_one


class AudienceRequest(TypedDict, total=False):
    """Users from as many sources as are named; whoever comes from several is told once."""

    users: Sequence[str]
    topic: str
    topics: Sequence[str]
    segment: str
    segments: Sequence[str]
    all: bool


def create(
    *,
    type: str,
    to: AudienceRequest | Mapping[str, Any],
    exclude: AudienceRequest | Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    priority: PriorityName | None = None,
    channels: Sequence[ChannelName] | None = None,
    locale: str | None = None,
    metadata: Mapping[str, str] | None = None,
    guarantee: GuaranteeName | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    once: str | None = None,
    send_at: datetime | str | None = None,
    local_time: datetime | str | None = None,
    expires_at: datetime | str | None = None,
    rate: float | None = None,
    confirm: int | None = None,
    idempotency_key: str | None = None,
    traceparent: str | None = None,
) -> Call[Broadcast]:
    """Tell many users something.

    Args:
        to: `{"users": […]}`, `{"topic": key}`, `{"segment": key}`, `{"all": True}`, or several of these.
        exclude: whom to leave out, in the same form.
        data: the template's variables, the same for everybody.
        once: at most one notification with this key reaches each user.
        local_time: on each user's own clock: a naive datetime, or text such as `2026-12-01T09:00`.
        rate: users per second.
        confirm: how many users you have agreed to; needed above the project's threshold.
        idempotency_key: names the operation; the same key never makes a second broadcast within 24 hours.
    """
    if isinstance(local_time, datetime):
        if local_time.tzinfo is not None:
            raise ValueError("local_time has a time zone: pass a naive datetime, which holds on each user's own clock")
        local_time = local_time.isoformat(timespec="seconds")
    body = given(
        type=type,
        to=to,
        exclude=exclude,
        data=data,
        priority=priority,
        channels=channels,
        locale=locale,
        metadata=metadata,
        guarantee=guarantee,
        options=options,
        once=once,
        send_at=send_at,
        local_time=local_time,
        expires_at=expires_at,
        rate=rate,
        confirm=confirm,
    )
    return post(to_path("broadcasts"), Broadcast, body, idempotency_key, traceparent)


def estimate(
    *,
    type: str,
    to: AudienceRequest | Mapping[str, Any],
    exclude: AudienceRequest | Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> Call[Estimate]:
    """How many users a broadcast would reach, with some of them. Nothing is sent."""
    body = given(type=type, to=to, exclude=exclude, data=data, dry_run=True)
    return post(to_path("broadcasts"), Estimate, body, None)


def get(id: str) -> Call[Broadcast]:
    """One broadcast, and how far it is."""
    return get_one(to_path("broadcasts", id), Broadcast)


def list_broadcasts(
    *,
    status: Literal["scheduled", "running", "paused", "done", "cancelled"] | None = None,
    limit: int | None = None,
) -> Listing[Broadcast]:
    """Broadcasts, newest first."""
    return Listing(path=to_path("broadcasts"), item=Broadcast, query=to_query(status=status, limit=limit))


def pause(id: str, *, idempotency_key: str | None = None) -> Call[Broadcast]:
    """Make no further notifications until it is resumed."""
    return post(to_path("broadcasts", id, "pause"), Broadcast, {}, idempotency_key)


def resume(id: str, *, idempotency_key: str | None = None) -> Call[Broadcast]:
    """Go on where it was paused."""
    return post(to_path("broadcasts", id, "resume"), Broadcast, {}, idempotency_key)


def cancel(id: str, *, idempotency_key: str | None = None) -> Call[Broadcast]:
    """Stop it for good, also what is not sent yet."""
    return post(to_path("broadcasts", id, "cancel"), Broadcast, {}, idempotency_key)


def import_users(content: bytes, *, csv: bool = False) -> Call[Imported]:
    """Make and change the users of a file: NDJSON with a user a line, or CSV. Importing it again changes nothing.

    A large file takes longer than a client waits by default: give it `Retries(timeout=600, deadline=1200)`.
    """
    return Call(
        method="POST",
        path=to_path("users", "import"),
        answer=Imported,
        body=content,
        content_type="text/csv" if csv else "application/x-ndjson",
    )
