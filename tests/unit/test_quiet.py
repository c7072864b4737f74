"""Quiet hours: ranges on a clock on the wall, across its changes; whose rule holds; the law; the hour that suits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidings.directory.places import AREA_CODES, SUBDIVISION_ZONES, find_zones, locate_phone, locate_region
from tidings.directory.presets import LAWS, PRESETS, find_laws
from tidings.directory.quiet import (
    DAYS,
    HOLD_MAX,
    Person,
    QuietHours,
    Range,
    SendTime,
    decide_quiet,
    decide_send_time,
    parse_quiet,
    parse_send_time,
)
from tidings.errors import FieldError
from tidings.model.rulings import Answer, Level, Rule, Ruling
from tidings.model.words import Channel, Priority, Reason

MINUTE = timedelta(minutes=1)
NIGHT = QuietHours((Range("22:00", "07:00"),))

CHANGES = {
    "Europe/Berlin": (date(2026, 3, 29), date(2026, 10, 25)),
    "America/New_York": (date(2026, 3, 8), date(2026, 11, 1)),
    "Australia/Lord_Howe": (date(2026, 10, 4), date(2026, 4, 5)),  # by half an hour
    "Africa/Casablanca": (date(2026, 3, 22), date(2026, 2, 15)),  # back for Ramadan
}
"""The days on which clocks are put forward, and back."""
STEADY = ("Asia/Kathmandu", "America/Sao_Paulo", "UTC")


UTC_PERSON = Person("UTC")
ANY_TIME = SendTime()


def decide(
    user: QuietHours | None = None,
    category: QuietHours | None = None,
    project: QuietHours | None = None,
    *,
    person: Person = UTC_PERSON,
    now: datetime,
    channel: Channel = Channel.sms,
    priority: Priority = Priority.medium,
    required: bool = False,
    default_zone: str | None = None,
) -> Ruling | None:
    return decide_quiet(
        user, category, project, person=person, default_zone=default_zone, channel=channel, priority=priority,
        required=required, now=now,
    )  # fmt: skip


def at(zone: str, text: str, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).astimezone(UTC)


def until(ruling: Ruling | None) -> datetime:
    assert ruling is not None
    assert (ruling.rule, ruling.answer, ruling.reason) == (Rule.quiet_hours, Answer.hold, Reason.quiet_hours)
    assert ruling.until is not None
    return ruling.until


# ---------------------------------------------------------------- against a slow reference


def scan(ranges: Sequence[Range], zone: str, begin: datetime, minutes: int) -> list[bool]:
    """Minute by minute, whether it is quiet: the clock has shown the start, or a later time, and goes on to show one
    before the end."""
    tz = ZoneInfo(zone)
    margin = 4 * 24 * 60
    total = minutes + 2 * margin
    first = begin - margin * MINUTE
    walls = [(first + n * MINUTE).astimezone(tz).replace(tzinfo=None) for n in range(total)]
    latest = [walls[0]]  # that was shown so far
    for wall in walls[1:]:
        latest.append(max(latest[-1], wall))
    earliest = [walls[-1]]  # that is shown from here on
    for wall in reversed(walls[:-1]):
        earliest.append(min(earliest[-1], wall))
    earliest.reverse()
    quiet = [False] * total
    day = walls[0].date()
    while day <= walls[-1].date():
        for range_ in ranges:
            if range_.start == range_.end or (range_.days and DAYS[day.weekday()] not in range_.days):
                continue
            start = datetime.combine(day, time.fromisoformat(range_.start))
            if range_.end == "24:00":
                end = datetime.combine(day + timedelta(days=1), time())
            else:
                end = datetime.combine(day, time.fromisoformat(range_.end))
                end += timedelta(days=range_.end <= range_.start)
            near = range(
                max(0, int((start - walls[0]) / MINUTE) - 240), min(total, int((end - walls[0]) / MINUTE) + 240)
            )
            for n in near:
                quiet[n] = quiet[n] or (latest[n] >= start and earliest[n] < end)
        day += timedelta(days=1)
    return quiet[margin : margin + minutes]


times = st.builds(lambda h, m: f"{h:02}:{m:02}", st.integers(0, 23), st.sampled_from([0, 15, 30, 59]))
night_times = st.builds(lambda h, m: f"{h:02}:{m:02}", st.integers(0, 4), st.sampled_from([0, 1, 30, 45]))
ends = st.one_of(times, night_times, st.just("24:00"))
days = st.lists(st.sampled_from(DAYS), max_size=3, unique=True).map(tuple)
ranges_of = st.lists(st.builds(Range, st.one_of(times, night_times), ends, days), min_size=1, max_size=3).map(tuple)


@settings(max_examples=150)
@given(
    ranges_of,
    st.one_of(
        *(st.tuples(st.just(zone), st.sampled_from(changes)) for zone, changes in CHANGES.items()),
        st.tuples(st.sampled_from(STEADY), st.just(date(2026, 6, 1))),
    ),
    st.integers(-2 * 24 * 60, 2 * 24 * 60),
)
def test_a_hold_ends_at_the_first_moment_that_is_not_quiet(
    ranges: tuple[Range, ...], place: tuple[str, date], minute: int
) -> None:
    zone, day = place
    now = datetime.combine(day, time(), UTC) + minute * MINUTE
    reference = scan(ranges, zone, now, int(HOLD_MAX / MINUTE) + 1)
    ruling = decide(QuietHours(ranges), person=Person(zone), now=now)
    if not reference[0]:
        assert ruling is None
        return
    expected = reference.index(False) if False in reference else int(HOLD_MAX / MINUTE)
    assert until(ruling) == now + min(expected * MINUTE, HOLD_MAX)


@settings(max_examples=60)
@given(ranges_of, ranges_of, st.sampled_from(sorted(CHANGES)), st.integers(-24 * 60, 24 * 60))
def test_until_is_quiet_for_no_rule_that_applies(
    own: tuple[Range, ...], other: tuple[Range, ...], zone: str, minute: int
) -> None:
    # two zones at once, as a number of a country with two has them
    person, now = Person(zone), datetime.combine(CHANGES[zone][0], time(), UTC) + minute * MINUTE
    both = [QuietHours(own), QuietHours(other, time_zone="Asia/Kathmandu")]
    alone = [decide(one, person=person, now=now) for one in both]
    assert all(ruling is None or until(ruling) > now for ruling in alone)
    for one in both:
        ruling = decide(one, person=person, now=now)
        if ruling is not None and until(ruling) < now + HOLD_MAX:
            assert decide(one, person=person, now=until(ruling)) is None
            assert decide(one, person=person, now=until(ruling) - timedelta(seconds=1)) is not None


# ---------------------------------------------------------------- named


@pytest.mark.parametrize("zone", CHANGES)
def test_quiet_hours_22_to_7_across_midnight_and_across_both_dst_changes_in_four_zones(zone: str) -> None:
    for day in (*CHANGES[zone], date(2026, 6, 15)):
        evening = f"{day - timedelta(days=1)}T"
        night = (at(zone, evening + "22:00"), at(zone, f"{day}T07:00"))
        for moment in (night[0], at(zone, evening + "23:59"), at(zone, f"{day}T00:00"), night[1] - MINUTE):
            assert until(decide(NIGHT, person=Person(zone), now=moment)) == night[1]
        for moment in (night[0] - MINUTE, night[1], at(zone, f"{day}T12:00")):
            assert decide(NIGHT, person=Person(zone), now=moment) is None
    forward, back = CHANGES[zone]
    spans = [
        at(zone, f"{day}T07:00") - at(zone, f"{day - timedelta(days=1)}T22:00") for day in (forward, back)
    ]  # fmt: skip
    step = timedelta(minutes=30 if zone == "Australia/Lord_Howe" else 60)
    assert spans == [timedelta(hours=9) - step, timedelta(hours=9) + step], "these are nights with a change"


def test_a_start_or_an_end_in_the_hour_that_is_left_out_is_the_moment_after_it() -> None:
    berlin, after = Person("Europe/Berlin"), at("Europe/Berlin", "2026-03-29T03:00")
    ends_inside, begins_inside = QuietHours((Range("23:00", "02:30"),)), QuietHours((Range("02:30", "06:00"),))
    assert until(decide(ends_inside, person=berlin, now=after - MINUTE)) == after
    assert decide(begins_inside, person=berlin, now=after - MINUTE) is None
    assert until(decide(begins_inside, person=berlin, now=after)) == at("Europe/Berlin", "2026-03-29T06:00")
    assert decide(QuietHours((Range("02:10", "02:50"),)), person=berlin, now=after) is None, "there is nothing of it"


def test_of_the_hour_that_comes_twice_a_start_is_the_first_and_an_end_the_second() -> None:
    berlin = Person("Europe/Berlin")
    first, second = (at("Europe/Berlin", "2026-10-25T02:30", fold) for fold in (0, 1))
    assert second - first == timedelta(hours=1)
    assert until(decide(QuietHours((Range("23:00", "02:30"),)), person=berlin, now=first)) == second
    morning = QuietHours((Range("02:30", "06:00"),))
    assert decide(morning, person=berlin, now=first - MINUTE) is None
    assert until(decide(morning, person=berlin, now=first + 45 * MINUTE)) == at("Europe/Berlin", "2026-10-25T06:00")
    # 02:00 comes twice as well, but nothing before it is shown after its first time
    two = at("Europe/Berlin", "2026-10-25T02:00")
    assert until(decide(QuietHours((Range("23:00", "02:00"),)), person=berlin, now=two - MINUTE)) == two


def test_start_equal_to_end_means_no_restriction() -> None:
    for zone in CHANGES:
        for hour in range(24):
            never = QuietHours((Range(f"{hour:02}:00", f"{hour:02}:00"),))
            for n in range(48):
                now = datetime(2026, 10, 25, tzinfo=UTC) + n * timedelta(minutes=30)
                assert decide(never, NIGHT, NIGHT, person=Person(zone), now=now) is None


ASK = """
from datetime import UTC, datetime
from tidings.directory.quiet import Person, QuietHours, Range, decide_quiet
from tidings.model.words import Channel, Priority
hours = QuietHours((Range("20:00", "24:00", ("sat",)),))
for now in (datetime(2026, 11, 21, 11, 30, tzinfo=UTC), datetime(2026, 11, 21, 9, 59, tzinfo=UTC),
            datetime(2026, 11, 22, 11, 30, tzinfo=UTC)):
    ruling = decide_quiet(hours, None, None, person=Person("Pacific/Auckland"), default_zone=None, channel=Channel.sms,
                          priority=Priority.low, required=False, now=now)
    shown = decide_quiet(hours, None, None, person=Person("America/Los_Angeles"), default_zone=None,
                         channel=Channel.sms, priority=Priority.low, required=False, now=now)
    print(ruling and ruling.until.isoformat(), shown and shown.until.isoformat())
