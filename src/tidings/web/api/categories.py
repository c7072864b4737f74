"""/api/v1/categories: what users can opt in or out of."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Response
from pydantic import Field

from tidings.directory import categories
from tidings.directory.categories import Category, CategoryRules
from tidings.web.deps import Admin, Given, Paging, Reader
from tidings.web.fields import Body, Key, Name, Page, View
from tidings.web.rules import Defaults, LimitRule, QuietRule

router = APIRouter(prefix="/categories", tags=["categories"])


class CategoryBody(Body):
    """A category as a caller gives it. What is left out takes its default."""

    name: Name
    description: Annotated[str, Field(max_length=2000)] = ""
    required: bool = False
    """Users cannot switch it off, and it is never gathered into digests of a frequency."""
    defaults: Defaults = Field(default={}, examples=[{"sms": False}])
    """By channel: what holds unless the user, or the type, says otherwise. Not named: as the project says."""
    frequency: Literal["instant", "hourly", "daily", "weekly"] = "instant"
    """How often users hear of it unless they say otherwise."""
    digest_hour: int = Field(default=9, ge=0, le=23)
    """At which hour of the user's day daily and weekly digests are sent; weekly ones on Monday."""
    quiet_hours: QuietRule | None = None
    """Where users have none of their own; they take the place of the project's."""
    limits: list[LimitRule] = Field(default=[])
    """Per user, over all types of the category."""

    def to_rules(self) -> CategoryRules:
        """As the directory takes them."""
        raw: dict[str, Any] = {
            "defaults": self.defaults,
            "frequency": self.frequency,
            "digest_hour": self.digest_hour,
            "quiet_hours": None if self.quiet_hours is None else self.quiet_hours.to_raw(),
            "limits": [limit.to_raw() for limit in self.limits],
        }
        return msgspec.convert(raw, CategoryRules)


class CategoryView(View):
    """A category."""

    key: str
    name: str
    description: str
    required: bool
    defaults: Defaults
    frequency: str
    digest_hour: int
    quiet_hours: QuietRule | None
    limits: list[LimitRule]
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, category: Category) -> CategoryView:
        """The category with its rules."""
        rules = category.rules
        return cls.model_validate(
            {
                **{name: getattr(category, name) for name in ("key", "name", "description", "required")},
                **{name: getattr(rules, name) for name in ("defaults", "digest_hour", "quiet_hours", "limits")},
                "frequency": rules.frequency.value,
                "created_at": category.created_at,
                "updated_at": category.updated_at,
            }
        )


@router.get("", response_model=Page[CategoryView])
async def list_categories(deps: Given, caller: Reader, page: Paging) -> Any:
    """All categories, by key."""
    after = page.after(str, "categories")
    found = await categories.list_categories(deps.database, caller.project_id, after=after, limit=page.fetch)
    cut = page.cut(found, lambda category: category.key, "categories")
    cut["items"] = [CategoryView.of(category) for category in cut["items"]]
    return cut


@router.get("/{key}", response_model=CategoryView)
async def get_category(deps: Given, caller: Reader, key: Key) -> CategoryView:
    """One category."""
    return CategoryView.of(await categories.load_category(deps.database, caller.project_id, key))


@router.put("/{key}", response_model=CategoryView, responses={201: {"model": CategoryView, "description": "Made"}})
async def put_category(deps: Given, caller: Admin, key: Key, body: CategoryBody, response: Response) -> CategoryView:
    """Makes a category (201) or changes it (200). Processes follow within a second or so."""
    rules = body.to_rules()
    category, made = await deps.database.transaction(
        lambda conn: categories.put_category(
            conn,
            caller.actor,
            key,
            name=body.name,
            description=body.description,
            required=body.required,
            rules=rules,
        )
    )
    deps.catalog.forget(caller.project_id)
    response.status_code = 201 if made else 200
    return CategoryView.of(category)


@router.delete("/{key}", status_code=204)
async def delete_category(deps: Given, caller: Admin, key: Key) -> None:
    """Removes a category; 409 while a type names it."""
    await deps.database.transaction(lambda conn: categories.delete_category(conn, caller.actor, key))
    deps.catalog.forget(caller.project_id)
