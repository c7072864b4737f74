"""Segments on a real database: what a condition means in SQL and in Python is the same; slots, bits and counts."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tidings.db.pool import Connection, Database
from tidings.directory import segments
from tidings.directory.audit import Actor, list_audit
from tidings.directory.projects import create_project
from tidings.directory.segments import (
    count_members,
    delete_segment,
    list_members,
    list_segments,
    load_segment,
    parse_segment,
    put_segment,
    refresh_segments,
    sample_members,
    to_where,
)
from tidings.directory.topics import apply_members
from tidings.directory.users import put_user
from tidings.errors import Conflict, Invalid, NotFound, Unavailable
from tidings.model.conditions import Case, holds
from tidings.model.words import Channel

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
async def actor(database: Database) -> Actor:
    project = await database.transaction(lambda conn: create_project(conn, "shop", "Shop"))
    return Actor(project.id, "cli")


async def add_user(database: Database, actor: Actor, user_id: str, **attributes: Any) -> None:
    await database.transaction(lambda conn: put_user(conn, actor, user_id, attributes=attributes))


async def put(database: Database, actor: Actor, key: str, condition: Any, *, tracked: bool = False) -> Any:
    parsed = parse_segment(condition)
    segment, _ = await database.transaction(
        lambda conn: put_segment(conn, actor, key, name="", condition=parsed, tracked=tracked)
    )
    return segment


async def bits_of(database: Database, actor: Actor) -> dict[str, int]:
    rows = await database.fetch("SELECT id, segments FROM app_user WHERE project_id = $1", actor.project_id)
    return {row["id"]: row["segments"] for row in rows}


# ---------------------------------------------------------------- Python and SQL agree

names = st.sampled_from(["a", "b", "ä", "0", "a-b", "plan"])
texts = st.sampled_from(["", "a", "ab", "abc", "A", "ä", "é", "e\u0301", "😀", "1", "true", "%", "_", "\\", "a'b"])
numbers = st.sampled_from([0, 1, -1, 2, 1.0, 0.1, -0.0, 1.5, 1e22, 10**18, 2**53, 2**53 + 1, 9007199254740992.0, 1e-7])
times = st.sampled_from(
    [
        "2026-11-22T12:00:00Z", "2026-11-22T13:00:00+01:00", "2026-11-22T12:00:00.000001Z", "2026-11-22", "2024-02-29",
        "2023-02-29", "2000-02-29", "1900-02-29", "2026-04-31", "2026-12-31T23:59:59.5-14:59", "2026-1-1", "0999-01-01",
        "2026-11-22T24:00:00Z", "2026-11-22T12:00:60Z", "2026-11-22T12:00:00", "2026-11-22T12:00:00Z\n", "infinity",
        "now", "9999-12-31T23:59:59-14:00", "1000-01-01T00:00:00+14:00", "2026-11-15",
    ]
)  # fmt: skip
scalars = texts | numbers | st.booleans()
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | scalars | times, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
)
# Mostly what conditions ask for, of the kind that they ask for; else nearly nothing would ever be met.
attributes = st.fixed_dictionaries(
    {},
    optional={
        "text": texts,
        "number": numbers,
        "flag": st.booleans(),
        "list": st.lists(texts | numbers | st.booleans(), max_size=4),
        "time": times,
        "any": values,
        "ä": st.dictionaries(names, values, max_size=3),
    },
)
channels = st.sampled_from(["email", "in_app"])
moments = st.sampled_from([NOW, NOW - timedelta(days=1), NOW - timedelta(days=30), NOW - timedelta(days=31)])
relative = st.sampled_from(["-30d", "+1h", "-0s", "-1d", "+36525d"])
keys = st.sampled_from(["orders", "news"])
topic_keys = st.sampled_from(["p", "p/1", "p/1/x", "p/10", "p/1-x", "p/1.x", "q", "P/1"])
patterns = topic_keys | st.sampled_from(["#", "p/#", "p/1/#", "q/#"])
maybe = st.none() | st.booleans()


def without_none(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if value is not None}


on_channels = st.dictionaries(channels, st.booleans(), max_size=3)
choices = st.builds(
    lambda enabled, on: without_none({"enabled": enabled, "channels": on}), maybe, st.none() | on_channels
)
preferences = st.builds(
    lambda muted, until, on, categories: without_none(
        {"muted": muted, "muted_until": until, "channels": on, "categories": categories}
    ),
    maybe,
    st.sampled_from([None, "2026-11-22T12:00:00Z", "2026-11-22T12:00:01+00:00", "2026-11-21", "soon"]),
    st.none() | on_channels,
    st.none() | st.dictionaries(keys, choices, max_size=2),
)
activity = st.dictionaries(channels, st.dictionaries(st.sampled_from(["opened", "clicked"]), moments), max_size=3)
people = st.fixed_dictionaries(
    {
        "locale": st.none() | st.sampled_from(["de", "de-AT", "en"]),
        "time_zone": st.none() | st.sampled_from(["Europe/Vienna", "UTC"]),
        "region": st.none() | st.sampled_from(["US", "US-FL"]),
        "created_at": moments,
        "attributes": attributes,
        "preferences": preferences,
        "activity": activity,
        "topics": st.sets(topic_keys, max_size=3),
    }
)

paths = st.lists(names, min_size=1, max_size=2).map(lambda parts: ".".join(["ä", *parts])) | st.sampled_from(
    ["text", "number", "flag", "list", "time", "any", "list.0", "text.a"]
)
one_kind = (
    st.lists(texts, min_size=1, max_size=3)
    | st.lists(numbers, min_size=1, max_size=3)
    | st.lists(st.booleans(), min_size=1, max_size=2)
)
comparisons = (
    st.tuples(st.sampled_from(["is", "is_not"]), scalars)
    | st.tuples(st.sampled_from(["in", "not_in"]), one_kind)
    | st.tuples(st.sampled_from(["above", "at_least", "below", "at_most"]), numbers)
    | st.tuples(st.just("contains"), scalars.filter(lambda value: value != ""))
    | st.tuples(st.just("starts_with"), texts.filter(bool))
    | st.tuples(st.just("exists"), st.booleans())
    | st.tuples(st.sampled_from(["before", "after"]), times | relative)
)
of_kind = (
    st.tuples(st.just("text"), st.sampled_from(["is", "is_not", "contains", "starts_with"]), texts.filter(bool))
    | st.tuples(st.just("text"), st.sampled_from(["in", "not_in"]), st.lists(texts, min_size=1, max_size=3))
    | st.tuples(st.just("number"), st.sampled_from(["in", "not_in"]), st.lists(numbers, min_size=1, max_size=3))
    | st.tuples(st.just("number"), st.sampled_from(["is", "is_not", "above", "at_least", "below", "at_most"]), numbers)
    | st.tuples(st.just("flag"), st.sampled_from(["is", "is_not"]), st.booleans())
    | st.tuples(st.just("list"), st.just("contains"), texts.filter(bool) | numbers | st.booleans())
    | st.tuples(st.just("time"), st.sampled_from(["before", "after"]), times | relative)
)
columns = (
    st.tuples(st.sampled_from(["is", "is_not"]), st.sampled_from(["de", "UTC", "US-FL", "u0", ""]))
    | st.tuples(st.sampled_from(["in", "not_in"]), st.lists(st.sampled_from(["de", "UTC", "u1"]), min_size=1))
    | st.tuples(st.sampled_from(["contains", "starts_with"]), st.sampled_from(["d", "-", "u", "US"]))
    | st.tuples(st.just("exists"), st.booleans())
)
leaves = (
    of_kind.map(lambda asked: {"user": asked[0], asked[1]: asked[2]})
    | st.builds(lambda path, op: {"user": path, op[0]: op[1]}, paths, comparisons)
    | st.builds(
        lambda path, op: {"user": path, op[0]: op[1]}, st.sampled_from(["id", "locale", "time_zone", "region"]), columns
    )
    | st.builds(lambda op, at: {"user": "created_at", op: at}, st.sampled_from(["before", "after"]), times | relative)
    | st.builds(
        lambda what, channel, within: without_none({"engaged": what, "channel": channel, "within": within}),
        st.sampled_from(["opened", "clicked"]),
        st.none() | channels,
        st.sampled_from([None, "ever", "30d", "1s"]),
    )
    | st.builds(
        lambda key, channel, on: without_none({"category": key, "channel": channel, "on": on}),
        keys,
        st.none() | channels,
        st.booleans(),
    )
    | st.builds(lambda pattern: {"topic": pattern}, patterns)
)
conditions = st.recursive(
    leaves,
    lambda inner: (
        st.builds(
            lambda head, many: {head: many}, st.sampled_from(["all", "any"]), st.lists(inner, min_size=1, max_size=3)
        )
        | st.builds(lambda one: {"not": one}, inner)
    ),
    max_leaves=4,
)


def valid(condition: Any) -> Any:
    """The normal form; None for the few that are none (a time that does not exist, say)."""
    try:
        return parse_segment(condition)
    except Invalid:
        return None


def parts_of(condition: dict[str, Any]) -> list[dict[str, Any]]:
    """It, and all that is inside of it."""
    inner = [*condition.get("all", []), *condition.get("any", [])] or ([condition["not"]] if "not" in condition else [])
    return [condition, *(part for each in inner for part in parts_of(each))]


async def store(conn: Connection, project_id: int, user_id: str, person: dict[str, Any]) -> Case:
    text = msgspec.json.encode(person["attributes"]).decode()
    said = msgspec.json.encode(person["preferences"]).decode()
    row = await conn.fetchrow(
        "INSERT INTO app_user (project_id, id, locale, time_zone, region, created_at, attributes, preferences)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7::jsonb, $8::jsonb) RETURNING attributes, preferences",
        project_id,
        user_id,
        *(person[name] for name in ("locale", "time_zone", "region", "created_at")),
        text,
        said,
    )
    for channel, last in person["activity"].items():
        await conn.execute(
            "INSERT INTO user_engagement (project_id, user_id, channel, last_opened_at, last_clicked_at)"
            " VALUES ($1, $2, $3, $4, $5)",
            *(project_id, user_id, Channel[channel].value, last.get("opened"), last.get("clicked")),
        )
    await conn.executemany(
        "INSERT INTO topic_member (project_id, topic_key, user_id) VALUES ($1, $2, $3)",
        [(project_id, key, user_id) for key in person["topics"]],
    )
    assert row is not None
    read = msgspec.json.decode(row["attributes"])
    columns = {name: person[name] for name in ("locale", "time_zone", "region", "created_at")}
    return Case(
        user={**read, "id": user_id, **columns},
        now=NOW,
        activity=person["activity"],
        preferences=msgspec.json.decode(row["preferences"]),
        topics=person["topics"],
    )


class Undo(Exception):
    """Rolls back."""


async def compare(
    database: Database, actor: Actor, crowd: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]]
) -> None:
    """Asks both whether each condition holds for each person. Nothing is left behind."""

    async def work(conn: Connection) -> None:
        await conn.executemany(
            "INSERT INTO topic (project_id, key) VALUES ($1, $2)",
            [(actor.project_id, key) for key in ("p", "p/1", "p/1/x", "p/10", "p/1-x", "p/1.x", "q", "P/1")],
        )
        cases = {f"u{i}": await store(conn, actor.project_id, f"u{i}", person) for i, person in enumerate(crowd)}
        columns: list[str] = []
        values: list[Any] = []
        for condition in wanted:
            whole = len(columns) % 2 == 0
            where, parameters = to_where(condition, 2 + len(values), now=NOW, whole=whole)
            columns.append(f"({where}) IS TRUE" if whole else f"({where})")
            values += parameters
        rows = await conn.fetch(
            f"SELECT u.id, ARRAY[{', '.join(columns)}]::boolean[] AS met FROM app_user AS u WHERE u.project_id = $1",
            actor.project_id,
            *values,
        )
        for row in rows:
            for condition, met in zip(wanted, row["met"], strict=True):
                assert met == holds(condition, cases[row["id"]]), (condition, cases[row["id"]])
        assert len(rows) == len(cases)
        raise Undo

    with pytest.raises(Undo):
        await database.transaction(work)


@settings(
    max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(crowd=st.lists(people, min_size=2, max_size=5), asked=st.lists(leaves | conditions, min_size=8, max_size=16))
@example(
    crowd=[{"locale": None, "time_zone": None, "region": None, "created_at": NOW, "activity": {}, "topics": set(),
            "preferences": {}, "attributes": {"n": 1e22, "s": "2024-02-29", "d": 1e23}}],
    asked=[{"user": "n", "is": 10**18}, {"user": "s", "before": "2024-03-01"}, {"user": "d", "at_least": 1e23}],
)  # fmt: skip
async def test_a_condition_means_the_same_in_python_and_in_sql(
    database: Database, actor: Actor, crowd: list[dict[str, Any]], asked: list[Any]
) -> None:
    wanted = [part for condition in filter(None, map(valid, asked)) for part in parts_of(condition)]
    await compare(database, actor, crowd, wanted)


# What chance seldom puts together: every comparison with every kind of value, and all that can be said of a category.

NOBODY: dict[str, Any] = {
    "locale": None, "time_zone": None, "region": None, "created_at": NOW, "attributes": {}, "preferences": {},
    "activity": {}, "topics": (),
}  # fmt: skip
SAMPLES: list[Any] = [
    None, "", "a", "ab", "ba", "b", "1", "true", 0, 1, 1.0, 2, -1, 1.5, 10**18, True, False, [], ["a"], ["ab", 1],
    [True], [["a"]], {}, {"a": 1}, "2026-11-22T12:00:00Z", "2026-11-22T12:00:01+00:00", "2026-11-21", "2026-02-29",
]  # fmt: skip
TIMES = ["2026-11-22T12:00:00Z", "2026-11-22", "+0s", "-1d"]


async def test_every_comparison_with_every_kind_of_value(database: Database, actor: Actor) -> None:
    asked: list[Any] = [{"exists": True}, {"exists": False}]
    for value in ("", "a", "ab", 0, 1, 1.5, True, False):
        asked += [{"is": value}, {"is_not": value}, {"in": [value]}, {"not_in": [value]}]
        asked += [{"contains": value}, {"starts_with": value}]
        asked += [{"above": value}, {"at_least": value}, {"below": value}, {"at_most": value}]
    asked += [{"in": ["a", "1"]}, {"not_in": ["a", "1"]}, {"in": [1, 2]}, {"not_in": [1, 2]}]
    asked += [{name: time} for name in ("before", "after") for time in TIMES]
    wanted = list(filter(None, (valid({"user": "x", **op}) for op in asked)))
    assert len(wanted) > 60
    crowd = [NOBODY, *({**NOBODY, "attributes": {"x": value}} for value in SAMPLES)]
    await compare(database, actor, crowd, [*wanted, *({"not": condition} for condition in wanted)])


async def test_every_comparison_with_a_column(database: Database, actor: Actor) -> None:
    crowd = [{**NOBODY, "locale": locale, "attributes": {"locale": "fr"}} for locale in (None, "de", "de-AT", "en")]
    crowd += [{**NOBODY, "created_at": NOW - timedelta(days=days)} for days in (1, 2)]
    asked: list[Any] = [
        {"is": "de"}, {"is_not": "de"}, {"in": ["de", "en"]}, {"not_in": ["de", "en"]}, {"contains": "e"},
        {"contains": "-"}, {"starts_with": "de"}, {"starts_with": "e"}, {"exists": True}, {"exists": False},
    ]  # fmt: skip
    wanted = [parse_segment({"user": "locale", **op}) for op in asked]
    wanted += [parse_segment({"user": "created_at", op: time}) for op in ("before", "after") for time in TIMES]
    await compare(database, actor, crowd, wanted)


async def test_everything_that_can_be_said_of_a_category(database: Database, actor: Actor) -> None:
    untils = (None, "2026-11-22T12:00:00Z", "2026-11-22T12:00:01Z", "2026-11-21", "soon")
    yes_no = (None, True, False)
    moods = [*((True, until) for until in untils), (None, None), (None, untils[2]), (False, None)]
    said = []
    for (muted, until), channel, on, exact in itertools.product(moods, yes_no, yes_no, yes_no):
        choice = without_none({"enabled": on, "channels": without_none({"email": exact})})
        mood = without_none({"muted": muted, "muted_until": until})
        said.append({**mood, "channels": without_none({"email": channel}), "categories": {"news": choice}})
    asked = [
        without_none({"category": key, "channel": channel, "on": on})
        for key, channel, on in itertools.product(("news", "other"), (None, "email", "sms"), (True, False))
    ]
    await compare(database, actor, [{**NOBODY, "preferences": each} for each in said], list(map(parse_segment, asked)))


async def test_every_pattern_with_every_topic(database: Database, actor: Actor) -> None:
    keys = ("p", "p/1", "p/1/x", "p/10", "p/1-x", "p/1.x", "q", "P/1")
    crowd = [NOBODY, *({**NOBODY, "topics": (key,)} for key in keys)]
    await compare(database, actor, crowd, [{"topic": each} for each in (*keys, "#", "p/#", "p/1/#", "p/1/x/#", "q/#")])


async def test_activity_by_channel_and_time(database: Database, actor: Actor) -> None:
    times = (None, NOW, NOW - timedelta(days=30), NOW - timedelta(days=30, microseconds=1))
    crowd = [
        {**NOBODY, "activity": {channel: without_none({what: at})}}
        for channel, what, at in itertools.product(("email", "sms"), ("opened", "clicked"), times)
    ]
    asked = [
        without_none({"engaged": what, "channel": channel, "within": within})
        for what, channel, within in itertools.product(
            ("opened", "clicked"), (None, "email", "sms", "push"), (None, "30d", "1d")
        )
    ]
    await compare(database, actor, [NOBODY, *crowd], list(map(parse_segment, asked)))


# ---------------------------------------------------------------- segments


async def test_a_segment_is_made_changed_and_removed(database: Database, actor: Actor) -> None:
    condition = {"any": [{"user": "plan", "is": "pro"}, {"topic": "news/#"}]}
    made = await put(database, actor, "pro", condition)
    assert (made.key, made.condition, made.tracked, made.counted) == ("pro", condition, False, None)
    assert await load_segment(database, actor.project_id, "pro") == made
    assert await put(database, actor, "pro", condition) == made, "the same again changes nothing"
    changed = await put(database, actor, "pro", {"user": "plan", "exists": True})
    assert changed.updated_at > made.updated_at
    assert await list_segments(database, actor.project_id) == [changed]
    assert await list_segments(database, actor.project_id, after="pro") == []
    await database.transaction(lambda conn: delete_segment(conn, actor, "pro"))
    with pytest.raises(NotFound):
        await load_segment(database, actor.project_id, "pro")
    with pytest.raises(NotFound):
        await database.transaction(lambda conn: delete_segment(conn, actor, "pro"))
    trail = await list_audit(database, actor.project_id, object_="segment:pro")
    assert [entry.action for entry in trail] == ["segment.delete", "segment.put", "segment.put"]


async def test_members_are_counted_sampled_and_paged(database: Database, actor: Actor) -> None:
    other = await database.transaction(lambda conn: create_project(conn, "other", ""))
    await add_user(database, Actor(other.id, "cli"), "pro-of-others", plan="pro")
    for name in ("b", "a", "Z", "ä", "free"):
        await add_user(database, actor, name, plan="free" if name == "free" else "pro")
    condition = parse_segment({"user": "plan", "is": "pro"})
    assert await count_members(database, actor.project_id, condition) == 4
    assert await sample_members(database, actor.project_id, condition, 2) == ["Z", "a"]
    first = await list_members(database, actor.project_id, condition, limit=3)
    assert first == ["Z", "a", "b"], "in the order of octets"
    assert await list_members(database, actor.project_id, condition, after=first[-1]) == ["ä"]


async def test_pages_look_up_those_whom_they_come_to(database: Database, actor: Actor) -> None:
    """Not all members of a topic, which may be a million, for each page of a thousand users."""
    condition = parse_segment(
        {"any": [{"topic": "news"}, {"not": {"topic": "old/#"}}, {"engaged": "opened", "within": "30d"}]}
    )
    where, values = to_where(condition, 4)
    statement = segments._LIST_MEMBERS % {"where": where}
    for analyzed in (False, True):
        if analyzed:
            await database.execute(
                "INSERT INTO app_user (project_id, id) SELECT $1, n::text FROM generate_series(1, 5000) AS n",
                actor.project_id,
            )
            await database.execute("INSERT INTO topic (project_id, key) VALUES ($1, 'news')", actor.project_id)
            await database.execute(
                "INSERT INTO topic_member (project_id, topic_key, user_id) SELECT project_id, 'news', id FROM app_user"
            )
            await database.execute("ANALYZE")
        rows = await database.fetch(f"EXPLAIN {statement}", actor.project_id, "", 100, *values)
        plan = "\n".join(row[0] for row in rows)
        assert "app_user_pkey" in plan
        assert plan.count("topic_member_by_user") == 2, plan
        assert "user_engagement_pkey" in plan
        for bad in ("hashed", "Hash", "Seq Scan", "Sort"):
            assert bad not in plan, plan


async def test_a_count_that_takes_too_long_says_so(
    database: Database, actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "COUNT_TIMEOUT", timedelta(milliseconds=1))
    await database.execute(
        "INSERT INTO app_user (project_id, id, attributes) SELECT $1, n::text, jsonb_build_object('n', n)"
        " FROM generate_series(1, 50000) AS n",
        actor.project_id,
    )
    with pytest.raises(Unavailable, match="longer"):
        await count_members(database, actor.project_id, parse_segment({"user": "n", "above": 7}))


async def test_what_no_segment_can_know_is_refused(database: Database) -> None:
    for condition in ({"data": "a", "is": 1}, {"engaged": "seen"}):
        with pytest.raises(Invalid):
            parse_segment(condition)
        with pytest.raises(LookupError):
            to_where(condition, 1)


# ---------------------------------------------------------------- tracked segments


async def test_the_bits_follow_who_joins_and_leaves(database: Database, actor: Actor) -> None:
    for name, plan in (("ada", "pro"), ("bob", "free"), ("cleo", "pro")):
        await add_user(database, actor, name, plan=plan)
    pro = await put(database, actor, "pro", {"user": "plan", "is": "pro"}, tracked=True)
    known = await put(database, actor, "known", {"user": "plan", "exists": True}, tracked=True)
    assert (pro.slot, known.slot) == (0, 1)
    assert await refresh_segments(database) == 3
    assert await bits_of(database, actor) == {"ada": 3, "bob": 2, "cleo": 3}
    assert [s.counted for s in await list_segments(database, actor.project_id)] == [3, 2]
    assert await refresh_segments(database) == 0, "counted just now"
    before = await database.fetch("SELECT id, xmin::text FROM app_user ORDER BY id")
    await add_user(database, actor, "bob", plan="pro")
    assert await refresh_segments(database, stale_after=timedelta(0)) == 3
    assert await bits_of(database, actor) == {"ada": 3, "bob": 3, "cleo": 3}
    after = await database.fetch("SELECT id, xmin::text FROM app_user ORDER BY id")
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True], "only what changed is written"


async def test_batches_lead_over_all_users(database: Database, actor: Actor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_REFRESH_BATCH", 3)
    for n in range(10):
        await add_user(database, actor, f"u{n}", n=n)
    await put(database, actor, "odd", {"user": "n", "in": [1, 3, 5, 7, 9]}, tracked=True)
    assert await refresh_segments(database) == 10
    assert {name for name, bits in (await bits_of(database, actor)).items() if bits} == {
        f"u{n}" for n in range(1, 10, 2)
    }
    assert (await load_segment(database, actor.project_id, "odd")).counted == 5


async def test_a_slot_is_free_again_once_its_bits_are_cleared(database: Database, actor: Actor) -> None:
    await add_user(database, actor, "ada")
    everybody = {"user": "id", "exists": True}
    await put(database, actor, "a", everybody, tracked=True)
    await refresh_segments(database)
    untracked = await put(database, actor, "a", everybody)
    assert (untracked.slot, untracked.counted) == (None, None)
    assert (await put(database, actor, "b", everybody, tracked=True)).slot == 1, "ada still bears the first bit"
    await refresh_segments(database)
    assert await bits_of(database, actor) == {"ada": 2}
    assert (await put(database, actor, "a", everybody, tracked=True)).slot == 0
    for key in ("a", "b"):
        await database.transaction(lambda conn, key=key: delete_segment(conn, actor, key))  # type: ignore[misc]  # binds the loop's value
    assert await refresh_segments(database) == 1, "nothing is tracked, but bits are left"
    assert await bits_of(database, actor) == {"ada": 0}
    assert await refresh_segments(database) == 0
    assert await database.fetchval("SELECT count(*) FROM segment_slot") == 0


async def test_at_most_fifty_are_tracked(database: Database, actor: Actor) -> None:
    everybody = {"user": "id", "exists": True}

    async def put_one(n: int) -> Any:
        return await put(database, actor, f"s{n}", everybody, tracked=True)

    slots = await asyncio.gather(*map(put_one, range(50)))
    assert sorted(s.slot for s in slots) == list(range(50)), "as many at once get one each"
    with pytest.raises(Conflict, match="50"):
        await put_one(50)
    with pytest.raises(NotFound):
        await load_segment(database, actor.project_id, "s50")
    await add_user(database, actor, "ada")
    await refresh_segments(database)
    assert await bits_of(database, actor) == {"ada": (1 << 50) - 1}
    await put(database, actor, "s7", everybody)
    with pytest.raises(Conflict, match="cleared"):
        await put_one(50)
    await refresh_segments(database)
    assert (await put_one(50)).slot == next(s.slot for s in slots if s.key == "s7")


async def test_a_segment_that_changes_while_it_is_counted_waits(
    database: Database, actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "_REFRESH_BATCH", 1)
    for name in ("a", "b", "c"):
        await add_user(database, actor, name, n=1)
    await put(database, actor, "some", {"user": "n", "is": 1}, tracked=True)

    class Meddler:
        """The database, but the condition changes after the first batch."""

        batches = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(database, name)

        async def transaction(self, work: Any) -> Any:
            self.batches += 1
            if self.batches == 2:
                await put(database, actor, "some", {"user": "n", "is": 2}, tracked=True)
            return await database.transaction(work)

    await refresh_segments(Meddler())  # type: ignore[arg-type]  # it is one, but for its name
    assert (await load_segment(database, actor.project_id, "some")).counted is None
    assert await bits_of(database, actor) == {"a": 1, "b": 0, "c": 0}
    await refresh_segments(database)
    assert (await load_segment(database, actor.project_id, "some")).counted == 0
    assert await bits_of(database, actor) == {"a": 0, "b": 0, "c": 0}


async def test_a_topic_can_be_asked_for(database: Database, actor: Actor) -> None:
    for name in ("ada", "bob"):
        await add_user(database, actor, name)
    await database.transaction(lambda conn: apply_members(conn, actor, "project/42/comments", ["ada"]))
    for pattern, expected in (("project/42/#", ["ada"]), ("project/42", []), ("project/4/#", []), ("#", ["ada"])):
        assert await list_members(database, actor.project_id, parse_segment({"topic": pattern})) == expected


async def test_a_project_whose_conditions_fail_holds_up_no_other(database: Database, actor: Actor) -> None:
    """Such as after a newer Tidings wrote them, or when they take longer than a statement may."""
    other = Actor((await database.transaction(lambda conn: create_project(conn, "later", ""))).id, "cli")
    for one in (actor, other):
        await add_user(database, one, "ada")
        await put(database, one, "all", {"user": "id", "exists": True}, tracked=True)
    change = "UPDATE segment SET condition = $2::jsonb WHERE project_id = $1"
    await database.execute(change, min(actor.project_id, other.project_id), '{"moon": "full"}')
    assert await refresh_segments(database) == 1
    assert await bits_of(database, other) == {"ada": 1}
