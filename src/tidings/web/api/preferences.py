"""/api/v1/users/{id}/preferences and /consents: what users want to hear, and how it came to be."""

from __future__ import annotations

from datetime import datetime
from ipaddress import ip_address
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from tidings.directory import consent, users
from tidings.directory.access import Caller
from tidings.directory.consent import USER_AGENT_MAX, Origin
from tidings.errors import Forbidden
from tidings.ids import API_KEY, to_public
from tidings.model.words import Channel
from tidings.web.deps import Admin, Given, Paging, Reader
from tidings.web.fields import Body, Page, UserId, View
from tidings.web.inbox.preferences import PreferencesBody, PreferencesView, Wording, change, show

router = APIRouter(prefix="/users", tags=["preferences"])


def _parse_ip(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise ValueError("must be an IP address, such as 203.0.113.7 or 2001:db8::7") from None


class ConsentBody(Body):
    """How the application came to know what the user wants: for the record."""

    wording: Wording | None = None
    """What they were shown, or what they said."""
    ip: Annotated[str, AfterValidator(_parse_ip), WithJsonSchema({"type": "string"})] | None = Field(
        default=None, examples=["203.0.113.7"]
    )
    """Theirs."""
    user_agent: Annotated[str, Field(max_length=USER_AGENT_MAX)] | None = None


class UserPreferencesBody(PreferencesBody):
    """What a user says, told by the application. In a PATCH what is left out stays, and null takes back what was
    said."""

    consent: ConsentBody = ConsentBody()


class ConsentView(View):
    """One decision. What is null is not narrowed down: no channel is all of them."""

    at: datetime
    decision: str
    """`in`, `out`, `reset` (nothing is said about it any more), a frequency, or `reset_frequency`."""
    channel: Annotated[str | None, BeforeValidator(lambda value: None if value is None else Channel(value).name)]
    address: str | None
    category: str | None = Field(validation_alias="category_key")
    type: str | None = Field(validation_alias="type_key")
    actor: str
    """`user`, `key`, `system` or `import`."""
    source: str
    """`page`, `one_click`, `api`, `inbox`, `sms` or `import`."""
    wording: str | None
    ip: str | None
    user_agent: str | None
    key_id: Annotated[str | None, BeforeValidator(lambda value: value and to_public(API_KEY, value))] = Field(
        validation_alias="api_key_id"
    )


@router.get("/{user_id}/preferences", response_model=PreferencesView)
async def get_preferences(deps: Given, caller: Reader, user_id: UserId) -> PreferencesView:
    """What a user said, and what holds for them in every category and on every channel, with who decided it."""
    return await show(deps, caller.project_id, user_id)


@router.put("/{user_id}/preferences", response_model=PreferencesView)
async def put_preferences(deps: Given, caller: Admin, user_id: UserId, body: UserPreferencesBody) -> PreferencesView:
    """Replaces what a user said: what is left out is said no more, but for the time zone. What is required cannot be
    switched off (422)."""
    return await change(deps, caller.actor, user_id, body, _to_origin(caller, body), merge=False)


@router.patch("/{user_id}/preferences", response_model=PreferencesView)
async def patch_preferences(deps: Given, caller: Admin, user_id: UserId, body: UserPreferencesBody) -> PreferencesView:
    """Changes what a user said: what is left out stays, null takes it back (RFC 7396). What is required cannot be
    switched off (422)."""
    return await change(deps, caller.actor, user_id, body, _to_origin(caller, body), merge=True)


@router.get("/{user_id}/consents", response_model=Page[ConsentView])
async def list_consents(deps: Given, caller: Reader, user_id: UserId, page: Paging) -> Any:
    """What a user decided, when, from where, and what they were shown; newest first."""
    await users.load_user(deps.database, caller.project_id, user_id)
    listing = f"consents {user_id}"
    before = page.after(UUID, listing)
    found = await consent.list_consents(deps.database, caller.project_id, user_id, before=before, limit=page.fetch)
    return page.cut(found, lambda entry: entry.id, listing)


def _to_origin(caller: Caller, body: UserPreferencesBody) -> Origin:
    if caller.test:
        raise Forbidden("A test key cannot change what users want to hear: live messages obey it.")
    told = body.consent
    return Origin("key", "api", told.wording, told.ip, told.user_agent, caller.key_id)
