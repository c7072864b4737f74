"""What is measured: one function per row of the table, all on one stage; `bench.main` has their order.

A row's value is the median of its repetitions; its spread is their smallest and largest. Every end-to-end row checks
what it claims: each message was received exactly once and each delivery is settled.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import msgspec
import psutil

from bench import peers
from bench.inboxes import Inboxes
from bench.load import Outcome
from bench.stage import SLOW_MS, USERS, Sink, Stage, admin, to_other_database
from tidings import ids
from tidings.client import AsyncClient
from tidings.db.migrate import migrate
from tidings.db.pool import Connection, Database
from tidings.engine import jobs as queue
from tidings.engine.jobs import FEEDER, LAST_FEEDER
from tidings.engine.shares import Share
from tidings.flow.jobs import PLAN, SEND
from tidings.model.words import Channel, Priority, Status

BATCH: Final = "/api/v1/notifications/batch"
WEBHOOK_LANE: Final = int(Channel.webhook)
WEBHOOK_FEEDER: Final = FEEDER + (1 << Channel.webhook)
EMAIL_FEEDER: Final = FEEDER + (1 << Channel.email)


@dataclass(frozen=True)
class Scale:
    """How much is done; `--quick` is only there to see that everything works."""

    repetitions: int = 3
    idle: int = 100
    single_seconds: float = 6.0
    batch: int = 60_000
    http: int = 30_000
    mail: int = 20_000
    vendor: int = 20_000
    backlog: int = 1_000_000
    critical: int = 100
    claims: int = 200
    planned: int = 20_000
    crowd: int = 1_000_000
    live_seconds: float = 60.0
    tasks: int = 5_000
    raw: int = 40_000


QUICK: Final = Scale(
    repetitions=1, idle=10, single_seconds=1.0, batch=5_000, http=2_000, mail=2_000, vendor=2_000, backlog=20_000,
    critical=10, claims=10, planned=2_000, crowd=20_000, live_seconds=4.0, tasks=300, raw=5_000,
)  # fmt: skip


@dataclass
class Row:
    """One line of the table."""

    name: str
    title: str
    unit: str
    values: list[float]
    bar: float | None = None
    better: Literal["higher", "lower"] = "higher"
    kind: Literal["product", "harness", "peer"] = "product"
    extras: dict[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def holds(self) -> bool | None:
        """Whether the bar is met; None without a bar."""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.better == "higher" else self.value < self.bar

    def to_dict(self) -> dict[str, Any]:
        """As it stands in latest.json."""
        return {
            "name": self.name,
            "title": self.title,
            "value": to_rounded(self.value),
            "unit": self.unit,
            "bar": self.bar,
            "better": self.better,
            "holds": self.holds,
            "spread": [to_rounded(min(self.values)), to_rounded(max(self.values))],
            "repetitions": len(self.values),
            "kind": self.kind,
            **self.extras,
        }


def to_rounded(value: float) -> float:
    return round(value) if abs(value) >= 1_000 else round(value, 3 if abs(value) < 10 else 1)


class Wrong(Exception):
    """A measurement that measured something else: messages lost, doubled, or not settled."""


# ---------------------------------------------------------------- what is sent


def to_request(n: int, channel: str, user: str, **more: Any) -> dict[str, Any]:
    data = {"order": f"A-{n}", "url": f"https://shop.example.com/orders/A-{n}"}
    return {"type": f"shipped_{channel}", "to": {"user": user}, "data": data, **more}


def to_raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def _singles(channel: str, **more: Any) -> list[msgspec.Raw]:
    return [to_raw(to_request(n, channel, f"u-{n}", **more)) for n in range(USERS)]


def _batches(channel: str, count: int, **more: Any) -> list[msgspec.Raw]:
    """`count` notifications in requests of a thousand."""
    return [
        to_raw({"notifications": [to_request(start + n, channel, f"u-{n}", **more) for n in range(1_000)]})
        for start in range(0, count, 1_000)
    ]


# ---------------------------------------------------------------- costs


class Costs:
    """Processor time and statements between two moments."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._lines: list[dict[str, float]] = []
        self._cpu: dict[str, float] = {}
        self._statements: dict[str, float] = {}

    async def begin(self) -> None:
        """Here it begins."""
        self._statements = await self._stage.statements()
        self._cpu = self._stage.cpu()

    async def end(self, n: int, outcome: Outcome) -> None:
        """Here it ends, after `n` notifications."""
        cpu = self._stage.cpu()
        statements = await self._stage.statements()
        line = {f"cpu_us_{group}": (cpu[group] - self._cpu[group]) / n * 1e6 for group in cpu}
        line["cpu_us_generator"] = outcome.cpu_seconds / n * 1e6
        line["cpu_us_total"] = sum(line.values())
        line |= {name: (statements[name] - self._statements[name]) / n for name in statements}
        line["generator_load"] = outcome.cpu_seconds / outcome.seconds
        self._lines.append(line)

    def to_extras(self) -> dict[str, Any]:
        """The median of each cost: microseconds of processor time and statements, per notification."""
        return {
            "per_notification": {
                name: round(statistics.median(line[name] for line in self._lines), 3 if "cpu" not in name else 1)
                for name in self._lines[0]
            }
        }


