"""Hooks: the application is told what becomes of its messages, by signed requests to the URLs that it gave.

An event and the messages that tell it are written in one transaction, so neither exists without the other. From there
on a message is a job like any other, on a lane of its own: claimed, posted, settled, tried again for a day. It may come
twice and out of order; its `webhook-id` is that of the event, and stays.

A project without hooks costs nothing here: the statement that appends events says beside each whether anybody listens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
import structlog

from tidings import ids
from tidings.clock import Clock
from tidings.db.pool import Connection, Database, Record
from tidings.db.sql import load_queries
from tidings.directory.audit import Actor, apply_audit
from tidings.directory.catalog import Catalog, Hook
from tidings.directory.hooks import DELIVERY_EVENTS, HOOK_TEST, disable_hook, load_hook
from tidings.directory.projects import load_project
from tidings.engine import jobs as queue
from tidings.engine.gate import Limits
from tidings.engine.jobs import Job, Retry
from tidings.engine.lane import Outcome
from tidings.errors import Conflict
from tidings.flow.evidence import Event
from tidings.flow.jobs import hook_job
from tidings.model.messages import Deferred, Rejected, SendResult, Sent, Throttled, Uncertain
from tidings.model.words import Channel, Reason, Status
from tidings.providers.port import Surroundings
from tidings.providers.webhook import Poster, SigningKey, parse_secret

SQL: Final = load_queries(__package__, "hooks.sql")

log = structlog.get_logger(__name__)

DELAYS: Final = tuple(
    timedelta(seconds=seconds)
    for seconds in (5, 30, 120, 600, 1_800, 3_600, 2 * 3_600, 4 * 3_600, 8 * 3_600, 9 * 3_600)
)
"""How long to wait after each attempt: 25 hours in all, as Standard Webhooks recommends."""
TIMEOUT: Final = timedelta(seconds=15)
MARGIN: Final = 2.0
"""Seconds of lease that must remain beyond the time-out, for settling."""
CONCURRENCY: Final = 32
"""Requests in flight of one project and worker process: an endpoint that hangs must not take the whole lane."""
KEPT_FOR: Final = timedelta(days=30)
"""How long a message that was given up can be looked at and replayed."""
REPLAY_BATCH: Final = 500
FORGET_BATCH: Final = 20_000
MESSAGE: Final = "hkm"
"""Prefix of a message's public id."""


# ---------------------------------------------------------------- writing


class Notice(NamedTuple):
    """Something to tell that is no delivery's event."""

    event_id: UUID
    project_id: int
    event: str
    data: Mapping[str, Any]


async def enqueue_hooks(conn: Connection, events: Sequence[Event], now: datetime | None) -> None:
    """Write what the hooks of the events' projects want to hear of them, in the events' transaction.

    `effects.apply_events` calls this, for the events that are new and whose project has a hook.
    """
    told = [(event, name) for event in events if (name := DELIVERY_EVENTS.get(event.kind)) is not None]
    if not told:
        return
    low, high = ids.family_bounds(event.delivery_id for event, _ in told)
    rows = await conn.fetch(
        SQL.load_hook_subjects,
        [event.delivery_id for event, _ in told],
        [event.project_id for event, _ in told],
        [event.notification_id for event, _ in told],
        low,
        high,
        [event.account_id for event, _ in told],
        [name for _, name in told],
        now,
    )
    messages = []
    for row in rows:
        event, name = told[row["ord"] - 1]
        body = render_body(event.id, name, row["at"], row["project_key"], _to_data(event, row))
        messages.append((event.id, event.project_id, row["hook_id"], name, body))
    await _insert_messages(conn, messages, now)


async def enqueue_notices(conn: Connection, notices: Sequence[Notice], now: datetime | None) -> None:
    """The same for what is no delivery's event: a failing endpoint, an inbound text message."""
    if not notices:
        return
    rows = await conn.fetch(SQL.load_listening, [n.project_id for n in notices], [n.event for n in notices], now)
    messages = []
    for row in rows:
        n = notices[row["ord"] - 1]
        body = render_body(n.event_id, n.event, row["at"], row["project_key"], n.data)
        messages.append((n.event_id, n.project_id, row["hook_id"], n.event, body))
    await _insert_messages(conn, messages, now)


