"""The closed sets: channels, priorities, states, reasons, events, scopes.

The numbers are stored; never renumber one. The names are what the API, the logs and the metrics say.
"""

from __future__ import annotations

from enum import Enum, IntEnum, StrEnum
from typing import Final


class Channel(IntEnum):
    """A way to reach somebody. The number is also the channel's lane in the job table."""

    email = 1
    sms = 2
    push = 3
    in_app = 4
    webhook = 5
    chat = 6


CHANNELS_OF_THIS_VERSION: Final = tuple(Channel)
"""What types and templates may name. A channel that is not among them is refused by name."""


class Priority(IntEnum):
    """Lower is more urgent; the order of the numbers is the order of the queues."""

    critical = 0
    high = 1
    medium = 2
    low = 3


class Guarantee(StrEnum):
    """What to do when it is unknown whether the provider took a message."""

    at_least_once = "at_least_once"  # send again, with the provider's idempotency key where it has one
    at_most_once = "at_most_once"  # end as failed(uncertain); a later receipt may lift it


class Status(IntEnum):
    """Where a delivery is. `sending` is never stored: it is a queued delivery whose job is leased."""

    queued = 0
    sending = 1
    sent = 2
    delivered = 3
    failed = 4
    skipped = 5
    cancelled = 6
    expired = 7


FINAL: Final = frozenset({Status.delivered, Status.failed, Status.skipped, Status.cancelled, Status.expired})
"""No further attempt follows. `sent` is not among them: a receipt may still come."""


class Engagement(IntEnum):
    """What the user did with it: bits of a set beside the status."""

    seen = 1
    opened = 2
    clicked = 4
    read = 8
    archived = 16
    unsubscribed = 32
    complained = 64


class RunState(IntEnum):
    """Where a notification stands in the steps of its type."""

    waiting = 1  # for a timer: a wait, a delay, a hold, the next of a fallback chain
    done = 2  # every step was taken
    digested = 3  # it went into a digest, which goes on in its place
    stopped = 4  # a step said that nothing more is to be sent


class Frequency(StrEnum):
    """How often a user wants to hear of a category."""

    instant = "instant"
    hourly = "hourly"
    daily = "daily"
    weekly = "weekly"


class EventKind(IntEnum):
    """A fact in the life of a delivery. `requested` and `queued` are shown from row times and have no event row."""

    requested = 0
    queued = 1
    sent = 2
    delivered = 3
    failed = 4
    skipped = 5
    cancelled = 6
    expired = 7
    retrying = 8  # an attempt did not succeed and another one follows
    uncertain = 9  # it is not known whether the provider took the attempt
    late = 10  # an answer came for an attempt whose lease had been given up
    replayed = 11  # an operator sent a dead letter again
    opened = 12
    clicked = 13
    seen = 14
    read = 15
    archived = 16
    unsubscribed = 17
    complained = 18
    machine_opened = 19  # by a prefetcher, a privacy proxy or a scanner: counted apart
    machine_clicked = 20
    digested = 21  # planning put it into a digest; that digest is a notification of its own
    held = 22  # planning put it off: quiet hours, a cap, the hour that suits the user


class Effect(Enum):
    """What a reason calls for, besides being recorded."""

    none = "none"
    retry = "retry"  # the same account may succeed later
    failover = "failover"  # this account cannot, another one may
    suppress = "suppress"  # never send to this address again
    drop_address = "drop_address"  # the address does not exist any more


class Reason(StrEnum):
    """Why a delivery is where it is. `EFFECTS` states what each calls for; docs/reference/reasons.md explains it."""

    # the provider or the network said no
    bounced = "bounced"
    complained = "complained"
    mailbox_full = "mailbox_full"
    greylisted = "greylisted"
    invalid_address = "invalid_address"
    gone = "gone"
    content_rejected = "content_rejected"
    too_large = "too_large"
    blocked = "blocked"
    unauthorized = "unauthorized"
    quota_exceeded = "quota_exceeded"
    throttled = "throttled"
    provider_error = "provider_error"
    bad_answer = "bad_answer"
    connect_failed = "connect_failed"
    target_refused = "target_refused"
    rejected = "rejected"
    uncertain = "uncertain"
    # we said no, or could not
    render_failed = "render_failed"
    unsupported = "unsupported"
    attempts_exhausted = "attempts_exhausted"
    # skipped
    no_address = "no_address"
    no_template = "no_template"
    no_account = "no_account"
    no_sender = "no_sender"
    suppressed = "suppressed"
    user_deleted = "user_deleted"
    opted_out = "opted_out"
    capped = "capped"
    sent_before = "sent_before"
    superseded = "superseded"
    # put off, or put together with others
    quiet_hours = "quiet_hours"
    send_time = "send_time"
    digested = "digested"
    # ended by somebody or by time
    cancelled = "cancelled"
    expired = "expired"


EFFECTS: Final[dict[Reason, Effect]] = {
    Reason.bounced: Effect.suppress,
    Reason.complained: Effect.suppress,
    Reason.mailbox_full: Effect.retry,
    Reason.greylisted: Effect.retry,
    Reason.invalid_address: Effect.suppress,
    Reason.gone: Effect.drop_address,
    Reason.content_rejected: Effect.none,
    Reason.too_large: Effect.none,
    Reason.blocked: Effect.failover,
    Reason.unauthorized: Effect.failover,
    Reason.quota_exceeded: Effect.failover,
    Reason.throttled: Effect.retry,
    Reason.provider_error: Effect.retry,
    Reason.bad_answer: Effect.retry,
    Reason.connect_failed: Effect.retry,
    Reason.target_refused: Effect.none,
    Reason.rejected: Effect.none,
    Reason.uncertain: Effect.retry,
    Reason.render_failed: Effect.none,
    Reason.unsupported: Effect.none,
    Reason.attempts_exhausted: Effect.none,
    Reason.no_address: Effect.none,
    Reason.no_template: Effect.none,
    Reason.no_account: Effect.none,
    Reason.no_sender: Effect.failover,
    Reason.suppressed: Effect.none,
    Reason.user_deleted: Effect.none,
    Reason.opted_out: Effect.none,
    Reason.capped: Effect.none,
    Reason.sent_before: Effect.none,
    Reason.superseded: Effect.none,
    Reason.quiet_hours: Effect.none,
    Reason.send_time: Effect.none,
    Reason.digested: Effect.none,
    Reason.cancelled: Effect.none,
    Reason.expired: Effect.none,
}


class Scope(StrEnum):
    """What an API key may do."""

    send = "send"
    send_critical = "send:critical"
    read = "read"
    manage = "manage"
