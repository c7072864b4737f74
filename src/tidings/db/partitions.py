"""Daily partitions of the flow tables: made ahead, counted for readiness, dropped when nothing points in any more.

The flow tables are range-partitioned on their id, a UUIDv7, so that a day (UTC) is the range from midnight's
milliseconds with all other bits zero to the next midnight's. There is no default partition, on purpose: rows in it
would have to be moved before their day could be made, and nobody would notice that days are missing.

This room knows the names of the tables and that their ids begin with the time, and of their rows nothing.
"""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, date, datetime, time, timedelta
from typing import Final
from uuid import UUID

from tidings.db.pool import Connection
from tidings.db.sql import load_queries
from tidings.ids import first_id_at

TABLES: Final = ("notification", "run", "delivery", "event")

_NAME: Final = re.compile(r"(?P<table>[a-z_]+)_p(?P<day>\d{8})")
_queries: Final = load_queries(__package__, "partitions.sql")


def day_range(day: date) -> tuple[UUID, UUID]:
    """The first UUIDv7 bound of a day (UTC), and that of the next: `first <= id < next`."""
    midnight = datetime.combine(day, time(), UTC)
    return first_id_at(midnight), first_id_at(midnight + timedelta(days=1))


async def ensure_partitions(
    connection: Connection, now: datetime, *, days_ahead: int = 7, days_behind: int = 1
) -> list[str]:
    """Makes the partitions from `days_behind` to `days_ahead` days around `now` that are missing; gives their names.

    Readers and writers are not held up, and any number of processes may call this at once. Joins the transaction that
    the connection is in, or makes one of its own.
    """
    today = now.astimezone(UTC).date()
    days = [today + timedelta(days=offset) for offset in range(-days_behind, days_ahead + 1)]
    wanted = {_name(table, day): (table, day) for day in days for table in TABLES}
    # Looked at without the lock first: nearly always everything is there.
    if not wanted.keys() - await _list_names(connection):
        return []
    async with contextlib.nullcontext() if connection.is_in_transaction() else connection.transaction():
        await connection.execute(_queries.lock_partitions)
        made = sorted(wanted.keys() - await _list_names(connection))
        for name in made:
            table, day = wanted[name]
            await connection.execute(await connection.fetchval(_queries.render_attach, table, name, *day_range(day)))
    return made


async def partitions_ahead(connection: Connection, now: datetime) -> int:
    """How many days after today (UTC) have their partitions without a gap; 0 also if today itself has none."""
    names = await _list_names(connection)
    today = now.astimezone(UTC).date()
    ahead = 0
    while all(_name(table, today + timedelta(days=ahead)) in names for table in TABLES):
        ahead += 1
    return max(0, ahead - 1)


async def drop_partitions(connection: Connection, before: datetime) -> list[str]:
    """Drops the partitions of all days that ended by `before`, save those a job or a digest still points into; gives
    their names.

    Must be called outside of a transaction: a partition is detached concurrently, so that nobody waits for it. An
    interrupted detach is finished by the next call.
    """
    dropped = []
    rows = await connection.fetch(_queries.list_partitions, list(TABLES))
    for row in rows:
        table, name = row["table_name"], row["partition_name"]
        day = _day(name)
        if day is None or datetime.combine(day + timedelta(days=1), time(), UTC) > before:
            continue
        if not row["detaching"] and await connection.fetchval(_queries.any_job, *day_range(day)):
            continue
        how = "FINALIZE" if row["detaching"] else "CONCURRENTLY"
        await connection.execute(f"ALTER TABLE {table} DETACH PARTITION {name} {how}")
        await connection.execute(f"DROP TABLE {name}")
        dropped.append(name)
    return dropped


async def _list_names(connection: Connection) -> set[str]:
    return {row["partition_name"] for row in await connection.fetch(_queries.list_partitions, list(TABLES))}


def _name(table: str, day: date) -> str:
    return f"{table}_p{day:%Y%m%d}"


def _day(partition: str) -> date | None:
    """The day in a partition's name; None for a name that is not ours."""
    found = _NAME.fullmatch(partition)
    if found is None or found["table"] not in TABLES:
        return None
    try:
        return datetime.strptime(found["day"], "%Y%m%d").replace(tzinfo=UTC).date()
    except ValueError:
        return None
