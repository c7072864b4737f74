"""Digests: notifications to the same target wait together and become one. Part of planning.

A window gathers. It has a row, which everybody who joins or closes it locks, and a job, which closes it. Window, job
and the notification that the digest becomes have the same id. All of joining, and all of closing, is part of
planning's transaction: a crash rolls it back, so no item is lost, none comes twice, no digest is empty or sent twice.

    planned: joins a window   ->  digest_window + digest_item + DIGEST job (run: digested)
    the job is due: closes it ->  notification + PLAN job; window and items go
    planned again             ->  deliveries, as of any notification; a digest joins no window

Who joins, and why, is planning's decision; when a window closes is `tidings.directory.digests`'.
This room knows windows; it knows no step and no delivery.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from tidings import ids
from tidings.db.pool import Connection, Record
from tidings.db.sql import load_queries
from tidings.directory.catalog import Catalog, TypeVersion
from tidings.directory.digests import NO_RULE, DigestRule, decide_close, decide_latest_close, find_value, read_key
from tidings.engine import jobs as queue
from tidings.engine.jobs import Job, NewJob
from tidings.flow.jobs import ALL_CHANNELS, DIGEST, PLAN, STEP, digest_job

SQL: Final = load_queries(__package__, "digests.sql")

DATA_LIMIT: Final = 1_000_000
"""Octets of a digest's data. What does not fit is left out, the oldest first, and counted in `digest.more`."""

_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode
_decode_key: Final = msgspec.json.Decoder(tuple[str, str, int, str, bool]).decode
_encode: Final = msgspec.json.Encoder().encode


class Join(NamedTuple):
    """A notification that is to wait with others."""

    project_id: int
    target: str
    """`u:<user id>`, or `<channel>:<address>` for somebody without one."""
    key: str
    """Of the window, besides project and target: see `to_window_key`."""
    notification_id: UUID
    type_version_id: int
    rule: DigestRule | None
    """Says when a new window closes, unless `close_at` does."""
    close_at: datetime | None
    """The end of what it waits for (quiet hours, a cap, the user's frequency); None: by the rule."""
    time_zone: str | None
    """The user's, or what stands in for it."""
    reason: str
    priority: int
    channels: int
    """On whose lane the digest waits, as bits `1 << channel`. What it may use is said by the key."""
    first_now: bool = False
    """The one that opens the window goes at once."""


class Joined(NamedTuple):
    """What became of a join."""

    window_id: UUID
    """Also the id of the notification that the digest becomes."""
    closes_at: datetime
    goes_now: bool = False
    """It opened the window and is no item of it: plan it as if there were no digest."""


class Digest(NamedTuple):
    """A window that was closed and became a notification, whose plan job is due."""

    id: UUID
    project_id: int
    items: int


def to_window_key(type_key: str, item_key: str, channels: int, reason: str, *, test: bool = False) -> str:
    """What tells a target's windows apart. Pure.

    Args:
        item_key: `tidings.directory.digests.read_key`, or ''.
        channels: those that the digest may use, as bits; ALL_CHANNELS: whatever the type then says.
        test: the notification's: what was sent with a test key never goes out with what was not.
    """
    return _encode((type_key, item_key, channels, reason, test)).decode()


# ------------------------------------------------------------ joining


async def join_windows(
    conn: Connection, joins: Iterable[Join], now: datetime, rng: random.Random
) -> dict[UUID, Joined]:
    """Let notifications wait with others, opening windows where there are none; answers by notification (one that joins
    several windows, for several channels: with the first that closes).

    The rows of the windows are locked in the order of their keys, whoever else joins or closes one is waited for. Of
    several that would open the same window the first one does. Call it before `close_windows`, which waits for nobody.
    """
    groups = [(place, list(group)) for place, group in groupby(sorted(joins, key=_place), key=_place)]
    if not groups:
        return {}
    opened = [_open_window(group, now, rng) for _, group in groups]
    rows = await conn.fetch(
        SQL.open_windows,
        [w.id for w in opened],
        [project_id for (project_id, _, _), _ in groups],
        [target for (_, target, _), _ in groups],
        [key for (_, _, key), _ in groups],
        [max(join.type_version_id for join in group) for _, group in groups],
        [w.closes_at for w in opened],
        [w.latest_at for w in opened],
        [group[0].reason for _, group in groups],
        now,
    )
    found = {(row["project_id"], row["target"], row["key"]): row for row in rows}
    answers: dict[UUID, Joined] = {}
    items: list[tuple[int, UUID, UUID]] = []
    new: list[NewJob] = []
    for (place, group), window in zip(groups, opened, strict=True):
        row = found[place]
        is_new = row["id"] == window.id
        if is_new:
            first = group[0]
            urgency = min(join.priority for join in group)
            new.append(digest_job(window.id, first.project_id, urgency, first.channels, window.closes_at))
        for i, join in enumerate(group):
            goes_now = is_new and i == 0 and join.first_now
            joined = Joined(row["id"], max(row["closes_at"], now), goes_now)
            before = answers.get(join.notification_id)
            if before is None or joined.closes_at < before.closes_at:
                answers[join.notification_id] = joined
            if not goes_now:
                items.append((join.project_id, row["id"], join.notification_id))
    if items:
        await conn.execute(SQL.insert_items, *(list(column) for column in zip(*items, strict=True)))
    new.sort(key=lambda job: job.id.int)
    await queue.insert_jobs(conn, new, now)
    return answers


