"""Imports: many users from a file, as NDJSON or CSV, in parts that are committed one by one.

A line that cannot be taken is reported with its number and spoils no other. What a line does not say stays as it was:
of attributes those that it names are replaced, of addresses those of the channels that it names, and topics are added.
So importing a file again changes nothing, and is what to do after a failure half-way.

What is text in a CSV file stays text, whatever a spreadsheet would take it for.
"""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, Final, NamedTuple

import asyncpg
import msgspec

from tidings.channels import CHANNELS
from tidings.db.pool import Connection, Database
from tidings.db.sql import load_queries
from tidings.directory.audit import Actor, apply_audit
from tidings.directory.users import (
    ADDRESSES_MAX,
    parse_attributes,
    parse_locale,
    parse_region,
    parse_time_zone,
    parse_user_id,
)
from tidings.errors import FieldError, Invalid, escape
from tidings.model.topics import parse_topic_key
from tidings.model.words import Channel

_queries: Final = load_queries(__package__, "imports.sql")
_UPSERT_USERS: Final = _queries.upsert_users
_HOLD_IMPORTED: Final = _queries.hold_imported
_DELETE_REPLACED_ADDRESSES: Final = _queries.delete_replaced_addresses
_UPSERT_ADDRESSES: Final = _queries.upsert_addresses
_INSERT_TOPICS: Final = _queries.insert_topics
_INSERT_MEMBERS: Final = _queries.insert_members

FILE_MAX: Final = 200 * 1024 * 1024
"""Octets of a file."""
LINE_MAX: Final = 128 * 1024
"""Octets of a line of NDJSON; characters of a row of CSV."""
COLUMNS_MAX: Final = 500
CHUNK: Final = 1_000
"""Users of one transaction."""
ERRORS_MAX: Final = 1_000
"""Errors that are told; the rest is only counted."""
TOPICS_MAX: Final = 100
"""Topics that one line may name."""
BREATH: Final = 50
"""Lines after which others get their turn."""

_COLUMNS: Final = ("id", "email", "phone", "locale", "time_zone", "region", "topics")
_ATTRIBUTES: Final = "attributes."


