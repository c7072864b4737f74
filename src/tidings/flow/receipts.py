"""Receipts: what vendors, devices and recipients report afterwards, recorded by the same table as settling.

A *callback* brings `Receipts`; each holds *reports*; a report with who brought it is a `Fact`; what is stored is an
*event*. They come from the API (`callbacks.py`, tracking links, devices), from a worker whose vendor has a connection
of its own, and from settling (`link_sent`, `record_early`).

A report finds its delivery by our own id, which most vendors echo, or by the vendor's: then it and the settling of the
send meet at one row of `provider_ref`, whichever comes first. It may be a repetition, out of order or about somebody
else's message. Its event's id is made of what it says, so a repetition has no room; the transition table decides what
it moves; engagement counts on the first set bit only.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
import structlog

from tidings import ids
from tidings.clock import Clock
from tidings.db.pool import Connection, Database, Record
from tidings.db.sql import load_queries
from tidings.directory import consent
from tidings.engine.batch import Batcher
from tidings.engine.jobs import advance_jobs
from tidings.flow import effects
from tidings.flow.engagement import Engaged, apply_engagement, decide_engaged, to_time
from tidings.flow.evidence import DETAIL_MAX, Event, to_json, to_storable
from tidings.flow.jobs import STEP
from tidings.flow.load import NO_CATEGORY
from tidings.flow.measure import Counts, Dimension, Meter, Move, Moves, ObserveMoved
from tidings.model.transitions import decide_transition
from tidings.model.words import EFFECTS, Channel, Effect, Engagement, EventKind, Reason, Status
from tidings.providers.port import Report

SQL: Final = load_queries(__package__, "receipts.sql")

log = structlog.get_logger(__name__)

GROUP_LIMIT: Final = 500
"""Reports in one transaction, about."""
EARLY_KEPT: Final = timedelta(days=3)
"""How long a report waits for the send that it is about."""
FORGET_BATCH: Final = 5_000

_LOW62: Final = (1 << 62) - 1

STATUS_OF: Final[Mapping[EventKind, Status]] = {
    EventKind.sent: Status.sent,
    EventKind.delivered: Status.delivered,
    EventKind.failed: Status.failed,
}
"""Reports that may move the status. The others are engagement, or words (`retrying`: the receiver asks to wait)."""

ENGAGEMENT_OF: Final[Mapping[EventKind, Engagement]] = {
    EventKind.opened: Engagement.opened,
    EventKind.clicked: Engagement.clicked,
    EventKind.seen: Engagement.seen,
    EventKind.read: Engagement.read,
    EventKind.archived: Engagement.archived,
    EventKind.unsubscribed: Engagement.unsubscribed,
    EventKind.complained: Engagement.complained,
}
_MACHINE: Final = {EventKind.opened: EventKind.machine_opened, EventKind.clicked: EventKind.machine_clicked}
_RECORDED: Final = frozenset({*STATUS_OF, *ENGAGEMENT_OF, EventKind.retrying})


class State(NamedTuple):
    """What a delivery is when a report about it comes."""

    status: Status
    reason: Reason | None
    engagement: int
    machine_engagement: int


class Decision(NamedTuple):
    """What a report makes of a delivery."""

    status: Status | None = None
    """None: it stays."""
    reason: Reason | None = None
    engagement: int = 0
    machine_engagement: int = 0
    """Bits that were not set before."""
    event: EventKind | None = None
    """What is recorded; None: nothing."""
    counts: tuple[EventKind, ...] = ()
    """What the roll-ups count."""
    suppress: str | None = None
    """The stream that is not to reach the address again; '' is the whole channel."""
    suppress_reason: Reason | None = None
    drop_address: bool = False
    dead: bool = False
    lifted: bool = False
    """It had been given up without knowing."""


def decide_receipt(state: State, report: Report, *, category: str) -> Decision:
    """What follows from a report. Pure.

    | report                      | status                              | besides                              |
    |-----------------------------|-------------------------------------|--------------------------------------|
    | sent, delivered, failed     | as `TRANSITIONS` allows             | a failure does what its reason says  |
    | failed, while queued again  | only if no further attempt can help | the same                             |
    | opened, clicked by a person | proves failed(uncertain) delivered  | first time: engagement, counted      |
    | opened, clicked by a machine | stays                              | first time: counted apart            |
    | complained, unsubscribed    | stays                               | its category does not come again     |
    | retrying                    | stays                               |                                      |
    """
    kind = report.kind
    if kind not in _RECORDED:
        return Decision()
    if (to := STATUS_OF.get(kind)) is not None:
        return _decide_status(state, report, to)
    if kind is EventKind.retrying:
        return Decision(event=kind)
    bit = int(ENGAGEMENT_OF[kind])
    if report.machine and kind in _MACHINE:
        kind = _MACHINE[kind]
        if state.machine_engagement & bit:
            return Decision(event=kind)
        return Decision(machine_engagement=bit, event=kind, counts=(kind,))
    lifted = state.status is Status.failed and state.reason is Reason.uncertain
    new = 0 if state.engagement & bit else bit
    suppress: str | None = None
    why: Reason | None = None
    if kind in (EventKind.complained, EventKind.unsubscribed):
        suppress = category or NO_CATEGORY
        why = Reason.complained if kind is EventKind.complained else Reason.opted_out
    counts = (*((EventKind.sent, EventKind.delivered) if lifted else ()), *((kind,) if new else ()))
    return Decision(
        status=Status.delivered if lifted else None,
        engagement=new,
        event=kind,
        counts=counts,
        suppress=suppress,
        suppress_reason=why,
        lifted=lifted,
    )


def _decide_status(state: State, report: Report, to: Status) -> Decision:
    reason = (report.reason or Reason.rejected) if to is Status.failed else None
    effect = EFFECTS[reason] if reason is not None else Effect.none
    moved = decide_transition(state.status, state.reason, to)
    if moved is Status.failed and state.status is Status.queued and effect in (Effect.retry, Effect.failover):
        moved = None  # an earlier attempt failed; the next one is on its way and may not
    suppress = "" if effect is Effect.suppress else None
    if moved is None:
        # It says no less when it comes late: the address is dead all the same.
        return Decision(
            event=report.kind, suppress=suppress, suppress_reason=reason, drop_address=effect is Effect.drop_address
        )
    counts: tuple[EventKind, ...] = (report.kind,)
    if moved is Status.delivered and state.status is not Status.sent:  # nobody had counted yet that it was sent
        counts = (EventKind.sent, report.kind)
    return Decision(
        status=moved,
        reason=reason,
        event=report.kind,
        counts=counts,
        suppress=suppress,
        suppress_reason=reason,
        drop_address=effect is Effect.drop_address,
        dead=moved is Status.failed and effect not in (Effect.suppress, Effect.drop_address),
        lifted=state.status is Status.failed,
    )


@dataclass(frozen=True, slots=True)
class Fact:
    """A report, and who brought it."""

    project_id: int
    account_id: int | None
    """None: we saw it ourselves, by a link or a device's signed report."""
    report: Report
    delivery: UUID | None = None
    """Where it is known already; else the report's key or the vendor's id tells."""
    done: bool = False
    """What it asks for has been done by whoever brought it: no address is suppressed for it."""

    @property
    def is_unique(self) -> bool:
        """Whether its mark names one fact: the vendor's id of the event or the message is in it. What was recorded once
        then moves nothing again, such as a failure that is told once more after the delivery was replayed."""
        return self.report.event_id is not None or self.report.provider_id is not None

    @property
    def target(self) -> UUID | None:
        """The delivery, as far as the report itself tells it."""
        if self.delivery is not None:
            return self.delivery
        return ids.parse_public(ids.DELIVERY, self.report.key) if self.report.key else None


