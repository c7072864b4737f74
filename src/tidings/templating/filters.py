"""What values can be turned into, and the account of what one rendering has used.

Every filter whose result can be larger than its input is here and charges it to the `Usage` of the rendering; the
engine's own filters of the same name are overridden. So is `format`, whose widths the engine takes without a limit:
`"%1000000000d"|format(1)` makes it fill two gigabytes.

Dates, numbers and money are written as the locale does it (Unicode CLDR by Babel). One value in one locale is
formatted once and remembered: Babel takes 15 µs and more, and a broadcast says the same amount many times.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, tzinfo
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, Final
from zoneinfo import ZoneInfo

from babel import Locale
from babel.dates import format_date, format_datetime, format_time
from babel.numbers import format_currency, format_decimal, format_percent

from tidings.errors import RenderError

MAX_OUTPUT: Final = 512 * 1024
"""Characters that all fields of one rendering print together. Mail programs cut off far below that."""
MAX_VALUE: Final = 64 * 1024
"""Characters and items of one computed value."""
MAX_TURNS: Final = 20_000
"""Turns of all loops together."""
MAX_SECONDS: Final = 0.4
"""The longest rendering. The other limits are met first by anything that was not made to hurt."""
MAX_RANGE: Final = 10_000
_LOOK_EVERY: Final = 2_048
"""Characters between two looks at the clock."""
_PER_PRINT: Final = 16
"""What each printed value is charged besides its length, so that printing nothing very often ends as well."""

_DATE_STYLES: Final = frozenset({"short", "medium", "long", "full"})
_CURRENCY: Final = re.compile(r"[A-Z]{3}")
_DIRECTIVE: Final = re.compile(r"%(?:%|[-+ 0#]*(?P<width>\d*)(?:\.(?P<precision>\d*))?(?P<type>[sdifFeEgGxXo]))")


class Usage:
    """What the rendering that is under way has used, and for whom it formats.

    There is one for the process: a rendering holds `lock`. The engine holds the interpreter's lock all the while, so
    nothing is lost by it, and the account is a plain attribute instead of a thread's local one.
    """

    __slots__ = ("deadline", "left", "locale", "lock", "look_at", "time_zone", "turns")

    def __init__(self) -> None:
        self.lock: Final = threading.Lock()
        self.left = 0
        self.turns = 0
        self.deadline = 0.0
        self.look_at = 0
        self.locale = "en"
        self.time_zone: tzinfo = UTC

    def begin(self, locale: str, time_zone: tzinfo) -> None:
        """Start the account of a rendering."""
        self.left = MAX_OUTPUT
        self.turns = MAX_TURNS
        self.look_at = MAX_OUTPUT - _LOOK_EVERY
        self.deadline = time.monotonic() + MAX_SECONDS
        self.locale = locale
        self.time_zone = time_zone

    def charge(self, characters: int) -> None:
        """Account for characters that were printed or computed.

        Raises:
            RenderError: it is too much, or took too long.
        """
        self.left -= characters
        if self.left < self.look_at:
            self.look()

    def look(self) -> None:
        """Look at the limits, the clock included; see `charge`."""
        if self.left < 0:
            raise RenderError(f"the text grows beyond {MAX_OUTPUT:,} characters")
        if time.monotonic() > self.deadline:
            raise RenderError(f"the template takes longer than {MAX_SECONDS} s")
        self.look_at = self.left - _LOOK_EVERY


USAGE: Final = Usage()


# ---------------------------------------------------------------- what language.py writes into each program


def measure_printed(value: Any) -> Any:
    """The engine's finalizer: called with every value that is printed. NotImplemented means: print it as it is."""
    usage = USAGE
    kind = type(value)
    if kind is str:
        usage.left -= len(value) + _PER_PRINT
    elif kind is int or kind is float or kind is bool or value is None:
        usage.left -= 2 * _PER_PRINT
    elif isinstance(value, str):
        usage.left -= len(value) + _PER_PRINT
    elif isinstance(value, (list, tuple, dict)):
        usage.left -= _size(value) + _PER_PRINT
    else:
        # A name that the data lacks but that Python's dict or list has, such as `order.items`.
        raise RenderError("a name that is not in the data is printed")
    if usage.left < usage.look_at:
        usage.look()
    return NotImplemented


