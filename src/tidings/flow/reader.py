"""Reader: everything that planning is decided by, read at once for many notifications. It decides nothing.

For planning itself, which locks the counters of limits, and for explaining, which does not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from tidings import ids
from tidings.db.pool import Connection
from tidings.db.sql import load_queries
from tidings.directory.catalog import Catalog, TypeVersion
from tidings.directory.preferences import NOTHING_SAID, parse_preferences
from tidings.directory.quiet import QuietHours
from tidings.flow.caps import Cap, Key, Ledger, list_caps, to_keys
from tidings.flow.decide import list_throttles
from tidings.flow.facts import NO_CASE, START, Facts, Past, Rules, Run, list_engagement
from tidings.model.conditions import Case
from tidings.model.words import Channel, Priority

SQL: Final = load_queries(__package__, "reader.sql")

_decode_quiet: Final = msgspec.json.Decoder(QuietHours).decode
_decode_object: Final = msgspec.json.Decoder(dict[str, Any]).decode


class UnreadableType(Exception):
    """A type version that this process cannot use: it is of a newer Tidings, during an upgrade."""


class Subject(NamedTuple):
    """A notification to plan: what is known, and all that it is decided by."""

    facts: Facts
    run: Run
    rules: Rules


class Reader:
    """Everything that planning is decided by; for planning itself, and for explaining what it would decide."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def load(
        self,
        conn: Connection,
        asked: Mapping[UUID, tuple[int, bool]],
        now: datetime | None,
        *,
        lock: bool = True,
    ) -> list[Subject]:
        """The notifications, each with its rules, in the order of their ids; those that retention dropped are missing.

        Args:
            asked: project of each, and whether it is under way already.
            lock: the counters of limits are locked, for whoever books in them.
        """
        places = sorted(asked.items())
        columns = [id_ for id_, _ in places], [project for _, (project, _) in places]
        low, high = ids.family_bounds(asked)
        facts = [Facts(*row) for row in await conn.fetch(SQL.load_plans, *columns, low, high, now)]
        facts.sort(key=lambda f: f.id.int)
        return await self.complete(conn, facts, {id_ for id_, (_, under_way) in places if under_way}, lock=lock)

    async def complete(
        self,
        conn: Connection,
        facts: Sequence[Facts],
        under_way: Collection[UUID],
        *,
        lock: bool,
        cases: Mapping[UUID, Case] | None = None,
    ) -> list[Subject]:
        """The rules of these facts; `cases` where their data stand nowhere yet."""
        types = await self._load_types(facts)
        runs = await self._load_runs(conn, [f for f in facts if f.id in under_way])
        asking = [f for f in facts if (t := types[f.id]) is not None and t.asks_data]
        if cases is None:
            cases = await self._load_cases(conn, asking, runs)
        timed = {(f.project_id, f.user_id) for f in facts if (t := types[f.id]) and t.send_time and f.user_id}
        hours = await self._load_hours(conn, timed) if timed else {}
        settings = {p: (await self._catalog.load_project(p)).settings for p in {f.project_id for f in facts}}
        defaults = {p: {Channel[name]: on for name, on in s.defaults.items()} for p, s in settings.items()}
        caps: dict[UUID, Sequence[Cap]] = {}
        wanted: set[Key] = set()
        for f in facts:
            type_ = types[f.id]
            mine = caps[f.id] = list_caps(type_, settings[f.project_id], Priority(f.priority), test=f.test)
            if mine:
                wanted.update(to_keys(f.project_id, f.target, mine))
            if type_ is not None and type_.throttles:
                wanted.update(to_keys(f.project_id, f.target, list_throttles(type_, f.test)))
        ledger = await (Ledger.lock(conn, wanted) if lock else Ledger.load(conn, wanted))
        subjects = []
        for f in facts:
            type_, template = types[f.id], None
            if type_ is not None:
                template = self._catalog.peek_template(f.project_id, type_.template_key)
                if template is None:
                    template = await self._catalog.load_template(f.project_id, type_.template_key)
            rules = Rules(
                type_=type_,
                template=template,
                accounts=await self._catalog.load_accounts(f.project_id),
                settings=settings[f.project_id],
                defaults=defaults[f.project_id],
                ledger=ledger,
                caps=caps[f.id],
                said=parse_preferences(f.preferences) if f.preferences is not None else NOTHING_SAID,
                quiet=_decode_quiet(f.quiet_hours) if f.quiet_hours is not None else None,
                case=cases.get(f.id, NO_CASE),
                hours=hours.get((f.project_id, f.user_id), ()),
            )
            subjects.append(Subject(f, runs.get(f.id, START), rules))
        return subjects

    async def _load_types(self, facts: Sequence[Facts]) -> dict[UUID, TypeVersion | None]:
        versions = await self._catalog.load_type_versions(
            {(f.project_id, f.type_version_id) for f in facts if f.type_version_id is not None}
        )
        types: dict[UUID, TypeVersion | None] = {}
        for f in facts:
            types[f.id] = versions.get(f.type_version_id) if f.type_version_id is not None else None
            if types[f.id] is None and f.type_version_id is not None:  # it would pass for content without a type
                raise UnreadableType(f"the type version {f.type_version_id} cannot be used by this process")
        return types

    async def _load_runs(self, conn: Connection, facts: Sequence[Facts]) -> dict[UUID, Run]:
        if not facts:
            return {}
        columns = [f.id for f in facts], [f.project_id for f in facts]
        low, high = ids.family_bounds(columns[0])
        families = [ids.family_range(id_) for id_ in columns[0]]
        past: dict[UUID, list[Past]] = {}
        bounds = [first for first, _ in families], [last for _, last in families]
        for notification_id, *row in await conn.fetch(SQL.load_pasts, *columns, *bounds, low, high):
            past.setdefault(notification_id, []).append(Past(*row))
        return {
            id_: Run(step, place, pending, until, trail, tuple(past.get(id_, ())))
            for id_, step, place, pending, until, trail in await conn.fetch(SQL.load_runs, *columns, low, high)
        }

    async def _load_cases(self, conn: Connection, facts: Sequence[Facts], runs: Mapping[UUID, Run]) -> dict[UUID, Case]:
        if not facts:
            return {}
        columns = [f.id for f in facts], [f.project_id for f in facts]
        rows = await conn.fetch(SQL.load_cases, *columns, *ids.family_bounds(columns[0]))
        found = {row["id"]: row for row in rows}
        return {
            f.id: Case(
                data=_decode_object(row["data"]) if row["data"] else {},
                user={
                    **(_decode_object(row["attributes"]) if row["attributes"] else {}),
                    "id": row["user_id"],
                    "locale": row["locale"],
                    "time_zone": row["time_zone"],
                    "region": row["region"],
                    "created_at": row["created_at"],
                },
                engagement=frozenset(list_engagement(runs[f.id].past)) if f.id in runs else frozenset(),
                now=f.now,
            )
            for f in facts
            if (row := found.get(f.id)) is not None
        }

    async def _load_hours(
        self, conn: Connection, users: Collection[tuple[int, str | None]]
    ) -> dict[tuple[int, str | None], Sequence[int]]:
        places = sorted((project, user) for project, user in users if user is not None)
        rows = await conn.fetch(SQL.load_hours, [p for p, _ in places], [u for _, u in places])
        return {(row["project_id"], row["user_id"]): row["hours"] for row in rows}
