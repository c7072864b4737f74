"""When users look at messages: counted once each, at the hour of their own day, whoever else counts at that moment."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.db.road import Road, make_project
from tidings import ids
from tidings.db.pool import Database
from tidings.directory.audit import Actor
from tidings.directory.users import delete_user
from tidings.flow.engagement import LATE_MAX, SQL, Engaged, apply_engagement, decide_engaged, to_time
from tidings.flow.inbox import Bell, Inbox, Mark
from tidings.flow.receipts import Fact, Receiver
from tidings.model.words import Channel, Engagement, EventKind
from tidings.providers.port import Report

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
async def road(database: Database) -> Road:
    return Road(database, await database.transaction(make_project))


async def sent(road: Road, **body: Any) -> Any:
    """One mail that was sent."""
    notification = await road.accept(**body)
    await road.plan()
    await road.send()
    [delivery] = await road.deliveries(notification)
    return delivery


async def report(road: Road, delivery: Any, *kinds: EventKind, **more: Any) -> int:
    key = ids.to_public(ids.DELIVERY, delivery["id"])
    receiver = Receiver(road.database, road.meter, road.clock)
    return await receiver.record(
        [Fact(road.project_id, delivery["account_id"], Report(kind, key=key, **more)) for kind in kinds]
    )


async def rows(road: Road) -> dict[tuple[str, Channel], Any]:
    found = await road.database.fetch("SELECT * FROM user_engagement ORDER BY user_id, channel")
    return {(row["user_id"], Channel(row["channel"])): row for row in found}


async def set_user(road: Road, user: str, **fields: Any) -> None:
    for name, value in fields.items():
        await road.database.execute(f"UPDATE app_user SET {name} = $2 WHERE id = $1", user, value)


def hours(row: Any) -> dict[int, int]:
    assert len(row["hours"]) == 24
    return {hour: n for hour, n in enumerate(row["hours"]) if n}


async def test_a_message_counts_once_as_opened_and_once_as_clicked(road: Road) -> None:
    await set_user(road, "ada", time_zone="Asia/Kathmandu")  # noon UTC is 17:45 there
    first, second = await sent(road), await sent(road)
    await report(road, first, EventKind.opened, EventKind.opened, EventKind.seen, EventKind.clicked)
    await report(road, first, EventKind.clicked, EventKind.read)
    road.clock.move(3600)
    await report(road, second, EventKind.clicked, event_id="c")
    road.clock.move(3600)
    await report(road, second, EventKind.opened, event_id="o")
    row = (await rows(road))["ada", Channel.email]
    assert (row["opened"], row["clicked"]) == (2, 2)
    assert hours(row) == {17: 1, 18: 1}, "the hour of whichever came first"
    assert row["last_opened_at"] == road.clock.now()
    assert row["last_clicked_at"] == road.clock.now() - timedelta(hours=1)


async def test_what_machines_do_and_what_no_user_gets_is_not_counted(road: Road) -> None:
    delivery = await sent(road)
    await report(road, delivery, EventKind.opened, EventKind.clicked, machine=True)
    await report(road, delivery, EventKind.delivered, EventKind.archived, EventKind.complained)
    nobody = await sent(road, to={"email": "somebody@example.com"})
    await report(road, nobody, EventKind.opened)
    assert not await rows(road)
    await report(road, delivery, EventKind.opened, event_id="by a person, after the machine")
    assert (await rows(road))["ada", Channel.email]["opened"] == 1


async def test_the_hour_is_when_the_vendor_says_it_happened(road: Road) -> None:
    early, wrong = await sent(road), await sent(road)
    await report(road, early, EventKind.opened, at=road.clock.now() - timedelta(hours=3))
    assert hours((await rows(road))["ada", Channel.email]) == {9: 1}
    await report(road, wrong, EventKind.opened, at=road.clock.now() + timedelta(hours=3))
    row = (await rows(road))["ada", Channel.email]
    assert hours(row) == {9: 1, 12: 1}
    assert row["last_opened_at"] == road.clock.now()
    assert to_time(NOON - LATE_MAX - timedelta(seconds=1), NOON) == to_time(None, NOON) == NOON


async def test_the_users_day_by_what_is_known_of_them(road: Road) -> None:
    await set_user(road, "bob", region="US-HI")
    await road.database.execute(
        "INSERT INTO address (project_id, user_id, channel, value) VALUES ($1, 'cleo', 2, '+12125550123')",
        road.project_id,
    )
    await road.database.execute(
        """UPDATE project SET settings = settings || '{"time_zone": "Asia/Tokyo"}' WHERE id = $1""", road.project_id
    )
    at = NOON.replace(minute=30)
    engaged = [Engaged(road.project_id, user, 1, True, False, True, at) for user in ("ada", "bob", "cleo")]
    await road.database.transaction(lambda conn: apply_engagement(conn, engaged))
    found = await rows(road)
    assert hours(found["ada", Channel.email]) == {21: 1}
    assert hours(found["bob", Channel.email]) == {2: 1}
    assert hours(found["cleo", Channel.email]) == {7: 1}


async def test_what_is_done_in_the_inbox_counts_as_well(road: Road) -> None:
    for _ in range(3):
        await road.accept(type="item")
    await road.plan()
    await road.send(Channel.in_app)
    one, two, three = [row["delivery_id"] for row in await road.database.fetch("SELECT * FROM inbox_item ORDER BY seq")]
    inbox, owner = Inbox(road.database, road.meter, road.clock, Bell()), (road.project_id, "ada")
    await inbox.mark(owner, [one], Mark.seen)
    await inbox.mark(owner, [one, two], Mark.read)
    await inbox.mark(owner, [two, three], Mark.click)
    await inbox.mark(owner, [two], Mark.unread)
    await inbox.mark(owner, [two], Mark.read)
    await inbox.mark(owner, [one], Mark.archive)
    row = (await rows(road))["ada", Channel.in_app]
    assert (row["opened"], row["clicked"], hours(row)) == (3, 2, {12: 3})


async def test_many_count_at_once_and_nothing_is_lost(road: Road) -> None:
    rng = random.Random(3)
    expected: Counter[tuple[str, int]] = Counter()
    batches = []
    for _ in range(24):
        batch = []
        for _ in range(30):
            user, channel, hour = rng.choice(("ada", "bob", "cleo")), rng.choice((1, 4)), rng.randrange(24)
            clicked = rng.random() < 0.5
            batch.append(Engaged(road.project_id, user, channel, not clicked, clicked, True, NOON.replace(hour=hour)))
            expected[user, hour] += 1
        batches.append(batch)

    async def count(batch: list[Engaged]) -> None:
        await road.database.transaction(lambda conn: apply_engagement(conn, batch))

    await asyncio.gather(*map(count, batches))
    found = await rows(road)
    told: Counter[tuple[str, int]] = Counter()
    for (user, _), row in found.items():
        assert row["opened"] + row["clicked"] == sum(row["hours"])
        told.update({(user, hour): n for hour, n in hours(row).items()})
    assert told == expected


async def test_somebody_who_is_deleted_meanwhile_leaves_nothing(road: Road) -> None:
    actor = Actor(road.project_id, "system")
    counted, may_end = asyncio.Event(), asyncio.Event()

    async def count(conn: Any) -> None:
        await apply_engagement(conn, [Engaged(road.project_id, "ada", 1, True, False, True, NOON)])
        counted.set()
        await may_end.wait()

    async def delete() -> None:
        await counted.wait()
        deleting = asyncio.create_task(road.database.transaction(lambda conn: delete_user(conn, actor, "ada")))
        may_end.set()
        await deleting

    await asyncio.gather(road.database.transaction(count), delete())
    assert not await rows(road)
    await road.database.transaction(
        lambda conn: apply_engagement(conn, [Engaged(road.project_id, "ada", 1, True, False, True, NOON)])
    )
    assert not await rows(road), "nor do reports that come later bring them back"


@given(st.lists(st.sampled_from([e for e in Engagement if e <= Engagement.archived]), max_size=8))
def test_whatever_the_order_each_message_counts_at_most_once(facts: list[Engagement]) -> None:
    before, opened, clicked, first = 0, 0, 0, 0
    for bit in facts:
        if (counted := decide_engaged(before, bit & ~before)) is not None:
            opened, clicked, first = opened + counted[0], clicked + counted[1], first + counted[2]
        before |= bit
    looked = bool({Engagement.seen, Engagement.opened, Engagement.read} & set(facts))
    assert (opened, clicked) == (looked, Engagement.clicked in facts)
    assert first == (looked or Engagement.clicked in facts)


async def test_it_takes_two_statements_for_many(road: Road) -> None:
    engaged = [
        Engaged(road.project_id, user, channel, True, True, True, NOON)
        for user in ("ada", "bob")
        for channel in (1, 3, 4)
    ] * 50
    async with road.database.acquire() as conn:
        await apply_engagement(conn, engaged)  # asyncpg asks about types once
        said: list[str] = []
        conn.add_query_logger(lambda record: said.append(record.query))
        await apply_engagement(conn, engaged)
    assert said == [SQL.load_whereabouts, SQL.add_engagement]
    assert {row["opened"] for row in (await rows(road)).values()} == {100}
