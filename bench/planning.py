"""What planning costs: the processor time of a worker that plans and sends nothing.

The worker serves another channel than the one that is planned for, and may plan as far ahead as it likes; so between
its start and the last plan it does nothing else. PostgreSQL is another process, and not counted.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from bench.rows import EMAIL_FEEDER, Row, Scale, Wrong
from bench.stage import USERS, Stage, admin
from tidings.flow.jobs import PLAN
from tidings.model.words import Priority, Status

PEOPLE: Final = 5_000
_CATEGORY: Final = {
    "name": "Orders, with rules",
    "quiet_hours": {"ranges": [{"start": "22:00", "end": "07:00"}]},
    "limits": [{"max": 500, "window": "1d", "then": "defer"}],
}
_TYPE: Final = {
    "category": "ruled",
    "template": "shipped",
    "steps": [{"send": ["email"]}],
    "limits": [{"max": 300, "window": "7d", "then": "drop"}],
}
_FILL_PEOPLE: Final = """
WITH made AS (
    INSERT INTO app_user (project_id, id, locale, time_zone, preferences, quiet_hours)
    SELECT p.id, 'ruled-' || n, 'de-AT', (ARRAY['Europe/Vienna', 'America/New_York', 'Asia/Tokyo', 'UTC'])[n % 4 + 1],
           jsonb_build_object(
               'channels', jsonb_build_object('sms', false, 'email', true),
               'categories', jsonb_build_object(
                   'orders', jsonb_build_object('channels', jsonb_build_object('email', n % 2 = 0)),
                   'ruled', jsonb_build_object('channels', jsonb_build_object('email', true, 'push', n % 3 = 0)),
                   'news-' || n % 500, jsonb_build_object('enabled', false))),
           -- Instead of the category's, and never during the run.
           jsonb_build_object('ranges', jsonb_build_array(
               jsonb_build_object('start', to_char((now() AT TIME ZONE 'UTC') + interval '3 hours', 'HH24:00'),
                                  'end', to_char((now() AT TIME ZONE 'UTC') + interval '5 hours', 'HH24:00'))),
               'time_zone', 'UTC')
    FROM project p, generate_series(0, $1::int - 1) n WHERE p.key = 'bench'
    ON CONFLICT DO NOTHING
    RETURNING project_id, id
)
INSERT INTO address (project_id, user_id, channel, value)
SELECT project_id, id, 1, id || '@example.com' FROM made
"""
_FILL: Final = """
WITH made AS MATERIALIZED (
    SELECT uuidv7() AS id, n FROM generate_series(1, $1::int) n
), notifications AS (
    INSERT INTO notification (id, project_id, type_version_id, user_id, priority, data)
    SELECT m.id, v.project_id, v.id, $7 || m.n % $5::int, $2, json_build_object('order', 'A-' || m.n)
    FROM made m, type_version v WHERE v.type_key = $6
)
INSERT INTO job (id, project_id, kind, lane, priority, due_at)
SELECT m.id, v.project_id, $3, $4, $2, now() - interval '1 hour' + m.n * interval '1 millisecond'
FROM made m, type_version v WHERE v.type_key = $6
"""


async def planning_cpu(stage: Stage, scale: Scale) -> list[Row]:
    """Planning e-mails with and without rules: what users, category and type say, and what the rules cost more."""
    await stage.ask("PUT", "categories/ruled", _CATEGORY)
    await stage.ask("PUT", "types/ruled_email", _TYPE)
    async with admin(stage.server.dsn) as conn:
        await conn.execute(_FILL_PEOPLE, PEOPLE)
        await conn.execute("ANALYZE app_user, address")
    plain, ruled = [], []
    for _ in range(scale.repetitions):
        plain.append(await _measure(stage, scale.planned, "shipped_email", "u-", USERS))
        ruled.append(await _measure(stage, scale.planned, "ruled_email", "ruled-", PEOPLE))
    await stage.discard_backlog()
    title = "Planning with preferences, two limits, quiet hours: Python CPU"
    extras = {"notifications": scale.planned}
    return [
        Row("planning_cpu", title, "µs", ruled, 100, "lower", extras=extras),
        Row("planning_cpu_plain", "… and without any rule", "µs", plain, None, "lower", extras=extras),
    ]


async def _measure(stage: Stage, n: int, *what: Any) -> float:
    """Microseconds of the worker's processor time for each of `n` plans."""
    await stage.discard_backlog(restart=False)
    async with admin(stage.server.dsn) as conn:
        await _fill(conn, n // 10, *what)  # caches are filled by these
        await stage.start_worker("--channels", "chat", planned_ahead=100_000)
        await _wait_planned(conn)
        before = stage.worker.cpu()
        await _fill(conn, n, *what)
        await _wait_planned(conn)
        took = stage.worker.cpu() - before
        made = await conn.fetchval("SELECT count(*) FROM delivery WHERE status = $1", int(Status.queued))
        if made != n + n // 10:
            raise Wrong(f"{made} deliveries wait after {n + n // 10} plans")
    return took / n * 1e6


async def _fill(conn: Any, n: int, type_key: str, prefix: str, users: int) -> None:
    await conn.execute(_FILL, n, int(Priority.medium), PLAN, EMAIL_FEEDER, users, type_key, prefix)


async def _wait_planned(conn: Any) -> None:
    async with asyncio.timeout(60):
        while await conn.fetchval("SELECT EXISTS (SELECT 1 FROM job WHERE lane >= 256)"):
            await asyncio.sleep(0.05)
