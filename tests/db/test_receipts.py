"""Receipts on the real road: they meet their sends whichever comes first, and count once."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import pytest
from road import Road, make_project

from tidings import ids
from tidings.db.pool import Database
from tidings.flow.receipts import Fact, Receiver
from tidings.model.messages import Deferred, Sent, Uncertain
from tidings.model.words import Channel, EventKind, Reason, Status
from tidings.providers.port import Inbound, ReceiptAuth, Report


@pytest.fixture
async def road(database: Database) -> Road:
    return Road(database, await database.transaction(make_project))


async def sent(road: Road, *, provider_id: str | None = None) -> Any:
    """One delivery that was sent."""
    road.vendor.answers = [Sent(provider_id)]
    notification = await road.accept()
    await road.plan()
    await road.send()
    [delivery] = await road.deliveries(notification)
    return delivery


def receiver(road: Road) -> Receiver:
    return Receiver(road.database, road.meter, road.clock)


async def record(road: Road, delivery: Any, *kinds: EventKind, account: int | None = None, **more: Any) -> int:
    key = ids.to_public(ids.DELIVERY, delivery["id"])
    account = account if account is not None else delivery["account_id"]
    return await receiver(road).record([Fact(road.project_id, account, Report(k, key=key, **more)) for k in kinds])


async def now(road: Road, delivery: Any) -> Any:
    [row] = await road.deliveries(delivery["notification_id"])
    return row


async def test_what_a_vendor_reports_moves_the_delivery_and_counts_once(road: Road) -> None:
    delivery = await sent(road)
    assert delivery["status"] == Status.sent
    kinds = (EventKind.delivered, EventKind.opened, EventKind.clicked)
    assert await record(road, delivery, *kinds, provider_id="m-1") == 3
    assert await record(road, delivery, *kinds, provider_id="m-1") == 0, "a repetition is known"
    row = await now(road, delivery)
    assert (row["status"], row["engagement"], row["machine_engagement"]) == (Status.delivered, 2 | 4, 0)
    assert row["delivered_at"] is not None
    counts = await road.recount()
    assert [counts[k] for k in (EventKind.sent, *kinds)] == [1, 1, 1, 1]


async def test_machines_are_counted_apart(road: Road) -> None:
    delivery = await sent(road)
    await record(road, delivery, EventKind.opened, machine=True)
    row = await now(road, delivery)
    assert (row["engagement"], row["machine_engagement"]) == (0, 2)
    counts = await road.recount()
    assert counts[EventKind.machine_opened] == 1
    assert EventKind.opened not in counts


async def test_a_bounce_after_delivery_fails_it_and_suppresses_the_address(road: Road) -> None:
    delivery = await sent(road)
    await record(road, delivery, EventKind.delivered)
    await record(road, delivery, EventKind.failed, reason=Reason.bounced, detail={"smtp": "550 5.1.1"})
    row = await now(road, delivery)
    assert (row["status"], row["reason"]) == (Status.failed, "bounced")
    [suppression] = await road.database.fetch("SELECT address, stream, reason FROM suppression")
    assert tuple(suppression) == ("ada@example.com", "", "bounced")
    detail = await road.database.fetchval("SELECT detail::text FROM event WHERE kind = 4")
    assert json.loads(detail)["receipt"] == {"smtp": "550 5.1.1"}
    again = await road.accept()
    await road.plan()
    [skipped] = await road.deliveries(again)
    assert (skipped["status"], skipped["reason"]) == (Status.skipped, "suppressed")


async def test_a_complaint_stops_its_category_and_no_other(road: Road) -> None:
    delivery = await sent(road)
    await record(road, delivery, EventKind.complained)
    row = await now(road, delivery)
    assert (row["status"], row["engagement"]) == (Status.sent, 64)
    again = await road.accept()
    direct = await road.accept(to={"email": "ada@example.com"}, type=None, content={"subject": "Hi", "text": "Hi"})
    await road.plan()
    assert [d["reason"] for d in await road.deliveries(again)] == ["suppressed"]
    assert [d["status"] for d in await road.deliveries(direct)] == [Status.queued]


async def test_a_receipt_of_another_account_or_project_moves_nothing(road: Road) -> None:
    delivery = await sent(road)
    assert await record(road, delivery, EventKind.delivered, account=999_999) == 0
    key = ids.to_public(ids.DELIVERY, delivery["id"])
    fact = Fact(road.project_id + 1, delivery["account_id"], Report(EventKind.delivered, key=key))
    assert await receiver(road).record([fact]) == 0
    assert (await now(road, delivery))["status"] == Status.sent


@pytest.mark.parametrize("early", [False, True])
async def test_a_vendor_that_knows_only_its_own_id_is_met_whoever_comes_first(road: Road, early: bool) -> None:
    road.vendor.spec = dataclasses.replace(road.vendor.spec, receipts=ReceiptAuth.signature)  # type: ignore[misc]
    account = await road.database.fetchval("SELECT id FROM account WHERE key = 'smtp'")
    fact = Fact(road.project_id, account, Report(EventKind.delivered, provider_id="SM-1"))
    if early:
        assert await receiver(road).record([fact, fact]) == 0
        assert await road.count("early_receipt") == 1
        delivery = await sent(road, provider_id="SM-1")
    else:
        delivery = await sent(road, provider_id="SM-1")
        assert await receiver(road).record([fact]) == 1
    row = await now(road, delivery)
    assert (row["status"], row["provider_id"]) == (Status.delivered, "SM-1")
    assert await road.count("early_receipt") == 0
    assert await receiver(road).record([fact]) == 0, "the repetition that comes after both"
    counts = await road.recount()
    assert (counts[EventKind.sent], counts[EventKind.delivered]) == (1, 1)


async def test_receipt_and_settling_at_the_same_moment_meet(road: Road) -> None:
    road.vendor.spec = dataclasses.replace(road.vendor.spec, receipts=ReceiptAuth.signature)  # type: ignore[misc]
    account = await road.database.fetchval("SELECT id FROM account WHERE key = 'smtp'")
    book = receiver(road)
    for i in range(20):
        road.vendor.answers = [Sent(f"SM-{i}")]
        notification = await road.accept()
        await road.plan()
        report = Report(EventKind.delivered, provider_id=f"SM-{i}")
        await asyncio.gather(road.send(), book.record([Fact(road.project_id, account, report)]))
        [row] = await road.deliveries(notification)
        assert row["status"] == Status.delivered
    assert await road.count("early_receipt") == 0


async def test_a_delivered_receipt_before_settling_ends_the_delivery(road: Road) -> None:
    road.vendor.may_answer.clear()
    notification = await road.accept()
    await road.plan()
    lane = road.lanes[Channel.email]
    await lane.step()
    await road.vendor.called.wait()
    [delivery] = await road.deliveries(notification)
    account = await road.database.fetchval("SELECT account_id FROM job WHERE id = $1", delivery["id"])
    assert await record(road, delivery, EventKind.delivered, account=account) == 1
    road.vendor.may_answer.set()
    await road.finish(lane)
    assert (await now(road, delivery))["status"] == Status.delivered
    assert await road.count("job") == 0


async def test_a_receipt_lifts_what_nobody_knew(road: Road) -> None:
    road.vendor.answers = [Uncertain("no answer")]
    notification = await road.accept(guarantee="at_most_once")
    await road.plan()
    await road.send()
    [delivery] = await road.deliveries(notification)
    assert (delivery["status"], delivery["reason"]) == (Status.failed, "uncertain")
    assert await road.count("dead_letter") == 1
    await record(road, delivery, EventKind.opened)
    row = await now(road, delivery)
    assert (row["status"], row["reason"], row["engagement"]) == (Status.delivered, None, 2)
    assert await road.count("dead_letter") == 0


async def test_a_dead_number_reported_late_is_suppressed_although_a_retry_waits(road: Road) -> None:
    road.vendor.answers = [Deferred(Reason.provider_error)]
    notification = await road.accept()
    await road.plan()
    await road.send()
    [delivery] = await road.deliveries(notification)
    await record(road, delivery, EventKind.failed, reason=Reason.invalid_address)
    assert (await now(road, delivery))["status"] == Status.failed
    road.clock.move(3600)
    await road.send()
    assert await road.count("job") == 0
    assert len(road.vendor.sent) == 1


async def test_stop_and_start_concern_the_sender_they_were_said_to(road: Road) -> None:
    book = receiver(road)
    stop = Inbound("+4915112345678", "+15550001", "STOP", "in-1", keyword="stop")
    assert await book.record_inbound(road.project_id, 1, Channel.sms, [stop]) == 1
    assert await book.record_inbound(road.project_id, 1, Channel.sms, [stop]) == 0
    [row] = await road.database.fetch("SELECT address, stream, reason FROM suppression")
    assert tuple(row) == ("+4915112345678", "sender:+15550001", "opted_out")
    start = Inbound("+4915112345678", "+15550002", "START", "in-2", keyword="start")
    await book.record_inbound(road.project_id, 1, Channel.sms, [start])
    assert await road.count("suppression") == 1, "START to another sender changes nothing"
    start = Inbound("+4915112345678", "+15550001", "START", "in-3", keyword="start")
    await book.record_inbound(road.project_id, 1, Channel.sms, [start])
    assert await road.count("suppression") == 0
    assert await road.count("inbound_message") == 3
