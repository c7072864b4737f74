"""The edge: what every request passes before a route sees it, and every answer on its way out.

In this order: the trace, the path, who calls, how often, how much they send, whether it is JSON at all. So nobody who
cannot authenticate makes us read a body, and no route meets malformed input. On the way out: problems instead of
errors, security headers, one log line, metrics. Written in plain ASGI (https://asgi.readthedocs.io/en/latest/specs/www.html);
its functions serve the hot routes, which do without FastAPI.
"""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_to_bytes
from uuid import UUID

import msgspec
import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidings.directory.access import Access, Caller
from tidings.directory.blobs import BLOB_MAX
from tidings.directory.rates import WINDOW, Allowance, check_allowance
from tidings.directory.tokens import UserCaller
from tidings.errors import FieldError, Invalid, Malformed, TooLarge, UnsupportedMediaType
from tidings.ids import API_KEY, to_public
from tidings.telemetry import Metrics, Trace, child_trace, new_trace, parse_traceparent
from tidings.web.inbox.door import Door, is_inbox
from tidings.web.problems import to_pointer, to_problem, to_response

_log = structlog.get_logger(__name__)

BODY_MAX: Final = 1024 * 1024
"""Bytes of a request's body."""
RAW: Final[Mapping[str, int | None]] = {
    "/api/v1/blobs": BLOB_MAX,
    "/api/v1/events": 16 * 1024 * 1024,
    "/api/v1/users/import": None,
}
"""Paths whose bodies are not JSON but files, or JSON that the route looks at itself, and how many bytes each may have.
None: the route reads the body."""
OPEN: Final[Mapping[str, int | None]] = {
    "callbacks": None,
    "r": 16 * 1024,
    "o": 0,
    "c": 0,
    "u": 16 * 1024,
    "p": 256 * 1024,
}
"""By the first part of the path: what vendors and devices report and people's forms say, in whatever form, and how many
bytes each may have.
Whoever comes here has shown nothing, so what needs no body may have none. None: the route knows callers by the path,
and reads the body once it does."""
_DRAIN_MAX: Final = 64 * 1024 * 1024
"""Bytes that are read and thrown away after a body proved too large, so that the caller gets to read the answer."""
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PROBES: Final = frozenset({"/healthz", "/readyz", "/metrics"})
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})

