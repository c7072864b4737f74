"""/api/v1/accounts: the providers that a project sends with. Secrets go in and never come out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Response
from pydantic import Field, StringConstraints, WithJsonSchema

from tidings.directory import accounts
from tidings.directory.access import Caller
from tidings.directory.accounts import AccountInfo, AccountPlan, AccountState
from tidings.errors import Forbidden
from tidings.flow import check
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


Price = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]


class AllowanceBody(Body):
    """What may be used in one period."""

    messages: int | None = Field(default=None, ge=0, le=1_000_000_000_000)
    """Messages; null: any number."""
    spend: float | None = Field(default=None, ge=0, le=1_000_000_000, allow_inf_nan=False)
    """Money in the account's currency; null: any amount."""


class QuotasBody(Body):
    """What may be used in each day and each month, in UTC."""

    day: AllowanceBody = AllowanceBody()
    month: AllowanceBody = AllowanceBody()


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
    quotas: QuotasBody = QuotasBody()
    """Never exceeded by all workers together. When one has run out, other accounts of the channel take the messages, or
    they wait for the next day or month."""
    costs: dict[str, Price] = Field(default={}, max_length=300, examples=[{"US": 0.0079, "*": 0.05}])
    """Prices in the account's currency: of each part of a text message by the recipient's country (ISO 3166) or `*`; of
    each recipient of an e-mail, and of any other message, as `*`."""
    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")] | None = Field(default=None, examples=["USD"])
    """ISO 4217; only shown."""
    enabled: bool = True


class AllowanceView(View):
    """What may be used in one period; null: no end."""

    messages: int | None
    spend: float | None


class QuotasView(View):
    """What may be used in each day and each month, in UTC."""

    day: AllowanceView
    month: AllowanceView


class UsedView(View):
    """What was used in a period. Of an account with quotas this includes what workers hold to use it next."""

    messages: int
    spend: float


class UsageView(View):
    """What was used today and this month, in UTC."""

    day: UsedView
    month: UsedView


class AccountStateView(View):
    """How an account does at present, as its workers tell every few seconds."""

    breaker: Literal["closed", "open"]
    """Open after many failures in a row that speak against the account: nothing is sent until `open_until`."""
    open_until: datetime | None
    paused_until: datetime | None
    """The vendor asked to be left alone until then."""
    exhausted_until: datetime | None
    """A quota has run out; it begins anew then."""
    learned_rate: float | None
    """Messages per second that the vendor bears, learned from its throttling; null: nothing is known."""
    health: float
    """0 to 1: the share of sends that succeed, less where receipts take much longer than with the channel's best."""
    effective_weight: float
    """The weight, as far as the account's health compared with the channel's best leaves it."""
    used: UsageView


class CheckView(View):
    """What a vendor says of an account's credentials."""

    outcome: Literal["ok", "failed", "unknown"]
    """Unknown: this vendor cannot be asked without sending something."""
    detail: str | None
    """What is wrong, or why it cannot be said."""


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
    quotas: QuotasView
    costs: dict[str, float]
    currency: str | None
    enabled: bool
    test: bool
    revision: int
    callback_url: str | None = None
    """Where the vendor is to report; null where it reports nothing, `TIDINGS_PUBLIC_URL` is not set, or the key may not
    manage."""
    state: AccountStateView
    created_at: datetime
    updated_at: datetime


@router.get("", response_model=Page[AccountView])
async def list_accounts(deps: Given, caller: Reader, page: Paging) -> Any:
    """All accounts, by key."""
    after = page.after(str, "accounts")
    found = await accounts.list_accounts(deps.database, caller.project_id, after=after, limit=page.fetch)
    cut = page.cut(found, lambda account: account.key, "accounts")
    cut["items"] = await _to_views(deps, caller, cut["items"])
    return cut


@router.get("/{key}", response_model=AccountView)
async def get_account(deps: Given, caller: Reader, key: Key) -> AccountView:
    """One account."""
    [view] = await _to_views(deps, caller, [await accounts.load_account(deps.database, caller.project_id, key)])
    return view


async def _to_views(deps: Deps, caller: Caller, found: Sequence[AccountInfo]) -> list[AccountView]:
    keys = [account.key for account in found]
    states = await accounts.load_states(deps.database, caller.project_id, keys, deps.clock.db_now())
    return [_to_view(deps, caller, account, states[account.key]) for account in found if account.key in states]


def _to_view(deps: Deps, caller: Caller, account: AccountInfo, state: AccountState) -> AccountView:
    path = accounts.to_callback_path(
        deps.vault, caller.project_id, caller.project_key, account.provider, account.key, account.id
    )
    # Its address may be a secret between the vendor and us, so only who may configure the account is told it.
    told = path is not None and deps.public_url is not None and Scope.manage in caller.scopes and not caller.test
    used = {"day": msgspec.structs.asdict(state.used_today), "month": msgspec.structs.asdict(state.used_this_month)}
    return AccountView.model_validate(
        {
            **msgspec.structs.asdict(account),
            "callback_url": f"{(deps.public_url or '').rstrip('/')}{path}" if told else None,
            "state": {**msgspec.structs.asdict(state), "used": used},
        }
    )


def _refuse_test_key(caller: Caller) -> None:
    if caller.test:
        raise Forbidden("A test key cannot use or change accounts: live messages are sent with them.")


@router.put("/{key}", response_model=AccountView, responses={201: {"model": AccountView, "description": "Made"}})
async def put_account(deps: Given, caller: Admin, key: Key, body: AccountBody, response: Response) -> AccountView:
    """Makes an account (201) or changes it (200); its channel and provider stay. Workers follow within a second."""
    _refuse_test_key(caller)
    plan = msgspec.convert(body.model_dump(), AccountPlan)
    account, made = await deps.database.transaction(
        lambda conn: accounts.put_account(conn, caller.actor, deps.vault, key, plan)
    )
    deps.catalog.forget(caller.project_id)
    response.status_code = 201 if made else 200
    [view] = await _to_views(deps, caller, [account])
    return view


@router.post("/{key}/check", response_model=CheckView)
async def check_account(deps: Given, caller: Admin, key: Key) -> CheckView:
    """Asks the account's vendor whether its credentials hold. Sends no message and changes nothing."""
    _refuse_test_key(caller)
    found = await check.check_account(deps.database, deps.vault, deps.surroundings, caller.project_id, key)
    outcome: Literal["ok", "failed", "unknown"] = "unknown" if found.ok is None else "ok" if found.ok else "failed"
    return CheckView(outcome=outcome, detail=found.detail)


@router.delete("/{key}", status_code=204)
async def delete_account(deps: Given, caller: Admin, key: Key) -> None:
    """Removes a disabled account and its credentials for good."""
    _refuse_test_key(caller)
    await deps.database.transaction(lambda conn: accounts.delete_account(conn, caller.actor, key))
    deps.catalog.forget(caller.project_id)
