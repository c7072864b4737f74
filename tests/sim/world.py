"""The world of one simulation: API and worker processes on one database, providers with a script, people with requests.

A process is the product's own parts put together as `tidings.app` does it, but stepped by drivers here, on virtual
time. It can crash (its tasks and connections are gone, its memory forgotten), freeze (like SIGSTOP), lose a connection
before or after a statement, and fail at any of the product's named checkpoints.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import contextvars
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final, cast
from uuid import UUID

import asyncpg
import msgspec

from tests.sim.virtual import TurnConnection, VirtualClock, VirtualLoop
from tidings import ids
from tidings.db.pool import Database
from tidings.directory.access import Caller
from tidings.directory.accounts import AccountPlan, Allowance, Quotas, put_account
from tidings.directory.audit import Actor
from tidings.directory.catalog import Catalog
from tidings.directory.credentials import Vault
from tidings.directory.projects import create_project
from tidings.directory.templates import create_template_version, publish_template, put_template
from tidings.directory.types import parse_definition, put_type
from tidings.directory.users import put_user
from tidings.engine.feed import FeedLanes
from tidings.engine.health import weigh_accounts
from tidings.engine.lane import SendLane
from tidings.engine.wakes import Wakes
from tidings.engine.worker import sweep
from tidings.errors import Problem
from tidings.flow import broadcasts
from tidings.flow.accept import Accepted, Acceptor
from tidings.flow.audience import Sources
from tidings.flow.intervene import Cancelled, Intervener
from tidings.flow.measure import Meter, fold
from tidings.flow.plan import Planner
from tidings.flow.receipts import Fact, Receiver
from tidings.flow.request import Request
from tidings.flow.send import Sender
from tidings.flow.settle import Settler
from tidings.flow.settlement import Policy
from tidings.model.messages import Deferred, Message, Rejected, SendResult, Sent, Throttled, Uncertain
from tidings.model.words import CHANNELS_OF_THIS_VERSION, Channel, EventKind, Reason, Scope
from tidings.providers import registry
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport
from tidings.providers.port import Config, Provider, ProviderSpec, ReceiptAuth, Report, Surroundings

LEASE = timedelta(seconds=8)
TIMEOUT = timedelta(seconds=2)
RECEIPT_REASONS = (Reason.invalid_address, Reason.too_large)
"""What vendors report later, and never answer at once: so the checks can tell the two apart."""
POLICY = Policy(5, 2, timedelta(seconds=0.5), timedelta(seconds=4))
QUOTA = 3
"""Messages a day that the second account of a project may send; there is another one that takes the rest."""
TYPES = ("all", "mail", "once", "steps", "chain", "digest", "digest", "capped", "spaced")
CAP, CAP_WINDOW = 2, timedelta(hours=1)
"""Of the type `capped`: more are dropped."""
SPACE = timedelta(seconds=4)
"""Between two of the type `spaced`: the next one waits."""
LANES = (Channel.email, Channel.in_app, Channel.webhook)
VAULT_KEY = base64.b64encode(bytes(32)).decode()
OWNER: contextvars.ContextVar[Process | None] = contextvars.ContextVar("owner", default=None)


class Unanswered(Exception):
    """The process died before it answered."""


@dataclass
class Call:
    """One call of a provider."""

    key: str
    began: float
    took: bool = False
    """The receiver got the message."""


@dataclass
class Asked:
    """A request that somebody made, and what came of it."""

    tag: str
    project: int
    request: Request
    key: str | None
    test: bool
    answered: str | None = None
    refused: bool = False
    tries: int = 0


@dataclass
class Told:
    """What a vendor is going to report about a message that it took."""

    at: float
    key: str
    provider_id: str | None
    """Set: the report names the vendor's id only."""
    kind: EventKind
    reason: Reason | None
    machine: bool
    times: int


