"""Accounts and the catalog on a real database: seals, rotation, caches, and what hints do to them."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from tidings.clock import SystemClock
from tidings.db.pool import Connection, Database
from tidings.directory.accounts import (
    PLACEHOLDER,
    AccountPlan,
    delete_account,
    list_accounts,
    load_account,
    put_account,
    reseal_accounts,
)
from tidings.directory.audit import Actor, list_audit
from tidings.directory.catalog import Catalog
from tidings.directory.credentials import Vault
from tidings.directory.projects import create_project
from tidings.directory.steps import Send
from tidings.directory.templates import create_template_version, publish_template, put_template
from tidings.directory.types import archive_type, parse_definition, put_type
from tidings.errors import Conflict, Invalid, SettingsError
from tidings.model.words import Channel, Priority

OLD, NEW = (base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
SECRET = "correct-horse-battery-staple"
SMTP = AccountPlan(
    channel="email",
    provider="smtp",
    config={"host": "smtp.example.com", "from_address": "a@example.com", "username": "ada", "password": SECRET},
)


class MovableClock(SystemClock):
    """The real clock, with a button to make time pass."""

    passed = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.passed


class CountingDatabase:
    """A database that counts its questions and can be made to wait with its answers."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def fetchrow(self, *args: Any) -> Any:
        return await self._answer(self._database.fetchrow, *args)

    async def fetch(self, *args: Any) -> Any:
        return await self._answer(self._database.fetch, *args)

    async def _answer(self, ask: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        self.asked += 1
        answer = await ask(*args)
        await self.may_answer.wait()
        return answer


@pytest.fixture
async def actor(database: Database) -> Actor:
    project = await database.transaction(lambda conn: create_project(conn, "shop", "Shop"))
    return Actor(project.id, "cli")


async def put(database: Database, actor: Actor, key: str, plan: AccountPlan, vault: Vault | None = None) -> Any:
    return await database.transaction(lambda conn: put_account(conn, actor, vault or Vault([OLD]), key, plan))


async def make_type(database: Database, actor: Actor, text: str, **definition: Any) -> None:
    async def work(conn: Connection) -> None:
        await put_template(conn, actor, "hello")
        version = await create_template_version(conn, actor, "hello", {"channels": {"sms": {"en": {"text": text}}}})
        await publish_template(conn, actor, "hello", version.version)
        raw = {"category": "general", **definition}
        await put_type(conn, actor, "hello", parse_definition("hello", raw, timedelta(days=90)))

    await database.transaction(work)


# ---------------------------------------------------------------- accounts


async def test_every_project_begins_with_simulators_and_an_inbox(database: Database, actor: Actor) -> None:
    found = {a.key: (a.channel, a.provider, a.test) for a in await list_accounts(database, actor.project_id)}
    assert found == {
        "simulator-email": ("email", "simulator", True),
        "simulator-sms": ("sms", "simulator", True),
        "simulator-in_app": ("in_app", "simulator", True),
        "simulator-webhook": ("webhook", "simulator", True),
        "simulator-push": ("push", "simulator", True),
        "simulator-chat": ("chat", "simulator", True),
        "inbox": ("in_app", "inbox", False),
    }
    states = "SELECT count(*) FROM account_state WHERE project_id = $1"
    assert await database.fetchval(states, actor.project_id) == len(found)


async def test_secrets_are_sealed_and_never_shown(database: Database, actor: Actor) -> None:
    account, made = await put(database, actor, "main", SMTP)
    assert made
    assert account.config["password"] == PLACEHOLDER
    assert account.config["username"] == "ada"
    stored = await database.fetchval("SELECT account::text FROM account WHERE key = 'main'")
    assert SECRET not in stored
    assert SECRET.encode().hex() not in stored
    trail = await list_audit(database, actor.project_id, object_="account:main")
    assert SECRET not in repr(trail)
    assert SECRET not in repr(await load_account(database, actor.project_id, "main"))
    catalog = Catalog(database, SystemClock(), vault=Vault([OLD]))
    (simulator, opened) = (await catalog.load_accounts(actor.project_id))[Channel.email]
    assert (simulator.test, opened.key) == (True, "main")
    assert opened.config.password == SecretStr(SECRET)  # type: ignore[attr-defined]  # of the smtp provider's model
    assert SECRET not in repr(opened)


async def test_the_placeholder_keeps_the_stored_secret(database: Database, actor: Actor) -> None:
    await put(database, actor, "main", SMTP)
    sealed = await database.fetchval("SELECT secret FROM account WHERE key = 'main'")
    shown = {**SMTP.config, "password": PLACEHOLDER}
    same, made = await put(database, actor, "main", AccountPlan(channel="email", provider="smtp", config=shown))
    assert (made, same.revision) == (False, 1)
    edited = AccountPlan(channel="email", provider="smtp", config={**shown, "max_connections": 3}, weight=5)
    changed, _ = await put(database, actor, "main", edited)
    assert (changed.revision, changed.weight, changed.config["max_connections"]) == (2, 5, 3)
    assert await database.fetchval("SELECT secret FROM account WHERE key = 'main'") == sealed
    removed = AccountPlan(channel="email", provider="smtp", config={**shown, "username": None, "password": None})
    without, _ = await put(database, actor, "main", removed)
    assert without.config["password"] is None
    assert await database.fetchval("SELECT secret FROM account WHERE key = 'main'") is None


@pytest.mark.parametrize(
    "change",
    [{"host": "evil.example"}, {"port": 2525}, {"security": "tls"}, {"verify_certificates": False}],
    ids=lambda change: next(iter(change)),
)
async def test_the_placeholder_sends_no_secret_elsewhere(
    database: Database, actor: Actor, change: dict[str, Any]
) -> None:
    await put(database, actor, "main", SMTP)
    config = {**SMTP.config, "password": PLACEHOLDER, **change}
    with pytest.raises(Invalid) as caught:
        await put(database, actor, "main", AccountPlan(channel="email", provider="smtp", config=config))
    assert [e.pointer for e in caught.value.errors] == ["/config/password"]
    anew = AccountPlan(channel="email", provider="smtp", config={**config, "password": "given again"})
    assert (await put(database, actor, "main", anew))[0].revision == 2


@pytest.mark.parametrize(
    ("plan", "pointer"),
    [
        (AccountPlan(channel="pigeon", provider="smtp"), "/channel"),
        (AccountPlan(channel="push", provider="smtp"), "/provider"),
        (AccountPlan(channel="sms", provider="smtp"), "/provider"),
        (AccountPlan(channel="email", provider="nobody"), "/provider"),
        (AccountPlan(channel="email", provider="smtp", config={**SMTP.config, "x": 1}), "/config/x"),
        (AccountPlan(channel="webhook", provider="webhook", config={"secret": PLACEHOLDER}), "/config/secret"),
        (AccountPlan(channel="webhook", provider="webhook", config={"secret": "x" * 70_000}), "/config"),
    ],
)  # fmt: skip
async def test_accounts_that_are_refused(database: Database, actor: Actor, plan: AccountPlan, pointer: str) -> None:
    with pytest.raises(Invalid) as caught:
        await put(database, actor, "new", plan)
    assert [e.pointer for e in caught.value.errors] == [pointer]


async def test_an_account_stays_what_it_is_until_it_is_disabled_and_deleted(database: Database, actor: Actor) -> None:
    await put(database, actor, "main", SMTP)
    with pytest.raises(Conflict, match="stays that"):
        await put(database, actor, "main", AccountPlan(channel="email", provider="simulator"))

    async def delete(key: str) -> None:
        await database.transaction(lambda conn: delete_account(conn, actor, key))

    with pytest.raises(Conflict, match="Disable"):
        await delete("main")
    with pytest.raises(Conflict, match="simulator"):
        await delete("simulator-email")
    await put(database, actor, "main", AccountPlan(**{**_fields(SMTP), "enabled": False}))
    await delete("main")
    assert "main" not in [a.key for a in await list_accounts(database, actor.project_id)]


def _fields(plan: AccountPlan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in plan.__struct_fields__}


async def test_keys_rotate_in_batches(database: Database, actor: Actor) -> None:
    for n in range(5):
        await put(database, actor, f"main-{n}", SMTP)
    both = Vault([NEW, OLD])
    assert await reseal_accounts(database, both, batch=2) == 5
    assert await reseal_accounts(database, both) == 0
    found = await Catalog(database, SystemClock(), vault=Vault([NEW])).load_accounts(actor.project_id)
    assert len(found[Channel.email]) == 6


async def test_rotation_stops_at_what_it_cannot_open(database: Database, actor: Actor) -> None:
    await put(database, actor, "main", SMTP)
    with pytest.raises(SettingsError):
        await reseal_accounts(database, Vault([NEW]))


async def test_credentials_that_were_moved_to_another_row_do_not_open(database: Database, actor: Actor) -> None:
    await put(database, actor, "one", SMTP)
    await put(database, actor, "two", SMTP)
    await database.execute(
        "UPDATE account SET secret = (SELECT secret FROM account WHERE key = 'one') WHERE key = 'two'"
    )
    found = await Catalog(database, SystemClock(), vault=Vault([OLD])).load_accounts(actor.project_id)
    assert [a.key for a in found[Channel.email]] == ["simulator-email", "one"], "the others go on"


# ---------------------------------------------------------------- the catalog


async def test_types_and_templates_as_the_road_reads_them(database: Database, actor: Actor) -> None:
    await make_type(
        database,
        actor,
        "{{ order.id }}",
        priority="high",
        steps=[{"send": ["email", "sms"]}],
        expires_after="2d",
        guarantee="at_most_once",
        schema={"required": ["order"]},
    )
    catalog = Catalog(database, SystemClock())
    project = actor.project_id
    assert catalog.peek_type(project, "hello") is None
    type_ = await catalog.load_type(project, "hello")
    assert type_ is not None
    assert catalog.peek_type(project, "hello") is type_
    assert (type_.priority, type_.program, type_.at_most_once) == (
        Priority.high,
        (Send((Channel.email, Channel.sms)),),
        True,
    )
    assert (type_.expires_after, type_.category, type_.required) == (timedelta(days=2), "general", False)
    assert [e.pointer for e in type_.check_data({})] == [""]
    template = await catalog.load_template(project, type_.template_key)
    assert template is not None
    assert catalog.peek_template(project, "hello") is template
    assert template.missing({"order": {}}) == ["order.id"]
    assert type_.covers(template) == 1 << Channel.sms
    assert await catalog.load_type_versions([(project, type_.id), (project, 999)]) == {type_.id: type_}
    assert await catalog.load_template_versions([(project, template.id)]) == {template.id: template}
    assert await catalog.load_type(project, "nope") is None
    assert await catalog.load_template(project, "nope") is None


async def test_versions_of_other_projects_are_not_found(database: Database, actor: Actor) -> None:
    await make_type(database, actor, "x")
    catalog = Catalog(database, SystemClock())
    type_ = await catalog.load_type(actor.project_id, "hello")
    template = await catalog.load_template(actor.project_id, "hello")
    assert type_ is not None
    assert template is not None
    assert await catalog.load_type_versions([(actor.project_id + 1, type_.id)]) == {}
    assert await catalog.load_template_versions([(actor.project_id + 1, template.id)]) == {}


async def test_a_look_up_is_shared_and_believed_for_a_while(database: Database, actor: Actor) -> None:
    await make_type(database, actor, "x")
    counting, clock = CountingDatabase(database), MovableClock()
    catalog = Catalog(counting, clock, ttl=timedelta(seconds=1))  # type: ignore[arg-type]  # has what the catalog asks
    project = actor.project_id
    found = await asyncio.gather(*(catalog.load_type(project, "hello") for _ in range(50)))
    assert counting.asked == 1
    assert len({id(version) for version in found}) == 1
    await asyncio.gather(*(catalog.load_type(project, "nope") for _ in range(50)))
    await catalog.load_type(project, "nope")
    assert counting.asked == 2, "what does not exist is remembered too"
    clock.passed = 1.1
    assert catalog.peek_type(project, "hello") is None
    assert await catalog.load_type(project, "hello") is found[0], "the version was not compiled again"
    assert counting.asked == 3
    ids = [(project, found[0].id if found[0] else 0)]
    await catalog.load_type_versions(ids)
    assert counting.asked == 3, "versions are kept for good"


async def test_a_hint_makes_it_look_again(database: Database, actor: Actor) -> None:
    await make_type(database, actor, "one")
    catalog = Catalog(database, SystemClock(), ttl=timedelta(hours=1))
    project = actor.project_id
    first = await catalog.load_template(project, "hello")
    await make_type(database, actor, "two", priority="low")
    await database.transaction(lambda conn: archive_type(conn, actor, "hello"))
    assert await catalog.load_template(project, "hello") is first
    catalog.on_hint("tidings_config", str(project))
    second = await catalog.load_template(project, "hello")
    assert first is not None
    assert second is not None
    assert (first.version, second.version) == (1, 2)
    assert await catalog.load_type(project, "hello") is None, "it is archived"
    catalog.on_hint("tidings_config", "")
    assert catalog.peek_template(project, "hello") is None


async def test_an_answer_from_before_the_change_is_not_kept(database: Database, actor: Actor) -> None:
    await make_type(database, actor, "one")
    counting = CountingDatabase(database)
    catalog = Catalog(counting, SystemClock(), ttl=timedelta(hours=1))  # type: ignore[arg-type]  # as above
    counting.may_answer.clear()
    asking = asyncio.create_task(catalog.load_template(actor.project_id, "hello"))
    while not counting.asked:
        await asyncio.sleep(0)
    catalog.forget(actor.project_id)
    counting.may_answer.set()
    assert await asking is not None
    assert catalog.peek_template(actor.project_id, "hello") is None


async def test_a_changed_configuration_is_told(database: Database, actor: Actor) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with database.acquire() as conn:
        await conn.add_listener("tidings_config", lambda *args: heard.put_nowait(args[3]))
        await make_type(database, actor, "x")
        assert await asyncio.wait_for(heard.get(), 5) == str(actor.project_id)
        await conn.reset(timeout=5)
