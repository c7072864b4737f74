"""/api/v1/segments: saved conditions on users; who meets them is asked when it matters."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Response
from pydantic import Field

from tidings.directory import segments
from tidings.directory.segments import Segment, parse_segment
from tidings.web.deps import Admin, Given, Paging, Reader
from tidings.web.fields import Body, Key, Page, View
from tidings.web.turns import LOOKS

router = APIRouter(prefix="/segments", tags=["segments"])

_SAMPLE: Final = 10

Condition = Annotated[
    dict[str, Any],
    Field(
        examples=[{"all": [{"user": "plan", "is": "pro"}, {"engaged": "opened", "channel": "email", "within": "30d"}]}],
        description="See the reference of conditions.",
    ),
]


class SegmentBody(Body):
    """A segment as a caller gives it."""

    condition: Condition
    name: Annotated[str, Field(max_length=200)] = ""
    """For people to read."""
    tracked: bool = False
    """Analytics tell its members apart, and it is counted in the background. At most 50 of a project."""


class SegmentView(View):
    """A segment."""

    key: str
    name: str
    condition: dict[str, Any]
    tracked: bool
    counted: int | None
    """Members when they were last counted; null: not tracked, or not counted since it changed."""
    counted_at: datetime | None
    created_at: datetime
    updated_at: datetime


class SegmentPreviewBody(Body):
    """A condition to try."""

    condition: Condition


class SegmentPreviewView(View):
    """Who meets a condition now."""

    count: int
    sample: list[str]
    """Ids of up to ten of them."""


class SegmentMemberView(View):
    """A user in a segment."""

    user: str


@router.get("", response_model=Page[SegmentView])
async def list_segments(deps: Given, caller: Reader, page: Paging) -> Any:
    """All segments, by key."""
    after = page.after(str, "segments")
    found = await segments.list_segments(deps.database, caller.project_id, after=after, limit=page.fetch)
    return page.cut(found, lambda segment: segment.key, "segments")


@router.post("/preview")
async def preview_segment(deps: Given, caller: Reader, body: SegmentPreviewBody) -> SegmentPreviewView:
    """Counts who meets a condition, and names some of them. Nothing is stored. 503 when it takes longer than 5 s; 429
    while two other such questions of the project are being answered."""
    condition = parse_segment(body.condition)
    with LOOKS.take(caller.project_id):
        count = await segments.count_members(deps.database, caller.project_id, condition)
        sample = await segments.sample_members(deps.database, caller.project_id, condition, _SAMPLE)
    return SegmentPreviewView(count=count, sample=sample)


@router.get("/{key}", response_model=SegmentView)
async def get_segment(deps: Given, caller: Reader, key: Key) -> Segment:
    """One segment."""
    return await segments.load_segment(deps.database, caller.project_id, key)


@router.put("/{key}", response_model=SegmentView, responses={201: {"model": SegmentView, "description": "Made"}})
async def put_segment(deps: Given, caller: Admin, key: Key, body: SegmentBody, response: Response) -> Segment:
    """Makes a segment (201) or changes it (200); 409 when 50 others are tracked."""
    condition = parse_segment(body.condition)
    segment, made = await deps.database.transaction(
        lambda conn: segments.put_segment(
            conn, caller.actor, key, name=body.name, condition=condition, tracked=body.tracked
        )
    )
    response.status_code = 201 if made else 200
    return segment


@router.delete("/{key}", status_code=204)
async def delete_segment(deps: Given, caller: Admin, key: Key) -> None:
    """Removes a segment. Its members stay users."""
    await deps.database.transaction(lambda conn: segments.delete_segment(conn, caller.actor, key))


@router.get("/{key}/members", response_model=Page[SegmentMemberView])
async def list_members(deps: Given, caller: Reader, key: Key, page: Paging) -> Any:
    """Who is in a segment now, by user id. 503 when it takes longer than 5 s; 429 while two other such questions of
    the project are being answered."""
    segment = await segments.load_segment(deps.database, caller.project_id, key)
    # Not of the key alone: with another condition, it is another list.
    listing = f"segment:{key}:{segment.updated_at.isoformat()}"
    after = page.after(str, listing) or ""
    with LOOKS.take(caller.project_id):
        found = await segments.list_members(
            deps.database, caller.project_id, segment.condition, after=after, limit=page.fetch
        )
    cut = page.cut(found, lambda user_id: user_id, listing)
    return {**cut, "items": [SegmentMemberView(user=user_id) for user_id in cut["items"]]}
