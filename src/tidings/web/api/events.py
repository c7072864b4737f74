"""/api/v1/events: what happened in the application, as CloudEvents 1.0; the project's event rules make notifications.

All three content modes of the HTTP protocol binding are taken: structured, batched and binary. See
https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec
from fastapi import APIRouter, Request, Response

from tidings.directory.rates import check_allowance
from tidings.errors import FieldError, Invalid, Malformed, Problem, TooLarge
from tidings.flow.events import EVENT_MAX, EVENTS_MAX, Outcome
from tidings.model.cloud_events import CloudEvent, parse_event
from tidings.web.deps import Deps, Given, Sender
from tidings.web.edge import check_json
from tidings.web.fields import View

router = APIRouter(prefix="/events", tags=["events"])

_SINGLE: Final = "application/cloudevents+json"
_BATCH: Final = "application/cloudevents-batch+json"
_PREFIX: Final = b"ce-"

_EVENT: Final = {
    "type": "object",
    "description": "A CloudEvent in its JSON form; other attributes are extensions.",
    "required": ["specversion", "id", "source", "type"],
    "properties": {
        "specversion": {"const": "1.0"},
        "id": {"type": "string", "minLength": 1},
        "source": {"type": "string", "format": "uri-reference", "minLength": 1},
        "type": {"type": "string", "minLength": 1, "examples": ["com.shop.order.shipped"]},
        "subject": {"type": "string", "minLength": 1},
        "time": {"type": "string", "format": "date-time"},
        "datacontenttype": {"type": "string"},
        "dataschema": {"type": "string", "format": "uri"},
        "data": {},
        "data_base64": {"type": "string", "contentEncoding": "base64"},
    },
}
_EVENTS: Final = {
    "type": "array",
    "description": "Events, as the form for one has them. What is none gets a problem in its place.",
    "items": {},
    "maxItems": EVENTS_MAX,
}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            _SINGLE: {"schema": _EVENT},
            _BATCH: {"schema": _EVENTS},
            "application/json": {"schema": {"anyOf": [_EVENT, _EVENTS]}},
        },
    }
}


class MadeView(View):
    """What a rule made of an event: a notification, or the problem with it."""

    rule: str
    id: str | None = None
    status: str | None = None
    idempotent_replayed: bool = False
    """The event had been delivered before."""
    problem: dict[str, Any] | None = None


class EventResultView(View):
    """What became of an event."""

    id: str | None
    """The event's own; null when it has none."""
    notifications: list[MadeView] | None = None
    """One for each rule that fits."""
    problem: dict[str, Any] | None = None
    """Of a batch: what is wrong with this event."""


class EventResultsView(View):
    """What became of the events, in their order."""

    results: list[EventResultView]


@router.post(
    "", status_code=202, response_model=EventResultsView, response_model_exclude_unset=True, openapi_extra=_BODY
)
async def take_events(deps: Given, caller: Sender, request: Request) -> Response:
    """Takes one event or up to 1,000, as CloudEvents: structured, batched or binary. Each rule that fits makes one
    notification, stored before this answers; an event that no rule fits makes none. The same event (its `source` and
    `id`) delivered again within 24 hours makes nothing new. An event counts against the key's rate as often as it makes
    notifications, at least once; what is beyond the rate gets the problem `rate-limited` in its place."""
    events = parse_events(request, await request.body())
    if len(events) > 1 and (allowance := await deps.access.charge(caller, len(events) - 1)) is not None:
        check_allowance(allowance, len(events))  # the edge has counted one
    trace = request.state.trace.to_header()
    good = [event for event in events if isinstance(event, CloudEvent)]
    made = iter(await deps.events.accept(caller, good, traceparent=trace))
    results = [
        {"id": event.id, "notifications": [_to_made(outcome) for outcome in next(made)]}
        if isinstance(event, CloudEvent)
        else {"id": event[0], "problem": event[1].to_dict()}
        for event in events
    ]
    _count(deps, results)
    return Response(msgspec.json.encode({"results": results}), status_code=202, media_type="application/json")


