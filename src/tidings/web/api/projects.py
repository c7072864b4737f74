"""/api/v1/project: the project that the key belongs to."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from fastapi import APIRouter
from pydantic import Field

from tidings.directory import projects
from tidings.directory.projects import ADDRESS_MAX, COUNT_MAX, PACE_MAX, PACE_MIN, Project, ProjectSettings
from tidings.errors import Forbidden
from tidings.web.deps import Admin, Given, Reader
from tidings.web.fields import Body, View
from tidings.web.rules import Defaults, LimitRule, QuietRule

router = APIRouter(prefix="/project", tags=["project"])


class TrackingBody(Body):
    """Whether mails tell when they are opened and clicked."""

    opens: bool = False
    clicks: bool = False
    domain: Annotated[str | None, Field(max_length=300, examples=["https://click.example.com"])] = None
    """Where the links point; null: the API's own address."""


class SettingsBody(Body):
    """A project's settings; what is left out is as it is by default."""

    tracking: TrackingBody = TrackingBody()
    sms_help: Annotated[str | None, Field(min_length=1, max_length=1_000)] = None
    """What answers HELP in a text message, for vendors that do not answer it themselves; null: nothing."""
    origins: list[str] = Field(default=[], max_length=projects.ORIGINS_MAX)
    """Web origins whose pages may use the inbox with a user's token."""
    time_zone: Annotated[str | None, Field(max_length=64, examples=["Europe/Vienna"])] = None
    """Of users who have none; null: UTC."""
    defaults: Defaults = Field(default={}, examples=[{"sms": False}])
    """By channel: whether users hear of things there unless they, a type or a category say otherwise. Not named:
    yes."""
    quiet_hours: QuietRule | None = None
    """Where neither the user nor the category has any."""
    limits: list[LimitRule] = Field(default=[])
    """Per user, over all types."""
    pace: Annotated[float, Field(ge=PACE_MIN, le=PACE_MAX)] | None = None
    """Messages per second of the whole project, over all channels; null: no limit."""
    confirm_above: int = Field(default=10_000, ge=0, le=COUNT_MAX)
    """A broadcast to more users than this has to be confirmed with their number."""
    runaway_above: Annotated[int, Field(ge=1, le=COUNT_MAX)] | None = 600
    """Notifications per minute of one type to one user, above which requests are refused as a loop gone wild; null:
    never."""
    address: Annotated[str | None, Field(min_length=1, max_length=ADDRESS_MAX)] = None
    """Postal address or imprint, shown on the preference page."""

    def to_settings(self) -> ProjectSettings:
        """As the directory takes them."""
        raw = self.model_dump(exclude={"quiet_hours", "limits"})
        raw["quiet_hours"] = None if self.quiet_hours is None else self.quiet_hours.to_raw()
        raw["limits"] = [limit.to_raw() for limit in self.limits]
        return msgspec.convert(raw, ProjectSettings)


class TrackingView(View):
    """Whether mails tell when they are opened and clicked."""

    opens: bool
    clicks: bool
    domain: str | None


class SettingsView(View):
    """A project's settings."""

    tracking: TrackingView
    sms_help: str | None
    origins: list[str]
    time_zone: str | None
    defaults: Defaults
    quiet_hours: QuietRule | None
    limits: list[LimitRule]
    pace: float | None
    confirm_above: int
    runaway_above: int | None
    address: str | None


class ProjectView(View):
    """A project."""

    key: str
    name: str
    created_at: datetime
    settings: SettingsView


@router.get("", response_model=ProjectView)
async def get_project(deps: Given, caller: Reader) -> Project:
    """The project of the API key."""
    return await projects.load_project(deps.database, caller.project_id)


@router.put("/settings", response_model=ProjectView)
async def put_settings(deps: Given, caller: Admin, body: SettingsBody) -> Project:
    """Replaces the project's settings as a whole. Every process follows within five seconds."""
    if caller.test:
        raise Forbidden("A test key cannot change the project's settings: live messages are sent with them.")
    settings = body.to_settings()
    project = await deps.database.transaction(lambda conn: projects.put_settings(conn, caller.actor, settings))
    deps.catalog.forget(caller.project_id)
    return project
