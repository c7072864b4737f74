"""What the API answers, as frozen structs.

Words from closed sets of the server (status, reason, event, channel) are plain `str` here on purpose: a newer server
may know more of them than this client, and an answer must not become unreadable because of it. For the same reason
unknown fields are ignored and everything that a server may leave out has a default.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, TypeVar

import msgspec

Item = TypeVar("Item")


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all answers."""


class Page(Answer, Generic[Item], frozen=True, kw_only=True):
    """One page of a list; the clients follow `next_cursor` themselves."""

    items: list[Item]
    next_cursor: str | None = None


# ---------------------------------------------------------------- notifications


class Accepted(Answer, frozen=True, kw_only=True):
    """The notification is stored and will be worked on, whatever happens to this process or to the server's."""

    id: str
    status: str
    idempotent_replayed: bool = False
    """True: an earlier request with this idempotency key had made it already; this one changed nothing."""


class FieldError(Answer, frozen=True, kw_only=True):
    """One thing to mend: a JSON pointer (RFC 6901) or a parameter's name, and what is wrong there."""

    detail: str
    pointer: str | None = None
    parameter: str | None = None

    def __str__(self) -> str:
        where = self.pointer or self.parameter
        return f"{where}: {self.detail}" if where else self.detail


class Problem(Answer, frozen=True, kw_only=True):
    """Why a request, or one item of a batch, was refused (RFC 9457)."""

    status: int = 0
    type: str = "about:blank"
    title: str = ""
    detail: str = ""
    errors: list[FieldError] = []

    @property
    def code(self) -> str:
        """The stable last part of `type`, such as `not-found`."""
        return self.type.rpartition("#")[2]


class BatchItem(Answer, frozen=True, kw_only=True):
    """One line of a batch answer as it comes over the wire: either accepted, or a problem."""

    id: str = ""
    status: str = ""
    idempotent_replayed: bool = False
    problem: Problem | None = None

    def to_outcome(self) -> Accepted | Problem:
        """The half that is set."""
        if self.problem is not None:
            return self.problem
        return Accepted(id=self.id, status=self.status, idempotent_replayed=self.idempotent_replayed)


class BatchAnswer(Answer, frozen=True, kw_only=True):
    """The answer to one batch request, in the order of its items."""

    results: list[BatchItem]


class Delivery(Answer, frozen=True, kw_only=True):
    """One notification on one channel to one address."""

    id: str
    channel: str
    status: str
    address: str | None = None
    account: str | None = None
    """The key of the account of the last attempt; `provider` is its vendor."""
    provider: str | None = None
    engagement: list[str] = []
    attempts: int = 0
    reason: str | None = None
    locale: str | None = None
    sent_at: datetime | None = None
    delivered_at: datetime | None = None


class TimelineEntry(Answer, frozen=True, kw_only=True):
    """One fact in the life of a notification."""

    at: datetime
    event: str
    delivery: str | None = None
    channel: str | None = None
    provider: str | None = None
    attempt: int | None = None
    reason: str | None = None
    detail: Any = None
    """The provider's words, as evidence."""


class NotificationSummary(Answer, frozen=True, kw_only=True):
    """A notification as lists show it."""

    id: str
    status: str
    """scheduled, queued, held, digested, processing, sent, delivered, partly, failed, expired, cancelled, skipped."""
    created_at: datetime
    priority: str | None = None
    type: str | None = None
    user: str | None = None
    to: str | None = None
    """The address, when it was sent ad hoc."""
    send_at: datetime | None = None


class Notification(NotificationSummary, frozen=True, kw_only=True):
    """A notification with all that became of it."""

    type_version: int | None = None
    expires_at: datetime | None = None
    cancelled_at: datetime | None = None
    reason: str | None = None
    """What it waits for, or why nothing more is sent."""
    until: datetime | None = None
    """When it goes on."""
    digest: str | None = None
    """The notification that goes in its place, or will."""
    items: int | None = None
    """How many notifications it stands for, if it is a digest."""
    broadcast: str | None = None
    metadata: dict[str, str] = {}
    test: bool = False
    deliveries: list[Delivery] = []
    timeline: list[TimelineEntry] = []


