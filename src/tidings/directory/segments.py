"""Segments: saved conditions on users, and what they mean in SQL.

    where, values = to_where(condition, 3)      # '… $3 … $4 …', for users aliased `u`

The language is `tidings.model.conditions`', and so is what it means: a property test holds `holds` and the SQL here
together. A text of SQL is put together from the pieces in segments.sql; whatever a caller wrote is a parameter.

Up to `TRACKED_MAX` segments of a project are tracked: a chore keeps their members as bits of `app_user.segments`, where
analytics find them without asking each condition for each message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar

import asyncpg
import msgspec
import structlog

from tidings.db.pool import Connection, Database, Record
from tidings.db.sql import load_queries
from tidings.directory.audit import Actor, apply_audit
from tidings.durations import parse_duration
from tidings.errors import Conflict, FieldError, Invalid, NotFound, Unavailable
from tidings.model.conditions import (
    COLUMNS,
    EVER,
    SEGMENT_SUBJECTS,
    TIME_PATTERN,
    parse_condition,
    to_limit,
    to_offset,
)
from tidings.model.topics import parse_pattern
from tidings.model.words import Channel

Value = TypeVar("Value")

_queries: Final = load_queries(__package__, "segments.sql")
_COUNT_MEMBERS: Final = _queries.count_members
_LIST_MEMBERS: Final = _queries.list_members
_REFRESH_MEMBERS: Final = _queries.refresh_members
_IS_BIT: Final = _queries.is_bit
_LIST_PROJECTS_TO_REFRESH: Final = _queries.list_projects_to_refresh
_HOLD_TRACKED: Final = _queries.hold_tracked
_LIST_GIVEN_UP: Final = _queries.list_given_up
_FORGET_GIVEN_UP: Final = _queries.forget_given_up
_GIVE_UP_SLOT: Final = _queries.give_up_slot
_APPLY_COUNTS: Final = _queries.apply_counts
_LOCK_SLOTS: Final = _queries.lock_slots
_FIND_FREE_SLOT: Final = _queries.find_free_slot
_CREATE_SEGMENT: Final = _queries.create_segment
_LOCK_SEGMENT: Final = _queries.lock_segment
_UPDATE_SEGMENT: Final = _queries.update_segment
_LOAD_SEGMENT: Final = _queries.load_segment
_LIST_SEGMENTS: Final = _queries.list_segments
_DELETE_SEGMENT: Final = _queries.delete_segment

_log = structlog.get_logger(__name__)

TRACKED_MAX: Final = 50
"""Tracked segments of a project."""
COUNT_TIMEOUT: Final = timedelta(seconds=5)
"""What somebody waits for may take so long."""
SAMPLE_MAX: Final = 100
_REFRESH_BATCH: Final = 1_000
"""Users whose bits one transaction sets."""


# ---------------------------------------------------------------- conditions in SQL

_COMPARISONS: Final[Mapping[str, str]] = {
    "is": _queries.is_same,
    "is_not": _queries.is_other,
    "in": _queries.is_among,
    "not_in": _queries.is_not_among,
    "above": _queries.is_above,
    "at_least": _queries.is_at_least,
    "below": _queries.is_below,
    "at_most": _queries.is_at_most,
    "starts_with": _queries.begins_with,
    "exists": _queries.is_there,
    "before": _queries.is_before,
    "after": _queries.is_after,
}
_COMPARISONS_OF_TEXT: Final[Mapping[str, str]] = {
    "is": _queries.text_is,
    "is_not": _queries.text_is_not,
    "in": _queries.text_in,
    "not_in": _queries.text_not_in,
    "contains": _queries.text_contains,
    "starts_with": _queries.text_begins_with,
    "exists": _queries.text_is_there,
    "before": _queries.time_before,
    "after": _queries.time_after,
}
_COLUMNS: Final = {name: f"u.{name}" for name in COLUMNS}
_LAST: Final = {"opened": "e.last_opened_at", "clicked": "e.last_clicked_at"}
_FENCE: Final = "OFFSET 0"
"""Keeps the planner from turning a look-up inside out."""
_KINDS: Final = {str: "string", int: "number", float: "number", bool: "boolean"}


def to_where(
    condition: Mapping[str, Any], first_parameter: int, *, now: datetime | None = None, whole: bool = False
) -> tuple[str, list[Any]]:
    """The condition as a piece of SQL for the table `app_user AS u`, and the values of its parameters.

    Put it in parentheses beside what binds the project. It is true for members, and false for all others.

    Args:
        condition: in its normal form.
        first_parameter: number of the first parameter that is free, such as 3 for `$3`.
        now: what relative times are relative to; None: the database's now.
        whole: the statement looks at all users of a project, and is about those for whom this is true; it may be NULL
            for others. Then the planner may read all members of a topic first. Otherwise it must not, be the topic ever
            so large: each user who is looked at is looked up.

    Raises:
        LookupError: it asks about what no segment can know, or is of a newer Tidings.
    """
    pieces = _Pieces(first_parameter, now, fence="" if whole else _FENCE)
    where = pieces.to_sql(condition)
    # NULL where there is no such value; said here, so that nobody who writes NOT before it loses users.
    return where if whole else f"({where}) IS TRUE", pieces.values


class _Pieces:
    """Puts pieces of SQL together, and keeps the values that their parameters stand for."""

    def __init__(self, first_parameter: int, now: datetime | None, *, fence: str = _FENCE) -> None:
        self._fence = fence
        self.values: list[Any] = []
        self._first = first_parameter
        self._now_value = now
        self._shared: dict[str, str] = {}

    def _bind(self, value: object) -> str:
        self.values.append(value)
        return f"${self._first + len(self.values) - 1}"

    def _bind_json(self, value: object) -> str:
        return self._bind(msgspec.json.encode(value).decode())

    def _share(self, name: str, value: object) -> str:
        """The parameter for a value that several pieces need."""
        if name not in self._shared:
            self._shared[name] = self._bind(value)
        return self._shared[name]

    def _now(self) -> str:
        return self._share("now", self._now_value)

    def _pattern(self) -> str:
        return self._share("pattern", f"^(?:{TIME_PATTERN})$")

    def to_sql(self, condition: Mapping[str, Any]) -> str:
        match condition:
            case {"all": inner}:
                return " AND ".join(f"({self.to_sql(each)})" for each in inner)
            case {"any": inner}:
                return " OR ".join(f"({self.to_sql(each)})" for each in inner)
            case {"not": inner}:
                return _queries.is_not_so % {"inner": self.to_sql(inner)}
            case {"user": path}:
                [(name, given)] = ((name, given) for name, given in condition.items() if name != "user")
                return self._of_column(path, name, given) if path in _COLUMNS else self._of_attribute(path, name, given)
            case {"engaged": what, "within": within}:
                return self._of_activity(what, condition.get("channel"), within)
            case {"category": key, "on": on}:
                return _queries.said_of_category % {
                    "category": self._bind(key),
                    # No name of a channel, so nothing is said of it: only what was said of the category is left.
                    "channel": self._bind(condition.get("channel", "")),
                    "on": self._bind(on),
                    "pattern": self._pattern(),
                    "now": self._now(),
                }
            case {"topic": pattern}:
                asked = parse_pattern(pattern)
                bound = {name: self._bind(value) for name, value in asked._asdict().items()}
                return _queries.in_topic % {**bound, "fence": self._fence}
            case _:
                raise LookupError(f"no segment can ask for {sorted(condition)}")

    def _of_attribute(self, path: str, name: str, given: Any) -> str:
        steps = "".join(f" -> {self._bind(part)}::text" for part in path.split("."))
        value = _queries.is_attribute % {"path": steps}
        match name:
            case "exists":
                found = _COMPARISONS[name] % {"value": value}
                return found if given else _queries.is_not_so % {"inner": found}
            case "before" | "after":
                pattern = self._pattern()
                return _COMPARISONS[name] % {"value": value, "limit": self._limit(given), "pattern": pattern}
            case "contains":
                if isinstance(given, str):
                    return _queries.holds_text % {"value": value, "given": self._bind(given)}
                return _queries.holds_value % {"value": value, "given": self._bind_json(given)}
            case "starts_with":
                return _COMPARISONS[name] % {"value": value, "given": self._bind(given)}
            case "is" | "is_not" | "in" | "not_in":
                kind = _KINDS[type(given[0] if isinstance(given, list) else given)]
                return _COMPARISONS[name] % {
                    "value": value,
                    "kind": self._bind(kind),
                    "given": self._bind_json(given),
                }
            case _:
                return _COMPARISONS[name] % {"value": value, "given": self._bind_json(given)}

    def _of_column(self, path: str, name: str, given: Any) -> str:
        column = _COLUMNS[path]
        if name == "exists":
            found = _COMPARISONS_OF_TEXT[name] % {"column": column}
            return found if given else _queries.is_not_so % {"inner": found}
        if name in ("before", "after"):
            return _COMPARISONS_OF_TEXT[name] % {"column": column, "limit": self._limit(given)}
        return _COMPARISONS_OF_TEXT[name] % {"column": column, "given": self._bind(given)}

    def _limit(self, given: str) -> str:
        offset = to_offset(given)
        if offset is None:
            return f"{self._bind(to_limit(given, None))}::timestamptz"
        return _queries.now_and % {"now": self._now(), "offset": self._bind(offset)}

    def _of_activity(self, what: str, channel: str | None, within: str) -> str:
        return _queries.was_active % {
            "last": _LAST[what],
            "channel": self._bind(Channel[channel].value if channel else None),
            "within": self._bind(None if within == EVER else parse_duration(within)),
            "now": self._now(),
            "fence": self._fence,
        }


# ---------------------------------------------------------------- segments


class Segment(msgspec.Struct, frozen=True):
    """A saved condition."""

    key: str
    name: str
    condition: dict[str, Any]
    """In its normal form."""
    slot: int | None
    """The bit of the members in `app_user.segments`, when it is tracked."""
    counted: int | None
    """Members when they were last counted; None: not tracked, or not counted yet."""
    counted_at: datetime | None
    created_at: datetime
    updated_at: datetime

    @property
    def tracked(self) -> bool:
        """Whether analytics tell its members apart."""
        return self.slot is not None


def parse_segment(raw: object, at: str = "/condition") -> dict[str, Any]:
    """A segment's condition in its normal form.

    Raises:
        Invalid: it is none.
    """
    errors: list[FieldError] = []
    found = parse_condition(raw, at, errors, subjects=SEGMENT_SUBJECTS)
    if found is None:
        raise Invalid(errors=errors)
    return found


async def put_segment(
    conn: Connection, actor: Actor, key: str, *, name: str, condition: dict[str, Any], tracked: bool = False
) -> tuple[Segment, bool]:
    """Makes the segment, or changes it; the second value says whether it is new. The same again changes nothing.

    Args:
        condition: as `parse_segment` gives it.

    Raises:
        Conflict: it is to be tracked, and no slot is free; or it was deleted at the same moment.
    """
    text = msgspec.json.encode(condition).decode()
    if tracked:  # before the segment's own row, always: who tracks another one at the same moment waits here
        await conn.fetchval(_LOCK_SLOTS, actor.project_id)
    made = await conn.fetchrow(_CREATE_SEGMENT, actor.project_id, key, name, text)
    row = made if made is not None else await conn.fetchrow(_LOCK_SEGMENT, actor.project_id, key)
    if row is None:
        raise Conflict("The segment was deleted at the same moment; repeat the request.")
    before = _to_segment(row)
    same = (before.name, _canonical(before.condition), before.tracked) == (name, _canonical(condition), tracked)
    if same and made is None:
        return before, False
    after = before
    if not same:
        slot = before.slot if tracked else None
        if tracked and slot is None:
            slot = await _take_slot(conn, actor.project_id)
        if before.slot is not None and slot is None:
            await conn.execute(_GIVE_UP_SLOT, actor.project_id, before.slot)
        row = await conn.fetchrow(_UPDATE_SEGMENT, actor.project_id, key, name, text, slot)
        assert row is not None  # it is locked
        after = _to_segment(row)
    await apply_audit(conn, actor, "segment.put", f"segment:{key}", before=None if made else before, after=after)
    return after, made is not None


async def load_segment(db: Database | Connection, project_id: int, key: str) -> Segment:
    """One segment.

    Raises:
        NotFound: this project has none with this key.
    """
    row = await db.fetchrow(_LOAD_SEGMENT, project_id, key)
    if row is None:
        raise NotFound("There is no such segment in this project.")
    return _to_segment(row)


async def list_segments(
    db: Database | Connection, project_id: int, *, after: str | None = None, limit: int = 50
) -> list[Segment]:
    """The project's segments by key; those after `after` (exclusive) when given."""
    return [_to_segment(row) for row in await db.fetch(_LIST_SEGMENTS, project_id, after, limit)]


