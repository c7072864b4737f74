"""The way out, on the whole road: what mails carry for it, and what comes of it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default as modern
from ipaddress import ip_network
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.db.road import KEY, Road, make_project
from tidings.db.pool import Connection, Database
from tidings.demo.catcher import MailCatcher
from tidings.directory.accounts import AccountPlan, put_account
from tidings.directory.audit import Actor
from tidings.directory.categories import put_category
from tidings.directory.consent import Origin
from tidings.directory.credentials import Vault
from tidings.directory.preferences import load_choices
from tidings.directory.templates import create_template_version, publish_template, put_template
from tidings.directory.types import parse_definition, put_type
from tidings.flow.receipts import Receiver
from tidings.flow.send import Sender
from tidings.flow.tracking import Signer, Tracker
from tidings.flow.unsubscribe import Left, unsubscribe
from tidings.model.words import Channel, Engagement, Status
from tidings.providers import registry
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport
from tidings.providers.port import Surroundings

BASE = "https://tidings.example.com"
CONTENT = {
    "default_locale": "en",
    "channels": {
        "email": {"en": {"subject": "News", "text": "Out: {{ links.unsubscribe }} Choose: {{ links.preferences }} End"}}
    },
}


@pytest.fixture
async def catcher() -> AsyncIterator[MailCatcher]:
    async with MailCatcher(smtp_port=0, http_port=0) as catcher:
        yield catcher


@pytest.fixture
async def road(database: Database, catcher: MailCatcher) -> Road:
    """A road whose mails say how to get out, signed by DKIM, with a type in a required category besides."""
    key = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    config = {
        "host": "127.0.0.1", "port": catcher.smtp_port, "security": "none", "from_address": "shop@example.com",
        "dkim_domain": "example.com", "dkim_selector": "s1", "dkim_private_key": key.decode(),
    }  # fmt: skip

    async def prepare(conn: Connection) -> int:
        project_id = await make_project(conn)
        actor = Actor(project_id, "system")
        await put_account(conn, actor, Vault([KEY]), "smtp", AccountPlan("email", "smtp", config))
        await put_category(conn, actor, "security", name="Security", required=True)
        await put_template(conn, actor, "news")
        version = await create_template_version(conn, actor, "news", CONTENT)
        await publish_template(conn, actor, "news", version.version)
        for name, category in (("news", "general"), ("alarm", "security")):
            raw = {"category": category, "template": "news"}
            await put_type(conn, actor, name, parse_definition(name, raw, timedelta(days=30)))
        return project_id

    road = Road(database, await database.transaction(prepare))
    guard = Guard([ip_network("127.0.0.0/8")])
    road.sender = Sender(
        road.database,
        road.catalog,
        road.settler,
        Surroundings(http=AiohttpTransport(guard), guard=guard, clock=road.clock),
        road.clock,
        timeout=timedelta(seconds=5),
        tracker=Tracker(Vault([KEY]), BASE),
        create=registry.create,
    )
    road.lanes = {Channel.email: road.new_lane(Channel.email)}
    return road


async def mail(road: Road, catcher: MailCatcher, **body: Any) -> tuple[Any, EmailMessage]:
    """A delivery that was sent, and its mail as it arrived."""
    id_ = await road.accept(**body)
    await road.plan()
    await road.send()
    [delivery] = await road.deliveries(id_)
    assert Status(delivery["status"]) is Status.sent, delivery["reason"]
    parsed = message_from_bytes(catcher.mails[-1].raw, policy=modern)
    assert isinstance(parsed, EmailMessage)
    return delivery, parsed


def link_of(parsed: EmailMessage) -> str:
    found = re.fullmatch(r"<([^<>\s]+)>", str(parsed["List-Unsubscribe"]))
    assert found is not None
    return found[1]


async def click(road: Road, url: str) -> Left:
    """What a mail program's one click does."""
    signer = Signer(Vault([KEY]))
    guest = signer.recognise(urlsplit(url).path.removeprefix("/u/"), "u", road.clock.now())
    assert guest is not None
    receiver = Receiver(road.database, road.meter, road.clock)
    left = await unsubscribe(road.database, receiver, road.clock, guest, Origin("user", "one_click"))
    await receiver.drain()
    return left


async def test_a_mail_says_how_to_get_out_under_its_signature(road: Road, catcher: MailCatcher) -> None:
    _, parsed = await mail(road, catcher, type="news")
    url = link_of(parsed)
    assert url.startswith(f"{BASE}/u/")
    assert parsed["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    text = parsed.get_content()
    assert f"Out: {url} Choose: {BASE}/p/" in text
    signed = re.search(r"\bh=([^;]+);", re.sub(r"\s", "", str(parsed["DKIM-Signature"])))
    assert signed is not None
    assert {"list-unsubscribe", "list-unsubscribe-post"} <= set(signed[1].lower().split(":")), "RFC 8058, section 4"


@pytest.mark.parametrize(
    "body",
    [
        {"type": "alarm"},
        {"type": None, "to": {"email": "ada@example.com"}, "content": {"subject": "s", "text": "t"}},
        {"type": "news", "options": {"email": {"headers": {"List-Unsubscribe": "<mailto:off@example.com>"}}}},
    ],
    ids=["required category", "no type", "a field of the request's own"],
)
async def test_nothing_is_promised_that_does_not_hold(road: Road, catcher: MailCatcher, body: dict[str, Any]) -> None:
    _, parsed = await mail(road, catcher, **body)
    assert parsed["List-Unsubscribe-Post"] is None
    assert parsed["List-Unsubscribe"] in (None, "<mailto:off@example.com>")


async def test_one_click_of_a_user_is_a_preference_with_a_consent(road: Road, catcher: MailCatcher) -> None:
    delivery, parsed = await mail(road, catcher, type="news")
    for _ in range(2):
        assert await click(road, link_of(parsed)) is Left.yes
    said = (await load_choices(road.database, road.project_id, "ada")).preferences
    assert said.categories["general"].channels == {"email": False}
    [left] = await road.deliveries(delivery["notification_id"])
    assert left["engagement"] == Engagement.unsubscribed
    assert await road.count("suppression") == 0
    assert await road.count("consent") == 1


async def test_one_click_of_an_address_keeps_that_category_away(road: Road, catcher: MailCatcher) -> None:
    to = {"to": {"email": "eve@example.com"}, "type": "news"}
    _, parsed = await mail(road, catcher, **to)
    assert await click(road, link_of(parsed)) is Left.yes
    id_ = await road.accept(**to)
    await road.plan()
    [delivery] = await road.deliveries(id_)
    assert (Status(delivery["status"]), delivery["reason"]) == (Status.skipped, "suppressed")
    await mail(road, catcher, to={"email": "eve@example.com"}, type="alarm")


async def test_one_click_works_when_the_message_is_long_gone(road: Road, catcher: MailCatcher) -> None:
    _, parsed = await mail(road, catcher, type="news")
    await road.database.execute("DELETE FROM delivery")
    await road.database.execute("DELETE FROM notification")
    assert await click(road, link_of(parsed)) is Left.yes
    said = (await load_choices(road.database, road.project_id, "ada")).preferences
    assert said.categories["general"].channels == {"email": False}


async def test_one_click_of_a_category_that_became_required_changes_nothing(road: Road, catcher: MailCatcher) -> None:
    _, parsed = await mail(road, catcher, type="news")
    actor = Actor(road.project_id, "system")
    await road.database.transaction(lambda conn: put_category(conn, actor, "general", name="General", required=True))
    assert await click(road, link_of(parsed)) is Left.required
    assert await road.count("consent") == 0
