"""The inbox in a real browser: EventSource with the cookie, a WebSocket, and what CORS lets a page do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from tests.e2e.faults.harness import Project, make_project, open_system
from tidings.client import AsyncClient
from tidings.db.pool import Database

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

PAGE = """<!doctype html><meta charset="utf-8"><title>Inbox</title><script type="module">
const {api, token} = await (await fetch("/given")).json();
document.cookie = `tidings_inbox=${token}; path=/api/v1/inbox`;
const tell = (kind, data) => fetch("/told", {method: "POST", body: JSON.stringify({kind, ...data})});

const source = new EventSource(`${api}/api/v1/inbox/stream`, {withCredentials: true});
for (const name of ["item", "update", "counts"]) {
  source.addEventListener(name, (e) => tell(name, {id: e.lastEventId, data: JSON.parse(e.data)}));
}
source.onerror = () => tell("interrupted", {state: source.readyState});

window.socket = new WebSocket(`${api.replace("http", "ws")}/api/v1/inbox/socket`, ["tidings.inbox", token]);
socket.onmessage = (e) => {
  const {event, data} = JSON.parse(e.data);
  if (event === "item") socket.send(JSON.stringify({read: [data.id]}));
  tell(`socket ${event}`, {data, protocol: socket.protocol});
};

const attempt = async (kind, path, options) => {
  try {
    const answer = await fetch(`${api}/api/v1/inbox${path}`, options);
    await tell(kind, {status: answer.status, data: await answer.json()});
  } catch (error) {
    await tell(kind, {status: 0, data: String(error)});
  }
};
await attempt("with a header", "/counts", {headers: {Authorization: `Bearer ${token}`}});
await attempt("with the cookie", "/seen-all", {
  method: "POST", credentials: "include", headers: {"Content-Type": "application/json"}, body: "{}"});
await attempt("with neither", "/counts", {});
</script>"""


@pytest.fixture(scope="session")
def browser(debian: Any) -> str:
    """The program."""
    found: str = debian("chromium", *NAMES)
    return found


class Site:
    """The application's own pages, on an origin of their own, and what they tell."""

    def __init__(self, api: str) -> None:
        self._api = api
        self.token = ""
        self.told: list[dict[str, Any]] = []
        self._news = asyncio.Condition()
        self.url = ""

    async def _page(self, _: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    async def _given(self, _: web.Request) -> web.Response:
        return web.json_response({"api": self._api, "token": self.token})

    async def _told(self, request: web.Request) -> web.Response:
        async with self._news:
            self.told.append(json.loads(await request.read()))
            self._news.notify_all()
        return web.Response(status=204)

    async def wait_for(self, kind: str, n: int = 1) -> list[dict[str, Any]]:
        """The first `n` of a kind, as soon as there are so many."""

        def found() -> list[dict[str, Any]]:
            return [told for told in self.told if told["kind"] == kind]

        async with self._news:
            try:
                await asyncio.wait_for(self._news.wait_for(lambda: len(found()) >= n), 45)
            except TimeoutError:
                raise AssertionError(f"{len(found())} of {n} {kind}; the page told {self.told}") from None
        return found()[:n]

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        app = web.Application()
        app.add_routes([web.get("/", self._page), web.get("/given", self._given), web.post("/told", self._told)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        listening = web.TCPSite(runner, "127.0.0.1", 0)
        await listening.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield
        finally:
            await runner.cleanup()


@contextlib.asynccontextmanager
async def browse(browser: str, url: str) -> AsyncIterator[None]:
    """A browser that has this page open."""
    with tempfile.TemporaryDirectory(prefix="tidings-browser-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            browser,
            # With its port for debugging, a headless browser stays; nobody connects to it. The sandbox needs rights
            # that containers do not have.
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--no-proxy-server"),
            *(f"--user-data-dir={profile}", "--remote-debugging-port=0", url),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.kill()
                await process.wait()


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port: int = held.getsockname()[1]
    return port


async def test_a_page_follows_its_users_inbox(
    browser: str, database: Database, database_dsn: str, tmp_path: Path, free_port: int
) -> None:
    project: Project = await make_project(database, users=1)
    async with open_system(database_dsn, tmp_path, TIDINGS_PORT=str(free_port)) as system:
        api, url = await system.api()
        await system.worker()
        async with (
            AsyncClient(url, project.token) as client,
            httpx.AsyncClient(headers=project.headers, trust_env=False) as http,
        ):

            async def tell(n: int) -> None:
                await client.send(type="note", to={"user": "u0"}, channels=["in_app"], data={"n": n})

            site = Site(url)
            async with site.serve():
                answer = await http.put(f"{url}/api/v1/project/settings", json={"origins": [site.url]})
                assert answer.status_code == 200, answer.text
                site.token = (await client.users.create_token("u0")).token
                async with browse(browser, site.url):
                    [first] = await site.wait_for("counts")
                    assert first["data"] == {"total": 0, "unseen": 0, "unread": 0}
                    [hello] = await site.wait_for("socket counts")
                    assert hello["protocol"] == "tidings.inbox"

                    await tell(1)
                    [item] = await site.wait_for("item")
                    assert item["data"]["title"] == "Note 1"
                    [update] = await site.wait_for("update")  # the socket's command has marked it
                    assert update["data"]["id"] == item["data"]["id"]
                    assert update["data"]["read_at"]

                    for kind, status in (("with a header", 200), ("with the cookie", 200), ("with neither", 401)):
                        [met] = await site.wait_for(kind)
                        assert met["status"] == status, met

                    # The process stops: the stream ends, and the browser comes back by itself to the next one.
                    last = max(int(told["id"]) for told in site.told if told.get("id"))
                    assert await api.stop() == 0
                    await site.wait_for("interrupted")
                    told_before = len(await site.wait_for("item"))
                    await system.api()
                    await tell(2)
                    await tell(3)
                    items = await site.wait_for("item", told_before + 2)
                    assert {told["data"]["title"] for told in items} == {"Note 1", "Note 2", "Note 3"}
                    assert all(int(told["id"]) > last for told in items[1:])
                    await site.wait_for("counts", 4)
                    assert len({told["id"] for told in items}) == 3