async def delete_segment(conn: Connection, actor: Actor, key: str) -> None:
    """Removes the segment. Its bit, if it was tracked, is cleared by the next refresh and not given out before.

    Raises:
        NotFound: this project has none with this key.
    """
    row = await conn.fetchrow(_LOCK_SEGMENT, actor.project_id, key)
    if row is None:
        raise NotFound("There is no such segment in this project.")
    before = _to_segment(row)
    if before.slot is not None:
        await conn.execute(_GIVE_UP_SLOT, actor.project_id, before.slot)
    await conn.execute(_DELETE_SEGMENT, actor.project_id, key)
    await apply_audit(conn, actor, "segment.delete", f"segment:{key}", before=before)


async def _take_slot(conn: Connection, project_id: int) -> int:
    slot: int | None = await conn.fetchval(_FIND_FREE_SLOT, project_id)
    if slot is None:
        raise Conflict(
            f"{TRACKED_MAX} segments are tracked, which is the most; stop tracking another one first. What was tracked "
            "until just now counts until its members are cleared, which takes some minutes."
        )
    return slot


def _canonical(condition: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(condition, order="deterministic")


def _to_segment(row: Record) -> Segment:
    key, name, condition, *rest = row
    return Segment(key, name, msgspec.json.decode(condition), *rest)


# ---------------------------------------------------------------- members


async def count_members(
    database: Database, project_id: int, condition: Mapping[str, Any], *, now: datetime | None = None
) -> int:
    """How many users meet the condition, now.

    Raises:
        Unavailable: that takes longer than `COUNT_TIMEOUT`.
    """
    where, values = to_where(condition, 2, now=now, whole=True)
    statement = _COUNT_MEMBERS % {"where": where}

    async def work(conn: Connection) -> int:
        n: int = await conn.fetchval(statement, project_id, *values)
        return n

    return await _in_time(database, work)


async def list_members(
    database: Database,
    project_id: int,
    condition: Mapping[str, Any],
    *,
    after: str = "",
    limit: int = 50,
    now: datetime | None = None,
) -> list[str]:
    """Ids of users who meet the condition, in the order of their octets; those after `after` (exclusive).

    Raises:
        Unavailable: that takes longer than `COUNT_TIMEOUT`.
    """
    where, values = to_where(condition, 4, now=now)
    statement = _LIST_MEMBERS % {"where": where}

    async def work(conn: Connection) -> list[str]:
        return [row["id"] for row in await conn.fetch(statement, project_id, after, limit, *values)]

    return await _in_time(database, work)


async def sample_members(
    database: Database, project_id: int, condition: Mapping[str, Any], n: int, *, now: datetime | None = None
) -> list[str]:
    """Ids of up to `n` users who meet the condition: the first ones.

    Raises:
        Unavailable: that takes longer than `COUNT_TIMEOUT`.
    """
    return await list_members(database, project_id, condition, limit=min(n, SAMPLE_MAX), now=now)


async def _in_time(database: Database, work: Callable[[Connection], Awaitable[Value]]) -> Value:
    async def limited(conn: Connection) -> Value:
        await conn.execute(f"SET LOCAL statement_timeout = {round(COUNT_TIMEOUT / timedelta(milliseconds=1))}")
        return await work(conn)

    try:
        return await database.transaction(limited)
    except asyncpg.QueryCanceledError:
        raise Unavailable(
            f"Looking for these users took longer than {COUNT_TIMEOUT.seconds} s and was given up. A tracked segment "
            "is counted in the background, however long it takes.",
            retry_after=60,
        ) from None


# ---------------------------------------------------------------- tracked segments


async def refresh_segments(
    database: Database, now: datetime | None = None, *, stale_after: timedelta = timedelta(minutes=5)
) -> int:
    """Sets the bits of all users who joined or left a tracked segment, and counts; answers with how many rows it saw.

    A chore of every worker: a project is done when something in it was counted longer than `stale_after` ago, or not
    yet. Two workers that begin at the same moment do the same work twice, and no harm.

    Args:
        now: None: the database's now.
    """
    seen = 0
    for row in await database.fetch(_LIST_PROJECTS_TO_REFRESH, now, stale_after):
        try:
            seen += await _refresh_project(database, row["project_id"], now)
        except (asyncpg.QueryCanceledError, LookupError) as error:  # its conditions' fault; the others go on
            _log.warning("segments.not_refreshed", project=row["project_id"], error=type(error).__name__)
    return seen


async def _refresh_project(database: Database, project_id: int, now: datetime | None) -> int:
    given_up = await database.fetch(_LIST_GIVEN_UP, project_id)
    counts: Counter[tuple[str, datetime]] = Counter()
    """Members so far, of the segments as they are all the time: by key and when it was last changed."""
    unchanged: set[tuple[str, datetime]] | None = None
    seen, after = 0, ""
    while True:
        batch = partial(_refresh_batch, project_id=project_id, after=after, now=now)
        tracked, rows = await database.transaction(batch)
        unchanged = {*tracked} if unchanged is None else unchanged & {*tracked}
        for bits, users, _ in rows:
            seen += users
            for mark, slot in tracked.items():
                if bits >> slot & 1:
                    counts[mark] += users
        if sum(users for _, users, _ in rows) < _REFRESH_BATCH:
            break
        after = max(last for _, _, last in rows)
    marks = sorted(unchanged)
    await database.execute(
        _APPLY_COUNTS, project_id, [k for k, _ in marks], [at for _, at in marks], [counts[m] for m in marks], now
    )
    if given_up:  # every user was seen since
        await database.execute(
            _FORGET_GIVEN_UP, project_id, [r["slot"] for r in given_up], [r["given_up_at"] for r in given_up]
        )
    _log.info("segments.refreshed", project=project_id, users=seen, segments=len(marks))
    return seen


async def _refresh_batch(
    conn: Connection, project_id: int, after: str, now: datetime | None
) -> tuple[dict[tuple[str, datetime], int], Sequence[Record]]:
    """The tracked segments as they are, and the next users by their new bits."""
    tracked = await conn.fetch(_HOLD_TRACKED, project_id)
    bits, values = _to_bits([(row["slot"], msgspec.json.decode(row["condition"])) for row in tracked], 4, now)
    rows = await conn.fetch(_REFRESH_MEMBERS % {"bits": bits}, project_id, after, _REFRESH_BATCH, *values)
    return {(row["key"], row["updated_at"]): row["slot"] for row in tracked}, rows


def _to_bits(
    tracked: Sequence[tuple[int, Mapping[str, Any]]], first_parameter: int, now: datetime | None
) -> tuple[str, list[Any]]:
    """The bit set of a user, as a piece of SQL: one bit for each tracked segment."""
    pieces = _Pieces(first_parameter, now)
    terms = [_IS_BIT % {"where": pieces.to_sql(condition), "slot": int(slot)} for slot, condition in tracked]
    return " | ".join(terms) or "0::bigint", pieces.values
