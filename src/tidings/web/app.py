"""The web application: the routes of every noun behind the edge, health, metrics, and its own documentation.

The hot routes of the road are mounted in front of this application by the composition root; they are documented here
all the same, from the fragment in `Deps.extra_openapi`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any, Final, NoReturn

import msgspec
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from tidings import errors
from tidings.web import callbacks
from tidings.web.api import (
    accounts,
    audit,
    blobs,
    broadcasts,
    categories,
    dead_letters,
    event_rules,
    events,
    explain,
    hooks,
    imports,
    keys,
    notifications,
    preference_links,
    preferences,
    projects,
    segments,
    suppressions,
    templates,
    topics,
    types,
    users,
)
from tidings.web.callbacks import add_callbacks
from tidings.web.deps import Deps
from tidings.web.edge import Edge
from tidings.web.health import health_endpoints
from tidings.web.inbox import items, stream
from tidings.web.inbox import preferences as own_preferences
from tidings.web.inbox.door import COOKIE, Door, is_inbox
from tidings.web.pages import routes as pages
from tidings.web.problems import from_validation

API: Final = "/api/v1"
OPEN: Final = (
    frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/docs/{name}"})
    | callbacks.PATHS
    | pages.PATHS
)
"""The routes that ask for no key: callbacks and links are signed instead. Everything else takes one of `Reader`,
`Sender`, `Admin`."""

ROUTERS: Final = (
    notifications.router,
    explain.router,
    broadcasts.router,
    blobs.router,
    dead_letters.router,
    imports.router,
    users.router,
    preference_links.router,
    preferences.router,
    categories.router,
    types.router,
    templates.router,
    accounts.router,
    projects.router,
    topics.router,
    segments.router,
    events.router,
    event_rules.router,
    suppressions.router,
    hooks.router,
    keys.router,
    audit.router,
    items.router,
    own_preferences.router,
    stream.router,
)

_DESCRIPTION: Final = """\
Tell people what they need to know, on the channel they chose, once, in time.

Authenticate with `Authorization: Bearer <key>`. Bodies are JSON in UTF-8; unknown fields are refused. Times are
RFC 3339 in UTC, durations read `90s`, `10m`, `2d`. Errors are problem details (RFC 9457) whose `errors` point at what
to mend. Lists are paged: pass `next_cursor` on as `cursor`. A POST with an `Idempotency-Key` is done once within
24 hours, however often it is repeated. A revoked key stops working within five seconds."""

_DOCS_CSP: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ASSETS: Final = {
    "docs.css": "text/css; charset=utf-8",
    "docs.js": "text/javascript; charset=utf-8",
}


def create_web(deps: Deps, routers: Sequence[APIRouter] = ()) -> FastAPI:
    """The application.

    Args:
        routers: of nouns that this room does not know, mounted under /api/v1 like the others.
    """
    app = FastAPI(
        title="Tidings",
        version="1",
        description=_DESCRIPTION,
        # Ours: the first describes more than FastAPI knows, the second works without a network.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(
                Edge,
                access=deps.access,
                door=Door(deps.tokens, deps.access),
                metrics=deps.metrics,
                rng=deps.clock.random,
            )
        ],
        exception_handlers={RequestValidationError: _refuse_request, HTTPException: _refuse_route},
        # The edge logs, counts and traces. FastAPI's own would record error texts, which may hold addresses, and
        # would obey environment variables that are not settings of ours.
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
        },
    )
    app.state.deps = deps
    for router in (*ROUTERS, *routers):
        app.include_router(router, prefix=API)
    _add_health(app, deps)
    _add_docs(app, deps)
    add_callbacks(app, deps)
    pages.add_pages(app, deps)
    app.state.templates = {context.endpoint: context.path for context in iter_route_contexts(app.routes)}
    return app


def to_openapi(app: FastAPI, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The OpenAPI 3.1 document: what FastAPI knows, the problems that every operation may answer, and `extra`."""
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, openapi_version="3.1.0", routes=app.routes
    )
    components = document.setdefault("components", {})
    for kind, entries in extra.get("components", {}).items():
        components.setdefault(kind, {}).update(entries)
    for path, operations in extra.get("paths", {}).items():
        document["paths"].setdefault(path, {}).update(operations)
    document["paths"] = dict(sorted(document["paths"].items()))
    told = {tag["name"]: tag for tag in extra.get("tags", ())}
    document["tags"] = [told.get(name, {"name": name}) for name in sorted(_tags(document))]
    components.setdefault("schemas", {})["Problem"] = _PROBLEM_SCHEMA
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    components["responses"] = {error.__name__: _to_response_object(error) for error in _PROBLEMS}
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key: `tdg_…`, or `tdgt_…` for tests."},
        "user": {"type": "http", "scheme": "bearer", "description": "A user token: `tdu_…`."},
        "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "A user token, from a page."},
    }
    for path, operation in _operations(document):
        _describe_problems(path, operation)
    return document


