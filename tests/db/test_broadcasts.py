"""Broadcasts: who is told, each once, whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from tests.db.road import Road, make_project
from tidings.db.pool import Connection, Database
from tidings.directory.access import Caller
from tidings.directory.audit import Actor
from tidings.directory.segments import parse_segment, put_segment
from tidings.directory.topics import apply_members
from tidings.directory.users import delete_user, put_user
from tidings.engine import jobs as queue
from tidings.engine.jobs import FEEDER, LAST_FEEDER
from tidings.engine.shares import Share
from tidings.errors import ConfirmationNeeded, Conflict, Forbidden, Invalid, NotFound, Unavailable
from tidings.flow import audience, broadcasts
from tidings.flow.audience import Sources
from tidings.flow.broadcasts import Ask, Broadcast, Broadcaster, BroadcastStatus, load_broadcast
from tidings.flow.jobs import EXPAND
from tidings.flow.request import Request, To
from tidings.model.words import EventKind

ALL = Sources(all=True)
NOBODY = Sources()


class Stage:
    """A project, its broadcasts, and a worker that only expands."""

    def __init__(self, road: Road) -> None:
        self.road = road
        self.database = road.database
        self.broadcaster = Broadcaster(road.catalog, road.clock, road.wakes)

    async def users(self, *names: str, zone: str | None = None) -> None:
        async def work(conn: Connection) -> None:
            for name in names:
                await put_user(conn, Actor(self.road.project_id), name, time_zone=zone)

        await self.database.transaction(work)
        await self.database.execute(
            "UPDATE app_user SET updated_at = $1 WHERE id = ANY ($2)", self.road.clock.now(), names
        )

    async def subscribe(self, topic: str, *names: str) -> None:
        await self.database.transaction(lambda conn: apply_members(conn, Actor(self.road.project_id), topic, names))

    async def segment(self, key: str, raw: dict[str, Any]) -> None:
        actor = Actor(self.road.project_id)
        await self.database.transaction(
            lambda conn: put_segment(conn, actor, key, name="", condition=parse_segment(raw))
        )

    async def create(
        self, to: Sources, exclude: Sources = NOBODY, *, caller: Caller | None = None, **fields: Any
    ) -> Broadcast:
        own = {name: fields.pop(name) for name in ("local_time", "rate", "confirm") if name in fields}
        ask = Ask(Request(to=To(user="-"), **{"type": "mail", **fields}), to, exclude, **own)
        return await self.database.transaction(
            lambda conn: self.broadcaster.create(conn, caller or self.road.caller, ask)
        )

    async def control(self, what: str, id_: UUID, caller: Caller | None = None) -> Broadcast:
        act = getattr(self.broadcaster, what)
        return await self.database.transaction(lambda conn: act(conn, caller or self.road.caller, id_))

    async def step(self, *, breaks: bool = False) -> int:
        """Expand what is due once; `breaks`: as if the process died just before the commit."""

        async def work(conn: Connection) -> int:
            now = self.road.clock.db_now()
            lanes = range(FEEDER, LAST_FEEDER + 1)
            shares = [Share(lane, p, self.road.project_id, None, 10_000) for lane in lanes for p in range(5)]
            jobs = [job for job in await queue.lock_jobs(conn, shares, now=now) if job.kind == EXPAND]
            rng = self.road.clock.random
            told = await broadcasts.expand_cohorts(conn, jobs, now, rng, self.road.catalog, self.road.meter)
            if breaks:
                raise ConnectionResetError
            return told

        return await self.database.transaction(work)

    async def run(self) -> int:
        """Expand until nothing is due; answers with the number of steps."""
        for n in range(1, 200):
            await self.step()
            due = await self.database.fetchval(
                "SELECT count(*) FROM job WHERE kind = $1 AND due_at <= $2 AND project_id = $3",
                EXPAND,
                self.road.clock.now(),
                self.road.project_id,
            )
            if not due:
                return n
        raise AssertionError(f"it does not end: {await self.expand_jobs()} at {self.road.clock.now()}")

    async def told(self, broadcast: Broadcast | None = None) -> list[str]:
        """The users of the notifications, in order."""
        rows = await self.database.fetch(
            'SELECT user_id FROM notification WHERE $1::uuid IS NULL OR broadcast_id = $1 ORDER BY user_id COLLATE "C"',
            None if broadcast is None else broadcast.id,
        )
        return [row["user_id"] for row in rows]

    async def look(self, broadcast: Broadcast) -> Broadcast:
        return await load_broadcast(self.database, self.road.project_id, broadcast.id)

    async def expand_jobs(self) -> Sequence[Any]:
        return await self.database.fetch("SELECT id, due_at FROM job WHERE kind = $1 ORDER BY due_at", EXPAND)


@pytest.fixture
async def stage(database: Database) -> Stage:
    project_id = await database.transaction(make_project)
    return Stage(Road(database, project_id))


async def test_a_user_named_directly_and_in_two_topics_is_told_once(stage: Stage) -> None:
    await stage.subscribe("news", "ada", "bob")
    await stage.subscribe("project/42/comments", "ada", "cleo")
    broadcast = await stage.create(
        Sources(users=["ada", "nobody"], topics=["news", "project/42/#"]), data={"x": 1}, metadata={"m": "1"}
    )
    assert (broadcast.estimated, broadcast.expanded, broadcast.status) == (3, 0, "running")
    await stage.run()
    assert await stage.told() == ["ada", "bob", "cleo"]
    after = await stage.look(broadcast)
    assert (after.expanded, after.status) == (3, "done")
    assert after.ended_at is not None
    assert not await stage.expand_jobs()
    jobs = await stage.database.fetch("SELECT j.id FROM job j JOIN notification n ON n.id = j.id WHERE j.kind = 1")
    assert len(jobs) == 3
    assert await stage.road.recount() == {EventKind.requested: 3}
    row = await stage.database.fetchrow("SELECT data, metadata, type_version_id FROM notification LIMIT 1")
    assert row is not None
    assert row["data"] is row["metadata"] is None, "the broadcast holds them"
    assert row["type_version_id"]


async def test_whoever_is_excluded_is_not_told(stage: Stage) -> None:
    await stage.users("d", "e", "f", "g")
    await stage.subscribe("left/out", "d")
    await stage.subscribe("left-out", "g")
    condition = {"any": [{"user": "locale", "is": "de"}, {"user": "plan", "is": "x"}]}  # most have said neither
    await stage.database.transaction(lambda conn: put_user(conn, Actor(stage.road.project_id), "e", locale="de"))
    await stage.segment("eves", condition)
    out = Sources(users=["ada", "f"], topics=["left/#"], segments=["eves"])
    everybody = await stage.create(ALL, out)
    named = await stage.create(Sources(users=["ada", "bob", "d", "e", "f", "g"]), out)
    assert (everybody.estimated, named.estimated) == (3, 2)
    await stage.run()
    assert await stage.told(everybody) == ["bob", "cleo", "g"]
    assert await stage.told(named) == ["bob", "g"]


async def test_a_segment_is_judged_as_the_cursor_passes(stage: Stage) -> None:
    condition = {"user": "locale", "is": "de"}
    await stage.segment("german", condition)
    broadcast = await stage.create(Sources(users=["bob"], segments=["german"]))
    assert broadcast.estimated == 1
    await stage.database.transaction(lambda conn: put_user(conn, Actor(stage.road.project_id), "cleo", locale="de"))
    await stage.run()
    assert await stage.told() == ["bob", "cleo"]
    with pytest.raises(Invalid) as refused:
        await stage.create(Sources(segments=["german", "none"]))
    assert refused.value.errors[0].pointer == "/to/segments/1"


async def fill(stage: Stage, n: int) -> list[str]:
    await stage.database.execute(
        "INSERT INTO app_user (project_id, id) SELECT $1, 'u' || n FROM generate_series(1, $2::int) n",
        stage.road.project_id,
        n,
    )
    return sorted([f"u{i}" for i in range(1, n + 1)] + ["ada", "bob", "cleo"])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of ten users, and windows of fifty rows."""
    monkeypatch.setattr(broadcasts, "CHUNK", 10)
    monkeypatch.setattr(broadcasts, "AT_ONCE", 20)
    monkeypatch.setattr(audience, "WINDOW", 50)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "to", [ALL, Sources(topics=["t"]), Sources(topics=["t", "many/#"])], ids=["all", "few", "many"]
)
async def test_a_crash_at_every_page_tells_nobody_twice_and_leaves_nobody_out(stage: Stage, to: Sources) -> None:
    names = await fill(stage, 120)
    await stage.subscribe("t", *names)
    if len(to.topics) > 1:
        for i in range(audience.FEW_TOPICS + 1):
            await stage.subscribe(f"many/{i}", *names[: 40 + i])
    broadcast = await stage.create(to)
    assert broadcast.estimated == 123
    for _ in range(20):
        before = await stage.told()
        with pytest.raises(ConnectionResetError):
            await stage.step(breaks=True)
        assert await stage.told() == before
        if not await stage.step():
            break
    assert await stage.told() == names
    after = await stage.look(broadcast)
    assert (after.expanded, after.status) == (123, "done")


