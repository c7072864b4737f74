"""What a request to the API is: a `Call`, or a `Listing` that is read page by page. Pure; and how they are made.

The functions here take what is data (ids, texts) for data: nothing that a caller passes becomes part of a path or of a
query unquoted.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import msgspec

from tidings.client.answers import Page

ChannelName = Literal["email", "sms", "push", "in_app", "webhook", "chat"]
PriorityName = Literal["critical", "high", "medium", "low"]
ScopeName = Literal["send", "send:critical", "read", "manage"]
GuaranteeName = Literal["at_least_once", "at_most_once"]

FrequencyName = Literal["instant", "hourly", "daily", "weekly"]

Result = TypeVar("Result")
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Call(Generic[Result]):
    """One HTTP request, and the type of its answer."""

    method: Literal["GET", "PUT", "PATCH", "POST", "DELETE"]
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


def to_path(*segments: str | int) -> str:
    """The path of a resource; each segment is data and is quoted as such.

    `.` and `..` are quoted too: left alone, they would be resolved and name another resource.
    """
    parts = [quote(str(s), safe="") for s in segments]
    return "/api/v1/" + "/".join(p.replace(".", "%2E") if not p.strip(".") else p for p in parts)


def given(**fields: Any) -> dict[str, Any]:
    """The fields that are not None: the server's defaults hold for the others."""
    return {name: value for name, value in fields.items() if value is not None}


def encode(body: Mapping[str, Any]) -> bytes:
    """A body as JSON.

    Raises:
        ValueError: a time in it has no time zone.
    """
    for name in ("send_at", "expires_at", "at"):
        at = body.get(name)
        if isinstance(at, datetime) and at.tzinfo is None:
            raise ValueError(f"{name} has no time zone: pass an aware datetime, such as datetime.now(UTC)")
    return msgspec.json.encode(body)


def to_query(**fields: Any) -> dict[str, str]:
    """The parameters that are not None, as text.

    Raises:
        ValueError: a time among them has no time zone.
    """

    def text(value: Any) -> str:
        if isinstance(value, datetime):
            if value.tzinfo is None:
                raise ValueError("pass an aware datetime, such as datetime.now(UTC)")
            return value.isoformat()
        return str(value)

    return {name: text(value) for name, value in fields.items() if value is not None}


def post(
    path: str,
    answer: Any,
    body: Mapping[str, Any],
    idempotency_key: str | None,
    traceparent: str | None = None,
) -> Call[Any]:
    """A POST that takes effect once, however often it is tried: without a key of the caller's it gets its own."""
    return Call(
        method="POST",
        path=path,
        answer=answer,
        body=encode(body),
        idempotency_key=idempotency_key or str(uuid.uuid4()),
        traceparent=traceparent,
    )


def ask(path: str, answer: Any, body: Mapping[str, Any]) -> Call[Any]:
    """A POST that changes nothing, or the same thing each time: it needs no key."""
    return Call(method="POST", path=path, answer=answer, body=encode(body))


def get(path: str, answer: Any) -> Call[Any]:
    """A GET of one thing."""
    return Call(method="GET", path=path, answer=answer)


def put(path: str, answer: Any, body: Mapping[str, Any]) -> Call[Any]:
    """A PUT."""
    return Call(method="PUT", path=path, answer=answer, body=encode(body))


def delete(path: str) -> Call[None]:
    """A DELETE."""
    return Call(method="DELETE", path=path, answer=None)
