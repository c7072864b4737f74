"""The web application on a real database, with projects and keys to call it with.

Routers of every noun are tested through `api`: `tenant = await api.new_project("shop")`, then `await tenant.get(...)`.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tidings.clock import SystemClock
from tidings.db.pool import Database
from tidings.directory.access import Access, create_key
from tidings.directory.audit import Actor
from tidings.directory.catalog import Catalog
from tidings.directory.credentials import Vault
from tidings.directory.projects import create_project
from tidings.directory.tokens import Tokens
from tidings.engine.wakes import Wakes
from tidings.flow.accept import Acceptor
from tidings.flow.broadcasts import Broadcaster
from tidings.flow.callbacks import Callbacks
from tidings.flow.events import EventAcceptor
from tidings.flow.explain import Explainer
from tidings.flow.inbound import InboundRecorder
from tidings.flow.inbox import Bell, Inbox
from tidings.flow.intervene import Intervener
from tidings.flow.measure import Meter
from tidings.flow.privacy import Eraser
from tidings.flow.receipts import Receiver
from tidings.flow.tracking import Signer
from tidings.model.words import Scope
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport
from tidings.providers.port import Surroundings
from tidings.telemetry import Metrics
from tidings.web.app import create_web
from tidings.web.deps import Deps
from tidings.web.hot import Hot
from tidings.web.inbox.live import Live

VAULT_KEY = base64.b64encode(bytes(range(32))).decode()


class MovableClock(SystemClock):
    """The real clock, with a button to make time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.passed

    def monotonic(self) -> float:
        return super().monotonic() + self.passed.total_seconds()


@dataclass
class Tenant:
    """One project and a key of it; speaks to the API as that key's owner would."""

    api: Api
    project_id: int
    project_key: str
    token: str

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.token}", **options.pop("headers", {})}
        return await self.api.client.request(method, path, headers=headers, **options)

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.request("GET", path, **options)

    async def put(self, path: str, json: Any, **options: Any) -> httpx.Response:
        return await self.request("PUT", path, json=json, **options)

    async def post(self, path: str, json: Any = None, **options: Any) -> httpx.Response:
        return await self.request("POST", path, json=json, **options)

    async def delete(self, path: str, **options: Any) -> httpx.Response:
        return await self.request("DELETE", path, **options)

    async def with_scopes(self, *scopes: Scope, test: bool = False, expires_at: datetime | None = None) -> Tenant:
        """The same project, with a key of these scopes."""
        token = await self.api.new_key(self.project_id, scopes, test=test, expires_at=expires_at)
        return Tenant(self.api, self.project_id, self.project_key, token)


@dataclass
class Api:
    """The application and what it stands on."""

    app: FastAPI
    deps: Deps
    clock: MovableClock
    client: httpx.AsyncClient
    not_ready: dict[str, str | None]
    front: Hot
    draining: asyncio.Event
    _numbers: Any = field(default_factory=itertools.count)

    async def new_project(self, key: str | None = None) -> Tenant:
        """A fresh project, spoken to with a key of every scope."""
        key = key or f"project-{next(self._numbers)}"
        project = await self.deps.database.transaction(lambda conn: create_project(conn, key, key.title()))
        return Tenant(self, project.id, key, await self.new_key(project.id, tuple(Scope)))

    async def new_key(
        self, project_id: int, scopes: tuple[Scope, ...], *, test: bool = False, expires_at: datetime | None = None
    ) -> str:
        _, text = await self.deps.database.transaction(
            lambda conn: create_key(
                conn, Actor(project_id, "cli"), self.clock, name="test", scopes=scopes, test=test, expires_at=expires_at
            )
        )
        return text


Install = Callable[..., str]


@pytest.fixture(scope="session")
def debian() -> Install:
    """Finds a program of Debian's: `debian("nghttp2-server", "nghttpd")` is its path.

    It is installed with the system's packages where we may do that (root, apt-get); else the test is skipped by name.
    """
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    updated = False

    def find(package: str, *programs: str, answers: bytes = b"") -> str:
        nonlocal updated
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin"
        if (found := next(filter(None, (shutil.which(p, path=path) for p in programs)), None)) is not None:
            return found
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            pytest.skip(f"{programs[0]} is not installed (Debian: {package})")
        commands: list[tuple[list[str], bytes | None]] = [([] if updated else ["apt-get", "update", "-qq"], None)]
        commands += [(["debconf-set-selections"], answers)] if answers else []
        commands += [(["apt-get", "install", "-qq", "-y", "--no-install-recommends", package], None)]
        for command, given in commands:
            if not command:
                continue
            try:
                subprocess.run(command, input=given, env=environment, check=True, capture_output=True, timeout=110)
            except (OSError, subprocess.SubprocessError) as failure:
                pytest.skip(f"{package} cannot be installed: {failure}")
        updated = True
        return find(package, *programs)

    return find


@pytest.fixture
async def api(database: Database) -> AsyncIterator[Api]:
    """The API of a process, without the network between."""
    clock = MovableClock()
    not_ready: dict[str, str | None] = {"database": None}

    async def ready() -> dict[str, str | None]:
        return not_ready

    vault = Vault((VAULT_KEY,))
    metrics, draining = Metrics(), asyncio.Event()
    inbox = Inbox(database, Meter(database, clock), clock, Bell())
    live = Live(inbox, clock, metrics, draining=draining)
    guard = Guard([])
    surroundings = Surroundings(http=AiohttpTransport(guard), guard=guard, clock=clock)
    receiver = Receiver(database, Meter(database, clock), clock)
    catalog = Catalog(database, clock, vault=vault)
    acceptor = Acceptor(database, catalog, Meter(database, clock), clock, Wakes())
    intervener = Intervener(database, Meter(database, clock), clock, Wakes())
    access = Access(database, clock)
    deps = Deps(
        database=database,
        clock=clock,
        access=access,
        metrics=metrics,
        vault=vault,
        catalog=catalog,
        broadcaster=Broadcaster(catalog, clock, Wakes()),
        tokens=Tokens(database, vault, clock),
        inbox=inbox,
        live=live,
        intervener=intervener,
        eraser=Eraser(database, intervener, clock),
        events=EventAcceptor(acceptor, catalog, access, clock),
        explainer=Explainer(database, catalog, acceptor, clock),
        receiver=receiver,
        callbacks=Callbacks(database, vault, receiver, InboundRecorder(database, clock), surroundings, clock),
        signer=Signer(vault),
        surroundings=surroundings,
        ready=ready,
    )
    app = create_web(deps)
    front = Hot(app, acceptor, deps.access, deps.metrics, clock)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url="http://api") as client:
        yield Api(app, deps, clock, client, not_ready, front, draining)
    await live.stop()


@pytest.fixture
async def tenant(api: Api) -> Tenant:
    """A project with a key of every scope."""
    return await api.new_project("shop")
