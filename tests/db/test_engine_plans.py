"""The plans of hot statements: by index and in the right partition, whatever the statistics say.

A queue's tables are empty one minute and hold a million rows the next, so statistics are always out of date here. Each
statement is prepared on empty tables, where its one plan is made, and looked at after they have filled.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from tidings import ids
from tidings.db.partitions import ensure_partitions
from tidings.db.pool import Connection, Database
from tidings.engine.jobs import SQL as JOBS
from tidings.flow.accept import SQL as ACCEPT
from tidings.flow.broadcasts import SQL as BROADCASTS
from tidings.flow.caps import SQL as CAPS
from tidings.flow.digests import SQL as DIGESTS
from tidings.flow.effects import SQL as EFFECTS
from tidings.flow.engagement import SQL as ENGAGEMENT
from tidings.flow.hooks import SQL as HOOKS
from tidings.flow.inbound import SQL as INBOUND
from tidings.flow.inbox import SQL as INBOX
from tidings.flow.intervene import SQL as INTERVENE
from tidings.flow.load import SQL as LOAD
from tidings.flow.plan import SQL as PLAN
from tidings.flow.reader import SQL as READER
from tidings.flow.receipts import SQL as RECEIPTS
from tidings.flow.settle import SQL as SETTLE

RNG = random.Random(5)
TODAY = datetime.now(UTC)
FILL = """
INSERT INTO job (id, due_at, project_id, kind, lane, priority)
SELECT (lpad(to_hex(($1::bigint << 16) + (7 << 12) + n % 4096), 16, '0') || '8' || lpad(to_hex(n), 15, '0'))::uuid,
       $2::timestamptz, 1 + n % 5, 2, $3, 2
