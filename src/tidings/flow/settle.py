"""Settle: what came of an attempt becomes state, event, the end of the job or its next due time, in one transaction.

The decision is pure. Writing it is guarded twice: the job's epoch says whether this worker still owns the delivery, the
delivery's status says whether something else (a receipt) has moved it meanwhile. An answer that comes too late moves
nothing, but is kept as an event, and as proof where nobody knew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from tidings import ids
from tidings.clock import Clock
from tidings.db.pool import Connection, Database
from tidings.db.sql import load_queries
from tidings.directory.catalog import Account, Catalog
from tidings.engine import jobs as queue
from tidings.engine.checkpoint import Checkpoint, no_checkpoint
from tidings.engine.jobs import Job
from tidings.flow import effects, inbox
from tidings.flow.endpoints import Endpoints, Sighting
from tidings.flow.evidence import Event
from tidings.flow.hooks import apply_expired_messages
from tidings.flow.jobs import HOOK, STEP
from tidings.flow.load import Delivery, load_deliveries
from tidings.flow.measure import Counts, Dimension, Meter, Move, Moves, ObserveMoved
from tidings.flow.receipts import link_sent, record_early
from tidings.flow.settlement import POLICIES, Ended, Policy, Settlement, decide_settlement
from tidings.model.messages import Message, SendResult, Uncertain
from tidings.model.transitions import decide_transition
from tidings.model.words import Channel, EventKind, Reason, Status
from tidings.providers.simulator import simulated_outcome

SQL: Final = load_queries(__package__, "settle.sql")


class Written(NamedTuple):
    """What a batch of settlements came to."""

    settlements: list[Settlement]
    """Those that took effect."""
    moves: Moves
    lanes: Collection[int]
    """Where steps go on at once."""


class Settler:
    """The last stage on the road, in a worker process."""

    def __init__(
        self,
        database: Database,
        catalog: Catalog,
        meter: Meter,
        clock: Clock,
        *,
        policies: Mapping[Channel, Policy] = POLICIES,
        checkpoint: Checkpoint = no_checkpoint,
        observe_moved: ObserveMoved | None = None,
        observe_attempt: Callable[[Account, SendResult, float], None] | None = None,
        bell: inbox.Bell | None = None,
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._meter = meter
        self._clock = clock
        self._policies = policies
        self._checkpoint = checkpoint
        self._observe_moved = observe_moved
        self._bell = bell
        self._endpoints = Endpoints(clock)
        self.observe_attempt: Callable[[Account, SendResult, float], None] = observe_attempt or (lambda *_: None)

    def decide(
        self,
        job: Job,
        delivery: Delivery | None,
        what: SendResult | Ended,
        *,
        account: Account | None,
        siblings: Sequence[int] = (),
        category: str = "",
        confirms: bool = False,
        link: bool = False,
        bound: bool = False,
        message: Message | None = None,
    ) -> Settlement:
        """`decide_settlement` with this settler's policies, clock and dice."""
        channel = delivery.channel if delivery is not None else Channel.email
        return decide_settlement(
            job,
            delivery,
            what,
            account=account,
            siblings=siblings,
            category=category,
            confirms=confirms,
            link=link,
            bound=bound,
            message=message,
            policy=self._policies[channel],
            rng=self._clock.random,
            now=self._clock.now(),
        )

    async def apply(self, batch: Sequence[Settlement]) -> Collection[int]:
        """Write a batch in one transaction; answers with the lanes that have work due at once."""
        batch = sorted(batch, key=lambda s: s.job.id)
        await self._meter.intern(_dimension(s) for s in batch if s.event is not None)

        async def work(conn: Connection) -> Written:
            try:
                written = await self.write(conn, batch)
                await self._checkpoint("settle.commit")
                return written
            except BaseException:
                self._endpoints.forget()  # also when this is only tried again: what it noted was not stored
                raise

        try:
            written = await self._database.transaction(work)
        except BaseException:
            self._endpoints.forget()
            raise
        return self._tell(written)

    def _tell(self, written: Written) -> Collection[int]:
        """Tell who waits for it what was committed; answers with the lanes that have work due at once."""
        settlements, moves, lanes = written
        if self._observe_moved is not None and moves:
            self._observe_moved(moves)
        if self._bell is not None:
            new = {
                (s.delivery.project_id, s.delivery.address) for s in settlements if s.item is not None and s.delivery
            }
            self._bell.ring(new)
        return {s.job.lane for s in settlements if s.retry is not None and not s.retry.after} | set(lanes)

    async def write(self, conn: Connection, batch: Sequence[Settlement]) -> Written:
        """Write settlements, sorted by job id, in the caller's transaction."""
        now = self._clock.db_now()
        batch = await self._respect_cancels(conn, batch)
        ours = await queue.finish_jobs(conn, [s.job for s in batch if s.retry is None])
        ours |= await queue.retry_jobs(conn, [s.retry for s in batch if s.retry is not None], now)
        valid = [s for s in batch if (s.job.id, s.job.epoch) in ours]
        late = [
            s for s in batch if (s.job.id, s.job.epoch) not in ours and s.delivery is not None and s.event is not None
        ]
        # Before the deliveries are locked: receipts look up the vendor's ids first as well.
        met = await link_sent(
            conn,
            self._clock,
            [
                (s.account_id, s.job.project_id, s.provider_id, s.job.id)
                for s in (*valid, *late)
                if s.link and s.account_id is not None and s.provider_id is not None
            ],
        )
        moved = await self._move(conn, valid, now)
        events = [(s, s.event) for s in valid if s.event is not None]
        counted = [s for s in valid if s.job.id in moved]
        if late:
            events += [(s, EventKind.late) for s in late]
            counted += await self._lift(conn, late, now)
        await self._insert_events(conn, events, now)
        await self._insert_effects(conn, [s for s in valid if s.job.id in moved], now)
        await self._meter.apply(conn, _count(counted))
        if sightings := _list_sightings(valid):
            await self._endpoints.apply(conn, sightings, now)
        early = await record_early(conn, self._meter, self._clock, met)
        ended = [s for s in valid if s.job.id in moved and s.status is not Status.queued]
        # In this order, as planning locks them: the job first, then the counters.
        lanes = await queue.advance_jobs(conn, STEP, self._list_reacting(ended), now)
        await effects.apply_refunds(conn, _list_refunds(ended))
        return Written(valid, _list_moves(counted) + early, lanes)

    async def apply_expired(self, conn: Connection, jobs: Sequence[Job]) -> Callable[[], Collection[int]]:
        """The sweeper's handler: leases ran out, so it is not known whether these were sent; that is written down."""
        if messages := [job for job in jobs if job.kind == HOOK]:
            await apply_expired_messages(conn, messages, self._clock.db_now())
        jobs = sorted((job for job in jobs if job.kind != HOOK), key=lambda job: job.id)
        if not jobs:
            return lambda: ()
        deliveries = await load_deliveries(conn, [(j.id, j.project_id) for j in jobs], self._clock.db_now())
        types = await self._catalog.load_type_versions(
            {(d.project_id, d.type_version_id) for d in deliveries if d is not None and d.type_version_id is not None}
        )
        batch = []
        for job, delivery in zip(jobs, deliveries, strict=True):
            account = None
            if delivery is not None and job.account_id is not None:
                accounts = (await self._catalog.load_accounts(job.project_id)).get(delivery.channel, ())
                account = next((a for a in accounts if a.id == job.account_id), None)
            category = (
                types[delivery.type_version_id].category if delivery and delivery.type_version_id in types else ""
            )
            what: SendResult | Ended = Uncertain("the lease ran out: the worker died or lost the database")
            if delivery is not None and delivery.status is not Status.queued:
                what = Ended(delivery.status, None)
            settlement = self.decide(job, delivery, what, account=account, category=category)
            if settlement.retry is not None and account is None and job.account_id is not None:
                settlement = replace(settlement, retry=settlement.retry._replace(account_id=None))
            batch.append(settlement)
        await self._meter.intern(_dimension(s) for s in batch if s.event is not None)
        written = await self.write(conn, batch)
        return lambda: self._tell(written)

    # ------------------------------------------------------------ writing

    def _list_reacting(self, batch: Sequence[Settlement]) -> list[UUID]:
        """The notifications whose steps go on now that something became of a delivery."""
        found = set()
        for s in batch:
            d = s.delivery
            if d is None or d.type_version_id is None:
                continue
            type_ = self._catalog.peek_type_version(d.project_id, d.type_version_id)
            if type_ is None or type_.reacts:
                found.add(d.notification_id)
        return sorted(found)

    async def _respect_cancels(self, conn: Connection, batch: Sequence[Settlement]) -> list[Settlement]:
        """What goes on must not go on when its notification was cancelled; looked up under that notification's lock."""
        on = [s for s in batch if s.retry is not None and s.delivery is not None]
        if not on:
            return list(batch)
        places = sorted({(s.delivery.notification_id, s.delivery.project_id) for s in on if s.delivery is not None})
        low, high = ids.family_bounds(id_ for id_, _ in places)
        rows = await conn.fetch(SQL.lock_cancelled, [i for i, _ in places], [p for _, p in places], low, high)
        cancelled = {row["id"] for row in rows if row["cancelled"]}
        return [
            _stop(s)
            if s.retry is not None and s.delivery is not None and s.delivery.notification_id in cancelled
            else s
            for s in batch
        ]

    async def _move(self, conn: Connection, batch: Sequence[Settlement], now: datetime | None) -> set[UUID]:
        """Move the deliveries; answers with those that moved."""
        batch = [s for s in batch if s.status is not None]
        moved = await self._update(conn, [(s, Status.queued) for s in batch], now)
        missed = [s for s in batch if s.job.id not in moved]
        if missed:  # a receipt was faster, or an operator
            moved |= await self._update(conn, await self._still_allowed(conn, missed), now)
        return moved

    async def _lift(self, conn: Connection, late: Sequence[Settlement], now: datetime | None) -> list[Settlement]:
        """A late answer moves no state, but lifts failed(uncertain) when it proves that the message went out."""
        proofs = [s for s in late if s.status in (Status.sent, Status.delivered)]
        allowed = [(s, at) for s, at in await self._still_allowed(conn, proofs) if at is Status.failed]
        moved = await self._update(conn, allowed, now)
        lifted = [s for s in proofs if s.job.id in moved]
        if lifted:
            await effects.lift_dead_letters(conn, [(s.job.project_id, s.job.id) for s in lifted])
        return lifted

    async def _still_allowed(self, conn: Connection, batch: Sequence[Settlement]) -> list[tuple[Settlement, Status]]:
        if not batch:
            return []
        low, high = ids.family_bounds(s.job.id for s in batch)
        rows = await conn.fetch(
            SQL.lock_deliveries, [s.job.id for s in batch], [s.job.project_id for s in batch], low, high
        )
        found = {row["id"]: (Status(row["status"]), Reason(row["reason"]) if row["reason"] else None) for row in rows}
        allowed = []
        for s in batch:
            if s.job.id in found and s.status is not None:
                status, reason = found[s.job.id]
                if decide_transition(status, reason, s.status) is s.status and s.status is not Status.queued:
                    allowed.append((s, status))
        return allowed

    async def _update(
        self, conn: Connection, batch: Sequence[tuple[Settlement, Status]], now: datetime | None
    ) -> set[UUID]:
        if not batch:
            return set()
        low, high = ids.family_bounds(s.job.id for s, _ in batch)
        rows = await conn.fetch(
            SQL.update_deliveries,
            [s.job.id for s, _ in batch],
            [s.job.project_id for s, _ in batch],
            [int(s.status) if s.status is not None else 0 for s, _ in batch],
            [s.reason for s, _ in batch],
            [s.attempts for s, _ in batch],
            [s.account_id for s, _ in batch],
            [s.provider_id for s, _ in batch],
            low,
            [int(expected) for _, expected in batch],
            now,
            high,
        )
        return {row[0] for row in rows}

    async def _insert_events(
        self, conn: Connection, events: Sequence[tuple[Settlement, EventKind]], now: datetime | None
    ) -> None:
        rng = self._clock.random
        rows = []
        for s, kind in events:
            assert s.delivery is not None
            rows.append(
                Event(
                    ids.child_id(s.job.id, rng), s.job.project_id, s.delivery.notification_id, s.job.id, kind,
                    s.attempts or None, s.account_id, s.reason, s.provider_id, s.evidence,
                )
            )  # fmt: skip
        await effects.apply_events(conn, rows, now)

    async def _insert_effects(self, conn: Connection, moved: Sequence[Settlement], now: datetime | None) -> None:
        known = [(s, s.delivery) for s in moved if s.delivery is not None]
        # Of the whole channel: no message at all reaches an address that does not exist.
        suppress = [
            effects.Suppression(d.project_id, d.channel, d.address, "", str(s.reason), d.id)
            for s, d in known
            if s.suppress
        ]
        await effects.apply_suppressions(conn, suppress, now)
        drop = [
            effects.DroppedAddress(d.project_id, d.user_id, d.channel, d.address)
            for s, d in known
            if s.drop_address and d.user_id is not None
        ]
        await effects.apply_drops(conn, drop, now)
        dead = [
            effects.DeadLetter(d.project_id, d.id, d.notification_id, d.channel, str(s.reason), s.attempts)
            for s, d in known
            if s.dead
        ]
        await effects.apply_dead_letters(conn, dead, now)
        items = [
            inbox.NewItem((d.project_id, d.address), d.id, d.notification_id, s.item, s.category or None)
            for s, d in known
            if s.item is not None
        ]
        await inbox.insert_items(conn, items, now)


