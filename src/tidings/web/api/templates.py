"""/api/v1/templates: content per channel and locale, in immutable numbered versions."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Response
from pydantic import AfterValidator, Field

from tidings.directory import templates
from tidings.directory.templates import Preview, Template, Version, render_preview
from tidings.directory.users import parse_attributes, parse_locale, parse_time_zone
from tidings.model.words import Channel
from tidings.web.deps import Admin, Given, OnceOnly, Paging, Reader
from tidings.web.fields import Body, Key, Name, Page, View

router = APIRouter(prefix="/templates", tags=["templates"])

_VERSION_MAX = (1 << 31) - 1
VersionNumber = Annotated[int, Path(ge=1, le=_VERSION_MAX, description="A version's number.")]


class TemplateBody(Body):
    """A template as a caller gives it; its content comes as versions."""

    name: Name | None = None


class TemplateView(View):
    """A template, without its content."""

    key: str
    name: str
    published_version: int | None
    latest_version: int
    created_at: datetime
    updated_at: datetime


class VersionBody(Body):
    """The content of a version."""

    default_locale: str = "en"
    """What users get for whose language there is no content; every channel has it."""
    channels: dict[str, dict[str, dict[str, str]]] = Field(
        examples=[{"email": {"en": {"subject": "Order {{ order }}", "text": "Hello {{ user.attributes.name }}"}}}]
    )
    """Channel, locale, field: Jinja's syntax. Values are escaped where the field needs it."""


class VersionView(View):
    """One version of a template."""

    template: str
    version: int
    content: dict[str, Any]
    required: list[str]
    """What the data of a request must hold."""
    published_at: datetime | None
    created_at: datetime


class PublishBody(Body):
    """Which version to publish."""

    version: int = Field(ge=1, le=_VERSION_MAX)


class PreviewUser(Body):
    """What is known of the user that a preview is for."""

    id: Annotated[str, Field(min_length=1, max_length=255)] = "u-preview"
    time_zone: Annotated[str, AfterValidator(parse_time_zone)] | None = None
    attributes: Annotated[dict[str, Any], AfterValidator(parse_attributes)] = Field(default={})


class PreviewBody(Body):
    """What to render."""

    channel: Literal["email", "sms", "push", "in_app", "webhook", "chat"]
    locale: Annotated[str, AfterValidator(parse_locale)] | None = None
    data: dict[str, Any] = Field(default={})
    user: PreviewUser = PreviewUser()
    version: int | None = Field(default=None, ge=1, le=_VERSION_MAX)
    """Left out: the latest."""


class PreviewView(View):
    """What a version makes of some data."""

    version: int
    channel: str
    locale: str
    fields: dict[str, str] = Field(description="The rendered fields.")


@router.get("", response_model=Page[TemplateView])
async def list_templates(deps: Given, caller: Reader, page: Paging) -> Any:
    """All templates, by key."""
    after = page.after(str, "templates")
    found = await templates.list_templates(deps.database, caller.project_id, after=after, limit=page.fetch)
    return page.cut(found, lambda template: template.key, "templates")


@router.get("/{key}", response_model=TemplateView)
async def get_template(deps: Given, caller: Reader, key: Key) -> Template:
    """One template."""
    return await templates.load_template(deps.database, caller.project_id, key)


@router.put("/{key}", response_model=TemplateView, responses={201: {"model": TemplateView, "description": "Made"}})
async def put_template(deps: Given, caller: Admin, key: Key, body: TemplateBody, response: Response) -> Template:
    """Makes a template (201) or renames it (200)."""
    template, made = await deps.database.transaction(
        lambda conn: templates.put_template(conn, caller.actor, key, name=body.name)
    )
    response.status_code = 201 if made else 200
    return template


@router.get("/{key}/versions", response_model=Page[VersionView])
async def list_template_versions(deps: Given, caller: Reader, key: Key, page: Paging) -> Any:
    """All versions of a template, newest first."""
    before = page.after(int, f"templates/{key}/versions")
    found = await templates.list_template_versions(
        deps.database, caller.project_id, key, before=before, limit=page.fetch
    )
    return page.cut(found, lambda version: version.version, f"templates/{key}/versions")


@router.get("/{key}/versions/{version}", response_model=VersionView)
async def get_template_version(deps: Given, caller: Reader, key: Key, version: VersionNumber) -> Version:
    """One version with its content."""
    return await templates.load_template_version(deps.database, caller.project_id, key, version)


@router.post("/{key}/versions", status_code=201, response_model=VersionView)
async def create_template_version(deps: Given, caller: Admin, key: Key, body: VersionBody, once: OnceOnly) -> Response:
    """Adds a draft. It is compiled at once: errors point at the field and name the line."""
    content = body.model_dump()
    return await once.run(
        lambda conn: templates.create_template_version(conn, caller.actor, key, content),
        view=VersionView,
        status=201,
    )


@router.post("/{key}/publish", response_model=TemplateView)
async def publish_template(deps: Given, caller: Admin, key: Key, body: PublishBody, once: OnceOnly) -> Response:
    """Makes a version the one that new deliveries use."""
    answer = await once.run(
        lambda conn: templates.publish_template(conn, caller.actor, key, body.version), view=TemplateView
    )
    deps.catalog.forget(caller.project_id)
    return answer


@router.post("/{key}/rollback", response_model=TemplateView)
async def rollback_template(deps: Given, caller: Admin, key: Key, body: PublishBody, once: OnceOnly) -> Response:
    """Goes back to a version that was published before."""
    answer = await once.run(
        lambda conn: templates.rollback_template(conn, caller.actor, key, body.version), view=TemplateView
    )
    deps.catalog.forget(caller.project_id)
    return answer


@router.post("/{key}/preview", response_model=PreviewView)
async def preview_template(deps: Given, caller: Reader, key: Key, body: PreviewBody) -> Preview:
    """Renders a version as a delivery would. Nothing is sent or stored, so it takes no `Idempotency-Key`."""
    number = body.version
    if number is None:
        number = (await templates.load_template(deps.database, caller.project_id, key)).latest_version
    version = await templates.load_template_version(deps.database, caller.project_id, key, number)
    # In a thread: compiling a large version takes a second, in which this process would answer nobody else.
    return await asyncio.to_thread(
        render_preview, version, Channel[body.channel], body.locale, body.data, body.user.model_dump()
    )
