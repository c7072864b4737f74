"""Digests on a real database: who gathers, who closes, who of several at once, and the whole road."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest

from tests.db.road import Road, make_project
from tidings import ids
from tidings.db.pool import Connection, Database
from tidings.directory.audit import Actor
from tidings.directory.digests import DigestRule, read_key
from tidings.directory.templates import create_template_version, publish_template, put_template
from tidings.directory.types import parse_definition, put_type
from tidings.engine.jobs import Job, finish_jobs
from tidings.flow.digests import (
    Digest,
    Join,
    Joined,
    close_windows,
    join_windows,
    leave_windows,
    to_window_key,
)
from tidings.flow.intervene import Cancelled
from tidings.flow.jobs import ALL_CHANNELS, DIGEST, PLAN
from tidings.model.words import Channel, Reason, RunState, Status

FIXED = DigestRule(window="15m")
EMAIL = 1 << Channel.email


class Gathering:
    """Planning as far as digests are concerned."""

    def __init__(self, road: Road) -> None:
        self.road = road
        self.database = road.database
        self.clock = road.clock
        self.project_id = road.project_id
        self.rng = random.Random(7)
        self.types: dict[str, int] = {}
        self.notified = 0

    @property
    def now(self) -> datetime:
        return self.clock.now()

    def pass_time(self, **span: float) -> None:
        self.clock.move(timedelta(**span).total_seconds())

    async def put_type(self, key: str, digest: dict[str, Any] | None) -> int:
        """A version of a type; answers with its id."""
        raw = {"category": "general", "template": "t", "digest": digest}

        async def work(conn: Connection) -> int:
            await put_type(conn, Actor(self.project_id, "system"), key, parse_definition(key, raw, timedelta(days=90)))
            id_: int = await conn.fetchval("SELECT max(id) FROM type_version")
            return id_

        self.types[key] = await self.database.transaction(work)
        return self.types[key]

    async def notify(self, data: dict[str, Any] | None = None, **columns: Any) -> UUID:
        """A notification to ada, about to be planned."""
        self.notified += 1  # their ids are in order, also within a millisecond
        id_ = ids.new_id(self.now + timedelta(milliseconds=self.notified), self.rng)
        row: dict[str, Any] = {
            "id": id_,
            "project_id": self.project_id,
            "user_id": "ada",
            "priority": 2,
            "data": json.dumps(data) if data is not None else None,
            "created_at": self.now,
            **columns,
        }
        places = ", ".join(f"${n}" for n in range(1, len(row) + 1))
        await self.database.execute(f"INSERT INTO notification ({', '.join(row)}) VALUES ({places})", *row.values())
        return id_

    def to_join(
        self, id_: UUID, rule: DigestRule | None = FIXED, data: dict[str, Any] | None = None, **fields: Any
    ) -> Join:
        channels = fields.get("channels", ALL_CHANNELS)
        join = Join(
            self.project_id,
            "u:ada",
            to_window_key("mail", read_key(rule or FIXED, data or {}), channels, "digested"),
            id_,
            self.types["mail"],
            rule,
            None,
            None,
            "digested",
            2,
            channels,
            rule is not None and rule.first == "now",
        )
        return join._replace(**fields)

    async def join(self, *joins: Join) -> dict[UUID, Joined]:
        async def work(conn: Connection) -> dict[UUID, Joined]:
            return await self.join_in(conn, *joins)

        return await self.database.transaction(work)

    async def join_in(self, conn: Connection, *joins: Join) -> dict[UUID, Joined]:
        return await join_windows(conn, joins, self.now, self.rng)

    async def gather(self, rule: DigestRule | None = FIXED, data: dict[str, Any] | None = None, **fields: Any) -> UUID:
        """One more item; answers with its window."""
        id_ = await self.notify(data)
        joined = await self.join(self.to_join(id_, rule, data, **fields))
        return joined[id_].window_id

    async def close(self) -> list[Digest]:
        async def work(conn: Connection) -> list[Digest]:
            return await close_windows(conn, await self.lock_jobs(conn), self.now, self.road.catalog)

        return await self.database.transaction(work)

    async def lock_jobs(self, conn: Connection) -> list[Job]:
        rows = await conn.fetch(
            "SELECT id, project_id, kind, lane, priority, attempt, epoch, account_id, traceparent FROM job"
            " WHERE kind = $1 AND due_at <= $2 ORDER BY due_at FOR UPDATE SKIP LOCKED",
            DIGEST,
            self.now,
        )
        return [Job(*row) for row in rows]

    async def digest(self, id_: UUID) -> Any:
        row = await self.database.fetchrow("SELECT * FROM notification WHERE id = $1", id_)
        return dict(row) | {"data": json.loads(row["data"])} if row is not None else None

    async def job(self, id_: UUID) -> Any:
        return await self.database.fetchrow("SELECT * FROM job WHERE id = $1", id_)

    async def is_empty(self) -> bool:
        return not any([await self.road.count(table) for table in ("digest_window", "digest_item")])


@pytest.fixture
async def road(database: Database) -> Road:
    return Road(database, await database.transaction(make_project))


@pytest.fixture
async def gathering(road: Road) -> Gathering:
    made = Gathering(road)
    await made.put_type("mail", {"window": "15m"})
    return made


def counts(digests: Sequence[Digest]) -> list[int]:
    return sorted((digest.items for digest in digests), reverse=True)


# ------------------------------------------------------------ gathering


async def test_ten_triggers_at_once_in_one_window_become_one_message_with_ten_items(gathering: Gathering) -> None:
    triggers = [await gathering.notify({"n": n}) for n in range(10)]
    joined = await asyncio.gather(*(gathering.join(gathering.to_join(id_)) for id_ in triggers))
    [window] = {place.window_id for answer in joined for place in answer.values()}
    assert await gathering.road.count("job") == 1
    assert await gathering.close() == []
    gathering.pass_time(minutes=15)
    assert await gathering.close() == [Digest(window, gathering.project_id, 10)]
    row = await gathering.digest(window)
    assert (row["items"], row["user_id"], row["data"]["digest"]["count"]) == (10, "ada", 10)
    assert sorted(item["data"]["n"] for item in row["data"]["digest"]["items"]) == list(range(10))
    job = await gathering.job(window)
    assert (job["kind"], job["due_at"]) == (PLAN, gathering.now)
    assert await gathering.is_empty()


async def test_keys_a_a_b_become_two_messages_and_those_without_one_a_third(gathering: Gathering) -> None:
    rule = DigestRule(window="15m", key="order")
    await gathering.put_type("mail", {"window": "15m", "key": "order"})
    for data in ({"order": "A"}, {"order": "A", "n": 2}, {"order": "B"}, {}, {"order": None}, {"n": 3}):
        await gathering.gather(rule, data)
    gathering.pass_time(minutes=15)
    digests = await gathering.close()
    assert counts(digests) == [3, 2, 1]
    keys = {d.items: (await gathering.digest(d.id))["data"]["digest"]["key"] for d in digests}
    assert keys == {2: "A", 1: "B", 3: None}


async def test_users_types_channels_and_projects_do_not_mix(gathering: Gathering) -> None:
    windows = {
        await gathering.gather(),
        await gathering.gather(target="u:bob"),
        await gathering.gather(channels=EMAIL),
        await gathering.gather(key=to_window_key("other", "", ALL_CHANNELS, "digested")),
        await gathering.gather(key=to_window_key("mail", "", ALL_CHANNELS, "digested", test=True)),
        await gathering.gather(project_id=gathering.project_id + 1),
    }
    assert len(windows) == 6


async def test_a_batch_joins_as_one_by_one_would(gathering: Gathering) -> None:
    rule = DigestRule(window="15m", key="order")
    datas = [{"order": "A"}, {"order": "B"}, {"order": "A"}]
    found = [await gathering.notify(data) for data in datas]
    joined = await gathering.join(*(gathering.to_join(id_, rule, data) for id_, data in zip(found, datas, strict=True)))
    assert joined[found[0]].window_id == joined[found[2]].window_id != joined[found[1]].window_id
    again = await gathering.gather(rule, {"order": "B"})
    assert again == joined[found[1]].window_id
    assert await gathering.join() == {}


async def test_one_that_waits_on_two_channels_waits_for_the_first(gathering: Gathering) -> None:
    id_ = await gathering.notify()
    night = gathering.now + timedelta(hours=7)
    joined = await gathering.join(
        gathering.to_join(id_, None, channels=EMAIL, close_at=night),
        gathering.to_join(id_, None, channels=1 << Channel.sms, close_at=night - timedelta(hours=1)),
    )
    assert joined[id_].closes_at == night - timedelta(hours=1)
    assert await gathering.road.count("digest_window") == 2

    async def cancel(conn: Connection) -> set[UUID]:
        return await leave_windows(conn, gathering.project_id, [id_])

    assert await gathering.database.transaction(cancel) == {id_}
    assert await gathering.road.count("digest_item") == 0


async def test_an_item_joins_once_however_often_it_is_said(gathering: Gathering) -> None:
    id_ = await gathering.notify()
    first = await gathering.database.transaction(
        lambda conn: join_windows(conn, [gathering.to_join(id_)], gathering.now, gathering.rng)
    )
    assert first == await gathering.database.transaction(
        lambda conn: join_windows(conn, [gathering.to_join(id_)], gathering.now, gathering.rng)
    )
    assert await gathering.road.count("digest_item") == 1


# ------------------------------------------------------------ when it closes


async def test_a_fixed_window_closes_when_it_said(gathering: Gathering) -> None:
    window = await gathering.gather()
    gathering.pass_time(minutes=14)
    assert await gathering.gather() == window
    assert await gathering.close() == []
    gathering.pass_time(minutes=1)
    assert counts(await gathering.close()) == [2]
    assert await gathering.gather() != window


async def test_a_sliding_window_slides_until_its_maximum(gathering: Gathering) -> None:
    rule = DigestRule(window="10m", sliding=True, at_most="25m")
    opened_at = gathering.now
    window = await gathering.gather(rule)
    for _ in range(2):
        gathering.pass_time(minutes=9)
        assert await gathering.gather(rule) == window
        assert await gathering.close() == []
    gathering.pass_time(minutes=2)  # its job is due once more, and sees that it slid
    assert await gathering.close() == []
    job = await gathering.job(window)
    assert (job["kind"], job["due_at"]) == (DIGEST, opened_at + timedelta(minutes=25))
    gathering.pass_time(minutes=4)
    assert await gathering.gather(rule) == window
    assert await gathering.close() == []
    gathering.pass_time(minutes=1)
    assert counts(await gathering.close()) == [4]


async def test_a_cron_window_closes_in_the_users_zone(gathering: Gathering) -> None:
    rule = DigestRule(cron="0 9 * * *")
    gathering.clock.move(60)  # 12:01 UTC
    kathmandu = await gathering.gather(rule, time_zone="Asia/Kathmandu")  # 17:46 there
    nowhere = await gathering.gather(rule, target="u:bob")
    noon = gathering.now.replace(minute=0)
    assert (await gathering.job(kathmandu))["due_at"] == noon + timedelta(hours=15, minutes=15)
    assert (await gathering.job(nowhere))["due_at"] == noon + timedelta(hours=21)


async def test_what_waits_for_a_moment_closes_then(gathering: Gathering) -> None:
    """Quiet hours, caps and frequencies say themselves when."""
    fields: dict[str, Any] = {"key": to_window_key("mail", "", EMAIL, "quiet_hours"), "reason": "quiet_hours"}
    until = gathering.now + timedelta(hours=7)
    window = await gathering.gather(**fields, close_at=until, rule=None)
    assert await gathering.gather(**fields, close_at=until + timedelta(hours=1), rule=None) == window
    assert (await gathering.job(window))["due_at"] == until
    gathering.pass_time(hours=7)
    assert counts(await gathering.close()) == [2]


# ------------------------------------------------------------ the first at once


async def test_the_first_goes_at_once_and_the_others_are_gathered(gathering: Gathering) -> None:
    rule = DigestRule(window="15m", first="now")
    first, second, third = [await gathering.notify({"n": n}) for n in range(3)]
    joined = await gathering.join(gathering.to_join(first, rule), gathering.to_join(second, rule))
    assert [joined[id_].goes_now for id_ in (first, second)] == [True, False]
    joined = await gathering.join(gathering.to_join(third, rule))
    assert not joined[third].goes_now
    gathering.pass_time(minutes=15)
    [digest] = await gathering.close()
    data = (await gathering.digest(digest.id))["data"]["digest"]
    assert [item["data"]["n"] for item in data["items"]] == [1, 2]


async def test_of_many_at_once_exactly_one_goes(gathering: Gathering) -> None:
    rule = DigestRule(window="15m", first="now")
    triggers = [await gathering.notify() for _ in range(10)]
    joined = await asyncio.gather(*(gathering.join(gathering.to_join(id_, rule)) for id_ in triggers))
    assert sum(place.goes_now for answer in joined for place in answer.values()) == 1
    gathering.pass_time(minutes=15)
    assert counts(await gathering.close()) == [9]


async def test_a_window_of_which_only_the_first_went_closes_without_a_message(gathering: Gathering) -> None:
    rule = DigestRule(window="15m", first="now")
    window = await gathering.gather(rule)
    gathering.pass_time(minutes=15)
    assert await gathering.close() == []
    assert await gathering.digest(window) is None
    assert await gathering.road.count("job") == 0
    assert await gathering.is_empty()
    joined = await gathering.join(gathering.to_join(id_ := await gathering.notify(), rule))
    assert joined[id_].goes_now


# ------------------------------------------------------------ what it becomes


async def test_at_most_max_items_are_shown_the_newest_ones(gathering: Gathering) -> None:
    await gathering.put_type("mail", {"window": "15m", "max": 3})
    for n in range(5):
        await gathering.gather(data={"n": n})
        gathering.pass_time(seconds=1)
    gathering.pass_time(minutes=15)
    [digest] = await gathering.close()
    row = await gathering.digest(digest.id)
    shown = row["data"]["digest"]
    assert (row["items"], shown["count"], shown["more"]) == (5, 5, 2)
    assert [item["data"]["n"] for item in shown["items"]] == [2, 3, 4]
    assert row["data"]["n"] == 4
    assert datetime.fromisoformat(shown["until"]) - datetime.fromisoformat(shown["since"]) == timedelta(seconds=4)


async def test_it_takes_after_its_newest_item_and_the_most_urgent_one(gathering: Gathering) -> None:
    ends = gathering.now + timedelta(hours=2)
    old = await gathering.notify({"n": 1}, priority=1, expires_at=ends, locale="de")
    # Scheduled long ago for a later moment: it counts from then.
    new = await gathering.notify(
        {"n": 2}, expires_at=ends + timedelta(hours=1), locale="en", metadata='{"trace": "x"}', options='{"o": 1}',
        traceparent="00-1", at_most_once=True, test=True, send_at=gathering.now + timedelta(minutes=1),
        created_at=gathering.now - timedelta(days=1),
    )  # fmt: skip
    joined = await gathering.join(*(gathering.to_join(id_, channels=EMAIL) for id_ in (new, old)))
    gathering.pass_time(minutes=15)
    await gathering.close()
    row = await gathering.digest(joined[old].window_id)
    assert row["data"] | {"digest": None} == {"n": 2, "digest": None}
    assert (row["priority"], row["channels"], row["locale"], row["at_most_once"], row["test"]) == (
        1, EMAIL, "en", True, True,
    )  # fmt: skip
    assert (row["metadata"], row["options"], row["traceparent"]) == ('{"trace": "x"}', '{"o": 1}', "00-1")
    assert (row["expires_at"], row["created_at"]) == (ends + timedelta(hours=1), gathering.now)
    assert (await gathering.job(row["id"]))["priority"] == 1


async def test_it_does_not_expire_if_one_of_its_items_does_not(gathering: Gathering) -> None:
    joins = [await gathering.notify(expires_at=gathering.now + timedelta(hours=2)), await gathering.notify()]
    joined = await gathering.join(*(gathering.to_join(id_) for id_ in joins))
    gathering.pass_time(minutes=15)
    await gathering.close()
    assert (await gathering.digest(joined[joins[0]].window_id))["expires_at"] is None


async def test_somebody_without_a_user_gets_one_too(gathering: Gathering) -> None:
    id_ = await gathering.notify(user_id=None, to_channel=1, to_address="eve@example.com")
    joined = await gathering.join(gathering.to_join(id_, target="1:eve@example.com"))
    gathering.pass_time(minutes=15)
    await gathering.close()
    row = await gathering.digest(joined[id_].window_id)
    assert (row["user_id"], row["to_channel"], row["to_address"]) == (None, 1, "eve@example.com")


async def test_an_edit_of_the_type_disturbs_no_window(gathering: Gathering) -> None:
    """It closes when it said, with all items; how many are shown is the newest version's."""
    window = await gathering.gather(data={"n": 1})
    old = gathering.types["mail"]
    await gathering.put_type("mail", {"window": "1h", "max": 1})
    assert await gathering.gather(DigestRule(window="1h", max=1), {"n": 2}) == window
    # Planned by the old one, a moment later.
    assert await gathering.gather(data={"n": 3}, type_version_id=old) == window
    gathering.pass_time(minutes=15)
    assert counts(await gathering.close()) == [3]
    row = await gathering.digest(window)
    assert row["type_version_id"] == gathering.types["mail"] > old
    assert [item["data"]["n"] for item in row["data"]["digest"]["items"]] == [3]


