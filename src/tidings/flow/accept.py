"""Accept: a request becomes a notification and its plan job, committed before the caller hears 202.

Everything that can be refused is refused before the group commit: the shape, the size, the type, the data against the
schema and the template, the user, the times. What reaches the batch is expected to succeed; if the database refuses it
all the same, the batch is halved until only the bad request is refused.

An idempotency key is claimed in the same transaction. A duplicate waits for the first and gets its answer.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

import asyncpg
import msgspec

from tidings import ids
from tidings.channels import CHANNELS
from tidings.clock import Clock
from tidings.db.pool import Connection, Database, Record
from tidings.db.sql import load_queries
from tidings.directory.access import Caller
from tidings.directory.catalog import Catalog, TemplateVersion, TypeVersion
from tidings.directory.users import parse_locale
from tidings.engine.batch import Batcher
from tidings.engine.jobs import NewJob, insert_jobs
from tidings.engine.worker import Wakes, no_checkpoint
from tidings.errors import (
    CommitUnknown,
    DatabaseError,
    FieldError,
    Forbidden,
    IdempotencyBusy,
    IdempotencyMismatch,
    Internal,
    Invalid,
    Problem,
    RenderError,
    Unavailable,
)
from tidings.flow.jobs import plan_job, to_mask
from tidings.flow.measure import Counts, Dimension, Meter
from tidings.model.words import CHANNELS_OF_THIS_VERSION, Channel, EventKind, Guarantee, Priority, Scope

SQL: Final = load_queries(__package__, "accept.sql")

DATA_LIMIT: Final = 64 * 1024
"""Bytes of `data` as JSON; the same for `content`."""
METADATA_LIMIT: Final = 8 * 1024
BATCH_LIMIT: Final = 1_000
"""Notifications in one batch request."""
GROUP_LIMIT: Final = 2_000
"""Notifications in one group commit."""
PAST_TOLERANCE: Final = timedelta(minutes=1)
"""A `send_at` this little in the past is a clock that is slightly off, and means now."""
KEY_WAIT: Final = 1.0
"""Seconds for which a request waits for the first one with its idempotency key."""
KEY_WAIT_AGAIN: Final = 0.05
"""The same for the parts of a batch that has waited in vain, so that its other requests soon go their way."""
KNOWN_USERS: Final = 100_000
KNOWN_USER_TTL: Final = 30.0
"""Seconds for which a user that was seen is taken to exist; planning looks again."""

_KEY: Final = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,254}")
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""An escaped U+0000 in JSON, but not the text `\\u0000` itself, whose backslash is escaped."""


class To(msgspec.Struct, forbid_unknown_fields=True):
    """Whom to tell: exactly one of these."""

    user: str | None = None
    email: str | None = None
    phone: str | None = None
    webhook: str | None = None


class DirectContent(msgspec.Struct, forbid_unknown_fields=True):
    """What to say without a type. Which fields count depends on the channel of the address."""

    subject: str | None = None
    text: str | None = None
    html: str | None = None
    title: str | None = None
    body: str | None = None
    url: str | None = None
    payload: dict[str, Any] | None = None


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """One notification as the API takes it."""

    to: To
    type: str | None = None
    data: dict[str, Any] | None = None
    content: DirectContent | None = None
    priority: Literal["critical", "high", "medium", "low"] | None = None
    channels: list[Literal["email", "sms", "push", "in_app", "webhook", "chat"]] | None = None
    guarantee: Guarantee | None = None
    send_at: datetime | None = None
    expires_at: datetime | None = None
    locale: str | None = None
    metadata: dict[str, str] | None = None
    idempotency_key: str | None = None
    """In a batch; a single request has the `Idempotency-Key` header."""


class Row(NamedTuple):
    """A notification as it is inserted; the order of the fields is that of insert_notifications' arrays."""

    id: UUID
    project_id: int
    type_version_id: int | None
    user_id: str | None
    to_channel: int | None
    to_address: str | None
    priority: int
    channels: int | None
    at_most_once: bool
    test: bool
    locale: str | None
    data: str | None
    content: str | None
    metadata: str | None
    send_at: datetime | None
    expires_at: datetime | None
    traceparent: str | None


class Draft(NamedTuple):
    """A request that may be accepted: the row, its job, and what it counts as."""

    row: Row
    job: NewJob
    category: str
    key: str | None
    fingerprint: bytes | None
    taken_at: float = 0.0
    """Monotonic seconds."""


