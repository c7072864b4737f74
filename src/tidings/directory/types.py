"""Types: what is told. A type's definition is never changed: what is put again differently is its next version.

A notification pins the version that was current when it was accepted, so nobody changes what is under way. What this
version of Tidings cannot do yet is refused by name: a definition that is half understood would send the wrong thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import jsonschema_rs
import msgspec

from tidings.db.pool import Connection, Database, Record
from tidings.db.sql import load_queries
from tidings.directory.accounts import notify_config
from tidings.directory.audit import Actor, apply_audit
from tidings.directory.digests import DigestRule, parse_digest
from tidings.directory.limits import Limit, parse_limits
from tidings.directory.quiet import SendTime, parse_send_time
from tidings.directory.steps import parse_steps
from tidings.durations import parse_duration, to_duration
from tidings.errors import Conflict, FieldError, Invalid, NotFound, escape
from tidings.model.words import Channel, Guarantee, Priority

_queries: Final = load_queries(__package__, "types.sql")
_LOCK_CATEGORY_OF_TYPE: Final = _queries.lock_category_of_type
_LOCK_TEMPLATE_OF_TYPE: Final = _queries.lock_template_of_type
_CREATE_TYPE: Final = _queries.create_type
_LOCK_TYPE: Final = _queries.lock_type
_CREATE_TYPE_VERSION: Final = _queries.create_type_version
_UPDATE_TYPE: Final = _queries.update_type
_ARCHIVE_TYPE: Final = _queries.archive_type
_LOAD_TYPE: Final = _queries.load_type
_LIST_TYPES: Final = _queries.list_types
_LIST_TYPE_VERSIONS: Final = _queries.list_type_versions

QUIET: Final = ("wait", "digest", "ignore")
"""What becomes of a notification in quiet hours."""
SCHEMA_MAX: Final = 32 * 1024
"""Octets of a data schema."""
SCHEMA_PARTS_MAX: Final = 2_000
"""Objects in a data schema once every `$ref` is written out: what checking one value may take."""
SCHEMA_DEPTH_MAX: Final = 64
DATA_ERRORS_MAX: Final = 20

_PATTERN_LIMITS: Final = jsonschema_rs.RegexOptions(size_limit=1 << 20, dfa_size_limit=1 << 20)
"""Also chooses the engine that matches in linear time: no pattern can make it backtrack."""


class Definition(msgspec.Struct, frozen=True):
    """What a type is, in its normal form: as it is stored and shown."""

    category: str
    template: str
    priority: str = Priority.medium.name
    steps: list[dict[str, Any]] = []
    """`[{"send": ["email"]}]`, see `tidings.directory.steps`; empty: every channel that the template covers."""
    expires_after: str | None = None
    guarantee: str = Guarantee.at_least_once.value
    critical: bool = False
    """Keys without the scope `send:critical` may send it as critical."""
    schema: dict[str, Any] | None = None
    tracking: bool = True
    """Whether opens and clicks may be watched, where the project does so; never for mails with passwords or codes."""
    digest: DigestRule | None = None
    limits: tuple[Limit, ...] = ()
    quiet: str = "wait"
    """Of QUIET."""
    preferences: dict[str, bool] = {}
    """By channel: what holds for this type instead of the category's defaults, unless the user says otherwise."""
    send_time: SendTime | None = None


class Type(msgspec.Struct, frozen=True):
    """One version of a type."""

    key: str
    version: int
    category: str
    template: str
    priority: str
    steps: list[dict[str, Any]]
    expires_after: str | None
    guarantee: str
    critical: bool
    schema: dict[str, Any] | None
    tracking: bool
    digest: DigestRule | None
    limits: tuple[Limit, ...]
    quiet: str
    preferences: dict[str, bool]
    send_time: SendTime | None
    created_at: datetime
    """When this version was made."""
    archived_at: datetime | None
    """Since when nothing new is sent with the type."""


