"""Group commit: order, weights, the window, bad items alone refused, callers that go away."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.engine.batch import Batcher, is_about_an_item


class Store:
    """Takes batches like a database: a bad item refuses its whole batch."""

    def __init__(self, bad: Sequence[int] = (), refusal: Exception | None = None) -> None:
        self.bad = set(bad)
        self.refusal = refusal or asyncpg.DataError("a bad value")
        self.stored: list[int] = []
        self.batches: list[list[int]] = []
        self.may_go = asyncio.Event()
        self.may_go.set()
        self.at_once = 0
        self.most_at_once = 0

    async def flush(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.may_go.wait()
            if self.bad & set(items):
                raise self.refusal
            self.stored += items
            return [item * 10 for item in items]
        finally:
            self.at_once -= 1


async def tell(batcher: Batcher[int, int], items: Sequence[int]) -> list[int | BaseException]:
    return await asyncio.gather(*[batcher.add(item) for item in items], return_exceptions=True)


@given(n=st.integers(1, 80), bad=st.sets(st.integers(0, 79)), limit=st.integers(1, 100))
def test_only_the_bad_items_are_refused(n: int, bad: set[int], limit: int) -> None:
    async def check() -> None:
        store = Store(sorted(bad))
        answers = await tell(Batcher(store.flush, limit=limit), range(n))
        for item, answer in enumerate(answers):
            if item in bad:
                assert isinstance(answer, asyncpg.DataError)
            else:
                assert answer == item * 10
        assert store.stored == [item for item in range(n) if item not in bad]
        assert all(len(batch) <= limit for batch in store.batches)

    asyncio.run(check())


async def test_trouble_that_is_nobodys_fault_is_told_to_all_at_once() -> None:
    store = Store([3], asyncpg.ConnectionDoesNotExistError("gone"))
    answers = await tell(Batcher(store.flush, limit=100), range(8))
    assert all(isinstance(answer, asyncpg.ConnectionDoesNotExistError) for answer in answers)
    assert store.batches == [list(range(8))]


async def test_what_was_committed_before_the_trouble_is_told_so() -> None:
    calls = 0

    async def flush(items: Sequence[int]) -> Sequence[int]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise asyncpg.DataError("a bad value")
        if calls == 3:
            raise asyncpg.CannotConnectNowError("starting up")
        return items

    answers = await tell(Batcher(flush, limit=100), range(4))
    assert answers[:2] == [0, 1]
    assert all(isinstance(answer, asyncpg.CannotConnectNowError) for answer in answers[2:])


async def test_a_busy_batcher_gathers_and_keeps_the_order() -> None:
    store = Store()
    store.may_go.clear()
    batcher: Batcher[int, int] = Batcher(store.flush, limit=5, flushers=2)
    first = batcher.add(0)
    while not store.batches:
        await asyncio.sleep(0)
    futures = [batcher.add(item) for item in range(1, 14)]
    while len(store.batches) < 2:
        await asyncio.sleep(0)
    assert batcher.weight == 8
    store.may_go.set()
    await asyncio.gather(first, *futures)
    assert store.batches == [[0], [1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12, 13]]
    assert store.most_at_once == 2
    assert batcher.weight == 0


async def test_weights_fill_a_batch_and_a_heavy_item_goes_alone() -> None:
    store = Store()
    seen: list[int] = []
    batcher: Batcher[int, int] = Batcher(store.flush, limit=10, weigh=lambda item: item, observe=seen.append)
    await tell(batcher, [4, 5, 3, 30, 1])
    assert store.batches == [[4, 5], [3], [30], [1]]
    assert seen == [9, 3, 30, 1]


async def test_a_full_batch_does_not_wait_for_the_window() -> None:
    store = Store()
    batcher: Batcher[int, int] = Batcher(store.flush, limit=3, window=3600)
    assert await tell(batcher, [1, 2, 3]) == [10, 20, 30]
    alone = batcher.add(4)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not alone.done()
    await batcher.drain()
    assert await alone == 40


async def test_a_caller_that_goes_away_takes_nobody_along() -> None:
    store = Store()
    store.may_go.clear()
    batcher: Batcher[int, int] = Batcher(store.flush, limit=10)
    leaving, staying = batcher.add(1), batcher.add(2)
    while not store.batches:
        await asyncio.sleep(0)
    leaving.cancel()
    store.may_go.set()
    assert await staying == 20
    assert store.stored == [1, 2]
    with pytest.raises(asyncio.CancelledError):
        await leaving


def test_what_one_item_can_cause() -> None:
    assert is_about_an_item(asyncpg.UniqueViolationError("twice"))
    assert is_about_an_item(asyncpg.LockNotAvailableError("locked"))
    assert is_about_an_item(ValueError("cannot encode"))
    assert is_about_an_item(OverflowError())
    for error in (
        asyncpg.ConnectionDoesNotExistError("x"),
        asyncpg.QueryCanceledError("x"),
        asyncpg.DiskFullError("x"),
        asyncpg.InterfaceError("connection is closed"),
        OSError("reset"),
        KeyError("a bug"),
    ):
        assert not is_about_an_item(error)
