"""Engagement: when and at which hours of their day a user looks at messages, counted as it becomes known.

What a message counts, it counts once: the first time that it is opened, seen or read, and the first time that it is
clicked; its hour is that of whichever came first. What a machine opened, messages of test keys, and those to addresses
that belong to no user count nothing. Segments and send-time optimisation read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from tidings.db.pool import Connection
from tidings.db.sql import load_queries
from tidings.directory.places import Person, find_zones, load_zone
from tidings.flow.effects import to_columns
from tidings.model.words import Engagement

SQL: Final = load_queries(__package__, "engagement.sql")

LATE_MAX: Final = timedelta(days=7)
"""A report that is older than this says nothing of the hour: somebody's clock may be wrong."""

_LOOKED: Final = Engagement.seen | Engagement.opened | Engagement.read
_ANY: Final = _LOOKED | Engagement.clicked


class Engaged(NamedTuple):
    """What a user did with a message, as far as it is new."""

    project_id: int
    user_id: str
    channel: int
    opened: bool
    clicked: bool
    first: bool
    """Nothing had been counted of the message before, so its hour is."""
    at: datetime


def decide_engaged(before: int, new: int) -> tuple[bool, bool, bool] | None:
    """Whether bits of a delivery's engagement that are new count as opened, as clicked, and as its first; None: as
    nothing. Pure."""
    opened = bool(new & _LOOKED) and not before & _LOOKED
    clicked = bool(new & ~before & Engagement.clicked)
    return (opened, clicked, not before & _ANY) if opened or clicked else None


def to_time(said: datetime | None, now: datetime) -> datetime:
    """When it happened: as the vendor says, unless that cannot be."""
    return said if said is not None and now - LATE_MAX <= said <= now else now


class _Sum:
    """What is added to one user's row."""

    def __init__(self) -> None:
        self.opened = self.clicked = 0
        self.opened_at: datetime | None = None
        self.clicked_at: datetime | None = None
        self.hours = [0] * 24

    def add(self, one: Engaged, zone: str) -> None:
        if one.opened:
            self.opened += 1
            self.opened_at = max(self.opened_at or one.at, one.at)
        if one.clicked:
            self.clicked += 1
            self.clicked_at = max(self.clicked_at or one.at, one.at)
        if one.first:
            self.hours[one.at.astimezone(load_zone(zone)).hour] += 1


async def apply_engagement(conn: Connection, engaged: Sequence[Engaged]) -> None:
    """Count these, in the transaction that sets the bits; users who were deleted are passed over.

    The users' rows are locked against being deleted meanwhile, so it comes before anything that locks their addresses.
    """
    if not engaged:
        return
    users = sorted({(one.project_id, one.user_id) for one in engaged})
    zones: dict[tuple[int, str], str] = {}
    for row in await conn.fetch(SQL.load_whereabouts, *to_columns(users)):
        person = Person(row["time_zone"], row["region"], row["phone"])
        zones[row["project_id"], row["user_id"]] = find_zones(person, row["default_zone"])[0]
    sums: dict[tuple[int, str, int], _Sum] = {}
    for one in engaged:
        zone = zones.get((one.project_id, one.user_id))
        if zone is not None:
            sums.setdefault((one.project_id, one.user_id, one.channel), _Sum()).add(one, zone)
    if sums:
        rows = [
            (*key, s.opened, s.clicked, s.opened_at, s.clicked_at, f"{{{','.join(map(str, s.hours))}}}")
            for key, s in sorted(sums.items())
        ]
        await conn.execute(SQL.add_engagement, *to_columns(rows))
