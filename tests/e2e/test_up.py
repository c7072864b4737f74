"""`tidings up`: from an empty folder to a mail, a signed webhook, an inbox item; nothing is left when it stops."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

RECEIVER = """
import os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from standardwebhooks import Webhook

class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        print(Webhook(os.environ["SECRET"]).verify(body, dict(self.headers)), flush=True)
        self.send_response(204)
        self.end_headers()

server = HTTPServer(("127.0.0.1", 0), Receiver)
print(server.server_port, flush=True)
server.handle_request()
"""


class Up:
    """One run of `tidings up` in a folder of its own."""

    def __init__(self, running: asyncio.subprocess.Process) -> None:
        self.running = running

    @classmethod
    async def start(cls, home: Path, *arguments: str) -> Self:
        mine = {name: value for name, value in os.environ.items() if not name.startswith("TIDINGS_")}
        ports = {"TIDINGS_PORT": "0", "TIDINGS_CATCHER_PORT": "0", "TIDINGS_CATCHER_SMTP_PORT": "0"}
        running = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tidings", "up", *arguments),
            cwd=home,
            env={**mine, **ports},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        return cls(running)

    async def line(self, timeout: float = 60) -> str:
        assert self.running.stdout is not None
        line = await asyncio.wait_for(self.running.stdout.readline(), timeout)
        assert line, "it ended before it ran"
        return line.decode().rstrip("\n")

    async def ended(self, timeout: float = 30) -> int:
        assert self.running.stdout is not None
        await self.running.stdout.read()
        return await asyncio.wait_for(self.running.wait(), timeout)

    def family(self) -> set[tuple[int, str]]:
        """The process and all that came from it, each with the moment of its start (process ids are used again)."""
        parents: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
        found, new = set(), [self.running.pid]
        while new:
            pid = new.pop()
            if fields := _stat(pid):
                found.add((pid, fields[19]))
            new += parents.get(pid, [])
        return found


def _stat(pid: int) -> list[str] | None:
    """The fields of proc(5)'s stat from `state` on; None when the process is gone, or a zombie nobody has buried."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields


async def until(condition: Callable[[], Awaitable[bool]], timeout: float, what: str) -> None:
    try:
        async with asyncio.timeout(timeout):
            while not await condition():
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {timeout:g} s: {what}") from None


async def gone(family: set[tuple[int, str]]) -> None:
    async def all_gone() -> bool:
        return not any((fields := _stat(pid)) and fields[19] == began for pid, began in family)

    await until(all_gone, 15, "every process is gone")


async def run(*command: str, **env: str) -> str:
    running = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **env}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(running.communicate(), 20)
    assert running.returncode == 0, err.decode()
    return out.decode()


async def receive_webhook(info: dict[str, Any], home: Path, client: httpx.AsyncClient) -> None:
    """Starts the ten-line receiver, has it told, and reads what it has verified."""
    secret = json.loads((home / ".tidings" / "demo.json").read_text())["webhook_secret"]
    receiver = await asyncio.create_subprocess_exec(
        sys.executable, "-c", RECEIVER,
        env={"SECRET": secret}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert receiver.stdout is not None
        port = int(await asyncio.wait_for(receiver.stdout.readline(), 20))
        body = {"to": {"webhook": f"http://127.0.0.1:{port}/"}, "content": {"payload": {"hello": "world"}}}
        assert (await client.post("/api/v1/notifications", json=body)).status_code == 202
        told = await asyncio.wait_for(receiver.stdout.readline(), 20)
        assert told.decode().strip() == "{'hello': 'world'}"
        await asyncio.wait_for(receiver.wait(), 10)
    finally:
        if receiver.returncode is None:
            receiver.kill()
            await receiver.wait()


async def mail_came(catcher: str, subject: str) -> None:
    async with httpx.AsyncClient(base_url=catcher, trust_env=False) as client:

        async def came() -> bool:
            return any(mail["subject"] == subject for mail in (await client.get("mails.json")).json())

        await until(came, 20, f"a mail {subject!r} in the catcher")


@pytest.mark.skipif(shutil.which("curl") is None, reason="the printed command needs curl")
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
async def test_up(server_folder: Path) -> None:
    home = server_folder / "a home with spaces"
    home.mkdir()
    started: list[Up] = []
    try:
        # From nothing, for a script.
        up = await Up.start(home, "--json")
        started.append(up)
        info = json.loads(await up.line())
        assert set(info) == {"api_url", "docs_url", "catcher_url", "database", "api_key"}
        headers = {"authorization": f"Bearer {info['api_key']}"}
        async with httpx.AsyncClient(base_url=info["api_url"], headers=headers, trust_env=False) as client:
            assert (await client.get("/readyz")).status_code == 200
            await receive_webhook(info, home, client)
            body = {"type": "order_shipped", "to": {"user": "ada"}, "data": {"order": "A-1"}, "channels": ["in_app"]}
            first = (await client.post("/api/v1/notifications", json=body)).json()["id"]

            async def listed() -> bool:
                items = (await client.get("/api/v1/users/ada/inbox")).json()["items"]
                return [item["title"] for item in items] == ["Order A-1 is on its way"]

            await until(listed, 20, "an item in the inbox")
        family = up.family()
        assert len(family) > 3  # PostgreSQL is among them
        up.running.send_signal(signal.SIGINT)
        assert await up.ended() == 0
        await gone(family)

        # Again, for a person: quickly, with the same key, and the printed command works.
        began = time.monotonic()
        up = await Up.start(home)
        started.append(up)
        lines = [await up.line()]
        while lines[-1] != "Ctrl-C stops everything.":
            lines.append(await up.line())
        assert time.monotonic() - began < 10
        assert any(info["api_key"] in line for line in lines)
        at = next(i for i, line in enumerate(lines) if line.startswith("curl "))
        command = "\n".join(lines[at : lines.index("", at)])
        answer = await run("sh", "-c", command)
        assert json.loads(answer)["status"] == "queued", answer
        catcher = next(line.split()[1] for line in lines if line.strip().startswith("Mails"))
        await mail_came(catcher, "Welcome to Tidings")

        # Killed: the database ends by itself, and the next start finds everything.
        family = up.family()
        up.running.kill()
        await up.ended()
        await gone(family)
        up = await Up.start(home, "--json")
        started.append(up)
        again = json.loads(await up.line())
        assert again["api_key"] == info["api_key"]
        async with httpx.AsyncClient(base_url=again["api_url"], headers=headers, trust_env=False) as client:
            assert (await client.get(f"/api/v1/notifications/{first}")).json()["status"] == "delivered"
        family = up.family()
        up.running.terminate()
        assert await up.ended() == 0
        await gone(family)
    finally:
        for up in started:
            if up.running.returncode is None:
                up.running.kill()
                await up.ended()
