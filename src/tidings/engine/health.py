"""How well accounts do: their health, the weight that it leaves them, and the pace that their vendors bear.

Every process adds up what it sees (answers, throttling, the time from a send to its receipt) and writes the sums to the
account's row every few seconds. One worker then makes moving averages of them and decides. Accounts are compared with
the best one of their project and channel: when all of them are slow, or all fail, nothing moves.

Weights move gradually, a tenth of the configured weight in ten seconds at most, so that one bad minute does not empty
an account and a flapping one does not make the others flap; and a little always stays, by which recovery is seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import structlog

from tidings.clock import Clock
from tidings.db.pool import Connection, Database, Record, to_loggable
from tidings.db.sql import load_queries

SQL: Final = load_queries(__package__, "health.sql")

log = structlog.get_logger(__name__)

PERIOD: Final = timedelta(seconds=5)
"""How often processes tell, and accounts are weighed."""
STEP: Final = 0.01
"""Of the configured weight, what the effective one may move in a second."""
LEAST: Final = 0.05
"""Of the configured weight, what an account keeps however badly it does."""
HEALTHY: Final = 0.9
"""Health compared with the best from which on an account counts as well: what is less may be more than noise."""
MEMORY: Final = 10
"""Answers (or receipts) that weigh as much as everything before them; so a single failure is hardly seen."""
FADING: Final = 0.9
"""Of the remembered failures, what is left after a period without any answers; less than TRACE of them is nothing."""
TRACE: Final = 0.001
LONGEST: Final = 10.0
"""Seconds; what is new has come in within so many, however long ago the account was weighed."""
SLACK: Final = 2.0
"""Receipts that take so many times as long as those of the fastest account, and a second, count as quick."""

CUT: Final = 0.7
"""A vendor that throttles gets this part of what it had taken."""
SLOWEST: Final = 0.1
"""Messages per second, below which no pace is learned."""
RECOVERY: Final = 0.01
"""What a learned pace gains in a second without throttling, of the pace at which it was cut."""
FORGET_AT: Final = 2.0
"""Times the pace at which it was cut: then the account is without a learned pace again."""


@dataclass(frozen=True)
class Vitals:
    """What is known of one account."""

    errors: float = 0.0
    """Moving share of sends that failed for the account's reasons, 0 to 1."""
    latency: float | None = None
    """Moving average of the seconds from a send to the receipt that it was delivered; None: there are no receipts."""
    factor: float = 1.0
    """Its effective weight, as a part of the configured."""


def decide_health(channel: Mapping[int, Vitals]) -> dict[int, float]:
    """The health of each account of one project and channel, 0 to 1: the share of sends that succeed, less if receipts
    take much longer than with the fastest of them."""
    quickest = min((v.latency for v in channel.values() if v.latency is not None), default=0.0)
    quick = SLACK * quickest + 1.0
    return {
        account: (1.0 - v.errors) * (1.0 if v.latency is None or v.latency <= quick else quick / v.latency)
        for account, v in channel.items()
    }


def decide_weights(channel: Mapping[int, Vitals], seconds: float) -> dict[int, float]:
    """The next factor of each account of one project and channel.

    It moves towards the account's health in comparison with the best, by `STEP` for each of the `seconds` since the
    last time, LONGEST at most; and back to 1 while the account does about as well as the best.
    """
    health = decide_health(channel)
    best = max(health.values(), default=0.0)
    reach = STEP * min(seconds, LONGEST)
    decided = {}
    for account, vitals in channel.items():
        compared = health[account] / best if best > 0.0 else 1.0
        target = 1.0 if compared >= HEALTHY else max(LEAST, compared)
        decided[account] = min(max(target, vitals.factor - reach), vitals.factor + reach)
    return decided


@dataclass(frozen=True)
class Pace:
    """What is known of the pace that a vendor bears."""

    rate: float | None = None
    """Messages per second; None: nothing was learned."""
    peak: float | None = None
    """The pace at which the vendor throttled last."""


def decide_pace(pace: Pace, configured: float | None, *, taken: int, throttled: int, seconds: float) -> Pace:
    """The learned pace after some seconds in which a vendor took so many messages and throttled so many.

    Throttling cuts it to a part of what was taken; without, it grows by the same amount every second until it reaches
    the configured rate or, where there is none, has left the pace that was too much well behind.
    """
    if throttled:
        took = max(taken / min(max(seconds, 1.0), LONGEST), SLOWEST)
        peak = took if pace.rate is None else min(took, pace.rate)
        if configured is not None:
            peak = min(peak, configured)
        return Pace(max(SLOWEST, CUT * peak), peak)
    if pace.rate is None or pace.peak is None:
        return Pace()
    rate = pace.rate + RECOVERY * pace.peak * min(seconds, LONGEST)
    ends = FORGET_AT * pace.peak if configured is None else min(configured, FORGET_AT * pace.peak)
    return Pace() if rate >= ends else Pace(rate, pace.peak)


