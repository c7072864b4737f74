"""Turns: how many requests of a kind one project may have under way in this process.

Knows nothing of what the requests do. Everybody shares the connections, the disk and the memory of a process, and what
takes long takes them from the other projects; so who comes too many gets 429 and comes again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tidings.errors import TooManyRequests


class Turns:
    """A kind of request of which a project has few at a time.

    Args:
        at_once: how many.
        busy: what is told to the next one.
        retry_after: seconds after which it is worth coming again.
    """

    def __init__(self, at_once: int, busy: str, *, retry_after: int) -> None:
        self._at_once = at_once
        self._busy = busy
        self._retry_after = retry_after
        self._under_way = Counter[int]()

    @contextmanager
    def take(self, project_id: int) -> Iterator[None]:
        """One of the project's turns, as long as the block runs.

        Raises:
            TooManyRequests: all of them are taken.
        """
        if self._under_way[project_id] >= self._at_once:
            raise TooManyRequests(self._busy, retry_after=self._retry_after)
        self._under_way[project_id] += 1
        try:
            yield
        finally:
            self._under_way[project_id] -= 1
            if not self._under_way[project_id]:
                del self._under_way[project_id]


LOOKS: Final = Turns(
    2, "Two questions of this project about who is meant are being answered; wait for one.", retry_after=5
)
"""Looking through the users of a project, for a segment or an audience: each look may hold a connection for as long as
a statement may take."""
