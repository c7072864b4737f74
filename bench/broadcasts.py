"""Broadcasts to everybody: how fast they expand, and what the road looks like while one goes over it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import statistics
import time
from collections.abc import Collection, Sequence
from typing import Any, Final

from bench.rows import Row, Sampler, Scale, Wrong, to_latencies, to_raw, to_request, to_rounded
from bench.stage import Sink, Stage, admin
from tidings.clock import SystemClock
from tidings.db.pool import Connection, Database
from tidings.directory.catalog import Catalog
from tidings.engine import jobs as queue
from tidings.engine.feed import FeedLanes
from tidings.engine.shares import Share
from tidings.engine.wakes import Wakes
from tidings.flow import broadcasts
from tidings.flow.jobs import EXPAND
from tidings.flow.measure import Meter
from tidings.model.words import Status

CRITICAL_GAP_MS: Final = 200.0
_TYPE: Final = "shipped_webhook"
_DATA: Final = {"order": "A-1", "url": "https://shop.example.com/orders/A-1"}
_FILL_CROWD: Final = """
WITH made AS (
    INSERT INTO app_user (project_id, id, locale, time_zone, attributes)
    SELECT p.id, 'c-' || lpad(n::text, 7, '0'), 'en-GB', 'Europe/Vienna', '{"first_name": "Ada"}'
    FROM project p, generate_series(1, $1::int) n WHERE p.key = 'bench'
    ON CONFLICT DO NOTHING
    RETURNING project_id, id
)
INSERT INTO address (project_id, user_id, channel, value)
SELECT project_id, id, 5, $2 || id FROM made
"""


class NullSink:
    """Stands where the planner stands: expands broadcasts, and takes what they make for done."""

    def __init__(self, database: Database) -> None:
        clock = SystemClock()
        self._database = database
        self._rng = random.Random(1)
        self._catalog = Catalog(database, clock)
        self._meter = Meter(database, clock)

    async def feed(self, shares: Sequence[Share]) -> tuple[int, Collection[int]]:
        """See `FeedHandler`."""

        async def work(conn: Connection) -> int:
            locked = sorted(await queue.lock_jobs(conn, shares, now=None))
            expanding = [job for job in locked if job.kind == EXPAND]
            await queue.finish_jobs(conn, [job for job in locked if job.kind != EXPAND])
            if expanding:
                await broadcasts.expand_cohorts(conn, expanding, None, self._rng, self._catalog, self._meter)
            return len(locked)

        done = await self._database.transaction(work)
        await self._meter.catch_up()
        return done, ()


async def _fill_crowd(stage: Stage, n: int) -> None:
    """Users with a webhook each, if they are not there from another measurement."""
    async with admin(stage.server.dsn) as conn:
        # Their addresses are made with them, so no row has to be looked up for the foreign key.
        await conn.execute("SET session_replication_role = replica")
        await conn.execute(_FILL_CROWD, n, f"http://127.0.0.1:{stage.fast.port}/hooks/")
        await conn.execute("VACUUM (ANALYZE) app_user, address")
    await stage.settle_down()


async def _begin(stage: Stage) -> dict[str, Any]:
    """A broadcast to everybody."""
    ask = {"type": _TYPE, "to": {"all": True}, "data": _DATA, "priority": "low", "confirm": 10_000_000}
    told: dict[str, Any] = await stage.ask("POST", "broadcasts", ask)
    return told


async def broadcast_expansion(stage: Stage, scale: Scale) -> list[Row]:
    """Everybody's notification is made and has its plan job; those are taken from the lane as planning would."""
    await _fill_crowd(stage, scale.crowd)
    await stage.discard_backlog(restart=False)
    await stage.settle_down()
    async with await Database.connect(stage.server.dsn, max_size=3, application_name="bench-sink") as database:
        began, cpu, server = time.monotonic(), time.process_time(), stage.server_cpu()
        told = await _begin(stage)
        accepted = time.monotonic() - began
        stop = asyncio.Event()
        feeding = asyncio.create_task(
            FeedLanes(NullSink(database), database, SystemClock(), Wakes(), ahead=2_000).run(stop)
        )
        with _calm_collector():
            began = time.monotonic()
            while await database.fetchval("SELECT EXISTS (SELECT 1 FROM job)"):
                await asyncio.sleep(0.1)
            took = time.monotonic() - began
        stop.set()
        await feeding
        n = told["estimated"]
        costs = {"python": time.process_time() - cpu, "postgresql": stage.server_cpu() - server}
        made = await database.fetchrow(
            "SELECT count(*) AS made, count(DISTINCT user_id) AS users FROM notification WHERE broadcast_id IS NOT NULL"
        )
        assert made is not None  # an aggregate
    ended = await stage.ask("GET", f"broadcasts/{told['id']}")
    checked = {"estimated": n, "expanded": ended["expanded"], **dict(made)}
    if set(checked.values()) != {n} or ended["status"] != "done":
        raise Wrong(f"{checked}, {ended['status']}")
    await stage.discard_backlog()
    extras = {
        "checked": checked,
        "accepted_after_seconds": to_rounded(accepted),
        **{f"cpu_us_{name}": to_rounded(spent / n * 1e6) for name, spent in costs.items()},
    }
    title = f"Broadcast to {scale.crowd:,}: expansion into a lane that is emptied"
    return [Row("broadcast_expansion", title, "/s", [n / took], 20_000, extras=extras)]


