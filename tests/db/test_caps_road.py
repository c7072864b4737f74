"""Caps as planning asks them: nobody gets more than a limit allows, and the others end, wait or are gathered."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from tests.db.road import Road, make_project
from tidings.db.pool import Connection, Database
from tidings.directory.audit import Actor
from tidings.directory.types import parse_definition, put_type
from tidings.model.words import Channel, Reason, RunState, Status


@pytest.fixture
async def road(database: Database) -> Road:
    return Road(database, await database.transaction(make_project))


async def limit(road: Road, type_key: str, *limits: dict[str, Any], steps: tuple[str, ...] = ("email",)) -> None:
    raw = {"category": "general", "template": "t", "steps": [{"send": list(steps)}], "limits": list(limits)}

    async def work(conn: Connection) -> None:
        definition = parse_definition(type_key, raw, timedelta(days=30))
        await put_type(conn, Actor(road.project_id, "system"), type_key, definition)

    await road.database.transaction(work)
    road.catalog.forget_all()


async def plan_all(road: Road, planners: int = 1) -> None:
    feeds = [road.new_feed() for _ in range(planners)]
    while sum(await asyncio.gather(*(feed.step() for feed in feeds))):
        pass


async def outcomes(road: Road) -> Counter[tuple[Status, str | None]]:
    return Counter((Status(row["status"]), row["reason"]) for row in await road.deliveries())


async def test_twenty_concurrent_with_cap_1_are_one_sent_and_nineteen_by_policy(road: Road) -> None:
    await limit(road, "mail", {"max": 1, "window": "1d"})
    await asyncio.gather(*(road.accept(data={"n": n}) for n in range(20)))
    await plan_all(road, planners=6)
    assert await outcomes(road) == {(Status.queued, None): 1, (Status.skipped, Reason.capped): 19}
    while await road.send():
        pass
    assert len(road.vendor.sent) == 1
    road.clock.move(86_400.1)
    await road.accept()
    await plan_all(road)
    assert (await outcomes(road))[Status.queued, None] == 1


async def test_users_and_addresses_have_places_of_their_own(road: Road) -> None:
    await limit(road, "mail", {"max": 1, "window": "1d"})
    for to in ({"user": "ada"}, {"user": "bob"}, {"email": "ada@example.com"}):
        for _ in range(2):
            await road.accept(to=to)
    await plan_all(road)
    assert await outcomes(road) == {(Status.queued, None): 3, (Status.skipped, Reason.capped): 3}


async def test_two_channels_take_one_place(road: Road) -> None:
    await limit(road, "both", {"max": 1, "window": "1d"}, steps=("email", "in_app"))
    for _ in range(2):
        await road.accept(type="both")
    await plan_all(road)
    assert await outcomes(road) == {(Status.queued, None): 2, (Status.skipped, Reason.capped): 2}
    first = {row["notification_id"] for row in await road.deliveries() if row["status"] == Status.queued}
    assert len(first) == 1


async def test_limit_on_one_channel_stops_only_there(road: Road) -> None:
    await limit(road, "both", {"max": 1, "window": "1d", "channel": "email"}, steps=("email", "in_app"))
    for _ in range(3):
        await road.accept(type="both")
    await plan_all(road)
    told = Counter((Channel(row["channel"]).name, Status(row["status"]).name) for row in await road.deliveries())
    assert told == {("email", "queued"): 1, ("email", "skipped"): 2, ("in_app", "queued"): 3}


async def test_critical_is_exempt_and_takes_no_place(road: Road) -> None:
    await limit(road, "mail", {"max": 1, "window": "1d"})
    for priority in ("critical", "medium", "critical", "medium"):
        await road.accept(priority=priority)
        await plan_all(road)
    assert await outcomes(road) == {(Status.queued, None): 3, (Status.skipped, Reason.capped): 1}


async def test_deferred_go_one_after_the_other(road: Road) -> None:
    await limit(road, "mail", {"max": 1, "window": "1h", "then": "defer"})
    for _ in range(3):
        await road.accept()
    gone = []
    for _ in range(4):
        await plan_all(road, planners=2)
        gone.append(len(await road.deliveries()))
        road.clock.move(3_600.1)
    assert gone == [1, 2, 3, 3]
    states = Counter(row["state"] for row in await road.database.fetch("SELECT state FROM run"))
    assert states == {RunState.done: 3}


async def test_beyond_the_limit_is_gathered(road: Road) -> None:
    await limit(road, "mail", {"max": 1, "window": "1h", "then": "digest"})
    for n in range(4):
        await road.accept(data={"n": n})
    await plan_all(road)
    assert await outcomes(road) == {(Status.queued, None): 1}
    road.clock.move(3_600.1)
    await plan_all(road)
    assert (await outcomes(road))[Status.queued, None] == 2
    items = await road.database.fetchval("SELECT items FROM notification WHERE items IS NOT NULL")
    assert items == 3


async def test_place_comes_back_when_nothing_left_the_house(road: Road) -> None:
    await limit(road, "mail", {"max": 1, "window": "1d"})
    first = await road.accept()
    await plan_all(road)
    await road.intervener.cancel(road.caller, first)
    await road.accept()
    await plan_all(road)
    assert await outcomes(road) == {(Status.cancelled, Reason.cancelled): 1, (Status.queued, None): 1}
    await road.send()
    assert len(road.vendor.sent) == 1
    await road.accept()
    await plan_all(road)
    assert (await outcomes(road))[Status.skipped, Reason.capped] == 1