async def test_a_type_that_is_not_digested_any_more_still_closes_its_windows(gathering: Gathering) -> None:
    window = await gathering.gather()
    gathering.types["mail"] = await gathering.put_type("mail", None)
    await gathering.gather()
    gathering.pass_time(minutes=15)
    assert await gathering.close() == [Digest(window, gathering.project_id, 2)]


async def test_the_data_of_a_broadcast_stand_there(gathering: Gathering) -> None:
    broadcasts = [ids.new_id(gathering.now, gathering.rng) for _ in range(2)]
    for id_, cancelled_at in zip(broadcasts, (None, gathering.now), strict=True):
        await gathering.database.execute(
            "INSERT INTO broadcast (id, project_id, type_version_id, audience, data, priority, status, estimated,"
            " lanes, cancelled_at) VALUES ($1, $2, $3, '{}', '{\"n\": 7}', 2, 1, 1, 2, $4)",
            id_, gathering.project_id, gathering.types["mail"], cancelled_at,
        )  # fmt: skip
    joins = [await gathering.notify(broadcast_id=id_) for id_ in broadcasts]
    joined = await gathering.join(*(gathering.to_join(id_) for id_ in joins))
    gathering.pass_time(minutes=15)
    assert counts(await gathering.close()) == [1]  # the other broadcast was cancelled
    row = await gathering.digest(joined[joins[0]].window_id)
    assert row["data"]["n"] == row["data"]["digest"]["items"][0]["data"]["n"] == 7