@pytest.mark.usefixtures("small")
async def test_a_page_of_few_members_among_many_users_is_bounded_and_goes_on(stage: Stage) -> None:
    await fill(stage, 300)
    await stage.subscribe("t", "u1", "u299")
    await stage.subscribe("few/1", "u5")
    condition = {"user": "id", "in": ["u1", "u299"]}
    await stage.segment("two", condition)
    await stage.create(Sources(segments=["two"], topics=["few/#"]))
    assert await stage.run() > 6
    assert await stage.told() == ["u1", "u299", "u5"]


@pytest.mark.usefixtures("small")
async def test_pause_resume_and_cancel(stage: Stage) -> None:
    names = await fill(stage, 57)
    broadcast = await stage.create(ALL)
    await stage.step()
    paused = await stage.control("pause", broadcast.id)
    assert (paused.status, paused.expanded) == ("paused", 10)
    assert not await stage.expand_jobs()
    assert await stage.control("pause", broadcast.id) == paused, "again changes nothing"
    assert await stage.step() == 0
    resumed = await stage.control("resume", broadcast.id)
    assert resumed.status == "running"
    assert await stage.control("resume", broadcast.id) == resumed
    assert len(await stage.expand_jobs()) == 1
    await stage.step()
    assert await stage.told() == names[:20]
    cancelled = await stage.control("cancel", broadcast.id)
    assert (cancelled.status, cancelled.expanded) == ("cancelled", 20)
    assert cancelled.cancelled_at is not None
    assert await stage.control("cancel", broadcast.id) == cancelled
    await stage.run()
    assert await stage.told() == names[:20]
    for what in ("pause", "resume"):
        with pytest.raises(Conflict):
            await stage.control(what, broadcast.id)
    trail = await stage.database.fetch("SELECT action FROM audit WHERE action LIKE 'broadcast.%' ORDER BY at, id")
    assert [row["action"] for row in trail] == [
        "broadcast.create", "broadcast.pause", "broadcast.resume", "broadcast.cancel",
    ]  # fmt: skip


