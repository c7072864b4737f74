"""Digests: rules as callers give them, keys, and when windows close; and what a digest gives to its template."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tidings import ids
from tidings.directory.digests import (
    DigestRule,
    decide_close,
    decide_frequency_close,
    decide_latest_close,
    parse_digest,
    read_key,
)
from tidings.durations import parse_duration, to_duration
from tidings.errors import FieldError
from tidings.flow.digests import DATA_LIMIT, Item, to_data, to_window_key
from tidings.model.words import Frequency

LONGEST = timedelta(days=89)
ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Cairo",
    "America/Santiago", "America/Havana",
)  # fmt: skip
"""With shifts of an hour and of half an hour, in the night and at midnight, and offsets of 45 minutes."""
YEAR = datetime(2026, 11, 1, tzinfo=UTC)
moments = st.integers(0, 366 * 86_400).map(lambda s: YEAR + timedelta(seconds=s))
zones = st.sampled_from(ZONES)


@st.composite
def near_a_shift(draw: st.DrawFn) -> tuple[str, datetime]:
    """A zone, and a moment within a day and a half of one of its changes."""
    name = draw(zones.filter(lambda z: z not in ("UTC", "Asia/Kathmandu")))
    zone = ZoneInfo(name)
    days = [YEAR + timedelta(days=n) for n in range(366)]
    shifts = [a for a, b in itertools.pairwise(days) if _offset(a, zone) != _offset(b, zone)]
    return name, draw(st.sampled_from(shifts)) + timedelta(seconds=draw(st.integers(-40_000, 130_000)))


def _offset(at: datetime, zone: ZoneInfo) -> timedelta | None:
    return at.astimezone(zone).utcoffset()


places = st.one_of(st.tuples(zones, moments), near_a_shift())
spans = st.integers(1, 200_000).map(lambda s: timedelta(seconds=s))


@st.composite
def rules(draw: st.DrawFn) -> DigestRule:
    window = draw(spans)
    match draw(st.sampled_from(["fixed", "sliding", "unbounded", "cron"])):
        case "fixed":
            return DigestRule(window=to_duration(window))
        case "sliding":
            at_most = to_duration(window + draw(spans))
            return DigestRule(window=to_duration(window), sliding=True, at_most=at_most)
        case "unbounded":
            return DigestRule(window=to_duration(window), sliding=True)
    minute, hour = draw(st.integers(0, 59)), draw(st.integers(0, 23))
    lines = ["* * * * *", f"*/15 {hour} * * *", f"{minute} {hour} * * *", f"{minute} * * * *", f"{minute} {hour} * * 1"]
    return DigestRule(cron=draw(st.sampled_from(lines)))


# ------------------------------------------------------------ when windows close


@given(rules(), places, st.integers(0, 400_000))
def test_a_window_never_closes_before_now(rule: DigestRule, place: tuple[str, datetime], later: int) -> None:
    zone, opened_at = place
    now = opened_at + timedelta(seconds=later)
    assert decide_close(rule, opened_at, now, zone) >= now
    assert decide_close(rule, opened_at, opened_at, zone) > opened_at
    assert decide_close(rule, opened_at, opened_at, zone) <= decide_latest_close(rule, opened_at, zone)


@given(spans, spans, places, st.lists(st.integers(1, 100_000), max_size=20))
def test_a_sliding_window_closes_after_its_newest_item_and_never_past_its_maximum(
    window: timedelta, more: timedelta, place: tuple[str, datetime], gaps: list[int]
) -> None:
    zone, opened_at = place
    rule = DigestRule(window=to_duration(window), sliding=True, at_most=to_duration(window + more))
    closes_at = decide_close(rule, opened_at, opened_at, zone)
    now = opened_at
    for gap in gaps:
        now += timedelta(seconds=gap)
        if now >= closes_at:  # it is closed, and the next item opens another one
            break
        moved = decide_close(rule, opened_at, now, zone)
        assert closes_at <= moved <= opened_at + window + more
        assert moved == min(now + window, opened_at + window + more)
        closes_at = moved


@given(rules(), places, st.floats(0, 1, exclude_max=True))
def test_windows_that_do_not_slide_do_not_depend_on_later_items(
    rule: DigestRule, place: tuple[str, datetime], part: float
) -> None:
    assume(not rule.sliding)
    zone, opened_at = place
    closes_at = decide_close(rule, opened_at, opened_at, zone)
    later = opened_at + part * (closes_at - opened_at)
    assert decide_close(rule, opened_at, later, zone) == closes_at
    assert decide_latest_close(rule, opened_at, zone) == closes_at


def test_an_unbounded_sliding_window_is_bounded() -> None:
    opened_at = YEAR
    rule = DigestRule(window="10m", sliding=True)
    now = opened_at + timedelta(minutes=99)
    assert decide_close(rule, opened_at, now, None) == opened_at + timedelta(minutes=100)


@pytest.mark.parametrize(
    ("cron", "zone", "opened", "closes"),
    [
        ("0 9 * * *", "Europe/Berlin", "2026-11-22T07:59:59Z", "2026-11-22T08:00:00Z"),
        ("0 9 * * *", "Europe/Berlin", "2026-11-22T08:00:00Z", "2026-11-23T08:00:00Z"),
        ("0 9 * * *", "Asia/Kathmandu", "2026-11-22T00:00:00Z", "2026-11-22T03:15:00Z"),
        ("0 9 * * mon-fri", "America/New_York", "2026-11-20T14:30:00Z", "2026-11-23T14:00:00Z"),
        ("0 9 * * *", None, "2026-11-22T08:00:00.5Z", "2026-11-22T09:00:00Z"),
        ("0 9 * * *", "Atlantis/Center", "2026-11-22T08:00:00Z", "2026-11-22T09:00:00Z"),
        # 02:30 does not exist on 28 March 2027; what stands there comes right after
        ("30 2 * * *", "Europe/Berlin", "2027-03-28T00:00:00Z", "2027-03-28T01:00:00Z"),
        # 02:30 comes twice on 25 October 2026, at 00:30 and 01:30 UTC: the first one counts
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T23:00:00Z", "2026-10-25T00:30:00Z"),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25T01:10:00Z", "2026-10-26T01:30:00Z"),
        # every hour is every hour
        ("30 * * * *", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"),
    ],
)
def test_cron_is_in_the_users_zone(cron: str, zone: str | None, opened: str, closes: str) -> None:
    at = datetime.fromisoformat(opened)
    assert decide_close(DigestRule(cron=cron), at, at, zone) == datetime.fromisoformat(closes)


# ------------------------------------------------------------ frequencies


def scan(frequency: Frequency, hour: int, now: datetime, zone: ZoneInfo) -> datetime:
    """The same by looking at every minute."""
    at = now.replace(second=0, microsecond=0) - timedelta(hours=30)
    reached: set[date] = set()
    while True:
        at += timedelta(minutes=1)
        local = at.astimezone(zone)
        if frequency is Frequency.hourly:
            if at > now and local.minute == 0:
                return at
            continue
        # The first minute of a day at which its clock shows the hour, or more.
        if local.hour >= hour and local.date() not in reached:
            reached.add(local.date())
            if at > now and (frequency is Frequency.daily or local.weekday() == 0):
                return at


@settings(max_examples=60)
@given(st.sampled_from([Frequency.hourly, Frequency.daily, Frequency.weekly]), st.integers(0, 23), places)
def test_frequencies_close_when_a_look_at_every_minute_says(
    frequency: Frequency, hour: int, place: tuple[str, datetime]
) -> None:
    zone, now = place
    assert decide_frequency_close(frequency, hour, now, zone) == scan(frequency, hour, now, ZoneInfo(zone))


def test_instant_is_now() -> None:
    assert decide_frequency_close(Frequency.instant, 9, YEAR, "Europe/Berlin") == YEAR


# ------------------------------------------------------------ keys


def test_items_are_told_apart_by_the_value_of_their_key() -> None:
    rule = DigestRule(window="15m", key="order.id")
    data: list[dict[str, Any]] = [{"order": {"id": "A"}}, {"order": {"id": "A"}, "n": 2}, {"order": {"id": "B"}}, {}]
    assert sorted(Counter(read_key(rule, d) for d in data).values()) == [1, 1, 2]
    assert read_key(rule, data[3]) == ""


@pytest.mark.parametrize("data", [{}, {"order": None}, {"order": "A"}, {"order": {"id": None}}, {"order": [{"id": 1}]}])
def test_what_has_no_value_has_no_key(data: dict[str, Any]) -> None:
    assert read_key(DigestRule(window="15m", key="order.id"), data) == ""


def test_values_of_different_kinds_are_different() -> None:
    rule = DigestRule(window="15m", key="k")
    values = [1, "1", True, "true", "", "null", [], {}, 0, False, "x" * 300, "x" * 301]
    assert len({read_key(rule, {"k": value}) for value in values}) == len(values)
    assert read_key(rule, {"k": {"a": 1, "b": 2}}) == read_key(rule, {"k": {"b": 2, "a": 1}})


values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=5,
)


@given(st.lists(values, max_size=12))
def test_grouping_follows_the_values(found: list[Any]) -> None:
    rule = DigestRule(window="15m", key="k")
    groups: dict[str, list[Any]] = {}
    for value in found:
        groups.setdefault(read_key(rule, {"k": value}), []).append(value)
    texts = {key: {json.dumps(v, sort_keys=True) for v in group} for key, group in groups.items()}
    assert all(len(group) == 1 for group in texts.values())
    assert len({text for group in texts.values() for text in group}) == len(groups)
    assert all(len(key) < 300 for key in groups)


@given(st.text(max_size=100), st.text(max_size=200), st.integers(0, 126), st.sampled_from(["digested", "capped"]))
def test_window_keys_are_short_enough_for_an_index(type_key: str, item_key: str, channels: int, reason: str) -> None:
    key = to_window_key(type_key, item_key, channels, reason)
    assert "\x00" not in key
    assert key != to_window_key(type_key, item_key, channels, reason, test=True)


# ------------------------------------------------------------ as callers give them


def parse(raw: object) -> tuple[DigestRule | None, list[FieldError]]:
    errors: list[FieldError] = []
    return parse_digest(raw, "/digest", LONGEST, errors), errors


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        ({"window": "15m"}, DigestRule(window="15m")),
        ({"window": "900s", "key": "order", "max": 100}, DigestRule(window="15m", key="order", max=100)),
        ({"window": "1m", "sliding": True}, DigestRule(window="1m", sliding=True, at_most="10m")),
        ({"window": "20d", "sliding": True}, DigestRule(window="20d", sliding=True, at_most="89d")),
        (
            {"window": "1m", "sliding": True, "at_most": "1h", "first": "now"},
            DigestRule(window="1m", sliding=True, at_most="1h", first="now"),
        ),
        ({"cron": " 0  9 * * MON "}, DigestRule(cron="0 9 * * MON")),
        ({"window": None, "cron": "0 9 * * *", "max": None, "key": None}, DigestRule(cron="0 9 * * *")),
    ],
)
def test_good_rules(raw: dict[str, Any], rule: DigestRule) -> None:
    assert parse(raw) == (rule, [])
    assert parse(rule) == (rule, [])
    assert parse(msgspec.to_builtins(rule)) == (rule, [])


@pytest.mark.parametrize(
    ("raw", "pointers"),
    [
        ("15m", ["/digest"]),
        ({}, ["/digest"]),
        ({"window": "15m", "cron": "* * * * *"}, ["/digest"]),
        ({"window": "fifteen"}, ["/digest/window"]),
        ({"window": 15}, ["/digest/window"]),
        ({"window": "999ms"}, ["/digest/window"]),
        ({"window": "90d"}, ["/digest/window"]),
        ({"window": "15m", "sliding": "yes"}, ["/digest/sliding"]),
        ({"window": "15m", "at_most": "1h"}, ["/digest/at_most"]),
        ({"window": "15m", "sliding": True, "at_most": "14m"}, ["/digest/at_most"]),
        ({"window": "15m", "sliding": True, "at_most": "90d"}, ["/digest/at_most"]),
        ({"cron": "0 9 * * *", "sliding": True}, ["/digest/sliding"]),
        ({"cron": "0 9 * * *", "at_most": "1h"}, ["/digest/at_most"]),
        ({"cron": "0 9 * *"}, ["/digest/cron"]),
        ({"cron": "0 0 9 * * *"}, ["/digest/cron"]),
        ({"cron": "61 9 * * *"}, ["/digest/cron"]),
        ({"cron": "0 0 31 4 *"}, ["/digest/cron"]),
        ({"cron": "0 0 1 1 *"}, ["/digest/cron"]),
        ({"cron": "0 0 29 2 mon#5"}, ["/digest/cron"]),
        ({"cron": "0 0 " + ",".join(["1"] * 90) + " * *"}, ["/digest/cron"]),
        ({"cron": 5}, ["/digest/cron"]),
        ({"window": "15m", "key": "order..id"}, ["/digest/key"]),
        ({"window": "15m", "key": ""}, ["/digest/key"]),
        ({"window": "15m", "key": "x" * 201}, ["/digest/key"]),
        ({"window": "15m", "first": "later"}, ["/digest/first"]),
        ({"window": "15m", "max": 0}, ["/digest/max"]),
        ({"window": "15m", "max": 101}, ["/digest/max"]),
        ({"window": "15m", "max": True}, ["/digest/max"]),
        ({"window": "15m", "a/b": 1}, ["/digest/a~1b"]),
        ({"window": "x", "max": 0, "first": "x"}, ["/digest/window", "/digest/first", "/digest/max"]),
    ],
)
def test_what_cannot_be_used_is_refused_with_pointers(raw: object, pointers: list[str]) -> None:
    rule, errors = parse(raw)
    assert rule is None
    assert [error.pointer for error in errors] == pointers


words = st.sampled_from(
    ("*", "0", "1", "5", "31", "59", "mon", "SUN", "jan", "L", "LW", "1-5", "5-1", "*/5", "*/0", "1#2", "5L", "1,2",
     "L,1/5", "1#2/3", "mon#9", "1-L", "-", ",", "/", "#", "1#")
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(words, min_size=5, max_size=5).map(" ".join) | st.text(max_size=30))
def test_any_cron_line_is_taken_or_refused(line: str) -> None:
    rule, errors = parse({"cron": line})
    assert (rule is None) == bool(errors)
    if rule is not None:
        now = datetime(2026, 11, 22, 12, tzinfo=UTC)
        wait = decide_close(rule, now, now, "Europe/Berlin") - now
        assert timedelta(0) < wait <= parse_duration("89d") + timedelta(days=1)


# ------------------------------------------------------------ what the template gets

ONE = UUID("01900000-0000-7000-8000-000000000001")
KEY = '"A-1"'
RULE = DigestRule(window="15m", key="order")


def items(*datas: dict[str, Any]) -> list[Item]:
    return [Item(ONE, YEAR + timedelta(minutes=n), json.dumps(data)) for n, data in enumerate(datas)]


def test_a_digest_has_the_data_of_its_newest_item_and_all_items() -> None:
    data = json.loads(to_data(RULE, KEY, items({"order": "A-1", "n": 1}, {"order": "A-1", "n": 2}), 2, YEAR))
    name = ids.to_public(ids.NOTIFICATION, ONE)
    assert data == {
        "order": "A-1",
        "n": 2,
        "digest": {
            "count": 2,
            "key": "A-1",
            "since": "2026-11-01T00:00:00Z",
            "until": "2026-11-01T00:01:00Z",
            "more": 0,
            "items": [
                {"data": {"order": "A-1", "n": 1}, "notification": name, "at": "2026-11-01T00:00:00Z"},
                {"data": {"order": "A-1", "n": 2}, "notification": name, "at": "2026-11-01T00:01:00Z"},
            ],
        },
    }


def test_what_is_not_shown_is_counted() -> None:
    data = json.loads(to_data(RULE, KEY, items({"n": 8}, {"n": 9}), 9, YEAR - timedelta(hours=1)))
    assert (data["digest"]["count"], data["digest"]["more"]) == (9, 7)
    assert data["digest"]["since"] == "2026-10-31T23:00:00Z"


def test_a_key_that_is_not_the_windows_is_not_shown() -> None:
    """The type was edited meanwhile, or the window gathers whatever the key."""
    assert json.loads(to_data(RULE, KEY, items({"order": "B"}), 1, YEAR))["digest"]["key"] is None
    assert json.loads(to_data(RULE, "", items({"order": "A-1"}), 1, YEAR))["digest"]["key"] is None


def test_no_data_is_no_obstacle() -> None:
    data = json.loads(to_data(RULE, KEY, [Item(ONE, YEAR, None)], 1, YEAR))
    assert data["digest"]["items"][0]["data"] == {}


@given(st.lists(st.integers(0, 65_000), min_size=1, max_size=100))
def test_the_data_of_a_digest_are_bounded_and_the_oldest_items_give_way(sizes: list[int]) -> None:
    text = to_data(RULE, KEY, items(*({"n": n, "x": "x" * size} for n, size in enumerate(sizes))), len(sizes), YEAR)
    assert len(text) <= DATA_LIMIT
    digest = json.loads(text)["digest"]
    shown = [item["data"]["n"] for item in digest["items"]]
    assert shown == list(range(len(sizes)))[-len(shown) :]
    assert digest["more"] + len(shown) == digest["count"] == len(sizes)
    assert len(shown) >= min(len(sizes), 10)
