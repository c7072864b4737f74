"""What is put off: quiet hours and the hour that suits a user, on a real database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from tests.db.road import Road, make_project
from tests.db.test_steps import put, said, view
from tidings.db.pool import Database
from tidings.model.messages import Deferred
from tidings.model.words import Reason

NIGHT = {"ranges": [{"start": "22:00", "end": "07:00"}]}


@pytest.fixture
async def road(database: Database) -> Road:
    """The clock stands at noon, UTC."""
    return Road(database, await database.transaction(make_project))


async def know(road: Road, **columns: Any) -> None:
    """What is known of ada."""
    for name, value in columns.items():
        given = msgspec.json.encode(value).decode() if isinstance(value, dict) else value
        cast = "::jsonb" if isinstance(value, dict) else ""
        await road.database.execute(f"UPDATE app_user SET {name} = $1{cast} WHERE id = 'ada'", given)


def at(road: Road, hour: int, minute: int = 0, days: int = 0) -> datetime:
    """A moment of the clock's day, or of one after it."""
    today = road.clock.now().astimezone(UTC)
    return today.replace(day=today.day, hour=hour, minute=minute, second=0, microsecond=0) + days * DAY


DAY = datetime(2026, 1, 2) - datetime(2026, 1, 1)


async def test_what_falls_into_quiet_hours_waits_for_their_end(road: Road) -> None:
    await know(road, quiet_hours=NIGHT, time_zone="America/New_York")  # at noon in UTC it is 07:00 or 08:00 there
    road.clock.move(-6 * 3600)  # 01:00 or 02:00 in New York
    id_ = await road.accept(type="both")
    await road.plan()
    shown = await view(road, id_)
    assert said(shown) == {"in_app": ("queued", None)}  # an inbox disturbs nobody
    assert (shown.status, shown.reason) == ("processing", "quiet_hours")
    assert shown.until is not None
    assert ("held", "email", "quiet_hours") in [(m.event, m.channel, m.reason) for m in shown.timeline]
    road.clock.move((shown.until - road.clock.now()).total_seconds() - 1)
    assert await road.plan() == 0
    road.clock.move(2)
    assert await road.plan() == 1
    assert said(await view(road, id_))["email"] == ("queued", None)
    assert await road.send() == 1


async def test_critical_goes_through_quiet_hours(road: Road) -> None:
    await know(road, quiet_hours={"ranges": [{"start": "00:00", "end": "23:59"}]}, time_zone="UTC")
    id_ = await road.accept(type="mail", priority="critical")
    await road.plan()
    assert said(await view(road, id_)) == {"email": ("queued", None)}


async def test_quiet_hours_move_with_the_user(road: Road) -> None:
    await know(road, quiet_hours={"ranges": [{"start": "11:00", "end": "13:00"}]}, time_zone="UTC")
    id_ = await road.accept(type="mail")
    await road.plan()
    assert (await view(road, id_)).until == at(road, 13)
    await know(road, time_zone="Asia/Kathmandu")  # 18:45 there at 13:00 in UTC
    road.clock.move(3_601)
    assert await road.plan() == 1
    assert said(await view(road, id_)) == {"email": ("queued", None)}


async def test_a_type_may_gather_what_falls_into_quiet_hours(road: Road) -> None:
    await put(road, "news", steps=[{"send": ["email"]}], quiet="digest")
    await know(road, quiet_hours={"ranges": [{"start": "11:00", "end": "13:00"}]}, time_zone="UTC")
    first = await road.accept(type="news", data={"n": 1})
    road.clock.move(60)
    second = await road.accept(type="news", data={"n": 2})
    await road.plan()
    assert await road.deliveries() == []
    road.clock.move(3_600)
    await road.plan()
    await road.plan()
    assert await road.send() == 1
    views = [await view(road, id_) for id_ in (first, second)]
    assert [v.status for v in views] == ["digested", "digested"]
    assert len({v.digest for v in views}) == 1
    assert await road.count("job") == 0


async def test_a_retry_does_not_wake_anybody(road: Road) -> None:
    await know(road, quiet_hours={"ranges": [{"start": "12:30", "end": "13:30"}]}, time_zone="UTC")
    id_ = await road.accept(type="mail")
    await road.plan()
    road.vendor.answers = [Deferred(Reason.greylisted, DAY / 24)]  # an hour, and up to a tenth more
    await road.send()
    road.clock.move(3_600 * 1.1)
    assert await road.send() == 1
    assert len(road.vendor.sent) == 1  # claimed, and put off
    [job] = await road.database.fetch("SELECT due_at, attempt FROM job")
    assert (job["due_at"], job["attempt"]) == (at(road, 13, 30), 1)
    road.clock.move(1_800)
    assert await road.send() == 1
    assert said(await view(road, id_)) == {"email": ("sent", None)}


async def test_what_expires_in_quiet_hours_is_not_sent(road: Road) -> None:
    await know(road, quiet_hours={"ranges": [{"start": "11:00", "end": "15:00"}]}, time_zone="UTC")
    id_ = await road.accept(type="mail", expires_at=at(road, 13))
    await road.plan()
    road.clock.move(3_601)
    assert await road.plan() == 1  # not at three
    assert said(await view(road, id_)) == {"email": ("expired", "expired")}
    assert await road.count("job") == 0


async def test_a_type_is_sent_at_the_hour_at_which_the_user_engaged_before(road: Road) -> None:
    await put(road, "tips", steps=[{"send": ["email"]}], send_time={"within": "24h", "fallback": "09:00"})
    await know(road, time_zone="UTC")
    hours = [0] * 24
    hours[18] = 9
    await road.database.execute(
        "INSERT INTO user_engagement (project_id, user_id, channel, opened, hours) VALUES ($1, 'ada', 1, 9, $2)",
        road.project_id,
        hours,
    )
    id_, stranger = await road.accept(type="tips"), await road.accept(type="tips", to={"user": "bob"})
    await road.plan()
    shown, other = await view(road, id_), await view(road, stranger)
    assert (shown.status, shown.reason, shown.until) == ("held", "send_time", at(road, 18))
    assert (other.reason, other.until) == ("send_time", at(road, 9, days=1))
    road.clock.move(6 * 3_600 + 1)
    assert await road.plan() == 1
    assert await road.send() == 1
    assert said(await view(road, id_)) == {"email": ("sent", None)}


async def test_urgent_news_do_not_wait_for_a_good_hour(road: Road) -> None:
    await put(road, "tips", steps=[{"send": ["email"]}], send_time={"fallback": "09:00"}, critical=True)
    id_ = await road.accept(type="tips", priority="critical")
    await road.plan()
    assert said(await view(road, id_)) == {"email": ("queued", None)}
