"""Which jobs there are, and on which lanes they wait.

| kind | about          | lane                                   | done by                                |
|------|----------------|----------------------------------------|----------------------------------------|
| plan | a notification | FEEDER + the set of channels it may use | `plan.Planner`, in one transaction     |
| step | the same, later: a timer of its steps ended | the same | the same                            |
| digest | a digest that closes | the same               | the same, by `digests.close_windows`   |
| expand | a broadcast's next users | the same           | the same, by `broadcasts.expand_cohorts` |
| send | a delivery     | the channel's number                   | `send.Sender`, then `settle.Settler`   |
| hook | a message to a hook | LANE_HOOKS                        | `hooks.HookSender`                     |

A plan job waits on a lane of its channel set, so that a slow SMS provider holds back the planning of text messages
and not that of e-mails.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final
from uuid import UUID

from tidings.engine.jobs import FEEDER, NewJob
from tidings.model.words import Channel, Priority

PLAN: Final = 1
SEND: Final = 2
HOOK: Final = 3
STEP: Final = 4
DIGEST: Final = 5
EXPAND: Final = 6

LANE_HOOKS: Final = 7
"""Status callbacks to the application: the number after the last channel's, and fed by no feeder lane."""

ALL_CHANNELS: Final = sum(1 << channel for channel in Channel)


def to_mask(channels: Iterable[int]) -> int:
    """The bit set of channels, as stored in `notification.channels` and in a plan job's lane."""
    mask = 0
    for channel in channels:
        mask |= 1 << channel
    return mask


def plan_job(
    id_: UUID, project_id: int, priority: int, channels: int, due_at: datetime | None, traceparent: str | None
) -> NewJob:
    """The job that plans a notification; `channels` is the bit set it may use."""
    return NewJob(id_, project_id, PLAN, FEEDER + (channels & 255), priority, due_at, None, traceparent)


def digest_job(id_: UUID, project_id: int, priority: int, channels: int, due_at: datetime) -> NewJob:
    """The job that closes a digest; its id is that of the notification which the digest becomes."""
    return NewJob(id_, project_id, DIGEST, FEEDER + (channels & 255), priority, due_at)


def expand_job(
    id_: UUID, project_id: int, priority: int, channels: int, due_at: datetime | None, traceparent: str | None = None
) -> NewJob:
    """The job that tells a broadcast's next users; its id is that of their cohort."""
    return NewJob(id_, project_id, EXPAND, FEEDER + (channels & 255), priority, due_at, None, traceparent)


def send_job(
    id_: UUID, project_id: int, priority: int, channel: int, account_id: int | None, traceparent: str | None
) -> NewJob:
    """The job that sends a delivery, pinned to `account_id` if one is given."""
    return NewJob(id_, project_id, SEND, channel, priority, None, account_id, traceparent)


def hook_job(id_: UUID, project_id: int) -> NewJob:
    """The job that tells a hook; its id is that of the message."""
    return NewJob(id_, project_id, HOOK, LANE_HOOKS, Priority.medium)


def name_lane(lane: int) -> str:
    """The name of a lane in logs and metrics; all feeder lanes share one."""
    if lane >= FEEDER:
        return "plan"
    return "hooks" if lane == LANE_HOOKS else Channel(lane).name
