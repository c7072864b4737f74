"""/api/v1/notifications: what became of them. Taking them in is `tidings.web.hot`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from fastapi import APIRouter, Query

from tidings import ids
from tidings.errors import FieldError, Invalid
from tidings.flow import explain, timeline
from tidings.model.words import Channel, Status
from tidings.web.api.explain import ExplanationView
from tidings.web.deps import Given, Paging, Reader, Sender
from tidings.web.fields import Moment, Page, View, public_id

router = APIRouter(prefix="/notifications", tags=["notifications"])

NotificationId = Annotated[UUID, public_id(ids.NOTIFICATION)]


class DeliveryView(View):
    """One notification on one channel to one address."""

    id: str
    channel: str
    address: str
    account: str | None
    provider: str | None
    status: str
    engagement: list[str]
    attempts: int
    reason: str | None
    locale: str | None
    sent_at: datetime | None
    delivered_at: datetime | None


class MomentView(View):
    """A line of the timeline."""

    at: datetime
    event: str
    delivery: str | None
    channel: str | None
    provider: str | None
    attempt: int | None
    reason: str | None
    detail: Any


class NotificationView(View):
    """A notification with its deliveries and its life so far."""

    id: str
    type: str | None
    type_version: int | None
    user: str | None
    to: str | None
    priority: str
    status: str
    created_at: datetime
    send_at: datetime | None
    expires_at: datetime | None
    cancelled_at: datetime | None
    reason: str | None
    """What it waits for, or why nothing more is sent."""
    until: datetime | None
    """When it goes on."""
    digest: str | None
    """The notification that goes in its place, or will."""
    items: int | None
    """How many notifications it stands for, if it is a digest."""
    broadcast: str | None
    metadata: dict[str, str]
    test: bool
    deliveries: list[DeliveryView]
    timeline: list[MomentView]


class LineView(View):
    """A notification in a list."""

    id: str
    type: str | None
    user: str | None
    to: str | None
    priority: str
    status: str
    created_at: datetime
    send_at: datetime | None


class CancelView(View):
    """The definite answer to a cancel."""

    id: str
    result: Literal["cancelled", "too_late", "partly"]


@router.get("", response_model=Page[LineView])
async def list_notifications(
    deps: Given,
    caller: Reader,
    page: Paging,
    type: Annotated[str | None, Query(max_length=255)] = None,
    user: Annotated[str | None, Query(max_length=255)] = None,
    status: Annotated[str | None, Query(description="Of a delivery.")] = None,
    channel: Annotated[str | None, Query(description="Of a delivery.")] = None,
    since: Annotated[Moment | None, Query()] = None,
) -> Any:
    """Notifications, newest first."""
    listing = f"notifications:{type}:{user}:{status}:{channel}:{since}"
    found = await timeline.list_lines(
        deps.database,
        deps.catalog,
        caller.project_id,
        type_key=type,
        user=user,
        status=_member(Status, status, "status"),
        channel=_member(Channel, channel, "channel"),
        since=since,
        before=page.after(UUID, listing),
        limit=page.fetch,
    )
    return page.cut(found, lambda line: ids.parse_public(ids.NOTIFICATION, line.id), listing)


@router.get("/{notification_id}", response_model=NotificationView)
async def get_notification(deps: Given, caller: Reader, notification_id: NotificationId) -> timeline.NotificationView:
    """One notification: its deliveries, and its life so far."""
    return await timeline.load_view(deps.database, deps.catalog, caller.project_id, notification_id)


@router.get("/{notification_id}/explain", response_model=ExplanationView)
async def explain_notification(deps: Given, caller: Reader, notification_id: NotificationId) -> Any:
    """Why it went where it did, or did not: every rule that was asked, its answer, and where that comes from."""
    told = await explain.explain_notification(deps.database, deps.catalog, caller.project_id, notification_id)
    return msgspec.to_builtins(told, builtin_types=(datetime,))


@router.post("/{notification_id}/cancel", response_model=CancelView)
async def cancel_notification(deps: Given, caller: Sender, notification_id: NotificationId) -> Any:
    """Stops everything that has not left yet. Repeating it gives the same answer, with or without an idempotency
    key."""
    result = await deps.intervener.cancel(caller, notification_id)
    return {"id": ids.to_public(ids.NOTIFICATION, notification_id), "result": result.value}


def _member(kind: type[Status] | type[Channel], name: str | None, parameter: str) -> Any:
    if name is None:
        return None
    try:
        return kind[name]
    except KeyError:
        known = ", ".join(member.name for member in kind)
        raise Invalid(errors=[FieldError(f"is one of {known}", parameter=parameter)]) from None
