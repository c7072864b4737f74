"""Provider accounts: one configured set of a vendor's credentials, on one channel of one project.

The vendor's configuration model decides what a configuration is. Its secret fields are sealed in the vault and shown
as `PLACEHOLDER` ever after; giving the placeholder back keeps what is stored, unless the same change would send it
somewhere else. Each account has a row of pace and breaker (`account_state`), which belongs to the engine from then on.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Final, get_args

import msgspec
from pydantic import SecretStr

from tidings.db.pool import Connection, Database, Record
from tidings.db.sql import load_queries
from tidings.directory.audit import Actor, apply_audit
from tidings.directory.credentials import Place, Sealed, Vault
from tidings.engine.gate import Quota
from tidings.errors import Conflict, FieldError, Invalid, NotFound
from tidings.model.words import CHANNELS_OF_THIS_VERSION, Channel
from tidings.providers.port import Config, ReceiptAuth
from tidings.providers.registry import PROVIDERS, merge_secrets, parse_config, split_secrets

_queries: Final = load_queries(__package__, "accounts.sql")
_CREATE_ACCOUNT: Final = _queries.create_account
_CREATE_BUILTIN_ACCOUNTS: Final = _queries.create_builtin_accounts
_LOCK_ACCOUNT: Final = _queries.lock_account
_UPDATE_ACCOUNT: Final = _queries.update_account
_LOAD_ACCOUNT: Final = _queries.load_account
_LIST_LISTENING_PROJECTS: Final = _queries.list_listening_projects
_LOAD_REPORTING_ACCOUNT: Final = _queries.load_reporting_account
_LIST_ACCOUNTS: Final = _queries.list_accounts
_LOAD_STATES: Final = _queries.load_states
_DELETE_ACCOUNT: Final = _queries.delete_account
_NOTIFY_CONFIG: Final = _queries.notify_config
_CLAIM_ACCOUNTS_SEALED_OTHERWISE: Final = _queries.claim_accounts_sealed_otherwise
_APPLY_RESEALED: Final = _queries.apply_resealed

CONFIG_CHANNEL: Final = "tidings_config"
"""The NOTIFY channel on which a change of a project's types, templates or accounts is told; the payload is its id."""
PLACEHOLDER: Final = "…"
"""What stands for a secret that is stored."""
MICRO: Final = 1_000_000
"""Amounts of money are stored in millionths of the currency's unit, as whole numbers."""
_COUNTRY: Final = re.compile(r"[A-Z]{2}")
CONFIG_MAX: Final = 64 * 1024
"""Octets of a configuration."""


class Allowance(msgspec.Struct, frozen=True):
    """What may be used in one period; None: as much as there is."""

    messages: int | None = None
    spend: float | None = None
    """In the account's currency."""


class Quotas(msgspec.Struct, frozen=True):
    """What may be used in each day and each month of UTC."""

    day: Allowance = Allowance()
    month: Allowance = Allowance()


class AccountInfo(msgspec.Struct, frozen=True):
    """An account as it is shown: secrets are placeholders."""

    id: int
    """Internal; the API shows the key."""
    key: str
    channel: str
    provider: str
    config: dict[str, Any]
    weight: int
    """Its share of the channel's messages among the enabled accounts."""
    rate: float | None
    """Messages per second; None: no pace."""
    burst: int
    """Messages that may go at once after a pause."""
    concurrency: int
    """Sends in flight per worker process."""
    quotas: Quotas
    costs: dict[str, float]
    """The price of a message in the account's currency, by the recipient's country or `*`."""
    currency: str | None
    enabled: bool
    test: bool
    """The simulator that test keys and simulator addresses use."""
    revision: int
    created_at: datetime
    updated_at: datetime


class AccountPlan(msgspec.Struct, frozen=True):
    """An account as somebody wants it."""

    channel: str
    provider: str
    config: Mapping[str, Any] = {}
    weight: int = 100
    rate: float | None = None
    burst: int = 1
    concurrency: int = 64
    enabled: bool = True
    quotas: Quotas = Quotas()
    costs: Mapping[str, float] = {}
    currency: str | None = None


class Used(msgspec.Struct, frozen=True):
    """What was used in a period, or is leased by a worker that may use it."""

    messages: int = 0
    spend: float = 0.0


