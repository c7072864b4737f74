"""Inbox: items are stored, read and marked; and a bell rings for whoever looks at them live.

One sequence per user numbers new items and changes of items alike. The counter's row lock orders all who write to an
inbox, so its numbers become visible in their order, and "what is above this number" is a complete answer: that is how a
stream goes on where another one ended, in whichever process.

What the user does is recorded as well: bits of the delivery's engagement, an event and a count, each for the first time
only. Marks that are taken back (unread, unarchive) take back nothing of that.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

import msgspec

from tidings import ids
from tidings.clock import Clock
from tidings.db.pool import Connection, Database, Record
from tidings.db.sql import load_queries
from tidings.errors import NotFound
from tidings.flow import effects
from tidings.flow.engagement import Engaged, apply_engagement, decide_engaged
from tidings.flow.evidence import Event
from tidings.flow.measure import Counts, Dimension, Meter
from tidings.model.messages import InApp, InAppAction
from tidings.model.words import Engagement, EventKind

SQL: Final = load_queries(__package__, "inbox.sql")

BELL_CHANNEL: Final = "tidings_inbox"
"""NOTIFY channel; the payload names users by `_to_tag`, one after the other."""
_TAGS_MAX: Final = 960
"""Users in one NOTIFY, whose payload is limited to 8,000 octets."""
_TAG: Final = 8
"""Characters of a tag."""

MARK_BATCH: Final = 500
"""Items marked in one transaction."""
CHANGES_MAX: Final = 20
"""Changes of one inbox that are read at a time."""

Owner: TypeAlias = tuple[int, str]
"""Whose inbox: the project's id and the user's."""

_encode: Final = msgspec.json.Encoder().encode
_decode_actions: Final = msgspec.json.Decoder(tuple[InAppAction, ...]).decode


class Mark(StrEnum):
    """What a user does to an item."""

    seen = "seen"  # it was shown to them
    read = "read"  # so it was seen as well
    unread = "unread"
    archive = "archive"
    unarchive = "unarchive"
    click = "click"  # they followed its link or an action; so it was read as well


class InboxItem(msgspec.Struct, frozen=True):
    """One message in a user's inbox."""

    id: str
    """The delivery's public id."""
    seq: int
    """Grows from item to item of the user."""
    changed_seq: int
    """Grows with every change of any item of the user."""
    notification: str
    title: str
    body: str
    url: str | None
    actions: tuple[InAppAction, ...]
    category: str | None
    created_at: datetime
    seen_at: datetime | None
    read_at: datetime | None
    clicked_at: datetime | None
    archived_at: datetime | None


class InboxCounts(msgspec.Struct, frozen=True):
    """How many items there are that are not archived."""

    total: int = 0
    unseen: int = 0
    unread: int = 0
    last_seq: int = 0
    """The number of the newest change."""


class Place(NamedTuple):
    """Where a live stream stands."""

    project_id: int
    user_id: str
    after: int | None
    """The number of the last change that it told; None: it begins with what comes now."""


class News(NamedTuple):
    """What a live stream has to tell."""

    born: datetime | None
    """When the user was made; None: there is no such user any more."""
    counts: InboxCounts
    items: Sequence[InboxItem]
    """Those that changed after the stream's place, in order of change, as they are now; at most `CHANGES_MAX`."""


class NewItem(NamedTuple):
    """An item to be stored."""

    owner: Owner
    delivery_id: UUID
    notification_id: UUID
    content: InApp
    category: str | None


# ---------------------------------------------------------------- the bell