_place = attrgetter("project_id", "target", "key")


class _Window(NamedTuple):
    id: UUID
    closes_at: datetime
    latest_at: datetime


def _open_window(group: Sequence[Join], now: datetime, rng: random.Random) -> _Window:
    """The window for these if there is none yet; the one that waits the shortest decides."""
    closes_at, latest_at = min(_decide_times(join, now) for join in group)
    return _Window(ids.new_id(now, rng), closes_at, latest_at)


def _decide_times(join: Join, now: datetime) -> tuple[datetime, datetime]:
    if join.close_at is not None or join.rule is None:
        at = max(join.close_at or now, now)
        return at, at
    closes_at = decide_close(join.rule, now, now, join.time_zone)
    return closes_at, max(closes_at, decide_latest_close(join.rule, now, join.time_zone))


# ------------------------------------------------------------ leaving


async def leave_windows(conn: Connection, project_id: int, notification_ids: Collection[UUID]) -> set[UUID]:
    """Take cancelled notifications out of the digests that they wait for; answers with those that did wait.

    Whoever closes such a digest right now is waited for; its items are then not among the answers, they are in it.
    """
    if not notification_ids:
        return set()
    asked = sorted(notification_ids)
    windows = await conn.fetch(SQL.lock_windows_of, project_id, asked)
    if not windows:
        return set()
    rows = await conn.fetch(SQL.delete_items, project_id, [row["id"] for row in windows], asked)
    return {row["notification_id"] for row in rows}


# ------------------------------------------------------------ closing


async def close_windows(conn: Connection, jobs: Sequence[Job], now: datetime, catalog: Catalog) -> list[Digest]:
    """Make notifications of the windows whose jobs are due; answers with them.

    A window that slid on is left for later, and so is one that somebody is just joining. One without an item that is
    still to be sent goes away, and nothing is sent. Items that have expired are planned once more, which says so.

    Args:
        jobs: of the kind DIGEST, locked by this transaction.
    """
    if not jobs:
        return []
    jobs = sorted(jobs, key=lambda job: job.id.int)
    rows = await conn.fetch(SQL.lock_windows, [job.id for job in jobs], [job.project_id for job in jobs])
    windows = {row["id"]: row for row in rows}
    absent = [job for job in jobs if job.id not in windows]
    if absent:  # its user was erased, or it is being joined
        columns = [job.id for job in absent], [job.project_id for job in absent]
        busy = {row["id"] for row in await conn.fetch(SQL.load_busy, *columns)}
        await queue.finish_jobs(conn, [job for job in absent if job.id not in busy])
    due = [job for job in jobs if job.id in windows and windows[job.id]["closes_at"] <= now]
    later = [job for job in jobs if job.id in windows and windows[job.id]["closes_at"] > now]
    changed = [
        NewJob(job.id, job.project_id, DIGEST, job.lane, job.priority, windows[job.id]["closes_at"]) for job in later
    ]
    digests: list[Digest] = []
    if due:
        items, expired = await _load_items(conn, due, windows, now, catalog)
        await queue.insert_jobs(conn, expired, now)
        drafts = [_to_draft(job, *items[job.id]) for job in due if job.id in items]
        if drafts:
            await conn.execute(SQL.insert_digests, *(list(column) for column in zip(*drafts, strict=True)), now)
        await queue.finish_jobs(conn, [job for job in due if job.id not in items])
        lanes = {job.id: job.lane for job in due}
        changed += [NewJob(d.id, d.project_id, PLAN, lanes[d.id], d.priority, now) for d in drafts]
        digests = [Digest(d.id, d.project_id, d.items) for d in drafts]
        await conn.execute(SQL.delete_windows, [job.id for job in due])
    changed.sort(key=lambda job: job.id.int)
    await queue.reschedule_jobs(conn, changed, now)
    return digests