class AccountState(msgspec.Struct, frozen=True):
    """How an account does at present."""

    breaker: str
    """`closed`, or `open` after too many failures."""
    open_until: datetime | None
    paused_until: datetime | None
    """The vendor asked to be left alone until then."""
    exhausted_until: datetime | None
    """A quota has run out until then."""
    learned_rate: float | None
    """Messages per second; the vendor throttles what is more."""
    health: float
    """0 to 1: the share of sends that succeed, less where receipts take much longer than with the channel's best."""
    effective_weight: float
    used_today: Used
    used_this_month: Used


async def put_account(
    conn: Connection, actor: Actor, vault: Vault, key: str, plan: AccountPlan
) -> tuple[AccountInfo, bool]:
    """Makes the account, or changes it; the second value says whether it is new. The same again changes nothing.

    Raises:
        Invalid: with pointers; the provider does not serve the channel, or its model refuses the configuration.
        Conflict: an account keeps its channel and its provider.
    """
    channel = _parse_channel(plan.channel, plan.provider)
    _check_costs(plan, channel)
    place = _place(actor.project_id, key)
    locked = await conn.fetchrow(_LOCK_ACCOUNT, actor.project_id, key)
    if locked is None:
        config = _parse_new_config(plan, {})
        public, sealed = _seal(vault, place, config)
        limits = _to_limits(plan)
        row = await conn.fetchrow(
            _CREATE_ACCOUNT, actor.project_id, key, channel, plan.provider, _to_json(public), *sealed, *limits
        )
        if row is None:
            raise Conflict("The account was made at the same moment; repeat the request.")
        account = _to_account(row)
        await apply_audit(conn, actor, "account.put", f"account:{key}", after=account)
        await notify_config(conn, actor.project_id)
        return account, True

    before = _to_account(locked)
    if (before.channel, before.provider) != (plan.channel, plan.provider):
        raise Conflict(f"Account `{key}` is {before.provider} on {before.channel} and stays that; make another one.")
    stored = _open(vault, place, locked)
    config = _parse_new_config(plan, stored)
    public, secret = split_secrets(config)
    _refuse_moved_secrets(plan, config, public, msgspec.json.decode(locked["config"]))
    kept, wanted = _to_limits(before), _to_limits(plan)
    if (public, secret, wanted) == (msgspec.json.decode(locked["config"]), stored, kept):
        return before, False
    # Unchanged secrets keep their seal, so that the audit trail and backups do not differ for nothing.
    sealed = (locked["secret"], locked["secret_key"]) if secret == stored else _seal(vault, place, config)[1]
    row = await conn.fetchrow(_UPDATE_ACCOUNT, actor.project_id, key, _to_json(public), *sealed, *wanted)
    account = _to_account(_found(row))
    await apply_audit(conn, actor, "account.put", f"account:{key}", before=before, after=account)
    await notify_config(conn, actor.project_id)
    return account, False


async def load_account(db: Database | Connection, project_id: int, key: str) -> AccountInfo:
    """One account.

    Raises:
        NotFound: this project has none with this key.
    """
    return _to_account(_found(await db.fetchrow(_LOAD_ACCOUNT, project_id, key)))


async def list_accounts(
    db: Database | Connection, project_id: int, *, after: str | None = None, limit: int = 50
) -> list[AccountInfo]:
    """The project's accounts by key; those after `after` (exclusive) when given."""
    return [_to_account(row) for row in await db.fetch(_LIST_ACCOUNTS, project_id, after, limit)]


async def load_states(
    db: Database | Connection, project_id: int, keys: Collection[str], now: datetime | None
) -> dict[str, AccountState]:
    """How these accounts do at present, by key."""
    rows = await db.fetch(_LOAD_STATES, project_id, list(keys), now)
    return {
        row["key"]: AccountState(
            breaker="closed" if row["open_until"] is None else "open",
            open_until=row["open_until"],
            paused_until=row["paused_until"],
            exhausted_until=row["exhausted_until"],
            learned_rate=row["learned_rate"],
            health=row["health"],
            effective_weight=row["effective_weight"],
            used_today=Used(row["day_messages"], row["day_spend"] / MICRO),
            used_this_month=Used(row["month_messages"], row["month_spend"] / MICRO),
        )
        for row in rows
    }