SECURITY_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)
API_HEADERS: Final = (
    *SECURITY_HEADERS,
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""For every answer of the API: nothing of it is to be stored, framed or interpreted."""


class ClientGone(Exception):
    """The caller hung up before the request was complete."""


class Edge:
    """ASGI middleware around the application; see the module's docstring.

    It tells routes by `app.state.templates`: the path template of each endpoint.
    """

    def __init__(self, app: ASGIApp, *, access: Access, door: Door, metrics: Metrics, rng: random.Random) -> None:
        self._app = app
        self._access = access
        self._door = door
        self._metrics = metrics
        self._rng = rng

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = time.perf_counter()
        headers = read_headers(scope)
        parent = parse_traceparent(headers.get(b"traceparent", b"").decode("latin-1"))
        trace = child_trace(parent, self._rng) if parent else new_trace(self._rng)
        # A copy: what is changed here must not leak to whoever wrapped us. `route` comes back in it.
        scope = dict(scope)
        state = scope["state"] = {**scope.get("state", {}), "trace": trace}
        api = scope["path"].startswith("/api/")
        extra = [*(API_HEADERS if api else SECURITY_HEADERS), (b"traceparent", trace.to_header().encode())]
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {name.lower() for name, _ in message.get("headers", ())}
                message = {
                    **message,
                    "headers": [*message.get("headers", ()), *(pair for pair in extra if pair[0] not in own)],
                }
            await send(message)

        try:
            scope["path"] = _decode_path(scope)
            _check_query(scope)
            if is_inbox(scope["path"]):
                if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                    await send_response(answer, 204, await self._door.preflight(headers), b"")
                    return
                state["user"] = await self._door.enter(headers, extra)
            elif api:
                caller = state["caller"] = await self._access.authenticate(_text(headers.get(b"authorization")))
                if (allowance := await self._access.charge(caller, 1)) is not None:
                    extra += to_rate_headers(allowance)
                    check_allowance(allowance, 1)
            first = scope["path"].removeprefix("/").partition("/")[0]
            raw, of = (RAW, scope["path"]) if api else (OPEN, first)
            if (limit := raw.get(of, BODY_MAX)) is not None:
                body = await read_body(receive, limit)
                if body and of not in raw and scope["method"] in _WITH_BODY:
                    check_json(body, headers.get(b"content-type"))
                receive = _replay(body, receive)
            await self._app(scope, receive, answer)
        except ClientGone:
            status = 499  # as nginx counts it: there was nobody left to answer
        except Exception as error:
            problem = to_problem(error)
            if status:
                # The answer had begun; it cannot be taken back. The server cuts the connection, which tells enough.
                raise
            await send_response(answer, *to_response(problem))
        finally:
            route = scope["app"].state.templates.get(scope.get("endpoint"), "unmatched")
            observe_request(
                self._metrics,
                method=scope["method"],
                route=route,
                status=status,
                seconds=time.perf_counter() - started_at,
                caller=state.get("caller"),
                user=state.get("user"),
                trace=trace,
            )


def observe_request(
    metrics: Metrics,
    *,
    method: str,
    route: str,
    status: int,
    seconds: float,
    caller: Caller | None,
    trace: Trace,
    user: UserCaller | None = None,
) -> None:
    """One log line and the metrics of one request.

    Args:
        route: the template (`/api/v1/users/{user_id}`), never the path: that holds ids chosen by others.
    """
    method = method if method in _METHODS else "other"
    metrics.observe_http(method, route, status, seconds)
    # Probes and scrapes come every few seconds and say nothing as long as they succeed.
    write = _log.debug if route in _PROBES and status < 400 else _log.info
    write(
        "http.request",
        method=method,
        route=route,
        status=status,
        ms=round(seconds * 1000, 2),
        project=found.project_key if (found := caller or user) else None,
        key=_to_key_id(caller.key_id) if caller else None,
        trace=trace.trace_id,
    )


@lru_cache(maxsize=1024)
def _to_key_id(key_id: UUID) -> str:
    return to_public(API_KEY, key_id)


def to_rate_headers(allowance: Allowance) -> list[tuple[bytes, bytes]]:
    """What the key may do and has left.

    See https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-ratelimit-headers-10 (`q` requests in `w` seconds; `r`
    are left for the next `t` seconds).
    """
    return [
        (b"ratelimit-policy", b'"key";q=%d;w=%d' % (allowance.limit, WINDOW)),
        (b"ratelimit", b'"key";r=%d;t=%d' % (allowance.left, math.ceil(allowance.seconds))),
    ]


def read_headers(scope: Scope) -> Mapping[bytes, bytes]:
    """The request's headers by lower-case name; the first one counts where a name comes twice."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        found.setdefault(name, value)
    return found


async def read_body(receive: Receive, limit: int) -> bytes:
    """The whole body, counted as it comes in: what `Content-Length` says is not asked.

    Raises:
        TooLarge: it has more than `limit` bytes.
        ClientGone: the caller hung up.
    """
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        return body
    chunks: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        elif size > max(limit, _DRAIN_MAX):
            raise _too_large(limit)
        if not message.get("more_body", False):
            break
        message = await receive()
    if size > limit:
        raise _too_large(limit)
    return b"".join(chunks)


def check_json(body: bytes, content_type: bytes | None) -> None:
    """Nothing, if the body is JSON (RFC 8259) in UTF-8, says so, and holds no NUL.

    Raises:
        UnsupportedMediaType: the header names something else.
        Malformed: it is no JSON.
        Invalid: some text in it holds U+0000, which PostgreSQL cannot store.
    """
    check_content_type(content_type)
    try:
        document = msgspec.json.decode(body)
    except UnicodeDecodeError:
        raise Malformed("The request body is not valid UTF-8.") from None
    except RecursionError:
        raise Malformed("The request body is nested too deeply.") from None
    except msgspec.MsgspecError as error:
        raise Malformed(f"The request body is not valid JSON: {error}.") from None
    # The escape is the only way to write it (a raw one is no JSON), so nearly every body is done here.
    if b"\\u0000" in body:
        refuse_nul(document)


def check_content_type(content_type: bytes | None) -> None:
    """Nothing, if this `Content-Type` is `application/json` (or `…+json`) without a charset other than UTF-8.

    Raises:
        UnsupportedMediaType: it is not.
    """
    if content_type is None:
        raise UnsupportedMediaType
    essence, *parameters = (part.strip().lower() for part in content_type.split(b";"))
    if not (essence == b"application/json" or (essence.startswith(b"application/") and essence.endswith(b"+json"))):
        raise UnsupportedMediaType
    for parameter in parameters:
        name, _, value = parameter.partition(b"=")
        if name == b"charset" and value.strip(b'"') not in (b"utf-8", b"utf8"):
            raise UnsupportedMediaType("Send JSON in UTF-8.")


def refuse_nul(document: Any) -> None:
    """Nothing, if no text of the document holds U+0000.

    Raises:
        Invalid: with a pointer to each that does.
    """
    found = [FieldError("must not contain the character NUL", pointer=to_pointer(path)) for path in _nuls(document, ())]
    if found:
        raise Invalid(errors=found[:50])


def _nuls(value: Any, path: tuple[str | int, ...]) -> Iterable[tuple[str | int, ...]]:
    if isinstance(value, str):
        if "\0" in value:
            yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            if "\0" in key:
                yield path
            yield from _nuls(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _nuls(item, (*path, index))


async def send_response(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    """One whole answer."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


_KEPT: Final = re.compile(rb"(%2[fF]|%25)")


def _decode_path(scope: Scope) -> str:
    """The path with every escape decoded but those of `/` and `%`, so that an id may hold a slash.

    Who takes an id out of the path decodes these two (see `tidings.web.fields.UserId`).
    """
    raw: bytes | None = scope.get("raw_path")
    path: str = scope["path"]
    if raw is None:  # the server decoded it and kept nothing: a `%` that is left is one
        return path.replace("%", "%25")
    if b"%" not in raw:
        return path
    parts = _KEPT.split(raw)
    decoded = b"".join(part if index % 2 else unquote_to_bytes(part) for index, part in enumerate(parts))
    try:
        return decoded.decode()
    except UnicodeDecodeError:
        raise Malformed("The path is not valid UTF-8.") from None


def _check_query(scope: Scope) -> None:
    query: bytes = scope.get("query_string", b"")
    if b"%00" in query:
        names = [
            name for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True) if "\0" in name + value
        ]
        raise Invalid(errors=[FieldError("must not contain the character NUL", parameter=name) for name in names])


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that has been read, then what really comes."""
    pending = True

    async def replay() -> Message:
        nonlocal pending
        if pending:
            pending = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def _too_large(limit: int) -> TooLarge:
    most = f"{limit // 1024**2} MB" if limit >= 1024**2 else f"{limit // 1024} kB"
    return TooLarge(f"The request body is larger than {most}.")
