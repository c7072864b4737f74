"""Writes of the directory under concurrency, and the trail they leave."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial

import asyncpg
import pytest

from tidings.db.pool import Connection, Database
from tidings.directory.audit import Actor, apply_audit, list_audit
from tidings.directory.categories import put_category
from tidings.directory.projects import create_project, list_projects, load_project_by_key
from tidings.directory.users import load_user, put_user
from tidings.errors import Conflict, Invalid
from tidings.ids import time_of
from tidings.model.words import Channel


@pytest.fixture
async def actor(database: Database) -> Actor:
    project = await database.transaction(lambda conn: create_project(conn, "shop", "Shop"))
    return Actor(project.id, "system")


async def test_a_project_begins_with_what_every_project_has(database: Database, actor: Actor) -> None:
    assert [project.key for project in await list_projects(database)] == ["shop"]
    assert (await load_project_by_key(database, "shop")) is not None
    assert (await load_project_by_key(database, "other")) is None
    assert await database.fetchval("SELECT count(*) FROM category WHERE project_id = $1", actor.project_id) == 1
    with pytest.raises(Conflict):
        await database.transaction(lambda conn: create_project(conn, "shop", "Again"))
    for key in ("", "Shop", "-x", "a_b", "x" * 41):
        with pytest.raises(Invalid):
            await database.transaction(partial(create_project, key=key, name="Wrong"))


async def test_trail_ids_are_uuid7_of_their_time_and_rows_never_change(database: Database, actor: Actor) -> None:
    await database.transaction(lambda conn: apply_audit(conn, actor, "a.b", "c:d", before={"x": 1}))
    [entry] = await list_audit(database, actor.project_id, action="a.b")
    assert entry.id.version == 7
    assert entry.id.variant == "specified in RFC 4122"
    assert abs(time_of(entry.id) - entry.at) < timedelta(milliseconds=2)
    assert abs(datetime.now(UTC) - entry.at) < timedelta(minutes=1)
    assert (entry.before, entry.after) == ({"x": 1}, None)
    for statement in ("DELETE FROM audit", "UPDATE audit SET action = 'x'"):
        with pytest.raises(asyncpg.RaiseError):
            await database.execute(statement)


async def test_a_change_and_its_trace_come_and_go_together(database: Database, actor: Actor) -> None:
    async def fail(conn: Connection) -> None:
        await put_category(conn, actor, "orders", name="Orders")
        raise RuntimeError("after the write")

    with pytest.raises(RuntimeError):
        await database.transaction(fail)
    assert await list_audit(database, actor.project_id, object_="category:orders") == []


async def test_writers_of_one_user_go_one_after_the_other(database: Database, actor: Actor) -> None:
    async def write(n: int) -> bool:
        addresses = {Channel.email: [f"{n}@example.com", "shared@example.com"], Channel.sms: [f"+43664{n:07d}"]}
        _, made = await database.transaction(
            lambda conn: put_user(conn, actor, "u", attributes={str(n): True}, addresses=addresses)
        )
        return made

    assert sum(await asyncio.gather(*(write(n) for n in range(12)))) == 1
    user = await load_user(database, actor.project_id, "u")
    [n] = map(int, user.attributes)
    assert user.addresses == {"email": sorted([f"{n}@example.com", "shared@example.com"]), "sms": [f"+43664{n:07d}"]}
    trail = list(reversed(await list_audit(database, actor.project_id, object_="user:u")))
    assert trail[0].before is None
    # Each change begins where the one before it ended: in the order of commit, whatever the order of ids. The trail has
    # names, not values: each change names the attribute that goes and the one that comes.
    pairs = [{int(name[11:]) for name in entry.after["changed"] if name.startswith("attributes.")} for entry in trail]
    chain = [n]
    while left := [pair for pair in pairs if chain[-1] in pair]:
        assert len(left) == 1
        pairs.remove(left[0])
        chain += left[0] - {chain[-1]}
        if len(left[0]) == 1:  # the first of all
            break
    assert len(chain) == 12
    assert not pairs
