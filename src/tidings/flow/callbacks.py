"""Callbacks: what a vendor posts to an account's address becomes receipts, once it has proved where it comes from.

Whether there is such an address is known before the body is read. The provider checks the signature on the raw bytes
before anything else and says what the callback means; its reports go to `Receiver`, text messages that came in to
`InboundRecorder`. A vendor hears 2xx only when they are stored, so it repeats what we did not keep.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Final, NamedTuple, Protocol

import structlog

from tidings.clock import Clock
from tidings.db.pool import Database
from tidings.directory.accounts import ReportingAccount, list_callback_secrets, load_reporting_account
from tidings.directory.credentials import Vault
from tidings.errors import Forbidden, Invalid, Malformed, NotFound, ProviderError, SettingsError, Unavailable
from tidings.flow.inbound import InboundRecorder
from tidings.flow.receipts import Fact, Receiver
from tidings.model.words import Channel
from tidings.providers import registry
from tidings.providers.port import (
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


async def record_receipts(receiver: Receiver, inbound: InboundRecorder, account: Reporting, receipts: Receipts) -> int:
    """Record what an account's vendor told, by callback or over its own connection; answers with how much is new."""
    new = await receiver.record([Fact(account.project_id, account.id, report) for report in receipts.reports])
    return new + await inbound.record(account.project_id, account.id, account.channel, receipts.inbound)


class Source(NamedTuple):
    """Who reports at a callback's address."""

    account: ReportingAccount
    provider: Provider


class Callbacks:
    """Takes callbacks, in an API process."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        receiver: Receiver,
        inbound: InboundRecorder,
        surroundings: Surroundings,
        clock: Clock,
        *,
        observe: Observe = lambda *_: None,
    ) -> None:
        self._database = database
        self._vault = vault
        self._receiver = receiver
        self._inbound = inbound
        self._surroundings = surroundings
        self._clock = clock
        self._observe = observe
        self._known: dict[tuple[str, str, str], tuple[float, Source]] = {}
        """Each with when it has to be looked up again."""

    async def find(self, project: str, provider: str, account: str, secret: str | None) -> Source:
        """Who reports at an address, by its path alone: it is asked before a body is read.

        Raises:
            NotFound: no such address.
            Unavailable: the account cannot be used as it is stored.
        """
        place = (project, provider, account)
        known = self._known.get(place)
        remembered = known is not None and known[0] > self._clock.monotonic()
        source = known[1] if known is not None and remembered else await self._look_up(place)
        if source is not None and self._is_open(source, secret):
            return source
        if source is not None and source.provider.spec.receipts is ReceiptAuth.hidden_path:
            self._observe(provider, "refused", 1)
            if remembered:  # takes as long as for one that does not exist, which is looked up each time
                await self._look_up(place)
        raise NotFound("There is no such callback address.")

    def _is_open(self, source: Source, secret: str | None) -> bool:
        """Whether the path that names this source also holds what it has to."""
        if source.provider.spec.receipts is not ReceiptAuth.hidden_path:
            return secret is None
        given = (secret or "").encode()
        secrets = list_callback_secrets(self._vault, source.account.project_id, source.account.id)
        return sum(hmac.compare_digest(given, s.encode()) for s in secrets) > 0  # all of them, in constant time

    async def take(self, source: Source, request: RawRequest) -> Receipts:
        """Record what a callback says; answers with what the vendor wants to hear.

        Raises:
            Forbidden: it does not prove where it comes from.
            Malformed: it is not to be understood.
        """
        found, adapter = source
        provider = found.provider
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
        new = await record_receipts(self._receiver, self._inbound, found, receipts)
        self._observe(provider, "recorded", new)
        self._observe(provider, "repeated", told - new)
        return receipts

    async def _look_up(self, place: tuple[str, str, str]) -> Source | None:
        project, provider, account = place
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
        fresh_until = self._clock.monotonic() + KNOWN_FOR.total_seconds()
        known = self._known.get(place)
        if known is not None and (before := known[1].account).id == found.id and before.revision == found.revision:
            self._known[place] = (fresh_until, source := Source(found, known[1].provider))
            return source
        # It opens no connections until it must fetch something, such as the certificate of a signature; the transport
        # is everybody's. So one that is replaced needs no closing.
        adapter = registry.create(provider, found.config, replace(self._surroundings, callback_url=None))
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        self._known[place] = (fresh_until, source := Source(found, adapter))
        return source
