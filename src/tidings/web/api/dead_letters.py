"""/api/v1/dead_letters: deliveries that were given up, and sending them again."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import Field

from tidings import ids
from tidings.errors import FieldError, Invalid, NotFound
from tidings.model.words import Channel, Reason
from tidings.web.deps import Admin, Given, Paging, Reader
from tidings.web.fields import Body, Page, View, public_id

router = APIRouter(prefix="/dead_letters", tags=["dead letters"])

DeliveryId = Annotated[UUID, public_id(ids.DELIVERY)]


class DeadLetterView(View):
    """A delivery that was given up."""

    delivery: str
    notification: str
    channel: str
    reason: str
    attempts: int
    at: datetime


class ReplayBody(Body):
    """Which dead letters to send again: these, or all that fit the filters (`{}`: all)."""

    deliveries: Annotated[list[str] | None, Field(min_length=1, max_length=1000)] = None
    reason: str | None = None
    channel: str | None = None
    limit: Annotated[int | None, Field(ge=1, le=1_000_000)] = None


class ReplayView(View):
    """How many were put back on the road."""

    replayed: int


@router.get("", response_model=Page[DeadLetterView])
async def list_dead_letters(
    deps: Given,
    caller: Reader,
    page: Paging,
    reason: Annotated[str | None, Query()] = None,
    channel: Annotated[str | None, Query()] = None,
) -> Any:
    """Dead letters, newest first."""
    listing = f"dead_letters:{reason}:{channel}"
    letters = await deps.intervener.list_dead_letters(
        caller.project_id,
        before=page.after(UUID, listing),
        reason=_reason(reason),
        channel=_channel(channel),
        limit=page.fetch,
    )
    found = page.cut(letters, lambda letter: letter.delivery_id, listing)
    found["items"] = [
        {
            "delivery": ids.to_public(ids.DELIVERY, letter.delivery_id),
            "notification": ids.to_public(ids.NOTIFICATION, letter.notification_id),
            "channel": Channel(letter.channel).name,
            "reason": letter.reason,
            "attempts": letter.attempts,
            "at": letter.at,
        }
        for letter in found["items"]
    ]
    return found


@router.post("/replay", response_model=ReplayView)
async def replay_dead_letters(deps: Given, caller: Admin, body: ReplayBody) -> Any:
    """Sends many again, with all their attempts anew. A letter leaves the list when it is replayed, so repeating is
    safe."""
    chosen = None
    if body.deliveries is not None:
        chosen = []
        for i, text in enumerate(body.deliveries):
            id_ = ids.parse_public(ids.DELIVERY, text)
            if id_ is None:
                raise Invalid(errors=[FieldError("is not a delivery's id", f"/deliveries/{i}")])
            chosen.append(id_)
    replayed = await deps.intervener.replay(
        caller, delivery_ids=chosen, reason=_reason(body.reason), channel=_channel(body.channel), limit=body.limit
    )
    return {"replayed": replayed}


@router.post("/{delivery_id}/replay", response_model=ReplayView)
async def replay_dead_letter(deps: Given, caller: Admin, delivery_id: DeliveryId) -> Any:
    """Sends one again."""
    replayed = await deps.intervener.replay(caller, delivery_ids=[delivery_id])
    if not replayed:
        raise NotFound("There is no such dead letter in this project.")
    return {"replayed": replayed}


def _reason(text: str | None) -> str | None:
    if text is not None and text not in Reason.__members__:
        raise Invalid(errors=[FieldError(f"is one of {', '.join(Reason.__members__)}", parameter="reason")])
    return text


def _channel(text: str | None) -> Channel | None:
    if text is None:
        return None
    if text not in Channel.__members__:
        raise Invalid(errors=[FieldError(f"is one of {', '.join(Channel.__members__)}", parameter="channel")])
    return Channel[text]
