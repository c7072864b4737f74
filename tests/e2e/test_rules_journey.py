"""What users and support agents live through: they leave, come back, sleep, and somebody explains it to them.

The processes are real, and so is the mail server that the mails arrive at; the pages are read as plain HTTP.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from tests.e2e.faults.harness import Project, drained, make_project, open_system, until
from tests.e2e.pages.guests import FORM, ONE_CLICK
from tests.e2e.pages.test_pages import Form
from tidings.cli.terminal import Exit
from tidings.client import AsyncClient, Explanation, Notification
from tidings.db.pool import Database
from tidings.demo.catcher import Mail, MailCatcher

PUBLIC = "https://tidings.example.com"
ENDED = ("delivered", "sent", "failed", "skipped", "cancelled", "expired")


@dataclass
class Town:
    """Where it happens."""

    url: str
    client: AsyncClient
    browser: httpx.AsyncClient
    """Somebody who has no key."""
    catcher: MailCatcher
    database: Database
    project: Project
    home: Path

    async def tell(self, type_: str, n: int, user: str = "u0", **more: Any) -> str:
        sent = await self.client.send(type=type_, to={"user": user}, channels=["email"], data={"n": n}, **more)
        return sent.id

    async def ended(self, id_: str) -> Notification:
        """The notification, as soon as each of its deliveries has ended."""
        shown: list[Notification] = []

        async def over() -> bool:
            shown[:] = [await self.client.get(id_)]
            return bool(shown[0].deliveries) and all(d.status in ENDED for d in shown[0].deliveries)

        await until(over, 15, f"the end of {id_}")
        return shown[0]

    async def mail(self, n: int, to: str = "u0@example.com") -> Mail:
        """The mail of this number, as soon as it has come."""
        wanted = self.catcher.wait_for(lambda mail: mail.subject == f"Note {n}" and to in mail.recipients)
        return await asyncio.wait_for(wanted, 15)

    async def page(self, link: str) -> Form:
        """A preference page as a browser without JavaScript shows it."""
        path = link.removeprefix(PUBLIC)
        answer = await self.browser.get(path)
        assert answer.status_code == 200
        return Form(SimpleNamespace(api=SimpleNamespace(client=self.browser)), path, answer.text)

    async def command(self, *arguments: str) -> tuple[int, list[Any]]:
        """`tidings …` with --json: its exit status, and what it printed."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith("TIDINGS_")}
        running = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tidings", *arguments, "--json"),
            env={**mine, "TIDINGS_URL": self.url, "TIDINGS_API_KEY": self.project.token},
            cwd=self.home,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await asyncio.wait_for(running.communicate(), 30)
        finally:
            if running.returncode is None:
                running.kill()
                await running.wait()
        print(err.decode())
        assert running.returncode is not None
        return running.returncode, [json.loads(line) for line in out.splitlines()]


@pytest.fixture
async def town(database: Database, database_dsn: str, tmp_path: Path) -> AsyncIterator[Town]:
    """A worker, an API, a mail catcher; a type `note` that one can leave and `alarm` that one cannot."""
    async with AsyncExitStack() as stack:
        catcher = await stack.enter_async_context(MailCatcher(smtp_port=0, http_port=0))
        project = await make_project(database, smtp_port=catcher.smtp_port, users=3)
        system = await stack.enter_async_context(open_system(database_dsn, tmp_path, TIDINGS_PUBLIC_URL=PUBLIC))
        (_, url), _ = await asyncio.gather(system.api(), system.worker())
        client = await stack.enter_async_context(AsyncClient(url, project.token))
        browser = await stack.enter_async_context(httpx.AsyncClient(base_url=url, trust_env=False))
        await client.categories.put("safety", name="Safety", required=True)
        await client.types.put("alarm", category="safety", template="note", critical=True)
        yield Town(url, client, browser, catcher, database, project, tmp_path)


def texts(told: Explanation) -> str:
    """All that an explanation says in words."""
    return "\n".join([told.text, *(f"{c.text}\n" + "\n".join(r.text for r in c.rules) for c in told.channels)])


