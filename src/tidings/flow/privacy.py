"""Privacy: everything that is known of a user, handed out as one document, or erased from every table.

Erasing deletes what the directory knows of the user at once, in one transaction. What was sent to them follows in small
transactions, a page of notifications in each: what has not left yet is cancelled; of what was sent there remains that
it was, on which channel, when and what became of it, without whom it concerned or what it said. So it is still counted.
Every step can be repeated, and an erasure that was interrupted is taken up by a worker.

A message that is just being sent is left alone until its worker is done with it. Some seconds after the user is gone
the API may still accept a notification for them (it remembers users); so a worker looks again later, and only then is
the erasure itself forgotten.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
import structlog

from tidings import ids
from tidings.clock import Clock
from tidings.db.pool import Connection, Database, Record
from tidings.db.sql import load_queries
from tidings.directory import erasures
from tidings.directory.access import Caller
from tidings.directory.audit import Actor
from tidings.directory.erasures import Address, Erasure
from tidings.engine import jobs as queue
from tidings.errors import Forbidden, NotFound
from tidings.flow.accept import KNOWN_USER_TTL
from tidings.flow.effects import to_columns, to_target
from tidings.flow.intervene import Intervener
from tidings.model.words import Channel, Engagement, EventKind, Priority, Scope, Status

SQL: Final = load_queries(__package__, "privacy.sql")

log = structlog.get_logger(__name__)

PAGE: Final = 250
"""Notifications in one transaction, and in one statement of an export."""
REQUEST_PAGES: Final = 20
"""Pages that are erased while the caller waits; a worker does the rest."""
SETTLED_AFTER: Final = timedelta(seconds=2 * KNOWN_USER_TTL)
"""After so long nothing new can come in for a user who is gone."""
_AGAIN_AFTER: Final = timedelta(minutes=2)
"""When a worker takes up an erasure that another one began."""
_BUSY_AFTER: Final = timedelta(seconds=5)
_NO_ID: Final = UUID(int=0)
_LAST_ID: Final = UUID(int=(1 << 128) - 1)

COVERAGE: Final[Mapping[str, str]] = {
    "app_user": "deleted",
    "address": "deleted",
    "consent": "deleted, also those of addresses that nobody else has",
    "topic_member": "deleted",
    "user_engagement": "deleted",
    "inbox_item": "deleted",
    "inbox_counter": "reset; the id and the last number stay, so that no number is given twice should the id come back",
    "notification": "blanked: the user, data, content, metadata, options, keys",
    "run": "blanked: what each rule answered",
    "delivery": "blanked: address, the vendor's id",
    "event": "blanked: evidence, the vendor's id",
    "job": "what has not left is cancelled; jobs hold ids only",
    "dead_letter": "deleted",
    "provider_ref": "deleted",
    "early_receipt": "deleted",
    "hook_message": "deleted",
    "inbound_message": "deleted",
    "webhook_health": "deleted",
    "digest_window": "deleted",
    "digest_item": "deleted with their window; they hold ids only",
    "cap_counter": "deleted",
    "send_once": "deleted",
    "broadcast": "the user is taken out of lists; what it said to everybody stays",
    "broadcast_cohort": "blanked where the cursor stands at the user and nothing is left to tell",
    "audit": "blanked: what stood there before and after; that something was done stays, with the user's id",
    "suppression": "kept, so that a no outlives the next import; deleted when the request asks for it",
    "erasure": "deleted when the erasure is done",
    "idempotency": "kept for its 24 hours; holds ids of notifications, and hashes of requests",
    "blob": "kept as long as notifications: content-addressed, it says nothing of whom it was sent to",
    "segment": "kept: a condition is the project's own, whomever it names",
    "event_rule": "kept: the project's own",
    "dimension": "counts only",
    "rollup": "counts only",
    "rollup_delta": "counts only",
    **dict.fromkeys(
        (
            "project", "api_key", "key_budget", "project_pace", "category", "template", "template_version", "type",
            "type_version", "account", "account_state", "account_usage", "hook", "topic", "segment_slot",
            "alembic_version",
        ),
        "holds nothing of users",
    ),
}  # fmt: skip
"""What an erasure does in each table. One that is not here makes the build red."""


class _Worker(Caller, frozen=True):
    """Goes on with what a key began."""

    @property
    def actor(self) -> Actor:
        """Nobody's key."""
        return Actor(self.project_id, "system")


