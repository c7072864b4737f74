"""Send: a claimed delivery is rendered and handed to its account's provider. No transaction is open meanwhile.

Whatever happens becomes a value: an answer of the provider, a reason why nothing was sent, or the admission that nobody
knows. A bug in a provider counts as not knowing, since its bytes may have left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Final

import asyncpg
import structlog

from tidings import ids
from tidings.clock import Clock
from tidings.db.pool import Database
from tidings.directory.accounts import list_listening_projects
from tidings.directory.blobs import Place, Shelf
from tidings.directory.catalog import Account, Catalog, TemplateVersion, TypeVersion
from tidings.directory.projects import NO_SETTINGS, Project, ProjectSettings
from tidings.engine.gate import Limits
from tidings.engine.health import Pulse
from tidings.engine.jobs import Job, Retry
from tidings.engine.lane import Outcome
from tidings.engine.quota import Exhausted, Purses
from tidings.errors import ProviderError, RenderError
from tidings.flow.costs import cost_of
from tidings.flow.load import Delivery, is_suppressed, load_deliveries
from tidings.flow.options import Extras, decode_extras
from tidings.flow.render import render_message
from tidings.flow.second_look import decide_quiet_now, is_opted_out
from tidings.flow.settle import Settler
from tidings.flow.settlement import Ended, Settlement
from tidings.flow.tracking import Links, Tracker
from tidings.model.messages import Deferred, Message, Rejected, SendResult, Sent, Throttled, Uncertain
from tidings.model.words import EFFECTS, Channel, Effect, Reason, Status
from tidings.providers import registry
from tidings.providers.port import Config, Provider, ProviderSpec, Receipts, Surroundings
from tidings.providers.simulator import simulated_outcome

log = structlog.get_logger(__name__)

MARGIN: Final = 2.0
"""Seconds of lease that must remain beyond the time-out of a send, for settling it."""

FOLLOWED: Final = frozenset({Channel.email, Channel.push})
"""Channels whose messages can be made to tell what became of them."""

GRACE: Final = 0.5
"""Seconds beyond its time-out after which a provider that does not end by itself is broken off; less than MARGIN."""

ACCOUNT_REASONS: Final = frozenset(
    {Reason.connect_failed, Reason.provider_error, Reason.bad_answer, Reason.unauthorized, Reason.blocked}
)
"""Reasons that speak against the account rather than the message."""


_DATABASE_AWAY: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)

NO_ACCOUNT: Final = "it was switched off or removed, or none serves addresses of this kind"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A delivery ready to be sent, or with the reason why it will not be."""

    delivery: Delivery | None
    """None: retention dropped it; the job has nothing left to do."""
    template: TemplateVersion | None
    account: Account | None
    siblings: tuple[int, ...] = ()
    """The other accounts of the project on this channel, for failover."""
    category: str = ""
    extras: Extras | None = None
    files: Mapping[Place, int] | None = None
    """The blobs that go with it, with their sizes."""
    shelved: bool = False
    """They are in memory already; else they are loaded when there is room for them."""
    project: Project | None = None
    tracked: bool = False
    """Its type and category allow that its opens and clicks are watched."""
    optional: str = ""
    """Its category, where its reader may leave it."""
    bound: bool = False
    """Not every account of the channel serves this address."""
    reroute: int | None = None
    """The account that it goes to instead: the one that it was claimed for does not serve addresses of this kind."""
    type_: TypeVersion | None = None
    settings: ProjectSettings = NO_SETTINGS


