"""Effects: the rows that follow from what became of a delivery, whoever found out: settling, or a receipt.

Events, suppressions, dropped addresses and dead letters; each call is one statement for many rows, in the caller's
transaction. Hooks, which tell the application, branch off from events here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from tidings import ids
from tidings.db.pool import Connection, Database
from tidings.db.sql import load_queries
from tidings.flow.caps import refund
from tidings.flow.evidence import Event
from tidings.flow.hooks import enqueue_hooks

FORGET_BATCH: Final = 20_000
"""Send-once keys deleted in one statement."""
_ADDRESS_MAX: Final = 320

SQL: Final = load_queries(__package__, "effects.sql")


Once: TypeAlias = tuple[int, str, str]
"""A send-once key of somebody: project, target, key as `to_once_key` says it."""


class Suppression(NamedTuple):
    """A row of `suppression`; the order of the fields is that of insert_suppressions' arrays."""

    project_id: int
    channel: int
    address: str
    stream: str
    reason: str
    delivery_id: UUID | None


class DroppedAddress(NamedTuple):
    """An address that does not exist any more; the order of the fields is that of drop_addresses' arrays."""

    project_id: int
    user_id: str
    channel: int
    value: str


class DeadLetter(NamedTuple):
    """A row of `dead_letter`; the order of the fields is that of insert_dead_letters' arrays."""

    project_id: int
    delivery_id: UUID
    notification_id: UUID
    channel: int
    reason: str
    attempts: int


async def apply_events(conn: Connection, events: Sequence[Event], now: datetime | None) -> set[UUID]:
    """Append events, and tell the hooks that listen; answers with those that are new. An event whose id is there
    already was told twice."""
    if not events:
        return set()
    rows = await conn.fetch(SQL.insert_events, *to_columns(events), now)
    heard = {id_ for id_, heard in rows if heard}
    if heard:
        await enqueue_hooks(conn, [event for event in events if event.id in heard], now)
    return {row[0] for row in rows}


async def apply_suppressions(conn: Connection, suppressions: Sequence[Suppression], now: datetime | None) -> None:
    """Let nothing of a stream reach these addresses again."""
    if suppressions:
        await conn.execute(SQL.insert_suppressions, *to_columns(suppressions), now)


async def apply_drops(conn: Connection, dropped: Sequence[DroppedAddress], now: datetime | None) -> None:
    """Take these addresses from their users."""
    if dropped:
        await conn.execute(SQL.drop_addresses, *to_columns(sorted(dropped)), now)


async def apply_dead_letters(conn: Connection, letters: Sequence[DeadLetter], now: datetime | None) -> None:
    """Keep what was given up for an operator to look at."""
    if letters:
        await conn.execute(SQL.insert_dead_letters, *to_columns(letters), now)


async def lift_dead_letters(conn: Connection, places: Sequence[tuple[int, UUID]]) -> None:
    """Take back letters, as (project, delivery): they were given up without knowing; now it is proved they went out."""
    if places:
        await conn.execute(SQL.delete_lifted_letters, *to_columns(places))


async def claim_once(conn: Connection, wanted: Mapping[Once, UUID], now: datetime | None) -> dict[Once, UUID]:
    """Claim send-once keys for notifications; answers with whose each is."""
    if not wanted:
        return {}
    rows = await conn.fetch(SQL.claim_once, *to_columns((*place, id_) for place, id_ in sorted(wanted.items())), now)
    return {(row["project_id"], row["target"], row["key"]): row["notification_id"] for row in rows}


async def apply_refunds(conn: Connection, places: Sequence[tuple[int, str, UUID]]) -> None:
    """Give back what notifications hold of which nothing left the house, nor will: their places under limits and their
    send-once keys. Those of which something may have left keep theirs.

    Args:
        places: (project, target, notification) each.
    """
    if not places:
        return
    by_id = {id_: (project, target) for project, target, id_ in places}
    low, high = ids.family_bounds(by_id)
    ordered = sorted(by_id)
    projects = [by_id[id_][0] for id_ in ordered]
    await conn.execute(SQL.lock_runs, ordered, projects, low, high)
    rows = await conn.fetch(
        SQL.list_idle,
        ordered,
        projects,
        *to_columns(map(ids.family_range, ordered)),
        low,
        high,
    )
    idle = [(*by_id[row["id"]], row["id"]) for row in rows]
    if idle:
        await refund(conn, idle)
        await conn.execute(SQL.delete_once, *to_columns(idle))


def to_target(user_id: str | None, channel: int | None, address: str | None) -> str:
    """Whom limits, digests and send-once keys count: the user, or the address of somebody without one. It stands in
    keys, so an address that is too long for one is told by its hash."""
    if user_id is not None:
        return f"u:{user_id}"
    if address is not None and len(address) > _ADDRESS_MAX:
        address = hashlib.sha256(address.encode()).hexdigest()
    return f"{channel}:{address}"


async def forget_once(database: Database, before: datetime) -> None:
    """Delete the send-once keys that broadcasts claimed by themselves before then; in batches."""
    while await database.fetchval(SQL.forget_once, before, FORGET_BATCH) == FORGET_BATCH:
        pass


def to_once_key(key: str, *, test: bool) -> str:
    """A send-once key as it is claimed: what was sent with a test key takes none from what is sent for real.
    (A key given by a caller has no line break.)"""
    return f"test\n{key}" if test else key


def to_columns(rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """The rows as the arrays that `unnest` takes."""
    return [list(column) for column in zip(*rows, strict=True)]