# ------------------------------------------------------------ who drops out


async def test_cancelled_items_leave(gathering: Gathering) -> None:
    stays, leaves, other = [await gathering.notify({"n": n}) for n in range(3)]
    await gathering.join(gathering.to_join(stays), gathering.to_join(leaves))

    async def cancel(conn: Connection) -> set[UUID]:
        return await leave_windows(conn, gathering.project_id, [leaves, other])

    assert await gathering.database.transaction(cancel) == {leaves}
    assert await gathering.database.transaction(cancel) == set()
    gathering.pass_time(minutes=15)
    [digest] = await gathering.close()
    assert [i["data"]["n"] for i in (await gathering.digest(digest.id))["data"]["digest"]["items"]] == [0]


async def test_a_window_that_all_left_closes_without_a_message(gathering: Gathering) -> None:
    cancelled = await gathering.notify(cancelled_at=gathering.now)
    expired = await gathering.notify(expires_at=gathering.now + timedelta(minutes=15))
    left = await gathering.notify()
    await gathering.join(*(gathering.to_join(id_) for id_ in (cancelled, expired, left)))
    await gathering.database.transaction(lambda conn: leave_windows(conn, gathering.project_id, [left]))
    gathering.pass_time(minutes=15)
    assert await gathering.close() == []
    assert await gathering.road.count("job") == 0
    assert await gathering.is_empty()


