"""The inbox on a real database: from a template to an item, marks and what is counted of them, streams that resume."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from tests.db.road import Road, make_project
from tidings import ids
from tidings.clock import SystemClock
from tidings.db.pool import Database
from tidings.directory.audit import Actor
from tidings.directory.templates import create_template_version, publish_template
from tidings.directory.tokens import UserCaller
from tidings.flow.inbox import SQL, Bell, Inbox, InboxItem, Mark, NewItem, News, Place, insert_items, to_tag
from tidings.flow.settle import Settler
from tidings.model.messages import InApp, InAppAction
from tidings.model.words import Channel, Engagement, EventKind
from tidings.telemetry import Metrics
from tidings.web.inbox.live import End, Live, Told


@pytest.fixture
async def road(database: Database) -> Road:
    project_id = await database.transaction(make_project)
    return Road(database, project_id)


@pytest.fixture
def inbox(road: Road) -> Inbox:
    return Inbox(road.database, road.meter, road.clock, Bell())


async def _tell(road: Road, *users: str) -> list[UUID]:
    """A notification to each user, up to the stored item; gives the deliveries in the order of their numbers."""
    for user in users:
        await road.accept(type="item", to={"user": user})
    await road.plan()
    await road.send(Channel.in_app)
    rows = await road.database.fetch("SELECT delivery_id FROM inbox_item ORDER BY user_id, seq")
    return [row["delivery_id"] for row in rows]


async def test_what_a_template_says_is_in_the_item(road: Road, inbox: Inbox) -> None:
    content = {
        "default_locale": "en",
        "channels": {
            "in_app": {
                "en": {
                    "title": "{{ what }}",
                    "body": "For {{ user.id }}",
                    "url": "/orders/{{ n }}",
                    "actions": '[{"id": "open", "title": {{ what }}, "url": {{ "https://example.com/" ~ n }}}]',
                }
            }
        },
    }

    async def publish(conn: Any) -> None:
        actor = Actor(road.project_id, "system")
        version = await create_template_version(conn, actor, "t", content)
        await publish_template(conn, actor, "t", version.version)

    await road.database.transaction(publish)
    road.catalog.forget_all()
    await road.accept(type="item", data={"what": 'a "quoted" one', "n": 7})
    await road.plan()
    await road.send(Channel.in_app)
    [item] = await inbox.list_items((road.project_id, "ada"))
    assert (item.title, item.body, item.url) == ('a "quoted" one', "For ada", "/orders/7")
    assert item.actions == (InAppAction("open", 'a "quoted" one', "https://example.com/7"),)
    assert item.category == "general"


async def test_one_ring_for_a_batch_after_its_commit(road: Road) -> None:
    rung: list[frozenset[str] | None] = []
    bell = Bell()
    bell.listen(rung.append)
    road.settler = Settler(road.database, road.catalog, road.meter, road.clock, bell=bell)
    road.sender = road.new_sender()
    road.lanes[Channel.in_app] = road.new_lane(Channel.in_app)
    await _tell(road, "ada", "bob", "ada")
    assert rung == [frozenset({to_tag((road.project_id, "ada")), to_tag((road.project_id, "bob"))})]


async def test_what_the_user_does_is_recorded_once(road: Road, inbox: Inbox) -> None:
    owner = (road.project_id, "ada")
    one, two = await _tell(road, "ada", "ada")
    for mark in (Mark.seen, Mark.read, Mark.unread, Mark.read, Mark.archive, Mark.unarchive, Mark.archive, Mark.click):
        await inbox.mark(owner, [one], mark)
    await inbox.mark(owner, [two], Mark.read)
    first, second = await road.deliveries()
    assert first["engagement"] == Engagement.seen | Engagement.read | Engagement.archived | Engagement.clicked
    assert second["engagement"] == Engagement.seen | Engagement.read
    events = Counter(
        (row["delivery_id"], row["kind"])
        for row in await road.database.fetch("SELECT delivery_id, kind FROM event WHERE kind >= $1", EventKind.clicked)
    )
    kinds = (EventKind.seen, EventKind.read)
    assert events == Counter(
        [(one, kind) for kind in (*kinds, EventKind.archived, EventKind.clicked)] + [(two, kind) for kind in kinds]
    )
    counted = await road.recount()
    assert {kind: counted.get(kind) for kind in (13, 14, 15, 16)} == {13: 1, 14: 2, 15: 2, 16: 1}
    dimensions = await road.database.fetch(
        "SELECT DISTINCT dimension_id FROM rollup_delta WHERE kind IN (3, 13, 14, 15, 16)"
    )
    assert len(dimensions) == 1, "what the user did is counted by something else than what was delivered"


async def test_marks_outlive_what_retention_drops(road: Road, inbox: Inbox) -> None:
    [one] = await _tell(road, "ada")
    await road.database.execute("DELETE FROM delivery")
    [item] = await inbox.mark((road.project_id, "ada"), [one], Mark.read)
    assert item.read_at == road.clock.now()
    assert await road.database.fetchval("SELECT count(*) FROM event WHERE kind = $1", EventKind.read) == 0


async def test_an_item_of_a_day_that_is_gone_can_be_marked(road: Road, inbox: Inbox) -> None:
    """Of its notification there is no partition any more."""
    long_ago = ids.new_id(datetime(2020, 1, 1, tzinfo=UTC), road.clock.random)
    owner = (road.project_id, "ada")
    item = NewItem(owner, ids.child_id(long_ago, road.clock.random), long_ago, InApp("old"), None)
    await road.database.transaction(lambda conn: insert_items(conn, [item], None))
    await inbox.mark(owner, [item.delivery_id], Mark.click)
    assert (await inbox.load_counts(owner)).unread == 0


async def test_marks_of_many_are_made_in_parts(road: Road) -> None:
    inbox = Inbox(road.database, road.meter, road.clock, Bell(), mark_batch=7)
    owner = (road.project_id, "ada")
    await _tell(road, *["ada"] * 23)
    counts = await inbox.mark_all(owner, Mark.seen, up_to=20)
    assert (counts.total, counts.unseen, counts.unread, counts.last_seq) == (23, 3, 23, 43)
    counts = await inbox.mark_all(owner, Mark.read)
    assert (counts.total, counts.unseen, counts.unread, counts.last_seq) == (23, 0, 0, 66)
    assert (await road.recount())[EventKind.read] == (await road.recount())[EventKind.seen] == 23
    assert await inbox.mark_all((road.project_id, "nobody"), Mark.read) == await inbox.load_counts((0, ""))


async def _new_items(road: Road, user: str, n: int) -> None:
    clock = road.clock
    notification = ids.new_id(clock.now(), clock.random)
    items = [
        NewItem((road.project_id, user), ids.child_id(notification, clock.random), notification, InApp("t"), None)
        for _ in range(n)
    ]
    await road.database.transaction(lambda conn: insert_items(conn, items, None))


async def _recount(road: Road, user: str) -> tuple[int, int, int]:
    row = await road.database.fetchrow(
        "SELECT count(*) AS total, count(*) FILTER (WHERE seen_at IS NULL) AS unseen,"
        " count(*) FILTER (WHERE read_at IS NULL) AS unread"
        " FROM inbox_item WHERE project_id = $1 AND user_id = $2 AND archived_at IS NULL",
        road.project_id,
        user,
    )
    assert row is not None
    return tuple(row)


async def _sign_in(road: Road) -> UserCaller:
    born = await road.database.fetchval("SELECT created_at FROM app_user WHERE id = 'ada'")
    return UserCaller(road.project_id, "p", "ada", born, datetime.now(UTC) + timedelta(hours=1), frozenset())


class Reader:
    """A page that is opened again and again, now at this process and now at that, and remembers what it was told."""

    def __init__(self, lives: list[Live], user: UserCaller, rng: random.Random) -> None:
        self._lives = lives
        self._user = user
        self._rng = rng
        self.items: dict[str, InboxItem] = {}
        self.told: list[int] = []
        self.counts: Any = None
        self.after = 0

    async def read(self, until: asyncio.Event) -> None:
        while not (until.is_set() and self.counts is not None and self.after == self.counts.last_seq):
            live = self._rng.choice(self._lives)
            stream = live.open(self._user, self.after)
            for _ in range(self._rng.randint(1, 4)):
                told = await live.next(stream, 0.01 if until.is_set() else 0.2)
                if isinstance(told, Told):
                    for _, item in told.items:
                        assert item.changed_seq > self.after, "told again, or out of order"
                        self.items[item.id] = item
                        self.told.append(item.changed_seq)
                    self.after = told.after
                    self.counts = told.counts
            live.close(stream)


@pytest.mark.parametrize("seed", range(3))
async def test_streams_miss_nothing_and_repeat_nothing(road: Road, seed: int) -> None:
    """Writers of all kinds at once, readers that come and go between two processes."""
    rng = random.Random(seed)
    user = await _sign_in(road)
    bells = [Bell(), Bell()]
    inboxes = [Inbox(road.database, road.meter, road.clock, bell) for bell in bells]
    lives = [Live(inbox, SystemClock(), Metrics()) for inbox in inboxes]
    done = asyncio.Event()
    readers = [Reader(lives, user, random.Random(seed * 10 + n)) for n in range(4)]

    def ring() -> None:
        for bell in bells:
            bell.ring([user.owner])

    async def store() -> None:
        for _ in range(25):
            await _new_items(road, "ada", rng.randint(1, 5))
            ring()

    async def mark(inbox: Inbox) -> None:
        for _ in range(25):
            shown = await inbox.list_items(user.owner, limit=30)
            chosen = [id_ for i in rng.sample(shown, len(shown) // 3) if (id_ := ids.parse_public(ids.DELIVERY, i.id))]
            await inbox.mark(user.owner, chosen, rng.choice(list(Mark)))
            if rng.random() < 0.1:
                await inbox.mark_all(user.owner, Mark.seen)
            ring()

    async with asyncio.TaskGroup() as group:
        for reader in readers:
            group.create_task(reader.read(done))
        async with asyncio.TaskGroup() as writers:
            writers.create_task(store())
            for inbox in inboxes:
                writers.create_task(mark(inbox))
        done.set()
    stored = {
        item.id: item
        for archived in (False, True)
        for item in await inboxes[0].list_items(user.owner, archived=archived, limit=1_000)
    }
    for reader in readers:
        assert reader.items == stored
        assert reader.told == sorted(set(reader.told))
    counts = await inboxes[0].load_counts(user.owner)
    assert (counts.total, counts.unseen, counts.unread) == await _recount(road, "ada")
    assert readers[0].counts == counts
    for live in lives:
        await live.stop()


class Patient(SystemClock):
    """Waits for no time to pass between two tries."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


