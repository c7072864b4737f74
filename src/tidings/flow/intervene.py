"""Intervene: what people do to notifications that are on the road: cancel them, and replay dead letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple
from uuid import UUID

from tidings import ids
from tidings.clock import Clock
from tidings.db.pool import Connection, Database, Record
from tidings.db.sql import load_queries
from tidings.directory.access import Caller
from tidings.directory.audit import apply_audit
from tidings.engine import jobs as queue
from tidings.engine.wakes import Wakes
from tidings.errors import Forbidden, NotFound
from tidings.flow import digests, effects, inbox
from tidings.flow.evidence import Event
from tidings.flow.jobs import send_job
from tidings.flow.measure import Counts, Dimension, Meter, Move, Moves, ObserveMoved
from tidings.model.words import Channel, EventKind, Reason, RunState, Status

SQL: Final = load_queries(__package__, "intervene.sql")

REPLAY_BATCH: Final = 500
FORGET_BATCH: Final = 20_000
"""Dead letters deleted in one statement."""


class Cancelled(StrEnum):
    """The definite answer to a cancel."""

    cancelled = "cancelled"  # nothing was sent, and nothing will be
    too_late = "too_late"  # everything had been sent, or is being sent
    partly = "partly"  # some deliveries were still stopped, others not


class DeadLetter(NamedTuple):
    """A delivery that was given up; the order of the fields is that of list_dead_letters' columns."""

    delivery_id: UUID
    notification_id: UUID
    channel: int
    reason: str
    attempts: int
    at: datetime


