"""Corners of the road: what belongs to a notification that is part of a digest, is given back, nudged or overtaken."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from tests.db.road import KEY, Road, make_project
from tests.db.test_holds import at, know
from tests.db.test_steps import put, said, view
from tidings.db.partitions import drop_partitions, ensure_partitions
from tidings.db.pool import Connection, Database
from tidings.directory.audit import Actor
from tidings.directory.credentials import Vault
from tidings.directory.hooks import HookPlan, create_hook
from tidings.engine.jobs import advance_jobs
from tidings.flow.effects import apply_refunds, forget_once
from tidings.flow.intervene import Cancelled
from tidings.flow.jobs import STEP
from tidings.ids import first_id_at
from tidings.model.messages import Deferred, Rejected, Uncertain
from tidings.model.words import Channel, Reason


@pytest.fixture
async def road(database: Database) -> Road:
    """The clock stands at noon, UTC."""
    return Road(database, await database.transaction(make_project))


async def give_key(road: Road, *ids: UUID, key: str = "welcome") -> None:
    await road.database.execute("UPDATE notification SET once_key = $2 WHERE id = ANY ($1)", list(ids), key)


async def test_what_waits_in_a_digest_keeps_its_send_once_key(road: Road) -> None:
    await put(road, "comment", steps=[{"send": ["email"]}], digest={"window": "15m"})
    first = await road.accept(type="comment")
    await give_key(road, first)
    await road.plan()
    second = await road.accept(type="comment")
    await give_key(road, second)
    await road.plan()
    assert (await view(road, first)).status == "digested"
    assert said(await view(road, second)) == {"email": ("skipped", "sent_before")}


async def test_a_cancel_after_the_digest_went_gives_nothing_back(road: Road) -> None:
    await put(road, "comment", steps=[{"send": ["email"]}], digest={"window": "15m"})
    first = await road.accept(type="comment")
    await give_key(road, first)
    await road.plan()
    road.clock.move(901)
    await road.plan()
    await road.plan()
    assert await road.send() == 1
    assert await road.intervener.cancel(road.caller, first) is Cancelled.too_late
    assert await road.count("send_once") == 1


async def test_a_cancel_in_an_open_digest_gives_back_the_key(road: Road) -> None:
    await put(road, "comment", steps=[{"send": ["email"]}], digest={"window": "15m"})
    first = await road.accept(type="comment")
    await give_key(road, first)
    await road.plan()
    assert await road.intervener.cancel(road.caller, first) is Cancelled.cancelled
    assert await road.count("send_once") == 0
    shown = await view(road, first)
    assert (shown.status, shown.digest) == ("cancelled", None)


async def test_what_is_partly_in_a_digest_that_went_is_not_cancelled(road: Road) -> None:
    steps = [{"send": ["email", "in_app"]}, {"delay": "3h"}, {"send": ["in_app"]}]
    await put(road, "news", steps=steps, quiet="digest")
    await know(road, quiet_hours={"ranges": [{"start": "11:00", "end": "13:00"}]}, time_zone="UTC")
    id_ = await road.accept(type="news")
    await give_key(road, id_)
    await road.plan()
    digest = (await view(road, id_)).digest
    assert digest is not None
    road.clock.move(3_601)
    await road.plan()
    await road.plan()
    assert await road.send() == 1
    road.clock.move(2 * 3_600)
    assert await road.plan() == 1  # the delay is over
    assert (await view(road, id_)).digest == digest
    assert await road.intervener.cancel(road.caller, id_) is Cancelled.partly
    assert await road.count("send_once") == 1


async def test_items_of_a_broadcast_that_was_cancelled_do_not_say_that_they_are_in_a_digest(road: Road) -> None:
    await put(road, "comment", steps=[{"send": ["email"]}], digest={"window": "15m"})
    id_ = await road.accept(type="comment")
    await road.database.execute(
        "INSERT INTO broadcast (id, project_id, type_version_id, audience, priority, lanes, status, estimated)"
        " SELECT id, project_id, type_version_id, '{}', 2, 2, 5, 1 FROM notification"
    )
    await road.database.execute("UPDATE notification SET broadcast_id = id")
    await road.plan()
    assert (await view(road, id_)).status == "digested"
    await road.database.execute("UPDATE broadcast SET cancelled_at = now()")
    road.clock.move(901)
    while await road.plan():
        pass
    shown = await view(road, id_)
    assert (shown.status, shown.digest) == ("cancelled", None)
    assert await road.count("job") == 0


async def test_a_nudge_does_not_end_the_wait_for_a_good_hour(road: Road) -> None:
    await put(road, "tips", steps=[{"send": ["email"]}], send_time={"within": "24h", "fallback": "18:00"})
    await know(road, time_zone="UTC")
    id_ = await road.accept(type="tips")
    await road.plan()
    assert (await view(road, id_)).until == at(road, 18)
    road.clock.move(60)
    # As of a receipt on what an earlier step sent.
    await road.database.transaction(lambda conn: advance_jobs(conn, STEP, [id_], road.clock.db_now()))
    assert await road.plan() == 1
    shown = await view(road, id_)
    assert (shown.status, shown.reason, shown.until) == ("held", "send_time", at(road, 18))
    road.clock.move(6 * 3_600)
    assert await road.plan() == 1
    assert said(await view(road, id_)) == {"email": ("queued", None)}


async def test_partitions_stay_while_a_digest_has_items_in_them(database: Database) -> None:
    now = datetime(2031, 5, 1, tzinfo=UTC)
    async with database.acquire() as conn:
        await ensure_partitions(conn, now, days_ahead=1, days_behind=0)
        item, window = first_id_at(now + timedelta(hours=1)), first_id_at(now + timedelta(days=5))
        await conn.execute(
            "INSERT INTO digest_item (project_id, window_id, notification_id) VALUES (1, $1, $2)", window, item
        )
        dropped = await drop_partitions(conn, now + timedelta(days=30))
        assert "notification_p20310502" in dropped
        assert not [name for name in dropped if name.endswith("_p20310501")]
        await conn.execute("DELETE FROM digest_item")
        assert len(await drop_partitions(conn, now + timedelta(days=30))) == 4


async def test_two_channels_refused_at_the_same_moment_give_the_key_back(road: Road) -> None:
    id_ = await road.accept(type="both")
    await give_key(road, id_)
    await road.plan()
    email, item = await road.deliveries()
    may_commit, there = asyncio.Event(), asyncio.Event()

    async def refuse(delivery: UUID, hold: bool) -> None:
        async def work(conn: Connection) -> None:
            await conn.execute("UPDATE delivery SET status = 4, reason = 'rejected' WHERE id = $1", delivery)
            await apply_refunds(conn, [(road.project_id, "u:ada", id_)])
            if hold:
                there.set()
                await may_commit.wait()

        await road.database.transaction(work)

    first = asyncio.create_task(refuse(email["id"], True))
    await there.wait()
    second = asyncio.create_task(refuse(item["id"], False))
    await road.wait_for_lock()
    may_commit.set()
    await asyncio.gather(first, second)
    assert await road.count("send_once") == 0


async def test_what_bounced_or_may_have_left_keeps_its_key(road: Road) -> None:
    id_ = await road.accept(type="both")
    await give_key(road, id_)
    await road.plan()
    await road.send()
    await road.database.execute("UPDATE delivery SET status = 4, reason = 'bounced' WHERE channel = 1")  # it was sent
    assert await road.intervener.cancel(road.caller, id_) is Cancelled.partly
    assert await road.count("send_once") == 1


async def test_a_try_that_may_have_left_keeps_the_key_whatever_becomes_of_the_next(road: Road) -> None:
    id_ = await road.accept()
    await give_key(road, id_)
    await road.plan()
    road.vendor.answers = [Uncertain("no answer"), Rejected(Reason.rejected)]
    await road.send()
    road.clock.move(3_600)
    await road.send()
    assert said(await view(road, id_)) == {"email": ("failed", "rejected")}
    assert await road.count("send_once") == 1


async def test_test_keys_take_no_places_and_no_send_once_keys_of_live_ones(road: Road) -> None:
    await put(road, "mail", steps=[{"send": ["email"]}], limits=[{"max": 1, "window": "1d"}])
    trial = await road.accept(once="welcome", type="mail")
    await road.database.execute("UPDATE notification SET test = true WHERE id = $1", trial)
    await road.plan()
    road.clock.move(1)
    real = await road.accept(once="welcome", type="mail")
    await road.plan()
    assert said(await view(road, real)) == {"email": ("queued", None)}


async def test_who_is_cancelled_or_expired_takes_no_send_once_key_from_the_next(road: Road) -> None:
    first = await road.accept(once="welcome", expires_at=at(road, 13))
    road.clock.move(1)
    second = await road.accept(once="welcome")
    road.clock.move(3_601)
    while await road.plan():
        pass
    assert said(await view(road, first)) == {"email": ("expired", "expired")}
    assert said(await view(road, second)) == {"email": ("queued", None)}


async def test_who_comes_to_nothing_takes_no_send_once_key_from_the_next(road: Road) -> None:
    await road.database.execute("UPDATE address SET dropped_at = now() WHERE user_id = 'ada'")
    first = await road.accept(type="mail", once="welcome")
    road.clock.move(1)
    second = await road.accept(type="item", once="welcome")
    while await road.plan():
        pass
    assert said(await view(road, first)) == {"email": ("skipped", "no_address")}
    assert said(await view(road, second)) == {"in_app": ("queued", None)}


async def test_a_replay_does_not_pass_by_a_send_once_key(road: Road) -> None:
    first = await road.accept(once="welcome")
    await road.plan()
    road.vendor.answers = [Rejected(Reason.rejected)]
    await road.send()
    assert await road.count("dead_letter") == 1
    second = await road.accept(once="welcome")
    await road.plan()
    await road.send()
    assert said(await view(road, second)) == {"email": ("sent", None)}
    await road.intervener.replay(road.caller, delivery_ids=None)
    assert await road.send() == 0
    assert said(await view(road, first)) == {"email": ("failed", "rejected")}
    assert await road.count("dead_letter") == 0


async def test_what_expires_while_a_retry_waits_for_the_end_of_quiet_hours_ends_when_it_expires(road: Road) -> None:
    await know(road, quiet_hours={"ranges": [{"start": "12:30", "end": "15:00"}]}, time_zone="UTC")
    id_ = await road.accept(expires_at=at(road, 14))
    await road.plan()
    road.vendor.answers = [Deferred(Reason.greylisted, timedelta(hours=1))]
    await road.send()
    road.clock.move(3_600 * 1.1)
    assert await road.send() == 1  # claimed, and put off
    road.clock.move(3_600)
    assert await road.send() == 1
    assert said(await view(road, id_)) == {"email": ("expired", "expired")}


async def test_what_is_put_aside_for_good_is_told_to_hooks_once(road: Road) -> None:
    """A notification that cannot be planned ends as failed; its neighbours go their way."""
    actor, plan = Actor(road.project_id, "system"), HookPlan("https://example.com/h", ["*"])
    await road.database.transaction(lambda conn: create_hook(conn, actor, Vault([KEY]), "app", plan))
    road.catalog.forget_all()
    bad, good = await road.accept(), await road.accept()
    await road.database.execute("UPDATE notification SET type_version_id = 999999 WHERE id = $1", bad)
    for _ in range(8):
        await road.plan()
        road.clock.move(9 * 3_600)
    assert said(await view(road, good)) == {"email": ("queued", None)}
    [row] = await road.deliveries(bad)
    assert (row["status"], row["reason"]) == (4, Reason.unsupported)
    assert await road.database.fetchval("SELECT count(*) FROM job WHERE kind = 3") == 1


async def test_a_replay_of_all_letters_leaves_out_those_whose_fallback_came_through(road: Road) -> None:
    await put(road, "chain", steps=[{"first": ["email", "in_app"]}])
    id_ = await road.accept(type="chain")
    await road.plan()
    road.vendor.answers = [Rejected(Reason.content_rejected)]
    await road.send()
    road.clock.move(1)
    await road.plan()
    await road.send(Channel.in_app)
    assert await road.intervener.replay(road.caller, delivery_ids=None) == 0
    assert await road.count("dead_letter") == 0
    [email] = [d["id"] for d in await road.deliveries(id_) if d["channel"] == Channel.email]
    await road.database.execute(
        "INSERT INTO dead_letter (project_id, delivery_id, notification_id, channel, reason, attempts, at)"
        " VALUES ($1, $2, $3, 1, 'content_rejected', 1, 'epoch')",
        road.project_id,
        email,
        id_,
    )
    assert await road.intervener.replay(road.caller, delivery_ids=[email]) == 1  # somebody means this one


async def test_keys_of_broadcasts_are_forgotten_and_those_of_callers_kept(road: Road) -> None:
    await road.database.execute(
        "INSERT INTO send_once (project_id, target, key, notification_id, at)"
        " SELECT $1, 'u:ada', key, $2, now() - interval '100 days'"
        " FROM unnest(ARRAY['broadcast:brd_1', E'test\\nbroadcast:brd_1', 'welcome', 'broadcast:mine']) AS key",
        road.project_id,
        UUID(int=1),
    )
    await forget_once(road.database, road.clock.now() - timedelta(days=90))
    kept = await road.database.fetchval("SELECT array_agg(key ORDER BY key) FROM send_once")
    assert kept == ["broadcast:mine", "welcome"]
