"""Topics: named sets of users, such as those who follow a page. A prefix of their keys is an audience of its own.

What keys and patterns look like is `tidings.model.topics`'.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Final

import msgspec

from tidings.db.pool import Connection, Database
from tidings.db.sql import load_queries
from tidings.directory.audit import Actor, apply_audit
from tidings.errors import Conflict, NotFound
from tidings.model.topics import EVERYTHING_BELOW, TopicRange, parse_pattern

_queries: Final = load_queries(__package__, "topics.sql")
_CREATE_TOPIC: Final = _queries.create_topic
_LOCK_TOPIC: Final = _queries.lock_topic
_HOLD_TOPIC: Final = _queries.hold_topic
_UPDATE_TOPIC: Final = _queries.update_topic
_LOAD_TOPIC: Final = _queries.load_topic
_LIST_TOPICS: Final = _queries.list_topics
_DELETE_TOPIC: Final = _queries.delete_topic
_HOLD_USERS: Final = _queries.hold_users
_APPLY_MEMBERS: Final = _queries.apply_members
_DELETE_MEMBERS: Final = _queries.delete_members
_LIST_MEMBERS: Final = _queries.list_members
_LIST_TOPICS_OF: Final = _queries.list_topics_of
_LEAVE_TOPICS: Final = _queries.leave_topics

MEMBERS_MAX: Final = 1_000
"""Users that one request may add or remove."""


class Topic(msgspec.Struct, frozen=True):
    """One topic."""

    key: str
    name: str
    created_at: datetime
    updated_at: datetime


class Membership(msgspec.Struct, frozen=True):
    """A user in a topic."""

    topic: str
    user: str
    since: datetime


class Subscribed(msgspec.Struct, frozen=True):
    """What became of users who were to be added."""

    added: int
    already: int
    unknown: list[str]
    """Ids that are no users of this project. They were not added; the others were."""


def range_of(pattern: str) -> TopicRange:
    """The keys that a pattern matches, for statements: `key >= low AND key < high AND (key = low OR key >= below)`.

    Raises:
        ValueError: it is no pattern.
    """
    return parse_pattern(pattern)


async def put_topic(conn: Connection, actor: Actor, key: str, name: str) -> tuple[Topic, bool]:
    """Makes the topic, or names it anew; the second value says whether it is new. The same again changes nothing."""
    row = await conn.fetchrow(_CREATE_TOPIC, actor.project_id, key, name)
    if row is not None:
        topic = Topic(*row)
        await apply_audit(conn, actor, "topic.put", f"topic:{key}", after=topic)
        return topic, True
    before = await _lock_topic(conn, actor.project_id, key)
    if before is None:
        raise Conflict("The topic was deleted at the same moment; repeat the request.")
    if before.name == name:
        return before, False
    row = await conn.fetchrow(_UPDATE_TOPIC, actor.project_id, key, name)
    assert row is not None  # it is locked
    topic = Topic(*row)
    await apply_audit(conn, actor, "topic.put", f"topic:{key}", before=before, after=topic)
    return topic, False


async def load_topic(db: Database | Connection, project_id: int, key: str) -> Topic:
    """One topic.

    Raises:
        NotFound: this project has none with this key.
    """
    row = await db.fetchrow(_LOAD_TOPIC, project_id, key)
    if row is None:
        raise NotFound("There is no such topic in this project.")
    return Topic(*row)


async def list_topics(
    db: Database | Connection,
    project_id: int,
    *,
    pattern: str = EVERYTHING_BELOW,
    after: str | None = None,
    limit: int = 50,
) -> list[Topic]:
    """The topics that a pattern matches, by key (in octets); those after `after` (exclusive) when given.

    Raises:
        ValueError: it is no pattern.
    """
    found = range_of(pattern)
    rows = await db.fetch(_LIST_TOPICS, project_id, found.low, found.high, found.below, after, limit)
    return [Topic(*row) for row in rows]


async def delete_topic(conn: Connection, actor: Actor, key: str) -> None:
    """Removes the topic and whoever is in it from it.

    Raises:
        NotFound: this project has none with this key.
    """
    before = await _lock_topic(conn, actor.project_id, key)
    if before is None:
        raise NotFound("There is no such topic in this project.")
    await conn.execute(_DELETE_TOPIC, actor.project_id, key)
    await apply_audit(conn, actor, "topic.delete", f"topic:{key}", before=before)


# ---------------------------------------------------------------- members


async def apply_members(conn: Connection, actor: Actor, key: str, user_ids: Collection[str]) -> Subscribed:
    """Adds users to a topic, which is made if there is none. Who is in it already stays.

    The audit trail has how many, not who: users can be forgotten, and the trail is never changed.

    Raises:
        Conflict: the topic was deleted at the same moment.
    """
    project_id = actor.project_id
    known = [row["id"] for row in await conn.fetch(_HOLD_USERS, project_id, sorted(set(user_ids)))]
    if not known:
        return Subscribed(0, 0, sorted(set(user_ids)))
    row = await conn.fetchrow(_CREATE_TOPIC, project_id, key, "")
    if row is not None:
        await apply_audit(conn, actor, "topic.put", f"topic:{key}", after=Topic(*row))
    elif await conn.fetchval(_HOLD_TOPIC, project_id, key) is None:
        raise Conflict("The topic was deleted at the same moment; repeat the request.")
    added = len(await conn.fetch(_APPLY_MEMBERS, project_id, key, known))
    if added:
        await apply_audit(conn, actor, "topic.add_members", f"topic:{key}", after={"users": added})
    return Subscribed(added, len(known) - added, sorted(set(user_ids).difference(known)))


async def delete_members(conn: Connection, actor: Actor, key: str, user_ids: Collection[str]) -> int:
    """Removes users from a topic, and answers with how many were in it. The topic stays, be it empty.

    Raises:
        NotFound: this project has no topic with this key.
    """
    if await conn.fetchval(_HOLD_TOPIC, actor.project_id, key) is None:
        raise NotFound("There is no such topic in this project.")
    removed = len(await conn.fetch(_DELETE_MEMBERS, actor.project_id, key, sorted(set(user_ids))))
    if removed:
        await apply_audit(conn, actor, "topic.remove_members", f"topic:{key}", before={"users": removed})
    return removed


async def list_members(
    db: Database | Connection, project_id: int, key: str, *, after: str | None = None, limit: int = 50
) -> list[Membership]:
    """Who is in a topic, by user id (in octets); those after `after` (exclusive) when given."""
    rows = await db.fetch(_LIST_MEMBERS, project_id, key, after, limit)
    return [Membership(key, user_id, since) for user_id, since in rows]


async def list_topics_of(
    db: Database | Connection, project_id: int, user_id: str, *, after: str | None = None, limit: int = 50
) -> list[Membership]:
    """The topics that a user is in, by key; those after `after` (exclusive) when given."""
    rows = await db.fetch(_LIST_TOPICS_OF, project_id, user_id, after, limit)
    return [Membership(key, user_id, since) for key, since in rows]


async def leave_topics(conn: Connection, project_id: int, user_id: str) -> None:
    """Removes a user, whose row is locked, from all topics, as part of forgetting them."""
    await conn.execute(_LEAVE_TOPICS, project_id, user_id)


async def _lock_topic(conn: Connection, project_id: int, key: str) -> Topic | None:
    row = await conn.fetchrow(_LOCK_TOPIC, project_id, key)
    return None if row is None else Topic(*row)
