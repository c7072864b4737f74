"""Steps on a real database: what a type does one after the other, and what each notification of it comes to."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest

from tests.db.road import Road, make_project
from tidings.db.pool import Database
from tidings.directory.audit import Actor
from tidings.directory.types import parse_definition, put_type
from tidings.flow.intervene import Cancelled
from tidings.flow.timeline import NotificationView, load_view
from tidings.model.messages import Rejected
from tidings.model.words import Channel, Reason


@pytest.fixture
async def road(database: Database) -> Road:
    return Road(database, await database.transaction(make_project))


async def put(road: Road, key: str, **raw: Any) -> None:
    """A type, current at once."""
    definition = parse_definition(key, {"category": "general", "template": "t", **raw}, timedelta(days=30))
    await road.database.transaction(lambda conn: put_type(conn, Actor(road.project_id, "system"), key, definition))
    road.catalog.forget(road.project_id)


async def view(road: Road, id_: UUID) -> NotificationView:
    return await load_view(road.database, road.catalog, road.project_id, id_)


def said(shown: NotificationView) -> dict[str, tuple[str, str | None]]:
    return {d.channel: (d.status, d.reason) for d in shown.deliveries}


async def test_a_wait_goes_on_when_its_time_is_over(road: Road) -> None:
    await put(road, "nudge", steps=[{"send": ["in_app"]}, {"wait": "10m", "unless": "seen"}, {"send": ["email"]}])
    id_ = await road.accept(type="nudge")
    assert await road.plan() == 1
    assert await road.send(Channel.in_app) == 1
    assert (await view(road, id_)).status == "processing"
    road.clock.move(599)
    assert await road.plan() == 0
    road.clock.move(2)
    assert await road.plan() == 1
    assert await road.send() == 1
    assert said(await view(road, id_)) == {"in_app": ("delivered", None), "email": ("sent", None)}
    assert await road.count("job") == 0


async def test_a_wait_ends_the_run_when_the_user_was_faster(road: Road) -> None:
    await put(road, "nudge", steps=[{"send": ["in_app"]}, {"wait": "10m", "unless": ["read"]}, {"send": ["email"]}])
    id_ = await road.accept(type="nudge")
    await road.plan()
    await road.send(Channel.in_app)
    await road.database.execute("UPDATE delivery SET engagement = 8")
    road.clock.move(601)
    assert await road.plan() == 1
    shown = await view(road, id_)
    assert said(shown) == {"in_app": ("delivered", None)}
    assert shown.status == "delivered"
    assert [m.event for m in shown.timeline][-1] == "stopped"
    assert await road.count("job") == 0


async def test_a_chain_goes_on_at_once_when_its_first_fails_for_good(road: Road) -> None:
    await put(road, "chain", steps=[{"first": ["email", "in_app"]}])
    id_ = await road.accept(type="chain")
    await road.plan()
    road.vendor.answers = [Rejected(Reason.content_rejected)]
    await road.send()
    assert await road.plan() == 1  # not in three days
    await road.send(Channel.in_app)
    await road.plan()
    shown = await view(road, id_)
    assert said(shown) == {"email": ("failed", "content_rejected"), "in_app": ("delivered", None)}
    assert await road.count("job") == 0


async def test_a_chain_ends_with_its_first_success(road: Road) -> None:
    await put(road, "chain", steps=[{"first": ["email", "in_app"], "within": "5m"}, {"send": ["in_app"]}])
    id_ = await road.accept(type="chain")
    await road.plan()
    await road.send()  # a mail server cannot confirm, so `sent` is success
    assert await road.plan() == 1
    await road.send(Channel.in_app)
    assert said(await view(road, id_)) == {"email": ("sent", None), "in_app": ("delivered", None)}
    assert await road.count("job") == 0


async def test_a_chain_takes_the_next_when_the_first_takes_too_long(road: Road) -> None:
    await put(road, "chain", steps=[{"first": ["email", "in_app"], "within": "5m"}])
    id_ = await road.accept(type="chain")
    await road.plan()
    road.clock.move(301)
    assert await road.plan() == 1
    await road.send(Channel.in_app)
    await road.plan()
    assert said(await view(road, id_)) == {"email": ("cancelled", "superseded"), "in_app": ("delivered", None)}
    assert await road.send() == 0
    assert await road.count("job") == 0


@pytest.mark.parametrize(("otherwise", "after"), [("stop", []), ("continue", ["in_app"])])
async def test_what_follows_a_failed_chain_runs_only_if_the_type_says_so(
    road: Road, otherwise: str, after: list[str]
) -> None:
    await put(road, "chain", steps=[{"first": ["email"], "otherwise": otherwise}, {"send": ["in_app"]}])
    id_ = await road.accept(type="chain")
    await road.plan()
    road.vendor.answers = [Rejected(Reason.content_rejected)]
    await road.send()
    await road.plan()
    await road.send(Channel.in_app)
    assert set(said(await view(road, id_))) == {"email", *after}
    assert await road.count("job") == 0


async def test_a_condition_decides_on_data(road: Road) -> None:
    steps = [{"if": {"data": "amount", "above": 100}, "then": [{"send": ["email"]}], "else": [{"send": ["in_app"]}]}]
    await put(road, "paid", steps=steps)
    large, small = await road.accept(type="paid", data={"amount": 101}), await road.accept(type="paid", data={})
    await road.plan()
    assert list(said(await view(road, large))) == ["email"]
    assert list(said(await view(road, small))) == ["in_app"]


async def test_a_throttle_lets_so_many_pass(road: Road) -> None:
    await put(road, "alert", steps=[{"throttle": {"max": 1, "window": "1h"}}, {"send": ["email"]}])
    ids = [await road.accept(type="alert") for _ in range(3)]
    await road.plan()
    told = [said(await view(road, id_))["email"] for id_ in ids]
    assert sorted(told, key=str) == [("queued", None), ("skipped", "capped"), ("skipped", "capped")]
    road.clock.move(3_700)
    again = await road.accept(type="alert")
    await road.plan()
    assert said(await view(road, again))["email"] == ("queued", None)


async def test_an_edit_of_the_type_does_not_disturb_what_is_under_way(road: Road) -> None:
    await put(road, "nudge", steps=[{"send": ["in_app"]}, {"delay": "10m"}, {"send": ["email"]}])
    id_ = await road.accept(type="nudge")
    await road.plan()
    await put(road, "nudge", steps=[{"send": ["in_app"]}])
    road.clock.move(601)
    assert await road.plan() == 1
    assert list(said(await view(road, id_))) == ["in_app", "email"]


async def test_expiry_reaches_a_waiting_step(road: Road) -> None:
    await put(road, "nudge", steps=[{"send": ["in_app"]}, {"delay": "1h"}, {"send": ["email"]}], expires_after="10m")
    id_ = await road.accept(type="nudge")
    await road.plan()
    await road.send(Channel.in_app)
    road.clock.move(601)
    assert await road.plan() == 1
    shown = await view(road, id_)
    assert (said(shown), shown.reason) == ({"in_app": ("delivered", None)}, "expired")
    assert await road.count("job") == 0


async def test_a_cancel_reaches_a_waiting_step_and_takes_back_what_stands_in_the_inbox(road: Road) -> None:
    await put(road, "nudge", steps=[{"send": ["in_app"]}, {"delay": "1h"}, {"send": ["email"]}])
    id_ = await road.accept(type="nudge")
    await road.plan()
    await road.send(Channel.in_app)
    assert await road.intervener.cancel(road.caller, id_) is Cancelled.partly
    assert await road.count("job") == 0
    row = await road.database.fetchrow("SELECT title, archived_at, recalled_at FROM inbox_item")
    assert row is not None
    assert (row["title"], row["recalled_at"] is not None) == ("", True)
    assert await road.database.fetchval("SELECT total FROM inbox_counter") == 0
    assert (await view(road, id_)).reason == "cancelled"


async def test_send_once_holds_across_types(road: Road) -> None:
    first = await road.accept(type="mail")
    road.clock.move(1)
    second = await road.accept(type="item")
    await road.database.execute("UPDATE notification SET once_key = 'welcome'")
    await road.plan()
    await road.plan()  # whoever comes second waits to see what becomes of the first
    told = {id_: said(await view(road, id_)) for id_ in (first, second)}
    assert told[first] == {"email": ("queued", None)}
    assert told[second] == {"in_app": ("skipped", "sent_before")}
    await road.intervener.cancel(road.caller, first)
    assert await road.count("send_once") == 0
    third = await road.accept(type="item")
    await road.database.execute("UPDATE notification SET once_key = 'welcome' WHERE id = $1", third)
    await road.plan()
    assert said(await view(road, third)) == {"in_app": ("queued", None)}


async def test_ten_triggers_at_once_are_one_message_with_ten_items(road: Road) -> None:
    await put(road, "comment", steps=[{"send": ["email"]}], digest={"window": "15m"})
    bodies = [{"to": {"user": "ada"}, "type": "comment", "data": {"n": n}} for n in range(10)]
    await road.ask(*bodies)
    assert await road.plan() == 10
    assert await road.deliveries() == []
    road.clock.move(901)
    assert await road.plan() == 1  # closes
    assert await road.plan() == 1  # plans the digest
    assert await road.send() == 1
    assert len(road.vendor.sent) == 1
    [row] = await road.database.fetch("SELECT data::text, items FROM notification WHERE items IS NOT NULL")
    data = msgspec.json.decode(row["data"])
    assert (row["items"], data["digest"]["count"], len(data["digest"]["items"])) == (10, 10, 10)
    assert await road.count("job") == 0
