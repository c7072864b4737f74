"""Users and their addresses: somebody to tell, and where each channel reaches them.

Values come in as the `parse_` functions here and in `tidings.channels` give them; the web room applies those while it
reads a request, so that an error names its field.
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache, lru_cache
from typing import Any, Final

import msgspec
from babel import Locale
from babel.core import UnknownLocaleError

from tidings.db.pool import Connection, Database, Record
from tidings.db.sql import load_queries
from tidings.directory.audit import Actor, apply_audit
from tidings.directory.consent import delete_consents
from tidings.directory.topics import leave_topics
from tidings.errors import Conflict, NotFound
from tidings.model.words import Channel

_queries: Final = load_queries(__package__, "users.sql")
_CREATE_USER: Final = _queries.create_user
_LOCK_USER: Final = _queries.lock_user
_LOAD_USER: Final = _queries.load_user
_UPDATE_USER: Final = _queries.update_user
_LIST_USERS: Final = _queries.list_users
_DELETE_USER: Final = _queries.delete_user
_RESET_INBOX: Final = _queries.reset_inbox
_DELETE_INBOX: Final = _queries.delete_inbox
_DELETE_ENGAGEMENT: Final = _queries.delete_engagement
_DELETE_OTHER_ADDRESSES: Final = _queries.delete_other_addresses
_APPLY_ADDRESSES: Final = _queries.apply_addresses

USER_ID_MAX: Final = 255
ADDRESSES_MAX: Final = 20
"""Addresses of one user on one channel."""
ATTRIBUTES_MAX: Final = 16 * 1024
"""Bytes of a user's attributes as JSON."""
_REGION: Final = re.compile(r"([A-Z]{2})(-[A-Z0-9]{1,3})?")
_NO_COUNTRIES: Final = frozenset({"EU", "EZ", "QO", "UN", "XA", "XB", "ZZ"})
"""What CLDR names besides countries."""

Addresses = Mapping[Channel, Sequence[str]]


class User(msgspec.Struct, frozen=True):
    """Somebody to tell."""

    id: str
    locale: str | None
    """BCP 47, as in `de-AT`."""
    time_zone: str | None
    """A name of the IANA time zone database."""
    region: str | None
    """ISO 3166: a country, as in `DE`, or a part of one, as in `US-FL`."""
    attributes: dict[str, Any]
    addresses: dict[str, list[str]]
    """By the channel's name; without those that a provider said do not exist any more."""
    created_at: datetime
    updated_at: datetime


def parse_user_id(text: str) -> str:
    """The id of a user, as the application gave it.

    Raises:
        ValueError: it is empty, too long, `.` or `..` (which no URL can carry), or holds control characters.
    """
    if not 1 <= len(text) <= USER_ID_MAX:
        raise ValueError(f"must have 1 to {USER_ID_MAX} characters")
    if text in (".", ".."):
        raise ValueError("must not be `.` or `..`")
    if not text.isprintable() and any(ord(char) < 32 or 127 <= ord(char) < 160 for char in text):
        raise ValueError("must not contain control characters")
    return text


@lru_cache(maxsize=1024)
def _known_locale(text: str) -> str | None:
    try:
        return str(Locale.parse(text, sep="-")).replace("_", "-")
    except (ValueError, UnknownLocaleError):
        return None


def parse_locale(text: str) -> str:
    """The locale in its usual spelling (BCP 47): `de_at` gives `de-AT`.

    Raises:
        ValueError: CLDR has no such locale.
    """
    found = _known_locale(text.replace("_", "-")) if 2 <= len(text) <= 24 and text.isascii() else None
    if found is None:
        raise ValueError("is not a known locale; write a language, or a language and a country, such as de or de-AT")
    return found


@cache
def _time_zones() -> frozenset[str]:
    # `localtime` is this machine's own zone under a name that means another one elsewhere.
    return frozenset(zoneinfo.available_timezones()) - {"localtime"}


