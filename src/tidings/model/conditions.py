"""Conditions: a small language for `if` steps, segments and event rules; here its form, and what it means for one case.

    {"all": [{"user": "plan", "is": "pro"}, {"not": {"data": "amount", "below": 10}}]}

Pure. What it means for a set of users is `tidings.directory.segments`' (SQL); a property test holds the two together.

A comparison is met only by a value that is there and of the same kind (text, number, truth value). So `is_not` asks for
another value of that kind, while `not` around `is` is also met by what has none. JSON's null counts as missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

import msgspec

from tidings.durations import parse_duration
from tidings.errors import FieldError, escape
from tidings.model.topics import parse_pattern
from tidings.model.words import Channel

DEPTH_MAX: Final = 8
"""Conditions inside of conditions."""
NODES_MAX: Final = 50
"""Conditions in a condition, with it."""
LIST_MAX: Final = 100
"""Values after `in`."""
TEXT_MAX: Final = 1_000
"""Bytes of a text."""
PARTS_MAX: Final = 8
"""Parts of a dotted name."""
FURTHEST: Final = timedelta(days=36_525)
"""A relative time is at most so far away."""
EVER: Final = "ever"
"""Instead of a duration after `within`."""

STEP_SUBJECTS: Final = frozenset({"data", "user", "engaged"})
"""What an `if` step asks about; `engaged` is what the user did with this notification."""
SEGMENT_SUBJECTS: Final = frozenset({"user", "activity", "category", "topic"})
"""What a segment asks about; `activity` is `engaged` with a channel and a time: what the user did with any message."""

COLUMNS: Final = ("id", "locale", "time_zone", "region", "created_at")
"""What every user has beside attributes. An attribute of the same name cannot be asked about."""
DID: Final = ("seen", "read", "opened", "clicked", "delivered", "acknowledged")
"""What a user may have done with a notification; `acknowledged` is read or clicked."""
ACTIVE: Final = ("opened", "clicked")
"""What is kept of a user's activity on a channel; a message that was seen or read counts as opened."""

_MONTHS = r"(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
_LEAP = r"(?:[1-8][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|1[26]|[357][26])00)-02-29"
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:0[0-9]|1[0-4]):[0-5][0-9])"
TIME_PATTERN: Final = rf"(?:[1-8][0-9]{{3}}-{_MONTHS}|{_LEAP})(?:T{_CLOCK})?"
"""A time that exists: RFC 3339 with an offset, or a day, which stands for its beginning in UTC.

For Python and PostgreSQL alike: what matches can be read by both, without an error. So the year is 1000 to 8999.
"""
_TIME: Final = re.compile(TIME_PATTERN)
_EXACT: Final = 1 << 53
"""Below this an integer and a float compare as they are written: no float is nearer to the integer than itself."""
_KINDS: Final = {str: "string", int: "number", float: "number", bool: "boolean", list: "array", dict: "object"}


class Case(msgspec.Struct, frozen=True):
    """What a condition is asked about."""

    data: Mapping[str, Any] = {}
    user: Mapping[str, Any] = {}
    """`id`, `locale`, `time_zone`, `region`, `created_at` and the attributes by their names; dots lead into objects."""
    engagement: frozenset[str] = frozenset()
    """What the user did with this notification so far: seen, read, opened, clicked, delivered, acknowledged."""
    now: datetime | None = None
    """Without it, no time that is relative to now is met."""
    activity: Mapping[str, Mapping[str, datetime]] = {}
    """By channel: when the user last `opened` or `clicked` anything."""
    preferences: Mapping[str, Any] = {}
    """What the user said; the stored document."""
    topics: Collection[str] = ()
    """The topics that the user is in."""


# ---------------------------------------------------------------- what it means