@dataclass
class World:
    """What the processes share, and what the checks look at afterwards."""

    loop: VirtualLoop
    dsn: str
    seed: int
    begin: datetime
    chaos: float = 0.0
    """How likely faults are, 0 to 1."""
    calls: list[Call] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    cancels: list[tuple[str, Cancelled, float]] = field(default_factory=list)
    """Notification, answer, and when it was given."""
    reports: list[Told] = field(default_factory=list)
    replayed: int = 0
    projects: list[int] = field(default_factory=list)
    broadcasts: set[int] = field(default_factory=set)
    """Projects that have told everybody."""
    faults: list[str] = field(default_factory=list)

    def rng(self, *names: object) -> random.Random:
        """A generator of its own for each part, so that one part's draws do not shift another's."""
        return random.Random(f"{self.seed}:{names}")

    def clock(self, *names: object) -> VirtualClock:
        return VirtualClock(self.loop, self.begin, self.rng("clock", *names))


# ---------------------------------------------------------------- processes


class Process:
    """A process with its own pool, memory and chance; everything that it starts dies with it."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.rng = world.rng("faults", name)
        self.clock = world.clock(name)
        self.tasks: set[asyncio.Task[Any]] = set()
        self.dead = False
        self.frozen_until = 0.0
        self._connections: list[TurnConnection] = []
        self._pools: list[Any] = []

    async def start(self, pool: int = 3) -> None:
        self.database = await self._connect(pool)
        self.side_database = await self._connect(1)
        token = OWNER.set(self)
        try:
            self.assemble()
        finally:
            OWNER.reset(token)

    async def _connect(self, size: int) -> Database:
        one_by_one = asyncio.Lock()  # so that they always come in the same order

        async def connect(*args: Any, **kwargs: Any) -> Any:
            async with one_by_one:
                with self.world.loop.real():
                    connection = await asyncpg.connect(*args, **kwargs)
                connection.host = self
                connection.number = len(self._connections)
                self._connections.append(connection)
            return connection

        pool = await asyncpg.create_pool(
            self.world.dsn,
            min_size=size,
            max_size=size,
            connect=connect,
            connection_class=TurnConnection,
            max_inactive_connection_lifetime=0,
            statement_cache_size=512,
            reset=_keep,
            server_settings={
                "deadlock_timeout": "10ms",
                "timezone": "UTC",
                "jit": "off",
                "plan_cache_mode": "force_generic_plan",
            },
        )
        self._pools.append(pool)
        return Database(pool, self.world.dsn, 18)

    def assemble(self) -> None:
        """Put the product's parts together and start the drivers."""
        raise NotImplementedError

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run in this process."""
        token = OWNER.set(self)
        try:
            return asyncio.create_task(work)
        finally:
            OWNER.reset(token)

    async def crash(self) -> None:
        """kill -9."""
        if self.dead:
            return
        self.dead = True
        self.world.faults.append(f"{self.name} died")
        pids = [c.get_server_pid() for c in self._connections if not c.is_closed()]
        for pool in self._pools:
            pool.terminate()
        for task in list(self.tasks):
            if task is not asyncio.current_task():
                task.cancel()
        await self.world.loop.gone(pids)

    # ---- faults

    def may_go(self, connection: TurnConnection) -> bool:
        return connection.is_closed() or connection.is_in_transaction() or not self.frozen

    @property
    def frozen(self) -> bool:
        return self.world.loop.time() < self.frozen_until

    def lose(self, query: str) -> str | None:
        """Whether the connection is lost before or after this statement."""
        odds = 0.02 if query == "COMMIT" else 0.002
        if self.rng.random() >= odds * self.world.chaos:
            return None
        when = self.rng.choice(("before", "after"))
        self.world.faults.append(f"{self.name} lost its connection {when} {query[:20]!r}")
        return when

    async def checkpoint(self, name: str) -> None:
        """A named point of the product."""
        chaos = self.world.chaos
        draw = self.rng.random()
        if draw < 0.004 * chaos:
            await self.crash()
            raise asyncio.CancelledError
        if draw < 0.02 * chaos:
            self.world.faults.append(f"{self.name} failed at {name}")
            raise self.rng.choice(
                (
                    OSError("injected"),
                    asyncpg.ConnectionDoesNotExistError("injected"),
                    asyncpg.DeadlockDetectedError("injected"),
                    asyncpg.InternalServerError("injected"),
                )
            )
        if draw < 0.05 * chaos and not name.endswith(".commit"):
            await asyncio.sleep(self.rng.uniform(0.0, 1.5))
        while self.frozen:
            await asyncio.sleep(self.frozen_until - self.world.loop.time())

    async def drive(self, step: Callable[[], Awaitable[object]], shortest: float, longest: float) -> None:
        """Call `step` again and again; soon when it found something to do."""
        while True:
            try:
                found = await step()
            except Exception:
                found = None
            await asyncio.sleep(self.rng.uniform(0.0, 0.02) if found else self.rng.uniform(shortest, longest))


async def _keep(_: Any) -> None:
    """The pool's reset, which the product has none of either."""


