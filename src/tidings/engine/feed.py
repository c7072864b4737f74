"""The feeder lanes: short transactions that make work for other lanes, held back while those are full."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import structlog

from tidings.clock import Clock
from tidings.db.pool import Database, to_loggable
from tidings.engine import jobs as queue
from tidings.engine.lane import CLAIM_GAP, PROJECTS_AT_ONCE
from tidings.engine.shares import Credits, Share, decide_shares
from tidings.engine.wakes import BUSY_POLL, IDLE_POLL, Wakes, wait_first

log = structlog.get_logger(__name__)


class FeedHandler(Protocol):
    """What the feeder lanes do: work within one transaction."""

    async def feed(self, shares: Sequence[Share]) -> tuple[int, Collection[int]]:
        """Lock and do what the shares say; answers with how many jobs, and which lanes have new work."""
        ...


class FeedLanes:
    """The feeder lanes: short transactions, one at a time, held back while the lanes that they feed are full."""

    def __init__(
        self,
        handler: FeedHandler,
        database: Database,
        clock: Clock,
        wakes: Wakes,
        *,
        batch: int = 400,
        ahead: int = 2_000,
        observe_batch: Callable[[str, int], None] | None = None,
    ) -> None:
        self._handler = handler
        self._database = database
        self._clock = clock
        self._wakes = wakes
        self._batch = batch
        self._ahead = ahead
        self._observe_batch = observe_batch
        self._event = wakes.event(queue.FEEDER)
        self._credits = Credits()
        self._turn = 0
        self._after_project = 0
        self._blocked = False

    async def run(self, stop: asyncio.Event) -> None:
        """Step until `stop` is set; survives a database that goes away."""
        last = 0.0
        while not stop.is_set():
            early = last + CLAIM_GAP - self._clock.monotonic()
            if early > 0:
                await asyncio.sleep(early)
            self._event.clear()
            try:
                fed = await self.step()
            except Exception as error:
                log.warning("worker.plan_failed", error=type(error).__name__, detail=to_loggable(error))
                fed = 0
                await wait_first(stop, timeout=0.5)
            if fed:
                last = self._clock.monotonic()
            else:
                await wait_first(stop, self._event, timeout=BUSY_POLL if self._blocked else IDLE_POLL)

    async def step(self) -> int:
        """Plan one batch; answers with how many jobs were done."""
        self._blocked = False
        waiting = await queue.load_waiting(
            self._database,
            (queue.FEEDER, queue.LAST_FEEDER),
            count=self._batch,
            projects=PROJECTS_AT_ONCE,
            after_project=self._after_project,
            ahead=self._ahead,
            now=self._clock.db_now(),
        )
        self._turn += 1
        began_after = self._after_project
        self._after_project = queue.decide_next_page(waiting, PROJECTS_AT_ONCE)
        if not waiting:
            self._blocked = began_after > 0  # look again at once, from the beginning
            return 0
        decided = decide_shares(
            waiting,
            free=self._batch,
            slots=self._batch * 2,  # planning occupies no slots, so nothing has to be kept free for critical
            ordinary_in_flight=0,
            credits=self._credits,
            turn=self._turn,
            pool=lambda w: w,  # `ahead` is counted for each entry by itself
            budget=lambda w: max(0, self._ahead - w.ahead),
        )
        if not decided:
            self._blocked = True
            return 0
        shares = [Share(w.lane, w.priority, w.project_id, None, n) for w, n in decided]
        # What is critical does not wait for the commit of all that is planned beside it.
        parts = [s for s in shares if s.priority == 0], [s for s in shares if s.priority > 0]
        total = 0
        for part in filter(None, parts):
            done, lanes = await self._handler.feed(part)
            if self._observe_batch is not None and done:
                self._observe_batch("plan", done)
            self._wakes.announce(lanes)
            total += done
        return total
