"""A sending lane: claims into free slots, sends, settles.

It is a row of `step()`s, which a simulation calls by itself. The handler says what the work is; this file only says
when and how many. Between two steps a lane holds jobs being sent and results waiting to be settled; both keep their
leases extended. If the process dies, the leases run out and the sweeper takes over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Generic, Protocol, TypeVar
from uuid import UUID

import asyncpg
import structlog

from tidings.clock import Clock
from tidings.db.pool import Database, to_loggable
from tidings.engine import gate as gates
from tidings.engine import jobs as queue
from tidings.engine.batch import Batcher
from tidings.engine.checkpoint import Checkpoint, no_checkpoint
from tidings.engine.gate import NOTHING_TOLD, Gate, Limits, ProjectGate
from tidings.engine.jobs import Claim, Job
from tidings.engine.shares import Credits, Share, Waiting, decide_shares
from tidings.engine.wakes import BUSY_POLL, IDLE_POLL, Wakes, wait_first

Prepared = TypeVar("Prepared")
Result = TypeVar("Result")

log = structlog.get_logger(__name__)

CLAIM_GAP: Final = 0.004
"""Seconds between two claims of a lane, so that work gathers into batches; a lane that was idle claims at once."""
SATURATED_GAP: Final = 0.02
"""The same while most slots are busy: what still comes in then is looked at for critical work."""
PROJECTS_AT_ONCE: Final = 64
"""Projects of a class looked at in one discovery; the rest in the next ones."""
SETTLE_AGAIN: Final = 0.2
"""Seconds until results that could not be recorded are tried again."""
_UNRECORDABLE: Final = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    ValueError,
)
"""What the database or the driver says to a value that it cannot store, however often it is tried."""
LOOK_AFTER: Final = 2.0
"""While all accounts of a project are shut for longer than this many seconds, its work is looked at all the same: some
of it has expired, and some is pinned to an account that is not shut."""
LOOK_AT: Final = 64
"""So many jobs of a project a second, the oldest first; the rest of them goes back for LOOK_AGAIN at most."""
LOOK_AGAIN: Final = 60.0
FORGET_AFTER: Final = 600.0
"""Seconds after which a gate that nobody used is forgotten: its account may be gone."""
HELD_LIMIT: Final = 4
"""A lane claims nothing while more than this many times its slots wait to be settled."""


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """A result to settle, and what it says about the account."""

    result: Result
    account_failed: bool | None = None
    """True: counts against the account's breaker; False: the account works; None: says nothing."""
    pause: float | None = None
    """Seconds for which the account asked to be left alone."""
    exhausted: float | None = None
    """Seconds for which a quota of the account has run out; nothing was sent."""


class SendHandler(Protocol[Prepared, Result]):
    """What a sending lane does with its jobs."""

    async def load_limits(self, lane: int, project_ids: Collection[int]) -> Mapping[int, Sequence[Limits]]:
        """Each project's usable accounts for this lane."""
        ...

    async def load_account_limits(self, project_id: int, account_id: int) -> Limits | None:
        """One account, for a job that is pinned to it; None when it is gone or switched off."""
        ...

    async def load_pace(self, project_id: int) -> float | None:
        """Messages per second that the project as a whole may send; None: no limit."""
        ...

    async def prepare(self, jobs: Sequence[Job]) -> Sequence[Prepared]:
        """Load what the jobs are about, all at once, in order."""
        ...

    async def send(self, job: Job, prepared: Prepared, deadline: float) -> Outcome[Result] | None:
        """Do it. None: not enough of the lease is left (`deadline`, monotonic seconds); give the job back."""
        ...

    def ended(self, job: Job, prepared: Prepared) -> Result | None:
        """The result for a job whose account takes nothing now, if that does not matter: it has expired, say."""
        ...

    def unanswered(self, job: Job, prepared: Prepared) -> Result:
        """The result for a send that is broken off because the process must stop now."""
        ...

    async def settle(self, batch: Sequence[tuple[Job, Prepared, Result]]) -> Collection[int]:
        """Record a batch in one transaction; answers with the lanes that have new work."""
        ...


@dataclass(slots=True)
class _Held:
    """A claimed job until it is settled or given back."""

    job: Job
    since: float
    """Monotonic seconds of the claim, or of the last extension of its lease."""
    gate: Gate | None = None
    in_slot: bool = True
    """Occupies a slot: it is not sent yet."""