def holds(condition: Mapping[str, Any], case: Case) -> bool:
    """Whether the condition is met. What is missing meets no comparison; it never raises for a parsed condition."""
    if (inner := condition.get("all")) is not None:
        return all(holds(each, case) for each in inner)
    if (inner := condition.get("any")) is not None:
        return any(holds(each, case) for each in inner)
    if (inner := condition.get("not")) is not None:
        return not holds(inner, case)
    if (path := condition.get("data")) is not None:
        return _compare(_find(case.data, path), condition, case.now)
    if (path := condition.get("user")) is not None:
        return _compare(_find(case.user, path), condition, case.now)
    if (did := condition.get("engaged")) is not None:
        return _did(did, condition, case)
    if (key := condition.get("category")) is not None:
        return said_of(case.preferences, key, condition.get("channel"), case.now) is condition["on"]
    asked = parse_pattern(condition["topic"])
    return any(map(asked.holds, case.topics))


def _find(values: Mapping[str, Any], path: str) -> Any:
    """What stands at a dotted name; None when nothing does. Lists have no names in them."""
    found: Any = values
    for part in path.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found


def _compare(value: Any, condition: Mapping[str, Any], now: datetime | None) -> bool:
    for name, given in condition.items():
        if (test := _TESTS.get(name)) is not None:
            return test(value, given, now)
    return False


def _kind(value: Any) -> str:
    """What `jsonb_typeof` calls it."""
    return _KINDS.get(type(value), "other")


def _order(value: Any, given: Any) -> int | None:
    """Below zero, zero or above, for two numbers or two texts; None when they cannot be compared."""
    if (kind := _kind(value)) != _kind(given) or kind not in ("number", "string", "boolean"):
        return None
    if type(value) is not type(given) and min(abs(value), abs(given)) >= _EXACT:
        # As they are written, not as binary fractions: 1e23 is 10^23, as it is for PostgreSQL.
        value, given = Decimal(repr(value)), Decimal(repr(given))
    return 0 if value == given else 1 if value > given else -1


def _is(value: Any, given: Any, now: datetime | None) -> bool:
    return _order(value, given) == 0


def _is_not(value: Any, given: Any, now: datetime | None) -> bool:
    return _order(value, given) not in (None, 0)


def _in(value: Any, given: Sequence[Any], now: datetime | None) -> bool:
    if isinstance(given[0], str):  # they are of one kind; a text is equal to nothing else
        return value in given
    return any(_order(value, each) == 0 for each in given)


def _not_in(value: Any, given: Sequence[Any], now: datetime | None) -> bool:
    if isinstance(given[0], str):
        return isinstance(value, str) and value not in given
    return all(_order(value, each) not in (None, 0) for each in given)  # they are of one kind, and at least one


def _above(value: Any, given: Any, now: datetime | None) -> bool:
    return (_order(value, given) or 0) > 0


def _at_least(value: Any, given: Any, now: datetime | None) -> bool:
    return (order := _order(value, given)) is not None and order >= 0


def _below(value: Any, given: Any, now: datetime | None) -> bool:
    return (_order(value, given) or 0) < 0


def _at_most(value: Any, given: Any, now: datetime | None) -> bool:
    return (order := _order(value, given)) is not None and order <= 0


def _contains(value: Any, given: Any, now: datetime | None) -> bool:
    if isinstance(value, list):
        if isinstance(given, str):  # of long lists, much faster than one by one
            return given in value
        return any(_order(each, given) == 0 for each in value)
    return isinstance(value, str) and isinstance(given, str) and given in value


def _starts_with(value: Any, given: str, now: datetime | None) -> bool:
    return isinstance(value, str) and value.startswith(given)


def _exists(value: Any, given: bool, now: datetime | None) -> bool:
    return (value is not None) is given


def _before(value: Any, given: str, now: datetime | None) -> bool:
    at, limit = to_time(value), to_limit(given, now)
    return at is not None and limit is not None and at < limit


def _after(value: Any, given: str, now: datetime | None) -> bool:
    at, limit = to_time(value), to_limit(given, now)
    return at is not None and limit is not None and at > limit


_TESTS: Final[Mapping[str, Callable[[Any, Any, datetime | None], bool]]] = {
    "is": _is,
    "is_not": _is_not,
    "in": _in,
    "not_in": _not_in,
    "above": _above,
    "at_least": _at_least,
    "below": _below,
    "at_most": _at_most,
    "contains": _contains,
    "starts_with": _starts_with,
    "exists": _exists,
    "before": _before,
    "after": _after,
}


