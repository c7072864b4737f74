"""Live: which streams look at which inbox in this process, and one reader that looks into the tables for all of them.

A bell rings for inboxes that have changed; the reader asks for all the streams of these at once, in one statement, what
is new after the place where each stands. Nothing is queued for a stream: while it still writes to a slow network it is
only remembered that there is more, and what that is comes out of the tables when it asks again. So a stream costs
little memory however slow it is, misses nothing, and tells nothing twice.

This room knows no network; `stream.py` writes what comes out of here.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

import structlog

from tidings.clock import Clock
from tidings.db.pool import to_loggable
from tidings.directory.tokens import UserCaller
from tidings.errors import TooManyRequests, Unavailable
from tidings.flow.inbox import CHANGES_MAX, Inbox, InboxCounts, InboxItem, News, Place, to_tag
from tidings.telemetry import Metrics

_log = structlog.get_logger(__name__)

POLL: Final = 30.0
"""Seconds after which all are looked at although no bell rang; also how soon a stream of a deleted user ends."""
HEARTBEAT: Final = 15.0
"""Seconds of silence after which a stream says that it lives: proxies cut what seems dead."""
SEND_MAX: Final = 30.0
"""Seconds for which a client may take nothing; then it is cut off, and resumes from where it stands."""
READ_MAX: Final = 128
"""Streams that one statement asks for."""
STREAMS_MAX: Final = 10_000
"""Of one process."""
USER_STREAMS_MAX: Final = 20
"""Of one user in one process: tabs and devices."""


class End(Enum):
    """Why a stream ends."""

    gone = "the client is gone"
    draining = "this process stops; connect again"
    expired = "the user token expired"
    deleted = "the user was deleted"
    too_fast = "too many commands"


class Stream:
    """One view of an inbox."""

    def __init__(self, user: UserCaller, after: int | None) -> None:
        self.user: Final = user
        self.tag: Final = to_tag(user.owner)
        self.after = after
        """The number of the last change that it told; None until the first news."""
        self.dirty = True
        """There may be something new: at first, and since the bell rang."""
        self.greeted = False
        self.ended: End | None = None
        self.waiter: asyncio.Future[News | End] | None = None

    @property
    def waits(self) -> bool:
        """Whether it has nothing to write, and has not been told anything yet."""
        return self.waiter is not None and not self.waiter.done()


class Told(NamedTuple):
    """What a stream shall write."""

    items: Sequence[tuple[str, InboxItem]]
    """`item` or `update`, and the item as it is now. Whether an item is new to the client cannot always be told from
    where it stands (it may have been marked before it was first told), so both words come with the whole item."""
    counts: InboxCounts
    after: int
    """Where the stream stands when all of it is written."""


class Live:
    """The streams of this process.

    Args:
        draining: set when the process stops; every stream ends then.
        poll: see `POLL`, as for the other limits.
    """

    def __init__(
        self,
        inbox: Inbox,
        clock: Clock,
        metrics: Metrics,
        *,
        draining: asyncio.Event | None = None,
        poll: float = POLL,
    ) -> None:
        self.heartbeat = HEARTBEAT
        self.send_max = SEND_MAX
        self.user_streams_max = USER_STREAMS_MAX
        self._poll = poll
        self._inbox = inbox
        self._clock = clock
        self._metrics = metrics
        self._draining = draining or asyncio.Event()
        self._by_tag: dict[str, dict[Stream, None]] = {}
        self._due: dict[Stream, None] = {}
        """Streams that wait, and for which there may be something; in the order in which they asked."""
        self._wake = asyncio.Event()
        self._count = 0
        self._tasks: list[asyncio.Task[None]] = []
        inbox.bell.listen(self._hear)

    # ------------------------------------------------------------ for the streams

    def open(self, user: UserCaller, after: int | None) -> Stream:
        """A new stream; :meth:`close` it.

        Args:
            after: tell what changed after this number; None: what changes from now on.

        Raises:
            TooManyRequests: the user has too many.
            Unavailable: the process has too many.
        """
        if self._count >= STREAMS_MAX:
            raise Unavailable("This process serves as many streams as it can.", retry_after=5)
        stream = Stream(user, after)
        same = self._by_tag.setdefault(stream.tag, {})
        if sum(other.user.owner == user.owner for other in same) >= self.user_streams_max:
            raise TooManyRequests(f"A user may have {self.user_streams_max} streams at a time.", retry_after=30)
        same[stream] = None
        self._count += 1
        self._metrics.inbox_streams.inc()
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._read_all()), asyncio.create_task(self._drain())]
        return stream

    def close(self, stream: Stream) -> None:
        """The stream is over."""
        same = self._by_tag[stream.tag]
        del same[stream]
        if not same:
            del self._by_tag[stream.tag]
        self._due.pop(stream, None)
        self._count -= 1
        self._metrics.inbox_streams.dec()

    def end(self, stream: Stream, why: End) -> None:
        """Makes `next` answer with `why`, now and from now on."""
        stream.ended = stream.ended or why
        self._answer(stream, stream.ended)

    async def next(self, stream: Stream, timeout: float | None = None) -> Told | End | None:
        """What there is to tell, as soon as there is something; None when nothing was for so many seconds.

        The first answer comes at once, be it only the counts.

        Args:
            timeout: seconds; None: a heartbeat.
        """
        timeout = self.heartbeat if timeout is None else timeout
        if self._draining.is_set():
            self.end(stream, End.draining)
        left = (stream.user.expires_at - self._clock.now()).total_seconds()
        if left <= 0:
            self.end(stream, End.expired)
        if stream.ended is not None:
            return stream.ended
        waiter = stream.waiter = asyncio.get_running_loop().create_future()
        if stream.dirty:
            self._queue(stream)
        try:
            async with asyncio.timeout(min(timeout, left)):
                found = await waiter
        except TimeoutError:
            if waiter.done() and not waiter.cancelled():
                found = waiter.result()  # it came in the same moment
            elif left <= timeout:
                self.end(stream, End.expired)
                return End.expired
            else:
                return None
        finally:
            stream.waiter = None
            self._due.pop(stream, None)
        return found if isinstance(found, End) else self._tell(stream, found)

    def _tell(self, stream: Stream, news: News) -> Told:
        place = stream.after
        if place is None or place > news.counts.last_seq:  # a number that is not of this inbox: begin with now
            place = news.counts.last_seq
        items = [("item" if item.seq > place else "update", item) for item in news.items]
        stream.after = news.items[-1].changed_seq if news.items else place
        stream.greeted = True
        stream.dirty |= len(news.items) >= CHANGES_MAX
        return Told(items, news.counts, stream.after)

    async def stop(self) -> None:
        """Ends the reader."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    # ------------------------------------------------------------ the reader

    def _hear(self, tags: frozenset[str] | None) -> None:
        for tag in self._by_tag.keys() if tags is None else tags & self._by_tag.keys():
            for stream in self._by_tag[tag]:
                stream.dirty = True
                if stream.waits:
                    self._queue(stream)

    def _answer(self, stream: Stream, found: News | End) -> None:
        if stream.waiter is not None and not stream.waiter.done():
            stream.waiter.set_result(found)

    def _queue(self, stream: Stream) -> None:
        self._due[stream] = None
        self._wake.set()

    async def _read_all(self) -> None:
        poll_at = self._clock.monotonic() + self._poll
        while True:
            try:
                async with asyncio.timeout(max(0.0, poll_at - self._clock.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                poll_at = self._clock.monotonic() + self._poll
                self._hear(None)
            self._wake.clear()
            while self._due:
                await self._read(list(itertools.islice(self._due, READ_MAX)))

    async def _read(self, streams: list[Stream]) -> None:
        for stream in streams:
            del self._due[stream]
            stream.dirty = False  # before asking: whatever changes from here on rings again
        places = [Place(*stream.user.owner, stream.after) for stream in streams]
        try:
            found = await self._inbox.load_changes(places)
        except Exception as error:  # the database is away; the streams stay, and are told when it is back
            _log.warning("inbox.unreadable", error=to_loggable(error), streams=len(streams))
            for stream in streams:
                stream.dirty = True
                if stream.waits:
                    self._due[stream] = None
            await self._clock.sleep(1.0)
            return
        for stream, place, news in zip(streams, places, found, strict=True):
            self._deliver(stream, place, news)

    def _deliver(self, stream: Stream, place: Place, news: News) -> None:
        if news.born != stream.user.born:
            self.end(stream, End.deleted)
        elif not stream.waits:
            stream.dirty = True  # it stopped waiting meanwhile
        elif stream.after != place.after:
            self._queue(stream)  # it was told something meanwhile, and waits again at another place
        elif news.items or not stream.greeted:
            self._answer(stream, news)

    async def _drain(self) -> None:
        await self._draining.wait()
        for same in self._by_tag.values():
            for stream in same:
                self.end(stream, End.draining)