# ---------------------------------------------------------------- errors


def _refuse_request(request: Request, error: Exception) -> NoReturn:
    # Raised on: the edge turns every error into its answer, in one place.
    assert isinstance(error, RequestValidationError)
    raise from_validation(error, request.scope.get("endpoint")) from None


def _refuse_route(request: Request, error: Exception) -> NoReturn:
    assert isinstance(error, HTTPException)
    path = request.app.state.templates.get(request.scope.get("endpoint"))
    if error.status_code == 405 and path is not None:
        # The framework names the methods of one route; a path has several.
        routes = [context for context in iter_route_contexts(request.app.routes) if context.path == path]
        error.headers = {"Allow": ", ".join(sorted({method for route in routes for method in route.methods or ()}))}
    raise error


# ---------------------------------------------------------------- health and metrics


def _add_health(app: FastAPI, deps: Deps) -> None:
    for path, endpoint in health_endpoints(deps.ready, deps.metrics).items():
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)


# ---------------------------------------------------------------- documentation


def _add_docs(app: FastAPI, deps: Deps) -> None:
    folder = files(__package__).joinpath("docs")
    page = folder.joinpath("index.html").read_bytes()
    assets = {name: folder.joinpath(name).read_bytes() for name in _ASSETS}
    document: bytes | None = None

    async def openapi() -> Response:
        nonlocal document
        if document is None:  # not sooner: routers may be added until the first request
            document = msgspec.json.encode(to_openapi(app, deps.extra_openapi))
        return Response(document, media_type="application/json", headers={"access-control-allow-origin": "*"})

    async def docs() -> Response:
        headers = {"content-security-policy": _DOCS_CSP.decode()}
        return Response(page, media_type="text/html", headers=headers)

    async def asset(name: str) -> Response:
        if name not in assets:
            raise errors.NotFound
        return Response(assets[name], headers={"content-type": _ASSETS[name], "cache-control": "max-age=3600"})

    for path, endpoint in (("/openapi.json", openapi), ("/docs", docs), ("/docs/{name}", asset)):
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)


_PROBLEMS: Final = (
    errors.Malformed,
    errors.Unauthenticated,
    errors.Forbidden,
    errors.NotFound,
    errors.Conflict,
    errors.TooLarge,
    errors.UnsupportedMediaType,
    errors.Invalid,
    errors.TooManyRequests,
    errors.RateLimited,
    errors.Internal,
    errors.Unavailable,
)

_PROBLEM_SCHEMA: Final = {
    "type": "object",
    "title": "Problem",
    "description": "Problem details (RFC 9457).",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri", "description": "Stable; what to program against."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "For people: what is wrong and what to do."},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["detail"],
                "properties": {
                    "detail": {"type": "string"},
                    "pointer": {"type": "string", "description": "JSON pointer into the body (RFC 6901)."},
                    "parameter": {"type": "string", "description": "Name of a path, query or header parameter."},
                },
            },
        },
    },
}


def _to_response_object(error: type[errors.Problem]) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        "description": error.default_message(),
        "content": {"application/problem+json": {"schema": schema, "example": error().to_dict()}},
    }


def _describe_problems(path: str, operation: dict[str, Any]) -> None:
    may = [errors.Unauthenticated, errors.Forbidden, errors.Invalid, errors.Internal, errors.Unavailable]
    may.append(errors.TooManyRequests if is_inbox(path) else errors.RateLimited)
    if "{" in path:
        may.append(errors.NotFound)
    if "requestBody" in operation:
        may += [errors.Malformed, errors.TooLarge, errors.UnsupportedMediaType]
    if "requestBody" in operation or path.endswith("}"):
        may.append(errors.Conflict)
    responses = operation["responses"]
    for error in may:
        responses[str(error.status)] = {"$ref": f"#/components/responses/{error.__name__}"}
    for answer in responses.values():
        if answer.get("description") == "Successful Response":  # FastAPI's words for no words
            answer["description"] = "Done"
    operation["responses"] = dict(sorted(responses.items()))
    operation.setdefault("security", [{"user": []}, {"cookie": []}] if is_inbox(path) else [{"key": []}])


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method in ("get", "put", "post", "delete", "patch"):
                yield path, operation


def _tags(document: Mapping[str, Any]) -> set[str]:
    return {tag for _, operation in _operations(document) for tag in operation.get("tags", ())}


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")