async def test_whoever_is_cancelled_while_the_digest_closes_is_in_it(gathering: Gathering) -> None:
    id_ = await gathering.notify()
    await gathering.join(gathering.to_join(id_))
    gathering.pass_time(minutes=15)
    async with gathering.database.acquire() as closing, closing.transaction():
        jobs = await gathering.lock_jobs(closing)
        assert counts(await close_windows(closing, jobs, gathering.now, gathering.road.catalog)) == [1]
        leaving = asyncio.create_task(
            gathering.database.transaction(lambda conn: leave_windows(conn, gathering.project_id, [id_]))
        )
        await gathering.road.wait_for_lock()
        assert not leaving.done()
    assert await leaving == set()


async def test_the_job_of_a_window_that_was_erased_goes(gathering: Gathering) -> None:
    await gathering.gather()
    await gathering.database.execute("DELETE FROM digest_item")
    await gathering.database.execute("DELETE FROM digest_window")
    gathering.pass_time(minutes=15)
    assert await gathering.close() == []
    assert await gathering.road.count("job") == 0


# ------------------------------------------------------------ several at once, and crashes


async def test_a_window_that_two_close_at_once_is_closed_once(gathering: Gathering) -> None:
    for n in range(3):
        await gathering.gather(data={"n": n})
    gathering.pass_time(minutes=15)
    closed = await asyncio.gather(*(gathering.close() for _ in range(8)))
    assert [counts(digests) for digests in closed if digests] == [[3]]
    assert await gathering.database.fetchval("SELECT count(*) FROM notification WHERE items IS NOT NULL") == 1
    assert await gathering.road.count("job") == 1