class Api(Process):
    """An API process."""

    def assemble(self) -> None:
        wakes = Wakes()
        meter = Meter(self.side_database, self.clock)
        catalog = Catalog(self.side_database, self.clock)
        self.acceptor = Acceptor(
            self.database, catalog, meter, self.clock, wakes, window=0.002, checkpoint=self.checkpoint
        )
        self.intervener = Intervener(self.database, meter, self.clock, wakes)
        self.receiver = Receiver(self.database, meter, self.clock)
        self.broadcaster = broadcasts.Broadcaster(catalog, self.clock, wakes)

    async def broadcast(self, caller: Caller, ask: broadcasts.Ask) -> UUID:
        """Make one; answers with its id."""
        made = await self.database.transaction(lambda conn: self.broadcaster.create(conn, caller, ask))
        return made.id

    async def steer(self, caller: Caller, id_: UUID, action: str) -> None:
        """Pause, resume or cancel one."""
        steer = getattr(self.broadcaster, action)
        await self.database.transaction(lambda conn: steer(conn, caller, id_))

    async def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run in the process on a caller's behalf.

        Raises:
            Unanswered: it died.
        """
        if self.dead:
            work.close()
            raise Unanswered
        task = self.spawn(work)
        await asyncio.wait([task])
        if task.cancelled():
            raise Unanswered
        return task.result()


class WorkerProcess(Process):
    """A worker process: lanes, planner, keeper of leases, sweeper, folder."""

    def assemble(self) -> None:
        wakes = Wakes()
        meter = Meter(self.side_database, self.clock)
        catalog = Catalog(self.side_database, self.clock, vault=Vault([VAULT_KEY]))
        settler = Settler(
            self.database,
            catalog,
            meter,
            self.clock,
            policies=dict.fromkeys(Channel, POLICY),
            checkpoint=self.checkpoint,
        )
        guard = Guard([])
        sender = Sender(
            self.database,
            catalog,
            settler,
            Surroundings(http=AiohttpTransport(guard), guard=guard, clock=self.clock),
            self.clock,
            timeout=TIMEOUT,
            create=self.create_provider,
        )
        self.lanes = [
            SendLane(
                int(channel),
                sender,
                self.database,
                self.clock,
                wakes,
                slots=self.rng.choice((2, 5, 16)),
                lease=LEASE,
                checkpoint=self.checkpoint,
            )
            for channel in LANES
        ]
        feed = FeedLanes(
            Planner(self.database, catalog, meter, self.clock, checkpoint=self.checkpoint),
            self.database,
            self.clock,
            wakes,
            batch=self.rng.choice((3, 20)),
            ahead=self.rng.choice((4, 50)),
        )
        for lane in self.lanes:
            self.spawn(self.drive(lane.step, 0.2, 1.5))
            self.spawn(self.drive(lane.extend, 1.0, 2.0))
        self.spawn(self.drive(feed.step, 0.2, 1.5))
        self.spawn(self.drive(lambda: sweep(self.database, settler, self.clock, wakes), 2.0, 4.0))
        self.spawn(self.drive(lambda: fold(self.database), 2.0, 5.0))
        self.spawn(self.drive(sender.tell, 2.0, 5.0))
        self.spawn(self.drive(lambda: weigh_accounts(self.database, self.clock), 4.0, 6.0))

    def create_provider(self, name: str, config: Config, surroundings: Surroundings) -> Provider:
        """The vendors' accounts get a script; what is ours stays ours."""
        if name in ("simulator", "inbox"):
            return registry.create(name, config, surroundings)
        # One without receipts of its own needs no `receive`: see the port.
        return cast(Provider, Scripted(self, confirms=name == "webhook"))


