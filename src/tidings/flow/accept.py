"""Accept: a request becomes a notification and its plan job, committed before the caller hears 202.

Everything that can be refused is refused before the group commit (see `request.py`; here only what needs the
database: the type, the user). What reaches the batch is expected to succeed; if the database refuses it all the same,
the batch is halved until only the bad request is refused.

An idempotency key is claimed in the same transaction. A duplicate waits for the first and gets its answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

import asyncpg
import msgspec

from tidings import ids
from tidings.clock import Clock
from tidings.db.pool import Connection, Database, Record
from tidings.db.sql import load_queries
from tidings.directory.access import Caller
from tidings.directory.blobs import claim_blobs, put_blobs
from tidings.directory.catalog import Catalog, TemplateVersion, TypeVersion
from tidings.engine.batch import Batcher
from tidings.engine.checkpoint import Checkpoint, no_checkpoint
from tidings.engine.jobs import insert_jobs
from tidings.engine.wakes import Wakes
from tidings.errors import (
    CommitUnknown,
    DatabaseError,
    FieldError,
    IdempotencyBusy,
    IdempotencyMismatch,
    Internal,
    Invalid,
    Problem,
    Unavailable,
)
from tidings.flow.breaker import Breaker
from tidings.flow.measure import Counts, Dimension, Meter
from tidings.flow.options import list_blobs
from tidings.flow.request import KEY_FORM, Draft, Request, decide_acceptance, refuse, to_fingerprint, to_key_error
from tidings.model.words import EventKind, Scope

SQL: Final = load_queries(__package__, "accept.sql")
BATCH_LIMIT: Final = 1_000
"""Notifications in one batch request."""
GROUP_LIMIT: Final = 2_000
"""Notifications in one group commit."""
KEY_WAIT: Final = 1.0
"""Seconds for which a request waits for the first one with its idempotency key."""
KEY_WAIT_AGAIN: Final = 0.05
"""The same for the parts of a batch that has waited in vain, so that its other requests soon go their way."""
FORGET_BATCH: Final = 20_000
"""Idempotency keys deleted in one statement."""
KNOWN_USERS: Final = 100_000
KNOWN_USER_TTL: Final = 30.0
"""Seconds for which a user that was seen is taken to exist; planning looks again."""


class Accepted(msgspec.Struct, omit_defaults=True):
    """The answer to an accepted request; for a repeated one the first's answer, marked as replayed."""

    id: str
    status: str
    idempotent_replayed: bool = False


class _Undo(Exception):
    """Rolls a transaction back that only had to look."""

    def __init__(self, taken: dict[tuple[int, str], tuple[bytes, Accepted]]) -> None:
        super().__init__()
        self.taken = taken


Answer = Accepted | Problem

_encode: Final = msgspec.json.Encoder().encode
_decode_accepted: Final = msgspec.json.Decoder(Accepted).decode


