"""Limits: how they are read, which apply, and what a rolling window answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.directory.catalog import TypeVersion
from tidings.directory.categories import CategoryRules
from tidings.directory.limits import LIMITS_MAX, Limit, parse_limits
from tidings.directory.projects import ProjectSettings
from tidings.directory.steps import EVERY_CHANNEL
from tidings.errors import FieldError
from tidings.flow.caps import Cap, Ledger, _Counter, list_caps
from tidings.model.rulings import Answer, Level, Rule
from tidings.model.words import Channel, Priority, Reason

NOW: Final = datetime(2026, 11, 22, 12, tzinfo=UTC)
ADA: Final = "u:ada"


def parse(raw: object, **more: bool) -> tuple[tuple[Limit, ...], list[tuple[str | None, str]]]:
    errors: list[FieldError] = []
    limits = parse_limits(raw, "/limits", errors, **more)
    return limits, [(error.pointer, error.detail) for error in errors]


# ---------------------------------------------------------------- reading


def test_limit_in_full() -> None:
    raw = [
        {"per": "user", "max": 3, "window": "24h", "then": "digest", "channel": "sms", "exempt": ["required"]},
        {"max": 1, "window": "90s", "exempt": []},
        {"max": 9, "window": "1w", "category": "news"},
    ]
    limits, errors = parse(raw, categories=True)
    assert not errors
    assert limits == (
        Limit(max=3, window="1d", then="digest", channel="sms", exempt=("required",)),
        Limit(max=1, window="90s", exempt=()),
        Limit(max=9, window="7d", category="news"),
    )
    assert parse(msgspec.json.decode(msgspec.json.encode(limits)), categories=True) == (limits, [])
    assert parse(limits, categories=True) == (limits, [])


@pytest.mark.parametrize(
    ("raw", "pointer", "said"),
    [
        ({"max": 1}, "/limits", "must be a list"),
        ([1], "/limits/0", "must be an object"),
        ([{"max": 1, "window": "1d"}] * (LIMITS_MAX + 1), "/limits", "at most 10"),
        ([{"window": "1d"}], "/limits/0/max", "whole number"),
        ([{"max": 0, "window": "1d"}], "/limits/0/max", "from 1 to 1,000"),
        ([{"max": True, "window": "1d"}], "/limits/0/max", "whole number"),
        ([{"max": 1}], "/limits/0/window", "must be a duration"),
        ([{"max": 1, "window": "soon"}], "/limits/0/window", "is not a duration"),
        ([{"max": 1, "window": "1500ms"}], "/limits/0/window", "whole seconds"),
        ([{"max": 1, "window": "500d"}], "/limits/0/window", "to 366d"),
        ([{"max": 1, "window": "1d", "per": "team"}], "/limits/0/per", "one of user"),
        ([{"max": 1, "window": "1d", "then": "wait"}], "/limits/0/then", "drop, defer, digest"),
        ([{"max": 1, "window": "1d", "channel": "fax"}], "/limits/0/channel", "email, sms"),
        ([{"max": 1, "window": "1d", "category": "news"}], "/limits/0/category", "only a project's"),
        ([{"max": 1, "window": "1d", "exempt": "critical"}], "/limits/0/exempt", "a list of"),
        ([{"max": 1, "window": "1d", "exempt": ["low"]}], "/limits/0/exempt", "critical, required"),
        ([{"max": 1, "window": "1d", "a/b": 1}], "/limits/0/a~1b", "unknown field"),
        ([{"max": 1, "window": "1d"}, {"max": 2, "window": "24h"}], "/limits/1", "counts the same"),
    ],
)
def test_limit_that_cannot_be_used(raw: object, pointer: str, said: str) -> None:
    _, [(at, detail)] = parse(raw)
    assert at == pointer
    assert said in detail


_NAMES: Final = st.sampled_from(["max", "window", "then", "exempt", "channel", "x"])
_PLAIN: Final = st.none() | st.booleans() | st.integers() | st.text()


@given(st.recursive(_PLAIN, lambda one: st.lists(one) | st.dictionaries(_NAMES, one)))
def test_whatever_is_given_is_read_or_refused(raw: object) -> None:
    limits, errors = parse(raw)
    assert errors or len(limits) == len(raw)  # type: ignore[arg-type]  # a list, or there are errors


# ---------------------------------------------------------------- which apply


def type_of(**more: Any) -> TypeVersion:
    return TypeVersion(
        id=1, project_id=1, key="shipped", version=1, category="orders", required=False, priority=Priority.medium,
        critical=True, template_key="t", program=EVERY_CHANNEL, expires_after=None, at_most_once=False, validator=None,
        **more,
    )  # fmt: skip


def test_caps_of_type_category_and_project() -> None:
    type_ = type_of(
        limits=(Limit(max=1, window="1d"),),
        rules=CategoryRules(limits=(Limit(max=2, window="1h", channel="sms", then="defer"),)),
    )
    settings = ProjectSettings(
        limits=(
            Limit(max=3, window="1w"),
            Limit(max=4, window="1w", category="orders", then="digest"),
            Limit(max=5, window="1w", category="news"),
        )
    )
    caps = list_caps(type_, settings, Priority.medium)
    assert [(cap.level, cap.key, cap.window, cap.channel, cap.answer) for cap in caps] == [
        (Level.type, "type:shipped:-:86400", 86_400, None, Answer.no),
        (Level.category, "category:orders:sms:3600", 3_600, Channel.sms, Answer.hold),
        (Level.project, "project:-:-:604800", 604_800, None, Answer.no),
        (Level.project, "project:orders:-:604800", 604_800, None, Answer.digest),
    ]
    assert list_caps(type_, settings, Priority.medium) is caps
    assert [cap.key for cap in list_caps(None, settings, Priority.medium)] == ["project:-:-:604800"]


def test_critical_and_required_are_exempt_where_the_limit_says_so() -> None:
    settings = ProjectSettings(
        limits=(
            Limit(max=1, window="1h"),
            Limit(max=2, window="2h", exempt=("critical",)),
            Limit(max=3, window="3h", exempt=()),
        )
    )

    def applying(priority: Priority, *, required: bool) -> list[int]:
        type_ = msgspec.structs.replace(type_of(), required=required)
        return [cap.limit.max for cap in list_caps(type_, settings, priority)]

    assert applying(Priority.high, required=False) == [1, 2, 3]
    assert applying(Priority.critical, required=False) == [3]
    assert applying(Priority.high, required=True) == [2, 3]
    assert applying(Priority.critical, required=True) == [3]


# ---------------------------------------------------------------- the window


def ledger_of(*caps: Cap) -> Ledger:
    return Ledger({(1, ADA, cap.key): _Counter({}) for cap in caps})


def caps_of(*limits: Limit) -> tuple[Cap, ...]:
    return list_caps(None, ProjectSettings(limits=limits), Priority.medium)


def test_strictest_answer_counts() -> None:
    caps = caps_of(
        Limit(max=1, window="1h", then="defer"),
        Limit(max=1, window="3h", then="digest"),
        Limit(max=2, window="2h", then="drop"),
        Limit(max=9, window="4h"),
    )
    ledger = ledger_of(*caps)
    ledger.book(1, ADA, caps, UUID(int=1), None, NOW)
    ruling = ledger.ask(1, ADA, caps, UUID(int=2), Channel.email, NOW)
    assert ruling is not None
    assert (ruling.rule, ruling.answer, ruling.level) == (Rule.limit, Answer.digest, Level.project)
    assert (ruling.reason, ruling.channel, ruling.detail) == (Reason.capped, Channel.email, "1 of 1 in 3h")
    assert ruling.until == NOW + timedelta(hours=3, milliseconds=1)
    ledger.book(1, ADA, caps, UUID(int=2), None, NOW)
    ruling = ledger.ask(1, ADA, caps, UUID(int=3), Channel.email, NOW)
    assert ruling is not None
    assert (ruling.answer, ruling.until, ruling.detail) == (Answer.no, None, "2 of 2 in 2h")


def test_go_tells_the_least_room() -> None:
    caps = caps_of(Limit(max=5, window="1h"), Limit(max=2, window="2h"))
    ledger = ledger_of(*caps)
    ledger.book(1, ADA, caps, UUID(int=1), None, NOW)
    ruling = ledger.ask(1, ADA, caps, UUID(int=2), None, NOW)
    assert ruling is not None
    assert (ruling.answer, ruling.detail, ruling.reason) == (Answer.go, "1 of 2 in 2h", None)
    assert ledger.ask(1, ADA, (), UUID(int=2), None, NOW) is None
    assert ledger.ask(1, ADA, caps_of(Limit(max=1, window="1h", channel="sms")), UUID(int=2), None, NOW) is None


@given(
    most=st.integers(1, 4),
    window=st.integers(1, 30),
    asks=st.lists(st.tuples(st.integers(0, 9_000), st.integers(0, 12)), max_size=60),
)
def test_rolling_window_against_a_list_of_all_that_was_sent(
    most: int, window: int, asks: list[tuple[int, int]]
) -> None:
    """Never more than `most` notifications in any window, none stopped without need, and `until` is right."""
    caps = caps_of(Limit(max=most, window=f"{window}s", then="digest"))
    ledger = ledger_of(*caps)
    span = timedelta(seconds=window)
    sent: list[tuple[datetime, int]] = []
    now = NOW
    for after, n in asks:
        now += timedelta(milliseconds=after)
        inside = {id_ for at, id_ in sent if now - at <= span}
        ruling = ledger.ask(1, ADA, caps, UUID(int=n), None, now)
        assert ruling is not None
        if n in inside or len(inside) < most:
            assert ruling.answer is Answer.go
            ledger.book(1, ADA, caps, UUID(int=n), None, now)
            if n not in inside:
                sent.append((now, n))
        else:
            assert ruling.answer is Answer.digest
            first_out = min(at for at, _ in sent if now - at <= span)
            assert ruling.until == first_out + span + timedelta(milliseconds=1)
    for at, _ in sent:
        assert len({id_ for other, id_ in sent if at <= other < at + span}) <= most


@given(most=st.integers(1, 5), waiting=st.integers(1, 30), gaps=st.lists(st.integers(0, 5_000), min_size=5, max_size=5))
def test_who_is_called_finds_room(most: int, waiting: int, gaps: list[int]) -> None:
    """Those told to wait in one batch are called so that each finds room, none later than need be."""
    caps = caps_of(Limit(max=most, window="10s", then="defer"))
    ledger = ledger_of(*caps)
    now = NOW
    for n in range(most):
        now += timedelta(milliseconds=gaps[n])
        now = min(now, NOW + timedelta(seconds=9))
        ledger.book(1, ADA, caps, UUID(int=1_000 + n), None, now)
    calls = []
    for n in range(waiting):
        ruling = ledger.ask(1, ADA, caps, UUID(int=n), None, now)
        assert ruling is not None
        assert ruling.answer is Answer.hold
        assert ruling.until is not None
        calls.append((ruling.until, n))
        assert ledger.ask(1, ADA, caps, UUID(int=n), None, now) == ruling  # asking again changes nothing
    assert calls == sorted(calls)
    for i, (at, n) in enumerate(calls):
        # a booking is rounded up, which is one millisecond more in every round
        ruling = ledger.ask(1, ADA, caps, UUID(int=n), None, at + timedelta(milliseconds=i // most))
        assert ruling is not None
        assert ruling.answer is Answer.go
        ledger.book(1, ADA, caps, UUID(int=n), None, at)