def measure_bound(value: Any) -> Any:
    """`_bounded`: called with every computed value that is bound, looped over or tested."""
    if callable(value):
        raise RenderError("a name that is not in the data is used")
    USAGE.left -= 0 if isinstance(value, str) and len(value) <= MAX_VALUE else _size(value)
    USAGE.look()
    return value


def measure_turn(literal_size: int) -> str:
    """`_tick`: called at each turn of a loop, with the size of the literal text in its body."""
    USAGE.turns -= 1
    if USAGE.turns < 0:
        raise RenderError(f"the loops take more than {MAX_TURNS:,} turns")
    USAGE.charge(literal_size)
    return ""


def _size(value: Any) -> int:
    """Characters and items of a value, all the way down.

    Raises:
        RenderError: more than MAX_VALUE.
    """
    size = 0
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, Mapping):
            size += 4
            pending += item.keys()
            pending += item.values()
        elif isinstance(item, (list, tuple)):
            size += 2
            pending += item
        else:
            size += 8
        if size + len(pending) > MAX_VALUE:
            raise RenderError(f"a computed value is larger than {MAX_VALUE:,} characters or items")
    return size


def _text(value: Any) -> str:
    """The value as plain text. A Markup loses its mark, so that what is made of it is escaped again."""
    if isinstance(value, str):
        return str.__str__(value)
    _refuse_names(value)
    USAGE.charge(_size(value))
    return str(value)


def _refuse_names(value: Any) -> None:
    if callable(value):
        raise RenderError("a name that is not in the data is used")


def _charged(text: str) -> str:
    USAGE.charge(len(text))
    return text


# ---------------------------------------------------------------- text and lists


def filter_format(pattern: Any, *values: Any) -> str:
    """printf-style: `"%.2f"|format(price)`. Widths and precisions up to 100."""
    text = _text(pattern)
    for directive in _DIRECTIVE.finditer(text):
        for number in (directive["width"], directive["precision"]):
            if number and (len(number) > 3 or int(number) > 100):
                raise RenderError("format: widths and precisions go up to 100")
    if "%" in _DIRECTIVE.sub("", text):
        raise RenderError("format: only %s %d %i %f %e %g %x %o and %% are known")
    plain = tuple(v if isinstance(v, (int, float)) else _text(v) for v in values)
    try:
        return _charged(text % plain)
    except (TypeError, ValueError, OverflowError):
        raise RenderError("format: the values do not fit the pattern") from None


def filter_indent(value: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    """Every line but the first moved to the right by `width` blanks, up to 100."""
    if not isinstance(width, int) or not 0 <= width <= 100:
        raise RenderError("indent: the width is a number from 0 to 100")
    margin = " " * width
    lines = _text(value).split("\n")
    USAGE.charge(sum(map(len, lines)) + len(lines) * (width + 1))
    moved = [margin + line if line or blank else line for line in lines]
    if not first:
        moved[0] = lines[0]
    return "\n".join(moved)


def filter_join(values: Any, separator: Any = "", attribute: str | None = None) -> str:
    """The items, or one attribute of each, with a separator between them."""
    between = _text(separator)
    parts: list[str] = []
    for item in _items("join", values):
        part = _text(item if attribute is None else _attribute(item, attribute))
        USAGE.charge(len(part) + len(between))
        parts.append(part)
    return between.join(parts)


def filter_map(values: Any, *, attribute: str, default: Any = None) -> list[Any]:
    """One attribute of each item: `items|map(attribute="price")`."""
    return [_attribute(item, attribute, default) for item in _items("map", values)]


def filter_replace(value: Any, old: Any, new: Any) -> str:
    """The text with every `old` replaced by `new`."""
    text, search, put = _text(value), _text(old), _text(new)
    growth = max(0, len(put) - len(search)) * text.count(search)
    USAGE.charge(len(text) + growth)
    return text.replace(search, put)


def filter_tojson(value: Any) -> str:
    """The value as JSON text. It is text like any other: in HTML it is escaped, in a JSON field it becomes a string."""
    _refuse_names(value)
    USAGE.charge(_size(value))
    try:
        return _charged(json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False))
    except (TypeError, ValueError):
        raise RenderError("tojson: the value has no JSON form") from None


