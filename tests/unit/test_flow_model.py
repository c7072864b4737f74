"""What the road stands on: ids, durations, the life of a delivery, and the status of a notification."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings import ids
from tidings.durations import parse_duration, to_duration
from tidings.model.transitions import TRANSITIONS, decide_notification_status, decide_transition
from tidings.model.words import EFFECTS, FINAL, Reason, Status

moments = st.datetimes(datetime(1990, 1, 1), datetime(2500, 1, 1), timezones=st.just(UTC))
S = Status


@given(at=moments, seed=st.integers())
def test_an_id_is_a_uuid7_of_its_time_and_reads_back(at: datetime, seed: int) -> None:
    id_ = ids.new_id(at, random.Random(seed))
    assert (id_.version, id_.variant) == (7, "specified in RFC 4122")
    assert timedelta(0) <= at - ids.time_of(id_) < timedelta(milliseconds=1)
    public = ids.to_public(ids.NOTIFICATION, id_)
    assert len(public) == 30
    assert ids.parse_public(ids.NOTIFICATION, public) == id_
    assert ids.parse_public(ids.DELIVERY, public) is None
    assert ids.first_id_at(at) <= id_


@given(first=moments, later=st.timedeltas(timedelta(milliseconds=1), timedelta(days=9)), seed=st.integers())
def test_ids_are_ordered_by_time_also_outside(first: datetime, later: timedelta, seed: int) -> None:
    rng = random.Random(seed)
    one, two = ids.new_id(first, rng), ids.new_id(first + later, rng)
    assert one < two
    assert ids.to_public("ntf", one) < ids.to_public("ntf", two)


@given(at=moments, seed=st.integers())
def test_children_lie_within_their_family(at: datetime, seed: int) -> None:
    rng = random.Random(seed)
    parents = [ids.new_id(at + timedelta(hours=n), rng) for n in range(3)]
    for parent in parents:
        low, high = ids.family_range(parent)
        child = ids.child_id(parent, rng)
        grandchild = ids.child_id(child, rng)
        assert low <= child <= high
        assert low <= grandchild <= high
        assert ids.time_of(grandchild) == ids.time_of(parent)
        assert child.version == 7
    low, high = ids.family_bounds(parents)
    assert low == ids.family_range(parents[0])[0]
    assert high == ids.family_range(parents[-1])[1]


@given(text=st.text(max_size=40) | st.from_regex(r"ntf_[0-9a-z]{25,27}", fullmatch=True))
def test_what_is_no_public_id_is_none(text: str) -> None:
    found = ids.parse_public("ntf", text)
    assert found is None or ids.to_public("ntf", found) == text


@given(st.integers(0, 10**12))
def test_durations_read_back(ms: int) -> None:
    value = timedelta(milliseconds=ms)
    text = to_duration(value)
    if len(text) <= 10:  # more than nine digits are not taken
        assert parse_duration(text) == value


@pytest.mark.parametrize("text", ["", "5", "s", "-5s", "5 s", "1.5h", "5S", "1000000000s", "5s\n", "٥s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@given(now=st.sampled_from(Status), reason=st.none() | st.sampled_from(Reason), to=st.sampled_from(Status))
def test_only_the_table_moves_a_delivery(now: Status, reason: Reason | None, to: Status) -> None:
    moved = decide_transition(now, reason, to)
    lifted = now is S.failed and reason is Reason.uncertain and to in (S.sent, S.delivered)
    assert moved in (None, to)
    assert (moved is to) == (to in TRANSITIONS[now] or lifted)
    if now in (S.skipped, S.cancelled, S.expired):
        assert moved is None
    assert now not in TRANSITIONS[now]


def test_every_status_has_a_row_and_every_reason_an_effect() -> None:
    assert set(TRANSITIONS) == set(Status)
    assert set(EFFECTS) == set(Reason)
    assert {s for s in Status if not TRANSITIONS[s] - {S.failed, S.queued}} == FINAL


@pytest.mark.parametrize(
    ("deliveries", "status"),
    [
        ([S.queued], "processing"),
        ([S.sending, S.delivered], "processing"),
        ([S.delivered], "delivered"),
        ([S.delivered, S.sent], "sent"),
        ([S.delivered, S.skipped, S.cancelled], "delivered"),
        ([S.sent, S.failed], "partly"),
        ([S.delivered, S.expired], "partly"),
        ([S.failed, S.expired, S.skipped], "failed"),
        ([S.expired, S.cancelled], "expired"),
        ([S.cancelled, S.skipped], "cancelled"),
        ([S.skipped], "skipped"),
        ([], "skipped"),
    ],
)
def test_a_notifications_status_follows_from_its_deliveries(deliveries: list[Status], status: str) -> None:
    assert decide_notification_status(deliveries, planned=True, cancelled=False) == status


def test_before_planning_it_is_queued_or_cancelled() -> None:
    assert decide_notification_status([], planned=False, cancelled=False) == "queued"
    assert decide_notification_status([], planned=False, cancelled=True) == "cancelled"


@given(st.lists(st.sampled_from(Status), max_size=6), st.booleans(), st.booleans())
def test_every_combination_has_a_status(deliveries: list[Status], planned: bool, cancelled: bool) -> None:
    status = decide_notification_status(deliveries, planned=planned, cancelled=cancelled)
    assert status in {s.name for s in Status} | {"processing", "partly"}
