"""Caps: how many notifications somebody got lately, and whether one more fits. Part of planning.

A cap is a limit that applies to one notification: of its type, its category or its project. What it counts stands in
one row per limit and target: the times of the notifications that took a place in the window that rolls along. Nothing
is counted over the history. Planning locks the rows of a whole batch in the order of their keys, asks and books in
memory, and writes those that changed; so two planners never both give away the last place.

A place is taken when planning puts a notification on its way, and given back (`refund`) when nothing of it left the
house: cancelled, expired or skipped before it was sent, or refused for good by the provider. What may have been sent
keeps its place.

This room knows counters; it knows no delivery and no step.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

import msgspec

from tidings.db.pool import Connection, Database, Runner
from tidings.db.sql import load_queries
from tidings.directory.catalog import TypeVersion
from tidings.directory.limits import Limit
from tidings.directory.projects import ProjectSettings
from tidings.durations import parse_duration
from tidings.model.rulings import Answer, Level, Rule, Ruling
from tidings.model.words import Channel, Priority, Reason

SQL: Final = load_queries(__package__, "caps.sql")

Key: TypeAlias = tuple[int, str, str]
"""Names one counter: project, target, key of the cap."""

_REMEMBERED: Final = 2_000
_ANSWERS: Final = {"drop": Answer.no, "digest": Answer.digest, "defer": Answer.hold}
_STRICTNESS: Final = {Answer.hold: 1, Answer.digest: 2, Answer.no: 3}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)
_FORGET_AT_ONCE: Final = 5_000

_decode_hits: Final = msgspec.json.Decoder(dict[str, int]).decode
_encode: Final = msgspec.json.Encoder().encode


class Cap(NamedTuple):
    """One limit that applies to a notification."""

    level: Level
    key: str
    """Of its counter, besides project and target: level, scope, channel, window (`type:order_shipped:-:86400`)."""
    limit: Limit
    window: int
    """Seconds."""
    channel: Channel | None
    """None: a notification takes one place, whatever its channels."""
    answer: Answer
    """What becomes of one that does not fit."""


def to_counter_key(key: str, *, test: bool) -> str:
    """The key of a counter: what was sent with a test key takes no place from what is sent for real."""
    return f"test:{key}" if test else key


def list_caps(
    type_: TypeVersion | None, settings: ProjectSettings, priority: Priority, *, test: bool = False
) -> tuple[Cap, ...]:
    """The caps of a notification of this type and priority; those that it is exempt from are not among them.

    Args:
        type_: None: content without a type; only the project's limits over everything apply.
    """
    critical = priority == Priority.critical
    if type_ is None:
        return _list_caps(None, None, critical, False, test, (), (), settings.limits) if settings.limits else ()
    if not (type_.limits or type_.rules.limits or settings.limits):
        return ()
    return _list_caps(
        type_.key, type_.category, critical, type_.required, test, type_.limits, type_.rules.limits, settings.limits
    )


@lru_cache(maxsize=_REMEMBERED)
def _list_caps(
    type_key: str | None,
    category: str | None,
    critical: bool,
    required: bool,
    test: bool,
    of_type: tuple[Limit, ...],
    of_category: tuple[Limit, ...],
    of_project: tuple[Limit, ...],
) -> tuple[Cap, ...]:
    mine = tuple(limit for limit in of_project if limit.category is None or limit.category == category)
    caps = []
    for level, scope, limits in (
        (Level.type, type_key, of_type),
        (Level.category, category, of_category),
        (Level.project, "-", mine),
    ):
        for limit in limits:
            if (critical and "critical" in limit.exempt) or (required and "required" in limit.exempt):
                continue
            window = round(parse_duration(limit.window).total_seconds())
            channel = None if limit.channel is None else Channel[limit.channel]
            key = f"{level.value}:{limit.category or scope}:{limit.channel or '-'}:{window}"
            key = to_counter_key(key, test=test)
            caps.append(Cap(level, key, limit, window, channel, _ANSWERS[limit.then]))
    return tuple(caps)


def to_keys(project_id: int, target: str, caps: Iterable[Cap]) -> list[Key]:
    """The counters to lock for these caps."""
    return [(project_id, target, cap.key) for cap in caps]


class _Counter:
    """The places taken under one key. `times` are those of `hits`, sorted."""

    __slots__ = ("changed", "hits", "times", "waiting")

    def __init__(self, hits: dict[str, int]) -> None:
        self.hits = hits
        self.times = sorted(hits.values())
        self.waiting: dict[str, int] = {}
        """Who was told to wait in this batch, with their place in the queue."""
        self.changed = False

    def prune(self, since: int) -> None:
        """Forget what had left the window at `since`."""
        gone = bisect_right(self.times, since)
        if gone:
            del self.times[:gone]
            self.hits = {id_: at for id_, at in self.hits.items() if at > since}

    def add(self, id_: str, at: int) -> None:
        self.hits[id_] = at
        insort(self.times, at)
        self.changed = True


class Ledger:
    """The counters that a batch needs, locked; what is booked here is seen by the next question, and then written."""

    __slots__ = ("_counters",)

    def __init__(self, counters: dict[Key, _Counter]) -> None:
        self._counters = counters

    @classmethod
    async def lock(cls, conn: Connection, wanted: Collection[Key]) -> Ledger:
        """The counters of `wanted`, locked until the transaction ends; nothing is asked of the database for none.

        In the order of their keys, made before locked: so that planners wait for each other, and never in a circle.
        """
        missing = sorted(set(wanted))
        counters: dict[Key, _Counter] = {}
        while missing:  # twice only if housekeeping took an empty row away in between
            columns = [list(column) for column in zip(*missing, strict=True)]
            await conn.execute(SQL.insert_counters, *columns)
            for project_id, target, key, hits in await conn.fetch(SQL.lock_counters, *columns):
                counters[project_id, target, key] = _Counter(_decode_hits(hits))
            missing = [key for key in missing if key not in counters]
        return cls(counters)

    @classmethod
    async def load(cls, conn: Runner, wanted: Collection[Key]) -> Ledger:
        """The same without locks, for questions that are not followed by bookings (explain)."""
        keys = sorted(set(wanted))
        counters = {key: _Counter({}) for key in keys}
        if keys:
            columns = [list(column) for column in zip(*keys, strict=True)]
            for project_id, target, key, hits in await conn.fetch(SQL.load_counters, *columns):
                counters[project_id, target, key] = _Counter(_decode_hits(hits))
        return cls(counters)

    def ask(
        self,
        project_id: int,
        target: str,
        caps: Iterable[Cap],
        notification_id: UUID,
        channel: Channel | None,
        now: datetime,
    ) -> Ruling | None:
        """Whether the notification fits on this channel; None: no cap applies.

        A notification that has a place already fits. Where several caps are exceeded, the strictest answer counts: drop
        before digest before defer. `until` is the first moment at which all of them have room; those that were told to
        wait earlier in this batch are given theirs before. A `go` tells the cap with the least room.

        Args:
            channel: None: only caps that count whatever the channel.
            now: the database's.
        """
        at = (now - _EPOCH) // _MS
        id_ = notification_id.hex
        over: Cap | None = None
        tightest: tuple[int, Cap, int] | None = None
        until = 0
        for cap in caps:
            if cap.channel is not None and cap.channel != channel:
                continue
            counter = self._counters[project_id, target, cap.key]
            window = cap.window * 1000
            counter.prune(at - window)
            used, most = len(counter.times), cap.limit.max
            if used < most or id_ in counter.hits:
                left = most - used
                if tightest is None or left < tightest[0]:
                    tightest = left, cap, used
                continue
            turn = counter.waiting.setdefault(id_, len(counter.waiting)) if cap.answer is Answer.hold else 0
            rounds, nth = divmod(turn, most)
            until = max(until, counter.times[used - most + nth] + window * (rounds + 1))
            if over is None or _STRICTNESS[cap.answer] > _STRICTNESS[over.answer]:
                over = cap
        if over is not None:
            most = over.limit.max
            return Ruling(
                Rule.limit,
                over.answer,
                over.level,
                channel,
                Reason.capped,
                None if over.answer is Answer.no else _EPOCH + until * _MS,
                f"{most} of {most} in {over.limit.window}",
            )
        if tightest is None:
            return None
        _, cap, used = tightest
        detail = f"{used} of {cap.limit.max} in {cap.limit.window}"
        return Ruling(Rule.limit, Answer.go, cap.level, channel, detail=detail)

    def book(
        self,
        project_id: int,
        target: str,
        caps: Iterable[Cap],
        notification_id: UUID,
        channel: Channel | None,
        now: datetime,
    ) -> None:
        """Take a place under each cap that applies on this channel; a notification takes one, however often it asks."""
        at = (now - _EPOCH) // _MS
        id_ = notification_id.hex
        for cap in caps:
            if cap.channel is not None and cap.channel != channel:
                continue
            counter = self._counters[project_id, target, cap.key]
            counter.prune(at - cap.window * 1000)
            if id_ not in counter.hits:
                counter.add(id_, at + 1)  # rounded up, so that no window is shorter than it says

    async def write(self, conn: Connection) -> None:
        """Write the counters in which something was booked, without what has left their windows."""
        rows = []
        for (project_id, target, key), counter in self._counters.items():
            if counter.changed:
                emptied_at = _EPOCH + counter.times[-1] * _MS + timedelta(seconds=int(key.rpartition(":")[2]))
                rows.append((project_id, target, key, _encode(counter.hits).decode(), emptied_at))
                counter.changed = False
        if rows:
            rows.sort(key=lambda row: row[:3])
            await conn.execute(SQL.update_counters, *(list(column) for column in zip(*rows, strict=True)))


async def refund(conn: Connection, places: Sequence[tuple[int, str, UUID]]) -> None:
    """Give back the places of notifications of which nothing left the house: (project, target, notification) each."""
    if places:
        projects, targets, notifications = zip(*sorted(places), strict=True)
        await conn.execute(SQL.refund_places, list(projects), list(targets), [id_.hex for id_ in notifications])


async def forget_counters(database: Database, now: datetime | None) -> int:
    """Housekeeping: delete the counters whose windows are empty, in small transactions; answers with how many."""
    after: Key | None = (0, "", "")
    forgotten = 0
    while after is not None:
        row = await database.fetchrow(SQL.forget_counters, *after, _FORGET_AT_ONCE, now)
        assert row is not None  # an aggregate
        forgotten += row["forgotten"]
        after = None if row["project_id"] is None else (row["project_id"], row["target"], row["key"])
    return forgotten
