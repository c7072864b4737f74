"""The composition root: which parts a process is made of, how it starts and how it stops.

    run_api      the HTTP API
    run_worker   planning and sending
    run_up       both in one process, with a private PostgreSQL and the demo if wanted

Any number of API and worker processes may run over one database. Each stops on SIGTERM or SIGINT: it takes nothing new,
finishes what is in flight within the grace time, and exits. kill -9 at any moment loses nothing.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import os
import secrets
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

import structlog
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from tidings.clock import SystemClock
from tidings.db.embedded import EmbeddedServer
from tidings.db.migrate import migrate, pending
from tidings.db.partitions import drop_partitions, ensure_partitions, partitions_ahead
from tidings.db.pool import Database, Listener, Notifier
from tidings.demo.welcome import UpInfo
from tidings.directory.access import Access
from tidings.directory.blobs import forget_blobs
from tidings.directory.catalog import Account, Catalog
from tidings.directory.credentials import Vault
from tidings.directory.segments import refresh_segments
from tidings.directory.tokens import Tokens
from tidings.engine import health
from tidings.engine.feed import FeedLanes
from tidings.engine.health import Pulse
from tidings.engine.jobs import WAKE_CHANNEL, load_lag
from tidings.engine.lane import SendHandler, SendLane
from tidings.engine.quota import forget_usage
from tidings.engine.wakes import Wakes
from tidings.engine.worker import Worker
from tidings.errors import DatabaseUnsupported, SettingsError
from tidings.flow.accept import Acceptor, forget_keys
from tidings.flow.breaker import Breaker
from tidings.flow.broadcasts import Broadcaster
from tidings.flow.callbacks import Callbacks, record_receipts
from tidings.flow.caps import forget_counters
from tidings.flow.effects import forget_once
from tidings.flow.endpoints import forget_failing
from tidings.flow.events import EventAcceptor
from tidings.flow.explain import Explainer
from tidings.flow.hooks import HookSender, forget_messages
from tidings.flow.inbound import HelpDesk, InboundRecorder, forget_inbound
from tidings.flow.inbox import BELL_CHANNEL, Bell, Inbox
from tidings.flow.intervene import Intervener, forget_letters
from tidings.flow.jobs import LANE_HOOKS, name_lane
from tidings.flow.measure import Meter, Moves, fold
from tidings.flow.plan import Planner
from tidings.flow.privacy import Eraser
from tidings.flow.receipts import Receiver, forget_early
from tidings.flow.send import Sender
from tidings.flow.settle import Settler
from tidings.flow.settlement import POLICIES, Policy
from tidings.flow.tracking import Signer, Tracker
from tidings.model.messages import SendResult
from tidings.model.words import CHANNELS_OF_THIS_VERSION, Channel
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport
from tidings.providers.port import Surroundings
from tidings.settings import Settings
from tidings.telemetry import Metrics
from tidings.web.health import health_endpoints
from tidings.web.server import serve

log = structlog.get_logger(__name__)

CONFIG_CHANNEL: Final = "tidings_config"
"""NOTIFY channel; the payload is a project whose types, templates or accounts have changed."""

USAGE_KEPT: Final = timedelta(days=400)
"""What accounts have used is kept for so long: the same month of last year can be looked up."""

LOOPBACK: Final = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


@dataclass(frozen=True)
class Core:
    """What API and worker both stand on."""

    settings: Settings
    database: Database
    clock: SystemClock
    vault: Vault
    catalog: Catalog
    meter: Meter
    metrics: Metrics
    wakes: Wakes
    bell: Bell
    draining: asyncio.Event
    """Set when this process takes nothing new any more: what lives long ends now."""


@contextlib.asynccontextmanager
async def open_core(settings: Settings, dsn: str, *, name: str, pool: int) -> AsyncIterator[Core]:
    """Connect, check that the schema is ours, and listen for hints.

    Raises:
        DatabaseUnsupported: migrations are pending.
        SettingsError: no secret key.
    """
    if not settings.secret_keys:
        raise SettingsError("TIDINGS_SECRET_KEY is not set: 32 random bytes as base64, the same for every process")
    vault = Vault(settings.secret_keys)
    if waiting := await pending(dsn):
        raise DatabaseUnsupported(f"The database lacks the migrations {', '.join(waiting)}: run `tidings migrate`.")
    clock = SystemClock()
    token = secrets.token_hex(4)
    async with contextlib.AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            await Database.connect(dsn, min_size=2, max_size=pool, application_name=f"tidings-{name}")
        )
        # What planning and sweeping look up while they hold locks comes over connections of its own: those of the pool
        # may all be waiting for these locks.
        side = await stack.enter_async_context(
            await Database.connect(dsn, min_size=1, max_size=2, application_name=f"tidings-{name}-catalog")
        )
        async with database.acquire() as conn:
            await ensure_partitions(conn, clock.now())
        notifier = await stack.enter_async_context(Notifier(dsn))
        wakes = Wakes(notifier.notify, token)
        bell = Bell(notifier.notify)
        catalog = Catalog(side, clock, vault=vault)

        def hear(channel: str, payload: str) -> None:
            if channel == WAKE_CHANNEL:
                wakes.hear(payload)
            elif channel == BELL_CHANNEL:
                bell.hear(payload)
            else:
                catalog.on_hint(channel, payload)

        await stack.enter_async_context(Listener(dsn, [WAKE_CHANNEL, CONFIG_CHANNEL, BELL_CHANNEL], hear))
        meter, draining = Meter(side, clock), asyncio.Event()
        yield Core(settings, database, clock, vault, catalog, meter, Metrics(), wakes, bell, draining)


class _Readiness:
    """The checks of /readyz, made at most once a second: nobody needs a key to ask, and asking costs a connection."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._turn = asyncio.Lock()
        self._checks: Mapping[str, str | None] = {}
        self._stale_at = 0.0

    async def __call__(self) -> Mapping[str, str | None]:
        async with self._turn:
            if not self._checks or self._core.clock.monotonic() >= self._stale_at:
                self._checks = await _check_readiness(self._core)
                self._stale_at = self._core.clock.monotonic() + 1.0
            return self._checks