def parse_time_zone(text: str) -> str:
    """The time zone, if the IANA database has it.

    Raises:
        ValueError: it has not.
    """
    if text not in _time_zones():
        raise ValueError("is not a known time zone; write a name such as Europe/Vienna or UTC")
    return text


@cache
def _countries() -> frozenset[str]:
    return frozenset(name for name in map(str, Locale("en").territories) if len(name) == 2) - _NO_COUNTRIES


def parse_region(text: str) -> str:
    """The region in capitals, as ISO 3166 writes it: `us-fl` gives `US-FL`. Which parts a country has is not checked.

    Raises:
        ValueError: there is no such country.
    """
    found = _REGION.fullmatch(text.upper()) if text.isascii() else None
    if found is None or found[1] not in _countries():
        raise ValueError("is not a known region; write a country, or a country and a part of it, such as DE or US-FL")
    return found[0]


def parse_attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes, if they can be kept.

    Raises:
        ValueError: more than `ATTRIBUTES_MAX` bytes, or a NUL in a text.
    """
    encoded = msgspec.json.encode(attributes)
    if len(encoded) > ATTRIBUTES_MAX:
        raise ValueError(f"must be at most {ATTRIBUTES_MAX // 1024} kB of JSON; these are {len(encoded):,} bytes")
    if b"\\u0000" in encoded and _holds_nul(attributes):
        raise ValueError("must not contain the character NUL")
    return attributes


def _holds_nul(value: Any) -> bool:
    match value:
        case str():
            return "\0" in value
        case dict():
            return any(_holds_nul(key) or _holds_nul(item) for key, item in value.items())
        case list():
            return any(map(_holds_nul, value))
        case _:
            return False


async def put_user(
    conn: Connection,
    actor: Actor,
    user_id: str,
    *,
    locale: str | None = None,
    time_zone: str | None = None,
    region: str | None = None,
    attributes: dict[str, Any] | None = None,
    addresses: Addresses | None = None,
) -> tuple[User, bool]:
    """Makes the user, or replaces what is known of them; the second value says whether they are new.

    Args:
        addresses: the whole set; None leaves it as it is. The same as before changes nothing and leaves no trace.

    Raises:
        Conflict: the user was deleted at the same moment.
    """
    project_id = actor.project_id
    given = (locale, time_zone, region, attributes or {})
    made = await conn.fetchval(_CREATE_USER, project_id, user_id, *_to_columns(*given)) is not None
    before = await _lock_user(conn, project_id, user_id)
    if before is None:
        raise Conflict("The user was deleted at the same moment; repeat the request.")
    changed = (before.locale, before.time_zone, before.region, before.attributes) != given
    if addresses is not None:
        changed |= await _apply_addresses(conn, project_id, before, addresses)
    if not changed and not made:
        return before, False
    if changed:
        await conn.execute(_UPDATE_USER, project_id, user_id, *_to_columns(*given))
    after = await load_user(conn, project_id, user_id)
    await apply_audit(conn, actor, "user.put", f"user:{user_id}", after=_to_trail(None if made else before, after))
    return after, made


async def put_addresses(conn: Connection, actor: Actor, user_id: str, addresses: Addresses) -> User:
    """Replaces the whole set of the user's addresses. One that a provider had dropped is believed again when given.

    Raises:
        NotFound: this project has no such user.
    """
    before = await _lock_user(conn, actor.project_id, user_id)
    if before is None:
        raise NotFound("There is no such user in this project.")
    if not await _apply_addresses(conn, actor.project_id, before, addresses):
        return before
    await conn.execute(
        _UPDATE_USER,
        actor.project_id,
        user_id,
        *_to_columns(before.locale, before.time_zone, before.region, before.attributes),
    )
    after = await load_user(conn, actor.project_id, user_id)
    await apply_audit(conn, actor, "user.put_addresses", f"user:{user_id}", after=_to_trail(before, after))
    return after


async def load_user(db: Database | Connection, project_id: int, user_id: str) -> User:
    """One user.

    Raises:
        NotFound: this project has none with this id.
    """
    row = await db.fetchrow(_LOAD_USER, project_id, user_id)
    if row is None:
        raise NotFound("There is no such user in this project.")
    return _to_user(row)


async def list_users(
    db: Database | Connection, project_id: int, *, after: str | None = None, limit: int = 50
) -> list[User]:
    """The project's users by id; those after `after` (exclusive) when given."""
    return [_to_user(row) for row in await db.fetch(_LIST_USERS, project_id, after, limit)]


