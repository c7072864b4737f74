"""Categories: what a user can opt in or out of, and what holds there unless they say otherwise.

A required one cannot be switched off.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from tidings.db.pool import Connection, Database, Record
from tidings.db.sql import load_queries
from tidings.directory.accounts import notify_config
from tidings.directory.audit import Actor, apply_audit
from tidings.directory.limits import Limit, parse_limits
from tidings.directory.quiet import QuietHours, parse_quiet
from tidings.directory.types import parse_defaults
from tidings.errors import Conflict, FieldError, Invalid, NotFound
from tidings.model.words import Frequency

_queries: Final = load_queries(__package__, "categories.sql")
_CREATE_CATEGORY: Final = _queries.create_category
_LOCK_CATEGORY: Final = _queries.lock_category
_UPDATE_CATEGORY: Final = _queries.update_category
_LOAD_CATEGORY: Final = _queries.load_category
_LIST_CATEGORIES: Final = _queries.list_categories
_DELETE_CATEGORY: Final = _queries.delete_category

DEFAULT_CATEGORY: Final = "general"
"""Every project has it from its beginning."""


class CategoryRules(msgspec.Struct, frozen=True, omit_defaults=True):
    """What holds for a category unless a user says otherwise. Stored as `category.rules`, but for the first two."""

    key: str = ""
    required: bool = False
    """Users cannot switch it off."""
    defaults: dict[str, bool] = {}
    """By channel; those not named are as the project says."""
    frequency: Frequency = Frequency.instant
    digest_hour: int = 9
    """At which hour of the user's day daily and weekly digests are sent (weekly: on Monday)."""
    quiet_hours: QuietHours | None = None
    limits: tuple[Limit, ...] = ()


NO_CATEGORY_RULES: Final = CategoryRules()
"""Of messages without a type, and of types whose category was deleted."""


def to_rules(key: str, required: bool, stored: str | None) -> CategoryRules:
    """The rules of a category as they are stored; what this version does not know is left out."""
    rules = msgspec.json.decode(stored, type=CategoryRules) if stored else NO_CATEGORY_RULES
    return msgspec.structs.replace(rules, key=key, required=required)


def check_rules(rules: CategoryRules) -> CategoryRules:
    """The rules in their normal form.

    Raises:
        Invalid: one error per thing to mend, with pointers such as `/limits/0/window`.
    """
    errors: list[FieldError] = []
    defaults = parse_defaults(rules.defaults, "/defaults", errors)
    if not 0 <= rules.digest_hour <= 23:
        errors.append(FieldError("must be an hour from 0 to 23", "/digest_hour"))
    quiet_hours, limits = check_hours_and_limits(rules.quiet_hours, rules.limits, errors)
    if errors:
        raise Invalid("The category's rules cannot be used as they are.", errors=errors)
    return CategoryRules(
        defaults=defaults,
        frequency=rules.frequency,
        digest_hour=rules.digest_hour,
        quiet_hours=quiet_hours,
        limits=limits,
    )


def check_hours_and_limits(
    quiet_hours: QuietHours | None, limits: tuple[Limit, ...], errors: list[FieldError], *, categories: bool = False
) -> tuple[QuietHours | None, tuple[Limit, ...]]:
    """The quiet hours and limits of a category or a project in their normal form.

    Args:
        categories: a limit may name a category: those of projects.
    """
    if quiet_hours is not None:
        quiet_hours = parse_quiet(msgspec.to_builtins(quiet_hours), "/quiet_hours", errors)
    if limits:
        limits = parse_limits(msgspec.to_builtins(list(limits)), "/limits", errors, categories=categories)
    return quiet_hours, limits


class Category(msgspec.Struct, frozen=True):
    """One category."""

    key: str
    name: str
    description: str
    required: bool
    rules: CategoryRules
    created_at: datetime
    updated_at: datetime


async def put_category(
    conn: Connection,
    actor: Actor,
    key: str,
    *,
    name: str,
    description: str = "",
    required: bool = False,
    rules: CategoryRules = NO_CATEGORY_RULES,
) -> tuple[Category, bool]:
    """Makes the category, or changes it; the second value says whether it is new. The same again changes nothing.

    Raises:
        Invalid: see `check_rules`.
    """
    rules = check_rules(rules)
    given = (actor.project_id, key, name, description, required, msgspec.json.encode(rules).decode())
    row = await conn.fetchrow(_CREATE_CATEGORY, *given)
    if row is not None:
        category = _to_category(row)
        await apply_audit(conn, actor, "category.put", f"category:{key}", after=category)
        # A type may be in it already, from before its key was deleted.
        await notify_config(conn, actor.project_id)
        return category, True
    locked = await conn.fetchrow(_LOCK_CATEGORY, actor.project_id, key)
    if locked is None:
        raise Conflict("The category was deleted at the same moment; repeat the request.")
    before = _to_category(locked)
    wanted = msgspec.structs.replace(
        before, name=name, description=description, required=required, rules=to_rules(key, required, given[-1])
    )
    if before == wanted:
        return before, False
    row = await conn.fetchrow(_UPDATE_CATEGORY, *given)
    assert row is not None  # it is locked
    category = _to_category(row)
    await apply_audit(conn, actor, "category.put", f"category:{key}", before=before, after=category)
    await notify_config(conn, actor.project_id)
    return category, False


async def load_category(db: Database | Connection, project_id: int, key: str) -> Category:
    """One category.

    Raises:
        NotFound: this project has none with this key.
    """
    row = await db.fetchrow(_LOAD_CATEGORY, project_id, key)
    if row is None:
        raise NotFound("There is no such category in this project.")
    return _to_category(row)


async def list_categories(
    db: Database | Connection, project_id: int, *, after: str | None = None, limit: int = 50
) -> list[Category]:
    """The project's categories by key; those after `after` (exclusive) when given."""
    return [_to_category(row) for row in await db.fetch(_LIST_CATEGORIES, project_id, after, limit)]


async def delete_category(conn: Connection, actor: Actor, key: str) -> None:
    """Removes a category that no type names.

    Raises:
        NotFound: this project has none with this key.
        Conflict: a type that is not archived names it in its current version.
    """
    locked = await conn.fetchrow(_LOCK_CATEGORY, actor.project_id, key)
    if locked is None:
        raise NotFound("There is no such category in this project.")
    if await conn.fetchrow(_DELETE_CATEGORY, actor.project_id, key) is None:
        raise Conflict("A type is in this category; give it another one, or archive it, first.")
    await apply_audit(conn, actor, "category.delete", f"category:{key}", before=_to_category(locked))
    await notify_config(conn, actor.project_id)


def _to_category(row: Record) -> Category:
    return Category(**{**dict(row), "rules": to_rules(row["key"], row["required"], row["rules"])})
