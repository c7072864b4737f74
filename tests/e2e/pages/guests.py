"""Those who come to the pages, and what came of it."""

from __future__ import annotations

from typing import Any

from tidings.flow.tracking import Guest, Page

FORM = {"content-type": "application/x-www-form-urlencoded"}
ONE_CLICK = "List-Unsubscribe=One-Click"


def link(tenant: Any, page: Page, **said: Any) -> str:
    """The path of a page."""
    return f"/{page}/{tenant.api.deps.signer.invite(Guest(page, tenant.project_id, **said))}"


async def holds(tenant: Any, category: str, user: str = "ada") -> dict[str, bool]:
    """What holds for a user in a category, by channel."""
    view = (await tenant.get(f"/api/v1/users/{user}/preferences")).json()
    [found] = [one for one in view["categories"] if one["key"] == category]
    return {name: answer["on"] for name, answer in found["channels"].items()}


async def list_consents(tenant: Any, user: str = "ada") -> list[Any]:
    """What a user decided, newest first."""
    found: list[Any] = (await tenant.get(f"/api/v1/users/{user}/consents")).json()["items"]
    return found
