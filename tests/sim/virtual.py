"""Virtual time, and turns at the database: what makes a simulation on a real PostgreSQL repeatable.

The event loop's clock is virtual: it moves on only when every task waits for it. Statements are sent one at a time,
and which of those that wait goes next is drawn from the seed, so the interleaving of transactions is part of the seed
too. A statement that has to wait for another transaction's lock stands aside until a transaction ends.

Only statements through a `TurnConnection` take turns. Whatever else talks to the server (set-up, a new connection, the
look at who is blocked) does so within `VirtualLoop.real()`, while everything else stands still.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import selectors
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import asyncpg

Result = TypeVar("Result")

STATEMENT_TAKES = 0.0005
"""Virtual seconds, so that no two statements happen at the same time."""
LOOK_AFTER = 0.03
"""Real seconds that a statement may take before somebody looks whether it waits for a lock."""


class _Selector(selectors.DefaultSelector):
    """Waits for real sockets only while something real is going on; else lets virtual time pass."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(0)
        if events or timeout == 0:
            return events
        return self.loop.on_idle(timeout, super().select)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop for one simulation."""

    def __init__(self, rng: random.Random) -> None:
        self._virtual = 0.0
        self._real = 0
        self._rng = rng
        self.waiting: list[tuple[tuple[str, int], asyncio.Future[None], Callable[[], bool]]] = []
        self.done: list[tuple[tuple[str, int], asyncio.Future[None]]] = []
        self.running: set[TurnConnection] = set()
        self.blocked: set[TurnConnection] = set()
        self.admin: Any = None
        """A connection of its own, that sees who is blocked; one question at a time, see `ask`."""
        self._asking = asyncio.Lock()
        self.statements = 0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self._virtual

    @contextlib.contextmanager
    def real(self) -> Iterator[None]:
        """Virtual time and all statements stand still meanwhile."""
        self._real += 1
        try:
            yield
        finally:
            self._real -= 1

    def on_idle(self, timeout: float | None, wait: Callable[[float | None], list[Any]]) -> list[Any]:
        """Nobody can go on: wait for the real world, give somebody their turn, or let time pass."""
        if self._real:
            return wait(1.0)
        if self.running:
            events = wait(LOOK_AFTER)
            if not events:
                self.create_task(self._look())
            return events
        if self.done:  # in a fixed order, whichever answer was the first in real time
            first = min(self.done, key=lambda place: place[0])
            self.done.remove(first)
            _resolve(first[1])
            return []
        may = sorted((place for place in self.waiting if place[2]()), key=lambda place: place[0])
        if may:
            place = self._rng.choice(may)
            self.waiting.remove(place)
            self._virtual += STATEMENT_TAKES
            self.statements += 1
            _resolve(place[1])
            return []
        if self.blocked:  # by somebody who sleeps, or by each other: then the server breaks the tie
            events = wait(LOOK_AFTER)
            if events:
                return events
        if timeout is None:
            raise RuntimeError("the simulation stands still: everybody waits for somebody else")
        self._virtual += timeout
        return []

    async def ask(self, query: str, *values: Any) -> list[Any]:
        """Look at the database from outside of the simulation; time stands still meanwhile."""
        with self.real():
            async with self._asking:
                rows: list[Any] = await self.admin.fetch(query, *values)
                return rows

    async def _look(self) -> None:
        pids = {c.get_server_pid(): c for c in self.running if not c.is_closed()}
        rows = await self.ask(
            "SELECT pid FROM unnest($1::int[]) AS pid WHERE cardinality(pg_blocking_pids(pid)) > 0", list(pids)
        )
        for row in rows:
            if (connection := pids[row["pid"]]) in self.running:
                self.running.discard(connection)
                self.blocked.add(connection)

    def freed(self) -> None:
        """Locks may have been given back: those that stood aside may go on by themselves now."""
        self.running |= self.blocked
        self.blocked.clear()

    async def gone(self, pids: list[int]) -> None:
        """Wait until the server has noticed that these connections are lost, and rolled back."""
        with self.real():
            while await self.ask("SELECT 1 FROM pg_stat_activity WHERE pid = ANY ($1::int[])", pids):
                pass
        self.freed()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class TurnConnection(asyncpg.Connection):
    """A connection whose statements wait for their turn, and may be lost on the way."""

    __slots__ = ("host", "number")

    host: Any
    """The process it belongs to: `name`, `may_go(connection)` and `lose(query)`. Without one it takes no turns."""
    number: int
    """Among the connections of the process."""

    async def _turn(self, query: str, send: Callable[[], Awaitable[Result]]) -> Result:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        host = getattr(self, "host", None)
        if host is None:
            return await send()
        future: asyncio.Future[None] = loop.create_future()
        name = (host.name, self.number)
        place = (name, future, lambda: host.may_go(self))
        loop.waiting.append(place)
        try:
            await future
        finally:
            if place in loop.waiting:
                loop.waiting.remove(place)
        lost = host.lose(query)
        if lost == "before":
            await self._lose(loop)
        loop.running.add(self)
        try:
            result = await send()
        finally:
            loop.running.discard(self)
            loop.blocked.discard(self)
            if loop.blocked and (self.is_closed() or not self.is_in_transaction()):
                loop.freed()
            heard: asyncio.Future[None] = loop.create_future()
            loop.done.append((name, heard))
            await heard
        if lost == "after":
            await self._lose(loop)
        return result

    async def _lose(self, loop: VirtualLoop) -> None:
        pid = self.get_server_pid()
        self.terminate()
        await loop.gone([pid])
        raise asyncpg.ConnectionDoesNotExistError("injected: the connection is lost")

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        return await self._turn(query, lambda: super(TurnConnection, self).execute(query, *args, timeout=timeout))

    async def fetch(self, query: str, *args: Any, **more: Any) -> Any:
        return await self._turn(query, lambda: super(TurnConnection, self).fetch(query, *args, **more))

    async def fetchrow(self, query: str, *args: Any, **more: Any) -> Any:
        return await self._turn(query, lambda: super(TurnConnection, self).fetchrow(query, *args, **more))

    async def fetchval(self, query: str, *args: Any, **more: Any) -> Any:
        return await self._turn(query, lambda: super(TurnConnection, self).fetchval(query, *args, **more))


class VirtualClock:
    """The loop's time as the product's clock; the statements are told the same time."""

    def __init__(self, loop: VirtualLoop, begin: datetime, rng: random.Random) -> None:
        self._loop = loop
        self._begin = begin
        self._random = rng

    @property
    def random(self) -> random.Random:
        return self._random

    def now(self) -> datetime:
        return self._begin.astimezone(UTC) + timedelta(seconds=self._loop.time())

    def db_now(self) -> datetime | None:
        return self.now()

    def monotonic(self) -> float:
        return 1_000.0 + self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@contextlib.asynccontextmanager
async def admin_connection(dsn: str) -> AsyncIterator[Any]:
    """A connection that takes no turns."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()
