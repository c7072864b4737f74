"""/api/v1/accounts: the providers that a project sends with. Secrets go in and never come out."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Response
from pydantic import Field, WithJsonSchema

from tidings.directory import accounts
from tidings.directory.access import Caller
from tidings.directory.accounts import AccountInfo, AccountPlan
from tidings.errors import Forbidden
from tidings.model.words import CHANNELS_OF_THIS_VERSION, Scope
from tidings.web.deps import Admin, Deps, Given, Paging, Reader
from tidings.web.fields import Body, Key, Page, View

router = APIRouter(prefix="/accounts", tags=["accounts"])

# A plain text here, so that the directory can refuse a channel of a later version by name.
_CHANNEL_SCHEMA: Final = WithJsonSchema(
    {"type": "string", "enum": [channel.name for channel in CHANNELS_OF_THIS_VERSION]}
)
_SLOWEST: Final = 0.00001
"""Messages per second. With it the largest burst is paid back after three thousand years; the time by which a slower
pace would is none that PostgreSQL knows, and the one statement that leases pace for many accounts would fail."""


class AccountBody(Body):
    """An account as a caller gives it."""

    channel: Annotated[str, _CHANNEL_SCHEMA]
    provider: Annotated[str, Field(min_length=1, max_length=64)] = Field(examples=["smtp"])
    config: dict[str, Any] = Field(
        default={}, examples=[{"host": "smtp.example.com", "from_address": "Shop <shop@example.com>"}]
    )
    """What the provider asks for. A secret given as `…` keeps the one that is stored."""
    weight: int = Field(default=100, ge=0, le=1_000_000)
    """Its share of the channel's messages among the enabled accounts; 0 takes none."""
    rate: float | None = Field(default=None, ge=_SLOWEST, le=1_000_000, allow_inf_nan=False)
    """Messages per second, down to about one a day; null: no pace."""
    burst: int = Field(default=1, ge=1, le=1_000_000)
    """Messages that may go at once after a pause."""
    concurrency: int = Field(default=64, ge=1, le=10_000)
    """Sends in flight per worker process."""
    enabled: bool = True


class AccountView(View):
    """An account. Its secrets read `…`."""

    key: str
    channel: str
    provider: str
    config: dict[str, Any]
    weight: int
    rate: float | None
    burst: int
    concurrency: int
    enabled: bool
    test: bool
    revision: int
    callback_url: str | None = None
    """Where the vendor is to report; null where it reports nothing, `TIDINGS_PUBLIC_URL` is not set, or the key may not
    manage."""
    created_at: datetime
    updated_at: datetime


@router.get("", response_model=Page[AccountView])
async def list_accounts(deps: Given, caller: Reader, page: Paging) -> Any:
    """All accounts, by key."""
    after = page.after(str, "accounts")
    found = await accounts.list_accounts(deps.database, caller.project_id, after=after, limit=page.fetch)
    cut = page.cut(found, lambda account: account.key, "accounts")
    cut["items"] = [_to_view(deps, caller, account) for account in cut["items"]]
    return cut


@router.get("/{key}", response_model=AccountView)
async def get_account(deps: Given, caller: Reader, key: Key) -> AccountView:
    """One account."""
    return _to_view(deps, caller, await accounts.load_account(deps.database, caller.project_id, key))


def _to_view(deps: Deps, caller: Caller, account: AccountInfo) -> AccountView:
    path = accounts.to_callback_path(deps.vault, caller.project_id, caller.project_key, account.provider, account.key)
    # Its address may be a secret between the vendor and us, so only who may configure the account is told it.
    told = path is not None and deps.public_url is not None and Scope.manage in caller.scopes
    view = AccountView.model_validate(account)
    return view.model_copy(update={"callback_url": f"{(deps.public_url or '').rstrip('/')}{path}"}) if told else view


def _refuse_test_key(caller: Caller) -> None:
    if caller.test:
        raise Forbidden("A test key cannot change accounts: live messages are sent with them.")


@router.put("/{key}", response_model=AccountView, responses={201: {"model": AccountView, "description": "Made"}})
async def put_account(deps: Given, caller: Admin, key: Key, body: AccountBody, response: Response) -> AccountView:
    """Makes an account (201) or changes it (200); its channel and provider stay. Workers follow within a second."""
    _refuse_test_key(caller)
    plan = AccountPlan(**body.model_dump())
    account, made = await deps.database.transaction(
        lambda conn: accounts.put_account(conn, caller.actor, deps.vault, key, plan)
    )
    deps.catalog.forget(caller.project_id)
    response.status_code = 201 if made else 200
    return _to_view(deps, caller, account)


@router.delete("/{key}", status_code=204)
async def delete_account(deps: Given, caller: Admin, key: Key) -> None:
    """Removes a disabled account and its credentials for good."""
    _refuse_test_key(caller)
    await deps.database.transaction(lambda conn: accounts.delete_account(conn, caller.actor, key))
    deps.catalog.forget(caller.project_id)
