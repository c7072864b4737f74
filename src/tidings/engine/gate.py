"""What an account can take now: pace, concurrency, pauses, an exhausted quota and the circuit breaker.

Pace is one GCRA row per account in the database, from which each worker leases the tokens of the next tenth of a
second; so the rate holds over all workers and costs ten statements a second. A project that has a pace of its own has
such a row, too, and what its accounts send together takes tokens of both. Concurrency and the breaker are each
worker's own: a worker that sees an account fail stops using it, and tells the others by the row's `open_until`. The
same row tells what all of them have learned of the account: its health and the pace that its vendor bears (`health`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, NamedTuple

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
ASK_AGAIN: Final = 15.0
"""Seconds until an exhausted quota is asked for again: others may have given back what they held."""


@dataclass(frozen=True)
class Breaker:
    """The state of one account's breaker. Closed while `open_until` is None or past; half open after that."""

    failures: int = 0
    openings: int = 0
    open_until: float | None = None
    """Monotonic seconds."""
    unclear: int = 0
    """Half open: sends that said nothing about the account; each lets one more at a time through."""


def decide_breaker(state: Breaker, *, failed: bool | None, now: float) -> Breaker:
    """The breaker after one more send that failed for the account's reasons, did not, or said nothing about it (None).

    Closed: OPENS_AFTER failures in a row open it. Half open: one failure opens it again for twice as long, one success
    closes it, and so do OPENS_AFTER sends that say nothing; but then the next failure opens it again, as if it were
    still half open. While open, answers of sends that were under way change nothing.
    """
    if state.open_until is not None and now < state.open_until:
        return state
    if failed is None:
        if state.open_until is None:
            return state
        if state.unclear + 1 < OPENS_AFTER:
            return replace(state, unclear=state.unclear + 1)
        return Breaker(failures=state.failures, openings=state.openings)
    if not failed:
        return Breaker()
    failures = state.failures + 1
    if failures < OPENS_AFTER and state.openings == 0:
        return Breaker(failures=failures)
    span = min(OPEN_FOR * 2**state.openings, OPEN_AT_MOST)
    return Breaker(failures=failures, openings=min(state.openings + 1, 16), open_until=now + span.total_seconds())


class Quota(NamedTuple):
    """At most so many messages, and so many micro-units of money, per day and per month of UTC; None: no end."""

    day_messages: int | None = None
    day_spend: int | None = None
    month_messages: int | None = None
    month_spend: int | None = None


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
    quota: Quota | None = None


class Told(NamedTuple):
    """What the account's row tells every worker."""

    shut_for: float = 0.0
    """Seconds for which nobody should use it: a worker found it broken, or its vendor asked to be left alone."""
    factor: float = 1.0
    """Of its weight, what its health leaves."""
    learned_rate: float | None = None
    """Messages per second that its vendor bears; None: nothing is known."""


NOTHING_TOLD: Final = Told()


@dataclass
class Purse:
    """Tokens of a pace that one lane of one worker has leased."""

    tokens: int = 0
    until: float = 0.0
    """Monotonic seconds; what is left then is forgotten."""
    next_lease_at: float = 0.0

    def held(self, now: float) -> int:
        """Tokens to use now."""
        return self.tokens if now < self.until else 0

    def wants(self, rate: float, burst: int, room: int, now: float) -> int:
        """How many to lease now; 0 when there are enough, or it is too early to ask again.

        Never more are held than one lease can give, so that tokens which nobody used do not add up to a burst.
        """
        if now < self.next_lease_at:
            return 0
        most = burst - 1 + math.ceil(rate * PACE_WINDOW.total_seconds())
        return max(0, min(room, most) - self.held(now))

    def grant(self, n: int, now: float) -> None:
        """Add leased tokens."""
        self.tokens = self.held(now) + n
        self.until = now + TOKEN_TTL
        self.next_lease_at = now + PACE_WINDOW.total_seconds()

    def take(self, n: int) -> None:
        """Use tokens; those of an account do not stop what has been claimed beyond them."""
        self.tokens = max(0, self.tokens - n)


@dataclass
class ProjectGate:
    """The pace of a whole project in one lane of one worker."""

    project_id: int
    rate: float | None
    """Messages per second over all accounts, lanes and workers; None: no pace."""
    used_at: float = 0.0
    purse: Purse = field(default_factory=Purse)

    def budget(self, now: float) -> int | None:
        """How many sends may start now; None: as many as the accounts take."""
        return None if self.rate is None else self.purse.held(now)

    def wants_tokens(self, room: int, now: float) -> int:
        """How many pace tokens to lease now, for `room` sends at most."""
        return 0 if self.rate is None else self.purse.wants(self.rate, 1, room, now)

    def start(self) -> bool:
        """Book one claimed send. False: there is no token for it; the claim counted on something else.

        Tokens that ran out between the claim and now are good: the claim may have taken its time.
        """
        if self.rate is None:
            return True
        enough = self.purse.tokens > 0
        self.purse.take(1)
        return enough