def to_mark(fact: Fact) -> bytes:
    """What makes two reports the same one: 16 octets. A vendor's event id decides where there is one, for each of the
    recipients that it may tell of at once."""
    r = fact.report
    said: tuple[Any, ...] = (r.event_id, r.kind, r.address) if r.event_id else (
        r.kind, r.provider_id, r.key, r.address, r.reason, r.at, r.machine, r.url
    )  # fmt: skip
    return hashlib.sha256(msgspec.json.encode((fact.account_id, *said))).digest()[:16]


def to_event_id(delivery: UUID, mark: bytes) -> UUID:
    """The event's id: in the delivery's family, and the same for the same report."""
    print_ = hashlib.sha256(delivery.bytes + mark).digest()
    return UUID(int=(delivery.int & ~((1 << 64) - 1)) | 0b10 << 62 | (int.from_bytes(print_[:8], "big") & _LOW62))


class Receiver:
    """Records reports, many in one transaction.

    Args:
        observe_delivered: told of each report of a delivery: the account, and the seconds since it was sent.
        observe_moved: told what the reports moved.
    """

    def __init__(
        self,
        database: Database,
        meter: Meter,
        clock: Clock,
        *,
        observe_delivered: Callable[[int, float], None] | None = None,
        observe_moved: ObserveMoved | None = None,
    ) -> None:
        self._database = database
        self._meter = meter
        self._clock = clock
        self._observe_delivered = observe_delivered
        self._observe_moved = observe_moved
        self._batcher: Batcher[Sequence[Fact], int] = Batcher(self._flush, limit=GROUP_LIMIT, weigh=len, flushers=2)

    async def record(self, facts: Sequence[Fact]) -> int:
        """Record them, with whatever else is waiting; answers with how many events are new. Durable on return."""
        cut: dict[int, Mapping[str, Any]] = {}
        facts = [replace(fact, report=to_storable(fact.report, cut)) for fact in facts]
        return await self._batcher.add(facts) if facts else 0

    async def drain(self) -> None:
        """Wait until everything taken in is recorded."""
        await self._batcher.drain()

    async def _flush(self, batch: Sequence[Sequence[Fact]]) -> Sequence[int | BaseException]:
        facts = [fact for part in batch for fact in part]
        applied = await self._database.transaction(lambda conn: apply_facts(conn, self._meter, self._clock, facts))
        await self._meter.catch_up()
        if self._observe_delivered is not None:
            for account_id, seconds in applied.delivered:
                self._observe_delivered(account_id, seconds)
        if self._observe_moved is not None and applied.moves:
            self._observe_moved(applied.moves)
        told, at = [], 0
        for part in batch:
            told.append(sum(i in applied.new for i in range(at, at + len(part))))
            at += len(part)
        return told