async def _check_readiness(core: Core) -> Mapping[str, str | None]:
    checks: dict[str, str | None] = {}
    try:
        async with asyncio.timeout(3):
            await core.database.fetchval("SELECT 1")
            checks["database"] = None
            waiting = await pending(core.database.dsn)
            checks["migrations"] = f"pending: {', '.join(waiting)}" if waiting else None
            async with core.database.acquire() as conn:
                days = await partitions_ahead(conn, core.clock.now())
            checks["partitions"] = None if days >= 2 else f"made for {days} days ahead; two are needed"
    except Exception as error:
        checks.setdefault("database", f"cannot be asked ({type(error).__name__})")
    return checks


# ---------------------------------------------------------------- the API


@contextlib.asynccontextmanager
async def open_api(core: Core, guard: Guard | None = None) -> AsyncIterator[ASGIApp]:
    """The web application over a core; drains on leaving. It asks vendors about accounts from behind the guard, that of
    the settings if none is given."""
    # Imported here: a worker serves no web application, and FastAPI is a third of its start-up.
    from tidings.web import hot
    from tidings.web.app import create_web
    from tidings.web.deps import Deps
    from tidings.web.inbox.live import Live

    settings, stage, road = core.settings, _flush_observer(core.metrics), _RoadMetrics(core.metrics)
    acceptor = Acceptor(
        core.database,
        core.catalog,
        core.meter,
        core.clock,
        core.wakes,
        window=settings.accept_window_ms / 1000,
        horizon=settings.retention - timedelta(days=1),
        breaker=Breaker(observe=core.metrics.runaways.inc),
        observe_batch=stage,
    )
    access = Access(core.database, core.clock, rate=settings.api_rate)
    inbox = Inbox(core.database, core.meter, core.clock, core.bell)
    live = Live(inbox, core.clock, core.metrics, draining=core.draining)
    guard = guard or Guard(settings.private_targets)
    transport = AiohttpTransport(guard)
    pulse = Pulse(core.database, core.clock)
    beating = asyncio.create_task(pulse.run())
    receiver = Receiver(
        core.database,
        core.meter,
        core.clock,
        observe_delivered=pulse.observe_delivered,
        observe_moved=road.count_moves,
    )
    inbound = InboundRecorder(core.database, core.clock, answer_help=HelpDesk(acceptor, core.catalog).answer)
    surroundings = Surroundings(http=transport, guard=guard, clock=core.clock, timeout=settings.provider_timeout)
    count_receipts = core.metrics.receipts.labels
    intervener = Intervener(
        core.database, core.meter, core.clock, core.wakes, bell=core.bell, observe_moved=road.count_moves
    )
    deps = Deps(
        database=core.database,
        clock=core.clock,
        access=access,
        metrics=core.metrics,
        vault=core.vault,
        catalog=core.catalog,
        broadcaster=Broadcaster(core.catalog, core.clock, core.wakes, horizon=settings.retention - timedelta(days=1)),
        tokens=Tokens(core.database, core.vault, core.clock),
        inbox=inbox,
        live=live,
        receiver=receiver,
        callbacks=Callbacks(
            core.database,
            core.vault,
            receiver,
            inbound,
            surroundings,
            core.clock,
            observe=lambda provider, outcome, n: count_receipts(provider, outcome).inc(n),
        ),
        signer=Signer(core.vault),
        surroundings=surroundings,
        public_url=settings.public_url,
        intervener=intervener,
        eraser=Eraser(core.database, intervener, core.clock),
        events=EventAcceptor(acceptor, core.catalog, access, core.clock),
        explainer=Explainer(core.database, core.catalog, acceptor, core.clock),
        ready=_Readiness(core),
        retention=settings.retention,
        extra_openapi=hot.to_openapi(),
    )
    try:
        yield hot.Hot(create_web(deps), acceptor, access, core.metrics, core.clock)
    finally:
        await live.stop()
        await acceptor.drain()
        await receiver.drain()
        beating.cancel()
        await asyncio.wait({beating})
        await transport.close()


