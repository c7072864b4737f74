"""The hot routes: taking notifications, in front of FastAPI, by plain ASGI and msgspec.

    POST /api/v1/notifications          one
    POST /api/v1/send_notification      the same, by the name that people look for first
    POST /api/v1/notifications/batch    up to 1,000

They share the edge's functions with every other route; only the framework in between is missing.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from tidings.clock import Clock
from tidings.directory.access import Access, Caller
from tidings.directory.rates import Allowance, check_allowance
from tidings.errors import FieldError, Invalid, Malformed, MethodNotAllowed, Problem
from tidings.flow.accept import BATCH_LIMIT, Accepted, Acceptor, Answer
from tidings.flow.options import AttachmentRequest, EmailOptions, Options, PushOptions, SmsOptions
from tidings.flow.request import DirectContent, Request, To
from tidings.telemetry import Metrics, Trace, child_trace, new_trace, parse_traceparent
from tidings.web.deps import parse_idempotency_key
from tidings.web.edge import (
    API_HEADERS,
    BODY_MAX,
    ClientGone,
    check_content_type,
    observe_request,
    read_body,
    read_headers,
    refuse_nul,
    send_response,
    to_rate_headers,
)
from tidings.web.problems import to_problem, to_response

BATCH_BODY_MAX: Final = 16 * 1024 * 1024
ONE: Final = "/api/v1/notifications"
ALIAS: Final = "/api/v1/send_notification"
BATCH: Final = "/api/v1/notifications/batch"

_decode_one: Final = msgspec.json.Decoder(Request).decode


class _Batch(msgspec.Struct, forbid_unknown_fields=True):
    notifications: list[Request]


class _RawBatch(msgspec.Struct, forbid_unknown_fields=True):
    notifications: list[msgspec.Raw]


_decode_batch: Final = msgspec.json.Decoder(_Batch).decode
_decode_raw_batch: Final = msgspec.json.Decoder(_RawBatch).decode
_encode: Final = msgspec.json.Encoder().encode
_FIELDS: Final = {
    name: {field.encode_name for field in msgspec.structs.fields(kind)}
    for name, kind in (
        ("", Request),
        ("/to", To),
        ("/content", DirectContent),
        ("/options", Options),
        ("/options/email", EmailOptions),
        ("/options/sms", SmsOptions),
        ("/options/push", PushOptions),
        ("/attachments/0", AttachmentRequest),
    )
}
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`$", re.DOTALL)
_INDEX: Final = re.compile(r"/\d+")
_MISSING: Final = re.compile(r"Object missing required field `(.*)`$", re.DOTALL)


class Hot:
    """ASGI application: the hot routes, and `rest` for everything else."""

    def __init__(self, rest: ASGIApp, acceptor: Acceptor, access: Access, metrics: Metrics, clock: Clock) -> None:
        self._rest = rest
        self._acceptor = acceptor
        self._access = access
        self._metrics = metrics
        self._rng = clock.random
        self._accepted = metrics.accepted.labels("accepted")
        self._duplicate = metrics.accepted.labels("duplicate")
        self._refused = metrics.accepted.labels("refused")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path")
        if (
            scope["type"] != "http"
            or path not in (ONE, ALIAS, BATCH)
            or (path == ONE and scope["method"] in ("GET", "HEAD"))
        ):
            await self._rest(scope, receive, send)
            return
        began = time.perf_counter()
        headers = read_headers(scope)
        parent = parse_traceparent(headers.get(b"traceparent", b"").decode("latin-1"))
        trace = child_trace(parent, self._rng) if parent else new_trace(self._rng)
        caller: Caller | None = None
        allowance: Allowance | None = None
        status = 500
        extra: list[tuple[bytes, bytes]] = []
        try:
            if scope["method"] != "POST":
                extra.append((b"allow", b"GET, HEAD, POST" if path == ONE else b"POST"))
                raise MethodNotAllowed
            authorization = headers.get(b"authorization")
            caller = await self._access.authenticate(authorization.decode("latin-1") if authorization else None)
            if caller.rate is not None and (allowance := await self._access.charge(caller, 1)) is not None:
                check_allowance(allowance, 1)
            body = await read_body(receive, BATCH_BODY_MAX if path == BATCH else BODY_MAX)
            check_content_type(headers.get(b"content-type"))
            key = headers.get(b"idempotency-key")
            idempotency_key = parse_idempotency_key(key.decode("latin-1")) if key is not None else None
            requests = parse_batch(body) if path == BATCH else [parse_one(body)]
            if allowance is not None and len(requests) > 1:  # one is counted
                allowance = await self._access.charge(caller, len(requests) - 1) or allowance
                check_allowance(allowance, len(requests))
            answers = await self._acceptor.accept(caller, requests, key=idempotency_key, traceparent=trace.to_header())
            self._count(answers)
            if path != BATCH and isinstance(answers[0], Problem):
                raise answers[0]
            told: Any = answers[0] if path != BATCH else {"results": [_to_result(answer) for answer in answers]}
            status, content, head = 202, _encode(told), [(b"content-type", b"application/json")]
            head.append((b"content-length", str(len(content)).encode()))
            if path != BATCH and isinstance(told, Accepted) and told.idempotent_replayed:
                head.append((b"idempotent-replayed", b"true"))
        except ClientGone:
            status = 499
            return
        except Exception as error:
            status, head, content = to_response(to_problem(error))
        finally:
            observe_request(
                self._metrics, method=scope["method"], route=path, status=status,
                seconds=time.perf_counter() - began, caller=caller, trace=trace,
            )  # fmt: skip
        if allowance is not None:
            extra += to_rate_headers(allowance)
        await send_response(send, status, [*head, *extra, *API_HEADERS, (b"traceparent", _header(trace))], content)

    def _count(self, answers: Sequence[Answer]) -> None:
        refused = sum(isinstance(answer, Problem) for answer in answers)
        replayed = sum(isinstance(answer, Accepted) and answer.idempotent_replayed for answer in answers)
        self._refused.inc(refused)
        self._duplicate.inc(replayed)
        self._accepted.inc(len(answers) - refused - replayed)


def _header(trace: Trace) -> bytes:
    return trace.to_header().encode()


def _to_result(answer: Answer) -> Any:
    return {"problem": answer.to_dict()} if isinstance(answer, Problem) else answer


def parse_one(body: bytes) -> Request:
    """The request that a body holds.

    Raises:
        Malformed: it is not JSON in UTF-8.
        Invalid: it is not a request; the errors say where.
    """
    try:
        request = _decode_one(body)
    except msgspec.ValidationError as error:
        raise explain(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(error) from None
    _refuse_odd_text(body)
    return request


def parse_batch(body: bytes) -> list[Request | Problem]:
    """The requests of a batch, each or the problem with it.

    Raises:
        Malformed: it is not JSON in UTF-8.
        Invalid: it is not `{"notifications": […]}`, or has none, or too many.
    """
    requests: Sequence[Request | Problem]
    try:
        requests = _decode_batch(body).notifications
        if b"\\u0000" in body:
            raise msgspec.ValidationError
    except msgspec.ValidationError:
        # One of them at least is wrong: look at each by itself.
        try:
            raws = _decode_raw_batch(body).notifications
        except msgspec.ValidationError as error:
            raise explain(error, {"": {"notifications"}}) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _malformed(error) from None
        requests = [_parse_item(bytes(raw)) for raw in raws[: BATCH_LIMIT + 1]]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(error) from None
    if not 1 <= len(requests) <= BATCH_LIMIT:
        said = f"A batch holds 1 to {BATCH_LIMIT:,} notifications."
        raise Invalid(said, errors=[FieldError(said, "/notifications")])
    return list(requests)


def _parse_item(raw: bytes) -> Request | Problem:
    try:
        return parse_one(raw)
    except Problem as problem:
        return problem


def _refuse_odd_text(body: bytes) -> None:
    if b"\\u0000" in body:
        refuse_nul(msgspec.json.decode(body))


def _malformed(error: Exception) -> Malformed:
    if isinstance(error, UnicodeDecodeError):
        return Malformed("The request body is not valid UTF-8.")
    if isinstance(error, RecursionError):
        return Malformed("The request body is nested too deeply.")
    return Malformed(f"The request body is not valid JSON: {error}.")


def explain(
    error: msgspec.ValidationError, fields: Mapping[str, Collection[str]] = _FIELDS, *, at: str = ""
) -> Invalid:
    """msgspec's message (`… - at `$.to.email``) as a problem with a pointer; `at` is where in the body it decoded."""
    said, _, path = str(error).partition(" - at `")
    path = path.rstrip("`").removeprefix("$").partition("[...]")[0]  # some key, it does not say which
    pointer = at + path.replace(".", "/").replace("[", "/").replace("]", "")
    if unknown := _UNKNOWN.search(said):
        name = unknown[1]
        near = difflib.get_close_matches(name, fields.get(_INDEX.sub("/0", pointer), ()), n=1)
        said = f"unknown field `{name[:80]}`" + (f"; did you mean `{near[0]}`?" if near else "")
        pointer = f"{pointer}/{name[:80].replace('~', '~0').replace('/', '~1')}"
    elif missing := _MISSING.search(said):
        said = f"the field `{missing[1]}` is missing"
    sentence = f"{said[:1].upper()}{said[1:]}"
    return Invalid(sentence if sentence.endswith("?") else f"{sentence}.", errors=[FieldError(said, pointer)])


