"""The demo's first half: project and key, made in the database and found again."""

from __future__ import annotations

import asyncio
import base64
import stat
from pathlib import Path

import httpx
from pydantic import SecretStr

from tidings.app import open_api, open_core
from tidings.client import AsyncClient
from tidings.clock import SystemClock
from tidings.db.pool import Database
from tidings.demo.keeping import FILE_NAME, load_demo_secrets, save_demo_secrets
from tidings.demo.seed import TOLD, USERS, bootstrap_demo, seed_demo
from tidings.directory.access import Access, list_keys
from tidings.directory.projects import load_project_by_key
from tidings.model.words import Scope
from tidings.settings import Settings

URL = "http://127.0.0.1:8000"


async def test_project_and_key_are_made_once(database: Database, tmp_path: Path) -> None:
    clock = SystemClock()
    first = await bootstrap_demo(database, clock, data_dir=tmp_path, api_url=URL)
    again = await bootstrap_demo(database, clock, data_dir=tmp_path, api_url=URL)
    assert again == first == load_demo_secrets(tmp_path)
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600
    caller = await Access(database, clock).authenticate(f"Bearer {first.api_key}")
    assert caller.project_key == "demo"
    assert caller.scopes == frozenset(Scope)
    assert len(await list_keys(database, caller.project_id)) == 1
    assert first.webhook_secret.startswith("whsec_")


async def test_another_port_is_noted(database: Database, tmp_path: Path) -> None:
    clock = SystemClock()
    first = await bootstrap_demo(database, clock, data_dir=tmp_path, api_url=URL)
    moved = await bootstrap_demo(database, clock, data_dir=tmp_path, api_url="http://127.0.0.1:9000")
    assert (moved.api_key, moved.webhook_secret) == (first.api_key, first.webhook_secret)
    assert load_demo_secrets(tmp_path) == moved


async def test_a_lost_or_foreign_key_is_replaced(database: Database, tmp_path: Path) -> None:
    clock = SystemClock()
    first = await bootstrap_demo(database, clock, data_dir=tmp_path, api_url=URL)
    (tmp_path / FILE_NAME).unlink()
    second = await bootstrap_demo(database, clock, data_dir=tmp_path, api_url=URL)
    assert second.api_key != first.api_key
    save_demo_secrets(tmp_path, type(second)(api_key="tdg_demo_nonsense", webhook_secret="whsec_eA==", api_url=URL))
    third = await bootstrap_demo(database, clock, data_dir=tmp_path, api_url=URL)
    assert (await Access(database, clock).authenticate(f"Bearer {third.api_key}")).project_key == "demo"
    project = await load_project_by_key(database, "demo")
    assert project is not None
    assert len(await list_keys(database, project.id)) == 3


async def test_two_starts_at_once_make_one_project(database: Database, tmp_path: Path) -> None:
    clock = SystemClock()
    made = await asyncio.gather(
        *(bootstrap_demo(database, clock, data_dir=tmp_path / str(n), api_url=URL) for n in range(4))
    )
    assert all(secrets.api_key.startswith("tdg_demo_") for secrets in made)
    for secrets in made:
        assert (await Access(database, clock).authenticate(f"Bearer {secrets.api_key}")).project_key == "demo"


async def test_the_seed_fills_the_project_and_may_be_repeated(database: Database, tmp_path: Path) -> None:
    settings = Settings(secret_key=SecretStr(base64.b64encode(bytes(32)).decode()))
    async with open_core(settings, database.dsn, name="test", pool=4) as core, open_api(core) as api:
        kept = await bootstrap_demo(database, core.clock, data_dir=tmp_path, api_url=URL)
        async with AsyncClient(URL, kept.api_key, transport=httpx.ASGITransport(api)) as client:
            await seed_demo(client, smtp_port=2525, webhook_secret=kept.webhook_secret)
            await client.users.put("ada", locale="fr")
            made = await client.templates.create_version(
                "welcome", (await client.templates.get_version("welcome", 1)).content
            )
            await client.templates.publish("welcome", made.version)
            await seed_demo(client, smtp_port=2526, webhook_secret=kept.webhook_secret)

            assert {user.id async for user in client.users.list()} == set(USERS)
            assert (await client.users.get("ada")).locale == "fr"  # what somebody changed stays
            assert (await client.templates.get("welcome")).published_version == 2
            assert {category.key async for category in client.categories.list()} >= {"orders", "account", "news"}
            catcher = await client.accounts.get("catcher")
            assert catcher.config["port"] == 2526
            data = {"product": "P", "url": "https://example.com/", "order": "A-1"}
            for told in TOLD:
                assert (await client.types.get(told.key)).version == 1
                preview = await client.templates.preview(told.key, channel="email", locale="de", data=data)
                assert preview.locale == "de"
                assert "Hallo" in preview.fields["html"]
                accepted = await client.send(type=told.key, to={"user": "grace"}, data=data)
                assert accepted.status == "queued"
            shown = repr([account async for account in client.accounts.list()])
            assert kept.webhook_secret not in shown
