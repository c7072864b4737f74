"""Identifiers: UUIDv7 inside (RFC 9562), TypeIDs outside (`ntf_01jd…`).

A child (delivery, event) takes the first eight bytes of its parent: the 48-bit time, the version and twelve random
bits. So one notification lives in one day's partition, and its children are a short range of the primary key; no
second index is needed to find them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base32, lower case
_PAIRS: Final = [a + b for a in _ALPHABET for b in _ALPHABET]
_VALUES: Final = {c: i for i, c in enumerate(_ALPHABET)}
_LOW64: Final = (1 << 64) - 1
_VARIANT: Final = 0b10 << 62
_RAND_B: Final = (1 << 62) - 1

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)

NOTIFICATION: Final = "ntf"
DELIVERY: Final = "dlv"
EVENT: Final = "evt"
BROADCAST: Final = "brd"
AUDIT: Final = "aud"
API_KEY: Final = "key"


def new_id(now: datetime, rng: random.Random) -> UUID:
    """A UUIDv7 for `now` (aware), with 74 bits from `rng`."""
    return id_from_ms((now - _EPOCH) // _MS, rng)


def id_from_ms(unix_ms: int, rng: random.Random) -> UUID:
    """A UUIDv7 for a time in milliseconds since 1970; the hot path's form of `new_id`."""
    bits = rng.getrandbits(74)
    return UUID(int=(unix_ms << 80) | (7 << 76) | ((bits >> 62) << 64) | _VARIANT | (bits & _RAND_B))


def child_id(parent: UUID, rng: random.Random) -> UUID:
    """A UUIDv7 that shares its first eight bytes with `parent`."""
    return UUID(int=(parent.int & ~_LOW64) | _VARIANT | rng.getrandbits(62))


def family_range(parent: UUID) -> tuple[UUID, UUID]:
    """The smallest and largest id that `parent` or one of its children can have."""
    return UUID(int=parent.int & ~_LOW64), UUID(int=parent.int | _LOW64)


def family_bounds(ids: Iterable[UUID]) -> tuple[UUID, UUID]:
    """Bounds around the families of many ids: $min and $max of every statement on the partitioned tables."""
    numbers = [id_.int for id_ in ids]
    return UUID(int=min(numbers) & ~_LOW64), UUID(int=max(numbers) | _LOW64)


def first_id_at(at: datetime) -> UUID:
    """The smallest id of the millisecond of `at`: a partition bound, or the start of a `since` filter. The smallest of
    all for a time before 1970."""
    return UUID(int=max(0, (at - _EPOCH) // _MS) << 80)


def time_of(id_: UUID) -> datetime:
    """When the id was made, to the millisecond."""
    return _EPOCH + (id_.int >> 80) * _MS


def to_public(prefix: str, id_: UUID) -> str:
    """The TypeID: prefix, underscore, 26 characters of base32. See https://github.com/jetify-com/typeid (spec)."""
    n = id_.int
    p = _PAIRS
    return (
        f"{prefix}_{p[n >> 120]}{p[n >> 110 & 1023]}{p[n >> 100 & 1023]}{p[n >> 90 & 1023]}{p[n >> 80 & 1023]}"
        f"{p[n >> 70 & 1023]}{p[n >> 60 & 1023]}{p[n >> 50 & 1023]}{p[n >> 40 & 1023]}{p[n >> 30 & 1023]}"
        f"{p[n >> 20 & 1023]}{p[n >> 10 & 1023]}{p[n & 1023]}"
    )


def parse_public(prefix: str, text: str) -> UUID | None:
    """The UUID of a TypeID with this prefix; None when it is not one."""
    head, _, tail = text.partition("_")
    if head != prefix or len(tail) != 26 or tail[0] > "7":
        return None
    n = 0
    for char in tail:
        value = _VALUES.get(char)
        if value is None:
            return None
        n = n << 5 | value
    return UUID(int=n)