class LineError(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is wrong with a line."""

    line: int
    """Counted from 1; where its record begins."""
    detail: str
    pointer: str | None = None


class Imported(msgspec.Struct):
    """What became of a file."""

    imported: int = 0
    """Lines that were taken."""
    changed: int = 0
    """Users who were made or changed by them."""
    failed: int = 0
    """Lines that were not."""
    errors: list[LineError] = []

    def refuse(self, line: int, errors: Sequence[FieldError]) -> None:
        """A line could not be taken."""
        self.failed += 1
        room = ERRORS_MAX - len(self.errors)
        self.errors += [LineError(line, error.detail, error.pointer) for error in errors[:room]]


_Device = str | dict[str, Any]


class _Addresses(msgspec.Struct, forbid_unknown_fields=True):
    email: str | list[str] | None = None
    sms: str | list[str] | None = None
    phone: str | list[str] | None = None
    push: _Device | list[_Device] | None = None
    webhook: str | list[str] | None = None
    chat: str | list[str] | None = None


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """A user as a line gives them."""

    id: str
    locale: str | None = None
    time_zone: str | None = None
    region: str | None = None
    attributes: dict[str, Any] | None = None
    addresses: _Addresses | None = None
    email: str | list[str] | None = None
    phone: str | list[str] | None = None
    topics: list[str] = []


class _User(NamedTuple):
    """A line that can be taken."""

    line: int
    id: str
    locale: str | None
    time_zone: str | None
    region: str | None
    attributes: str
    addresses: Mapping[Channel, Sequence[str]]
    topics: Sequence[str]


_Read = tuple[int, _Line | list[FieldError]]

_decode: Final = msgspec.json.Decoder(_Line).decode
_encode: Final = msgspec.json.Encoder().encode


async def import_users(database: Database, actor: Actor, file: IO[bytes], *, as_csv: bool) -> Imported:
    """Makes and changes the users of a file, `CHUNK` at a time; one row in the audit trail tells of all of them.

    Args:
        file: open at its beginning.
        as_csv: CSV with a header line; else NDJSON.

    Raises:
        Invalid: the CSV's header cannot be used. Nothing was imported.
    """
    told = Imported(errors=[])
    chunk: dict[str, _User] = {}
    lines = _read_csv(file) if as_csv else _read_ndjson(file)
    try:
        for n, (number, read) in enumerate(lines):
            if n % BREATH == 0:
                await asyncio.sleep(0)
            user = read if isinstance(read, list) else _parse(number, read)
            if isinstance(user, list):
                told.refuse(number, user)
                continue
            if len(chunk) >= CHUNK or user.id in chunk:
                await _store(database, actor, list(chunk.values()), told)
                chunk.clear()
            chunk[user.id] = user
        if chunk:
            await _store(database, actor, list(chunk.values()), told)
    finally:
        if told.imported:
            after = {"imported": told.imported, "changed": told.changed, "failed": told.failed}
            await database.transaction(lambda conn: apply_audit(conn, actor, "user.import", "users", after=after))
    return told


# ---------------------------------------------------------------- reading


def _read_ndjson(file: IO[bytes]) -> Iterator[_Read]:
    number = 0
    while line := file.readline(LINE_MAX + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if len(line) > LINE_MAX:
            while not line.endswith(b"\n") and (line := file.readline(LINE_MAX)):
                pass
            yield number, [FieldError(f"is longer than {LINE_MAX // 1024} kB")]
        elif line.strip():
            yield number, _decode_line(line)


def _decode_line(line: bytes) -> _Line | list[FieldError]:
    try:
        return _decode(line)
    except msgspec.ValidationError as error:
        return [_explain(error)]
    except UnicodeDecodeError:
        return [FieldError("is not valid UTF-8")]
    except RecursionError:
        return [FieldError("is nested too deeply")]
    except msgspec.DecodeError as error:
        return [FieldError(f"is not valid JSON: {error}")]


def _explain(error: msgspec.ValidationError) -> FieldError:
    """msgspec's message (`… - at `$.addresses.email``) with a pointer."""
    said, _, path = str(error).partition(" - at `$")
    pointer = path.rstrip("`").partition("[...]")[0].replace(".", "/").replace("[", "/").replace("]", "")
    return FieldError(said[:1].lower() + said[1:], pointer or None)


def _read_csv(file: IO[bytes]) -> Iterator[_Read]:
    # What is no UTF-8 is kept as lone surrogates, and told with its line.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        head = text.readline(LINE_MAX)
        delimiter = max(",;\t", key=head.count)
        try:
            columns = _parse_header(next(csv.reader([head], delimiter=delimiter), []))
        except csv.Error as error:
            raise Invalid("The first line of the file, its header, cannot be used.") from error
        lines = _Lines(text)
        rows = csv.reader(lines, delimiter=delimiter)
        while True:
            number = lines.begin()
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, [FieldError(f"is not valid CSV: {error}")]
                continue
            if cells:
                yield number, _to_line(columns, cells)
    finally:
        text.detach()  # the file is the caller's


class _Lines(Iterator[str]):
    """The lines behind the header, for a reader of rows. None is ever held in memory that is longer than `LINE_MAX`, be
    it one row of many lines."""

    def __init__(self, text: io.TextIOBase) -> None:
        self._text = text
        self._line = 1
        self._room = LINE_MAX

    def begin(self) -> int:
        """A row begins; answers with the number of its first line."""
        self._room = LINE_MAX
        return self._line + 1

    def __next__(self) -> str:
        line = self._text.readline(self._room + 1)
        if not line:
            raise StopIteration
        self._line += 1
        self._room -= len(line)
        if self._room < 0:
            while not line.endswith(("\n", "\r")) and (line := self._text.readline(LINE_MAX)):
                pass
            raise csv.Error(f"a row has at most {LINE_MAX // 1024} kB")
        return line


def _parse_header(columns: list[str]) -> list[str]:
    columns = [column.strip() for column in columns]
    errors = []
    if len(columns) > COLUMNS_MAX:
        raise Invalid(f"The first line of the file, its header, has more than {COLUMNS_MAX} columns.")
    for i, column in enumerate(columns):
        if column in columns[:i]:
            errors.append(FieldError("stands there twice", f"/{escape(column)}"))
        elif column not in _COLUMNS and not (column.startswith(_ATTRIBUTES) and all(column.split("."))):
            known = ", ".join([*_COLUMNS, "attributes.<name>"])
            errors.append(FieldError(f"is no column; there are {known}", f"/{escape(column[:80])}"))
    if "id" not in columns:
        errors.append(FieldError("the header needs a column `id`", "/id"))
    if errors:
        raise Invalid("The first line of the file, its header, cannot be used.", errors=errors)
    return columns


def _to_line(columns: Sequence[str], cells: Sequence[str]) -> _Line | list[FieldError]:
    """A row; what is empty says nothing."""
    if len(cells) != len(columns):
        return [FieldError(f"has {len(cells)} cells; the header has {len(columns)}")]
    given = {column: cell for column, cell in zip(columns, cells, strict=True) if cell}
    try:
        "".join(given.values()).encode()
    except UnicodeEncodeError:
        return [FieldError("is not valid UTF-8")]
    attributes: dict[str, Any] = {}
    for column, cell in given.items():
        if column.startswith(_ATTRIBUTES):
            *path, name = column.removeprefix(_ATTRIBUTES).split(".")
            inner = attributes
            for part in path:
                inner = inner.setdefault(part, {})
                if not isinstance(inner, dict):
                    return [FieldError("is an attribute, and cannot hold others", f"/{escape(column)}")]
            inner[name] = cell
    topics = [topic.strip() for topic in given.get("topics", "").replace(";", " ").split()]
    return _Line(
        id=given.get("id", ""),
        locale=given.get("locale"),
        time_zone=given.get("time_zone"),
        region=given.get("region"),
        attributes=attributes or None,
        email=given.get("email"),
        phone=given.get("phone"),
        topics=topics,
    )


# ---------------------------------------------------------------- checking


def _parse(number: int, line: _Line) -> _User | list[FieldError]:
    """The line as the directory takes it, or all that is wrong with it."""
    errors: list[FieldError] = []

    def check(parse: Any, value: Any, pointer: str) -> Any:
        if value is None:
            return None
        try:
            return parse(value)
        except ValueError as error:
            errors.append(FieldError(str(error), pointer))
            return None

    id_ = check(_parse_id, line.id, "/id")
    locale = check(parse_locale, line.locale, "/locale")
    time_zone = check(parse_time_zone, line.time_zone, "/time_zone")
    region = check(parse_region, line.region, "/region")
    attributes = check(parse_attributes, line.attributes, "/attributes")
    addresses: dict[Channel, list[str]] = {}
    own = line.addresses or _Addresses()
    for channel, given, pointer in (
        (Channel.email, line.email, "/email"),
        (Channel.email, own.email, "/addresses/email"),
        (Channel.sms, line.phone, "/phone"),
        (Channel.sms, own.sms, "/addresses/sms"),
        (Channel.sms, own.phone, "/addresses/phone"),
        (Channel.push, own.push, "/addresses/push"),
        (Channel.webhook, own.webhook, "/addresses/webhook"),
        (Channel.chat, own.chat, "/addresses/chat"),
    ):
        if given is None:
            continue
        found = addresses.setdefault(channel, [])
        several = isinstance(given, list)
        for i, one in enumerate(given if isinstance(given, list) else [given]):
            text = _encode(one).decode() if isinstance(one, dict) else one
            found.append(check(CHANNELS[channel].parse_address, text, f"{pointer}/{i}" if several else pointer))
        if len(found) > ADDRESSES_MAX:
            errors.append(FieldError(f"a user has at most {ADDRESSES_MAX} addresses on a channel", pointer))
    topics = [check(parse_topic_key, topic, f"/topics/{i}") for i, topic in enumerate(line.topics[: TOPICS_MAX + 1])]
    if len(topics) > TOPICS_MAX:
        errors.append(FieldError(f"at most {TOPICS_MAX} topics are taken from one line", "/topics"))
    if errors:
        return errors
    return _User(number, id_, locale, time_zone, region, _encode(attributes or {}).decode(), addresses, topics)


def _parse_id(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain the character NUL")
    return parse_user_id(text)


# ---------------------------------------------------------------- storing


async def _store(database: Database, actor: Actor, users: Sequence[_User], told: Imported) -> None:
    """One part of the file. Should the database refuse it all the same, it is halved until the bad line is left."""
    try:
        told.changed += await database.transaction(lambda conn: _apply(conn, actor.project_id, users))
        told.imported += len(users)
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
        if len(users) > 1:
            middle = len(users) // 2
            await _store(database, actor, users[:middle], told)
            await _store(database, actor, users[middle:], told)
        else:
            said = "a topic was deleted at the same moment; import the line again"
            if not isinstance(error, asyncpg.ForeignKeyViolationError):
                said = "cannot be stored"
            told.refuse(users[0].line, [FieldError(said)])


async def _apply(conn: Connection, project_id: int, users: Sequence[_User]) -> int:
    """Answers with how many were made or changed."""
    rows = await conn.fetch(
        _UPSERT_USERS,
        project_id,
        [user.id for user in users],
        [user.locale for user in users],
        [user.time_zone for user in users],
        [user.region for user in users],
        [user.attributes for user in users],
    )
    changed = {row["id"] for row in rows}
    given = [(user.id, int(channel)) for user in users for channel in user.addresses]
    addresses = sorted(
        {
            (user.id, int(channel), value)
            for user in users
            for channel, values in user.addresses.items()
            for value in values
        }
    )
    topics = sorted({(topic, user.id) for user in users for topic in user.topics})
    if given or topics:
        await conn.execute(_HOLD_IMPORTED, project_id, [user.id for user in users if user.addresses or user.topics])
    if given:
        columns = _columns(addresses, 3)
        gone = await conn.fetch(_DELETE_REPLACED_ADDRESSES, project_id, *_columns(given, 2), *columns)
        new = await conn.fetch(_UPSERT_ADDRESSES, project_id, *columns)
        changed.update(row["user_id"] for row in (*gone, *new))
    if topics:
        await conn.execute(_INSERT_TOPICS, project_id, sorted({key for key, _ in topics}))
        rows = await conn.fetch(_INSERT_MEMBERS, project_id, *_columns(topics, 2))
        changed.update(row["user_id"] for row in rows)
    return len(changed)


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [[row[i] for row in rows] for i in range(width)]
