"""The plans of what walks through audiences and imports users: by index, a bounded number of rows a page.

As in test_engine_plans, whose ways are used here: each statement is prepared on empty tables, where its one plan is
made, and looked at after they have filled.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from tests.db.test_engine_plans import buffers, explain, nodes, prepare, rows_handled, scans
from tidings import ids
from tidings.db.pool import Database
from tidings.directory.imports import _queries as IMPORTS
from tidings.flow.audience import SQL, Audience, Others, People, _complete, _meant, _wanted
from tidings.flow.broadcasts import SQL as BROADCASTS

RNG = random.Random(6)
USERS = 100_000
SOME = [f"u{n}" for n in range(0, 50_000, 1_000)]
SEGMENT = {"half": {"user": "plan", "is": "a"}}
OUT = People(users=("u1",), topics=("b", "x/#"))
OTHERS = Others(["Europe/Berlin"], datetime(2020, 1, 1, tzinfo=UTC), "k")

FILL = (
    "INSERT INTO project (id, key, name) OVERRIDING SYSTEM VALUE SELECT n, 'p' || n, '' FROM generate_series(1, 3) n",
    "INSERT INTO app_user (project_id, id, time_zone, attributes)"
    f" SELECT 1 + n % 3, 'u' || n, (ARRAY['Europe/Berlin', 'Asia/Tokyo', NULL])[1 + n % 3], '{{\"plan\": \"a\"}}'"
    f" FROM generate_series(1, {3 * USERS}) n",
    "INSERT INTO topic (project_id, key) SELECT p, k FROM generate_series(1, 3) p, unnest(ARRAY['a', 'b', 'c']) k",
    "INSERT INTO topic (project_id, key) SELECT p, 'x/' || n FROM generate_series(1, 3) p, generate_series(1, 20000) n",
    "INSERT INTO topic_member (project_id, topic_key, user_id) SELECT u.project_id, k, u.id FROM app_user u,"
    " unnest(ARRAY['a', 'b']) k",
    "INSERT INTO send_once (project_id, target, key, notification_id)"
    " SELECT project_id, 'u:' || id, 'k', gen_random_uuid() FROM app_user",
    "INSERT INTO address (project_id, user_id, channel, value) SELECT project_id, id, 1, id FROM app_user",
    "INSERT INTO broadcast (id, project_id, type_version_id, audience, priority, lanes, status, estimated)"
    " SELECT gen_random_uuid(), 1 + n % 3, 1, '{}', 2, 2, 2, 1 FROM generate_series(1, 20000) n",
    "INSERT INTO broadcast_cohort (id, project_id, broadcast_id, due_at)"
    " SELECT gen_random_uuid(), project_id, id, now() FROM broadcast",
)


def paged(block: str, audience: Audience, *args: Any) -> tuple[str, tuple[Any, ...]]:
    text, more = _complete(block, audience, len(args) + 1)
    return text, tuple(list(arg) if isinstance(arg, tuple) else arg for arg in (*args, *more))


def statements(cohort: UUID, broadcast: UUID) -> dict[str, tuple[str, tuple[Any, ...]]]:
    named = Audience(People(users=tuple(SOME)), OUT)
    walking = Audience(People(users=("u1",), topics=("x/#",), segments=SEGMENT), OUT)
    wanted = _wanted(1, named, None, None)
    zones = _wanted(1, named, ["Europe/Berlin", "Asia/Tokyo"], None)
    others = _wanted(1, walking, None, OTHERS)
    meant = _meant(walking.to)
    n = len(SOME)
    ones, none = [1] * n, [None] * n
    return {
        "page_named": paged(SQL.page_named, named, *wanted, SOME, ["a", "b", "c"], "u2", 500, 500),
        "page_named in zones": paged(SQL.page_named, named, *zones, SOME, ["a", "b"], "u2", 500, 100),
        "page_all": paged(SQL.page_all, walking, *wanted, *meant, "u2", 500, 100),
        "page_all others": paged(SQL.page_all, walking, *others, *meant, "u2", 500, 100),
        "page_zone": paged(SQL.page_zone, walking, *wanted, *meant, "u2", 500, 100, "Europe/Berlin"),
        "list_zones": (SQL.list_zones, (1,)),
        "list_matching_topics": (SQL.list_matching_topics, (1, "x", "x0", "x/", 17)),
        "lock_cohorts": (BROADCASTS.lock_cohorts, ([cohort], [1], None)),
        "list_open_cohorts": (BROADCASTS.list_open_cohorts, (1, broadcast, None)),
        "advance_cohort": (
            BROADCASTS.advance_cohort,
            (1, broadcast, cohort, "u", 1, True, datetime(2026, 1, 1, tzinfo=UTC), 2, None),
        ),
        "end_broadcast": (BROADCASTS.end_broadcast, (1, broadcast, 4, datetime(2026, 1, 1, tzinfo=UTC))),
        "hold_imported": (IMPORTS.hold_imported, (1, SOME)),
        "delete_replaced_addresses": (IMPORTS.delete_replaced_addresses, (1, SOME, ones, SOME, ones, SOME)),
        "upsert_users": (IMPORTS.upsert_users, (1, SOME, none, none, none, ["{}"] * n)),
    }


@pytest.mark.timeout(180)
@pytest.mark.parametrize("analyzed", [False, True], ids=["never analyzed", "analyzed empty"])
async def test_a_page_costs_what_it_looks_at(database: Database, analyzed: bool) -> None:
    nothing = ids.new_id(datetime.now(UTC), RNG)
    async with database.acquire() as conn:
        if analyzed:
            await conn.execute("ANALYZE")
        names = {name: f"s{i}" for i, name in enumerate(statements(nothing, nothing))}
        for name, (query, args) in statements(nothing, nothing).items():
            await prepare(conn, names[name], query, args)
        for filling in FILL:
            await conn.execute(filling, timeout=120)
        row = await conn.fetchrow("SELECT id, broadcast_id FROM broadcast_cohort WHERE project_id = 1 LIMIT 1")
        assert row is not None
        for name, (_, args) in statements(*row).items():
            plan = await explain(conn, names[name], args)
            assert not scans(plan), f"{name} reads whole tables: {scans(plan)}"
            assert rows_handled(plan) < 6_000, f"{name} handles {rows_handled(plan)} rows"
            assert buffers(plan) < 20_000, f"{name} touches {buffers(plan)} buffers"
            sorts = [node for node in nodes(plan) if node["Node Type"] == "Sort" and node.get("Actual Rows", 0) > 6_000]
            assert not sorts, f"{name} sorts {sorts}"