def to_openapi() -> dict[str, Any]:
    """What /openapi.json says of the hot routes."""
    (request, accepted), components = msgspec.json.schema_components(
        [Request, Accepted], ref_template="#/components/schemas/{name}"
    )
    key = {
        "name": "Idempotency-Key", "in": "header", "required": False, "schema": {"type": "string", "maxLength": 255},
        "description": "Does the request once within 24 hours, however often it is repeated.",
    }  # fmt: skip
    trace = {
        "name": "traceparent", "in": "header", "required": False, "schema": {"type": "string"},
        "description": "W3C Trace Context; carried along to the provider.",
    }  # fmt: skip

    def post(operation: str, summary: str, body: Any, answer: Any) -> dict[str, Any]:
        return {
            "post": {
                "operationId": operation, "summary": summary, "tags": ["notifications"], "parameters": [key, trace],
                "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
                "responses": {
                    "202": {"description": "Stored", "content": {"application/json": {"schema": answer}}},
                },
            }
        }  # fmt: skip

    results = {
        "type": "object",
        "required": ["results"],
        "properties": {
            "results": {
                "type": "array",
                "items": {
                    "anyOf": [
                        accepted,
                        {"type": "object", "properties": {"problem": {"$ref": "#/components/schemas/Problem"}}},
                    ]
                },
            }
        },
    }
    batch = {
        "type": "object",
        "required": ["notifications"],
        "additionalProperties": False,
        "properties": {
            "notifications": {"type": "array", "items": request, "minItems": 1, "maxItems": BATCH_LIMIT},
        },
    }
    return {
        "paths": {
            ONE: post("send", "Send a notification", request, accepted),
            ALIAS: post("send_notification", "Send a notification (the same by another name)", request, accepted),
            BATCH: post("send_batch", "Send up to 1,000 notifications", batch, results),
        },
        "components": {"schemas": components},
    }
