"""The breaker for runaway loops."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tidings.errors import Runaway
from tidings.flow.breaker import Breaker

ADA = (1, 7, "u:ada")


def passed(
    breaker: Breaker, now: float, times: int, subject: tuple[int, int | None, str] = ADA, above: int = 60
) -> int:
    n = 0
    for _ in range(times):
        try:
            breaker.count(subject, above, now)
        except Runaway:
            continue
        n += 1
    return n


def test_loop_is_stopped_and_others_are_not() -> None:
    refused: list[None] = []
    breaker = Breaker(observe=lambda: refused.append(None))
    assert passed(breaker, 100.0, 100) == 60
    assert len(refused) == 40
    assert passed(breaker, 100.0, 10, (1, 7, "u:bob")) == 10
    assert passed(breaker, 100.0, 10, (1, 8, "u:ada")) == 10
    assert passed(breaker, 100.0, 10, (2, 7, "u:ada")) == 10
    assert passed(breaker, 100.0, 10, (1, None, "1:ada@example.com")) == 10
    assert passed(breaker, 105.0, 100) == 5
    assert passed(breaker, 400.0, 100) == 60


def test_refusal_says_when_to_come_again() -> None:
    breaker = Breaker()
    passed(breaker, 0.0, 60)
    with pytest.raises(Runaway) as caught:
        breaker.count(ADA, 60, 0.25)
    assert caught.value.retry_after == pytest.approx(0.75)
    breaker.count(ADA, 60, 1.0)


def test_without_a_threshold_nothing_is_counted() -> None:
    breaker = Breaker()
    for _ in range(10_000):
        breaker.count(ADA, None, 0.0)
    assert passed(breaker, 0.0, 60) == 60


def test_loop_is_logged_once_a_minute_without_the_user() -> None:
    breaker = Breaker()
    with capture_logs() as logs:
        for second in range(90):
            passed(breaker, float(second), 100)
    assert [(line["event"], line["project"], line["type"]) for line in logs] == [("accept.runaway", 1, None)] * 2
    assert "ada" not in str(logs)


def test_memory_is_bounded_and_the_least_lately_seen_goes_first() -> None:
    breaker = Breaker(known=3)
    for name in ("ada", "bob", "cleo"):
        assert passed(breaker, 0.0, 100, (1, 7, name)) == 60
    assert passed(breaker, 0.0, 1, (1, 7, "ada")) == 0
    passed(breaker, 0.0, 1, (1, 7, "dora"))
    assert passed(breaker, 0.0, 100, (1, 7, "ada")) == 0
    assert passed(breaker, 0.0, 100, (1, 7, "bob")) == 60


@given(above=st.integers(1, 100), waits=st.lists(st.floats(0, 30), max_size=200))
def test_no_more_than_said_in_any_time(above: int, waits: list[float]) -> None:
    breaker, now, through = Breaker(), 0.0, []
    for wait in waits:
        now += wait
        through += [now] * passed(breaker, now, 3, above=above)
    for i, start in enumerate(through):
        for j in range(i, len(through)):
            assert j - i + 1 <= above + (through[j] - start) * above / 60 + 1e-3
