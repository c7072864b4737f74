"""Request: what a request for a notification says, and the notification that it makes. Pure.

Everything that can be refused without asking the database is refused here, all faults at once: the recipient, the
type's schema and its template's variables, channels, times, sizes, leave for `critical`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

import msgspec

from tidings.channels import CHANNELS
from tidings.directory.access import Caller
from tidings.directory.blobs import Blob
from tidings.directory.catalog import TemplateVersion, TypeVersion
from tidings.directory.users import parse_locale
from tidings.engine.jobs import NewJob
from tidings.errors import FieldError, Forbidden, Invalid, RenderError
from tidings.flow.jobs import plan_job, to_mask
from tidings.flow.options import (
    OPTIONS_LIMIT,
    Action,
    AttachmentRequest,
    Extras,
    Options,
    parse_options,
    to_field_texts,
    to_stored,
)
from tidings.model.words import CHANNELS_OF_THIS_VERSION, Channel, Guarantee, Priority, Scope

DATA_LIMIT: Final = 64 * 1024
"""Bytes of `data` as JSON; the same for `content`."""
METADATA_LIMIT: Final = 8 * 1024
PAST_TOLERANCE: Final = timedelta(minutes=1)
"""A `send_at` this little in the past is a clock that is slightly off, and means now."""
KEY_FORM: Final = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,254}")
ONCE_MAX: Final = 255
"""Characters of a send-once key."""
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""An escaped U+0000 in JSON, but not the text `\\u0000` itself, whose backslash is escaped."""


class To(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Whom to tell: exactly one of these."""

    user: str | None = None
    email: str | None = None
    phone: str | None = None
    webhook: str | None = None
    push: str | dict[str, Any] | None = None
    """A device with its vendor in front (`fcm:…`, `apns:…`), or a Web Push subscription as the browser gives it."""
    chat: str | None = None
    """A room with its vendor in front (`slack:…`, `discord:…`, `apprise:…`), or the URL of its webhook."""


class DirectContent(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What to say without a type. Which fields count depends on the channel of the address."""

    subject: str | None = None
    text: str | None = None
    html: str | None = None
    title: str | None = None
    body: str | None = None
    url: str | None = None
    payload: dict[str, Any] | None = None
    image: str | None = None
    data: dict[str, Any] | None = None
    actions: list[Action] | None = None
    badge: int | None = None
    sound: str | None = None
    collapse_key: str | None = None
    silent: bool | None = None


# What is left out is left out of the fingerprint too, so that a request stays the same when there are more fields.
class Request(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
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
    options: Options | None = None
    attachments: list[AttachmentRequest] | None = None
    idempotency_key: str | None = None
    """In a batch; a single request has the `Idempotency-Key` header."""
    once: str | None = None
    """At most one notification with this key reaches the user or the address, whatever its type."""


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
    options: str | None
    once_key: str | None


class Draft(NamedTuple):
    """A request that may be accepted: the row, its job, and what it counts as."""

    row: Row
    job: NewJob
    category: str
    key: str | None
    fingerprint: bytes | None
    taken_at: float = 0.0
    """Monotonic seconds."""
    blobs: tuple[Blob, ...] = ()
    """Files that came with the request; they are stored before it is."""


_encode: Final = msgspec.json.Encoder().encode
_canonical: Final = msgspec.json.Encoder(order="sorted").encode


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
    blobs: Mapping[bytes, int] = {},
) -> Draft:
    """The notification that this request makes. Pure.

    Args:
        blobs: sizes of the blobs that the request names, by hash; those that the project does not have are missing.

    Raises:
        Invalid: with every fault that was found.
        Forbidden: `critical` without leave.
    """
    errors: list[FieldError] = []
    data_text = _text(request.data, DATA_LIMIT, "/data", errors)
    content_text = _text(_content_dict(request.content), DATA_LIMIT, "/content", errors)
    metadata_text = _text(request.metadata, METADATA_LIMIT, "/metadata", errors)
    _text(request.options, OPTIONS_LIMIT, "/options", errors)
    if request.channels is not None and len(request.channels) > len(Channel):
        errors.append(FieldError(f"There are only {len(Channel)} channels; name each once.", "/channels"))
    if errors:  # what is too large is not looked at any further
        raise Invalid(_summary(errors), errors=errors)
    to = request.to
    if (to.user, to.email, to.phone, to.webhook, to.push, to.chat).count(None) != 5:
        errors.append(FieldError("Give exactly one of `user`, `email`, `phone`, `webhook`, `push`, `chat`.", "/to"))
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
            said = "Content without a type goes to one address: `email`, `phone`, `webhook`, `push` or `chat`."
            errors.append(FieldError(said, "/to"))
        if request.data is not None:
            errors.append(FieldError("`data` belongs to a type; here `content` says it all.", "/data"))
        priority = Priority[request.priority] if request.priority else Priority.medium
        at_most_once = request.guarantee is Guarantee.at_most_once
    extras: Extras | None = None
    files: tuple[Blob, ...] = ()
    if request.options is not None or request.attachments:
        extras, files = parse_options(request.options, request.attachments, channels, blobs, errors)
    if channel is not None and request.content is not None and type_ is None:
        errors += _check_content(channel, request.content, extras)
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
    if request.idempotency_key is not None and not KEY_FORM.fullmatch(request.idempotency_key):
        errors.append(to_key_error("/idempotency_key"))
    if request.once is not None and not is_once_key(request.once):
        errors.append(FieldError(f"A send-once key is 1 to {ONCE_MAX} printable characters.", "/once"))
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
        to_stored(extras),
        request.once,
    )
    job = plan_job(id_, caller.project_id, int(priority), channels, send_at, traceparent)
    return Draft(row, job, type_.category if type_ is not None else "", None, None, blobs=files)