class Failing(Inbox):
    """A database that is away for the first few questions."""

    failures = 3

    async def load_changes(self, places: Sequence[Place]) -> list[News]:
        if self.failures > 0:
            self.failures -= 1
            raise ConnectionResetError("it went away")
        return await super().load_changes(places)


async def test_streams_outlive_a_database_that_is_away(road: Road) -> None:
    inbox = Failing(road.database, road.meter, road.clock, Bell())
    live = Live(inbox, Patient(), Metrics())
    stream = live.open(await _sign_in(road), 0)
    await _new_items(road, "ada", 1)
    told = await live.next(stream, 5)
    assert isinstance(told, Told)
    assert len(told.items) == 1
    assert inbox.failures == 0
    live.close(stream)
    await live.stop()


async def test_a_bell_that_was_not_heard_is_made_up_for(road: Road) -> None:
    user = await _sign_in(road)
    live = Live(Inbox(road.database, road.meter, road.clock, Bell()), SystemClock(), Metrics(), poll=0.05)
    stream = live.open(user, None)
    assert isinstance(await live.next(stream, 5), Told)
    await _new_items(road, "ada", 1)
    told = await live.next(stream, 5)
    assert isinstance(told, Told)
    assert [name for name, _ in told.items] == ["item"]
    await road.database.execute("DELETE FROM app_user WHERE id = 'ada'")
    assert await live.next(stream, 5) is End.deleted
    live.close(stream)
    await live.stop()


async def test_the_plans_of_the_inbox_use_its_indexes(road: Road) -> None:
    """Made on empty tables, as in a fresh installation, and kept for good."""
    async with road.database.acquire() as conn:
        for block, arguments in (
            (SQL.list_unread_items, "1, 'a', NULL, 9, 50"),
            (SQL.load_unread_items, "1, 'a', 0, 9, 50"),
            (SQL.load_items, "1, 'a', '{}'"),
            (SQL.load_changes, "'{1}', '{a}', '{0}', 20"),
        ):
            await conn.execute(f"PREPARE p AS {block}")
            plan = "\n".join(row[0] for row in await conn.fetch(f"EXPLAIN EXECUTE p ({arguments})"))
            await conn.execute("DEALLOCATE p")
            assert "Seq Scan" not in plan, plan
            assert "inbox_item_" in plan, plan