@contextlib.contextmanager
def _calm_collector() -> Any:
    """As in a worker."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


async def broadcast_live(stage: Stage, scale: Scale) -> list[Row]:
    """A broadcast on its way over HTTP, for a while, with a critical message now and then."""
    await _fill_crowd(stage, scale.crowd)
    await stage.discard_backlog()
    await stage.forget_receipts()
    # The critical ones go to a receiver of their own: the ids of deliveries are told apart by their first half only.
    sink = await Sink.open("critical stub", stage.folder / "critical.log", "http")
    try:
        for n in range(10):
            hooks = {"webhook": [f"http://127.0.0.1:{sink.port}/hooks/critical-{n}"]}
            await stage.ask("PUT", f"users/zz-{n}", {"addresses": hooks})
        return await _measure_live(stage, scale, sink)
    finally:
        await sink.stop()


async def _measure_live(stage: Stage, scale: Scale, sink: Sink) -> list[Row]:
    async def count_jobs() -> float:
        return float(await stage.database.fetchval("SELECT count(*) AS bench_look FROM job"))

    async def rss() -> float:
        return stage.worker.rss() / 1e6

    bodies = [to_raw(to_request(n, "webhook", f"zz-{n % 10}", priority="critical")) for n in range(100)]
    told = await _begin(stage)
    await asyncio.sleep(scale.live_seconds / 10)  # until it runs at full speed
    began, before = time.monotonic(), (await stage.sink_stats(stage.fast))["count"]
    async with Sampler(count_jobs, 0.25) as jobs, Sampler(rss, 0.25) as memory:
        outcome = await stage.load(
            kind="paced",
            requests=round(scale.live_seconds * 1000 / (CRITICAL_GAP_MS + 10)),
            gap_ms=(CRITICAL_GAP_MS, CRITICAL_GAP_MS),
            bodies=bodies,
        )
    sent, seconds = (await stage.sink_stats(stage.fast))["count"] - before, time.monotonic() - began
    await asyncio.sleep(2.0)  # what is not there after two seconds more counts as lost
    took = to_latencies(outcome, await stage.receipts(sink))
    await stage.ask("POST", f"broadcasts/{told['id']}/cancel")
    await stage.wait_settled()
    ended = await stage.ask("GET", f"broadcasts/{told['id']}")
    checked = await _check_live(stage, ended["expanded"])
    await stage.discard_backlog()
    third = max(1, len(memory.values) // 3)
    first, last = statistics.mean(memory.values[:third]), statistics.mean(memory.values[-third:])
    whole = {
        "seconds": to_rounded(seconds),
        "sent_per_second_meanwhile": to_rounded(sent / seconds),
        "checked": checked,
    }
    grown = {"first_mb": to_rounded(first), "last_mb": to_rounded(last), "most_mb": to_rounded(max(memory.values))}
    late = {"p50_ms": to_rounded(statistics.median(took)), "longest_ms": to_rounded(took[-1]), "messages": len(took)}
    tail = took[min(len(took) - 1, int(0.99 * len(took)))]
    return [
        Row("broadcast_live_jobs", "While a broadcast goes over HTTP: jobs, at most", "", [max(jobs.values)], 50_000,
            "lower", extras=whole),
        Row("broadcast_live_memory", "… worker memory, last third ÷ first third", "×", [last / first], 1.1,
            "lower", extras=grown),
        Row("broadcast_live_critical", "… critical messages, accept → provider, p99", "ms", [tail], 500,
            "lower", extras=late),
    ]  # fmt: skip


async def _check_live(stage: Stage, expanded: int) -> dict[str, int]:
    """Each user has one notification; what was sent came once, and the rest was cancelled."""
    row = await stage.database.fetchrow(
        "SELECT count(*) AS made, count(DISTINCT user_id) AS users FROM notification WHERE broadcast_id IS NOT NULL"
    )
    sent = await stage.database.fetchval(
        "SELECT count(*) FROM delivery d"
        " JOIN notification n ON n.project_id = d.project_id AND n.id = d.notification_id"
        " WHERE n.broadcast_id IS NOT NULL AND d.status = $1",
        int(Status.delivered),
    )
    assert row is not None  # an aggregate
    came = (await stage.sink_stats(stage.fast))["count"]
    checked = {"expanded": expanded, "made": row["made"], "users": row["users"], "sent": sent, "came": came}
    if not (row["made"] == row["users"] == expanded and sent == came):
        raise Wrong(str(checked))
    return checked
