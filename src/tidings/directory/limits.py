"""Limits: how many notifications somebody may get in a rolling window, and what becomes of the others. Pure.

Types, categories and projects have them; each counts for itself, and a notification has to fit them all. Who counts is
`tidings.flow.caps`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import msgspec

from tidings.durations import parse_duration, to_duration
from tidings.errors import FieldError, escape
from tidings.model.words import Channel

LIMIT_MAX: Final = 1_000
"""The largest `max`: a counter keeps the time of each."""
LIMITS_MAX: Final = 10
"""Limits in one place; each is one more row to lock."""
WINDOW_MIN: Final = timedelta(seconds=1)
WINDOW_MAX: Final = timedelta(days=366)
DEFER_MAX: Final = timedelta(days=30)
"""The longest window where what is too much waits: it is kept until then."""
THEN: Final = ("drop", "defer", "digest")
EXEMPT: Final = ("critical", "required")
_KEY: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


class Limit(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """At most `max` notifications per user in any `window`."""

    max: int
    window: str
    """A duration, such as `1d`."""
    per: str = "user"
    channel: str | None = None
    """Only messages on this channel count and are stopped; None: a notification counts once, whatever its channels."""
    category: str | None = None
    """Of a project's limit: only this category's."""
    then: str = "drop"
    """`drop`, `defer` until there is room, or `digest` what is too much."""
    exempt: tuple[str, ...] = ("critical", "required")
    """What neither counts nor is stopped."""


_FIELDS: Final = frozenset(field.name for field in msgspec.structs.fields(Limit))


def parse_limits(raw: object, at: str, errors: list[FieldError], *, categories: bool = False) -> tuple[Limit, ...]:
    """Limits as a caller gives them; errors have pointers under `at`.

    Args:
        categories: a limit may name a category: those of projects.
    """
    if isinstance(raw, tuple) and all(isinstance(one, Limit) for one in raw):
        raw = msgspec.to_builtins(raw)  # read before, by its JSON types only
    if not isinstance(raw, Sequence) or isinstance(raw, str | bytes):
        errors.append(FieldError('must be a list such as [{"max": 3, "window": "1d"}]', at))
        return ()
    if len(raw) > LIMITS_MAX:
        errors.append(FieldError(f"at most {LIMITS_MAX} limits are taken", at))
        return ()
    found: list[Limit] = []
    taken: set[tuple[str | None, str | None, timedelta]] = set()
    for i, one in enumerate(raw):
        limit = _parse_limit(one, f"{at}/{i}", errors, categories=categories)
        if limit is None:
            continue
        counted = limit.channel, limit.category, parse_duration(limit.window)
        if counted in taken:
            errors.append(FieldError("counts the same as another one of these limits", f"{at}/{i}"))
        taken.add(counted)
        found.append(limit)
    return tuple(found)


def _parse_limit(raw: object, at: str, errors: list[FieldError], *, categories: bool) -> Limit | None:
    if not isinstance(raw, Mapping):
        errors.append(FieldError('must be an object such as {"max": 3, "window": "1d"}', at))
        return None
    before = len(errors)
    unknown = [str(name)[:80] for name in raw if name not in _FIELDS]
    errors += [FieldError(f"unknown field `{name}`", f"{at}/{escape(name)}") for name in unknown]
    most = raw.get("max")
    if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= LIMIT_MAX:
        errors.append(FieldError(f"must be a whole number from 1 to {LIMIT_MAX:,}", f"{at}/max"))
    window = _parse_window(raw.get("window"), f"{at}/window", errors)
    per = _one_of(raw, "per", ("user",), "user", at, errors)
    then = _one_of(raw, "then", THEN, "drop", at, errors)
    channel = _one_of(raw, "channel", tuple(Channel.__members__), None, at, errors)
    category = raw.get("category")
    if category is not None and not categories:
        errors.append(FieldError("only a project's limit can name a category", f"{at}/category"))
    elif category is not None and not (isinstance(category, str) and _KEY.fullmatch(category)):
        errors.append(FieldError("must be the key of a category", f"{at}/category"))
    exempt = raw.get("exempt")
    if exempt is None:
        exempt = EXEMPT
    elif not isinstance(exempt, Sequence) or isinstance(exempt, str) or any(name not in EXEMPT for name in exempt):
        errors.append(FieldError(f"must be a list of {', '.join(EXEMPT)}", f"{at}/exempt"))
    if window is not None and then in ("defer", "digest") and parse_duration(window) > DEFER_MAX:
        said = f"must be at most {to_duration(DEFER_MAX)} where what is too much waits (`{then}`)"
        errors.append(FieldError(said, f"{at}/window"))
    if len(errors) > before:
        return None
    assert isinstance(most, int)
    assert window is not None
    assert per is not None
    assert then is not None
    # in one order and each once, so that the same said differently is the same
    kept = tuple(name for name in EXEMPT if name in exempt)
    return Limit(max=most, window=window, per=per, channel=channel, category=category, then=then, exempt=kept)


def _parse_window(raw: object, at: str, errors: list[FieldError]) -> str | None:
    try:
        span = parse_duration(raw) if isinstance(raw, str) else None
    except ValueError as problem:
        errors.append(FieldError(str(problem), at))
        return None
    if span is None:
        errors.append(FieldError("must be a duration, such as 1h or 1d", at))
    elif not WINDOW_MIN <= span <= WINDOW_MAX or span.microseconds:
        errors.append(FieldError(f"must be whole seconds, from 1s to {to_duration(WINDOW_MAX)}", at))
    else:
        return to_duration(span)
    return None


def _one_of(
    raw: Mapping[Any, Any], name: str, values: Sequence[str], default: str | None, at: str, errors: list[FieldError]
) -> str | None:
    value = raw.get(name)
    if value is None:
        return default
    if value not in values:
        errors.append(FieldError(f"must be one of {', '.join(values)}", f"{at}/{name}"))
        return None
    return str(value)
