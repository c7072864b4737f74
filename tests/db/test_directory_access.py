"""API keys: recognised from memory, forgotten in time, and never told apart by how long a refusal takes."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest

from tidings.clock import SystemClock
from tidings.db.pool import Database
from tidings.directory.access import FRESH_FOR, Access, create_key, list_keys, revoke_key
from tidings.directory.audit import Actor
from tidings.errors import Forbidden, Invalid, Unauthenticated
from tidings.ids import parse_public
from tidings.model.words import Scope


class MovableClock(SystemClock):
    """The real clock, with a button to make time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.passed

    def monotonic(self) -> float:
        return super().monotonic() + self.passed.total_seconds()


class CountingDatabase:
    """Counts the questions that reach the database; a question can be held back."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.questions = 0
        self.at_once = 0
        self.most_at_once = 0
        self.free = asyncio.Event()
        self.free.set()

    async def fetchrow(self, query: str, *args: Any) -> Any:
        self.questions += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.free.wait()
            return await self._database.fetchrow(query, *args)
        finally:
            self.at_once -= 1


@pytest.fixture
async def actor(database: Database) -> Actor:
    project_id = await database.fetchval("INSERT INTO project (key, name) VALUES ('shop', 'Shop') RETURNING id")
    return Actor(project_id, "cli")


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def counted(database: Database) -> CountingDatabase:
    return CountingDatabase(database)


@pytest.fixture
def access(counted: Any, clock: MovableClock) -> Access:
    return Access(counted, clock)


async def _new_key(database: Database, actor: Actor, clock: MovableClock, **options: Any) -> str:
    given = {"name": "k", "scopes": [Scope.send, Scope.read], **options}
    _, text = await database.transaction(lambda conn: create_key(conn, actor, clock, **given))
    return text


async def test_a_known_key_costs_one_question_in_four_seconds(
    database: Database, actor: Actor, clock: MovableClock, access: Access, counted: CountingDatabase
) -> None:
    header = "bearer  " + await _new_key(database, actor, clock, test=True)
    for _ in range(100):
        caller = await access.authenticate(header)
    assert counted.questions == 1
    assert (caller.project_id, caller.project_key, caller.test) == (actor.project_id, "shop", True)
    caller.require(Scope.send)
    with pytest.raises(Forbidden, match="manage"):
        caller.require(Scope.manage)
    clock.passed += timedelta(seconds=FRESH_FOR)
    await access.authenticate(header)
    assert counted.questions == 2


async def test_many_askers_share_one_question(
    database: Database, actor: Actor, clock: MovableClock, access: Access, counted: CountingDatabase
) -> None:
    header = "Bearer " + await _new_key(database, actor, clock)
    counted.free.clear()
    first = asyncio.create_task(access.authenticate(header))
    others = [asyncio.create_task(access.authenticate(header)) for _ in range(20)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    counted.free.set()
    assert len({caller.key_id for caller in await asyncio.gather(*others)}) == 1
    assert counted.questions == 1


async def test_a_revoked_key_ends_within_five_seconds_elsewhere_and_at_once_here(
    database: Database, actor: Actor, clock: MovableClock, access: Access
) -> None:
    text = await _new_key(database, actor, clock)
    elsewhere = Access(database, clock)
    here = await access.authenticate(f"Bearer {text}")
    await elsewhere.authenticate(f"Bearer {text}")
    await database.transaction(lambda conn: revoke_key(conn, actor, here.key_id))
    access.forget(here.key_id)
    with pytest.raises(Unauthenticated, match="revoked"):
        await access.authenticate(f"Bearer {text}")
    assert FRESH_FOR < 5
    clock.passed += timedelta(seconds=FRESH_FOR)
    with pytest.raises(Unauthenticated, match="revoked"):
        await elsewhere.authenticate(f"Bearer {text}")


async def test_unknown_and_wrong_keys_are_refused_alike(
    database: Database, actor: Actor, clock: MovableClock, access: Access, counted: CountingDatabase
) -> None:
    text = await _new_key(database, actor, clock)
    other = await _new_key(database, actor, clock)
    _, _, key_id, secret = text.split("_", 3)
    for wrong in (
        text.replace(secret, other.split("_", 3)[3]),
        text.replace("tdg_shop", "tdg_other"),
        text.replace("tdg_", "tdgt_"),
        text.replace(key_id, "0" * 26),
    ):
        for _ in range(5):
            with pytest.raises(Unauthenticated, match="is not valid"):
                await access.authenticate(f"Bearer {wrong}")
    assert counted.questions == 2, "one for the id that exists, one for the id that does not"
    # The key that was unknown a moment ago is looked for again soon: it may have been made meanwhile.
    clock.passed += timedelta(seconds=1.5)
    with pytest.raises(Unauthenticated):
        await access.authenticate(f"Bearer {text.replace(key_id, '0' * 26)}")
    assert counted.questions == 3


async def test_made_up_keys_take_few_connections_and_bounded_memory(access: Access, counted: CountingDatabase) -> None:
    counted.free.clear()
    wrong = [f"Bearer tdg_shop_{n:026d}_{'a' * 43}" for n in range(50)]
    tasks = [asyncio.create_task(access.authenticate(header)) for header in wrong]
    for _ in range(5):
        await asyncio.sleep(0)
    assert counted.most_at_once <= 4
    counted.free.set()
    assert all(isinstance(e, Unauthenticated) for e in await asyncio.gather(*tasks, return_exceptions=True))
    assert counted.most_at_once <= 4


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic dTpw", "Bearer tdg_a_x_y", "Bearer \u2713"])
async def test_what_is_no_key_costs_no_question(access: Access, counted: CountingDatabase, header: str | None) -> None:
    with pytest.raises(Unauthenticated):
        await access.authenticate(header)
    assert counted.questions == 0


async def test_a_database_that_is_away_is_no_refusal(database: Database, actor: Actor, clock: MovableClock) -> None:
    text = await _new_key(database, actor, clock)
    access = Access(database, clock)
    await database.close()
    with pytest.raises(Exception) as raised:  # noqa: PT011 - whatever it is, it is no answer about the key
        await access.authenticate(f"Bearer {text}")
    assert not isinstance(raised.value, Unauthenticated)


async def test_the_secret_is_nowhere_in_the_database(database: Database, actor: Actor, clock: MovableClock) -> None:
    text = await _new_key(database, actor, clock)
    secret = text.split("_", 3)[3]
    for table in ("api_key", "audit"):
        rows = await database.fetchval(f"SELECT string_agg(t::text, ' ') FROM {table} AS t")
        assert secret not in rows
    assert len(secret) == 43
    [key] = await list_keys(database, actor.project_id)
    assert parse_public("key", key.id)


async def test_a_key_must_be_good_for_something(database: Database, actor: Actor, clock: MovableClock) -> None:
    with pytest.raises(Invalid):
        await _new_key(database, actor, clock, scopes=[])
    with pytest.raises(Invalid):
        await _new_key(database, actor, clock, expires_at=clock.now())
