"""Endpoints: which webhook addresses have been failing, since when, and who has to be told.

A row is written when an address begins to fail and deleted when it answers again; in between, and for addresses that
work, nothing is written. So each worker keeps in memory which addresses fail, and looks again every minute: another
worker may have seen the change. A change is therefore noticed a minute late at worst, and what is told counts in days.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from tidings import ids
from tidings.clock import Clock
from tidings.db.pool import Connection, Database
from tidings.db.sql import load_queries
from tidings.directory.hooks import ENDPOINT_DISABLED, ENDPOINT_FAILING
from tidings.flow.effects import to_columns
from tidings.flow.hooks import Notice, enqueue_notices
from tidings.model.words import Channel, Reason

SQL: Final = load_queries(__package__, "endpoints.sql")

TOLD_AFTER: Final = timedelta(days=3)
"""How long an endpoint fails without a break until its owner is told."""
KEPT_FOR: Final = timedelta(days=90)
REFRESH: Final = 60.0
"""Seconds between two looks at a project's rows."""
KNOWN_MAX: Final = 10_000
"""Failing addresses of one project that are kept in memory."""

FAULTS: Final = frozenset(
    {
        Reason.connect_failed,
        Reason.provider_error,
        Reason.bad_answer,
        Reason.rejected,
        Reason.target_refused,
        Reason.uncertain,
        Reason.attempts_exhausted,
    }
)
"""Reasons that speak against the endpoint rather than the message or its pace."""


class Sighting(NamedTuple):
    """What one attempt said of an endpoint."""

    project_id: int
    address: str
    user_id: str | None
    reason: Reason | None
    """None: it took the message."""


class _Failing(NamedTuple):
    since: datetime
    told: bool


class Endpoints:
    """What one worker knows of the endpoints."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[int, tuple[float, dict[str, _Failing]]] = {}
        """By project: when to look again, and what fails."""

    def forget(self) -> None:
        """What was noted last may not have been stored: look again at everything."""
        self._known.clear()

    async def apply(self, conn: Connection, sightings: Sequence[Sighting], now: datetime | None) -> None:
        """Note what changed, and write what has to be told, in the transaction of the attempts."""
        recovered: set[tuple[int, str]] = set()
        begun: dict[tuple[int, str], Reason] = {}
        overdue: set[tuple[int, str]] = set()
        notices = []
        at = now or self._clock.now()
        for seen in sightings:
            failing = await self._load(conn, seen.project_id)
            known, place = failing.get(seen.address), (seen.project_id, seen.address)
            if seen.reason is None or seen.reason is Reason.gone:
                if known is not None:
                    recovered.add(place)
                    del failing[seen.address]
                if seen.reason is Reason.gone:
                    more = {"user": seen.user_id, "reason": seen.reason}
                    notices.append(self._notice(at, seen.project_id, ENDPOINT_DISABLED, seen.address, **more))
            elif seen.reason in FAULTS:
                if known is None and len(failing) < KNOWN_MAX:
                    begun[place] = seen.reason
                    failing[seen.address] = _Failing(at, told=False)
                elif known is not None and not known.told and at - known.since >= TOLD_AFTER:
                    overdue.add(place)
                    failing[seen.address] = _Failing(known.since, told=True)
        if begun:
            rows = [(*place, str(reason)) for place, reason in begun.items()]
            await conn.execute(SQL.insert_failing, *to_columns(rows), now)
        if recovered:
            await conn.execute(SQL.delete_failing, *to_columns(sorted(recovered)))
        if overdue:
            told = await conn.fetch(SQL.apply_told, *to_columns(sorted(overdue)), at - TOLD_AFTER, now)
            for row in told:
                more = {"failing_since": row["failing_since"], "reason": row["reason"]}
                notices.append(self._notice(at, row["project_id"], ENDPOINT_FAILING, row["address"], **more))
        await enqueue_notices(conn, notices, now)

    def _notice(self, at: datetime, project_id: int, event: str, address: str, **more: object) -> Notice:
        data = {"channel": Channel.webhook.name, "address": address, **more}
        return Notice(ids.new_id(at, self._clock.random), project_id, event, data)

    async def _load(self, conn: Connection, project_id: int) -> dict[str, _Failing]:
        fresh_until, failing = self._known.get(project_id, (0.0, {}))
        if self._clock.monotonic() < fresh_until:
            return failing
        rows = await conn.fetch(SQL.load_failing, project_id, KNOWN_MAX)
        failing = {row["address"]: _Failing(row["failing_since"], row["told"]) for row in rows}
        self._known[project_id] = (self._clock.monotonic() + REFRESH, failing)
        return failing


async def forget_failing(database: Database, now: datetime) -> None:
    """Delete what has been failing for so long that nobody sends there any more."""
    await database.execute(SQL.forget_failing, now - KEPT_FOR)
