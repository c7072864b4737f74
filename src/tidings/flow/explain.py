"""Explain: why a notification went where it did, or why it did not; and what would become of one that is not sent.

What was ruled is kept with the run (`run.trail`); what had no opinion is not, and is said here all the same, so that
whoever answers a user sees every rule that was asked. The reasons are the ones of the timeline and the metrics.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from tidings.clock import Clock
from tidings.db.pool import Connection, Database
from tidings.db.sql import load_queries
from tidings.directory.access import Caller
from tidings.directory.catalog import Catalog
from tidings.errors import Problem
from tidings.flow.accept import Acceptor
from tidings.flow.decide import decide_digest, decide_plan
from tidings.flow.facts import Facts
from tidings.flow.reader import Reader
from tidings.flow.request import Draft, Request
from tidings.flow.timeline import DeliveryView, load_trail, load_view
from tidings.model.conditions import Case
from tidings.model.rulings import Answer, Level, Rule, Ruling
from tidings.model.words import Channel, Frequency, Reason, RunState, Status

SQL: Final = load_queries(__package__, "explain.sql")

ORDER: Final = (
    Rule.address,
    Rule.preference,
    Rule.suppression,
    Rule.template,
    Rule.account,
    Rule.quiet_hours,
    Rule.limit,
)
"""In which order a channel's rules are asked."""

RULE_OF: Final[Mapping[Reason, Rule]] = {
    Reason.user_deleted: Rule.address,
    Reason.no_address: Rule.address,
    Reason.opted_out: Rule.preference,
    Reason.suppressed: Rule.suppression,
    Reason.no_template: Rule.template,
    Reason.no_account: Rule.account,
    Reason.quiet_hours: Rule.quiet_hours,
    Reason.capped: Rule.limit,
}
"""Which rule says no for which reason."""

_LEVELS: Final[Mapping[Level, str]] = {
    Level.user_type: "the user, for this type",
    Level.user_category_channel: "the user, for this category on this channel",
    Level.user_category: "the user, for this category",
    Level.user_channel: "the user, for this channel",
    Level.user: "the user",
    Level.type: "the type",
    Level.category: "the category",
    Level.project: "the project",
    Level.law: "the law",
    Level.request: "the request",
    Level.default: "nobody; it is the default",
}
_RULES: Final[Mapping[Rule, tuple[str, str]]] = {
    Rule.once: ("no other has this send-once key", "another one with the same send-once key was sent before"),
    Rule.preference: ("the user hears of this here", "the user does not want to hear of this here"),
    Rule.address: ("there is an address", "there is no address to send it to"),
    Rule.suppression: ("the address is not suppressed", "the address is suppressed"),
    Rule.template: ("the template covers the channel", "the template does not cover the channel"),
    Rule.account: ("an account can send it", "no account can send it"),
    Rule.quiet_hours: ("nobody has quiet hours now", "these are quiet hours"),
    Rule.send_time: ("now is a good time", "another hour suits this user better"),
    Rule.frequency: ("the user hears of it at once", "the user hears of it together with other news"),
    Rule.digest: ("it goes by itself", "it goes together with others"),
    Rule.limit: ("there is room under the limits", "a limit is reached"),
    Rule.condition: ("the condition was looked at", "the condition was not met"),
    Rule.engagement: ("the user has not reacted", "the user has reacted"),
    Rule.chain: ("none of the chain succeeded: it goes on with what follows", "none of the chain succeeded"),
    Rule.expiry: ("it has not expired", "it has expired"),
}
_ENDS: Final[Mapping[Answer, str]] = {
    Answer.go: "",
    Answer.no: ": not sent",
    Answer.hold: ": it waits",
    Answer.digest: ": it is gathered",
    Answer.stop: ": nothing more is sent",
}


_PAST: Final[Mapping[str, str]] = {
    "delivered": "It was delivered.",
    "failed": "It failed.",
    "skipped": "It was not sent.",
    "cancelled": "It was cancelled.",
    "expired": "It expired.",
}
"""What is over."""


class RulingView(msgspec.Struct, kw_only=True):
    """What one rule answered."""

    rule: str
    answer: str
    channel: str | None = None
    level: str = Level.default.value
    reason: str | None = None
    until: datetime | None = None
    detail: str | None = None
    text: str = ""
    """The same in a sentence."""


class PassView(msgspec.Struct):
    """What was ruled at one time of planning."""

    at: datetime
    rulings: list[RulingView]


class ChannelView(msgspec.Struct):
    """What came of one delivery, with every rule that was asked for it, in order."""

    channel: str
    address: str
    outcome: str
    reason: str | None
    text: str
    rules: list[RulingView]


