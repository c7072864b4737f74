"""Quiet hours: when a user is not to be disturbed. Pure: time zones and the law are data.

A user's own hours take the place of the category's, those of the category the place of the project's. What the law
asks for (presets by jurisdiction) always applies besides.

A range is what a clock on the wall shows. Where the clocks change, a night stays one piece: it begins when the clock
first shows its start, or would have, and ends when the clock shows nothing before its end any more. So a start or an
end in the hour that is left out is the moment after it; of the hour that comes twice, a start is the first one and an
end the second one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeGuard
from zoneinfo import ZoneInfo

import msgspec

from tidings.directory.places import Person as Person
from tidings.directory.places import find_zones, is_zone, load_zone
from tidings.directory.presets import CHANNELS, PRESETS, Law, find_laws
from tidings.durations import parse_duration, to_duration
from tidings.errors import FieldError, escape
from tidings.model.rulings import Answer, Level, Rule, Ruling
from tidings.model.words import Channel, Priority, Reason

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
EXEMPT: Final = ("critical", "required")
RANGES_MAX: Final = 20
"""Ranges of one user, category or project."""
HOLD_MAX: Final = timedelta(days=8)
"""Where every day is quiet all day, a message is asked about again after this."""
WITHIN: Final = (timedelta(hours=1), timedelta(days=7))
"""What a type may wait for a user's hour."""
HOURS: Final = 24


