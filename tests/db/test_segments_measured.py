"""What is measured tells tracked segments apart, from planning to the receipt."""

from __future__ import annotations

import pytest

from tests.db.road import Road, make_project
from tidings.db.pool import Database
from tidings.directory.audit import Actor
from tidings.directory.segments import put_segment, refresh_segments
from tidings.flow.measure import fold
from tidings.flow.receipts import Fact, Receiver
from tidings.model.words import EventKind
from tidings.providers.port import Report


@pytest.fixture
async def road(database: Database) -> Road:
    return Road(database, await database.transaction(make_project))


async def test_roll_ups_tell_tracked_segments_apart(road: Road) -> None:
    actor = Actor(road.project_id, "system")
    condition = {"user": "plan", "is": "pro"}
    await road.database.execute("""UPDATE app_user SET attributes = '{"plan": "pro"}' WHERE id = 'ada'""")
    made, _ = await road.database.transaction(
        lambda conn: put_segment(conn, actor, "pros", name="Pros", condition=condition, tracked=True)
    )
    await refresh_segments(road.database)
    for user in ("ada", "bob"):
        await road.accept(to={"user": user})
    await road.plan()
    await road.send()
    [ada] = await road.database.fetch("SELECT id, account_id FROM delivery WHERE address = 'ada@example.com'")
    receiver = Receiver(road.database, road.meter, road.clock)
    await receiver.record([Fact(road.project_id, ada["account_id"], Report(EventKind.opened), ada["id"])])
    await fold(road.database)
    rows = await road.database.fetch(
        "SELECT r.kind, d.segments, r.n FROM rollup r JOIN dimension d ON d.id = r.dimension_id WHERE r.kind <> 0"
    )
    told = {(EventKind(row["kind"]), row["segments"]): row["n"] for row in rows}
    bit = await road.database.fetchval("SELECT 1::bigint << slot FROM segment WHERE key = 'pros'")
    assert told == {
        (EventKind.queued, bit): 1,
        (EventKind.queued, 0): 1,
        (EventKind.sent, bit): 1,
        (EventKind.sent, 0): 1,
        (EventKind.opened, bit): 1,
    }
    assert made.tracked