# ---------------------------------------------------------------- the worker


@contextlib.asynccontextmanager
async def open_worker(
    core: Core,
    *,
    channels: Collection[Channel] | None,
    plan: bool,
    guard: Guard,
    policies: Mapping[Channel, Policy] = POLICIES,
) -> AsyncIterator[Worker]:
    """A worker over a core, with these retry policies; gives back the providers' connections on leaving."""
    settings, road = core.settings, _RoadMetrics(core.metrics)
    observe = _flush_observer(core.metrics)
    settler = Settler(
        core.database,
        core.catalog,
        core.meter,
        core.clock,
        policies=policies,
        observe_moved=road.count_moves,
        observe_attempt=road.count_attempt,
        bell=core.bell,
    )
    transport = AiohttpTransport(guard)
    surroundings = Surroundings(http=transport, guard=guard, clock=core.clock, timeout=settings.provider_timeout)
    pulse = Pulse(core.database, core.clock)
    acceptor = Acceptor(core.database, core.catalog, core.meter, core.clock, core.wakes)
    receiver = Receiver(
        core.database,
        core.meter,
        core.clock,
        observe_delivered=pulse.observe_delivered,
        observe_moved=road.count_moves,
    )
    inbound = InboundRecorder(core.database, core.clock, answer_help=HelpDesk(acceptor, core.catalog).answer)
    sender = Sender(
        core.database,
        core.catalog,
        settler,
        surroundings,
        core.clock,
        timeout=settings.provider_timeout,
        tracker=Tracker(core.vault, settings.public_url),
        handle_receipts=lambda account, receipts: record_receipts(receiver, inbound, account, receipts),
        pulse=pulse,
    )

    def open_lane(lane: int, handler: SendHandler[Any, Any]) -> SendLane[Any, Any]:
        return SendLane(
            lane,
            handler,
            core.database,
            core.clock,
            core.wakes,
            slots=settings.slots,
            lease=settings.lease,
            observe_batch=observe,
        )

    served = [c for c in CHANNELS_OF_THIS_VERSION if channels is None or c in channels]
    lanes = [open_lane(int(channel), sender) for channel in served]
    if plan:  # hooks are of no channel either, and every installation has a worker that plans
        lanes.append(open_lane(LANE_HOOKS, HookSender(core.database, core.catalog, surroundings, core.clock)))
    planner = Planner(core.database, core.catalog, core.meter, core.clock, observe_moved=road.count_moves)
    feed = FeedLanes(
        planner, core.database, core.clock, core.wakes, ahead=settings.planned_ahead, observe_batch=observe
    )
    intervener = Intervener(
        core.database, core.meter, core.clock, core.wakes, bell=core.bell, observe_moved=road.count_moves
    )
    eraser = Eraser(core.database, intervener, core.clock)
    worker = Worker(
        lanes,
        feed if plan else None,
        settler,
        core.database,
        core.clock,
        core.wakes,
        lease=settings.lease,
        grace=settings.grace,
        chores=(
            (lambda: fold(core.database), 1.0),
            (sender.tell, health.PERIOD.total_seconds()),
            (lambda: health.weigh_accounts(core.database, core.clock), health.PERIOD.total_seconds()),
            (sender.prune, 60.0),
            (lambda: sender.listen(served), 30.0),
            (lambda: _tell_lag(core), 5.0),
            (eraser.resume, 10.0),
            (lambda: forget_keys(core.database), 600.0),
            (lambda: refresh_segments(core.database, core.clock.db_now()), 60.0),
            (lambda: _keep_partitions(core), 600.0),
        ),
    )
    try:
        yield worker
    finally:
        await sender.close()
        await receiver.drain()
        await transport.close()


