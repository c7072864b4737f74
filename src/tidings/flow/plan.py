"""Plan: a notification becomes deliveries, or reasons why not, and the timer of what comes next.

Planning is done just before sending, so that it sees the preferences, addresses, limits and templates of that moment.
The decision is pure (`decide.py`); here are the locked reads it is given and the writes that follow from it, all one
transaction. No lease is needed, since a crash rolls it back.

The same lanes bring what else is done in one transaction: digests that close, broadcasts that go on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
import structlog

from tidings import ids
from tidings.clock import Clock
from tidings.db.pool import Connection, Database, to_loggable
from tidings.db.sql import load_queries
from tidings.directory.catalog import Catalog
from tidings.directory.digests import decide_frequency_close, read_key
from tidings.engine import jobs as queue
from tidings.engine.batch import is_about_an_item
from tidings.engine.checkpoint import Checkpoint, no_checkpoint
from tidings.engine.jobs import Job, NewJob, Retry
from tidings.engine.shares import Share
from tidings.errors import DatabaseError
from tidings.flow import broadcasts, digests, effects
from tidings.flow.decide import decide_digest, decide_plan
from tidings.flow.digests import Join, Joined, to_window_key
from tidings.flow.evidence import Event
from tidings.flow.facts import (
    Facts,
    Plan,
    Planned,
    Rules,
    ToDigest,
    extend_trail,
)
from tidings.flow.hooks import enqueue_hooks
from tidings.flow.jobs import ALL_CHANNELS, DIGEST, EXPAND, PLAN, STEP, send_job
from tidings.flow.measure import Counts, Dimension, Meter, Move, Moves, ObserveMoved
from tidings.flow.reader import Reader, Subject, UnreadableType
from tidings.model.rulings import Answer, Level, Rule, Ruling
from tidings.model.words import Channel, EventKind, Frequency, Reason, RunState, Status

SQL: Final = load_queries(__package__, "plan.sql")

log = structlog.get_logger(__name__)

GIVE_UP_AFTER: Final = 5
"""Times that planning one notification may break before it is put aside as failed."""
GIVE_UP_UNREADABLE_AFTER: Final = 8
"""The same where its type is of a newer Tidings: about a day, in which the last worker will have been upgraded."""


class Decided(NamedTuple):
    """What planning came to for one notification."""

    subject: Subject
    plan: Plan
    joined: Joined | None = None
    """The digest that it went into, or some of its channels did."""

    @property
    def category(self) -> str:
        """Its type's; '' for none."""
        return self.subject.rules.type_.category if self.subject.rules.type_ is not None else ""