async def _verify(
    stage: Stage, sink: Sink | None, n: int, status: Status, since: int, *, distinct: bool
) -> dict[str, int]:
    """Each of the last `n` messages came once and is settled.

    Args:
        sink: what received them; None if it counts nothing.
        since: how many deliveries of this status there were before.
        distinct: the sink knows one message from another.
    """
    checked = {"accepted": n, "settled": await _count_deliveries(stage, status) - since}
    if sink is not None:
        checked["receipts"] = (await stage.sink_stats(sink))["count"]
    if sink is not None and distinct:
        checked["distinct"] = len(await stage.receipts(sink))
    if set(checked.values()) != {n}:
        raise Wrong(f"{checked} as {status.name}")
    return checked


async def _count_deliveries(stage: Stage, status: Status) -> int:
    async with admin(stage.server.dsn) as conn:
        return int(await conn.fetchval("SELECT count(*) AS bench_look FROM delivery WHERE status = $1", int(status)))


# ---------------------------------------------------------------- the rows


async def idle_latency(stage: Stage, scale: Scale) -> list[Row]:
    """One message at a time on an idle system: from the first byte of the request to the provider's receipt."""
    medians, tails, answers = [], [], []
    for repetition in range(scale.repetitions):
        await stage.wait_settled()
        await stage.forget_receipts()
        # Long gaps: everything is asleep when a message comes.
        outcome = await stage.load(
            kind="paced", requests=scale.idle, gap_ms=(20, 60), seed=repetition, bodies=_singles("webhook")
        )
        await stage.wait_settled(stage.fast, scale.idle)
        took = to_latencies(outcome, await stage.receipts(stage.fast))
        medians.append(statistics.median(took))
        tails.append(took[min(len(took) - 1, int(0.99 * len(took)))])
        answers.append(outcome.latencies_ms[0])
    extras = {"p99_ms": to_rounded(statistics.median(tails)), "accepted_p50_ms": to_rounded(statistics.median(answers))}
    return [
        Row(
            "idle_latency",
            "Idle system, accept → provider, one message, p50",
            "ms",
            medians,
            15,
            "lower",
            extras=extras,
        )
    ]


def to_latencies(outcome: Outcome, receipts: dict[str, int]) -> list[float]:
    """Milliseconds from sending each request to its receipt, sorted."""
    came = {}
    for text, at in receipts.items():
        if (delivery := ids.parse_public(ids.DELIVERY, text)) is not None:
            came[delivery.int >> 64] = at  # a delivery shares its first eight bytes with its notification
    took = []
    for sent_ns, text in outcome.sent:
        notification = ids.parse_public(ids.NOTIFICATION, text)
        if notification is None or notification.int >> 64 not in came:
            raise Wrong(f"{text} was accepted and never came")
        took.append((came[notification.int >> 64] - sent_ns) / 1e6)
    return sorted(took)


