"""/api/v1/users/{id}/preference_link: where a user chooses what they get, without signing in."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Final

from fastapi import APIRouter
from pydantic import AfterValidator, Field

from tidings.directory import users
from tidings.durations import parse_duration
from tidings.errors import Conflict, Forbidden
from tidings.flow.tracking import Guest
from tidings.web.deps import Admin, Given
from tidings.web.fields import Body, UserId, View

router = APIRouter(prefix="/users", tags=["preferences"])

LIFE_MAX: Final = timedelta(days=3650)


def _check_life(text: str) -> str:
    if not timedelta(minutes=1) <= parse_duration(text) <= LIFE_MAX:
        raise ValueError("must be a duration from 1m to 3650d, such as 30d")
    return text


class PreferenceLinkBody(Body):
    """How long the link shall work."""

    expires_after: Annotated[str, AfterValidator(_check_life)] | None = Field(default=None, examples=["30d"])
    """A duration; null: as long as the key that signs it is kept."""


class PreferenceLinkView(View):
    """A link to the page on which a user chooses what they get. Whoever has it can."""

    url: str
    expires_at: datetime | None


@router.post("/{user_id}/preference_link", response_model=PreferenceLinkView)
async def create_preference_link(
    deps: Given, caller: Admin, user_id: UserId, body: PreferenceLinkBody
) -> PreferenceLinkView:
    """A link to a user's preference page, for your own pages and messages. Whoever has it can choose for the user, so
    it takes the scope `manage`. Nothing is stored. 409 where neither `TIDINGS_PUBLIC_URL` nor the project's tracking
    domain says how the outside reaches us."""
    if caller.test:
        raise Forbidden("A test key cannot make these links: what is chosen there is live.")
    await users.load_user(deps.database, caller.project_id, user_id)
    project = await deps.catalog.load_project(caller.project_id)
    base = project.settings.tracking.domain or deps.public_url
    if base is None:
        raise Conflict("Nobody outside can reach the page: set TIDINGS_PUBLIC_URL, or the project's tracking domain.")
    expires_at = None
    if body.expires_after is not None:
        expires_at = (deps.clock.now() + parse_duration(body.expires_after)).replace(microsecond=0)
    token = deps.signer.invite(Guest("p", caller.project_id, user_id=user_id, expires_at=expires_at))
    return PreferenceLinkView(url=f"{base.rstrip('/')}/p/{token}", expires_at=expires_at)