class Bell:
    """Rings for users whose inbox has changed, in every process; call it after the commit.

    It carries hints only: whoever listens looks into the tables, and does so now and then without having heard it.

    Args:
        notify: sends a hint to all processes, this one included; None where there is only this one.
    """

    def __init__(self, notify: Callable[[str, str], None] | None = None) -> None:
        self._notify = notify
        self._listeners: list[Callable[[frozenset[str] | None], None]] = []

    def ring(self, owners: Iterable[Owner]) -> None:
        """Something changed in these inboxes."""
        tags = sorted({to_tag(owner) for owner in owners})
        for start in range(0, len(tags), _TAGS_MAX):
            payload = "".join(tags[start : start + _TAGS_MAX])
            if self._notify is not None:
                self._notify(BELL_CHANNEL, payload)
            else:
                self.hear(payload)

    def hear(self, payload: str) -> None:
        """A hint came; an empty one means that hints may have been missed."""
        if self._listeners:
            tags = frozenset(payload[at : at + _TAG] for at in range(0, len(payload), _TAG)) or None
            for listener in self._listeners:
                listener(tags)

    def listen(self, listener: Callable[[frozenset[str] | None], None]) -> None:
        """Calls `listener` with the tags of changed inboxes (see :func:`to_tag`), or None for "look at all"."""
        self._listeners.append(listener)


def to_tag(owner: Owner) -> str:
    """A short name of an inbox. Two may share one: then somebody looks in vain."""
    project_id, user_id = owner
    digest = hashlib.blake2b(f"{project_id}:{user_id}".encode(), digest_size=6).digest()
    return base64.urlsafe_b64encode(digest).decode()


# ---------------------------------------------------------------- storing


async def insert_items(conn: Connection, items: Sequence[NewItem], now: datetime | None) -> None:
    """Store items under the next numbers of their users; the counter's row lock orders the writers."""
    if not items:
        return
    per_owner = Counter(item.owner for item in items)
    owners = sorted(per_owner)
    rows = await conn.fetch(
        SQL.raise_inbox_counters, *effects.to_columns(owners), [per_owner[owner] for owner in owners]
    )
    last = {(p, u): last_seq - per_owner[p, u] for p, u, last_seq in rows}
    stored = []
    for item in items:
        last[item.owner] += 1
        content = item.content
        actions = _encode(content.actions).decode() if content.actions else None
        stored.append(
            (
                *item.owner, last[item.owner], item.delivery_id, item.notification_id, content.title, content.body,
                content.url, actions, item.category,
            )
        )  # fmt: skip
    await conn.execute(SQL.insert_inbox_items, *effects.to_columns(stored), now)


async def recall_items(conn: Connection, owner: Owner, delivery_ids: Collection[UUID], now: datetime | None) -> int:
    """Take items back from a user's inbox, live streams included; answers with how many there were. The caller rings
    the bell once that is committed."""
    locked = await conn.fetchrow(SQL.lock_inbox, *owner, now)
    if locked is None:
        return 0
    items = [_to_item(row) for row in await conn.fetch(SQL.load_items, *owner, sorted(delivery_ids))]
    if not items:
        return 0
    gone = [sum(part) for part in zip(*map(_weigh, items), strict=True)]
    last = locked["last_seq"]
    await conn.execute(SQL.apply_recalled, *owner, [item.seq for item in items], last, now)
    await conn.fetchrow(SQL.update_counter, *owner, last + len(items), *(-n for n in gone))
    return len(items)


# ---------------------------------------------------------------- marking


def decide_mark(item: InboxItem, mark: Mark, now: datetime) -> InboxItem | None:
    """The item after the mark; None when it has it already. Times tell of the first time, until they are taken back."""
    change: dict[str, datetime | None] = {}
    if mark in (Mark.seen, Mark.read, Mark.click):
        change["seen_at"] = item.seen_at or now
    if mark in (Mark.read, Mark.click):
        change["read_at"] = item.read_at or now
    match mark:
        case Mark.click:
            change["clicked_at"] = item.clicked_at or now
        case Mark.unread:
            change["read_at"] = None
        case Mark.archive:
            change["archived_at"] = item.archived_at or now
        case Mark.unarchive:
            change["archived_at"] = None
    marked = msgspec.structs.replace(item, **change)
    return None if marked == item else marked


_ENGAGEMENTS: Final = (
    ("seen_at", Engagement.seen, EventKind.seen),
    ("read_at", Engagement.read, EventKind.read),
    ("clicked_at", Engagement.clicked, EventKind.clicked),
    ("archived_at", Engagement.archived, EventKind.archived),
)
"""By the item's time that shows it: the bit of the delivery, and the event."""


def decide_engagement(before: InboxItem, after: InboxItem) -> int:
    """The bits of engagement that a change of an item shows."""
    return sum(
        bit for name, bit, _ in _ENGAGEMENTS if getattr(before, name) is None and getattr(after, name) is not None
    )