class Cancelled(Answer, frozen=True, kw_only=True):
    """The definite answer to a cancellation: `cancelled`, `too_late`, or `partly`."""

    result: str
    id: str | None = None


class Ruling(Answer, frozen=True, kw_only=True):
    """What one rule answered when a notification was planned."""

    rule: str
    answer: str
    """`go`, `no` (not on this channel), `hold`, `digest`, or `stop` (no further step)."""
    channel: str | None = None
    level: str = "default"
    """Where the rule that decided stands, from `user_type` to `default`."""
    reason: str | None = None
    until: datetime | None = None
    detail: str | None = None
    text: str = ""
    """The same in a sentence."""


class RulingsOfChannel(Answer, frozen=True, kw_only=True):
    """What came of one delivery, with every rule that was asked for it, in order."""

    channel: str
    outcome: str
    address: str | None = None
    reason: str | None = None
    text: str = ""
    rules: list[Ruling] = []


class RulingsOfPass(Answer, frozen=True, kw_only=True):
    """What was ruled at one time of planning."""

    at: datetime
    rulings: list[Ruling] = []


class Explanation(Answer, frozen=True, kw_only=True):
    """Why a notification is where it is, or where one would go."""

    status: str
    """`refused`: it would not be accepted, and `problem` says why."""
    text: str = ""
    id: str | None = None
    reason: str | None = None
    until: datetime | None = None
    digest: str | None = None
    channels: list[RulingsOfChannel] = []
    passes: list[RulingsOfPass] = []
    """One for each time that it was planned: the rules that had an opinion."""
    problem: Problem | None = None


# ---------------------------------------------------------------- many at once


class Broadcast(Answer, frozen=True, kw_only=True):
    """One request for many, and how far it is."""

    id: str
    status: str
    """`scheduled`, `running`, `paused`, `done` or `cancelled`."""
    type: str = ""
    type_version: int | None = None
    to: dict[str, Any] = {}
    exclude: dict[str, Any] = {}
    estimated: int = 0
    """Users when it was made."""
    expanded: int = 0
    """Users whose notification has been made."""
    priority: str = "medium"
    channels: list[str] | None = None
    locale: str | None = None
    metadata: dict[str, str] = {}
    once: str | None = None
    rate: float | None = None
    send_at: datetime | None = None
    local_time: str | None = None
    expires_at: datetime | None = None
    test: bool = False
    created_at: datetime | None = None
    ended_at: datetime | None = None
    cancelled_at: datetime | None = None


class Estimate(Answer, frozen=True, kw_only=True):
    """How many users a broadcast would reach, and some of them."""

    count: int
    sample: list[str] = []


class LineError(Answer, frozen=True, kw_only=True):
    """What is wrong with a line of a file."""

    line: int
    detail: str
    pointer: str | None = None


class Imported(Answer, frozen=True, kw_only=True):
    """What became of a file of users."""

    imported: int
    changed: int = 0
    failed: int = 0
    errors: list[LineError] = []


# ---------------------------------------------------------------- events


class EventMade(Answer, frozen=True, kw_only=True):
    """What a rule made of an event: a notification, or the problem with it."""

    rule: str
    id: str | None = None
    status: str | None = None
    idempotent_replayed: bool = False
    problem: Problem | None = None


class EventResult(Answer, frozen=True, kw_only=True):
    """What became of an event."""

    id: str | None = None
    notifications: list[EventMade] = []
    problem: Problem | None = None


class EventResults(Answer, frozen=True, kw_only=True):
    """What became of the events, in their order."""

    results: list[EventResult] = []


# ---------------------------------------------------------------- operations


class DeadLetter(Answer, frozen=True, kw_only=True):
    """A delivery that ended in failure and waits for somebody to send it again."""

    delivery: str
    notification: str
    channel: str
    reason: str
    attempts: int = 0
    at: datetime | None = None


class Replayed(Answer, frozen=True, kw_only=True):
    """How many dead letters were put back to work."""

    replayed: int


class Readiness(Answer, frozen=True, kw_only=True):
    """Whether the server can do its work, and what it looked at."""

    status: str = ""
    checks: dict[str, Any] = {}
