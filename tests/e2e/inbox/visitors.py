"""Users at their inbox: what their pages and apps do, and items for them to find."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import httpx

from tidings import ids
from tidings.flow.inbox import NewItem, insert_items
from tidings.model.messages import InApp

COOKIE = "tidings_inbox"
LISTED, OTHER = "https://app.example.com", "https://evil.example.net"
"""Origins: one that the project lists, and one that it does not."""


async def fill(tenant: Any, user: str, titles: Sequence[str], **content: Any) -> list[str]:
    """Items in a user's inbox, as settling stores them; gives their ids."""
    clock = tenant.api.clock
    items = []
    for title in titles:
        notification = ids.new_id(clock.now(), clock.random)
        delivery = ids.child_id(notification, clock.random)
        category = content.get("category")
        more = {name: value for name, value in content.items() if name != "category"}
        items.append(NewItem((tenant.project_id, user), delivery, notification, InApp(title=title, **more), category))
    await tenant.api.deps.database.transaction(lambda conn: insert_items(conn, items, None))
    tenant.api.deps.inbox.bell.ring([(tenant.project_id, user)])
    return [ids.to_public(ids.DELIVERY, item.delivery_id) for item in items]


async def sign_in(tenant: Any, user: str = "ada", life: str = "1h") -> str:
    """A token of a user, who is made if they are not there."""
    await tenant.put(f"/api/v1/users/{user}", {})
    answer = await tenant.post(f"/api/v1/users/{user}/tokens", {"expires_after": life})
    assert answer.status_code == 201, answer.text
    token: str = answer.json()["token"]
    return token


class Page:
    """What a page or an app asks on behalf of its user."""

    def __init__(self, tenant: Any, token: str, **headers: str) -> None:
        self._client: httpx.AsyncClient = tenant.api.client
        self.headers = {"authorization": f"Bearer {token}", **headers}

    async def get(self, path: str = "", **options: Any) -> httpx.Response:
        return await self._client.get(f"/api/v1/inbox{path}", headers=self.headers, **options)

    async def post(self, path: str, json: Any = None) -> httpx.Response:
        return await self._client.post(f"/api/v1/inbox{path}", headers=self.headers, json=json)

    async def titles(self, query: str = "") -> list[str]:
        answer = await self.get(query)
        assert answer.status_code == 200, answer.text
        return [item["title"] for item in answer.json()["items"]]


def to_uuids(public: Sequence[str]) -> list[UUID]:
    """The deliveries of items."""
    return [id_ for text in public if (id_ := ids.parse_public(ids.DELIVERY, text)) is not None]


class Events:
    """Reads server-sent events as a browser does."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.last_id = ""
        self.retry = 0
        self.comments: list[str] = []
        self._lines = answer.aiter_lines()

    async def next(self) -> tuple[str, Any]:
        """The next event with its data; `end` when the stream has ended."""
        name, data = "message", ""
        async with asyncio.timeout(10):
            async for line in self._lines:
                field, _, value = line.partition(":")
                value = value.removeprefix(" ")
                match field:
                    case "":
                        if line:
                            self.comments.append(value)
                        elif data:
                            return name, json.loads(data)
                    case "event":
                        name = value
                    case "id":
                        self.last_id = value
                    case "data":
                        data += value
                    case "retry":
                        self.retry = int(value)
        return "end", None

    async def take(self, n: int) -> list[tuple[str, Any]]:
        return [await self.next() for _ in range(n)]
