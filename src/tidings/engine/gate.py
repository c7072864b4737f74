"""What an account can take now: pace, concurrency, pauses and the circuit breaker.

Pace is one GCRA row per account in the database, from which each worker leases the tokens of the next tenth of a
second; so the rate holds over all workers and costs ten statements a second. Concurrency and the breaker are each
worker's own: a worker that sees an account fail stops using it, and tells the others by the row's `open_until`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from tidings.db.pool import Runner
from tidings.db.sql import load_queries

SQL: Final = load_queries(__package__, "gate.sql")

PACE_WINDOW: Final = timedelta(milliseconds=100)
"""Tokens are leased for so long ahead."""
TOKEN_TTL: Final = 0.5
"""Seconds after which leased tokens that were not used are forgotten, so that they cannot add up to a burst."""

OPENS_AFTER: Final = 10
"""Failures in a row that open the breaker."""
OPEN_FOR: Final = timedelta(seconds=2)
"""How long it stays open the first time; doubled for each time in a row, up to OPEN_AT_MOST."""
OPEN_AT_MOST: Final = timedelta(minutes=2)


@dataclass(frozen=True)
class Breaker:
    """The state of one account's breaker. Closed while `open_until` is None or past; half open after that."""

    failures: int = 0
    openings: int = 0
    open_until: float | None = None
    """Monotonic seconds."""


def decide_breaker(state: Breaker, *, failed: bool, now: float) -> Breaker:
    """The breaker after one more send that failed for the account's reasons, or did not.

    Closed: OPENS_AFTER failures in a row open it. Half open: one failure opens it again for twice as long, one success
    closes it. While open, answers of sends that were under way change nothing.
    """
    if state.open_until is not None and now < state.open_until:
        return state
    if not failed:
        return Breaker()
    failures = state.failures + 1
    if failures < OPENS_AFTER and state.openings == 0:
        return Breaker(failures=failures)
    span = min(OPEN_FOR * 2**state.openings, OPEN_AT_MOST)
    return Breaker(failures=failures, openings=min(state.openings + 1, 16), open_until=now + span.total_seconds())


@dataclass(frozen=True)
class Limits:
    """The configured limits of an account."""

    account_id: int
    project_id: int
    concurrency: int
    rate: float | None = None
    """Messages per second over all workers; None: no pace."""
    burst: int = 1
    weight: int = 100


@dataclass
class Gate:
    """One account in one worker."""

    limits: Limits
    in_flight: int = 0
    breaker: Breaker = field(default_factory=Breaker)
    paused_until: float = 0.0
    tokens: int = 0
    tokens_until: float = 0.0
    next_lease_at: float = 0.0

    def room(self, now: float) -> int:
        """How many sends may start now, pace aside."""
        if now < self.paused_until:
            return 0
        if self.breaker.open_until is not None:
            if now < self.breaker.open_until:
                return 0
            return 0 if self.in_flight else 1  # half open: one probe
        return max(0, self.limits.concurrency - self.in_flight)

    def shut_for(self, now: float) -> float:
        """Seconds until this account may be used again; 0 when it may be now."""
        return max(0.0, self.paused_until - now, (self.breaker.open_until or now) - now)

    def budget(self, now: float) -> int:
        """How many sends may start now."""
        room = self.room(now)
        if self.limits.rate is None:
            return room
        return min(room, self.tokens) if now < self.tokens_until else 0

    def wants_tokens(self, now: float) -> int:
        """How many pace tokens to lease now; 0 when there is no pace, enough, or it is too early to ask again.

        Never more are held than one lease can give, so that tokens which nobody used do not add up to a burst.
        """
        rate = self.limits.rate
        if rate is None or now < self.next_lease_at:
            return 0
        held = self.tokens if now < self.tokens_until else 0
        most = self.limits.burst - 1 + math.ceil(rate * PACE_WINDOW.total_seconds())
        return max(0, min(self.room(now), most) - held)

    def grant_tokens(self, n: int, now: float) -> None:
        """Add leased tokens to the purse."""
        self.tokens = (self.tokens if now < self.tokens_until else 0) + n
        self.tokens_until = now + TOKEN_TTL
        self.next_lease_at = now + PACE_WINDOW.total_seconds()

    def start(self, n: int) -> None:
        """Book `n` claimed sends."""
        self.in_flight += n
        if self.limits.rate is not None:
            self.tokens = max(0, self.tokens - n)

    def end(self, *, failed: bool | None, now: float) -> bool:
        """Book the end of one send; `failed` None says nothing about the account. True when the breaker just opened."""
        self.in_flight -= 1
        if failed is None:
            return False
        before = self.breaker
        self.breaker = decide_breaker(before, failed=failed, now=now)
        return self.breaker.open_until is not None and self.breaker.open_until != before.open_until

    def pause(self, seconds: float, now: float) -> None:
        """Nothing starts before so many seconds have passed (`Retry-After`)."""
        self.paused_until = max(self.paused_until, now + seconds)


async def lease_pace(conn: Runner, wants: Mapping[int, tuple[Limits, int]], now: datetime | None) -> dict[int, int]:
    """Lease pace tokens for several accounts at once: `{account id: (limits, wanted)}` to `{account id: granted}`."""
    accounts = sorted(wants)
    rows = await conn.fetch(
        SQL.lease_pace,
        accounts,
        [wants[a][0].project_id for a in accounts],
        [wants[a][0].rate for a in accounts],
        [wants[a][0].burst for a in accounts],
        [wants[a][1] for a in accounts],
        PACE_WINDOW,
        now,
    )
    return {row["account_id"]: row["granted"] for row in rows}


async def apply_opening(conn: Runner, limits: Limits, span: timedelta, now: datetime | None) -> None:
    """Tell the other workers that this account's breaker opened."""
    await conn.execute(SQL.apply_opening, limits.project_id, limits.account_id, span, now)


async def load_openings(conn: Runner, account_ids: list[int], now: datetime | None) -> dict[int, float]:
    """The accounts among these whose breaker some worker opened: seconds from now until they may be tried."""
    return {row["account_id"]: row["seconds"] for row in await conn.fetch(SQL.load_openings, account_ids, now)}