class Intervener:
    """Cancels and replays, in an API process."""

    def __init__(
        self,
        database: Database,
        meter: Meter,
        clock: Clock,
        wakes: Wakes,
        *,
        bell: inbox.Bell | None = None,
        observe_moved: ObserveMoved | None = None,
    ) -> None:
        self._database = database
        self._meter = meter
        self._clock = clock
        self._wakes = wakes
        self._bell = bell
        self._observe_moved = observe_moved

    async def cancel(self, caller: Caller, notification_id: UUID) -> Cancelled:
        """Stop everything of a notification that has not left yet: what waits for a timer or in a digest, what is due;
        and take back what stands in an inbox.

        The order matters. Setting `cancelled_at` first makes every settlement that would go on wait for us. Removing
        the plan job waits for a planner that holds it; what that one planned is then seen by the next statement.
        Removing the send jobs waits for a claim that is under way; what it leased is in flight, hence too late (it may
        still end as cancelled, when its worker looks just before sending). Jobs are locked before deliveries, as
        settling does.

        Raises:
            NotFound: the project has no such notification.
            Forbidden: it is a live one, and the caller has a test key.
        """
        project_id = caller.project_id
        low, high = ids.family_range(notification_id)
        moves: Moves = Counter()
        owners: set[inbox.Owner] = set()

        async def work(conn: Connection) -> Cancelled:
            moves.clear()
            owners.clear()
            now = self._clock.db_now()
            notification = await conn.fetchrow(SQL.lock_notification, project_id, notification_id)
            if notification is None:
                raise NotFound("There is no such notification in this project.")
            if caller.test and not notification["test"]:
                raise Forbidden("A test key cannot cancel what a live key sent.")
            if notification["cancelled_at"] is None:
                await conn.execute(SQL.apply_cancelled_at, project_id, notification_id, now)
                await apply_audit(
                    conn,
                    caller.actor,
                    "notification.cancel",
                    f"notification:{ids.to_public(ids.NOTIFICATION, notification_id)}",
                )
            unplanned = await queue.remove_free_jobs(conn, project_id, [notification_id])
            rows = await conn.fetch(SQL.load_statuses, project_id, notification_id, low, high)
            waiting = [row["id"] for row in rows if row["status"] == Status.queued]
            freed = await queue.remove_free_jobs(conn, project_id, waiting) if waiting else set()
            if freed:
                rows = await conn.fetch(SQL.apply_cancelled, project_id, sorted(freed), low, high, now)
                moves.update(Move(row["channel"], Status(row["status"]), None, Reason(row["reason"])) for row in rows)
                stopped_ones = [row for row in rows if row["status"] == Status.cancelled]
                await self._record(conn, project_id, notification, stopped_ones, now)
            state = await conn.fetchval(SQL.load_run, project_id, notification_id)
            left = await digests.leave_windows(conn, project_id, [notification_id])
            if left:
                await conn.execute(SQL.leave_digest, project_id, notification_id)
            if state == RunState.waiting or left:
                await conn.execute(SQL.stop_run, project_id, notification_id)
            rows = await conn.fetch(SQL.load_statuses, project_id, notification_id, low, high)
            statuses = [Status(row["status"]) for row in rows]
            owner = project_id, notification["user_id"]
            shown = [row["id"] for row in rows if row["channel"] == Channel.in_app]
            recalled = await inbox.recall_items(conn, owner, shown, now) if shown and owner[1] is not None else 0
            if recalled:
                owners.add(owner)
            target = effects.to_target(notification["user_id"], notification["to_channel"], notification["to_address"])
            await effects.apply_refunds(conn, [(project_id, target, notification_id)])
            stopped = bool(unplanned or left or recalled) or Status.cancelled in statuses
            gathered = await conn.fetchval(SQL.load_digest, project_id, notification_id)  # has closed with it
            if gathered is None and all(s in (Status.cancelled, Status.skipped) for s in statuses):
                return Cancelled.cancelled
            return Cancelled.partly if stopped else Cancelled.too_late

        answer = await self._database.transaction(work)
        if self._bell is not None and owners:
            self._bell.ring(owners)
        if self._observe_moved is not None and moves:
            self._observe_moved(moves)
        return answer

    async def _record(
        self,
        conn: Connection,
        project_id: int,
        notification: Record,
        records: Sequence[Record],
        now: datetime | None,
    ) -> None:
        rng = self._clock.random
        await effects.apply_events(
            conn,
            [
                Event(
                    ids.child_id(r["id"], rng), project_id, r["notification_id"], r["id"], EventKind.cancelled,
                    None, None, Reason.cancelled, None, None,
                )
                for r in records
            ],
            now,
        )  # fmt: skip
        counts: Counts = Counter()
        for r in records:
            dimension = Dimension(
                project_id,
                notification["type_version_id"] or 0,
                notification["category_key"] or "",
                r["channel"],
                0,
                r["template_version_id"] or 0,
                r["variant"] or "",
                r["locale"] or "",
                r["segments"] or 0,
            )
            counts[dimension, EventKind.cancelled] += 1
        await self._meter.apply(conn, counts)

    async def list_dead_letters(
        self, project_id: int, *, before: UUID | None, reason: str | None, channel: Channel | None, limit: int
    ) -> list[DeadLetter]:
        """Dead letters, newest first."""
        rows = await self._database.fetch(
            SQL.list_dead_letters, project_id, before, reason, int(channel) if channel else None, limit
        )
        return [DeadLetter(*row) for row in rows]

    async def replay(
        self,
        caller: Caller,
        *,
        delivery_ids: Collection[UUID] | None,
        reason: str | None = None,
        channel: Channel | None = None,
        limit: int | None = None,
    ) -> int:
        """Send dead letters again, with all their attempts anew; answers with how many.

        Args:
            caller: who does it.
            delivery_ids: these; None: all that fit the filters.
            reason: only those that failed for this reason.
            channel: only those of this channel.
            limit: at most so many; None: all.

        Raises:
            Forbidden: the caller has a test key.
        """
        if caller.test:
            raise Forbidden("A test key cannot replay dead letters: they are sent for real.")
        # What fails again at once is on the list again before we are through; once for each is enough.
        began_at = await self._database.fetchval(SQL.load_now, self._clock.db_now())
        replayed = 0
        while limit is None or replayed < limit:
            size = REPLAY_BATCH if limit is None else min(REPLAY_BATCH, limit - replayed)
            taken, done = await self._replay(caller, delivery_ids, reason, channel, size, began_at)
            replayed += done
            if taken < size:
                break
        return replayed

    async def _replay(
        self,
        caller: Caller,
        delivery_ids: Collection[UUID] | None,
        reason: str | None,
        channel: Channel | None,
        size: int,
        began_at: datetime,
    ) -> tuple[int, int]:
        project_id = caller.project_id
        lanes: set[int] = set()

        async def work(conn: Connection) -> tuple[int, int]:
            now = self._clock.db_now()
            letters = await conn.fetch(
                SQL.lock_dead_letters,
                project_id,
                list(delivery_ids) if delivery_ids is not None else None,
                reason,
                int(channel) if channel else None,
                size,
                began_at,
            )
            if not letters:
                return 0, 0
            wanted = [row["delivery_id"] for row in letters]
            low, high = ids.family_bounds(wanted)
            rows = await conn.fetch(SQL.load_replays, project_id, wanted, low, high, delivery_ids is not None)
            rows = await _keep_once(conn, project_id, rows, now)
            again = [row["id"] for row in rows]
            if again:
                await conn.execute(SQL.apply_replayed, project_id, again, low, high, now)
                notifications = sorted({row["notification_id"] for row in rows})
                await conn.execute(SQL.lift_expiry, project_id, notifications, low, high, now)
                jobs = [
                    send_job(row["id"], project_id, row["priority"], row["channel"], None, row["traceparent"])
                    for row in rows
                ]
                await queue.insert_jobs(conn, jobs, now)
                lanes.update(job.lane for job in jobs)
                rng = self._clock.random
                await effects.apply_events(
                    conn,
                    [
                        Event(
                            ids.child_id(row["id"], rng), project_id, row["notification_id"], row["id"],
                            EventKind.replayed, None, None, None, None, None,
                        )
                        for row in rows
                    ],
                    now,
                )  # fmt: skip
                for row in rows:
                    await apply_audit(
                        conn, caller.actor, "dead_letter.replay", f"delivery:{ids.to_public(ids.DELIVERY, row['id'])}"
                    )
            # A letter whose notification was cancelled, that has gone on already, or whose send-once key another
            # notification has got meanwhile, is only taken off the list.
            await conn.execute(SQL.delete_dead_letters, project_id, wanted)
            return len(letters), len(again)

        done = await self._database.transaction(work)
        self._wakes.announce(lanes)
        return done


async def _keep_once(conn: Connection, project_id: int, rows: Sequence[Record], now: datetime | None) -> list[Record]:
    """Those that may be sent again: their key, which was given back when they failed, is theirs (again)."""
    places = {
        row["id"]: (
            project_id,
            effects.to_target(row["user_id"], row["to_channel"], row["to_address"]),
            effects.to_once_key(row["once_key"], test=row["test"]),
        )
        for row in rows
        if row["once_key"] is not None
    }
    wanted: dict[effects.Once, UUID] = {}
    for row in rows:
        if row["id"] in places:
            wanted.setdefault(places[row["id"]], row["notification_id"])
    owner = await effects.claim_once(conn, wanted, now)
    return [row for row in rows if row["id"] not in places or owner[places[row["id"]]] == row["notification_id"]]


async def forget_letters(database: Database, before: datetime) -> None:
    """Delete the dead letters of notifications older than `before`: what could be replayed goes with its partition."""
    while await database.fetchval(SQL.forget_letters, ids.first_id_at(before), FORGET_BATCH) == FORGET_BATCH:
        pass