class _Page(NamedTuple):
    """What became of a page of notifications."""

    cursor: UUID | None
    """None: it was the last."""
    busy: int
    """Notifications that are being sent at this moment."""


class Eraser:
    """Erases users: an API process begins, a worker goes on."""

    def __init__(self, database: Database, intervener: Intervener, clock: Clock) -> None:
        self._database = database
        self._intervener = intervener
        self._clock = clock

    async def erase(self, caller: Caller, user_id: str, *, suppressions: bool) -> bool:
        """Erase a user, whether they were deleted before or not. False: the rest follows by itself, within minutes.
        Repeating it looks again, until all is done.

        Raises:
            Forbidden: the caller has a test key.
            NotFound: there is no such user, and nothing was sent to one of this id.
        """
        if caller.test:
            raise Forbidden("A test key cannot erase users.")
        if not await self._database.fetchval(SQL.load_traces, caller.project_id, user_id):
            raise NotFound("There is no such user in this project.")

        async def begin(conn: Connection) -> Erasure:
            # Stamped from the same clock as what comes after, so that a worker knows whom it is about.
            erasure, addresses = await erasures.begin_erasure(
                conn,
                caller.actor,
                user_id,
                suppressions=suppressions,
                now=self._clock.db_now(),
                again_after=_AGAIN_AFTER,
            )
            await self._forget_rest(conn, erasure, addresses)
            return erasure

        erasure = await self._database.transaction(begin)
        return await self._run(caller, erasure, pages=REQUEST_PAGES)

    async def resume(self) -> None:
        """Go on with the erasures that are due."""
        while True:
            now = self._clock.db_now()
            erasure = await erasures.claim_erasure(self._database, now, _AGAIN_AFTER)
            if erasure is None:
                return
            caller = _Worker(erasure.project_id, "", _NO_ID, frozenset({Scope.manage}), False)
            done = await self._run(caller, erasure, pages=None)
            settled_at = erasure.requested_at + SETTLED_AFTER
            if not done:
                await erasures.postpone_erasure(self._database, erasure, self._clock.now() + _BUSY_AFTER)
            elif self._clock.now() < settled_at:
                await erasures.postpone_erasure(self._database, erasure, settled_at)
            else:

                async def look_again(conn: Connection, erasure: Erasure = erasure) -> None:
                    await erasures.forget_again(conn, erasure)
                    await self._forget_rest(conn, erasure, ())

                await self._database.transaction(look_again)
                await erasures.end_erasure(self._database, erasure)
                log.info("privacy.erased", project=erasure.project_id)

    async def _run(self, caller: Caller, erasure: Erasure, *, pages: int | None) -> bool:
        """Blank the user's notifications; says whether all are."""
        # Somebody new may have got the id: what was sent to them is theirs.
        born = await erasures.load_reborn(self._database, erasure)
        last = _LAST_ID if born is None else ids.first_id_at(born)
        cursor: UUID | None = _NO_ID
        busy = 0
        while cursor is not None:
            if pages is not None:
                if pages == 0:
                    return False
                pages -= 1
            page = await self._erase_page(caller, erasure, cursor, last)
            cursor = page.cursor
            busy += page.busy
        return busy == 0

    async def _erase_page(self, caller: Caller, erasure: Erasure, after: UUID, last: UUID) -> _Page:
        place = erasure.project_id, erasure.user_id
        rows = await self._database.fetch(SQL.list_user_notifications, *place, after, last, PAGE)
        found = [row["id"] for row in rows]
        if not found:
            return _Page(None, 0)
        # One by one, each in its own transaction: few of many have not left yet.
        async with self._database.acquire() as conn:
            waiting = await _list_waiting(conn, erasure.project_id, found)
        for notification_id in sorted(waiting):
            await self._intervener.cancel(caller, notification_id)

        async def blank(conn: Connection) -> int:
            low, high = ids.family_bounds(found)
            rows = await conn.fetch(SQL.lock_user_notifications, *place, found, low, high)
            locked = [row["id"] for row in rows]
            # Those that are being sent: their settling would write of them again.
            busy = await _list_waiting(conn, erasure.project_id, locked)
            await self._blank(conn, erasure, [id_ for id_ in locked if id_ not in busy])
            return len(busy)

        busy = await self._database.transaction(blank)
        return _Page(found[-1] if len(found) == PAGE else None, busy)

    async def _blank(self, conn: Connection, erasure: Erasure, notifications: Sequence[UUID]) -> None:
        if not notifications:
            return
        project_id = erasure.project_id
        low, high = ids.family_bounds(notifications)
        families = _to_families(notifications)
        deliveries = await conn.fetch(SQL.load_user_deliveries, project_id, *families, low, high)
        events = await conn.fetch(SQL.load_user_events, project_id, *families, low, high)
        refs = {
            (row["account_id"], row["provider_id"])
            for row in (*deliveries, *events)
            if row["account_id"] is not None and row["provider_id"] is not None
        }
        if refs:
            await conn.execute(SQL.delete_refs, project_id, *to_columns(sorted(refs)))
        delivery_ids = [row["id"] for row in deliveries]
        await conn.execute(SQL.blank_events, project_id, [row["id"] for row in events], low, high)
        await conn.execute(SQL.blank_deliveries, project_id, delivery_ids, low, high)
        await conn.execute(SQL.delete_letters_of, project_id, delivery_ids)
        await conn.execute(SQL.delete_messages_of, project_id, *families[1:])
        await conn.execute(SQL.blank_runs, project_id, notifications, low, high)
        await conn.execute(SQL.blank_notifications, project_id, notifications, low, high)
        # They may have had other addresses when these were sent.
        used = {(row["channel"], row["address"]) for row in deliveries if row["address"]}
        await self._forget_addresses(conn, erasure, {pair for pair in used if pair[0] != Channel.in_app})

    async def _forget_rest(self, conn: Connection, erasure: Erasure, addresses: Collection[Address]) -> None:
        """What is neither the directory's nor a notification's."""
        project_id, user_id = erasure.project_id, erasure.user_id
        await self._forget_addresses(conn, erasure, addresses)
        await self._forget_targets(conn, project_id, [to_target(user_id, None, None)])
        rows = await conn.fetch(SQL.list_naming_broadcasts, project_id, user_id)
        if rows:
            naming = [row["id"] for row in rows]
            await conn.execute(SQL.blank_audiences, project_id, naming, user_id)
            await conn.execute(SQL.blank_cursors, project_id, naming, user_id)

    async def _forget_addresses(self, conn: Connection, erasure: Erasure, addresses: Collection[Address]) -> None:
        """What is kept by addresses, of those that nobody else has."""
        if not addresses or not (own := await erasures.list_own(conn, erasure, addresses)):
            return
        project_id = erasure.project_id
        columns = to_columns(own)
        values = columns[1]
        await erasures.forget_addresses(conn, erasure, own)
        await conn.execute(SQL.delete_early_of, project_id, values)
        if phones := [value for channel, value in own if channel == Channel.sms]:
            await conn.execute(SQL.delete_inbound_of, project_id, *columns)
            await conn.execute(SQL.delete_inbound_notices, project_id, phones)
        if urls := [value for channel, value in own if channel == Channel.webhook]:
            await conn.execute(SQL.delete_endpoints_of, project_id, urls)
        await self._forget_targets(conn, project_id, [to_target(None, *address) for address in own])

    async def _forget_targets(self, conn: Connection, project_id: int, targets: Sequence[str]) -> None:
        rows = await conn.fetch(SQL.list_windows_of, project_id, targets)
        if rows:
            windows = [row["id"] for row in rows]
            # Whoever is just closing one holds its job, and is waited for.
            await queue.remove_free_jobs(conn, project_id, windows)
            await conn.execute(SQL.delete_windows_of, project_id, windows)
        await conn.execute(SQL.delete_counters_of, project_id, targets)
        await conn.execute(SQL.delete_once_of, project_id, targets)


