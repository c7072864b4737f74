"""kill -9 of workers, the API and PostgreSQL in the middle of load, and workers that sleep past their leases.

Each seed is a whole system with a private PostgreSQL that syncs to disk, and several rounds of faults at seeded
moments. `TIDINGS_SIM_SEED=3` replays one. Afterwards, with the load gone and everything settled:

- every 202 is in the database, and what it asked for was sent;
- what is in the database without a 202 are requests that got no answer, each at most once;
- repeating those with their idempotency key makes exactly one of each;
- nobody was told twice, unless it is recorded that it was not known (`uncertain`), once for each time too many;
- nobody who counts as told was not; inbox numbers have no gaps; roll-ups agree with the rows; no work is left over.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.faults.harness import WEBHOOK_SECRET, Process, Project, System, drained, make_project, open_system, until
from tests.e2e.faults.receivers import MailReceiver, WebhookReceiver
from tidings.db.embedded import EmbeddedServer
from tidings.db.migrate import migrate
from tidings.db.partitions import ensure_partitions
from tidings.db.pool import Database
from tidings.ids import DELIVERY, NOTIFICATION, parse_public, to_public
from tidings.model.words import Channel, EventKind, Status

SEEDS = [int(os.environ["TIDINGS_SIM_SEED"])] if "TIDINGS_SIM_SEED" in os.environ else [1, 2, 3]
ROUNDS = ("worker", "worker", "worker", "api", "api", "postgres", "postgres", "sleep")
"""The faults of one seed, in seeded order."""
USERS = 6


@dataclass
class Ask:
    """One notification somebody wants, and what they know of it."""

    n: int
    body: dict[str, Any]
    key: str | None
    batched: bool = False
    ids: list[str] = field(default_factory=list)
    """What each 202 said."""
    unanswered: int = 0
    """Requests without an answer, or with one that says that it is not known."""


class Load:
    """Clients that ask and note every answer. Whose request got no answer repeats it at once or at the end."""

    def __init__(self, system: Round, rng: random.Random) -> None:
        self._system = system
        self._rng = rng
        self.asks: list[Ask] = []
        self.accepted = 0
        self.moved = asyncio.Condition()

    def new(self, *, keyed: bool) -> Ask:
        n = len(self.asks)
        user, rng = f"u{n % USERS}", self._rng
        channels = rng.choice((["email"], ["webhook"], ["in_app"], ["email", "webhook", "in_app"]))
        body: dict[str, Any] = {"type": "note", "to": {"user": user}, "channels": channels, "data": {"n": n}}
        if rng.random() < 0.2:  # said directly, without a user
            address = f"http://127.0.0.1:{self._system.hooks.port}/direct"
            body = {"to": {"webhook": address}, "content": {"payload": {"n": n}}}
        body["priority"] = rng.choice(("high", "medium", "low"))
        body["metadata"] = {"n": str(n)}
        ask = Ask(n, body, f"key-{n}" if keyed else None)
        self.asks.append(ask)
        return ask

    async def post(self, session: aiohttp.ClientSession, path: str, body: Any, key: str | None) -> Any:
        """The answer of a 202; None when there was none, or one that does not say what happened."""
        headers = dict(self._system.project.headers)
        if key is not None:
            headers["idempotency-key"] = key
        try:
            async with session.post(f"{self._system.url}/api/v1{path}", json=body, headers=headers) as answer:
                told = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None
        if answer.status == 202:
            return told
        assert answer.status in (409, 500, 503), f"{answer.status}: {told}"
        return None

    async def tell(self, n: int) -> None:
        async with self.moved:
            self.accepted += n
            self.moved.notify_all()

    async def one(self, session: aiohttp.ClientSession, ask: Ask) -> bool:
        told = await self.post(session, "/notifications", ask.body, ask.key)
        if told is None:
            ask.unanswered += 1
            return False
        ask.ids.append(told["id"])
        await self.tell(1)
        return True

    async def batch(self, session: aiohttp.ClientSession, asks: list[Ask]) -> None:
        for ask in asks:
            ask.batched = True
        items = [{**ask.body, "idempotency_key": ask.key} for ask in asks]
        told = await self.post(session, "/notifications/batch", {"notifications": items}, None)
        if told is None:
            for ask in asks:
                ask.unanswered += 1
            return
        for ask, result in zip(asks, told["results"], strict=True):
            if "id" not in result:  # a problem that is not about the request, such as a lost connection
                assert result["problem"]["status"] in (409, 500, 503), result
                ask.unanswered += 1
                continue
            ask.ids.append(result["id"])
        await self.tell(len(asks))

    async def client(self, kind: str, over: asyncio.Event) -> None:
        timeout = aiohttp.ClientTimeout(total=4)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while not over.is_set():
                if kind == "batch":
                    await self.batch(session, [self.new(keyed=True) for _ in range(10)])
                    await asyncio.sleep(0.2)
                    continue
                ask = self.new(keyed=kind == "keyed")
                if not await self.one(session, ask) and ask.key is not None and self._rng.random() < 0.5:
                    await asyncio.sleep(0.1)
                    await self.one(session, ask)
                await asyncio.sleep(0.05)  # not a wait for anything: the pace of the load

    async def repeat(self) -> None:
        """Repeat every request that has a key and got no answer, until it gets one."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            for ask in self.asks:
                if ask.key is not None and not ask.ids:
                    await (self.batch(session, [ask]) if ask.batched else self.one(session, ask))
                    assert ask.ids, f"no answer to {ask}"


