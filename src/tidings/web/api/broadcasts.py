"""/api/v1/broadcasts: one request for many."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import BeforeValidator, Field, TypeAdapter, WithJsonSchema

from tidings import ids
from tidings.db.pool import Connection
from tidings.flow import broadcasts
from tidings.flow.audience import SOURCES_MAX, USERS_MAX, Sources
from tidings.flow.broadcasts import Ask, Broadcast, BroadcastStatus
from tidings.flow.options import Options
from tidings.flow.request import Request, To
from tidings.model.words import Guarantee
from tidings.web.deps import Given, OnceOnly, Paging, Reader, Sender
from tidings.web.fields import Body, Moment, Page, View, public_id
from tidings.web.hot import explain
from tidings.web.turns import LOOKS

router = APIRouter(prefix="/broadcasts", tags=["broadcasts"])

_LOCAL: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d(:\d\d)?")


def _parse_local_time(value: Any) -> datetime:
    if not isinstance(value, str) or not _LOCAL.fullmatch(value):
        raise ValueError("must be a date and a time of day without an offset, such as 2026-12-01T09:00")
    try:
        return datetime.fromisoformat(value.upper())
    except ValueError:
        raise ValueError("must be a time that exists, such as 2026-12-01T09:00") from None


_UserId = Annotated[str, Field(min_length=1, max_length=255)]
_Topic = Annotated[str, Field(min_length=1, max_length=210)]
_Segment = Annotated[str, Field(min_length=1, max_length=64)]
_LocalTime = Annotated[
    datetime, BeforeValidator(_parse_local_time), WithJsonSchema({"type": "string", "examples": ["2026-12-01T09:00"]})
]
BroadcastId = Annotated[UUID, public_id(ids.BROADCAST)]


class AudienceBody(Body):
    """Users, from as many sources as are named; whoever comes from several is told once."""

    users: Annotated[list[_UserId], Field(max_length=USERS_MAX)] = Field(default=[], examples=[["u-42"]])
    """Ids. Those that do not exist are passed over."""
    topic: _Topic | None = None
    """Who is subscribed to it; `project/42/#` is `project/42` and all below."""
    topics: Annotated[list[_Topic], Field(max_length=SOURCES_MAX)] = Field(default=[])
    segment: _Segment | None = None
    segments: Annotated[list[_Segment], Field(max_length=SOURCES_MAX)] = Field(default=[])
    all: bool = False
    """Everybody in the project."""

    def to_sources(self) -> Sources:
        """As the road takes it."""
        return Sources(
            self.users,
            [*self.topics, *([self.topic] if self.topic is not None else [])],
            [*self.segments, *([self.segment] if self.segment is not None else [])],
            self.all,
        )


class BroadcastBody(Body):
    """A broadcast as a caller gives it: what to say, as in a notification, and to whom."""

    type: Annotated[str, Field(min_length=1, max_length=64)]
    to: AudienceBody
    exclude: AudienceBody = AudienceBody()
    """Who is left out, whatever source they come from."""
    data: dict[str, Any] | None = None
    """The template's variables, the same for everybody."""
    priority: Literal["critical", "high", "medium", "low"] | None = None
    channels: list[Literal["email", "sms", "push", "in_app", "webhook", "chat"]] | None = None
    locale: str | None = None
    metadata: dict[str, str] | None = None
    guarantee: Literal["at_least_once", "at_most_once"] | None = None
    options: dict[str, Any] | None = None
    once: str | None = None
    """At most one notification with this key reaches each user, whatever its type."""
    send_at: Moment | None = None
    local_time: _LocalTime | None = None
    """On each user's own clock, by their time zone."""
    expires_at: Moment | None = None
    rate: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """Users per second; without it, as fast as the messages leave."""
    dry_run: bool = False
    """Only say how many users there are, with some of them."""
    confirm: Annotated[int, Field(ge=0)] | None = None
    """How many users you have agreed to; needed above the project's `confirm_above`."""

    def to_ask(self) -> Ask:
        """As the road takes it.

        Raises:
            Invalid: options that do not exist.
        """
        try:
            options = None if self.options is None else msgspec.convert(self.options, Options)
        except msgspec.ValidationError as error:
            raise explain(error, at="/options") from None
        return Ask(
            Request(
                to=To(user="-"),  # a stand-in: what is checked here is the same for all of them
                type=self.type,
                data=self.data,
                priority=self.priority,
                channels=self.channels,
                guarantee=None if self.guarantee is None else Guarantee(self.guarantee),
                send_at=self.send_at,
                expires_at=self.expires_at,
                locale=self.locale,
                metadata=self.metadata,
                options=options,
                once=self.once,
            ),
            self.to.to_sources(),
            self.exclude.to_sources(),
            self.local_time,
            self.rate,
            self.confirm,
        )


class AudienceView(View):
    """The sources of an audience; those that were named."""

    users: int = 0
    """How many were named."""
    topics: list[str] = Field(default=[])
    segments: list[str] = Field(default=[])
    all: bool = False