async def test_who_joins_while_it_closes_opens_the_next_one(gathering: Gathering) -> None:
    window = await gathering.gather()
    gathering.pass_time(minutes=15)
    async with gathering.database.acquire() as closing, closing.transaction():
        jobs = await gathering.lock_jobs(closing)
        assert counts(await close_windows(closing, jobs, gathering.now, gathering.road.catalog)) == [1]
        joining = asyncio.create_task(gathering.gather())
        await gathering.road.wait_for_lock()
    following = await joining
    assert following != window
    gathering.pass_time(minutes=15)
    assert [digest.id for digest in await gathering.close()] == [following]


async def test_who_closes_while_somebody_joins_leaves_it_for_a_moment(gathering: Gathering) -> None:
    window = await gathering.gather()
    late = await gathering.notify()
    gathering.pass_time(minutes=15)
    async with gathering.database.acquire() as joining, joining.transaction():
        joined = await gathering.join_in(joining, gathering.to_join(late))
        assert await gathering.close() == []
    assert joined[late] == Joined(window, gathering.now)
    assert counts(await gathering.close()) == [2]


async def test_those_who_join_and_close_crosswise_do_not_wait_for_each_other(gathering: Gathering) -> None:
    windows = [await gathering.gather(target=target) for target in ("u:a", "u:b")]
    late = [await gathering.notify(), await gathering.notify()]
    gathering.pass_time(minutes=15)
    async with (
        gathering.database.acquire() as one,
        gathering.database.acquire() as two,
        one.transaction(),
        two.transaction(),
    ):
        jobs = await gathering.lock_jobs(one)
        await gathering.join_in(one, gathering.to_join(late[0], target="u:a"))
        await gathering.join_in(two, gathering.to_join(late[1], target="u:b"))
        mine = [job for job in jobs if job.id == windows[1]]
        assert await close_windows(one, mine, gathering.now, gathering.road.catalog) == []
    assert counts(await gathering.close()) == [2, 2]