async def _list_waiting(conn: Connection, project_id: int, notifications: Sequence[UUID]) -> set[UUID]:
    """Those of the notifications that have a job, for themselves or for one of their deliveries."""
    if not notifications:
        return set()
    low, high = ids.family_bounds(notifications)
    families = _to_families(notifications)
    rows = await conn.fetch(SQL.load_user_deliveries, project_id, *families, low, high)
    owners = {row["id"]: row["notification_id"] for row in rows} | {id_: id_ for id_ in notifications}
    return {owners[id_] for id_ in await queue.load_jobs(conn, project_id, sorted(owners))}


def _to_families(notifications: Iterable[UUID]) -> tuple[list[UUID], list[UUID], list[UUID]]:
    found = list(notifications)
    ranges = [ids.family_range(id_) for id_ in found]
    return found, [low for low, _ in ranges], [high for _, high in ranges]


# ---------------------------------------------------------------- export


_NUMBERED: Final[Mapping[str, Any]] = {
    "channel": Channel,
    "status": Status,
    "kind": EventKind,
    "priority": Priority,
}
_BITS: Final = frozenset({"engagement", "machine_engagement"})
_DOCUMENTS: Final = frozenset(
    {
        "attributes", "preferences", "quiet_hours", "actions", "data", "content", "metadata", "options", "trail",
        "detail", "report", "hits", "before", "after", "items", "body",
    }
)  # fmt: skip
"""Columns that are JSON, where they hold text; but `body` of an item of the inbox is text."""
_PREFIXES: Final = {
    "notification_id": ids.NOTIFICATION,
    "delivery_id": ids.DELIVERY,
    "event_id": ids.EVENT,
    "broadcast_id": ids.BROADCAST,
}