class Scripted:
    """A vendor that does whatever chance says, and a receiver that remembers what reached it."""

    spec: ClassVar[ProviderSpec]

    def __init__(self, process: WorkerProcess, *, confirms: bool) -> None:
        self._process = process
        self._world = process.world
        self._rng = process.world.rng("vendor", process.name, confirms)
        self.spec = ProviderSpec(  # type: ignore[misc]  # one script serves two channels
            name="scripted",
            channels=frozenset(CHANNELS_OF_THIS_VERSION),
            config=Config,
            capabilities=frozenset(),
            idempotent=False,
            confirms_delivery=confirms,
            timeout=TIMEOUT,
            docs="",
            receipts=None if confirms else ReceiptAuth.signature,
        )

    def _report(self, key: str, provider_id: str) -> None:
        """Sooner or later, often or never, in any order: as vendors do."""
        rng = self._rng
        if self.spec.receipts is None or rng.random() < 0.4:
            return
        kinds = [EventKind.delivered] if rng.random() < 0.9 else [EventKind.failed]
        kinds += [kind for kind, p in ((EventKind.opened, 0.3), (EventKind.complained, 0.02)) if rng.random() < p]
        for kind in kinds:
            told = Told(
                self._world.loop.time() + rng.choice((0.0, 0.1, 3.0, 8.0)) * rng.random(),
                key,
                provider_id if rng.random() < 0.7 else None,
                kind,
                rng.choice(RECEIPT_REASONS) if kind is EventKind.failed else None,
                machine=kind is EventKind.opened and rng.random() < 0.5,
                times=rng.choice((1, 1, 2, 3)),
            )
            self._world.reports.append(told)

    async def send(self, message: Message, key: str) -> SendResult:
        loop, rng = self._world.loop, self._rng
        call = Call(key, loop.time())
        self._world.calls.append(call)
        await asyncio.sleep(rng.uniform(0.0, rng.choice((0.3, 0.3, 1.7))))
        while self._process.frozen:
            await asyncio.sleep(self._process.frozen_until - loop.time())
        if rng.random() > 0.2 + 0.3 * self._world.chaos:
            call.took = True
            provider_id = f"{key}/{len(self._world.calls)}"
            self._report(key, provider_id)
            return Sent(provider_id)
        match rng.randrange(10):
            case 0:
                return Rejected(Reason.bounced, "no such mailbox")
            case 1:
                return Rejected(rng.choice((Reason.content_rejected, Reason.quota_exceeded, Reason.mailbox_full)))
            case 2 | 3:
                return Deferred(Reason.greylisted, rng.choice((None, timedelta(seconds=rng.uniform(0, 5)))))
            case 4:
                return Throttled(rng.choice((None, timedelta(seconds=rng.uniform(0, 3)))))
            case 5:  # the bytes arrive, the answer does not
                call.took = rng.random() < 0.5
                await asyncio.sleep(60)
                return Uncertain()
            case 6:
                call.took = rng.random() < 0.5
                return Uncertain("reset by peer\x00")
            case 7:  # a bug in the adapter
                call.took = rng.random() < 0.5
                raise RuntimeError("injected")
            case 8:
                await asyncio.sleep(rng.uniform(0.5, 1.9))
                call.took = True
                return Sent()
            case _:
                return Deferred(Reason.connect_failed)

    async def close(self) -> None:
        """Nothing is open."""


# ---------------------------------------------------------------- people


