"""A worker process: its lanes, the keeper of their leases, the sweeper, its chores, and how it stops.

When a worker dies, the leases of what it held run out; the sweeper of any worker frees the jobs, and the handler
records that it is not known whether they were sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import timedelta
from typing import Any, Final, Protocol

import structlog

from tidings.clock import Clock
from tidings.db.pool import Connection, Database, to_loggable
from tidings.engine import jobs as queue
from tidings.engine.feed import FeedLanes
from tidings.engine.jobs import Job
from tidings.engine.lane import SendLane
from tidings.engine.wakes import Wakes, wait_first

log = structlog.get_logger(__name__)

SWEEP_BATCH: Final = 500


class SweepHandler(Protocol):
    """What becomes of jobs whose worker died."""

    async def apply_expired(self, conn: Connection, jobs: Sequence[Job]) -> Callable[[], Collection[int]]:
        """Record it and free or end each job, in the sweeper's transaction.

        Answers with what is to be called once that is committed; this answers with the lanes that have work due at
        once.
        """
        ...


async def sweep(database: Database, handler: SweepHandler, clock: Clock, wakes: Wakes) -> int:
    """Free the jobs whose lease ran out, in one transaction; answers with how many."""

    async def work(conn: Connection) -> tuple[int, Callable[[], Collection[int]]]:
        jobs = await queue.lock_expired(conn, SWEEP_BATCH, clock.db_now())
        return len(jobs), await handler.apply_expired(conn, jobs) if jobs else lambda: ()

    swept, finish = await database.transaction(work)
    wakes.announce(finish())
    if swept:
        log.warning("worker.leases_expired", jobs=swept)
    return swept


class Worker:
    """All loops of one process."""

    def __init__(
        self,
        lanes: Sequence[SendLane[Any, Any]],
        feed: FeedLanes | None,
        sweeper: SweepHandler,
        database: Database,
        clock: Clock,
        wakes: Wakes,
        *,
        lease: timedelta,
        grace: timedelta,
        chores: Sequence[tuple[Callable[[], Awaitable[object]], float]] = (),
    ) -> None:
        self.lanes = lanes
        self._feed = feed
        self._sweeper = sweeper
        self._database = database
        self._clock = clock
        self._wakes = wakes
        self._lease = lease
        self._grace = grace
        self._chores = chores

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then drain: claim nothing more, finish or release what is in flight."""
        quarter = self._lease.total_seconds() / 4
        loops = [asyncio.create_task(lane.run(stop)) for lane in self.lanes]
        if self._feed is not None:
            loops.append(asyncio.create_task(self._feed.run(stop)))
        done = asyncio.Event()
        keepers = [
            asyncio.create_task(self._every(quarter, self._extend, done)),
            asyncio.create_task(self._every(quarter, self._sweep, done)),
            *(asyncio.create_task(self._every(period, chore, done)) for chore, period in self._chores),
        ]
        try:
            await asyncio.gather(*loops)
            await asyncio.gather(*(lane.drain(self._grace.total_seconds() * 0.8) for lane in self.lanes))
        finally:
            done.set()
            for task in loops:
                task.cancel()
            await asyncio.gather(*loops, *keepers, return_exceptions=True)

    async def _extend(self) -> None:
        for lane in self.lanes:
            await lane.extend()

    async def _sweep(self) -> None:
        while await sweep(self._database, self._sweeper, self._clock, self._wakes) == SWEEP_BATCH:
            pass

    async def _every(self, seconds: float, work: Callable[[], Awaitable[object]], done: asyncio.Event) -> None:
        while not done.is_set():
            try:
                await work()
            except Exception as error:
                log.warning("worker.chore_failed", error=type(error).__name__, detail=to_loggable(error))
            # Jitter, so that the workers of a fleet do not all sweep at once.
            await wait_first(done, timeout=seconds * self._clock.random.uniform(0.8, 1.0))


_tasks: set[asyncio.Task[None]] = set()
