"""Suppressions: addresses that a stream of messages is not to reach again, per project.

Most are made on the road, by hard bounces, complaints, dead numbers and STOPs; here they are looked at, made by hand
and lifted. A stream is a part of a channel: everything (''), one category (its key), or one sender (`sender:<id>`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from tidings.channels import CHANNELS
from tidings.db.pool import Connection, Database, Record
from tidings.db.sql import load_queries
from tidings.directory.audit import Actor, apply_audit
from tidings.errors import FieldError, Invalid
from tidings.model.words import Channel

_queries: Final = load_queries(__package__, "suppressions.sql")
_LIST_SUPPRESSIONS: Final = _queries.list_suppressions
_PUT_SUPPRESSION: Final = _queries.put_suppression
_LOAD_SUPPRESSION: Final = _queries.load_suppression
_DELETE_SUPPRESSION: Final = _queries.delete_suppression
_LIST_OPT_OUTS: Final = _queries.list_opt_outs
_LIFT_OPT_OUT: Final = _queries.lift_opt_out

BY_HAND: Final = "manual"
"""The reason of what somebody suppressed over the API."""

Place = tuple[datetime, int, str, str]
"""Where a suppression stands in the list: when it was made, channel, address, stream."""


class Suppression(msgspec.Struct, frozen=True):
    """One suppression."""

    channel: Channel
    address: str
    stream: str
    reason: str
    note: str | None
    delivery_id: UUID | None
    """The delivery that it follows from."""
    created_at: datetime

    @property
    def place(self) -> Place:
        """Where it stands in the list."""
        return self.created_at, int(self.channel), self.address, self.stream


async def list_suppressions(
    database: Database,
    project_id: int,
    *,
    channel: Channel | None,
    address: str | None,
    reason: str | None,
    stream: str | None,
    after: Place | None,
    limit: int,
) -> list[Suppression]:
    """Suppressions that fit the filters, newest first."""
    place: tuple[Any, ...] = after or (None, None, None, None)
    rows = await database.fetch(_LIST_SUPPRESSIONS, project_id, channel, address, reason, stream, *place, limit)
    return [_to_suppression(row) for row in rows]


async def put_suppression(
    conn: Connection,
    actor: Actor,
    channel: Channel,
    address: str,
    stream: str,
    note: str | None,
    *,
    reason: str = BY_HAND,
) -> tuple[Suppression, bool]:
    """Suppress an address; the second value says whether it was not before. An older suppression stays as it is.

    Raises:
        Invalid: it is no address of the channel.
    """
    address = parse_address(channel, address)
    row = await conn.fetchrow(_PUT_SUPPRESSION, actor.project_id, channel, address, stream, reason, note)
    if row is not None:
        made = _to_suppression(row)
        await apply_audit(conn, actor, "suppression.put", _object(made), after=made)
        return made, True
    row = await conn.fetchrow(_LOAD_SUPPRESSION, actor.project_id, channel, address, stream)
    if row is None:  # lifted at this very moment
        return await put_suppression(conn, actor, channel, address, stream, note, reason=reason)
    return _to_suppression(row), False


async def delete_suppression(conn: Connection, actor: Actor, channel: Channel, address: str, stream: str) -> bool:
    """Lift a suppression: messages may reach the address again. False: it was not suppressed there.

    Raises:
        Invalid: it is no address of the channel.
    """
    row = await conn.fetchrow(_DELETE_SUPPRESSION, actor.project_id, channel, parse_address(channel, address), stream)
    if row is None:
        return False
    lifted = _to_suppression(row)
    await apply_audit(conn, actor, "suppression.delete", _object(lifted), before=lifted)
    return True


async def list_opt_outs(
    db: Database | Connection, project_id: int, addresses: Sequence[tuple[Channel, str]]
) -> set[tuple[Channel, str]]:
    """The streams, by channel, that somebody at one of these addresses left themselves."""
    channels, texts = [int(channel) for channel, _ in addresses], [text for _, text in addresses]
    rows = await db.fetch(_LIST_OPT_OUTS, project_id, channels, texts)
    return {(Channel(row["channel"]), row["stream"]) for row in rows}


async def lift_opt_out(conn: Connection, actor: Actor, channel: Channel, address: str, stream: str) -> bool:
    """Let a stream reach an address again that left it; not if that bounced or complained. False: it had not left."""
    row = await conn.fetchrow(_LIFT_OPT_OUT, actor.project_id, channel, address, stream)
    if row is None:
        return False
    lifted = _to_suppression(row)
    await apply_audit(conn, actor, "suppression.delete", _object(lifted), before=lifted)
    return True


def parse_address(channel: Channel, text: str) -> str:
    """The address in its normal form.

    Raises:
        Invalid: it is none of this channel.
    """
    try:
        return CHANNELS[channel].parse_address(text)
    except ValueError as error:
        raise Invalid(errors=[FieldError(str(error), "/address")]) from None


def _object(suppression: Suppression) -> str:
    return f"suppression:{suppression.channel.name}:{suppression.stream}"


def _to_suppression(row: Record) -> Suppression:
    channel, *rest = row
    return Suppression(Channel(channel), *rest)