class Acceptor:
    """The first stage, in an API process.

    Args:
        window: seconds that a lone request waits for company.
        horizon: how far ahead `send_at` may be.
        breaker: stops runaway loops; one of its own where none is given.
    """

    def __init__(
        self,
        database: Database,
        catalog: Catalog,
        meter: Meter,
        clock: Clock,
        wakes: Wakes,
        *,
        window: float = 0.0,
        horizon: timedelta = timedelta(days=89),
        breaker: Breaker | None = None,
        checkpoint: Checkpoint = no_checkpoint,
        observe_batch: Callable[[str, int], None] | None = None,
    ) -> None:
        self._breaker = breaker or Breaker()
        self._database = database
        self._catalog = catalog
        self._meter = meter
        self._clock = clock
        self._wakes = wakes
        self._horizon = horizon
        self._checkpoint = checkpoint
        self._known_users: dict[tuple[int, str], float] = {}
        self._batcher: Batcher[Sequence[Draft], Sequence[Answer]] = Batcher(
            self._flush,
            limit=GROUP_LIMIT,
            weigh=len,
            window=window,
            flushers=2,
            observe=(lambda n: observe_batch("accept", n)) if observe_batch else None,
        )

    async def accept(
        self,
        caller: Caller,
        requests: Sequence[Request | Problem],
        *,
        key: str | None,
        traceparent: str | None,
        prints: Sequence[bytes] | None = None,
    ) -> list[Answer]:
        """Accept each request or say why not; answers in input order.

        Args:
            caller: who asks; has been authenticated.
            requests: decoded requests, or the problem that decoding one met.
            key: the `Idempotency-Key` header; covers every request that brings no key of its own.
            traceparent: W3C trace context to carry along.
            prints: by which each request with a key of its own is known to be the same as an earlier one; None: by all
                that it says.
        """
        caller.require(Scope.send)
        if key is not None and not KEY_FORM.fullmatch(key):
            raise Invalid("The idempotency key is not usable.", errors=[to_key_error("Idempotency-Key")])
        settings = (await self._catalog.load_project(caller.project_id)).settings
        users = await self._load_users(caller.project_id, requests)
        blobs = await self._claim_blobs(caller.project_id, requests)
        answers: list[Answer | None] = []
        drafts: list[Draft] = []
        places: list[int] = []
        refused: list[tuple[int, str, bytes]] = []
        now = self._clock.now()
        whole = to_fingerprint(requests, test=caller.test) if key is not None and len(requests) != 1 else None
        for i, request in enumerate(requests):
            if isinstance(request, Problem):
                answers.append(request)
                continue
            own = request.idempotency_key
            used = fingerprint = None
            if own is not None or key is not None:
                used = own if own is not None else key if len(requests) == 1 else f"{key}#{i}"
                if prints is not None:
                    fingerprint = prints[i]
                else:
                    fingerprint = whole if own is None and whole else to_fingerprint(request, test=caller.test)
            try:
                draft = await self._draft(caller, request, users, blobs, now, traceparent)
                row = draft.row
                target = f"u:{row.user_id}" if row.user_id is not None else f"{row.to_channel}:{row.to_address}"
                subject = caller.project_id, row.type_version_id, target
                self._breaker.count(subject, settings.runaway_above, self._clock.monotonic(), type_key=request.type)
            except Problem as problem:
                answers.append(problem)
                if used is not None and fingerprint is not None and KEY_FORM.match(used):
                    refused.append((i, used, fingerprint))
                continue
            answers.append(None)
            drafts.append(draft._replace(key=used, fingerprint=fingerprint, taken_at=self._clock.monotonic()))
            places.append(i)
        if refused:
            await self._replay(caller.project_id, refused, answers)
        if drafts:
            try:
                if any(draft.blobs for draft in drafts):
                    # Before the group commit, which others wait for. Should the request not be stored after all, they
                    # stay unused and are forgotten.
                    await put_blobs(self._database, caller.project_id, (b for draft in drafts for b in draft.blobs))
                    drafts = [draft._replace(blobs=()) for draft in drafts]
                told = await self._batcher.add(drafts)
            except Problem:
                raise
            except CommitUnknown as error:
                raise Unavailable(
                    "It is not known whether the request was stored; repeat it with the same idempotency key.",
                    retry_after=1,
                ) from error
            except asyncpg.LockNotAvailableError as error:
                raise IdempotencyBusy(retry_after=1) from error
            except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, ValueError, OverflowError) as error:
                if isinstance(error, asyncpg.CheckViolationError) and not error.constraint_name:
                    # No constraint's: the day has no partition, which no request can mend.
                    raise Unavailable(retry_after=1) from error
                raise Invalid("The database cannot store this request.") from error
            except (
                asyncpg.PostgresError,
                asyncpg.InterfaceError,
                asyncpg.InternalClientError,  # a connection that broke at the wrong moment
                DatabaseError,
                OSError,
            ) as error:
                raise Unavailable(retry_after=1) from error
            for place, answer in zip(places, told, strict=True):
                answers[place] = answer
        return [answer if answer is not None else Internal() for answer in answers]

    async def draft(self, caller: Caller, request: Request) -> Draft:
        """What accepting a request would store; nothing is.

        Raises:
            Problem: it would be refused.
        """
        caller.require(Scope.send)
        users = await self._load_users(caller.project_id, [request])
        blobs = await self._claim_blobs(caller.project_id, [request])
        return await self._draft(caller, request, users, blobs, self._clock.now(), None)

    async def drain(self) -> None:
        """Wait until everything taken in has been answered."""
        await self._batcher.drain()

    # ------------------------------------------------------------ deciding

    async def _draft(
        self,
        caller: Caller,
        request: Request,
        users: Collection[str],
        blobs: Mapping[bytes, int],
        now: datetime,
        traceparent: str | None,
    ) -> Draft:
        type_: TypeVersion | None = None
        template: TemplateVersion | None = None
        if request.type is not None:
            type_, template = await load_content(self._catalog, caller.project_id, request.type)
        user = request.to.user
        if user is not None and user not in users:
            raise refuse("/to/user", f"There is no user {user!r} in this project; create it with PUT /api/v1/users.")
        return decide_acceptance(
            caller,
            request,
            type_,
            template,
            now=now,
            horizon=self._horizon,
            id_=ids.new_id(now, self._clock.random),
            traceparent=traceparent,
            blobs=blobs,
        )

    async def _claim_blobs(self, project_id: int, requests: Sequence[Request | Problem]) -> Mapping[bytes, int]:
        """The sizes of the blobs that are named and that the project has."""
        named = {
            hash_
            for r in requests
            if not isinstance(r, Problem) and r.attachments
            for hash_ in list_blobs(r.attachments)
        }
        if not named:
            return {}
        try:
            return await claim_blobs(self._database, project_id, named)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise Unavailable(retry_after=1) from error

    async def _load_users(self, project_id: int, requests: Sequence[Request | Problem]) -> Collection[str]:
        """The users among those named that exist; those that have not been seen lately are looked up, all at once."""
        now = self._clock.monotonic()
        known = self._known_users
        named = {r.to.user for r in requests if not isinstance(r, Problem) and r.to.user is not None}
        seen = {name for name in named if known.get((project_id, name), 0.0) > now}
        unseen = named - seen
        if not unseen:
            return seen
        if len(known) > KNOWN_USERS:
            known.clear()
        names = sorted(name for name in unseen if "\x00" not in name)
        try:
            rows = await self._database.fetch(SQL.load_users, [project_id] * len(names), names)
        except asyncpg.DataError as error:  # an unpaired surrogate, say
            raise Invalid(
                "A user id is not valid text.", errors=[FieldError("Use valid UTF-8.", "/to/user")]
            ) from error
        found = {row["id"] for row in rows}
        for name in unseen:
            if name in found:
                known[project_id, name] = now + KNOWN_USER_TTL
            else:
                known.pop((project_id, name), None)
        return seen | found

    async def _replay(
        self, project_id: int, refused: Sequence[tuple[int, str, bytes]], answers: list[Answer | None]
    ) -> None:
        """What was accepted once stays accepted, also when a repetition would be refused: its `expires_at` has passed
        meanwhile, its type was archived. A first request that is just being stored is waited for, as by any duplicate.
        """
        places = {(project_id, key): fingerprint for _, key, fingerprint in refused}

        async def look(conn: Connection) -> None:
            # Claiming a key waits for whoever claims it now. Nothing of it is kept.
            raise _Undo(await _find_taken(conn, places, self._clock.db_now(), KEY_WAIT))

        known: dict[tuple[int, str], tuple[bytes, Accepted]] = {}
        try:
            await self._database.transaction(look)
        except _Undo as undone:
            known = undone.taken
        except asyncpg.LockNotAvailableError:
            for place, _, _ in refused:
                answers[place] = IdempotencyBusy(retry_after=1)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise Unavailable(retry_after=1) from error
        for place, key, fingerprint in refused:
            if (project_id, key) in known:
                first, told = known[project_id, key]
                answers[place] = (
                    Accepted(told.id, told.status, idempotent_replayed=True)
                    if first == fingerprint
                    else IdempotencyMismatch()
                )

    # ------------------------------------------------------------ storing

    async def _flush(self, units: Sequence[Sequence[Draft]]) -> Sequence[Sequence[Answer]]:
        drafts = [draft for unit in units for draft in unit]
        counts: Counts = Counter()
        for draft in drafts:
            row = draft.row
            counts[Dimension(row.project_id, row.type_version_id or 0, draft.category), EventKind.requested] += 1
        await self._meter.intern(dimension for dimension, _ in counts)
        leaders: dict[tuple[int, str], Draft] = {}
        for draft in drafts:
            if draft.key is not None:
                leaders.setdefault((draft.row.project_id, draft.key), draft)
        await self._checkpoint("accept.before")

        async def work(conn: Connection) -> dict[tuple[int, str], tuple[bytes, Accepted]]:
            taken: dict[tuple[int, str], tuple[bytes, Accepted]] = {}
            new = drafts
            if leaders:
                patience = max(KEY_WAIT_AGAIN, KEY_WAIT - (self._clock.monotonic() - min(d.taken_at for d in drafts)))
                taken = await _claim_keys(conn, leaders, self._clock.db_now(), patience)
                new = [
                    d
                    for d in drafts
                    if d.key is None or ((place := (d.row.project_id, d.key)) not in taken and leaders[place] is d)
                ]
            if new:
                new.sort(key=lambda d: d.row.id.int)
                columns = [list(column) for column in zip(*(d.row for d in new), strict=True)]
                await conn.execute(SQL.insert_notifications, *columns, self._clock.db_now())
                await insert_jobs(conn, [d.job for d in new], self._clock.db_now())
                await self._meter.apply(conn, counts if len(new) == len(drafts) else _count(new))
            await self._checkpoint("accept.commit")
            return taken

        taken = await self._database.transaction(work)
        await self._checkpoint("accept.after")
        self._wakes.announce({draft.job.lane for draft in drafts if draft.job.due_at is None})
        return [[_answer(draft, taken, leaders) for draft in unit] for unit in units]