async def delete_account(conn: Connection, actor: Actor, key: str) -> None:
    """Removes an account for good, credentials and all. The deliveries that it made stay.

    Raises:
        NotFound: this project has none with this key.
        Conflict: it is enabled, or one that every project has.
    """
    account = _to_account(_found(await conn.fetchrow(_LOCK_ACCOUNT, actor.project_id, key)))
    if account.test:
        raise Conflict("Every project keeps its simulator; test keys need it.")
    if account.enabled:
        raise Conflict("Disable the account first, so that what is in flight can end.")
    await conn.execute(_DELETE_ACCOUNT, actor.project_id, key)
    await apply_audit(conn, actor, "account.delete", f"account:{key}", before=account)
    await notify_config(conn, actor.project_id)


async def create_builtin_accounts(conn: Connection, project_id: int) -> None:
    """What every project has from its beginning: a simulator per channel for its test keys, and the inbox."""
    simulator = _to_json(split_secrets(parse_config("simulator", {}))[0])
    rows = [(f"simulator-{c.name}", c, "simulator", simulator, True) for c in CHANNELS_OF_THIS_VERSION]
    rows.append(("inbox", Channel.in_app, "inbox", "{}", False))
    await conn.execute(_CREATE_BUILTIN_ACCOUNTS, project_id, *(list(column) for column in zip(*rows, strict=True)))
    await notify_config(conn, project_id)


async def notify_config(conn: Connection, project_id: int) -> None:
    """Tells every process that the project's configuration changes with this transaction.

    NOTIFY inside of a transaction takes a lock at commit; changes of the configuration are rare enough for that.
    """
    await conn.execute(_NOTIFY_CONFIG, str(project_id))


async def reseal_accounts(database: Database, vault: Vault, *, batch: int = 100) -> int:
    """Seals all credentials anew that are not sealed with the vault's first key; returns how many.

    May be stopped and begun again at any time; both keys open until it is through.

    Raises:
        SettingsError, ProviderError: some do not open; those before them are done.
    """
    done = 0
    last = 0
    while True:

        async def reseal(conn: Connection, after: int = last) -> list[Record]:
            rows: list[Record] = await conn.fetch(_CLAIM_ACCOUNTS_SEALED_OTHERWISE, vault.sealing_key_id, after, batch)
            for row in rows:
                place = _place(row["project_id"], row["key"])
                sealed = vault.seal(place, vault.open(place, Sealed(row["secret"], row["secret_key"])))
                await conn.execute(_APPLY_RESEALED, row["project_id"], row["id"], sealed.data, sealed.key_id)
            return rows

        rows = await database.transaction(reseal)
        if not rows:
            return done
        done += len(rows)
        last = rows[-1]["id"]


async def load_config(database: Database, vault: Vault, project_id: int, key: str) -> tuple[str, Config]:
    """An account's provider and its whole configuration, secrets opened, for asking the vendor about it.

    Raises:
        NotFound: this project has none with this key.
        SettingsError, ProviderError, Invalid: see `open_config`.
    """
    row = _found(await database.fetchrow(_LOAD_ACCOUNT, project_id, key))
    return row["provider"], open_config(vault, project_id, row)


async def list_listening_projects(database: Database) -> list[int]:
    """The projects with an account whose vendor reports over a connection that is kept open for it."""
    listening = [name for name in PROVIDERS if hasattr(PROVIDERS[name], "listen")]
    rows = await database.fetch(_LIST_LISTENING_PROJECTS, listening) if listening else []
    return [row["project_id"] for row in rows]


class ReportingAccount(msgspec.Struct, frozen=True):
    """An account whose vendor calls back."""

    id: int
    project_id: int
    key: str
    channel: Channel
    provider: str
    config: Config
    revision: int


async def load_reporting_account(
    database: Database, vault: Vault, project_key: str, provider: str, key: str
) -> ReportingAccount | None:
    """The account that a callback's address names, enabled or not; None when there is none.

    Raises:
        SettingsError, ProviderError, Invalid: see `open_config`.
    """
    row = await database.fetchrow(_LOAD_REPORTING_ACCOUNT, project_key, key, provider)
    if row is None:
        return None
    config = open_config(vault, row["project_id"], row)
    return ReportingAccount(
        row["id"], row["project_id"], row["key"], Channel(row["channel"]), row["provider"], config, row["revision"]
    )


