"""/api/v1/users: whom to tell, where each channel reaches them, and what is in their inbox."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from tidings.channels import CHANNELS
from tidings.directory import users
from tidings.directory.tokens import TOKEN_LIFE_MAX, Token
from tidings.directory.users import (
    ADDRESSES_MAX,
    Addresses,
    User,
    parse_attributes,
    parse_locale,
    parse_region,
    parse_time_zone,
)
from tidings.durations import parse_duration
from tidings.errors import Forbidden
from tidings.flow.privacy import export_user
from tidings.model.words import Channel
from tidings.web.deps import Admin, Given, Paging, Reader
from tidings.web.fields import Body, Page, UserId, View
from tidings.web.inbox.items import InboxFilters, InboxItemView, list_page

router = APIRouter(prefix="/users", tags=["users"])


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _devices(value: Any) -> Any:
    """One device or a list of them; a Web Push subscription may stand there as the object that browsers make."""
    given = value if isinstance(value, list) else [value]
    return [msgspec.json.encode(one).decode() if isinstance(one, dict) else one for one in given]


_ADDRESS_SCHEMA: Final = WithJsonSchema(
    {
        "anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string"}, "maxItems": ADDRESSES_MAX},
        ]
    }
)
_DEVICE_SCHEMA: Final = WithJsonSchema(
    {
        "anyOf": [
            {"type": "string"},
            {"type": "object"},
            {
                "type": "array",
                "items": {"anyOf": [{"type": "string"}, {"type": "object"}]},
                "maxItems": ADDRESSES_MAX,
            },
        ]
    }
)
_Several = Field(max_length=ADDRESSES_MAX)
_Email = Annotated[str, AfterValidator(CHANNELS[Channel.email].parse_address)]
_Phone = Annotated[str, AfterValidator(CHANNELS[Channel.sms].parse_address)]
_Device = Annotated[str, AfterValidator(CHANNELS[Channel.push].parse_address)]
_Room = Annotated[str, AfterValidator(CHANNELS[Channel.chat].parse_address)]
_Url = Annotated[str, AfterValidator(CHANNELS[Channel.webhook].parse_address)]


class AddressesBody(Body):
    """Where each channel reaches a user: one address or a list of them per channel. In-app needs none."""

    email: Annotated[list[_Email], _Several, BeforeValidator(_one_or_many), _ADDRESS_SCHEMA] = Field(
        default=[], examples=[["ada@example.com"]]
    )
    sms: Annotated[list[_Phone], _Several, BeforeValidator(_one_or_many), _ADDRESS_SCHEMA] = Field(
        default=[], examples=[["+436641234567"]]
    )
    phone: Annotated[list[_Phone], _Several, BeforeValidator(_one_or_many), _ADDRESS_SCHEMA] = Field(
        default=[], description="Another word for `sms`."
    )
    push: Annotated[list[_Device], _Several, BeforeValidator(_devices), _DEVICE_SCHEMA] = Field(
        default=[], examples=[["fcm:dGhlIHRva2Vu"]]
    )
    """Devices: `fcm:…`, `apns:…`, or Web Push subscriptions as browsers give them."""
    webhook: Annotated[list[_Url], _Several, BeforeValidator(_one_or_many), _ADDRESS_SCHEMA] = Field(
        default=[], examples=[["https://example.com/hook"]]
    )
    chat: Annotated[list[_Room], _Several, BeforeValidator(_one_or_many), _ADDRESS_SCHEMA] = Field(
        default=[], examples=[["slack:default"]]
    )
    """Rooms: `slack:…`, `discord:…`, `apprise:…`, or the URL of a Slack or Discord webhook."""

    def to_addresses(self) -> Addresses:
        """The set as the directory takes it."""
        return {
            Channel.email: self.email,
            Channel.sms: [*self.sms, *self.phone],
            Channel.push: self.push,
            Channel.webhook: self.webhook,
            Channel.chat: self.chat,
        }


class UserBody(Body):
    """A user as a caller gives it. What is left out is cleared, but for the addresses, which stay."""

    locale: Annotated[str, AfterValidator(parse_locale)] | None = Field(default=None, examples=["de-AT"])
    time_zone: Annotated[str, AfterValidator(parse_time_zone)] | None = Field(default=None, examples=["Europe/Vienna"])
    region: Annotated[str, AfterValidator(parse_region)] | None = Field(default=None, examples=["US-FL"])
    """ISO 3166: where the user is, for the law that holds there; without it their phone number tells."""
    attributes: Annotated[dict[str, Any], AfterValidator(parse_attributes)] = Field(
        default={}, examples=[{"first_name": "Ada"}]
    )
    addresses: AddressesBody | None = None


class UserView(View):
    """A user."""

    id: str
    locale: str | None
    time_zone: str | None
    region: str | None
    attributes: dict[str, Any]
    addresses: dict[str, list[str]]
    created_at: datetime
    updated_at: datetime


def _check_life(text: str) -> str:
    if not timedelta(seconds=1) <= parse_duration(text) <= TOKEN_LIFE_MAX:
        raise ValueError("must be a duration from 1s to 24h, such as 1h")
    return text


class TokenBody(Body):
    """How long a user token shall hold."""

    expires_after: Annotated[str, AfterValidator(_check_life)] = Field(
        default="1h", examples=["1h"], description="A duration of at most `24h`."
    )


class TokenView(View):
    """A user token. It cannot be shown again."""

    token: str
    expires_at: datetime


class EraseBody(Body):
    """What is to be erased besides."""

    suppressions: bool = False
    """Those of the user's addresses, too. Then nothing keeps them from being written to after the next import."""


