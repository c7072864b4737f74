"""Digests: by what key notifications are gathered, and when a window closes. Pure.

A type says how it is digested (`DigestRule`), or a user does (`Frequency`). Who gathers and closes is
`tidings.flow.digests`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from cronsim import CronSim, CronSimError

from tidings.durations import parse_duration, to_duration
from tidings.errors import FieldError, escape
from tidings.model.words import Frequency

MAX_LIMIT: Final = 100
"""The largest `max`: what a template can be given."""
SLIDES: Final = 10
"""A sliding window whose rule says nothing about it is closed after so many times its length at the latest."""
KEY_LIMIT: Final = 200
"""Characters of a key's value; longer ones are told apart by their SHA-256."""
PATH_LIMIT: Final = 200
CRON_LIMIT: Final = 100
FIRST: Final = ("gather", "now")

_MONDAY: Final = 0
_CRON_YEARS: Final = 4 * 366
"""Days after which a calendar repeats itself but for its weekdays: so far a cron line is looked at."""

_encode: Final = msgspec.json.Encoder(order="deterministic").encode


class DigestRule(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How a type is digested. Exactly one of `window` and `cron`."""

    window: str | None = None
    """A duration from the first item on; with `sliding` from the newest one on."""
    sliding: bool = False
    at_most: str | None = None
    """Of a sliding window: closed so long after its first item at the latest. None: SLIDES times `window`."""
    cron: str | None = None
    """Five fields, in the user's time zone."""
    key: str | None = None
    """A dotted name in `data`; items with different values, and those without one, form digests of their own."""
    first: str = "gather"
    """`gather`, or `now`: the first item goes at once, what follows in the window is gathered."""
    max: int = 50
    """At most so many items reach the template, the newest ones; `digest.count` says how many there were."""


NO_RULE: Final = DigestRule()
"""Of types that are only digested because a user, a cap or quiet hours say so."""

_FIELDS: Final = frozenset(field.name for field in msgspec.structs.fields(DigestRule))


def parse_digest(raw: object, at: str, longest: timedelta, errors: list[FieldError]) -> DigestRule | None:
    """A digest as a caller gives it; None, and errors with pointers under `at`, when it cannot be used.

    Args:
        longest: what a window may last: what is gathered has to be kept for so long.
    """
    if isinstance(raw, DigestRule):
        raw = msgspec.to_builtins(raw)  # read before, by its JSON types only
    if not isinstance(raw, Mapping):
        errors.append(FieldError('must be an object such as {"window": "15m"}', at))
        return None
    before = len(errors)
    unknown = (str(name)[:80] for name in raw if name not in _FIELDS)
    errors.extend(FieldError(f"unknown field `{name}`", f"{at}/{escape(name)}") for name in unknown)
    window = cron = at_most = None
    sliding = raw.get("sliding")
    if sliding is not None and not isinstance(sliding, bool):
        errors.append(FieldError("must be true or false", f"{at}/sliding"))
    if (raw.get("window") is None) == (raw.get("cron") is None):
        errors.append(FieldError("needs exactly one of `window` and `cron`", at))
    elif raw.get("cron") is not None:
        cron = _parse_cron(raw["cron"], f"{at}/cron", longest, errors)
        if sliding:
            errors.append(FieldError("only a `window` can be sliding", f"{at}/sliding"))
    else:
        window = _parse_span(raw["window"], f"{at}/window", timedelta(seconds=1), longest, errors)
        if sliding and window is not None:
            at_most = min(SLIDES * window, longest)
            if raw.get("at_most") is not None:
                at_most = _parse_span(raw["at_most"], f"{at}/at_most", window, longest, errors)
    if raw.get("at_most") is not None and not sliding:
        errors.append(FieldError("only a window with `sliding` has it", f"{at}/at_most"))
    key = raw.get("key")
    if key is not None and not _is_path(key):
        errors.append(FieldError("must be a dotted name in `data`, such as `order.id`", f"{at}/key"))
    first = raw.get("first") or "gather"
    if first not in FIRST:
        errors.append(FieldError(f"must be one of {', '.join(FIRST)}", f"{at}/first"))
    most = raw.get("max")
    if most is None:
        most = NO_RULE.max
    if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= MAX_LIMIT:
        errors.append(FieldError(f"must be a whole number from 1 to {MAX_LIMIT}", f"{at}/max"))
    if len(errors) > before:
        return None
    return DigestRule(
        window=None if window is None else to_duration(window),
        sliding=bool(sliding),
        at_most=None if at_most is None else to_duration(at_most),
        cron=cron,
        key=key,
        first=first,
        max=most,
    )


def _parse_span(
    raw: object, at: str, shortest: timedelta, longest: timedelta, errors: list[FieldError]
) -> timedelta | None:
    try:
        span = parse_duration(raw if isinstance(raw, str) else "")
    except ValueError:
        errors.append(FieldError("must be a duration such as 90s, 10m, 2h or 2d", at))
        return None
    if not shortest <= span <= longest:
        errors.append(FieldError(f"must be from {to_duration(shortest)} to {to_duration(longest)}", at))
        return None
    return span


def _parse_cron(raw: object, at: str, longest: timedelta, errors: list[FieldError]) -> str | None:
    text = " ".join(raw.split()) if isinstance(raw, str) else ""
    if len(text) > CRON_LIMIT or text.count(" ") != 4:
        errors.append(FieldError("must have five fields, such as `0 9 * * mon-fri`", at))
        return None
    try:
        gap = _find_longest_gap(text)
    except CronSimError as error:
        errors.append(FieldError(f"must be a cron line such as `0 9 * * mon-fri`: {error}", at))
        return None
    if gap > longest:
        errors.append(FieldError(f"must come at least every {to_duration(longest)}", at))
        return None
    return text


def _find_longest_gap(cron: str) -> timedelta:
    """How long a digest may have to wait, to a day."""
    start = day = datetime(2028, 1, 1, tzinfo=UTC)  # a leap year comes first
    longest = timedelta(0)
    while day < start + timedelta(days=_CRON_YEARS):
        try:
            following = next(CronSim(cron, day))
        except StopIteration:  # in fifty years
            return timedelta.max
        longest = max(longest, following - day)
        day = following.replace(hour=23, minute=59)  # the others of the same day are close enough
    return longest


def _is_path(key: object) -> bool:
    return isinstance(key, str) and 0 < len(key) <= PATH_LIMIT and "\x00" not in key and all(key.split("."))


def find_value(rule: DigestRule, data: Mapping[str, Any]) -> Any:
    """The value of the key in `data`; None for a rule without one, and where it is missing. Pure."""
    if rule.key is None:
        return None
    value: Any = data
    for name in rule.key.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def read_key(rule: DigestRule, data: Mapping[str, Any]) -> str:
    """What tells this item's digest from others: the value of the key as canonical JSON; '' for none. Pure.

    Null is no value. A long value is represented by its SHA-256, since the key is part of an index.
    """
    value = find_value(rule, data)
    if value is None:
        return ""
    text = _encode(value)
    return text.decode() if len(text) <= KEY_LIMIT else hashlib.sha256(text).hexdigest()


def digest_of_one(notification: str, at: datetime, data: Mapping[str, Any]) -> dict[str, Any]:
    """What a template sees as `digest` of a notification that is none, so that one template serves both. Pure.

    Args:
        notification: its public id.
    """
    time = msgspec.to_builtins(at)
    item = {"data": data, "notification": notification, "at": time}
    return {"count": 1, "key": None, "since": time, "until": time, "more": 0, "items": [item]}


def decide_close(rule: DigestRule, opened_at: datetime, now: datetime, time_zone: str | None) -> datetime:
    """When a window that was opened then, and gets an item now, closes. Never before `now`. Pure.

    Args:
        time_zone: the user's, for `cron`; UTC where there is none, or one that is not known.
    """
    if rule.window is None:
        return max(now, _next_tick(rule.cron or "", opened_at.replace(second=0, microsecond=0), time_zone))
    if rule.sliding:
        return max(now, min(now + _span(rule.window), decide_latest_close(rule, opened_at, time_zone)))
    return max(now, opened_at + _span(rule.window))


def decide_latest_close(rule: DigestRule, opened_at: datetime, time_zone: str | None) -> datetime:
    """The moment that no item moves the closing of a window beyond; see `decide_close`. Pure."""
    if rule.window is None or not rule.sliding:
        return decide_close(rule, opened_at, opened_at, time_zone)
    return opened_at + (SLIDES * _span(rule.window) if rule.at_most is None else _span(rule.at_most))


def decide_frequency_close(frequency: Frequency, hour: int, now: datetime, time_zone: str | None) -> datetime:
    """The next full hour, the next `hour` o'clock, or that of the next Monday, in the user's time zone. Pure.

    Always after `now`, but for `instant`. An hour that the clocks leave out begins when they have been put forward; one
    that comes twice counts the first time.
    """
    if frequency is Frequency.instant:
        return now
    zone = _zone(time_zone)
    local = now.astimezone(zone)
    if frequency is Frequency.hourly:
        close = now.replace(second=0, microsecond=0)
        while close <= now or close.astimezone(zone).minute:  # twice at most: some zones shift by half an hour
            close += timedelta(minutes=60 - close.astimezone(zone).minute)
        return close.astimezone(UTC)
    day = local.date()
    while True:
        if frequency is Frequency.daily or day.weekday() == _MONDAY:
            close = datetime(day.year, day.month, day.day, hour, tzinfo=zone).astimezone(UTC)
            if close > now:
                return close
        day += timedelta(days=1)


@lru_cache(maxsize=1_000)
def _span(text: str) -> timedelta:
    return parse_duration(text)


@lru_cache(maxsize=1_000)
def _zone(name: str | None) -> ZoneInfo:
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return ZoneInfo("UTC")


@lru_cache(maxsize=10_000)
def _next_tick(cron: str, after: datetime, time_zone: str | None) -> datetime:
    """The first time of a cron line after a full minute, UTC. Whatever stands in an hour that is left out comes right
    after it; in one that comes twice, it comes once (as in Debian's cron), unless it comes every hour anyway."""
    for tick in CronSim(cron, after.astimezone(_zone(time_zone))):
        found = tick.astimezone(UTC)
        if found > after:
            return found
    raise LookupError(f"the cron line {cron!r} never comes")  # refused by parse_digest