def filter_truncate(value: Any, length: Any = 255, end: str = "…") -> str:
    """At most `length` characters, cut at a blank where there is one, with `end` to show it."""
    text, mark = _text(value), _text(end)
    if not isinstance(length, int) or length < len(mark):
        raise RenderError("truncate: the length is a number that leaves room for the end mark")
    if len(text) <= length:
        return text
    cut = text[: length - len(mark)]
    return cut[: cut.rindex(" ")].rstrip() + mark if " " in cut.strip() else cut + mark


def filter_times(value: Any, factor: Any) -> int | float:
    """The product of two numbers."""
    for number in (value, factor):
        if isinstance(number, bool) or not isinstance(number, (int, float)) or abs(number) > 10**30:
            raise RenderError("times: both sides are numbers up to 10^30")
    product: int | float = value * factor
    return product


def make_range(*bounds: Any) -> list[int]:
    """`range(stop)`, `range(start, stop)`, `range(start, stop, step)`; up to 10,000 numbers."""
    if not 1 <= len(bounds) <= 3 or not all(isinstance(b, int) for b in bounds):
        raise RenderError("range: takes one to three whole numbers")
    try:
        numbers = range(*bounds)
        if len(numbers) > MAX_RANGE:
            raise OverflowError
    except OverflowError:
        raise RenderError(f"range: more than {MAX_RANGE:,} numbers") from None
    except ValueError:
        raise RenderError("range: the step cannot be 0") from None
    USAGE.charge(len(numbers))
    return list(numbers)


def _items(name: str, values: Any) -> Iterable[Any]:
    _refuse_names(values)
    if isinstance(values, (str, list, tuple, Mapping)):
        return values
    raise RenderError(f"{name}: works on a list")


def _attribute(item: Any, path: str, default: Any = None) -> Any:
    for part in str(path).split("."):
        if isinstance(item, Mapping) and part in item:
            item = item[part]
        elif isinstance(item, (list, tuple)) and part.isdecimal() and int(part) < len(item):
            item = item[int(part)]
        elif default is not None:
            return default
        else:
            raise RenderError(f"an item has no {path!r}")
    return item


# ---------------------------------------------------------------- as the locale writes it


def filter_date(value: Any, style: str = "medium") -> str:
    """The day in the user's time zone; `style` is short, medium, long, full or a CLDR pattern."""
    return _charged(_format_when("date", _instant(value, "date"), _style(style), USAGE.locale, str(USAGE.time_zone)))


def filter_time(value: Any, style: str = "short") -> str:
    """The time of day in the user's time zone."""
    return _charged(_format_when("time", _instant(value, "time"), _style(style), USAGE.locale, str(USAGE.time_zone)))


def filter_datetime(value: Any, style: str = "medium") -> str:
    """Day and time in the user's time zone."""
    when = _instant(value, "datetime")
    return _charged(_format_when("datetime", when, _style(style), USAGE.locale, str(USAGE.time_zone)))


def filter_number(value: Any, digits: Any = None) -> str:
    """The number as the locale writes it, with a fixed number of decimals if `digits` is given."""
    if digits is not None and (not isinstance(digits, int) or not 0 <= digits <= 20):
        raise RenderError("number: digits is a number from 0 to 20")
    return _charged(_format_number("number", _decimal(value, "number"), digits, None, USAGE.locale))


