"""Plan: a notification becomes deliveries, or reasons why not.

Planning is done just before sending, so that it sees the preferences, addresses and templates of that moment. The
decision is pure: it is given everything it needs. Locked reads, decision and writes are one transaction; no lease is
needed, since a crash rolls it back.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
import structlog

from tidings import ids
from tidings.clock import Clock
from tidings.db.pool import Connection, Database, to_loggable
from tidings.db.sql import load_queries
from tidings.directory.catalog import Account, Catalog, TemplateVersion, TypeVersion
from tidings.engine import jobs as queue
from tidings.engine.batch import is_about_an_item
from tidings.engine.checkpoint import Checkpoint, no_checkpoint
from tidings.engine.jobs import Job, NewJob, Retry
from tidings.engine.shares import Share
from tidings.errors import DatabaseError
from tidings.flow.evidence import Event
from tidings.flow.hooks import enqueue_hooks
from tidings.flow.jobs import ALL_CHANNELS, send_job
from tidings.flow.load import is_suppressed
from tidings.flow.measure import Counts, Dimension, Meter, Move, Moves, ObserveMoved
from tidings.model.words import CHANNELS_OF_THIS_VERSION, Channel, EventKind, Reason, Status
from tidings.providers.simulator import simulated_outcome

SQL: Final = load_queries(__package__, "plan.sql")

log = structlog.get_logger(__name__)

ONE_ADDRESS: Final = frozenset({Channel.email, Channel.sms})
"""Channels on which a person is told once, at the first address, however many they have. On the others every address
is a device or an endpoint of its own."""

GIVE_UP_AFTER: Final = 5
"""Times that planning one notification may break before it is put aside as failed."""


class Facts(NamedTuple):
    """What is known of a notification when it is planned; the order of the fields is that of load_plans' columns."""

    id: UUID
    project_id: int
    type_version_id: int | None
    user_id: str | None
    to_channel: int | None
    to_address: str | None
    priority: int
    channels: int | None
    test: bool
    locale: str | None
    cancelled: bool
    expired: bool | None
    user_exists: bool
    user_locale: str | None
    address_channels: Sequence[int] | None
    addresses: Sequence[str] | None
    suppressed: Sequence[str | None] | None
    to_suppressed: str | None


@dataclass(frozen=True, slots=True)
class Planned:
    """One delivery to make: queued for an account, or ended at once for a reason."""

    channel: Channel
    address: str
    status: Status = Status.queued
    reason: Reason | None = None
    template_version_id: int | None = None
    locale: str | None = None
    account_id: int | None = None
    """Pinned: the simulator's account, or one that serves addresses of this kind. None lets the claim choose."""


def decide_plan(
    facts: Facts,
    type_: TypeVersion | None,
    template: TemplateVersion | None,
    accounts: Mapping[Channel, Sequence[Account]],
    rng: random.Random,
) -> list[Planned]:
    """The deliveries of a notification. Pure, but for the draws from `rng`.

    Args:
        facts: the request, the user and the addresses.
        type_: the pinned type version; None for content without a type.
        template: the template version published now; None when there is none (any more), or no type.
        accounts: the project's usable accounts.
        rng: chooses among the accounts that serve an address, where not all of the channel's do.
    """
    if facts.cancelled:
        return []
    allowed = ALL_CHANNELS if facts.channels is None else facts.channels
    if facts.to_channel is not None:
        channels = [Channel(facts.to_channel)]
    elif type_ is not None and type_.steps:
        channels = list(dict.fromkeys(c for step in type_.steps for c in step))
    elif template is not None:
        channels = sorted(template.channels)
    else:
        channels = [c for c in CHANNELS_OF_THIS_VERSION if facts.channels is None or allowed >> c & 1]
    planned: list[Planned] = []
    for channel in channels:
        if not allowed >> channel & 1:
            continue
        targets = _targets(facts, channel, type_.category if type_ is not None else "")
        if facts.user_id is not None and not facts.user_exists:
            planned.append(Planned(channel, "", Status.skipped, Reason.user_deleted))
            continue
        if not targets:
            planned.append(Planned(channel, "", Status.skipped, Reason.no_address))
            continue
        for address, suppressed in targets:
            usable = accounts.get(channel, ())
            planned.append(_plan_one(facts, channel, address, suppressed, type_, template, usable, rng))
    if not planned:  # the template lost the channels that this request allows, after it was accepted
        channel = next((c for c in Channel if allowed >> c & 1), Channel.email)
        planned.append(Planned(channel, "", Status.skipped, Reason.no_template))
    return planned