FROM generate_series(1, $4::int) n
"""

BESIDE = (
    "INSERT INTO event (id, project_id, notification_id, delivery_id, kind, account_id)"
    " SELECT id, 1, id, id, 2, 8 FROM job",
    "INSERT INTO provider_ref (account_id, provider_id, project_id, delivery_id)"
    " SELECT 7, 'u' || n, 1, NULL FROM generate_series(1, 20000) n",
    "INSERT INTO early_receipt (account_id, provider_id, project_id, mark, report)"
    " SELECT 7, 'u' || n, 1, gen_random_uuid(), '{}' FROM generate_series(1, 20000) n",
    "INSERT INTO project (key, name) VALUES ('filled', '') ON CONFLICT DO NOTHING",
    "INSERT INTO app_user (project_id, id) SELECT p.id, 'u' || n FROM project p, generate_series(1, 20000) n",
    "INSERT INTO address (project_id, user_id, channel, value) SELECT project_id, id, 1, id FROM app_user",
    "INSERT INTO user_engagement (project_id, user_id, channel) SELECT project_id, id, 1 FROM app_user",
    "INSERT INTO suppression (project_id, channel, address, reason, stream)"
    " SELECT project_id, 1, id, 'bounced', id FROM app_user",
    "INSERT INTO idempotency (project_id, key, fingerprint, status, answer, expires_at)"
    " SELECT 1, 'u' || n, '', 202, '{}', now() FROM generate_series(1, 20000) n",
    "INSERT INTO dead_letter (project_id, delivery_id, notification_id, channel, reason, attempts)"
    " SELECT 1, id, id, 1, 'rejected', 1 FROM job",
    "INSERT INTO hook_message (id, project_id, hook_id, event_id, event, body) SELECT id, 1, 1, id, '', '' FROM job",
    "INSERT INTO hook (project_id, key, url, events, secret, secret_key)"
    " SELECT id, 'h', 'https://example.com', '{*}', '', '' FROM project",
    "INSERT INTO digest_window (id, project_id, target, key, type_version_id, opened_at, closes_at, latest_at, reason)"
    " SELECT id, 1, id::text, 'k', 1, now(), now(), now(), '' FROM job ORDER BY job.id LIMIT 20000",
    "INSERT INTO digest_item (project_id, window_id, notification_id) SELECT 1, id, id FROM digest_window",
    "INSERT INTO run (id, project_id, step) SELECT id, 1, 0 FROM job",
    "INSERT INTO send_once (project_id, target, key, notification_id) SELECT 1, 'u' || id, 'u', id FROM job",
    "INSERT INTO broadcast (id, project_id, type_version_id, audience, priority, lanes, status, estimated)"
    " SELECT id, 1, 1, '{}', 2, 2, 2, 1 FROM job ORDER BY job.id LIMIT 20000",
    "INSERT INTO broadcast_cohort (id, project_id, broadcast_id, due_at) SELECT id, 1, id, now() FROM broadcast",
    "UPDATE notification n SET broadcast_id = b.id FROM broadcast b WHERE n.id = b.id",
    "INSERT INTO cap_counter (project_id, target, key) SELECT 1, 'u' || n, 'u' || n FROM generate_series(1, 20000) n",
    "INSERT INTO inbox_counter (project_id, user_id, last_seq)"
    " SELECT 1, 'u' || n, 10000 FROM generate_series(1, 100) n",
    "INSERT INTO inbox_item (project_id, user_id, seq, changed_seq, delivery_id, notification_id, title, body)"
    " SELECT 1, 'u' || n % 10, n, n, id, id, '', '' FROM (SELECT id, row_number() OVER () AS n FROM job) j",
)
"""What else a table holds by then, at least where a statement could read all of it by mistake."""


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def to_literal(value: Any) -> str:
    """A value as PostgreSQL reads it in an EXECUTE."""
    match value:
        case None:
            return "NULL"
        case list():
            items = ("NULL" if item is None else '"' + to_literal(item).strip("'") + '"' for item in value)
            return "'{" + ",".join(items) + "}'"
        case timedelta():
            return f"'{value.total_seconds()} seconds'"
        case _:
            return f"'{value}'"


async def prepare(conn: Connection, name: str, query: str, args: tuple[Any, ...]) -> None:
    """Make the plan that is kept for good, as a worker does with its first call."""
    await conn.execute(f"PREPARE {name} AS {query}")
    await conn.execute(f"EXPLAIN EXECUTE {name} ({', '.join(map(to_literal, args))})")


async def explain(conn: Connection, name: str, args: tuple[Any, ...]) -> dict[str, Any]:
    """How the prepared statement is run, with the buffers that it touched."""
    call = f"EXECUTE {name} ({', '.join(map(to_literal, args))})"
    plan: dict[str, Any] = json.loads(
        await conn.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {call}")
    )[0]["Plan"]
    return plan


def buffers(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def scans(plan: dict[str, Any]) -> list[str]:
    """Tables that were read as a whole."""
    return [node["Relation Name"] for node in nodes(plan) if node["Node Type"] == "Seq Scan" and node["Actual Loops"]]


def rows_handled(plan: dict[str, Any]) -> int:
    """Rows that the busiest step gave or threw away: an index that is read from end to end looks like any other."""
    return max(
        int(node["Actual Rows"] * node["Actual Loops"])
        + int(node.get("Rows Removed by Filter", 0) * node["Actual Loops"])
        + int(node.get("Rows Removed by Join Filter", 0) * node["Actual Loops"])
        for node in nodes(plan)
        if not node["Node Type"].startswith("Bitmap Index")
    )


WAITING = (1, 1, 200, 64, 0, 0, TODAY)


def claiming(n: int) -> tuple[Any, ...]:
    return [1] * 5, [2] * 5, [1, 2, 3, 4, 5], [9] * 5, [n] * 5, timedelta(seconds=30), TODAY


def some(n: int = 50) -> list[UUID]:
    return sorted(ids.new_id(TODAY, RNG) for _ in range(n))


def hot(chosen: list[UUID]) -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Every statement of the road that names its rows, with arguments."""
    n = len(chosen)
    ones, low_high = [1] * n, ids.family_bounds(chosen)
    low, high = low_high
    none: list[None] = [None] * n
    names, seqs = [f"u{i}" for i in range(n)], list(range(1, n + 1))
    families = list(zip(*map(ids.family_range, chosen), strict=True))
    families_low, families_high = list(families[0]), list(families[1])
    targets = [f"u{id_}" for id_ in chosen]
    return {
        "finish_jobs": (JOBS.finish_jobs, (chosen, ones)),
        "retry_jobs": (JOBS.retry_jobs, (chosen, ones, [timedelta(0)] * n, none, ones, TODAY)),
        "extend_leases": (JOBS.extend_leases, (chosen, ones, timedelta(seconds=9), TODAY)),
        "reschedule_jobs": (JOBS.reschedule_jobs, (chosen, ones, ones, ones, [TODAY] * n, TODAY)),
        "advance_jobs": (JOBS.advance_jobs, (chosen, 2, TODAY)),
        "load_jobs": (JOBS.load_jobs, (1, chosen)),
        "release_jobs": (JOBS.release_jobs, (chosen, ones, none)),
        "remove_free_jobs": (JOBS.remove_free_jobs, (1, chosen)),
        "load_users": (ACCEPT.load_users, (ones, names)),
        "load_keys": (ACCEPT.load_keys, (ones, names, TODAY)),
        "load_plans": (READER.load_plans, (chosen, ones, low, high, TODAY)),
        "load_runs": (READER.load_runs, (chosen, ones, low, high)),
        "load_pasts": (READER.load_pasts, (chosen, ones, families_low, families_high, low, high)),
        "load_cases": (READER.load_cases, (chosen, ones, low, high)),
        "load_hours": (READER.load_hours, (ones, names)),
        "claim_once": (EFFECTS.claim_once, (ones, targets, ["u"] * n, chosen, TODAY)),
        "apply_withdrawn": (PLAN.apply_withdrawn, ([1], chosen, low, high, TODAY)),
        "insert_runs": (
            PLAN.insert_runs,
            (chosen, ones, ones, ones, ones, ones, [TODAY] * n, none, none, none, TODAY),
        ),
        "load_deliveries": (LOAD.load_deliveries, (chosen, ones, low, high, TODAY)),
        "lock_cancelled": (SETTLE.lock_cancelled, (chosen, ones, low, high)),
        "lock_deliveries": (SETTLE.lock_deliveries, (chosen, ones, low, high)),
        "update_deliveries": (
            SETTLE.update_deliveries,
            (chosen, ones, [2] * n, none, ones, ones, none, low, [0] * n, TODAY, high),
        ),
        "load_statuses": (INTERVENE.load_statuses, (1, chosen[0], *ids.family_range(chosen[0]))),
        "load_replays": (INTERVENE.load_replays, (1, chosen, low, high, False)),
        "lock_reported": (RECEIPTS.lock_reported, (chosen, ones, [9] * n, low, high, TODAY, chosen)),
        "update_reported": (
            RECEIPTS.update_reported,
            (chosen, ones, [3] * n, none, ones, ones, ones, none, low, high, TODAY),
        ),
        "resolve_refs": (RECEIPTS.resolve_refs, ([7] * n, names, ones, none, TODAY)),
        "take_early_receipts": (RECEIPTS.take_early_receipts, ([7] * n, names, ones)),
        "lift_opt_outs": (INBOUND.lift_opt_outs, (ones, ones, names, names)),
        "drop_addresses": (EFFECTS.drop_addresses, (ones, names, ones, names, TODAY)),
        "delete_lifted_letters": (EFFECTS.delete_lifted_letters, (ones, chosen)),
        "lock_runs": (EFFECTS.lock_runs, (chosen, ones, low, high)),
        "list_idle": (EFFECTS.list_idle, (chosen, ones, families_low, families_high, low, high)),
        "delete_once": (EFFECTS.delete_once, (ones, targets, chosen)),
        "lock_cohorts": (BROADCASTS.lock_cohorts, (chosen, ones, TODAY)),
        "advance_cohort": (
            BROADCASTS.advance_cohort,
            (1, chosen[0], chosen[0], "u5", 50, False, TODAY, 2, None),
        ),
        "end_broadcast": (BROADCASTS.end_broadcast, (1, chosen[0], 4, TODAY)),
        "list_open_cohorts": (BROADCASTS.list_open_cohorts, (1, chosen[0], TODAY)),
        "load_hook_subjects": (
            HOOKS.load_hook_subjects,
            (chosen, ones, chosen, low, high, ones, ["delivery.sent"] * n, TODAY),
        ),
        "load_hook_messages": (HOOKS.load_hook_messages, (chosen, ones)),
        "delete_hook_messages": (HOOKS.delete_hook_messages, (chosen, ones)),
        "fail_hook_messages": (HOOKS.fail_hook_messages, (chosen, ones, ones, names, TODAY)),
        "open_windows": (
            DIGESTS.open_windows,
            (some(n), ones, [str(id_) for id_ in chosen], ["k"] * n, ones, [TODAY] * n, [TODAY] * n, names, TODAY),
        ),
        "insert_items": (DIGESTS.insert_items, (ones, chosen, chosen)),
        "lock_windows": (DIGESTS.lock_windows, (chosen, ones)),
        "load_busy": (DIGESTS.load_busy, (chosen, ones)),
        "load_item_bounds": (DIGESTS.load_item_bounds, (chosen,)),
        "load_expired": (DIGESTS.load_expired, (chosen, ones, low, high, TODAY)),
        "load_digest_items": (DIGESTS.load_items, (chosen, ones, [50] * n, low, high, TODAY)),
        "lock_windows_of": (DIGESTS.lock_windows_of, (1, chosen)),
        "delete_digest_items": (DIGESTS.delete_items, (1, chosen, chosen)),
        "delete_windows": (DIGESTS.delete_windows, (chosen,)),
        "load_whereabouts": (ENGAGEMENT.load_whereabouts, (ones, names)),
        "add_engagement": (
            ENGAGEMENT.add_engagement,
            (ones, names, ones, ones, ones, [TODAY] * n, none, ["{" + ",".join("0" * 24) + "}"] * n),
        ),
        "insert_counters": (CAPS.insert_counters, (ones, names, names)),
        "lock_counters": (CAPS.lock_counters, (ones, names, names)),
        "load_counters": (CAPS.load_counters, (ones, names, names)),
        "update_counters": (CAPS.update_counters, (ones, names, names, ["{}"] * n, [TODAY] * n)),
        "refund_places": (CAPS.refund_places, (ones, names, names)),
        "forget_counters": (CAPS.forget_counters, (0, "", "", 500, TODAY)),
        "lock_engagements": (INBOX.lock_engagements, (1, chosen, low, high)),
        "update_engagements": (INBOX.update_engagements, (1, chosen, ones, low, high)),
        "load_changes": (INBOX.load_changes, (ones, names, seqs, 20)),
        "list_items": (INBOX.list_items, (1, "u1", False, None, 10**9, 50)),
        "list_unread_items": (INBOX.list_unread_items, (1, "u1", None, 10**9, 50)),
        "load_items": (INBOX.load_items, (1, "u1", chosen)),
        "load_unread_items": (INBOX.load_unread_items, (1, "u1", 0, 10**9, 50)),
        "load_unseen_items": (INBOX.load_unseen_items, (1, "u1", 0, 10**9, 50)),
        "update_items": (INBOX.update_items, (1, "u1", seqs, seqs, [TODAY] * n, none, none, none)),
    }


