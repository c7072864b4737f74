"""What can be asked of the API: each function makes one `Call` from its arguments. Pure; both clients share them.

An argument that is None is left out of the request, so that the server's default holds. Wherever a POST is made,
`idempotency_key` may name the operation; without one the client makes its own, which covers its own retries.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

import msgspec

from tidings.client.answers import (
    Accepted,
    Account,
    AccountCheck,
    ApiKey,
    AuditEntry,
    BatchAnswer,
    Blob,
    Cancelled,
    Category,
    CreatedKey,
    DeadLetter,
    InboxItem,
    Notification,
    NotificationSummary,
    NotificationType,
    Page,
    Preview,
    Project,
    Readiness,
    Replayed,
    Template,
    TemplateVersion,
    User,
    UserToken,
)

ChannelName = Literal["email", "sms", "push", "in_app", "webhook", "chat"]
PriorityName = Literal["critical", "high", "medium", "low"]
ScopeName = Literal["send", "send:critical", "read", "manage"]
GuaranteeName = Literal["at_least_once", "at_most_once"]

Result = TypeVar("Result")
Item = TypeVar("Item")

BATCH_ITEMS: Final = 1_000
BATCH_BYTES: Final = 15_000_000
"""Limits of one batch request; the server's is 16 MB with the envelope."""


class To(TypedDict, total=False):
    """Whom to tell: exactly one of these. All but the first are ad hoc, without a stored user."""

    user: str
    email: str
    phone: str
    webhook: str
    push: str | Mapping[str, Any]
    chat: str


class Attachment(TypedDict, total=False):
    """A file for the e-mails of a notification: its `content`, or the id of a `blob` that holds it."""

    filename: str
    content_type: str
    content: bytes
    blob: str
    content_id: str


class NotificationRequest(TypedDict, total=False):
    """One notification of a batch; the fields are the arguments of `send`."""

    to: To | Mapping[str, Any]
    type: str
    data: Mapping[str, Any]
    priority: PriorityName
    channels: Sequence[ChannelName]
    send_at: datetime | str
    expires_at: datetime | str
    locale: str
    metadata: Mapping[str, str]
    content: Mapping[str, Any]
    options: Mapping[str, Mapping[str, Any]]
    attachments: Sequence[Attachment | Mapping[str, Any]]
    guarantee: GuaranteeName
    once: str
    idempotency_key: str


@dataclass(frozen=True, kw_only=True)
class Call(Generic[Result]):
    """One HTTP request, and the type of its answer."""

    method: Literal["GET", "PUT", "POST", "DELETE"]
    path: str
    answer: Any
    """What msgspec decodes the body into, a `Result`; None: there is no body."""
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = field(default=None, repr=False)  # holds addresses and contents: not for logs
    content_type: str = "application/json"
    idempotency_key: str | None = None
    traceparent: str | None = None
    also_good: frozenset[int] = frozenset()
    """Statuses from 400 on whose body is the answer nevertheless."""


@dataclass(frozen=True, kw_only=True)
class Listing(Generic[Item]):
    """A list that is read page by page."""

    path: str
    item: Any
    query: Mapping[str, str]

    def page(self, cursor: str | None) -> Call[Page[Item]]:
        """The call for one page; None is the first."""
        query = self.query if cursor is None else {**self.query, "cursor": cursor}
        return Call(method="GET", path=self.path, answer=Page[self.item], query=query)  # type: ignore[name-defined]  # a type made at run time, for msgspec


def _path(*segments: str | int) -> str:
    """The path of a resource; each segment is data and is quoted as such.

    `.` and `..` are quoted too: left alone, they would be resolved and name another resource.
    """
    parts = [quote(str(s), safe="") for s in segments]
    return "/api/v1/" + "/".join(p.replace(".", "%2E") if not p.strip(".") else p for p in parts)


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _encode(body: Mapping[str, Any]) -> bytes:
    for name in ("send_at", "expires_at"):
        at = body.get(name)
        if isinstance(at, datetime) and at.tzinfo is None:
            raise ValueError(f"{name} has no time zone: pass an aware datetime, such as datetime.now(UTC)")
    return msgspec.json.encode(body)


def _query(**fields: Any) -> dict[str, str]:
    def text(value: Any) -> str:
        if isinstance(value, datetime):
            if value.tzinfo is None:
                raise ValueError("pass an aware datetime, such as datetime.now(UTC)")
            return value.isoformat()
        return str(value)

    return {name: text(value) for name, value in fields.items() if value is not None}