def _plan_one(
    facts: Facts,
    channel: Channel,
    address: str,
    suppressed: bool,
    type_: TypeVersion | None,
    template: TemplateVersion | None,
    accounts: Sequence[Account],
    rng: random.Random,
) -> Planned:
    def ended(status: Status, reason: Reason) -> Planned:
        return Planned(channel, address, status, reason)

    if facts.expired:
        return ended(Status.expired, Reason.expired)
    if suppressed:
        return ended(Status.skipped, Reason.suppressed)
    locale = None
    if type_ is not None:
        if template is None or channel not in template.channels:
            return ended(Status.skipped, Reason.no_template)
        locale = template.resolve_locale(channel, facts.locale or facts.user_locale)
    pinned: int | None = None
    if facts.test or simulated_outcome(channel, address) is not None:
        simulators = [a for a in accounts if a.test]
        if not simulators:
            return ended(Status.skipped, Reason.no_account)
        pinned = simulators[0].id
    else:
        live = [a for a in accounts if not a.test and a.weight > 0]
        serving = [a for a in live if a.serves(address)]
        if not serving:
            return ended(Status.skipped, Reason.no_account)
        if len(serving) < len(live):
            pinned = rng.choices(serving, [a.weight for a in serving])[0].id
    return Planned(
        channel, address, template_version_id=template.id if template else None, locale=locale, account_id=pinned
    )