def to_time(value: Any) -> datetime | None:
    """The time that a value is or says, in the form of TIME_PATTERN; None when it says none."""
    if isinstance(value, str):
        return _read_time(value)
    return value if isinstance(value, datetime) else None


@lru_cache(maxsize=4096)
def _read_time(text: str) -> datetime | None:
    if not _TIME.fullmatch(text):
        return None
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def to_limit(given: str, now: datetime | None) -> datetime | None:
    """The time after `before` or `after`; None for a relative one without a now."""
    if (span := to_offset(given)) is None:
        return _read_time(given)
    return None if now is None else now + span


@lru_cache(maxsize=4096)
def to_offset(given: str) -> timedelta | None:
    """How far a relative time such as `-30d` is from now; None for an absolute one."""
    if given[:1] not in ("+", "-"):
        return None
    span = parse_duration(given[1:])
    return -span if given[0] == "-" else span


def _did(what: str, condition: Mapping[str, Any], case: Case) -> bool:
    within = condition.get("within")
    if within is None:
        if what == "acknowledged" and not case.engagement.isdisjoint(("read", "clicked")):
            return True
        return what in case.engagement
    since: datetime | None = None
    if within != EVER:
        if case.now is None:
            return False
        since = case.now - parse_duration(within)
    channel = condition.get("channel")
    times = (case.activity.get(channel, {}),) if channel else case.activity.values()
    return any((at := last.get(what)) is not None and (since is None or at >= since) for last in times)


def said_of(said: Mapping[str, Any], category: str, channel: str | None, now: datetime | None) -> bool | None:
    """What a user said of a category, on a channel or as such; None when they said nothing.

    Only their own words: what holds for those who said nothing is another question. Off wins between what was said of
    the category and what was said of the channel; being muted is off.
    """
    if said.get("muted") is True:
        until = to_time(said.get("muted_until"))
        if until is None or now is None or now < until:
            return False
    choice = _child(_child(said, "categories"), category)
    words = [choice.get("enabled")]
    if channel is not None:
        exact = _child(choice, "channels").get(channel)
        if isinstance(exact, bool):
            return exact
        words.append(_child(said, "channels").get(channel))
    if any(word is False for word in words):
        return False
    return True if any(word is True for word in words) else None


