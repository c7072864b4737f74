"""/api/v1/categories: what users can opt in or out of."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import Field

from tidings.directory import categories
from tidings.directory.categories import Category
from tidings.web.deps import Admin, Given, Paging, Reader
from tidings.web.fields import Body, Key, Name, Page, View

router = APIRouter(prefix="/categories", tags=["categories"])


class CategoryBody(Body):
    """A category as a caller gives it."""

    name: Name
    description: Annotated[str, Field(max_length=2000)] = ""
    required: bool = False
    """Users cannot switch it off."""


class CategoryView(View):
    """A category."""

    key: str
    name: str
    description: str
    required: bool
    created_at: datetime
    updated_at: datetime


@router.get("", response_model=Page[CategoryView])
async def list_categories(deps: Given, caller: Reader, page: Paging) -> Any:
    """All categories, by key."""
    after = page.after(str, "categories")
    found = await categories.list_categories(deps.database, caller.project_id, after=after, limit=page.fetch)
    return page.cut(found, lambda category: category.key, "categories")


@router.get("/{key}", response_model=CategoryView)
async def get_category(deps: Given, caller: Reader, key: Key) -> Category:
    """One category."""
    return await categories.load_category(deps.database, caller.project_id, key)


@router.put("/{key}", response_model=CategoryView, responses={201: {"model": CategoryView, "description": "Made"}})
async def put_category(deps: Given, caller: Admin, key: Key, body: CategoryBody, response: Response) -> Category:
    """Makes a category (201) or changes it (200)."""
    category, made = await deps.database.transaction(
        lambda conn: categories.put_category(
            conn, caller.actor, key, name=body.name, description=body.description, required=body.required
        )
    )
    response.status_code = 201 if made else 200
    return category


@router.delete("/{key}", status_code=204)
async def delete_category(deps: Given, caller: Admin, key: Key) -> None:
    """Removes a category; 409 while a type names it."""
    await deps.database.transaction(lambda conn: categories.delete_category(conn, caller.actor, key))
