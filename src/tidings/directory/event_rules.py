"""Event rules: which events become which notifications, for whom, with which data.

Where a rule takes something out of an event it names it by a path (`data.customer.id`, `subject`; see
`tidings.model.cloud_events`). What comes of an event is `tidings.flow.events`'.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal

import msgspec

from tidings.db.pool import Connection, Database, Record
from tidings.db.sql import load_queries
from tidings.directory.accounts import notify_config
from tidings.directory.audit import Actor, apply_audit
from tidings.errors import Conflict, FieldError, Invalid, NotFound, escape
from tidings.model.cloud_events import CloudEvent, parse_path
from tidings.model.conditions import parse_condition

_queries: Final = load_queries(__package__, "event_rules.sql")
_CREATE_EVENT_RULE: Final = _queries.create_event_rule
_COUNT_EVENT_RULES: Final = _queries.count_event_rules
_FIND_RULE_TYPE: Final = _queries.find_rule_type
_LOCK_EVENT_RULE: Final = _queries.lock_event_rule
_UPDATE_EVENT_RULE: Final = _queries.update_event_rule
_LOAD_EVENT_RULE: Final = _queries.load_event_rule
_LIST_EVENT_RULES: Final = _queries.list_event_rules
_DELETE_EVENT_RULE: Final = _queries.delete_event_rule

RULES_MAX: Final = 100
"""Rules of one project: each event is held against every one."""
NAMES_MAX: Final = 50
"""Names in `data` and in `metadata`."""
TEXT_MAX: Final = 255
"""Characters of a pattern, and of a text with paths in it."""
SUBJECTS: Final = frozenset({"data"})
"""What the condition of a rule asks about."""

_BRACED: Final = re.compile(r"\{([^{}]*)\}")


class EventPattern(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which events: each is exact, or a beginning with `*` behind it."""

    type: str
    source: str | None = None