async def _keep_partitions(core: Core) -> None:
    async with core.database.acquire() as conn:
        await ensure_partitions(conn, core.clock.now())
        await drop_partitions(conn, core.clock.now() - core.settings.retention)
    await forget_letters(core.database, core.clock.now() - core.settings.retention)
    await forget_messages(core.database, core.clock.now())
    await forget_failing(core.database, core.clock.now())
    await forget_counters(core.database, core.clock.db_now())
    await forget_usage(core.database, core.clock.now() - USAGE_KEPT)
    await forget_early(core.database, core.clock.now(), core.settings.retention)
    await forget_inbound(core.database, core.clock.now() - core.settings.retention)
    await forget_once(core.database, core.clock.now() - core.settings.retention)
    await forget_blobs(core.database, core.clock.now() - core.settings.retention)


async def _tell_lag(core: Core) -> None:
    async with core.database.acquire() as conn:
        lags = await load_lag(conn)
    depths: Counter[str] = Counter()
    oldest: dict[str, float] = {}
    for lane, depth, seconds in lags:
        name = name_lane(lane)
        depths[name] += depth
        oldest[name] = max(seconds, oldest.get(name, 0.0))
    for name in ("plan", name_lane(LANE_HOOKS), *(channel.name for channel in CHANNELS_OF_THIS_VERSION)):
        core.metrics.jobs_waiting.labels(name).set(depths[name])
        core.metrics.job_lag_seconds.labels(name).set(oldest.get(name, 0.0))


def _flush_observer(metrics: Metrics) -> Callable[[str, int], None]:
    stages = {name: metrics.flush_rows.labels(name) for name in ("accept", "plan", "claim", "settle")}
    return lambda stage, rows: stages[stage].observe(rows)


class _RoadMetrics:
    """Counts attempts, and what becomes of deliveries. Keeps the labelled series: looking one up costs ten times what
    counting does."""

    def __init__(self, metrics: Metrics) -> None:
        self._deliveries = cache(metrics.deliveries.labels)
        self._attempts = cache(metrics.attempts.labels)
        self._seconds = cache(metrics.attempt_seconds.labels)

    def count_moves(self, moves: Moves) -> None:
        """Deliveries came to a status."""
        for (channel, status, provider, reason), n in moves.items():
            self._deliveries(status.name, Channel(channel).name, provider or "none", reason or "").inc(n)

    def count_attempt(self, account: Account, result: SendResult, seconds: float) -> None:
        """A provider answered."""
        self._attempts(account.channel.name, account.provider, type(result).__name__.lower()).inc()
        self._seconds(account.channel.name, account.provider).observe(seconds)


# ---------------------------------------------------------------- processes


@contextlib.contextmanager
def _stop_on_signals() -> Any:
    """An event that the first SIGTERM or SIGINT sets; the second one ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def handle() -> None:
        if stop.is_set():
            sys.exit(130)
        log.info("process.stopping")
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _dsn(settings: Settings) -> str:
    if settings.database_url is None:
        raise SettingsError("TIDINGS_DATABASE_URL is not set (only `tidings up` brings its own database)")
    return settings.database_url.get_secret_value()


def _calm_collector() -> None:
    """Look for reference cycles rarely, and never again among what is there now: modules, classes, routes.

    What is made for a message is freed by its reference count. With the interpreter's thresholds, looking at it all the
    same takes a quarter of a worker's processor time (measured; docs/explanation/performance.md).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


async def run_api(settings: Settings) -> None:
    """Run the API until a signal comes."""
    with _stop_on_signals() as stop:
        async with (
            open_core(settings, _dsn(settings), name="api", pool=settings.api_pool) as core,
            open_api(core) as api,
            serve(api, settings.host, settings.port, settings.grace, draining=core.draining) as url,
        ):
            _calm_collector()
            log.info("api.listening", url=url)
            await stop.wait()


