"""Accepting on a real database: idempotency in every constellation, and bad rows that take nobody along."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from tests.db.road import Road, make_project
from tidings.db.pool import Database
from tidings.errors import CommitUnknown, IdempotencyBusy, IdempotencyMismatch, Invalid, Unavailable
from tidings.flow.accept import FORGET_BATCH, Accepted, forget_keys

MAIL: dict[str, Any] = {"to": {"user": "ada"}, "type": "mail"}


@pytest.fixture
async def road(database: Database) -> Road:
    return Road(database, await database.transaction(make_project))


async def test_a_repeated_key_replays_the_first_answer(road: Road) -> None:
    [first] = await road.ask(MAIL, key="k")
    [again] = await road.ask(MAIL, key="k")
    assert (again.id, again.status, again.idempotent_replayed) == (first.id, first.status, True)
    [other] = await road.ask({**MAIL, "to": {"user": "bob"}}, key="k")
    assert isinstance(other, IdempotencyMismatch)
    assert await road.count("notification") == await road.count("job") == 1


async def test_the_order_of_keys_in_data_does_not_matter(road: Road) -> None:
    [first] = await road.ask({**MAIL, "data": {"a": 1, "b": 2}}, key="k")
    [again] = await road.ask({**MAIL, "data": {"b": 2, "a": 1}}, key="k")
    assert again.id == first.id


async def test_the_same_key_twice_in_one_batch(road: Road) -> None:
    one = {**MAIL, "idempotency_key": "k"}
    first, same, other = await road.ask(one, one, {**one, "data": {"n": 1}})
    assert (same.id, same.idempotent_replayed) == (first.id, True)
    assert isinstance(other, IdempotencyMismatch)
    assert await road.count("notification") == 1
    assert (await road.recount())[0] == 1


async def test_a_batch_is_repeated_item_by_item_and_only_as_a_whole_under_one_key(road: Road) -> None:
    first = await road.ask(MAIL, MAIL, key="k")
    again = await road.ask(MAIL, MAIL, key="k")
    assert [a.id for a in again] == [a.id for a in first]
    assert first[0].id != first[1].id
    changed = await road.ask(MAIL, {**MAIL, "to": {"user": "bob"}}, key="k")
    assert all(isinstance(answer, IdempotencyMismatch) for answer in changed)


async def test_concurrent_duplicates_wait_and_replay(road: Road) -> None:
    acceptors = [road.new_acceptor() for _ in range(3)]
    told: list[list[Any]] = await asyncio.gather(
        *(_ask(road, acceptor, "k") for acceptor in acceptors for _ in range(4))
    )
    answers = [answer for [answer] in told]
    assert len({answer.id for answer in answers}) == 1
    assert sum(not answer.idempotent_replayed for answer in answers) == 1
    assert await road.count("notification") == 1


async def _ask(road: Road, acceptor: Any, key: str) -> list[Any]:
    road.acceptor = acceptor
    return await road.ask(MAIL, key=key)


async def test_a_key_that_is_held_too_long_is_busy_and_its_neighbours_go(road: Road) -> None:
    async with road.database.acquire() as other:
        await other.execute("BEGIN")
        await other.execute(
            "INSERT INTO idempotency VALUES ($1, 'held', '', 202, '{}', now() + interval '1 day')", road.project_id
        )
        clock = asyncio.get_running_loop()
        began = clock.time()
        held, *others = await asyncio.gather(
            road.ask(MAIL, key="held"),
            *(road.ask(MAIL, key=f"k{n}") for n in range(30)),
            return_exceptions=True,
        )
        assert 0.9 < clock.time() - began < 3.0
        await other.execute("ROLLBACK")
    assert isinstance(held, IdempotencyBusy)
    assert all(isinstance(told, list) and isinstance(told[0], Accepted) for told in others)
    [answer] = await road.ask(MAIL, key="held")
    assert isinstance(answer, Accepted)


async def test_a_key_is_new_again_after_a_day(road: Road) -> None:
    [first] = await road.ask(MAIL, key="k")
    road.clock.move(timedelta(hours=23, minutes=59).total_seconds())
    [again] = await road.ask(MAIL, key="k")
    assert again.id == first.id
    road.clock.move(120)
    [new] = await road.ask(MAIL, key="k")
    assert new.id != first.id
    assert not new.idempotent_replayed


async def test_keys_are_forgotten_in_batches(road: Road) -> None:
    await road.ask({"to": {"user": "ada"}, "type": "mail"}, key="young")
    await road.database.execute(
        "INSERT INTO idempotency (project_id, key, fingerprint, status, answer, expires_at)"
        " SELECT $1, n::text, '', 202, '{}', now() - interval '2 hours' FROM generate_series(1, $2) n",
        road.project_id,
        FORGET_BATCH + 7,
    )
    await asyncio.gather(*(forget_keys(road.database) for _ in range(2)))
    assert await road.database.fetchval("SELECT array_agg(key) FROM idempotency") == ["young"]


async def test_a_day_without_partition_is_not_the_requests_fault(road: Road) -> None:
    road.clock.move(timedelta(days=60).total_seconds())
    with pytest.raises(Unavailable):
        await road.accept()


async def test_what_was_accepted_stays_accepted_when_it_would_be_refused_now(road: Road) -> None:
    soon = {**MAIL, "expires_at": road.clock.now() + timedelta(minutes=1)}
    [first] = await road.ask(soon, key="k")
    road.clock.move(300)
    [again] = await road.ask(soon, key="k")
    assert (again.id, again.idempotent_replayed) == (first.id, True)
    [new] = await road.ask(soon, key="another")
    assert isinstance(new, Invalid)
    [changed] = await road.ask({**soon, "data": {"n": 1}}, key="k")
    assert isinstance(changed, IdempotencyMismatch)


async def test_a_refused_repetition_waits_for_the_first_that_is_being_stored(road: Road) -> None:
    storing, may_commit = asyncio.Event(), asyncio.Event()

    async def hold(point: str) -> None:
        if point == "accept.commit":
            storing.set()
            await may_commit.wait()

    soon = {**MAIL, "expires_at": road.clock.now() + timedelta(minutes=1)}
    first = asyncio.create_task(_ask_of(road, road.new_acceptor(hold), soon))
    await storing.wait()
    road.clock.move(300)
    again = asyncio.create_task(_ask_of(road, road.new_acceptor(), soon))
    await road.wait_for_lock()
    may_commit.set()
    [told], [replayed] = await first, await again
    assert (replayed.id, replayed.idempotent_replayed) == (told.id, True)


async def _ask_of(road: Road, acceptor: Any, body: dict[str, Any]) -> list[Any]:
    road.acceptor = acceptor
    return await road.ask(body, key="k")


async def test_projects_do_not_share_keys_or_users(road: Road, database: Database) -> None:
    other = Road(database, await database.transaction(lambda conn: make_project(conn, "q")))
    [mine], [theirs] = await road.ask(MAIL, key="k"), await other.ask(MAIL, key="k")
    assert mine.id != theirs.id
    await database.execute("DELETE FROM app_user WHERE project_id = $1 AND id = 'cleo'", other.project_id)
    [refused] = await other.ask({**MAIL, "to": {"user": "cleo"}})
    assert isinstance(refused, Invalid)


async def test_what_only_the_database_refuses_takes_nobody_along(road: Road) -> None:
    # Stands for what no check of ours thought of.
    await road.database.execute(
        "ALTER TABLE notification ADD CONSTRAINT not_bob CHECK (user_id IS DISTINCT FROM 'bob') NOT VALID"
    )
    bodies = [{**MAIL, "to": {"user": "bob" if n in (3, 11) else "ada"}} for n in range(16)]
    told = await asyncio.gather(*(road.ask(body) for body in bodies), return_exceptions=True)
    for n, answer in enumerate(told):
        if n in (3, 11):
            assert isinstance(answer, Invalid)
        else:
            assert isinstance(answer, list)
            assert isinstance(answer[0], Accepted)
    assert await road.count("notification") == await road.count("job") == 14
    assert (await road.recount())[0] == 14


async def test_an_unknown_commit_is_told_as_such(road: Road) -> None:
    async def lose(name: str) -> None:
        if name == "accept.after":
            raise CommitUnknown

    road.acceptor = road.new_acceptor(lose)
    with pytest.raises(Unavailable, match="same idempotency key"):
        await road.ask(MAIL, key="k")
    road.acceptor = road.new_acceptor()
    [answer] = await road.ask(MAIL, key="k")
    assert answer.idempotent_replayed
    assert await road.count("notification") == 1


async def test_nothing_is_stored_when_the_transaction_fails(road: Road) -> None:
    async def fail(name: str) -> None:
        if name == "accept.commit":
            raise asyncpg.ConnectionDoesNotExistError("gone")

    road.acceptor = road.new_acceptor(fail)
    with pytest.raises(Unavailable):
        await road.ask(MAIL, key="k")
    for table in ("notification", "job", "idempotency", "rollup_delta"):
        assert await road.count(table) == 0


async def test_a_scheduled_request_waits_as_a_job(road: Road) -> None:
    at = road.clock.now() + timedelta(hours=1)
    [answer] = await road.ask({**MAIL, "send_at": at})
    assert answer.status == "scheduled"
    assert await road.database.fetchval("SELECT due_at FROM job") == at
    assert await road.plan() == 0
    road.clock.move(3600)
    assert await road.plan() == 1


async def test_planning_puts_aside_only_what_cannot_be_planned(road: Road) -> None:
    good = [await road.accept() for _ in range(5)]
    bad = await road.accept(to={"user": "bob"})
    good += [await road.accept() for _ in range(5)]
    await road.database.execute("ALTER TABLE delivery ADD CONSTRAINT not_bob CHECK (address <> 'bob@example.com')")
    assert await road.plan() == 11
    assert {d["notification_id"] for d in await road.deliveries()} == set(good)
    for _ in range(6):
        road.clock.move(30 * 4**5)
        await road.plan()
    [given_up] = await road.deliveries(bad)
    assert (given_up["status"], given_up["reason"]) == (4, "unsupported")
    assert await road.database.fetchval("SELECT count(*) FROM job WHERE id = $1", bad) == 0
