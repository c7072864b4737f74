"""API keys: made, listed, revoked, and recognised on every request.

A key reads `tdg_<project>_<id>_<secret>` (`tdgt_…` for a test key): the project's key, 26 characters of base32, and
256 random bits as 43 characters of base64url. Only the secret's SHA-256 is stored; a fast hash is enough because
nobody can guess 256 bits. The secret is shown once, when the key is made.

:class:`Access` knows the keys that were used lately, so a request costs no round trip. It forgets each after
`FRESH_FOR`, and that is how long a revoked key may go on working in other processes: less than the five seconds that
the documentation promises.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from tidings.clock import Clock
from tidings.db.pool import Connection, Database, Record
from tidings.db.sql import load_queries
from tidings.directory.audit import Actor, apply_audit
from tidings.directory.rates import RATE_MAX, Allowance, Rates
from tidings.errors import FieldError, Forbidden, Invalid, NotFound, Unauthenticated
from tidings.ids import API_KEY, new_id, parse_public, to_public
from tidings.model.words import Scope

_queries: Final = load_queries(__package__, "access.sql")
_LOAD_KEY_FOR_ACCESS: Final = _queries.load_key_for_access
_CREATE_KEY: Final = _queries.create_key
_LIST_KEYS: Final = _queries.list_keys
_LOAD_KEY: Final = _queries.load_key
_REVOKE_KEY: Final = _queries.revoke_key

FRESH_FOR: Final = 4.0
"""Seconds for which a key's row is believed without looking again."""
UNKNOWN_FOR: Final = 1.0
"""Seconds for which an id is believed not to exist."""
_KNOWN_MAX: Final = 10_000
_UNKNOWN_MAX: Final = 10_000
_LOOK_UPS: Final = 4
"""Look-ups at a time: made-up keys must not take every connection of the pool."""

_FORM: Final = re.compile(r"tdg(t?)_([a-z0-9][a-z0-9-]{0,39})_([0-7][0-9a-hjkmnp-tv-z]{25})_([A-Za-z0-9_-]{43})")
_NO_HASH: Final = bytes(32)
_BAD_KEY: Final = "This API key is not valid."


class Caller(msgspec.Struct, frozen=True):
    """Whom a request comes from: an API key, which belongs to one project."""

    project_id: int
    project_key: str
    key_id: UUID
    scopes: frozenset[Scope]
    test: bool
    """A test key: its messages go the whole road, to a simulated provider."""
    rate: int | None = None
    """Requests per minute; None: no limit."""

    def require(self, scope: Scope) -> None:
        """Nothing, if the key has the scope.

        Raises:
            Forbidden: it has not; the detail names the scope.
        """
        if scope not in self.scopes:
            raise Forbidden(f"This API key lacks the scope `{scope.value}`.")

    @property
    def actor(self) -> Actor:
        """The caller as the audit trail names it."""
        return Actor(self.project_id, "key", self.key_id)


class ApiKey(msgspec.Struct, frozen=True):
    """A key without its secret."""

    id: str
    """Public id, `key_…`."""
    name: str
    scopes: list[Scope]
    test: bool
    rate: int | None
    """Requests per minute; None: as `TIDINGS_API_RATE` says."""
    expires_at: datetime | None
    revoked_at: datetime | None
    created_at: datetime


class _Entry(msgspec.Struct, frozen=True):
    """What is remembered of a key's row; no `caller` when there is no such row."""

    fresh_until: float  # on the monotonic clock
    hash: bytes
    caller: Caller | None
    expires_at: datetime | None
    revoked: bool


