"""Events: what an application says happened becomes notifications, as the project's rules say.

Every rule that fits makes one notification of an event, which goes through accept like any other request. The event's
source and id with the rule's key are its idempotency key: an event that is delivered again within a day makes nothing
new, whoever delivers it. A rule that finds no user, or lacks what its template needs, spoils no other.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from tidings.clock import Clock
from tidings.directory.access import Access, Caller
from tidings.directory.catalog import Catalog
from tidings.directory.event_rules import StoredRule, fill_text, list_paths
from tidings.directory.rates import check_allowance
from tidings.errors import FieldError, Invalid, Problem, RateLimited, Unavailable
from tidings.flow.accept import BATCH_LIMIT, Acceptor, Answer
from tidings.flow.request import Request, To
from tidings.model.cloud_events import MISSING, CloudEvent
from tidings.model.conditions import Case, holds
from tidings.model.words import Scope

EVENTS_MAX: Final = 1_000
"""Events in one request."""
EVENT_MAX: Final = 256 * 1024
"""Octets of one event. CloudEvents asks for 64 kB (section 5)."""
_BREATH: Final = 0.01
"""Seconds of matching after which others get their turn."""
_MATCHING_MAX: Final = 10.0
"""Seconds that matching the events of one request may take. It is hardly ever a tenth of a second, but conditions on
long lists can be made to take hours."""


class Outcome(msgspec.Struct, frozen=True):
    """What a rule made of an event."""

    rule: str
    answer: Answer


class EventAcceptor:
    """Takes events, in an API process.

    Args:
        access: counts what rules make of events against the caller's rate.
    """

    def __init__(self, acceptor: Acceptor, catalog: Catalog, access: Access, clock: Clock) -> None:
        self._acceptor = acceptor
        self._catalog = catalog
        self._access = access
        self._clock = clock

    async def accept(
        self, caller: Caller, events: Sequence[CloudEvent], *, traceparent: str | None
    ) -> list[list[Outcome]]:
        """What the rules made of each event, in input order; nothing where none fits.

        Each event has been counted against the caller's rate once, which pays for the first notification made of it.
        Each further one is counted here; what is beyond the rate gets that problem.

        Raises:
            Forbidden: the caller may not send.
            Unavailable: the database is away. What was stored before stays; delivering the events again is safe.
        """
        caller.require(Scope.send)
        rules = await self._catalog.load_event_rules(caller.project_id)
        now = self._clock.now()
        outcomes: list[list[Outcome]] = [[] for _ in events]
        paid = set(range(len(events)))

        async def take(part: Sequence[tuple[int, CloudEvent, StoredRule]]) -> None:
            requests = [
                await self._charge(caller, plan_request(rule, event), place, paid) for place, event, rule in part
            ]
            prints = [to_print(rule.key, event, test=caller.test) for _, event, rule in part]
            answers = await self._acceptor.accept(caller, requests, key=None, traceparent=traceparent, prints=prints)
            for (place, _, rule), answer in zip(part, answers, strict=True):
                outcomes[place].append(Outcome(rule.key, answer))

        part: list[tuple[int, CloudEvent, StoredRule]] = []
        spent, began = 0.0, self._clock.monotonic()
        for place, event in enumerate(events):
            for rule in rules:
                if decide_match(rule, event, now):
                    part.append((place, event, rule))
                if len(part) < BATCH_LIMIT and self._clock.monotonic() - began < _BREATH:
                    continue
                spent += self._clock.monotonic() - began
                if spent > _MATCHING_MAX:
                    raise Unavailable("Holding these events against the rules takes too long; send fewer at once.")
                await asyncio.sleep(0)
                if len(part) == BATCH_LIMIT:
                    await take(part)
                    part = []
                began = self._clock.monotonic()
        if part:
            await take(part)
        return outcomes

    async def _charge(
        self, caller: Caller, request: Request | Problem, place: int, paid: set[int]
    ) -> Request | Problem:
        """The request, or why it is beyond the caller's rate; what is no request costs nothing.

        Args:
            place: the event's.
            paid: events whose own count is not used up.
        """
        if isinstance(request, Problem):
            return request
        if place in paid:
            paid.remove(place)
            return request
        allowance = await self._access.charge(caller, 1)
        try:
            if allowance is not None:
                check_allowance(allowance, 1)
        except RateLimited as problem:
            return problem
        return request


def decide_match(stored: StoredRule, event: CloudEvent, now: datetime) -> bool:
    """Whether the rule makes something of the event."""
    rule = stored.rule
    if not rule.matches(event):
        return False
    if rule.when is None:
        return True
    data = event.data if isinstance(event.data, Mapping) else {}
    return holds(rule.when, Case(data=data, now=now))


def plan_request(stored: StoredRule, event: CloudEvent) -> Request | Problem:
    """The request that the rule makes of an event, or why it cannot."""
    rule = stored.rule
    errors: list[FieldError] = []
    user = event.find(rule.user)
    # An application's ids are often numbers. A truth value is one too, in Python.
    if isinstance(user, int) and not isinstance(user, bool):
        user = str(user)
    if not isinstance(user, str):
        errors.append(
            FieldError(
                f"The event has no text and no whole number at `{rule.user}`, where the rule `{stored.key}` finds "
                "the user.",
                _to_pointer(rule.user),
            )
        )
        user = ""
    data: dict[str, Any] = {}
    if rule.data is not None:
        found = {name: event.find(path) for name, path in rule.data.items()}
        data = {name: value for name, value in found.items() if value is not MISSING}
    elif isinstance(event.data, dict):
        data = event.data
    once = None
    if rule.once is not None:
        values = _list_texts(rule.once, event)
        errors += [
            FieldError(f"The event has nothing at `{path}`, which the rule `{stored.key}` needs.", _to_pointer(path))
            for path, text in values.items()
            if text is None
        ]
        once = fill_text(rule.once, {path: text or "" for path, text in values.items()})
    metadata: dict[str, str] = {}
    for name, text in (rule.metadata or {}).items():
        values = _list_texts(text, event)
        told = {path: value for path, value in values.items() if value is not None}
        if len(told) == len(values):  # a pair of which a part is missing is left out
            metadata[name] = fill_text(text, told)
    if errors:
        return Invalid(errors[0].detail, errors=errors)
    return Request(
        to=To(user=user),
        type=rule.type,
        data=data,
        priority=rule.priority,
        metadata=metadata or None,
        once=once,
        idempotency_key=to_key(stored.key, event),
    )


def to_key(rule: str, event: CloudEvent) -> str:
    """The idempotency key of what a rule makes of an event. Source and id name one (CloudEvents, section 3.1.1)."""
    return "ce:" + hashlib.sha256(msgspec.json.encode((event.source, event.id, rule))).hexdigest()


def to_print(rule: str, event: CloudEvent, *, test: bool) -> bytes:
    """By which a repetition is known: the event's name alone, since the rule may have changed meanwhile. What a test
    key delivers is never the same as what a live key does."""
    return hashlib.sha256((b"test" if test else b"live") + to_key(rule, event).encode()).digest()


def _list_texts(text: str, event: CloudEvent) -> dict[str, str | None]:
    """By path what is to be written there; None where nothing stands that could be."""
    found: dict[str, str | None] = {}
    for path in list_paths(text):
        value = event.find(path)
        if isinstance(value, bool | int | float):
            value = msgspec.json.encode(value).decode()
        found[path] = value if isinstance(value, str) else None
    return found


def _to_pointer(path: str) -> str:
    return "/" + path.replace("~", "~0").replace("/", "~1").replace(".", "/")
