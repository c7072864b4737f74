"""Rates: how many requests an API key may make in a minute, over all API processes.

What a key has used of the minute stands in one row. A process takes a part of what is left in advance and counts
requests against that in memory, so hardly any request costs a statement, and all processes together never let more
through than the rate. What a process has taken and does not use by the end of the minute is lost: with several of them
a key may be refused a little before its rate is reached, by no more than a twentieth of it for each.

A request costs one, and one that brings many notifications, or events of which rules make many, costs as many. Minutes
are those of the database's clock.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from tidings.clock import Clock
from tidings.db.pool import Database
from tidings.db.sql import load_queries
from tidings.errors import RateLimited

_queries: Final = load_queries(__package__, "rates.sql")
_LEASE_BUDGET: Final = _queries.lease_budget
_CREATE_BUDGET: Final = _queries.create_budget

WINDOW: Final = 60
"""Seconds."""
RATE_MAX: Final = 10_000_000
_PART: Final = 20
"""At most one of so many parts of the rate is taken in advance."""
_KEYS_MAX: Final = 10_000


class Allowance(NamedTuple):
    """What a key has left."""

    granted: bool
    """This request may go on."""
    limit: int
    left: int
    """Requests left in this minute, as far as this process knows: others may be using them."""
    seconds: float
    """Until the minute ends."""


def check_allowance(allowance: Allowance, cost: int) -> None:
    """Nothing, if the request may go on.

    Raises:
        RateLimited: the key has not enough left.
    """
    if allowance.granted:
        return
    if cost > allowance.limit:
        raise RateLimited(f"These are more at once than this API key may send in a minute ({allowance.limit:,}).")
    raise RateLimited(
        f"This API key may make {allowance.limit:,} requests a minute, and has not enough left for this one.",
        retry_after=allowance.seconds,
    )


@dataclass
class _Purse:
    """What this process holds of one key's minute."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    tokens: int = 0
    left: int = 0
    begins: datetime | None = None
    until: float = 0.0
    """Monotonic seconds: the minute's end, never after it."""
    refused: int | None = None
    """There was not enough left in this minute for a request of this cost."""

    def decide(self, cost: int, limit: int, now: float) -> Allowance | None:
        """What can be said without asking the database."""
        if now >= self.until:
            return None
        if self.tokens >= cost:
            self.tokens -= cost
            return Allowance(True, limit, self.left + self.tokens, self.until - now)
        if self.refused is not None and cost >= self.refused:
            return Allowance(False, limit, self.left + self.tokens, self.until - now)
        return None


class Rates:
    """Counts the requests of API keys, in one API process."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._purses: OrderedDict[UUID, _Purse] = OrderedDict()

    async def take(self, key_id: UUID, project_id: int, limit: int, cost: int) -> Allowance:
        """Count one request of this key.

        Args:
            limit: the key's rate.
            cost: what the request costs. More than the rate is never granted.

        Raises:
            DatabaseError: what this process held is used up and the database cannot be asked.
        """
        purse = self._purses.get(key_id)
        if purse is None:
            purse = self._purses[key_id] = _Purse()
            if len(self._purses) > _KEYS_MAX:
                self._purses.popitem(last=False)
        told = purse.decide(cost, limit, self._clock.monotonic())
        if told is not None:
            return told
        async with purse.turn:  # one question at a time; whoever waited may find an answer
            for _ in range(3):  # again where the minute ended meanwhile
                told = purse.decide(cost, limit, self._clock.monotonic())
                if told is not None:
                    return told
                await self._lease(purse, key_id, project_id, limit, cost)
        return Allowance(False, limit, 0, 1.0)

    async def _lease(self, purse: _Purse, key_id: UUID, project_id: int, limit: int, cost: int) -> None:
        asked_at = self._clock.monotonic()
        need = cost - (purse.tokens if asked_at < purse.until else 0)
        args = key_id, project_id, limit, need, max(1, limit // _PART), self._clock.db_now()
        row = await self._database.fetchrow(_LEASE_BUDGET, *args)
        if row is None:
            await self._database.execute(_CREATE_BUDGET, key_id, project_id, self._clock.db_now())
            row = await self._database.fetchrow(_LEASE_BUDGET, *args)
        if row is None:
            return  # the key was deleted; it is not let through
        if row["begins"] != purse.begins:
            purse.begins, purse.tokens, purse.refused = row["begins"], 0, None
        purse.tokens += row["granted"]
        purse.left = row["remaining"]
        purse.until = asked_at + row["seconds"]
        if not row["granted"] and (purse.refused is None or cost < purse.refused):
            purse.refused = cost