class Applied(NamedTuple):
    """What reports have come to."""

    new: Collection[int]
    """The places of those whose events are new."""
    delivered: Sequence[tuple[int, float]]
    """The account of each message that was just reported delivered, and the seconds since it was sent."""
    moves: Moves


async def apply_facts(conn: Connection, meter: Meter, clock: Clock, facts: Sequence[Fact]) -> Applied:
    """Record reports in the caller's transaction."""
    now = clock.db_now()
    targets: list[UUID | None] = [fact.target for fact in facts]
    await _resolve(conn, facts, targets, now)
    # Locked in the order of ids, as everywhere; the facts of one delivery keep the order in which they came.
    known = sorted((target.int, i) for i, target in enumerate(targets) if target is not None)
    if not known:
        return Applied((), (), Counter())
    low, high = ids.family_bounds(target for target in targets if target is not None)
    events = [to_event_id(UUID(int=target), to_mark(facts[i])) for target, i in known]
    rows = await conn.fetch(
        SQL.lock_reported,
        [targets[i] for _, i in known],
        [facts[i].project_id for _, i in known],
        [facts[i].account_id for _, i in known],
        low,
        high,
        now,
        events,
    )
    writing = _Writing()
    for row in rows:
        fact = facts[place := known[row["ord"] - 1][1]]
        # Without an address its user was erased: nothing is written of them again.
        concerned = row["concerned"] and row["address"] and _is_about(row, fact.report)
        if concerned and not (row["recorded"] and fact.is_unique):
            writing.take(place, row, fact, events[row["ord"] - 1])
    return await writing.write(conn, meter, low, high, now)


