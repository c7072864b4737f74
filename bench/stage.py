"""The stage of a benchmark run: every process that takes part, each by itself, all on this machine's loopback.

    async with open_stage() as stage: …

PostgreSQL (the embedded server, as `tidings up` starts it, plus the statistics module that counts statements), one
`tidings api`, one `tidings worker`, an HTTP sink, an HTTP sink that takes 50 ms, an SMTP sink; load generators come and
go. The product's processes have default settings, but for the one that an operator sets to reach a private network. The
project is made like any other: the first key in the database, all else over the API.

Whatever is started here is ended here, by its handle.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
import asyncpg
import msgspec
import psutil

from bench.load import Outcome, Spec
from tidings.client import AsyncClient
from tidings.clock import SystemClock
from tidings.db.embedded import EmbeddedServer
from tidings.db.migrate import migrate
from tidings.db.pool import Database
from tidings.demo.seed import TOLD
from tidings.directory.access import create_key
from tidings.directory.audit import Actor
from tidings.directory.projects import ProjectSettings, create_project, put_settings
from tidings.model.words import Scope

CHECKOUT: Final = Path(__file__).resolve().parents[1]
USERS: Final = 1_000
SLOW_MS: Final = 50
BACKLOG_TABLES: Final = (
    "job, notification, run, delivery, event, dead_letter, idempotency, rollup_delta, cap_counter, broadcast,"
    " broadcast_cohort"
)
_STARTED: Final = re.compile(r'"url":\s?"(http://[^"]+)"')


class Process:
    """One child process."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self._process = process
        self.log = log

    @classmethod
    async def start(
        cls,
        name: str,
        arguments: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path = CHECKOUT,
        program: str = sys.executable,
    ) -> Self:
        """Start a Python module, or another program; what it says on standard error goes to `log`."""
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                program, *arguments,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=file, cwd=cwd, env=env,
            )  # fmt: skip
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def first_line(self) -> bytes:
        """The first line on its standard output."""
        assert self._process.stdout is not None
        async with asyncio.timeout(30):
            return await self._process.stdout.readline()

    async def wait_for_log(self, what: re.Pattern[str]) -> str:
        """The first group of `what`, once it stands in the log."""
        deadline = time.monotonic() + 30
        while (found := what.search(self.log.read_text(errors="replace"))) is None:
            if self._process.returncode is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not start: {self.log.read_text(errors='replace')[-2000:]}")
            await asyncio.sleep(0.02)
        return found[1] if found.groups() else found[0]

    def cpu(self) -> float:
        """Seconds of processor time so far, without children."""
        times = psutil.Process(self.pid).cpu_times()
        return times.user + times.system

    def rss(self) -> int:
        """Resident bytes now."""
        return int(psutil.Process(self.pid).memory_info().rss)

    async def stop(self) -> None:
        """SIGTERM; SIGKILL after 30 s."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(30):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()


class Sink(Process):
    """A stub of `bench.stubs`."""

    port = 0
    control_port = 0

    @classmethod
    async def open(cls, name: str, log: Path, *options: str) -> Self:
        """Start one."""
        sink = await cls.start(name, ["-m", "bench.stubs", *options, "--record"], log=log)
        ports = msgspec.json.decode(await sink.first_line())
        sink.port, sink.control_port = ports["port"], ports["control_port"]
        return sink


class Stage:
    """What a measurement stands on."""

    def __init__(self, folder: Path, server: EmbeddedServer, http: aiohttp.ClientSession) -> None:
        self.folder = folder
        self.server = server
        self._http = http
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("TIDINGS_")},
            "TIDINGS_DATABASE_URL": server.dsn,
            "TIDINGS_SECRET_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
            "TIDINGS_PRIVATE_TARGETS": "127.0.0.0/8",
            "TIDINGS_PORT": "0",
            "TIDINGS_PUBLIC_URL": "https://tidings.example.com",
        }
        self.api_url = ""
        self.api_key = ""
        self.database: Database
        self.api: Process
        self.worker: Process
        self.fast: Sink
        self.slow: Sink
        self.mail: Sink

    # ------------------------------------------------------------ processes

    async def start_api(self) -> None:
        """Start the API."""
        self.api = await Process.start(
            "api", ["-m", "tidings", "api"], log=self.folder / "api.log", env=self._environment, cwd=self.folder
        )
        self.api_url = await self.api.wait_for_log(_STARTED)

    async def start_worker(self, *arguments: str, **settings: int | None) -> None:
        """Start the worker, with these arguments, and settings (`slots=64`) other than the defaults."""
        given = {f"TIDINGS_{name.upper()}": str(value) for name, value in settings.items() if value is not None}
        self.worker = await Process.start(
            "worker",
            ["-m", "tidings", "worker", *arguments],
            log=self.folder / "worker.log",
            env={**self._environment, **given},
            cwd=self.folder,
        )
        await self.worker.wait_for_log(re.compile("worker.running"))

    @property
    def api_port(self) -> int:
        return int(self.api_url.rpartition(":")[2])

    async def load(self, **spec: Any) -> Outcome:
        """Run a load generator, by default against the API's hot routes."""
        spec = {"port": self.api_port, "path": "/api/v1/notifications", "api_key": self.api_key, **spec}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.load",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=CHECKOUT,
        )  # fmt: skip
        try:
            out, _ = await process.communicate(msgspec.json.encode(Spec(**spec)))
        except asyncio.CancelledError:
            process.kill()
            raise
        outcome = msgspec.json.decode(out, type=Outcome)
        if outcome.errors:
            raise RuntimeError(f"{outcome.errors} requests failed, the first with: {outcome.first_error}")
        return outcome

    # ------------------------------------------------------------ the project

    async def prepare(self) -> None:
        """Make a project, its key, users, types, templates and accounts."""
        clock = SystemClock()

        async def work(conn: Any) -> str:
            project = await create_project(conn, "bench", "Bench", by="system")
            actor = Actor(project.id, "system")
            # Few users are told very much here, which is what the breaker for runaway loops looks for.
            await put_settings(conn, actor, ProjectSettings(runaway_above=None))
            _, text = await create_key(conn, actor, clock, name="bench", scopes=list(Scope))
            return text

        self.api_key = await self.database.transaction(work)
        shipped = next(told for told in TOLD if told.key == "order_shipped")
        async with AsyncClient(self.api_url, self.api_key) as client:
            await client.categories.put("orders", name="Orders")
            mail = {
                "host": "127.0.0.1",
                "port": self.mail.port,
                "security": "none",
                "from_address": "Shop <shop@example.com>",
            }
            await client.accounts.put("mail", provider="smtp", channel="email", config=mail)
            secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
            await client.accounts.put(
                "hooks", provider="webhook", channel="webhook", config={"secret": secret}, concurrency=256
            )
            await client.templates.put("shipped", name=shipped.name)
            made = await client.templates.create_version(
                "shipped", {"default_locale": "en", "channels": shipped.channels}
            )
            await client.templates.publish("shipped", made.version)
            for channel in ("email", "webhook"):
                await client.types.put(
                    f"shipped_{channel}",
                    category="orders",
                    template="shipped",
                    steps=[{"send": [channel]}],
                    schema=shipped.type["schema"],
                )
            gate = asyncio.Semaphore(8)
            async with asyncio.TaskGroup() as group:
                for n in range(USERS):
                    group.create_task(self._put_user(client, gate, f"u-{n}", n, self.fast.port))
                for n in range(100):
                    group.create_task(self._put_user(client, gate, f"slow-{n}", n, self.slow.port))

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the management API; answers with what its JSON says.

        Raises:
            RuntimeError: it refused.
        """
        headers = {"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"}
        url = f"{self.api_url}/api/v1/{path}"
        async with self._http.request(method, url, data=msgspec.json.encode(body), headers=headers) as answer:
            text = await answer.read()
            if answer.status >= 300:
                raise RuntimeError(f"{method} {path}: {answer.status} {text[:500]!r}")
            return msgspec.json.decode(text)

    async def _put_user(self, client: AsyncClient, gate: asyncio.Semaphore, user: str, n: int, port: int) -> None:
        async with gate:
            await client.users.put(
                user,
                locale=("en-GB", "de-AT")[n % 2],
                time_zone="Europe/Vienna",
                attributes={"first_name": f"Ada {n}", "plan": "pro"},
                addresses={"email": [f"{user}@example.com"], "webhook": [f"http://127.0.0.1:{port}/hooks/{user}"]},
            )

    # ------------------------------------------------------------ looking

    async def sink_stats(self, sink: Sink) -> dict[str, int]:
        """What a stub has counted."""
        async with self._http.get(f"http://127.0.0.1:{sink.control_port}/stats") as answer:
            return msgspec.json.decode(await answer.read())  # type: ignore[no-any-return]  # our own stub's answer

    async def receipts(self, sink: Sink) -> dict[str, int]:
        """When each id first came to a stub."""
        async with self._http.get(f"http://127.0.0.1:{sink.control_port}/receipts") as answer:
            return msgspec.json.decode(await answer.read())  # type: ignore[no-any-return]  # our own stub's answer

    async def forget_receipts(self, *more: Sink) -> None:
        """Reset every stub, and these."""
        for sink in (self.fast, self.slow, self.mail, *more):
            async with self._http.post(f"http://127.0.0.1:{sink.control_port}/reset") as answer:
                await answer.read()

    async def wait_settled(self, sink: Sink | None = None, n: int = 0, *, within: float = 120.0) -> int:
        """Wait until `sink` has had `n` receipts and no job is left; answers with the monotonic nanoseconds."""
        async with asyncio.timeout(within):
            while sink is not None and (await self.sink_stats(sink))["count"] < n:
                await asyncio.sleep(0.05)
            while await self.database.fetchval("SELECT EXISTS (SELECT 1 FROM job) AS bench_look"):
                await asyncio.sleep(0.03)
        return time.monotonic_ns()

    def server_cpu(self) -> float:
        """Processor seconds of PostgreSQL so far."""
        postmaster = psutil.Process(self.server.pid)
        own = postmaster.cpu_times()
        total = own.user + own.system + own.children_user + own.children_system
        for child in postmaster.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = child.cpu_times()
                total += times.user + times.system
        return total

    def cpu(self) -> dict[str, float]:
        """Processor seconds so far, by group."""
        stubs = sum(sink.cpu() for sink in (self.fast, self.slow, self.mail))
        return {"api": self.api.cpu(), "worker": self.worker.cpu(), "postgresql": self.server_cpu(), "stubs": stubs}

    async def statements(self) -> dict[str, float]:
        """Statements that the product has executed so far, with and without BEGIN, COMMIT and the like, and commits."""
        row = await self.database.fetchrow(
            "SELECT coalesce(sum(calls), 0)::float8 AS statements,"
            " coalesce(sum(calls) FILTER (WHERE query !~* '^(begin|commit|rollback|savepoint|release|set)'), 0)::float8"
            " AS without_transaction_control"
            " FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid"
            " WHERE d.datname = current_database() AND query NOT LIKE '%bench_look%' AND query NOT LIKE '%pg_stat_%'"
        )
        assert row is not None
        return dict(row)

    async def discard_backlog(self, *, restart: bool = True) -> None:
        """Stop the worker, throw away all flow data, start the worker again."""
        await self.worker.stop()
        await self.database.execute(f"TRUNCATE {BACKLOG_TABLES}")
        if restart:
            await self.start_worker()

    def last_complaints(self) -> list[str]:
        """The newest warnings and errors of API and worker, to explain a measurement that broke."""
        lines = []
        for process in (self.api, self.worker):
            said = process.log.read_text(errors="replace").splitlines()
            lines += [f"{process.name}: {line}" for line in said if '"level":"info"' not in line][-3:]
        return lines

    async def settle_down(self) -> None:
        """Let PostgreSQL write out what the last measurement left, so that it does not charge the next one for it."""
        async with admin(self.server.dsn) as conn:
            await conn.execute("CHECKPOINT")


@contextlib.asynccontextmanager
async def admin(dsn: str) -> AsyncIterator[Any]:
    """A plain connection without time-outs."""
    conn = await asyncpg.connect(dsn)
    try:
        yield conn
    finally:
        await conn.close()


def to_other_database(dsn: str, name: str) -> str:
    """The same server, another database."""
    return dsn.replace("/tidings?", f"/{name}?", 1)


@contextlib.asynccontextmanager
async def open_stage() -> AsyncIterator[Stage]:
    """Start everything; end everything that was started."""
    # /var/tmp is on a disk; /tmp may be memory, on which fsync costs nothing.
    folder = Path(tempfile.mkdtemp(prefix="tidings-bench-", dir="/var/tmp" if os.path.isdir("/var/tmp") else None))
    folder.chmod(0o755)  # PostgreSQL runs as another user when we are root
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        server = await stack.enter_async_context(
            EmbeddedServer(folder / "postgres", {"shared_preload_libraries": "pg_stat_statements"})
        )
        async with admin(server.dsn) as conn:
            await conn.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        await migrate(server.dsn)
        http = await stack.enter_async_context(aiohttp.ClientSession(trust_env=False))
        stage = Stage(folder, server, http)
        stage.database = await stack.enter_async_context(
            await Database.connect(server.dsn, max_size=4, application_name="bench")
        )

        async def stop_all() -> None:
            for name in ("api", "worker", "fast", "slow", "mail"):
                if (process := getattr(stage, name, None)) is not None:
                    await process.stop()

        stack.push_async_callback(stop_all)
        stage.fast = await Sink.open("http stub", folder / "fast.log", "http")
        stage.slow = await Sink.open("slow http stub", folder / "slow.log", "http", "--latency-ms", str(SLOW_MS))
        stage.mail = await Sink.open("smtp stub", folder / "mail.log", "smtp")
        await stage.start_api()
        await stage.start_worker()
        await stage.prepare()
        yield stage
