"""/api/v1/audit: who changed what."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BeforeValidator

from tidings.directory import audit
from tidings.ids import API_KEY, AUDIT, to_public
from tidings.web.deps import Admin, Given, Paging
from tidings.web.fields import Page, View

router = APIRouter(prefix="/audit", tags=["audit"])


class AuditView(View):
    """One change."""

    id: Annotated[str, BeforeValidator(lambda value: to_public(AUDIT, value))]
    at: datetime
    actor: str
    key_id: Annotated[str | None, BeforeValidator(lambda value: value and to_public(API_KEY, value))]
    action: str
    object: str
    before: Any
    after: Any


@router.get("", response_model=Page[AuditView])
async def list_audit(
    deps: Given,
    caller: Admin,
    page: Paging,
    object: Annotated[str | None, Query(max_length=300, description="Noun and key, as in `user:u-42`.")] = None,
    action: Annotated[str | None, Query(max_length=100, description="As in `user.put`.")] = None,
) -> Any:
    """Changes, newest first."""
    listing = f"audit {object!r} {action!r}"
    before = page.after(UUID, listing)
    found = await audit.list_audit(
        deps.database, caller.project_id, object_=object, action=action, before_id=before, limit=page.fetch
    )
    return page.cut(found, lambda entry: entry.id, listing)
