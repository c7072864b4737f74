"""Who gets the free slots: bounds, floors, the critical reserve, fairness, and that nothing waits without a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tidings.engine.jobs import decide_next_page
from tidings.engine.shares import CLASSES, FLOOR, RESERVE, Credits, Waiting, decide_shares

LANE = 1


def decide(
    waiting: Sequence[Waiting],
    *,
    free: int,
    slots: int | None = None,
    ordinary: int = 0,
    credits: Credits | None = None,
    turn: int = 0,
    budgets: dict[int, int] | None = None,
) -> list[tuple[Waiting, int]]:
    return decide_shares(
        waiting,
        free=free,
        slots=slots if slots is not None else free,
        ordinary_in_flight=ordinary,
        credits=credits or Credits(),
        turn=turn,
        pool=lambda w: w.project_id,
        budget=lambda w: 10**9 if budgets is None else budgets.get(w.project_id, 0),
    )


def due(priority: int, project: int, n: int, lane: int = LANE) -> Waiting:
    return Waiting(lane, priority, project, n, 0)


@st.composite
def backlogs(draw: st.DrawFn) -> list[Waiting]:
    places = draw(st.sets(st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(1, 2)), max_size=20))
    return [due(p, project, draw(st.integers(1, 50)), lane) for p, project, lane in sorted(places)]


@given(
    waiting=backlogs(),
    slots=st.integers(1, 200),
    busy=st.integers(0, 200),
    ordinary=st.integers(0, 200),
    turn=st.integers(0, 99),
    budgets=st.dictionaries(st.integers(1, 5), st.integers(-1, 60)),
)
def test_never_more_than_there_is(
    waiting: list[Waiting], slots: int, busy: int, ordinary: int, turn: int, budgets: dict[int, int]
) -> None:
    free = max(0, slots - busy)
    ordinary = min(ordinary, slots - free)
    shares = decide(waiting, free=free, slots=slots, ordinary=ordinary, turn=turn, budgets=budgets)
    assert sum(n for _, n in shares) <= free
    assert all(0 < n <= w.waiting for w, n in shares)
    assert len({w for w, _ in shares}) == len(shares)
    per_project: Counter[int] = Counter()
    for w, n in shares:
        per_project[w.project_id] += n
    assert all(n <= budgets.get(project, 0) for project, n in per_project.items())
    started = sum(n for w, n in shares if w.priority > 0)
    if slots > 1:
        reserve = max(1, int(slots * RESERVE))
        assert started == 0 or ordinary + started <= slots - reserve


@given(
    waiting=backlogs(), slots=st.integers(2, 200), turn=st.integers(0, 99), budgets=st.none() | st.just({1: 3, 2: 7})
)
def test_nothing_waits_while_it_may_go(
    waiting: list[Waiting], slots: int, turn: int, budgets: dict[int, int] | None
) -> None:
    shares = decide(waiting, free=slots, turn=turn, budgets=budgets)
    taken = sum(n for _, n in shares)
    able: Counter[bool] = Counter()
    for project in {w.project_id for w in waiting}:
        mine = [w for w in waiting if w.project_id == project]
        limit = 10**9 if budgets is None else budgets.get(project, 0)
        urgent = min(limit, sum(w.waiting for w in mine if w.priority == 0))
        able[True] += urgent
        able[False] += min(limit - urgent, sum(w.waiting for w in mine if w.priority > 0))
    reserve = max(1, int(slots * RESERVE))
    # A floor may have given a slot of an account to a lower class; but no slot is lost.
    assert taken >= min(slots - reserve, able[True] + able[False])


def test_of_every_sixteen_each_waiting_class_gets_one() -> None:
    for free in (1, 2, 5, 16, 40):
        credits, total, got = Credits(), 0, Counter[int]()
        while total < 4_000:
            shares = decide([due(p, 1, 1000) for p in range(CLASSES)], free=free, slots=1000, credits=credits)
            for w, n in shares:
                got[w.priority] += n
            total += sum(n for _, n in shares)
        for priority in range(1, CLASSES):
            assert got[priority] >= total / FLOOR * 0.95, (free, got)
        assert got[0] > got[1]


def test_an_account_that_is_short_is_shared_by_classes_too() -> None:
    credits, got = Credits(), Counter[int]()
    for turn in range(640):
        waiting = [due(1, 1, 100), due(3, 1, 100), due(1, 2, 100)]
        for w, n in decide(waiting, free=90, slots=100, credits=credits, turn=turn, budgets={1: 1, 2: 1}):
            got[w.project_id * 10 + w.priority] += n
    assert got[13] >= 640 / FLOOR * 0.95
    assert got[11] + got[13] == got[21] == 640


def test_a_tenth_is_kept_for_critical() -> None:
    flood = [due(1, 1, 1000), due(3, 1, 1000)]
    assert sum(n for _, n in decide(flood, free=100)) == 90
    assert decide(flood, free=10, slots=100, ordinary=90) == []
    assert decide([*flood, due(0, 1, 4)], free=10, slots=100, ordinary=90) == [(due(0, 1, 4), 4)]
    # A lane of one slot cannot keep any.
    assert decide(flood, free=1) == [(due(1, 1, 1000), 1)]


@given(sizes=st.lists(st.integers(1, 10_000), min_size=2, max_size=8), free=st.integers(8, 300))
def test_projects_share_evenly_whatever_their_backlogs(sizes: list[int], free: int) -> None:
    waiting = [due(2, project, n) for project, n in enumerate(sizes, 1)]
    got = {w.project_id: n for w, n in decide(waiting, free=free)}
    for project, n in enumerate(sizes, 1):
        for other in got.values():
            assert got.get(project, 0) >= min(n, other - 1)


def test_the_odd_slot_goes_round_among_projects_and_among_lanes() -> None:
    projects, lanes = Counter[int](), Counter[int]()
    waiting = [due(2, 1, 99, 5), due(2, 1, 99, 6), due(2, 2, 99, 5), due(2, 3, 99, 5)]
    for turn in range(300):
        for w, n in decide(waiting, free=1, slots=100, turn=turn):
            projects[w.project_id] += n
            if w.project_id == 1:
                lanes[w.lane] += n
    assert set(projects.values()) == {100}
    assert set(lanes) == {5, 6}


def test_a_page_goes_on_after_the_earliest_end() -> None:
    assert decide_next_page([], 2) == 0
    assert decide_next_page([due(0, 1, 1), due(1, 1, 1)], 2) == 0
    assert decide_next_page([due(0, 1, 1), due(0, 2, 1), due(1, 70, 1), due(1, 90, 1)], 2) == 2
