"""Processes that are asked to stop, and processes that share the work."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from tests.contract.servers import http_answer
from tests.e2e.faults.harness import WEBHOOK_SECRET, Process, Project, System, drained, make_project, open_system, until
from tests.e2e.faults.receivers import MailReceiver, WebhookReceiver
from tidings.client import Accepted, AsyncClient
from tidings.db.pool import Database
from tidings.model.words import EventKind, Status


@dataclass
class House:
    """A system with a project whose messages come to us."""

    system: System
    database: Database
    project: Project
    hooks: WebhookReceiver
    mail: MailReceiver

    def client(self, url: str) -> AsyncClient:
        return AsyncClient(url, self.project.token)

    def note(self, n: int, **more: Any) -> dict[str, Any]:
        return {"type": "note", "to": {"user": f"u{n % 4}"}, "channels": ["webhook"], "data": {"n": n}, **more}

    async def count(self, status: Status) -> int:
        counted: int = await self.database.fetchval("SELECT count(*) FROM delivery WHERE status = $1", int(status))
        return counted

    async def uncertain(self) -> int:
        counted: int = await self.database.fetchval(
            "SELECT count(*) FROM event WHERE kind = $1", int(EventKind.uncertain)
        )
        return counted


@asynccontextmanager
async def open_house(dsn: str, folder: Path, **settings: str) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        hooks = WebhookReceiver(WEBHOOK_SECRET)
        mail = MailReceiver()
        await stack.enter_async_context(hooks)
        await stack.enter_async_context(mail)
        database = await stack.enter_async_context(await Database.connect(dsn))
        project = await make_project(database, smtp_port=mail.port, webhook_port=hooks.port, users=4)
        system = await stack.enter_async_context(open_system(dsn, folder, **settings))
        yield House(system, database, project, hooks, mail)


PATIENT = {"TIDINGS_PROVIDER_TIMEOUT": "8s", "TIDINGS_LEASE": "20s"}


async def test_a_stopping_worker_finishes_what_is_in_flight_and_takes_nothing_new(
    database_dsn: str, tmp_path: Path
) -> None:
    async with open_house(database_dsn, tmp_path, **PATIENT) as house:
        (_, url), worker = await asyncio.gather(house.system.api(), house.system.worker())
        house.hooks.gate.clear()
        async with house.client(url) as client:
            await client.send_batch(house.note(n) for n in range(20))
            await house.hooks.news.wait_until(lambda: house.hooks.busy == 20)
            worker.signal(signal.SIGTERM)
            await worker.said("process.stopping")
            await client.send_batch(house.note(n) for n in range(20, 30))
            house.hooks.gate.set()
            assert await worker.ended(10) == 0
        assert await house.count(Status.delivered) == 20
        assert await house.uncertain() == 0
        assert len(house.hooks.receipts) == 20
        leased = "SELECT count(*) FROM job WHERE lease_until IS NOT NULL"
        assert await house.database.fetchval(leased) == 0
        assert await house.database.fetchval("SELECT count(*) FROM job") == 10
        await house.system.worker()
        await drained(house.database)
        assert set(house.hooks.count().values()) == {1}


async def test_what_does_not_end_within_the_grace_time_is_recorded_as_uncertain(
    database_dsn: str, tmp_path: Path
) -> None:
    async with open_house(database_dsn, tmp_path, **PATIENT, TIDINGS_GRACE="1s") as house:
        (_, url), worker = await asyncio.gather(house.system.api(), house.system.worker())
        house.hooks.gate.clear()
        async with house.client(url) as client:
            await client.send_batch(house.note(n) for n in range(5))
            await house.hooks.news.wait_until(lambda: house.hooks.busy == 5)
            assert await worker.stop(5) == 0
        assert await house.uncertain() == 5
        assert await house.count(Status.queued) == 5
        house.hooks.gate.set()
        await house.system.worker()
        await drained(house.database, hurry=True)
        assert await house.count(Status.delivered) == 5
        assert set(house.hooks.count().values()) == {2}


async def test_a_stopping_api_answers_whom_it_has_heard(database_dsn: str, tmp_path: Path) -> None:
    """Each request has an answer, or was never stored: the connection was refused or closed before it was read."""
    async with open_house(database_dsn, tmp_path) as house:
        api, url = await house.system.api()
        answered: list[str] = []
        lost: list[int] = []
        enough = asyncio.Event()

        async def post(session: aiohttp.ClientSession, n: int) -> bool:
            body = house.note(n, metadata={"n": str(n)})
            try:
                async with session.post(f"{url}/api/v1/notifications", json=body, headers=house.project.headers) as got:
                    assert got.status == 202, await got.text()
                    answered.append((await got.json())["id"])
            except aiohttp.ClientConnectionError:
                lost.append(n)
                return False
            if len(answered) >= 100:
                enough.set()
            return True

        async def client(first: int) -> None:
            async with aiohttp.ClientSession() as session:
                n = first
                while await post(session, n):
                    n += 1

        clients = [asyncio.create_task(client(i * 1_000_000)) for i in range(16)]
        await enough.wait()
        assert await api.stop(10) == 0
        await asyncio.gather(*clients)
        assert len(lost) == 16
        rows = await house.database.fetch("SELECT metadata->>'n' AS n FROM notification")
        assert len(rows) == len(answered) == len(set(answered))
        assert not {int(row["n"]) for row in rows} & set(lost)


async def test_two_workers_and_two_apis_share_the_work(database_dsn: str, tmp_path: Path) -> None:
    async with open_house(database_dsn, tmp_path, TIDINGS_WORKER_PORT="0", TIDINGS_SLOTS="16") as house:
        house.hooks.latency = 0.02
        (_, one), (_, two), first, second = await asyncio.gather(
            house.system.api(), house.system.api(), house.system.worker(), house.system.worker()
        )
        async with house.client(one) as a, house.client(two) as b:
            # The same keys at the same time at both doors.
            asks = [house.note(n, idempotency_key=f"k{n}") for n in range(600)]
            told = await asyncio.gather(a.send_batch(asks), b.send_batch(asks))
        one_ids, two_ids = ([x.id for x in results if isinstance(x, Accepted)] for results in told)
        assert len(one_ids) == 600
        assert one_ids == two_ids
        await drained(house.database)
        assert await house.count(Status.delivered) == 600
        counted = house.hooks.count()
        assert len(counted) == 600
        assert set(counted.values()) == {1}
        done = [await attempts(worker) for worker in (first, second)]
        assert sum(done) == 600
        assert min(done) > 60, f"one of them did next to nothing: {done}"


async def attempts(worker: Process) -> int:
    """How many sends a worker has made, by its own metrics."""
    url = (await worker.said("worker.listening"))["url"]
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as answer:
        text = await answer.text()
    lines = [line for line in text.splitlines() if line.startswith("tidings_attempts_total{")]
    return int(sum(float(line.rpartition(" ")[2]) for line in lines))


async def test_channels_and_no_plan_restrict_a_worker(database_dsn: str, tmp_path: Path) -> None:
    async with open_house(database_dsn, tmp_path) as house:
        (_, url), _ = await asyncio.gather(house.system.api(), house.system.worker("--channels", "email"))
        async with house.client(url) as client:
            sent = await client.send(**house.note(1, channels=["email", "webhook", "in_app"]))

            async def shown(*statuses: str) -> bool:
                got = {d.channel: d.status for d in (await client.get(sent.id)).deliveries}
                return got == dict(zip(("email", "webhook", "in_app"), statuses, strict=True))

            await until(lambda: shown("sent", "queued", "queued"), 10, "the e-mail alone was sent")
            await house.system.worker("--channels", "webhook,in_app", "--no-plan")
            await until(lambda: shown("sent", "delivered", "delivered"), 10, "the others were sent")
            assert [item.title async for item in client.users.inbox("u1")] == ["Note 1"]


async def test_a_critical_message_overtakes_a_backlog(database_dsn: str, tmp_path: Path) -> None:
    async with open_house(database_dsn, tmp_path) as house:
        house.hooks.latency = 0.1
        _, url = await house.system.api()
        async with house.client(url) as client:
            backlog = [house.note(n, priority="low") for n in range(20_000)]
            assert len(await client.send_batch(backlog)) == 20_000
            await client.users.put("first", addresses={"webhook": f"http://127.0.0.1:{house.hooks.port}/first"})
            await house.system.worker()
            await house.hooks.news.wait_until(lambda: len(house.hooks.receipts) >= 200)
            took = []
            for n in range(10):
                before = asyncio.get_running_loop().time()
                await client.send(**house.note(n, to={"user": "first"}, priority="critical"))

                def came(wanted: int = n + 1) -> bool:
                    return sum(receipt.path == "/first" for receipt in house.hooks.receipts) == wanted

                await house.hooks.news.wait_until(came)
                took.append(asyncio.get_running_loop().time() - before)
        left = await house.database.fetchval("SELECT count(*) FROM job WHERE lane > 255 AND priority = 3")
        assert left > 5_000, "the backlog was gone before it could hinder anybody"
        assert median(took) < 0.5, took
        assert max(took) < 2, took


async def test_the_command_line_replays_dead_letters(database_dsn: str, tmp_path: Path) -> None:
    async with open_house(database_dsn, tmp_path) as house:
        house.hooks.scripts["/u0"] = [http_answer(400)]
        (_, url), _ = await asyncio.gather(house.system.api(), house.system.worker())
        async with house.client(url) as client:
            await client.send_batch(house.note(4 * n) for n in range(3))

            async def dead() -> bool:
                return bool(await house.database.fetchval("SELECT count(*) = 3 FROM dead_letter"))

            await until(dead, 10, "three dead letters")
            house.hooks.scripts["/u0"] = [http_answer(200)]
            running = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "tidings", "replay", "--all", "--json", "--url", url),
                env={"TIDINGS_API_KEY": house.project.token, "PATH": ""},
                cwd=tmp_path,
                stdout=asyncio.subprocess.PIPE,
            )
            out, _ = await asyncio.wait_for(running.communicate(), 20)
            assert running.returncode == 0
            assert json.loads(out) == {"replayed": 3, "missing": 0}
            await drained(house.database)
            assert await house.count(Status.delivered) == 3
            assert await house.database.fetchval("SELECT count(*) FROM dead_letter") == 0