def _stop(s: Settlement) -> Settlement:
    """What a cancel makes of a settlement that would go on."""
    if s.reason is Reason.uncertain:  # it may have gone out: that stays said
        return replace(s, status=Status.failed, retry=None)
    return replace(s, status=Status.cancelled, reason=Reason.cancelled, event=EventKind.cancelled, retry=None)


def _list_refunds(batch: Sequence[Settlement]) -> list[tuple[int, str, UUID]]:
    """The notifications of which perhaps nothing left the house."""
    unsent = (Status.skipped, Status.cancelled, Status.expired)
    return [
        (d.project_id, effects.to_target(d.user_id, d.channel, d.address), d.notification_id)
        for s in batch
        if (d := s.delivery) is not None
        and (s.status in unsent or (s.status is Status.failed and s.reason is not Reason.uncertain))
    ]


def _list_sightings(batch: Sequence[Settlement]) -> list[Sighting]:
    """What these attempts say of webhooks' endpoints."""
    return [
        Sighting(s.job.project_id, d.address, d.user_id, s.reason)
        for s in batch
        if (d := s.delivery) is not None
        and d.channel is Channel.webhook
        and (s.reason is not None or s.status in (Status.sent, Status.delivered))
        and not d.test
        and simulated_outcome(d.channel, d.address) is None
    ]


def _dimension(s: Settlement) -> Dimension:
    assert s.delivery is not None
    d = s.delivery
    return Dimension(
        d.project_id,
        d.type_version_id or 0,
        s.category,
        int(d.channel),
        s.account_id or 0,
        d.template_version_id or 0,
        d.variant or "",
        d.locale or "",
        d.segments or 0,
    )


def _list_moves(batch: Sequence[Settlement]) -> Moves:
    return Counter(
        Move(s.delivery.channel, s.status, s.provider, s.reason)
        for s in batch
        if s.status is not None and s.status is not Status.queued and s.delivery is not None
    )


def _count(batch: Sequence[Settlement]) -> Counts:
    counts: Counts = Counter()
    for s in batch:
        if s.event is None:
            continue
        dimension = _dimension(s)
        counts[dimension, s.event] += 1
        if s.event is EventKind.delivered:  # straight from the attempt: it was sent as well
            counts[dimension, EventKind.sent] += 1
    return counts
