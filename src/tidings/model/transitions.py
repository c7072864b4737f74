"""The life of a delivery, as one table, and the status of a notification derived from its deliveries."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from tidings.model.words import Reason, RunState, Status

TRANSITIONS: Final[dict[Status, frozenset[Status]]] = {
    Status.queued: frozenset(
        {Status.sending, Status.sent, Status.delivered, Status.failed, Status.skipped, Status.cancelled, Status.expired}
    ),
    # back to queued: a retry, a failover, or a lease that ran out
    Status.sending: frozenset(
        {Status.queued, Status.sent, Status.delivered, Status.failed, Status.skipped, Status.cancelled, Status.expired}
    ),
    Status.sent: frozenset({Status.delivered, Status.failed}),  # failed: a bounce
    Status.delivered: frozenset({Status.failed}),  # a late bounce
    Status.failed: frozenset({Status.queued}),  # an operator replays it; and see LIFTED_BY_PROOF
    Status.skipped: frozenset(),
    Status.cancelled: frozenset(),
    Status.expired: frozenset(),
}
"""From each status, the ones that may follow. Settle passes from `queued` straight on: `sending` is never stored."""

LIFTED_BY_PROOF: Final = frozenset({Status.sent, Status.delivered})
"""What a late answer or a receipt may make of failed(uncertain): it proves what nobody knew."""


def decide_transition(now: Status, reason: Reason | None, to: Status) -> Status | None:
    """The status after `to` was reported for a delivery that is `now` (for `reason`); None when nothing changes.

    Reports come late, doubled and out of order, so a report that the table does not allow is not an error: it is
    recorded as an event and moves nothing.
    """
    if now is Status.failed:
        if reason is Reason.uncertain and to in LIFTED_BY_PROOF:
            return to
        return to if to is Status.queued else None
    return to if to in TRANSITIONS[now] else None


_SUCCESS: Final = frozenset({Status.sent, Status.delivered})


def decide_notification_status(
    deliveries: Collection[Status], *, planned: bool, cancelled: bool, state: RunState | None = None
) -> str:
    """The status that a notification shows, derived and never stored.

    | deliveries                                  | status                     |
    |---------------------------------------------|----------------------------|
    | none yet, not cancelled                     | `scheduled`/`queued` (the caller knows `send_at`): here `queued` |
    | none, cancelled                             | `cancelled`                |
    | none, its steps wait for something          | `held`                     |
    | none, it went into a digest                 | `digested`                 |
    | any, and its steps wait for something       | `processing`               |
    | any queued or sending                       | `processing`               |
    | all that were attempted delivered           | `delivered`                |
    | all sent or delivered                       | `sent`                     |
    | some sent or delivered, some failed/expired | `partly`                   |
    | else the worst of: failed, expired, cancelled, skipped | that           |

    Skipped and cancelled deliveries do not spoil the success of the others.
    """
    if not deliveries:
        if cancelled:
            return "cancelled"
        if state is RunState.waiting:
            return "held"
        if state is RunState.digested:
            return "digested"
        return "skipped" if planned else "queued"
    found = set(deliveries)
    if state is RunState.waiting and not cancelled:
        return "processing"
    if found & {Status.queued, Status.sending}:
        return "processing" if planned else "queued"
    if good := found & _SUCCESS:
        if found & {Status.failed, Status.expired}:
            return "partly"
        return "delivered" if good == {Status.delivered} else "sent"
    return _worst(found).name


def _worst(found: Iterable[Status]) -> Status:
    order = (Status.failed, Status.expired, Status.cancelled, Status.skipped)
    return min(found, key=order.index)
