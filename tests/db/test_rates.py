"""Rates of API keys: never exceeded by all processes together, counted in memory, told in the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from tests.db.road import HandClock
from tidings.db.pool import Connection, Database
from tidings.directory.access import Access, Caller, create_key
from tidings.directory.audit import Actor
from tidings.directory.projects import create_project
from tidings.directory.rates import Allowance, Rates
from tidings.errors import Invalid
from tidings.model.words import Scope


class Counted:
    """A database that counts the statements."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.statements = 0

    async def fetchrow(self, query: str, *args: Any) -> Any:
        self.statements += 1
        return await self._database.fetchrow(query, *args)

    async def execute(self, query: str, *args: Any) -> Any:
        self.statements += 1
        return await self._database.execute(query, *args)


async def make_key(database: Database, rate: int | None = None) -> tuple[int, UUID, str]:
    clock = HandClock(1)

    async def work(conn: Connection) -> tuple[int, UUID, str]:
        project = await create_project(conn, "p", "")
        scopes: Collection[Scope] = list(Scope)
        _, text = await create_key(conn, Actor(project.id, "system"), clock, name="k", scopes=scopes, rate=rate)
        return project.id, await conn.fetchval("SELECT id FROM api_key"), text

    return await database.transaction(work)


@pytest.mark.parametrize("limit", [1, 7, 600])
async def test_processes_together_never_let_more_through(database: Database, limit: int) -> None:
    project, key, _ = await make_key(database)
    clock = HandClock(1)
    processes = [Rates(database, clock) for _ in range(4)]
    for minute in range(3):
        told: list[Allowance] = []
        for _ in range(limit // 4 + 40):
            told += await asyncio.gather(*(rates.take(key, project, limit, 1) for rates in processes))
        granted = sum(one.granted for one in told)
        assert granted <= limit
        assert granted >= limit - 3 * max(1, limit // 20)
        assert await database.fetchval("SELECT used FROM key_budget") <= limit
        assert not told[-1].granted
        assert 0 < told[-1].seconds <= 60
        clock.move(60 if minute else 61)


async def test_hardly_any_request_costs_a_statement(database: Database) -> None:
    project, key, _ = await make_key(database)
    counted = Counted(database)
    rates = Rates(counted, HandClock(1))  # type: ignore[arg-type]  # it does what a Database does
    told = [await rates.take(key, project, 10_000, 1) for _ in range(10_000)]
    assert all(one.granted for one in told)
    assert [told[0].left, told[-1].left] == [9_999, 0]
    assert counted.statements < 60
    before = counted.statements
    assert not any([(await rates.take(key, project, 10_000, 1)).granted for _ in range(1_000)])
    assert counted.statements == before + 1


async def test_what_costs_more_waits_for_the_next_minute_and_less_goes_on(database: Database) -> None:
    project, key, _ = await make_key(database)
    clock = HandClock(1)
    rates = Rates(database, clock)
    assert (await rates.take(key, project, 100, 70)).granted
    refused = await rates.take(key, project, 100, 40)
    assert (refused.granted, refused.left) == (False, 30)
    assert (await rates.take(key, project, 100, 30)).granted
    assert not (await rates.take(key, project, 100, 101)).granted
    clock.move(60)
    assert not (await rates.take(key, project, 100, 101)).granted
    assert (await rates.take(key, project, 100, 100)).granted


async def test_clock_that_goes_back_shuts_nobody_out_for_long(database: Database) -> None:
    project, key, _ = await make_key(database)
    clock = HandClock(1)
    assert (await Rates(database, clock).take(key, project, 10, 10)).granted
    await database.execute("UPDATE key_budget SET begins = begins + $1", timedelta(hours=1))
    assert (await Rates(database, clock).take(key, project, 10, 10)).granted


async def test_key_that_is_gone_is_not_let_through(database: Database) -> None:
    project, _, _ = await make_key(database)
    assert not (await Rates(database, HandClock(1)).take(UUID(int=5), project, 10, 1)).granted


async def test_own_rate_goes_before_the_default(database: Database) -> None:
    _, key, text = await make_key(database, rate=3)
    clock = HandClock(1)

    async def who(default: int | None) -> Caller:
        return await Access(database, clock, rate=default).authenticate(f"Bearer {text}")

    assert [(await who(default)).rate for default in (None, 100)] == [3, 3]
    await database.execute("UPDATE api_key SET rate = NULL WHERE id = $1", key)
    assert [(await who(default)).rate for default in (None, 100)] == [None, 100]
    access = Access(database, clock, rate=100)
    assert await Access(database, clock).charge(await who(None), 1) is None
    told = await access.charge(await who(100), 1)
    assert told is not None
    assert (told.granted, told.limit, told.left) == (True, 100, 99)


async def test_rate_that_is_none(database: Database) -> None:
    with pytest.raises(Invalid):
        await make_key(database, rate=0)