def _post(
    path: str,
    answer: Any,
    body: Mapping[str, Any],
    idempotency_key: str | None,
    traceparent: str | None = None,
) -> Call[Any]:
    return Call(
        method="POST",
        path=path,
        answer=answer,
        body=_encode(body),
        idempotency_key=idempotency_key or str(uuid.uuid4()),
        traceparent=traceparent,
    )


def _put(path: str, answer: Any, body: Mapping[str, Any]) -> Call[Any]:
    return Call(method="PUT", path=path, answer=answer, body=_encode(body))


def _delete(path: str) -> Call[None]:
    return Call(method="DELETE", path=path, answer=None)


# ---------------------------------------------------------------- notifications


def send(
    *,
    to: To | Mapping[str, Any],
    type: str | None = None,
    data: Mapping[str, Any] | None = None,
    priority: PriorityName | None = None,
    channels: Sequence[ChannelName] | None = None,
    send_at: datetime | str | None = None,
    expires_at: datetime | str | None = None,
    locale: str | None = None,
    metadata: Mapping[str, str] | None = None,
    content: Mapping[str, Any] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    attachments: Sequence[Attachment | Mapping[str, Any]] | None = None,
    guarantee: GuaranteeName | None = None,
    once: str | None = None,
    idempotency_key: str | None = None,
    traceparent: str | None = None,
) -> Call[Accepted]:
    """Tell somebody something. When this returns, the notification is stored and will not be lost.

    Args:
        to: `{"user": id}`, or ad hoc `{"email": …}`, `{"phone": …}`, `{"webhook": url}`, `{"push": …}`, `{"chat": …}`.
        type: what is told; or `content` says it directly, without a type.
        data: the template's variables.
        channels: narrows the type's channels; it never beats the user's preferences.
        send_at: not before then; `expires_at`: not after. Aware datetimes, or RFC 3339 text.
        locale: beats the user's.
        metadata: kept with the notification and shown again; vendors that carry such pairs get them too.
        content: for example `{"subject": "Hi", "text": "Hello", "html": "<p>Hello</p>"}`.
        options: by channel, for example `{"email": {"cc": ["bob@example.com"], "tags": ["invoice"]}}`.
        attachments: files for e-mails; `content` takes bytes. Large ones are stored before with `blobs.create`.
        guarantee: what to do when nobody knows whether the provider took it; beats the type's.
        once: at most one notification with this key ever reaches the user or the address, whatever its type.
        idempotency_key: names the operation; the same key never sends twice within 24 hours.
        traceparent: W3C trace context to continue, passed on to the provider.
    """
    body = _given(
        to=to,
        type=type,
        data=data,
        priority=priority,
        channels=channels,
        send_at=send_at,
        expires_at=expires_at,
        locale=locale,
        metadata=metadata,
        content=content,
        options=options,
        attachments=attachments,
        guarantee=guarantee,
        once=once,
    )
    return _post("/api/v1/notifications", Accepted, body, idempotency_key, traceparent)


def plan_batches(
    notifications: Iterable[NotificationRequest | Mapping[str, Any]], traceparent: str | None = None
) -> Iterator[Call[BatchAnswer]]:
    """The requests that together send all `notifications`, in order, each within the limits of one batch.

    Items without an `idempotency_key` get one here, before the first attempt, so that a repeated request repeats no
    item even if the first one was carried out in part.
    """
    chunk: list[bytes] = []
    size = 0

    def flush() -> Call[BatchAnswer]:
        return Call(
            method="POST",
            path="/api/v1/notifications/batch",
            answer=BatchAnswer,
            body=b'{"notifications":[' + b",".join(chunk) + b"]}",
            idempotency_key=str(uuid.uuid4()),
            traceparent=traceparent,
        )

    for notification in notifications:
        item = _encode({"idempotency_key": str(uuid.uuid4()), **notification})
        if chunk and (len(chunk) == BATCH_ITEMS or size + len(item) > BATCH_BYTES):
            yield flush()
            chunk, size = [], 0
        chunk.append(item)
        size += len(item) + 1
    if chunk:
        yield flush()


