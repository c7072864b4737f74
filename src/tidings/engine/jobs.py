"""The job table. Only this file writes it; every function takes the connection whose transaction it belongs to.

A lease and an epoch decide who owns a job: claiming raises the epoch, settling names it. Nothing else has to be
trusted, so workers may die, sleep or answer late.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from tidings.db.pool import Connection, Runner
from tidings.db.sql import load_queries
from tidings.engine.shares import Share, Waiting

SQL: Final = load_queries(__package__, "jobs.sql")

FEEDER: Final = 256
"""A lane of FEEDER + a bit set of lanes produces work for those lanes, and waits while one of them is full."""

LAST_FEEDER: Final = FEEDER + 255
LAG_COUNT: Final = 100_000
"""Depths are counted up to this, for each class and project."""
WAKE_CHANNEL: Final = "tidings_lane"
"""NOTIFY channel; the payload is a lane."""


class NewJob(NamedTuple):
    """Work to insert. `due_at` None means now; `account_id` pins it to one account."""

    id: UUID
    project_id: int
    kind: int
    lane: int
    priority: int
    due_at: datetime | None = None
    account_id: int | None = None
    traceparent: str | None = None


class Job(NamedTuple):
    """Claimed work. The order of the fields is that of the claiming statements' RETURNING lists."""

    id: UUID
    project_id: int
    kind: int
    lane: int
    priority: int
    attempt: int
    """Attempts made before this one."""
    epoch: int
    account_id: int | None
    traceparent: str | None
    pinned: bool = False
    """It had to be this account; else the claim chose it."""

    @property
    def pin(self) -> int | None:
        """The account that it must use, whoever claims it next."""
        return self.account_id if self.pinned else None


Claim = tuple[UUID, int]
"""A job's id and the epoch of one claim: a job may come twice in a batch, once for a claim that it lost."""


class Retry(NamedTuple):
    """How a job goes on."""

    job: Job
    after: timedelta
    account_id: int | None
    attempt: int


async def insert_jobs(conn: Connection, jobs: Sequence[NewJob], now: datetime | None) -> None:
    """Insert new work."""
    if jobs:
        await conn.execute(SQL.insert_jobs, *_columns(jobs), now)


async def load_waiting(
    conn: Runner,
    lanes: tuple[int, int],
    *,
    count: int,
    projects: int,
    after_project: int,
    ahead: int,
    now: datetime | None,
) -> list[Waiting]:
    """What is due on a range of lanes, per class and project; counts stop at `count` (and `ahead` for fed lanes)."""
    rows = await conn.fetch(SQL.load_waiting, *lanes, count, projects, after_project, ahead, now)
    return [Waiting(*row) for row in rows]


def decide_next_page(waiting: Sequence[Waiting], projects: int) -> int:
    """After which project the next discovery goes on; 0: from the beginning, everybody has been seen.

    A class that filled its page may have more projects behind it; the earliest such end counts, so nobody is skipped.
    """
    pages: dict[tuple[int, int], list[int]] = {}
    for w in waiting:
        pages.setdefault((w.lane, w.priority), []).append(w.project_id)
    return min((max(page) for page in pages.values() if len(page) >= projects), default=0)


async def claim_jobs(conn: Runner, shares: Sequence[Share], *, lease: timedelta, now: datetime | None) -> list[Job]:
    """Lease what the shares say; fewer come back when other workers were faster."""
    rows = await conn.fetch(
        SQL.claim_jobs,
        [s.lane for s in shares],
        [s.priority for s in shares],
        [s.project_id for s in shares],
        [s.account_id for s in shares],
        [s.n for s in shares],
        lease,
        now,
    )
    return [Job(*row) for row in rows]


async def lock_jobs(conn: Connection, shares: Sequence[Share], *, now: datetime | None) -> list[Job]:
    """Lock what the shares say until the transaction ends; for work without network."""
    rows = await conn.fetch(
        SQL.lock_jobs,
        [s.lane for s in shares],
        [s.priority for s in shares],
        [s.project_id for s in shares],
        [s.n for s in shares],
        now,
    )
    return [Job(*row) for row in rows]