async def test_a_crash_while_closing_loses_and_doubles_nothing(gathering: Gathering) -> None:
    window = await gathering.gather()
    await gathering.gather()
    gathering.pass_time(minutes=15)
    for _ in range(2):
        async with gathering.database.acquire() as conn:
            crashed = conn.transaction()
            await crashed.start()
            await close_windows(conn, await gathering.lock_jobs(conn), gathering.now, gathering.road.catalog)
            await crashed.rollback()
        assert (await gathering.job(window))["kind"] == DIGEST
    assert await gathering.close() == [Digest(window, gathering.project_id, 2)]
    assert await gathering.close() == []


async def test_many_windows_close_in_one_batch(gathering: Gathering) -> None:
    joins = [gathering.to_join(await gathering.notify({"n": n}), target=f"u:{n % 20}") for n in range(60)]
    await gathering.join(*joins)
    gathering.pass_time(minutes=15)
    digests = await gathering.close()
    assert counts(digests) == [3] * 20
    shown = [i["data"]["n"] % 20 for i in (await gathering.digest(digests[0].id))["data"]["digest"]["items"]]
    assert len(set(shown)) == 1
    done = await gathering.database.fetch(
        "SELECT id, project_id, kind, lane, priority, attempt, epoch, account_id, traceparent FROM job"
    )
    assert {row["kind"] for row in done} == {PLAN}
    await gathering.database.transaction(lambda conn: finish_jobs(conn, [Job(*row) for row in done]))
    assert await gathering.is_empty()