def parse_events(request: Request, body: bytes) -> list[CloudEvent | tuple[str | None, Problem]]:
    """The events of a request; in a batch, the id and the problem of each that is none.

    Raises:
        UnsupportedMediaType: it is not JSON.
        Malformed: it is no valid JSON.
        Invalid: it is no event, or there are too many.
    """
    content_type = request.headers.get("content-type")
    essence = (content_type or "").partition(";")[0].strip().lower()
    if not essence.startswith("application/cloudevents") and "ce-specversion" in request.headers:
        return [_parse_binary(request, body, content_type)]
    check_json(body, None if content_type is None else content_type.encode("latin-1"))
    document = msgspec.json.decode(body)
    if essence == _BATCH or (essence != _SINGLE and isinstance(document, list)):
        if not isinstance(document, list):
            raise Invalid(errors=[FieldError("must be a list of events", "")])
        if len(document) > EVENTS_MAX:
            raise Invalid(errors=[FieldError(f"must have at most {EVENTS_MAX:,} events", "")])
        sizes = [memoryview(raw).nbytes for raw in msgspec.json.decode(body, type=list[msgspec.Raw])]
        return [_parse_one(raw, size) for raw, size in zip(document, sizes, strict=True)]
    return [_parse(document, len(body))]


def _parse_binary(request: Request, body: bytes, content_type: str | None) -> CloudEvent:
    """The attributes are headers, the body is the data."""
    raw: dict[str, Any] = {}
    for name, value in request.headers.raw:
        if name.startswith(_PREFIX):
            try:
                # Percent-encoded UTF-8 (HTTP protocol binding, section 3.1.3.2).
                raw.setdefault(name[3:].decode("latin-1"), unquote_to_bytes(value.strip(b'" ')).decode())
            except UnicodeDecodeError:
                where = name.decode("latin-1")
                raise Malformed(f"The header `{where}` is not valid UTF-8.") from None
    for reserved in ("data", "data_base64", "datacontenttype"):
        raw.pop(reserved, None)
    if content_type is not None:
        raw["datacontenttype"] = content_type
    if body:
        check_json(body, None if content_type is None else content_type.encode("latin-1"))
        raw["data"] = msgspec.json.decode(body)
    _check_size(len(body))
    errors: list[FieldError] = []
    event = parse_event(raw, errors)
    if event is None:
        told = [FieldError(e.detail, parameter="ce-" + (e.pointer or "").removeprefix("/")) for e in errors]
        raise Invalid("The headers are no CloudEvent.", errors=told)
    return event


def _check_size(size: int) -> None:
    if size > EVENT_MAX:
        raise TooLarge(f"An event may have {EVENT_MAX // 1024} kB.")


def _parse(raw: object, size: int) -> CloudEvent:
    _check_size(size)
    errors: list[FieldError] = []
    event = parse_event(raw, errors)
    if event is None:
        raise Invalid("This is no CloudEvent.", errors=errors)
    return event


def _parse_one(raw: object, size: int) -> CloudEvent | tuple[str | None, Problem]:
    try:
        return _parse(raw, size)
    except (Invalid, TooLarge) as problem:
        id_ = raw.get("id") if isinstance(raw, dict) else None
        return id_ if isinstance(id_, str) else None, problem


def _to_made(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome.answer, Problem):
        return {"rule": outcome.rule, "problem": outcome.answer.to_dict()}
    return {"rule": outcome.rule, **msgspec.to_builtins(outcome.answer)}


def _count(deps: Deps, results: list[dict[str, Any]]) -> None:
    for result in results:
        for made in result.get("notifications", ()):
            outcome = "refused" if "problem" in made else "duplicate" if "idempotent_replayed" in made else "accepted"
            deps.metrics.accepted.labels(outcome).inc()
