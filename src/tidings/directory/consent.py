"""Consents: who agreed to what, or did not any more; when, from where, and what they were shown.

One row for every decision, written in the transaction that makes it count, and never changed. What a user says now
stands in their preferences; this is how it came to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, Literal, TypeAlias
from uuid import UUID

import msgspec

from tidings.db.pool import Connection, Database
from tidings.db.sql import load_queries
from tidings.model.words import Channel

_queries: Final = load_queries(__package__, "consent.sql")
_RECORD: Final = _queries.record
_LIST_CONSENTS: Final = _queries.list_consents
_DELETE_CONSENTS: Final = _queries.delete_consents

WORDING_MAX: Final = 4_000
USER_AGENT_MAX: Final = 500

Who: TypeAlias = Literal["user", "key", "system", "import"]
Where: TypeAlias = Literal["page", "one_click", "api", "inbox", "sms", "receipt", "import"]
"""`receipt`: the vendor told us, of a complaint or of its own unsubscribe link."""


class Origin(msgspec.Struct, frozen=True):
    """Where a decision comes from."""

    actor: Who
    source: Where
    wording: str | None = None
    """What they were shown, or the words that they wrote."""
    ip: str | None = None
    """Theirs, not that of an application which speaks for them."""
    user_agent: str | None = None
    api_key_id: UUID | None = None


class Decision(msgspec.Struct, frozen=True):
    """One decision. What is None is not narrowed down: no channel is all of them."""

    decision: str
    """`in`, `out`, `reset` (they say nothing about it any more), a frequency, or `reset_frequency`."""
    user_id: str | None = None
    """None: of somebody who is known by an address only."""
    channel: Channel | None = None
    address: str | None = None
    category_key: str | None = None
    type_key: str | None = None


class Consent(msgspec.Struct, frozen=True):
    """A decision that was recorded."""

    id: UUID
    at: datetime
    user_id: str | None
    channel: Channel | None
    address: str | None
    category_key: str | None
    type_key: str | None
    decision: str
    actor: str
    source: str
    wording: str | None
    ip: str | None
    user_agent: str | None
    api_key_id: UUID | None


async def record(conn: Connection, project_id: int, decisions: Sequence[Decision], origin: Origin) -> None:
    """Records decisions that were made together, in their order, in the transaction in which they come to count."""
    if not decisions:
        return
    wording = None if origin.wording is None else origin.wording[:WORDING_MAX]
    agent = None if origin.user_agent is None else origin.user_agent[:USER_AGENT_MAX]
    await conn.execute(
        _RECORD,
        project_id,
        [decision.user_id for decision in decisions],
        [decision.channel for decision in decisions],
        [decision.address for decision in decisions],
        [decision.category_key for decision in decisions],
        [decision.type_key for decision in decisions],
        [decision.decision for decision in decisions],
        origin.actor,
        origin.source,
        wording,
        origin.ip,
        agent,
        origin.api_key_id,
    )


async def list_consents(
    db: Database | Connection, project_id: int, user_id: str, *, before: UUID | None = None, limit: int = 50
) -> list[Consent]:
    """What a user decided, newest first; what was decided before `before` (exclusive) when given."""
    rows = await db.fetch(_LIST_CONSENTS, project_id, user_id, before, limit)
    return [
        Consent(**{**dict(row), "channel": None if row["channel"] is None else Channel(row["channel"])}) for row in rows
    ]


async def delete_consents(conn: Connection, project_id: int, user_id: str) -> None:
    """Forgets what a user decided: for whoever is erased."""
    await conn.execute(_DELETE_CONSENTS, project_id, user_id)