def _weigh(item: InboxItem) -> tuple[int, int, int]:
    """What an item adds to the counts: total, unseen, unread."""
    if item.archived_at is not None:
        return 0, 0, 0
    return 1, int(item.seen_at is None), int(item.read_at is None)


class Inbox:
    """Reads and marks inboxes, in an API process."""

    def __init__(
        self, database: Database, meter: Meter, clock: Clock, bell: Bell, *, mark_batch: int = MARK_BATCH
    ) -> None:
        self._database = database
        self._meter = meter
        self._clock = clock
        self._mark_batch = mark_batch
        self.bell: Final = bell

    async def list_items(
        self,
        owner: Owner,
        *,
        unread: bool = False,
        archived: bool = False,
        category: str | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> list[InboxItem]:
        """Items, newest first.

        Args:
            unread: only those that are neither read nor archived.
            archived: those that are archived, instead of those that are not.
            category: only of this one.
            before: only items with a smaller number.
        """
        below = (1 << 63) - 1 if before is None else before
        if unread:
            rows = await self._database.fetch(SQL.list_unread_items, *owner, category, below, limit)
        else:
            rows = await self._database.fetch(SQL.list_items, *owner, archived, category, below, limit)
        return [_to_item(row) for row in rows]

    async def load_counts(self, owner: Owner) -> InboxCounts:
        """How many there are."""
        row = await self._database.fetchrow(SQL.load_counts, *owner)
        return InboxCounts(*row) if row is not None else InboxCounts()

    async def load_changes(self, places: Sequence[Place]) -> list[News]:
        """What many live streams have to tell, in one statement."""
        rows = await self._database.fetch(SQL.load_changes, *effects.to_columns(places), CHANGES_MAX)
        found: list[News] = []
        for row in rows:
            if row["ord"] > len(found):
                counts = InboxCounts(row["total"], row["unseen"], row["unread"], row["last_seq"])
                found.append(News(row["born"], counts, []))
            if row["seq"] is not None:
                items = found[-1].items
                assert isinstance(items, list)
                items.append(_to_item(row))
        return found

    async def mark(self, owner: Owner, delivery_ids: Collection[UUID], mark: Mark) -> list[InboxItem]:
        """Mark these items; answers with them as they are now. Ids of what is not in this inbox are passed over."""
        wanted = list(delivery_ids)

        async def load(conn: Connection, _: int) -> Sequence[Record]:
            return await conn.fetch(SQL.load_items, *owner, wanted)

        items, _ = await self._apply(owner, mark, load)
        return items

    async def mark_one(self, owner: Owner, delivery_id: UUID, mark: Mark) -> InboxItem:
        """Mark one item; answers with it as it is now.

        Raises:
            NotFound: it is not in this inbox.
        """
        items = await self.mark(owner, [delivery_id], mark)
        if not items:
            raise NotFound("There is no such item in this inbox.")
        return items[0]

    async def mark_all(self, owner: Owner, mark: Mark, *, up_to: int | None = None) -> InboxCounts:
        """Mark as seen or as read all that is not archived; answers with the counts after it.

        Args:
            mark: `seen` or `read`.
            up_to: only items whose `seq` is at most this; None: all that there are when it begins.
        """
        block = SQL.load_unseen_items if mark is Mark.seen else SQL.load_unread_items
        after, bound, counts = 0, up_to, InboxCounts()
        while True:

            async def load(conn: Connection, last_seq: int, after: int = after) -> Sequence[Record]:
                nonlocal bound
                bound = last_seq if bound is None else bound
                return await conn.fetch(block, *owner, after, bound, self._mark_batch)

            items, counts = await self._apply(owner, mark, load)
            if len(items) < self._mark_batch:
                return counts
            after = items[-1].seq

    async def _apply(
        self, owner: Owner, mark: Mark, load: Callable[[Connection, int], Any]
    ) -> tuple[list[InboxItem], InboxCounts]:
        """Mark what `load` finds under the inbox's lock, in one transaction; then ring."""
        dimensions: set[Dimension] = set()

        async def work(conn: Connection) -> tuple[list[InboxItem], InboxCounts, bool]:
            lock = await conn.fetchrow(SQL.lock_inbox, *owner, self._clock.db_now())
            if lock is None:  # there has never been an item
                return [], InboxCounts(), False
            last, now = lock["last_seq"], lock["now"]
            items = [_to_item(row) for row in await load(conn, last)]
            changed: list[tuple[InboxItem, InboxItem]] = []
            for at, item in enumerate(items):
                if (marked := decide_mark(item, mark, now)) is not None:
                    last += 1
                    items[at] = marked = msgspec.structs.replace(marked, changed_seq=last)
                    changed.append((item, marked))
            if changed:
                rows = [(i.seq, i.changed_seq, i.seen_at, i.read_at, i.clicked_at, i.archived_at) for _, i in changed]
                await conn.execute(SQL.update_items, *owner, *effects.to_columns(rows))
                dimensions.update(await self._engage(conn, owner, changed, now))
            if not changed:
                counts = await conn.fetchrow(SQL.load_counts, *owner)
            else:
                deltas = [sum(_weigh(after)[n] - _weigh(before)[n] for before, after in changed) for n in range(3)]
                counts = await conn.fetchrow(SQL.update_counter, *owner, last, *deltas)
            assert counts is not None  # the row is locked
            return items, InboxCounts(*counts), bool(changed)

        items, counts, rings = await self._database.transaction(work)
        if rings:
            self.bell.ring([owner])
        # Counting inside the transaction interns for that transaction only; remembered here, the next one is shorter.
        await self._meter.intern(dimensions)
        return items, counts

    async def _engage(
        self, conn: Connection, owner: Owner, changed: Sequence[tuple[InboxItem, InboxItem]], now: datetime
    ) -> set[Dimension]:
        """Record what the user did for the first time with each delivery; answers with what was counted by."""
        project_id = owner[0]
        shown = {
            delivery_id: bits
            for before, after in changed
            if (bits := decide_engagement(before, after))
            and (delivery_id := ids.parse_public(ids.DELIVERY, after.id)) is not None
        }
        if not shown:
            return set()
        low, high = ids.family_bounds(shown)
        events: list[Event] = []
        counts: Counts = Counter()
        updates = []
        engaged: list[Engaged] = []
        for row in await conn.fetch(SQL.lock_engagements, project_id, list(shown), low, high):
            new = shown[row["id"]] & ~row["engagement"]
            if not new:
                continue
            updates.append((row["id"], new))
            if not row["test"] and (counted := decide_engaged(row["engagement"], new)) is not None:
                engaged.append(Engaged(*owner, row["channel"], *counted, now))
            dimension = Dimension(
                project_id,
                row["type_version_id"] or 0,
                row["category_key"] or "",
                row["channel"],
                row["account_id"] or 0,
                row["template_version_id"] or 0,
                row["variant"] or "",
                row["locale"] or "",
                row["segments"] or 0,
            )
            for _, bit, kind in _ENGAGEMENTS:
                if new & bit:
                    id_ = ids.child_id(row["id"], self._clock.random)
                    events.append(Event(id_, project_id, row["notification_id"], row["id"], kind, *(None,) * 5))
                    counts[dimension, kind] += 1
        if updates:
            await conn.execute(SQL.update_engagements, project_id, *effects.to_columns(updates), low, high)
            await effects.apply_events(conn, events, now)
            await apply_engagement(conn, engaged)
            await self._meter.apply(conn, counts)
        return {dimension for dimension, _ in counts}


def _to_item(row: Record) -> InboxItem:
    return InboxItem(
        id=ids.to_public(ids.DELIVERY, row["delivery_id"]),
        seq=row["seq"],
        changed_seq=row["changed_seq"],
        notification=ids.to_public(ids.NOTIFICATION, row["notification_id"]),
        title=row["title"],
        body=row["body"],
        url=row["url"],
        actions=_decode_actions(row["actions"]) if row["actions"] is not None else (),
        category=row["category_key"],
        created_at=row["created_at"],
        seen_at=row["seen_at"],
        read_at=row["read_at"],
        clicked_at=row["clicked_at"],
        archived_at=row["archived_at"],
    )