def _targets(facts: Facts, channel: Channel, category: str) -> list[tuple[str, bool]]:
    """The addresses to tell on this channel, each with whether it is suppressed for this category."""
    if facts.to_channel is not None:
        return (
            [(facts.to_address or "", is_suppressed(facts.to_suppressed, category))]
            if channel == facts.to_channel
            else []
        )
    if channel is Channel.in_app:
        return [(facts.user_id, False)] if facts.user_id is not None else []
    if not facts.address_channels or facts.addresses is None or facts.suppressed is None:
        return []
    found = [
        (address, is_suppressed(streams, category))
        for of, address, streams in zip(facts.address_channels, facts.addresses, facts.suppressed, strict=True)
        if of == channel
    ]
    if channel in ONE_ADDRESS and len(found) > 1:
        good = [target for target in found if not target[1]]
        return good[:1] or found[:1]
    return found


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
            jobs = await queue.lock_jobs(conn, shares, now=self._clock.db_now())
            if not jobs:
                return 0
            jobs.sort(key=lambda job: job.id)
            plans = await self._decide(conn, jobs, counts)
            await self._apply(conn, jobs, plans, counts, lanes)
            moves.update(
                Move(p.channel, p.status, None, p.reason)
                for _, planned, _ in plans.values()
                for p in planned
                if p.status is not Status.queued
            )
            await self._checkpoint("plan.commit")
            return len(jobs)

        done = await self._database.transaction(work)
        if moves:
            self._observe_moved(moves)
        await self._checkpoint("plan.after")
        return done, lanes

    async def _decide(
        self, conn: Connection, jobs: Sequence[Job], counts: Counts
    ) -> dict[UUID, tuple[Facts, list[Planned], str]]:
        low, high = ids.family_bounds(job.id for job in jobs)
        rows = await conn.fetch(
            SQL.load_plans, [j.id for j in jobs], [j.project_id for j in jobs], low, high, self._clock.db_now()
        )
        facts = [Facts(*row) for row in rows]
        versions = await self._catalog.load_type_versions(
            {(f.project_id, f.type_version_id) for f in facts if f.type_version_id is not None}
        )
        plans: dict[UUID, tuple[Facts, list[Planned], str]] = {}
        for f in facts:
            type_ = versions.get(f.type_version_id) if f.type_version_id is not None else None
            if type_ is None and f.type_version_id is not None:  # it would pass for content without a type
                raise LookupError(f"the type version {f.type_version_id} cannot be used by this process")
            template = None
            if type_ is not None:
                template = self._catalog.peek_template(f.project_id, type_.template_key)
                if template is None:
                    template = await self._catalog.load_template(f.project_id, type_.template_key)
            accounts = await self._catalog.load_accounts(f.project_id)
            planned = decide_plan(f, type_, template, accounts, self._clock.random)
            category = type_.category if type_ is not None else ""
            plans[f.id] = f, planned, category
            for p in planned:
                kind = EventKind(int(p.status)) if p.reason is not None else EventKind.queued
                counts[_dimension(f, p, category), kind] += 1
        await self._meter.intern(dimension for dimension, _ in counts)
        return plans

    async def _apply(
        self,
        conn: Connection,
        jobs: Sequence[Job],
        plans: Mapping[UUID, tuple[Facts, list[Planned], str]],
        counts: Counts,
        lanes: set[int],
    ) -> None:
        rng = self._clock.random
        deliveries: list[tuple[Any, ...]] = []
        sends: list[NewJob] = []
        for job in jobs:
            if job.id not in plans:  # retention dropped the notification; the job has nothing left to plan
                continue
            _, planned, _ = plans[job.id]
            for p in planned:
                id_ = ids.child_id(job.id, rng)
                deliveries.append(
                    (
                        id_, job.project_id, job.id, int(p.channel), int(p.status), p.template_version_id, p.address,
                        p.locale, p.reason,
                    )
                )  # fmt: skip
                if p.status is Status.queued:
                    sends.append(send_job(id_, job.project_id, job.priority, p.channel, p.account_id, job.traceparent))
                    lanes.add(int(p.channel))
        now = self._clock.db_now()
        if deliveries:
            deliveries.sort(key=lambda row: row[0].int)  # as the database orders them, but compared in C
            await conn.execute(SQL.insert_deliveries, *(list(c) for c in zip(*deliveries, strict=True)), now)
            await self._tell_ended(conn, deliveries, now)
        sends.sort(key=lambda job: job.id.int)
        await queue.insert_jobs(conn, sends, now)
        known = [job for job in jobs if job.id in plans]
        await conn.execute(SQL.insert_runs, [j.id for j in known], [j.project_id for j in known], [1] * len(known), now)
        await queue.finish_jobs(conn, jobs)
        await self._meter.apply(conn, counts)

    async def _tell_ended(self, conn: Connection, deliveries: Sequence[tuple[Any, ...]], now: datetime | None) -> None:
        """Tell the hooks what nobody will send. It has no event row: the life of a delivery shows it from its own."""
        rng = self._clock.random
        ended = [
            Event(ids.child_id(id_, rng), project, notification, id_, EventKind(status), None, None, reason, None, None)
            for id_, project, notification, _, status, *_, reason in deliveries
            if status != Status.queued and await self._catalog.load_hooks(project)
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
                if job.attempt + 1 < GIVE_UP_AFTER:
                    after = timedelta(seconds=30 * 4**job.attempt)
                    await queue.retry_jobs(conn, [Retry(job, after, None, job.attempt + 1)], self._clock.db_now())
                    continue
                id_ = ids.child_id(job.id, self._clock.random)
                channel = next((c for c in Channel if (job.lane - queue.FEEDER) >> c & 1), Channel.email)
                row = (
                    id_, job.project_id, job.id, int(channel), int(Status.failed), None, "", None, Reason.unsupported,
                )  # fmt: skip
                await conn.execute(SQL.insert_deliveries, *([value] for value in row), self._clock.db_now())
                await conn.execute(SQL.insert_runs, [job.id], [job.project_id], [1], self._clock.db_now())
                await queue.finish_jobs(conn, [job])
                counts: Counts = Counter({(Dimension(job.project_id, channel=int(channel)), EventKind.failed): 1})
                await self._meter.apply(conn, counts)
                moves[Move(channel, Status.failed, None, Reason.unsupported)] += 1

        await self._database.transaction(work)
        if moves:
            self._observe_moved(moves)


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
    )
