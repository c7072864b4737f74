"""Wakes: how a lane that waits for work learns that there is some. Hints only; polling is the safety net."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from tidings.engine import jobs as queue

IDLE_POLL: Final = 0.25
"""Seconds; the safety net below NOTIFY, and the precision of timers."""
BUSY_POLL: Final = 0.05
"""Seconds until a lane that could not take what waits (pace, pauses, full lanes) looks again."""


class Wakes:
    """Wakes lanes: those of this process at once, those of other processes by NOTIFY.

    Args:
        notify: sends a hint to the other processes; None where there are none.
        token: names this process in its hints, so that it does not wake itself twice.
    """

    def __init__(self, notify: Callable[[str, str], None] | None = None, token: str = "") -> None:
        self._notify = notify
        self._token = token
        self._lanes: dict[int, asyncio.Event] = {}

    def event(self, lane: int) -> asyncio.Event:
        """The event that wakes `lane`; all feeder lanes share one."""
        return self._lanes.setdefault(min(lane, queue.FEEDER), asyncio.Event())

    def local(self, lane: int) -> None:
        """Wake a lane of this process, if it runs here."""
        if event := self._lanes.get(min(lane, queue.FEEDER)):
            event.set()

    def hear(self, payload: str) -> None:
        """A hint came; an empty one means that hints may have been missed: look everywhere."""
        lane, _, token = payload.partition(":")
        if not lane.isdecimal():
            for event in self._lanes.values():
                event.set()
        elif token != self._token:
            self.local(int(lane))

    def announce(self, lanes: Iterable[int]) -> None:
        """Lanes have new work: wake ours, tell the others."""
        for lane in {min(lane, queue.FEEDER) for lane in lanes}:
            self.local(lane)
            if self._notify is not None:
                self._notify(queue.WAKE_CHANNEL, f"{lane}:{self._token}")


async def wait_first(*events: asyncio.Event, timeout: float) -> None:
    """Wait until one of the events is set, at most `timeout` seconds."""
    for event in events:
        if event.is_set():
            return
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()
    timer = loop.call_later(timeout, _set_result, waiter)
    watchers = [asyncio.create_task(_watch(event, waiter)) for event in events]
    try:
        await waiter
    finally:
        timer.cancel()
        for watcher in watchers:
            watcher.cancel()


async def _watch(event: asyncio.Event, waiter: asyncio.Future[None]) -> None:
    await event.wait()
    _set_result(waiter)


def _set_result(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
