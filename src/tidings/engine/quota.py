"""Quotas: how many messages an account may send, and for how much money, per day and month of UTC.

A worker takes from the account's rows of the day and the month in advance, a lease of many messages at a time, and
counts each message against that lease in memory; so a message costs no statement, and what all workers together send
never exceeds a quota. A lease is at most a twentieth of what is left. What is not used of one goes back after a few
idle seconds, at the end of the day and when the worker stops; a worker that is killed strands what it held, which is
never more than one lease.

A message counts from the moment it is handed to the vendor, with the cost that is then known. It is taken back where
the vendor certainly did not take the message; where nobody knows, it stays counted. Amounts of money are whole
micro-units of the account's currency.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Final, NamedTuple

from tidings.clock import Clock
from tidings.db.pool import Database
from tidings.db.sql import load_queries
from tidings.engine.gate import ASK_AGAIN, Limits

SQL: Final = load_queries(__package__, "quota.sql")

LEASE_FIRST: Final = 10
"""Messages of an account's first lease; doubled whenever one lasted less than LEASE_LASTS."""
LEASE_MOST: Final = 1_000
LEASE_LASTS: Final = 1.0
IDLE_FOR: Final = 5.0
"""Seconds after which a lease that nothing was counted against goes back."""


class Charged(NamedTuple):
    """A message that is counted."""

    limits: Limits
    spend: int
    day: date | None
    """Whose lease it was counted against; None: the account has no quotas."""


class Exhausted(NamedTuple):
    """There is not enough left for the message."""

    seconds: float
    """Until the day or the month ends."""
    began: bool
    """Nobody in this process knew it before."""