async def single_post(stage: Stage, scale: Scale) -> list[Row]:
    """Single requests from 64 connections; every answer is durable; the worker sends what comes meanwhile."""
    rates, tails, halves, costs = [], [], [], Costs(stage)
    await stage.load(kind="closed", connections=64, requests=2_000, bodies=_singles("webhook"))
    for _ in range(scale.repetitions):
        await stage.wait_settled()
        await stage.settle_down()
        await costs.begin()
        outcome = await stage.load(
            kind="closed", connections=64, requests=1_000_000, seconds=scale.single_seconds, bodies=_singles("webhook")
        )
        await stage.wait_settled()
        await costs.end(outcome.requests, outcome)
        rates.append(outcome.requests / outcome.seconds)
        halves.append(outcome.latencies_ms[0])
        tails.append(outcome.latencies_ms[2])
    extras = {"p50_ms": to_rounded(statistics.median(halves)), **costs.to_extras()}
    return [
        Row("single_post", "Single POST, durable before 202, 64 connections", "/s", rates, 2_000, extras=extras),
        Row("single_post_p99", "… and its p99", "ms", tails, 100, "lower"),
    ]


async def batch_accept(stage: Stage, scale: Scale) -> list[Row]:
    """A thousand a request, once due now (the worker drains meanwhile), once scheduled for tomorrow."""
    rows = []
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    variants: list[tuple[str, str, float | None, dict[str, Any]]] = [
        ("batch_accept", "Batch accept, 1,000 a request, worker draining", 20_000, {}),
        ("batch_accept_scheduled", "Batch accept, 1,000 a request, scheduled ahead", None, {"send_at": tomorrow}),
    ]
    for name, title, bar, more in variants:
        rates, waits, costs = [], [], Costs(stage)
        for _ in range(scale.repetitions):
            await stage.discard_backlog()
            await stage.settle_down()
            await costs.begin()
            outcome = await stage.load(
                kind="closed", path=BATCH, connections=4, requests=scale.batch // 1_000,
                bodies=_batches("webhook", scale.batch, **more),
            )  # fmt: skip
            await costs.end(outcome.requests * 1_000, outcome)
            rates.append(outcome.requests * 1_000 / outcome.seconds)
            waits.append(outcome.latencies_ms[0])
        extras = {"p50_ms_per_request": to_rounded(statistics.median(waits)), **costs.to_extras()}
        rows.append(Row(name, title, "/s", rates, bar, extras=extras))
    await stage.discard_backlog()
    return rows


async def e2e_http(stage: Stage, scale: Scale) -> list[Row]:
    """Accepted in batches, planned, rendered, POSTed with a signature, answered 200, settled."""
    return [await _end_to_end(stage, scale, "webhook", stage.fast, scale.http, Status.delivered, 3_000)]


async def e2e_smtp(stage: Stage, scale: Scale) -> list[Row]:
    """The same for personalised e-mails with HTML and text over SMTP."""
    return [await _end_to_end(stage, scale, "email", stage.mail, scale.mail, Status.sent, 2_000)]


async def _end_to_end(stage: Stage, scale: Scale, channel: str, sink: Sink, n: int, status: Status, bar: float) -> Row:
    name, what = ("e2e_http", "an HTTP provider") if channel == "webhook" else ("e2e_smtp", "SMTP, HTML and text")
    return await measure_end_to_end(
        stage,
        scale,
        name=name,
        title=f"End to end over {what}",
        bodies=lambda count: _batches(channel, count),
        sink=sink,
        n=n,
        status=status,
        bar=bar,
        distinct=True,
    )


