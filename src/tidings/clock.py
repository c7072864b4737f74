"""Time and chance, as one seam, so that a simulation can own both.

In production PostgreSQL's clock decides what is due: `db_now()` is None and every statement falls back to its own
`now()`. A simulation passes its virtual time there instead.
"""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where a component asks for time and randomness."""

    @property
    def random(self) -> random.Random:
        """Jitter, weighted choice and ids draw from here. Never secrets: those come from `secrets`."""
        ...

    def now(self) -> datetime:
        """The wall clock, aware, UTC."""
        ...

    def db_now(self) -> datetime | None:
        """What statements take as `$now`: None lets the database's clock decide."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; for durations only."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The real clock, and a generator seeded by the operating system."""

    def __init__(self) -> None:
        self._random = random.Random()  # noqa: S311 - not for secrets, see Clock.random

    @property
    def random(self) -> random.Random:
        return self._random

    def now(self) -> datetime:
        return datetime.now(UTC)

    def db_now(self) -> datetime | None:
        return None

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