@pytest.mark.usefixtures("small")
async def test_a_job_that_is_left_over_from_a_pause_is_taken_up_again(stage: Stage) -> None:
    """A resume between a pause's look at the jobs and its commit leaves one."""
    names = await fill(stage, 30)
    broadcast = await stage.create(ALL)
    await stage.step()
    await stage.database.execute("UPDATE broadcast SET status = $1", int(BroadcastStatus.paused))
    await stage.control("resume", broadcast.id)
    await stage.run()
    assert await stage.told() == names
    again = await stage.create(ALL)
    await stage.database.execute("UPDATE broadcast SET status = $1", int(BroadcastStatus.paused))
    assert await stage.step() == 0
    assert not await stage.expand_jobs(), "a paused one's job goes when its turn comes"
    await stage.control("resume", again.id)
    await stage.run()
    assert await stage.told(again) == names


async def test_cancel_after_the_end_still_counts(stage: Stage) -> None:
    broadcast = await stage.create(ALL)
    await stage.run()
    assert (await stage.look(broadcast)).status == "done"
    cancelled = await stage.control("cancel", broadcast.id)
    assert cancelled.status == "cancelled"
    assert cancelled.ended_at == (await stage.look(broadcast)).ended_at


async def test_a_rate_is_met_over_time(stage: Stage) -> None:
    await fill(stage, 97)
    start = stage.road.clock.now()
    broadcast = await stage.create(ALL, rate=10.0)
    told = []
    for _ in range(14):
        await stage.run()
        told.append(len(await stage.told()))
        stage.road.clock.move(1)
    assert told[:11] == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 100]
    after = await stage.look(broadcast)
    assert after.ended_at is not None
    assert after.ended_at - start == timedelta(seconds=10)


