"""Caps on a real database: exact under concurrency, given back when asked, forgotten when empty."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from tidings.db.pool import Connection, Database
from tidings.directory.limits import Limit
from tidings.directory.projects import ProjectSettings
from tidings.flow.caps import SQL, Cap, Ledger, forget_counters, list_caps, refund, to_keys
from tidings.model.rulings import Answer, Ruling
from tidings.model.words import Channel, Priority

NOW: Final = datetime(2026, 11, 22, 12, tzinfo=UTC)
ADA: Final = "u:ada"


def caps_of(*limits: Limit) -> tuple[Cap, ...]:
    return list_caps(None, ProjectSettings(limits=limits), Priority.medium)


async def plan(
    database: Database,
    caps: Sequence[Cap],
    *ids: int,
    now: datetime = NOW,
    target: str = ADA,
    channel: Channel | None = None,
) -> list[Ruling | None]:
    """What planning does for a batch: lock, ask, book what fits, write."""

    async def work(conn: Connection) -> list[Ruling | None]:
        ledger = await Ledger.lock(conn, to_keys(1, target, caps))
        rulings = []
        for n in ids:
            ruling = ledger.ask(1, target, caps, UUID(int=n), channel, now)
            if ruling is None or ruling.answer is Answer.go:
                ledger.book(1, target, caps, UUID(int=n), channel, now)
            rulings.append(ruling)
        await ledger.write(conn)
        return rulings

    return await database.transaction(work)


def answers(rulings: Sequence[Ruling | None]) -> list[Answer | None]:
    return [None if ruling is None else ruling.answer for ruling in rulings]


async def test_twenty_concurrent_with_cap_1(database_dsn: str) -> None:
    caps = caps_of(Limit(max=1, window="1d"))
    async with await Database.connect(database_dsn, min_size=20, max_size=20) as database:
        told = await asyncio.gather(*(plan(database, caps, n) for n in range(20)))
        assert sorted(str(ruling.answer) for [ruling] in told if ruling) == ["go"] + ["no"] * 19
        assert await database.fetchval("SELECT count(*) FROM cap_counter, jsonb_object_keys(hits)") == 1


async def test_planners_that_want_the_same_counters_do_not_lock_each_other_out(database_dsn: str) -> None:
    caps = caps_of(*(Limit(max=7, window=f"{n}h") for n in range(1, 10)))
    targets = [f"u:{name}" for name in "abcdefgh"]

    async with await Database.connect(database_dsn, min_size=8, max_size=8) as database:

        async def once(first: int) -> int:
            async def work(conn: Connection) -> int:
                mixed = targets[first:] + targets[:first]
                ledger = await Ledger.lock(conn, [key for target in mixed for key in to_keys(1, target, caps)])
                for target in mixed:
                    ledger.book(1, target, caps, UUID(int=first), None, NOW)
                await ledger.write(conn)
                return 1

            return await database.transaction(work)

        assert sum(await asyncio.gather(*(once(n) for n in range(8)))) == 8
        deadlocks = await database.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        assert deadlocks == 0
        counted = await database.fetch("SELECT (SELECT count(*) FROM jsonb_object_keys(hits)) AS n FROM cap_counter")
        assert [row["n"] for row in counted] == [8] * 72


async def test_window_rolls(database: Database) -> None:
    caps = caps_of(Limit(max=2, window="1h", then="defer"))
    assert answers(await plan(database, caps, 1)) == [Answer.go]
    assert answers(await plan(database, caps, 2, now=NOW + timedelta(minutes=30))) == [Answer.go]
    [held] = await plan(database, caps, 3, now=NOW + timedelta(minutes=45))
    assert held is not None
    assert held.until is not None
    assert held.answer is Answer.hold
    assert timedelta() <= held.until - (NOW + timedelta(hours=1)) <= timedelta(milliseconds=1)
    [asked_again] = await plan(database, caps, 3, now=held.until)
    assert asked_again is not None
    assert (asked_again.answer, asked_again.detail) == (Answer.go, "1 of 2 in 1h")


async def test_those_that_wait_are_called_one_after_the_other(database: Database) -> None:
    caps = caps_of(Limit(max=2, window="1h", then="defer"))
    rulings = await plan(database, caps, *range(7))
    hours = [round((ruling.until - NOW) / timedelta(hours=1)) for ruling in rulings if ruling and ruling.until]
    assert hours == [1, 1, 2, 2, 3]


async def test_a_notification_takes_one_place_on_whatever_channels(database: Database) -> None:
    caps = caps_of(Limit(max=1, window="1d"), Limit(max=1, window="1d", channel="sms"))
    assert answers(await plan(database, caps, 1, channel=Channel.email)) == [Answer.go]
    assert answers(await plan(database, caps, 1, channel=Channel.sms)) == [Answer.go]
    assert answers(await plan(database, caps, 1, channel=Channel.sms)) == [Answer.go]
    assert answers(await plan(database, caps, 2, channel=Channel.email)) == [Answer.no]
    counted = await database.fetch("SELECT key, hits->>$1 IS NOT NULL AS there FROM cap_counter", UUID(int=1).hex)
    assert [row["there"] for row in counted] == [True, True]


async def test_refunded_places_are_free_again(database: Database) -> None:
    caps = caps_of(Limit(max=2, window="1d"), Limit(max=2, window="1h", channel="email"))
    await plan(database, caps, 1, 2, channel=Channel.email)
    await plan(database, caps, 1, target="u:bob", channel=Channel.email)
    assert answers(await plan(database, caps, 3, channel=Channel.email)) == [Answer.no]

    async def work(conn: Connection) -> None:
        await refund(
            conn, [(1, ADA, UUID(int=1)), (1, ADA, UUID(int=2)), (1, "u:cleo", UUID(int=1)), (2, ADA, UUID(int=9))]
        )
        await refund(conn, [])

    await database.transaction(work)
    assert answers(await plan(database, caps, 3, 4, 5, channel=Channel.email)) == [Answer.go, Answer.go, Answer.no]
    kept = await database.fetchval(
        "SELECT count(*) FROM cap_counter WHERE target = 'u:bob' AND hits ? $1", UUID(int=1).hex
    )
    assert kept == 2


async def test_refund_waits_for_a_planner(database: Database) -> None:
    caps = caps_of(Limit(max=5, window="1d"))
    await plan(database, caps, 1)
    async with database.acquire() as planner, planner.transaction():
        ledger = await Ledger.lock(planner, to_keys(1, ADA, caps))
        giving = asyncio.create_task(database.transaction(lambda conn: refund(conn, [(1, ADA, UUID(int=1))])))
        while not await planner.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"):
            await asyncio.sleep(0)
        ledger.book(1, ADA, caps, UUID(int=2), None, NOW)
        await ledger.write(planner)
    await giving
    assert await database.fetchval("SELECT array_agg(k) FROM cap_counter, jsonb_object_keys(hits) k") == [
        UUID(int=2).hex
    ]


async def test_only_what_was_booked_is_written_and_without_what_is_past(database: Database) -> None:
    caps = caps_of(Limit(max=2, window="1h"))
    await plan(database, caps, 1, 2)
    before = await database.fetchval("SELECT xmin::text FROM cap_counter")
    assert answers(await plan(database, caps, 3)) == [Answer.no]
    assert await database.fetchval("SELECT xmin::text FROM cap_counter") == before
    await plan(database, caps, 4, now=NOW + timedelta(hours=2))
    assert await database.fetchval("SELECT array_agg(k) FROM cap_counter, jsonb_object_keys(hits) k") == [
        UUID(int=4).hex
    ]


async def test_explain_locks_nothing(database: Database) -> None:
    caps = caps_of(Limit(max=1, window="1h"))
    ledger = await Ledger.load(database, to_keys(1, ADA, caps))
    ruling = ledger.ask(1, ADA, caps, UUID(int=1), None, NOW)
    assert ruling is not None
    assert ruling.detail == "0 of 1 in 1h"
    await plan(database, caps, 1)
    ledger = await Ledger.load(database, to_keys(1, ADA, caps))
    assert answers([ledger.ask(1, ADA, caps, UUID(int=2), None, NOW)]) == [Answer.no]
    assert await database.fetchval("SELECT count(*) FROM cap_counter") == 1


async def test_empty_counters_are_forgotten(database: Database) -> None:
    short, long = caps_of(Limit(max=1, window="1h")), caps_of(Limit(max=1, window="2d"))
    for n in range(30):
        await plan(database, short if n % 3 else long, n, target=f"u:{n}")
    for n in range(0, 30, 3):
        await plan(database, long, n, target=f"u:{n}")
    assert await forget_counters(database, NOW + timedelta(minutes=59)) == 0
    async with database.acquire() as planner, planner.transaction():
        await Ledger.lock(planner, to_keys(1, "u:1", short))  # who is about to write it is not waited for
        assert await forget_counters(database, NOW + timedelta(hours=2)) == 19
    assert await forget_counters(database, NOW + timedelta(hours=2)) == 1
    assert await database.fetchval("SELECT count(*) FROM cap_counter") == 10


async def test_counters_are_forgotten_part_by_part(database: Database) -> None:
    caps = caps_of(Limit(max=1, window="1h"))
    for n in range(10):
        await plan(database, caps, n, target=f"u:{n}")
    row = await database.fetchrow(SQL.forget_counters, 0, "", "", 4, NOW + timedelta(hours=2))
    assert row is not None
    assert tuple(row) == (4, 1, "u:3", "project:-:-:3600")
    row = await database.fetchrow(SQL.forget_counters, *tuple(row)[1:], 7, NOW + timedelta(hours=2))
    assert row is not None
    assert tuple(row) == (6, None, None, None)