class Sender:
    """The third stage, in a worker process: the handler of the sending lanes."""

    def __init__(
        self,
        database: Database,
        catalog: Catalog,
        settler: Settler,
        surroundings: Surroundings,
        clock: Clock,
        *,
        timeout: timedelta,
        tracker: Tracker | None = None,
        handle_receipts: Callable[[Account, Receipts], Awaitable[object]] | None = None,
        create: Callable[[str, Config, Surroundings], Provider] = registry.create,
        pulse: Pulse | None = None,
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._settler = settler
        self._surroundings = surroundings
        self._clock = clock
        self._timeout = timeout.total_seconds()
        self._create = create
        self._tracker = tracker
        self._handle_receipts = handle_receipts
        self._providers: dict[int, tuple[Account, Provider]] = {}
        self._limits: dict[int, tuple[Account, Limits]] = {}
        self._retired: set[asyncio.Task[None]] = set()
        self._shelf = Shelf(database)
        self.pulse: Final = pulse or Pulse(database, clock)
        self.purses: Final = Purses(database, clock)

    # ------------------------------------------------------------ accounts

    async def load_limits(self, lane: int, project_ids: Collection[int]) -> Mapping[int, Sequence[Limits]]:
        """Each project's live accounts on this channel. One without weight takes only what is pinned to it."""
        channel = Channel(lane)
        return {
            project_id: [
                self._to_limits(account)
                for account in (await self._catalog.load_accounts(project_id)).get(channel, ())
                if not account.test and account.weight > 0
            ]
            for project_id in project_ids
        }

    async def load_account_limits(self, project_id: int, account_id: int) -> Limits | None:
        """The limits of one account; None when it is gone or switched off."""
        account = await self._account(project_id, account_id)
        return self._to_limits(account) if account is not None else None

    async def load_pace(self, project_id: int) -> float | None:
        """What the project's settings say."""
        return (await self._catalog.load_project(project_id)).settings.pace

    def _to_limits(self, account: Account) -> Limits:
        known = self._limits.get(account.id)
        if known is None or known[0].revision != account.revision:
            limits = Limits(
                account.id,
                account.project_id,
                account.concurrency,
                account.rate,
                account.burst,
                account.weight,
                account.quota,
            )
            known = self._limits[account.id] = (account, limits)
        return known[1]

    async def _account(self, project_id: int, account_id: int | None) -> Account | None:
        for accounts in (await self._catalog.load_accounts(project_id)).values():
            for account in accounts:
                if account.id == account_id:
                    return account
        return None

    def _provider(self, account: Account) -> Provider:
        known = self._providers.get(account.id)
        if known is not None and known[0].revision == account.revision:
            return known[1]
        surroundings = self._surroundings
        if account.callback_path is not None and self._tracker is not None:
            surroundings = replace(surroundings, callback_url=self._tracker.callback_url(account.callback_path))
        provider = self._create(account.provider, account.config, surroundings)
        if (listen := getattr(provider, "listen", None)) is not None and self._handle_receipts is not None:
            listen(partial(self._handle_receipts, account))
        self._providers[account.id] = (account, provider)
        if known is not None:
            self._retire(known[1])
        return provider

    async def listen(self, channels: Collection[Channel]) -> None:
        """Open the accounts on these channels whose vendors report over connections of their own: they may report
        before this worker has sent anything."""
        for project_id in await list_listening_projects(self._database):
            for channel, accounts in (await self._catalog.load_accounts(project_id)).items():
                for account in accounts:
                    if channel in channels and hasattr(registry.PROVIDERS[account.provider], "listen"):
                        try:
                            self._provider(account)
                        except ProviderError as error:
                            log.warning("send.cannot_listen", account=account.key, error=str(error))

    def _retire(self, provider: Provider) -> None:
        """Close a provider whose account was changed, once its last sends are over."""

        async def later() -> None:
            await asyncio.sleep(self._timeout)
            await provider.close()

        task = asyncio.create_task(later())
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)

    async def prune(self) -> None:
        """Forget accounts that were removed or switched off, and close their providers; now and then."""
        for account in {a.id: a for a, _ in (*self._limits.values(), *self._providers.values())}.values():
            if await self._account(account.project_id, account.id) is None:
                self._limits.pop(account.id, None)
                if (gone := self._providers.pop(account.id, None)) is not None:
                    self._retire(gone[1])

    async def tell(self) -> None:
        """Write down what was seen and used of the accounts; every few seconds."""
        await self.pulse.flush()
        await self.purses.flush()

    async def close(self) -> None:
        """Give back every connection, and what is left of quotas."""
        try:
            await self.pulse.flush()
            await self.purses.flush(everything=True)
        except _DATABASE_AWAY as error:
            log.warning("send.usage_not_told", error=type(error).__name__)
        for task in self._retired:
            task.cancel()
        for _, provider in self._providers.values():
            await provider.close()

    # ------------------------------------------------------------ the handler

    async def prepare(self, jobs: Sequence[Job]) -> Sequence[Prepared]:
        """Load the deliveries of claimed jobs, with their templates and accounts."""
        deliveries = await load_deliveries(
            self._database, [(job.id, job.project_id) for job in jobs], self._clock.db_now()
        )
        known = [d for d in deliveries if d is not None]
        templates = await self._catalog.load_template_versions(
            {(d.project_id, d.template_version_id) for d in known if d.template_version_id is not None}
        )
        types = await self._catalog.load_type_versions(
            {(d.project_id, d.type_version_id) for d in known if d.type_version_id is not None}
        )
        settings = {p: (await self._catalog.load_project(p)).settings for p in {d.project_id for d in known}}
        prepared = []
        for job, delivery in zip(jobs, deliveries, strict=True):
            if delivery is None:
                prepared.append(Prepared(None, None, None))
                continue
            accounts = (await self._catalog.load_accounts(job.project_id)).get(delivery.channel, ())
            siblings: tuple[int, ...] = ()
            bound, reroute = False, None
            if delivery.test or simulated_outcome(delivery.channel, delivery.address) is not None:
                # Whatever the claim said: what is simulated never leaves the house.
                account = next((a for a in accounts if a.test), None)
            else:
                account = next((a for a in accounts if a.id == job.account_id), None)
                live = [a for a in accounts if not a.test and a.weight > 0]
                serving = [a for a in live if a.serves(delivery.address)]
                bound = len(serving) < len(live)
                others = [a for a in serving if a.id != job.account_id]
                siblings = tuple(a.id for a in others)
                if account is not None and not account.test and not account.serves(delivery.address):
                    account = None
                    if others:
                        reroute = self._clock.random.choices(others, [a.weight for a in others])[0].id
            prepared.append(
                Prepared(
                    delivery,
                    templates.get(delivery.template_version_id or 0),
                    account,
                    siblings,
                    types[delivery.type_version_id].category if delivery.type_version_id in types else "",
                    decode_extras(delivery.options) if delivery.options is not None else None,
                    project=await self._followed(delivery),
                    tracked=delivery.type_version_id is None or _may_be_tracked(types.get(delivery.type_version_id)),
                    optional=_find_optional(types.get(delivery.type_version_id or 0)),
                    bound=bound,
                    reroute=reroute,
                    type_=types.get(delivery.type_version_id or 0),
                    settings=settings[delivery.project_id],
                )
            )
        if any(p.extras is not None and p.extras.attachments for p in prepared):
            return await self._shelve_some(prepared)
        return prepared

    async def _followed(self, delivery: Delivery) -> Project | None:
        """The project, where its settings matter for a message on this channel."""
        if self._tracker is None or delivery.channel not in FOLLOWED:
            return None
        return await self._catalog.load_project(delivery.project_id)

    async def _shelve_some(self, prepared: Sequence[Prepared]) -> Sequence[Prepared]:
        """With the blobs of those that will be sent, as far as there is room for them now."""
        named = [
            {(p.delivery.project_id, file.digest): file.size for file in p.extras.attachments}
            if p.delivery is not None
            and p.delivery.channel is Channel.email
            and p.extras is not None
            and p.account is not None
            and _forbidden(p) is None
            else {}
            for p in prepared
        ]
        wanted = [i for i, files in enumerate(named) if files]
        shelved = dict(zip(wanted, await self._shelf.take_some([named[i] for i in wanted]), strict=True))
        return [replace(p, files=named[i], shelved=shelved.get(i, False)) for i, p in enumerate(prepared)]

    async def send(self, job: Job, prepared: Prepared, deadline: float) -> Outcome[Settlement] | None:
        """One attempt; None when too little of the lease is left to begin it."""
        delivery = prepared.delivery
        ended = _forbidden(prepared)
        if ended is not None or delivery is None:
            return Outcome(self._settle(job, prepared, ended or Ended(Status.failed, Reason.expired)))
        if prepared.reroute is not None:
            return Outcome(
                Settlement(job, delivery, None, retry=Retry(job, timedelta(0), prepared.reroute, job.attempt))
            )
        now = self._clock.now()
        quiet = decide_quiet_now(delivery, prepared.type_, prepared.settings, now)
        if quiet is not None:  # it was planned before they began, and is tried again in the midst of them
            again = Retry(job, quiet - now, job.pin, job.attempt)
            return Outcome(Settlement(job, delivery, None, retry=again))
        if prepared.account is None:
            return Outcome(self._settle(job, prepared, Rejected(Reason.no_account, NO_ACCOUNT)))
        if not prepared.files:
            return await self._attempt(job, prepared, delivery, prepared.account, deadline)
        if not prepared.shelved and not await self._shelve(prepared.files, deadline):
            return None
        try:
            return await self._attempt(job, prepared, delivery, prepared.account, deadline)
        finally:
            self._shelf.give_back(prepared.files)

    async def _shelve(self, files: Mapping[Place, int], deadline: float) -> bool:
        """Wait for room for the attachments, as long as the lease allows; says whether they are there."""
        patience = deadline - self._clock.monotonic() - self._timeout - MARGIN
        try:
            async with asyncio.timeout(patience):
                await self._shelf.take(files)
        except (*_DATABASE_AWAY, asyncio.CancelledError):
            # Nothing has left, so also one that is broken off goes back as if it had never been claimed.
            return False
        return True

    async def _attempt(
        self, job: Job, prepared: Prepared, delivery: Delivery, account: Account, deadline: float
    ) -> Outcome[Settlement] | None:
        links = None
        if self._tracker is not None:
            links = self._tracker.link(delivery, prepared.project, prepared.optional)
        try:
            message = render_message(
                delivery,
                prepared.template,
                job.traceparent,
                category=prepared.category,
                extras=prepared.extras,
                read=lambda file: self._shelf.get((delivery.project_id, file.digest)),
                headers=_list_fields(links, prepared) if delivery.channel is Channel.email else (),
                links=links,
            )
        except RenderError as error:
            return Outcome(self._settle(job, prepared, Ended(Status.failed, Reason.render_failed, str(error))))
        if self._tracker is not None and prepared.project is not None:
            message = self._tracker.follow(message, prepared.project, tracked=prepared.tracked)
        try:
            provider = self._provider(account)
        except ProviderError as error:
            return Outcome(self._settle(job, prepared, Rejected(Reason.unauthorized, str(error))), account_failed=True)
        try:
            charged = await self.purses.charge(self._to_limits(account), cost_of(message, account.costs))
        except (*_DATABASE_AWAY, asyncio.CancelledError):  # nothing has left
            return None
        if isinstance(charged, Exhausted):
            return _put_off(job, delivery, account, charged)
        timeout = min(self._timeout, provider.spec.timeout.total_seconds())
        if deadline - self._clock.monotonic() < timeout + MARGIN:
            self.purses.refund(charged)
            return None
        result: SendResult
        began = self._clock.monotonic()
        try:
            # The provider keeps the time itself, as it knows whether the bytes had left; this is for one that does not.
            async with asyncio.timeout(timeout + GRACE):
                result = await provider.send(message, ids.to_public(ids.DELIVERY, delivery.id))
        except TimeoutError:
            result = Uncertain(f"no answer within {timeout:g} s")
        except ProviderError as error:
            result = Rejected(Reason.unsupported, str(error))
        except Exception as error:
            log.error("send.provider_broke", provider=account.provider, exc_info=error)
            result = Uncertain(f"the adapter failed: {type(error).__name__}")
        if isinstance(result, Rejected | Deferred | Throttled):
            self.purses.refund(charged)
        self._settler.observe_attempt(account, result, self._clock.monotonic() - began)
        failed = _speaks_against_account(result, per_address=provider.spec.per_address)
        pause = _pause(result)
        # Where each address is a server of its own, one that throttles teaches nothing about the others.
        throttled_for = None if provider.spec.per_address else pause
        self.pulse.observe_answer(account.id, failed=failed, throttled_for=throttled_for)
        return Outcome(
            self._settle(job, prepared, result, spec=provider.spec, message=message),
            account_failed=failed,
            pause=pause,
        )

    def ended(self, job: Job, prepared: Prepared) -> Settlement | None:
        """The settlement of a delivery that must not be sent any more, whatever its account can take."""
        ended = _forbidden(prepared)
        return self._settle(job, prepared, ended) if ended is not None else None

    def unanswered(self, job: Job, prepared: Prepared) -> Settlement:
        """The settlement of a send that is broken off: nobody knows."""
        return self._settle(job, prepared, Uncertain("the worker had to stop"))

    async def settle(self, batch: Sequence[tuple[Job, Prepared, Settlement]]) -> Collection[int]:
        """Record a batch in one transaction."""
        return await self._settler.apply([settlement for _, _, settlement in batch])

    def _settle(
        self,
        job: Job,
        prepared: Prepared,
        what: SendResult | Ended,
        *,
        spec: ProviderSpec | None = None,
        message: Message | None = None,
    ) -> Settlement:
        return self._settler.decide(
            job,
            prepared.delivery,
            what,
            account=prepared.account,
            siblings=prepared.siblings,
            bound=prepared.bound,
            category=prepared.category,
            confirms=spec is not None and spec.confirms_delivery,
            link=spec is not None and not spec.echoes_key and (spec.receipts is not None or bool(spec.reports)),
            message=message,
        )


