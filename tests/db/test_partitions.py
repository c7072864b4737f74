"""Daily partitions: bounds, making at once from many sides, counting, dropping only what no job points into."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from tidings.db.partitions import TABLES, day_range, drop_partitions, ensure_partitions, partitions_ahead
from tidings.db.pool import Database
from tidings.ids import child_id, new_id

NOON = datetime(2031, 3, 14, 12, tzinfo=UTC)
RNG = random.Random(1)
INSERT_RUN = "INSERT INTO run (id, project_id, step) VALUES ($1, 1, 0)"


def test_day_bounds_are_midnights_with_zero_bits() -> None:
    first, following = day_range(NOON.date())
    midnight = int(datetime(2031, 3, 14, tzinfo=UTC).timestamp() * 1000)
    assert first == UUID(int=midnight << 80)
    assert following.int - first.int == 86_400_000 << 80


async def test_many_makers_make_each_partition_once(database: Database) -> None:
    async def make() -> list[str]:
        return await database.transaction(lambda connection: ensure_partitions(connection, NOON))

    made = [name for names in await asyncio.gather(*(make() for _ in range(5))) for name in names]
    assert len(made) == len(set(made)) == 9 * len(TABLES)
    assert "notification_p20310314" in made
    assert await make() == []


async def test_rows_find_their_day_and_the_indexes_are_there(database: Database) -> None:
    async with database.acquire() as connection:
        await ensure_partitions(connection, NOON, days_ahead=0, days_behind=0)
        last_instant = datetime(2031, 3, 14, 23, 59, 59, 999_000, tzinfo=UTC)
        parent = new_id(last_instant, RNG)
        await connection.execute(INSERT_RUN, parent)
        await connection.execute(INSERT_RUN, child_id(parent, RNG))
        assert await connection.fetchval("SELECT count(*) FROM run_p20310314") == 2
        with pytest.raises(asyncpg.CheckViolationError, match="no partition"):
            await connection.execute(INSERT_RUN, new_id(last_instant + timedelta(milliseconds=1), RNG))
        invalid = await connection.fetchval("SELECT count(*) FROM pg_index WHERE NOT indisvalid")
        assert invalid == 0


async def test_writers_are_not_held_up_while_partitions_are_made(database: Database) -> None:
    now = datetime.now(UTC)
    async with database.acquire() as writer, database.acquire() as maker:
        transaction = writer.transaction()
        await transaction.start()
        await writer.execute(INSERT_RUN, new_id(now, RNG))
        # Would fail on the lock time-out if the parent had to be locked against writers.
        await maker.execute("SET lock_timeout = '2s'")
        assert await ensure_partitions(maker, NOON)
        await transaction.rollback()


async def test_days_ahead_are_counted_up_to_the_first_gap(database: Database) -> None:
    async with database.acquire() as connection:
        assert await partitions_ahead(connection, NOON) == 0
        await ensure_partitions(connection, NOON, days_ahead=3)
        assert await partitions_ahead(connection, NOON) == 3
        assert await partitions_ahead(connection, NOON + timedelta(days=2)) == 1
        await connection.execute("DROP TABLE delivery_p20310316")
        assert await partitions_ahead(connection, NOON) == 1


async def test_only_days_without_jobs_are_dropped(database: Database) -> None:
    async with database.acquire() as connection:
        await drop_partitions(connection, NOON)  # those of the template
        await ensure_partitions(connection, NOON, days_ahead=0, days_behind=3)
        busy = NOON - timedelta(days=2)
        await connection.execute(
            "INSERT INTO job (id, due_at, project_id, kind, lane, priority) VALUES ($1, now(), 1, 0, 0, 0)",
            new_id(busy, RNG),
        )
        dropped = await drop_partitions(connection, NOON)
        assert sorted(dropped) == sorted(f"{t}_p{d}" for t in TABLES for d in ("20310311", "20310313"))
        await connection.execute("DELETE FROM job")
        assert sorted(await drop_partitions(connection, NOON)) == sorted(f"{t}_p20310312" for t in TABLES)
        assert await drop_partitions(connection, NOON) == []
        left = await connection.fetchval(
            "SELECT count(*) FROM pg_class WHERE relname LIKE '%\\_p2031%' AND relkind = 'r'"
        )
        assert left == len(TABLES)  # today's, attached still
