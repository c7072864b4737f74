"""Tidings as its operators run it: real processes over one database, and a project to use them with.

A process is ready when its log says so, and has ended when the kernel says so: nothing here waits for a time to pass.
Only processes that were started here are ever signalled, by their process id.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tidings.clock import SystemClock
from tidings.db.pool import Connection, Database
from tidings.directory.access import create_key
from tidings.directory.accounts import AccountPlan, put_account
from tidings.directory.audit import Actor
from tidings.directory.categories import put_category
from tidings.directory.credentials import Vault
from tidings.directory.projects import ProjectSettings, create_project, put_settings
from tidings.directory.templates import create_template_version, publish_template, put_template
from tidings.directory.types import Definition, put_type
from tidings.directory.users import put_user
from tidings.model.words import Channel, Scope

SECRET_KEY = base64.b64encode(bytes(range(32))).decode()
WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"the receiver knows this too, and nobody else").decode()

FAST = {
    # A send may take 1 s, and 2 s more have to be left of a lease when it begins.
    "TIDINGS_PROVIDER_TIMEOUT": "1s",
    "TIDINGS_LEASE": "4s",
    "TIDINGS_GRACE": "10s",
    "TIDINGS_SLOTS": "64",
}


class Process:
    """One `tidings …` process and what it has said on standard error."""

    def __init__(self, running: asyncio.subprocess.Process, name: str) -> None:
        self._running = running
        self.name = name
        self.lines: list[dict[str, Any]] = []
        self._news = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, *arguments: str, settings: Mapping[str, str], folder: Path) -> Self:
        """Start `tidings` with these arguments and settings, and none of this process's own."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith("TIDINGS_")}
        running = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tidings", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**mine, "TIDINGS_LOG_FORMAT": "json", **settings},
            cwd=folder,
        )
        return cls(running, arguments[0])

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._running.returncode

    async def _read(self) -> None:
        assert self._running.stderr is not None
        while line := await self._running.stderr.readline():
            try:
                told = json.loads(line)
            except ValueError:  # a traceback of Python's own
                told = {"event": "", "text": line.decode(errors="replace").rstrip()}
            async with self._news:
                self.lines.append(told)
                self._news.notify_all()
        async with self._news:
            self.lines.append({"event": "end of log"})
            self._news.notify_all()

    async def said(self, event: str, timeout: float = 60, **fields: Any) -> dict[str, Any]:
        """The first log line of this event with these fields, as soon as there is one."""

        def found() -> dict[str, Any] | None:
            return next(
                (line for line in self.lines if line["event"] == event and fields.items() <= line.items()), None
            )

        def over() -> bool:
            return found() is not None or (bool(self.lines) and self.lines[-1]["event"] == "end of log")

        async with self._news:
            await asyncio.wait_for(self._news.wait_for(over), timeout)
        line = found()
        assert line is not None, f"{self.name} ended without saying {event}: {self.lines[-20:]}"
        return line

    def signal(self, number: signal.Signals) -> None:
        self._running.send_signal(number)

    async def kill(self) -> None:
        """kill -9."""
        if self.status is None:
            self._running.kill()
        await self.ended()

    async def stop(self, timeout: float = 30) -> int:
        """SIGTERM; gives the exit status."""
        if self.status is None:
            self._running.terminate()
        return await self.ended(timeout)

    async def ended(self, timeout: float = 30) -> int:
        status = await asyncio.wait_for(self._running.wait(), timeout)
        await self._reader
        return status


@dataclass
class System:
    """Processes over one database; what is still running at the end is killed."""

    dsn: str
    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)

    async def start(self, *arguments: str, **settings: str) -> Process:
        process = await Process.start(
            *arguments,
            settings={
                **FAST,
                "TIDINGS_DATABASE_URL": self.dsn,
                "TIDINGS_SECRET_KEY": SECRET_KEY,
                "TIDINGS_PRIVATE_TARGETS": "127.0.0.0/8",
                "TIDINGS_PORT": "0",
                **self.settings,
                **settings,
            },
            folder=self.folder,
        )
        self.processes.append(process)
        return process

    async def worker(self, *arguments: str, **settings: str) -> Process:
        """A worker that runs."""
        process = await self.start("worker", *arguments, **settings)
        await process.said("worker.running")
        return process

    async def api(self, **settings: str) -> tuple[Process, str]:
        """An API that listens, and its URL."""
        process = await self.start("api", **settings)
        return process, (await process.said("api.listening"))["url"]


