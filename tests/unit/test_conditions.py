"""Conditions: their form, and what they mean. That SQL means the same is tests/db/test_segments.py's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidings.errors import FieldError
from tidings.model.conditions import (
    DEPTH_MAX,
    LIST_MAX,
    NODES_MAX,
    SEGMENT_SUBJECTS,
    STEP_SUBJECTS,
    Case,
    holds,
    parse_condition,
    to_time,
)
from tidings.model.topics import parse_pattern, parse_topic_key

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
EVERY = STEP_SUBJECTS | {"category", "topic"}
CASE = Case(
    data={"amount": 12.5, "order": {"items": ["a", 2], "lines": [{"n": 1}]}, "nothing": None, "flag": True},
    user={
        "id": "u-1", "locale": "de-AT", "plan": "pro", "logins": 3, "trial_ends": "2026-12-01",
        "created_at": NOW - timedelta(days=40),
    },
    engagement=frozenset({"opened", "read"}),
    now=NOW,
    topics=("project/42/comments",),
    preferences={"categories": {"news": {"enabled": True, "channels": {"sms": False}}}, "channels": {"push": False}},
    activity={"email": {"opened": NOW - timedelta(days=10)}},
)  # fmt: skip


def parse(raw: Any, subjects: frozenset[str] = EVERY) -> dict[str, Any]:
    errors: list[FieldError] = []
    found = parse_condition(raw, "/if", errors, subjects=subjects)
    assert not errors
    assert found is not None
    return found


def refused(raw: Any, subjects: frozenset[str] = EVERY) -> list[str | None]:
    errors: list[FieldError] = []
    assert parse_condition(raw, "/if", errors, subjects=subjects) is None
    assert errors
    return [error.pointer for error in errors]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"user": "plan", "is": "pro"}, True),
        ({"user": "plan", "is": "Pro"}, False),
        ({"user": "plan", "is_not": "free"}, True),
        ({"user": "plan", "in": ["free", "pro"]}, True),
        ({"user": "plan", "not_in": ["free", "pro"]}, False),
        ({"user": "locale", "starts_with": "de"}, True),
        ({"user": "logins", "is": 3.0}, True),
        ({"user": "logins", "is": "3"}, False),
        ({"data": "amount", "above": 12}, True),
        ({"data": "amount", "at_least": 12.5}, True),
        ({"data": "amount", "below": 12.5}, False),
        ({"data": "amount", "at_most": 12.5}, True),
        ({"data": "flag", "is": 1}, False),
        ({"data": "flag", "is": True}, True),
        ({"data": "order.items", "contains": "a"}, True),
        ({"data": "order.items", "contains": 2}, True),
        ({"data": "order.items", "contains": "2"}, False),
        ({"data": "order.lines.n", "exists": True}, False),
        ({"data": "order.items.0", "exists": True}, False),
        ({"data": "order", "exists": True}, True),
        ({"user": "plan", "contains": "r"}, True),
        ({"user": "trial_ends", "after": "2026-11-30T23:59:59Z"}, True),
        ({"user": "trial_ends", "before": "+7d"}, False),
        ({"user": "trial_ends", "before": "+9d"}, True),
        ({"user": "created_at", "before": "-30d"}, True),
        ({"user": "created_at", "after": "-30d"}, False),
        ({"engaged": "opened"}, True),
        ({"engaged": "acknowledged"}, True),
        ({"engaged": "clicked"}, False),
        ({"topic": "project/42/#"}, True),
        ({"topic": "project/42"}, False),
        ({"category": "news", "on": True}, True),
        ({"category": "news", "channel": "sms", "on": False}, True),
        ({"category": "news", "channel": "push", "on": False}, True),
        ({"category": "news", "channel": "email", "on": True}, True),
        ({"category": "other", "on": True}, False),
        ({"category": "other", "on": False}, False),
        ({"all": [{"user": "plan", "is": "pro"}, {"data": "amount", "above": 10}]}, True),
        ({"any": [{"user": "plan", "is": "free"}, {"data": "amount", "above": 10}]}, True),
        ({"not": {"user": "plan", "is": "pro"}}, False),
    ],
)
def test_what_a_condition_means(condition: dict[str, Any], expected: bool) -> None:
    assert holds(parse(condition), CASE) is expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"engaged": "opened"}, True),
        ({"engaged": "opened", "channel": "email", "within": "30d"}, True),
        ({"engaged": "opened", "within": "9d"}, False),
        ({"engaged": "opened", "channel": "sms"}, False),
        ({"engaged": "clicked"}, False),
    ],
)
def test_in_segments_engaged_looks_at_all_messages(condition: dict[str, Any], expected: bool) -> None:
    assert holds(parse(condition, SEGMENT_SUBJECTS), CASE) is expected


@pytest.mark.parametrize("name", ["missing", "nothing", "order.items.x", "amount.x"])
@pytest.mark.parametrize(
    "op",
    [
        {"is": "a"}, {"is_not": "a"}, {"in": ["a"]}, {"not_in": ["a"]}, {"above": 1}, {"below": 1}, {"at_least": 1},
        {"at_most": 1}, {"contains": "a"}, {"starts_with": "a"}, {"before": "+1d"}, {"after": "-1d"}, {"exists": True},
    ],
    ids=lambda op: next(iter(op)),
)  # fmt: skip
def test_what_is_missing_meets_no_comparison(name: str, op: dict[str, Any]) -> None:
    condition = parse({"data": name, **op})
    assert not holds(condition, CASE)
    assert holds({"not": condition}, CASE)


def test_other_kinds_are_neither_the_same_nor_another() -> None:
    for op in ({"is": "12.5"}, {"is_not": "12.5"}, {"in": ["x"]}, {"not_in": ["x"]}, {"is_not": True}):
        assert not holds(parse({"data": "amount", **op}), CASE)


def test_without_a_now_no_relative_time_is_met() -> None:
    for op in ({"before": "+1d"}, {"after": "-100d"}):
        assert not holds(parse({"user": "created_at", **op}), Case(user=CASE.user))


def test_numbers_compare_as_they_are_written() -> None:
    """1e23 is no binary fraction: PostgreSQL reads ten to the 23rd, and so do we."""
    big = Case(user={"n": 10**23, "exact": 2**53 + 1})
    assert holds(parse({"user": "n", "is": 1e23}), big)
    assert not holds(parse({"user": "exact", "is": 9007199254740992.0}), big)


@pytest.mark.parametrize(
    ("raw", "pointers"),
    [
        ("x", ["/if"]),
        ({}, ["/if"]),
        ({"user": "plan"}, ["/if"]),
        ({"user": "plan", "is": "a", "in": ["b"]}, ["/if"]),
        ({"user": "plan", "data": "x", "is": "a"}, ["/if"]),
        ({"user": "plan", "equals": "a", "is": "a"}, ["/if/equals"]),
        ({"user": "", "is": "a"}, ["/if/user", "/if/user"]),
        ({"user": "a..b", "is": "a"}, ["/if/user"]),
        ({"user": "a.b.c.d.e.f.g.h.i", "is": "a"}, ["/if/user"]),
        ({"user": "locale.x", "is": "a"}, ["/if/user"]),
        ({"user": "locale", "is": 1}, ["/if/is"]),
        ({"user": "locale", "above": 1}, ["/if/above"]),
        ({"user": "created_at", "is": "2026-11-22"}, ["/if/is"]),
        ({"user": "plan", "is": None}, ["/if/is"]),
        ({"user": "plan", "is": ["a"]}, ["/if/is"]),
        ({"user": "plan", "is": float("nan")}, ["/if/is"]),
        ({"user": "plan", "is": 1 << 63}, ["/if/is"]),
        ({"user": "plan", "is": "a\0"}, ["/if/is"]),
        ({"user": "plan", "is": "\ud800"}, ["/if/is"]),
        ({"user": "plan", "is": "x" * 1001}, ["/if/is"]),
        ({"user": "plan", "in": []}, ["/if/in"]),
        ({"user": "plan", "in": ["a"] * (LIST_MAX + 1)}, ["/if/in"]),
        ({"user": "plan", "in": ["a", 1]}, ["/if/in"]),
        ({"user": "plan", "in": ["a", None]}, ["/if/in/1", "/if/in"]),
        ({"user": "plan", "above": "1"}, ["/if/above"]),
        ({"user": "plan", "above": True}, ["/if/above"]),
        ({"user": "plan", "contains": ""}, ["/if/contains"]),
        ({"user": "plan", "exists": 1}, ["/if/exists"]),
        ({"user": "plan", "before": "30d"}, ["/if/before"]),
        ({"user": "plan", "before": "-30 days"}, ["/if/before"]),
        ({"user": "plan", "before": "-999999w"}, ["/if/before"]),
        ({"user": "plan", "before": "2026-02-29"}, ["/if/before"]),
        ({"user": "plan", "before": "2026-11-22T12:00:00"}, ["/if/before"]),
        ({"engaged": "loved"}, ["/if/engaged"]),
        ({"engaged": "opened", "within": "30d"}, ["/if/within"]),
        ({"topic": "project/#/x"}, ["/if/topic"]),
        ({"category": "news", "on": "yes"}, ["/if/on"]),
        ({"category": "news", "channel": "pigeon"}, ["/if/channel"]),
        ({"all": []}, ["/if/all"]),
        ({"all": {"user": "plan", "is": "a"}}, ["/if/all"]),
        ({"all": [{"user": "plan", "is": "a"}, 7]}, ["/if/all/1"]),
        ({"not": [{"user": "plan", "is": "a"}]}, ["/if/not"]),
        ({"all": [{"user": "p", "is": "a"}], "x/y": 1}, ["/if/x~1y"]),
        ({"all": [{"user": "p", "is": "a"}] * NODES_MAX}, ["/if"]),
    ],
)
def test_what_is_no_condition_is_refused_where_it_is_wrong(raw: Any, pointers: list[str]) -> None:
    assert refused(raw) == pointers


def test_subjects_that_are_not_known_here_are_refused() -> None:
    assert refused({"data": "x", "is": 1}, SEGMENT_SUBJECTS) == ["/if"]
    assert refused({"topic": "x"}, STEP_SUBJECTS) == ["/if"]
    assert refused({"engaged": "seen"}, SEGMENT_SUBJECTS) == ["/if/engaged"]


def test_depth_is_bounded() -> None:
    def nest(depth: int) -> dict[str, Any]:
        return {"user": "plan", "is": "pro"} if depth == 1 else {"not": nest(depth - 1)}

    assert holds(parse(nest(DEPTH_MAX)), CASE) is (DEPTH_MAX % 2 == 1)
    assert refused(nest(DEPTH_MAX + 1)) == ["/if" + "/not" * DEPTH_MAX]
    refused(nest(500))


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)
heads = st.sampled_from(["all", "any", "not", "user", "data", "engaged", "category", "topic"])
ops = st.sampled_from(["is", "in", "above", "contains", "starts_with", "exists", "before", "on", "within", "channel"])
raws = st.recursive(
    json,
    lambda inner: st.dictionaries(heads | ops, inner | st.lists(inner, max_size=3), max_size=3),
    max_leaves=8,
)


@given(raw=raws, data=st.dictionaries(st.text(max_size=8), json, max_size=3))
def test_whatever_comes_is_a_condition_or_is_refused(raw: Any, data: dict[str, Any]) -> None:
    errors: list[FieldError] = []
    found = parse_condition(raw, "/if", errors, subjects=EVERY)
    assert (found is None) == bool(errors)
    assert all(error.pointer is not None and error.pointer.startswith("/if") for error in errors)
    if found is not None:
        assert parse(found) == found, "its normal form is its own"
        assert holds(found, Case(data=data, user=data, now=NOW)) in (True, False)


@given(st.from_regex(r"[12]\d{3}-\d\d-\d\d(T\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d))?", fullmatch=True))
@example("2024-02-29T23:59:59.123456-14:59")
@example("2100-02-29")
def test_a_time_is_read_if_it_exists(text: str) -> None:
    try:
        expected = datetime.fromisoformat(text)
    except ValueError:
        assert to_time(text) is None
        return
    found = to_time(text)
    if found is None:  # what others would read: offsets beyond those that exist, digits that are not 0 to 9
        assert not text.isascii() or abs(expected.utcoffset() or timedelta(0)) >= timedelta(hours=15)
    else:
        assert found == (expected if expected.tzinfo else expected.replace(tzinfo=UTC))


# ---------------------------------------------------------------- topics

parts = st.text(alphabet="aZ09._-", min_size=1, max_size=3).filter(lambda part: part not in (".", ".."))
keys = st.lists(parts, min_size=1, max_size=4).map("/".join)


@given(pattern=keys, key=keys)
@example(pattern="project/42", key="project/42-old")
@example(pattern="project/42", key="project/42/members/x")
def test_a_pattern_matches_a_key_and_what_is_below(pattern: str, key: str) -> None:
    below = parse_pattern(f"{pattern}/#")
    assert below.holds(key) == (key == pattern or key.startswith(f"{pattern}/"))
    assert parse_pattern(pattern).holds(key) == (key == pattern)
    assert parse_pattern("#").holds(key)
    # As the database compares: by octets.
    low, high, after = (text.encode() for text in below)
    octets = key.encode()
    assert (low <= octets < high and (octets == low or octets >= after)) == below.holds(key)


@pytest.mark.parametrize(
    "text",
    ["", "/", "a/", "/a", "a//b", "a b", "ä", "a#", "#/a", "a/#/b", "a/+", "a/members", "..", "a/./b", "a" * 201],
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_topic_key(text)


@pytest.mark.parametrize("text", ["#/a", "a/#/b", "a#", "a/+", "/#", "a/members"])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must|wildcard"):
        parse_pattern(text)
    assert parse_pattern("a/members/#").holds("a/members/x")