"""


@pytest.mark.parametrize("zone", ["America/Los_Angeles", "Pacific/Kiritimati", "UTC"])
def test_worker_in_another_time_zone_than_the_user_near_midnight_the_users_weekday_counts(zone: str) -> None:
    # Saturday evening in Auckland is 07:00 to 11:00 UTC; in Los Angeles it is then the night before.
    said = subprocess.run(
        [sys.executable, "-c", ASK], env={**os.environ, "TZ": zone}, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert said == ["None None", "2026-11-21T11:00:00+00:00 None", "None None"]


def test_the_day_on_which_a_range_starts_counts() -> None:
    friday = QuietHours((Range("22:00", "07:00", ("fri",)),))
    person = Person("Europe/Berlin")
    assert decide(friday, person=person, now=at("Europe/Berlin", "2026-11-20T23:00")) is not None
    assert decide(friday, person=person, now=at("Europe/Berlin", "2026-11-21T06:00")) is not None
    assert decide(friday, person=person, now=at("Europe/Berlin", "2026-11-20T06:00")) is None
    assert decide(friday, person=person, now=at("Europe/Berlin", "2026-11-21T23:00")) is None


def test_ranges_that_touch_are_one_hold_and_a_hold_ends_some_day() -> None:
    evening = (Range("12:00", "14:00"), Range("14:00", "16:00"), Range("15:30", "17:15"))
    ruling = decide(QuietHours(evening), now=at("UTC", "2026-11-22T12:30"))
    assert until(ruling) == at("UTC", "2026-11-22T17:15")
    assert ruling is not None
    assert ruling.detail == "12:00–14:00 UTC, then 14:00–16:00 UTC, then 15:30–17:15 UTC"
    always = QuietHours((Range("00:00", "12:00"), Range("12:00", "24:00")))
    now = at("UTC", "2026-11-22T12:30")
    assert until(decide(always, now=now)) == now + HOLD_MAX


def test_the_users_own_take_the_place_of_the_categorys_and_those_of_the_projects() -> None:
    early, late = QuietHours((Range("20:00", "21:00"),)), QuietHours((Range("21:00", "22:00"),))
    first, second = at("UTC", "2026-11-22T20:30"), at("UTC", "2026-11-22T21:30")

    def level(*given: QuietHours | None, now: datetime) -> Level | None:
        ruling = decide(*given, now=now, channel=Channel.push)
        return None if ruling is None else ruling.level

    assert level(early, late, late, now=first) is Level.user
    assert level(early, late, late, now=second) is None
    assert level(None, early, late, now=first) is Level.category
    assert level(None, None, late, now=second) is Level.project
    assert level(QuietHours(), late, late, now=second) is None, "a user who said that they want none"
    assert level(QuietHours(preset="in"), late, late, now=second) is Level.category, "a preset alone takes no place"
    assert level(QuietHours(early.ranges, channels=("sms",)), late, now=first) is None


def test_channels() -> None:
    now = at("UTC", "2026-11-22T23:00")
    quiet = {channel for channel in Channel if decide(NIGHT, channel=channel, now=now) is not None}
    assert quiet == set(Channel) - {Channel.in_app, Channel.webhook}
    only = QuietHours(NIGHT.ranges, channels=("in_app",))
    assert [channel for channel in Channel if decide(only, channel=channel, now=now)] == [Channel.in_app]


def test_what_is_exempt_goes_and_says_so() -> None:
    now = at("UTC", "2026-11-22T23:00")
    ruling = decide(NIGHT, now=now, priority=Priority.critical)
    assert ruling is not None
    assert (ruling.answer, ruling.level, ruling.reason, ruling.until) == (Answer.go, Level.user, None, None)
    assert ruling.detail == "22:00–07:00 UTC; critical is exempt"
    assert decide(NIGHT, now=at("UTC", "2026-11-22T12:00"), priority=Priority.critical) is None
    assert until(decide(NIGHT, now=now, required=True)) == at("UTC", "2026-11-23T07:00")
    both = QuietHours(NIGHT.ranges, exempt=("critical", "required"))
    required = decide(both, now=now, required=True)
    assert required is not None
    assert required.answer is Answer.go
    strict = QuietHours(NIGHT.ranges, exempt=())
    ruling = decide(strict, now=now, priority=Priority.critical, required=True)
    assert until(ruling) == at("UTC", "2026-11-23T07:00")
    law = QuietHours(preset="us", exempt=())
    assert until(decide(both, None, law, now=now, person=Person("UTC", "US-FL"), required=True)) == at(
        "UTC", "2026-11-23T08:00"
    ), "exempt of one rule, not of the other"


# ---------------------------------------------------------------- where somebody is


@pytest.mark.parametrize(
    ("person", "default", "zones"),
    [
        (Person("Asia/Tokyo", "DE", "+12125550123"), "Europe/Paris", {"Asia/Tokyo"}),
        (Person(None, "DE", "+12125550123"), None, {"America/New_York"}),
        (Person(None, "DE"), "Europe/Paris", {"Europe/Berlin"}),
        (Person(None, "US-TX"), None, {"America/Chicago", "America/Denver"}),
        (Person(None, "DE-BY"), None, {"Europe/Berlin"}),
        (Person("Europe/Nowhere", "PT"), None, {"Europe/Lisbon", "Atlantic/Azores"}),
        (Person(None, None, "+99900000001"), "Europe/Paris", {"Europe/Paris"}),
        (Person(None, "XX", "nonsense"), None, {"UTC"}),
        (Person(None, None, "+77012345678"), None, {"Asia/Almaty"}),
        (Person(None, None, "+18091234567"), None, {"America/Santo_Domingo"}),
    ],
)
def test_time_zones_by_what_is_known(person: Person, default: str | None, zones: set[str]) -> None:
    assert set(find_zones(person, default)) == zones


def test_a_number_from_a_place_with_two_zones_is_quiet_in_either() -> None:
    phone = Person(None, None, "+18505550123")  # Florida, whose west keeps Central time
    eight = QuietHours((Range("20:00", "21:00"),))
    assert until(decide(eight, person=phone, now=at("America/New_York", "2026-11-22T20:00"))) == at(
        "America/Chicago", "2026-11-22T21:00"
    )


def test_area_codes_stand_at_one_place_each() -> None:
    codes = [code for group in AREA_CODES.values() for code in group.split()]
    assert len(codes) == len(set(codes))
    for where, group in AREA_CODES.items():
        place = locate_phone(f"+1{group.split()[0]}5550123")
        assert place is not None
        assert place.zones
        assert set(where.split()) in (set(place.subdivisions), {place.country})
    assert set(SUBDIVISION_ZONES) == {one for where in AREA_CODES for one in where.split() if "-" in one}
    assert locate_phone("+18005550123") == locate_region("US"), "without a place"


# ---------------------------------------------------------------- the law


def test_the_law_of_the_state_by_area_code_or_region() -> None:
    def names(preset: str, person: Person) -> set[str]:
        return {law.place for law in find_laws(preset, person)}

    assert names("us", Person(None, None, "+13055550123")) == {"US", "US-FL"}
    assert names("us", Person(None, "US-WA", "+13055550123")) == {"US", "US-FL", "US-WA"}, "both may apply"
    assert names("us", Person(None, "US", "+13055550123")) == {"US", "US-FL"}
    assert names("us", Person(None, "US-NY")) == {"US"}
    assert names("us", Person(None, "PR")) == names("us", Person(None, "US-PR")) == {"US"}
    assert names("us", Person(None, "US")) == {place for place in LAWS if place.startswith("US")}
    assert names("us", Person()) == names("us", Person(None, "US"))
    assert names("us", Person("America/Los_Angeles")) == {"US", "US-NV", "US-OR", "US-WA"}
    assert names("us", Person("Europe/Berlin")) == names("us", Person(None, "DE")) == set()
    assert names("us_federal", Person(None, None, "+13055550123")) == {"US"}
    assert names("local", Person(None, None, "+33612345678")) == {"FR"}
    assert names("local", Person(None, "DE", "+919876543210")) == {"IN"}
    assert names("local", Person()) == set()


def test_the_law_applies_besides_what_the_user_wants() -> None:
    person, project = Person("America/New_York", None, "+13055550123"), QuietHours(preset="us")
    nine = at("America/New_York", "2026-11-23T21:30")
    ruling = decide(QuietHours(), None, project, person=person, now=nine)
    assert until(ruling) == at("America/New_York", "2026-11-24T08:00")
    assert ruling is not None
    assert ruling.level is Level.law
    assert ruling.detail == "20:00–08:00 America/New_York (Fla. Stat. 501.616(6)(a))"
    later = decide(QuietHours((Range("22:00", "10:00"),)), None, project, person=person, now=nine + timedelta(hours=1))
    assert until(later) == at("America/New_York", "2026-11-24T10:00")
    assert later is not None
    assert later.level is Level.user, "the one that lasts longer"
    assert decide(None, None, project, person=person, now=nine, channel=Channel.email) is None
    mail = QuietHours(preset="us", channels=("email",))
    assert decide(None, mail, None, person=person, now=nine, channel=Channel.email) is not None


def test_texas_on_sunday() -> None:
    person, law = Person("America/Chicago", "US-TX"), QuietHours(preset="us")
    assert until(decide(law, person=person, now=at("America/Chicago", "2026-11-21T23:00"))) == at(
        "America/Chicago", "2026-11-22T12:00"
    )
    assert decide(law, person=person, now=at("America/Chicago", "2026-11-22T20:59")) is None
    assert until(decide(law, person=person, now=at("America/Chicago", "2026-11-22T21:00"))) == at(
        "America/Chicago", "2026-11-23T09:00"
    )


def test_every_state_is_at_least_as_strict_as_the_federal_law() -> None:
    federal = tuple(Range(*hours) for hours in LAWS["US"].hours)
    begin = datetime(2026, 11, 16, tzinfo=UTC)
    known = scan(federal, "UTC", begin, 7 * 24 * 60)
    for place, law in LAWS.items():
        assert law.source.startswith("http")
        if place.startswith("US-"):
            own = scan(tuple(Range(*hours) for hours in law.hours), "UTC", begin, 7 * 24 * 60)
            assert sum(own) > sum(known), place
            assert sum(a and b for a, b in zip(own, known, strict=True)) == sum(known), place


# ---------------------------------------------------------------- what a caller gives


@pytest.mark.parametrize("preset", PRESETS)
def test_quiet_hours_are_read(preset: str) -> None:
    raw = {
        "ranges": [{"start": "22:00", "end": "24:00", "days": ["sun", "mon"]}],
        "preset": preset,
        "channels": ["sms", "email"],
        "time_zone": "Europe/Vienna",
        "exempt": [],
    }
    errors: list[FieldError] = []
    found = parse_quiet(raw, "/quiet_hours", errors)
    assert not errors
    assert found == QuietHours(
        (Range("22:00", "24:00", ("mon", "sun")),), preset, ("email", "sms"), "Europe/Vienna", ()
    )
    assert parse_quiet(found, "", errors) == found
    assert parse_quiet({}, "", errors) == QuietHours()
    assert not errors


@pytest.mark.parametrize(
    ("raw", "pointers"),
    [
        ("night", ["/q"]),
        ({"range": []}, ["/q/range"]),
        ({"ranges": "x"}, ["/q/ranges"]),
        ({"ranges": [{"start": "22:00", "end": "07:00"}] * 21}, ["/q/ranges"]),
        ({"ranges": [{"start": "24:00", "end": "7:00"}]}, ["/q/ranges/0/start", "/q/ranges/0/end"]),
        ({"ranges": [{"start": "22:00"}, 3]}, ["/q/ranges/0/end", "/q/ranges/1"]),
        ({"ranges": [{"start": "22:00", "end": "07:00", "days": ["monday"], "x": 1}]}, ["/q/ranges/0/x"]),
        ({"ranges": [{"start": "22:00", "end": "07:00", "days": "mon"}]}, ["/q/ranges/0/days"]),
        ({"preset": "mars"}, ["/q/preset"]),
        ({"time_zone": "localtime", "channels": ["fax"], "exempt": [{}]}, ["/q/time_zone", "/q/channels", "/q/exempt"]),
    ],
)
def test_what_is_wrong_with_quiet_hours_is_told(raw: Any, pointers: list[str]) -> None:
    errors: list[FieldError] = []
    assert parse_quiet(raw, "/q", errors) is None
    assert [error.pointer for error in errors] == pointers


def test_send_time_is_read() -> None:
    errors: list[FieldError] = []
    assert parse_send_time({}, "/s", errors) == SendTime()
    given = {"within": "720m", "fallback": "09:30", "at_least": 3}
    assert parse_send_time(given, "/s", errors) == SendTime("720m", "09:30", 3)
    assert not errors
    for raw, pointer in (
        (True, "/s"),
        ({"within": "8d"}, "/s/within"),
        ({"within": 5}, "/s/within"),
        ({"fallback": "24:00"}, "/s/fallback"),
        ({"at_least": True}, "/s/at_least"),
        ({"hour": 3}, "/s/hour"),
    ):
        errors.clear()
        assert parse_send_time(raw, "/s", errors) is None
        assert [error.pointer for error in errors] == [pointer]


# ---------------------------------------------------------------- the hour that suits


def histogram(**hours: int) -> list[int]:
    return [hours.get(f"h{hour}", 0) for hour in range(24)]


def suits(hours: Sequence[int], now: datetime, rule: SendTime = ANY_TIME, zone: str = "Europe/Berlin") -> Ruling | None:
    return decide_send_time(rule, hours, person=Person(zone), default_zone=None, now=now)


def test_it_is_sent_at_the_hour_at_which_the_user_looks() -> None:
    noon = at("Europe/Berlin", "2026-11-22T12:20")
    ruling = suits(histogram(h8=4, h19=5, h20=1), noon)
    assert ruling is not None
    assert (ruling.rule, ruling.answer, ruling.level, ruling.reason) == (
        Rule.send_time, Answer.hold, Level.user, Reason.send_time,
    )  # fmt: skip
    assert ruling.until == at("Europe/Berlin", "2026-11-22T19:00")
    assert suits(histogram(h8=4, h19=5, h20=1), at("Europe/Berlin", "2026-11-22T19:20")) is None, "it is now"
    assert suits(histogram(h8=4, h19=5, h20=1), ruling.until) is None, "asked again"


def test_neighbours_count_half_and_midnight_is_between_neighbours() -> None:
    noon = at("UTC", "2026-11-22T12:00")
    ruling = suits(histogram(h3=5, h23=3, h0=3, h1=3), noon, zone="UTC")
    assert ruling is not None
    assert ruling.until == at("UTC", "2026-11-23T00:00")


def test_never_later_than_within() -> None:
    noon = at("UTC", "2026-11-22T12:00")
    ruling = suits(histogram(h15=2, h20=9), noon, SendTime("6h"), "UTC")
    assert ruling is not None
    assert ruling.until == at("UTC", "2026-11-22T15:00"), "the best of those that are left"
    assert suits(histogram(h3=9), noon, SendTime("6h"), "UTC") is None


def test_of_whom_little_is_known_the_fallback_counts() -> None:
    now = at("Europe/Berlin", "2026-11-22T12:00")
    assert suits(histogram(h19=4), now) is None
    assert suits((), now) is None
    ruling = suits(histogram(h19=4), now, SendTime(fallback="09:30"))
    assert ruling is not None
    morning = at("Europe/Berlin", "2026-11-23T09:30")
    assert (ruling.until, ruling.level) == (morning, Level.type)
    assert suits((), morning, SendTime(fallback="09:30")) is None
    assert suits((), now, SendTime("12h", "09:30")) is None


@given(
    st.lists(st.integers(0, 50), min_size=24, max_size=24),
    st.sampled_from([*CHANGES, *STEADY]),
    st.integers(0, 366 * 24 * 60),
    st.sampled_from(["1h", "6h", "24h", "7d"]),
)
def test_a_send_time_is_ahead_in_time_and_lets_go_when_it_comes(
    hours: list[int], zone: str, minute: int, within: str
) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC) + minute * MINUTE
    ruling = suits(hours, now, SendTime(within), zone)
    if ruling is not None:
        assert ruling.until is not None
        assert now < ruling.until <= now + {"1h": 1, "6h": 6, "24h": 24, "7d": 168}[within] * timedelta(hours=1)
        if within == "7d":  # else a better hour may come within reach
            assert suits(hours, ruling.until, SendTime(within), zone) is None
