"""Group commit: many callers, one transaction; and a bad item takes nobody down with it.

A batch leaves when the flusher is free: at once when the system is idle, and as large as what has gathered when it is
busy. When the database refuses a batch, it is halved until only the bad items are refused.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

import asyncpg

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_NOT_ABOUT_AN_ITEM: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InternalServerError,
)


def is_about_an_item(error: Exception) -> bool:
    """Whether one bad item can have caused this: a value that PostgreSQL or the driver's encoder will not take.

    Else halving cannot help: the connection broke, the server is in trouble, or there is a bug.
    """
    if isinstance(error, asyncpg.InterfaceError):
        return isinstance(error, ValueError)  # the driver could not encode it; the others say that a connection is lost
    if isinstance(error, asyncpg.PostgresError):
        return not isinstance(error, _NOT_ABOUT_AN_ITEM)
    return isinstance(error, (ValueError, TypeError, OverflowError))


class Batcher(Generic[Item, Answer]):
    """Gathers items and hands them to `flush` in batches.

    Args:
        flush: does one transaction for the batch; answers with one answer per item, in order. An answer that is an
            exception is raised to that item's caller.
        limit: most items in a batch.
        weigh: what an item counts towards `limit`.
        window: seconds that the first item of a batch waits for company. 0 leaves at once.
        flushers: how many batches may be under way at the same time.
        observe: called with the weight of each flushed batch, for metrics.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | BaseException]]],
        *,
        limit: int,
        weigh: Callable[[Item], int] = lambda _: 1,
        window: float = 0.0,
        flushers: int = 1,
        observe: Callable[[int], None] | None = None,
    ) -> None:
        self._flush = flush
        self._limit = limit
        self._weigh = weigh
        self._window = window
        self._idle_flushers = flushers
        self._observe = observe
        self._queue: deque[tuple[Item, asyncio.Future[Answer]]] = deque()
        self._weight = 0
        self._start_handle: asyncio.Handle | None = None
        self._leaving = False
        """The next turn of the event loop starts the batch; a window is waited for no longer."""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def weight(self) -> int:
        """What waits for a flusher."""
        return self._weight

    def add(self, item: Item) -> asyncio.Future[Answer]:
        """Queue an item; the future ends with its answer."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
        self._weight += self._weigh(item)
        self._consider()
        return future

    async def drain(self) -> None:
        """Wait until everything queued has been flushed."""
        while self._queue or self._tasks:
            self._start()
            if self._tasks:
                await asyncio.wait(tuple(self._tasks))

    def _consider(self) -> None:
        if not self._idle_flushers or not self._queue:
            return
        loop = asyncio.get_running_loop()
        if self._window and self._weight < self._limit:
            if self._start_handle is None:
                self._start_handle = loop.call_later(self._window, self._start)
        elif not self._leaving:
            # After the callers that are ready now, so that they travel together.
            if self._start_handle is not None:
                self._start_handle.cancel()
            self._leaving = True
            self._start_handle = loop.call_soon(self._start)

    def _start(self) -> None:
        if self._start_handle is not None:
            self._start_handle.cancel()
            self._start_handle = None
        self._leaving = False
        while self._queue and self._idle_flushers:
            batch: list[tuple[Item, asyncio.Future[Answer]]] = []
            weight = 0
            while self._queue:
                more = self._weigh(self._queue[0][0])
                if batch and weight + more > self._limit:
                    break
                batch.append(self._queue.popleft())
                weight += more
            self._weight -= weight
            self._idle_flushers -= 1
            if self._observe is not None:
                self._observe(weight)
            task = asyncio.create_task(self._run(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._flush_halving([item for item, _ in batch])
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():  # its caller has gone away
                    continue
                if isinstance(answer, BaseException):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._idle_flushers += 1
            self._consider()

    async def _flush_halving(self, items: Sequence[Item]) -> Sequence[Answer | BaseException]:
        try:
            return await self._flush(items)
        except Exception as error:
            if len(items) == 1 or not is_about_an_item(error):
                # Told to each by itself: the other half of a halved batch may have been committed.
                return [error] * len(items)
            middle = len(items) // 2
            return [*await self._flush_halving(items[:middle]), *await self._flush_halving(items[middle:])]
