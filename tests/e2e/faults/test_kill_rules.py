"""kill -9 of workers while rules are at work: a broadcast is expanded, windows close, steps wait, places are taken.

Two workers and an API over one database; each round asks for more, waits for a seeded moment of the sending, and kills
one of the workers. Afterwards, with everything settled:

- every user of the broadcast has exactly one notification of it;
- everything that was gathered is in exactly one digest, the one that its run names, and no digest is empty;
- every step was taken, once, in its order and not before its time;
- every user got as many of the capped type as the cap allows: not one more, and not one less;
- nobody was told twice, unless it is recorded that it was not known (`uncertain`); no work is left over.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.e2e.faults.harness import WEBHOOK_SECRET, Process, Project, System, drained, make_project, open_system
from tests.e2e.faults.receivers import MailReceiver, WebhookReceiver
from tidings.client import AsyncClient, Problem
from tidings.db.pool import Database
from tidings.ids import BROADCAST, DELIVERY, NOTIFICATION, parse_public, to_public
from tidings.model.words import Channel, EventKind, Reason, RunState, Status

SEED = int(os.environ.get("TIDINGS_SIM_SEED", "1"))
KILLS = 6
CROWD = 3_000
"""Users of the broadcast."""
PACE = 300.0
"""Of them a second, so that the broadcast is still being expanded when workers are killed."""
FEW = 10
"""Users to whom the other types go: `u0`, `u1`, …"""
GATHERED, STEPPED, CAPPED = 200, 100, 100
CAP = 2

TYPES: dict[str, dict[str, Any]] = {
    "wave": {"steps": [{"send": ["webhook"]}]},
    "comment": {"steps": [{"send": ["webhook"]}], "digest": {"window": "2s", "max": 100}},
    "ladder": {"steps": [{"send": ["in_app"]}, {"wait": "1s", "unless": "read"}, {"send": ["email"]}]},
    "capped": {"steps": [{"send": ["webhook"]}], "limits": [{"max": CAP, "window": "1d", "then": "drop"}]},
}
CONTENT = {
    "default_locale": "en",
    "channels": {
        "email": {"en": {"subject": "Note {{ n }}", "text": "This is note {{ n }}."}},
        "webhook": {"en": {"body": '{"items": [{% for item in digest.items %}{{ item.data.n }}, {% endfor %}null]}'}},
        "in_app": {"en": {"title": "Note {{ n }}"}},
    },
}


class Stage:
    """Two workers, an API, those who are told, and a project whose types have rules."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.rng = random.Random(SEED)
        self.hooks = WebhookReceiver(WEBHOOK_SECRET)
        self.mail = MailReceiver()
        self.project: Project
        self.system: System
        self.client: AsyncClient
        self.workers: list[Process] = []
        self.ids: dict[str, dict[int, str]] = {kind: {} for kind in TYPES}
        """By type and number: what the API named each notification that was asked for."""

    async def open(self, stack: AsyncExitStack, dsn: str, home: Path) -> None:
        await stack.enter_async_context(self.hooks)
        await stack.enter_async_context(self.mail)
        self.hooks.latency = 0.03
        self.project = await make_project(
            self.database, smtp_port=self.mail.port, webhook_port=self.hooks.port, users=FEW
        )
        self.system = await stack.enter_async_context(open_system(dsn, home))
        _, url = await self.system.api()
        self.workers = [await self.system.worker(), await self.system.worker()]
        self.client = client = await stack.enter_async_context(AsyncClient(url, self.project.token))
        await client.templates.put("told")
        made = await client.templates.create_version("told", CONTENT)
        await client.templates.publish("told", made.version)
        for key, rules in TYPES.items():
            await client.types.put(key, category="news", template="told", **rules)
        crowd = (
            {"id": f"c{i:04}", "addresses": {"webhook": [f"http://127.0.0.1:{self.hooks.port}/c{i:04}"]}}
            for i in range(CROWD)
        )
        told = await client.users.import_file(b"\n".join(msgspec.json.encode(user) for user in crowd))
        assert (told.imported, told.failed) == (CROWD, 0)

    async def ask(self, kind: str, numbers: range) -> None:
        """One notification of the type for each number, the users taking turns."""
        wanted = [{"type": kind, "to": {"user": f"u{n % FEW}"}, "data": {"n": n}} for n in numbers]
        for n, outcome in zip(numbers, await self.client.send_batch(wanted), strict=True):
            assert not isinstance(outcome, Problem), outcome
            self.ids[kind][n] = outcome.id

    async def kill(self, n: int) -> None:
        """One of the workers, at the n-th of the moments that the seed chooses, and another one in its place."""
        wanted = CROWD * (n + 1) // (KILLS + 2) + self.rng.randint(0, 200)
        await self.hooks.news.wait_until(lambda: len(self.hooks.receipts) >= wanted, 60)
        i = self.rng.randrange(2)
        await self.workers[i].kill()
        self.workers[i] = await self.system.worker()

    async def deliveries(self, kind: str) -> list[Any]:
        """All of the type, those of a notification in the order of its steps."""
        return await self.database.fetch(
            "SELECT d.*, n.user_id, n.items FROM notification AS n"
            " JOIN delivery AS d ON d.notification_id = n.id"
            " JOIN type_version AS v ON v.id = n.type_version_id"
            " WHERE v.type_key = $1 ORDER BY n.id, d.step",
            kind,
        )

    async def check_told_once(self) -> None:
        rows = await self.database.fetch("SELECT delivery_id FROM event WHERE kind = $1", int(EventKind.uncertain))
        uncertain = Counter(row["delivery_id"] for row in rows)
        received = self.hooks.count()
        received.update({id_.partition("@")[0]: n for id_, n in self.mail.received.items()})
        for row in await self.database.fetch("SELECT id, channel, status FROM delivery"):
            if row["status"] not in (Status.sent, Status.delivered) or row["channel"] == Channel.in_app:
                continue
            times = received.pop(to_public(DELIVERY, row["id"]), 0)
            assert 1 <= times <= 1 + uncertain[row["id"]], f"it came {times} times: {dict(row)}"
        assert not received, "somebody was told what does not count as sent"
        assert not self.hooks.forged

    async def check_broadcast(self, id_: str) -> None:
        shown = await self.client.broadcasts.get(id_)
        assert (shown.status, shown.expanded) == ("done", CROWD)
        rows = await self.database.fetch(
            "SELECT n.user_id, d.status FROM notification AS n LEFT JOIN delivery AS d ON d.notification_id = n.id"
            " WHERE n.broadcast_id = $1",
            parse_public(BROADCAST, id_),
        )
        told = Counter(row["user_id"] for row in rows)
        assert told == Counter(f"c{i:04}" for i in range(CROWD))
        assert {row["status"] for row in rows} == {Status.delivered}

    async def check_digests(self) -> None:
        """By what the database says, and by what arrived."""
        rows = await self.database.fetch(
            "SELECT r.id, r.state, r.digest_id, n.user_id, d.user_id AS told, d.items, (n.data ->> 'n')::int AS n"
            " FROM run AS r JOIN notification AS n ON n.id = r.id LEFT JOIN notification AS d ON d.id = r.digest_id"
            " WHERE r.id = ANY($1::uuid[])",
            [parse_public(NOTIFICATION, id_) for id_ in self.ids["comment"].values()],
        )
        assert len(rows) == GATHERED
        members: defaultdict[Any, list[int]] = defaultdict(list)
        for row in rows:
            assert row["state"] == RunState.digested, dict(row)
            assert row["told"] == row["user_id"], dict(row)
            members[row["digest_id"]].append(row["n"])
        sent = await self.deliveries("comment")
        assert {row["notification_id"] for row in sent} == set(members), "a digest that nobody or nothing is in"
        assert len(sent) == len(members)
        came = {receipt.id: receipt.body for receipt in self.hooks.receipts}
        for row in sent:
            inside = sorted(members[row["notification_id"]])
            body = json.loads(came[to_public(DELIVERY, row["id"])])
            assert sorted(body["items"][:-1]) == inside
            assert row["items"] == len(inside)
        assert not await self.database.fetchval("SELECT count(*) FROM digest_window")
        assert not await self.database.fetchval("SELECT count(*) FROM digest_item")

    async def check_steps(self) -> None:
        steps: defaultdict[Any, list[Any]] = defaultdict(list)
        for row in await self.deliveries("ladder"):
            steps[row["notification_id"]].append(row)
        assert set(steps) == {parse_public(NOTIFICATION, id_) for id_ in self.ids["ladder"].values()}
        for shown, mailed in steps.values():
            assert (shown["channel"], shown["status"], shown["step"]) == (Channel.in_app, Status.delivered, 0)
            assert (mailed["channel"], mailed["status"], mailed["step"]) == (Channel.email, Status.sent, 2)
            assert (mailed["created_at"] - shown["created_at"]).total_seconds() >= 1
        assert {row["state"] for row in await self.runs("ladder")} == {RunState.done}

    async def runs(self, kind: str) -> list[Any]:
        ids = [parse_public(NOTIFICATION, id_) for id_ in self.ids[kind].values()]
        return await self.database.fetch("SELECT * FROM run WHERE id = ANY($1::uuid[])", ids)

    async def check_caps(self) -> None:
        ended: defaultdict[str, Counter[tuple[Status, str | None]]] = defaultdict(Counter)
        for row in await self.deliveries("capped"):
            ended[row["user_id"]][Status(row["status"]), row["reason"]] += 1
        allowed = {(Status.delivered, None): CAP, (Status.skipped, Reason.capped): CAPPED // FEW - CAP}
        assert ended == {f"u{i}": allowed for i in range(FEW)}


@pytest.fixture
async def stage(database: Database, database_dsn: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        opened = Stage(database)
        await opened.open(stack, database_dsn, tmp_path)
        yield opened


async def test_rules_hold_whenever_a_worker_is_killed(stage: Stage) -> None:
    print(f"TIDINGS_SIM_SEED={SEED}")
    few = [f"u{i}" for i in range(FEW)]
    wave = await stage.client.broadcasts.create(
        type="wave", to={"all": True}, exclude={"users": few}, data={"n": 0}, rate=PACE
    )
    for n in range(KILLS):
        for kind, total in (("comment", GATHERED), ("ladder", STEPPED), ("capped", CAPPED)):
            await stage.ask(kind, range(total * n // KILLS, total * (n + 1) // KILLS))
        await stage.kill(n)
    await drained(stage.database)
    await stage.check_told_once()
    await stage.check_broadcast(wave.id)
    await stage.check_digests()
    await stage.check_steps()
    await stage.check_caps()
    silent = [line for process in stage.system.processes for line in process.lines if line.get("level") == "error"]
    assert not silent, json.dumps(silent, indent=1)
    assert [await worker.stop() for worker in stage.workers] == [0, 0]