async def load_content(catalog: Catalog, project_id: int, key: str) -> tuple[TypeVersion, TemplateVersion]:
    """The type of this key, and what it says now.

    Raises:
        Invalid: the project has no such type, or nothing of its template is published.
    """
    type_ = catalog.peek_type(project_id, key) or await catalog.load_type(project_id, key)
    if type_ is None:
        raise refuse("/type", f"There is no type {key!r} in this project.")
    template = catalog.peek_template(project_id, type_.template_key)
    if template is None:
        template = await catalog.load_template(project_id, type_.template_key)
    if template is None:
        raise refuse("/type", f"The template {type_.template_key!r} of this type has no published version.")
    return type_, template


async def forget_keys(database: Database) -> None:
    """Delete the idempotency keys whose day is over; in batches, so that each fits the statement time-out."""
    while await database.fetchval(SQL.forget_keys, FORGET_BATCH) == FORGET_BATCH:
        pass


def _answer(
    draft: Draft, taken: dict[tuple[int, str], tuple[bytes, Accepted]], leaders: dict[tuple[int, str], Draft]
) -> Answer:
    if draft.key is None:
        return _accepted(draft)
    place = draft.row.project_id, draft.key
    first = leaders[place]
    fingerprint, told = taken.get(place) or (first.fingerprint, _accepted(first))
    if fingerprint != draft.fingerprint:
        return IdempotencyMismatch()
    if first is draft and place not in taken:
        return told
    return Accepted(told.id, told.status, idempotent_replayed=True)