async def test_what_a_rate_missed_is_not_made_up_for(stage: Stage) -> None:
    await fill(stage, 97)
    await stage.create(ALL, rate=10.0)
    await stage.run()
    stage.road.clock.move(60)
    await stage.run()
    assert len(await stage.told()) == 20
    stage.road.clock.move(1.5)
    await stage.run()
    assert len(await stage.told()) == 30
    stage.road.clock.move(0.5)
    await stage.run()
    assert len(await stage.told()) == 40, "half a second late is"


async def test_a_slow_rate_tells_one_at_a_time(stage: Stage) -> None:
    await stage.create(ALL, rate=0.5)
    for n in (1, 1, 2, 2, 3):
        await stage.run()
        assert len(await stage.told()) == n
        stage.road.clock.move(1)


async def test_a_scheduled_one_waits(stage: Stage) -> None:
    at = stage.road.clock.now() + timedelta(hours=1)
    broadcast = await stage.create(ALL, send_at=at)
    assert broadcast.status == "scheduled"
    assert await stage.step() == 0
    await stage.control("pause", broadcast.id)
    assert (await stage.control("resume", broadcast.id)).status == "scheduled"
    assert [row["due_at"] for row in await stage.expand_jobs()] == [at]
    stage.road.clock.move(3600)
    await stage.run()
    assert len(await stage.told()) == 3


async def test_local_time_over_zones(stage: Stage) -> None:
    """Noon today by the clock: tomorrow at nine, in Tokyo, Berlin, and where nobody said."""
    await stage.users("ada", "bob", "cleo")
    await stage.users("tokyo", zone="Asia/Tokyo")
    await stage.users("berlin", "moves", zone="Europe/Berlin")
    tomorrow = (stage.road.clock.now() + timedelta(days=1)).replace(hour=9, tzinfo=None)
    stage.road.clock.move(1)
    broadcast = await stage.create(ALL, local_time=tomorrow)
    assert (broadcast.status, broadcast.estimated) == ("scheduled", 6)
    assert broadcast.once is not None
    dues = {row["due_at"] for row in await stage.expand_jobs()}
    zones = [ZoneInfo("Asia/Tokyo"), ZoneInfo("Europe/Berlin"), UTC, ZoneInfo("Etc/GMT+12")]
    assert dues == {tomorrow.replace(tzinfo=zone).astimezone(UTC) for zone in zones}

    async def until(zone: Any) -> list[str]:
        at = tomorrow.replace(tzinfo=zone).astimezone(UTC)
        stage.road.clock.move((at - stage.road.clock.now()).total_seconds())
        await stage.run()
        return await stage.told()

    assert await until(zones[0]) == ["tokyo"]
    # Told in Tokyo, now in Berlin; and from Berlin to Tokyo, where it is past nine: neither twice nor never.
    await stage.users("moves", zone="Asia/Tokyo")
    assert await until(zones[1]) == ["berlin", "tokyo"]
    assert await until(zones[2]) == ["ada", "berlin", "bob", "cleo", "tokyo"]
    await stage.users("samoa", zone="Pacific/Pago_Pago")
    await stage.database.execute(
        "INSERT INTO send_once (project_id, target, key, notification_id)"
        " SELECT project_id, 'u:' || user_id, once_key, id FROM notification WHERE user_id = 'tokyo'"
    )
    await stage.users("tokyo", zone="Europe/Berlin")
    assert await until(zones[3]) == ["ada", "berlin", "bob", "cleo", "moves", "samoa", "tokyo"]
    assert (await stage.look(broadcast)).status == "done"
    keys = await stage.database.fetch("SELECT DISTINCT once_key FROM notification")
    assert [row["once_key"] for row in keys] == [broadcast.once]