class EraseView(View):
    """How far it has come."""

    status: Literal["erased", "pending"]
    """`pending`: the rest follows by itself, within minutes."""


@router.get("", response_model=Page[UserView])
async def list_users(deps: Given, caller: Reader, page: Paging) -> Any:
    """All users, by id."""
    after = page.after(str, "users")
    found = await users.list_users(deps.database, caller.project_id, after=after, limit=page.fetch)
    return page.cut(found, lambda user: user.id, "users")


@router.get("/{user_id}", response_model=UserView)
async def get_user(deps: Given, caller: Reader, user_id: UserId) -> User:
    """One user."""
    return await users.load_user(deps.database, caller.project_id, user_id)


@router.put("/{user_id}", response_model=UserView, responses={201: {"model": UserView, "description": "Made"}})
async def put_user(deps: Given, caller: Admin, user_id: UserId, body: UserBody, response: Response) -> User:
    """Makes a user (201) or replaces what is known of them (200)."""
    user, made = await deps.database.transaction(
        lambda conn: users.put_user(
            conn,
            caller.actor,
            user_id,
            locale=body.locale,
            time_zone=body.time_zone,
            region=body.region,
            attributes=body.attributes,
            addresses=None if body.addresses is None else body.addresses.to_addresses(),
        )
    )
    response.status_code = 201 if made else 200
    return user


@router.delete("/{user_id}", status_code=204)
async def delete_user(deps: Given, caller: Admin, user_id: UserId) -> None:
    """Forgets a user, their addresses, their inbox and what they decided."""
    await deps.database.transaction(lambda conn: users.delete_user(conn, caller.actor, user_id))
    deps.tokens.forget(caller.project_id, user_id)
    deps.inbox.bell.ring([(caller.project_id, user_id)])  # their live streams end


@router.get(
    "/{user_id}/export",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/json": {"schema": {"type": "object"}}}, "description": "All of it"}},
)
async def export(deps: Given, caller: Admin, user_id: UserId) -> Response:
    """Everything that is known of a user, as one document: themselves, what they decided, their inbox, and every
    notification with its deliveries and events as far as they are kept."""
    pieces = await export_user(deps.database, caller.project_id, user_id, deps.clock.now())
    return StreamingResponse(pieces, media_type="application/json")


@router.post(
    "/{user_id}/erase",
    response_model=EraseView,
    responses={202: {"model": EraseView, "description": "Begun; the rest follows"}},
)
async def erase(
    deps: Given, caller: Admin, user_id: UserId, response: Response, body: EraseBody | None = None
) -> EraseView:
    """Erases a user from every table: what has not left yet is cancelled, and of what was sent there remains only that
    it was. For one who was deleted before, too. Repeating it is safe."""
    done = await deps.eraser.erase(caller, user_id, suppressions=body is not None and body.suppressions)
    deps.tokens.forget(caller.project_id, user_id)
    deps.inbox.bell.ring([(caller.project_id, user_id)])  # their live streams end
    response.status_code = 200 if done else 202
    return EraseView(status="erased" if done else "pending")


@router.put("/{user_id}/addresses", response_model=UserView)
async def put_addresses(deps: Given, caller: Admin, user_id: UserId, body: AddressesBody) -> User:
    """Replaces all addresses of a user. One that a provider had reported gone is tried again when given here."""
    return await deps.database.transaction(
        lambda conn: users.put_addresses(conn, caller.actor, user_id, body.to_addresses())
    )


@router.get("/{user_id}/inbox", response_model=Page[InboxItemView])
async def list_inbox(deps: Given, caller: Reader, user_id: UserId, page: Paging, filters: InboxFilters) -> Any:
    """What is in a user's inbox, newest first."""
    await users.load_user(deps.database, caller.project_id, user_id)
    return await list_page(deps, (caller.project_id, user_id), page, filters)


@router.post("/{user_id}/tokens", status_code=201, response_model=TokenView)
async def create_token(deps: Given, caller: Admin, user_id: UserId, body: TokenBody) -> Token:
    """A token with which the user's browser or app reads and marks their own inbox. Nothing is stored: it ends by
    itself, or when the user is deleted."""
    if caller.test:
        raise Forbidden("A test key cannot make user tokens: what is in an inbox is live.")
    return await deps.tokens.issue(caller.project_id, user_id, parse_duration(body.expires_after))