async def delete_user(conn: Connection, actor: Actor, user_id: str) -> None:
    """Forgets the user, their addresses, their inbox and what they decided.

    What was sent to them stays in the record of what was sent.

    Raises:
        NotFound: this project has no such user.
    """
    if not await forget_user(conn, actor.project_id, user_id):
        raise NotFound("There is no such user in this project.")
    # Whoever asks to be forgotten is not to be found in the trail of it either: the fact is kept, the data is not.
    await apply_audit(conn, actor, "user.delete", f"user:{user_id}", before={"id": user_id})


async def forget_user(conn: Connection, project_id: int, user_id: str) -> bool:
    """Deletes what the directory knows of a user, and their inbox; says whether there was such a user. What is left of
    one who was deleted before goes too."""
    known = await conn.fetchval(_LOCK_USER, project_id, user_id) is not None
    await conn.execute(_RESET_INBOX, project_id, user_id)
    await conn.execute(_DELETE_INBOX, project_id, user_id)
    await leave_topics(conn, project_id, user_id)
    await conn.execute(_DELETE_ENGAGEMENT, project_id, user_id)
    await delete_consents(conn, project_id, user_id)
    await conn.execute(_DELETE_USER, project_id, user_id)
    return known


def _to_trail(before: User | None, after: User) -> dict[str, list[str]]:
    """What the trail keeps of a change: which fields, not what stands in them. A trail is for ever, a user is not."""
    fields = [name for name in ("locale", "time_zone", "region") if getattr(before, name, None) != getattr(after, name)]
    for name in ("attributes", "addresses"):
        old, new = getattr(before, name, {}), getattr(after, name)
        fields += [f"{name}.{key}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return {"changed": fields}


async def _lock_user(conn: Connection, project_id: int, user_id: str) -> User | None:
    # Two statements: the first may wait for another writer, and only a later one sees what that writer committed.
    if await conn.fetchval(_LOCK_USER, project_id, user_id) is None:
        return None
    return await load_user(conn, project_id, user_id)


async def _apply_addresses(conn: Connection, project_id: int, before: User, addresses: Addresses) -> bool:
    """Replaces the set under the user's lock; says whether that changed anything."""
    pairs = sorted({(channel, value) for channel, values in addresses.items() for value in values})
    if pairs == sorted((Channel[name], value) for name, values in before.addresses.items() for value in values):
        return False
    columns = [int(channel) for channel, _ in pairs], [value for _, value in pairs]
    await conn.execute(_DELETE_OTHER_ADDRESSES, project_id, before.id, *columns)
    await conn.execute(_APPLY_ADDRESSES, project_id, before.id, *columns)
    return True


def _to_columns(
    locale: str | None, time_zone: str | None, region: str | None, attributes: dict[str, Any]
) -> tuple[str | None, str | None, str | None, str]:
    return locale, time_zone, region, msgspec.json.encode(attributes).decode()


def _to_user(row: Record) -> User:
    addresses = msgspec.json.decode(row["addresses"], type=dict[int, list[str]])
    return User(
        id=row["id"],
        locale=row["locale"],
        time_zone=row["time_zone"],
        region=row["region"],
        attributes=msgspec.json.decode(row["attributes"]),
        addresses={Channel(number).name: values for number, values in sorted(addresses.items())},
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