async def test_local_time_of_a_topic_groups_zones_by_their_moment(stage: Stage) -> None:
    await stage.users("ada")
    await stage.users("b", zone="Europe/Berlin")
    await stage.users("p", zone="Europe/Paris")
    await stage.users("outside", zone="Europe/Rome")
    await stage.subscribe("t", "b", "p", "ada")
    tomorrow = (stage.road.clock.now() + timedelta(days=1)).replace(hour=9, tzinfo=None)
    stage.road.clock.move(1)
    await stage.create(Sources(topics=["t"]), local_time=tomorrow)
    cohorts = await stage.database.fetch("SELECT time_zones, others FROM broadcast_cohort ORDER BY due_at")
    assert [(row["time_zones"], row["others"]) for row in cohorts] == [
        (["Europe/Berlin", "Europe/Paris", "Europe/Rome"], False),
        ([""], False),
        (["", "Europe/Berlin", "Europe/Paris", "Europe/Rome"], True),
    ]
    stage.road.clock.move(34 * 3600)
    await stage.run()
    assert await stage.told() == ["ada", "b", "p"]


async def test_a_local_time_that_is_past_everywhere_is_refused(stage: Stage) -> None:
    yesterday = (stage.road.clock.now() - timedelta(days=1)).replace(tzinfo=None, hour=1)
    with pytest.raises(Invalid, match="cannot be accepted") as refused:
        await stage.create(ALL, local_time=yesterday)
    assert refused.value.errors[0].pointer == "/local_time"
    with pytest.raises(Invalid):
        await stage.create(ALL, local_time=yesterday + timedelta(days=2), send_at=stage.road.clock.now())


async def test_expiry_counts_for_each_from_when_it_was_made(stage: Stage) -> None:
    await stage.create(ALL, send_at=stage.road.clock.now() + timedelta(hours=1), expires_at=None)
    at = stage.road.clock.now() + timedelta(hours=3)
    late = await stage.create(ALL, rate=1.0, expires_at=at)
    await stage.step()
    stage.road.clock.move(3 * 3600)
    await stage.run()
    row = await stage.database.fetchrow("SELECT expires_at FROM notification WHERE broadcast_id = $1", late.id)
    assert row is not None
    assert row["expires_at"] == at
    after = await stage.look(late)
    assert (after.status, after.expanded) == ("done", 1), "what could not be sent any more is not made"


async def test_a_dry_run_stores_nothing(stage: Stage) -> None:
    ask = Ask(Request(to=To(user="-"), type="mail"), ALL)
    estimate = await stage.database.transaction(lambda conn: stage.broadcaster.estimate(conn, stage.road.caller, ask))
    assert estimate.count == 3
    assert sorted(estimate.sample) == ["ada", "bob", "cleo"]
    assert await stage.road.count("broadcast") == await stage.road.count("job") == 0


async def test_many_have_to_be_confirmed(stage: Stage) -> None:
    await stage.database.execute("""UPDATE project SET settings = '{"confirm_above": 2}'""")
    with pytest.raises(ConfirmationNeeded) as refused:
        await stage.create(ALL)
    assert refused.value.to_dict()["count"] == 3
    with pytest.raises(ConfirmationNeeded):
        await stage.create(ALL, confirm=2)
    assert await stage.road.count("broadcast") == 0
    assert (await stage.create(ALL, confirm=3)).estimated == 3
    assert (await stage.create(Sources(users=["ada", "bob"]))).estimated == 2