async def measure_end_to_end(
    stage: Stage,
    scale: Scale,
    *,
    name: str,
    title: str,
    bodies: Callable[[int], list[msgspec.Raw]],
    sink: Sink | None,
    n: int,
    status: Status,
    bar: float,
    distinct: bool = False,
) -> Row:
    """Accept `n` notifications in batches, and wait until each is answered and settled.

    Args:
        sink: where they go; None if that counts nothing.
        status: what each delivery is at the end.
        distinct: the sink knows one message from another.
    """
    rates, costs, peak = [], Costs(stage), 0
    checked: dict[str, int] = {}
    await stage.load(kind="closed", path=BATCH, connections=1, requests=2, bodies=bodies(2_000))
    for _ in range(scale.repetitions):
        await stage.wait_settled()
        await stage.settle_down()
        await stage.forget_receipts(*([sink] if sink is not None else []))
        before = await _count_deliveries(stage, status)
        await costs.begin()
        outcome = await stage.load(kind="closed", path=BATCH, connections=4, requests=n // 1_000, bodies=bodies(n))
        ended_ns = await stage.wait_settled(sink, n)
        await costs.end(n, outcome)
        rates.append(n / ((ended_ns - outcome.began_ns) / 1e9))
        peak = max(peak, stage.worker.rss())
        checked = await _verify(stage, sink, n, status, before, distinct=distinct)
    extras = {"checked": checked, "worker_rss_mb": to_megabytes(peak), **costs.to_extras()}
    return Row(name, title, "/s", rates, bar, extras=extras)


def to_megabytes(octets: float) -> float:
    return to_rounded(octets / 1e6)


async def live_inboxes(stage: Stage, scale: Scale) -> list[Row]:
    """An item for each of 1,000 inboxes that are open as event streams at one API process, all in one batch request.

    The row's time is from storing (the beginning of the transaction that also settles the delivery) to the client's
    socket; from the request on, the road of a thousand messages comes before it.
    """
    async with AsyncClient(stage.api_url, stage.api_key) as client:
        await client.templates.put("inbox", name="Inbox")
        fields = {"title": "Order {{ order }} is on its way", "body": "Follow it.", "url": "{{ url }}"}
        content = {"default_locale": "en", "channels": {"in_app": {"en": fields}}}
        made = await client.templates.create_version("inbox", content)
        await client.templates.publish("inbox", made.version)
        await client.types.put("shipped_in_app", category="orders", template="inbox", steps=[{"send": ["in_app"]}])
        tokens = [(await client.users.create_token(f"u-{n}")).token for n in range(USERS)]
    inboxes = Inboxes()
    tails, halves, roads, costs = [], [], [], Costs(stage)
    try:
        await inboxes.open(stage.api_port, tokens)
        for repetition in range(scale.repetitions + 1):
            await stage.wait_settled()
            await costs.begin()
            outcome = await stage.load(
                kind="closed", path=BATCH, connections=1, requests=1, bodies=_batches("in_app", USERS)
            )
            told = await inboxes.take(USERS)
            if len({item.id for item in told}) != USERS:
                raise Wrong(f"{USERS} items were told as {len({item.id for item in told})} different ones")
            if not repetition:  # the first one warms up
                continue
            await costs.end(USERS, outcome)
            took = sorted((item.told_at - item.stored_at) * 1e3 for item in told)
            road = sorted((item.told_ns - outcome.began_ns) / 1e6 for item in told)
            halves.append(statistics.median(took))
            tails.append(took[int(0.99 * len(took))])
            roads.append(road[int(0.99 * len(road))])
    finally:
        inboxes.close()
    extras = {
        "p50_ms": to_rounded(statistics.median(halves)),
        "request_to_client_p99_ms": to_rounded(statistics.median(roads)),
        "api_rss_mb": to_megabytes(stage.api.rss()),
        **costs.to_extras(),
    }
    title = "1,000 live inboxes at one API process, stored → told, p99"
    return [Row("live_inboxes", title, "ms", tails, 200, "lower", extras=extras)]


# ---------------------------------------------------------------- a large backlog


_FILL_BACKLOG: Final = """
WITH made AS MATERIALIZED (
    SELECT uuidv7() AS id, n FROM generate_series(1, $1::int) n
), notifications AS (
    INSERT INTO notification (id, project_id, type_version_id, user_id, priority, data)
    SELECT m.id, v.project_id, v.id, 'slow-' || m.n % 100, $2, json_build_object('order', 'A-' || m.n)
    FROM made m, type_version v WHERE v.type_key = 'shipped_webhook'
)
INSERT INTO job (id, project_id, kind, lane, priority, due_at)
SELECT m.id, v.project_id, $3, $4, $2, now() - interval '1 hour' + m.n * interval '1 millisecond'
FROM made m, type_version v WHERE v.type_key = 'shipped_webhook'
"""
"""Low-priority notifications as the API would have stored them, each with its plan job; by SQL, because a million of
them over the API would only make the set-up longer."""


async def _fill_backlog(stage: Stage, n: int) -> None:
    async with admin(stage.server.dsn) as conn:
        await conn.execute(_FILL_BACKLOG, n, int(Priority.low), PLAN, WEBHOOK_FEEDER)
        await conn.execute("VACUUM (ANALYZE) job")
        await conn.execute("ANALYZE notification")
    await stage.settle_down()


class Sampler:
    """Looks at something regularly while its block runs: `async with Sampler(look, 0.1) as seen: … seen.values`."""

    def __init__(self, look: Callable[[], Awaitable[float]], every: float) -> None:
        self._look = look
        self._every = every
        self.values: list[float] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Sampler:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            self.values.append(await self._look())
            await asyncio.sleep(self._every)


async def large_backlog(stage: Stage, scale: Scale) -> list[Row]:
    """Critical messages among due low ones that go to a slow provider; the worker's memory with few and many due."""

    async def rss() -> float:
        with contextlib.suppress(psutil.NoSuchProcess):  # between two workers
            return stage.worker.rss() / 1e6
        return 0.0

    async def in_flight() -> float:
        return (await stage.sink_stats(stage.slow))["in_flight"]

    await stage.discard_backlog(restart=False)
    await _fill_backlog(stage, 1_000)
    await stage.forget_receipts()
    await stage.start_worker()
    async with Sampler(rss, 0.05) as few:
        await stage.wait_settled(stage.slow, 1_000)

    await stage.worker.stop()
    await _fill_backlog(stage, scale.backlog)
    size = f"{scale.backlog:,}"
    rows = []
    async with Sampler(rss, 0.1) as many:
        for name, what, slots in (
            # With 64 slots they are all taken; with the default the processors are busy before the slots are.
            ("critical_overtake", "64 slots, p99", 64),
            ("critical_overtake_busy", "256 slots, p99", None),
        ):
            tails, extras = await _overtake(stage, scale, slots)
            title = f"Critical beside {size} due low ones, {what}"
            rows.append(Row(name, title, "ms", tails, 500, "lower", extras=extras))
    await stage.discard_backlog()
    return [
        *rows,
        Row("worker_rss_few", "Worker memory (RSS), 1,000 due", "MB", [max(few.values)], 200, "lower"),
        Row("worker_rss_many", f"Worker memory (RSS), {size} due", "MB", [max(many.values)], 200, "lower"),
    ]


async def _overtake(stage: Stage, scale: Scale, slots: int | None) -> tuple[list[float], dict[str, Any]]:
    """Sends critical messages one by one into a worker that is busy with low ones; the p99s, and what else was seen."""

    async def in_flight() -> float:
        return (await stage.sink_stats(stage.slow))["in_flight"]

    await stage.worker.stop()
    await stage.forget_receipts()
    await stage.start_worker(slots=slots)
    async with asyncio.timeout(60):
        while (await stage.sink_stats(stage.slow))["count"] < 2_000:
            await asyncio.sleep(0.05)
    bodies = [to_raw(to_request(n, "webhook", f"slow-{n}", priority="critical")) for n in range(100)]
    tails, halves, worst, busy, rates = [], [], [], [], []
    for repetition in range(scale.repetitions):
        await stage.forget_receipts()
        began = time.monotonic()
        async with Sampler(in_flight, 0.05) as held:
            outcome = await stage.load(
                kind="paced", requests=scale.critical, gap_ms=(20, 120), seed=repetition, bodies=bodies
            )
        await asyncio.sleep(2.0)  # what is not there after two seconds more counts as lost
        receipts = await stage.receipts(stage.slow)
        rates.append(len(receipts) / (time.monotonic() - began))
        took = to_latencies(outcome, receipts)
        tails.append(took[min(len(took) - 1, int(0.99 * len(took)))])
        halves.append(statistics.median(took))
        worst.append(took[-1])
        busy.append(statistics.mean(held.values))
    left = await stage.database.fetchval("SELECT count(*) AS bench_look FROM job WHERE lane = $1", WEBHOOK_FEEDER)
    return tails, {
        "p50_ms": to_rounded(statistics.median(halves)),
        "longest_ms": to_rounded(max(worst)),
        "slots": slots or 256,
        "provider_ms": SLOW_MS,
        "sends_in_flight": to_rounded(statistics.median(busy)),
        "low_sent_per_second_meanwhile": to_rounded(statistics.median(rates)),
        "still_due_at_the_end": left,
    }


_FILL_JOBS: Final = """
INSERT INTO job (id, project_id, kind, lane, priority, due_at)
SELECT uuidv7(), 1, $2, $3, $4, now() - interval '2 hours' + n * interval '1 millisecond'
FROM generate_series(1, $1::int) n
"""
CLAIM: Final = 200


async def claim_cost(stage: Stage, scale: Scale) -> list[Row]:
    """A round of finding and claiming 200 jobs, on a table of 1,000 due jobs and on one of a million, by turns.

    Claimed jobs are finished and as many new ones come in behind, so both tables are as worn as a busy queue's.
    """
    sizes = {"claims_few": 1_000, "claims_many": scale.backlog}
    databases: dict[str, Database] = {}
    async with admin(stage.server.dsn) as conn:
        for name in sizes:
            await conn.execute(f"CREATE DATABASE {name}")
    try:
        for name, size in sizes.items():
            dsn = to_other_database(stage.server.dsn, name)
            await migrate(dsn)
            databases[name] = await Database.connect(dsn, min_size=1, max_size=1, application_name="bench")
            async with admin(dsn) as conn:
                for kind, lane in ((SEND, WEBHOOK_LANE), (PLAN, WEBHOOK_FEEDER)):
                    await conn.execute(_FILL_JOBS, size, kind, lane, int(Priority.low))
                await conn.execute("VACUUM (ANALYZE) job")
        await stage.settle_down()
        rows = []
        for name, title, claim, kind, lane in (
            ("claim_cost", "Claim cost, 1,000,000 due ÷ 1,000 due", _claim_sends, SEND, WEBHOOK_LANE),
            ("plan_claim_cost", "… of the planning lane", _claim_plans, PLAN, WEBHOOK_FEEDER),
        ):
            ratios, few, many = [], [], []
            for repetition in range(scale.repetitions + 1):
                took: dict[str, list[float]] = {name: [] for name in sizes}
                for turn in range(scale.claims):
                    for place in sorted(sizes, reverse=bool(turn % 2)):
                        took[place].append(await claim(databases[place]))
                        await databases[place].execute(_FILL_JOBS, CLAIM, kind, lane, int(Priority.low))
                if repetition:  # the first one warms up
                    few.append(statistics.median(took["claims_few"]))
                    many.append(statistics.median(took["claims_many"]))
                    ratios.append(many[-1] / few[-1])
            extras = {
                "ms_with_1000_due": to_rounded(statistics.median(few)),
                f"ms_with_{scale.backlog}_due": to_rounded(statistics.median(many)),
            }
            rows.append(Row(name, title, "×", ratios, 1.5, "lower", extras=extras))
        return rows
    finally:
        for database in databases.values():
            await database.close()
        async with admin(stage.server.dsn) as conn:
            for name in sizes:
                await conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def _claim_sends(database: Database) -> float:
    """Milliseconds to find and lease 200 sends; then they are finished."""
    began = time.perf_counter()
    async with database.acquire() as conn:
        lanes = (WEBHOOK_LANE, WEBHOOK_LANE)
        await queue.load_waiting(conn, lanes, count=256, projects=64, after_project=0, ahead=0, now=None)
        shares = [Share(WEBHOOK_LANE, int(Priority.low), 1, 1, CLAIM)]
        claimed = await queue.claim_jobs(conn, shares, lease=timedelta(seconds=60), now=None)
        took = (time.perf_counter() - began) * 1e3
        claimed.sort(key=lambda job: job.id)
        if len(await queue.finish_jobs(conn, claimed)) != CLAIM:
            raise Wrong(f"{len(claimed)} of {CLAIM} jobs were claimed")
    return took


async def _claim_plans(database: Database) -> float:
    """Milliseconds to find and lock 200 plans; then they are finished in the same transaction."""
    took = 0.0

    async def work(conn: Connection) -> None:
        nonlocal took
        began = time.perf_counter()
        # `ahead` 0 leaves the lanes that this one feeds unread, so that only the backlog itself is timed.
        lanes = (FEEDER, LAST_FEEDER)
        await queue.load_waiting(conn, lanes, count=400, projects=64, after_project=0, ahead=0, now=None)
        shares = [Share(WEBHOOK_FEEDER, int(Priority.low), 1, None, CLAIM)]
        locked = await queue.lock_jobs(conn, shares, now=None)
        took = (time.perf_counter() - began) * 1e3
        locked.sort(key=lambda job: job.id)
        if len(await queue.finish_jobs(conn, locked)) != CLAIM:
            raise Wrong(f"{len(locked)} of {CLAIM} jobs were locked")

    await database.transaction(work)
    return took


# ---------------------------------------------------------------- the harness and the peers


async def harness(stage: Stage, scale: Scale) -> list[Row]:
    """How fast stubs and generator are without the product between them: neither may be the bottleneck."""
    http, mail = [], []
    body = [to_raw({"event": "order_shipped", "order": "A-1", "user": "u-1"})]
    for _ in range(scale.repetitions):
        outcome = await stage.load(
            kind="closed", port=stage.fast.port, path="/hooks/u-1", connections=64, requests=scale.raw, bodies=body
        )
        http.append(outcome.requests / outcome.seconds)
        outcome = await stage.load(kind="smtp", port=stage.mail.port, connections=10, requests=scale.raw // 2)
        mail.append(outcome.requests / outcome.seconds)
    await stage.forget_receipts()
    return [
        Row("harness_http", "Generator and HTTP stub alone", "/s", http, kind="harness"),
        Row("harness_smtp", "Generator and SMTP stub alone", "/s", mail, kind="harness"),
    ]


async def others(stage: Stage, scale: Scale) -> list[Row]:
    """What the machine does with less: an empty Celery task over Redis, and the provider call alone."""
    calls = [await peers.run_aiohttp(stage.fast.port, scale.raw // 2) for _ in range(scale.repetitions)]
    await stage.forget_receipts()
    rows = [Row("peer_aiohttp", "Peer: bare aiohttp loop, the provider call only", "/s", calls, kind="peer")]
    moved = [await peers.run_celery(stage.folder, scale.tasks) for _ in range(scale.repetitions)]
    if (measured := [pair for pair in moved if pair is not None]) == moved:
        version = {"version": peers.celery_version()}
        published, consumed = ([pair[i] for pair in measured] for i in (0, 1))
        rows.append(Row("peer_celery_published", "Peer: Celery over Redis, empty task, published", "/s", published,
                        kind="peer", extras=version))  # fmt: skip
        rows.append(Row("peer_celery_consumed", "Peer: Celery over Redis, empty task, consumed", "/s", consumed,
                        kind="peer", extras=version))  # fmt: skip
    return rows