def _put_off(job: Job, delivery: Delivery, account: Account, exhausted: Exhausted) -> Outcome[Settlement]:
    """A quota has run out: free for the other accounts at once, and else for this one when there is room again."""
    if exhausted.began:
        log.warning("account.quota_exhausted", account=account.id, seconds=round(exhausted.seconds))
    again = Settlement(job, delivery, None, retry=Retry(job, timedelta(0), None, job.attempt))
    return Outcome(again, exhausted=exhausted.seconds)


def _forbidden(prepared: Prepared) -> Ended | None:
    """Why this delivery must not be sent now, if so. One that may have gone out before stays uncertain, whatever it is
    that stops the next attempt: so a receipt can still prove it."""
    ended = _find_obstacle(prepared)
    delivery = prepared.delivery
    if ended is None or ended.reason is None or delivery is None or delivery.reason != Reason.uncertain:
        return ended
    return Ended(Status.failed, Reason.uncertain, f"not tried again: {ended.reason}")


def _find_obstacle(prepared: Prepared) -> Ended | None:
    delivery = prepared.delivery
    if delivery is None:
        return Ended(Status.failed, Reason.expired)
    if delivery.status is not Status.queued:
        return Ended(delivery.status, None)  # settled meanwhile, by a receipt or a late answer: only the job is left
    if delivery.cancelled:
        return Ended(Status.cancelled, Reason.cancelled)
    if delivery.expired:
        return Ended(Status.expired, Reason.expired)
    if is_suppressed(delivery.suppressed, prepared.category):
        return Ended(Status.skipped, Reason.suppressed)
    if delivery.user_deleted:
        return Ended(Status.skipped, Reason.user_deleted)
    if is_opted_out(delivery, prepared.type_, prepared.settings):
        return Ended(Status.skipped, Reason.opted_out)
    return None


def _may_be_tracked(type_: TypeVersion | None) -> bool:
    return type_ is not None and type_.tracking and not type_.required


def _find_optional(type_: TypeVersion | None) -> str:
    return type_.category if type_ is not None and not type_.required else ""


def _list_fields(links: Links | None, prepared: Prepared) -> Sequence[tuple[str, str]]:
    if links is None:
        return ()
    asked = prepared.extras.email if prepared.extras is not None else None
    return links.list_fields(asked.headers if asked is not None else ())


def _speaks_against_account(result: SendResult, *, per_address: bool) -> bool | None:
    if per_address:
        return None
    match result:
        case Sent():
            return False
        case Deferred(reason=reason) | Rejected(reason=reason):
            return True if reason in ACCOUNT_REASONS or EFFECTS[reason] is Effect.failover else None
        case Uncertain():
            return True
        case Throttled():
            return None


def _pause(result: SendResult) -> float | None:
    if isinstance(result, Throttled):
        return result.retry_after.total_seconds() if result.retry_after is not None else 1.0
    return None