async def test_projects_do_not_see_each_other(stage: Stage) -> None:
    other_id = await stage.database.transaction(lambda conn: make_project(conn, "other"))
    other = Stage(Road(stage.database, other_id))
    await other.users("zoe")
    await other.subscribe("news", "zoe", "ada")
    await stage.subscribe("news", "bob")
    mine = await stage.create(Sources(users=["zoe"], topics=["news", "#"]))
    theirs = await other.create(ALL)
    assert (mine.estimated, theirs.estimated) == (1, 4)
    await stage.run()
    assert await stage.told(mine) == ["bob"]
    assert await stage.told(theirs) == [], "nobody expands it here"
    for what in ("pause", "resume", "cancel"):
        with pytest.raises(NotFound):
            await stage.control(what, theirs.id)
    await other.run()
    assert await stage.told(theirs) == ["ada", "bob", "cleo", "zoe"]


async def test_a_test_key_makes_a_test_broadcast_and_steers_no_other(stage: Stage) -> None:
    tester = stage.road.new_caller(test=True)
    broadcast = await stage.create(ALL, caller=tester)
    assert broadcast.test
    live = await stage.create(ALL)
    with pytest.raises(Forbidden):
        await stage.control("cancel", live.id, tester)
    await stage.control("cancel", live.id)
    await stage.run()
    assert {row["test"] for row in await stage.database.fetch("SELECT test FROM notification")} == {True}


async def test_deleted_users_are_simply_not_there(stage: Stage) -> None:
    await stage.subscribe("t", "ada", "bob")
    await stage.create(Sources(users=["cleo"], topics=["t"]))
    await stage.database.transaction(lambda conn: delete_user(conn, Actor(stage.road.project_id), "bob"))
    await stage.run()
    assert await stage.told() == ["ada", "cleo"]


async def test_it_goes_the_whole_road(stage: Stage) -> None:
    await stage.create(ALL)
    while await stage.road.plan():
        pass
    while await stage.road.send():
        pass
    assert len(stage.road.vendor.sent) == 3
    assert await stage.road.count("job") == 0


async def test_a_job_without_its_cohort_goes(stage: Stage) -> None:
    broadcast = await stage.create(ALL)
    await stage.database.execute("DELETE FROM broadcast WHERE id = $1", broadcast.id)
    await stage.run()
    assert not await stage.expand_jobs()


def test_local_moments() -> None:
    now = datetime(2027, 3, 1, tzinfo=UTC)
    gap = datetime(2027, 3, 28, 2, 30)
    [berlin, others] = broadcasts.plan_cohorts(gap, ["Europe/Berlin"], None, now, apart=True)
    assert berlin.due_at == datetime(2027, 3, 28, 1, 30, tzinfo=UTC), "half past two is skipped: half past three"
    assert others == (["Europe/Berlin"], datetime(2027, 3, 28, 14, 30, tzinfo=UTC), True)
    twice = datetime(2027, 10, 31, 2, 30)
    [berlin, _] = broadcasts.plan_cohorts(twice, [""], "Europe/Berlin", now, apart=False)
    assert berlin.due_at == datetime(2027, 10, 31, 0, 30, tzinfo=UTC), "the first of the two"


async def test_segments_that_take_too_long_stop_nobody_else(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is given up soon, and with no error of PostgreSQL's: so the planner puts aside this job alone."""
    monkeypatch.setattr(audience, "PAGE_TIMEOUT", timedelta(milliseconds=50))
    await stage.segment("idle", {"not": {"engaged": "opened", "within": "30d"}})
    broadcast = await stage.create(Sources(segments=["idle"]))
    async with stage.database.acquire() as other:
        await other.execute("BEGIN; LOCK TABLE user_engagement IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(Unavailable):
            await stage.step()
        assert await stage.told(broadcast) == []
        await other.execute("ROLLBACK")
    monkeypatch.undo()
    await stage.run()
    assert len(await stage.told(broadcast)) == broadcast.estimated > 0


async def test_an_audience_has_so_many_conditions_at_most(stage: Stage) -> None:
    many = {"any": [{"user": "a.b.c.d.e.f.g.h", "is": n} for n in range(49)]}
    for n in range(6):
        await stage.segment(f"s{n}", many)
    named = [f"s{n}" for n in range(6)]
    await stage.create(Sources(segments=named), Sources(segments=named[:4]))
    with pytest.raises(Invalid) as refused:
        await stage.create(Sources(segments=named), Sources(segments=named[:5]))
    assert refused.value.errors[0].pointer == "/to"