class Access:
    """Recognises API keys, from memory where it can, and counts what they ask for.

    Args:
        rate: requests per minute of keys that have no rate of their own; None: as many as they like.
    """

    def __init__(self, database: Database, clock: Clock, *, rate: int | None = None) -> None:
        self._database = database
        self._clock = clock
        self.rate: Final = rate
        self._rates = Rates(database, clock)
        self._known: dict[UUID, _Entry] = {}
        self._unknown: dict[UUID, _Entry] = {}
        self._loading: dict[UUID, asyncio.Task[_Entry]] = {}
        self._turn = asyncio.Semaphore(_LOOK_UPS)

    async def authenticate(self, header: str | None) -> Caller:
        """The caller whose key the `Authorization` header carries, as `Bearer <key>`.

        Raises:
            Unauthenticated: no key, not one of ours, expired or revoked. Why, is told to holders of the secret only.
            DatabaseError: the key is not in memory and the database cannot be asked.
        """
        if header is None:
            raise Unauthenticated
        scheme, _, text = header.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise Unauthenticated(_BAD_KEY)
        test, project_key, id_text, secret = match.groups()
        key_id = parse_public(API_KEY, f"{API_KEY}_{id_text}")
        if key_id is None:
            raise Unauthenticated(_BAD_KEY)
        entry = self._known.get(key_id) or self._unknown.get(key_id)
        if entry is None or entry.fresh_until <= self._clock.monotonic():
            entry = await self._load(key_id)
        # Unknown ids take the same steps as known ones, so that time does not tell which ids exist.
        right = hmac.compare_digest(hashlib.sha256(secret.encode()).digest(), entry.hash)
        caller = entry.caller
        if not right or caller is None or caller.project_key != project_key or caller.test != bool(test):
            raise Unauthenticated(_BAD_KEY)
        if entry.revoked:
            raise Unauthenticated("This API key has been revoked.")
        if entry.expires_at is not None and entry.expires_at <= self._clock.now():
            raise Unauthenticated(f"This API key expired at {entry.expires_at:%Y-%m-%dT%H:%M:%SZ}.")
        return caller

    async def charge(self, caller: Caller, cost: int) -> Allowance | None:
        """Count a request against the key's rate; None: it has none.

        Raises:
            DatabaseError: what is left cannot be found out.
        """
        if caller.rate is None:
            return None
        return await self._rates.take(caller.key_id, caller.project_id, caller.rate, cost)

    def forget(self, key_id: UUID) -> None:
        """Looks at the key's row again next time: for the process in which it was changed."""
        self._known.pop(key_id, None)
        self._unknown.pop(key_id, None)

    async def _load(self, key_id: UUID) -> _Entry:
        # One look-up at a time per key. Shielded: if the first asker goes away, the others still get their answer.
        task = self._loading.get(key_id)
        if task is None:
            task = self._loading[key_id] = asyncio.create_task(self._look_up(key_id))
            task.add_done_callback(lambda done: self._loaded(key_id, done))
        return await asyncio.shield(task)

    def _loaded(self, key_id: UUID, task: asyncio.Task[_Entry]) -> None:
        self._loading.pop(key_id, None)
        if task.cancelled() or task.exception() is not None:
            return
        entry = task.result()
        cache, limit = (self._unknown, _UNKNOWN_MAX) if entry.caller is None else (self._known, _KNOWN_MAX)
        self.forget(key_id)
        if len(cache) >= limit:
            cache.pop(next(iter(cache)))
        cache[key_id] = entry

    async def _look_up(self, key_id: UUID) -> _Entry:
        async with self._turn:
            # Freshness counts from before the question: a revocation during it must not be believed away for longer.
            asked_at = self._clock.monotonic()
            row = await self._database.fetchrow(_LOAD_KEY_FOR_ACCESS, key_id)
        if row is None:
            return _Entry(asked_at + UNKNOWN_FOR, _NO_HASH, None, None, False)
        caller = Caller(
            project_id=row["project_id"],
            project_key=row["project_key"],
            key_id=key_id,
            scopes=frozenset(Scope(scope) for scope in row["scopes"]),
            test=row["test"],
            rate=row["rate"] or self.rate,
        )
        return _Entry(asked_at + FRESH_FOR, row["hash"], caller, row["expires_at"], row["revoked_at"] is not None)


async def create_key(
    conn: Connection,
    actor: Actor,
    clock: Clock,
    *,
    name: str,
    scopes: Collection[Scope],
    test: bool = False,
    rate: int | None = None,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """A new key and its text, which nobody can read again.

    Raises:
        Invalid: no scope, a `rate` that is none, or `expires_at` is not in the future.
        NotFound: there is no such project.
    """
    if not scopes:
        raise Invalid(errors=[FieldError("give at least one scope", pointer="/scopes")])
    if rate is not None and not 1 <= rate <= RATE_MAX:
        raise Invalid(errors=[FieldError(f"must be from 1 to {RATE_MAX:,}", pointer="/rate")])
    now = clock.now()
    if expires_at is not None and expires_at <= now:
        raise Invalid(errors=[FieldError("must be in the future", pointer="/expires_at")])
    secret = base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()
    row = await conn.fetchrow(
        _CREATE_KEY,
        actor.project_id,
        new_id(now, clock.random),
        name,
        hashlib.sha256(secret.encode()).digest(),
        sorted({scope.value for scope in scopes}),
        test,
        expires_at,
        rate,
    )
    if row is None:
        raise NotFound("There is no such project.")
    key = _to_key(row)
    await apply_audit(conn, actor, "key.create", f"key:{key.id}", after=key)
    prefix = "tdgt" if test else "tdg"
    return key, f"{prefix}_{row['project_key']}_{key.id.removeprefix(f'{API_KEY}_')}_{secret}"


async def list_keys(
    db: Database | Connection, project_id: int, *, after: UUID | None = None, limit: int = 50
) -> list[ApiKey]:
    """The project's keys in the order in which they were made, revoked ones too."""
    return [_to_key(row) for row in await db.fetch(_LIST_KEYS, project_id, after, limit)]


async def load_key(db: Database | Connection, project_id: int, key_id: UUID) -> ApiKey:
    """One key.

    Raises:
        NotFound: this project has no such key.
    """
    row = await db.fetchrow(_LOAD_KEY, project_id, key_id)
    if row is None:
        raise NotFound("There is no such API key in this project.")
    return _to_key(row)


async def revoke_key(conn: Connection, actor: Actor, key_id: UUID) -> ApiKey:
    """Ends a key for good, in every process within five seconds; doing it again changes nothing.

    Raises:
        NotFound: this project has no such key.
    """
    before = await load_key(conn, actor.project_id, key_id)
    row = await conn.fetchrow(_REVOKE_KEY, actor.project_id, key_id)
    if row is None:  # revoked before, or by somebody else between the two statements
        return before
    key = _to_key(row)
    await apply_audit(conn, actor, "key.revoke", f"key:{key.id}", before=before, after=key)
    return key


def _to_key(row: Record) -> ApiKey:
    columns: dict[str, Any] = dict(row)
    return ApiKey(
        id=to_public(API_KEY, columns["id"]),
        name=columns["name"],
        scopes=[Scope(scope) for scope in columns["scopes"]],
        test=columns["test"],
        rate=columns["rate"],
        expires_at=columns["expires_at"],
        revoked_at=columns["revoked_at"],
        created_at=columns["created_at"],
    )
