"""Who gets the free slots. Pure.

Within a lane: critical first, then high, medium, low; but of every sixteen slots each class that waits gets one, and
a tenth of all slots is kept free for critical. Within a class: the projects with due work share evenly, whatever the
size of their backlogs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

FLOOR: Final = 16
"""Of so many slots, each waiting class gets at least one."""
RESERVE: Final = 0.1
"""This part of the slots only critical work may use."""
CLASSES: Final = 4


class Waiting(NamedTuple):
    """Due work of one class and project; the order of the fields is that of `load_waiting`'s columns."""

    lane: int
    priority: int
    project_id: int
    waiting: int
    ahead: int
    """For a feeder lane: what waits already on the fullest lane that it feeds."""


class Share(NamedTuple):
    """Claim `n` jobs of this class and project, to be sent with `account_id`."""

    lane: int
    priority: int
    project_id: int
    account_id: int | None
    n: int


class Credits:
    """What each class is owed under the floor; carried from one decision to the next."""

    __slots__ = ("_owed",)

    def __init__(self) -> None:
        self._owed = [0.0] * CLASSES

    def floors(self, demand: Sequence[int], free: int) -> list[int]:
        """How many of `free` slots each class must get at least; critical needs no floor."""
        return [
            0 if priority == 0 else min(demand[priority], int(self._owed[priority] + free / FLOOR))
            for priority in range(CLASSES)
        ]

    def settle(self, demand: Sequence[int], granted: Sequence[int]) -> None:
        """Book a decision: a class that waited and got less than its sixteenth is owed the rest."""
        total = sum(granted)
        for priority in range(1, CLASSES):
            owed = self._owed[priority] + total / FLOOR - granted[priority]
            self._owed[priority] = min(max(owed, 0.0), 1.0) if demand[priority] > granted[priority] else 0.0


def decide_shares(
    waiting: Sequence[Waiting],
    *,
    free: int,
    slots: int,
    ordinary_in_flight: int,
    credits: Credits,
    turn: int,
    budget: Callable[[Waiting], int],
) -> list[tuple[Waiting, int]]:
    """How many jobs of each class and project to claim.

    Args:
        waiting: what is due.
        free: slots that nothing uses.
        slots: all slots.
        ordinary_in_flight: slots used by work that is not critical.
        credits: what the classes are owed; booked by this call.
        turn: rotates who gets the odd slot.
        budget: how many jobs of this entry its accounts (or the lanes it feeds) can take now.
    """
    usable = [(w, min(w.waiting, budget(w))) for w in waiting]
    usable = [(w, n) for w, n in usable if n > 0]
    demand = [0] * CLASSES
    for w, n in usable:
        demand[w.priority] += n
    reserve = max(1, int(slots * RESERVE))
    ordinary = max(0, min(free, slots - reserve - ordinary_in_flight))
    floors = credits.floors(demand, ordinary)
    granted = [0] * CLASSES
    granted[0] = min(demand[0], max(0, free - sum(floors)))
    left = min(ordinary, free - granted[0])
    for priority in range(1, CLASSES):
        owed_below = sum(floors[priority + 1 :])
        granted[priority] = min(demand[priority], max(0, left - owed_below))
        left -= granted[priority]
    credits.settle(demand, granted)
    shares: list[tuple[Waiting, int]] = []
    for priority in range(CLASSES):
        if granted[priority]:
            shares += _even([(w, n) for w, n in usable if w.priority == priority], granted[priority], turn)
    return shares


def _even(entries: Sequence[tuple[Waiting, int]], total: int, turn: int) -> Iterable[tuple[Waiting, int]]:
    """Share `total` evenly among the projects, each at most what it has; what one cannot use goes to the others."""
    by_project: dict[int, list[tuple[Waiting, int]]] = {}
    for w, n in entries:
        by_project.setdefault(w.project_id, []).append((w, n))
    has = {project: sum(n for _, n in mine) for project, mine in by_project.items()}
    gets = dict.fromkeys(has, 0)
    open_ = sorted(has)
    while total > 0 and open_:
        each, odd = divmod(total, len(open_))
        start = turn % len(open_)
        lucky = {open_[(start + i) % len(open_)] for i in range(odd)}
        for project in open_:
            take = min(each + (project in lucky), has[project] - gets[project])
            gets[project] += take
            total -= take
        open_ = [p for p in open_ if gets[p] < has[p]]
    for project, mine in by_project.items():
        left = gets[project]
        for w, n in mine:
            take = min(n, left)
            left -= take
            if take:
                yield w, take