async def _insert_messages(
    conn: Connection, messages: Sequence[tuple[UUID, int, int, str, str]], now: datetime | None
) -> None:
    """Messages (event id, project, hook, event, body) and their jobs."""
    if not messages:
        return
    rows = [(_to_message_id(message[0], message[2]), *message) for message in messages]
    await conn.execute(SQL.insert_hook_messages, *zip(*rows, strict=True), now)
    await queue.insert_jobs(conn, [hook_job(row[0], row[2]) for row in rows], now)


def _to_message_id(event_id: UUID, hook_id: int) -> UUID:
    """In the event's family, and the same for the same event and hook."""
    print_ = hashlib.sha256(event_id.bytes + hook_id.to_bytes(8, "big")).digest()
    low = 0b10 << 62 | int.from_bytes(print_[:8], "big") >> 2
    return UUID(int=event_id.int >> 64 << 64 | low)


def _to_data(event: Event, row: Record) -> dict[str, Any]:
    data = {
        "notification": ids.to_public(ids.NOTIFICATION, event.notification_id),
        "delivery": ids.to_public(ids.DELIVERY, event.delivery_id),
        "channel": Channel(row["channel"]).name,
        "type": row["type_key"],
        "user": row["user_id"],
        "status": Status(row["status"]).name,
        "reason": event.reason,
        "provider": row["provider"],
        "attempt": event.attempt,
        "metadata": msgspec.json.decode(row["metadata"]) if row["metadata"] else {},
    }
    if row["test"]:
        data["test"] = True
    return data


def render_body(event_id: UUID, event: str, at: datetime, project: str, data: Mapping[str, Any]) -> str:
    """The request's body; what is signed, octet for octet."""
    body = {"id": ids.to_public(ids.EVENT, event_id), "type": event, "at": at, "project": project, "data": data}
    # PostgreSQL's text knows no U+0000, and metadata may hold anything.
    return msgspec.json.encode(body).replace(b"\\u0000", b"\\ufffd").decode()


# ---------------------------------------------------------------- sending


@dataclass(frozen=True, slots=True)
class Prepared:
    """A message ready to be posted, or with the reason why it will not be."""

    event_id: UUID | None
    """None: the message or its hook is gone; only the job is left."""
    body: bytes = b""
    hook: Hook | None = None
    """None: it is switched off."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What is to be written for one claimed job."""

    retry: Retry | None = None
    """None ends the job."""
    failed: str | None = None
    """Set: the message is kept as failed, for this reason."""
    attempted: bool = True
    disable: int | None = None
    """The hook to switch off."""


