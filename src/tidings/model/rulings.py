"""Rulings: what each rule answered when a notification was planned; kept with its run, and shown by explain.

A ruling that nothing had an opinion on is not kept: no ruling means that nothing stood in the way.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec

from tidings.model.words import Channel, Reason


class Rule(StrEnum):
    """What was asked. docs/reference/rules.md says in which order, and what each may answer."""

    once = "once"
    preference = "preference"
    address = "address"
    suppression = "suppression"
    template = "template"
    account = "account"
    quiet_hours = "quiet_hours"
    send_time = "send_time"
    frequency = "frequency"
    digest = "digest"
    limit = "limit"
    condition = "condition"
    engagement = "engagement"
    chain = "chain"
    expiry = "expiry"


class Answer(StrEnum):
    """What it said."""

    go = "go"
    no = "no"  # not on this channel, or not at all
    hold = "hold"  # later: asked again at `until`
    digest = "digest"  # together with others, at `until`
    stop = "stop"  # no further step


class Level(StrEnum):
    """Where the rule that decided stands; from what is nearest to the user to what holds for everybody."""

    user_type = "user_type"
    user_category_channel = "user_category_channel"
    user_category = "user_category"
    user_channel = "user_channel"
    user = "user"
    type = "type"
    category = "category"
    project = "project"
    law = "law"
    request = "request"
    default = "default"


class Ruling(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """One rule's answer. Stored as an array, so fields are only ever added at the end."""

    rule: Rule
    answer: Answer
    level: Level = Level.default
    channel: Channel | None = None
    """None: it was asked for the notification as a whole."""
    reason: Reason | None = None
    """For every answer but `go`: the same word as in the timeline and the metrics."""
    until: datetime | None = None
    detail: str | None = None
    """Which rule it was, in words: `3 of 3 in 1d`, `22:00–07:00 Europe/Berlin`."""


class Pass(msgspec.Struct, frozen=True, array_like=True):
    """What was ruled each time the notification was planned."""

    at: datetime
    rulings: list[Ruling]
