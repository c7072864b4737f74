"""Measure: what the road counts, without a hot counter on it.

Each transaction appends a few insert-only delta rows, one per dimension and kind that its batch touched; `fold` moves
them into the roll-ups by the minute. Dashboards read roll-ups plus the deltas not yet folded, and never scan events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from tidings.clock import Clock
from tidings.db.pool import Connection, Database, Runner
from tidings.db.sql import load_queries
from tidings.model.words import EventKind, Reason, Status

SQL: Final = load_queries(__package__, "measure.sql")

FOLD_BATCH: Final = 20_000
CACHED_DIMENSIONS: Final = 50_000


class Dimension(NamedTuple):
    """By what things are counted. 0 and '' stand for none."""

    project_id: int
    type_version_id: int = 0
    category_key: str = ""
    channel: int = 0
    account_id: int = 0
    template_version_id: int = 0
    variant: str = ""
    locale: str = ""
    segments: int = 0
    """The tracked segments that the user was in when it was planned, as bits."""


Counts = Counter[tuple[Dimension, EventKind]]


class Move(NamedTuple):
    """A delivery came to a status: what operators see of it, without whose it is."""

    channel: int
    status: Status
    provider: str | None
    """Of the attempt that it is about; None where there was none."""
    reason: Reason | None


Moves = Counter[Move]
ObserveMoved = Callable[[Moves], None]
"""Told once for each transaction that moved deliveries, after its commit. Those that wait (again) are not among them.
Every stage that moves one has such an observer, so that each is counted where it happened, and once."""


class Meter:
    """Interns dimensions and writes deltas."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._ids: dict[Dimension, int] = {}
        self._met: set[Dimension] = set()
        """Counted without being known beforehand."""

    async def intern(self, dimensions: Iterable[Dimension]) -> None:
        """Make sure that every dimension has its id; before the transaction that counts, so that it holds no locks."""
        new = sorted({d for d in dimensions if d not in self._ids})
        if not new:
            return
        if len(self._ids) > CACHED_DIMENSIONS:
            self._ids.clear()
        self._ids |= await _intern(self._database, new)

    async def catch_up(self) -> None:
        """Remember the dimensions that `apply` had to look up; after its transaction, where nobody could tell before it
        what it would count."""
        met, self._met = self._met, set()
        await self.intern(met)

    async def apply(self, conn: Connection, counts: Counts) -> None:
        """Append the deltas of one batch to its transaction. On busy roads `intern` was called with its dimensions."""
        if not counts:
            return
        known = {d: self._ids.get(d) for d, _ in counts}
        if new := sorted(d for d, id_ in known.items() if id_ is None):
            # On the transaction's own connection (a second one could be waited for in vain), and not remembered: it may
            # roll back.
            known |= await _intern(conn, new)
            if len(self._met) < CACHED_DIMENSIONS:
                self._met.update(new)
        entries = [(known[d], d.project_id, int(kind), n) for (d, kind), n in counts.items()]
        columns = [list(column) for column in zip(*entries, strict=True)]
        await conn.execute(SQL.insert_deltas, *columns, self._clock.db_now())


async def _intern(connection: Runner, dimensions: Sequence[Dimension]) -> dict[Dimension, int]:
    """The ids of dimensions, which are made if need be. Looked up first: each row that is offered in vain uses up a
    number of the table's sequence, and there are only two thousand million."""
    found: dict[Dimension, int] = {}
    for make in (False, True):
        if not (lacking := [d for d in dimensions if d not in found]):
            break
        columns = [list(column) for column in zip(*lacking, strict=True)]
        if make:
            await connection.execute(SQL.insert_dimensions, *columns)
        for row in await connection.fetch(SQL.load_dimensions, *columns):
            found[lacking[row["ord"] - 1]] = row["id"]
    return found


async def fold(database: Database) -> int:
    """Move the deltas into the roll-ups; answers with how many."""
    folded = 0
    while True:
        n: int = await database.fetchval(SQL.fold_deltas, FOLD_BATCH)
        folded += n
        if n < FOLD_BATCH:
            return folded
