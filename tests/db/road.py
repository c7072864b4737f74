"""A road for tests: the real stages on a real database, stepped by hand, on a clock that moves when told."""

from __future__ import annotations

import asyncio
import base64
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, cast
from uuid import UUID

import msgspec

from tidings import ids
from tidings.db.pool import Connection, Database
from tidings.directory.access import Caller
from tidings.directory.accounts import AccountPlan, put_account
from tidings.directory.audit import Actor
from tidings.directory.catalog import Catalog
from tidings.directory.credentials import Vault
from tidings.directory.projects import create_project
from tidings.directory.templates import create_template_version, publish_template, put_template
from tidings.directory.types import parse_definition, put_type
from tidings.directory.users import put_user
from tidings.engine.checkpoint import no_checkpoint
from tidings.engine.feed import FeedLanes
from tidings.engine.lane import SendLane
from tidings.engine.wakes import Wakes
from tidings.engine.worker import sweep
from tidings.errors import Problem
from tidings.flow.accept import Accepted, Acceptor
from tidings.flow.intervene import Intervener
from tidings.flow.measure import Meter, Moves
from tidings.flow.plan import Planner
from tidings.flow.request import Request
from tidings.flow.send import Sender
from tidings.flow.settle import Settler
from tidings.model.messages import Message, SendResult, Sent
from tidings.model.words import CHANNELS_OF_THIS_VERSION, Channel, Scope
from tidings.providers import registry
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport
from tidings.providers.port import Config, Provider, ProviderSpec, Surroundings

LEASE = timedelta(seconds=30)


class HandClock:
    """Noon today, until somebody moves it; only durations also pass by themselves."""

    def __init__(self, seed: int) -> None:
        self._now = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
        self._passed = 0.0
        self._random = random.Random(seed)

    @property
    def random(self) -> random.Random:
        return self._random

    def now(self) -> datetime:
        return self._now + timedelta(seconds=self._passed)

    def db_now(self) -> datetime | None:
        return self.now()

    def monotonic(self) -> float:
        return time.monotonic() + self._passed

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def move(self, seconds: float) -> None:
        self._passed += seconds


class Vendor:
    """Answers as it was told to, and remembers."""

    spec: ClassVar[ProviderSpec] = ProviderSpec(
        name="vendor",
        channels=frozenset(CHANNELS_OF_THIS_VERSION),
        config=Config,
        capabilities=frozenset(),
        idempotent=False,
        confirms_delivery=False,
        timeout=timedelta(seconds=5),
        docs="",
    )

    def __init__(self) -> None:
        self.answers: list[SendResult] = []
        """Given one after the other; then everything is sent."""
        self.sent: list[Message] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.called = asyncio.Event()

    async def send(self, message: Message, key: str) -> SendResult:
        self.called.set()
        await self.may_answer.wait()
        self.sent.append(message)
        return self.answers.pop(0) if self.answers else Sent()

    async def close(self) -> None:
        """Nothing is open."""


