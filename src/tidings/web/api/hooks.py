"""/api/v1/hooks: where the application wants to be told what becomes of its messages."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import Field

from tidings import ids
from tidings.db.pool import Connection
from tidings.directory import hooks
from tidings.directory.access import Caller
from tidings.directory.hooks import HookInfo, HookPlan
from tidings.errors import FieldError, Forbidden, Invalid
from tidings.flow import hooks as messages
from tidings.web.deps import Admin, Given, OnceOnly, Paging
from tidings.web.fields import Body, Key, Page, View

router = APIRouter(prefix="/hooks", tags=["hooks"])

_URL_MAX: Final = 2_000


class HookChange(Body):
    """What can be changed of a hook."""

    url: Annotated[str, Field(min_length=1, max_length=_URL_MAX, examples=["https://shop.example.com/tidings"])]
    events: Annotated[
        list[str], Field(min_length=1, max_length=100, examples=[["delivery.delivered", "delivery.failed"]])
    ]
    """What it wants to hear; `*` is everything."""
    description: Annotated[str, Field(max_length=500)] = ""
    enabled: bool = True


class HookBody(HookChange):
    """A hook as a caller gives it."""

    key: Key


class HookView(View):
    """A hook. Its secret is not shown."""

    key: str
    url: str
    events: list[str]
    description: str
    enabled: bool
    previous_until: datetime | None
    """Until then requests bear a signature of the secret before the present one too."""
    created_at: datetime
    updated_at: datetime


class NewHookView(HookView):
    """A hook with its secret, which is shown only here; null when the answer is repeated."""

    secret: str | None


class HookTestView(View):
    """The test event that is on its way."""

    id: str
    """What the endpoint sees as `webhook-id`."""


class MessageView(View):
    """Something that a hook could not be told."""

    id: str
    event_id: str
    """What the endpoint saw as `webhook-id`."""
    event: str
    attempts: int
    detail: str | None
    """The last answer."""
    created_at: datetime
    failed_at: datetime


class HookReplayBody(Body):
    """Which failed messages to send again: these, or all (`{}`)."""

    messages: Annotated[list[str] | None, Field(min_length=1, max_length=500)] = None


class HookReplayView(View):
    """How many are on their way again."""

    replayed: int


@router.get("", response_model=Page[HookView])
async def list_hooks(deps: Given, caller: Admin, page: Paging) -> Any:
    """All hooks, by key."""
    after = page.after(str, "hooks")
    found = await hooks.list_hooks(deps.database, caller.project_id, after=after, limit=page.fetch)
    return page.cut(found, lambda hook: hook.key, "hooks")


@router.post("", status_code=201, response_model=NewHookView)
async def create_hook(deps: Given, caller: Admin, body: HookBody, once: OnceOnly) -> Response:
    """Makes a hook. Its secret is in this answer and never again, not even in a repetition with the same
    `Idempotency-Key`."""
    _refuse_test_key(caller)
    plan = HookPlan(body.url, body.events, body.description, body.enabled)

    async def work(conn: Connection) -> dict[str, Any]:
        return _to_view(*await hooks.create_hook(conn, caller.actor, deps.vault, body.key, plan))

    return await once.run(work, view=NewHookView, status=201, stored=_without_secret)


@router.get("/{key}", response_model=HookView)
async def get_hook(deps: Given, caller: Admin, key: Key) -> HookInfo:
    """One hook."""
    return await hooks.load_hook(deps.database, caller.project_id, key)


@router.put("/{key}", response_model=HookView)
async def put_hook(deps: Given, caller: Admin, key: Key, body: HookChange) -> HookInfo:
    """Changes a hook; its secret stays."""
    _refuse_test_key(caller)
    plan = HookPlan(body.url, body.events, body.description, body.enabled)
    return await deps.database.transaction(lambda conn: hooks.put_hook(conn, caller.actor, key, plan))


@router.delete("/{key}", status_code=204)
async def delete_hook(deps: Given, caller: Admin, key: Key) -> None:
    """Removes a hook for good; what it was still to be told is dropped."""
    _refuse_test_key(caller)
    await deps.database.transaction(lambda conn: hooks.delete_hook(conn, caller.actor, key))


@router.post("/{key}/rotate", response_model=NewHookView)
async def rotate_hook(deps: Given, caller: Admin, key: Key, once: OnceOnly) -> Response:
    """Gives the hook a new secret; for 24 hours requests bear the signatures of both."""
    _refuse_test_key(caller)

    async def work(conn: Connection) -> dict[str, Any]:
        return _to_view(*await hooks.rotate_hook(conn, caller.actor, deps.vault, key))

    return await once.run(work, view=NewHookView, stored=_without_secret)


@router.post("/{key}/test", status_code=202, response_model=HookTestView)
async def test_hook(deps: Given, caller: Admin, key: Key, once: OnceOnly) -> Response:
    """Tells the hook the event `hook.test`."""

    async def work(conn: Connection) -> dict[str, str]:
        event_id = await messages.send_test(conn, caller.actor, deps.clock, key)
        return {"id": ids.to_public(ids.EVENT, event_id)}

    return await once.run(work, view=HookTestView, status=202)


@router.get("/{key}/messages", response_model=Page[MessageView])
async def list_failed_messages(deps: Given, caller: Admin, key: Key, page: Paging) -> Any:
    """What the hook could not be told, newest first; kept for 30 days."""
    listing = f"hook_messages:{key}"
    found = await messages.list_failed_messages(
        deps.database, caller.project_id, key, before=page.after(UUID, listing), limit=page.fetch
    )
    shown = page.cut(found, lambda message: message.id, listing)
    shown["items"] = [
        {
            **message._asdict(),
            "id": ids.to_public(messages.MESSAGE, message.id),
            "event_id": ids.to_public(ids.EVENT, message.event_id),
        }
        for message in shown["items"]
    ]
    return shown


@router.post("/{key}/messages/replay", response_model=HookReplayView)
async def replay_messages(deps: Given, caller: Admin, key: Key, body: HookReplayBody) -> Any:
    """Sends failed messages again, with all their attempts anew. A message leaves the list when it is replayed, so
    repeating is safe."""
    _refuse_test_key(caller)
    chosen = None
    if body.messages is not None:
        chosen = []
        for i, text in enumerate(body.messages):
            id_ = ids.parse_public(messages.MESSAGE, text)
            if id_ is None:
                raise Invalid(errors=[FieldError("is not a message's id", f"/messages/{i}")])
            chosen.append(id_)
    return {"replayed": await messages.replay_messages(deps.database, caller.actor, deps.clock, key, chosen)}


def _refuse_test_key(caller: Caller) -> None:
    if caller.test:
        raise Forbidden("A test key cannot change hooks: they are told of live messages.")


def _to_view(hook: HookInfo, secret: str) -> dict[str, Any]:
    return {**{name: getattr(hook, name) for name in hook.__struct_fields__}, "secret": secret}


def _without_secret(made: dict[str, Any]) -> dict[str, Any]:
    return {**made, "secret": None}
