"""Hooks: where a project's application wants to be told what becomes of its messages.

Each hook is a URL, the events that it subscribes to, and a secret of its own that we make: shown once, sealed in the
vault, rotated with a day in which the old one signs too. What is told, and how it gets there, is `flow.hooks`.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Final

import msgspec

from tidings.channels import webhook
from tidings.db.pool import Connection, Database, Record
from tidings.db.sql import load_queries
from tidings.directory.accounts import notify_config
from tidings.directory.audit import Actor, apply_audit
from tidings.directory.credentials import Place, Sealed, Vault
from tidings.errors import Conflict, FieldError, Invalid, NotFound
from tidings.model.words import EventKind

_queries: Final = load_queries(__package__, "hooks.sql")
_CREATE_HOOK: Final = _queries.create_hook
_COUNT_HOOKS: Final = _queries.count_hooks
_LOCK_HOOK: Final = _queries.lock_hook
_UPDATE_HOOK: Final = _queries.update_hook
_ROTATE_HOOK: Final = _queries.rotate_hook
_DISABLE_HOOK: Final = _queries.disable_hook
_LOAD_HOOK: Final = _queries.load_hook
_LIST_HOOKS: Final = _queries.list_hooks
_DELETE_HOOK: Final = _queries.delete_hook
_CLAIM_HOOKS_SEALED_OTHERWISE: Final = _queries.claim_hooks_sealed_otherwise
_APPLY_RESEALED_HOOK: Final = _queries.apply_resealed_hook

ALL_EVENTS: Final = "*"
"""Stands for every event, also those of later versions."""
ENDPOINT_FAILING: Final = "endpoint.failing"
ENDPOINT_DISABLED: Final = "endpoint.disabled"
SMS_INBOUND: Final = "sms.inbound"
HOOK_TEST: Final = "hook.test"
"""What a hook is told to try it; nobody subscribes to it."""

# What is shown from row times has no event row, and so is told to nobody: see EventKind.
DELIVERY_EVENTS: Final[Mapping[EventKind, str]] = {
    kind: f"delivery.{kind.name}" for kind in EventKind if kind not in (EventKind.requested, EventKind.queued)
}
EVENTS: Final = (*DELIVERY_EVENTS.values(), ENDPOINT_FAILING, ENDPOINT_DISABLED, SMS_INBOUND)
"""What a hook may subscribe to."""

HOOKS_MAX: Final = 20
"""Hooks of one project: each event is written once for every hook that wants it."""
ROTATION: Final = timedelta(hours=24)
"""For how long the secret before the present one signs too."""


class HookInfo(msgspec.Struct, frozen=True):
    """A hook as it is shown: without its secret."""

    id: int
    key: str
    url: str
    events: list[str]
    description: str
    enabled: bool
    previous_until: datetime | None
    created_at: datetime
    updated_at: datetime


class HookPlan(msgspec.Struct, frozen=True):
    """A hook as somebody wants it."""

    url: str
    events: Collection[str]
    description: str = ""
    enabled: bool = True


class HookSecrets(msgspec.Struct, frozen=True):
    """What is sealed: `whsec_…` each."""

    secret: str
    previous: str | None = None

    def __repr__(self) -> str:
        return "<HookSecrets>"


async def create_hook(conn: Connection, actor: Actor, vault: Vault, key: str, plan: HookPlan) -> tuple[HookInfo, str]:
    """Makes a hook; the second value is its secret, which nobody shows again.

    Raises:
        Invalid: with pointers.
        Conflict: there is one with this key, or there are too many.
    """
    url, events = _parse_url(plan.url), _parse_events(plan.events)
    if await conn.fetchval(_COUNT_HOOKS, actor.project_id) >= HOOKS_MAX:
        raise Conflict(f"A project has at most {HOOKS_MAX} hooks.")
    secret = _new_secret()
    sealed = _seal(vault, actor.project_id, key, HookSecrets(secret))
    row = await conn.fetchrow(
        _CREATE_HOOK,
        actor.project_id,
        key,
        url,
        events,
        plan.description,
        plan.enabled,
        sealed.data,
        sealed.key_id,
    )
    if row is None:
        raise Conflict(f"There is a hook `{key}` already; change it with PUT.")
    hook = _to_hook(row)
    await apply_audit(conn, actor, "hook.create", f"hook:{key}", after=hook)
    await notify_config(conn, actor.project_id)
    return hook, secret


async def put_hook(conn: Connection, actor: Actor, key: str, plan: HookPlan) -> HookInfo:
    """Changes a hook; its secret stays. The same again changes nothing.

    Raises:
        NotFound: this project has none with this key.
        Invalid: with pointers.
    """
    url, events = _parse_url(plan.url), _parse_events(plan.events)
    before = _to_hook(_found(await conn.fetchrow(_LOCK_HOOK, actor.project_id, key)))
    wanted = (url, events, plan.description, plan.enabled)
    if (before.url, before.events, before.description, before.enabled) == wanted:
        return before
    hook = _to_hook(_found(await conn.fetchrow(_UPDATE_HOOK, actor.project_id, key, *wanted)))
    await apply_audit(conn, actor, "hook.put", f"hook:{key}", before=before, after=hook)
    await notify_config(conn, actor.project_id)
    return hook


async def rotate_hook(conn: Connection, actor: Actor, vault: Vault, key: str) -> tuple[HookInfo, str]:
    """Gives a hook a new secret, which is the second value; the one before signs too for a day.

    Raises:
        NotFound: this project has none with this key.
    """
    row = _found(await conn.fetchrow(_LOCK_HOOK, actor.project_id, key))
    stored = open_secrets(vault, actor.project_id, row)
    secret = _new_secret()
    sealed = _seal(vault, actor.project_id, key, HookSecrets(secret, stored.secret))
    hook = _to_hook(
        _found(await conn.fetchrow(_ROTATE_HOOK, actor.project_id, key, sealed.data, sealed.key_id, ROTATION))
    )
    await apply_audit(conn, actor, "hook.rotate", f"hook:{key}")
    await notify_config(conn, actor.project_id)
    return hook, secret


async def disable_hook(conn: Connection, project_id: int, hook_id: int, why: str) -> None:
    """Switches a hook off because its endpoint asked for it; its owner may switch it on again."""
    key = await conn.fetchval(_DISABLE_HOOK, project_id, hook_id)
    if key is not None:
        await apply_audit(conn, Actor(project_id), "hook.disable", f"hook:{key}", after={"why": why})
        await notify_config(conn, project_id)


async def load_hook(db: Database | Connection, project_id: int, key: str) -> HookInfo:
    """One hook.

    Raises:
        NotFound: this project has none with this key.
    """
    return _to_hook(_found(await db.fetchrow(_LOAD_HOOK, project_id, key)))


async def list_hooks(
    db: Database | Connection, project_id: int, *, after: str | None = None, limit: int = 50
) -> list[HookInfo]:
    """The project's hooks by key; those after `after` (exclusive) when given."""
    return [_to_hook(row) for row in await db.fetch(_LIST_HOOKS, project_id, after, limit)]