def get(id: str) -> Call[Notification]:
    """A notification with its deliveries and its timeline."""
    return Call(method="GET", path=_path("notifications", id), answer=Notification)


def list_notifications(
    *,
    type: str | None = None,
    user: str | None = None,
    status: str | None = None,
    channel: ChannelName | None = None,
    since: datetime | str | None = None,
    limit: int | None = None,
) -> Listing[NotificationSummary]:
    """Notifications, newest first. `status` and `channel` filter their deliveries; `limit` is the size of a page."""
    query = _query(type=type, user=user, status=status, channel=channel, since=since, limit=limit)
    return Listing(path=_path("notifications"), item=NotificationSummary, query=query)


def cancel(id: str, *, idempotency_key: str | None = None) -> Call[Cancelled]:
    """Stop a notification. The answer is definite: `cancelled`, `too_late` or `partly`."""
    return _post(_path("notifications", id, "cancel"), Cancelled, {}, idempotency_key)


def create_blob(content: bytes) -> Call[Blob]:
    """Store a file of at most 10 MB, to be attached by its id. Storing it again changes nothing."""
    return Call(
        method="POST",
        path=_path("blobs"),
        answer=Blob,
        body=content,
        content_type="application/octet-stream",
    )


# ---------------------------------------------------------------- users


def put_user(
    id: str,
    *,
    locale: str | None = None,
    time_zone: str | None = None,
    attributes: Mapping[str, Any] | None = None,
    addresses: Mapping[str, str | Sequence[str]] | None = None,
) -> Call[User]:
    """Create a user or replace what is known about them. Addresses that are not given stay as they are."""
    body = _given(locale=locale, time_zone=time_zone, attributes=attributes, addresses=addresses)
    return _put(_path("users", id), User, body)


def get_user(id: str) -> Call[User]:
    """One user."""
    return Call(method="GET", path=_path("users", id), answer=User)


def list_users(*, limit: int | None = None) -> Listing[User]:
    """All users."""
    return Listing(path=_path("users"), item=User, query=_query(limit=limit))


def delete_user(id: str) -> Call[None]:
    """Forget a user and their addresses."""
    return _delete(_path("users", id))


def put_addresses(id: str, addresses: Mapping[str, str | Sequence[str]]) -> Call[User]:
    """Replace the whole set of a user's addresses: channel to one value or several."""
    return _put(_path("users", id, "addresses"), User, addresses)


def list_inbox(
    id: str,
    *,
    unread: bool = False,
    archived: bool = False,
    category: str | None = None,
    limit: int | None = None,
) -> Listing[InboxItem]:
    """A user's in-app items, newest first: all that are not archived, only the unread ones, or the archived ones."""
    query = _query(
        unread="true" if unread else None, archived="true" if archived else None, category=category, limit=limit
    )
    return Listing(path=_path("users", id, "inbox"), item=InboxItem, query=query)


def create_token(id: str, *, expires_after: str = "1h") -> Call[UserToken]:
    """A token with which the user's browser or app reads and marks their own inbox, for at most `24h`."""
    return Call(
        method="POST",
        path=_path("users", id, "tokens"),
        answer=UserToken,
        body=_encode({"expires_after": expires_after}),
    )


# ---------------------------------------------------------------- categories, types


def put_category(
    key: str, *, name: str, description: str | None = None, required: bool | None = None
) -> Call[Category]:
    """Create or change a category."""
    return _put(_path("categories", key), Category, _given(name=name, description=description, required=required))


def get_category(key: str) -> Call[Category]:
    """One category."""
    return Call(method="GET", path=_path("categories", key), answer=Category)


def list_categories(*, limit: int | None = None) -> Listing[Category]:
    """All categories."""
    return Listing(path=_path("categories"), item=Category, query=_query(limit=limit))


def delete_category(key: str) -> Call[None]:
    """Remove a category that no type uses."""
    return _delete(_path("categories", key))


def put_type(
    key: str,
    *,
    category: str,
    template: str | None = None,
    priority: PriorityName | None = None,
    steps: Sequence[Mapping[str, Any]] | None = None,
    expires_after: str | None = None,
    guarantee: GuaranteeName | None = None,
    critical: bool | None = None,
    schema: Mapping[str, Any] | None = None,
) -> Call[NotificationType]:
    """Create a type or, if anything changed, its next version.

    Args:
        template: default: the one with the type's key.
        steps: for example `[{"send": ["email", "in_app"]}]`; without: every channel that the template covers.
        expires_after: a duration such as `2d`.
        critical: keys without the scope `send:critical` may send it with that priority.
        schema: JSON Schema of the data.
    """
    body = _given(
        category=category,
        template=template,
        priority=priority,
        steps=steps,
        expires_after=expires_after,
        guarantee=guarantee,
        critical=critical,
        schema=schema,
    )
    return _put(_path("types", key), NotificationType, body)


