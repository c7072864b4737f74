"""API and worker in the test's own process, as `app` composes them, with retries that do not keep a test waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import httpx
from pydantic import SecretStr
from starlette.types import ASGIApp

from tests.e2e.faults.harness import SECRET_KEY, Project, make_project, until
from tidings.app import Core, open_api, open_core, open_worker
from tidings.client import AsyncClient, Notification
from tidings.db.pool import Database
from tidings.flow.settlement import Policy
from tidings.model.words import Channel
from tidings.providers.guard import Guard
from tidings.settings import Settings

QUICK = {channel: Policy(4, 2, timedelta(milliseconds=20), timedelta(milliseconds=100)) for channel in Channel}
"""At most four attempts, two with each account, and next to no time between them."""

FINAL = ("delivered", "sent", "failed", "skipped", "cancelled", "expired")


@dataclass
class Stack:
    """The composed rooms, one project in them, and a client with its key."""

    core: Core
    app: ASGIApp
    client: AsyncClient
    project: Project
    policies: Mapping[Channel, Policy]

    @property
    def database(self) -> Database:
        return self.core.database

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """A worker runs; on leaving it is drained."""
        stop = asyncio.Event()
        guard = Guard([ip_network("127.0.0.0/8")])
        async with open_worker(self.core, channels=None, plan=True, guard=guard, policies=self.policies) as worker:
            running = asyncio.create_task(worker.run(stop))
            try:
                yield
            finally:
                stop.set()
                await running

    async def ended(self, id_: str, timeout: float = 15) -> Notification:
        """The notification, as soon as each of its deliveries has ended."""
        shown: list[Notification] = []

        async def over() -> bool:
            shown[:] = [await self.client.get(id_)]
            return bool(shown[0].deliveries) and all(d.status in FINAL for d in shown[0].deliveries)

        await until(over, timeout, f"the end of {id_}")
        return shown[0]

    async def dead_letters(self) -> list[Any]:
        return [letter async for letter in self.client.dead_letters.list()]


def events(notification: Notification) -> list[str]:
    """What the timeline tells, in order."""
    return [entry.event for entry in notification.timeline]


@asynccontextmanager
async def open_stack(
    dsn: str,
    *,
    policies: Mapping[Channel, Policy] = QUICK,
    timeout: float = 0.5,
    public_url: str | None = None,
    **project: Any,
) -> AsyncIterator[Stack]:
    """A stack without a worker yet, over a migrated database.

    Args:
        timeout: seconds that one send may take.
        public_url: what vendors are told to call back.
        project: see `make_project`.
    """
    settings = Settings(
        _env_file=None,  # type: ignore[call-arg]  # of pydantic-settings, which does not tell mypy
        secret_key=SecretStr(SECRET_KEY),
        public_url=public_url,
        provider_timeout=timedelta(seconds=timeout),
        lease=timedelta(seconds=2 * timeout + 4),
        grace=timedelta(seconds=5),
        slots=64,
    )
    async with AsyncExitStack() as stack:
        core = await stack.enter_async_context(open_core(settings, dsn, name="test", pool=8))
        api = await stack.enter_async_context(open_api(core))
        made = await make_project(core.database, **project)
        transport = httpx.ASGITransport(api)
        client = await stack.enter_async_context(AsyncClient("http://127.0.0.1", made.token, transport=transport))
        yield Stack(core, api, client, made, policies)