@asynccontextmanager
async def open_system(dsn: str, folder: Path, **settings: str) -> AsyncIterator[System]:
    """A system without processes yet."""
    system = System(dsn, folder, settings)
    try:
        yield system
    except BaseException:
        for process in system.processes:
            print(f"--- {process.name} {process.pid}, exit status {process.status}")
            print("\n".join(json.dumps(line) for line in process.lines[-40:]))
        raise
    finally:
        for process in system.processes:
            await process.kill()


@dataclass(frozen=True)
class Project:
    """A project with the type `note` on every channel, and a key of every scope."""

    id: int
    key: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}


async def make_project(
    database: Database,
    *,
    key: str = "shop",
    smtp_port: int | None = None,
    webhook_port: int | None = None,
    users: int = 0,
    limits: Mapping[str, Any] | None = None,
    guarantee: str = "at_least_once",
) -> Project:
    """Make it by the directory's functions, which is quicker than by the API.

    Args:
        smtp_port: of the SMTP server on the loopback interface that the account `mail` uses; None makes no account.
        webhook_port: users get `http://127.0.0.1:<port>/<user>` as an address; the account `hooks` is always made.
        users: so many, `u0`, `u1`, …; each has an e-mail address, too.
        limits: of both accounts (`concurrency`, `rate`, `burst`).
        guarantee: of the type.
    """
    vault = Vault((SECRET_KEY,))

    async def work(conn: Connection) -> Project:
        project = await create_project(conn, key, key.title())
        actor = Actor(project.id, "cli")
        _, token = await create_key(conn, actor, SystemClock(), name="test", scopes=list(Scope))
        # A few users are told very much here, which the breaker for runaway loops would stop.
        await put_settings(conn, actor, ProjectSettings(runaway_above=None))
        hooks = AccountPlan("webhook", "webhook", {"secret": WEBHOOK_SECRET}, **(limits or {}))
        await put_account(conn, actor, vault, "hooks", hooks)
        if smtp_port is not None:
            config = {"host": "127.0.0.1", "port": smtp_port, "security": "none", "from_address": "shop@example.com"}
            await put_account(conn, actor, vault, "mail", AccountPlan("email", "smtp", config, **(limits or {})))
        await put_category(conn, actor, "news", name="News")
        await put_template(conn, actor, "note")
        content = {
            "default_locale": "en",
            "channels": {
                "email": {"en": {"subject": "Note {{ n }}", "text": "This is note {{ n }}."}},
                "webhook": {"en": {"body": '{"n": {{ n }}}'}},
                "in_app": {"en": {"title": "Note {{ n }}"}},
            },
        }
        version = await create_template_version(conn, actor, "note", content)
        await publish_template(conn, actor, "note", version.version)
        await put_type(conn, actor, "note", Definition(category="news", template="note", guarantee=guarantee))
        for i in range(users):
            addresses = {Channel.email: [f"u{i}@example.com"]}
            if webhook_port is not None:
                addresses[Channel.webhook] = [f"http://127.0.0.1:{webhook_port}/u{i}"]
            await put_user(conn, actor, f"u{i}", addresses=addresses)
        return Project(project.id, key, token)

    return await database.transaction(work)


async def until(condition: Callable[[], Awaitable[bool]], timeout: float, what: str) -> None:
    """Wait for something that only asking can tell (another process's work in the database)."""
    try:
        async with asyncio.timeout(timeout):
            while not await condition():
                await asyncio.sleep(0.03)
    except TimeoutError:
        raise AssertionError(f"not within {timeout:g} s: {what}") from None


async def drained(database: Database, timeout: float = 60, *, hurry: bool = False) -> None:
    """Wait until no work is left.

    Args:
        hurry: retries that wait for their time become due at once, as if that time had passed.
    """

    async def empty() -> bool:
        if hurry:
            await database.execute("UPDATE job SET due_at = now() WHERE due_at > now() AND lease_until IS NULL")
        return not await database.fetchval("SELECT count(*) FROM job")

    await until(empty, timeout, "the job table is empty")
