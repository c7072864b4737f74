"""Topics on a real database: members, ranges, and who is forgotten."""

from __future__ import annotations

import asyncio

import pytest

from tidings.db.pool import Connection, Database
from tidings.directory.audit import Actor, list_audit
from tidings.directory.projects import create_project
from tidings.directory.topics import (
    Subscribed,
    apply_members,
    delete_members,
    delete_topic,
    list_members,
    list_topics,
    list_topics_of,
    load_topic,
    put_topic,
)
from tidings.directory.users import delete_user, put_user
from tidings.errors import NotFound


@pytest.fixture
async def actor(database: Database) -> Actor:
    async def work(conn: Connection) -> Actor:
        project = await create_project(conn, "shop", "Shop")
        actor = Actor(project.id, "cli")
        for name in ("ada", "bob", "cleo"):
            await put_user(conn, actor, name)
        return actor

    return await database.transaction(work)


async def add(database: Database, actor: Actor, key: str, *names: str) -> Subscribed:
    return await database.transaction(lambda conn: apply_members(conn, actor, key, names))


async def names_in(database: Database, actor: Actor, key: str) -> list[str]:
    return [member.user for member in await list_members(database, actor.project_id, key)]


async def test_subscribing_makes_the_topic_and_reports_who_is_unknown(database: Database, actor: Actor) -> None:
    answer = await add(database, actor, "project/42", "cleo", "nobody", "ada", "ada")
    assert answer == Subscribed(added=2, already=0, unknown=["nobody"])
    assert await names_in(database, actor, "project/42") == ["ada", "cleo"]
    assert await add(database, actor, "project/42", "ada", "bob") == Subscribed(added=1, already=1, unknown=[])
    trail = await list_audit(database, actor.project_id, object_="topic:project/42")
    assert [(entry.action, entry.after) for entry in trail if entry.action != "topic.put"] == [
        ("topic.add_members", {"users": 1}),
        ("topic.add_members", {"users": 2}),
    ]


async def test_nobody_makes_no_topic(database: Database, actor: Actor) -> None:
    assert await add(database, actor, "empty", "nobody") == Subscribed(0, 0, ["nobody"])
    with pytest.raises(NotFound):
        await load_topic(database, actor.project_id, "empty")


async def test_unsubscribing_leaves_the_topic(database: Database, actor: Actor) -> None:
    await add(database, actor, "t", "ada", "bob")
    assert await database.transaction(lambda conn: delete_members(conn, actor, "t", ["ada", "cleo", "nobody"])) == 1
    assert await names_in(database, actor, "t") == ["bob"]
    with pytest.raises(NotFound):
        await database.transaction(lambda conn: delete_members(conn, actor, "nowhere", ["ada"]))


async def test_a_pattern_finds_what_is_below_and_nothing_beside(database: Database, actor: Actor) -> None:
    for key in ("project/42", "project/42/comments", "project/42/a/b", "project/42-old", "project/42.x", "project/420"):
        await database.transaction(lambda conn, key=key: put_topic(conn, actor, key, ""))  # type: ignore[misc]  # binds the loop's value
    found = await list_topics(database, actor.project_id, pattern="project/42/#")
    assert [topic.key for topic in found] == ["project/42", "project/42/a/b", "project/42/comments"]
    assert len(await list_topics(database, actor.project_id)) == 6
    assert [t.key for t in await list_topics(database, actor.project_id, pattern="project/42")] == ["project/42"]
    rest = await list_topics(database, actor.project_id, pattern="project/42/#", after="project/42/a/b")
    assert [topic.key for topic in rest] == ["project/42/comments"]


async def test_who_is_forgotten_is_in_no_topic(database: Database, actor: Actor) -> None:
    for key in ("a", "b/c"):
        await add(database, actor, key, "ada", "bob")
    assert [m.topic for m in await list_topics_of(database, actor.project_id, "ada")] == ["a", "b/c"]
    await database.transaction(lambda conn: delete_user(conn, actor, "ada"))
    assert await list_topics_of(database, actor.project_id, "ada") == []
    assert await names_in(database, actor, "a") == ["bob"]


async def test_who_is_forgotten_meanwhile_is_not_added(database: Database, actor: Actor) -> None:
    """Whoever comes second waits for the first, and sees what it did."""
    async with database.acquire() as conn:
        await conn.execute("BEGIN")
        await delete_user(conn, actor, "ada")
        adding = asyncio.create_task(add(database, actor, "t", "ada", "bob"))
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        while await database.fetchval(waiting) == 0:
            await asyncio.sleep(0)
        await conn.execute("COMMIT")
    assert await adding == Subscribed(added=1, already=0, unknown=["ada"])
    assert await names_in(database, actor, "t") == ["bob"]


async def test_members_go_with_their_topic(database: Database, actor: Actor) -> None:
    await add(database, actor, "t", "ada")
    await database.transaction(lambda conn: delete_topic(conn, actor, "t"))
    assert await list_topics_of(database, actor.project_id, "ada") == []
    with pytest.raises(NotFound):
        await database.transaction(lambda conn: delete_topic(conn, actor, "t"))


async def test_many_subscribe_to_the_same_new_topic_at_once(database: Database, actor: Actor) -> None:
    answers = await asyncio.gather(*(add(database, actor, "new", name) for name in ("ada", "bob", "cleo")))
    assert [answer.added for answer in answers] == [1, 1, 1]
    assert await names_in(database, actor, "new") == ["ada", "bob", "cleo"]


async def test_a_name_changes_only_when_it_is_another(database: Database, actor: Actor) -> None:
    first, made = await database.transaction(lambda conn: put_topic(conn, actor, "t", "One"))
    assert made
    assert await database.transaction(lambda conn: put_topic(conn, actor, "t", "One")) == (first, False)
    second, made = await database.transaction(lambda conn: put_topic(conn, actor, "t", "Two"))
    assert (made, second.name) == (False, "Two")