class Range(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """From one time of day to another, over midnight where the end is before the start; the same twice is never."""

    start: str
    """`22:00`"""
    end: str
    """`07:00`; `24:00` is the end of the day."""
    days: tuple[str, ...] = ()
    """`mon` … `sun`, on which it starts; none: every day."""


class QuietHours(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """When and on what channels."""

    ranges: tuple[Range, ...] = ()
    """None, and no preset either: never. None beside a preset: the ranges of the next level count."""
    preset: str | None = None
    """A jurisdiction's; see PRESETS."""
    channels: tuple[str, ...] = ()
    """None given: every channel but in_app and webhook; for a preset, sms only."""
    time_zone: str | None = None
    """None: the user's; where they have none, that of their phone number or region, else the project's, else UTC. A
    preset is always about where the user is."""
    exempt: tuple[str, ...] = ("critical",)
    """`critical` (priority), `required` (categories)."""


class SendTime(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Send when the user engaged before."""

    within: str = "24h"
    """A duration: never later than this."""
    fallback: str | None = None
    """A time of day in the user's zone for whom little is known; None: at once."""
    at_least: int = 5
    """So many engagements make a habit."""


# ---------------------------------------------------------------- what a caller gives


def parse_quiet(raw: object, at: str, errors: list[FieldError]) -> QuietHours | None:
    """Quiet hours as a caller gives them; None, and errors with pointers under `at`, when they cannot be used."""
    given = _read(raw, at, errors, QuietHours, '{"ranges": [{"start": "22:00", "end": "07:00"}]}')
    if given is None:
        return None
    found = len(errors)
    ranges = _parse_ranges(given.get("ranges", ()), f"{at}/ranges", errors)
    preset = given.get("preset")
    if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
        errors.append(FieldError(f"must be one of {', '.join(PRESETS)}", f"{at}/preset"))
    time_zone = given.get("time_zone")
    if time_zone is not None and (not isinstance(time_zone, str) or not is_zone(time_zone)):
        detail = "is not a known time zone; write a name such as Europe/Vienna or UTC"
        errors.append(FieldError(detail, f"{at}/time_zone"))
    channels = _parse_words(given.get("channels", ()), tuple(Channel.__members__), f"{at}/channels", errors)
    exempt = _parse_words(given.get("exempt", ("critical",)), EXEMPT, f"{at}/exempt", errors)
    if len(errors) > found:
        return None
    return QuietHours(ranges, preset, channels, time_zone, exempt)


def _parse_ranges(raw: object, at: str, errors: list[FieldError]) -> tuple[Range, ...]:
    if not _is_list(raw):
        errors.append(FieldError('must be a list such as [{"start": "22:00", "end": "07:00"}]', at))
        return ()
    if len(raw) > RANGES_MAX:
        errors.append(FieldError(f"at most {RANGES_MAX} ranges are taken", at))
        return ()
    ranges = []
    for i, one in enumerate(raw):
        given = _read(one, f"{at}/{i}", errors, Range, '{"start": "22:00", "end": "07:00"}')
        if given is None:
            continue
        start = _parse_time(given.get("start"), f"{at}/{i}/start", errors)
        end = _parse_time(given.get("end"), f"{at}/{i}/end", errors, midnight=True)
        days = _parse_words(given.get("days", ()), DAYS, f"{at}/{i}/days", errors)
        ranges.append(Range(start, end, days))
    return tuple(ranges)


def parse_send_time(raw: object, at: str, errors: list[FieldError]) -> SendTime | None:
    """The option as a caller gives it; see `parse_quiet`."""
    given = _read(raw, at, errors, SendTime, '{"within": "24h", "fallback": "10:00"}')
    if given is None:
        return None
    found = len(errors)
    within = given.get("within", "24h")
    least, most = WITHIN
    try:
        if not least <= parse_duration(within if isinstance(within, str) else "") <= most:
            raise ValueError
    except (ValueError, OverflowError):
        detail = f"must be a duration from {to_duration(least)} to {to_duration(most)}"
        errors.append(FieldError(detail, f"{at}/within"))
    fallback = given.get("fallback")
    if fallback is not None:
        fallback = _parse_time(fallback, f"{at}/fallback", errors)
    at_least = given.get("at_least", 5)
    if not isinstance(at_least, int) or isinstance(at_least, bool) or not 1 <= at_least <= 1_000:
        errors.append(FieldError("must be a number from 1 to 1000", f"{at}/at_least"))
    if len(errors) > found:
        return None
    return SendTime(within, fallback, at_least)


_TIME: Final = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]")


def _parse_time(raw: object, at: str, errors: list[FieldError], *, midnight: bool = False) -> str:
    if isinstance(raw, str) and (_TIME.fullmatch(raw) or (midnight and raw == "24:00")):
        return raw
    errors.append(FieldError(f"must be a time of day from 00:00 to {'24:00' if midnight else '23:59'}", at))
    return "00:00"


def _parse_words(raw: object, known: Sequence[str], at: str, errors: list[FieldError]) -> tuple[str, ...]:
    """A set of words, in the order in which they are known."""
    if not _is_list(raw) or any(not isinstance(word, str) or word not in known for word in raw):
        errors.append(FieldError(f"must be a list of {', '.join(known)}", at))
        return ()
    return tuple(word for word in known if word in raw)


def _read(raw: object, at: str, errors: list[FieldError], type_: type[Any], example: str) -> Mapping[str, Any] | None:
    """The fields of an object that has no others."""
    if isinstance(raw, type_):
        raw = msgspec.to_builtins(raw)
    if not isinstance(raw, Mapping):
        errors.append(FieldError(f"must be an object such as {example}", at))
        return None
    known = type_.__struct_fields__
    unknown = [FieldError("is not known here", f"{at}/{escape(str(name))}") for name in raw if name not in known]
    errors += unknown
    return None if unknown else {name: value for name, value in raw.items() if value is not None}


def _is_list(raw: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(raw, Sequence) and not isinstance(raw, str | bytes)


# ---------------------------------------------------------------- the decision


class _Rule(NamedTuple):
    """Ranges that apply to a message."""

    level: Level
    exempt: tuple[str, ...]
    ranges: tuple[Range, ...]
    zone: str
    name: str | None = None
    """Of the law."""


def decide_quiet(
    user: QuietHours | None,
    category: QuietHours | None,
    project: QuietHours | None,
    *,
    person: Person,
    default_zone: str | None,
    channel: Channel,
    priority: Priority,
    required: bool,
    now: datetime,
) -> Ruling | None:
    """Whether a message has to wait now; None: it need not, nobody had an opinion. Pure.

    `go` only where an exemption decided. `hold` has the reason `quiet_hours`, the level, `until` the first moment that
    is quiet for none of them (at most HOLD_MAX away), and the range in words as detail.
    """
    rules = _list_rules(user, category, project, person, default_zone, channel)
    if not rules:
        return None
    if now.tzinfo is not UTC:
        now = now.astimezone(UTC)
    exempt: _Rule | None = None
    binding: list[_Rule] = []
    quiet = False
    for rule in rules:
        if (priority is Priority.critical and "critical" in rule.exempt) or (required and "required" in rule.exempt):
            if exempt is None and _look(rule, now).range is not None:
                exempt = rule
        else:
            binding.append(rule)
            quiet = quiet or _look(rule, now).range is not None
    if quiet:
        return _hold(binding, channel, now)
    if exempt is None:
        return None
    why = "critical" if priority is Priority.critical and "critical" in exempt.exempt else "required"
    range_ = _look(exempt, now).range
    assert range_ is not None  # it is quiet
    return Ruling(
        Rule.quiet_hours, Answer.go, exempt.level, channel, detail=f"{_describe(exempt, range_)}; {why} is exempt"
    )


def _list_rules(
    user: QuietHours | None,
    category: QuietHours | None,
    project: QuietHours | None,
    person: Person,
    default_zone: str | None,
    channel: Channel,
) -> list[_Rule]:
    rules: list[_Rule] = []
    settled = False
    zones: tuple[str, ...] | None = None
    for level, hours in ((Level.user, user), (Level.category, category), (Level.project, project)):
        if hours is None:
            continue
        if not settled and (hours.ranges or hours.preset is None):
            settled = True
            if hours.ranges and _covers(hours.channels, channel):
                if hours.time_zone is not None and is_zone(hours.time_zone):
                    rules.append(_Rule(level, hours.exempt, hours.ranges, hours.time_zone))
                else:
                    zones = zones or find_zones(person, default_zone)
                    rules += [_Rule(level, hours.exempt, hours.ranges, zone) for zone in zones]
        if hours.preset is not None and channel.name in (hours.channels or CHANNELS):
            zones = zones or find_zones(person, default_zone)
            for law in find_laws(hours.preset, person):
                ranges = _to_ranges(law)
                rules += [_Rule(Level.law, hours.exempt, ranges, zone, law.name) for zone in zones]
    return rules


def _covers(channels: tuple[str, ...], channel: Channel) -> bool:
    if channels:
        return channel.name in channels
    return channel is not Channel.in_app and channel is not Channel.webhook


@lru_cache(maxsize=256)
def _to_ranges(law: Law) -> tuple[Range, ...]:
    return tuple(Range(*hours) for hours in law.hours)


def _hold(rules: Sequence[_Rule], channel: Channel, now: datetime) -> Ruling:
    """Until the first moment that is quiet for none of the rules: where one range ends, another one may be on."""
    latest = now + HOLD_MAX
    until = now
    parts: list[tuple[_Rule, Range]] = []
    while until < latest:
        ends, last = until, None
        for rule in rules:
            spell = _look(rule, now) if until is now else _find_spell(rule.ranges, rule.zone, until)
            if spell.range is not None and spell.ends_at > ends:
                ends, last = spell.ends_at, (rule, spell.range)
        if last is None:
            break
        until = ends
        if last not in parts:
            parts.append(last)
    words = [_describe(*part) for part in parts]
    detail = ", then ".join(words if len(words) <= 3 else [words[0], "others", words[-1]])
    level = parts[0][0].level
    return Ruling(Rule.quiet_hours, Answer.hold, level, channel, Reason.quiet_hours, min(until, latest), detail)


def _describe(rule: _Rule, range_: Range) -> str:
    words = f"{range_.start}–{range_.end} {rule.zone}"
    if range_.days:
        words = f"{', '.join(range_.days)} {words}"
    return words if rule.name is None else f"{words} ({rule.name})"


# ---------------------------------------------------------------- ranges in time


class _Spell(NamedTuple):
    """A time that is quiet, or is not, all through."""

    begins_at: datetime
    ends_at: datetime
    range: Range | None
    """What makes it quiet; None: it is not."""


_seen: Final[dict[tuple[tuple[Range, ...], str], _Spell]] = {}
"""The last answer for each set of ranges and time zone: it mostly holds for the next question as well."""
_SEEN_MAX: Final = 20_000


def _look(rule: _Rule, now: datetime) -> _Spell:
    key = (rule.ranges, rule.zone)
    spell = _seen.get(key)
    if spell is None or not spell.begins_at <= now < spell.ends_at:
        spell = _find_spell(rule.ranges, rule.zone, now)
        if len(_seen) >= _SEEN_MAX:
            _seen.clear()
        _seen[key] = spell
    return spell


@lru_cache(maxsize=4096)
def _find_spell(ranges: tuple[Range, ...], zone: str, now: datetime) -> _Spell:
    """Whether it is quiet now; while it is, the range that goes on the longest."""
    tz = load_zone(zone)
    today = now.astimezone(tz).date()
    begins_at, ends_at = now, now + timedelta(hours=12)
    longest: Range | None = None
    # A range is at most a day long, and a day that clocks jump over may lie in between.
    for day in (today + timedelta(days=n) for n in range(-2, 2)):
        weekday = DAYS[day.weekday()]
        for range_ in ranges:
            if range_.start == range_.end or (range_.days and weekday not in range_.days):
                continue
            start, end = _to_moments(range_.start, range_.end, day, tz)
            if start <= now < end:
                if longest is None or end > ends_at:
                    begins_at, ends_at, longest = start, end, range_
            elif longest is None and now < start < end:
                ends_at = min(ends_at, start)
    return _Spell(begins_at, ends_at, longest)


def _to_moments(start: str, end: str, day: date, zone: ZoneInfo) -> tuple[datetime, datetime]:
    after = day + timedelta(days=1) if end <= start or end == "24:00" else day
    return (
        _first(datetime.combine(day, _to_time(start)), zone),
        _last(datetime.combine(after, _to_time(end)), zone),
    )


@lru_cache(maxsize=2048)
def _to_time(text: str) -> time:
    return time(int(text[:2]) % HOURS, int(text[3:]))


def _first(wall: datetime, zone: ZoneInfo) -> datetime:
    """When the clock first shows this time, or a later one."""
    early = wall.replace(tzinfo=zone)
    before = early.utcoffset()
    after = early.replace(fold=1).utcoffset()
    assert before is not None
    assert after is not None
    if before < after:
        return _change(wall, before, after, zone)
    return (wall - before).replace(tzinfo=UTC)


def _last(wall: datetime, zone: ZoneInfo) -> datetime:
    """From when on the clock shows nothing before this time any more."""
    early = wall.replace(tzinfo=zone)
    before = early.utcoffset()
    after = early.replace(fold=1).utcoffset()
    assert before is not None
    assert after is not None
    if before < after:
        return _change(wall, before, after, zone)
    moment = (wall - after).replace(tzinfo=UTC)
    if before > after and (moment - timedelta(seconds=1)).astimezone(zone).replace(tzinfo=None) >= wall:
        return (wall - before).replace(tzinfo=UTC)  # the clocks are put back to just this time, which is not before it
    return moment


def _change(wall: datetime, before: timedelta, after: timedelta, zone: ZoneInfo) -> datetime:
    """When the clocks are put forward over this time."""
    low, high = (wall - after).replace(tzinfo=UTC), (wall - before).replace(tzinfo=UTC)
    while high - low > timedelta(seconds=1):
        middle = low + timedelta(seconds=(high - low).total_seconds() // 2)
        if middle.astimezone(zone).replace(tzinfo=None) >= wall:
            high = middle
        else:
            low = middle
    return high


# ---------------------------------------------------------------- the hour that suits


def decide_send_time(
    rule: SendTime, hours: Sequence[int], *, person: Person, default_zone: str | None, now: datetime
) -> Ruling | None:
    """When to send so that this user is likely to look: at the hour at which they were most active. Pure.

    None: at once, also where that hour is now; so asking again at `until` lets it go.

    Args:
        hours: how often the user was active, by hour of their day; 24 numbers, or none.
    """
    zone = find_zones(person, default_zone)[0]
    tz = load_zone(zone)
    now = now.astimezone(UTC)
    latest = now + parse_duration(rule.within)
    if len(hours) == HOURS and sum(hours) >= rule.at_least:
        found = _choose(hours, tz, now, latest)
        if found is None or found <= now:
            return None
        at = found.astimezone(tz)
        detail = f"most active around {at:%H:%M} {zone}, of {sum(hours)} times"
        return Ruling(Rule.send_time, Answer.hold, Level.user, None, Reason.send_time, found, detail)
    if rule.fallback is None:
        return None
    found = _next(_to_time(rule.fallback), tz, now)
    if not now < found <= latest:
        return None
    detail = f"{rule.fallback} {zone}: too little is known of the user"
    return Ruling(Rule.send_time, Answer.hold, Level.type, None, Reason.send_time, found, detail)


def _weigh(hours: Sequence[int], hour: int) -> int:
    """An hour with its neighbours, which weigh half: habits do not keep to the hour."""
    return 2 * hours[hour] + hours[hour - 1] + hours[(hour + 1) % HOURS]


def _choose(hours: Sequence[int], zone: ZoneInfo, now: datetime, latest: datetime) -> datetime | None:
    """When the hour of the greatest weight that is not too late begins; of several, the first to come."""
    weights = [_weigh(hours, hour) for hour in range(HOURS)]
    for weight in sorted({*weights} - {0}, reverse=True):
        moments = [_next(time(hour), zone, now) for hour in range(HOURS) if weights[hour] == weight]
        if (first := min(moments)) <= latest:
            return first
    return None


def _next(at: time, zone: ZoneInfo, now: datetime) -> datetime:
    """When the clock next shows this time; now, where it did within the last hour."""
    today = now.astimezone(zone).date()
    for n in range(-1, 4):
        moment = _first(datetime.combine(today + timedelta(days=n), at), zone)
        if moment > now:
            return moment
        if now < moment + timedelta(hours=1):
            return now
    raise AssertionError("a time of day comes within days")