class Accepted(msgspec.Struct, omit_defaults=True):
    """The answer to an accepted request; for a repeated one the first's answer, marked as replayed."""

    id: str
    status: str
    idempotent_replayed: bool = False


Answer = Accepted | Problem

_encode: Final = msgspec.json.Encoder().encode
_canonical: Final = msgspec.json.Encoder(order="sorted").encode
_decode_accepted: Final = msgspec.json.Decoder(Accepted).decode


class Acceptor:
    """The first stage, in an API process.

    Args:
        window: seconds that a lone request waits for company.
        horizon: how far ahead `send_at` may be.
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
        checkpoint: Callable[[str], Awaitable[None]] = no_checkpoint,
        observe_batch: Callable[[str, int], None] | None = None,
    ) -> None:
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
        self, caller: Caller, requests: Sequence[Request | Problem], *, key: str | None, traceparent: str | None
    ) -> list[Answer]:
        """Accept each request or say why not; answers in input order.

        Args:
            caller: who asks; has been authenticated.
            requests: decoded requests, or the problem that decoding one met.
            key: the `Idempotency-Key` header; covers every request that brings no key of its own.
            traceparent: W3C trace context to carry along.
        """
        caller.require(Scope.send)
        if key is not None and not _KEY.fullmatch(key):
            raise Invalid("The idempotency key is not usable.", errors=[_bad_key("Idempotency-Key")])
        users = await self._load_users(caller.project_id, requests)
        answers: list[Answer | None] = []
        drafts: list[Draft] = []
        places: list[int] = []
        refused: list[tuple[int, str, bytes]] = []
        now = self._clock.now()
        whole = _fingerprint(requests) if key is not None and len(requests) != 1 else None
        for i, request in enumerate(requests):
            if isinstance(request, Problem):
                answers.append(request)
                continue
            own = request.idempotency_key
            used = fingerprint = None
            if own is not None or key is not None:
                used = own if own is not None else key if len(requests) == 1 else f"{key}#{i}"
                fingerprint = whole if own is None and whole else _fingerprint(request)
            try:
                draft = await self._draft(caller, request, users, now, traceparent)
            except Problem as problem:
                answers.append(problem)
                if used is not None and fingerprint is not None and _KEY.match(used):
                    refused.append((i, used, fingerprint))
                continue
            answers.append(None)
            drafts.append(draft._replace(key=used, fingerprint=fingerprint, taken_at=self._clock.monotonic()))
            places.append(i)
        if refused:
            await self._replay(caller.project_id, refused, answers)
        if drafts:
            try:
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

    async def drain(self) -> None:
        """Wait until everything taken in has been answered."""
        await self._batcher.drain()

    # ------------------------------------------------------------ deciding

    async def _draft(
        self, caller: Caller, request: Request, users: Collection[str], now: datetime, traceparent: str | None
    ) -> Draft:
        type_: TypeVersion | None = None
        template: TemplateVersion | None = None
        if request.type is not None:
            type_ = self._catalog.peek_type(caller.project_id, request.type)
            if type_ is None:
                type_ = await self._catalog.load_type(caller.project_id, request.type)
            if type_ is None:
                raise _invalid("/type", f"There is no type {request.type!r} in this project.")
            template = self._catalog.peek_template(caller.project_id, type_.template_key)
            if template is None:
                template = await self._catalog.load_template(caller.project_id, type_.template_key)
            if template is None:
                raise _invalid("/type", f"The template {type_.template_key!r} of this type has no published version.")
        user = request.to.user
        if user is not None and user not in users:
            raise _invalid("/to/user", f"There is no user {user!r} in this project; create it with PUT /api/v1/users.")
        return decide_acceptance(
            caller,
            request,
            type_,
            template,
            now=now,
            horizon=self._horizon,
            id_=ids.new_id(now, self._clock.random),
            traceparent=traceparent,
        )

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
        meanwhile, its type was archived."""
        keys = [key for _, key, _ in refused]
        try:
            rows = await self._database.fetch(SQL.load_keys, [project_id] * len(keys), keys, self._clock.db_now())
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise Unavailable(retry_after=1) from error
        known = {row["key"]: _told(row) for row in rows}
        for place, key, fingerprint in refused:
            if key in known:
                first, told = known[key]
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