def get_type(key: str) -> Call[NotificationType]:
    """The current version of a type."""
    return Call(method="GET", path=_path("types", key), answer=NotificationType)


def list_types(*, limit: int | None = None) -> Listing[NotificationType]:
    """The current versions of all types."""
    return Listing(path=_path("types"), item=NotificationType, query=_query(limit=limit))


def list_type_versions(key: str, *, limit: int | None = None) -> Listing[NotificationType]:
    """All versions of a type, newest first."""
    return Listing(path=_path("types", key, "versions"), item=NotificationType, query=_query(limit=limit))


def delete_type(key: str) -> Call[None]:
    """Archive a type: nothing new is sent with it, what was sent keeps its version."""
    return _delete(_path("types", key))


# ---------------------------------------------------------------- templates


def put_template(key: str, *, name: str | None = None) -> Call[Template]:
    """Create a template or rename it; its content comes with `create_version`."""
    return _put(_path("templates", key), Template, _given(name=name))


def get_template(key: str) -> Call[Template]:
    """One template, without contents."""
    return Call(method="GET", path=_path("templates", key), answer=Template)


def list_templates(*, limit: int | None = None) -> Listing[Template]:
    """All templates."""
    return Listing(path=_path("templates"), item=Template, query=_query(limit=limit))


def create_template_version(
    key: str, content: Mapping[str, Any], *, idempotency_key: str | None = None
) -> Call[TemplateVersion]:
    """Add a draft version.

    Args:
        content: `{"default_locale": "en", "channels": {"email": {"en": {"subject": …, "text": …, "html": …}}}}`.
    """
    return _post(_path("templates", key, "versions"), TemplateVersion, content, idempotency_key)


def get_template_version(key: str, version: int) -> Call[TemplateVersion]:
    """One version with its content."""
    return Call(method="GET", path=_path("templates", key, "versions", version), answer=TemplateVersion)


def list_template_versions(key: str, *, limit: int | None = None) -> Listing[TemplateVersion]:
    """All versions of a template, newest first."""
    return Listing(path=_path("templates", key, "versions"), item=TemplateVersion, query=_query(limit=limit))


def publish_template(key: str, version: int, *, idempotency_key: str | None = None) -> Call[Template]:
    """Make a version the one that new notifications use."""
    return _post(_path("templates", key, "publish"), Template, {"version": version}, idempotency_key)


def rollback_template(key: str, version: int, *, idempotency_key: str | None = None) -> Call[Template]:
    """Go back to a version that was published before."""
    return _post(_path("templates", key, "rollback"), Template, {"version": version}, idempotency_key)


def preview_template(
    key: str,
    *,
    channel: ChannelName,
    locale: str | None = None,
    data: Mapping[str, Any] | None = None,
    user: Mapping[str, Any] | None = None,
    version: int | None = None,
    idempotency_key: str | None = None,
) -> Call[Preview]:
    """Render without sending; the latest version if none is named. `user`: any of id, time_zone, attributes."""
    body = _given(channel=channel, locale=locale, data=data, user=user, version=version)
    return _post(_path("templates", key, "preview"), Preview, body, idempotency_key)


# ---------------------------------------------------------------- accounts, keys, audit, project


def put_account(
    key: str,
    *,
    provider: str,
    channel: ChannelName,
    config: Mapping[str, Any],
    weight: int | None = None,
    rate: float | None = None,
    burst: int | None = None,
    concurrency: int | None = None,
    quotas: Mapping[str, Any] | None = None,
    costs: Mapping[str, float] | None = None,
    currency: str | None = None,
    enabled: bool | None = None,
) -> Call[Account]:
    """Create or change a provider account. A secret sent back as `"…"` keeps the stored one.

    Args:
        rate: messages per second, `burst` at once; None: no pace.
        concurrency: sends in flight per worker process.
        quotas: `{"day": {"messages": 1000, "spend": 50.0}, "month": {…}}`; what is missing has no end.
        costs: prices in the account's currency by the recipient's country or `*`.
    """
    body = _given(
        provider=provider,
        channel=channel,
        config=config,
        weight=weight,
        rate=rate,
        burst=burst,
        concurrency=concurrency,
        quotas=quotas,
        costs=costs,
        currency=currency,
        enabled=enabled,
    )
    return _put(_path("accounts", key), Account, body)