@dataclass
class Gate:
    """One account in one worker."""

    limits: Limits
    told: Told = NOTHING_TOLD
    used_at: float = 0.0
    in_flight: int = 0
    breaker: Breaker = field(default_factory=Breaker)
    paused_until: float = 0.0
    spent_until: float | None = None
    """A quota is exhausted; to be asked for again then."""
    purse: Purse = field(default_factory=Purse)

    @property
    def rate(self) -> float | None:
        """Messages per second over all workers: as configured, or less if the vendor does not bear that."""
        learned, configured = self.told.learned_rate, self.limits.rate
        return configured if learned is None else learned if configured is None else min(learned, configured)

    @property
    def weight(self) -> float:
        """Its share of the channel's messages: as configured, as far as its health allows."""
        return self.limits.weight * self.told.factor

    @property
    def burst(self) -> int:
        """Messages that may go at once after a pause; under a learned rate those of a second at most."""
        learned, burst = self.told.learned_rate, self.limits.burst
        return burst if learned is None else max(1, min(burst, math.ceil(learned)))

    def paced(self) -> Limits:
        """The limits with the pace that holds now."""
        return self.limits if self.told.learned_rate is None else replace(self.limits, rate=self.rate, burst=self.burst)

    def room(self, now: float) -> int:
        """How many sends may start now, pace aside."""
        if self.shut_for(now):
            return 0
        room = self.limits.concurrency - self.in_flight
        if self.breaker.open_until is not None:  # half open: a probe, and one more for each that told nothing
            room = min(room, 1 + self.breaker.unclear - self.in_flight)
        if self.spent_until is not None:
            room = min(room, 1 - self.in_flight)
        return max(0, room)

    def shut_for(self, now: float) -> float:
        """Seconds until this account may be used again; 0 when it may be now."""
        return max(self.paused_until, self.breaker.open_until or now, self.spent_until or now, now) - now

    def budget(self, now: float) -> int:
        """How many sends may start now."""
        room = self.room(now)
        return room if self.rate is None else min(room, self.purse.held(now))

    def wants_tokens(self, now: float) -> int:
        """How many pace tokens to lease now; 0 when there is no pace, enough, or it is too early to ask again."""
        return 0 if self.rate is None else self.purse.wants(self.rate, self.burst, self.room(now), now)

    def grant_tokens(self, n: int, now: float) -> None:
        """Add leased tokens to the purse."""
        self.purse.grant(n, now)

    def start(self, n: int) -> None:
        """Book `n` claimed sends."""
        self.in_flight += n
        if self.rate is not None:
            self.purse.take(n)

    def end(self, *, failed: bool | None, now: float) -> bool:
        """Book the end of one send; `failed` None says nothing about the account. True when the breaker just opened."""
        self.in_flight -= 1
        before = self.breaker
        self.breaker = decide_breaker(before, failed=failed, now=now)
        return self.breaker.open_until is not None and self.breaker.open_until != before.open_until

    def release(self) -> None:
        """Book that a claimed send was not made."""
        self.in_flight -= 1

    def pause(self, seconds: float, now: float) -> None:
        """Nothing starts before so many seconds have passed (`Retry-After`)."""
        self.paused_until = max(self.paused_until, now + seconds)

    def exhaust(self, seconds: float | None, now: float) -> None:
        """A quota has run out, for so many seconds at most; None: it has room."""
        if seconds is not None:
            self.spent_until = now + min(seconds, ASK_AGAIN)
        elif self.spent_until is not None and now >= self.spent_until:
            self.spent_until = None

    def hear(self, told: Told, now: float) -> None:
        """Take in what the account's row says."""
        self.told = told
        if told.shut_for > 0 and self.breaker.open_until is None:
            self.pause(told.shut_for, now)

    def change(self, limits: Limits) -> None:
        """Somebody configured the account anew, perhaps with another quota."""
        self.limits = limits
        self.spent_until = None


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


async def lease_project_pace(
    conn: Runner, wants: Mapping[int, tuple[float, int]], now: datetime | None
) -> dict[int, int]:
    """The same for projects: `{project id: (rate, wanted)}` to `{project id: granted}`. They have no burst."""
    projects = sorted(wants)
    rates, wanted = [wants[p][0] for p in projects], [wants[p][1] for p in projects]
    rows = await conn.fetch(SQL.lease_project_pace, projects, rates, wanted, PACE_WINDOW, now)
    return {row["project_id"]: row["granted"] for row in rows}


async def create_project_pace(conn: Runner, project_ids: Collection[int]) -> None:
    """Make the rows of projects that may have none yet."""
    await conn.execute(SQL.create_project_pace, sorted(project_ids))


async def apply_opening(conn: Runner, limits: Limits, span: timedelta, now: datetime | None) -> None:
    """Tell the other workers that this account's breaker opened."""
    await conn.execute(SQL.apply_opening, limits.project_id, limits.account_id, span, now)


async def load_told(conn: Runner, account_ids: list[int], now: datetime | None) -> dict[int, Told]:
    """What the rows of these accounts tell; those that have nothing to tell are missing."""
    rows = await conn.fetch(SQL.load_told, account_ids, now)
    return {row["account_id"]: Told(row["seconds"], row["factor"], row["learned_rate"]) for row in rows}