class Explanation(msgspec.Struct, kw_only=True):
    """Why a notification is where it is, or where one would go."""

    id: str | None = None
    """None: it was only asked what if."""
    status: str
    reason: str | None = None
    text: str
    until: datetime | None = None
    """When it goes on, if it waits."""
    digest: str | None = None
    channels: list[ChannelView]
    passes: list[PassView]
    """One for each time that it was planned; the rules that had an opinion."""


class Refused(msgspec.Struct, kw_only=True):
    """A request that would not be accepted."""

    status: str = "refused"
    text: str
    problem: dict[str, Any]


def to_view(ruling: Ruling) -> RulingView:
    """A ruling in words. Pure."""
    said = _say_ruling(ruling)
    return RulingView(
        rule=ruling.rule.value,
        answer=ruling.answer.value,
        channel=ruling.channel.name if ruling.channel is not None else None,
        level=ruling.level.value,
        reason=ruling.reason.value if ruling.reason is not None else None,
        until=ruling.until,
        detail=ruling.detail,
        text=f"{said[:1].upper()}{said[1:]}.",
    )


def _say_ruling(ruling: Ruling) -> str:
    if ruling.rule is Rule.chain and ruling.channel is not None:  # a fact, which nobody decided
        return f"this one was tried and {ruling.detail}"
    yes, no = _RULES[ruling.rule]
    said = (yes if ruling.answer is Answer.go else no) + _ENDS[ruling.answer]
    if ruling.until is not None and ruling.answer in (Answer.hold, Answer.digest):
        said += f" until {ruling.until:%Y-%m-%d %H:%M} UTC"
    if ruling.detail is not None:
        said += f" ({ruling.detail})"
    if ruling.level is not Level.default:
        said += f". Decided by {_LEVELS[ruling.level]}"
    return said


def list_rules(channel: Channel, reason: str | None, ruled: Sequence[Ruling]) -> list[RulingView]:
    """Every rule that was asked for a delivery that ended planning for this reason (None: it went), in order. Pure.

    Args:
        ruled: what had an opinion, of all channels; the latest counts.
    """
    mine = {r.rule: r for r in ruled if r.channel in (channel, None)}
    why = Reason(reason) if reason is not None else None
    refused_by = RULE_OF.get(why) if why is not None else None
    views = []
    for rule in ORDER:
        ruling = mine.get(rule)
        if rule is refused_by:
            if ruling is None or ruling.answer is Answer.go:
                ruling = Ruling(rule, Answer.no, Level.default, channel, why)
            views.append(to_view(ruling))
            break
        views.append(to_view(ruling if ruling is not None else Ruling(rule, Answer.go, Level.default, channel)))
    return views


def _to_channels(deliveries: Sequence[DeliveryView], ruled: Sequence[Ruling]) -> Iterator[ChannelView]:
    for d in deliveries:
        rules = list_rules(Channel[d.channel], d.reason, ruled)
        text = rules[-1].text if rules[-1].answer != Answer.go else _say_outcome(d.status, d.reason)
        yield ChannelView(d.channel, d.address, d.status, d.reason, text, rules)


def _say_outcome(status: str, reason: str | None) -> str:
    said = {
        "queued": "It waits for its turn.",
        "sending": "It is being sent.",
        "sent": "The provider took it.",
    }.get(status, _PAST.get(status, f"It is {status}."))
    return f"{said[:-1]}: {reason}." if reason is not None else said


def _say_status(status: str, reason: str | None, until: datetime | None) -> str:
    said = {
        "scheduled": "It is scheduled and has not been planned.",
        "queued": "It waits to be planned.",
        "held": "It is put off",
        "digested": "It went into a digest, which goes in its place.",
        "processing": "It is under way.",
        "skipped": "Nothing was sent.",
        "partly": "Some of it arrived, some did not.",
    }.get(status, _PAST.get(status, f"It is {status}."))
    if status == "held":
        said += f" until {until:%Y-%m-%d %H:%M} UTC" if until is not None else ""
        said += f": {reason}." if reason is not None else "."
    return said


async def explain_notification(database: Database, catalog: Catalog, project_id: int, id_: UUID) -> Explanation:
    """Why a notification is where it is.

    Raises:
        NotFound: the project has none with this id.
    """
    view = await load_view(database, catalog, project_id, id_)
    passes = await load_trail(database, project_id, id_)
    ruled = [ruling for asked in passes for ruling in asked.rulings]
    return Explanation(
        id=view.id,
        status=view.status,
        reason=view.reason,
        text=_say_status(view.status, view.reason, view.until),
        until=view.until,
        digest=view.digest,
        channels=list(_to_channels(view.deliveries, ruled)),
        passes=[PassView(asked.at, [to_view(ruling) for ruling in asked.rulings]) for asked in passes],
    )


