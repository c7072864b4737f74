"""Audience: who a broadcast is for, as sources that are united and others that are taken away.

An audience is walked through in the order of user ids (by octets), page by page, from a cursor: so whoever comes from
two sources comes once, and nothing has to be remembered but where the walk stands. Who is in a topic or a segment is
judged as the cursor passes. A page looks at a bounded number of rows, however few of them are in the audience.

Few topics and named users are looked up directly; segments, everybody and patterns of many topics by a walk through the
project's users. This room reads; it knows no broadcast.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple

import asyncpg
import msgspec

from tidings.db.pool import Connection, savepoint
from tidings.db.sql import load_queries
from tidings.directory.segments import load_segment, to_where
from tidings.directory.topics import range_of
from tidings.errors import FieldError, Invalid, NotFound, Unavailable
from tidings.model.conditions import count_conditions
from tidings.model.topics import EVERYTHING_BELOW

SQL: Final = load_queries(__package__, "audience.sql")

USERS_MAX: Final = 10_000
"""Users that can be named."""
SOURCES_MAX: Final = 50
"""Topics, or segments, of one audience."""
WINDOW: Final = 5_000
"""Rows that one page looks at."""
SMALLER_WINDOWS: Final = (250, 10)
"""And so many, one after the other, where the conditions of segments take too long for more."""
PAGE_TIMEOUT: Final = timedelta(milliseconds=500)
"""A page with segments may take so long: others wait for the worker that reads it."""
CONDITIONS_MAX: Final = 500
"""Conditions in the segments of one audience."""
FEW_TOPICS: Final = 16
"""Of so many topics, the members are looked up topic by topic."""
COUNT_TIMEOUT: Final = timedelta(seconds=20)


class Sources(msgspec.Struct, frozen=True):
    """Sources of users as a request names them."""

    users: Sequence[str] = ()
    topics: Sequence[str] = ()
    segments: Sequence[str] = ()
    all: bool = False


class People(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sources of users, united."""

    users: tuple[str, ...] = ()
    """Sorted, each once."""
    topics: tuple[str, ...] = ()
    """Keys and patterns of topics: see `tidings.model.topics`."""
    segments: Mapping[str, dict[str, Any]] = {}
    """The conditions of the segments by their keys, as they were when the broadcast was made."""
    all: bool = False

    def __bool__(self) -> bool:
        return bool(self.users or self.topics or self.segments or self.all)