class People:
    """Applications that send, repeat what was not answered, cancel and replay."""

    def __init__(self, world: World, apis: list[Api]) -> None:
        self._world = world
        self.apis = apis
        self._rng = world.rng("people")
        self._number = 0

    def caller(self, project: int, *, test: bool = False) -> Caller:
        scopes = frozenset({Scope.send, Scope.send_critical, Scope.manage})
        return Caller(project, f"p{project}", UUID(int=project), scopes, test)

    async def live(self, until: float) -> None:
        """One person's life: requests of all kinds until that time, then whatever is still unanswered, repeated."""
        mine: list[Asked] = []
        while self._world.loop.time() < until:
            await asyncio.sleep(self._rng.uniform(0.0, 2.0))
            draw = self._rng.random()
            if draw < 0.62:
                mine += await self._ask()
            elif draw < 0.65:
                await self._broadcast()
            elif draw < 0.93:
                await self._cancel()
            else:
                await self._replay()
        for asked in mine:
            while asked.key is not None and asked.answered is None and not asked.refused:
                await self._send([asked])

    async def _ask(self) -> list[Asked]:
        project = self._rng.choice((*self._world.projects, self._world.projects[0], self._world.projects[0]))
        test = self._rng.random() < 0.1
        burst = self._rng.choice(("digest", "capped", "spaced")) if self._rng.random() < 0.25 else None
        size = self._rng.choice((4, 6)) if burst is not None else self._rng.choice((1, 1, 2, 4))
        group = [self._draw(project, test, burst) for _ in range(size)]
        self._world.asked += group
        if self._rng.random() < 0.1:  # the same key twice in one batch
            group.append(group[0])
        sent = [asyncio.create_task(self._send(group))]
        if self._rng.random() < 0.2:  # an impatient twin, perhaps at another process
            sent.append(asyncio.create_task(self._send([a for a in group if a.key is not None])))
        await asyncio.wait(sent)
        for task in sent:
            task.result()
        return group

    def _draw(self, project: int, test: bool, burst: str | None) -> Asked:
        rng, now = self._rng, self._world.clock().now()
        self._number += 1
        tag = f"t{self._number}"
        to: dict[str, Any] = {"user": f"u{rng.choice((0, 0, 0, 0, 1, 2, 3))}"}  # one of them gets too much
        body: dict[str, Any] = {"type": rng.choice(TYPES), "data": {"n": self._number, "k": rng.choice("AAB")}}
        if burst is not None:  # too much of one thing for one user
            to, body["type"] = {"user": "u0"}, burst
        if rng.random() < 0.1:
            body["once"] = rng.choice(("hello", "bye"))
        if rng.random() < 0.2 and burst is None:
            to = {"email": f"somebody{rng.randrange(30)}@example.com"}
            body = {"content": {"subject": "Hi", "text": "Hello"}, **({"once": body["once"]} if "once" in body else {})}
            if rng.random() < 0.2:
                to = {"email": rng.choice(("deliver", "bounce", "defer", "fail")) + "@simulator.test"}
        if rng.random() < 0.15:
            body["send_at"] = now + timedelta(seconds=rng.uniform(1, 25))
        elif rng.random() < 0.15:
            body["expires_at"] = now + timedelta(seconds=rng.uniform(0.5, 15))
        body["priority"] = rng.choice(("critical", "high", "medium", "low"))
        key = f"k{self._number}" if rng.random() < 0.85 else None
        request = msgspec.convert({"to": to, **body, "metadata": {"tag": tag}, "idempotency_key": key}, Request)
        return Asked(tag, project, request, key, test)

    async def _send(self, group: list[Asked]) -> None:
        if not group:
            return
        api = self._rng.choice(self.apis)
        caller = self.caller(group[0].project, test=group[0].test)
        for asked in group:
            asked.tries += 1
        try:
            answers = await api.call(
                api.acceptor.accept(caller, [asked.request for asked in group], key=None, traceparent=None)
            )
        except (Unanswered, Problem, asyncpg.PostgresError, OSError):
            await asyncio.sleep(self._rng.uniform(0.1, 2.0))
            return
        for asked, answer in zip(group, answers, strict=True):
            if isinstance(answer, Accepted):
                assert asked.answered in (None, answer.id) or asked.key is None, f"{asked.tag}: two answers"
                asked.answered = answer.id
            elif answer.status == 422:
                asked.refused = True

    async def _broadcast(self) -> None:
        """Tell everybody of a project, once; and perhaps steer it afterwards. Whether a lost answer was a yes is found
        in the tables."""
        left = [project for project in self._world.projects if project not in self._world.broadcasts]
        if not left:
            return
        project = self._rng.choice(left)
        self._world.broadcasts.add(project)
        api = self._rng.choice(self.apis)
        rate = self._rng.choice((None, None, 2.0))
        request = msgspec.convert({"to": {"user": ""}, "type": "mail", "data": {"n": 0, "k": "A"}}, Request)
        ask = broadcasts.Ask(request, Sources(all=True), rate=rate)
        with contextlib.suppress(Exception):  # unanswered
            made = await api.call(api.broadcast(self.caller(project), ask))
            if self._rng.random() < 0.4:
                await asyncio.sleep(self._rng.uniform(0.0, 2.0))
                cancel = self._rng.random() < 0.5
                await api.call(api.steer(self.caller(project), made, "cancel" if cancel else "pause"))
                while not cancel:
                    await asyncio.sleep(self._rng.uniform(0.5, 3.0))
                    with contextlib.suppress(Exception):
                        another = self._rng.choice(self.apis)
                        await another.call(another.steer(self.caller(project), made, "resume"))
                        break

    async def _cancel(self) -> None:
        known = [a for a in self._world.asked if a.answered]
        if not known:
            return
        asked = self._rng.choice(known[-8:])
        assert asked.answered is not None
        id_ = ids.parse_public(ids.NOTIFICATION, asked.answered)
        assert id_ is not None
        api = self._rng.choice(self.apis)
        with contextlib.suppress(Exception):  # unanswered, or refused: nothing is known then
            answer = await api.call(api.intervener.cancel(self.caller(asked.project), id_))
            self._world.cancels.append((asked.answered, answer, self._world.loop.time()))

    async def _replay(self) -> None:
        api = self._rng.choice(self.apis)
        caller = self.caller(self._rng.choice(self._world.projects))
        with contextlib.suppress(Exception):  # it may have happened all the same
            self._world.replayed += await api.call(
                api.intervener.replay(caller, delivery_ids=None, limit=self._rng.choice((1, None)))
            )