_encode: Final = msgspec.json.Encoder().encode


async def export_user(database: Database, project_id: int, user_id: str, now: datetime) -> AsyncIterator[bytes]:
    """Everything that is known of a user, in every table: a JSON document in pieces.

    It is read page by page, without one snapshot over all: what changes meanwhile is in it or not.

    Raises:
        NotFound: there is no such user, and nothing was sent to one of this id.
    """
    place = project_id, user_id
    user = await database.fetchrow(SQL.export_user, *place)
    sent = await database.fetch(SQL.list_user_notifications, *place, _NO_ID, _LAST_ID, 1)
    if user is None and not sent:
        raise NotFound("There is no such user in this project.")
    return _export(database, place, user, now)


async def _export(
    database: Database, place: tuple[int, str], user: Record | None, now: datetime
) -> AsyncIterator[bytes]:
    project_id, user_id = place
    addresses = await database.fetch(SQL.export_addresses, *place)
    pairs = [[row["channel"] for row in addresses], [row["value"] for row in addresses]]
    values = pairs[1]
    targets = [to_target(user_id, None, None), *(to_target(None, row["channel"], row["value"]) for row in addresses)]
    yield b'{"exported_at":' + _encode(now.astimezone(UTC)) + b',"id":' + _encode(user_id)
    yield b',"user":' + (b"null" if user is None else _encode(_to_shown(user)))
    for name, query, arguments in (
        ("addresses", SQL.export_addresses, place),
        ("engagement", SQL.export_engagement, place),
        ("address_consents", SQL.export_address_consents, (project_id, *pairs)),
        ("suppressions", SQL.export_suppressions, (project_id, *pairs)),
        ("received_messages", SQL.export_inbound, (project_id, *pairs)),
        ("waiting_receipts", SQL.export_early, (project_id, values)),
        ("failing_endpoints", SQL.export_endpoints, (project_id, values)),
        ("digests", SQL.export_digests, (project_id, targets)),
        ("limits", SQL.export_counters, (project_id, targets)),
        ("once", SQL.export_once, (project_id, targets)),
    ):
        rows = await database.fetch(query, *arguments)
        yield _to_member(name) + _encode([_to_shown(row, raw_body=name != "received_messages") for row in rows])
    broadcasts = await database.fetch(SQL.list_naming_broadcasts, *place)
    yield _to_member("broadcasts") + _encode([ids.to_public(ids.BROADCAST, row["id"]) for row in broadcasts])
    for name, query, key, first in (
        ("consents", SQL.export_consents, "id", _NO_ID),
        ("topics", SQL.export_topics, "key", ""),
        ("inbox", SQL.export_inbox, "seq", -1),
        ("audit", SQL.export_audit, "id", _NO_ID),
    ):
        async for piece in _pages(database, name, query, place, key, first):
            yield piece
    async for piece in _notifications(database, place):
        yield piece
    yield b"}"


