"""Who gets the free slots. Pure.

Within a lane: critical first, then high, medium, low; but of every sixteen slots each class that waits gets one, and
a tenth of all slots is kept free for critical. Within a class: the projects with due work share evenly, whatever the
size of their backlogs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
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
    """What each class is owed under the floor; carried from one decision to the next.

    Kept for the lane as a whole, and for each pool (an account's project, say) whose budget was too small for what
    waited: there too, no class may take everything.
    """

    __slots__ = ("_owed",)

    def __init__(self) -> None:
        self._owed: dict[Hashable, list[float]] = {}

    def floors(self, pool: Hashable, demand: Sequence[int], free: int) -> list[int]:
        """How many of `free` slots each class must get at least; critical needs no floor."""
        owed = self._owed.get(pool, _NOTHING)
        return [0 if p == 0 else min(demand[p], int(owed[p] + free / FLOOR)) for p in range(CLASSES)]

    def settle(self, pool: Hashable, demand: Sequence[int], granted: Sequence[int]) -> None:
        """Book a decision: a class that waited and got less than its sixteenth is owed the rest."""
        before = self._owed.pop(pool, _NOTHING)
        total = sum(granted)
        owed = [0.0] * CLASSES
        for p in range(1, CLASSES):
            if demand[p] > granted[p]:
                owed[p] = min(max(before[p] + total / FLOOR - granted[p], 0.0), 1.0)
        if any(owed):
            self._owed[pool] = owed
            if len(self._owed) > _POOLS_KEPT:
                del self._owed[next(iter(self._owed))]


_NOTHING: Final = (0.0,) * CLASSES
_POOLS_KEPT: Final = 10_000
_LANE: Final = object()


def decide_shares(
    waiting: Sequence[Waiting],
    *,
    free: int,
    slots: int,
    ordinary_in_flight: int,
    credits: Credits,
    turn: int,
    pool: Callable[[Waiting], Hashable],
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
        pool: which entries share a budget.
        budget: how many jobs this entry's pool (its accounts, or the lane it feeds) can take now.
    """
    pools: dict[Hashable, list[tuple[Waiting, int]]] = {}
    for w in waiting:
        if w.waiting > 0:
            pools.setdefault(pool(w), []).append((w, w.waiting))
    usable: list[tuple[Waiting, int]] = []
    short: dict[Hashable, list[int]] = {}
    for name, entries in pools.items():
        limit = budget(entries[0][0])
        if limit <= 0:
            continue
        demand = _demand(entries)
        if sum(demand) > limit:
            short[name] = demand
            entries = _cut(entries, _by_class(demand, limit, limit, credits.floors(name, demand, limit)), turn)
        usable += entries
    demand = _demand(usable)
    reserve = min(max(1, int(slots * RESERVE)), slots - 1)
    ordinary = max(0, min(free, slots - reserve - ordinary_in_flight))
    granted = _by_class(demand, free, ordinary, credits.floors(_LANE, demand, ordinary))
    credits.settle(_LANE, demand, granted)
    shares = _cut(usable, granted, turn)
    for name, demand in short.items():
        credits.settle(name, demand, _demand([(w, n) for w, n in shares if pool(w) == name]))
    return shares


def _demand(entries: Iterable[tuple[Waiting, int]]) -> list[int]:
    demand = [0] * CLASSES
    for w, n in entries:
        demand[w.priority] += n
    return demand


def _by_class(demand: Sequence[int], free: int, ordinary: int, floors: Sequence[int]) -> list[int]:
    """What each class gets of `free` slots, of which only `ordinary` are for work that is not critical."""
    granted = [min(demand[0], max(0, free - sum(floors)))]
    left = min(ordinary, free - granted[0])
    for p in range(1, CLASSES):
        granted.append(min(demand[p], max(0, left - sum(floors[p + 1 :]))))
        left -= granted[p]
    return granted


def _cut(entries: Sequence[tuple[Waiting, int]], granted: Sequence[int], turn: int) -> list[tuple[Waiting, int]]:
    """The entries, within what their classes were granted: evenly among projects, and among the lanes of a project."""
    shares = []
    for priority, total in enumerate(granted):
        projects: dict[int, list[tuple[Waiting, int]]] = {}
        for w, n in entries:
            if w.priority == priority:
                projects.setdefault(w.project_id, []).append((w, n))
        each = _even([(p, sum(n for _, n in mine)) for p, mine in sorted(projects.items())], total, turn)
        for p, gets in each:
            mine = projects[p]
            shares += [(mine[i][0], n) for i, n in _even([(i, n) for i, (_, n) in enumerate(mine)], gets, turn)]
    return shares


def _even(wants: Sequence[tuple[int, int]], total: int, turn: int) -> list[tuple[int, int]]:
    """Share `total` evenly, nobody getting more than they want; what one cannot use goes to the others."""
    wanted = dict(wants)
    gets = dict.fromkeys(wanted, 0)
    open_ = list(wanted)
    while total > 0 and open_:
        each = total // len(open_)
        start = turn % len(open_)
        for i in range(len(open_)):
            name = open_[(start + i) % len(open_)]
            take = min(each, wanted[name] - gets[name]) if each else min(1, total)
            gets[name] += take
            total -= take
        open_ = [name for name in open_ if gets[name] < wanted[name]]
    return [(name, n) for name, n in gets.items() if n]
