"""Health of accounts: weights that move gradually and drift back, nothing when all are alike, and learned paces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.engine.health import (
    CUT,
    LEAST,
    LONGEST,
    SLOWEST,
    STEP,
    Pace,
    Vitals,
    decide_health,
    decide_pace,
    decide_weights,
)

vitals = st.builds(
    Vitals,
    errors=st.floats(0.0, 1.0),
    latency=st.none() | st.floats(0.0, 10_000.0),
    factor=st.floats(LEAST, 1.0),
)
channels = st.dictionaries(st.integers(1, 9), vitals, min_size=1, max_size=9)
seconds = st.floats(0.1, 1_000.0)


@given(channel=channels, passed=seconds)
def test_weights_move_a_little_and_stay_in_bounds(channel: dict[int, Vitals], passed: float) -> None:
    decided = decide_weights(channel, passed)
    assert decided.keys() == channel.keys()
    health = decide_health(channel)
    assert all(0.0 <= h <= 1.0 for h in health.values())
    best = max(health.values())
    for account, factor in decided.items():
        before = channel[account].factor
        assert LEAST <= factor <= 1.0
        assert abs(factor - before) <= STEP * min(passed, LONGEST) + 1e-9
        if health[account] == best:
            assert factor >= before, "the best one never loses weight"


@given(one=vitals, n=st.integers(1, 6), passed=seconds)
def test_nothing_moves_when_all_are_alike(one: Vitals, n: int, passed: float) -> None:
    alike = {i: Vitals(one.errors, one.latency, 1.0) for i in range(n)}
    assert set(decide_weights(alike, passed).values()) == {1.0}


@given(channel=channels)
def test_weights_drift_back_when_all_is_well_again(channel: dict[int, Vitals]) -> None:
    well = {account: Vitals(factor=v.factor) for account, v in channel.items()}
    for _ in range(20):
        factors = decide_weights(well, 5.0)
        well = {account: Vitals(factor=factor) for account, factor in factors.items()}
    assert all(v.factor == pytest.approx(1.0) for v in well.values())


@given(channel=channels)
def test_weights_come_to_rest(channel: dict[int, Vitals]) -> None:
    for _ in range(25):
        factors = decide_weights(channel, 5.0)
        channel = {a: Vitals(v.errors, v.latency, factors[a]) for a, v in channel.items()}
    assert decide_weights(channel, 5.0) == pytest.approx({a: v.factor for a, v in channel.items()})


def test_a_bad_account_loses_its_weight_in_minutes_and_keeps_a_little() -> None:
    factor, steps = 1.0, []
    for _ in range(30):
        factor = decide_weights({1: Vitals(), 2: Vitals(errors=1.0, factor=factor)}, 5.0)[2]
        steps.append(factor)
    assert steps[0] == pytest.approx(0.95)
    assert steps[1] == pytest.approx(0.90)
    assert steps[-1] == LEAST


def test_slow_receipts_count_against_the_fastest_only() -> None:
    slow = decide_health({1: Vitals(latency=4.0), 2: Vitals(latency=90.0), 3: Vitals()})
    assert slow == {1: 1.0, 2: pytest.approx(0.1), 3: 1.0}
    assert decide_health({1: Vitals(latency=80.0), 2: Vitals(latency=90.0)}) == {1: 1.0, 2: 1.0}
    assert decide_health({1: Vitals(latency=0.01), 2: Vitals(latency=0.9)}) == {1: 1.0, 2: 1.0}  # both are quick


paces = st.builds(Pace, st.floats(SLOWEST, 1e4), st.floats(SLOWEST, 1e4)) | st.just(Pace())


@given(pace=paces, configured=st.none() | st.floats(0.001, 1e5), taken=st.integers(0, 10**6), passed=seconds)
def test_throttling_cuts_and_calm_never_does(pace: Pace, configured: float | None, taken: int, passed: float) -> None:
    cut = decide_pace(pace, configured, taken=taken, throttled=1, seconds=passed)
    assert cut.rate is not None
    assert cut.peak is not None
    assert cut.rate >= SLOWEST
    assert cut.rate <= max(SLOWEST, CUT * cut.peak)
    if pace.rate is not None:
        assert cut.rate <= max(SLOWEST, CUT * pace.rate)
    calm = decide_pace(pace, configured, taken=taken, throttled=0, seconds=passed)
    if pace.rate is None:
        assert calm == Pace()
    elif calm.rate is not None:
        assert calm.rate > pace.rate
        assert configured is None or calm.rate < configured


def test_a_learned_pace_is_forgotten_after_a_while_without_throttling() -> None:
    pace = decide_pace(Pace(), None, taken=1_000, throttled=3, seconds=10.0)
    assert pace.rate == pytest.approx(70.0)
    assert pace.peak == 100.0
    steps = 0
    while pace.rate is not None:
        pace = decide_pace(pace, None, taken=0, throttled=0, seconds=5.0)
        steps += 1
    assert steps * 5 == pytest.approx(130, abs=10)
    limited = decide_pace(Pace(70.0, 100.0), 74.0, taken=0, throttled=0, seconds=5.0)
    assert limited == Pace(), "the configured rate is reached: nothing more has to be known"
