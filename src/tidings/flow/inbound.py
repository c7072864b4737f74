"""Inbound: text messages that people write to a project's senders; what STOP, START and HELP mean is done here.

Whether a word is one of these the vendor has told (`Inbound.keyword`). Each message is stored once, however often its
vendor repeats it; the application hears of it by a hook. This room knows nothing of receipts: what came in is about no
delivery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec
import structlog

from tidings import ids
from tidings.clock import Clock
from tidings.db.pool import Connection, Database
from tidings.db.sql import load_queries
from tidings.directory import consent
from tidings.directory.access import Caller
from tidings.directory.catalog import Catalog
from tidings.directory.hooks import SMS_INBOUND
from tidings.errors import Problem
from tidings.flow import effects
from tidings.flow.accept import Acceptor
from tidings.flow.evidence import to_storable_text
from tidings.flow.hooks import Notice, enqueue_notices
from tidings.flow.load import SENDER
from tidings.flow.options import Options, SmsOptions
from tidings.flow.request import DirectContent, Request, To
from tidings.model.words import Channel, Reason, Scope
from tidings.providers.port import Inbound

SQL: Final = load_queries(__package__, "inbound.sql")

log = structlog.get_logger(__name__)

_DECISIONS: Final = {"stop": "out", "start": "in"}
FORGET_BATCH: Final = 5_000
"""Messages deleted in one statement."""


class HelpDesk:
    """Answers HELP with the project's own words, as a notification like any other."""

    def __init__(self, acceptor: Acceptor, catalog: Catalog) -> None:
        self._acceptor = acceptor
        self._catalog = catalog

    async def answer(self, project_id: int, message: Inbound) -> None:
        """Send the answer from the sender that was written to; nothing where the project has none.

        Whoever asks again on the same day gets no second answer: two machines would answer each other for ever. A
        message that cannot be answered, from a short code say, is left unanswered: it is stored all the same.
        """
        project = await self._catalog.load_project(project_id)
        text = project.settings.sms_help
        if not text:
            return
        caller = Caller(project_id, project.key, UUID(int=0), frozenset({Scope.send}), False)
        request = Request(
            to=To(phone=message.sender),
            content=DirectContent(text=text),
            options=Options(sms=SmsOptions(sender=message.recipient)),
            priority="high",
            idempotency_key=f"help {message.recipient} {message.sender}"[:255],  # kept for a day
        )
        [answer] = await self._acceptor.accept(caller, [request], key=None, traceparent=None)
        if isinstance(answer, Problem):
            log.warning("inbound.help_unanswered", project=project_id, problem=answer.code)


class InboundRecorder:
    """Records text messages that came in.

    Args:
        answer_help: given each HELP, with its project, once it is stored; see `HelpDesk`.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        answer_help: Callable[[int, Inbound], Awaitable[None]] | None = None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._answer_help = answer_help

    async def record(self, project_id: int, account_id: int, channel: Channel, messages: Sequence[Inbound]) -> int:
        """Keep them, and do what their keywords say; answers with how many are new. Durable on return."""
        if not messages:
            return 0
        # The newest of a repetition.
        unique = {UUID(bytes=to_mark(account_id, m), version=4): to_storable_text(m) for m in messages}
        now = self._clock.db_now()

        async def work(conn: Connection) -> list[Inbound]:
            rows = [
                (
                    id_, project_id, account_id, int(channel), m.sender, m.recipient, m.text, m.keyword, m.provider_id,
                )
                for id_, m in sorted(unique.items())
            ]  # fmt: skip
            new = {row[0] for row in await conn.fetch(SQL.insert_inbound, *effects.to_columns(rows), now)}
            fresh = [m for id_, m in unique.items() if id_ in new]
            stops = [m for m in fresh if m.keyword == "stop"]
            await effects.apply_suppressions(
                conn,
                [
                    effects.Suppression(project_id, channel, m.sender, SENDER + m.recipient, Reason.opted_out, None)
                    for m in stops
                ],
                now,
            )
            starts = [(project_id, int(channel), m.sender, SENDER + m.recipient) for m in fresh if m.keyword == "start"]
            if starts:
                await conn.execute(SQL.lift_opt_outs, *effects.to_columns(starts))
            for message in fresh:
                if (decision := _DECISIONS.get(message.keyword or "")) is not None:
                    # What they wrote, to whom: the words are the evidence.
                    origin = consent.Origin("user", "sms", wording=f"{message.text} (to {message.recipient})")
                    said = consent.Decision(decision, channel=channel, address=message.sender)
                    await consent.record(conn, project_id, [said], origin)
            await enqueue_notices(conn, [self._to_notice(project_id, channel, m) for m in fresh], now)
            return fresh

        fresh = await self._database.transaction(work)
        if self._answer_help is not None:
            for message in fresh:
                if message.keyword == "help":
                    await self._answer_help(project_id, message)
        return len(fresh)

    def _to_notice(self, project_id: int, channel: Channel, message: Inbound) -> Notice:
        data = {
            "channel": channel.name,
            "sender": message.sender,
            "recipient": message.recipient,
            "text": message.text,
            "keyword": message.keyword,
            "provider_id": message.provider_id,
            "at": message.at,
        }
        return Notice(ids.new_id(self._clock.now(), self._clock.random), project_id, SMS_INBOUND, data)


def to_mark(account_id: int, message: Inbound) -> bytes:
    """What makes two messages the same one: 16 octets. The vendor's id decides where there is one."""
    said = (message.provider_id,) if message.provider_id else (message.recipient, message.text, message.at)
    return hashlib.sha256(msgspec.json.encode((account_id, message.sender, *said))).digest()[:16]


async def forget_inbound(database: Database, before: datetime) -> None:
    """Delete what people wrote before then; what a STOP or START said is kept."""
    while await database.fetchval(SQL.forget_inbound, before, FORGET_BATCH) == FORGET_BATCH:
        pass