# ------------------------------------------------------------ the whole road

SOURCE = "{{ digest.count }} in {{ digest.key }}:{% for item in digest.items %} {{ item.data.n }}{% endfor %}; {{ n }}"


async def put_digest_type(road: Road, digest: dict[str, Any]) -> None:
    content = {"channels": {"email": {"en": {"subject": "{{ digest.count }}", "text": SOURCE}}}}

    async def work(conn: Connection) -> None:
        actor = Actor(road.project_id, "system")
        await put_template(conn, actor, "list")
        version = await create_template_version(conn, actor, "list", content)
        await publish_template(conn, actor, "list", version.version)
        raw = {"category": "general", "template": "list", "digest": digest}
        await put_type(conn, actor, "list", parse_definition("list", raw, timedelta(days=90)))

    await road.database.transaction(work)
    road.catalog.forget(road.project_id)


def texts(road: Road) -> list[str]:
    return sorted(str(cast(Any, message.content).text) for message in road.vendor.sent)


async def go(road: Road) -> None:
    """Plan and send until nothing is due."""
    while await road.plan() or await road.send():
        pass


async def test_on_the_road_keys_a_a_b_become_two_mails_and_those_without_one_a_third(road: Road) -> None:
    await put_digest_type(road, {"window": "15m", "key": "order"})
    datas = [{"order": "A", "n": 1}, {"order": "A", "n": 2}, {"order": "B", "n": 3}, {"n": 4}, {"n": 5}]
    for data in datas:
        await road.accept(type="list", data=data)
        road.clock.move(1)
    await go(road)
    assert road.vendor.sent == []
    road.clock.move(15 * 60)
    await go(road)
    assert texts(road) == ["1 in B: 3; 3", "2 in A: 1 2; 2", "2 in None: 4 5; 5"]
    assert await road.count("digest_window") == await road.count("digest_item") == await road.count("job") == 0
    states = await road.database.fetch("SELECT state, count(*)::int AS n FROM run GROUP BY state ORDER BY state")
    assert [tuple(row) for row in states] == [(RunState.done, 3), (RunState.digested, 5)]