class Postman:
    """Carries the vendors' reports; repeats what was not answered, and now and then what was."""

    def __init__(self, world: World, apis: list[Api]) -> None:
        self._world = world
        self._apis = apis
        self._rng = world.rng("postman")
        self._carried = 0

    @property
    def idle(self) -> bool:
        """Nothing is left to report."""
        return self._carried == len(self._world.reports)

    async def live(self) -> None:
        """Carry each report when its time has come."""
        while True:
            await asyncio.sleep(self._rng.uniform(0.05, 0.3))
            due = [told for told in self._world.reports if told.at <= self._world.loop.time() and told.times]
            for told in due:
                told.times -= 1
                told.at += self._rng.choice((0.0, 2.0))
                while not await self._carry(told):
                    await asyncio.sleep(self._rng.uniform(0.2, 1.0))
                self._carried += told.times == 0

    async def _carry(self, told: Told) -> bool:
        api = self._rng.choice(self._apis)
        try:
            await api.call(self._post(api, told))
        except Exception:
            return False
        return True

    async def _post(self, api: Api, told: Told) -> None:
        row = await api.database.fetchrow(_WHOSE, ids.parse_public(ids.DELIVERY, told.key))
        assert row is not None
        if row["account_id"] is None:  # being tried again with an account that nobody has chosen yet
            return
        report = Report(
            told.kind,
            provider_id=told.provider_id,
            key=None if told.provider_id else told.key,
            reason=told.reason,
            machine=told.machine,
            detail={"vendor": "says so"},
        )
        await api.receiver.record([Fact(row["project_id"], row["account_id"], report)])


