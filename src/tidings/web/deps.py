"""What a route is given: the rooms below, who calls, a page of a list, and a way to do something only once.

    @router.get("/categories")
    async def list_categories(deps: Given, caller: Reader, page: Paging) -> ...

Every route under /api/v1 takes one of `Reader`, `Sender`, `Admin`, or, for a user's own inbox, `AsUser`; an
architecture test sees to it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import asyncpg
import msgspec
from fastapi import Depends, Header, Query, Request, Response
from pydantic import TypeAdapter

from tidings.clock import Clock
from tidings.db.pool import Connection, Database
from tidings.db.sql import load_queries
from tidings.directory.access import Access, Caller
from tidings.errors import FieldError, IdempotencyBusy, IdempotencyMismatch, Invalid
from tidings.model.words import Scope
from tidings.telemetry import Metrics
from tidings.web.health import Ready

if TYPE_CHECKING:
    from tidings.directory.catalog import Catalog
    from tidings.directory.credentials import Vault
    from tidings.directory.tokens import Tokens
    from tidings.flow.broadcasts import Broadcaster
    from tidings.flow.callbacks import Callbacks
    from tidings.flow.events import EventAcceptor
    from tidings.flow.explain import Explainer
    from tidings.flow.inbox import Inbox
    from tidings.flow.intervene import Intervener
    from tidings.flow.privacy import Eraser
    from tidings.flow.receipts import Receiver
    from tidings.flow.tracking import Signer
    from tidings.providers.port import Surroundings
    from tidings.web.inbox.live import Live

Made = TypeVar("Made")
Value = TypeVar("Value")

_queries: Final = load_queries(__package__, "idempotency.sql")
_CLAIM_IDEMPOTENCY: Final = _queries.claim_idempotency
_LOAD_IDEMPOTENCY: Final = _queries.load_idempotency
_APPLY_IDEMPOTENCY: Final = _queries.apply_idempotency

REMEMBERED_FOR: Final = timedelta(hours=24)
"""How long the answer to an idempotency key is kept."""
_WAIT: Final = timedelta(seconds=1)
"""How long a duplicate waits for the request that came first."""
_KEY_MAX: Final = 255


@dataclass(frozen=True, kw_only=True)
class Deps:
    """What the routes stand on; built once, in the composition root."""

    database: Database
    clock: Clock
    access: Access
    metrics: Metrics
    vault: Vault
    catalog: Catalog
    broadcaster: Broadcaster
    intervener: Intervener
    events: EventAcceptor
    eraser: Eraser
    explainer: Explainer
    tokens: Tokens
    inbox: Inbox
    live: Live
    receiver: Receiver
    callbacks: Callbacks
    signer: Signer
    surroundings: Surroundings
    """For asking vendors about accounts."""
    ready: Ready
    public_url: str | None = None
    """How the outside reaches us."""
    retention: timedelta = timedelta(days=90)
    """How long notifications are kept; nothing may be planned beyond it."""
    extra_openapi: Mapping[str, Any] = field(default_factory=dict)
    """`paths`, `components` and `tags` of the routes that FastAPI does not know; merged into /openapi.json."""


def _given(request: Request) -> Deps:
    deps: Deps = request.app.state.deps
    return deps


Given = Annotated[Deps, Depends(_given)]


class require:
    """The dependency that a route's caller has a scope. The edge has authenticated the caller before."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def __call__(self, request: Request) -> Caller:
        caller: Caller = request.state.caller
        caller.require(self.scope)
        return caller


Reader = Annotated[Caller, Depends(require(Scope.read))]
Sender = Annotated[Caller, Depends(require(Scope.send))]
Admin = Annotated[Caller, Depends(require(Scope.manage))]


# ---------------------------------------------------------------- paging

PAGE_MAX: Final = 200


class PageRequest(msgspec.Struct, frozen=True):
    """Which part of a list is asked for."""

    limit: int
    cursor: str | None

    @property
    def fetch(self) -> int:
        """Rows to ask the database for: one more than the page has, to know whether another one follows."""
        return self.limit + 1

    def after(self, kind: type[Value], listing: str) -> Value | None:
        """Where the page before this one ended; None on the first page.

        Args:
            kind: type of the place: `str`, `int`, `UUID`.
            listing: the list's name and filters. A cursor of another list, or of other filters, is refused.

        Raises:
            Invalid: this is no cursor of this list.
        """
        if self.cursor is None:
            return None
        wrong = Invalid(
            errors=[
                FieldError(
                    "is not a cursor of this list; take `next_cursor` from the page before, with the same filters",
                    parameter="cursor",
                )
            ]
        )
        try:
            raw = base64.b64decode(self.cursor.encode("ascii") + b"=" * (-len(self.cursor) % 4), b"-_", validate=True)
            mark, text = msgspec.json.decode(raw, type=tuple[str, msgspec.Raw])
            place = msgspec.json.decode(text, type=kind)
        except (UnicodeEncodeError, binascii.Error, UnicodeDecodeError, msgspec.MsgspecError):
            raise wrong from None
        # What PostgreSQL could not take as text or bigint was never a place of ours.
        impossible = (isinstance(place, str) and "\0" in place) or (isinstance(place, int) and not 0 <= place < 1 << 63)
        if mark != _mark(listing) or impossible:
            raise wrong
        return place

    def cut(self, rows: Sequence[Value], place: Callable[[Value], Any], listing: str) -> dict[str, Any]:
        """The page as its view takes it, from up to `fetch` rows; `place` says where a row stands in the list."""
        items = list(rows[: self.limit])
        more = len(rows) > self.limit
        return {"items": items, "next_cursor": _to_cursor(listing, place(items[-1])) if more else None}