@dataclass
class _Purse:
    """What this process holds of one account's quotas."""

    limits: Limits
    messages: int = 0
    spend: int = 0
    day: date | None = None
    until: float = 0.0
    """Monotonic seconds: the end of the day."""
    used_at: float = 0.0
    leased_at: float = 0.0
    size: int = LEASE_FIRST
    refused: tuple[int, float, float] | None = None
    """Not enough is left for a message of this cost; when to ask again; when the period ends."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def take(self, cost: int, now: float) -> Charged | None:
        if now >= self.until or self.messages < 1 or self.spend < cost:
            return None
        self.messages -= 1
        self.spend -= cost
        self.used_at = now
        return Charged(self.limits, cost, self.day)


@dataclass
class _Tally:
    """What an account without quotas has used and is not written down yet."""

    limits: Limits
    messages: int = 0
    spend: int = 0


class Purses:
    """The quotas of all accounts, in one worker process."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._purses: dict[int, _Purse] = {}
        self._tallies: dict[int, _Tally] = {}
        self._returns: list[tuple[int, int, date, int, int]] = []

    async def charge(self, limits: Limits, cost: int) -> Charged | Exhausted:
        """Count one message of this cost, which is about to be sent.

        Raises:
            asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError: the database; nothing is counted.
        """
        if limits.quota is None:
            return self._count(limits, 1, cost)
        purse = self._purses.get(limits.account_id)
        if purse is None:
            purse = self._purses[limits.account_id] = _Purse(limits)
        if purse.limits is not limits:
            if purse.limits.quota != limits.quota:
                purse.refused = None
            purse.limits = limits
        if (charged := purse.take(cost, self._clock.monotonic())) is not None:
            return charged
        async with purse.turn:
            if self._purses.setdefault(limits.account_id, purse) is not purse:  # it was given up while we waited
                return await self.charge(limits, cost)
            return await self._refill(purse, cost)

    async def _refill(self, purse: _Purse, cost: int) -> Charged | Exhausted:
        limits, now = purse.limits, self._clock.monotonic()
        if (charged := purse.take(cost, now)) is not None:  # somebody else refilled it meanwhile
            return charged
        known = purse.refused is not None and now < purse.refused[2]
        if purse.refused is not None and cost >= purse.refused[0] and now < purse.refused[1]:
            return Exhausted(purse.refused[2] - now, False)
        if now >= purse.until:
            self._give_up(purse)
        assert limits.quota is not None
        if now - purse.leased_at < LEASE_LASTS:
            purse.size = min(purse.size * 2, LEASE_MOST)
        need = (1 if purse.messages < 1 else 0, max(0, cost - purse.spend))
        want = (max(need[0], purse.size - purse.messages), max(need[1], purse.size * cost - purse.spend))
        at = self._clock.db_now()
        args = (limits.account_id, limits.project_id, *need, *want, *limits.quota, at)
        row = await self._database.fetchrow(SQL.lease_quota, *args)
        if row is None or row["rows"] < 2:  # a new day
            await self._database.execute(SQL.create_usage, limits.account_id, limits.project_id, at)
            row = await self._database.fetchrow(SQL.lease_quota, *args)
        assert row is not None
        if row["spent"] is not None:
            left = row["day_left"] if row["spent"] == 1 else row["month_left"]
            purse.refused = (cost, now + min(left, ASK_AGAIN), now + left)
            if not known:
                await self._database.execute(SQL.apply_exhausted, limits.project_id, limits.account_id, left, at)
            return Exhausted(left, not known)
        if purse.refused is not None:
            await self._database.execute(SQL.apply_exhausted, limits.project_id, limits.account_id, None, at)
        if purse.day is not None and purse.day != row["day"]:  # the day ended a little earlier than we thought
            self._give_up(purse)
        purse.messages += row["messages"]
        purse.spend += row["spend"]
        purse.day, purse.until = row["day"], now + row["day_left"]
        purse.leased_at, purse.refused = now, None
        charged = purse.take(cost, now)
        if charged is None:  # only if what was held belonged to the day before
            return await self._refill(purse, cost)
        return charged

    def _count(self, limits: Limits, messages: int, spend: int) -> Charged:
        tally = self._tallies.get(limits.account_id)
        if tally is None:
            tally = self._tallies[limits.account_id] = _Tally(limits)
        tally.messages += messages
        tally.spend += spend
        return Charged(limits, spend, None)

    def refund(self, charged: Charged) -> None:
        """The vendor did not take the message."""
        if charged.day is None:
            self._count(charged.limits, -1, -charged.spend)
            return
        purse = self._purses.get(charged.limits.account_id)
        if purse is not None and purse.day == charged.day:
            purse.messages += 1
            purse.spend += charged.spend
        else:
            limits = charged.limits
            self._returns.append((limits.account_id, limits.project_id, charged.day, 1, charged.spend))

    def _give_up(self, purse: _Purse) -> None:
        if purse.day is not None and (purse.messages or purse.spend):
            limits = purse.limits
            self._returns.append((limits.account_id, limits.project_id, purse.day, purse.messages, purse.spend))
        purse.messages = purse.spend = 0
        purse.day, purse.until = None, 0.0

    async def flush(self, *, everything: bool = False) -> None:
        """Give back what is idle, and write down what accounts without quotas have used; every few seconds.

        Args:
            everything: the process ends.
        """
        now = self._clock.monotonic()
        for account_id, purse in list(self._purses.items()):
            if purse.turn.locked():
                continue
            if everything or now >= purse.until or now - purse.used_at >= IDLE_FOR:
                self._give_up(purse)
                if purse.refused is None or now >= purse.refused[2]:
                    del self._purses[account_id]
        while self._returns:
            back = self._returns.pop()
            try:
                await self._database.execute(SQL.return_quota, *back)
            except BaseException:
                self._returns.append(back)
                raise
        tallies, self._tallies = self._tallies, {}
        used = [t for t in tallies.values() if t.messages or t.spend]
        if not used:
            return
        columns: list[Callable[[_Tally], int]] = [
            lambda t: t.limits.account_id, lambda t: t.limits.project_id, lambda t: t.messages, lambda t: t.spend
        ]  # fmt: skip
        try:
            at = self._clock.db_now()
            await self._database.execute(SQL.count_usage, *([c(t) for t in used] for c in columns), at)
        except BaseException:
            for tally in used:
                self._count(tally.limits, tally.messages, tally.spend)
            raise


async def forget_usage(database: Database, before: datetime) -> None:
    """Delete what was used in days and months that began before."""
    await database.execute(SQL.forget_usage, before.date())
