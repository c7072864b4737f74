"""Settlement: what follows from the outcome of an attempt: the end, a retry, the next account. Pure.

`settle.py` writes it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec

from tidings.directory.catalog import Account
from tidings.engine.jobs import Job, Retry
from tidings.flow.evidence import to_ref
from tidings.flow.load import Delivery
from tidings.model.messages import (
    Deferred,
    InApp,
    Message,
    Rejected,
    SendResult,
    Sent,
    Throttled,
    Uncertain,
    to_evidence,
)
from tidings.model.words import EFFECTS, Channel, Effect, EventKind, Reason, Status


@dataclass(frozen=True, slots=True)
class Policy:
    """How a channel's deliveries are retried: exponential backoff with full jitter."""

    attempts: int
    """At most so many, over all accounts."""
    per_account: int
    """After so many with one account, the next account is tried, where there is one."""
    base: timedelta
    cap: timedelta
    give_up_after: timedelta = timedelta(days=3)
    """Counted from the plan or the last replay; a delivery that is only ever throttled ends too."""

    def backoff(self, attempt: int, rng: random.Random) -> timedelta:
        """How long to wait after the `attempt`-th attempt (from 1)."""
        seconds = min(self.cap.total_seconds(), self.base.total_seconds() * 2.0 ** min(attempt - 1, 30))
        return timedelta(seconds=seconds * rng.random())


POLICIES: Final[Mapping[Channel, Policy]] = {
    # Greylisting lifts after minutes, a mail server's outage after hours: 17 hours on average, less than the days of
    # RFC 5321 (4.5.4.1), since a notification that is older is seldom news.
    Channel.email: Policy(18, 4, timedelta(seconds=10), timedelta(hours=4)),
    Channel.sms: Policy(6, 3, timedelta(seconds=5), timedelta(minutes=15)),
    Channel.push: Policy(6, 3, timedelta(seconds=2), timedelta(minutes=15)),
    Channel.in_app: Policy(8, 8, timedelta(seconds=1), timedelta(minutes=1)),
    # Standard Webhooks recommends a schedule from seconds to hours over more than a day: here 25 hours on average.
    Channel.webhook: Policy(18, 18, timedelta(seconds=5), timedelta(hours=10)),
    Channel.chat: Policy(6, 3, timedelta(seconds=5), timedelta(minutes=15)),
}


class Ended(NamedTuple):
    """No attempt was made: the delivery ends here. `reason` None: it had ended before, only the job is left."""

    status: Status
    reason: Reason | None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Settlement:
    """What is to be written for one claimed job."""

    job: Job
    delivery: Delivery | None
    status: Status | None
    """None: the delivery is not touched, only the job ends."""
    reason: Reason | None = None
    event: EventKind | None = None
    evidence: str | None = None
    provider_id: str | None = None
    attempts: int = 0
    account_id: int | None = None
    provider: str | None = None
    retry: Retry | None = None
    """None ends the job."""
    suppress: bool = False
    drop_address: bool = False
    dead: bool = False
    item: InApp | None = None
    category: str = ""
    link: bool = False
    """The vendor's receipts will name its own id only."""