async def run_worker(settings: Settings, *, channels: Collection[str] | None = None, plan: bool = True) -> None:
    """Run a worker until a signal comes."""
    with _stop_on_signals() as stop:
        async with contextlib.AsyncExitStack() as stack:
            core = await stack.enter_async_context(
                open_core(settings, _dsn(settings), name="worker", pool=settings.worker_pool)
            )
            worker = await stack.enter_async_context(
                open_worker(
                    core,
                    channels={Channel[name] for name in channels} if channels is not None else None,
                    plan=plan,
                    guard=Guard(settings.private_targets),
                )
            )
            if settings.worker_port is not None:
                url = await stack.enter_async_context(
                    serve(_health_only(core), settings.host, settings.worker_port, settings.grace)
                )
                log.info("worker.listening", url=url)
            _calm_collector()
            log.info("worker.running", lanes=[name_lane(lane.lane) for lane in worker.lanes], plan=plan)
            await worker.run(stop)


async def run_up(settings: Settings, *, demo: bool = True, ready: Callable[[UpInfo], None] = lambda _: None) -> None:
    """Run everything in one process until a signal comes; tells `ready` where things are."""
    # Imported here: only `up` needs the catcher and the client.
    from tidings.client import AsyncClient
    from tidings.demo.catcher import MailCatcher
    from tidings.demo.seed import bootstrap_demo, seed_demo

    settings.data_dir.mkdir(parents=True, exist_ok=True)
    if settings.secret_key is None:
        settings = settings.model_copy(update={"secret_key": _kept_secret_key(settings.data_dir)})
    with _stop_on_signals() as stop:
        async with contextlib.AsyncExitStack() as stack:
            if settings.database_url is not None:
                dsn, where = _dsn(settings), "as TIDINGS_DATABASE_URL says"
            else:
                server = await stack.enter_async_context(EmbeddedServer(settings.data_dir / "postgres"))
                dsn, where = server.dsn, f"private PostgreSQL in {settings.data_dir / 'postgres'}"
            await migrate(dsn)
            core = await stack.enter_async_context(
                open_core(settings, dsn, name="up", pool=settings.api_pool + settings.worker_pool)
            )
            guard = Guard([*settings.private_targets, *(LOOPBACK if demo else ())])
            worker = await stack.enter_async_context(open_worker(core, channels=None, plan=True, guard=guard))
            working = asyncio.create_task(worker.run(stop))
            # Leaves first: the API closes before the worker drains.
            stack.push_async_callback(_finish, working, stop)
            api = await stack.enter_async_context(open_api(core, guard))
            serving = serve(api, settings.host, settings.port, settings.grace, draining=core.draining)
            url = await stack.enter_async_context(serving)
            info = UpInfo(api_url=url, docs_url=f"{url}/docs", database=where)
            if demo:
                catcher = await stack.enter_async_context(
                    MailCatcher(smtp_port=settings.catcher_smtp_port, http_port=settings.catcher_port)
                )
                kept = await bootstrap_demo(core.database, core.clock, data_dir=settings.data_dir, api_url=url)
                async with AsyncClient(url, kept.api_key) as client:
                    await seed_demo(client, smtp_port=catcher.smtp_port, webhook_secret=kept.webhook_secret)
                info = UpInfo(
                    api_url=url,
                    docs_url=f"{url}/docs",
                    database=where,
                    catcher_url=catcher.url,
                    api_key=kept.api_key,
                )
            _calm_collector()
            ready(info)
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({stopping, working}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()


def _kept_secret_key(folder: Path) -> SecretStr:
    """The sealing key that `up` made for this data folder at its first start; mode 0600."""
    path = folder / "secret_key"
    if not path.exists():
        # Written aside and linked: the file appears whole or not at all, and who comes second keeps the first's key.
        draft = folder / f"secret_key.{secrets.token_hex(4)}"
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(base64.b64encode(secrets.token_bytes(32)).decode())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    return SecretStr(path.read_text().strip())


async def _finish(working: asyncio.Task[None], stop: asyncio.Event) -> None:
    stop.set()
    await working


def _health_only(core: Core) -> ASGIApp:
    endpoints = health_endpoints(_Readiness(core), core.metrics)
    return Starlette(routes=[Route(path, endpoint) for path, endpoint in endpoints.items()])
