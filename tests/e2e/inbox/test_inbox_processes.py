"""The inbox as it is run: API processes and a worker over one database, streams that move from one to another."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.e2e.faults.harness import Project, System, make_project, open_system
from tests.e2e.inbox.visitors import Events
from tidings.db.pool import Database


@pytest.fixture
async def project(database: Database) -> Project:
    return await make_project(database, users=3)


@pytest.fixture
async def system(database_dsn: str, tmp_path: Path) -> AsyncIterator[System]:
    async with open_system(database_dsn, tmp_path) as system:
        yield system


class App:
    """The application's server, which knows the key."""

    def __init__(self, client: httpx.AsyncClient, project: Project, url: str) -> None:
        self._client = client
        self._project = project
        self._url = url

    async def token(self, user: str) -> str:
        path = f"{self._url}/api/v1/users/{user}/tokens"
        answer = await self._client.post(path, json={}, headers=self._project.headers)
        token: str = answer.json()["token"]
        return token

    async def tell(self, user: str, *numbers: int) -> None:
        notes = [{"to": {"user": user}, "type": "note", "channels": ["in_app"], "data": {"n": n}} for n in numbers]
        path = f"{self._url}/api/v1/notifications/batch"
        answer = await self._client.post(path, json={"notifications": notes}, headers=self._project.headers)
        assert answer.status_code == 202, answer.text


@contextlib.asynccontextmanager
async def events(client: httpx.AsyncClient, url: str, token: str, after: str = "") -> AsyncIterator[Events]:
    headers = {"authorization": f"Bearer {token}", **({"last-event-id": after} if after else {})}
    async with client.stream("GET", f"{url}/api/v1/inbox/stream", headers=headers, timeout=30) as answer:
        assert answer.status_code == 200
        yield Events(answer)


async def take(stream: Events, n: int) -> list[str]:
    """The titles of the next `n` items."""
    titles: list[str] = []
    while len(titles) < n:
        name, data = await stream.next()
        assert name != "end"
        if name == "item":
            titles.append(data["title"])
    return titles


async def test_a_stream_goes_on_in_another_process(system: System, project: Project) -> None:
    (one, at_one), (_, at_two) = await system.api(), await system.api()
    await system.worker()
    async with httpx.AsyncClient(trust_env=False) as client:
        app = App(client, project, at_two)
        token = await app.token("u0")
        got: list[str] = []
        async with events(client, at_one, token) as stream:
            await stream.next()
            await app.tell("u0", *range(10))
            got += await take(stream, 7)
            last = stream.last_id
        await app.tell("u0", *range(10, 20))
        async with events(client, at_two, token, last) as stream:
            got += await take(stream, 6)
            last = stream.last_id
        async with events(client, at_one, token, last) as stream:
            got += await take(stream, 7)
            last = stream.last_id
            await one.kill()
            with contextlib.suppress(httpx.HTTPError):
                while (await stream.next())[0] != "end":
                    last = stream.last_id
        await app.tell("u0", 20)
        async with events(client, at_two, token, last) as stream:
            got += await take(stream, 1)
        assert sorted(got, key=lambda title: int(title.split()[1])) == [f"Note {n}" for n in range(21)]


async def test_sigterm_ends_streams_at_once(system: System, project: Project) -> None:
    api, url = await system.api(TIDINGS_GRACE="60s")
    await system.worker()
    async with httpx.AsyncClient(trust_env=False) as client:
        token = await App(client, project, url).token("u1")
        socket_at = f"ws{url.removeprefix('http')}/api/v1/inbox/socket"
        async with (
            events(client, url, token) as stream,
            connect(socket_at, additional_headers={"authorization": f"Bearer {token}"}, proxy=None) as socket,
        ):
            await stream.next()
            await socket.recv()
            api.signal(signal.SIGTERM)
            assert await stream.next() == ("end", None)
            with pytest.raises(ConnectionClosed):
                await socket.recv()
            assert await api.ended(timeout=10) == 0


async def test_marks_in_one_process_are_told_by_another(system: System, project: Project) -> None:
    (_, at_one), (_, at_two) = await system.api(), await system.api()
    await system.worker()
    async with httpx.AsyncClient(trust_env=False) as client:
        app = App(client, project, at_one)
        token = await app.token("u2")
        headers = {"authorization": f"Bearer {token}"}
        async with events(client, at_one, token) as phone:
            await phone.next()
            await app.tell("u2", 1)
            name, item = await phone.next()
            assert name == "item"
            assert (await phone.next())[1] == {"total": 1, "unseen": 1, "unread": 1}
            async with asyncio.timeout(5):
                answer = await client.post(f"{at_two}/api/v1/inbox/items/{item['id']}/read", headers=headers)
                assert answer.status_code == 200
                update: tuple[str, Any] = await phone.next()
            assert (update[0], update[1]["id"]) == ("update", item["id"])
            assert (await phone.next())[1] == {"total": 1, "unseen": 0, "unread": 0}
        shown = await client.get(f"{at_one}/api/v1/notifications/{item['notification']}", headers=project.headers)
        assert shown.json()["deliveries"][0]["engagement"] == ["seen", "read"]
        assert [moment["event"] for moment in shown.json()["timeline"]][-2:] in (["seen", "read"], ["read", "seen"])