@pytest.mark.timeout(180)
@pytest.mark.parametrize("analyzed", [False, True], ids=["never analyzed", "analyzed empty"])
async def test_rows_are_reached_by_index_in_their_partition(database: Database, analyzed: bool) -> None:
    async with database.acquire() as conn:
        await ensure_partitions(conn, TODAY, days_ahead=28, days_behind=1)
        if analyzed:
            await conn.execute("ANALYZE")
        for name, (query, args) in hot(some()).items():
            await prepare(conn, name, query, args)
        unix_ms = int(TODAY.timestamp() * 1000)
        await conn.execute(FILL, unix_ms, TODAY, 1, 100_000)
        await conn.execute(
            "INSERT INTO delivery (id, project_id, notification_id, channel, status, address)"
            " SELECT id, 1, id, 1, 0, '' FROM job"
        )
        await conn.execute("INSERT INTO notification (id, project_id, priority) SELECT id, 1, 2 FROM job")
        for filling in BESIDE:
            await conn.execute(filling)
        chosen = [row["id"] for row in await conn.fetch("SELECT id FROM job ORDER BY id LIMIT 50")]
        partitions = {row["relname"] for row in await conn.fetch("SELECT relname FROM pg_class WHERE relispartition")}
        today = f"_p{ids.time_of(chosen[0]):%Y%m%d}"
        for name, (_, args) in hot(chosen).items():
            plan = await explain(conn, name, args)
            assert not scans(plan), f"{name} reads whole tables: {scans(plan)}"
            touched = {
                node["Relation Name"]
                for node in nodes(plan)
                if node.get("Relation Name") in partitions and node.get("Actual Loops")
            }
            assert all(relation.endswith(today) for relation in touched), f"{name} touches {touched}"
            assert buffers(plan) < 4_000, f"{name} touches {buffers(plan)} buffers for 50 rows"
            assert rows_handled(plan) < 5_000, f"{name} handles {rows_handled(plan)} rows for 50"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("analyzed", [False, True], ids=["never analyzed", "analyzed empty"])
async def test_a_claim_costs_the_same_whatever_waits(database: Database, analyzed: bool) -> None:
    unix_ms = int(TODAY.timestamp() * 1000)
    costs = []
    async with database.acquire() as conn:
        if analyzed:
            await conn.execute("ANALYZE")
        await prepare(conn, "load_waiting", JOBS.load_waiting, WAITING)
        await prepare(conn, "claim_jobs", JOBS.claim_jobs, claiming(20))
        for size, begin in ((1_000, unix_ms), (200_000, unix_ms + 10_000)):
            await conn.execute(FILL, begin, TODAY - timedelta(seconds=1), 1, size)
            await conn.execute(FILL, begin + 5_000, TODAY + timedelta(days=1), 1, size)  # scheduled
            waiting = await explain(conn, "load_waiting", WAITING)
            assert not scans(waiting)
            claim = await explain(conn, "claim_jobs", claiming(20))
            assert not scans(claim)
            assert claim["Actual Rows"] == 100
            costs.append((buffers(waiting), buffers(claim)))
    (few_waiting, few_claim), (many_waiting, many_claim) = costs
    assert many_waiting < few_waiting * 1.5 + 40, costs
    assert many_claim < few_claim * 1.5 + 40, costs