def _page_request(
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX, description="Items on a page.")] = 50,
    cursor: Annotated[str | None, Query(max_length=2048, description="`next_cursor` of the page before.")] = None,
) -> PageRequest:
    return PageRequest(limit, cursor)


Paging = Annotated[PageRequest, Depends(_page_request)]


def _to_cursor(listing: str, place: Any) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode((_mark(listing), place))).rstrip(b"=").decode()


def _mark(listing: str) -> str:
    return hashlib.sha256(listing.encode()).hexdigest()[:8]


# ---------------------------------------------------------------- idempotency


def parse_idempotency_key(header: str | None) -> str | None:
    """The key of an `Idempotency-Key` header: a quoted string as the draft has it, or the bare text.

    See https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07

    Raises:
        Invalid: it is empty, longer than 255 characters, or not printable ASCII.
    """
    if header is None:
        return None
    key = header.strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not 1 <= len(key) <= _KEY_MAX or not key.isascii() or not key.isprintable():
        detail = f"must be 1 to {_KEY_MAX} printable ASCII characters"
        raise Invalid(errors=[FieldError(detail, parameter="Idempotency-Key")])
    return key


def fingerprint(method: str, path: str, body: bytes) -> bytes:
    """What makes two requests the same: method, path, and the body as canonical JSON."""
    document = msgspec.json.decode(body) if body else None
    canonical = msgspec.json.encode(document, order="deterministic")
    return hashlib.sha256(f"{method} {path}\n".encode() + canonical).digest()


class Once:
    """Does a POST's work in one transaction, and only once for an idempotency key."""

    def __init__(self, database: Database, project_id: int, key: str | None, print_: bytes) -> None:
        self._database = database
        self._project_id = project_id
        self._key = key
        self._print = print_

    async def run(
        self,
        work: Callable[[Connection], Awaitable[Made]],
        *,
        view: Any,
        status: int = 200,
        stored: Callable[[Made], Made] | None = None,
    ) -> Response:
        """The answer to `work`, or to the first request with the same key.

        The key's row is claimed first, in the transaction of the work: a duplicate waits for it, and finds either the
        whole answer or nothing. A Problem rolls all back, so only success is remembered.

        Args:
            work: as for `Database.transaction`.
            view: the pydantic type that makes JSON of what `work` returns.
            status: of the answer.
            stored: what is remembered, where that is less than the answer: secrets are not kept.

        Raises:
            IdempotencyMismatch: the key was used with another request.
            IdempotencyBusy: the first request takes longer than a duplicate waits.
        """
        adapter = TypeAdapter(view)

        def render(made: Made) -> bytes:
            return adapter.dump_json(adapter.validate_python(made, from_attributes=True), by_alias=True)

        async def transact(conn: Connection) -> tuple[int, bytes, bool]:
            if self._key is None:
                return status, render(await work(conn)), False
            if not await self._claim(conn):
                replayed = await self._replay(conn)
                return (*replayed, True)
            made = await work(conn)
            body = render(made)
            kept = body if stored is None else render(stored(made))
            await conn.execute(_APPLY_IDEMPOTENCY, self._project_id, self._key, status, kept.decode())
            return status, body, False

        code, body, replayed = await self._database.transaction(transact)
        headers = {"Idempotent-Replayed": "true"} if replayed else None
        return Response(body, status_code=code, media_type="application/json", headers=headers)

    async def _claim(self, conn: Connection) -> bool:
        await conn.execute(f"SET LOCAL lock_timeout = {round(_WAIT / timedelta(milliseconds=1))}")
        try:
            claimed = await conn.fetchval(_CLAIM_IDEMPOTENCY, self._project_id, self._key, self._print, REMEMBERED_FOR)
        except asyncpg.LockNotAvailableError:
            raise IdempotencyBusy(retry_after=1) from None
        await conn.execute("SET LOCAL lock_timeout TO DEFAULT")
        return claimed is not None

    async def _replay(self, conn: Connection) -> tuple[int, bytes]:
        row = await conn.fetchrow(_LOAD_IDEMPOTENCY, self._project_id, self._key)
        if row is None:  # swept between the two statements: expired, so the next try is a first one
            raise IdempotencyBusy(retry_after=1)
        if row["fingerprint"] != self._print:
            raise IdempotencyMismatch
        return row["status"], row["answer"].encode()


async def _once(
    request: Request,
    deps: Given,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="Repeating a request with the same key within 24 hours does nothing and repeats the answer."
        ),
    ] = None,
) -> Once:
    key = parse_idempotency_key(idempotency_key)
    print_ = b"" if key is None else fingerprint(request.method, request.scope["path"], await request.body())
    return Once(deps.database, request.state.caller.project_id, key, print_)


OnceOnly = Annotated[Once, Depends(_once)]
