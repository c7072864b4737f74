"""Load: what sending and settling need to know of deliveries, many at once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from tidings import ids
from tidings.db.pool import Runner
from tidings.db.sql import load_queries
from tidings.model.words import Channel, Priority, Status

SQL: Final = load_queries(__package__, "load.sql")


class Delivery(NamedTuple):
    """A delivery as it is before an attempt; the order of the fields is that of load_deliveries' columns after
    `ord`."""

    id: UUID
    project_id: int
    notification_id: UUID
    channel: Channel
    status: Status
    address: str
    template_version_id: int | None
    locale: str | None
    variant: str | None
    reason: str | None
    """Of the attempt before, where one was made."""
    type_version_id: int | None
    user_id: str | None
    data: str | None
    content: str | None
    at_most_once: bool
    test: bool
    expires_at: datetime | None
    cancelled: bool
    expired: bool
    suppressed: str | None
    """The streams of the channel that may not reach this address; see `is_suppressed`."""
    user_deleted: bool
    queued_at: datetime
    """When it was planned, or last replayed."""
    user_time_zone: str | None
    user_attributes: str | None
    priority: int = Priority.medium
    metadata: str | None = None
    options: str | None = None
    """Of the request; see `tidings.flow.options`."""
    segments: int | None = None
    """The tracked segments that the user was in when it was planned, as bits."""
    user_preferences: str | None = None
    """None: nothing said."""
    user_quiet_hours: str | None = None
    user_region: str | None = None
    now: datetime | None = None
    """The database's."""


NO_CATEGORY: Final = "-"
"""The stream of messages without a type, which have no category. No category has such a key."""
SENDER: Final = "sender:"
"""What stands before the name of a sender in a suppression's stream."""


def is_suppressed(streams: str | None, category: str) -> bool:
    """Whether an address may not be told about this category: nothing may reach it, or nothing of this category.

    Args:
        streams: of the address's suppressions, one a line; the empty one stands for everything on the channel.
    """
    if streams is None:
        return False
    found = streams.split("\n")
    return "" in found or (category or NO_CATEGORY) in found


def list_barred(streams: str | None) -> frozenset[str]:
    """The senders that this address wants nothing from."""
    if streams is None or SENDER not in streams:
        return frozenset()
    return frozenset(s.removeprefix(SENDER) for s in streams.split("\n") if s.startswith(SENDER))


async def load_deliveries(
    connection: Runner, places: Sequence[tuple[UUID, int]], now: datetime | None
) -> list[Delivery | None]:
    """The deliveries at these (id, project) places, in order; None where retention has dropped one."""
    found: list[Delivery | None] = [None] * len(places)
    if not places:
        return found
    low, high = ids.family_bounds(id_ for id_, _ in places)
    rows = await connection.fetch(
        SQL.load_deliveries, [id_ for id_, _ in places], [project for _, project in places], low, high, now
    )
    for row in rows:
        ord_, id_, project_id, notification_id, channel, status, *rest = row
        found[ord_ - 1] = Delivery(id_, project_id, notification_id, Channel(channel), Status(status), *rest)
    return found