def to_callback_path(
    vault: Vault, project_id: int, project_key: str, provider: str, key: str, account_id: int
) -> str | None:
    """The path of the address that the account's vendor reports to; None where it reports nothing.

    Of a vendor that signs nothing it holds a secret, which only the vendor is told.
    """
    kind = PROVIDERS.get(provider)
    if kind is None or kind.spec.receipts is None:
        return None
    path = f"/callbacks/{project_key}/{provider}/{key}"
    if kind.spec.receipts is ReceiptAuth.hidden_path:
        path += "/" + list_callback_secrets(vault, project_id, account_id)[0]
    return path


def list_callback_secrets(vault: Vault, project_id: int, account_id: int) -> list[str]:
    """The secrets that may stand in an account's callback address: one of each master key, the present one first.

    They are this account's: one that is removed and made anew under the same key has others.
    """
    keys = vault.derive(Place("callback", project_id, str(account_id)))
    return [base64.urlsafe_b64encode(k[:24]).decode() for k in keys]


def open_config(vault: Vault, project_id: int, row: Record) -> Config:
    """The whole configuration of an account's row (key, provider, config, secret, secret_key), secrets opened.

    Raises:
        SettingsError, ProviderError: see `Vault.open`.
        Invalid: the provider's model takes it no more.
    """
    secret = _open(vault, _place(project_id, row["key"]), row)
    return merge_secrets(row["provider"], msgspec.json.decode(row["config"]), secret)


def to_quota(stored: str) -> Quota | None:
    """The stored quotas as the engine takes them; None where there are none."""
    quotas = msgspec.json.decode(stored, type=_StoredQuotas)
    quota = Quota(quotas.day.messages, quotas.day.spend, quotas.month.messages, quotas.month.spend)
    return quota if any(limit is not None for limit in quota) else None


class _StoredAllowance(msgspec.Struct, frozen=True, omit_defaults=True):
    messages: int | None = None
    spend: int | None = None
    """Micro-units."""


class _StoredQuotas(msgspec.Struct, frozen=True, omit_defaults=True):
    day: _StoredAllowance = _StoredAllowance()
    month: _StoredAllowance = _StoredAllowance()


def _to_limits(account: AccountPlan | AccountInfo) -> tuple[Any, ...]:
    """What an account may take, as it is stored; in the order of the statements' arguments."""
    day, month = (
        _StoredAllowance(a.messages, round(a.spend * MICRO) if a.spend is not None else None)
        for a in (account.quotas.day, account.quotas.month)
    )
    costs = {country: round(price * MICRO) for country, price in sorted(account.costs.items())}
    return (
        account.weight, account.rate, account.burst, account.concurrency, account.enabled,
        _to_json(_StoredQuotas(day, month)), _to_json(costs), account.currency,
    )  # fmt: skip


def _check_costs(plan: AccountPlan, channel: Channel) -> None:
    named = sorted(set(plan.costs) - {"*"})
    if channel is not Channel.sms:
        wrong, detail = named, f"a message on {channel.name} has no country; give its price as *"
    else:
        wrong, detail = [c for c in named if not _COUNTRY.fullmatch(c)], "is not a country (ISO 3166, such as US) or *"
    if wrong:
        escaped = [country[:80].replace("~", "~0").replace("/", "~1") for country in wrong]
        raise Invalid(errors=[FieldError(detail, f"/costs/{country}") for country in escaped])


def _parse_channel(channel: str, provider: str) -> Channel:
    names = [c.name for c in CHANNELS_OF_THIS_VERSION]
    if channel not in Channel.__members__:
        raise Invalid(errors=[FieldError(f"there is no channel {channel!r}; there are {', '.join(names)}", "/channel")])
    if channel not in names:
        raise Invalid(errors=[FieldError(f"`{channel}` is not supported by this version of Tidings", "/channel")])
    kind = PROVIDERS.get(provider)
    if kind is not None and Channel[channel] not in kind.spec.channels:
        serves = ", ".join(sorted(c.name for c in kind.spec.channels))
        detail = f"the provider {provider} serves {serves}, not {channel}"
        raise Invalid(errors=[FieldError(detail, "/provider")])
    return Channel[channel]


