"""/api/v1/keys: the project's API keys."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import Field

from tidings.db.pool import Connection
from tidings.directory import access
from tidings.directory.access import ApiKey, Caller
from tidings.directory.rates import RATE_MAX
from tidings.errors import FieldError, Forbidden
from tidings.ids import API_KEY, parse_public
from tidings.model.words import Scope
from tidings.web.deps import Admin, Given, OnceOnly, Paging
from tidings.web.fields import Body, Moment, Name, Page, View, public_id

router = APIRouter(prefix="/keys", tags=["keys"])

ScopeName = Literal["send", "send:critical", "read", "manage"]


class KeyBody(Body):
    """An API key to be made."""

    name: Name = Field(examples=["shop backend"])
    scopes: list[ScopeName] = Field(min_length=1, max_length=16, examples=[["send", "read"]])
    test: bool = Field(default=False, description="Its messages go the whole road, to a simulated provider.")
    rate: int | None = Field(
        default=None,
        ge=1,
        le=RATE_MAX,
        description="Requests per minute; one with many notifications counts as many. Null: the instance's default.",
    )
    expires_at: Moment | None = None


class KeyView(View):
    """An API key without its secret."""

    id: str
    name: str
    scopes: list[ScopeName]
    test: bool
    rate: int | None
    expires_at: datetime | None
    revoked_at: datetime | None
    created_at: datetime


class NewKeyView(KeyView):
    """An API key as it is shown once."""

    key: str | None = Field(
        description="What goes into `Authorization: Bearer …`. It is not stored: null where an answer is replayed."
    )


KeyId = Annotated[UUID, public_id(API_KEY)]


@router.get("", response_model=Page[KeyView])
async def list_keys(deps: Given, caller: Admin, page: Paging) -> Any:
    """All keys in the order in which they were made, revoked ones too."""
    after = page.after(UUID, "keys")
    found = await access.list_keys(deps.database, caller.project_id, after=after, limit=page.fetch)
    return page.cut(found, lambda key: parse_public(API_KEY, key.id), "keys")


@router.post("", status_code=201, response_model=NewKeyView)
async def create_key(deps: Given, caller: Admin, body: KeyBody, once: OnceOnly) -> Response:
    """Makes a key. A key gives only what it has: its own scopes, no more than its rate, and a test key only test keys.

    The secret is shown in this answer and never again, not even to a repetition with the same `Idempotency-Key`.
    """
    scopes = frozenset(Scope(scope) for scope in body.scopes)
    _refuse_escalation(caller, scopes, body.test, body.rate or deps.access.rate)

    async def work(conn: Connection) -> dict[str, Any]:
        key, text = await access.create_key(
            conn,
            caller.actor,
            deps.clock,
            name=body.name,
            scopes=scopes,
            test=body.test,
            rate=body.rate,
            expires_at=body.expires_at,
        )
        return _to_view(key, text)

    return await once.run(work, view=NewKeyView, status=201, stored=lambda made: {**made, "key": None})


@router.get("/{key_id}", response_model=KeyView)
async def get_key(deps: Given, caller: Admin, key_id: KeyId) -> ApiKey:
    """One key."""
    return await access.load_key(deps.database, caller.project_id, key_id)


@router.delete("/{key_id}", status_code=204)
async def revoke_key(deps: Given, caller: Admin, key_id: KeyId) -> None:
    """Ends a key for good; within five seconds no process accepts it any more."""
    await deps.database.transaction(lambda conn: access.revoke_key(conn, caller.actor, key_id))
    deps.access.forget(key_id)


def _refuse_escalation(caller: Caller, scopes: frozenset[Scope], test: bool, rate: int | None) -> None:
    lacking = sorted(scope.value for scope in scopes - caller.scopes)
    if lacking:
        raise Forbidden(
            errors=[FieldError(f"this API key lacks {', '.join(lacking)} and cannot give it", pointer="/scopes")]
        )
    if caller.rate is not None and (rate is None or rate > caller.rate):
        raise Forbidden(
            errors=[FieldError(f"this API key has {caller.rate:,} a minute and cannot give more", pointer="/rate")]
        )
    if caller.test and not test:
        raise Forbidden(errors=[FieldError("a test key can only make test keys", pointer="/test")])


def _to_view(key: ApiKey, text: str) -> dict[str, Any]:
    return {**{name: getattr(key, name) for name in key.__struct_fields__}, "key": text}