class SendLane(Generic[Prepared, Result]):
    """One channel's lane in one worker: claims into free slots, sends, settles."""

    def __init__(
        self,
        lane: int,
        handler: SendHandler[Prepared, Result],
        database: Database,
        clock: Clock,
        wakes: Wakes,
        *,
        slots: int,
        lease: timedelta,
        settle_window: float = 0.004,
        checkpoint: Checkpoint = no_checkpoint,
        observe_batch: Callable[[str, int], None] | None = None,
    ) -> None:
        self.lane = lane
        self._handler = handler
        self._database = database
        self._clock = clock
        self._wakes = wakes
        self._slots = slots
        self._lease = lease
        self._checkpoint = checkpoint
        self._observe_batch = observe_batch
        self._event = wakes.event(lane)
        self._room = asyncio.Event()
        """A quarter of the slots has become free: worth a claim, however short ago the last one was."""
        self._gates: dict[int, Gate] = {}
        self._projects: dict[int, ProjectGate] = {}
        """Of projects that have a pace, or had one."""
        self._told_at = 0.0
        self._forgotten_at = 0.0
        self._looked_at: dict[int, float] = {}
        """When a project was looked at whose accounts are all shut."""
        self._credits = Credits()
        self._turn = 0
        self._after_project = 0
        self._in_flight = 0
        self._ordinary_in_flight = 0
        self._held: dict[tuple[UUID, int], _Held] = {}
        """By claim: a job that was lost to the sweeper may come again while its first send is still under way."""
        self._sends: dict[asyncio.Task[None], tuple[Job, Prepared]] = {}
        self._broken_off = False
        self._blocked = False
        self.settling: Batcher[tuple[Job, Prepared, Result], None] = Batcher(
            self._settle,
            limit=max(64, slots),
            window=settle_window,
            flushers=2,
        )

    @property
    def in_flight(self) -> int:
        """Sends under way."""
        return self._in_flight

    async def run(self, stop: asyncio.Event) -> None:
        """Step until `stop` is set; survives a database that goes away."""
        last_claim = 0.0
        while not stop.is_set():
            gap = CLAIM_GAP if self._free >= self._slots // 4 else SATURATED_GAP
            early = last_claim + gap - self._clock.monotonic()
            if early > 0:
                self._room.clear()
                await wait_first(stop, self._room, timeout=early)
            self._event.clear()
            try:
                claimed = await self.step()
            except Exception as error:
                log.warning(
                    "worker.claim_failed", lane=self.lane, error=type(error).__name__, detail=to_loggable(error)
                )
                claimed = 0
                await wait_first(stop, timeout=0.5)
            if claimed:
                last_claim = self._clock.monotonic()
            else:
                await wait_first(
                    stop, self._event, timeout=BUSY_POLL if self._blocked or self._in_flight else IDLE_POLL
                )

    async def step(self) -> int:
        """Claim once and start what was claimed; answers with how many."""
        self._blocked = False
        if self._free < 1 or len(self._held) >= HELD_LIMIT * self._slots:
            self._blocked = True
            return 0
        waiting = await self._discover()
        if not waiting:
            return 0
        shares = await self._share(waiting)
        if not shares:
            self._blocked = True
            return 0
        await self._checkpoint("claim.before")
        claimed_at = self._clock.monotonic()
        jobs = await queue.claim_jobs(self._database, shares, lease=self._lease, now=self._clock.db_now())
        if not jobs:
            return 0
        if self._observe_batch is not None:
            self._observe_batch("claim", len(jobs))
        for job in jobs:
            self._held[job.id, job.epoch] = _Held(job, claimed_at)
            self._in_flight += 1
            self._ordinary_in_flight += job.priority > 0
        try:
            await self._checkpoint("claim.after")
            jobs = await self._book(jobs)
            prepared = await self._handler.prepare(jobs)
        except Exception:
            await self._give_back(jobs)
            raise
        deadline = claimed_at + self._lease.total_seconds()
        for job, what in zip(jobs, prepared, strict=True):
            task = asyncio.create_task(self._send(job, what, deadline))
            self._sends[task] = (job, what)
            task.add_done_callback(self._forget)
        return len(jobs)

    async def extend(self) -> None:
        """Renew the leases of everything held for longer than a quarter of a lease."""
        now = self._clock.monotonic()
        old = [held.job for held in self._held.values() if now - held.since > self._lease.total_seconds() / 4]
        if not old:
            return
        old.sort(key=lambda job: (job.id, job.epoch))
        ours = await queue.extend_leases(self._database, old, lease=self._lease, now=self._clock.db_now())
        for job in old:
            if job.id in ours and (held := self._held.get((job.id, job.epoch))) is not None:
                held.since = now

    async def drain(self, grace: float) -> None:
        """Finish what is in flight; break off what takes longer than `grace` seconds; settle everything."""
        until = self._clock.monotonic() + grace
        if self._sends:
            await asyncio.wait(tuple(self._sends), timeout=grace)
        self._broken_off = True
        for task in tuple(self._sends):
            task.cancel()
        while self._sends:
            await asyncio.wait(tuple(self._sends))
        await self.settling.drain()
        while self._held and self._clock.monotonic() < until:  # the database refused; as long as there is time
            await asyncio.sleep(SETTLE_AGAIN / 2)
            await self.settling.drain()

    # ------------------------------------------------------------ claiming

    @property
    def _free(self) -> int:
        return self._slots - self._in_flight

    async def _discover(self) -> list[Waiting]:
        while True:
            waiting = await queue.load_waiting(
                self._database,
                (self.lane, self.lane),
                count=self._free,
                projects=PROJECTS_AT_ONCE,
                after_project=self._after_project,
                ahead=0,
                now=self._clock.db_now(),
            )
            began_after = self._after_project
            self._after_project = queue.decide_next_page(waiting, PROJECTS_AT_ONCE)
            if waiting or not began_after:
                return waiting

    async def _share(self, waiting: Sequence[Waiting]) -> list[Share]:
        now = self._clock.monotonic()
        projects = {w.project_id for w in waiting}
        limits = await self._handler.load_limits(self.lane, projects)
        by_project = {p: [self._gate(one) for one in limits.get(p, ())] for p in projects}
        await self._refresh_told(now)
        await self._lease_tokens(by_project, now)
        paces = await self._lease_project_tokens(projects, now)
        chosen: dict[int, Gate | None] = {}
        for project, mine in by_project.items():
            usable = [g for g in mine if g.budget(now) > 0 and g.limits.weight > 0]
            if usable:
                weights = [g.weight for g in usable]
                chosen[project] = self._clock.random.choices(usable, weights)[0]
            elif not mine:
                chosen[project] = None  # pinned work may still go; the rest ends for want of an account
        left = {p: (g.budget(now) if g else self._slots) for p, g in chosen.items()}
        for project, pace in paces.items():
            if project in left:
                left[project] = min(left[project], pace)
        for project, gate in self._look(by_project, now).items():
            chosen[project], left[project] = gate, LOOK_AT
        self._turn += 1
        decided = decide_shares(
            waiting,
            free=self._free,
            slots=self._slots,
            ordinary_in_flight=self._ordinary_in_flight,
            credits=self._credits,
            turn=self._turn,
            pool=lambda w: w.project_id,
            budget=lambda w: left.get(w.project_id, 0),
        )
        accounts = {p: g.limits.account_id if g else None for p, g in chosen.items()}
        return [Share(w.lane, w.priority, w.project_id, accounts[w.project_id], n) for w, n in decided]

    def _look(self, by_project: Mapping[int, list[Gate]], now: float) -> dict[int, Gate]:
        """The projects whose accounts are all shut for a while, and whose turn it is to be looked at."""
        found = {}
        for project, mine in by_project.items():
            gate = min(mine, key=lambda g: g.shut_for(now), default=None)
            if gate is None or gate.shut_for(now) < LOOK_AFTER:
                self._looked_at.pop(project, None)
            elif now - self._looked_at.get(project, -1.0) >= 1.0:
                self._looked_at[project] = now
                found[project] = gate
        return found

    def _gate(self, limits: Limits) -> Gate:
        found = self._gates.get(limits.account_id)
        if found is None:
            found = self._gates[limits.account_id] = Gate(limits)
        elif found.limits is not limits:
            found.change(limits)
        found.used_at = self._clock.monotonic()
        return found

    async def _refresh_told(self, now: float) -> None:
        """Once a second: what have other workers found out about the accounts? And which gates does nobody use?"""
        if now < self._told_at:
            return
        self._told_at = now + 1.0
        if now >= self._forgotten_at:
            self._forgotten_at = now + FORGET_AFTER
            unused = [
                a
                for a, g in self._gates.items()
                if not g.in_flight and not g.shut_for(now) and now - g.used_at > FORGET_AFTER
            ]
            for account_id in unused:
                del self._gates[account_id]
            self._looked_at = {p: at for p, at in self._looked_at.items() if now - at < FORGET_AFTER}
            self._projects = {p: g for p, g in self._projects.items() if now - g.used_at < FORGET_AFTER}
        told = await gates.load_told(self._database, sorted(self._gates), self._clock.db_now())
        for account_id, gate in self._gates.items():
            gate.hear(told.get(account_id, NOTHING_TOLD), now)

    async def _lease_tokens(self, by_project: Mapping[int, list[Gate]], now: float) -> None:
        # Also those that are no free choice (the simulator) but are used by pinned work.
        wants = {a: g for a, g in self._gates.items() if g.limits.project_id in by_project and g.wants_tokens(now)}
        if not wants:
            return
        asked = {a: (g.paced(), g.wants_tokens(now)) for a, g in wants.items()}
        granted = await gates.lease_pace(self._database, asked, self._clock.db_now())
        for account_id, gate in wants.items():
            gate.grant_tokens(granted.get(account_id, 0), now)

    async def _lease_project_tokens(self, projects: Collection[int], now: float) -> Mapping[int, int]:
        """What each of these projects that has a pace may send now."""
        new: list[int] = []
        for project in projects:
            rate = await self._handler.load_pace(project)
            found = self._projects.get(project)
            if found is None and rate is not None:
                found = self._projects[project] = ProjectGate(project, rate)
                new.append(project)
            if found is not None:
                found.rate, found.used_at = rate, now
        if new:
            await gates.create_project_pace(self._database, new)
        mine = [self._projects[p] for p in projects if p in self._projects]
        wants = {
            g.project_id: (g.rate, n) for g in mine if g.rate is not None and (n := g.wants_tokens(self._free, now))
        }
        if wants:
            granted = await gates.lease_project_pace(self._database, wants, self._clock.db_now())
            for project in wants:
                self._projects[project].purse.grant(granted.get(project, 0), now)
        return {g.project_id: budget for g in mine if (budget := g.budget(now)) is not None}

    async def _book(self, jobs: list[Job]) -> list[Job]:
        """Count the claimed jobs against their accounts; those whose account cannot take them now go back for later."""
        for job in jobs:
            if job.account_id is not None and job.account_id not in self._gates:
                limits = await self._handler.load_account_limits(job.project_id, job.account_id)
                if limits is not None:
                    self._gate(limits)
        now = self._clock.monotonic()
        shut: dict[Claim, tuple[Job, float]] = {}
        for job in jobs:
            gate = self._gates.get(job.account_id or 0)
            if gate is None:
                continue
            wait = gate.shut_for(now)
            if not wait and job.pinned and not gate.budget(now):  # the claim counted on another account's budget
                wait = BUSY_POLL
            project = self._projects.get(job.project_id)
            if not wait and project is not None and not project.start():
                wait = BUSY_POLL
            gate.start(1)
            self._held[job.id, job.epoch].gate = gate
            if wait:
                # Whether the account that it was not pinned to is shut for long matters little to it.
                shut[job.id, job.epoch] = job, wait if job.pinned else min(wait, LOOK_AGAIN)
        if not shut:
            return jobs
        await self._put_off(list(shut.values()))
        return [job for job in jobs if (job.id, job.epoch) not in shut]

    async def _put_off(self, shut: Sequence[tuple[Job, float]]) -> None:
        """Settle what has ended all the same; give the rest back, each for so many seconds."""
        prepared = await self._handler.prepare([job for job, _ in shut])
        now = self._clock.monotonic()
        retries: list[queue.Retry] = []
        for (job, wait), what in zip(shut, prepared, strict=True):
            result = self._handler.ended(job, what)
            if result is not None:
                self._end_slot(job, None, now=now)
                self._add_settled(job, what, result)
                continue
            gate = self._held[job.id, job.epoch].gate
            # Until the end of the month is too long to wait for one account, where there may be another.
            pin = job.pin if gate is None or gate.spent_until is None else None
            after = timedelta(seconds=wait * self._clock.random.uniform(1.0, 1.2))
            retries.append(queue.Retry(job, after, pin, job.attempt))
        await self._give_back([r.job for r in retries], retries)

    async def _give_back(self, jobs: Sequence[Job], retries: Sequence[queue.Retry] | None = None) -> None:
        """Return claimed jobs that nothing was done for."""
        now = self._clock.monotonic()
        for job in jobs:
            self._end_slot(job, None, now=now)
            self._held.pop((job.id, job.epoch), None)
        with contextlib.suppress(Exception):  # else the leases run out by themselves
            if retries is None:
                await queue.release_jobs(self._database, sorted(jobs, key=lambda job: job.id))
            else:
                retries = sorted(retries, key=lambda r: r.job.id)
                await queue.retry_jobs(self._database, retries, self._clock.db_now())

    # ------------------------------------------------------------ sending

    async def _send(self, job: Job, what: Prepared, deadline: float) -> None:
        try:
            await self._checkpoint("send.before")
            outcome = await self._handler.send(job, what, deadline)
            await self._checkpoint("send.after")
        except asyncio.CancelledError:
            if not self._broken_off:
                raise
            outcome = Outcome(self._handler.unanswered(job, what))
        now = self._clock.monotonic()
        if outcome is None:
            await self._give_back([job])
            return
        self._end_slot(job, outcome, now=now)
        self._add_settled(job, what, outcome.result)

    def _forget(self, task: asyncio.Task[None]) -> None:
        job, _ = self._sends.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A bug in a handler: the lease runs out and the sweeper records that the outcome is unknown.
            self._end_slot(job, None, now=self._clock.monotonic())
            self._held.pop((job.id, job.epoch), None)
            if isinstance(error, Exception):
                log.error("worker.send_broke", lane=self.lane, job=str(job.id), exc_info=error)

    def _end_slot(self, job: Job, outcome: Outcome[Result] | None, *, now: float) -> None:
        held = self._held.get((job.id, job.epoch))
        if held is None or not held.in_slot:
            return
        held.in_slot = False
        was_full = self._free < max(1, self._slots // 4)
        self._in_flight -= 1
        self._ordinary_in_flight -= job.priority > 0
        if held.gate is not None and outcome is None:
            held.gate.release()
        elif held.gate is not None and outcome is not None:
            if held.gate.end(failed=outcome.account_failed, now=now):
                self._tell_opening(held.gate, now)
            if outcome.pause is not None:
                held.gate.pause(outcome.pause, now)
            held.gate.exhaust(outcome.exhausted, now)
        if was_full and self._free >= self._slots // 4:
            self._event.set()
            self._room.set()

    def _tell_opening(self, gate: Gate, now: float) -> None:
        span = timedelta(seconds=(gate.breaker.open_until or now) - now)
        log.warning("account.breaker_opened", account=gate.limits.account_id, seconds=span.total_seconds())

        async def tell() -> None:
            with contextlib.suppress(Exception):  # the others will find out by themselves
                await gates.apply_opening(self._database, gate.limits, span, self._clock.db_now())

        _background(tell())

    # ------------------------------------------------------------ settling

    def _add_settled(self, job: Job, what: Prepared, result: Result) -> None:
        self.settling.add((job, what, result)).add_done_callback(lambda done: self._settled(job, what, result, done))

    async def _settle(self, batch: Sequence[tuple[Job, Prepared, Result]]) -> Sequence[None]:
        await self._checkpoint("settle.before")
        try:
            lanes = await self._handler.settle(batch)
        except Exception as error:  # told once for all of them; each goes back to be settled again
            log.warning(
                "worker.settle_failed",
                lane=self.lane,
                jobs=len(batch),
                error=type(error).__name__,
                detail=to_loggable(error),
            )
            raise
        await self._checkpoint("settle.after")
        if self._observe_batch is not None:
            self._observe_batch("settle", len(batch))
        self._wakes.announce(lanes)
        return [None] * len(batch)

    def _settled(self, job: Job, what: Prepared, result: Result, done: asyncio.Future[None]) -> None:
        if done.cancelled() or (error := done.exception()) is None:
            self._held.pop((job.id, job.epoch), None)
            return
        if not isinstance(error, Exception):
            return
        if isinstance(error, _UNRECORDABLE):
            # It would never be taken. Held, it would fill the lane; so the lease runs out, and the sweeper records what
            # can be: that it is not known.
            log.error("worker.result_lost", lane=self.lane, job=str(job.id), error=type(error).__name__)
            self._held.pop((job.id, job.epoch), None)
            return

        # The database refused or went away. The result is all we know of a message that may be out: keep it and its
        # lease, and try again until it is recorded or the lease is lost to another worker (then it is a late answer).
        async def again() -> None:
            await asyncio.sleep(SETTLE_AGAIN)
            self._add_settled(job, what, result)

        _background(again())


_tasks: set[asyncio.Task[None]] = set()


def _background(work: Any) -> None:
    task = asyncio.create_task(work)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
