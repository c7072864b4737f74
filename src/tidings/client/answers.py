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
    """Derived from the deliveries: scheduled, queued, held, digested, processing, sent, delivered, partly, failed, expired,
    cancelled, skipped."""
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


# ---------------------------------------------------------------- directory


class Project(Answer, frozen=True, kw_only=True):
    """The project that the API key belongs to."""

    key: str
    name: str = ""
    created_at: datetime | None = None
    settings: dict[str, Any] = {}
    """In the form that `put_settings` takes."""


class Blob(Answer, frozen=True, kw_only=True):
    """A stored file; its id goes into an attachment as `blob`."""

    id: str
    size: int = 0


class User(Answer, frozen=True, kw_only=True):
    """Somebody to tell."""

    id: str
    locale: str | None = None
    time_zone: str | None = None
    region: str | None = None
    attributes: dict[str, Any] = {}
    addresses: dict[str, list[str]] = {}
    """Channel to its addresses."""
    created_at: datetime | None = None
    updated_at: datetime | None = None


class InboxAction(Answer, frozen=True, kw_only=True):
    """A button on an inbox item."""

    id: str
    title: str
    url: str | None = None


class InboxItem(Answer, frozen=True, kw_only=True):
    """One stored in-app notification; `seq` grows from item to item of a user, newest first in lists."""

    id: str
    seq: int
    title: str
    body: str = ""
    url: str | None = None
    actions: tuple[InboxAction, ...] = ()
    notification: str | None = None
    category: str | None = None
    changed_seq: int | None = None
    created_at: datetime | None = None
    seen_at: datetime | None = None
    read_at: datetime | None = None
    clicked_at: datetime | None = None
    archived_at: datetime | None = None


class UserToken(Answer, frozen=True, kw_only=True):
    """A token with which a user's browser or app reads and marks their own inbox."""

    token: str
    expires_at: datetime


class Category(Answer, frozen=True, kw_only=True):
    """What a user can opt in or out of; `required` ones cannot be switched off."""

    key: str
    name: str = ""
    description: str = ""
    required: bool = False
    defaults: dict[str, bool] = {}
    frequency: str = "instant"
    digest_hour: int = 9
    quiet_hours: dict[str, Any] | None = None
    limits: list[dict[str, Any]] = []
    created_at: datetime | None = None
    updated_at: datetime | None = None


class NotificationType(Answer, frozen=True, kw_only=True):
    """One version of what is told."""

    key: str
    version: int
    category: str
    template: str
    priority: str = "medium"
    steps: list[dict[str, Any]] = []
    expires_after: str | None = None
    guarantee: str = "at_least_once"
    critical: bool = False
    schema: dict[str, Any] | None = None
    tracking: bool = True
    digest: dict[str, Any] | None = None
    limits: list[dict[str, Any]] = []
    quiet: str = "wait"
    preferences: dict[str, bool] = {}
    send_time: dict[str, Any] | None = None
    created_at: datetime | None = None
    archived_at: datetime | None = None


class Template(Answer, frozen=True, kw_only=True):
    """Content per channel and locale, in immutable numbered versions."""

    key: str
    name: str = ""
    published_version: int | None = None
    latest_version: int = 0
    created_at: datetime | None = None
    updated_at: datetime | None = None


class TemplateVersion(Answer, frozen=True, kw_only=True):
    """One version of a template; `required` names the variables that the data must hold."""

    version: int
    template: str = ""
    content: dict[str, Any] = {}
    required: list[str] = []
    published_at: datetime | None = None
    created_at: datetime | None = None


class Preview(Answer, frozen=True, kw_only=True):
    """What a template makes of some data, rendered but not sent."""

    channel: str
    locale: str | None = None
    fields: dict[str, str] = {}
    version: int | None = None


class Account(Answer, frozen=True, kw_only=True):
    """One configured set of a provider's credentials. Secrets are never shown again: they read `"…"`."""

    key: str
    channel: str
    provider: str
    config: dict[str, Any] = {}
    weight: int = 100
    rate: float | None = None
    burst: int = 1
    concurrency: int = 64
    quotas: dict[str, Any] = {}
    costs: dict[str, float] = {}
    currency: str | None = None
    enabled: bool = True
    test: bool = False
    revision: int | None = None
    callback_url: str | None = None
    state: dict[str, Any] = {}
    """How it does at present: breaker, health, effective weight, learned pace, what it has used."""
    created_at: datetime | None = None
    updated_at: datetime | None = None


class AccountCheck(Answer, frozen=True, kw_only=True):
    """What a vendor says of an account's credentials."""

    outcome: str
    """`ok`, `failed`, or `unknown`: it cannot be asked without sending something."""
    detail: str | None = None


