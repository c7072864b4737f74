"""The road on a real database: from plan to settlement, and the races with cancel, sweeper and late answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from tests.db.road import LEASE, Road, make_project
from tidings.db.pool import Database
from tidings.engine import jobs as queue
from tidings.engine.shares import Share
from tidings.errors import NotFound
from tidings.flow.intervene import Cancelled, forget_letters
from tidings.flow.measure import Move, fold
from tidings.flow.receipts import Fact, Receiver
from tidings.flow.timeline import load_view
from tidings.model.messages import Deferred, Rejected, Sent, Uncertain
from tidings.model.words import Channel, EventKind, Reason, Status
from tidings.providers.port import Report


@pytest.fixture
async def road(database: Database) -> Road:
    return Road(database, await database.transaction(make_project))


async def status_of(road: Road, notification: UUID) -> Status:
    [delivery] = await road.deliveries(notification)
    return Status(delivery["status"])


async def kinds(road: Road) -> list[EventKind]:
    rows = await road.database.fetch("SELECT kind FROM event ORDER BY at, id")
    return [EventKind(row["kind"]) for row in rows]


async def start_send(road: Road) -> Any:
    """Claims, and leaves the vendor thinking."""
    road.vendor.may_answer.clear()
    road.vendor.called.clear()
    lane = road.lanes[Channel.email]
    assert await lane.step()
    await road.vendor.called.wait()
    return lane


async def end_send(road: Road, lane: Any) -> None:
    road.vendor.may_answer.set()
    await road.finish(lane)


async def test_from_request_to_proof(road: Road) -> None:
    id_ = await road.accept(type="both", data={})
    road.clock.move(1)
    assert await road.plan() == 1
    road.clock.move(1)
    assert await road.send() == 1
    assert await road.send(Channel.in_app) == 1
    view = await load_view(road.database, road.catalog, road.project_id, id_)
    assert view.status == "sent"
    assert {d.channel: d.status for d in view.deliveries} == {"email": "sent", "in_app": "delivered"}
    assert [m.event for m in view.timeline][:3] == ["requested", "queued", "queued"]
    assert await road.count("job") == 0
    counted = await road.recount()
    assert counted == {
        EventKind.requested: 1,
        EventKind.queued: 2,
        EventKind.sent: 2,
        EventKind.delivered: 1,
    }
    assert await fold(road.database) > 0
    assert await road.recount() == counted
    assert await road.count("rollup_delta") == 0


# ---------------------------------------------------------------- cancel


async def test_a_cancel_before_planning_leaves_nothing(road: Road) -> None:
    id_ = await road.accept()
    assert await road.intervener.cancel(road.caller, id_) is Cancelled.cancelled
    assert await road.plan() == 0
    assert await road.deliveries() == []
    assert await road.intervener.cancel(road.caller, id_) is Cancelled.cancelled
    view = await load_view(road.database, road.catalog, road.project_id, id_)
    assert view.status == "cancelled"
    assert [m.event for m in view.timeline] == ["requested", "cancelled"]
    with pytest.raises(NotFound):
        await road.intervener.cancel(road.caller, UUID(int=5))


async def test_a_cancel_before_claiming_is_counted_where_it_belongs(road: Road) -> None:
    id_ = await road.accept()
    await road.plan()
    assert await road.intervener.cancel(road.caller, id_) is Cancelled.cancelled
    assert await road.send() == 0
    assert await status_of(road, id_) is Status.cancelled
    assert await kinds(road) == [EventKind.cancelled]
    types = await road.database.fetch("SELECT DISTINCT type_version_id, category_key FROM dimension")
    assert len(types) == 1


async def test_a_cancel_waits_for_the_planner_that_holds_the_job(road: Road) -> None:
    id_ = await road.accept()
    planned, may_commit = asyncio.Event(), asyncio.Event()

    async def hold(name: str) -> None:
        if name == "plan.commit":
            planned.set()
            await may_commit.wait()

    road.feed = road.new_feed(hold)
    planning = asyncio.create_task(road.plan())
    await planned.wait()
    cancelling = asyncio.create_task(road.intervener.cancel(road.caller, id_))
    await _until_blocked(road)
    may_commit.set()
    assert await planning == 1
    assert await cancelling is Cancelled.cancelled
    assert await status_of(road, id_) is Status.cancelled
    assert await road.count("job") == 0


async def _until_blocked(road: Road) -> None:
    """Until some statement of the pool waits for a lock: seen, not slept for."""
    async with asyncio.timeout(10):
        while not await road.database.fetchval(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid IN"
            " (SELECT pid FROM pg_stat_activity WHERE datname = current_database())"
        ):
            await asyncio.sleep(0)


async def test_a_cancel_during_the_send_is_too_late_but_stops_the_retry(road: Road) -> None:
    id_ = await road.accept()
    await road.plan()
    lane = await start_send(road)
    assert await road.intervener.cancel(road.caller, id_) is Cancelled.too_late
    road.vendor.answers = [Deferred(Reason.greylisted)]
    await end_send(road, lane)
    assert await status_of(road, id_) is Status.cancelled
    assert await road.count("job") == await road.count("dead_letter") == 0


async def test_a_cancel_does_not_hide_that_a_send_may_have_gone_out(road: Road) -> None:
    id_ = await road.accept()
    await road.plan()
    lane = await start_send(road)
    await road.intervener.cancel(road.caller, id_)
    road.vendor.answers = [Uncertain()]
    await end_send(road, lane)
    [delivery] = await road.deliveries()
    assert (delivery["status"], delivery["reason"]) == (Status.failed, "uncertain")
    assert await kinds(road) == [EventKind.uncertain]


async def test_a_cancel_stops_what_it_still_can(road: Road) -> None:
    id_ = await road.accept(type="both")
    await road.plan()
    await road.send()
    assert await road.intervener.cancel(road.caller, id_) is Cancelled.partly
    assert [d["status"] for d in await road.deliveries()] == [Status.sent, Status.cancelled]
    assert await road.count("inbox_item") == 0


async def test_many_cancels_at_once_need_no_second_connection(road: Road) -> None:
    accepted = [await road.accept(data={"n": n}) for n in range(30)]
    await road.plan()
    async with asyncio.timeout(20):
        answers = await asyncio.gather(*(road.intervener.cancel(road.caller, id_) for id_ in accepted))
    assert set(answers) == {Cancelled.cancelled}
    assert (await road.recount())[EventKind.cancelled] == 30


# ---------------------------------------------------------------- leases, late answers


async def test_a_swept_send_is_uncertain_and_its_late_answer_completes_it(road: Road) -> None:
    id_ = await road.accept()
    await road.plan()
    lane = await start_send(road)
    road.clock.move(LEASE.total_seconds() + 1)
    assert await road.sweep() == 1
    assert await status_of(road, id_) is Status.queued
    await end_send(road, lane)  # nobody claimed it again: the answer is as good as ever
    assert await status_of(road, id_) is Status.sent
    assert await road.count("job") == 0
    assert await kinds(road) == [EventKind.uncertain, EventKind.sent]


async def test_a_late_answer_moves_nothing_once_somebody_else_has_the_job(road: Road) -> None:
    id_ = await road.accept()
    await road.plan()
    lane = await start_send(road)
    road.clock.move(LEASE.total_seconds() + 1)
    await road.sweep()
    road.clock.move(60)
    other = road.new_lane(Channel.email)
    road.vendor.called.clear()
    assert await other.step() == 1
    await road.vendor.called.wait()
    road.vendor.answers = [Rejected(Reason.rejected), Sent("second")]
    await end_send(road, lane)
    await road.finish(other)
    [delivery] = await road.deliveries(id_)
    # Whichever of the two was the late one, only the other decided; both are on record.
    assert delivery["status"] in (Status.sent, Status.failed)
    assert Counter(await kinds(road))[EventKind.late] == 1
    assert await road.count("job") == 0


async def test_two_claims_of_one_job_in_a_batch_are_told_apart(road: Road) -> None:
    id_ = await road.accept(type="item")
    await road.plan()
    account = next(a for a in (await road.catalog.load_accounts(road.project_id))[Channel.in_app] if not a.test)
    batch = []
    for claim in range(2):
        [job] = await queue.claim_jobs(
            road.database,
            [Share(Channel.in_app, 2, road.project_id, account.id, 1)],
            lease=LEASE,
            now=road.clock.db_now(),
        )
        [prepared] = await road.sender.prepare([job])
        outcome = await road.sender.send(job, prepared, road.clock.monotonic() + 1_000)
        assert outcome is not None
        batch.append((job, prepared, outcome.result))
        if not claim:
            road.clock.move(LEASE.total_seconds() + 1)
            assert await road.sweep() == 1
            road.clock.move(60)
    await road.sender.settle(batch)
    assert await status_of(road, id_) is Status.delivered
    assert await road.count("inbox_item") == 1
    assert Counter(await kinds(road))[EventKind.late] == 1


async def test_a_late_proof_lifts_at_most_once_failures_off_the_dead_letters(road: Road) -> None:
    id_ = await road.accept(guarantee="at_most_once")
    await road.plan()
    lane = await start_send(road)
    road.clock.move(LEASE.total_seconds() + 1)
    await road.sweep()
    assert await status_of(road, id_) is Status.failed
    assert await road.count("dead_letter") == 1
    await end_send(road, lane)
    assert await status_of(road, id_) is Status.sent
    assert await road.count("dead_letter") == 0
    assert (await road.recount())[EventKind.sent] == 1


async def test_extended_leases_are_not_swept(road: Road) -> None:
    await road.accept()
    await road.plan()
    lane = await start_send(road)
    for _ in range(5):
        road.clock.move(LEASE.total_seconds() / 2)
        await lane.extend()
        assert await road.sweep() == 0
    await end_send(road, lane)
    assert await kinds(road) == [EventKind.sent]


async def test_a_send_without_time_left_gives_its_job_back(road: Road) -> None:
    await road.accept()
    await road.plan()

    async def stall(name: str) -> None:
        if name == "send.before":
            road.clock.move(LEASE.total_seconds() - 3)

    lane = road.new_lane(Channel.email, checkpoint=stall)
    await lane.step()
    while lane.in_flight:
        await asyncio.sleep(0)
    await _until_free(road)
    assert road.vendor.sent == []
    assert await kinds(road) == []


async def _until_free(road: Road) -> None:
    async with asyncio.timeout(10):
        while await road.database.fetchval("SELECT count(*) FROM job WHERE lease_until IS NOT NULL"):
            await asyncio.sleep(0)


async def test_a_result_that_cannot_be_stored_is_not_held_forever(road: Road) -> None:
    good, bad = await road.accept(type="item"), await road.accept(type="item", to={"user": "bob"})
    await road.plan()
    # Stands for what no check of ours thought of.
    await road.database.execute("ALTER TABLE inbox_item ADD CONSTRAINT not_bob CHECK (user_id <> 'bob')")
    await road.send(Channel.in_app)
    assert await status_of(road, good) is Status.delivered
    for _ in range(2):  # the keeper of leases keeps this one no more
        road.clock.move(LEASE.total_seconds() * 0.6)
        await road.lanes[Channel.in_app].extend()
    assert await road.sweep() == 1
    [delivery] = await road.deliveries(bad)
    assert (delivery["status"], delivery["reason"], delivery["attempts"]) == (Status.queued, "provider_error", 1)


async def test_a_type_of_a_newer_version_stops_nobody_else(road: Road) -> None:
    """Seen during an upgrade: this process cannot read what a newer one has written."""
    planned, good = await road.accept(type="both"), await road.accept()
    await road.plan()
    await road.accept(type="both", data={"n": 2})
    await road.database.execute(
        "UPDATE type_version SET definition = jsonb_set(definition, '{steps}', '[{\"wait\": \"10m\"}]')"
        " WHERE type_key = 'both'"
    )
    road.catalog.forget(road.project_id)
    late = await road.accept()
    assert await road.plan() == 2
    await road.send()
    for notification in (good, late):
        assert await status_of(road, notification) is Status.sent
    assert len(await road.deliveries(planned)) == 2
    assert len(await road.deliveries()) == 4


# ---------------------------------------------------------------- ends


async def test_every_status_is_told_once_by_the_stage_that_brought_it_about(road: Road) -> None:
    def told(status: Status, provider: str | None, reason: Reason | None) -> int:
        return road.moves.pop(Move(Channel.email, status, provider, reason), 0)

    first = await road.accept()
    await road.plan()
    assert not road.moves, "what waits has come to nothing yet"
    await road.send()
    assert told(Status.sent, "smtp", None) == 1
    [delivery] = await road.deliveries(first)
    bounced = Report(EventKind.failed, provider_id="m-1", reason=Reason.bounced)
    receiver = Receiver(road.database, road.meter, road.clock, observe_moved=road.moves.update)
    fact = Fact(road.project_id, delivery["account_id"], bounced, delivery["id"])
    await receiver.record([fact, fact])
    assert told(Status.failed, "smtp", Reason.bounced) == 1
    await road.accept()
    await road.plan()
    assert told(Status.skipped, None, Reason.suppressed) == 1
    cancelled = await road.accept(to={"user": "bob"})
    await road.plan()
    await road.intervener.cancel(road.caller, cancelled)
    await road.intervener.cancel(road.caller, cancelled)
    assert told(Status.cancelled, None, Reason.cancelled) == 1
    await road.accept(to={"user": "bob"}, guarantee="at_most_once")
    await road.plan()
    lane = await start_send(road)
    road.clock.move(LEASE.total_seconds() + 1)
    await road.sweep()
    assert told(Status.failed, "smtp", Reason.uncertain) == 1
    await end_send(road, lane)
    assert told(Status.sent, "smtp", None) == 1, "the late answer proves it"
    assert not road.moves


async def test_a_bounce_suppresses_what_is_planned_next_and_what_is_on_its_way(road: Road) -> None:
    first, second = await road.accept(), await road.accept()
    await road.plan()
    road.vendor.answers = [Rejected(Reason.bounced)]
    await road.send(slots=1)
    await road.send()
    third = await road.accept()
    await road.plan()
    found = {d["notification_id"]: (Status(d["status"]), d["reason"]) for d in await road.deliveries()}
    assert sorted(found[n] for n in (first, second)) == [(Status.failed, "bounced"), (Status.skipped, "suppressed")]
    assert found[third] == (Status.skipped, "suppressed")
    assert await road.count("dead_letter") == 0


async def test_expiry_is_checked_when_planning_and_before_sending(road: Road) -> None:
    soon = road.clock.now() + timedelta(seconds=10)
    planned, unplanned = await road.accept(expires_at=soon, data={"n": 1}), None
    await road.plan()
    unplanned = await road.accept(expires_at=soon, data={"n": 2})
    road.clock.move(11)
    await road.send()
    await road.plan()
    assert await status_of(road, planned) is await status_of(road, unplanned) is Status.expired
    assert road.vendor.sent == []
    assert (await road.recount())[EventKind.expired] == 2


async def test_dead_letters_are_replayed_once_and_with_all_their_attempts(road: Road) -> None:
    ids_ = [await road.accept(to={"user": user}) for user in ("ada", "bob", "cleo")]
    await road.plan()
    road.vendor.answers = [Rejected(Reason.content_rejected)] * 3
    await road.send()
    letters = await road.intervener.list_dead_letters(road.project_id, before=None, reason=None, channel=None, limit=10)
    assert {letter.notification_id for letter in letters} == set(ids_)
    done = await asyncio.gather(
        *(road.intervener.replay(road.caller, delivery_ids=None) for _ in range(3)),
        road.intervener.replay(road.caller, delivery_ids=[letters[0].delivery_id]),
    )
    assert sum(done) == 3
    assert await road.send() == 3
    assert {Status(d["status"]) for d in await road.deliveries()} == {Status.sent}
    assert await road.intervener.replay(road.caller, delivery_ids=None) == 0


async def test_an_old_letter_that_is_replayed_has_its_retries_again(road: Road) -> None:
    id_ = await road.accept()
    await road.plan()
    road.vendor.answers = [Rejected(Reason.content_rejected), Deferred(Reason.greylisted)]
    await road.send()
    road.clock.move(timedelta(days=5).total_seconds())
    assert await road.intervener.replay(road.caller, delivery_ids=None) == 1
    await road.send()
    assert await status_of(road, id_) is Status.queued
    road.clock.move(3600)
    await road.send()
    assert await status_of(road, id_) is Status.sent


async def test_what_is_scheduled_far_ahead_has_its_retries(road: Road) -> None:
    id_ = await road.accept(send_at=road.clock.now() + timedelta(days=20))
    road.clock.move(timedelta(days=20, seconds=1).total_seconds())
    await road.plan()
    road.vendor.answers = [Deferred(Reason.greylisted)]
    await road.send()
    assert await status_of(road, id_) is Status.queued


async def test_a_user_who_was_deleted_meanwhile_is_told_nothing(road: Road) -> None:
    id_ = await road.accept(type="both")
    await road.plan()
    await road.database.execute("DELETE FROM app_user WHERE id = 'ada'")
    await road.send()
    await road.send(Channel.in_app)
    assert {(d["status"], d["reason"]) for d in await road.deliveries(id_)} == {(Status.skipped, "user_deleted")}
    assert road.vendor.sent == []
    assert await road.count("inbox_item") == await road.count("inbox_counter") == 0


async def test_an_account_without_weight_holds_nothing_up(road: Road) -> None:
    planned = await road.accept()
    await road.plan()
    await road.database.execute("UPDATE account SET weight = 0, revision = revision + 1 WHERE key = 'smtp'")
    road.catalog.forget(road.project_id)
    unplanned = await road.accept()
    await road.plan()
    await road.send()
    [first], [second] = await road.deliveries(planned), await road.deliveries(unplanned)
    assert (first["status"], first["reason"]) == (Status.failed, "no_account")  # a dead letter, to be replayed
    assert (second["status"], second["reason"]) == (Status.skipped, "no_account")


async def test_letters_are_forgotten_with_their_partitions(road: Road) -> None:
    await road.accept()
    await road.plan()
    road.vendor.answers = [Rejected(Reason.content_rejected)]
    await road.send()
    await forget_letters(road.database, road.clock.now() - timedelta(days=90))
    assert await road.count("dead_letter") == 1
    await forget_letters(road.database, road.clock.now() + timedelta(seconds=1))
    assert await road.count("dead_letter") == 0


async def test_a_cancelled_letter_only_leaves_the_list(road: Road) -> None:
    id_ = await road.accept()
    await road.plan()
    road.vendor.answers = [Rejected(Reason.content_rejected)]
    await road.send()
    assert await road.intervener.cancel(road.caller, id_) is Cancelled.too_late
    assert await road.intervener.replay(road.caller, delivery_ids=None) == 0
    assert await road.count("dead_letter") == await road.count("job") == 0


async def test_a_test_key_never_reaches_a_vendor_not_even_by_replay(road: Road) -> None:
    caller = road.new_caller(test=True)
    await road.ask(
        {"to": {"user": "ada"}, "type": "mail"},
        {"to": {"email": "fail@simulator.test"}, "content": {"subject": "x", "text": "y"}},
        caller=caller,
    )
    await road.ask({"to": {"email": "fail@simulator.test"}, "content": {"subject": "x", "text": "y"}})
    await road.plan()
    assert await road.send() == 3
    assert await road.intervener.replay(road.caller, delivery_ids=None) == 2
    assert await road.send() == 2
    assert road.vendor.sent == []
    assert Counter(Status(d["status"]) for d in await road.deliveries()) == {Status.delivered: 1, Status.failed: 2}


async def test_an_account_that_is_switched_off_fails_its_pinned_messages(road: Road) -> None:
    await road.accept()
    await road.plan()
    road.vendor.answers = [Uncertain()]  # the repetition is pinned to the account
    await road.send()
    await road.database.execute("UPDATE account SET enabled = false WHERE key = 'smtp'")
    road.catalog.forget(road.project_id)
    road.clock.move(3600)
    assert await road.send() == 1
    [delivery] = await road.deliveries()
    assert (delivery["status"], delivery["reason"]) == (Status.failed, "no_account")


async def test_items_get_gapless_numbers_under_concurrency(road: Road) -> None:
    for n in range(40):
        await road.accept(type="item", to={"user": "ada" if n % 2 else "bob"})
    await road.plan()
    lanes = [road.new_lane(Channel.in_app, slots=12) for _ in range(4)]
    await asyncio.gather(*(lane.step() for lane in lanes))
    await asyncio.gather(*(road.finish(lane) for lane in lanes))
    rows = await road.database.fetch("SELECT user_id, seq FROM inbox_item")
    for user in ("ada", "bob"):
        mine = sorted(row["seq"] for row in rows if row["user_id"] == user)
        assert mine == list(range(1, len(mine) + 1))
    assert len(rows) == (await road.recount())[EventKind.delivered]


# ---------------------------------------------------------------- cost


@pytest.fixture
async def statements(database: Database) -> list[str]:
    """What all connections of the pool send, as it is sent."""
    sent: list[str] = []
    async with AsyncExitStack() as stack:
        for _ in range(10):
            conn = await stack.enter_async_context(database.acquire())
            conn.add_query_logger(lambda record: sent.append(record.query.strip().split()[0]))
    return sent


async def test_the_statements_of_a_batch_are_counted(road: Road, statements: list[str]) -> None:
    """A hundred notifications at each stage; what is cached is warm."""
    bodies = [{"to": {"user": user}, "type": "mail"} for user in ("ada", "bob", "cleo") * 34][:100]
    for batch in (bodies[:3], bodies):
        statements.clear()
        await road.ask(*batch)
        accepting = len(statements)
        statements.clear()
        await road.plan()
        planning = len(statements)
        statements.clear()
        await road.send()
        sending = len(statements)
    assert accepting == 5  # begin; notifications, jobs, deltas; commit
    assert planning == 10  # discover; begin; lock, load, deliveries, jobs, runs, finish, deltas; commit
    assert sending == 9  # discover, claim, load; begin; finish, move, events, deltas; commit
    assert {Status(d["status"]) for d in await road.deliveries()} == {Status.sent}
    assert len(road.vendor.sent) == 103


@pytest.mark.parametrize("stopped", ["cancelled", "expired"])
async def test_what_may_have_gone_out_stays_uncertain_whatever_stops_it(road: Road, stopped: str) -> None:
    road.vendor.answers = [Uncertain("no answer")]
    expires = road.clock.now() + timedelta(hours=1)
    notification = await road.accept(expires_at=expires.isoformat())
    await road.plan()
    await road.send()
    if stopped == "cancelled":
        assert await road.intervener.cancel(road.caller, notification) is Cancelled.too_late
    road.clock.move(2 * 3600)
    await road.send()
    [delivery] = await road.deliveries(notification)
    assert (delivery["status"], delivery["reason"]) == (Status.failed, "uncertain")
    assert len(road.vendor.sent) == 1
    assert await road.count("job") == 0