class Round:
    """One seed's system: two workers, an API, PostgreSQL, those who are told, and the load."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.hooks = WebhookReceiver(WEBHOOK_SECRET)
        self.mail = MailReceiver()
        self.load = Load(self, random.Random(seed + 1000))
        self.url = ""
        self.project: Project
        self.server: EmbeddedServer
        self.database: Database
        self.system: System
        self.api: Process
        self.workers: list[Process] = []

    async def open(self, stack: AsyncExitStack, folder: Path, home: Path) -> None:
        self.server = await stack.enter_async_context(EmbeddedServer(folder))
        await migrate(self.server.dsn)
        await stack.enter_async_context(self.hooks)
        await stack.enter_async_context(self.mail)
        self.hooks.latency = 0.03
        self.database = await stack.enter_async_context(await Database.connect(self.server.dsn))
        async with self.database.acquire() as conn:
            await ensure_partitions(conn, self.system_now())
        self.project = await make_project(
            self.database, smtp_port=self.mail.port, webhook_port=self.hooks.port, users=USERS
        )
        self.system = await stack.enter_async_context(open_system(self.server.dsn, home))
        (self.api, self.url), *self.workers = await asyncio.gather(
            self.system.api(), self.system.worker(), self.system.worker()
        )

    @staticmethod
    def system_now() -> Any:
        from tidings.clock import SystemClock

        return SystemClock().now()

    async def moment(self) -> None:
        """A seeded moment under load: after so many more accepted requests, or so many more received webhooks."""
        more = self.rng.randint(15, 70)
        if self.rng.random() < 0.5:
            wanted = self.load.accepted + more
            async with self.load.moved:
                await asyncio.wait_for(self.load.moved.wait_for(lambda: self.load.accepted >= wanted), 60)
        else:
            received = len(self.hooks.receipts) + more // 2
            await self.hooks.news.wait_until(lambda: len(self.hooks.receipts) >= received, 60)

    async def fault(self, kind: str) -> None:
        if kind == "worker":
            i = self.rng.randrange(2)
            await self.workers[i].kill()
            self.workers[i] = await self.system.worker()
        elif kind == "api":
            await self.api.kill()
            self.api, self.url = await self.system.api()
        elif kind == "postgres":
            pid, restarts = self.server.pid, self.server.restarts
            assert pid is not None
            os.kill(pid, signal.SIGKILL)

            async def restarted() -> bool:
                return self.server.restarts > restarts

            await until(restarted, 60, "PostgreSQL was started again")
        else:
            await self.sleep()

    async def sleep(self) -> None:
        """Stop a worker until whatever it holds has been taken from it, then let it go on."""
        sleeper = self.workers[self.rng.randrange(2)]
        sleeper.signal(signal.SIGSTOP)
        try:
            # What it has locked in an open transaction is its own until PostgreSQL ends that one, which takes longer.
            held = await self.database.fetch(
                "SELECT id, epoch FROM job WHERE lease_until IS NOT NULL FOR UPDATE SKIP LOCKED"
            )

            async def taken() -> bool:
                left = await self.database.fetchval(
                    "SELECT count(*) FROM job JOIN unnest($1::uuid[], $2::int[]) AS h (id, epoch)"
                    " ON job.id = h.id AND job.epoch = h.epoch WHERE lease_until IS NOT NULL",
                    [row["id"] for row in held],
                    [row["epoch"] for row in held],
                )
                return not left

            await until(taken, 30, "the leases of a sleeping worker ran out")
        finally:
            sleeper.signal(signal.SIGCONT)

    async def check(self) -> None:
        """The promises of this module's docstring."""
        rows = await self.database.fetch("SELECT id, metadata->>'n' AS n FROM notification")
        stored: defaultdict[int, list[str]] = defaultdict(list)
        for row in rows:
            stored[int(row["n"])].append(to_public(NOTIFICATION, row["id"]))
        for ask in self.load.asks:
            found = stored[ask.n]
            assert len(set(ask.ids)) <= 1, f"two answers to one key: {ask}"
            assert set(ask.ids) <= set(found), f"a 202 that is not in the database: {ask}"
            assert len(found) <= 1, f"stored {len(found)} times: {ask}"
            assert found == ask.ids[:1] or ask.unanswered, f"stored without having been asked for: {ask}"
            if ask.key is not None:
                assert len(found) == 1, f"repeated, but not stored: {ask}"

        uncertain = Counter(
            row["delivery_id"]
            for row in await self.database.fetch(
                "SELECT delivery_id FROM event WHERE kind = $1", int(EventKind.uncertain)
            )
        )
        received = self.hooks.count()
        received.update({id_.partition("@")[0]: n for id_, n in self.mail.received.items()})
        deliveries = await self.database.fetch("SELECT id, notification_id, channel, status, reason FROM delivery")
        wanted = {parse_public(NOTIFICATION, ids[0]) for ids in stored.values() if ids}
        assert {row["notification_id"] for row in deliveries} == wanted, "notifications without deliveries"
        for row in deliveries:
            id_, channel, told = to_public(DELIVERY, row["id"]), Channel(row["channel"]), dict(row)
            status = Status.sent if channel is Channel.email else Status.delivered
            assert row["status"] == status, f"it should be {status.name}: {told}"
            if channel is not Channel.in_app:
                times = received.pop(id_, 0)
                assert times >= 1, f"it counts as sent, but never came: {told}"
                assert times <= 1 + uncertain[row["id"]], f"it came {times} times: {told}"
        assert not received, "somebody was told something that is not in the database"
        assert not self.hooks.forged

        items = await self.database.fetch("SELECT user_id, seq, delivery_id FROM inbox_item ORDER BY user_id, seq")
        per_user: defaultdict[str, list[int]] = defaultdict(list)
        for row in items:
            per_user[row["user_id"]].append(row["seq"])
        for user, numbers in per_user.items():
            assert numbers == list(range(1, len(numbers) + 1)), f"gaps in the inbox of {user}"
        shown = [row["delivery_id"] for row in items]
        in_app = {row["id"] for row in deliveries if row["channel"] == Channel.in_app}
        assert len(shown) == len(in_app)
        assert set(shown) == in_app

        requested = await self.database.fetchval(
            "SELECT sum(n)::int FROM (SELECT n FROM rollup WHERE kind = $1 UNION ALL"
            " SELECT n FROM rollup_delta WHERE kind = $1) AS counted",
            int(EventKind.requested),
        )
        assert requested == len(rows)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", SEEDS)