async def forget_keys(database: Database) -> None:
    """Delete the idempotency keys whose day is over."""
    await database.execute(SQL.forget_keys)


def decide_acceptance(
    caller: Caller,
    request: Request,
    type_: TypeVersion | None,
    template: TemplateVersion | None,
    *,
    now: datetime,
    horizon: timedelta,
    id_: UUID,
    traceparent: str | None,
) -> Draft:
    """The notification that this request makes. Pure.

    Raises:
        Invalid: with every fault that was found.
        Forbidden: `critical` without leave.
    """
    errors: list[FieldError] = []
    to = request.to
    if (to.user is not None) + (to.email is not None) + (to.phone is not None) + (to.webhook is not None) != 1:
        errors.append(FieldError("Give exactly one of `user`, `email`, `phone`, `webhook`.", "/to"))
    channel, address = _ad_hoc(to, errors)
    allowed = _allowed_channels(request, errors)
    if type_ is not None and template is not None:
        if request.content is not None:
            errors.append(FieldError("Give `type` or `content`, not both.", "/content"))
        covers = type_.covers(template)
        channels = covers if allowed is None else covers & allowed
        if channel is not None:
            channels &= 1 << channel
        if not channels and not errors:
            named = ", ".join(c.name for c in Channel if covers >> c & 1) or "none"
            said = f"The type {type_.key!r} sends on {named}; nothing is left of that here."
            errors.append(FieldError(said, "/channels"))
        data = request.data if request.data is not None else {}
        errors += [
            FieldError(f"The template needs the variable `{name}`.", f"/data/{name.replace('.', '/')}")
            for name in template.missing(data)
        ]
        errors += [FieldError(e.detail, "/data" + (e.pointer or "")) for e in type_.check_data(data)]
        priority = Priority[request.priority] if request.priority else type_.priority
        at_most_once = type_.at_most_once if request.guarantee is None else request.guarantee is Guarantee.at_most_once
    else:
        channels = 1 << channel if channel is not None else 0
        if request.content is None:
            errors.append(FieldError("Give the `type` of the notification, or its `content`.", "/type"))
        elif channel is None:
            errors.append(
                FieldError("Content without a type goes to one address: `email`, `phone` or `webhook`.", "/to")
            )
        else:
            errors += _check_content(channel, request.content)
        if request.data is not None:
            errors.append(FieldError("`data` belongs to a type; here `content` says it all.", "/data"))
        priority = Priority[request.priority] if request.priority else Priority.medium
        at_most_once = request.guarantee is Guarantee.at_most_once
    send_at = _check_time(request.send_at, "/send_at", now, horizon, errors)
    expires_at = _check_time(request.expires_at, "/expires_at", now, horizon, errors)
    if request.expires_at is not None and expires_at is None and not errors:
        errors.append(FieldError("This is past: nothing could be sent any more.", "/expires_at"))
    start = send_at or now
    if expires_at is not None and expires_at <= start:
        errors.append(FieldError("This is not after the time of sending.", "/expires_at"))
    if expires_at is None and type_ is not None and type_.expires_after is not None:
        expires_at = start + type_.expires_after
    if request.locale is not None and not _is_locale(request.locale):
        errors.append(FieldError(f"{request.locale!r} is not a locale; write one such as `de` or `de-AT`.", "/locale"))
    data_text = _text(request.data, DATA_LIMIT, "/data", errors)
    content_text = _text(_content_dict(request.content), DATA_LIMIT, "/content", errors)
    metadata_text = _text(request.metadata, METADATA_LIMIT, "/metadata", errors)
    if request.idempotency_key is not None and not _KEY.fullmatch(request.idempotency_key):
        errors.append(_bad_key("/idempotency_key"))
    if errors:
        raise Invalid(_summary(errors), errors=errors)
    allowed_critical = Scope.send_critical in caller.scopes or (type_ is not None and type_.critical)
    if priority is Priority.critical and not allowed_critical:
        raise Forbidden("Priority `critical` needs a key with the scope `send:critical`, or a type that allows it.")
    row = Row(
        id_,
        caller.project_id,
        type_.id if type_ is not None else None,
        to.user,
        int(channel) if channel is not None else None,
        address,
        int(priority),
        allowed,
        at_most_once,
        caller.test,
        request.locale,
        data_text,
        content_text,
        metadata_text,
        send_at,
        expires_at,
        traceparent,
    )
    job = plan_job(id_, caller.project_id, int(priority), channels, send_at, traceparent)
    return Draft(row, job, type_.category if type_ is not None else "", None, None)


