"""Lists, counts and marks of an inbox."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from fastapi import APIRouter, Depends, Path, Query
from pydantic import Field

from tidings.flow.inbox import InboxCounts, InboxItem, Mark, Owner
from tidings.ids import DELIVERY
from tidings.web.deps import Deps, Given, PageRequest, Paging
from tidings.web.fields import Body, Page, View, public_id
from tidings.web.inbox.door import AsUser

router = APIRouter(prefix="/inbox", tags=["inbox"])

_SEQ_MAX: Final = (1 << 63) - 1

ItemId = Annotated[UUID, public_id(DELIVERY), Path(description="The item's id, which is its delivery's.")]


class ActionView(View):
    """A button on an inbox item."""

    id: str
    title: str
    url: str | None


class InboxItemView(View):
    """One message in a user's inbox."""

    id: str
    """The delivery's id."""
    seq: int
    """Grows from item to item of the user."""
    changed_seq: int
    """Grows with every change of any item of the user: of two versions of an item the one with the larger number is
    the newer."""
    notification: str
    title: str
    body: str
    url: str | None
    actions: list[ActionView]
    category: str | None
    created_at: datetime
    seen_at: datetime | None
    read_at: datetime | None
    clicked_at: datetime | None
    archived_at: datetime | None


class CountsView(View):
    """How many items there are that are not archived."""

    total: int
    unseen: int
    unread: int
    last_seq: int
    """The number of the newest change: a stream opened with `?after=` this tells everything that comes after it."""


class MarkAllBody(Body):
    """What shall be marked."""

    up_to: Annotated[int, Field(ge=0, le=_SEQ_MAX)] | None = None
    """The `seq` of the newest item that was shown; without it: all that there are."""


class _Filters(msgspec.Struct, frozen=True):
    unread: bool
    archived: bool
    category: str | None


def _filters(
    unread: Annotated[bool, Query(description="Only what is neither read nor archived.")] = False,
    archived: Annotated[bool, Query(description="What is archived, instead of what is not.")] = False,
    category: Annotated[str | None, Query(max_length=64, description="Only this category.")] = None,
) -> _Filters:
    return _Filters(unread, archived, category)


InboxFilters = Annotated[_Filters, Depends(_filters)]


async def list_page(deps: Deps, owner: Owner, page: PageRequest, filters: _Filters) -> dict[str, Any]:
    """A page of an inbox, for its user and for the application."""
    listing = f"inbox {owner[1]} {filters.unread} {filters.archived} {filters.category}"
    found = await deps.inbox.list_items(
        owner,
        unread=filters.unread,
        archived=filters.archived,
        category=filters.category,
        before=page.after(int, listing),
        limit=page.fetch,
    )
    return page.cut(found, lambda item: item.seq, listing)


@router.get("", response_model=Page[InboxItemView])
async def list_own_inbox(deps: Given, user: AsUser, page: Paging, filters: InboxFilters) -> Any:
    """The user's items, newest first."""
    return await list_page(deps, user.owner, page, filters)


@router.get("/counts", response_model=CountsView)
async def get_counts(deps: Given, user: AsUser) -> InboxCounts:
    """How many items are unseen and unread."""
    return await deps.inbox.load_counts(user.owner)


@router.post("/items/{delivery_id}/{mark}", response_model=InboxItemView)
async def mark_item(deps: Given, user: AsUser, delivery_id: ItemId, mark: Mark) -> InboxItem:
    """Marks an item, and answers with it. What was read was seen, and what was clicked was read. Marking it again
    changes nothing."""
    return await deps.inbox.mark_one(user.owner, delivery_id, mark)


@router.post("/seen-all", response_model=CountsView)
async def mark_all_seen(deps: Given, user: AsUser, body: MarkAllBody) -> InboxCounts:
    """Marks everything as seen, and answers with the counts after it."""
    return await deps.inbox.mark_all(user.owner, Mark.seen, up_to=body.up_to)


@router.post("/read-all", response_model=CountsView)
async def mark_all_read(deps: Given, user: AsUser, body: MarkAllBody) -> InboxCounts:
    """Marks everything as read, and answers with the counts after it."""
    return await deps.inbox.mark_all(user.owner, Mark.read, up_to=body.up_to)