async def extend_leases(conn: Runner, jobs: Sequence[Job], *, lease: timedelta, now: datetime | None) -> set[UUID]:
    """Renew the leases that are still ours; answers with their ids."""
    rows = await conn.fetch(SQL.extend_leases, [j.id for j in jobs], [j.epoch for j in jobs], lease, now)
    return {row[0] for row in rows}


async def finish_jobs(conn: Connection, jobs: Sequence[Job]) -> set[Claim]:
    """Delete the jobs whose claim is the newest; answers with these claims. Pass them sorted by id."""
    if not jobs:
        return set()
    rows = await conn.fetch(SQL.finish_jobs, [j.id for j in jobs], [j.epoch for j in jobs])
    return {(row[0], row[1]) for row in rows}


async def retry_jobs(conn: Runner, retries: Sequence[Retry], now: datetime | None) -> set[Claim]:
    """Free the jobs whose claim is the newest and set when they are due again; answers with these claims. Pass them
    sorted by id."""
    if not retries:
        return set()
    rows = await conn.fetch(
        SQL.retry_jobs,
        [r.job.id for r in retries],
        [r.job.epoch for r in retries],
        [r.after for r in retries],
        [r.account_id for r in retries],
        [r.attempt for r in retries],
        now,
    )
    return {(row[0], row[1]) for row in rows}


async def reschedule_jobs(conn: Connection, jobs: Sequence[NewJob], now: datetime | None) -> None:
    """Let jobs that the caller has locked go on as something else, or later; only kind, lane, priority and time change,
    and the attempts count from zero."""
    if jobs:
        await conn.execute(
            SQL.reschedule_jobs,
            [j.id for j in jobs],
            [j.kind for j in jobs],
            [j.lane for j in jobs],
            [j.priority for j in jobs],
            [j.due_at for j in jobs],
            now,
        )


async def advance_jobs(conn: Connection, kind: int, ids: Sequence[UUID], now: datetime | None) -> Collection[int]:
    """Make waiting jobs of this kind due now; answers with the lanes of those that were. Waits for whoever holds one:
    what they write then is seen. Pass the ids sorted."""
    rows = await conn.fetch(SQL.advance_jobs, ids, kind, now) if ids else []
    return {row[0] for row in rows}


async def release_jobs(conn: Runner, jobs: Sequence[Job]) -> None:
    """Give claimed jobs back unused."""
    if jobs:
        await conn.execute(SQL.release_jobs, [j.id for j in jobs], [j.epoch for j in jobs], [j.pin for j in jobs])


async def lock_expired(conn: Connection, limit: int, now: datetime | None) -> list[Job]:
    """Lock jobs whose lease ran out; sorted by id."""
    return sorted(Job(*row) for row in await conn.fetch(SQL.lock_expired, limit, now))


async def remove_free_jobs(conn: Connection, project_id: int, ids: Iterable[UUID]) -> set[UUID]:
    """Delete the unclaimed jobs among `ids`; waits for whoever holds one of them right now."""
    rows = await conn.fetch(SQL.remove_free_jobs, project_id, sorted(ids))
    return {row[0] for row in rows}


async def load_jobs(conn: Connection, project_id: int, ids: Iterable[UUID]) -> dict[UUID, Any]:
    """The job rows among `ids` (due_at, attempt, epoch, leased), by id."""
    return {row["id"]: row for row in await conn.fetch(SQL.load_jobs, project_id, list(ids))}


async def load_lag(conn: Connection) -> list[tuple[int, int, float]]:
    """The lanes with due work that nobody holds: how much, and the age in seconds of the oldest; feeder lanes by their
    own numbers."""
    return [(row["lane"], row["depth"], row["seconds"]) for row in await conn.fetch(SQL.load_lag, LAG_COUNT)]


def _columns(jobs: Sequence[NewJob]) -> list[list[Any]]:
    return [list(column) for column in zip(*jobs, strict=True)]