def get_account(key: str) -> Call[Account]:
    """One account, without its secrets."""
    return Call(method="GET", path=_path("accounts", key), answer=Account)


def list_accounts(*, limit: int | None = None) -> Listing[Account]:
    """All accounts, without their secrets."""
    return Listing(path=_path("accounts"), item=Account, query=_query(limit=limit))


def check_account(key: str) -> Call[AccountCheck]:
    """Ask the account's vendor whether its credentials hold. Nothing is sent."""
    return _post(_path("accounts", key, "check"), AccountCheck, {}, None)


def delete_account(key: str) -> Call[None]:
    """Remove an account."""
    return _delete(_path("accounts", key))


def create_key(
    *,
    name: str,
    scopes: Sequence[ScopeName],
    test: bool | None = None,
    rate: int | None = None,
    expires_at: datetime | str | None = None,
    idempotency_key: str | None = None,
) -> Call[CreatedKey]:
    """Make an API key. Its text is in this answer and nowhere else.

    If the answer got lost and a retry finds the key made already, its text is gone: `key` is None; revoke it.
    """
    body = _given(name=name, scopes=scopes, test=test, rate=rate, expires_at=expires_at)
    return _post(_path("keys"), CreatedKey, body, idempotency_key)


def get_key(id: str) -> Call[ApiKey]:
    """One API key, without its secret."""
    return Call(method="GET", path=_path("keys", id), answer=ApiKey)


def list_keys(*, limit: int | None = None) -> Listing[ApiKey]:
    """All API keys of the project, without their secrets."""
    return Listing(path=_path("keys"), item=ApiKey, query=_query(limit=limit))


def revoke_key(id: str) -> Call[None]:
    """Make a key useless, within five seconds."""
    return _delete(_path("keys", id))


def list_audit(
    *, object: str | None = None, action: str | None = None, limit: int | None = None
) -> Listing[AuditEntry]:
    """Who changed what, newest first."""
    return Listing(path=_path("audit"), item=AuditEntry, query=_query(object=object, action=action, limit=limit))


def get_project() -> Call[Project]:
    """The project that the API key belongs to."""
    return Call(method="GET", path=_path("project"), answer=Project)


# ---------------------------------------------------------------- operations


def list_dead_letters(
    *, channel: ChannelName | None = None, reason: str | None = None, limit: int | None = None
) -> Listing[DeadLetter]:
    """Deliveries that ended in failure, newest first."""
    query = _query(channel=channel, reason=reason, limit=limit)
    return Listing(path=_path("dead_letters"), item=DeadLetter, query=query)


def replay_dead_letter(delivery: str, *, idempotency_key: str | None = None) -> Call[Replayed]:
    """Send one dead letter again."""
    return _post(_path("dead_letters", delivery, "replay"), Replayed, {}, idempotency_key)


def replay_dead_letters(deliveries: Sequence[str], *, idempotency_key: str | None = None) -> Call[Replayed]:
    """Send these dead letters again."""
    return _post(_path("dead_letters", "replay"), Replayed, {"deliveries": deliveries}, idempotency_key)


def replay_all_dead_letters(
    *,
    channel: ChannelName | None = None,
    reason: str | None = None,
    limit: int | None = None,
    idempotency_key: str | None = None,
) -> Call[Replayed]:
    """Send all dead letters again, or up to `limit` of them."""
    body = _given(channel=channel, reason=reason, limit=limit)
    return _post(_path("dead_letters", "replay"), Replayed, body, idempotency_key)


def get_health() -> Call[Readiness]:
    """Whether the API process is alive. Needs no key."""
    return Call(method="GET", path="/healthz", answer=Readiness)


def get_readiness() -> Call[Readiness]:
    """Whether the server can do its work: database, migrations, partitions. Needs no key; "no" is an answer too."""
    return Call(method="GET", path="/readyz", answer=Readiness, also_good=frozenset({503}))
