"""What the API shows of what a project keeps: users and what they want, categories, types, templates, accounts, keys.

As in `answers`: frozen structs that a newer server cannot make unreadable.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

# ---------------------------------------------------------------- directory


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """The project that the API key belongs to."""

    key: str
    name: str = ""
    created_at: datetime | None = None
    settings: dict[str, Any] = {}
    """In the form that `put_settings` takes."""


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """A stored file; its id goes into an attachment as `blob`."""

    id: str
    size: int = 0


class User(msgspec.Struct, frozen=True, kw_only=True):
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


class InboxAction(msgspec.Struct, frozen=True, kw_only=True):
    """A button on an inbox item."""

    id: str
    title: str
    url: str | None = None


class InboxItem(msgspec.Struct, frozen=True, kw_only=True):
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


class UserToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token with which a user's browser or app reads and marks their own inbox."""

    token: str
    expires_at: datetime


class Category(msgspec.Struct, frozen=True, kw_only=True):
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


class NotificationType(msgspec.Struct, frozen=True, kw_only=True):
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


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """Content per channel and locale, in immutable numbered versions."""

    key: str
    name: str = ""
    published_version: int | None = None
    latest_version: int = 0
    created_at: datetime | None = None
    updated_at: datetime | None = None


class TemplateVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a template; `required` names the variables that the data must hold."""

    version: int
    template: str = ""
    content: dict[str, Any] = {}
    required: list[str] = []
    published_at: datetime | None = None
    created_at: datetime | None = None


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """What a template makes of some data, rendered but not sent."""

    channel: str
    locale: str | None = None
    fields: dict[str, str] = {}
    version: int | None = None


class Account(msgspec.Struct, frozen=True, kw_only=True):
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


class AccountCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What a vendor says of an account's credentials."""

    outcome: str
    """`ok`, `failed`, or `unknown`: it cannot be asked without sending something."""
    detail: str | None = None


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
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


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Who changed what, with the state before and after."""

    id: str
    at: datetime
    actor: str
    action: str
    object: str
    key_id: str | None = None
    before: Any = None
    after: Any = None


# ---------------------------------------------------------------- what users want, and what they are in


class ChannelChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a user hears of something on a channel, and who decided."""

    on: bool
    level: str = "default"
    detail: str = ""
    required: bool = False
    locked: bool = False
    """The user cannot change it."""


class FrequencyChoice(msgspec.Struct, frozen=True, kw_only=True):
    """How often a user hears of a category, and who decided."""

    value: str
    level: str = "default"
    locked: bool = False


class CategoryChoice(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for a user in a category."""

    key: str
    frequency: FrequencyChoice
    name: str = ""
    description: str = ""
    required: bool = False
    channels: dict[str, ChannelChoice] = {}


class TypeChoice(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for a user of a type."""

    key: str
    category: str = ""
    required: bool = False
    channels: dict[str, ChannelChoice] = {}


class Preferences(msgspec.Struct, frozen=True, kw_only=True):
    """What a user said, and what follows from it together with the defaults."""

    said: dict[str, Any] = {}
    """In the form that `put_preferences` takes."""
    categories: list[CategoryChoice] = []
    types: list[TypeChoice] = []


class Consent(msgspec.Struct, frozen=True, kw_only=True):
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


class PreferenceLink(msgspec.Struct, frozen=True, kw_only=True):
    """Where a user chooses what they get, without signing in."""

    url: str
    expires_at: datetime | None = None


class Erased(msgspec.Struct, frozen=True, kw_only=True):
    """How far erasing a user has come: `erased`, or `pending`, which ends by itself."""

    status: str


class Topic(msgspec.Struct, frozen=True, kw_only=True):
    """A named set of users."""

    key: str
    name: str = ""
    created_at: datetime | None = None
    updated_at: datetime | None = None


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """A user in a topic."""

    topic: str
    user: str
    since: datetime | None = None


class Added(msgspec.Struct, frozen=True, kw_only=True):
    """What became of users who were to be added to a topic."""

    added: int
    already: int = 0
    unknown: list[str] = []
    """No users of this project; the others were added."""


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """How many users were removed from a topic."""

    removed: int


class Segment(msgspec.Struct, frozen=True, kw_only=True):
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


class SegmentMember(msgspec.Struct, frozen=True, kw_only=True):
    """A user in a segment."""

    user: str


class SegmentCount(msgspec.Struct, frozen=True, kw_only=True):
    """How many users meet a condition, and some of them."""

    count: int
    sample: list[str] = []


# ---------------------------------------------------------------- event rules


class EventRule(msgspec.Struct, frozen=True, kw_only=True):
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