def _ad_hoc(to: To, errors: list[FieldError]) -> tuple[Channel | None, str | None]:
    for channel, field, text in (
        (Channel.email, "email", to.email),
        (Channel.sms, "phone", to.phone),
        (Channel.webhook, "webhook", to.webhook),
    ):
        if text is not None:
            try:
                return channel, CHANNELS[channel].parse_address(text)
            except ValueError as error:
                errors.append(FieldError(str(error), f"/to/{field}"))
                return channel, None
    return None, None


def _allowed_channels(request: Request, errors: list[FieldError]) -> int | None:
    if request.channels is None:
        return None
    if not request.channels:
        errors.append(FieldError("Name at least one channel, or leave `channels` out for all.", "/channels"))
    for i, name in enumerate(request.channels):
        if Channel[name] not in CHANNELS_OF_THIS_VERSION:
            errors.append(FieldError(f"The channel `{name}` is not supported by this version.", f"/channels/{i}"))
    return to_mask(Channel[name] for name in request.channels)


def _check_content(channel: Channel, content: DirectContent) -> list[FieldError]:
    try:
        CHANNELS[channel].to_content(to_fields(channel, content))
    except RenderError as error:
        return [FieldError(str(error), "/content")]
    return []


def to_fields(channel: Channel, content: DirectContent) -> dict[str, str]:
    """Direct content as the rendered fields of a channel."""
    given = _content_dict(content) or {}
    if channel is Channel.webhook:
        payload = given.get("payload") or {k: v for k, v in given.items() if k != "payload"}
        return {"body": _encode(payload).decode()}
    return {k: v for k, v in given.items() if isinstance(v, str)}


def _content_dict(content: DirectContent | None) -> dict[str, Any] | None:
    if content is None:
        return None
    return {k: v for k, v in msgspec.structs.asdict(content).items() if v is not None}


def _check_time(
    at: datetime | None, pointer: str, now: datetime, horizon: timedelta, errors: list[FieldError]
) -> datetime | None:
    if at is None:
        return None
    if at.tzinfo is None:
        errors.append(FieldError("Give the offset from UTC, such as `2026-12-01T09:00:00Z`.", pointer))
        return None
    if at < now - PAST_TOLERANCE:
        errors.append(FieldError("This time is in the past.", pointer))
        return None
    if at > now + horizon:
        errors.append(FieldError(f"This time is more than {horizon.days} days ahead.", pointer))
        return None
    return at.astimezone(UTC) if at > now else None


def _is_locale(text: str) -> bool:
    try:
        parse_locale(text)
    except ValueError:
        return False
    return True


def _text(value: Any, limit: int, pointer: str, errors: list[FieldError]) -> str | None:
    if value is None:
        return None
    encoded = _encode(value)
    if len(encoded) > limit:
        errors.append(FieldError(f"This is {len(encoded):,} bytes of JSON; at most {limit:,} are taken.", pointer))
        return None
    if _NUL.search(encoded):
        errors.append(FieldError("The character U+0000 cannot be stored.", pointer))
        return None
    return encoded.decode()


def _summary(errors: Collection[FieldError]) -> str:
    first = next(iter(errors)).detail
    return first if len(errors) == 1 else f"{first} (and {len(errors) - 1} more)"


def _invalid(pointer: str, detail: str) -> Invalid:
    return Invalid(detail, errors=[FieldError(detail, pointer)])


def _bad_key(where: str) -> FieldError:
    said = "An idempotency key is 1 to 255 printable ASCII characters."
    return FieldError(said, where) if where.startswith("/") else FieldError(said, parameter=where)


def _fingerprint(request: Any) -> bytes:
    if not isinstance(request, Request):
        request = [r if isinstance(r, Request) else r.to_dict() for r in request]
    return hashlib.sha256(_canonical(request)).digest()


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
    await conn.execute(SQL.apply_lock_timeout, f"{int(patience * 1000)}ms")
    places = sorted(leaders)
    rows = await conn.fetch(
        SQL.claim_keys,
        [p for p, _ in places],
        [k for _, k in places],
        [leaders[place].fingerprint for place in places],
        [_encode(_accepted(leaders[place])).decode() for place in places],
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
