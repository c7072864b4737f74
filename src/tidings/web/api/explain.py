"""/api/v1/explain: what would become of a request. Nothing is sent."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from fastapi import APIRouter
from pydantic import Field

from tidings.errors import FieldError, Invalid
from tidings.flow.request import Request
from tidings.model.words import Scope
from tidings.web import hot
from tidings.web.deps import Given, Sender
from tidings.web.fields import Body, Moment, View

router = APIRouter(tags=["notifications"])

_FURTHEST: Final = timedelta(days=3660)
"""Calendars end: what counts days from `at` on has to find some."""


class ExplainBody(Body):
    """A request as it would be sent, and when."""

    notification: dict[str, Any] = Field(examples=[{"type": "order_shipped", "to": {"user": "u-42"}, "data": {}}])
    """As in `POST /api/v1/notifications`."""
    at: Moment | None = None
    """As if it were planned then; left out: now, or at its `send_at`."""


class RulingView(View):
    """What one rule answered."""

    rule: str
    answer: str
    channel: str | None
    level: str
    """Where the rule stands that decided: from `user_type`, which is nearest to the user, to `default`."""
    reason: str | None
    until: datetime | None
    detail: str | None
    text: str
    """The same in a sentence."""


class PassView(View):
    """What was ruled at one time of planning."""

    at: datetime
    rulings: list[RulingView]


class ChannelView(View):
    """What came of one delivery, with every rule that was asked for it, in order."""

    channel: str
    address: str
    outcome: str
    reason: str | None
    text: str
    rules: list[RulingView]


class ExplanationView(View):
    """Why a notification is where it is, or where one would go."""

    id: str | None = None
    status: str
    """`refused`: it would not be accepted; see `problem`."""
    reason: str | None = None
    text: str
    until: datetime | None = None
    """When it goes on, if it waits."""
    digest: str | None = None
    channels: list[ChannelView] = Field(default=[])
    passes: list[PassView] = Field(default=[])
    """One for each time that it was planned: the rules that had an opinion."""
    problem: dict[str, Any] | None = None


@router.post("/explain", response_model=ExplanationView)
async def explain_request(deps: Given, caller: Sender, body: ExplainBody) -> Any:
    """What would become of this request: which rules are asked, what each answers, and where that comes from. Nothing
    is stored, counted or sent, so repeating it does no harm. It shows addresses and what users chose: scope `read` too.
    """
    caller.require(Scope.read)
    if body.at is not None and abs(body.at - deps.clock.now()) > _FURTHEST:
        raise Invalid(errors=[FieldError(f"must be within {_FURTHEST.days} days of now", "/at")])
    raw = msgspec.json.encode(body.notification)
    request: Request = hot.parse_one(raw)
    return msgspec.to_builtins(await deps.explainer.explain(caller, request, body.at), builtin_types=(datetime,))
