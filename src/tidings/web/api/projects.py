"""/api/v1/project: the project that the key belongs to."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field

from tidings.directory import projects
from tidings.directory.projects import Project, ProjectSettings, Tracking
from tidings.errors import Forbidden
from tidings.web.deps import Admin, Given, Reader
from tidings.web.fields import Body, View

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
    settings = ProjectSettings(Tracking(**body.tracking.model_dump()), body.sms_help, tuple(body.origins))
    project = await deps.database.transaction(lambda conn: projects.put_settings(conn, caller.actor, settings))
    deps.catalog.forget(caller.project_id)
    return project
