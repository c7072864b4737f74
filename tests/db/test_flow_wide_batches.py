"""Batches whose rows lie far apart: retries beside fresh work. Their statements still touch only their own rows.

The bounds that every statement carries choose the partitions; within one, the range between the oldest and the newest
row of a batch may hold everything that was accepted meanwhile. The one plan of a statement is made on empty tables,
where reading that range looks as cheap as looking rows up one by one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from tidings import ids
from tidings.db.partitions import ensure_partitions
from tidings.db.pool import Database
from tidings.flow.effects import SQL as EFFECTS
from tidings.flow.intervene import SQL as INTERVENE
from tidings.flow.load import SQL as LOAD
from tidings.flow.reader import SQL as READER
from tidings.flow.settle import SQL as SETTLE

ROWS = 20_000
NOW = datetime.now(UTC)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def to_literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, list):
        return "ARRAY[" + ",".join(map(to_literal, value)) + "]"
    return str(value) if isinstance(value, int) else f"'{value}'::{'uuid' if isinstance(value, UUID) else 'text'}"


async def test_a_batch_of_old_and_new_rows_reads_only_its_own(database: Database) -> None:
    rng = random.Random(7)
    first = NOW - timedelta(minutes=1)
    made = sorted(ids.new_id(first + timedelta(milliseconds=n), rng) for n in range(ROWS))
    chosen = made[:25] + made[-25:]
    n, (low, high) = len(chosen), ids.family_bounds(chosen)
    ones = [1] * n
    families = list(zip(*map(ids.family_range, chosen), strict=True))
    lows, highs = list(families[0]), list(families[1])
    statements = {
        "load_plans": (READER.load_plans, (chosen, ones, low, high, None)),
        "load_runs": (READER.load_runs, (chosen, ones, low, high)),
        "load_pasts": (READER.load_pasts, (chosen, ones, lows, highs, low, high)),
        "load_cases": (READER.load_cases, (chosen, ones, low, high)),
        "list_idle": (EFFECTS.list_idle, (chosen, ones, lows, highs, low, high)),
        "load_deliveries": (LOAD.load_deliveries, (chosen, ones, low, high, None)),
        "lock_cancelled": (SETTLE.lock_cancelled, (chosen, ones, low, high)),
        "lock_deliveries": (SETTLE.lock_deliveries, (chosen, ones, low, high)),
        "update_deliveries": (
            SETTLE.update_deliveries,
            (chosen, ones, [4] * n, ["x"] * n, ones, ones, ["x"] * n, low, [4] * n, None, high),
        ),
        "load_replays": (INTERVENE.load_replays, (1, chosen, low, high, False)),
    }
    async with database.acquire() as conn:
        await ensure_partitions(conn, NOW, days_ahead=2)
        for name, (query, args) in statements.items():
            await conn.execute(f"PREPARE {name} AS {query}")
            await conn.execute(f"EXPLAIN EXECUTE {name} ({', '.join(map(to_literal, args))})")  # the plan is made now
        for table in (
            "notification (id, project_id, priority) SELECT id, 1, 2",
            "delivery (id, project_id, notification_id, channel, status, address) SELECT id, 1, id, 1, 4, 'a'",
            "run (id, project_id, step) SELECT id, 1, 0",
        ):
            await conn.execute(f"INSERT INTO {table} FROM unnest($1::uuid[]) AS x (id)", made)
        for name, (_, args) in statements.items():
            call = f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) EXECUTE {name} ({', '.join(map(to_literal, args))})"
            (told,) = json.loads(await conn.fetchval(call))
            most = max(node["Actual Rows"] * node["Actual Loops"] for node in nodes(told["Plan"]))
            assert most <= n * n, f"{name} looked at {most:.0f} rows for {n}"
            assert told["Plan"]["Actual Rows"] == n, f"{name} found not all"
