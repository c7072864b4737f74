"""/api/v1/types: what is told, in immutable numbered versions."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import Field

from tidings.directory import types
from tidings.directory.categories import DEFAULT_CATEGORY
from tidings.directory.types import Type, parse_definition
from tidings.web.deps import Admin, Given, Paging, Reader
from tidings.web.fields import Body, Key, Page, View
from tidings.web.rules import STEPS_SCHEMA, Defaults, DigestRule, DurationText, LimitRule, SendTimeRule

router = APIRouter(prefix="/types", tags=["types"])


class TypeBody(Body):
    """A type as a caller gives it. What is left out takes its default."""

    category: Key = DEFAULT_CATEGORY
    template: Key | None = None
    """Left out: the template with the type's own key."""
    priority: Literal["critical", "high", "medium", "low"] = "medium"
    steps: Annotated[list[Any], STEPS_SCHEMA] = Field(default=[], examples=[[{"send": ["email", "in_app"]}]])
    """Left out: every channel that the template covers."""
    expires_after: DurationText | None = Field(default=None, examples=["2d"])
    """After this time nothing is sent any more."""
    guarantee: Literal["at_least_once", "at_most_once"] = "at_least_once"
    """What to do when it is unknown whether a provider took a message: send again, or not."""
    critical: bool = False
    """Keys without the scope `send:critical` may send this type with priority `critical`."""
    tracking: bool = True
    """Whether opens and clicks may be watched where the project does so: not for mails with passwords or codes."""
    schema_: dict[str, Any] | None = Field(
        default=None, alias="schema", examples=[{"type": "object", "required": ["order"]}]
    )
    """JSON Schema (2020-12) of the data that a request must bring."""
    digest: DigestRule | None = None
    """What is told of it is gathered, and told together."""
    limits: list[LimitRule] = Field(default=[])
    """Per user, counting notifications of this type."""
    quiet: Literal["wait", "digest", "ignore"] = "wait"
    """What becomes of it in quiet hours: it waits, it waits together with others, it goes all the same."""
    preferences: Defaults = Field(default={}, examples=[{"sms": False}])
    """By channel: what holds for this type instead of the defaults of category and project, unless users say
    otherwise."""
    send_time: SendTimeRule | None = None
    """Sent when the user is likely to look."""

    def to_raw(self) -> dict[str, Any]:
        """As the directory parses it."""
        raw = self.model_dump(by_alias=True, exclude={"digest", "limits", "send_time"})
        raw["digest"] = None if self.digest is None else self.digest.to_raw()
        raw["limits"] = [limit.to_raw() for limit in self.limits] or None
        raw["send_time"] = None if self.send_time is None else self.send_time.to_raw()
        return raw


class TypeView(View):
    """One version of a type."""

    key: str
    version: int
    category: str
    template: str
    priority: str
    steps: Annotated[list[dict[str, Any]], STEPS_SCHEMA]
    expires_after: str | None
    guarantee: str
    critical: bool
    tracking: bool
    schema_: dict[str, Any] | None = Field(alias="schema")
    digest: DigestRule | None
    limits: list[LimitRule]
    quiet: str
    preferences: Defaults
    send_time: SendTimeRule | None
    created_at: datetime
    archived_at: datetime | None


@router.get("", response_model=Page[TypeView])
async def list_types(deps: Given, caller: Reader, page: Paging) -> Any:
    """The current versions of all types in use, by key."""
    after = page.after(str, "types")
    found = await types.list_types(deps.database, caller.project_id, after=after, limit=page.fetch)
    return page.cut(found, lambda type_: type_.key, "types")


@router.get("/{key}", response_model=TypeView)
async def get_type(deps: Given, caller: Reader, key: Key) -> Type:
    """The current version of a type."""
    return await types.load_type(deps.database, caller.project_id, key)


@router.get("/{key}/versions", response_model=Page[TypeView])
async def list_type_versions(deps: Given, caller: Reader, key: Key, page: Paging) -> Any:
    """All versions of a type, newest first."""
    before = page.after(int, f"types/{key}/versions")
    found = await types.list_type_versions(deps.database, caller.project_id, key, before=before, limit=page.fetch)
    return page.cut(found, lambda type_: type_.version, f"types/{key}/versions")


@router.put("/{key}", response_model=TypeView, responses={201: {"model": TypeView, "description": "Made"}})
async def put_type(deps: Given, caller: Admin, key: Key, body: TypeBody, response: Response) -> Type:
    """Makes a type (201), or its next version if anything changed (200). What was sent keeps its version."""
    definition = parse_definition(key, body.to_raw(), deps.retention)
    type_, made = await deps.database.transaction(lambda conn: types.put_type(conn, caller.actor, key, definition))
    deps.catalog.forget(caller.project_id)
    response.status_code = 201 if made else 200
    return type_


@router.delete("/{key}", status_code=204)
async def archive_type(deps: Given, caller: Admin, key: Key) -> None:
    """Archives a type: nothing new is accepted with it; what was accepted goes its way. A PUT takes it up again."""
    await deps.database.transaction(lambda conn: types.archive_type(conn, caller.actor, key))
    deps.catalog.forget(caller.project_id)