async def delete_hook(conn: Connection, actor: Actor, key: str) -> None:
    """Removes a hook for good; what it was still to be told is dropped.

    Raises:
        NotFound: this project has none with this key.
    """
    before = _to_hook(_found(await conn.fetchrow(_LOCK_HOOK, actor.project_id, key)))
    await conn.execute(_DELETE_HOOK, actor.project_id, key)
    await apply_audit(conn, actor, "hook.delete", f"hook:{key}", before=before)
    await notify_config(conn, actor.project_id)


async def reseal_hooks(database: Database, vault: Vault, *, batch: int = 100) -> int:
    """Seals all secrets anew that are not sealed with the vault's first key; returns how many.

    Raises:
        SettingsError, ProviderError: some do not open; those before them are done.
    """
    done = 0
    last = 0
    while True:

        async def reseal(conn: Connection, after: int = last) -> list[Record]:
            rows: list[Record] = await conn.fetch(_CLAIM_HOOKS_SEALED_OTHERWISE, vault.sealing_key_id, after, batch)
            for row in rows:
                sealed = _seal(vault, row["project_id"], row["key"], open_secrets(vault, row["project_id"], row))
                await conn.execute(_APPLY_RESEALED_HOOK, row["project_id"], row["id"], sealed.data, sealed.key_id)
            return rows

        rows = await database.transaction(reseal)
        if not rows:
            return done
        done += len(rows)
        last = rows[-1]["id"]


def open_secrets(vault: Vault, project_id: int, row: Record) -> HookSecrets:
    """The secrets of a hook's row (key, secret, secret_key).

    Raises:
        SettingsError, ProviderError: see `Vault.open`.
    """
    plain = vault.open(_place(project_id, row["key"]), Sealed(row["secret"], row["secret_key"]))
    return msgspec.json.decode(plain, type=HookSecrets)


def _parse_url(text: str) -> str:
    try:
        return webhook.parse_address(text)
    except ValueError as problem:
        raise Invalid(errors=[FieldError(str(problem), "/url")]) from None


def _parse_events(names: Collection[str]) -> list[str]:
    errors = [
        FieldError(f"there is no event {name!r}; there are {ALL_EVENTS}, {', '.join(EVENTS)}", f"/events/{i}")
        for i, name in enumerate(names)
        if name != ALL_EVENTS and name not in EVENTS
    ]
    if errors:
        raise Invalid(errors=errors)
    return sorted(set(names))


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def _seal(vault: Vault, project_id: int, key: str, opened: HookSecrets) -> Sealed:
    return vault.seal(_place(project_id, key), msgspec.json.encode(opened))


def _place(project_id: int, key: str) -> Place:
    return Place("hook", project_id, key)


def _found(row: Record | None) -> Record:
    if row is None:
        raise NotFound("There is no such hook in this project.")
    return row


def _to_hook(row: Record) -> HookInfo:
    return HookInfo(
        id=row["id"],
        key=row["key"],
        url=row["url"],
        events=list(row["events"]),
        description=row["description"],
        enabled=row["enabled"],
        previous_until=row["previous_until"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
