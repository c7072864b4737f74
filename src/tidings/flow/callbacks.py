"""Callbacks: what a vendor posts to an account's address becomes receipts, once it has proved where it comes from.

The provider checks the signature on the raw bytes before anything else and says what the callback means; the receipts
go to `Receiver`. A vendor hears 2xx only when they are stored, so it repeats what we did not keep.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Final, Protocol
from uuid import UUID

import structlog

from tidings.clock import Clock
from tidings.db.pool import Database
from tidings.directory.access import Caller
from tidings.directory.accounts import ReportingAccount, list_callback_secrets, load_reporting_account
from tidings.directory.catalog import Catalog
from tidings.directory.credentials import Vault
from tidings.errors import Forbidden, Invalid, Malformed, NotFound, Problem, ProviderError, SettingsError, Unavailable
from tidings.flow.accept import Acceptor
from tidings.flow.options import Options, SmsOptions
from tidings.flow.receipts import Fact, Receiver
from tidings.flow.request import DirectContent, Request, To
from tidings.model.words import Channel, Scope
from tidings.providers import registry
from tidings.providers.port import (
    Inbound,
    Provider,
    RawRequest,
    ReceiptAuth,
    ReceiptMalformed,
    ReceiptRefused,
    Receipts,
    Surroundings,
)

log = structlog.get_logger(__name__)

KNOWN_FOR: Final = timedelta(seconds=5)
"""How long an account is believed without being looked up."""
KNOWN_MAX: Final = 1_000
REPORTS_MAX: Final = 10_000
"""Facts in one callback; vendors batch a thousand or so."""

Observe = Callable[[str, str, int], None]
"""Told of a provider, an outcome (recorded, repeated, refused, malformed) and how many."""


class Reporting(Protocol):
    """An account, as far as receipts need it."""

    @property
    def id(self) -> int: ...
    @property
    def project_id(self) -> int: ...
    @property
    def channel(self) -> Channel: ...


async def record_receipts(receiver: Receiver, account: Reporting, receipts: Receipts) -> int:
    """Record what an account's vendor told, by callback or over its own connection; answers with how much is new."""
    new = await receiver.record([Fact(account.project_id, account.id, report) for report in receipts.reports])
    return new + await receiver.record_inbound(account.project_id, account.id, account.channel, receipts.inbound)


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
            log.warning("callback.help_unanswered", project=project_id, problem=answer.code)


class Callbacks:
    """Takes callbacks, in an API process."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        receiver: Receiver,
        surroundings: Surroundings,
        clock: Clock,
        *,
        observe: Observe = lambda *_: None,
    ) -> None:
        self._database = database
        self._vault = vault
        self._receiver = receiver
        self._surroundings = surroundings
        self._clock = clock
        self._observe = observe
        self._known: dict[tuple[str, str, str], tuple[float, ReportingAccount, Provider]] = {}

    async def take(
        self, project: str, provider: str, account: str, secret: str | None, request: RawRequest
    ) -> Receipts:
        """Record what a callback says; answers with what the vendor wants to hear.

        Raises:
            NotFound: no such address.
            Unavailable: the account cannot be used as it is stored.
            Forbidden: it does not prove where it comes from.
            Malformed: it is not to be understood.
        """
        known = await self._find(project, provider, account)
        if known is None:
            raise NotFound("There is no such callback address.")
        found, adapter = known
        expected = adapter.spec.receipts
        if expected is ReceiptAuth.hidden_path:
            given = (secret or "").encode()
            secrets = list_callback_secrets(self._vault, found.project_id, found.id)
            if not sum(hmac.compare_digest(given, s.encode()) for s in secrets):  # all of them, in constant time
                self._observe(provider, "refused", 1)
                raise NotFound("There is no such callback address.")
        elif secret is not None:
            raise NotFound("There is no such callback address.")
        try:
            receipts = await adapter.receive(request, self._clock.now())
        except ReceiptRefused as error:
            self._observe(provider, "refused", 1)
            log.warning("callback.refused", project=found.project_id, account=found.key, error=str(error))
            # Why stands in the log: strangers need not learn how an account is set up.
            raise Forbidden("The callback does not prove where it comes from.") from None
        except ReceiptMalformed as error:
            self._observe(provider, "malformed", 1)
            log.warning("callback.malformed", project=found.project_id, account=found.key, error=str(error))
            raise Malformed(str(error)) from None
        told = len(receipts.reports) + len(receipts.inbound)
        if told > REPORTS_MAX:
            raise Malformed(f"A callback tells at most {REPORTS_MAX:,} facts.")
        new = await record_receipts(self._receiver, found, receipts)
        self._observe(provider, "recorded", new)
        self._observe(provider, "repeated", told - new)
        return receipts

    async def _find(self, project: str, provider: str, account: str) -> tuple[ReportingAccount, Provider] | None:
        place = (project, provider, account)
        now = self._clock.monotonic()
        known = self._known.get(place)
        if known is not None and known[0] > now:
            return known[1], known[2]
        kind = registry.PROVIDERS.get(provider)
        if kind is None or kind.spec.receipts is None:
            return None
        try:
            found = await load_reporting_account(self._database, self._vault, project, provider, account)
        except (Invalid, ProviderError, SettingsError) as error:
            # Ours to mend: whoever calls learns nothing of it, and repeats what it has to say until it is mended.
            log.error("callback.account_unusable", account=account, error=str(error))
            raise Unavailable("This cannot be taken now; repeat it later.", retry_after=60) from None
        if found is None:
            self._known.pop(place, None)
            return None
        fresh_until = now + KNOWN_FOR.total_seconds()
        if known is not None and known[1].id == found.id and known[1].revision == found.revision:
            self._known[place] = (fresh_until, found, known[2])
            return found, known[2]
        # It opens no connections until it must fetch something, such as the certificate of a signature; the transport
        # is everybody's. So one that is replaced needs no closing.
        adapter = registry.create(provider, found.config, replace(self._surroundings, callback_url=None))
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        self._known[place] = (fresh_until, found, adapter)
        return found, adapter