def _child(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


# ---------------------------------------------------------------- its form


def parse_condition(
    raw: object, at: str, errors: list[FieldError], *, subjects: frozenset[str]
) -> dict[str, Any] | None:
    """A condition in its normal form; None, and errors with pointers under `at`, when it is none.

    Args:
        subjects: what may be asked about here, of `data`, `user`, `engaged`, `activity`, `category`, `topic`. With
            `activity`, `engaged` is about any message; otherwise about one notification.
    """
    before = len(errors)
    if count_conditions(raw) > NODES_MAX:
        errors.append(FieldError(f"has more than {NODES_MAX} conditions", at))
        return None
    found = _Parser(errors, subjects).parse(raw, at, 1)
    return found if len(errors) == before else None


def count_conditions(raw: object, depth: int = 0) -> int:
    """Conditions in it, as far as depth allows; enough to know that there are too many."""
    if not isinstance(raw, Mapping) or depth > DEPTH_MAX:
        return 1
    inner: list[object] = [raw["not"]] if "not" in raw else []
    for name in ("all", "any"):
        if isinstance(raw.get(name), list):
            inner += raw[name][: NODES_MAX + 1]
    return 1 + sum(count_conditions(each, depth + 1) for each in inner)


_TEXTS: Final = ("is", "is_not", "in", "not_in", "contains", "starts_with", "exists")
_TIMES: Final = ("before", "after")


class _Parser:
    """Reads one condition; what is wrong goes to `errors`."""

    def __init__(self, errors: list[FieldError], subjects: frozenset[str]) -> None:
        self._errors = errors
        self._subjects = subjects
        self._heads = sorted(({*subjects} - {"activity"}) | ({"engaged"} if "activity" in subjects else set()))

    def _refuse(self, detail: str, at: str) -> None:
        self._errors.append(FieldError(detail, at))

    def parse(self, raw: object, at: str, depth: int) -> dict[str, Any]:
        """The normal form; anything when there were errors."""
        if not isinstance(raw, Mapping):
            self._refuse('must be a condition such as {"user": "plan", "is": "pro"}', at)
            return {}
        if depth > DEPTH_MAX:
            self._refuse(f"stands more than {DEPTH_MAX} conditions deep", at)
            return {}
        heads = [name for name in ("all", "any", "not", *self._heads) if name in raw]
        if len(heads) != 1:
            known = ", ".join(f"`{name}`" for name in ("all", "any", "not", *self._heads))
            self._refuse(f"must have exactly one of {known}", at)
            return {}
        [head] = heads
        place = f"{at}/{head}"
        match head:
            case "all" | "any":
                self._only(raw, at, head)
                inner = raw[head]
                if not isinstance(inner, list) or not inner:
                    self._refuse("must be a list of one or more conditions", place)
                    return {}
                return {head: [self.parse(each, f"{place}/{i}", depth + 1) for i, each in enumerate(inner)]}
            case "not":
                self._only(raw, at, head)
                return {head: self.parse(raw[head], place, depth + 1)}
            case "engaged":
                return self._engaged(raw, at)
            case "category":
                return self._category(raw, at)
            case "topic":
                self._only(raw, at, head)
                return {head: self._pattern(raw[head], place)}
            case _:
                return self._comparison(raw, at, head)

    def _only(self, raw: Mapping[Any, Any], at: str, *known: str) -> None:
        for name in raw:
            if name not in known:
                text = str(name)[:64]
                self._refuse(f"is not known beside `{known[0]}`", f"{at}/{escape(text)}")

    def _text(self, raw: object, at: str, *, least: int = 0) -> str:
        if not isinstance(raw, str):
            self._refuse("must be text", at)
            return ""
        try:
            size = len(raw.encode())
        except UnicodeEncodeError:
            size = -1
        if size < 0 or "\0" in raw:
            self._refuse("must be text without NUL and lone surrogates", at)
        elif not least <= size <= TEXT_MAX:
            self._refuse(f"must have {least} to {TEXT_MAX:,} bytes", at)
        return raw

    def _one_of(self, raw: object, known: Sequence[str], at: str) -> str:
        if not isinstance(raw, str) or raw not in known:
            self._refuse(f"must be one of {', '.join(known)}", at)
            return known[0]
        return raw

    def _engaged(self, raw: Mapping[Any, Any], at: str) -> dict[str, Any]:
        if "activity" not in self._subjects:
            self._only(raw, at, "engaged")
            return {"engaged": self._one_of(raw["engaged"], DID, f"{at}/engaged")}
        self._only(raw, at, "engaged", "channel", "within")
        found: dict[str, Any] = {"engaged": self._one_of(raw["engaged"], ACTIVE, f"{at}/engaged")}
        if raw.get("channel") is not None:
            found["channel"] = self._one_of(raw["channel"], tuple(Channel.__members__), f"{at}/channel")
        found["within"] = self._within(raw.get("within", EVER), f"{at}/within")
        return found

    def _within(self, raw: object, at: str) -> str:
        if raw == EVER:
            return EVER
        try:
            fits = isinstance(raw, str) and timedelta(0) < parse_duration(raw) <= FURTHEST
        except ValueError:
            fits = False
        if not fits:
            self._refuse("must be a duration such as 30d, of at most 100 years, or `ever`", at)
        return str(raw)

    def _category(self, raw: Mapping[Any, Any], at: str) -> dict[str, Any]:
        self._only(raw, at, "category", "channel", "on")
        found: dict[str, Any] = {"category": self._text(raw["category"], f"{at}/category", least=1)}
        if raw.get("channel") is not None:
            found["channel"] = self._one_of(raw["channel"], tuple(Channel.__members__), f"{at}/channel")
        found["on"] = raw.get("on", True)
        if not isinstance(found["on"], bool):
            self._refuse("must be true or false", f"{at}/on")
        return found

    def _pattern(self, raw: object, at: str) -> str:
        text = self._text(raw, at, least=1)
        try:
            parse_pattern(text)
        except ValueError as error:
            self._refuse(str(error), at)
        return text

    def _comparison(self, raw: Mapping[Any, Any], at: str, head: str) -> dict[str, Any]:
        names = [name for name in _TESTS if name in raw]
        if len(names) != 1:
            self._refuse(f"must have exactly one of {', '.join(f'`{name}`' for name in _TESTS)}", at)
            return {}
        [name] = names
        self._only(raw, at, head, name)
        path = self._path(raw[head], f"{at}/{head}")
        given = self._given(name, raw[name], f"{at}/{name}")
        if head == "user" and path.partition(".")[0] in COLUMNS:
            self._column(path, name, given, at)
        return {head: path, name: given}

    def _column(self, path: str, name: str, given: object, at: str) -> None:
        """What a comparison with a column may look like: all of them are texts, but for the time."""
        allowed: Sequence[str] = _TIMES if path == "created_at" else _TEXTS
        if path not in COLUMNS:
            self._refuse("is no attribute: nothing is inside of this", f"{at}/user")
        elif name not in allowed:
            self._refuse(f"does not fit `{path}`, which takes {', '.join(allowed)}", f"{at}/{name}")
        elif name != "exists" and not all(
            isinstance(each, str) for each in (given if isinstance(given, list) else [given])
        ):
            self._refuse("must be text", f"{at}/{name}")

    def _path(self, raw: object, at: str) -> str:
        text = self._text(raw, at, least=1)
        parts = text.split(".")
        if "" in parts or len(parts) > PARTS_MAX:
            self._refuse(f"must be a name, or up to {PARTS_MAX} names joined by dots, such as `address.city`", at)
        return text

    def _given(self, name: str, raw: object, at: str) -> Any:
        match name:
            case "exists":
                if not isinstance(raw, bool):
                    self._refuse("must be true or false", at)
                return raw
            case "in" | "not_in":
                if not isinstance(raw, list) or not 1 <= len(raw) <= LIST_MAX:
                    self._refuse(f"must be a list of 1 to {LIST_MAX} values", at)
                    return []
                values = [self._value(each, f"{at}/{i}") for i, each in enumerate(raw)]
                if len({_kind(value) for value in values}) > 1:
                    self._refuse("must hold values of one kind: texts, numbers, or truth values", at)
                return values
            case "above" | "at_least" | "below" | "at_most":
                return self._value(raw, at, number=True)
            case "starts_with":
                return self._text(raw, at, least=1)
            case "contains":
                return self._text(raw, at, least=1) if isinstance(raw, str) else self._value(raw, at)
            case "before" | "after":
                return self._limit(raw, at)
            case _:
                return self._value(raw, at)

    def _value(self, raw: object, at: str, *, number: bool = False) -> Any:
        match raw:
            case bool() if not number:
                return raw
            case str() if not number:
                return self._text(raw, at)
            case int() | float() if not isinstance(raw, bool):
                if not math.isfinite(raw) or (isinstance(raw, int) and abs(raw) >= 1 << 63):
                    self._refuse("must be a number of at most 63 bits", at)
                return raw
        if number:
            self._refuse("must be a number", at)
        elif raw is None:
            self._refuse('must not be null; ask with {"exists": false} for what is missing', at)
        else:
            self._refuse("must be text, a number, true or false", at)
        return None

    def _limit(self, raw: object, at: str) -> Any:
        text = raw if isinstance(raw, str) else ""
        try:
            span = to_offset(text)
        except ValueError:
            span = FURTHEST + FURTHEST
        if (abs(span) > FURTHEST) if span is not None else (_read_time(text) is None):
            self._refuse(
                "must be a time such as 2026-11-22T13:00:00Z or 2026-11-22, or one from now such as -30d, +1h", at
            )
        return raw
