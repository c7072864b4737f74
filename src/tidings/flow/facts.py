"""Facts: what planning is given, and what it answers. Values only; `decide.py` makes one of the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

from tidings.directory.catalog import Account, TemplateVersion, TypeVersion
from tidings.directory.preferences import NOTHING_SAID, Preferences
from tidings.directory.projects import ProjectSettings
from tidings.directory.quiet import QuietHours
from tidings.flow.caps import Cap, Ledger
from tidings.flow.effects import Once, to_once_key, to_target
from tidings.model.conditions import Case
from tidings.model.rulings import Pass, Ruling
from tidings.model.words import Channel, Engagement, Reason, RunState, Status

PASSES_MAX: Final = 20
"""Times of planning one notification whose rulings are kept; the newest."""


class Facts(NamedTuple):
    """What is known of a notification when it is planned; the order of the fields is that of load_plans' columns."""

    id: UUID
    project_id: int
    type_version_id: int | None
    user_id: str | None
    to_channel: int | None
    to_address: str | None
    priority: int
    channels: int | None
    test: bool
    locale: str | None
    cancelled: bool
    expires_at: datetime | None
    user_exists: bool
    user_locale: str | None
    address_channels: Sequence[int] | None
    addresses: Sequence[str] | None
    suppressed: Sequence[str | None] | None
    to_suppressed: str | None
    items: int | None
    """A digest of so many; such a one is not digested again."""
    once_key: str | None
    preferences: str | None
    """None: nothing said."""
    quiet_hours: str | None
    time_zone: str | None
    region: str | None
    segments: int | None
    now: datetime

    @property
    def target(self) -> str:
        """Whom limits, digests and send-once keys count: the user, or the address of somebody without one."""
        return to_target(self.user_id, self.to_channel, self.to_address)

    @property
    def once(self) -> Once:
        """What it claims, if it has a send-once key."""
        return self.project_id, self.target, to_once_key(self.once_key or "", test=self.test)


class Past(NamedTuple):
    """A delivery that the notification has already; the order of the fields is that of load_pasts' columns."""

    id: UUID
    channel: int
    status: int
    engagement: int
    step: int | None
    account_id: int | None
    reason: str | None


class Run(NamedTuple):
    """Where a notification stands in its steps; the order of the fields is that of load_runs' columns."""

    step: int = 0
    place: int = 0
    """`first`: which of the chain is under way, from 1. `wait`: 1 when its timer runs. `send`: 1 when it is put
    off, 2 while it waits for the time of sending that was chosen."""
    pending: int = 0
    """Channels of this step that are put off."""
    until: datetime | None = None
    trail: str | None = None
    past: tuple[Past, ...] = ()


START: Final = Run()
NO_CASE: Final = Case()


@dataclass(frozen=True, slots=True)
class Planned:
    """One delivery to make: queued for an account, or ended at once for a reason."""

    channel: Channel
    address: str
    status: Status = Status.queued
    reason: Reason | None = None
    template_version_id: int | None = None
    locale: str | None = None
    account_id: int | None = None
    """Pinned: the simulator's account, or one that serves addresses of this kind. None lets the claim choose."""
    step: int | None = None


class ToDigest(NamedTuple):
    """Channels on which it goes together with others."""

    channels: int
    reason: Reason
    close_at: datetime


@dataclass(slots=True)
class Plan:
    """What planning decided: deliveries, and where the run stands then."""

    planned: list[Planned] = field(default_factory=list)
    state: RunState = RunState.done
    step: int = 0
    place: int = 0
    pending: int = 0
    until: datetime | None = None
    reason: Reason | None = None
    digests: list[ToDigest] = field(default_factory=list)
    withdrawn: list[UUID] = field(default_factory=list)
    """Deliveries that the next of a chain takes the place of, unless they have left."""
    rulings: list[Ruling] = field(default_factory=list)

    def wait(self, at: Run, until: datetime, reason: Reason | None) -> Plan:
        """Go on there and then."""
        self.state, self.reason, self.until = RunState.waiting, reason, until
        self.step, self.place, self.pending = at.step, at.place, at.pending
        return self

    def end(self, step: int, state: RunState = RunState.done, reason: Reason | None = None) -> Plan:
        """Nothing follows."""
        self.state, self.step, self.reason = state, step, reason
        return self


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything but the facts that a plan is decided by."""

    type_: TypeVersion | None
    """The pinned version; None for content without a type."""
    template: TemplateVersion | None
    """The version published now; None when there is none (any more), or no type."""
    accounts: Mapping[Channel, Sequence[Account]]
    """The project's usable accounts."""
    settings: ProjectSettings
    defaults: Mapping[Channel, bool]
    """The project's, by channel."""
    ledger: Ledger
    """What counts against limits; booked as deliveries are planned."""
    caps: Sequence[Cap] = ()
    said: Preferences = NOTHING_SAID
    quiet: QuietHours | None = None
    """The user's own."""
    case: Case = NO_CASE
    hours: Sequence[int] = ()
    """How often the user was active by hour of their day; only for types that choose the time of sending."""
    sent_before: bool = False
    """Another notification has this one's send-once key."""


def extend_trail(before: str | None, rulings: Sequence[Ruling], now: datetime) -> str | None:
    """The trail of a run after one more planning; None: nothing ever had an opinion. Pure."""
    if not rulings:
        return before
    passes = _decode_trail(before) if before is not None else []
    return _encode([*passes[1 - PASSES_MAX :], Pass(now, list(rulings))]).decode()


_decode_trail: Final = msgspec.json.Decoder(list[Pass]).decode
_encode: Final = msgspec.json.Encoder().encode

_WORDS: Final = {
    Engagement.seen: "seen",
    Engagement.opened: "opened",
    Engagement.clicked: "clicked",
    Engagement.read: "read",
}


def list_engagement(past: Sequence[Past]) -> set[str]:
    """What the user did with a notification so far, in the words of `wait … unless` and conditions."""
    bits = 0
    words = set()
    for p in past:
        bits |= p.engagement
        if p.status == Status.delivered:
            words.add("delivered")
    words |= {word for bit, word in _WORDS.items() if bits & bit}
    if words & {"read", "clicked"}:
        words.add("acknowledged")
    return words