async def test_somebody_leaves_a_category_and_comes_back(town: Town) -> None:
    client = town.client
    before = await client.what_if({"type": "note", "to": {"user": "u0"}, "channels": ["email"], "data": {"n": 1}})
    assert [(c.channel, c.reason) for c in before.channels] == [("email", None)]
    assert not town.catcher.mails, "nothing is sent by asking"

    await town.tell("note", 1)
    mail = await town.mail(1)
    link = mail.header("List-Unsubscribe").strip("<>")
    assert link.startswith(f"{PUBLIC}/u/")
    assert mail.header("List-Unsubscribe-Post") == "List-Unsubscribe=One-Click"
    clicked = await town.browser.post(link.removeprefix(PUBLIC), content=ONE_CLICK, headers=FORM)
    assert clicked.status_code == 200

    barred = await town.ended(await town.tell("note", 2))
    assert [(d.status, d.reason) for d in barred.deliveries] == [("skipped", "opted_out")]
    told = await client.explain(barred.id)
    [channel] = told.channels
    [ruling] = [rule for rule in channel.rules if rule.rule == "preference"]
    assert (channel.outcome, channel.reason) == ("skipped", "opted_out")
    assert (ruling.answer, ruling.level, ruling.reason) == ("no", "user_category_channel", "opted_out")
    assert "the user switched the category `news` off for email" in texts(told)
    asked = await client.what_if({"type": "note", "to": {"user": "u0"}, "channels": ["email"], "data": {"n": 2}})
    assert [c.reason for c in asked.channels] == ["opted_out"]

    await town.tell("alarm", 3)
    alarm = await town.mail(3)
    assert alarm.header("List-Unsubscribe") == "", "what is required cannot be left"

    [consent] = [one async for one in client.users.consents("u0")]
    assert (consent.decision, consent.category, consent.channel) == ("out", "news", "email")
    assert (consent.source, consent.actor) == ("one_click", "user")

    form = await town.page((await client.users.create_preference_link("u0")).url)
    assert ("on", "email:news") not in form.fields
    form.tick("email:news")
    saved = await form.save()
    assert saved.status_code == 200
    assert 'role="status"' in saved.text
    await town.tell("note", 4)
    await town.mail(4)
    decisions = [(one.decision, one.source) async for one in client.users.consents("u0")]
    assert decisions == [("in", "page"), ("out", "one_click")]
    assert [mail.subject for mail in town.catcher.mails] == ["Note 1", "Note 3", "Note 4"]


async def test_somebody_sleeps_and_is_woken_by_alarms_only(town: Town) -> None:
    client = town.client
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    # Quiet from two hours ago until three hours from now, whichever part of the day that is.
    start, end = now - timedelta(hours=2), now + timedelta(hours=3)
    quiet = {"ranges": [{"start": f"{start:%H:%M}", "end": f"{end:%H:%M}"}]}
    await client.users.patch_preferences("u1", {"quiet_hours": quiet, "time_zone": "UTC"})
    note = {"type": "note", "to": {"user": "u1"}, "channels": ["email"], "data": {"n": 1}}
    asked = await client.what_if(note)
    assert (asked.reason, asked.until) == ("quiet_hours", end)

    held = await town.tell("note", 1, user="u1")

    async def waits() -> bool:
        return (await client.get(held)).reason is not None

    await until(waits, 15, "it is held")
    shown = await client.get(held)
    assert (shown.reason, shown.until) == ("quiet_hours", end)
    assert "held" in [entry.event for entry in shown.timeline]
    told = await client.explain(held)
    assert (told.reason, told.until) == ("quiet_hours", end)
    details = [ruling.detail or "" for once in told.passes for ruling in once.rulings]
    assert any(f"{start:%H:%M}\u2013{end:%H:%M}" in detail for detail in details), details

    await town.tell("alarm", 2, user="u1", priority="critical")
    await town.mail(2, "u1@example.com")
    await client.cancel(held)
    await drained(town.database)
    assert [mail.subject for mail in town.catcher.mails] == ["Note 2"]


async def test_an_event_a_file_of_users_and_a_broadcast_from_the_command_line(town: Town) -> None:
    client = town.client
    await client.event_rules.put(
        "orders",
        event={"type": "com.shop.order.*"},
        type="note",
        to={"user": "data.customer"},
        data={"n": "data.number"},
    )
    event = {
        "specversion": "1.0", "id": "e-1", "source": "/shop", "type": "com.shop.order.shipped",
        "data": {"customer": "u2", "number": 7},
    }  # fmt: skip
    [made] = (await client.events.send([event])).results
    [notification] = made.notifications
    assert notification.problem is None
    await town.mail(7, "u2@example.com")
    [again] = (await client.events.send([event])).results
    assert again.notifications[0].id == notification.id

    file = town.home / "users.csv"
    rows = ["id,email,locale,topics", "ada,ada@example.com,en,news/all", "bob,not an address,en,news/all",
            "cleo,cleo@example.com,de,news/all;staff", "dan,dan@example.com,en,news/all"]  # fmt: skip
    file.write_text("\n".join(rows) + "\n")
    status, [imported] = await town.command("import", str(file))
    assert status == Exit.refused, "some lines were refused"
    assert (imported["imported"], imported["failed"]) == (3, 1)
    [wrong] = imported["errors"]
    assert (wrong["line"], wrong["pointer"]) == (3, "/email")

    broadcast = ("broadcast", "send", "--type", "note", "--topic", "news/#", "--exclude-topic", "staff")
    status, [estimate] = await town.command(*broadcast, "--data", '{"n": 8}', "--dry-run")
    assert (status, estimate["count"], sorted(estimate["sample"])) == (0, 2, ["ada", "dan"])
    status, seen = await town.command(*broadcast, "--data", '{"n": 8}', "--watch")
    assert status == 0
    assert (seen[-1]["status"], seen[-1]["expanded"]) == ("done", 2)
    for name in ("ada", "dan"):
        await town.mail(8, f"{name}@example.com")
    status, watched = await town.command("broadcast", "watch", seen[-1]["id"])
    assert (status, watched) == (0, seen[-1:])
    await drained(town.database)
    told = sorted(mail.recipients for mail in town.catcher.mails if mail.subject == "Note 8")
    assert told == [("ada@example.com",), ("dan@example.com",)]
