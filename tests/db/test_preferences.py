"""Consents as others record them, and rules of categories as other processes hear of them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from tidings.db.pool import Database
from tidings.directory import consent
from tidings.directory.accounts import CONFIG_CHANNEL
from tidings.directory.audit import Actor
from tidings.directory.categories import CategoryRules, delete_category, put_category
from tidings.directory.consent import Decision, Origin, list_consents
from tidings.directory.preferences import apply_choices, load_choices
from tidings.directory.projects import create_project
from tidings.directory.users import put_user
from tidings.errors import Conflict, Invalid
from tidings.ids import time_of
from tidings.model.words import Channel, Frequency


@pytest.fixture
async def actor(database: Database) -> Actor:
    project = await database.transaction(lambda conn: create_project(conn, "shop", "Shop"))
    made = Actor(project.id, "cli")
    await database.transaction(lambda conn: put_user(conn, made, "ada"))
    return made


async def test_what_is_decided_together_stays_in_its_order(database: Database, actor: Actor) -> None:
    decisions = [Decision(word, "ada", category_key=f"c{n}") for n, word in enumerate(["in", "out"] * 100)]
    decisions.append(Decision("out", None, Channel.sms, "+436641234567"))
    origin = Origin("system", "sms", "STOP " * 2_000, user_agent="x" * 2_000)
    await database.transaction(lambda conn: consent.record(conn, actor.project_id, decisions, origin))
    listed = await list_consents(database, actor.project_id, "ada", limit=500)
    assert [row.category_key for row in reversed(listed)] == [f"c{n}" for n in range(200)]
    assert len({row.id for row in listed}) == 200
    for row in listed:
        assert (row.id.version, row.id.variant) == (7, "specified in RFC 4122")
        assert abs(time_of(row.id) - row.at) < timedelta(milliseconds=1)
        assert (len(row.wording or ""), len(row.user_agent or "")) == (consent.WORDING_MAX, consent.USER_AGENT_MAX)
    rest = await list_consents(database, actor.project_id, "ada", before=listed[49].id, limit=50)
    assert rest == listed[50:100]
    assert await list_consents(database, actor.project_id + 1, "ada") == []
    stranger = await database.fetchrow("SELECT user_id, channel, address FROM consent WHERE address IS NOT NULL")
    assert stranger is not None
    assert tuple(stranger) == (None, Channel.sms, "+436641234567")
    await database.transaction(lambda conn: consent.record(conn, actor.project_id, [], origin))


async def test_a_write_that_fails_records_nothing(database: Database, actor: Actor) -> None:
    origin = Origin("import", "import")

    async def fail(conn: asyncpg.pool.PoolConnectionProxy) -> None:
        await apply_choices(conn, actor, "ada", {"channels": {"sms": False}}, origin, merge=True)
        raise Conflict

    with pytest.raises(Conflict):
        await database.transaction(fail)
    assert await list_consents(database, actor.project_id, "ada") == []

    async def apply(given: dict[str, Any]) -> None:
        await database.transaction(lambda conn: apply_choices(conn, actor, "ada", given, origin, merge=False))

    for given in ({"channels": {"owl": True}}, {"channels": {"sms": "no"}}, {"categories": {"c": {"frequency": "x"}}}):
        with pytest.raises(Invalid):
            await apply(given)
    assert (await load_choices(database, actor.project_id, "ada")).preferences.channels == {}


async def test_what_a_newer_version_wrote_stays(database: Database, actor: Actor) -> None:
    stored = '{"channels": {"owl": false}, "categories": {"gone": {"enabled": false}}}'
    await database.execute("UPDATE app_user SET preferences = $1::jsonb", stored)
    choices = await database.transaction(
        lambda conn: apply_choices(conn, actor, "ada", {"channels": {"sms": False}}, Origin("key", "api"), merge=True)
    )
    assert choices.preferences.channels == {"owl": False, "sms": False}
    assert choices.preferences.categories["gone"].enabled is False
    [row] = await list_consents(database, actor.project_id, "ada")
    assert (row.decision, row.channel) == ("out", Channel.sms)


async def test_other_processes_hear_of_a_categorys_rules(database: Database, actor: Actor) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    listener = await asyncpg.connect(database.dsn)
    try:
        await listener.add_listener(CONFIG_CHANNEL, lambda *told: heard.put_nowait(told[-1]))

        async def put(rules: CategoryRules) -> None:
            await database.transaction(lambda conn: put_category(conn, actor, "news", name="News", rules=rules))

        async with asyncio.timeout(5):
            await put(CategoryRules(frequency=Frequency.daily))
            assert await heard.get() == str(actor.project_id)
            await put(CategoryRules(frequency=Frequency.daily))
            await put(CategoryRules(frequency=Frequency.weekly, digest_hour=7))
            assert await heard.get() == str(actor.project_id)
            assert heard.empty(), "the same again is no change"
            await database.transaction(lambda conn: delete_category(conn, actor, "news"))
            assert await heard.get() == str(actor.project_id)
    finally:
        await listener.close()
    with pytest.raises(Invalid):
        await put(CategoryRules(digest_hour=24))


async def test_a_change_waits_for_the_one_before(database: Database, actor: Actor) -> None:
    origin = Origin("key", "api")
    names = list(Channel.__members__)

    async def switch_off(name: str) -> None:
        given = {"channels": {name: False}}
        await database.transaction(lambda conn: apply_choices(conn, actor, "ada", given, origin, merge=True))

    await asyncio.gather(*map(switch_off, names))
    said = (await load_choices(database, actor.project_id, "ada")).preferences
    assert said.channels == dict.fromkeys(names, False)
    assert len(await list_consents(database, actor.project_id, "ada")) == len(names)
