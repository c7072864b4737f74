"""Categories: what a user can opt in or out of. A required one cannot be switched off."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from tidings.db.pool import Connection, Database
from tidings.db.sql import load_queries
from tidings.directory.audit import Actor, apply_audit
from tidings.errors import Conflict, NotFound

_queries: Final = load_queries(__package__, "categories.sql")
_CREATE_CATEGORY: Final = _queries.create_category
_LOCK_CATEGORY: Final = _queries.lock_category
_UPDATE_CATEGORY: Final = _queries.update_category
_LOAD_CATEGORY: Final = _queries.load_category
_LIST_CATEGORIES: Final = _queries.list_categories
_DELETE_CATEGORY: Final = _queries.delete_category

DEFAULT_CATEGORY: Final = "general"
"""Every project has it from its beginning."""


class Category(msgspec.Struct, frozen=True):
    """One category."""

    key: str
    name: str
    description: str
    required: bool
    created_at: datetime
    updated_at: datetime


async def put_category(
    conn: Connection, actor: Actor, key: str, *, name: str, description: str = "", required: bool = False
) -> tuple[Category, bool]:
    """Makes the category, or changes it; the second value says whether it is new. The same again changes nothing."""
    given = (actor.project_id, key, name, description, required)
    row = await conn.fetchrow(_CREATE_CATEGORY, *given)
    if row is not None:
        category = Category(**dict(row))
        await apply_audit(conn, actor, "category.put", f"category:{key}", after=category)
        return category, True
    locked = await conn.fetchrow(_LOCK_CATEGORY, actor.project_id, key)
    if locked is None:
        raise Conflict("The category was deleted at the same moment; repeat the request.")
    before = Category(**dict(locked))
    if (before.name, before.description, before.required) == (name, description, required):
        return before, False
    row = await conn.fetchrow(_UPDATE_CATEGORY, *given)
    assert row is not None  # it is locked
    category = Category(**dict(row))
    await apply_audit(conn, actor, "category.put", f"category:{key}", before=before, after=category)
    return category, False


async def load_category(db: Database | Connection, project_id: int, key: str) -> Category:
    """One category.

    Raises:
        NotFound: this project has none with this key.
    """
    row = await db.fetchrow(_LOAD_CATEGORY, project_id, key)
    if row is None:
        raise NotFound("There is no such category in this project.")
    return Category(**dict(row))


async def list_categories(
    db: Database | Connection, project_id: int, *, after: str | None = None, limit: int = 50
) -> list[Category]:
    """The project's categories by key; those after `after` (exclusive) when given."""
    return [Category(**dict(row)) for row in await db.fetch(_LIST_CATEGORIES, project_id, after, limit)]


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
    await apply_audit(conn, actor, "category.delete", f"category:{key}", before=Category(**dict(locked)))