class HookSender:
    """The handler of the hooks' lane, in a worker process."""

    def __init__(
        self,
        database: Database,
        catalog: Catalog,
        surroundings: Surroundings,
        clock: Clock,
        *,
        timeout: timedelta = TIMEOUT,
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._clock = clock
        self._timeout = min(timeout, surroundings.timeout or timeout).total_seconds()
        self._poster = Poster(surroundings, self._timeout)
        self._limits: dict[int, Limits] = {}
        self._keys: dict[int, tuple[Hook, tuple[SigningKey, ...]]] = {}

    async def load_limits(self, lane: int, project_ids: Collection[int]) -> Mapping[int, Sequence[Limits]]:
        """As if each project had one account for its hooks, so that they share out the lane."""
        return {project_id: [self._limit(project_id)] for project_id in project_ids}

    async def load_account_limits(self, project_id: int, account_id: int) -> Limits | None:
        """The same of one project."""
        return self._limit(project_id)

    async def load_pace(self, project_id: int) -> float | None:
        """None: callbacks are no messages."""
        return None

    def _limit(self, project_id: int) -> Limits:
        limits = self._limits.get(project_id)
        if limits is None:
            # A number that no account has: the gate keeps what is in flight by it.
            limits = Limits(
                account_id=-project_id, project_id=project_id, concurrency=CONCURRENCY, rate=None, burst=1, weight=1
            )
            self._limits[project_id] = limits
        return limits

    async def prepare(self, jobs: Sequence[Job]) -> Sequence[Prepared]:
        """Load the messages of claimed jobs, with their hooks."""
        rows = await self._database.fetch(
            SQL.load_hook_messages, [job.id for job in jobs], [job.project_id for job in jobs]
        )
        prepared = [Prepared(None)] * len(jobs)
        hooks: dict[int, Hook | None] = {}
        for row in rows:
            if row["enabled"] is None:  # deleted
                continue
            hook_id = row["hook_id"]
            if hook_id not in hooks:
                hooks[hook_id] = await self._load_hook(row["project_id"], hook_id) if row["enabled"] else None
            prepared[row["ord"] - 1] = Prepared(row["event_id"], row["body"].encode(), hooks[hook_id])
        return prepared

    async def _load_hook(self, project_id: int, hook_id: int) -> Hook | None:
        for fresh in (False, True):
            if fresh:  # switched on a moment ago; the hint may still be on its way
                self._catalog.forget(project_id)
            for hook in await self._catalog.load_hooks(project_id):
                if hook.id == hook_id:
                    return hook
        return None

    def ended(self, job: Job, prepared: Prepared) -> Settlement | None:
        """Its message was deleted."""
        return Settlement() if prepared.event_id is None else None

    async def send(self, job: Job, prepared: Prepared, deadline: float) -> Outcome[Settlement] | None:
        """One attempt; None when too little of the lease is left to begin it."""
        if prepared.event_id is None:
            return Outcome(Settlement())
        if prepared.hook is None:
            return Outcome(Settlement(failed="the hook is switched off, or its secret does not open", attempted=False))
        if deadline - self._clock.monotonic() < self._timeout + MARGIN:
            return None
        result: SendResult
        try:
            keys = self._signing_keys(prepared.hook)
            id_ = ids.to_public(ids.EVENT, prepared.event_id)
            result = await self._poster.post(prepared.hook.url, prepared.body, id_, keys)
        except Exception as error:
            log.error("hook.post_broke", hook=prepared.hook.id, exc_info=error)
            result = Uncertain(f"the request failed: {type(error).__name__}")
        return Outcome(self.decide(job, prepared.hook, result))

    def decide(self, job: Job, hook: Hook, result: SendResult) -> Settlement:
        """What follows from an answer: everything but 410 and a target that is refused may mend itself."""
        made = job.attempt + 1
        after = DELAYS[job.attempt] * self._clock.random.uniform(0.9, 1.1) if job.attempt < len(DELAYS) else None
        match result:
            case Sent():
                return Settlement()
            case Rejected(reason=Reason.gone, detail=detail):
                return Settlement(failed=detail or "gone", disable=hook.id)
            case Rejected(reason=Reason.target_refused, detail=detail):
                return Settlement(failed=detail or "refused")
            case Deferred(retry_after=asked) | Throttled(retry_after=asked) if after is not None and asked is not None:
                after = max(after, asked)
        if after is None:
            return Settlement(failed=result.detail or type(result).__name__.lower())
        return Settlement(retry=Retry(job, after, None, made))

    def _signing_keys(self, hook: Hook) -> tuple[SigningKey, ...]:
        known = self._keys.get(hook.id)
        if known is None or known[0] is not hook:
            found = [parse_secret(hook.secret)]
            if hook.previous_secret is not None:
                found.append(parse_secret(hook.previous_secret))
            known = self._keys[hook.id] = (hook, tuple(found))
        rotating = hook.previous_until is not None and self._clock.now() < hook.previous_until
        return known[1] if rotating else known[1][:1]

    def unanswered(self, job: Job, prepared: Prepared) -> Settlement:
        """The settlement of a request that is broken off: it is made again."""
        return Settlement(retry=Retry(job, timedelta(), None, job.attempt))

    async def settle(self, batch: Sequence[tuple[Job, Prepared, Settlement]]) -> Collection[int]:
        """Record a batch in one transaction."""
        batch = sorted(batch, key=lambda item: item[0].id)

        async def work(conn: Connection) -> None:
            now = self._clock.db_now()
            ours = await queue.finish_jobs(conn, [job for job, _, s in batch if s.retry is None])
            await queue.retry_jobs(conn, [s.retry for _, _, s in batch if s.retry is not None], now)
            ended = [(job, s) for job, _, s in batch if (job.id, job.epoch) in ours]
            await _delete_messages(conn, [job for job, s in ended if s.failed is None])
            await _fail_messages(conn, [(job, s.failed, s.attempted) for job, s in ended if s.failed is not None], now)
            for project_id, hook_id, why in sorted(
                {(job.project_id, s.disable, s.failed or "") for job, s in ended if s.disable is not None}
            ):
                await disable_hook(conn, project_id, hook_id, why)

        await self._database.transaction(work)
        return {job.lane for job, _, s in batch if s.retry is not None and not s.retry.after}


async def apply_expired_messages(conn: Connection, jobs: Sequence[Job], now: datetime | None) -> None:
    """What the sweeper does with jobs of this kind whose worker died: the request may have been made, and is made
    again."""
    jobs = sorted(jobs, key=lambda job: job.id)
    over = [job for job in jobs if job.attempt >= len(DELAYS)]
    again = [job for job in jobs if job.attempt < len(DELAYS)]
    await queue.retry_jobs(conn, [Retry(job, DELAYS[job.attempt], None, job.attempt + 1) for job in again], now)
    await queue.finish_jobs(conn, over)
    await _fail_messages(conn, [(job, "the worker died, or lost the database", True) for job in over], now)


async def _delete_messages(conn: Connection, jobs: Sequence[Job]) -> None:
    if jobs:
        await conn.execute(SQL.delete_hook_messages, [job.id for job in jobs], [job.project_id for job in jobs])


async def _fail_messages(conn: Connection, failed: Sequence[tuple[Job, str, bool]], now: datetime | None) -> None:
    if failed:
        rows = [(job.id, job.project_id, job.attempt + attempted, why) for job, why, attempted in failed]
        await conn.execute(SQL.fail_hook_messages, *zip(*rows, strict=True), now)


# ---------------------------------------------------------------- looking after them


class FailedMessage(NamedTuple):
    """A message that was given up; the order of the fields is that of list_failed_messages' columns."""

    id: UUID
    event_id: UUID
    event: str
    attempts: int
    detail: str | None
    created_at: datetime
    failed_at: datetime


async def list_failed_messages(
    database: Database, project_id: int, key: str, *, before: UUID | None = None, limit: int = 50
) -> list[FailedMessage]:
    """What a hook could not be told, newest first.

    Raises:
        NotFound: there is no such hook.
    """
    hook = await load_hook(database, project_id, key)
    return [
        FailedMessage(*row)
        for row in await database.fetch(SQL.list_failed_messages, project_id, hook.id, before, limit)
    ]


async def replay_messages(
    database: Database, actor: Actor, clock: Clock, key: str, message_ids: Collection[UUID] | None
) -> int:
    """Tell a hook again what it could not be told, with all attempts anew; answers with how many messages.

    Args:
        message_ids: these; None: all that have failed by now.

    Raises:
        NotFound: there is no such hook.
        Conflict: it is switched off.
    """
    hook = await load_hook(database, actor.project_id, key)
    if not hook.enabled:
        raise Conflict("The hook is switched off; enable it first.")
    began_at = clock.db_now() or clock.now()
    replayed = 0

    async def work(conn: Connection) -> int:
        chosen = None if message_ids is None else list(message_ids)
        rows = await conn.fetch(SQL.replay_messages, actor.project_id, hook.id, chosen, began_at, REPLAY_BATCH)
        if rows:
            jobs = [hook_job(row["id"], actor.project_id) for row in rows]
            await queue.insert_jobs(conn, jobs, clock.db_now())
            await apply_audit(conn, actor, "hook.replay", f"hook:{key}", after={"messages": len(rows)})
        return len(rows)

    while True:
        done = await database.transaction(work)
        replayed += done
        if done < REPLAY_BATCH:
            return replayed


async def send_test(conn: Connection, actor: Actor, clock: Clock, key: str) -> UUID:
    """Tell a hook the event `hook.test`; answers with the event's id.

    Raises:
        NotFound: there is no such hook.
        Conflict: it is switched off.
    """
    hook = await load_hook(conn, actor.project_id, key)
    if not hook.enabled:
        raise Conflict("The hook is switched off; enable it first.")
    now = clock.db_now()
    at = now or clock.now()
    event_id = ids.new_id(at, clock.random)
    project = await load_project(conn, actor.project_id)
    body = render_body(event_id, HOOK_TEST, at, project.key, {})
    await _insert_messages(conn, [(event_id, actor.project_id, hook.id, HOOK_TEST, body)], now)
    return event_id


async def forget_messages(database: Database, now: datetime) -> None:
    """Delete the messages that were given up long ago."""
    while await database.fetchval(SQL.forget_messages, now - KEPT_FOR, FORGET_BATCH) == FORGET_BATCH:
        pass
