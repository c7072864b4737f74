"""The job table: no job is claimed twice, leases and epochs decide, pins hold, nobody is overseen, pace is exact."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime, timedelta

from tidings import ids
from tidings.db.pool import Database
from tidings.engine import jobs as queue
from tidings.engine.gate import Limits, Told, apply_opening, lease_pace, load_told
from tidings.engine.jobs import FEEDER, LAST_FEEDER, Job, NewJob, Retry
from tidings.engine.shares import Share

NOW = datetime(2031, 3, 14, 12, tzinfo=UTC)
LEASE = timedelta(seconds=30)
RNG = random.Random(3)
KIND, LANE = 2, 1


def new(
    project: int = 1, priority: int = 2, lane: int = LANE, due: datetime | None = None, pin: int | None = None
) -> NewJob:
    return NewJob(ids.new_id(NOW, RNG), project, KIND, lane, priority, due, pin)


async def insert(database: Database, jobs: list[NewJob]) -> None:
    await database.transaction(lambda conn: queue.insert_jobs(conn, jobs, NOW))


async def claim(
    database: Database, n: int, account: int | None = 7, now: datetime = NOW, project: int = 1
) -> list[Job]:
    return await queue.claim_jobs(database, [Share(LANE, 2, project, account, n)], lease=LEASE, now=now)


async def test_no_job_is_claimed_twice_and_none_is_left(database: Database) -> None:
    await insert(database, [new(project=1 + i % 3) for i in range(300)])

    async def worker(account: int) -> list[Job]:
        mine: list[Job] = []
        shares = [Share(LANE, 2, project, account, 7) for project in (1, 2, 3)]
        while claimed := await queue.claim_jobs(database, shares, lease=LEASE, now=NOW):
            mine += claimed
        return mine

    claimed = [job for mine in await asyncio.gather(*(worker(a) for a in range(1, 9))) for job in mine]
    assert len(claimed) == len({job.id for job in claimed}) == 300
    assert {job.epoch for job in claimed} == {1}


async def test_the_oldest_goes_first_and_nobody_waits_for_a_locked_one(database: Database) -> None:
    jobs = [new(due=NOW - timedelta(seconds=s)) for s in (10, 30, 20)]
    await insert(database, [*jobs, new(due=NOW + timedelta(seconds=1))])
    async with database.acquire() as other:
        await other.execute("BEGIN")
        await other.execute("SELECT 1 FROM job WHERE id = $1 FOR UPDATE", jobs[1].id)
        assert [job.id for job in await claim(database, 1)] == [jobs[2].id]
        await other.execute("ROLLBACK")
    assert {job.id for job in await claim(database, 9)} == {jobs[0].id, jobs[1].id}
    assert await claim(database, 9) == []


async def test_a_pin_beats_the_choice_and_survives_release(database: Database) -> None:
    free, pinned = new(), new(pin=3)
    await insert(database, [free, pinned])
    claimed = {job.id: job for job in await claim(database, 2, account=7)}
    assert (claimed[free.id].account_id, claimed[free.id].pin) == (7, None)
    assert (claimed[pinned.id].account_id, claimed[pinned.id].pin) == (3, 3)
    await queue.release_jobs(database, sorted(claimed.values()))
    again = {job.id: job for job in await claim(database, 2, account=8)}
    assert (again[free.id].account_id, again[pinned.id].account_id) == (8, 3)
    assert {job.epoch for job in again.values()} == {2}


async def test_only_the_newest_claim_decides(database: Database) -> None:
    await insert(database, [new()])
    [first] = await claim(database, 1)
    [expired] = await database.transaction(lambda c: queue.lock_expired(c, 9, NOW + LEASE * 2))
    assert expired.epoch == first.epoch

    async def free(conn: object) -> set[queue.Claim]:
        return await queue.retry_jobs(conn, [Retry(expired, timedelta(0), None, 1)], NOW)  # type: ignore[arg-type]  # a connection

    assert await database.transaction(free) == {(first.id, first.epoch)}
    # Freed, not claimed again: a late worker may not renew, but may still complete it.
    assert await queue.extend_leases(database, [first], lease=LEASE, now=NOW) == set()
    [second] = await claim(database, 1)
    assert (second.epoch, second.attempt) == (2, 1)
    assert await database.transaction(lambda c: queue.finish_jobs(c, [first])) == set()
    assert await database.transaction(lambda c: queue.retry_jobs(c, [Retry(first, LEASE, None, 1)], NOW)) == set()
    await queue.release_jobs(database, [first])
    assert await claim(database, 1) == []
    assert await queue.extend_leases(database, [first, second], lease=LEASE, now=NOW) == {first.id}
    assert await database.transaction(lambda c: queue.finish_jobs(c, [second])) == {(second.id, second.epoch)}


async def test_leases_are_renewed_and_swept_by_virtual_time(database: Database) -> None:
    await insert(database, [new() for _ in range(3)])
    jobs = sorted(await claim(database, 3))
    half = NOW + LEASE / 2
    assert await queue.extend_leases(database, jobs[:1], lease=LEASE, now=half) == {jobs[0].id}
    swept = await database.transaction(lambda c: queue.lock_expired(c, 9, NOW + LEASE * 1.1))
    assert [job.id for job in swept] == [jobs[1].id, jobs[2].id]
    assert await database.transaction(lambda c: queue.lock_expired(c, 9, NOW + LEASE)) == []


async def test_discovery_sees_everybody_however_many_only_have_scheduled_work(database: Database) -> None:
    later = NOW + timedelta(hours=1)
    await insert(
        database,
        [new(project=p, due=later) for p in range(1, 100)]
        + [new(project=p) for p in range(100, 150) for _ in range(3)]
        + [new(project=120, priority=0)],
    )
    seen: Counter[tuple[int, int]] = Counter()
    after = 0
    for _ in range(20):
        page = await queue.load_waiting(
            database, (LANE, LANE), count=2, projects=8, after_project=after, ahead=0, now=NOW
        )
        assert all(w.waiting <= 2 for w in page)
        seen.update((w.priority, w.project_id) for w in page)
        after = queue.decide_next_page(page, 8)
        if not after:
            break
    assert set(seen) == {(2, p) for p in range(100, 150)} | {(0, 120)}


async def test_a_feeder_lane_sees_how_full_the_fullest_of_its_lanes_is(database: Database) -> None:
    await insert(
        database,
        [new(lane=FEEDER + 0b10010), new(lane=FEEDER + 0b10000), new(project=2, lane=FEEDER + 0b10)]
        + [new(lane=1) for _ in range(5)]
        + [new(lane=4) for _ in range(30)]
        + [new(lane=1, due=NOW + timedelta(hours=1)) for _ in range(5)],
    )
    await claim(database, 2)  # leased work counts too
    found = await queue.load_waiting(
        database, (FEEDER, LAST_FEEDER), count=9, projects=9, after_project=0, ahead=20, now=NOW
    )
    assert {(w.lane - FEEDER, w.project_id): w.ahead for w in found} == {
        (0b10010, 1): 20,
        (0b10000, 1): 20,
        (0b10, 2): 0,
    }


async def _account(database: Database) -> int:
    project = await database.fetchval("INSERT INTO project (key, name) VALUES ('p', '') RETURNING id")
    account: int = await database.fetchval(
        "INSERT INTO account (project_id, key, channel, provider) VALUES ($1, 'a', 1, 'smtp') RETURNING id", project
    )
    await database.execute("INSERT INTO account_state (account_id, project_id) VALUES ($1, $2)", account, project)
    return account


async def test_pace_is_exact_over_all_workers(database: Database) -> None:
    account = await _account(database)
    project = await database.fetchval("SELECT project_id FROM account")
    for rate, burst in ((7.0, 1), (33.3, 5), (250.0, 20)):
        await database.execute("UPDATE account_state SET tat = '-infinity'")
        limits = Limits(account, project, 100, rate, burst)
        granted, seconds = 0, 20.0
        steps = int(seconds / 0.04)
        for step in range(steps):
            now = NOW + timedelta(seconds=step * 0.04)
            # Three workers ask in the same moment.
            asked = await asyncio.gather(*(lease_pace(database, {account: (limits, 50)}, now) for _ in range(3)))
            granted += sum(a.get(account, 0) for a in asked)
            assert granted <= rate * (step * 0.04 + 0.1) + burst + 1
        assert granted >= rate * (steps - 1) * 0.04 + burst - 1


async def test_a_pace_that_is_far_booked_ahead_grants_nothing_and_breaks_nothing(database: Database) -> None:
    account = await _account(database)
    project = await database.fetchval("SELECT project_id FROM account")
    await database.execute("UPDATE account_state SET tat = $1", NOW + timedelta(days=40))
    for rate, burst in ((10_000.0, 1), (0.00001, 1_000_000)):
        asked = {account: (Limits(account, project, 100, rate, burst), 50)}
        assert (await lease_pace(database, asked, NOW)).get(account, 0) in (0, 50)


async def test_an_opening_is_told_and_never_shortened(database: Database) -> None:
    account = await _account(database)
    project = await database.fetchval("SELECT project_id FROM account")
    limits = Limits(account, project, 1)
    await apply_opening(database, limits, timedelta(seconds=20), NOW)
    await apply_opening(database, limits, timedelta(seconds=2), NOW)
    assert await load_told(database, [account], NOW + timedelta(seconds=5)) == {account: Told(shut_for=15.0)}
    assert await load_told(database, [account], NOW + timedelta(seconds=20)) == {}


async def test_lag_tells_only_of_due_work_that_nobody_holds(database: Database) -> None:
    now = await database.fetchval("SELECT now()")
    ago, later = timedelta(seconds=100), timedelta(hours=1)
    await insert(
        database,
        [new(project=p, due=now - ago * p) for p in (1, 2)] + [new(due=now + later), new(project=3, due=now - ago * 9)],
    )
    await database.execute("UPDATE job SET lease_until = $1 WHERE project_id = 3", now + later)
    [(lane, depth, seconds)] = await database.transaction(queue.load_lag)
    assert (lane, depth) == (LANE, 2)
    assert 200 <= seconds < 300