def parse_definition(key: str, raw: Mapping[str, Any], retention: timedelta) -> Definition:
    """A definition in its normal form.

    Args:
        key: the type's; also the name of its template where none is given.
        raw: fields of the right JSON types; unknown ones have been refused.
        retention: `expires_after` must end a day before it.

    Raises:
        Invalid: one error per thing to mend.
    """
    errors: list[FieldError] = []
    priority = raw.get("priority") or Priority.medium.name
    if priority not in Priority.__members__:
        errors.append(FieldError(f"must be one of {', '.join(Priority.__members__)}", "/priority"))
    guarantee = raw.get("guarantee") or Guarantee.at_least_once.value
    if guarantee not in list(Guarantee):
        errors.append(FieldError(f"must be one of {', '.join(Guarantee)}", "/guarantee"))
    steps = parse_steps(raw.get("steps") or [], "/steps", errors, longest=retention - timedelta(days=1))
    expires_after = _parse_expiry(raw.get("expires_after"), retention, errors)
    schema = raw.get("schema")
    if schema is not None:
        try:
            compile_schema(schema)
        except Invalid as problem:
            errors += problem.errors
    digest = limits = send_time = None
    if raw.get("digest") is not None:
        digest = parse_digest(raw["digest"], "/digest", retention - timedelta(days=1), errors)
    if raw.get("limits") is not None:
        limits = parse_limits(raw["limits"], "/limits", errors)
    if raw.get("send_time") is not None:
        send_time = parse_send_time(raw["send_time"], "/send_time", errors)
    quiet = raw.get("quiet") or "wait"
    if quiet not in QUIET:
        errors.append(FieldError(f"must be one of {', '.join(QUIET)}", "/quiet"))
    preferences = parse_defaults(raw.get("preferences") or {}, "/preferences", errors)
    if errors:
        raise Invalid("The type cannot be used as it is.", errors=errors)
    return Definition(
        category=raw["category"],
        template=raw.get("template") or key,
        priority=priority,
        steps=steps,
        expires_after=expires_after,
        guarantee=guarantee,
        # a type that is critical by itself needs no further leave
        critical=bool(raw.get("critical")) or priority == Priority.critical.name,
        schema=schema,
        tracking=raw.get("tracking") is not False,
        digest=digest,
        limits=limits or (),
        quiet=quiet,
        preferences=preferences,
        send_time=send_time,
    )


def parse_defaults(raw: object, at: str, errors: list[FieldError]) -> dict[str, bool]:
    """Defaults by channel, as types, categories and projects have them; errors have pointers under `at`."""
    if not isinstance(raw, Mapping):
        errors.append(FieldError('must be an object such as {"sms": false}', at))
        return {}
    defaults = {}
    for name, value in raw.items():
        if name not in Channel.__members__:
            errors.append(FieldError(f"must be one of {', '.join(Channel.__members__)}", f"{at}/{escape(str(name))}"))
        elif not isinstance(value, bool):
            errors.append(FieldError("must be true or false", f"{at}/{name}"))
        else:
            defaults[name] = value
    return defaults


def _parse_expiry(text: str | None, retention: timedelta, errors: list[FieldError]) -> str | None:
    if text is None:
        return None
    longest = retention - timedelta(days=1)
    try:
        span = parse_duration(text)
    except (ValueError, OverflowError) as problem:
        errors.append(FieldError(str(problem), "/expires_after"))
        return None
    if not timedelta(seconds=1) <= span <= longest:
        detail = f"must be from 1s to {to_duration(longest)}, a day less than notifications are kept"
        errors.append(FieldError(detail, "/expires_after"))
    return to_duration(span)


# ---------------------------------------------------------------- data schemas


class DataSchema:
    """A compiled data schema."""

    __slots__ = ("_validator",)

    def __init__(self, validator: jsonschema_rs.Validator) -> None:
        self._validator = validator

    def check(self, data: Mapping[str, Any]) -> list[FieldError]:
        """What is wrong with the data, with pointers into them; up to DATA_ERRORS_MAX. Repeats no value."""
        if self._validator.is_valid(data):
            return []
        errors: list[FieldError] = []
        for error in self._validator.iter_errors(data):
            pointer = "".join(f"/{escape(part)}" for part in error.instance_path)
            errors.append(FieldError(error.message[:300], pointer))
            if len(errors) == DATA_ERRORS_MAX:
                break
        return errors


