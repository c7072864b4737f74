"""Projects: the isolation unit. Made by the operator (CLI), never over the API of another project."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final, Literal

import msgspec

from tidings.db.pool import Connection, Database
from tidings.db.sql import load_queries
from tidings.directory.accounts import create_builtin_accounts
from tidings.directory.audit import Actor, apply_audit
from tidings.directory.categories import DEFAULT_CATEGORY, put_category
from tidings.errors import Conflict, FieldError, Invalid, NotFound

_queries: Final = load_queries(__package__, "projects.sql")
_CREATE_PROJECT: Final = _queries.create_project
_LOAD_PROJECT: Final = _queries.load_project
_LOAD_PROJECT_BY_KEY: Final = _queries.load_project_by_key
_LIST_PROJECTS: Final = _queries.list_projects

_KEY: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


class Project(msgspec.Struct, frozen=True):
    """One project."""

    id: int
    """Internal; the API shows the key."""
    key: str
    name: str
    created_at: datetime


async def create_project(conn: Connection, key: str, name: str, *, by: Literal["cli", "system"] = "cli") -> Project:
    """A new project with what every project has: a category `general`, a simulator per channel, and an inbox.

    Args:
        key: 1 to 40 of a-z, 0-9 and `-`; it stands in API keys, tokens and callback addresses, so it never changes.

    Raises:
        Invalid: the key has another form.
        Conflict: the key is taken.
    """
    if not _KEY.fullmatch(key):
        detail = "must be 1 to 40 characters of a-z, 0-9 and `-`, and begin with a letter or digit"
        raise Invalid(errors=[FieldError(detail, pointer="/key")])
    row = await conn.fetchrow(_CREATE_PROJECT, key, name)
    if row is None:
        raise Conflict(f"There is a project `{key}` already.")
    project = Project(**dict(row))
    actor = Actor(project.id, by)
    await apply_audit(conn, actor, "project.create", f"project:{key}", after=project)
    await put_category(conn, actor, DEFAULT_CATEGORY, name="General")
    await create_builtin_accounts(conn, project.id)
    return project


async def load_project(db: Database | Connection, project_id: int) -> Project:
    """One project.

    Raises:
        NotFound: there is none with this id.
    """
    row = await db.fetchrow(_LOAD_PROJECT, project_id)
    if row is None:
        raise NotFound("There is no such project.")
    return Project(**dict(row))


async def load_project_by_key(db: Database | Connection, key: str) -> Project | None:
    """The project with this key, if there is one."""
    row = await db.fetchrow(_LOAD_PROJECT_BY_KEY, key)
    return None if row is None else Project(**dict(row))


async def list_projects(db: Database | Connection) -> list[Project]:
    """All projects by key: for the operator."""
    return [Project(**dict(row)) for row in await db.fetch(_LIST_PROJECTS)]