def decide_settlement(
    job: Job,
    delivery: Delivery | None,
    what: SendResult | Ended,
    *,
    account: Account | None,
    siblings: Sequence[int],
    category: str,
    confirms: bool,
    link: bool = False,
    bound: bool = False,
    message: Message | None,
    policy: Policy,
    rng: random.Random,
    now: datetime,
) -> Settlement:
    """What follows from the outcome of one claimed job. Pure, but for the draws from `rng`.

    Args:
        job: the claim.
        delivery: as it was loaded before the attempt; None when it is gone.
        what: the provider's answer, or why there was no attempt.
        account: the account of the attempt.
        siblings: the other accounts that failover may turn to.
        category: the type's, for the roll-ups.
        confirms: `Sent` means delivered for this provider.
        link: its receipts name the vendor's id of the message and not ours.
        bound: not every account of the channel serves this address, so a free choice might meet one that does not.
        message: what was sent.
        policy: the channel's retry policy.
        now: for expiry and giving up.
    """
    if delivery is None:
        return Settlement(job, None, None)
    account_id = account.id if account is not None else None
    simulated = account is not None and account.test

    def end(status: Status, reason: Reason | None, event: EventKind, *, attempted: bool, **more: Any) -> Settlement:
        effect = EFFECTS[reason] if reason is not None else Effect.none
        failed = status is Status.failed
        return Settlement(
            job, delivery, status, reason, event,
            attempts=job.attempt + attempted,
            account_id=account_id if attempted else None,
            provider=account.provider if account is not None and attempted else None,
            suppress=failed and effect is Effect.suppress and not simulated,
            drop_address=failed and effect is Effect.drop_address and not simulated,
            dead=failed and effect not in (Effect.suppress, Effect.drop_address),
            category=category,
            **more,
        )  # fmt: skip

    def again(reason: Reason, event: EventKind | None, after: timedelta, pin: int | None, attempt: int) -> Settlement:
        evidence = _evidence(what)
        due_at = now + after
        expired = delivery.expires_at is not None and due_at >= delivery.expires_at
        over = attempt >= policy.attempts or due_at >= delivery.queued_at + policy.give_up_after
        if (expired or over) and reason is Reason.uncertain:  # neither expired nor failed for certain
            return end(Status.failed, reason, EventKind.uncertain, attempted=True, evidence=evidence)
        if expired:
            return end(Status.expired, Reason.expired, EventKind.expired, attempted=True, evidence=evidence)
        if over:
            final = Reason.attempts_exhausted
            return end(Status.failed, final, EventKind.failed, attempted=True, evidence=evidence)
        return Settlement(
            job, delivery, Status.queued, reason, event, evidence,
            attempts=attempt, account_id=account_id, retry=Retry(job, after, pin, attempt), category=category,
        )  # fmt: skip

    if isinstance(what, Uncertain) and delivery.channel is Channel.in_app:
        # Items are stored by settling: what was not settled did certainly not happen.
        what = Deferred(Reason.provider_error, detail=what.detail)
    made = job.attempt + 1
    stay = account_id if simulated or bound else None
    match what:
        case Ended(status=status, reason=None):
            return Settlement(job, delivery, None)
        case Ended(status=status, reason=reason, detail=detail):
            evidence = _to_json({"detail": detail}) if detail else None
            return end(status, reason, EventKind(int(status)), attempted=False, evidence=evidence)
        case Sent():
            provider_id = to_ref(what.provider_id)
            status = Status.delivered if confirms else Status.sent
            item = message.content if message is not None and isinstance(message.content, InApp) else None
            return end(
                status, None, EventKind(int(status)), attempted=True, evidence=_evidence(what),
                provider_id=provider_id, item=None if simulated else item, link=link and provider_id is not None,
            )  # fmt: skip
        case Rejected(reason=reason):
            elsewhere = EFFECTS[reason] is Effect.failover or (reason is Reason.no_account and siblings)
            if elsewhere and made < policy.attempts:
                # At once to the next account; after each round of them, or where there is only one, with patience: an
                # operator may mend the account meanwhile.
                after = policy.backoff(made, rng) if made % (len(siblings) + 1) == 0 else timedelta(0)
                pin = _next_account(account_id, siblings) if siblings else stay
                return again(reason, EventKind.retrying, after, pin, made)
            if EFFECTS[reason] is Effect.retry:  # a definite no that time may mend
                return again(reason, EventKind.retrying, policy.backoff(made, rng), stay, made)
            return end(Status.failed, reason, EventKind.failed, attempted=True, evidence=_evidence(what))
        case Deferred(reason=reason, retry_after=retry_after):
            after = policy.backoff(made, rng)
            if retry_after is not None:
                after = max(after, retry_after * rng.uniform(1.0, 1.1))
            pin = stay
            if siblings and made % policy.per_account == 0:
                pin, after = _next_account(account_id, siblings), timedelta(0)
            return again(reason, EventKind.retrying, after, pin, made)
        case Throttled(retry_after=retry_after):
            after = (retry_after or timedelta(seconds=1)) * rng.uniform(1.0, 1.2)
            return again(Reason.throttled, None, after, stay, job.attempt)
        case Uncertain():
            if delivery.at_most_once:
                return end(
                    Status.failed, Reason.uncertain, EventKind.uncertain, attempted=True, evidence=_evidence(what)
                )
            # First with the same account, whose vendor may know the idempotency key; but one that never answers must
            # not keep the message from the others.
            after, pin = policy.backoff(made, rng), account_id
            if siblings and made % policy.per_account == 0:
                pin, after = _next_account(account_id, siblings), timedelta(0)
            return again(Reason.uncertain, EventKind.uncertain, after, pin, made)


def _next_account(current: int | None, siblings: Sequence[int]) -> int:
    """The next account in a fixed round, so that every one gets its turn."""
    ordered = sorted(siblings)
    return next((a for a in ordered if current is not None and a > current), ordered[0])


def _evidence(what: SendResult | Ended) -> str | None:
    """The vendor's words for the event; None where there were none beyond yes."""
    if isinstance(what, Ended) or (isinstance(what, Sent) and what.detail is None):
        return None
    return _to_json(to_evidence(what))


def _to_json(value: object) -> str:
    # PostgreSQL's text and json know no U+0000, and evidence is a vendor's: anything may be in it.
    return msgspec.json.encode(value).replace(b"\\u0000", b"\\ufffd").decode()
