"""/api/v1/event_rules: which events become which notifications."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import Field

from tidings.directory import event_rules
from tidings.directory.event_rules import NAMES_MAX, TEXT_MAX, StoredRule, parse_rule
from tidings.web.deps import Admin, Given, Paging, Reader
from tidings.web.fields import Body, Key, Page, View

router = APIRouter(prefix="/event_rules", tags=["events"])

_Text = Annotated[str, Field(min_length=1, max_length=TEXT_MAX)]


class EventPatternBody(Body):
    """Which events a rule is for. Each is exact, or a beginning with `*` behind it."""

    type: _Text = Field(examples=["com.shop.order.*"])
    source: _Text | None = None


class EventRuleBody(Body):
    """A rule. Paths name what stands in an event: `data.customer.id`, or an attribute such as `subject`."""

    event: EventPatternBody
    when: dict[str, Any] | None = Field(default=None, examples=[{"data": "order.total", "at_least": 100}])
    """A condition on the event's data."""
    type: Key
    """Of the notification."""
    to: dict[str, Any] = Field(examples=[{"user": "data.customer.id"}])
    """`{"user": path}`: where the event has the user's id."""
    data: dict[str, str] | None = Field(default=None, max_length=NAMES_MAX, examples=[{"order": "data.order.id"}])
    """By the template's variable the path of its value. Left out: the event's data as they are."""
    once: _Text | None = Field(default=None, examples=["shipped:{data.order.id}"])
    """A send-once key; paths stand in braces."""
    priority: Literal["critical", "high", "medium", "low"] | None = None
    metadata: dict[str, str] | None = Field(default=None, max_length=NAMES_MAX, examples=[{"event": "{id}"}])
    """Paths stand in braces. What the event lacks is left out."""
    enabled: bool = True


class EventPatternView(View):
    """Which events a rule is for."""

    type: str
    source: str | None


class EventRuleView(View):
    """A rule."""

    key: str
    event: EventPatternView
    when: dict[str, Any] | None
    type: str
    to: dict[str, str]
    data: dict[str, str] | None
    once: str | None
    priority: str | None
    metadata: dict[str, str]
    enabled: bool
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, stored: StoredRule) -> EventRuleView:
        """The rule as it is given."""
        rule = stored.rule
        return cls(
            key=stored.key,
            event=EventPatternView(type=rule.event.type, source=rule.event.source),
            when=rule.when,
            type=rule.type,
            to={"user": rule.user},
            data=rule.data,
            once=rule.once,
            priority=rule.priority,
            metadata=rule.metadata or {},
            enabled=stored.enabled,
            created_at=stored.created_at,
            updated_at=stored.updated_at,
        )


@router.get("", response_model=Page[EventRuleView])
async def list_event_rules(deps: Given, caller: Reader, page: Paging) -> Any:
    """All rules, by key."""
    after = page.after(str, "event_rules")
    found = await event_rules.list_event_rules(deps.database, caller.project_id, after=after, limit=page.fetch)
    cut = page.cut(found, lambda stored: stored.key, "event_rules")
    cut["items"] = [EventRuleView.of(stored) for stored in cut["items"]]
    return cut


@router.get("/{key}", response_model=EventRuleView)
async def get_event_rule(deps: Given, caller: Reader, key: Key) -> EventRuleView:
    """One rule."""
    return EventRuleView.of(await event_rules.load_event_rule(deps.database, caller.project_id, key))


@router.put("/{key}", response_model=EventRuleView, responses={201: {"model": EventRuleView, "description": "Made"}})
async def put_event_rule(
    deps: Given, caller: Admin, key: Key, body: EventRuleBody, response: Response
) -> EventRuleView:
    """Makes a rule (201) or changes it (200). Processes follow within a second or so."""
    rule = parse_rule(body.model_dump(exclude_none=True))
    stored, made = await deps.database.transaction(
        lambda conn: event_rules.put_event_rule(conn, caller.actor, key, rule, enabled=body.enabled)
    )
    deps.catalog.forget(caller.project_id)
    response.status_code = 201 if made else 200
    return EventRuleView.of(stored)


@router.delete("/{key}", status_code=204)
async def delete_event_rule(deps: Given, caller: Admin, key: Key) -> None:
    """Removes a rule. What it has made of events goes its way."""
    await deps.database.transaction(lambda conn: event_rules.delete_event_rule(conn, caller.actor, key))
    deps.catalog.forget(caller.project_id)