def _parse_new_config(plan: AccountPlan, stored: Mapping[str, str]) -> Config:
    """The configuration, with what is stored in the place of placeholders."""
    if len(msgspec.json.encode(plan.config)) > CONFIG_MAX:
        raise Invalid(errors=[FieldError(f"is larger than {CONFIG_MAX:,} octets", "/config")])
    given = dict(plan.config)
    for name in list_secret_fields(plan.provider):
        if given.get(name) == PLACEHOLDER:
            if name not in stored:
                detail = f"{PLACEHOLDER} keeps what is stored, and nothing is; give the secret"
                raise Invalid(errors=[FieldError(detail, f"/config/{name}")])
            given[name] = stored[name]
    return parse_config(plan.provider, given)


def _refuse_moved_secrets(
    plan: AccountPlan, config: Config, public: Mapping[str, Any], before: Mapping[str, Any]
) -> None:
    """Nothing, unless a stored secret would go somewhere else than whoever gave it had meant.

    Raises:
        Invalid: a placeholder keeps it, although a field of `Config.guards_secrets` changes.
    """
    fields = type(config).model_fields
    moved = [n for n in fields if n in config.guards_secrets and public[n] != before.get(n, fields[n].default)]
    kept = [name for name in list_secret_fields(plan.provider) if plan.config.get(name) == PLACEHOLDER]
    if moved and kept:
        detail = f"give the secret anew: {PLACEHOLDER} does not keep it when {', '.join(moved)} changes"
        raise Invalid(errors=[FieldError(detail, f"/config/{name}") for name in kept])


def list_secret_fields(provider: str) -> list[str]:
    """The fields of a provider's configuration that are sealed, and shown as a placeholder."""
    kind = PROVIDERS.get(provider)
    if kind is None:
        return []
    fields = kind.spec.config.model_fields
    return [name for name, field in fields.items() if _holds_secret(field.annotation)]


def _holds_secret(annotation: Any) -> bool:
    """Whether it is a secret, however deep among options and checks."""
    return annotation is SecretStr or any(_holds_secret(inner) for inner in get_args(annotation))


def _seal(vault: Vault, place: Place, config: Config) -> tuple[dict[str, Any], tuple[bytes | None, str | None]]:
    public, secret = split_secrets(config)
    if not secret:
        return public, (None, None)
    sealed = vault.seal(place, msgspec.json.encode(secret))
    return public, (sealed.data, sealed.key_id)


def _open(vault: Vault, place: Place, row: Record) -> dict[str, str]:
    if row["secret"] is None:
        return {}
    plain = vault.open(place, Sealed(row["secret"], row["secret_key"]))
    return msgspec.json.decode(plain, type=dict[str, str])


def _place(project_id: int, key: str) -> Place:
    return Place("account", project_id, key)


def _found(row: Record | None) -> Record:
    if row is None:
        raise NotFound("There is no such account in this project.")
    return row


def _to_account(row: Record) -> AccountInfo:
    config: dict[str, Any] = msgspec.json.decode(row["config"])
    hidden = {name: PLACEHOLDER for name in list_secret_fields(row["provider"]) if name not in config}
    return AccountInfo(
        id=row["id"],
        key=row["key"],
        channel=Channel(row["channel"]).name,
        provider=row["provider"],
        config={**config, **hidden} if row["secret"] is not None else config,
        weight=row["weight"],
        rate=row["rate"],
        burst=row["burst"],
        concurrency=row["concurrency"],
        quotas=_to_quotas(row["quotas"]),
        costs={c: price / MICRO for c, price in msgspec.json.decode(row["costs"], type=dict[str, int]).items()},
        currency=row["currency"],
        enabled=row["enabled"],
        test=row["test"],
        revision=row["revision"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _to_quotas(stored: str) -> Quotas:
    quotas = msgspec.json.decode(stored, type=_StoredQuotas)
    day, month = (
        Allowance(a.messages, a.spend / MICRO if a.spend is not None else None) for a in (quotas.day, quotas.month)
    )
    return Quotas(day, month)


def _to_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