class Planner:
    """The second stage, in a worker process: the handler of the feeder lanes."""

    def __init__(
        self,
        database: Database,
        catalog: Catalog,
        meter: Meter,
        clock: Clock,
        *,
        checkpoint: Checkpoint = no_checkpoint,
        observe_moved: ObserveMoved | None = None,
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._meter = meter
        self._clock = clock
        self._checkpoint = checkpoint
        self._reader = Reader(catalog)
        self._observe_moved: ObserveMoved = observe_moved or (lambda _: None)

    async def feed(self, shares: Sequence[Share]) -> tuple[int, Collection[int]]:
        """Plan what the shares say, in one transaction; answers with how many, and the channels that got work."""
        try:
            return await self._feed(shares)
        except Exception as error:
            if isinstance(error, (asyncpg.PostgresError, asyncpg.InterfaceError)) and not is_about_an_item(error):
                raise
            if isinstance(error, (OSError, DatabaseError)):
                raise
            # One notification among them cannot be planned. Halve until it is alone, then put it aside; the others go
            # their way.
            if len(shares) == 1 and shares[0].n == 1:
                await self._put_aside(shares, error)
                return 1, ()
            done, lanes = 0, set[int]()
            for half in _halve(shares):
                n, woken = await self.feed(half)
                done += n
                lanes.update(woken)
            return done, lanes

    async def _feed(self, shares: Sequence[Share]) -> tuple[int, Collection[int]]:
        counts: Counts = Counter()
        moves: Moves = Counter()
        lanes: set[int] = set()
        await self._checkpoint("plan.before")

        async def work(conn: Connection) -> int:
            counts.clear()
            moves.clear()
            lanes.clear()
            jobs = await queue.lock_jobs(conn, shares, now=self._clock.db_now())
            if not jobs:
                return 0
            jobs.sort(key=lambda job: job.id)
            notes = [job for job in jobs if job.kind in (PLAN, STEP)]
            if notes:
                decided, waits = await self._decide(conn, notes)
                self._count(decided, counts, moves)
                await self._apply(conn, [j for j in notes if j.id not in waits], decided, counts, moves, lanes)
            if len(notes) < len(jobs):
                await self._go_on(conn, jobs)
            await self._checkpoint("plan.commit")
            return len(jobs)

        done = await self._database.transaction(work)
        await self._checkpoint("plan.after")
        await self._meter.catch_up()
        if moves:
            self._observe_moved(moves)
        return done, lanes

    async def _go_on(self, conn: Connection, jobs: Sequence[Job]) -> None:
        """Close the digests and expand the broadcasts whose time has come."""
        now = self._clock.db_now() or await conn.fetchval(SQL.load_now)
        if closing := [job for job in jobs if job.kind == DIGEST]:
            await digests.close_windows(conn, closing, now, self._catalog)
        if expanding := [job for job in jobs if job.kind == EXPAND]:
            await broadcasts.expand_cohorts(conn, expanding, now, self._clock.random, self._catalog, self._meter)

    # ------------------------------------------------------------ deciding

    async def _decide(self, conn: Connection, jobs: Sequence[Job]) -> tuple[dict[UUID, Decided], Collection[UUID]]:
        now, rng = self._clock.db_now(), self._clock.random
        asked = {job.id: (job.project_id, job.kind == STEP) for job in jobs}
        subjects = await self._reader.load(conn, asked, now)
        lanes = {job.id: job.lane - queue.FEEDER for job in jobs}
        new = {job.id for job in jobs if job.kind == PLAN}
        late = await self._claim_once(conn, [s.facts for s in subjects if s.facts.once_key is not None], now)
        # Whoever has the key may come to nothing just now: who waits for one of this batch is planned with the next.
        waits = {id_ for id_, owner in late.items() if owner in asked}
        kept = [s for s in subjects if s.facts.id not in waits]
        subjects = [s._replace(rules=replace(s.rules, sent_before=True)) if s.facts.id in late else s for s in kept]
        joined = await self._gather(conn, [s for s in subjects if s.facts.id in new], lanes)
        decided: dict[UUID, Decided] = {}
        later: list[Join] = []
        for subject in subjects:
            facts, run, rules = subject
            into = joined.get(facts.id)
            if into is not None and not into.goes_now:
                ruling = Ruling(Rule.digest, Answer.digest, Level.type, None, Reason.digested, into.closes_at)
                plan = Plan(rulings=[ruling]).end(0, RunState.digested, Reason.digested)
            else:
                into = None
                plan = decide_plan(facts, run, rules, rng)
                later += [_to_join(facts, rules, *gathering) for gathering in _unite(plan.digests)]
            decided[facts.id] = Decided(subject, plan, into)
        if subjects:
            await subjects[0].rules.ledger.write(conn)
        if later:
            for id_, into in (await digests.join_windows(conn, later, subjects[0].facts.now, rng)).items():
                decided[id_] = decided[id_]._replace(joined=into)
        return decided, waits

    async def _claim_once(self, conn: Connection, facts: Sequence[Facts], now: datetime | None) -> dict[UUID, UUID]:
        """Claim send-once keys; answers with who comes too late, and after whom."""
        wanted: dict[effects.Once, UUID] = {}
        for f in facts:
            wanted.setdefault(f.once, f.id)
        owner = await effects.claim_once(conn, wanted, now)
        return {f.id: owner[f.once] for f in facts if owner[f.once] != f.id}

    async def _gather(
        self, conn: Connection, subjects: Sequence[Subject], lanes: Mapping[UUID, int]
    ) -> dict[UUID, Joined]:
        """Let those that go into a digest by their type or by the user's wish join it."""
        joins = []
        for facts, _, rules in subjects:
            frequency = decide_digest(facts, rules)
            if frequency is None or rules.type_ is None:
                continue
            rule, close_at, key = rules.type_.digest, None, ""
            if frequency is not Frequency.instant:
                zone = facts.time_zone or rules.settings.time_zone
                close_at = decide_frequency_close(frequency, rules.type_.rules.digest_hour, facts.now, zone)
            if rule is not None:
                key = read_key(rule, rules.case.data)
            reason = Reason.digested if close_at is None else frequency
            first_now = close_at is None and rule is not None and rule.first == "now"
            channels = ALL_CHANNELS if facts.channels is None else facts.channels
            lane = lanes[facts.id]
            joins.append(_to_join(facts, rules, channels, reason, close_at, key, lane=lane, first_now=first_now))
        if not joins:
            return {}
        return await digests.join_windows(conn, joins, subjects[0].facts.now, self._clock.random)

    # ------------------------------------------------------------ writing

    def _count(self, decided: Mapping[UUID, Decided], counts: Counts, moves: Moves) -> None:
        for entry in decided.values():
            facts, plan, category = entry.subject.facts, entry.plan, entry.category
            for p in plan.planned:
                kind = EventKind(int(p.status)) if p.reason is not None else EventKind.queued
                counts[_dimension(facts, p, category), kind] += 1
                if p.status is not Status.queued:
                    moves[Move(p.channel, p.status, None, p.reason)] += 1
            whole = Dimension(facts.project_id, facts.type_version_id or 0, category)
            if plan.state is RunState.digested or plan.digests:
                counts[whole, EventKind.digested] += 1
            if plan.state is RunState.waiting and plan.reason is not None:
                counts[whole, EventKind.held] += 1

    async def _apply(
        self,
        conn: Connection,
        jobs: Sequence[Job],
        decided: Mapping[UUID, Decided],
        counts: Counts,
        moves: Moves,
        lanes: set[int],
    ) -> None:
        rng = self._clock.random
        deliveries: list[tuple[Any, ...]] = []
        sends: list[NewJob] = []
        runs: list[tuple[Any, ...]] = []
        ended: list[Job] = []
        later: list[NewJob] = []
        withdrawn: list[tuple[int, UUID]] = []
        idle: list[tuple[int, str, UUID]] = []
        for job in jobs:
            if job.id not in decided:  # retention dropped the notification; the job has nothing left to plan
                ended.append(job)
                continue
            (facts, run, rules), plan, into = decided[job.id]
            for p in plan.planned:
                id_ = ids.child_id(job.id, rng)
                deliveries.append(
                    (
                        id_, job.project_id, job.id, int(p.channel), int(p.status), p.template_version_id, p.address,
                        p.locale, p.reason, p.step, facts.segments,
                    )
                )  # fmt: skip
                if p.status is Status.queued:
                    sends.append(send_job(id_, job.project_id, job.priority, p.channel, p.account_id, job.traceparent))
                    lanes.add(int(p.channel))
            withdrawn += [(job.project_id, id_) for id_ in plan.withdrawn]
            runs.append(
                (
                    job.id, job.project_id, plan.step, int(plan.state), plan.place, plan.pending, plan.until,
                    plan.reason, into.window_id if into is not None else None,
                    extend_trail(run.trail, plan.rulings, facts.now),
                )
            )  # fmt: skip
            if plan.state is RunState.waiting:
                assert plan.until is not None
                due_at = plan.until if facts.expires_at is None else min(plan.until, facts.expires_at)
                later.append(NewJob(job.id, job.project_id, STEP, job.lane, job.priority, due_at))
            else:
                ended.append(job)
                may_hold = rules.caps or facts.once_key is not None
                if may_hold and into is None and all(p.status is not Status.queued for p in plan.planned):
                    idle.append((job.project_id, facts.target, job.id))
        now = self._clock.db_now()
        if deliveries:
            deliveries.sort(key=lambda row: row[0].int)  # as the database orders them, but compared in C
            await conn.execute(SQL.insert_deliveries, *effects.to_columns(deliveries), now)
            await self._tell_ended(conn, deliveries, now)
        sends.sort(key=lambda job: job.id.int)
        await queue.insert_jobs(conn, sends, now)
        if runs:
            await conn.execute(SQL.insert_runs, *effects.to_columns(runs), now)
        await queue.finish_jobs(conn, ended)
        await queue.reschedule_jobs(conn, later, now)
        if withdrawn:
            await self._withdraw(conn, withdrawn, decided, counts, moves, now)
        await effects.apply_refunds(conn, idle)
        await self._meter.apply(conn, counts)

    async def _withdraw(
        self,
        conn: Connection,
        withdrawn: Sequence[tuple[int, UUID]],
        decided: Mapping[UUID, Decided],
        counts: Counts,
        moves: Moves,
        now: datetime | None,
    ) -> None:
        """Stop deliveries that the next of a chain takes the place of. Those in flight are left to end."""
        freed: set[UUID] = set()
        projects = {project for project, _ in withdrawn}
        for project in sorted(projects):
            freed |= await queue.remove_free_jobs(conn, project, [id_ for of, id_ in withdrawn if of == project])
        if not freed:
            return
        rows = await conn.fetch(SQL.apply_withdrawn, sorted(projects), sorted(freed), *ids.family_bounds(freed), now)
        rng = self._clock.random
        events = []
        for row in rows:
            status, reason = Status(row["status"]), Reason(row["reason"])
            entry = decided[row["notification_id"]]
            events.append(
                Event(
                    ids.child_id(row["id"], rng), row["project_id"], row["notification_id"], row["id"],
                    EventKind(int(status)), None, None, reason, None, None,
                )
            )  # fmt: skip
            planned = Planned(
                Channel(row["channel"]),
                "",
                template_version_id=row["template_version_id"],
                locale=row["locale"],
            )
            counts[_dimension(entry.subject.facts, planned, entry.category), EventKind(int(status))] += 1
            moves[Move(row["channel"], status, None, reason)] += 1
        await effects.apply_events(conn, events, now)

    async def _tell_ended(self, conn: Connection, deliveries: Sequence[tuple[Any, ...]], now: datetime | None) -> None:
        """Tell the hooks what nobody will send. It has no event row: the life of a delivery shows it from its own."""
        rng = self._clock.random
        ended = [
            Event(ids.child_id(row[0], rng), row[1], row[2], row[0], EventKind(row[4]), None, None, row[8], None, None)
            for row in deliveries
            if row[4] != Status.queued and await self._catalog.load_hooks(row[1])
        ]
        if ended:
            await enqueue_hooks(conn, ended, now)

    async def _put_aside(self, shares: Sequence[Share], error: Exception) -> None:
        """Give up on one notification for now: later again, and after some times for good."""
        moves: Moves = Counter()

        async def work(conn: Connection) -> None:
            moves.clear()
            jobs = await queue.lock_jobs(conn, shares, now=self._clock.db_now())
            for job in jobs:
                log.error("plan.broke", notification=ids.to_public(ids.NOTIFICATION, job.id), error=to_loggable(error))
                most = GIVE_UP_UNREADABLE_AFTER if isinstance(error, UnreadableType) else GIVE_UP_AFTER
                if job.attempt + 1 < most or job.kind in (DIGEST, EXPAND):  # these stand for many
                    after = timedelta(seconds=30 * 4 ** min(job.attempt, GIVE_UP_AFTER))
                    await queue.retry_jobs(conn, [Retry(job, after, None, job.attempt + 1)], self._clock.db_now())
                    continue
                id_ = ids.child_id(job.id, self._clock.random)
                channel = next((c for c in Channel if (job.lane - queue.FEEDER) >> c & 1), Channel.email)
                row = (
                    id_, job.project_id, job.id, int(channel), int(Status.failed), None, "", None, Reason.unsupported,
                    None, None,
                )  # fmt: skip
                await conn.execute(SQL.insert_deliveries, *([value] for value in row), self._clock.db_now())
                run = (job.id, job.project_id, 0, int(RunState.stopped), 0, 0, None, Reason.unsupported, None, None)
                await conn.execute(SQL.insert_runs, *([value] for value in run), self._clock.db_now())
                await queue.finish_jobs(conn, [job])
                counts: Counts = Counter({(Dimension(job.project_id, channel=int(channel)), EventKind.failed): 1})
                await self._meter.apply(conn, counts)
                await self._tell_ended(conn, [row], self._clock.db_now())
                moves[Move(channel, Status.failed, None, Reason.unsupported)] += 1

        await self._database.transaction(work)
        if moves:
            self._observe_moved(moves)


def _unite(gatherings: Sequence[ToDigest]) -> list[tuple[int, Reason, datetime]]:
    """Channels that wait for the same become one digest."""
    united: dict[tuple[Reason, datetime], int] = {}
    for channels, reason, close_at in gatherings:
        united[reason, close_at] = united.get((reason, close_at), 0) | channels
    return [(channels, reason, close_at) for (reason, close_at), channels in united.items()]


def _to_join(
    facts: Facts,
    rules: Rules,
    channels: int,
    reason: str,
    close_at: datetime | None,
    key: str = "",
    *,
    lane: int = 0,
    first_now: bool = False,
) -> Join:
    assert rules.type_ is not None  # content without a type is not gathered
    assert facts.type_version_id is not None
    return Join(
        project_id=facts.project_id,
        target=facts.target,
        key=to_window_key(rules.type_.key, key, channels, reason, test=facts.test),
        notification_id=facts.id,
        type_version_id=facts.type_version_id,
        rule=rules.type_.digest,
        close_at=close_at,
        time_zone=facts.time_zone or rules.settings.time_zone,
        reason=reason,
        priority=facts.priority,
        channels=lane or channels,
        first_now=first_now,
    )


def _halve(shares: Sequence[Share]) -> tuple[Sequence[Share], Sequence[Share]]:
    if len(shares) > 1:
        return shares[: len(shares) // 2], shares[len(shares) // 2 :]
    [share] = shares
    return [share._replace(n=share.n // 2)], [share._replace(n=share.n - share.n // 2)]


def _dimension(facts: Facts, planned: Planned, category: str) -> Dimension:
    return Dimension(
        facts.project_id,
        facts.type_version_id or 0,
        category,
        int(planned.channel),
        0,
        planned.template_version_id or 0,
        "",
        planned.locale or "",
        facts.segments or 0,
    )
