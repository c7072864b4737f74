"""Receipts on the real road: they meet their sends whichever comes first, and count once."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import msgspec
import pytest

from tests.db.road import Road, make_project
from tidings import ids
from tidings.db.pool import Database
from tidings.flow.inbound import InboundRecorder, forget_inbound
from tidings.flow.measure import Meter, Move
from tidings.flow.receipts import SQL, Fact, Receiver
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
    return Receiver(road.database, road.meter, road.clock, observe_moved=road.moves.update)


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
    assert road.moves == {
        Move(Channel.email, Status.sent, "smtp", None): 1,
        Move(Channel.email, Status.delivered, "smtp", None): 1,
    }


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


async def test_settling_takes_its_locks_in_the_order_of_receipts(road: Road) -> None:
    road.vendor.spec = dataclasses.replace(road.vendor.spec, receipts=ReceiptAuth.signature)  # type: ignore[misc]
    account = await road.database.fetchval("SELECT id FROM account WHERE key = 'smtp'")
    road.vendor.answers = [Sent("SM-1")]
    notification = await road.accept()
    await road.plan()
    [delivery] = await road.deliveries(notification)
    async with road.database.acquire() as receipt:
        await receipt.execute("BEGIN")
        await receipt.fetch(SQL.resolve_refs, [account], ["SM-1"], [road.project_id], [None], None)
        sending = asyncio.create_task(road.send())
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        while not await road.database.fetchval(waits):
            assert not sending.done(), "it did not wait for the receipt"
        # Else the two would wait for each other when the receipt's batch is about this delivery as well.
        await receipt.execute("SELECT FROM delivery WHERE id = $1 FOR UPDATE NOWAIT", delivery["id"])
        await receipt.execute("COMMIT")
    await sending
    assert (await now(road, delivery))["status"] == Status.sent


async def test_an_early_event_about_two_recipients_is_two_facts(road: Road) -> None:
    road.vendor.spec = dataclasses.replace(road.vendor.spec, receipts=ReceiptAuth.signature)  # type: ignore[misc]
    account = await road.database.fetchval("SELECT id FROM account WHERE key = 'smtp'")
    copied = Report(EventKind.failed, reason=Reason.bounced, provider_id="SM-1", event_id="e", address="cc@example.com")
    own = msgspec.structs.replace(copied, address="ada@example.com")
    facts = [Fact(road.project_id, account, report) for report in (copied, own)]
    assert await receiver(road).record([*facts, *facts]) == 0
    assert await road.count("early_receipt") == 2
    road.vendor.answers = [Sent("SM-1")]
    notification = await road.accept(options={"email": {"cc": ["cc@example.com"]}})
    await road.plan()
    await road.send()
    [row] = await road.deliveries(notification)
    assert (row["status"], row["reason"]) == (Status.failed, Reason.bounced)


async def test_an_early_receipt_that_nobody_can_read_keeps_no_send_from_being_settled(road: Road) -> None:
    road.vendor.spec = dataclasses.replace(road.vendor.spec, receipts=ReceiptAuth.signature)  # type: ignore[misc]
    account = await road.database.fetchval("SELECT id FROM account WHERE key = 'smtp'")
    fact = Fact(road.project_id, account, Report(EventKind.delivered, provider_id="SM-1"))
    await receiver(road).record([fact])
    await road.database.execute("""UPDATE early_receipt SET report = '{"kind": "of a later version"}'""")
    delivery = await sent(road, provider_id="SM-1")
    assert delivery["status"] == Status.sent


async def test_a_failure_that_is_repeated_after_a_replay_fails_nothing_again(road: Road) -> None:
    delivery = await sent(road)
    bounce: dict[str, Any] = {"provider_id": "m-1", "reason": Reason.too_large}
    assert await record(road, delivery, EventKind.failed, **bounce) == 1
    assert (await now(road, delivery))["status"] == Status.failed
    assert await road.intervener.replay(road.caller, delivery_ids=None) == 1
    assert await record(road, delivery, EventKind.failed, **bounce) == 0
    assert (await now(road, delivery))["status"] == Status.queued
    await road.send()
    assert await record(road, delivery, EventKind.failed, **bounce) == 0
    assert (await now(road, delivery))["status"] == Status.sent
    assert (await road.recount())[EventKind.failed] == 1


async def test_counting_receipts_uses_up_no_numbers(road: Road) -> None:
    book, last = receiver(road), "SELECT last_value FROM dimension_id_seq"
    delivery = await sent(road)
    key = ids.to_public(ids.DELIVERY, delivery["id"])
    before = await road.database.fetchval(last)
    for kind in (EventKind.delivered, EventKind.opened, EventKind.clicked, EventKind.complained):
        # Another process each time, which knows no dimension yet.
        book = Receiver(road.database, Meter(road.database, road.clock), road.clock)
        assert await book.record([Fact(road.project_id, delivery["account_id"], Report(kind, key=key))]) == 1
    assert await road.database.fetchval(last) == before


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
    assert road.moves == {Move(Channel.email, Status.delivered, "smtp", None): 1}, "and settling moved nothing more"


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
    inbound = InboundRecorder(road.database, road.clock)
    stop = Inbound("+4915112345678", "+15550001", "STOP", "in-1", keyword="stop")
    assert await inbound.record(road.project_id, 1, Channel.sms, [stop]) == 1
    assert await inbound.record(road.project_id, 1, Channel.sms, [stop]) == 0
    [row] = await road.database.fetch("SELECT address, stream, reason FROM suppression")
    assert tuple(row) == ("+4915112345678", "sender:+15550001", "opted_out")
    start = Inbound("+4915112345678", "+15550002", "START", "in-2", keyword="start")
    await inbound.record(road.project_id, 1, Channel.sms, [start])
    assert await road.count("suppression") == 1, "START to another sender changes nothing"
    start = Inbound("+4915112345678", "+15550001", "START", "in-3", keyword="start")
    await inbound.record(road.project_id, 1, Channel.sms, [start])
    assert await road.count("suppression") == 0
    assert await road.count("inbound_message") == 3


async def test_what_people_wrote_is_forgotten_but_for_why_they_are_told_or_not(road: Road) -> None:
    inbound = InboundRecorder(road.database, road.clock)
    said = [Inbound("+4915112345678", "+15550001", word, word, keyword=word) for word in ("stop", "start", "help")]
    await inbound.record(road.project_id, 1, Channel.sms, [*said, Inbound("+4915112345678", "+15550001", "Hello")])
    await forget_inbound(road.database, road.clock.now())
    assert await road.count("inbound_message") == 4
    road.clock.move(1)
    await forget_inbound(road.database, road.clock.now())
    rows = await road.database.fetch("SELECT body FROM inbound_message ORDER BY body")
    assert [row["body"] for row in rows] == ["start", "stop"]
