"""Explain: the same reason everywhere, and every rule that was asked."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.db.road import Road, make_project
from tests.db.test_steps import put, view
from tidings.db.pool import Database
from tidings.flow.explain import Explainer, Explanation, Refused, explain_notification
from tidings.flow.measure import Move
from tidings.flow.request import Request
from tidings.model.messages import Rejected
from tidings.model.words import Channel, Reason, Status


@pytest.fixture
async def road(database: Database) -> Road:
    return Road(database, await database.transaction(make_project))


async def say(road: Road, **preferences: Any) -> None:
    """Let ada say what she wants."""
    text = msgspec.json.encode(preferences).decode()
    await road.database.execute("UPDATE app_user SET preferences = $1::jsonb WHERE id = 'ada'", text)


async def what_if(road: Road, **body: Any) -> Explanation | Refused:
    explainer = Explainer(road.database, road.catalog, road.acceptor, road.clock)
    request = msgspec.convert({"to": {"user": "ada"}, "type": "both", **body}, Request)
    return await explainer.explain(road.caller, request, None)


async def test_the_reason_is_the_same_in_explain_timeline_and_metrics(road: Road) -> None:
    await say(road, categories={"general": {"channels": {"email": False}}})
    id_ = await road.accept(type="both")
    await road.plan()
    shown = await view(road, id_)
    assert {d.channel: (d.status, d.reason) for d in shown.deliveries} == {
        "email": ("skipped", "opted_out"),
        "in_app": ("queued", None),
    }
    assert ("skipped", "email", "opted_out") in [(m.event, m.channel, m.reason) for m in shown.timeline]
    assert road.moves == {Move(Channel.email, Status.skipped, None, Reason.opted_out): 1}
    told = await explain_notification(road.database, road.catalog, road.project_id, id_)
    email = next(c for c in told.channels if c.channel == "email")
    assert (email.outcome, email.reason) == ("skipped", "opted_out")
    assert [(r.rule, r.answer) for r in email.rules] == [("address", "go"), ("preference", "no")]
    assert email.rules[-1].level == "user_category_channel"
    assert email.text.startswith("The user does not want to hear of this here: not sent")
    in_app = next(c for c in told.channels if c.channel == "in_app")
    assert [r.rule for r in in_app.rules] == [
        "address", "preference", "suppression", "template", "account", "quiet_hours", "limit",
    ]  # fmt: skip
    assert {r.answer for r in in_app.rules} == {"go"}


async def test_what_if_tells_what_would_happen_and_does_nothing(road: Road) -> None:
    await put(road, "one", steps=[{"send": ["email"]}], limits=[{"max": 1, "window": "1d"}])
    for _ in range(3):  # asking takes no place under the limit
        told = await what_if(road, type="one")
        assert isinstance(told, Explanation)
        assert (told.status, told.channels[0].outcome) == ("sent", "queued")
    await road.accept(type="one")
    await road.plan()
    told = await what_if(road, type="one")
    assert isinstance(told, Explanation)
    [email] = told.channels
    assert (email.outcome, email.reason) == ("skipped", "capped")
    assert (email.rules[-1].level, email.rules[-1].detail) == ("type", "1 of 1 in 1d")
    assert await road.count("notification") == 1


async def test_what_would_be_refused_is_told_with_its_problem(road: Road) -> None:
    told = await what_if(road, type="nothing")
    assert isinstance(told, Refused)
    assert told.problem["errors"][0]["pointer"] == "/type"


async def test_a_chain_is_told_in_plain_words(road: Road) -> None:
    await put(road, "chain", steps=[{"first": ["email"]}])
    id_ = await road.accept(type="chain")
    await road.plan()
    road.vendor.answers = [Rejected(Reason.content_rejected)]
    await road.send()
    await road.plan()
    told = await explain_notification(road.database, road.catalog, road.project_id, id_)
    assert told.text == "It failed."
    assert [channel.text for channel in told.channels] == ["It failed: content_rejected."]
    assert [ruling.text for asked in told.passes for ruling in asked.rulings if ruling.rule == "chain"] == [
        "This one was tried and failed.",
        "None of the chain succeeded: nothing more is sent. Decided by the type.",
    ]


async def test_a_reaction_is_told_in_plain_words(road: Road) -> None:
    await put(road, "nudge", steps=[{"send": ["in_app"]}, {"wait": "10m", "unless": "seen"}, {"send": ["email"]}])
    id_ = await road.accept(type="nudge")
    await road.plan()
    await road.send(Channel.in_app)
    await road.database.execute("UPDATE delivery SET engagement = 1")  # seen
    road.clock.move(601)
    await road.plan()
    told = await explain_notification(road.database, road.catalog, road.project_id, id_)
    [ruling] = [ruling for asked in told.passes for ruling in asked.rulings if ruling.rule == "engagement"]
    assert ruling.text == "The user has reacted: nothing more is sent (seen). Decided by the type."


async def test_preferences_count_at_the_time_of_sending(road: Road) -> None:
    id_ = await road.accept(type="both", send_at=road.clock.now().replace(hour=14))
    await say(road, muted=True)
    assert await road.plan() == 0
    road.clock.move(2 * 3600 + 1)
    await road.plan()
    assert {d.reason for d in (await view(road, id_)).deliveries} == {"opted_out"}


async def test_an_opt_out_between_planning_and_sending_counts(road: Road) -> None:
    id_ = await road.accept(type="mail")
    await road.plan()
    await say(road, channels={"email": False})
    await road.send()
    [delivery] = (await view(road, id_)).deliveries
    assert (delivery.status, delivery.reason) == ("skipped", "opted_out")
    assert road.vendor.sent == []


async def test_a_user_without_an_address_is_skipped_not_failed(road: Road) -> None:
    await road.database.execute("DELETE FROM address WHERE user_id = 'ada'")
    id_ = await road.accept(type="mail")
    await road.plan()
    [delivery] = (await view(road, id_)).deliveries
    assert (delivery.status, delivery.reason) == ("skipped", "no_address")
    assert await road.count("dead_letter") == 0