@dataclass
class _Seen:
    ok: int = 0
    failed: int = 0
    taken: int = 0
    throttled: int = 0
    receipts: int = 0
    receipt_seconds: float = 0.0
    paused_until: float = 0.0
    """Monotonic seconds."""

    def add(self, other: _Seen) -> None:
        self.ok += other.ok
        self.failed += other.failed
        self.taken += other.taken
        self.throttled += other.throttled
        self.receipts += other.receipts
        self.receipt_seconds += other.receipt_seconds
        self.paused_until = max(self.paused_until, other.paused_until)


class Pulse:
    """What this process has seen of accounts and not told yet."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._seen: dict[int, _Seen] = {}

    def observe_answer(self, account_id: int, *, failed: bool | None, throttled_for: float | None) -> None:
        """A vendor answered, or did not.

        Args:
            failed: whether it speaks against the account; None: says nothing about it.
            throttled_for: seconds for which the vendor asks to be left alone; None: it did not throttle.
        """
        seen = self._seen.setdefault(account_id, _Seen())
        if throttled_for is not None:
            seen.throttled += 1
            seen.paused_until = max(seen.paused_until, self._clock.monotonic() + throttled_for)
            return
        seen.taken += 1
        seen.ok += failed is False
        seen.failed += failed is True

    def observe_delivered(self, account_id: int, seconds: float) -> None:
        """A receipt says that a message was delivered that was sent so many seconds ago."""
        seen = self._seen.setdefault(account_id, _Seen())
        seen.receipts += 1
        seen.receipt_seconds += seconds

    async def flush(self) -> None:
        """Tell what was seen."""
        told, self._seen = self._seen, {}
        if not told:
            return
        rows, now = [told[account] for account in sorted(told)], self._clock.monotonic()
        try:
            await self._database.execute(
                SQL.apply_observed,
                sorted(told),
                [s.ok for s in rows],
                [s.failed for s in rows],
                [s.taken for s in rows],
                [s.throttled for s in rows],
                [s.receipts for s in rows],
                [s.receipt_seconds for s in rows],
                [s.paused_until - now if s.paused_until > now else None for s in rows],
                self._clock.db_now(),
            )
        except BaseException:
            for account, seen in told.items():
                self._seen.setdefault(account, _Seen()).add(seen)
            raise

    async def run(self) -> None:
        """Tell every few seconds, until cancelled; for a process without chores."""
        while True:
            await self._clock.sleep(PERIOD.total_seconds())
            try:
                await self.flush()
            except Exception as error:
                log.warning("account.observed_not_told", error=type(error).__name__, detail=to_loggable(error))


async def weigh_accounts(database: Database, clock: Clock) -> int:
    """Decide weights and paces where there is something new; answers with how many accounts were looked at."""
    now = clock.db_now()

    async def work(conn: Connection) -> int:
        if not await conn.fetchval(SQL.lock_weighing):
            return 0
        rows = await conn.fetch(SQL.load_vitals, now, PERIOD * 0.9)
        decided = []
        for _, group in itertools.groupby(rows, key=lambda row: (row["project_id"], row["channel"])):
            decided += _weigh(list(group))
        if decided:
            await conn.execute(SQL.apply_weighed, *(list(column) for column in zip(*decided, strict=True)), now)
        return len(decided)

    return await database.transaction(work)


def _weigh(rows: Sequence[Record]) -> list[tuple[Any, ...]]:
    """What `apply_weighed` takes for the accounts of one project and channel."""
    channel = {row["account_id"]: _remember(row) for row in rows}
    health = decide_health(channel)
    factors = decide_weights(channel, min(row["seconds"] for row in rows))
    decided = []
    for row in rows:
        account, vitals = row["account_id"], channel[row["account_id"]]
        pace = decide_pace(
            Pace(row["learned_rate"], row["learned_peak"]),
            row["rate"],
            taken=row["taken"],
            throttled=row["throttled"],
            seconds=row["seconds"],
        )
        if pace.rate is not None and row["throttled"]:
            log.warning("account.slowed_down", account=account, rate=round(pace.rate, 3))
        decided.append(
            (
                account, row["ok"], row["failed"], row["taken"], row["throttled"], row["receipts"],
                row["receipt_seconds"], vitals.errors, vitals.latency, health[account], factors[account],
                pace.rate, pace.peak,
            )
        )  # fmt: skip
    return decided


def _remember(row: Record) -> Vitals:
    answers = row["ok"] + row["failed"]
    errors = (row["errors"] * MEMORY + row["failed"]) / (MEMORY + answers) if answers else row["errors"] * FADING
    latency = row["latency"]
    if row["receipts"]:
        known = 0 if latency is None else MEMORY
        latency = ((latency or 0.0) * known + row["receipt_seconds"]) / (known + row["receipts"])
    return Vitals(errors if errors >= TRACE else 0.0, latency, row["factor"])
