"""Second look: what planning asked is asked once more just before a message leaves, since it may have waited since
then: for its turn, for a retry, for an operator. Pure.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from tidings.directory.catalog import TypeVersion
from tidings.directory.categories import NO_CATEGORY_RULES
from tidings.directory.preferences import NOTHING_SAID, decide_preference, parse_preferences
from tidings.directory.projects import ProjectSettings
from tidings.directory.quiet import Person, QuietHours, decide_quiet
from tidings.flow.load import Delivery
from tidings.model.rulings import Answer
from tidings.model.words import Channel, Priority

_decode_quiet = msgspec.json.Decoder(QuietHours).decode


def is_opted_out(delivery: Delivery, type_: TypeVersion | None, settings: ProjectSettings) -> bool:
    """Whether the user wants nothing of this type on this channel (any more)."""
    if type_ is None or delivery.user_id is None:
        return False
    said, now = delivery.user_preferences, delivery.now
    if now is None or (said is None and not type_.defaults and not type_.rules.defaults and not settings.defaults):
        return False
    ruling = decide_preference(
        parse_preferences(said) if said is not None else NOTHING_SAID,
        type_key=type_.key,
        type_defaults=type_.defaults,
        category=type_.rules,
        project_defaults={Channel[name]: on for name, on in settings.defaults.items()},
        channel=delivery.channel,
        now=now,
    )
    return ruling is not None and ruling.answer is Answer.no


def decide_quiet_now(
    delivery: Delivery, type_: TypeVersion | None, settings: ProjectSettings, now: datetime
) -> datetime | None:
    """Until when the message has to wait, but not longer than it may be sent at all; None: it need not."""
    category = type_.rules if type_ is not None else NO_CATEGORY_RULES
    own = delivery.user_quiet_hours
    if own is None and category.quiet_hours is None and settings.quiet_hours is None:
        return None
    if type_ is not None and type_.quiet == "ignore":
        return None
    phone = delivery.address if delivery.channel is Channel.sms else None
    ruling = decide_quiet(
        _decode_quiet(own) if own is not None else None,
        category.quiet_hours,
        settings.quiet_hours,
        person=Person(delivery.user_time_zone, delivery.user_region, phone),
        default_zone=settings.time_zone,
        channel=delivery.channel,
        priority=Priority(delivery.priority),
        required=category.required,
        now=now,
    )
    if ruling is None or ruling.answer is not Answer.hold or ruling.until is None or ruling.until <= now:
        return None
    return ruling.until if delivery.expires_at is None else min(ruling.until, delivery.expires_at)