class ApiKey(Answer, frozen=True, kw_only=True):
    """An API key without its secret."""

    id: str
    name: str = ""
    scopes: list[str] = []
    test: bool = False
    rate: int | None = None
    """Requests per minute; None: as the server's operator says."""
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    created_at: datetime | None = None


class CreatedKey(ApiKey, frozen=True, kw_only=True):
    """A new API key. This is the only time that its text is to be had."""

    key: str | None = None
    """None when an idempotent repetition found it made already: the server keeps no copy of the text."""

    def __repr__(self) -> str:
        return f"CreatedKey(id={self.id!r}, name={self.name!r}, scopes={self.scopes!r}, test={self.test!r})"


class AuditEntry(Answer, frozen=True, kw_only=True):
    """Who changed what, with the state before and after."""

    id: str
    at: datetime
    actor: str
    action: str
    object: str
    key_id: str | None = None
    before: Any = None
    after: Any = None


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


# ---------------------------------------------------------------- what users want, and what they are in


class ChannelChoice(Answer, frozen=True, kw_only=True):
    """Whether a user hears of something on a channel, and who decided."""

    on: bool
    level: str = "default"
    detail: str = ""
    required: bool = False
    locked: bool = False
    """The user cannot change it."""


class FrequencyChoice(Answer, frozen=True, kw_only=True):
    """How often a user hears of a category, and who decided."""

    value: str
    level: str = "default"
    locked: bool = False


class CategoryChoice(Answer, frozen=True, kw_only=True):
    """What holds for a user in a category."""

    key: str
    frequency: FrequencyChoice
    name: str = ""
    description: str = ""
    required: bool = False
    channels: dict[str, ChannelChoice] = {}


class TypeChoice(Answer, frozen=True, kw_only=True):
    """What holds for a user of a type."""

    key: str
    category: str = ""
    required: bool = False
    channels: dict[str, ChannelChoice] = {}


class Preferences(Answer, frozen=True, kw_only=True):
    """What a user said, and what follows from it together with the defaults."""

    said: dict[str, Any] = {}
    """In the form that `put_preferences` takes."""
    categories: list[CategoryChoice] = []
    types: list[TypeChoice] = []


class Consent(Answer, frozen=True, kw_only=True):
    """One decision. What is None is not narrowed down: no channel is all of them."""

    at: datetime
    decision: str
    """`in`, `out`, `reset`, a frequency, or `reset_frequency`."""
    channel: str | None = None
    address: str | None = None
    category: str | None = None
    type: str | None = None
    actor: str = ""
    source: str = ""
    wording: str | None = None
    ip: str | None = None
    user_agent: str | None = None
    key_id: str | None = None


class PreferenceLink(Answer, frozen=True, kw_only=True):
    """Where a user chooses what they get, without signing in."""

    url: str
    expires_at: datetime | None = None


class Erased(Answer, frozen=True, kw_only=True):
    """How far erasing a user has come: `erased`, or `pending`, which ends by itself."""

    status: str


class Topic(Answer, frozen=True, kw_only=True):
    """A named set of users."""

    key: str
    name: str = ""
    created_at: datetime | None = None
    updated_at: datetime | None = None


class Membership(Answer, frozen=True, kw_only=True):
    """A user in a topic."""

    topic: str
    user: str
    since: datetime | None = None


class Added(Answer, frozen=True, kw_only=True):
    """What became of users who were to be added to a topic."""

    added: int
    already: int = 0
    unknown: list[str] = []
    """No users of this project; the others were added."""


class Removed(Answer, frozen=True, kw_only=True):
    """How many users were removed from a topic."""

    removed: int


class Segment(Answer, frozen=True, kw_only=True):
    """A saved condition on users."""

    key: str
    name: str = ""
    condition: dict[str, Any] = {}
    tracked: bool = False
    counted: int | None = None
    """Members at `counted_at`; None: not tracked, or not counted since it changed."""
    counted_at: datetime | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None


class SegmentMember(Answer, frozen=True, kw_only=True):
    """A user in a segment."""

    user: str


class SegmentCount(Answer, frozen=True, kw_only=True):
    """How many users meet a condition, and some of them."""

    count: int
    sample: list[str] = []


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


class EventRule(Answer, frozen=True, kw_only=True):
    """Which events become which notification."""

    key: str
    type: str
    event: dict[str, str | None] = {}
    to: dict[str, str] = {}
    when: dict[str, Any] | None = None
    data: dict[str, str] | None = None
    once: str | None = None
    priority: str | None = None
    metadata: dict[str, str] = {}
    enabled: bool = True
    created_at: datetime | None = None
    updated_at: datetime | None = None


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