class Audience(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who is told: these, but for those. Stored with the broadcast."""

    to: People
    exclude: People = People()


class Page(NamedTuple):
    """The next users of an audience, in order."""

    ids: Sequence[str]
    cursor: str
    """Up to here everybody has been seen."""
    ended: bool


class Others(NamedTuple):
    """Those whom no time zone's cohort has told: in a zone that was nobody's then, or changed since."""

    zones: Sequence[str]
    since: datetime
    once_key: str


class Plan(NamedTuple):
    """How an audience is looked up."""

    walks: bool
    """By a walk through all users of the project."""
    topics: Sequence[str]
    """Else: the topics whose members are looked up."""


_encode: Final = msgspec.json.Encoder().encode
_parse: Final = lru_cache(maxsize=64)(msgspec.json.Decoder(Audience).decode)


def parse_audience(text: str) -> Audience:
    """An audience as it is stored; remembered, since a walk reads it for each page."""
    return _parse(text)


def to_stored(audience: Audience) -> str:
    """What `parse_audience` reads."""
    return _encode(audience).decode()


async def resolve_audience(conn: Connection, project_id: int, to_ask: Sources, but_not: Sources) -> Audience:
    """The audience of a request, with the conditions of its segments.

    Raises:
        Invalid: there is nobody to tell, a segment does not exist, a pattern is none.
    """
    errors: list[FieldError] = []
    to, exclude = [
        await _resolve_sources(conn, project_id, sources, at, errors)
        for sources, at in ((to_ask, "/to"), (but_not, "/exclude"))
    ]
    if not to and not errors:
        errors.append(FieldError("Name `users`, `topics` or `segments`, or say `all`.", "/to"))
    if sum(map(count_conditions, (*to.segments.values(), *exclude.segments.values()))) > CONDITIONS_MAX:
        errors.append(FieldError(f"These segments have more than {CONDITIONS_MAX} conditions together.", "/to"))
    if exclude.all:
        errors.append(FieldError("This leaves out everybody.", "/exclude/all"))
    if errors:
        raise Invalid(errors=errors)
    return Audience(to, exclude)


async def _resolve_sources(
    conn: Connection, project_id: int, sources: Sources, at: str, errors: list[FieldError]
) -> People:
    for name, given, most in (
        ("users", sources.users, USERS_MAX),
        ("topics", sources.topics, SOURCES_MAX),
        ("segments", sources.segments, SOURCES_MAX),
    ):
        if len(given) > most:
            errors.append(FieldError(f"At most {most:,} can be named.", f"{at}/{name}"))
            return People()
    for i, pattern in enumerate(sources.topics):
        try:
            range_of(pattern)
        except ValueError as error:
            errors.append(FieldError(str(error), f"{at}/topics/{i}"))
    conditions: dict[str, dict[str, Any]] = {}
    for i, key in enumerate(sources.segments):
        try:
            conditions[key] = (await load_segment(conn, project_id, key)).condition
        except NotFound:
            errors.append(FieldError(f"There is no segment {key!r} in this project.", f"{at}/segments/{i}"))
    return People(tuple(sorted(set(sources.users))), tuple(sorted(set(sources.topics))), conditions, sources.all)


async def plan_audience(conn: Connection, project_id: int, audience: Audience) -> Plan:
    """How to look the audience up, as its topics are now."""
    to = audience.to
    if to.all or to.segments:
        return Plan(True, ())
    topics = {topic for topic in to.topics if not topic.endswith(EVERYTHING_BELOW)}
    for pattern in to.topics:
        if pattern.endswith(EVERYTHING_BELOW):
            found = await conn.fetch(SQL.list_matching_topics, project_id, *range_of(pattern), FEW_TOPICS + 1)
            topics.update(row["key"] for row in found)
        if len(topics) > FEW_TOPICS:
            return Plan(True, ())
    return Plan(False, sorted(topics))


async def load_page(
    conn: Connection,
    project_id: int,
    audience: Audience,
    cursor: str,
    limit: int,
    *,
    zones: Sequence[str] | None = None,
    others: Others | None = None,
) -> Page:
    """The users after `cursor`, at most `limit`. Perhaps none, though it has not ended. In a transaction.

    Args:
        zones: only users of these time zones; '' stands for none.
        others: only these.

    Raises:
        Unavailable: its segments take too long, however few rows are looked at.
    """
    if not (audience.to.segments or audience.exclude.segments):
        return await _load_page(conn, project_id, audience, cursor, limit, WINDOW, zones, others)
    for window in (WINDOW, *SMALLER_WINDOWS):
        try:
            async with savepoint(conn):
                await conn.execute(f"SET LOCAL statement_timeout = {round(PAGE_TIMEOUT.total_seconds() * 1000)}")
                page = await _load_page(conn, project_id, audience, cursor, min(limit, window), window, zones, others)
                await conn.execute("SET LOCAL statement_timeout TO DEFAULT")
                return page
        except asyncpg.QueryCanceledError:
            continue
    raise Unavailable("The segments of this audience take too long.")


async def _load_page(
    conn: Connection,
    project_id: int,
    audience: Audience,
    cursor: str,
    limit: int,
    window: int,
    zones: Sequence[str] | None,
    others: Others | None,
) -> Page:
    plan = await plan_audience(conn, project_id, audience)
    to = audience.to
    if plan.walks:
        one_zone = zones is not None and len(zones) == 1
        args = [*_wanted(project_id, audience, None if one_zone else zones, others), *_meant(to), cursor, window, limit]
        if one_zone:
            args += zones or ()
        statement, more = _complete(SQL.page_zone if one_zone else SQL.page_all, audience, len(args) + 1)
    else:
        begin = bisect_right(to.users, cursor)
        if not audience.exclude and zones is None and others is None:
            window = limit  # they are all meant
        users = to.users[begin : begin + window]
        args = [*_wanted(project_id, audience, zones, others), users, plan.topics, cursor, window, limit]
        statement, more = _complete(SQL.page_named, audience, len(args) + 1)
    row = await conn.fetchrow(statement, *args, *more)
    assert row is not None  # an aggregate
    ids: list[str] = row["ids"]
    if len(ids) == limit:
        return Page(ids, ids[-1], False)
    return Page(ids, row["last"] or cursor, row["looked_at"] < window)


async def count_audience(
    conn: Connection, project_id: int, audience: Audience, *, sample: int
) -> tuple[int, list[str]]:
    """How many users there are, and some of them. In a transaction, whose time-out it sets.

    Raises:
        Unavailable: counting takes too long.
    """
    plan = await plan_audience(conn, project_id, audience)
    wanted = _wanted(project_id, audience, None, None)
    if plan.walks:
        args = [*wanted, *_meant(audience.to), sample]
        statement, more = _complete(SQL.count_all, audience, len(args) + 1)
    else:
        args = [*wanted, audience.to.users, plan.topics, sample]
        statement, more = _complete(SQL.count_named, audience, len(args) + 1)
    await conn.execute(f"SET LOCAL statement_timeout = {round(COUNT_TIMEOUT.total_seconds() * 1000)}")
    try:
        row = await conn.fetchrow(statement, *args, *more)
    except asyncpg.QueryCanceledError:
        raise Unavailable("Counting this audience takes too long now; try again, or take a simpler one.") from None
    await conn.execute("SET LOCAL statement_timeout TO DEFAULT")
    assert row is not None  # an aggregate
    return row["count"], row["sample"]


async def list_zones(conn: Connection, project_id: int) -> list[str]:
    """The time zones of the project's users; '' if some have none."""
    return [row["name"] for row in await conn.fetch(SQL.list_zones, project_id)]


# ---------------------------------------------------------------- the statements and what they are given


def _wanted(project_id: int, audience: Audience, zones: Sequence[str] | None, others: Others | None) -> list[Any]:
    out = audience.exclude
    known, since, once_key = others or (None, None, None)
    return [project_id, zones, out.users, *_ranges(out.topics), known, since, once_key]


def _meant(to: People) -> list[Any]:
    return [to.all, to.users, *_ranges(to.topics)]


def _ranges(topics: Collection[str]) -> Iterator[list[str]]:
    """Their bounds as three columns."""
    found = [range_of(topic) for topic in topics]
    return (list(column) for column in zip(*found, strict=True)) if found else iter(([], [], []))


def _complete(block: str, audience: Audience, first: int) -> tuple[str, list[Any]]:
    """A block with the conditions of the audience's segments, whose parameters count from `first`; and these."""
    included, more = _any_of(audience.to, first)
    excluded, less = _any_of(audience.exclude, first + len(more))
    return _assemble(block, included, excluded), [*more, *less]


def _any_of(people: People, first: int) -> tuple[str, list[Any]]:
    parts: list[str] = []
    values: list[Any] = []
    for condition in people.segments.values():
        part, its = to_where(condition, first + len(values))
        parts.append(f"({part})")
        values += its
    return " OR ".join(parts) or "false", values


@lru_cache(maxsize=256)
def _assemble(block: str, included: str, excluded: str) -> str:
    """Always the same object for the same statement: the driver finds its prepared form by it."""
    wanted = SQL.wanted.replace("{excluded}", excluded)
    meant = SQL.meant.replace("{included}", included)
    return block.replace("{meant}", meant).replace("{wanted}", wanted)
