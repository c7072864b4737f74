"""Erasures: users who are to be forgotten, and what the directory keeps of them by their addresses.

Which erasures are under way stands in a table, so that they go on when a process ends. What they do to what was sent is
`tidings.flow.privacy`'.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Final, TypeAlias

import msgspec

from tidings.db.pool import Connection, Database
from tidings.db.sql import load_queries
from tidings.directory.audit import Actor, apply_audit
from tidings.directory.users import forget_user

_queries: Final = load_queries(__package__, "erasures.sql")
_PUT_ERASURE: Final = _queries.put_erasure
_CLAIM_ERASURE: Final = _queries.claim_erasure
_POSTPONE_ERASURE: Final = _queries.postpone_erasure
_DELETE_ERASURE: Final = _queries.delete_erasure
_LIST_ADDRESSES_OF: Final = _queries.list_addresses_of
_LIST_SHARED: Final = _queries.list_shared
_REDACT_AUDIT: Final = _queries.redact_audit
_REDACT_SUPPRESSIONS: Final = _queries.redact_suppressions
_DELETE_ADDRESS_CONSENTS: Final = _queries.delete_address_consents
_DELETE_ADDRESS_SUPPRESSIONS: Final = _queries.delete_address_suppressions
_LOAD_REBORN: Final = _queries.load_reborn

Address: TypeAlias = tuple[int, str]
"""Number of the channel, address."""


class Erasure(msgspec.Struct, frozen=True):
    """A user who is being erased."""

    project_id: int
    user_id: str
    suppressions: bool
    """The suppressions of their addresses go, too."""
    requested_at: datetime


async def begin_erasure(
    conn: Connection, actor: Actor, user_id: str, *, suppressions: bool, now: datetime | None, again_after: timedelta
) -> tuple[Erasure, Collection[Address]]:
    """Deletes what the directory knows of the user, and notes that the rest is to follow; the second value are the
    addresses that they had."""
    project_id = actor.project_id
    row = await conn.fetchrow(_PUT_ERASURE, project_id, user_id, suppressions, now, again_after)
    assert row is not None  # it returns what it wrote
    addresses = {
        (found["channel"], found["value"]) for found in await conn.fetch(_LIST_ADDRESSES_OF, project_id, user_id)
    }
    await forget_user(conn, project_id, user_id)
    await conn.execute(_REDACT_AUDIT, project_id, user_id)
    # The id has to stay: it is the proof that whoever asked was erased.
    await apply_audit(conn, actor, "user.erase", f"user:{user_id}", after={"suppressions": suppressions})
    return Erasure(*row), addresses


async def claim_erasure(database: Database, now: datetime | None, again_after: timedelta) -> Erasure | None:
    """An erasure that is due. Nobody else gets it before `again_after` has passed."""
    row = await database.fetchrow(_CLAIM_ERASURE, now, again_after)
    return None if row is None else Erasure(*row)


async def postpone_erasure(database: Database, erasure: Erasure, at: datetime) -> None:
    """Look again then."""
    await database.execute(_POSTPONE_ERASURE, erasure.project_id, erasure.user_id, erasure.requested_at, at)


async def end_erasure(database: Database, erasure: Erasure) -> None:
    """Nothing is left to look for."""
    await database.execute(_DELETE_ERASURE, erasure.project_id, erasure.user_id, erasure.requested_at)


async def load_reborn(db: Database | Connection, erasure: Erasure) -> datetime | None:
    """When somebody was made whose id is that of the erased user; None: nobody was."""
    born: datetime | None = await db.fetchval(_LOAD_REBORN, erasure.project_id, erasure.user_id)
    return born


async def forget_again(conn: Connection, erasure: Erasure) -> None:
    """Deletes what was written of the user while they were being deleted; nothing if somebody has their id again."""
    if await load_reborn(conn, erasure) is None:
        await forget_user(conn, erasure.project_id, erasure.user_id)


async def list_own(conn: Connection, erasure: Erasure, addresses: Collection[Address]) -> list[Address]:
    """Those of the addresses that nobody else has."""
    columns = _to_columns(addresses)
    rows = await conn.fetch(_LIST_SHARED, erasure.project_id, erasure.user_id, *columns)
    return sorted(set(addresses) - {(row["channel"], row["value"]) for row in rows})


async def forget_addresses(conn: Connection, erasure: Erasure, addresses: Collection[Address]) -> None:
    """Deletes what the directory keeps by these addresses. Suppressions stay unless the erasure says otherwise: they
    keep somebody who said no from being written to when their address comes back with the next import."""
    columns = _to_columns(addresses)
    await conn.execute(_DELETE_ADDRESS_CONSENTS, erasure.project_id, *columns)
    if erasure.suppressions:
        await conn.execute(_DELETE_ADDRESS_SUPPRESSIONS, erasure.project_id, *columns)
        await conn.execute(_REDACT_SUPPRESSIONS, erasure.project_id, columns[1])


def _to_columns(addresses: Collection[Address]) -> tuple[list[int], list[str]]:
    ordered = sorted(addresses)
    return [channel for channel, _ in ordered], [value for _, value in ordered]