class Met(NamedTuple):
    """A vendor's id that a receipt knew before the send was settled."""

    account_id: int
    provider_id: str
    project_id: int
    delivery_id: UUID


async def link_sent(conn: Connection, clock: Clock, sent: Sequence[tuple[int, int, str, UUID]]) -> list[Met]:
    """Tell which deliveries the vendor's ids of sends stand for; answers with those that a receipt has asked for.

    It locks these ids, so it comes before the deliveries are locked: that is the order in which receipts do it.

    Args:
        sent: account, project, the vendor's id, delivery.
    """
    if not sent:
        return []
    accounts, projects, provider_ids, deliveries = effects.to_columns(sent)
    rows = await conn.fetch(SQL.resolve_refs, accounts, provider_ids, projects, deliveries, clock.db_now())
    return [
        Met(row["account_id"], row["provider_id"], row["project_id"], row["delivery_id"]) for row in rows if row["met"]
    ]


async def record_early(conn: Connection, meter: Meter, clock: Clock, met: Sequence[Met]) -> Moves:
    """Record what was reported before these sends were settled; after they have been, in the same transaction. Answers
    with what it moved."""
    if not met:
        return Counter()
    early = await conn.fetch(SQL.take_early_receipts, *effects.to_columns(met)[:3])
    places = {(m.account_id, m.provider_id): m.delivery_id for m in met}
    facts = []
    for row in sorted(early, key=lambda row: row["created_at"]):
        try:
            report = msgspec.json.decode(row["report"], type=Report)
        except msgspec.MsgspecError as error:
            # Written by another version of Tidings. It must not keep the send from being settled, which would be sent
            # again.
            log.error("receipt.unreadable", account=row["account_id"], error=str(error))
            continue
        place = places[row["account_id"], row["provider_id"]]
        facts.append(Fact(row["project_id"], row["account_id"], report, place))
    return (await apply_facts(conn, meter, clock, facts)).moves


async def _resolve(conn: Connection, facts: Sequence[Fact], targets: list[UUID | None], now: datetime | None) -> None:
    """Fill in the targets that only the vendor's id can tell; what is still unknown waits for its send."""
    asked = {
        (fact.account_id, fact.report.provider_id): fact.project_id
        for fact, target in zip(facts, targets, strict=True)
        if target is None and fact.account_id is not None and fact.report.provider_id is not None
    }
    if not asked:
        return
    places = sorted(asked)
    rows = await conn.fetch(
        SQL.resolve_refs,
        [account for account, _ in places],
        [provider_id for _, provider_id in places],
        [asked[place] for place in places],
        [None] * len(places),
        now,
    )
    found = {(row["account_id"], row["provider_id"]): row["delivery_id"] for row in rows}
    early: list[tuple[Any, ...]] = []
    for i, fact in enumerate(facts):
        place = (fact.account_id, fact.report.provider_id)
        if targets[i] is not None or place not in found:
            continue
        targets[i] = found[place]
        if found[place] is None:
            mark = UUID(bytes=to_mark(fact))
            early.append((*place, fact.project_id, mark, to_json(fact.report)))
    if early:
        early.sort(key=lambda row: (row[0], row[1], row[3]))
        await conn.execute(SQL.insert_early_receipts, *effects.to_columns(early), now)


