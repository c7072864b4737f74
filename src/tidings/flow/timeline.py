"""Timeline: what became of a notification, read from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from tidings import ids
from tidings.db.pool import Database, Record
from tidings.db.sql import load_queries
from tidings.directory.catalog import Catalog
from tidings.errors import NotFound
from tidings.model.rulings import Answer, Pass
from tidings.model.transitions import decide_notification_status
from tidings.model.words import Channel, Engagement, EventKind, Priority, Reason, RunState, Status

SQL: Final = load_queries(__package__, "timeline.sql")

FIRST: Final = UUID(int=0)
LAST: Final = UUID(int=(1 << 128) - 1)


class DeliveryView(msgspec.Struct):
    """A delivery as the API shows it."""

    id: str
    channel: str
    address: str
    account: str | None
    provider: str | None
    status: str
    engagement: list[str]
    attempts: int
    reason: str | None
    locale: str | None
    sent_at: datetime | None
    delivered_at: datetime | None


class Moment(msgspec.Struct):
    """A line of the timeline."""

    at: datetime
    event: str
    delivery: str | None = None
    channel: str | None = None
    provider: str | None = None
    attempt: int | None = None
    reason: str | None = None
    detail: Any = None


class NotificationView(msgspec.Struct):
    """A notification as the API shows it."""

    id: str
    type: str | None
    type_version: int | None
    user: str | None
    to: str | None
    priority: str
    status: str
    created_at: datetime
    send_at: datetime | None
    expires_at: datetime | None
    cancelled_at: datetime | None
    reason: str | None
    """What it waits for, or why nothing more is sent."""
    until: datetime | None
    """When it goes on."""
    digest: str | None
    """The notification that goes in its place, or will."""
    items: int | None
    """How many notifications it stands for, if it is a digest."""
    broadcast: str | None
    metadata: dict[str, str]
    test: bool
    deliveries: list[DeliveryView]
    timeline: list[Moment]


class NotificationLine(msgspec.Struct):
    """A notification in a list."""

    id: str
    type: str | None
    user: str | None
    to: str | None
    priority: str
    status: str
    created_at: datetime
    send_at: datetime | None


async def load_view(database: Database, catalog: Catalog, project_id: int, id_: UUID) -> NotificationView:
    """Everything about one notification.

    Raises:
        NotFound: the project has none with this id.
    """
    n = await database.fetchrow(SQL.load_notification, project_id, id_)
    if n is None:
        raise NotFound("There is no such notification in this project.")
    low, high = ids.family_range(id_)
    deliveries = await database.fetch(SQL.load_family_deliveries, project_id, id_, low, high)
    events = await database.fetch(SQL.load_events, project_id, id_, low, high)
    type_ = None
    if n["type_version_id"] is not None:
        versions = await catalog.load_type_versions({(project_id, n["type_version_id"])})
        type_ = versions.get(n["type_version_id"])
    return NotificationView(
        id=ids.to_public(ids.NOTIFICATION, id_),
        type=type_.key if type_ else None,
        type_version=type_.version if type_ else None,
        user=n["user_id"],
        to=n["to_address"],
        priority=Priority(n["priority"]).name,
        status=_status(n, [_shown(d) for d in deliveries]),
        created_at=n["created_at"],
        send_at=n["send_at"],
        expires_at=n["expires_at"],
        cancelled_at=n["cancelled_at"],
        reason=n["run_reason"],
        until=n["until"] if n["state"] == RunState.waiting else None,
        digest=ids.to_public(ids.NOTIFICATION, n["digest_id"]) if n["digest_id"] is not None else None,
        items=n["items"],
        broadcast=ids.to_public(ids.BROADCAST, n["broadcast_id"]) if n["broadcast_id"] is not None else None,
        metadata=msgspec.json.decode(n["metadata_text"]) if n["metadata_text"] else {},
        test=n["test"],
        deliveries=[_to_view(d) for d in deliveries],
        timeline=_to_timeline(n, deliveries, events),
    )


async def load_trail(database: Database, project_id: int, id_: UUID) -> list[Pass]:
    """What was ruled each time that a notification was planned, the oldest first."""
    trail = await database.fetchval(SQL.load_trail, project_id, id_)
    return msgspec.json.decode(trail, type=list[Pass]) if trail is not None else []


async def list_lines(
    database: Database,
    catalog: Catalog,
    project_id: int,
    *,
    type_key: str | None,
    user: str | None,
    status: Status | None,
    channel: Channel | None,
    since: datetime | None,
    before: UUID | None,
    limit: int,
) -> list[NotificationLine]:
    """Notifications, newest first. `status` and `channel` keep those with a delivery like that; `before` is
    exclusive."""
    version_ids = None
    if type_key is not None:
        version_ids = [row["id"] for row in await database.fetch(SQL.list_type_versions, project_id, type_key)]
    rows = await database.fetch(
        SQL.list_notifications if user is None else SQL.list_user_notifications,
        project_id,
        before or LAST,
        ids.first_id_at(since) if since is not None else FIRST,
        version_ids,
        user,
        int(status) if status is not None else None,
        int(channel) if channel is not None else None,
        limit,
    )
    types = await catalog.load_type_versions(
        {(project_id, row["type_version_id"]) for row in rows if row["type_version_id"] is not None}
    )
    return [
        NotificationLine(
            id=ids.to_public(ids.NOTIFICATION, row["id"]),
            type=types[row["type_version_id"]].key if row["type_version_id"] in types else None,
            user=row["user_id"],
            to=row["to_address"],
            priority=Priority(row["priority"]).name,
            status=_status(row, [Status(s) for s in row["statuses"] or ()]),
            created_at=row["created_at"],
            send_at=row["send_at"],
        )
        for row in rows
    ]


def _status(n: Record, deliveries: Sequence[Status]) -> str:
    if not deliveries and not n["planned"] and n["cancelled_at"] is None and n["send_at"] is not None:
        return "scheduled"
    state = RunState(n["state"]) if n["state"] is not None else None
    cancelled = n["cancelled_at"] is not None or n["run_reason"] == Reason.cancelled  # or its broadcast was
    return decide_notification_status(deliveries, planned=n["planned"], cancelled=cancelled, state=state)


def _shown(d: Record) -> Status:
    """The stored status, or `sending` for a queued delivery whose job is leased."""
    return Status.sending if d["leased"] and d["status"] == Status.queued else Status(d["status"])


def _to_view(d: Record) -> DeliveryView:
    return DeliveryView(
        id=ids.to_public(ids.DELIVERY, d["id"]),
        channel=Channel(d["channel"]).name,
        address=d["address"],
        account=d["account"],
        provider=d["provider"],
        status=_shown(d).name,
        engagement=[e.name for e in Engagement if d["engagement"] & e],
        attempts=d["attempts"],
        reason=d["reason"],
        locale=d["locale"],
        sent_at=d["sent_at"],
        delivered_at=d["delivered_at"],
    )


_SHOWN: Final = {Answer.hold: "held", Answer.digest: "digested", Answer.stop: "stopped"}


def _to_moments(trail: str | None) -> list[Moment]:
    """What planning put off, gathered or ended; what it refused stands with the deliveries."""
    if trail is None:
        return []
    return [
        Moment(
            at=asked.at,
            event=_SHOWN[ruling.answer],
            channel=ruling.channel.name if ruling.channel is not None else None,
            reason=ruling.reason.value if ruling.reason is not None else None,
            detail={"rule": ruling.rule.value, "until": ruling.until, "said": ruling.detail},
        )
        for asked in msgspec.json.decode(trail, type=list[Pass])
        for ruling in asked.rulings
        if ruling.answer in _SHOWN
    ]


def _to_timeline(n: Record, deliveries: Sequence[Record], events: Sequence[Record]) -> list[Moment]:
    moments = [Moment(n["created_at"], "requested")]
    channels = {}
    for d in deliveries:
        channels[d["id"]] = Channel(d["channel"]).name
        public = ids.to_public(ids.DELIVERY, d["id"])
        if d["created_at"] == d["ended_at"]:  # planning ended it
            moments.append(
                Moment(d["created_at"], Status(d["status"]).name, public, channels[d["id"]], reason=d["reason"])
            )
        else:
            moments.append(Moment(d["created_at"], "queued", public, channels[d["id"]]))
    if n["cancelled_at"] is not None and not deliveries:  # there was nothing yet that could have an event
        moments.append(Moment(n["cancelled_at"], "cancelled", reason=Reason.cancelled.value))
    told_sent = {e["delivery_id"] for e in events if e["kind"] == EventKind.sent}
    for e in events:
        kind = EventKind(e["kind"])
        place = (
            ids.to_public(ids.DELIVERY, e["delivery_id"]),
            channels.get(e["delivery_id"]),
            e["provider"],
            e["attempt"],
        )
        if kind is EventKind.delivered and e["delivery_id"] not in told_sent:
            moments.append(Moment(e["at"], "sent", *place))  # the answer to the attempt was the delivery
        detail = msgspec.json.decode(e["detail"]) if e["detail"] else None
        moments.append(Moment(e["at"], kind.name, *place, e["reason"], detail))
    moments += _to_moments(n["trail"])
    moments.sort(key=lambda m: m.at)
    return moments
