"""Errors become answers here: RFC 9457 problem details, in words that say what to mend.

`to_problem` turns whatever was raised into a `Problem`, `to_response` turns a Problem into status, headers and body
bytes. Both are plain functions: the hot routes use them without FastAPI. Nothing of an internal error leaves the
process; the caller gets a reference, and the log line with that reference has the rest.
"""

from __future__ import annotations

import difflib
import math
import secrets
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Final

import asyncpg
import msgspec
import structlog
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from tidings import errors
from tidings.errors import FieldError, Problem

_log = structlog.get_logger(__name__)

# The database is away, ends our session, or has no room: the same request may well succeed in a moment.
_AWAY: Final = (
    errors.DatabaseUnavailable,
    errors.CommitUnknown,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InterfaceError,  # the connection is closed; but see _is_away
    asyncpg.InternalClientError,  # the driver's protocol is out of step: a connection that just broke
    ConnectionError,
    TimeoutError,
)


def to_problem(error: BaseException) -> Problem:
    """What the caller is told about `error`. Errors that nobody foresaw are logged, with the reference that is told."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        return _from_framework(error)
    if _is_away(error):
        reference = _reference()
        _log.warning("http.unavailable", reference=reference, error=type(error).__name__, exc_info=error)
        if isinstance(error, errors.CommitUnknown):
            detail = "It is not known whether this was done. Repeat the request with the same idempotency key."
        else:
            detail = errors.Unavailable.default_message()
        return errors.Unavailable(f"{detail} (reference {reference})", retry_after=1)
    reference = _reference()
    _log.error("http.failed", reference=reference, error=type(error).__name__, exc_info=error)
    return errors.Internal(f"{errors.Internal.default_message()} (reference {reference})")


def _is_away(error: BaseException) -> bool:
    # asyncpg calls it an interface error, too, when an argument does not fit its column: that is a mistake of ours.
    return isinstance(error, _AWAY) and not isinstance(error, asyncpg.DataError | ValueError)


def to_response(problem: Problem) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of a problem's answer."""
    body = msgspec.json.encode(problem.to_dict())
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if problem.retry_after is not None:
        # Whole seconds (RFC 9110, section 10.2.3), never less than what was meant.
        headers.append((b"retry-after", str(max(1, math.ceil(problem.retry_after))).encode()))
    if isinstance(problem, errors.Unauthenticated):
        headers.append((b"www-authenticate", b'Bearer realm="tidings"'))
    headers.extend(getattr(problem, "headers", ()))
    return problem.status, headers, body


def to_unknown_field(name: str, known: Collection[str]) -> str:
    """What is said about a field that does not exist: its name and the nearest one that does."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(sorted(known)) or 'none'}"
    return f"unknown field `{_short(name)}`; {hint}"


def to_pointer(path: Iterable[str | int]) -> str:
    """The JSON pointer (RFC 6901) of a path into the body."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def from_validation(error: RequestValidationError, endpoint: Callable[..., Any] | None) -> Problem:
    """FastAPI's validation error in our words: where, and what to mend.

    Args:
        endpoint: the route's function, whose body model names the fields that exist.
    """
    model = _body_model(endpoint)
    found: list[FieldError] = []
    for line in error.errors():
        place, *path = line["loc"]
        if line["type"] == "json_invalid":  # the edge has read the body before: this is its safety net
            return errors.Malformed()
        if path[-1:] == ["[key]"] and line["type"] != "extra_forbidden":
            path.pop()  # pydantic's mark that a name is meant, not what stands under it
        detail = _to_words(line, path, model)
        if place == "body":
            found.append(FieldError(detail, pointer=to_pointer(path)))
        else:
            found.append(FieldError(detail, parameter=str(path[0]) if path else str(place)))
    return errors.Invalid(errors=found)


def _to_words(line: Mapping[str, Any], path: Sequence[str | int], model: type[BaseModel] | None) -> str:
    kind, context = line["type"], line.get("ctx") or {}
    match kind:
        case "missing":
            return "is required" if path else "a JSON body is required"
        case "extra_forbidden":
            return to_unknown_field(str(path[-1]), _fields_at(model, path[:-1]))
        case "value_error" | "assertion_error":
            return str(context.get("error", line["msg"]))
        case "model_attributes_type" | "model_type" | "dict_type" | "dataclass_type":
            return "must be an object"
        case "list_type" | "tuple_type" | "set_type" | "frozen_set_type":
            return "must be a list"
        case "string_type":
            return "must be text"
        case "bool_type" | "bool_parsing":
            return "must be true or false"
        case "int_type" | "int_parsing" | "int_from_float":
            return "must be a whole number"
        case "float_type" | "float_parsing" | "finite_number":
            return "must be a number"
        case "string_too_short":
            return f"must have at least {_count(context['min_length'], 'character')}"
        case "string_too_long":
            return f"must have at most {_count(context['max_length'], 'character')}"
        case "too_short":
            return f"must have at least {_count(context['min_length'], 'item')}"
        case "too_long":
            return f"must have at most {_count(context['max_length'], 'item')}"
        case "greater_than_equal":
            return f"must be at least {context['ge']}"
        case "less_than_equal":
            return f"must be at most {context['le']}"
        case "greater_than":
            return f"must be more than {context['gt']}"
        case "less_than":
            return f"must be less than {context['lt']}"
        case "literal_error" | "enum":
            return f"must be one of {context['expected']}"
        case "string_pattern_mismatch":
            return f"must match {context['pattern']}"
        case _:
            message: str = line["msg"]
            return message[:1].lower() + message[1:]


def _body_model(endpoint: Callable[..., Any] | None) -> type[BaseModel] | None:
    if endpoint is None:
        return None
    return next(filter(None, map(_model_in, typing.get_type_hints(endpoint).values())), None)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation is, or holds as an item or an alternative."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    origin = typing.get_origin(annotation)
    if origin in (Annotated, list, tuple, dict, typing.Union, types.UnionType):
        return next(filter(None, map(_model_in, typing.get_args(annotation))), None)
    return None


def _fields_at(model: type[BaseModel] | None, path: Iterable[str | int]) -> list[str]:
    for part in path:
        if model is None:
            return []
        if isinstance(part, str) and (field := model.model_fields.get(part)):
            model = _model_in(field.annotation)
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


def _from_framework(error: HTTPException) -> Problem:
    """What routing itself refuses: unknown paths, methods, and unreadable bodies."""
    match error.status_code:
        case 404:
            return errors.NotFound("There is nothing at this path; /docs lists what there is.")
        case 405:
            problem = errors.MethodNotAllowed()
            allow = (error.headers or {}).get("Allow") or (error.headers or {}).get("allow")
            if allow:
                return _MethodNotAllowed(allow)
            return problem
        case 400:
            return errors.Malformed()
        case 413:
            return errors.TooLarge()
    return to_problem(RuntimeError(f"the framework raised HTTP {error.status_code}"))


class _MethodNotAllowed(errors.MethodNotAllowed):
    """This path does not answer to this method."""

    def __init__(self, allow: str) -> None:
        super().__init__(f"This path answers to {allow}.")
        self.headers = [(b"allow", allow.encode("latin-1"))]


def _reference() -> str:
    return secrets.token_hex(6)


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
