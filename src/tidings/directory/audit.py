"""The audit trail: who changed what in the directory, with what stood there before and after.

Rows are written in the transaction of the change and never altered: a trigger refuses it, but for the values of one
whose user is erased. Of users they hold which fields changed, not what stands in them; never secrets: whoever writes a
row leaves those out.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from tidings.db.pool import Connection, Database
from tidings.db.sql import load_queries

_queries: Final = load_queries(__package__, "audit.sql")
_APPLY_AUDIT: Final = _queries.apply_audit
_LIST_AUDIT: Final = _queries.list_audit


class Actor(msgspec.Struct, frozen=True):
    """Who changes something, and in which project."""

    project_id: int
    kind: Literal["key", "cli", "system", "user"] = "system"
    key_id: UUID | None = None
    """The API key, for the kind `key`."""


class AuditEntry(msgspec.Struct, frozen=True):
    """One change."""

    id: UUID
    at: datetime
    actor: str
    key_id: UUID | None
    action: str
    object: str
    before: Any
    after: Any


async def apply_audit(
    conn: Connection, actor: Actor, action: str, object_: str, *, before: Any = None, after: Any = None
) -> None:
    """Records one change, in the transaction that makes it.

    Args:
        action: noun and verb, as in `user.put` or `template.publish`.
        object_: noun and key, as in `user:u-42` or `template:welcome`.
        before: anything msgspec can encode; None when it did not exist.
        after: likewise; None when it exists no more.
    """
    await conn.execute(
        _APPLY_AUDIT, actor.project_id, actor.kind, actor.key_id, action, object_, _to_json(before), _to_json(after)
    )


async def list_audit(
    db: Database | Connection,
    project_id: int,
    *,
    object_: str | None = None,
    action: str | None = None,
    before_id: UUID | None = None,
    limit: int = 50,
) -> list[AuditEntry]:
    """The newest changes first; those before `before_id` (exclusive) when given."""
    rows = await db.fetch(_LIST_AUDIT, project_id, before_id, object_, action, limit)
    return [
        AuditEntry(
            id=row["id"],
            at=row["at"],
            actor=row["actor"],
            key_id=row["api_key_id"],
            action=row["action"],
            object=row["object"],
            before=None if row["before"] is None else msgspec.json.decode(row["before"]),
            after=None if row["after"] is None else msgspec.json.decode(row["after"]),
        )
        for row in rows
    ]


def _to_json(value: Any) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()
