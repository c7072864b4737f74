"""Unsubscribe: somebody leaves a category by a link in one of its messages. Once is enough, and twice does no harm.

Of a user it becomes a preference, which they can take back on their page; of somebody who is known by an address only,
a suppression of the category there. Both are written with a consent, in one transaction. That the message made its
reader leave is recorded on the delivery afterwards, like every other report.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, Final

import structlog

from tidings.clock import Clock
from tidings.db.pool import Connection, Database
from tidings.directory import consent
from tidings.directory.audit import Actor
from tidings.directory.categories import load_category
from tidings.directory.consent import Decision, Origin
from tidings.directory.preferences import apply_choices, list_switched_on, load_choices, load_merged
from tidings.directory.suppressions import put_suppression
from tidings.errors import NotFound
from tidings.flow.receipts import Fact, Receiver
from tidings.flow.tracking import Guest
from tidings.model.words import EventKind, Reason
from tidings.providers.port import Report

log = structlog.get_logger(__name__)

_AGENT_MAX: Final = 300
"""Characters of a user agent that are kept as evidence."""


class Left(Enum):
    """What came of it."""

    yes = auto()
    """Nothing of the category comes any more; also where its reader does not exist any more, or it was a test."""
    required = auto()
    """The category has become required since the message was sent: nothing was changed."""


async def unsubscribe(database: Database, receiver: Receiver, clock: Clock, guest: Guest, origin: Origin) -> Left:
    """Let a guest leave the category that their link names, on its channel."""

    async def work(conn: Connection) -> Left:
        if await _is_required(conn, guest):
            return Left.required
        if guest.user_id is None:
            await _suppress(conn, guest, origin)
        else:
            await _switch_off(conn, guest, guest.user_id, origin, clock)
        return Left.yes

    left = Left.yes if guest.test else await database.transaction(work)
    if left is Left.yes:
        await _record(receiver, guest, origin)
    return left


async def _is_required(conn: Connection, guest: Guest) -> bool:
    try:
        return (await load_category(conn, guest.project_id, guest.category)).required
    except NotFound:
        return False


async def _switch_off(conn: Connection, guest: Guest, user_id: str, origin: Origin, clock: Clock) -> None:
    name = guest.channel.name
    off = {"channels": {name: False}}
    given: dict[str, Any] = {"categories": {guest.category: off}}
    try:
        said = (await load_choices(conn, guest.project_id, user_id)).preferences
        if said.types:
            merged = await load_merged(conn, guest.project_id, said, clock.now())
            given["types"] = dict.fromkeys(list_switched_on(said, merged, guest.category, name), off)
        await apply_choices(conn, Actor(guest.project_id, "user"), user_id, given, origin, merge=True)
    except NotFound:
        log.info("unsubscribe.user_is_gone", project=guest.project_id)


async def _suppress(conn: Connection, guest: Guest, origin: Origin) -> None:
    assert guest.address is not None  # of every guest who is no user
    _, made = await put_suppression(
        conn,
        Actor(guest.project_id, "user"),
        guest.channel,
        guest.address,
        guest.category,
        None,
        reason=Reason.opted_out,
    )
    if made:
        out = Decision("out", channel=guest.channel, address=guest.address, category_key=guest.category)
        await consent.record(conn, guest.project_id, [out], origin)


async def _record(receiver: Receiver, guest: Guest, origin: Origin) -> None:
    """On the delivery, if it still exists. They have left all the same if this fails."""
    if guest.delivery is None:
        return
    detail = {"source": origin.source, "user_agent": (origin.user_agent or "")[:_AGENT_MAX]}
    report = Report(EventKind.unsubscribed, detail=detail)
    try:
        await receiver.record([Fact(guest.project_id, None, report, guest.delivery, done=True)])
    except Exception as error:
        log.error("unsubscribe.not_recorded", error=type(error).__name__)