async def test_nothing_is_lost_and_nothing_is_sent_twice_unrecorded(
    seed: int, server_folder: Path, tmp_path: Path
) -> None:
    print(f"TIDINGS_SIM_SEED={seed}")
    async with AsyncExitStack() as stack:
        system = Round(seed)
        await system.open(stack, server_folder / f"kill-{seed}", tmp_path)
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        began = loop.time()
        kinds = ("keyed", "keyed", "keyed", "bare", "batch")
        clients = [asyncio.create_task(system.load.client(kind, over)) for kind in kinds]
        try:
            for kind in system.rng.sample(ROUNDS, len(ROUNDS)):
                await system.moment()
                print(f"{loop.time() - began:.1f} s, {system.load.accepted} accepted: {kind}")
                await system.fault(kind)
            await system.moment()
        finally:
            over.set()
            await asyncio.gather(*clients)
        print(f"{loop.time() - began:.1f} s, {system.load.accepted} accepted: over")
        await system.load.repeat()
        await drained(system.database, 90, hurry=True)
        print(f"{loop.time() - began:.1f} s: everything is settled")
        await system.check()
        silent = [line for process in system.system.processes for line in process.lines if line.get("level") == "error"]
        assert not silent, json.dumps(silent, indent=1)
        stopped = await asyncio.gather(system.api.stop(), *(worker.stop() for worker in system.workers))
        assert stopped == [0, 0, 0]