class EventRule(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rule in its normal form."""

    event: EventPattern
    type: str
    """Of the notification."""
    user: str
    """The path of the user's id."""
    when: dict[str, Any] | None = None
    """A condition (`tidings.model.conditions`) on the event's data."""
    data: dict[str, str] | None = None
    """By the template's variable the path of its value. None: the event's data as they are."""
    once: str | None = None
    """A send-once key; may have paths in braces."""
    priority: Literal["critical", "high", "medium", "low"] | None = None
    metadata: dict[str, str] | None = None
    """Texts; may have paths in braces."""

    def matches(self, event: CloudEvent) -> bool:
        """Whether type and source fit; the condition is not asked."""
        return _fits(self.event.type, event.type) and (
            self.event.source is None or _fits(self.event.source, event.source)
        )


class StoredRule(msgspec.Struct, frozen=True):
    """A rule of a project."""

    key: str
    rule: EventRule
    enabled: bool
    created_at: datetime
    updated_at: datetime


def parse_rule(raw: Mapping[str, Any]) -> EventRule:
    """A rule as it is given: `{"event": {"type", "source"?}, "when"?, "type", "to": {"user": path}, "data"?, "once"?,
    "priority"?, "metadata"?}`.

    Raises:
        Invalid: one error per thing to mend, with pointers.
    """
    errors: list[FieldError] = []
    event = raw["event"]
    for name in ("type", "source"):
        _check_pattern(event.get(name), f"/event/{name}", errors)
    when = raw.get("when")
    if when is not None:
        when = parse_condition(when, "/when", errors, subjects=SUBJECTS)
    to = raw["to"]
    for name in to:
        if name in ("topic", "segment", "users", "all"):
            said = "a rule tells one user of each event; to tell many, send a broadcast when the event comes"
            errors.append(FieldError(said, f"/to/{name}"))
        elif name != "user":
            errors.append(FieldError("unknown field; known here: user", f"/to/{escape(name)}"))
    if "user" not in to:
        errors.append(FieldError("is required: the path of the user's id, such as data.customer.id", "/to/user"))
    elif not isinstance(to["user"], str):
        errors.append(FieldError("must be text: a path such as data.customer.id", "/to/user"))
    else:
        _check_path(to["user"], "/to/user", errors)
    data = raw.get("data")
    if data is not None:
        _check_size(data, "/data", errors)
        for name, path in data.items():
            if not 1 <= len(name) <= 100 or not name.isprintable():
                errors.append(FieldError("a variable has 1 to 100 printable characters", f"/data/{escape(name)}"))
            _check_path(path, f"/data/{escape(name)}", errors)
    if raw.get("once") is not None:
        _check_text(raw["once"], "/once", errors)
    metadata = raw.get("metadata")
    if metadata is not None:
        _check_size(metadata, "/metadata", errors)
        for name, text in metadata.items():
            _check_text(text, f"/metadata/{escape(name)}", errors)
    if errors:
        raise Invalid("The rule cannot be used as it is.", errors=errors)
    return EventRule(
        event=EventPattern(event["type"], event.get("source")),
        type=raw["type"],
        user=to["user"],
        when=when,
        data=data,
        once=raw.get("once"),
        priority=raw.get("priority"),
        metadata=metadata or None,
    )


def list_paths(text: str) -> list[str]:
    """The paths that stand in braces in a text."""
    return _BRACED.findall(text)


def fill_text(text: str, values: Mapping[str, str]) -> str:
    """The text with values in the place of paths."""
    return _BRACED.sub(lambda found: values[found[1]], text)


def _fits(pattern: str, text: str) -> bool:
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern


def _check_pattern(text: str | None, at: str, errors: list[FieldError]) -> None:
    if text is None:
        return
    if not 1 <= len(text) <= TEXT_MAX or not text.isprintable():
        errors.append(FieldError(f"must be 1 to {TEXT_MAX} printable characters", at))
    elif "*" in text[:-1]:
        errors.append(FieldError("has a `*` elsewhere; only the last character may be one, as in com.shop.order.*", at))


def _check_path(text: str, at: str, errors: list[FieldError]) -> None:
    try:
        parse_path(text)
    except ValueError as error:
        errors.append(FieldError(str(error), at))


def _check_text(text: str, at: str, errors: list[FieldError]) -> None:
    if not 1 <= len(text) <= TEXT_MAX or not text.isprintable():
        errors.append(FieldError(f"must be 1 to {TEXT_MAX} printable characters", at))
    elif set("{}") & set(_BRACED.sub("", text)):
        errors.append(FieldError("has a brace without its other half; a path stands in braces, as in {data.id}", at))
    else:
        for path in list_paths(text):
            _check_path(path, at, errors)


def _check_size(names: Mapping[str, str], at: str, errors: list[FieldError]) -> None:
    if len(names) > NAMES_MAX:
        errors.append(FieldError(f"must have at most {NAMES_MAX} names", at))


async def put_event_rule(
    conn: Connection, actor: Actor, key: str, rule: EventRule, *, enabled: bool = True
) -> tuple[StoredRule, bool]:
    """Makes the rule, or changes it; the second value says whether it is new. The same again changes nothing.

    Raises:
        Invalid: there is no such type.
        Conflict: there are too many rules.
    """
    project_id = actor.project_id
    if await conn.fetchval(_FIND_RULE_TYPE, project_id, rule.type) is None:
        raise Invalid(errors=[FieldError(f"there is no type {rule.type!r} in this project", "/type")])
    given = (project_id, key, msgspec.json.encode(rule).decode(), enabled)
    locked = await conn.fetchrow(_LOCK_EVENT_RULE, project_id, key)
    if locked is None:
        if await conn.fetchval(_COUNT_EVENT_RULES, project_id) >= RULES_MAX:
            raise Conflict(f"A project has at most {RULES_MAX} event rules.")
        row = await conn.fetchrow(_CREATE_EVENT_RULE, *given)
        if row is None:
            raise Conflict("The rule was made at the same moment; repeat the request.")
        made = _to_rule(row)
        await apply_audit(conn, actor, "event_rule.put", f"event_rule:{key}", after=made)
        await notify_config(conn, project_id)
        return made, True
    before = _to_rule(locked)
    if (before.rule, before.enabled) == (rule, enabled):
        return before, False
    row = await conn.fetchrow(_UPDATE_EVENT_RULE, *given)
    assert row is not None  # it is locked
    after = _to_rule(row)
    await apply_audit(conn, actor, "event_rule.put", f"event_rule:{key}", before=before, after=after)
    await notify_config(conn, project_id)
    return after, False


async def load_event_rule(db: Database | Connection, project_id: int, key: str) -> StoredRule:
    """One rule.

    Raises:
        NotFound: this project has none with this key.
    """
    return _to_rule(_found(await db.fetchrow(_LOAD_EVENT_RULE, project_id, key)))


async def list_event_rules(
    db: Database | Connection, project_id: int, *, after: str | None = None, limit: int = 50
) -> list[StoredRule]:
    """The project's rules by key; those after `after` (exclusive) when given."""
    return [_to_rule(row) for row in await db.fetch(_LIST_EVENT_RULES, project_id, after, limit)]


async def delete_event_rule(conn: Connection, actor: Actor, key: str) -> None:
    """Removes a rule for good.

    Raises:
        NotFound: this project has none with this key.
    """
    gone = _to_rule(_found(await conn.fetchrow(_DELETE_EVENT_RULE, actor.project_id, key)))
    await apply_audit(conn, actor, "event_rule.delete", f"event_rule:{key}", before=gone)
    await notify_config(conn, actor.project_id)


def _found(row: Record | None) -> Record:
    if row is None:
        raise NotFound("There is no such event rule in this project.")
    return row


def _to_rule(row: Record) -> StoredRule:
    return StoredRule(
        key=row["key"],
        rule=msgspec.json.decode(row["definition"], type=EventRule),
        enabled=row["enabled"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