def _accepted(draft: Draft) -> Accepted:
    return Accepted(ids.to_public(ids.NOTIFICATION, draft.row.id), "scheduled" if draft.job.due_at else "queued")


def _count(drafts: Sequence[Draft]) -> Counts:
    counts: Counts = Counter()
    for draft in drafts:
        row = draft.row
        counts[Dimension(row.project_id, row.type_version_id or 0, draft.category), EventKind.requested] += 1
    return counts


async def _claim_keys(
    conn: Connection, leaders: dict[tuple[int, str], Draft], now: datetime | None, patience: float
) -> dict[tuple[int, str], tuple[bytes, Accepted]]:
    """Claim the keys that are free; answers with those that were taken before, and what was answered then."""
    answers = {place: _encode(_accepted(draft)).decode() for place, draft in leaders.items()}
    fingerprints = {place: draft.fingerprint or b"" for place, draft in leaders.items()}
    return await _find_taken(conn, fingerprints, now, patience, answers)


async def _find_taken(
    conn: Connection,
    fingerprints: Mapping[tuple[int, str], bytes],
    now: datetime | None,
    patience: float,
    answers: Mapping[tuple[int, str], str] = {},
) -> dict[tuple[int, str], tuple[bytes, Accepted]]:
    await conn.execute(SQL.apply_lock_timeout, f"{int(patience * 1000)}ms")
    places = sorted(fingerprints)
    rows = await conn.fetch(
        SQL.claim_keys,
        [p for p, _ in places],
        [k for _, k in places],
        [fingerprints[place] for place in places],
        [answers.get(place, "null") for place in places],
        now,
    )
    won = {(row["project_id"], row["key"]) for row in rows}
    lost = [place for place in places if place not in won]
    if not lost:
        return {}
    rows = await conn.fetch(SQL.load_keys, [p for p, _ in lost], [k for _, k in lost], now)
    return {(row["project_id"], row["key"]): _told(row) for row in rows}


def _told(row: Record) -> tuple[bytes, Accepted]:
    """The fingerprint and the answer of the first request with a key."""
    # A key that another kind of request used never matches a fingerprint of ours.
    return row["fingerprint"], _decode_accepted(row["answer"]) if row["status"] == 202 else Accepted("", "")
