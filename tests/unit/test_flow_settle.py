"""What follows from an outcome: the one decision that everything a provider can say goes through, as properties."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings import ids
from tidings.directory.catalog import Account
from tidings.engine.jobs import Job
from tidings.flow.load import Delivery
from tidings.flow.settlement import POLICIES, Ended, Policy, Settlement, decide_settlement
from tidings.model.messages import (
    Deferred,
    InApp,
    Message,
    Rejected,
    SendResult,
    Sent,
    Throttled,
    Uncertain,
)
from tidings.model.transitions import decide_transition
from tidings.model.words import EFFECTS, Channel, Effect, EventKind, Reason, Status
from tidings.providers.port import Config

NOW = datetime(2031, 3, 14, 12, tzinfo=UTC)
RNG = random.Random(7)
NOTIFICATION = ids.new_id(NOW, RNG)
DELIVERY = Delivery(
    ids.child_id(NOTIFICATION, RNG), 1, NOTIFICATION, Channel.email, Status.queued, "ada@example.com", 3, "en", None,
    None, 5, "ada", "{}", None, False, False, None, False, False, None, False, NOW, None, None,
)  # fmt: skip
ACCOUNT = Account(4, 1, "a", Channel.email, "smtp", Config(), 100, None, 1, 9, False, 1)

waits = st.none() | st.timedeltas(timedelta(0), timedelta(days=5))
results: st.SearchStrategy[SendResult] = st.one_of(
    st.builds(Sent, provider_id=st.none() | st.text()),
    st.builds(Rejected, reason=st.sampled_from(Reason), detail=st.none() | st.text()),
    st.builds(Deferred, reason=st.sampled_from(Reason), retry_after=waits, detail=st.none() | st.text()),
    st.builds(Throttled, retry_after=waits, detail=st.none() | st.text()),
    st.builds(Uncertain, detail=st.none() | st.text()),
)
ends = st.builds(
    Ended,
    st.sampled_from([Status.failed, Status.cancelled, Status.expired, Status.skipped]),
    st.sampled_from([Reason.cancelled, Reason.expired, Reason.suppressed, Reason.render_failed]),
    st.none() | st.text(),
)


def job(attempt: int = 0) -> Job:
    return Job(DELIVERY.id, 1, 2, 1, 2, attempt, 1, ACCOUNT.id, None)


def decide(
    what: SendResult | Ended,
    *,
    attempt: int = 0,
    delivery: Delivery | None = DELIVERY,
    account: Account | None = ACCOUNT,
    siblings: tuple[int, ...] = (),
    confirms: bool = False,
    message: Message | None = None,
    policy: Policy = POLICIES[Channel.email],
    seed: int = 1,
    now: datetime = NOW,
) -> Settlement:
    return decide_settlement(
        job(attempt),
        delivery,
        what,
        account=account,
        siblings=siblings,
        category="orders",
        confirms=confirms,
        message=message,
        policy=policy,
        rng=random.Random(seed),
        now=now,
    )


@given(
    what=results | ends,
    channel=st.sampled_from([Channel.email, Channel.sms, Channel.in_app, Channel.webhook]),
    attempt=st.integers(0, 12),
    at_most_once=st.booleans(),
    expires=st.none() | st.timedeltas(timedelta(seconds=1), timedelta(days=4)),
    siblings=st.sets(st.integers(5, 9), max_size=3),
    confirms=st.booleans(),
    test=st.booleans(),
    seed=st.integers(0, 999),
    later=st.timedeltas(timedelta(0), timedelta(days=4)),
)
def test_every_outcome_has_one_consequence(
    what: SendResult | Ended,
    channel: Channel,
    attempt: int,
    at_most_once: bool,
    expires: timedelta | None,
    siblings: set[int],
    confirms: bool,
    test: bool,
    seed: int,
    later: timedelta,
) -> None:
    now = NOW + later
    expires_at = None if expires is None else now + expires
    delivery = DELIVERY._replace(channel=channel, at_most_once=at_most_once, expires_at=expires_at)
    policy = POLICIES[channel]
    s = decide(
        what,
        attempt=min(attempt, policy.attempts - 1),
        delivery=delivery,
        account=Account(4, 1, "a", channel, "x", Config(), 100, None, 1, 9, test, 1),
        siblings=() if test else tuple(siblings),
        confirms=confirms,
        policy=policy,
        seed=seed,
        now=now,
    )
    assert s.status is not None
    assert (s.retry is not None) == (s.status is Status.queued)
    assert s.status is Status.queued or decide_transition(Status.queued, None, s.status) is s.status
    assert s.event is not None or isinstance(what, Throttled)
    if s.retry is not None:
        assert s.reason is not None
        assert s.retry.attempt < policy.attempts
        assert s.retry.attempt == s.job.attempt + (not isinstance(what, Throttled))
        assert s.retry.after >= timedelta(0)
        assert expires_at is None or now + s.retry.after < expires_at
        assert (s.suppress, s.drop_address, s.dead, s.item) == (False, False, False, None)
        if test:
            assert s.retry.account_id == 4, "what is simulated stays simulated"
    elif s.status is Status.failed:
        assert s.reason is not None
        assert s.dead == (EFFECTS[s.reason] not in (Effect.suppress, Effect.drop_address))
        assert not (test and (s.suppress or s.drop_address))
    else:
        assert (s.suppress, s.drop_address, s.dead) == (False, False, False)
    if isinstance(what, Uncertain) and channel is not Channel.in_app:
        assert s.event is EventKind.uncertain
        assert s.reason is Reason.uncertain
        assert not (at_most_once and s.retry)
    if isinstance(what, Sent):
        assert s.status is (Status.delivered if confirms else Status.sent)


@given(
    after=st.timedeltas(timedelta(0), timedelta(hours=20)),
    attempt=st.integers(0, 8),
    seed=st.integers(0, 999),
    throttled=st.booleans(),
)
def test_retry_after_is_obeyed(after: timedelta, attempt: int, seed: int, throttled: bool) -> None:
    what = Throttled(after) if throttled else Deferred(Reason.greylisted, after)
    s = decide(what, attempt=attempt, seed=seed)
    assert s.retry is not None
    assert s.retry.after >= after
    assert s.retry.after <= max(after * 1.2, POLICIES[Channel.email].cap)


@given(attempt=st.integers(1, 1000), channel=st.sampled_from(sorted(POLICIES)), seed=st.integers(0, 9))
def test_backoff_is_full_jitter_below_a_cap(attempt: int, channel: Channel, seed: int) -> None:
    policy = POLICIES[channel]
    wait = policy.backoff(attempt, random.Random(seed))
    assert timedelta(0) <= wait <= policy.cap
    assert wait <= policy.base * 2 ** min(attempt - 1, 30) or attempt > 31


def test_full_jitter_uses_the_whole_span() -> None:
    policy, rng = Policy(9, 9, timedelta(seconds=8), timedelta(hours=1)), random.Random(1)
    draws = [policy.backoff(3, rng) for _ in range(2_000)]
    assert min(draws) < timedelta(seconds=0.5)
    assert max(draws) > timedelta(seconds=31.5)
    assert abs(sum(draws, timedelta(0)) / 2_000 - timedelta(seconds=16)) < timedelta(seconds=1)


def test_failures_go_round_the_accounts_and_end() -> None:
    account, tried, attempt = 4, [], 0
    accounts = {4, 5, 6}
    while True:
        tried.append(account)
        s = decide(
            Rejected(Reason.quota_exceeded),
            attempt=attempt,
            account=Account(account, 1, "a", Channel.email, "x", Config(), 100, None, 1, 9, False, 1),
            siblings=tuple(accounts - {account}),
        )
        if s.retry is None:
            break
        assert s.retry.account_id is not None
        assert (s.retry.after == timedelta(0)) == (len(tried) % 3 != 0)
        account, attempt = s.retry.account_id, s.retry.attempt
    assert tried == [4, 5, 6] * 6
    assert (s.status, s.reason, s.dead) == (Status.failed, Reason.quota_exceeded, True)


def test_after_some_deferrals_the_next_account_is_tried_at_once() -> None:
    policy = POLICIES[Channel.email]
    s = decide(Deferred(Reason.greylisted), attempt=policy.per_account - 1, siblings=(9,))
    assert s.retry is not None
    assert (s.retry.account_id, s.retry.after) == (9, timedelta(0))
    s = decide(Deferred(Reason.greylisted), attempt=policy.per_account - 2, siblings=(9,))
    assert s.retry is not None
    assert s.retry.account_id is None


def test_an_account_that_was_switched_off_leaves_its_messages_to_the_others() -> None:
    s = decide(Rejected(Reason.no_account), account=None, siblings=(9,))
    assert s.retry is not None
    assert s.retry.account_id == 9
    assert decide(Rejected(Reason.no_account), account=None).status is Status.failed


def test_an_uncertain_send_repeats_with_the_same_account() -> None:
    s = decide(Uncertain(), siblings=(9,))
    assert s.retry is not None
    assert s.retry.account_id == ACCOUNT.id  # its vendor may know the idempotency key


def test_an_account_that_never_answers_does_not_keep_the_message_from_the_others() -> None:
    s = decide(Uncertain(), attempt=POLICIES[Channel.email].per_account - 1, siblings=(9,))
    assert s.retry is not None
    assert (s.retry.account_id, s.event) == (9, EventKind.uncertain)


@given(seed=st.integers(0, 99))
def test_a_webhook_is_tried_for_many_hours(seed: int) -> None:
    policy, rng = POLICIES[Channel.webhook], random.Random(seed)
    waits = [policy.backoff(attempt, rng) for attempt in range(1, policy.attempts)]
    assert timedelta(hours=6) < sum(waits, timedelta(0)) < policy.give_up_after


def test_the_time_for_retries_counts_from_the_plan_however_old_the_request_is() -> None:
    late = NOW + timedelta(days=30)
    s = decide(Deferred(Reason.greylisted), delivery=DELIVERY._replace(queued_at=late), now=late)
    assert s.retry is not None


@pytest.mark.parametrize("delivery", [DELIVERY._replace(expires_at=NOW + timedelta(microseconds=1)), DELIVERY])
def test_an_uncertain_end_is_never_called_expired(delivery: Delivery) -> None:
    attempt = 0 if delivery.expires_at else POLICIES[Channel.email].attempts - 1
    s = decide(Uncertain(), attempt=attempt, delivery=delivery)
    assert (s.status, s.reason, s.event) == (Status.failed, Reason.uncertain, EventKind.uncertain)


def test_throttling_costs_no_attempt_but_not_forever() -> None:
    s = decide(Throttled(), attempt=3)
    assert s.retry is not None
    assert s.retry.attempt == 3
    s = decide(Throttled(), attempt=3, now=NOW + timedelta(days=3))
    assert (s.status, s.reason) == (Status.failed, Reason.attempts_exhausted)


def test_a_bounce_suppresses_and_a_gone_address_is_dropped() -> None:
    s = decide(Rejected(Reason.bounced))
    assert (s.suppress, s.drop_address, s.dead) == (True, False, False)
    s = decide(Rejected(Reason.gone))
    assert (s.suppress, s.drop_address, s.dead) == (False, True, False)


def test_an_in_app_item_is_stored_by_its_settlement_and_never_uncertain() -> None:
    delivery = DELIVERY._replace(channel=Channel.in_app, at_most_once=True)
    message = Message(DELIVERY.id, Channel.in_app, "ada", InApp("Hello"))
    assert decide(Sent(), delivery=delivery, message=message, confirms=True).item == InApp("Hello")
    test_account = Account(4, 1, "s", Channel.in_app, "simulator", Config(), 100, None, 1, 9, True, 1)
    assert decide(Sent(), delivery=delivery, message=message, account=test_account).item is None
    s = decide(Uncertain("the worker died"), delivery=delivery)
    assert (s.status, s.reason) == (Status.queued, Reason.provider_error)


def test_what_is_gone_or_was_settled_before_only_ends_its_job() -> None:
    for s in (decide(Sent(), delivery=None), decide(Ended(Status.sent, None))):
        assert (s.status, s.event, s.retry) == (None, None, None)


def test_evidence_holds_no_nul() -> None:
    s = decide(Rejected(Reason.rejected, "a\x00b"))
    assert s.evidence is not None
    assert "\\u0000" not in s.evidence
    assert "a\\ufffdb" in s.evidence


def test_settlements_are_values() -> None:
    s = decide(Sent())
    assert replace(s) == s
