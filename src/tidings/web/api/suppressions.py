"""/api/v1/suppressions: addresses that messages are not to reach again."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import Field

from tidings import ids
from tidings.directory import suppressions
from tidings.directory.suppressions import Suppression
from tidings.errors import FieldError, Forbidden, Invalid
from tidings.model.words import CHANNELS_OF_THIS_VERSION, Channel
from tidings.web.deps import Admin, Given, Paging, Reader
from tidings.web.fields import Body, Page, View

router = APIRouter(prefix="/suppressions", tags=["suppressions"])

Address = Annotated[str, Field(min_length=1, max_length=2048)]
Stream = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]


class SuppressionBody(Body):
    """An address to suppress, or to lift a suppression from."""

    channel: str = Field(examples=["email"])
    address: Address = Field(examples=["ada@example.com"])
    stream: Stream = ""
    """Empty: the whole channel. A category's key: that category. `-`: messages without a
    type. `sender:+1555…`: what comes from that sender."""


class NewSuppressionBody(SuppressionBody):
    """An address to suppress."""

    note: Annotated[str | None, Field(max_length=500)] = None
    """Why, for whoever looks at it later."""


class SuppressionView(View):
    """A suppressed address."""

    channel: str
    address: str
    stream: str
    reason: str
    """`manual`, or the reason of the delivery that it follows from."""
    note: str | None
    delivery: str | None
    created_at: datetime


@router.get("", response_model=Page[SuppressionView])
async def list_suppressions(
    deps: Given,
    caller: Reader,
    page: Paging,
    channel: Annotated[str | None, Query()] = None,
    address: Annotated[str | None, Query(max_length=2048)] = None,
    reason: Annotated[str | None, Query(max_length=64)] = None,
    stream: Annotated[str | None, Query(max_length=200)] = None,
) -> Any:
    """Suppressed addresses, newest first."""
    on = _parse_channel(channel, parameter=True) if channel is not None else None
    if on is not None and address is not None:
        address = suppressions.parse_address(on, address)
    listing = f"suppressions:{channel}:{address}:{reason}:{stream}"
    found = await suppressions.list_suppressions(
        deps.database,
        caller.project_id,
        channel=on,
        address=address,
        reason=reason,
        stream=stream,
        after=page.after(tuple[datetime, int, str, str], listing),
        limit=page.fetch,
    )
    cut = page.cut(found, lambda suppression: suppression.place, listing)
    cut["items"] = [_to_view(item) for item in cut["items"]]
    return cut


@router.put("", response_model=SuppressionView, responses={201: {"model": SuppressionView, "description": "Made"}})
async def put_suppression(deps: Given, caller: Admin, body: NewSuppressionBody, response: Response) -> SuppressionView:
    """Suppresses an address (201). One that is suppressed already stays as it is (200)."""
    if caller.test:
        raise Forbidden("A test key cannot suppress addresses: live messages would not reach them.")
    channel = _parse_channel(body.channel)
    made, new = await deps.database.transaction(
        lambda conn: suppressions.put_suppression(conn, caller.actor, channel, body.address, body.stream, body.note)
    )
    response.status_code = 201 if new else 200
    return _to_view(made)


class LiftedView(View):
    """What became of a suppression."""

    lifted: bool
    """False: the address was not suppressed there."""


@router.post("/lift")
async def lift_suppression(deps: Given, caller: Admin, body: SuppressionBody) -> LiftedView:
    """Lifts a suppression: messages may reach the address again. Do so only when its owner asked for it."""
    if caller.test:
        raise Forbidden("A test key cannot lift suppressions: live messages would reach these addresses again.")
    channel = _parse_channel(body.channel)
    lifted = await deps.database.transaction(
        lambda conn: suppressions.delete_suppression(conn, caller.actor, channel, body.address, body.stream)
    )
    return LiftedView(lifted=lifted)


def _parse_channel(name: str, *, parameter: bool = False) -> Channel:
    if name in (c.name for c in CHANNELS_OF_THIS_VERSION):
        return Channel[name]
    known = ", ".join(c.name for c in CHANNELS_OF_THIS_VERSION)
    detail = f"there is no channel {name[:64]!r}; there are {known}"
    raise Invalid(errors=[FieldError(detail, parameter="channel") if parameter else FieldError(detail, "/channel")])


def _to_view(item: Suppression) -> SuppressionView:
    return SuppressionView(
        channel=item.channel.name,
        address=item.address,
        stream=item.stream,
        reason=item.reason,
        note=item.note,
        delivery=ids.to_public(ids.DELIVERY, item.delivery_id) if item.delivery_id else None,
        created_at=item.created_at,
    )
