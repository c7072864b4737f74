"""The catalog: what the road reads of types, templates and accounts, kept in the memory of the process.

What can change (which version is current, which accounts there are) is believed for `ttl` and forgotten at once when a
`tidings_config` hint names its project; what is numbered cannot change and is kept as long as there is room. Nobody
waits twice: askers of the same thing share one look-up.

It reads. Whoever writes the directory is elsewhere, and tells by `notify_config`.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Generic, TypeVar

import msgspec
import structlog
from pydantic import SecretStr

from tidings.channels import CHANNELS
from tidings.clock import Clock
from tidings.db.pool import Database, Record
from tidings.db.sql import load_queries
from tidings.directory.accounts import open_config, to_callback_path, to_quota
from tidings.directory.categories import NO_CATEGORY_RULES, CategoryRules, to_rules
from tidings.directory.credentials import Vault
from tidings.directory.digests import DigestRule
from tidings.directory.event_rules import RULES_MAX, StoredRule, list_event_rules
from tidings.directory.hooks import open_secrets
from tidings.directory.limits import Limit
from tidings.directory.projects import Project, load_project
from tidings.directory.quiet import SendTime
from tidings.directory.steps import Branch, First, Program, Throttle, compile_steps, list_channels
from tidings.directory.types import DataSchema, Definition, compile_schema
from tidings.durations import parse_duration
from tidings.engine.gate import Quota
from tidings.errors import FieldError, Problem, TidingsError
from tidings.model.messages import split_scheme
from tidings.model.words import Channel, EventKind, Guarantee, Priority
from tidings.providers.port import Config
from tidings.providers.registry import PROVIDERS
from tidings.templating import CompiledTemplate, compile_template

_queries: Final = load_queries(__package__, "catalog.sql")
_LOAD_CURRENT_TYPE: Final = _queries.load_current_type
_LOAD_TYPE_VERSIONS: Final = _queries.load_type_versions
_LOAD_PUBLISHED_TEMPLATE: Final = _queries.load_published_template
_LOAD_TEMPLATE_VERSIONS: Final = _queries.load_template_versions
_LOAD_ENABLED_ACCOUNTS: Final = _queries.load_enabled_accounts
_LOAD_ENABLED_HOOKS: Final = _queries.load_enabled_hooks

log = structlog.get_logger(__name__)

Key = TypeVar("Key")
Value = TypeVar("Value")
Version = TypeVar("Version", "TypeVersion", "TemplateVersion")

_KEYS_MAX: Final = 10_000
"""Names remembered of one kind and project, unknown ones included: what is asked for is chosen by callers."""
_ROOM: Final = 16_000_000
"""Characters of sources whose compiled versions are kept, of each kind."""
_SETTINGS_TTL: Final = timedelta(seconds=5)
"""For how long at least a project's settings are believed without a hint."""
_OVERHEAD: Final = 4_000
"""What a version costs besides its source, in the same unit."""


class TypeVersion(msgspec.Struct, frozen=True, eq=False):
    """One version of a type, ready to accept and plan with."""

    id: int
    project_id: int
    key: str
    version: int
    category: str
    required: bool
    """The category's: users cannot switch it off. As it was when this was loaded."""
    priority: Priority
    critical: bool
    """Keys without the scope `send:critical` may send it as critical."""
    template_key: str
    program: Program
    """The type's steps; EVERY_CHANNEL where it has none."""
    expires_after: timedelta | None
    at_most_once: bool
    validator: DataSchema | None
    tracking: bool = True
    """Opens and clicks may be watched, where the project does so."""
    rules: CategoryRules = NO_CATEGORY_RULES
    """The category's. As they were when this was loaded, like `required`."""
    digest: DigestRule | None = None
    limits: tuple[Limit, ...] = ()
    quiet: str = "wait"
    defaults: Mapping[Channel, bool] = {}
    send_time: SendTime | None = None
    asks_data: bool = False
    """Planning needs a notification's data: for a condition, or the key of a digest."""

    reacts: bool = False
    """Its steps go on when something becomes of a delivery."""
    throttles: bool = False
    """It has a step that lets only so many pass."""

    def check_data(self, data: Mapping[str, Any]) -> list[FieldError]:
        """What is wrong with a request's data by the type's schema, with pointers into them."""
        return [] if self.validator is None else self.validator.check(data)

    def covers(self, template: TemplateVersion) -> int:
        """The channels that this type sends on with the template, as bits `1 << channel`."""
        named = list_channels(self.program)
        return sum(1 << channel for channel in template.channels if not named or channel in named)


