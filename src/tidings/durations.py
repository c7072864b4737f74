"""Durations as the API writes them: `90s`, `10m`, `2h`, `2d`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

_FORM: Final = re.compile(r"([0-9]{1,9})(ms|s|m|h|d|w)")
_UNITS: Final = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}


def parse_duration(text: str) -> timedelta:
    """The duration that `text` names.

    Raises:
        ValueError: it is not a number and one of the units ms, s, m, h, d, w, or it is too long.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write a number and a unit, such as 90s, 10m, 2h or 2d")
    try:
        return int(match[1]) * _UNITS[match[2]]
    except OverflowError:
        raise ValueError(f"{text!r} is longer than a duration can be") from None


def to_duration(value: timedelta) -> str:
    """The shortest text that `parse_duration` reads back as `value` (to the millisecond)."""
    ms = round(value / timedelta(milliseconds=1))
    for unit in ("d", "h", "m", "s"):
        size = round(_UNITS[unit] / timedelta(milliseconds=1))
        if ms % size == 0 and ms >= size:
            return f"{ms // size}{unit}"
    return f"{ms}ms"