async def _pages(
    database: Database, name: str, query: str, place: tuple[int, str], key: str, first: Any
) -> AsyncIterator[bytes]:
    yield _to_member(name) + b"["
    after = first
    comma = b""
    while rows := await database.fetch(query, *place, after, PAGE):
        yield comma + b",".join(_encode(_to_shown(row, raw_body=False)) for row in rows)
        comma = b","
        after = rows[-1][key]
        if len(rows) < PAGE:
            break
    yield b"]"


async def _notifications(database: Database, place: tuple[int, str]) -> AsyncIterator[bytes]:
    """With their deliveries, events and what hooks are told of them."""
    project_id = place[0]
    yield _to_member("notifications") + b"["
    after = _NO_ID
    comma = b""
    while rows := await database.fetch(SQL.export_notifications, *place, after, PAGE):
        found = [row["id"] for row in rows]
        families = _to_families(found)
        low, high = ids.family_bounds(found)
        parts: dict[int, dict[str, Any]] = {}
        for row in rows:
            shown = _to_shown(row, prefix=ids.NOTIFICATION)
            parts[row["id"].int] = {**shown, "deliveries": [], "events": [], "hook_messages": []}
        for row in await database.fetch(SQL.export_deliveries, project_id, *families, low, high):
            parts[row["notification_id"].int]["deliveries"].append(_to_shown(row, prefix=ids.DELIVERY))
        for row in await database.fetch(SQL.export_events, project_id, *families, low, high):
            parts[row["notification_id"].int]["events"].append(_to_shown(row, prefix=ids.EVENT))
        by_family = {number >> 64: part for number, part in parts.items()}
        for row in await database.fetch(SQL.export_messages, project_id, *families[1:]):
            by_family[row["event_id"].int >> 64]["hook_messages"].append(_to_shown(row))
        yield comma + b",".join(_encode(part) for part in parts.values())
        comma = b","
        after = found[-1]
        if len(rows) < PAGE:
            break
    yield b"]"


def _to_member(name: str) -> bytes:
    return b"," + _encode(name) + b":"


def _to_shown(row: Record, *, prefix: str | None = None, raw_body: bool = True) -> dict[str, Any]:
    """A row with words for numbers and public ids."""
    shown: dict[str, Any] = {}
    for name, value in row.items():
        if value is None or name == "segments":
            shown[name] = value
        elif name in _NUMBERED:
            shown[name] = _NUMBERED[name](value).name
        elif name in _BITS:
            shown[name] = [member.name for member in Engagement if value & member]
        elif name in _PREFIXES:
            shown[name] = ids.to_public(_PREFIXES[name], value)
        elif name == "id" and prefix is not None:
            shown[name] = ids.to_public(prefix, value)
        elif name in _DOCUMENTS and isinstance(value, str) and (raw_body or name != "body"):
            shown[name] = msgspec.Raw(value.encode())
        else:
            shown[name] = value
    return shown