class TemplateVersion(msgspec.Struct, frozen=True, eq=False):
    """One version of a template, compiled."""

    id: int
    project_id: int
    key: str
    version: int
    required: frozenset[str]
    channels: frozenset[Channel]
    compiled: CompiledTemplate

    def missing(self, data: Mapping[str, Any]) -> list[str]:
        """The dotted names that the template needs and `data` lacks."""
        return self.compiled.missing(data)

    def resolve_locale(self, channel: Channel, locale: str | None) -> str:
        """See `CompiledTemplate.resolve_locale`."""
        return self.compiled.resolve_locale(channel, locale)


class Account(msgspec.Struct, frozen=True):
    """An enabled account, its credentials opened (they hide in `SecretStr`s of the configuration)."""

    id: int
    project_id: int
    key: str
    channel: Channel
    provider: str
    config: Config
    weight: int
    rate: float | None
    burst: int
    concurrency: int
    test: bool
    revision: int
    """Grows with every change: what was made for another revision is out of date."""
    callback_path: str | None = None
    """Where its vendor reports to, under the API's public address."""
    quota: Quota | None = None
    """None: no quotas."""
    costs: Mapping[str, int] = {}
    """What a message costs, in micro-units of the account's currency, by country or `*`."""

    @property
    def tells_delivery(self) -> bool:
        """Whether its vendor reports later, as a rule, that a message was delivered."""
        spec = PROVIDERS[self.provider].spec
        return EventKind.delivered in spec.reports and not spec.delivery_reports_are_rare

    def serves(self, address: str) -> bool:
        """Whether it can send to this address: those of push and chat say which vendor's they are, and some name the
        account."""
        if self.channel is not Channel.push and self.channel is not Channel.chat:
            return True
        schemes = PROVIDERS[self.provider].spec.schemes
        if not schemes:
            return True
        scheme, target = split_scheme(address)
        return scheme in schemes and self.config.serves(target)


Accounts = Mapping[Channel, tuple[Account, ...]]


class Hook(msgspec.Struct, frozen=True):
    """An enabled hook, its secrets opened."""

    id: int
    project_id: int
    key: str
    url: str
    secret: SecretStr
    previous_secret: SecretStr | None
    previous_until: datetime | None
    """Until then the secret before the present one signs too."""


class _Fresh(Generic[Key, Value]):
    """Things that are believed for a while, by project and key."""

    def __init__(self, clock: Clock, ttl: timedelta, look_up: Callable[[int, Key], Awaitable[Value]]) -> None:
        self._clock = clock
        self._ttl = ttl.total_seconds()
        self._look_up = look_up
        self._known: dict[int, dict[Key, tuple[float, Value]]] = {}
        self._loading: dict[tuple[int, Key], asyncio.Task[Value]] = {}

    def peek(self, project_id: int, key: Key) -> tuple[float, Value] | None:
        """What is known and fresh, in a pair, for the value may be None."""
        known = self._known.get(project_id)
        entry = None if known is None else known.get(key)
        return entry if entry is not None and entry[0] > self._clock.monotonic() else None

    async def load(self, project_id: int, key: Key) -> Value:
        """What is known, or looked up. A look-up that began before a `forget` answers its askers and is not kept."""
        entry = self.peek(project_id, key)
        if entry is not None:
            return entry[1]
        place = (project_id, key)
        task = self._loading.get(place)
        if task is None:
            task = self._loading[place] = asyncio.create_task(self._fill(project_id, key))
            task.add_done_callback(lambda done: self._filled(place, done))
        # Shielded: when the first asker is cancelled, the others still get their answer.
        return await asyncio.shield(task)

    def forget(self, project_id: int) -> None:
        """Look again at everything of the project."""
        self._known.pop(project_id, None)
        for place in [place for place in self._loading if place[0] == project_id]:
            del self._loading[place]

    def forget_all(self) -> None:
        """Look again at everything."""
        self._known.clear()
        self._loading.clear()

    async def _fill(self, project_id: int, key: Key) -> Value:
        # Freshness counts from before the question.
        fresh_until = self._clock.monotonic() + self._ttl
        value = await self._look_up(project_id, key)
        if self._loading.get((project_id, key)) is asyncio.current_task():
            known = self._known.setdefault(project_id, {})
            if len(known) >= _KEYS_MAX:
                known.clear()
            known[key] = (fresh_until, value)
        return value

    def _filled(self, place: tuple[int, Key], task: asyncio.Task[Value]) -> None:
        if self._loading.get(place) is task:
            del self._loading[place]
        if not task.cancelled():
            task.exception()  # its askers have it; nobody else needs to hear of it


