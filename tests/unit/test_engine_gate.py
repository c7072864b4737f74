"""Accounts: the breaker's life, concurrency, pauses, and tokens that never add up to a burst."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidings.engine.gate import (
    ASK_AGAIN,
    NOTHING_TOLD,
    OPEN_AT_MOST,
    OPEN_FOR,
    OPENS_AFTER,
    PACE_WINDOW,
    TOKEN_TTL,
    Breaker,
    Gate,
    Limits,
    Quota,
    Told,
    decide_breaker,
)


def fail(state: Breaker, times: int, now: float) -> Breaker:
    for _ in range(times):
        state = decide_breaker(state, failed=True, now=now)
    return state


def test_the_breaker_opens_after_failures_in_a_row_only() -> None:
    nearly = fail(Breaker(), OPENS_AFTER - 1, 0.0)
    assert nearly.open_until is None
    assert decide_breaker(nearly, failed=False, now=0.0) == Breaker()
    opened = fail(nearly, 1, 0.0)
    assert opened.open_until == OPEN_FOR.total_seconds()
    # Answers of sends that were under way change nothing.
    assert decide_breaker(opened, failed=False, now=1.0) is opened
    assert decide_breaker(opened, failed=True, now=1.0) is opened


def test_half_open_one_failure_doubles_and_one_success_closes() -> None:
    state, now, spans = fail(Breaker(), OPENS_AFTER, 0.0), 0.0, []
    for _ in range(20):
        assert state.open_until is not None
        spans.append(state.open_until - now)
        now = state.open_until
        state = decide_breaker(state, failed=True, now=now)
    assert spans[:4] == [2.0, 4.0, 8.0, 16.0]
    assert max(spans) == OPEN_AT_MOST.total_seconds()
    assert state.open_until is not None
    assert decide_breaker(state, failed=False, now=state.open_until) == Breaker()


def test_a_gate_lets_one_probe_through_and_tells_each_opening() -> None:
    gate = Gate(Limits(1, 1, concurrency=40))
    assert gate.room(0.0) == 40
    gate.start(30)
    assert gate.room(0.0) == 10
    told = [gate.end(failed=True, now=0.0) for _ in range(OPENS_AFTER + 5)]
    assert told.count(True) == 1
    assert gate.shut_for(0.5) == 1.5
    assert gate.room(1.0) == 0
    for _ in range(30 - OPENS_AFTER - 5):
        gate.end(failed=None, now=1.0)
    for _ in range(20):  # however often it has opened before
        now = gate.breaker.open_until or 0.0
        assert gate.room(now) == 1
        gate.start(1)
        assert gate.room(now) == 0
        assert gate.end(failed=True, now=now)
    now = gate.breaker.open_until or 0.0
    gate.start(1)
    assert not gate.end(failed=False, now=now)
    assert gate.room(now) == 40


def test_sends_that_tell_nothing_widen_a_half_open_breaker_and_close_it() -> None:
    gate = Gate(Limits(1, 1, concurrency=40))
    gate.start(OPENS_AFTER)
    for _ in range(OPENS_AFTER):
        gate.end(failed=True, now=0.0)
    now = gate.breaker.open_until or 0.0
    for n in range(OPENS_AFTER):
        assert gate.room(now) == n + 1
        gate.start(1)
        gate.end(failed=None, now=now)
    assert gate.room(now) == 40
    gate.start(1)
    assert gate.end(failed=True, now=now), "it has not shown yet that it works"
    assert gate.breaker.open_until == now + 4.0
    gate.start(1)
    gate.release()
    assert gate.in_flight == 0


def test_an_exhausted_quota_shuts_the_gate_until_a_probe_finds_room() -> None:
    gate = Gate(Limits(1, 1, concurrency=40))
    gate.start(3)
    gate.exhaust(50_000.0, now=0.0)
    gate.exhaust(None, now=1.0)  # a send that had been counted before
    assert (gate.room(1.0), gate.shut_for(1.0)) == (0, ASK_AGAIN - 1.0)
    assert gate.room(ASK_AGAIN) == 0
    for _ in range(3):
        gate.end(failed=False, now=2.0)
    assert gate.room(ASK_AGAIN) == 1
    gate.exhaust(None, now=ASK_AGAIN)
    assert gate.room(ASK_AGAIN) == 40
    gate.exhaust(2.0, now=20.0)
    assert gate.shut_for(20.0) == 2.0
    gate.change(Limits(1, 1, concurrency=40, quota=Quota(day_messages=9)))
    assert gate.room(20.0) == 40


def test_what_the_row_tells_changes_weight_and_pace() -> None:
    gate = Gate(Limits(1, 1, concurrency=40, rate=50.0, burst=100, weight=200))
    gate.hear(Told(0.0, 0.25, 3.0), now=0.0)
    assert (gate.weight, gate.rate, gate.burst) == (50.0, 3.0, 3)
    assert (gate.paced().rate, gate.paced().burst) == (3.0, 3)
    gate.hear(Told(4.0, 1.0, 80.0), now=0.0)
    assert (gate.rate, gate.burst, gate.shut_for(1.0)) == (50.0, 80, 3.0)
    gate.hear(NOTHING_TOLD, now=1.0)
    assert (gate.weight, gate.rate, gate.burst, gate.shut_for(1.0)) == (200.0, 50.0, 100, 3.0)


def test_a_pause_is_never_shortened() -> None:
    gate = Gate(Limits(1, 1, concurrency=4))
    gate.pause(10, now=0.0)
    gate.pause(1, now=5.0)
    assert (gate.budget(9.9), gate.budget(10.0)) == (0, 4)


@given(
    steps=st.lists(st.tuples(st.floats(0.0, 0.4), st.integers(0, 30), st.integers(0, 30)), max_size=60),
    rate=st.floats(0.5, 100),
    burst=st.integers(1, 10),
)
def test_tokens_are_bounded_and_forgotten(steps: list[tuple[float, int, int]], rate: float, burst: int) -> None:
    gate, now, last_lease = Gate(Limits(1, 1, concurrency=1000, rate=rate, burst=burst)), 0.0, -1.0
    most = burst + rate * PACE_WINDOW.total_seconds() + 1
    for wait, granted, used in steps:
        now += wait
        wanted = gate.wants_tokens(now)
        if wanted:
            assert now - last_lease >= PACE_WINDOW.total_seconds() - 1e-9
            gate.grant_tokens(min(granted, wanted), now)
            last_lease = now
        assert gate.budget(now) <= most
        gate.start(min(used, gate.budget(now)))
        assert gate.purse.tokens >= 0
    assert gate.budget(now + TOKEN_TTL + 0.01) == 0


def test_without_a_pace_no_tokens_are_asked_for() -> None:
    gate = Gate(Limits(1, 1, concurrency=4))
    assert (gate.wants_tokens(0.0), gate.budget(0.0)) == (0, 4)
