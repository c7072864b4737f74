"""Broadcasts: one request for many. Told to whom it is for page by page, while the road has room.

    ask      -> a broadcast with its cohorts: all users at one time, or those of a time zone each
    expand   -> the next users of a cohort become notifications with their plan jobs; the cursor moves along
    control  -> pause, resume, cancel

What the notifications say stands in the broadcast, once. Expanding is a job of the plan lanes: page, notifications,
counters, cursor and the job's next time are one transaction, so a crash at any point repeats a page as a whole or not
at all. Its job is put behind what is due already, so the next page waits until the plan lane has worked that off.

With `local_time` there is a cohort for each time zone, and a last one at the end of the day in the west for whoever
came into another zone meanwhile; a send-once key sees to it that nobody is told in two zones.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any, Final, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from tidings import ids
from tidings.clock import Clock
from tidings.db.pool import Connection, Database, Record
from tidings.db.sql import load_queries
from tidings.directory.access import Caller
from tidings.directory.audit import apply_audit
from tidings.directory.catalog import Catalog
from tidings.directory.users import parse_time_zone
from tidings.engine import jobs as queue
from tidings.engine.jobs import FEEDER, Job, NewJob
from tidings.engine.wakes import Wakes
from tidings.errors import ConfirmationNeeded, Conflict, FieldError, Forbidden, Invalid, NotFound
from tidings.flow.accept import load_content
from tidings.flow.audience import (
    Others,
    People,
    Sources,
    count_audience,
    list_zones,
    load_page,
    parse_audience,
    plan_audience,
    resolve_audience,
    to_stored,
)
from tidings.flow.effects import to_once_key
from tidings.flow.jobs import expand_job, plan_job
from tidings.flow.measure import Counts, Dimension, Meter
from tidings.flow.request import PAST_TOLERANCE, Request, Row, decide_acceptance, refuse
from tidings.model.words import Channel, EventKind, Priority, Scope

SQL: Final = load_queries(__package__, "broadcasts.sql")

CHUNK: Final = 1_000
"""Users of one page."""
AT_ONCE: Final = 2_000
"""Users after which one transaction takes on no further cohort."""
SAMPLE: Final = 10
"""Users that a dry run shows."""
CATCH_UP: Final = timedelta(seconds=2)
"""A pace that fell behind by more, since the workers were away, is not made up for."""
LAST_ZONE: Final = "Etc/GMT+12"
"""Where a day ends last."""


class BroadcastStatus(IntEnum):
    """Where a broadcast stands."""

    scheduled = 1  # nobody has been told yet
    running = 2
    paused = 3
    done = 4  # everybody's notification has been made; it may still be on the road
    cancelled = 5


ENDED: Final = frozenset({BroadcastStatus.done, BroadcastStatus.cancelled})


class Ask(msgspec.Struct, frozen=True):
    """A request for a broadcast."""

    request: Request
    """What to say: as of one notification, to whomever."""
    to: Sources
    exclude: Sources = Sources()
    local_time: datetime | None = None
    """Naive: on the clock of each user."""
    rate: float | None = None
    """Users per second."""
    confirm: int | None = None
    """The number of users that the caller has seen and agrees to."""


class Estimate(msgspec.Struct, frozen=True):
    """How many users there are, and some of them."""

    count: int
    sample: list[str]


class Broadcast(msgspec.Struct, frozen=True):
    """A broadcast as it is shown."""

    id: UUID
    type: str
    type_version: int
    status: str
    to: Mapping[str, Any]
    """Its sources; of named users their number."""
    exclude: Mapping[str, Any]
    estimated: int
    """Users when it was made."""
    expanded: int
    """Users whose notification has been made."""
    priority: str
    channels: list[str] | None
    locale: str | None
    metadata: Mapping[str, str]
    once: str | None
    rate: float | None
    send_at: datetime | None
    local_time: datetime | None
    expires_at: datetime | None
    test: bool
    created_at: datetime
    ended_at: datetime | None
    cancelled_at: datetime | None


class Cohort(NamedTuple):
    """The users who are told at one time."""

    zones: Sequence[str] | None
    due_at: datetime | None
    others: bool = False


# ---------------------------------------------------------------- asking for one, and steering it


class Broadcaster:
    """Takes and steers broadcasts, in an API process.

    Args:
        horizon: how far ahead a broadcast may be.
    """

    def __init__(
        self, catalog: Catalog, clock: Clock, wakes: Wakes, *, horizon: timedelta = timedelta(days=89)
    ) -> None:
        self._catalog = catalog
        self._clock = clock
        self._wakes = wakes
        self._horizon = horizon

    async def estimate(self, conn: Connection, caller: Caller, ask: Ask) -> Estimate:
        """Who would be told now. Checks all that `create` checks, and stores nothing.

        Raises:
            As `create`, but for the confirmation.
        """
        caller.require(Scope.read)  # it shows users
        await self._check(caller, ask)
        audience = await resolve_audience(conn, caller.project_id, ask.to, ask.exclude)
        return Estimate(*await count_audience(conn, caller.project_id, audience, sample=SAMPLE))

    async def create(self, conn: Connection, caller: Caller, ask: Ask, *, traceparent: str | None = None) -> Broadcast:
        """A new broadcast, as part of the caller's transaction; call `announce` after its commit.

        Raises:
            Invalid: with what is to be mended.
            Forbidden: `critical` without leave.
            ConfirmationNeeded: it is for more users than the project lets pass, and than `confirm` says.
        """
        project_id = caller.project_id
        row, lanes, expires_after = await self._check(caller, ask)
        audience = await resolve_audience(conn, project_id, ask.to, ask.exclude)
        count, _ = await count_audience(conn, project_id, audience, sample=0)
        settings = (await self._catalog.load_project(project_id)).settings
        if count > settings.confirm_above and (ask.confirm is None or ask.confirm < count):
            raise ConfirmationNeeded(count, settings.confirm_above)
        now = self._clock.now()
        cohorts = [Cohort(None, row.send_at)]
        if ask.local_time is not None:
            walks = (await plan_audience(conn, project_id, audience)).walks
            zones = await list_zones(conn, project_id)
            cohorts = plan_cohorts(ask.local_time, zones, settings.time_zone, now, apart=walks)
            if row.expires_at is not None and row.expires_at <= max(c.due_at or now for c in cohorts):
                raise refuse("/expires_at", "By then the local time has not come yet everywhere.")
        id_ = ids.new_id(now, self._clock.random)
        public = ids.to_public(ids.BROADCAST, id_)
        once = row.once_key or (f"broadcast:{public}" if ask.local_time is not None else None)
        later = all(cohort.due_at is not None for cohort in cohorts)
        status = BroadcastStatus.scheduled if later else BroadcastStatus.running
        db_now = self._clock.db_now()
        await conn.execute(
            SQL.insert_broadcast,
            id_, project_id, row.type_version_id, to_stored(audience), row.data, row.metadata, row.options,
            row.priority, row.channels, lanes, row.at_most_once, row.test, row.locale, once, expires_after,
            row.expires_at, ask.rate, row.send_at, ask.local_time, int(status), count, traceparent, db_now,
        )  # fmt: skip
        made = [(ids.new_id(now, self._clock.random), cohort) for cohort in cohorts]
        await conn.execute(
            SQL.insert_cohorts,
            [cohort_id for cohort_id, _ in made],
            [None if c.zones is None else msgspec.json.encode(c.zones).decode() for _, c in made],
            project_id,
            id_,
            [c.others for _, c in made],
            db_now,
            [c.due_at for _, c in made],
        )
        jobs = [expand_job(cohort_id, project_id, row.priority, lanes, c.due_at, traceparent) for cohort_id, c in made]
        await queue.insert_jobs(conn, sorted(jobs), db_now)
        broadcast = await load_broadcast(conn, project_id, id_)
        await apply_audit(conn, caller.actor, "broadcast.create", f"broadcast:{public}", after=_to_trail(broadcast))
        return broadcast

    def announce(self) -> None:
        """Wake the workers: a broadcast was made or goes on. After the commit."""
        self._wakes.announce([FEEDER])

    async def pause(self, conn: Connection, caller: Caller, broadcast_id: UUID) -> Broadcast:
        """Makes no further notifications until it is resumed; those that were made go their way.

        Raises:
            NotFound: the project has no such broadcast.
            Conflict: it has ended.
            Forbidden: it is a live one, and the caller has a test key.
        """
        await self._remove_jobs(conn, caller.project_id, broadcast_id)
        row = await self._lock(conn, caller, broadcast_id)
        if row["status"] in ENDED:
            raise Conflict("The broadcast has ended, and cannot be paused. Cancelling it stops what is not sent yet.")
        if row["status"] == BroadcastStatus.paused:
            return await load_broadcast(conn, caller.project_id, broadcast_id)
        await conn.execute(SQL.update_status, caller.project_id, broadcast_id, int(BroadcastStatus.paused))
        return await self._told(conn, caller, broadcast_id, "broadcast.pause")

    async def resume(self, conn: Connection, caller: Caller, broadcast_id: UUID) -> Broadcast:
        """Goes on where it was paused; call `announce` after the commit. What is not paused stays as it is.

        Raises:
            As `pause`.
        """
        project_id = caller.project_id
        row = await self._lock(conn, caller, broadcast_id)
        if row["status"] in ENDED:
            raise Conflict("The broadcast has ended; it cannot go on.")
        if row["status"] != BroadcastStatus.paused:
            return await load_broadcast(conn, project_id, broadcast_id)
        now = self._clock.db_now()
        cohorts = await conn.fetch(SQL.list_open_cohorts, project_id, broadcast_id, now)
        # A job may be left, if its worker has not looked since the pause; it goes on.
        left = await queue.load_jobs(conn, project_id, [c["id"] for c in cohorts])
        where = project_id, row["priority"], row["lanes"]
        jobs = [
            expand_job(cohort["id"], *where, cohort["due_at"] if cohort["ahead"] else None, row["traceparent"])
            for cohort in cohorts
            if cohort["id"] not in left
        ]
        await queue.insert_jobs(conn, jobs, now)
        begun = row["expanded"] > 0 or not all(c["ahead"] for c in cohorts)
        status = BroadcastStatus.running if begun else BroadcastStatus.scheduled
        await conn.execute(SQL.update_status, project_id, broadcast_id, int(status))
        return await self._told(conn, caller, broadcast_id, "broadcast.resume")

    async def cancel(self, conn: Connection, caller: Caller, broadcast_id: UUID) -> Broadcast:
        """Stops it for good: no further notifications are made, and of those that were made nothing more is sent. Also
        when it is done, as long as something waits. What was sent stays sent.

        Raises:
            NotFound: the project has no such broadcast.
            Forbidden: it is a live one, and the caller has a test key.
        """
        await self._remove_jobs(conn, caller.project_id, broadcast_id)
        row = await self._lock(conn, caller, broadcast_id)
        if row["status"] == BroadcastStatus.cancelled:
            return await load_broadcast(conn, caller.project_id, broadcast_id)
        cancelled = int(BroadcastStatus.cancelled)
        await conn.execute(SQL.cancel_broadcast, caller.project_id, broadcast_id, cancelled, self._clock.db_now())
        return await self._told(conn, caller, broadcast_id, "broadcast.cancel")

    # ------------------------------------------------------------ the steps of these

    async def _check(self, caller: Caller, ask: Ask) -> tuple[Row, int, timedelta | None]:
        """What each notification will say, the channels that it may come to, and when it expires, if that counts from
        its own beginning."""
        caller.require(Scope.send)
        request = ask.request
        if request.type is None:
            raise refuse("/type", "Give the `type` of the notifications.")
        type_, template = await load_content(self._catalog, caller.project_id, request.type)
        now = self._clock.now()
        draft = decide_acceptance(
            caller,
            request,
            type_,
            template,
            now=now,
            horizon=self._horizon,
            id_=ids.new_id(now, self._clock.random),
            traceparent=None,
        )
        errors: list[FieldError] = []
        if ask.local_time is not None:
            if request.send_at is not None:
                errors.append(FieldError("Give `send_at` or `local_time`, not both.", "/local_time"))
            if _to_moment(ask.local_time, LAST_ZONE) < now - PAST_TOLERANCE:
                errors.append(FieldError("This time has passed everywhere.", "/local_time"))
            if _to_moment(ask.local_time, LAST_ZONE) > now + self._horizon:
                errors.append(FieldError(f"This time is more than {self._horizon.days} days ahead.", "/local_time"))
        if errors:
            raise Invalid(errors=errors)
        row = draft.row
        if request.expires_at is None:
            return row._replace(expires_at=None), draft.job.lane - FEEDER, type_.expires_after
        return row, draft.job.lane - FEEDER, None

    async def _lock(self, conn: Connection, caller: Caller, broadcast_id: UUID) -> Record:
        caller.require(Scope.send)
        row = await conn.fetchrow(SQL.lock_broadcast, caller.project_id, broadcast_id)
        if row is None:
            raise NotFound("There is no such broadcast in this project.")
        if caller.test and not row["test"]:
            raise Forbidden("A test key cannot steer what a live key sends.")
        return row

    async def _remove_jobs(self, conn: Connection, project_id: int, broadcast_id: UUID) -> None:
        """Before the broadcast is locked, since whoever expands it locks its job first. A job that comes into being
        between the two finds what the broadcast says when its turn comes."""
        cohorts = await conn.fetch(SQL.list_open_cohorts, project_id, broadcast_id, None)
        await queue.remove_free_jobs(conn, project_id, [cohort["id"] for cohort in cohorts])

    async def _told(self, conn: Connection, caller: Caller, broadcast_id: UUID, action: str) -> Broadcast:
        broadcast = await load_broadcast(conn, caller.project_id, broadcast_id)
        object_ = f"broadcast:{ids.to_public(ids.BROADCAST, broadcast_id)}"
        await apply_audit(conn, caller.actor, action, object_, after=_to_trail(broadcast))
        return broadcast


def plan_cohorts(
    local_time: datetime, zones: Collection[str], default_zone: str | None, now: datetime, *, apart: bool
) -> list[Cohort]:
    """When users of which time zones are told. Pure.

    A time that a clock skips is told as the clock goes on; one that comes twice, the first time. Where it has passed,
    it is told now.

    Args:
        zones: those that users have; '' for none.
        default_zone: of users who have none; None is UTC.
        apart: each zone for itself; else those whose moment is the same go together.
    """
    by_moment: dict[tuple[datetime, str], list[str]] = {}
    for zone in sorted(zones):
        at = _to_moment(local_time, zone or default_zone or "UTC")
        by_moment.setdefault((at, zone if apart else ""), []).append(zone)
    cohorts = [Cohort(together, at if at > now else None) for (at, _), together in sorted(by_moment.items())]
    last = _to_moment(local_time, LAST_ZONE)
    return [*cohorts, Cohort(sorted(zones), last if last > now else None, others=True)]


def _to_moment(local_time: datetime, zone: str) -> datetime:
    try:
        zone = parse_time_zone(zone)
    except ValueError:  # the time zone database of another version knew it
        zone = "UTC"
    return local_time.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


# ---------------------------------------------------------------- looking at them


async def load_broadcast(db: Database | Connection, project_id: int, broadcast_id: UUID) -> Broadcast:
    """One broadcast.

    Raises:
        NotFound: this project has none with this id.
    """
    row = await db.fetchrow(SQL.load_broadcast, project_id, broadcast_id)
    if row is None:
        raise NotFound("There is no such broadcast in this project.")
    return _to_broadcast(row)


async def list_broadcasts(
    db: Database | Connection,
    project_id: int,
    *,
    status: BroadcastStatus | None = None,
    before: UUID | None = None,
    limit: int = 50,
) -> list[Broadcast]:
    """The newest first; those before `before` (exclusive) when given."""
    rows = await db.fetch(SQL.list_broadcasts, project_id, before, None if status is None else int(status), limit)
    return [_to_broadcast(row) for row in rows]


def _to_broadcast(row: Record) -> Broadcast:
    audience = parse_audience(row["audience"])
    mask = row["channels"]
    return Broadcast(
        id=row["id"],
        type=row["type_key"],
        type_version=row["version"],
        status=BroadcastStatus(row["status"]).name,
        to=_to_shown(audience.to),
        exclude=_to_shown(audience.exclude),
        estimated=row["estimated"],
        expanded=row["expanded"],
        priority=Priority(row["priority"]).name,
        channels=None if mask is None else [channel.name for channel in Channel if mask >> channel & 1],
        locale=row["locale"],
        metadata=msgspec.json.decode(row["metadata"]) if row["metadata"] else {},
        once=row["once_key"],
        rate=row["rate"],
        send_at=row["send_at"],
        local_time=row["local_time"],
        expires_at=row["expires_at"],
        test=row["test"],
        created_at=row["created_at"],
        ended_at=row["ended_at"],
        cancelled_at=row["cancelled_at"],
    )


def _to_shown(people: People) -> dict[str, Any]:
    shown = {
        "users": len(people.users),
        "topics": list(people.topics),
        "segments": list(people.segments),
        "all": people.all,
    }
    return {name: value for name, value in shown.items() if value}


def _to_trail(broadcast: Broadcast) -> dict[str, Any]:
    """What the audit trail keeps."""
    kept = ("type", "status", "to", "exclude", "estimated", "expanded", "priority", "test")
    return {name: getattr(broadcast, name) for name in kept}


# ---------------------------------------------------------------- expanding


async def expand_cohorts(
    conn: Connection, jobs: Sequence[Job], now: datetime | None, rng: random.Random, catalog: Catalog, meter: Meter
) -> int:
    """The next users of the cohorts of these jobs become notifications with their plan jobs; answers with how many.

    Part of the planner's transaction, which has locked the jobs. Each job goes on later, or is finished with its
    cohort; those that there is no room for in this transaction stay due as they are.
    """
    counts: Counts = Counter()
    rows = await conn.fetch(SQL.lock_cohorts, [j.id for j in jobs], [j.project_id for j in jobs], now)
    by_id = {job.id: job for job in jobs}
    finished = [job for job in jobs if job.id not in {row["id"] for row in rows}]
    rescheduled: list[NewJob] = []
    versions = await catalog.load_type_versions({(row["project_id"], row["type_version_id"]) for row in rows})
    paced: dict[UUID, datetime | None] = {}
    told = 0
    for row in rows:
        if told >= AT_ONCE:
            break
        job, broadcast_id = by_id[row["id"]], row["broadcast_id"]
        if row["ended_at"] is not None or row["status"] in (*ENDED, BroadcastStatus.paused):
            finished.append(job)
            continue
        # Its other cohorts may have gone on in this transaction.
        paced_until = paced.get(broadcast_id, row["paced_until"])
        if row["rate"] is not None and paced_until is not None and paced_until > row["now"]:
            rescheduled.append(_go_on(job, paced_until))
            continue
        users, cursor, ended = await _next_users(conn, row)
        if users:
            await _insert(conn, row, job, users, now, rng)
            told += len(users)
            type_ = versions.get(row["type_version_id"])
            dimension = Dimension(row["project_id"], row["type_version_id"], "" if type_ is None else type_.category)
            counts[dimension, EventKind.requested] += len(users)
        paced[broadcast_id] = paced_until = decide_pace(row["rate"], len(users), paced_until, row["now"])
        await conn.execute(
            SQL.advance_cohort,
            row["project_id"],
            broadcast_id,
            row["id"],
            cursor,
            len(users),
            ended,
            row["now"],
            int(BroadcastStatus.running),
            paced_until,
        )
        if ended:
            finished.append(job)
            done = int(BroadcastStatus.done)
            await conn.execute(SQL.end_broadcast, row["project_id"], broadcast_id, done, row["now"])
        else:
            rescheduled.append(_go_on(job, paced_until))
    await queue.reschedule_jobs(conn, sorted(rescheduled), now)
    await queue.finish_jobs(conn, sorted(finished))
    await meter.apply(conn, counts)
    return told


def decide_pace(rate: float | None, users: int, paced_until: datetime | None, now: datetime) -> datetime | None:
    """When the next users are due after these. None: no pace. Pure.

    Counted from when these were due, not from when their turn came, so that the rate is met over time.
    """
    if rate is None:
        return None
    begin = paced_until if paced_until is not None and now - paced_until <= CATCH_UP else now
    return begin + timedelta(seconds=users / rate)


async def _next_users(conn: Connection, row: Record) -> tuple[Sequence[str], str, bool]:
    """The next page of a cohort: users, cursor, and whether it has ended."""
    cursor: str = row["after_user"]
    if row["expires_at"] is not None and row["expires_at"] <= row["now"]:
        return (), cursor, True  # nothing could be sent any more
    limit = CHUNK if row["rate"] is None else max(1, min(CHUNK, int(row["rate"])))
    others = None
    if row["others"]:
        once = to_once_key(row["once_key"], test=row["test"])
        others = Others(row["time_zones"], row["created_at"], once)
    return await load_page(
        conn,
        row["project_id"],
        parse_audience(row["audience"]),
        cursor,
        limit,
        zones=None if others else row["time_zones"],
        others=others,
    )


async def _insert(
    conn: Connection, row: Record, job: Job, users: Sequence[str], now: datetime | None, rng: random.Random
) -> None:
    at: datetime = row["now"]
    made = sorted((ids.new_id(at, rng) for _ in users), key=lambda id_: id_.int)
    expires_at = row["expires_at"]
    if expires_at is None and row["expires_after"] is not None:
        expires_at = at + row["expires_after"]
    await conn.execute(
        SQL.insert_told,
        made, users, row["project_id"], row["type_version_id"], row["priority"], row["channels"], row["at_most_once"],
        row["test"], row["locale"], expires_at, row["traceparent"], row["once_key"], row["broadcast_id"], at,
    )  # fmt: skip
    first = plan_job(made[0], row["project_id"], row["priority"], job.lane - FEEDER, None, row["traceparent"])
    await queue.insert_jobs(conn, [first._replace(id=id_) for id_ in made], now)


def _go_on(job: Job, due_at: datetime | None) -> NewJob:
    return expand_job(job.id, job.project_id, job.priority, job.lane - FEEDER, due_at, job.traceparent)