class _Kept(Generic[Version]):
    """Versions by project and id; those used least lately go when there is no room."""

    def __init__(self, room: int = _ROOM) -> None:
        self._room = room
        self._used = 0
        self._items: OrderedDict[tuple[int, int], tuple[Version, int]] = OrderedDict()
        self.loading: Final = asyncio.Lock()
        """Held while missing ones are looked up, so that the same ones are not compiled twice."""

    def get(self, place: tuple[int, int]) -> Version | None:
        item = self._items.get(place)
        if item is None:
            return None
        self._items.move_to_end(place)
        return item[0]

    def put(self, version: Version, size: int) -> None:
        place = (version.project_id, version.id)
        if (old := self._items.pop(place, None)) is not None:
            self._used -= old[1]
        size += _OVERHEAD
        self._items[place] = (version, size)
        self._used += size
        while self._used > self._room and len(self._items) > 1:
            _, (_, gone) = self._items.popitem(last=False)
            self._used -= gone

    def forget(self, project_id: int) -> None:
        for place in [place for place in self._items if place[0] == project_id]:
            self._used -= self._items.pop(place)[1]

    def forget_all(self) -> None:
        self._items.clear()
        self._used = 0


class Catalog:
    """See the module's docstring.

    Args:
        vault: opens credentials. A process that sends nothing needs none; then accounts with secrets do not appear.
        ttl: how long what can change is believed without a hint: hints may be lost.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        vault: Vault | None = None,
        ttl: timedelta = timedelta(seconds=1),
    ) -> None:
        self._database = database
        self._vault = vault or Vault(())
        self._types = _Fresh(clock, ttl, self._find_type)
        self._templates = _Fresh(clock, ttl, self._find_template)
        self._projects = _Fresh(clock, max(ttl, _SETTINGS_TTL), self._find_project)
        self._accounts = _Fresh(clock, ttl, self._find_accounts)
        self._hooks = _Fresh(clock, ttl, self._find_hooks)
        self._event_rules = _Fresh(clock, ttl, self._find_event_rules)
        self._type_versions: Final = _Kept[TypeVersion]()
        self._template_versions: Final = _Kept[TemplateVersion]()

    # ---- what can change

    def peek_type(self, project_id: int, key: str) -> TypeVersion | None:
        """The current version of a type if it is in memory; None says nothing, ask `load_type`."""
        entry = self._types.peek(project_id, key)
        return None if entry is None else entry[1]

    async def load_type(self, project_id: int, key: str) -> TypeVersion | None:
        """The current version of a type; None when there is none, or it is archived."""
        return await self._types.load(project_id, key)

    def peek_template(self, project_id: int, key: str) -> TemplateVersion | None:
        """The published version of a template if it is in memory; None says nothing, ask `load_template`."""
        entry = self._templates.peek(project_id, key)
        return None if entry is None else entry[1]

    async def load_template(self, project_id: int, key: str) -> TemplateVersion | None:
        """The published version of a template; None when there is none."""
        return await self._templates.load(project_id, key)

    async def load_project(self, project_id: int) -> Project:
        """The project, with its settings.

        Raises:
            NotFound: there is none with this id.
        """
        return await self._projects.load(project_id, None)

    async def load_accounts(self, project_id: int) -> Accounts:
        """The project's enabled accounts, by channel, in the order in which they were made. Test accounts too."""
        return await self._accounts.load(project_id, None)

    async def load_hooks(self, project_id: int) -> tuple[Hook, ...]:
        """The project's enabled hooks."""
        return await self._hooks.load(project_id, None)

    async def load_event_rules(self, project_id: int) -> tuple[StoredRule, ...]:
        """The project's enabled event rules, by key."""
        return await self._event_rules.load(project_id, None)

    # ---- what cannot

    async def load_type_versions(self, ids: Collection[tuple[int, int]]) -> dict[int, TypeVersion]:
        """Versions of types by id, asked for as (project, id); those that do not exist are missing."""
        return await self._load_versions(self._type_versions, ids, _LOAD_TYPE_VERSIONS, self._keep_type)

    async def load_template_versions(self, ids: Collection[tuple[int, int]]) -> dict[int, TemplateVersion]:
        """Versions of templates by id, asked for as (project, id); those that do not exist are missing."""
        return await self._load_versions(self._template_versions, ids, _LOAD_TEMPLATE_VERSIONS, self._keep_template)

    def peek_type_version(self, project_id: int, id_: int) -> TypeVersion | None:
        """A version of a type if it is in memory; None says nothing."""
        return self._type_versions.get((project_id, id_))

    # ---- hints

    def forget(self, project_id: int) -> None:
        """Look at the project again: something in its configuration changed."""
        self._types.forget(project_id)
        self._templates.forget(project_id)
        self._projects.forget(project_id)
        self._accounts.forget(project_id)
        self._hooks.forget(project_id)
        self._event_rules.forget(project_id)
        # Not the version changed, but perhaps whether its category is required.
        self._type_versions.forget(project_id)

    def forget_all(self) -> None:
        """Look at everything again: hints may have been lost."""
        self._types.forget_all()
        self._templates.forget_all()
        self._projects.forget_all()
        self._accounts.forget_all()
        self._hooks.forget_all()
        self._event_rules.forget_all()
        self._type_versions.forget_all()

    def on_hint(self, channel: str, payload: str) -> None:
        """What a `Listener` calls for `tidings_config`: the payload is a project's id, or empty."""
        if payload.isdecimal():
            self.forget(int(payload))
        else:
            self.forget_all()

    # ---- look-ups

    async def _find_type(self, project_id: int, key: str) -> TypeVersion | None:
        row = await self._database.fetchrow(_LOAD_CURRENT_TYPE, project_id, key)
        if row is None:
            return None
        known = self._type_versions.get((project_id, row["id"]))
        rules = None if known is None else to_rules(known.category, row["required"], row["rules"])
        return known if known is not None and known.rules == rules else self._keep_type(row)

    async def _find_template(self, project_id: int, key: str) -> TemplateVersion | None:
        row = await self._database.fetchrow(_LOAD_PUBLISHED_TEMPLATE, project_id, key)
        return None if row is None else self._template_versions.get((project_id, row["id"])) or self._keep_template(row)

    async def _find_project(self, project_id: int, _: None) -> Project:
        return await load_project(self._database, project_id)

    async def _find_accounts(self, project_id: int, _: None) -> Accounts:
        found: dict[Channel, tuple[Account, ...]] = {}
        rows = await self._database.fetch(_LOAD_ENABLED_ACCOUNTS, project_id)
        project_key = (await self.load_project(project_id)).key if rows else ""
        for row in rows:
            try:
                config = open_config(self._vault, project_id, row)
            except TidingsError as error:
                # One account that cannot be used must not stop the others.
                log.error("directory.account.unusable", project=project_id, account=row["key"], error=_explain(error))
                continue
            account = Account(
                id=row["id"],
                project_id=project_id,
                key=row["key"],
                channel=Channel(row["channel"]),
                provider=row["provider"],
                config=config,
                weight=row["weight"],
                rate=row["rate"],
                burst=row["burst"],
                concurrency=row["concurrency"],
                test=row["test"],
                revision=row["revision"],
                callback_path=to_callback_path(
                    self._vault, project_id, project_key, row["provider"], row["key"], row["id"]
                ),
                quota=to_quota(row["quotas"]),
                costs=msgspec.json.decode(row["costs"], type=dict[str, int]),
            )
            found[account.channel] = (*found.get(account.channel, ()), account)
        return found

    async def _find_hooks(self, project_id: int, _: None) -> tuple[Hook, ...]:
        found = []
        for row in await self._database.fetch(_LOAD_ENABLED_HOOKS, project_id):
            try:
                opened = open_secrets(self._vault, project_id, row)
            except TidingsError as error:
                log.error("directory.hook.unusable", project=project_id, hook=row["key"], error=_explain(error))
                continue
            hook = Hook(
                id=row["id"],
                project_id=project_id,
                key=row["key"],
                url=row["url"],
                secret=SecretStr(opened.secret),
                previous_secret=SecretStr(opened.previous) if opened.previous is not None else None,
                previous_until=row["previous_until"],
            )
            found.append(hook)
        return tuple(found)

    async def _find_event_rules(self, project_id: int, _: None) -> tuple[StoredRule, ...]:
        rules = await list_event_rules(self._database, project_id, limit=RULES_MAX)
        return tuple(rule for rule in rules if rule.enabled)

    async def _load_versions(
        self,
        kept: _Kept[Version],
        ids: Collection[tuple[int, int]],
        query: str,
        keep: Callable[[Record], Version | None],
    ) -> dict[int, Version]:
        found = {place[1]: version for place in ids if (version := kept.get(place)) is not None}
        lacking = sorted({place for place in ids if place[1] not in found})
        if not lacking:
            return found
        async with kept.loading:
            for place in lacking:  # somebody else may have loaded them while we waited
                if (version := kept.get(place)) is not None:
                    found[place[1]] = version
            asked = [place for place in lacking if place[1] not in found]
            if asked:
                projects, versions = zip(*asked, strict=True)
                for row in await self._database.fetch(query, list(projects), list(versions)):
                    if (version := keep(row)) is not None:
                        found[version.id] = version
        return found

    def _keep_type(self, row: Record) -> TypeVersion | None:
        try:
            definition = msgspec.json.decode(row["definition"], type=Definition)
            program = compile_steps(definition.steps)
            rules = to_rules(definition.category, row["required"], row["rules"])
            schema = None if definition.schema is None else compile_schema(definition.schema)
        except Problem as problem:
            log.error("directory.type.unusable", project=row["project_id"], type=row["key"], error=_explain(problem))
            return None
        except (msgspec.MsgspecError, LookupError) as error:
            # Written by a newer Tidings, during an upgrade. It must not stop the batches that it is looked up with.
            log.error("directory.type.unusable", project=row["project_id"], type=row["key"], error=str(error))
            return None
        expires_after = definition.expires_after
        version = TypeVersion(
            id=row["id"],
            project_id=row["project_id"],
            key=row["key"],
            version=row["version"],
            category=definition.category,
            required=row["required"],
            priority=Priority[definition.priority],
            critical=definition.critical,
            template_key=definition.template,
            program=program,
            expires_after=None if expires_after is None else parse_duration(expires_after),
            at_most_once=definition.guarantee == Guarantee.at_most_once,
            validator=schema,
            tracking=definition.tracking,
            rules=rules,
            digest=definition.digest,
            limits=definition.limits,
            quiet=definition.quiet,
            defaults={Channel[name]: on for name, on in definition.preferences.items()},
            send_time=definition.send_time,
            asks_data=any(isinstance(i, Branch) for i in program)
            or (definition.digest is not None and definition.digest.key is not None),
            reacts=any(isinstance(i, First) for i in program),
            throttles=any(isinstance(i, Throttle) for i in program),
        )
        self._type_versions.put(version, len(row["definition"]))
        return version

    def _keep_template(self, row: Record) -> TemplateVersion | None:
        try:
            compiled = compile_template(msgspec.json.decode(row["content"]), CHANNELS)
        except Problem as problem:
            # It was accepted by a version of Tidings whose rules were others.
            log.error(
                "directory.template.unusable", project=row["project_id"], template=row["key"], error=_explain(problem)
            )
            return None
        version = TemplateVersion(
            id=row["id"],
            project_id=row["project_id"],
            key=row["key"],
            version=row["version"],
            required=compiled.required,
            channels=compiled.channels,
            compiled=compiled,
        )
        self._template_versions.put(version, compiled.size)
        return version


def _explain(error: TidingsError) -> str:
    told = [f"{e.pointer}: {e.detail}" for e in error.errors] if isinstance(error, Problem) else []
    return "; ".join([str(error), *told])
