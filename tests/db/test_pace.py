"""The pace of a project: it holds over accounts, channels and workers, and costs no message its turn."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from tests.db.road import KEY, Road, make_project
from tidings.db.pool import Connection, Database
from tidings.directory.accounts import AccountPlan, put_account
from tidings.directory.audit import Actor
from tidings.directory.credentials import Vault
from tidings.directory.projects import ProjectSettings, put_settings
from tidings.engine.gate import create_project_pace, lease_project_pace
from tidings.model.words import Channel

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
async def road(database: Database) -> Road:
    return Road(database, await database.transaction(make_project))


async def set_pace(road: Road, pace: float | None) -> None:
    async def work(conn: Connection) -> None:
        settings = ProjectSettings(pace=pace, runaway_above=None)
        await put_settings(conn, Actor(road.project_id, "system"), settings)

    await road.database.transaction(work)
    road.catalog.forget_all()


async def test_pace_of_a_project_is_exact_over_all_workers(database: Database) -> None:
    project = await database.fetchval("INSERT INTO project (key, name) VALUES ('p', '') RETURNING id")
    assert await lease_project_pace(database, {project: (7.0, 50)}, NOW) == {}
    for _ in range(2):  # two workers find that there is no row
        await create_project_pace(database, [project])
    for rate in (0.5, 7.0, 33.3, 250.0):
        await database.execute("UPDATE project_pace SET tat = '-infinity'")
        granted = 0
        for step in range(500):
            now = NOW + timedelta(seconds=step * 0.04)
            asked = await asyncio.gather(*(lease_project_pace(database, {project: (rate, 50)}, now) for _ in range(3)))
            granted += sum(a.get(project, 0) for a in asked)
            assert granted <= rate * (step * 0.04 + 0.1) + 1
        assert granted >= rate * 499 * 0.04 - 1


async def test_two_workers_keep_the_pace_of_a_project_over_two_accounts(road: Road) -> None:
    await set_pace(road, 50)

    async def add(conn: Connection) -> None:
        plan = AccountPlan("email", "smtp", {"host": "mail.example.com", "from_address": "b@example.com"})
        await put_account(conn, Actor(road.project_id, "system"), Vault([KEY]), "other", plan)

    await road.database.transaction(add)
    road.catalog.forget_all()
    for n in range(7):
        await road.ask(*({"to": {"user": "ada"}, "type": "mail", "data": {"n": n}} for _ in range(100)))
    while await road.plan():
        pass
    workers = [road.new_lane(Channel.email), road.new_lane(Channel.email)]
    for step in range(200):
        for lane in workers if step % 2 else workers[::-1]:
            await lane.step()
            await road.finish(lane)
        assert len(road.vendor.sent) <= 50 * (step * 0.05 + 0.1) + 1
        road.clock.move(0.05)
    assert 480 <= len(road.vendor.sent) <= 506

    await set_pace(road, None)
    for _ in range(4):  # the other account takes few at a time
        await workers[0].step()
        await road.finish(workers[0])
    assert len(road.vendor.sent) == 700


async def test_pinned_work_keeps_the_pace_too(road: Road) -> None:
    await set_pace(road, 10)
    test_caller = road.new_caller(test=True)
    await road.ask(*({"to": {"user": "ada"}, "type": "mail"} for _ in range(40)), caller=test_caller)
    await road.plan()
    sent = []
    for _ in range(20):
        await road.send()
        sent.append(sum(row["status"] in (2, 3) for row in await road.deliveries()))
        road.clock.move(0.1)
    assert all(n <= (i + 1) + 1 for i, n in enumerate(sent))
    assert sent[-1] >= 18