class Explainer:
    """Says what would become of a request; nothing is stored, booked or sent."""

    def __init__(self, database: Database, catalog: Catalog, acceptor: Acceptor, clock: Clock) -> None:
        self._database = database
        self._reader = Reader(catalog)
        self._acceptor = acceptor
        self._clock = clock

    async def explain(self, caller: Caller, request: Request, at: datetime | None) -> Explanation | Refused:
        """What would become of this request.

        Args:
            at: as if it were planned then; None: now, or at its `send_at`. What counts against limits is what counts
                now.
        """
        try:
            draft = await self._acceptor.draft(caller, request)
        except Problem as problem:
            return Refused(text=f"It would be refused: {problem.detail}", problem=problem.to_dict())
        async with self._database.acquire() as conn:
            return await self._decide(conn, draft, request, at)

    async def _decide(self, conn: Connection, draft: Draft, request: Request, at: datetime | None) -> Explanation:
        row = draft.row
        found = await conn.fetchrow(
            SQL.load_recipient, row.project_id, row.user_id, row.to_channel, row.to_address, self._clock.db_now()
        )
        assert found is not None  # one row, whoever it is
        now = at or row.send_at or found["now"]
        facts = Facts(
            id=row.id,
            project_id=row.project_id,
            type_version_id=row.type_version_id,
            user_id=row.user_id,
            to_channel=row.to_channel,
            to_address=row.to_address,
            priority=row.priority,
            channels=row.channels,
            test=row.test,
            locale=row.locale,
            cancelled=False,
            expires_at=row.expires_at,
            user_exists=found["user_exists"],
            user_locale=found["user_locale"],
            address_channels=found["address_channels"],
            addresses=found["addresses"],
            suppressed=found["suppressed"],
            to_suppressed=found["to_suppressed"],
            items=None,
            once_key=row.once_key,
            preferences=found["preferences"],
            quiet_hours=found["quiet_hours"],
            time_zone=found["time_zone"],
            region=found["region"],
            segments=None,
            now=now,
        )
        attributes = msgspec.json.decode(found["attributes"]) if found["attributes"] else {}
        user = {
            **attributes,
            "id": row.user_id,
            "locale": found["user_locale"],
            "time_zone": found["time_zone"],
            "region": found["region"],
            "created_at": found["created_at"],
        }
        case = Case(data=request.data or {}, user=user, now=now)
        [subject] = await self._reader.complete(conn, [facts], (), lock=False, cases={row.id: case})
        rules = subject.rules
        if row.once_key is not None:
            taken = await conn.fetchval(SQL.load_once, *facts.once)
            if taken is not None:
                rules = replace(rules, sent_before=True)
        frequency = decide_digest(facts, rules)
        if frequency is not None:
            level = Level.type if frequency is Frequency.instant else Level.user
            detail = "by the type" if frequency is Frequency.instant else frequency.value
            gathered = Ruling(Rule.digest, Answer.digest, level, None, Reason.digested, None, detail)
            return Explanation(
                status="digested",
                reason=Reason.digested.value,
                text="It would be gathered and told together with others.",
                channels=[],
                passes=[PassView(now, [to_view(gathered)])],
            )
        plan = decide_plan(facts, subject.run, rules, random.Random(0))  # noqa: S311 -- chooses an account for show
        shown = [
            DeliveryView(
                id="",
                channel=p.channel.name,
                address=p.address,
                account=None,
                provider=None,
                status=p.status.name,
                engagement=[],
                attempts=0,
                reason=p.reason.value if p.reason is not None else None,
                locale=p.locale,
                sent_at=None,
                delivered_at=None,
            )
            for p in plan.planned
        ]
        status = _would_be(plan.state, [p.status for p in plan.planned])
        reason = plan.reason.value if plan.reason is not None else None
        until = plan.until if plan.state is RunState.waiting else None
        return Explanation(
            status=status,
            reason=reason,
            text=_say_status(status, reason, until) if status != "sent" else "It would be sent.",
            until=until,
            channels=list(_to_channels(shown, plan.rulings)),
            passes=[PassView(now, [to_view(ruling) for ruling in plan.rulings])],
        )


def _would_be(state: RunState, statuses: Sequence[Status]) -> str:
    if Status.queued in statuses:
        return "sent"
    if state is RunState.waiting:
        return "held"
    if state is RunState.digested:
        return "digested"
    return statuses[0].name if statuses else "skipped"
