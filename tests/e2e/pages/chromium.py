"""A real browser, driven over its debugging protocol: https://chromedevtools.github.io/devtools-protocol/."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import tempfile
from collections.abc import AsyncIterator
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 30
KEYS = {
    "Tab": {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9},
    "Enter": {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"},
    " ": {"key": " ", "code": "Space", "windowsVirtualKeyCode": 32, "text": " "},
    "ArrowDown": {"key": "ArrowDown", "code": "ArrowDown", "windowsVirtualKeyCode": 40},
}


class Tab:
    """One page of the browser, and what it logged."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self.log: list[str] = []
        """What the browser complained about: what a policy forbade, what could not be loaded."""
        self.reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for text in self._connection:
                told = json.loads(text)
                if "id" in told:
                    self._answers.pop(told["id"]).set_result(told)
                elif told["method"] == "Page.loadEventFired":
                    self._loaded.set()
                elif told["method"] == "Log.entryAdded":
                    self.log.append(told["params"]["entry"]["text"])

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """What the browser answers."""
        number = next(self._numbers)
        self._answers[number] = answer = asyncio.get_running_loop().create_future()
        await self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        told = await asyncio.wait_for(answer, PATIENCE)
        assert "error" not in told, f"{method}: {told['error']}"
        result: dict[str, Any] = told["result"]
        return result

    async def open(self, url: str) -> None:
        """Go there."""
        async with self.leaving():
            await self.ask("Page.navigate", url=url)

    @contextlib.asynccontextmanager
    async def leaving(self) -> AsyncIterator[None]:
        """What is done inside leads to another page; it is there afterwards."""
        self._loaded.clear()
        yield
        await asyncio.wait_for(self._loaded.wait(), PATIENCE)

    async def run(self, script: str) -> Any:
        """What an expression of JavaScript gives. The page's own policy does not apply to it."""
        told = await self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def press(self, key: str) -> None:
        """A key of the keyboard."""
        await self.ask("Input.dispatchKeyEvent", type="keyDown", **KEYS[key])
        await self.ask("Input.dispatchKeyEvent", type="keyUp", **KEYS[key])

    @classmethod
    @contextlib.asynccontextmanager
    async def start(cls, program: str) -> AsyncIterator[Self]:
        """A browser of its own with one page, which ends with it."""
        with tempfile.TemporaryDirectory(prefix="tidings-browser-", ignore_cleanup_errors=True) as profile:
            process = await asyncio.create_subprocess_exec(
                program,
                # The sandbox needs rights that containers do not have.
                *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update", "--no-proxy-server"),
                *(f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            assert process.stderr is not None
            try:
                async with asyncio.timeout(PATIENCE):
                    while not (line := await process.stderr.readline()).startswith(b"DevTools listening on "):
                        assert line, "the browser ended"
                drain = asyncio.create_task(_drain(process.stderr))
                place = urlsplit(line.decode().split()[-1]).netloc
                async with httpx.AsyncClient(trust_env=False) as http:
                    pages = (await http.get(f"http://{place}/json/list")).json()
                url = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
                async with connect(url, proxy=None, max_size=None, compression=None) as connection:
                    tab = cls(connection)
                    for domain in ("Page", "Runtime", "Log"):
                        await tab.ask(f"{domain}.enable")
                    yield tab
                await tab.reader
                drain.cancel()
            finally:
                if process.returncode is None:
                    process.terminate()
                try:
                    await asyncio.wait_for(process.wait(), 10)
                except TimeoutError:
                    process.kill()
                    await process.wait()


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.readline():
        pass