def _is_about(row: Record, report: Report) -> bool:
    """Whether the report is about the delivery's own recipient, and not about one who got a copy.

    Only who is known to have got one is told apart: mail is forwarded, and bounces then name another address.
    """
    if report.address is None or row["channel"] != Channel.email or row["options"] is None:
        return True
    address = report.address.casefold()
    return address == row["address"].casefold() or address not in row["options"].casefold()


class _Writing:
    """What a batch of reports makes of its deliveries, gathered and then written at once."""

    def __init__(self) -> None:
        self._states: dict[UUID, State] = {}
        self._rows: dict[UUID, Record] = {}
        self._touched: dict[UUID, tuple[int | None, str | None]] = {}
        self._bits: dict[UUID, tuple[int, int]] = {}
        self._events: dict[UUID, tuple[int, Event]] = {}
        self._suppressions: list[effects.Suppression] = []
        self._refusals: dict[tuple[int, str], list[consent.Decision]] = {}
        """What users decided by what was reported, by project and what they did."""
        self._drops: list[effects.DroppedAddress] = []
        self._dead: dict[UUID, effects.DeadLetter] = {}
        self._lifted: set[tuple[int, UUID]] = set()
        self._counts: Counts = Counter()
        self._engaged: list[Engaged] = []
        self._delivered: list[tuple[int, float]] = []
        self._moves: Moves = Counter()
        self._going_on: set[UUID] = set()
        """Notifications whose steps may wait for what was reported."""

    def take(self, place: int, row: Record, fact: Fact, event_id: UUID) -> None:
        """Decide one report on what the ones before it have left."""
        id_, report = row["id"], fact.report
        state = self._states.get(id_) or State(
            Status(row["status"]),
            Reason(row["reason"]) if row["reason"] else None,
            row["engagement"],
            row["machine_engagement"],
        )
        category = row["category"]
        decision = decide_receipt(state, report, category=category)
        if decision.event is None:
            return
        self._rows[id_] = row
        self._states[id_] = State(
            decision.status if decision.status is not None else state.status,
            decision.reason if decision.status is not None else state.reason,
            state.engagement | decision.engagement,
            state.machine_engagement | decision.machine_engagement,
        )
        if decision.status is not None or decision.engagement or decision.machine_engagement:
            self._touched[id_] = (fact.account_id, report.provider_id)
            human, machine = self._bits.get(id_, (0, 0))
            self._bits[id_] = (human | decision.engagement, machine | decision.machine_engagement)
        self._event(place, row, fact, event_id, decision)
        dimension = _dimension(row, fact.account_id)
        for kind in decision.counts:
            self._counts[dimension, kind] += 1
        self._follow(row, fact, decision)
        engaged = decide_engaged(state.engagement, decision.engagement)
        if engaged is not None and row["user_id"] is not None and not row["test"]:
            when = to_time(report.at, row["now"])
            self._engaged.append(Engaged(row["project_id"], row["user_id"], row["channel"], *engaged, when))
        if decision.status is not None:
            self._going_on.add(row["notification_id"])
            self._moves[Move(row["channel"], decision.status, row["provider"], decision.reason)] += 1
        if decision.status is Status.delivered and row["sent_at"] is not None and fact.account_id is not None:
            self._delivered.append((fact.account_id, max(0.0, (row["now"] - row["sent_at"]).total_seconds())))

    def _event(self, place: int, row: Record, fact: Fact, event_id: UUID, decision: Decision) -> None:
        assert decision.event is not None
        self._events.setdefault(
            event_id,
            (
                place,
                Event(
                    event_id, row["project_id"], row["notification_id"], row["id"], decision.event, None,
                    fact.account_id, fact.report.reason, fact.report.provider_id, _to_detail(fact.report),
                ),
            ),
        )  # fmt: skip

    def _follow(self, row: Record, fact: Fact, decision: Decision) -> None:
        project_id, id_ = row["project_id"], row["id"]
        if decision.suppress is not None and not row["test"] and not fact.done:
            self._suppressions.append(
                effects.Suppression(
                    project_id, row["channel"], row["address"], decision.suppress, str(decision.suppress_reason), id_
                )
            )
            if decision.engagement and decision.event is not None:  # the first complaint or unsubscribe of the message
                self._refusals.setdefault((project_id, decision.event.name), []).append(
                    consent.Decision(
                        "out",
                        user_id=row["user_id"],
                        channel=Channel(row["channel"]),
                        address=row["address"],
                        category_key=row["category"] or None,
                    )
                )
        if decision.drop_address and row["user_id"] is not None and not row["test"]:
            self._drops.append(effects.DroppedAddress(project_id, row["user_id"], row["channel"], row["address"]))
        if decision.dead:
            self._dead[id_] = effects.DeadLetter(
                project_id, id_, row["notification_id"], row["channel"], str(decision.reason), row["attempts"]
            )
        if decision.lifted:
            self._lifted.add((project_id, id_))

    async def write(self, conn: Connection, meter: Meter, low: UUID, high: UUID, now: datetime | None) -> Applied:
        """One statement for each kind of row."""
        touched = sorted(self._touched)
        if touched:
            await conn.execute(
                SQL.update_reported,
                touched,
                [self._rows[id_]["project_id"] for id_ in touched],
                [int(self._states[id_].status) for id_ in touched],
                [self._states[id_].reason for id_ in touched],
                [self._bits[id_][0] for id_ in touched],
                [self._bits[id_][1] for id_ in touched],
                [self._touched[id_][0] for id_ in touched],
                [self._touched[id_][1] for id_ in touched],
                low,
                high,
                now,
            )
        events = sorted((event for _, event in self._events.values()), key=lambda event: event.id)
        new = await effects.apply_events(conn, events, now)
        await effects.apply_suppressions(conn, self._suppressions, now)
        for (project_id, what), decisions in sorted(self._refusals.items(), key=lambda item: item[0]):
            origin = consent.Origin("user", "receipt", wording=f"The vendor reported: {what}.")
            await consent.record(conn, project_id, decisions, origin)
        await apply_engagement(conn, self._engaged)
        await effects.apply_drops(conn, self._drops, now)
        await effects.apply_dead_letters(conn, sorted(self._dead.values(), key=lambda d: d.delivery_id), now)
        await effects.lift_dead_letters(conn, sorted(self._lifted))
        await advance_jobs(conn, STEP, sorted(self._going_on), now)
        await meter.apply(conn, self._counts)
        places = {place for id_, (place, _) in self._events.items() if id_ in new}
        return Applied(places, self._delivered, self._moves)


def _dimension(row: Record, account_id: int | None) -> Dimension:
    return Dimension(
        row["project_id"],
        row["type_version_id"] or 0,
        row["category"],
        row["channel"],
        account_id or row["account_id"] or 0,
        row["template_version_id"] or 0,
        row["variant"] or "",
        row["locale"] or "",
        row["segments"] or 0,
    )


def _to_detail(report: Report) -> str | None:
    """The evidence: the vendor's own words, its clock, and the link."""
    detail: dict[str, Any] = {"receipt": dict(report.detail)} if report.detail else {}
    if report.at is not None:
        detail["at"] = report.at
    if report.url is not None:
        detail["url"] = report.url
    text = to_json(detail)
    if len(text) > DETAIL_MAX:
        text = to_json({**detail, "receipt": {"cut": text[: DETAIL_MAX // 2]}})
    return text if detail else None


async def forget_early(database: Database, now: datetime, retention: timedelta) -> None:
    """Delete reports that waited in vain, and vendors' ids of messages that are gone."""
    for query, before in ((SQL.forget_early, now - EARLY_KEPT), (SQL.forget_refs, now - retention)):
        while await database.fetchval(query, before, FORGET_BATCH) == FORGET_BATCH:
            pass