class _Draft(NamedTuple):
    """A row of `notification`, in the order of insert_digests' columns."""

    id: UUID
    project_id: int
    type_version_id: int
    user_id: str | None
    to_channel: int | None
    to_address: str | None
    priority: int
    channels: int | None
    at_most_once: bool
    test: bool
    locale: str | None
    data: str
    metadata: str | None
    expires_at: datetime | None
    traceparent: str | None
    options: str | None
    items: int


_Gathered = tuple[Record, DigestRule, list[Record]]
"""A window, the rule of its type, and its items, the oldest first."""


async def _load_items(
    conn: Connection, due: Sequence[Job], windows: Mapping[UUID, Record], now: datetime, catalog: Catalog
) -> tuple[dict[UUID, _Gathered], list[NewJob]]:
    """By window, those without items are missing; and the jobs for items that have expired."""
    columns = [job.id for job in due], [job.project_id for job in due]
    bounds = await conn.fetchrow(SQL.load_item_bounds, columns[0])
    if bounds is None or bounds["low"] is None:
        return {}, []
    low, high = ids.family_bounds((bounds["low"], bounds["high"]))
    # That of the newest version whose notifications joined: an edit of the type holds from the next item on.
    versions = await catalog.load_type_versions({(job.project_id, windows[job.id]["type_version_id"]) for job in due})
    rules = {job.id: _rule_of(versions.get(windows[job.id]["type_version_id"])) for job in due}
    rows = await conn.fetch(SQL.load_items, *columns, [rules[job.id].max for job in due], low, high, now)
    found = {id_: list(items) for id_, items in groupby(rows, key=itemgetter("window_id"))}
    expired: list[NewJob] = []
    if sum(items[-1]["total"] for items in found.values()) < bounds["total"]:
        lanes = {job.id: job.lane for job in due}
        for row in await conn.fetch(SQL.load_expired, *columns, low, high, now):
            lane = lanes[row["window_id"]]
            expired.append(
                NewJob(row["id"], row["project_id"], STEP, lane, row["priority"], now, None, row["traceparent"])
            )
    return {id_: (windows[id_], rules[id_], items) for id_, items in found.items()}, expired


def _rule_of(type_: TypeVersion | None) -> DigestRule:
    return NO_RULE if type_ is None or type_.digest is None else type_.digest


def _to_draft(job: Job, window: Record, rule: DigestRule, items: Sequence[Record]) -> _Draft:
    newest = items[-1]
    _, item_key, channels, _, _ = _decode_key(window["key"])
    return _Draft(
        id=job.id,
        project_id=job.project_id,
        type_version_id=window["type_version_id"],
        user_id=newest["user_id"],
        to_channel=newest["to_channel"],
        to_address=newest["to_address"],
        priority=newest["urgency"],
        channels=None if channels == ALL_CHANNELS else channels,
        at_most_once=newest["at_most_once"],
        test=newest["test"],
        locale=newest["locale"],
        data=to_data(
            rule, item_key, [Item(i["id"], i["at"], i["data"]) for i in items], newest["total"], newest["since"]
        ),
        metadata=newest["metadata"],
        expires_at=newest["ends_at"],
        traceparent=newest["traceparent"],
        options=newest["options"],
        items=newest["total"],
    )


class Item(NamedTuple):
    """One of a digest's items."""

    id: UUID
    at: datetime
    """When it was asked for, or was to be sent."""
    data: str | None
    """JSON."""


def to_data(rule: DigestRule, item_key: str, items: Sequence[Item], count: int, since: datetime) -> str:
    """The data of a digest: those of its newest item, with `digest` beside them. Pure.

    Args:
        item_key: the window's; where it is another value's, the type was edited meanwhile.
        items: the newest ones, the oldest first; one at least.
        count: how many items there are.
        since: the time of the oldest of them all.
    """
    data = _decode(items[-1].data or "{}")
    value = find_value(rule, data)
    shown = [
        _encode(
            {
                "data": msgspec.Raw((item.data or "{}").encode()),
                "notification": ids.to_public(ids.NOTIFICATION, item.id),
                "at": item.at,
            }
        )
        for item in items
    ]
    digest: dict[str, Any] = {
        "count": count,
        "key": value if item_key == read_key(rule, data) else None,
        "since": since,
        "until": items[-1].at,
        "more": count,
        "items": [],
    }
    data["digest"] = digest
    room = DATA_LIMIT - len(_encode(data))
    kept = 0
    for text in reversed(shown):
        room -= len(text) + 1
        if room < 0:
            break
        kept += 1
    digest["items"] = [msgspec.Raw(text) for text in shown[len(shown) - kept :]]
    digest["more"] = count - kept
    return _encode(data).decode()