_WHOSE: Final = """
SELECT d.project_id, coalesce(d.account_id, j.account_id) AS account_id
FROM delivery d LEFT JOIN job j ON j.id = d.id WHERE d.id = $1
"""


async def settle_in(world: World, database: Database) -> None:
    """The projects, as their owners made them, some time before."""
    vault = Vault([VAULT_KEY])
    content = {
        "default_locale": "en",
        "channels": {
            "email": {"en": {"subject": "No. {{ n }}", "text": "No. {{ n }}"}},
            "in_app": {"en": {"title": "No. {{ n }}"}},
            "webhook": {"en": {"body": '{"n": {{ n }}}'}},
        },
    }
    smtp = {"host": "mail.example.com", "from_address": "a@example.com"}
    hook = {"secret": "whsec_" + base64.b64encode(bytes(32)).decode()}

    async def make(conn: Any) -> None:
        for number in (1, 2, 3):
            project = await create_project(conn, f"p{number}", "")
            actor = Actor(project.id, "system")
            world.projects.append(project.id)
            await put_template(conn, actor, "t")
            version = await create_template_version(conn, actor, "t", content)
            await publish_template(conn, actor, "t", version.version)
            for key, more in (
                ("all", {}),
                ("mail", {"steps": [{"send": ["email"]}], "expires_after": "60s"}),
                ("once", {"guarantee": "at_most_once", "steps": [{"send": ["email", "webhook"]}]}),
                (
                    "steps",
                    {"steps": [{"send": ["in_app"]}, {"wait": "3s", "unless": "read"}, {"send": ["email"]}]},
                ),
                (
                    "chain",
                    {"steps": [{"first": ["email", "webhook"], "within": "4s"}, {"send": ["in_app"]}]},
                ),
                ("digest", {"steps": [{"send": ["email"]}], "digest": {"window": "6s", "key": "k"}}),
                ("capped", {"steps": [{"send": ["email"]}], "limits": [{"max": CAP, "window": "1h"}]}),
                (
                    "spaced",
                    {"steps": [{"send": ["email"]}], "limits": [{"max": 1, "window": "4s", "then": "defer"}]},
                ),
            ):
                raw = {"category": "general", "template": "t", **more}
                await put_type(conn, actor, key, parse_definition(key, raw, timedelta(days=30)))
            for user in range(4):
                addresses = {Channel.email: [f"u{user}@example.com"], Channel.webhook: [f"https://example.com/{user}"]}
                await put_user(conn, actor, f"u{user}", addresses=addresses)
            for n in range(1, number + 1):
                quotas = Quotas(day=Allowance(messages=QUOTA if n == 2 else None))
                rate = 8.0 if n == 1 else None
                plan = AccountPlan("email", "smtp", smtp, concurrency=2 + n, rate=rate, burst=2, quotas=quotas)
                await put_account(conn, actor, vault, f"smtp-{n}", plan)
            await put_account(conn, actor, vault, "hook", AccountPlan("webhook", "webhook", hook, concurrency=3))

    await database.transaction(make)


HISTORY = """
CREATE TABLE history (
    seq bigint GENERATED ALWAYS AS IDENTITY, id uuid, before smallint, before_reason text, after smallint, reason text);
CREATE FUNCTION remember() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO history (id, before, before_reason, after, reason)
    VALUES (NEW.id, CASE WHEN TG_OP = 'UPDATE' THEN OLD.status END, CASE WHEN TG_OP = 'UPDATE' THEN OLD.reason END,
            NEW.status, NEW.reason);
    RETURN NULL;
END $$;
CREATE TRIGGER remember AFTER INSERT OR UPDATE ON delivery FOR EACH ROW EXECUTE FUNCTION remember();
"""
"""What happened to each delivery, in the order in which it did."""


def midnight_is_near(seed: int) -> datetime:
    """When a simulation begins: every third one shortly before the flow tables change their partition."""
    today = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
    return today.replace(hour=23, minute=59, second=40) if seed % 3 == 0 else today