class BroadcastView(View):
    """A broadcast."""

    id: str
    type: str
    type_version: int
    status: Literal["scheduled", "running", "paused", "done", "cancelled"]
    """`done`: every user's notification has been made; the last of them may still be on their way."""
    to: AudienceView
    exclude: AudienceView
    estimated: int
    """Users when it was made."""
    expanded: int
    """Users whose notification has been made."""
    priority: str
    channels: list[str] | None
    locale: str | None
    metadata: dict[str, str]
    once: str | None
    rate: float | None
    send_at: datetime | None
    local_time: str | None
    expires_at: datetime | None
    test: bool
    created_at: datetime
    ended_at: datetime | None
    cancelled_at: datetime | None


class EstimateView(View):
    """The answer to a dry run."""

    count: int
    sample: list[str]
    """Some of them, always the same as long as nothing changes."""


_encode_estimate: Final = TypeAdapter(EstimateView)


@router.post(
    "",
    status_code=202,
    response_model=BroadcastView,
    responses={200: {"model": EstimateView, "description": "A dry run"}},
)
async def create_broadcast(
    deps: Given, caller: Sender, body: BroadcastBody, once: OnceOnly, request: HttpRequest
) -> Response:
    """Tells many. What is checked of a notification is checked before anybody is told; 409 `confirmation-needed` when
    it is for more users than `confirm` says and the project lets pass. With `dry_run` (scope `read` too) nothing is
    stored; 429 while two other questions of the project about who is meant are being answered."""
    ask = body.to_ask()
    if body.dry_run:
        with LOOKS.take(caller.project_id):
            estimate = await deps.database.transaction(lambda conn: deps.broadcaster.estimate(conn, caller, ask))
        view = EstimateView.model_validate(estimate)
        return Response(_encode_estimate.dump_json(view), media_type="application/json")

    async def work(conn: Connection) -> dict[str, Any]:
        trace = request.state.trace.to_header()
        return _to_view(await deps.broadcaster.create(conn, caller, ask, traceparent=trace))

    answer = await once.run(work, view=BroadcastView, status=202)
    deps.broadcaster.announce()
    return answer


@router.get("", response_model=Page[BroadcastView])
async def list_broadcasts(
    deps: Given,
    caller: Reader,
    page: Paging,
    status: Literal["scheduled", "running", "paused", "done", "cancelled"] | None = None,
) -> Any:
    """Broadcasts, newest first."""
    listing = f"broadcasts:{status}"
    found = await broadcasts.list_broadcasts(
        deps.database,
        caller.project_id,
        status=None if status is None else BroadcastStatus[status],
        before=page.after(UUID, listing),
        limit=page.fetch,
    )
    cut = page.cut(found, lambda broadcast: broadcast.id, listing)
    return {**cut, "items": [_to_view(broadcast) for broadcast in cut["items"]]}


@router.get("/{broadcast_id}", response_model=BroadcastView)
async def get_broadcast(deps: Given, caller: Reader, broadcast_id: BroadcastId) -> Any:
    """One broadcast, and how far it is."""
    return _to_view(await broadcasts.load_broadcast(deps.database, caller.project_id, broadcast_id))


@router.post("/{broadcast_id}/pause", response_model=BroadcastView)
async def pause_broadcast(deps: Given, caller: Sender, broadcast_id: BroadcastId, once: OnceOnly) -> Response:
    """Makes no further notifications until it is resumed. Those that were made go their way."""

    async def work(conn: Connection) -> dict[str, Any]:
        return _to_view(await deps.broadcaster.pause(conn, caller, broadcast_id))

    return await once.run(work, view=BroadcastView)


@router.post("/{broadcast_id}/resume", response_model=BroadcastView)
async def resume_broadcast(deps: Given, caller: Sender, broadcast_id: BroadcastId, once: OnceOnly) -> Response:
    """Goes on where it was paused."""

    async def work(conn: Connection) -> dict[str, Any]:
        return _to_view(await deps.broadcaster.resume(conn, caller, broadcast_id))

    answer = await once.run(work, view=BroadcastView)
    deps.broadcaster.announce()
    return answer


@router.post("/{broadcast_id}/cancel", response_model=BroadcastView)
async def cancel_broadcast(deps: Given, caller: Sender, broadcast_id: BroadcastId, once: OnceOnly) -> Response:
    """Stops it for good, also what has been made and is not sent yet. What was sent stays sent."""

    async def work(conn: Connection) -> dict[str, Any]:
        return _to_view(await deps.broadcaster.cancel(conn, caller, broadcast_id))

    return await once.run(work, view=BroadcastView)


def _to_view(broadcast: Broadcast) -> dict[str, Any]:
    view: Mapping[str, Any] = {name: getattr(broadcast, name) for name in broadcast.__struct_fields__}
    local = broadcast.local_time
    return {
        **view,
        "id": ids.to_public(ids.BROADCAST, broadcast.id),
        "local_time": None if local is None else local.isoformat(timespec="minutes" if not local.second else "seconds"),
    }