class Road:
    """One project on the road."""

    def __init__(self, database: Database, project_id: int) -> None:
        self.database = database
        self.clock = HandClock(project_id)
        self.project_id = project_id
        self.vendor = Vendor()
        self.catalog = Catalog(database, self.clock, vault=Vault([KEY]))
        self.meter = Meter(database, self.clock)
        self.wakes = Wakes()
        self.moves: Moves = Counter()
        """What the observers were told."""
        self.acceptor = self.new_acceptor()
        self.feed = self.new_feed()
        self.settler = Settler(database, self.catalog, self.meter, self.clock, observe_moved=self.moves.update)
        self.intervener = Intervener(database, self.meter, self.clock, self.wakes, observe_moved=self.moves.update)
        self.caller = self.new_caller()
        guard = Guard([])
        self._surroundings = Surroundings(http=AiohttpTransport(guard), guard=guard, clock=self.clock)
        self.sender = self.new_sender()
        self.lanes = {channel: self.new_lane(channel) for channel in (Channel.email, Channel.in_app)}

    def new_caller(self, *, test: bool = False) -> Caller:
        return Caller(self.project_id, "p", UUID(int=1), frozenset(Scope), test)

    def new_acceptor(self, checkpoint: Callable[[str], Awaitable[None]] = no_checkpoint) -> Acceptor:
        return Acceptor(self.database, self.catalog, self.meter, self.clock, self.wakes, checkpoint=checkpoint)

    async def wait_for_lock(self) -> None:
        """Until somebody waits for somebody else's lock."""
        async with asyncio.timeout(5):
            while not await self.database.fetchval(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid IN"
                " (SELECT pid FROM pg_stat_activity WHERE datname = current_database())"
            ):
                await asyncio.sleep(0.005)

    def new_sender(self) -> Sender:
        def create(name: str, config: Config, surroundings: Surroundings) -> Provider:
            if name == "smtp":
                return cast(Provider, self.vendor)  # without receipts, it needs no `receive`: see the port
            return registry.create(name, config, surroundings)

        return Sender(
            self.database,
            self.catalog,
            self.settler,
            self._surroundings,
            self.clock,
            timeout=timedelta(seconds=5),
            create=create,
        )

    def new_lane(
        self, channel: Channel, *, slots: int = 400, checkpoint: Callable[[str], Awaitable[None]] = no_checkpoint
    ) -> SendLane[Any, Any]:
        return SendLane(
            int(channel),
            self.sender,
            self.database,
            self.clock,
            self.wakes,
            slots=slots,
            lease=LEASE,
            settle_window=0.0,
            checkpoint=checkpoint,
        )

    def new_feed(self, checkpoint: Callable[[str], Awaitable[None]] = no_checkpoint) -> FeedLanes:
        planner = Planner(
            self.database, self.catalog, self.meter, self.clock, checkpoint=checkpoint, observe_moved=self.moves.update
        )
        return FeedLanes(planner, self.database, self.clock, self.wakes)

    async def ask(self, *bodies: dict[str, Any], caller: Caller | None = None, key: str | None = None) -> list[Any]:
        """Accept requests; answers as the acceptor gives them."""
        requests = [msgspec.convert(body, Request) for body in bodies]
        return await self.acceptor.accept(caller or self.caller, requests, key=key, traceparent=None)

    async def accept(self, **body: Any) -> UUID:
        """One accepted notification to user `ada`, unless told otherwise."""
        [answer] = await self.ask({"to": {"user": "ada"}, "type": "mail", **body})
        assert isinstance(answer, Accepted), answer.to_dict() if isinstance(answer, Problem) else answer
        id_ = ids.parse_public(ids.NOTIFICATION, answer.id)
        assert id_ is not None
        return id_

    async def plan(self) -> int:
        return await self.feed.step()

    async def send(self, channel: Channel = Channel.email, *, slots: int = 400) -> int:
        """Claim once, send and settle all of it."""
        lane = self.lanes[channel] if slots == 400 else self.new_lane(channel, slots=slots)
        claimed = await lane.step()
        await self.finish(lane)
        return claimed

    async def finish(self, lane: SendLane[Any, Any]) -> None:
        while lane.in_flight:
            await asyncio.sleep(0)
        await lane.settling.drain()

    async def sweep(self) -> int:
        return await sweep(self.database, self.settler, self.clock, self.wakes)

    async def deliveries(self, notification: UUID | None = None) -> Sequence[Any]:
        return await self.database.fetch(
            "SELECT * FROM delivery WHERE $1::uuid IS NULL OR notification_id = $1 ORDER BY channel, id", notification
        )

    async def count(self, table: str) -> int:
        n: int = await self.database.fetchval(f"SELECT count(*) FROM {table}")
        return n

    async def recount(self) -> dict[int, int]:
        """The roll-ups with what is not folded yet, by kind."""
        rows = await self.database.fetch(
            "SELECT kind, sum(n)::int AS n"
            " FROM (SELECT kind, n FROM rollup UNION ALL SELECT kind, n FROM rollup_delta) x GROUP BY kind"
        )
        return {row["kind"]: row["n"] for row in rows}


KEY = base64.b64encode(bytes(32)).decode()
CONTENT = {
    "default_locale": "en",
    "channels": {
        "email": {"en": {"subject": "Hello", "text": "Hello {{ user.id }}"}},
        "in_app": {"en": {"title": "Hello"}},
    },
}


async def make_project(conn: Connection, key: str = "p") -> int:
    """A project with two types, three users and one account."""
    project = await create_project(conn, key, "")
    actor = Actor(project.id, "system")
    await put_template(conn, actor, "t")
    version = await create_template_version(conn, actor, "t", CONTENT)
    await publish_template(conn, actor, "t", version.version)
    for name, steps in (("mail", ["email"]), ("item", ["in_app"]), ("both", ["email", "in_app"])):
        raw = {"category": "general", "template": "t", "steps": [{"send": steps}]}
        await put_type(conn, actor, name, parse_definition(name, raw, timedelta(days=30)))
    for user in ("ada", "bob", "cleo"):
        await put_user(conn, actor, user, addresses={Channel.email: [f"{user}@example.com"]})
    smtp = AccountPlan("email", "smtp", {"host": "mail.example.com", "from_address": "a@example.com"}, concurrency=400)
    await put_account(conn, actor, Vault([KEY]), "smtp", smtp)
    return project.id