def compile_schema(schema: Mapping[str, Any]) -> DataSchema:
    """The schema, JSON Schema 2020-12 unless its `$schema` says otherwise.

    Nothing is fetched. Schemas come from customers and data from anybody, so checking is bounded: a `$ref` leads to
    `#/…` in the schema itself and never back to where it stands, patterns match in linear time.

    Raises:
        Invalid: with pointers under `/schema`.
    """
    document = dict(schema)
    if len(msgspec.json.encode(document)) > SCHEMA_MAX:
        raise Invalid(errors=[FieldError(f"is larger than {SCHEMA_MAX:,} octets", "/schema")])
    _count_parts(document, document, "", {})
    try:
        validator = jsonschema_rs.validator_for(
            document, offline=True, validate_formats=True, pattern_options=_PATTERN_LIMITS, mask="the value"
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        path = error.instance_path if isinstance(error, jsonschema_rs.ValidationError) else []
        pointer = "/schema" + "".join(f"/{escape(part)}" for part in path)
        reason = str(getattr(error, "message", error))[:300]
        raise Invalid(errors=[FieldError(f"is no JSON Schema: {reason}", pointer)]) from None
    return DataSchema(validator)


_OPEN: Final = -1


def _count_parts(document: Any, part: Any, at: str, counted: dict[str, int], depth: int = 0) -> int:
    """The objects in `part` with its references written out.

    Two references to two references and so on are checked exponentially often, and so is what refers to itself.
    """
    if depth > SCHEMA_DEPTH_MAX:
        raise Invalid(errors=[FieldError(f"is nested more than {SCHEMA_DEPTH_MAX} deep", "/schema")])
    if isinstance(part, list):
        return sum(_count_parts(document, item, f"{at}/{i}", counted, depth + 1) for i, item in enumerate(part))
    if not isinstance(part, dict):
        return 0
    known = counted.get(at)
    if known == _OPEN:
        raise Invalid(errors=[FieldError("schemas that refer to themselves are not supported", "/schema" + at)])
    if known is not None:
        return known
    counted[at] = _OPEN
    total = 1
    for name, value in part.items():
        here = f"{at}/{escape(name)}"
        if name in ("$dynamicRef", "$recursiveRef", "$id", "$anchor", "$dynamicAnchor") and isinstance(value, str):
            raise Invalid(errors=[FieldError(f"`{name}` is not supported in data schemas", "/schema" + here)])
        if name == "$ref" and isinstance(value, str):
            if value == "#":
                raise Invalid(
                    errors=[FieldError("schemas that refer to themselves are not supported", "/schema" + here)]
                )
            if not value.startswith("#/"):
                raise Invalid(
                    errors=[FieldError("must lead to `#/…` in this schema; nothing is fetched", "/schema" + here)]
                )
            target = _follow(document, value[1:])
            if target is None:
                raise Invalid(errors=[FieldError(f"{value} leads nowhere", "/schema" + here)])
            total += _count_parts(document, target[1], target[0], counted, depth + 1)
        else:
            total += _count_parts(document, value, here, counted, depth + 1)
        if total > SCHEMA_PARTS_MAX:
            detail = f"has more than {SCHEMA_PARTS_MAX:,} parts once its references are written out"
            raise Invalid(errors=[FieldError(detail, "/schema" + at)])
    counted[at] = total
    return total


def _follow(document: Any, pointer: str) -> tuple[str, Any] | None:
    """The place that a `$ref`'s pointer leads to, with the pointer in its normal form."""
    part, path = document, ""
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if "%" in name:  # percent-encoded; nobody needs that here
            return None
        if isinstance(part, dict) and name in part:
            part = part[name]
        elif isinstance(part, list) and name.isdecimal() and int(name) < len(part):
            part, name = part[int(name)], str(int(name))
        else:
            return None
        path += f"/{escape(name)}"
    return path, part


# ---------------------------------------------------------------- types


async def put_type(conn: Connection, actor: Actor, key: str, definition: Definition) -> tuple[Type, bool]:
    """Makes the type, or its next version if anything changed; the second value says whether the type is new.

    An archived type is in use again.

    Raises:
        Invalid: there is no such category or template.
    """
    errors = []
    if await conn.fetchrow(_LOCK_CATEGORY_OF_TYPE, actor.project_id, definition.category) is None:
        errors.append(FieldError(f"there is no category {definition.category!r}; make it first", "/category"))
    if await conn.fetchrow(_LOCK_TEMPLATE_OF_TYPE, actor.project_id, definition.template) is None:
        errors.append(FieldError(f"there is no template {definition.template!r}; make it first", "/template"))
    if errors:
        raise Invalid("The type names what is not there.", errors=errors)
    before: Type | None = None
    version = 1
    if await conn.fetchrow(_CREATE_TYPE, actor.project_id, key) is None:
        locked = await conn.fetchrow(_LOCK_TYPE, actor.project_id, key)
        if locked is None:
            raise Conflict("The type was changed at the same moment; repeat the request.")
        before = await load_type(conn, actor.project_id, key)
        version = before.version
        if _definition_of(before) != definition:
            version += 1
        elif before.archived_at is None:
            return before, False
    if before is None or version != before.version:
        await conn.execute(
            _CREATE_TYPE_VERSION,
            actor.project_id,
            key,
            version,
            msgspec.json.encode(definition).decode(),
            definition.category,
            definition.template,
        )
    await conn.execute(_UPDATE_TYPE, actor.project_id, key, version)
    after = await load_type(conn, actor.project_id, key)
    await apply_audit(conn, actor, "type.put", f"type:{key}", before=before, after=after)
    await notify_config(conn, actor.project_id)
    return after, before is None


async def load_type(db: Database | Connection, project_id: int, key: str) -> Type:
    """The current version of a type, archived or not.

    Raises:
        NotFound: this project has none with this key.
    """
    row = await db.fetchrow(_LOAD_TYPE, project_id, key)
    if row is None:
        raise NotFound("There is no such type in this project.")
    return _to_type(row)


async def list_types(
    db: Database | Connection, project_id: int, *, after: str | None = None, limit: int = 50
) -> list[Type]:
    """The current versions of the types in use, by key; those after `after` (exclusive) when given."""
    return [_to_type(row) for row in await db.fetch(_LIST_TYPES, project_id, after, limit)]


async def list_type_versions(
    db: Database | Connection, project_id: int, key: str, *, before: int | None = None, limit: int = 50
) -> list[Type]:
    """All versions of a type, the newest first; those before `before` (exclusive) when given.

    Raises:
        NotFound: this project has none with this key.
    """
    rows = await db.fetch(_LIST_TYPE_VERSIONS, project_id, key, before, limit)
    if not rows and before is None:
        raise NotFound("There is no such type in this project.")
    return [_to_type(row) for row in rows]


async def archive_type(conn: Connection, actor: Actor, key: str) -> None:
    """Ends the use of a type: nothing new is accepted with it, and what was accepted goes its way.

    Doing it again changes nothing.

    Raises:
        NotFound: this project has none with this key.
    """
    before = await load_type(conn, actor.project_id, key)
    if await conn.execute(_ARCHIVE_TYPE, actor.project_id, key) == "UPDATE 0":
        return
    after = await load_type(conn, actor.project_id, key)
    await apply_audit(conn, actor, "type.archive", f"type:{key}", before=before, after=after)
    await notify_config(conn, actor.project_id)


def _to_type(row: Record) -> Type:
    definition = msgspec.json.decode(row["definition"], type=Definition)
    return Type(
        key=row["key"],
        version=row["version"],
        **{name: getattr(definition, name) for name in definition.__struct_fields__},
        created_at=row["created_at"],
        archived_at=row["archived_at"],
    )


def _definition_of(type_: Type) -> Definition:
    return Definition(**{name: getattr(type_, name) for name in Definition.__struct_fields__})