async def test_on_the_road_the_first_goes_at_once(road: Road) -> None:
    await put_digest_type(road, {"window": "15m", "first": "now"})
    for n in range(4):
        await road.accept(type="list", data={"n": n})
        road.clock.move(0.01)
    await go(road)
    assert texts(road) == ["1 in None: 0; 0"]
    road.clock.move(15 * 60)
    await go(road)
    assert texts(road) == ["1 in None: 0; 0", "3 in None: 1 2 3; 3"]


async def test_on_the_road_cancelled_items_are_not_told(road: Road) -> None:
    await put_digest_type(road, {"window": "15m"})
    stays = await road.accept(type="list", data={"n": 1})
    leaves = await road.accept(type="list", data={"n": 2})
    await go(road)
    assert await road.intervener.cancel(road.caller, leaves) is Cancelled.cancelled
    road.clock.move(15 * 60)
    await go(road)
    assert texts(road) == ["1 in None: 1; 1"]
    into = await road.database.fetchval("SELECT digest_id FROM run WHERE id = $1", stays)
    assert await road.database.fetchval("SELECT items FROM notification WHERE id = $1", into) == 1


async def test_on_the_road_a_sliding_window_slides(road: Road) -> None:
    await put_digest_type(road, {"window": "10m", "sliding": True, "at_most": "15m"})
    for n in range(3):
        await road.accept(type="list", data={"n": n})
        await go(road)
        road.clock.move(7 * 60)
    await go(road)  # opened 21 minutes ago, and closed after 15
    assert texts(road) == ["3 in None: 0 1 2; 2"]


async def test_on_the_road_who_wants_to_hear_daily_is_told_at_the_hour_of_their_day(road: Road) -> None:
    await put_digest_type(road, {"window": "15m"})  # the user's wish comes before the type's rule
    await road.database.execute(
        "UPDATE app_user SET time_zone = 'Asia/Kathmandu', preferences = $1 WHERE id = 'ada'",
        '{"categories": {"general": {"frequency": "daily"}}}',
    )
    for n in range(3):
        await road.accept(type="list", data={"n": n})
        road.clock.move(1)
    await go(road)
    nine = road.clock.now().replace(hour=3, minute=15, second=0, microsecond=0) + timedelta(days=1)
    assert [row["due_at"] for row in await road.database.fetch("SELECT due_at FROM job")] == [nine]
    road.clock.move((nine - road.clock.now()).total_seconds())
    await go(road)
    assert texts(road) == ["3 in None: 0 1 2; 2"]


async def test_on_the_road_items_that_expired_are_not_told_and_end_as_expired(road: Road) -> None:
    await put_digest_type(road, {"window": "15m"})
    soon = (road.clock.now() + timedelta(minutes=10)).isoformat()
    late = await road.accept(type="list", data={"n": 1}, expires_at=soon)
    await road.accept(type="list", data={"n": 2})
    alone = await road.accept(type="list", data={"n": 3}, to={"user": "bob"}, expires_at=soon)
    await go(road)
    road.clock.move(15 * 60)
    await go(road)
    assert texts(road) == ["1 in None: 2; 2"]
    for id_ in (late, alone):
        [delivery] = await road.deliveries(id_)
        assert (delivery["status"], delivery["reason"]) == (Status.expired, Reason.expired)
        [run] = await road.database.fetch("SELECT * FROM run WHERE id = $1", id_)
        assert (run["state"], run["reason"]) == (RunState.stopped, Reason.expired)
    assert await road.count("job") == await road.count("digest_window") == 0