def filter_percent(value: Any, digits: Any = None) -> str:
    """The share as per cent: 0.25 is 25 %."""
    if digits is not None and (not isinstance(digits, int) or not 0 <= digits <= 20):
        raise RenderError("percent: digits is a number from 0 to 20")
    return _charged(_format_number("percent", _decimal(value, "percent"), digits, None, USAGE.locale))


def filter_money(value: Any, currency: Any) -> str:
    """The amount in a currency, named by its ISO 4217 code."""
    code = _text(currency)
    if not _CURRENCY.fullmatch(code):
        raise RenderError("money: name the currency by three capital letters, such as EUR")
    return _charged(_format_number("money", _decimal(value, "money"), None, code, USAGE.locale))


def _style(style: Any) -> str:
    text = _text(style)
    if len(text) > 40:
        raise RenderError("date patterns have up to 40 characters")
    return text


def _instant(value: Any, name: str) -> datetime | date:
    """The moment that an RFC 3339 text or a number of seconds since 1970 names; a plain day stays a day."""
    try:
        if isinstance(value, bool):
            raise ValueError
        if isinstance(value, (int, float)):
            return datetime.fromtimestamp(value, UTC)
        text = _text(value)
        if len(text) == 10:
            return date.fromisoformat(text)
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        raise RenderError(f"{name}: takes a time such as 2026-11-22T18:30:00Z, or a day such as 2026-11-22") from None


def _decimal(value: Any, name: str) -> Decimal:
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        number = Decimal(_text(value) if isinstance(value, str) else repr(value))
        if not number.is_finite() or abs(number.adjusted()) > 30:
            raise ValueError
    except (ValueError, InvalidOperation):
        raise RenderError(f"{name}: takes a number") from None
    return number


@lru_cache(maxsize=256)
def _locale(tag: str) -> Locale:
    return Locale.parse(tag, sep="-")


@lru_cache(maxsize=256)
def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)


@lru_cache(maxsize=4096)
def _format_when(kind: str, when: datetime | date, style: str, locale: str, zone: str) -> str:
    where = _locale(locale)
    try:
        if not isinstance(when, datetime):
            if kind == "time":
                raise RenderError("time: a day has no time")
            return format_date(when, style, where)
        if kind == "date":
            return format_date(when.astimezone(_zone(zone)), style, where)
        if kind == "time":
            return format_time(when, style, tzinfo=_zone(zone), locale=where)
        return format_datetime(when, style, tzinfo=_zone(zone), locale=where)
    except (ValueError, KeyError, AttributeError, OverflowError, IndexError):
        styles = ", ".join(sorted(_DATE_STYLES))
        raise RenderError(f"{kind}: {style!r} is neither one of {styles} nor a date pattern") from None


@lru_cache(maxsize=4096)
def _format_number(kind: str, value: Decimal, digits: int | None, currency: str | None, locale: str) -> str:
    where = _locale(locale)
    if kind == "money":
        return format_currency(value, currency or "", locale=where)
    number = "#,##0" if not digits else "#,##0." + "0" * digits
    if kind == "percent":
        # the locale decides where the sign stands and whether a blank is before it
        pattern = where.percent_formats[None].pattern.replace("#,##0", number)
        return format_percent(value, None if digits is None else pattern, locale=where)
    return format_decimal(value, None if digits is None else number, locale=where)


FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "_bounded": measure_bound,
    "date": filter_date,
    "datetime": filter_datetime,
    "format": filter_format,
    "indent": filter_indent,
    "join": filter_join,
    "map": filter_map,
    "money": filter_money,
    "number": filter_number,
    "percent": filter_percent,
    "replace": filter_replace,
    "time": filter_time,
    "times": filter_times,
    "tojson": filter_tojson,
    "truncate": filter_truncate,
}
GLOBALS: Final[Mapping[str, Callable[..., Any]]] = {"_tick": measure_turn, "range": make_range}
