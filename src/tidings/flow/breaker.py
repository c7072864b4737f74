"""The breaker for runaway loops: a program that tells one user the same thing over and over is stopped at the door.

It is a safety net, not a limit. It lives in the memory of one API process: several of them let several times as many
through, a restart forgets, and of very many users those heard of least lately are forgotten first. What must be exact
is a cap (`caps`), which is asked when a notification is planned.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, TypeAlias

import structlog

from tidings.errors import Runaway

log = structlog.get_logger(__name__)

Subject: TypeAlias = tuple[int, int | None, str]
"""Who is told what: project, type version (None: content said directly), user or address."""

_KNOWN_MAX: Final = 50_000
_TOLD_AGAIN: Final = 60.0
"""Seconds between two log lines on the same loop."""


class Breaker:
    """Counts notifications by type and user, as a bucket that holds a minute's worth and empties at that rate.

    So a user may get `above` at once, and `above` a minute after that.

    Args:
        observe: called for each notification that is refused.
    """

    def __init__(self, *, observe: Callable[[], None] | None = None, known: int = _KNOWN_MAX) -> None:
        self._observe = observe or (lambda: None)
        self._known_max = known
        self._empty_at: OrderedDict[Subject, float] = OrderedDict()
        """When the bucket will have run empty, in monotonic seconds (GCRA)."""
        self._told: dict[Subject, float] = {}

    def count(self, subject: Subject, above: int | None, now: float, *, type_key: str | None = None) -> None:
        """Count one notification.

        Args:
            above: how many a minute are too many; None: it does not matter.
            now: monotonic seconds.
            type_key: for the log.

        Raises:
            Runaway: it is one too many, and not counted.
        """
        if above is None:
            return
        span = 60.0 / above
        buckets = self._empty_at
        empty_at = buckets.pop(subject, now)
        if empty_at < now:
            empty_at = now
        over = empty_at + span - now - 60.0
        if over > 1e-6:
            buckets[subject] = empty_at
            self._refuse(subject, over, now, type_key)
        buckets[subject] = empty_at + span
        if len(buckets) > self._known_max:
            buckets.popitem(last=False)

    def _refuse(self, subject: Subject, seconds: float, now: float, type_key: str | None) -> None:
        self._observe()
        if now - self._told.get(subject, -_TOLD_AGAIN) >= _TOLD_AGAIN:
            if len(self._told) >= 1_000:
                self._told.clear()
            self._told[subject] = now
            # Not whom: addresses and ids of users do not belong in logs.
            log.warning("accept.runaway", project=subject[0], type=type_key)
        raise Runaway(retry_after=seconds)