def _ad_hoc(to: To, errors: list[FieldError]) -> tuple[Channel | None, str | None]:
    for channel, field, text in (
        (Channel.email, "email", to.email),
        (Channel.sms, "phone", to.phone),
        (Channel.webhook, "webhook", to.webhook),
        (Channel.push, "push", to.push),
        (Channel.chat, "chat", to.chat),
    ):
        if text is not None:
            if isinstance(text, dict):
                text = _encode(text).decode()
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


def _check_content(channel: Channel, content: DirectContent, extras: Extras | None) -> list[FieldError]:
    fields = to_fields(channel, content)
    if extras is not None:
        fields |= extras.fields(channel)
    try:
        CHANNELS[channel].to_content(fields)
    except RenderError as error:
        return [FieldError(str(error), "/content")]
    return []


def to_fields(channel: Channel, content: DirectContent) -> dict[str, str]:
    """Direct content as the rendered fields of a channel."""
    given = _content_dict(content) or {}
    if channel is Channel.webhook:
        payload = given.get("payload") or {k: v for k, v in given.items() if k != "payload"}
        return {"body": _encode(payload).decode()}
    return to_field_texts(given)


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


def refuse(pointer: str, detail: str) -> Invalid:
    """The problem with one field."""
    return Invalid(detail, errors=[FieldError(detail, pointer)])


def to_key_error(where: str) -> FieldError:
    """What is wrong with an idempotency key that KEY_FORM does not match; `where` is a pointer or a header."""
    said = "An idempotency key is 1 to 255 printable ASCII characters."
    return FieldError(said, where) if where.startswith("/") else FieldError(said, parameter=where)


def is_once_key(text: str) -> bool:
    """Whether a text may be a send-once key."""
    return 1 <= len(text) <= ONCE_MAX and text.isprintable()


def to_fingerprint(request: Any, *, test: bool) -> bytes:
    """What makes a repeated request (or batch of requests) the same one: SHA-256 of its canonical JSON.

    A test key's request is never the same as a live key's: the one is simulated, the other is sent.
    """
    if not isinstance(request, Request):
        request = [r if isinstance(r, Request) else r.to_dict() for r in request]
    elif request.idempotency_key is not None:  # the same request, whether its key came in the body or in the header
        request = msgspec.structs.replace(request, idempotency_key=None)
    return hashlib.sha256((b"test" if test else b"live") + _canonical(request)).digest()
