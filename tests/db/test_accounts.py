"""Quotas, usage, health and learned pace of accounts, on a real database."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.db.road import KEY, HandClock, Road, make_project
from tidings.db.pool import Connection, Database
from tidings.directory.accounts import AccountPlan, AccountState, Allowance, Quotas, load_states, put_account
from tidings.directory.audit import Actor
from tidings.directory.credentials import Vault
from tidings.engine.gate import Limits, Quota, load_told
from tidings.engine.health import Pulse, weigh_accounts
from tidings.engine.quota import Charged, Exhausted, Purses, forget_usage
from tidings.model.messages import Rejected, Sent, Throttled, Uncertain
from tidings.model.words import Channel, Reason, Status

SMTP = {"host": "mail.example.com", "from_address": "a@example.com"}


@pytest.fixture
async def road(database: Database) -> Road:
    return Road(database, await database.transaction(make_project))


async def put(road: Road, key: str, **more: Any) -> int:
    plan = AccountPlan("email", "smtp", SMTP, **{"concurrency": 400, **more})

    async def work(conn: Connection) -> None:
        await put_account(conn, Actor(road.project_id, "system"), Vault([KEY]), key, plan)

    await road.database.transaction(work)
    road.catalog.forget_all()
    account: int = await road.database.fetchval("SELECT id FROM account WHERE key = $1", key)
    return account


async def state(road: Road, key: str = "smtp") -> AccountState:
    return (await load_states(road.database, road.project_id, [key], road.clock.now()))[key]


async def usage(database: Database) -> dict[tuple[int, str], tuple[int, int]]:
    rows = await database.fetch("SELECT * FROM account_usage")
    return {(row["period"], str(row["begins"])): (row["messages"], row["spend"]) for row in rows}


class Noon(HandClock):
    """A day in the middle of a month."""

    def __init__(self) -> None:
        super().__init__(1)
        self._now = datetime(2027, 3, 30, 12, tzinfo=UTC)


async def drive(purses: Purses, limits: Limits, cost: int, n: int) -> int:
    """How many of `n` messages may go."""
    return sum([isinstance(await purses.charge(limits, cost), Charged) for _ in range(n)])


async def test_all_workers_together_never_exceed_a_quota(road: Road) -> None:
    account, clock = await put(road, "smtp"), Noon()
    limits = Limits(account, road.project_id, 64, quota=Quota(day_messages=150, month_spend=1_000))
    workers = [Purses(road.database, clock) for _ in range(3)]
    went = sum(await asyncio.gather(*(drive(w, limits, 3, 70) for w in workers)))
    assert went <= 150
    held = 150 - went
    assert held <= 3 * 10, "one lease each"
    for worker in workers:
        await worker.flush(everything=True)
    assert (await usage(road.database))[1, "2027-03-30"] == (went, went * 3)
    last = Purses(road.database, clock)
    assert await drive(last, limits, 3, 200) == held, "what was given back can be used"
    assert isinstance(await last.charge(limits, 3), Exhausted)
    clock.move(86_400)  # the next day; of the month's money 550 is left
    assert await drive(last, limits, 3, 200) == 150
    await last.flush(everything=True)
    assert (await usage(road.database))[2, "2027-03-01"] == (300, 900)
    clock.move(86_400)  # the next month
    assert await drive(last, limits, 3, 200) == 150


async def test_sends_of_one_worker_share_its_lease(road: Road) -> None:
    account, clock = await put(road, "smtp"), Noon()
    limits = Limits(account, road.project_id, 64, quota=Quota(day_messages=70))
    purses = Purses(road.database, clock)
    answers = await asyncio.gather(*(purses.charge(limits, 1) for _ in range(100)))
    assert sum(isinstance(a, Charged) for a in answers) == 70
    assert [a.began for a in answers if isinstance(a, Exhausted)].count(True) == 1, "it is told once"
    assert (await usage(road.database))[1, "2027-03-30"][0] == 70


async def test_money_runs_out_before_messages_do(road: Road) -> None:
    account, clock = await put(road, "smtp"), Noon()
    limits = Limits(account, road.project_id, 64, quota=Quota(month_spend=1_000))
    purses = Purses(road.database, clock)
    assert await drive(purses, limits, 300, 9) == 3
    refused = await purses.charge(limits, 300)
    assert isinstance(refused, Exhausted)
    assert refused.seconds == pytest.approx(1.5 * 86_400, abs=5)
    assert isinstance(await purses.charge(limits, 100), Charged), "a cheaper one still fits"
    assert isinstance(await purses.charge(limits, 100), Exhausted)
    assert isinstance(await purses.charge(limits, 0), Charged)
    clock.move(1.5 * 86_400 + 1)
    assert await drive(purses, limits, 300, 9) == 3
    assert {key: spent for key, (_, spent) in (await usage(road.database)).items()} == {
        (1, "2027-03-30"): 1_000,
        (2, "2027-03-01"): 1_000,
        (1, "2027-04-01"): 900,
        (2, "2027-04-01"): 900,
    }


async def test_what_is_idle_or_of_yesterday_goes_back(road: Road) -> None:
    account, clock = await put(road, "smtp"), Noon()
    limits = Limits(account, road.project_id, 64, quota=Quota(day_messages=10_000))
    purses = Purses(road.database, clock)
    assert await drive(purses, limits, 2, 3) == 3
    taken = (await usage(road.database))[1, "2027-03-30"]
    assert taken[0] > 3
    await purses.flush()
    assert (await usage(road.database))[1, "2027-03-30"] == taken, "it may be used in a moment"
    clock.move(6)
    await purses.flush()
    assert set((await usage(road.database)).values()) == {(3, 6)}
    last = await purses.charge(limits, 2)
    assert isinstance(last, Charged)
    clock.move(86_400)
    assert isinstance(await purses.charge(limits, 2), Charged)
    purses.refund(last)  # the vendor answers after midnight
    await purses.flush(everything=True)
    found = await usage(road.database)
    assert found[1, "2027-03-30"] == (3, 6)
    assert found[1, "2027-03-31"] == (1, 2)
    assert found[2, "2027-03-01"] == (4, 8)
    await forget_usage(road.database, datetime(2027, 3, 31, tzinfo=UTC))
    assert list(await usage(road.database)) == [(1, "2027-03-31")]


async def test_usage_without_quotas_is_counted_afterwards(road: Road) -> None:
    account = await put(road, "smtp", costs={"*": 0.5}, currency="EUR")
    for user in ("ada", "bob", "cleo"):
        await road.accept(to={"user": user})
    await road.plan()
    road.vendor.answers = [Sent(), Uncertain(), Rejected(Reason.content_rejected)]
    assert await road.send() == 3
    assert await usage(road.database) == {}
    await road.sender.tell()
    assert set((await usage(road.database)).values()) == {(2, 1_000_000)}, "the refused one is not counted"
    told = await state(road)
    assert (told.used_today.messages, told.used_today.spend) == (2, 1.0)
    assert (told.used_this_month.messages, told.used_this_month.spend) == (2, 1.0)
    await road.sender.tell()  # nothing new
    await road.database.execute("DELETE FROM account WHERE id = $1", account)
    await road.sender.purses.charge(Limits(account, road.project_id, 1), 1)
    await road.sender.tell()  # of an account that is gone
    assert await usage(road.database) == {}


async def test_another_account_takes_over_when_a_quota_is_exhausted(road: Road) -> None:
    small = await put(road, "smtp", quotas=Quotas(day=Allowance(messages=2)), weight=1_000_000)
    large = await put(road, "other", weight=1)
    for _ in range(6):
        await road.accept()
    await road.plan()
    while await road.send():
        pass
    rows = await road.deliveries()
    assert [row["status"] for row in rows] == [Status.sent] * 6
    assert sorted(row["account_id"] for row in rows) == [small] * 2 + [large] * 4
    assert {row["attempts"] for row in rows} == {1}, "waiting for a quota costs no attempt"
    told = await state(road)
    assert told.exhausted_until is not None
    assert told.exhausted_until.date() == (road.clock.now() + timedelta(days=1)).date()
    assert (told.used_today.messages, (await state(road, "other")).exhausted_until) == (2, None)


async def test_work_waits_for_the_quota_but_expires_and_is_tested_meanwhile(road: Road) -> None:
    await put(road, "smtp", quotas=Quotas(day=Allowance(messages=1)))
    await road.accept()
    await road.plan()
    assert await road.send() == 1
    await road.accept()
    await road.plan()
    assert await road.send() == 1  # now it is known
    waits = await road.accept()
    in_ten_minutes = road.clock.now() + timedelta(minutes=10)
    expires = await road.accept(expires_at=in_ten_minutes.isoformat())
    test = await road.accept(to={"email": "deliver@simulator.test"})
    road.clock.move(5)
    await road.plan()
    await road.send()
    assert (await road.deliveries(test))[0]["status"] in (Status.sent, Status.delivered)
    assert (await road.deliveries(waits))[0]["status"] == Status.queued
    for _ in range(60):
        road.clock.move(15)
        await road.send()
    assert (await road.deliveries(expires))[0]["status"] == Status.expired
    assert len(road.vendor.sent) == 1
    # An operator raises the quota: no waiting for the next day.
    await put(road, "smtp", quotas=Quotas(day=Allowance(messages=50)))
    assert (await state(road)).exhausted_until is None
    for _ in range(3):
        road.clock.move(15)
        await road.send()
    assert (await road.deliveries(waits))[0]["status"] == Status.sent
    assert len(road.vendor.sent) == 3
    assert (await road.deliveries(waits))[0]["attempts"] == 1


async def test_a_bad_account_loses_weight_and_gets_it_back(road: Road) -> None:
    bad = await put(road, "smtp")
    good = await put(road, "other")
    pulse = Pulse(road.database, road.clock)
    for _ in range(4):
        for _ in range(50):
            pulse.observe_answer(bad, failed=True, throttled_for=None)
            pulse.observe_answer(good, failed=False, throttled_for=None)
        await pulse.flush()
        road.clock.move(5)
        assert await weigh_accounts(road.database, road.clock) == 2
        assert await weigh_accounts(road.database, road.clock) == 0, "not so soon again"
    told = await state(road)
    assert told.health < 0.2
    assert told.effective_weight == pytest.approx(75, abs=6)
    assert (await state(road, "other")).effective_weight == 100
    assert (await load_told(road.database, [bad, good], road.clock.now())).keys() == {bad}
    for _ in range(40):
        road.clock.move(5)
        pulse.observe_answer(bad, failed=False, throttled_for=None)
        await pulse.flush()
        await weigh_accounts(road.database, road.clock)
    assert (await state(road)).effective_weight == 100
    for _ in range(60):  # without a message, the rest of the memory fades
        road.clock.move(5)
        await weigh_accounts(road.database, road.clock)
    assert (await state(road)).health == 1.0
    assert await weigh_accounts(road.database, road.clock) == 0, "a healthy, idle account costs nothing"


async def test_receipts_that_are_slow_with_one_account_move_its_weight(road: Road) -> None:
    slow, quick = await put(road, "smtp"), await put(road, "other")
    pulse = Pulse(road.database, road.clock)
    for _ in range(3):
        pulse.observe_delivered(slow, 120.0)
        pulse.observe_delivered(quick, 2.0)
        await pulse.flush()
        road.clock.move(5)
        await weigh_accounts(road.database, road.clock)
    assert (await state(road)).effective_weight < 90
    assert (await state(road)).health == pytest.approx(5 / 120)
    assert (await state(road, "other")).effective_weight == 100


async def test_the_pace_is_learned_from_throttling(road: Road) -> None:
    account = await put(road, "smtp")
    for _ in range(40):
        await road.accept()
    await road.plan()
    road.vendor.answers = [*[Sent()] * 30, *[Throttled(timedelta(seconds=30), "slow down")] * 10]
    assert await road.send() == 40
    await road.sender.tell()
    told = await state(road)
    assert told.paused_until is not None
    road.clock.move(5)
    await weigh_accounts(road.database, road.clock)
    told = await state(road)
    assert told.learned_rate is not None
    assert 1 < told.learned_rate < 10
    # All workers hold it, also one that has not been throttled itself.
    road.clock.move(60)
    lane = road.new_lane(Channel.email)
    claimed = []
    for _ in range(8):
        claimed.append(await lane.step())
        await road.finish(lane)
        road.clock.move(1)
    assert 0 < max(claimed) <= told.learned_rate + 1
    for _ in range(60):
        road.clock.move(5)
        await weigh_accounts(road.database, road.clock)
    assert (await state(road)).learned_rate is None
    await road.database.execute("UPDATE account_state SET learned_rate = 1, learned_peak = 2")
    await put(road, "smtp", weight=7)
    assert (await state(road)).learned_rate is None, "another configuration may be another contract"
    assert account


async def test_providers_of_accounts_that_are_gone_are_closed(road: Road) -> None:
    account = await put(road, "smtp")
    await road.accept()
    await road.plan()
    await road.send()
    await road.sender.prune()
    assert account in road.sender._providers
    await put(road, "smtp", enabled=False)
    await road.sender.prune()
    assert account not in road.sender._providers
    assert account not in road.sender._limits
    await road.sender.close()
