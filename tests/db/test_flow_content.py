"""What a request says beyond its content, on the whole road: files over real SMTP, options, accounts by address."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default as modern
from ipaddress import ip_network
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.db.road import KEY, Road, Vendor, make_project
from tidings.db.pool import Connection, Database
from tidings.demo.catcher import MailCatcher
from tidings.directory.accounts import AccountPlan, put_account
from tidings.directory.audit import Actor
from tidings.directory.blobs import Shelf, put_blobs, to_blob, to_blob_id
from tidings.directory.credentials import Vault
from tidings.directory.templates import create_template_version, publish_template, put_template
from tidings.directory.types import parse_definition, put_type
from tidings.directory.users import put_user
from tidings.errors import IdempotencyMismatch, Invalid
from tidings.flow.accept import Accepted
from tidings.flow.send import Sender
from tidings.model.messages import Chat, Deferred, Email, Push, Rejected, Sms
from tidings.model.words import Channel, Priority, Reason, Status
from tidings.providers import registry
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport
from tidings.providers.port import Config, Provider, Surroundings

MAIL: dict[str, Any] = {"to": {"email": "ada@example.com"}, "content": {"subject": "Hi", "text": "Hello"}, "type": None}
LOGO = to_blob(b"\x89PNG logo")
PDF = b"%PDF-1.7 " + bytes(range(256)) * 40


@pytest.fixture
async def road(database: Database) -> Road:
    return Road(database, await database.transaction(make_project))


def use_vendors(road: Road, create: Callable[[str, Config, Surroundings], Provider]) -> None:
    """The road with other providers, and a lane for every channel."""
    guard = Guard([ip_network("127.0.0.0/8")])
    surroundings = Surroundings(http=AiohttpTransport(guard), guard=guard, clock=road.clock)
    road.sender = Sender(
        road.database,
        road.catalog,
        road.settler,
        surroundings,
        road.clock,
        timeout=timedelta(seconds=5),
        create=create,
    )
    road.lanes = {channel: road.new_lane(channel) for channel in Channel}


@pytest.fixture
async def catcher() -> AsyncIterator[MailCatcher]:
    async with MailCatcher(smtp_port=0, http_port=0) as catcher:
        yield catcher


async def put(road: Road, key: str, channel: str, provider: str, config: dict[str, Any], **more: Any) -> int:
    plan = AccountPlan(channel, provider, config, **more)

    async def work(conn: Connection) -> int:
        await put_account(conn, Actor(road.project_id, "system"), Vault([KEY]), key, plan)
        query = "SELECT id FROM account WHERE project_id = $1 AND key = $2"
        return int(await conn.fetchval(query, road.project_id, key))

    id_ = await road.database.transaction(work)
    road.catalog.forget(road.project_id)
    return id_


async def one(road: Road, channel: Channel, body: dict[str, Any]) -> Any:
    """Accept, plan and send one request; answers with its delivery."""
    id_ = await road.accept(**body)
    await road.plan()
    await road.send(channel)
    [delivery] = await road.deliveries(id_)
    return delivery


# ---------------------------------------------------------------- attachments


async def test_files_and_options_arrive_by_mail(road: Road, catcher: MailCatcher) -> None:
    use_vendors(road, registry.create)
    await put(
        road, "smtp", "email", "smtp",
        {"host": "127.0.0.1", "port": catcher.smtp_port, "security": "none", "from_address": "shop@example.com"},
    )  # fmt: skip
    await put_blobs(road.database, road.project_id, [LOGO])
    body = {
        **MAIL,
        "content": {"subject": "Rechnung", "text": "Anbei", "html": '<img src="cid:logo">'},
        "metadata": {"order": "A-1"},
        "options": {
            "email": {"cc": ["Bob <bob@example.com>"], "bcc": ["cleo@example.com"], "headers": {"X-Order": "A-1"}}
        },
        "attachments": [
            {"filename": "Rechnung März.pdf", "content_type": "application/pdf", "content": PDF},
            {"filename": "logo.png", "content_type": "image/png", "blob": to_blob_id(LOGO.hash), "content_id": "logo"},
        ],
    }
    delivery = await one(road, Channel.email, body)
    assert Status(delivery["status"]) is Status.sent, delivery["reason"]
    [mail] = catcher.mails
    parsed = message_from_bytes(mail.raw, policy=modern)
    assert isinstance(parsed, EmailMessage)
    assert (parsed["X-Order"], str(parsed["Cc"]), parsed["Bcc"]) == ("A-1", "Bob <bob@example.com>", None)
    files = {part.get_filename(): part for part in parsed.walk() if part.get_filename()}
    assert files["Rechnung März.pdf"].get_payload(decode=True) == PDF
    assert files["logo.png"].get_payload(decode=True) == LOGO.content
    assert files["logo.png"]["Content-ID"] == "<logo>"
    stored = await road.database.fetch("SELECT size FROM blob ORDER BY size")
    assert [row["size"] for row in stored] == [len(LOGO.content), len(PDF)]
    assert b"JVBERi" not in (await road.database.fetchval("SELECT options::text FROM notification")).encode()


async def test_the_same_file_for_many_is_stored_and_loaded_once(road: Road) -> None:
    file = {"filename": "a.pdf", "content_type": "application/pdf", "content": PDF}
    answers = await road.ask(*({**MAIL, "attachments": [file], "metadata": {"n": str(n)}} for n in range(20)))
    assert all(isinstance(answer, Accepted) for answer in answers)
    assert await road.count("blob") == 1
    await road.plan()
    assert await road.send() == 20
    assert len({id(m.content.attachments[0].content) for m in road.vendor.sent if isinstance(m.content, Email)}) == 1
    assert {m.metadata for m in road.vendor.sent} == {(("n", str(n)),) for n in range(20)}


async def test_more_than_there_is_room_for_goes_one_after_the_other(road: Road) -> None:
    road.sender._shelf = Shelf(road.database, room=5_000)
    files = [bytes([n]) * 4_000 for n in range(6)]
    for content in files:
        await road.accept(**MAIL, attachments=[{"filename": "a", "content_type": "a/b", "content": content}])
    await road.plan()
    assert await road.send() == 6
    sent = {m.content.attachments[0].content for m in road.vendor.sent if isinstance(m.content, Email)}
    assert sent == set(files)
    assert {Status(d["status"]) for d in await road.deliveries()} == {Status.sent}


async def test_a_retry_sends_the_files_again_and_a_lost_one_is_told(road: Road) -> None:
    road.vendor.answers = [Deferred(Reason.greylisted)]
    file = {"filename": "a.pdf", "content_type": "application/pdf", "content": PDF}
    id_ = await road.accept(**MAIL, attachments=[file])
    await road.plan()
    await road.send()
    await road.database.execute("UPDATE job SET due_at = $1", road.clock.now())
    await road.database.execute("DELETE FROM blob")
    await road.send()
    [delivery] = await road.deliveries(id_)
    assert (Status(delivery["status"]), delivery["reason"]) == (Status.failed, "render_failed")
    assert "not kept any more" in await road.database.fetchval("SELECT detail::text FROM event WHERE kind = 4")


async def test_a_cancelled_mail_loads_no_files(road: Road) -> None:
    file = {"filename": "a.pdf", "content_type": "application/pdf", "content": PDF}
    id_ = await road.accept(**MAIL, attachments=[file], expires_at=road.clock.now() + timedelta(minutes=1))
    await road.plan()
    road.clock.move(120)
    await road.send()
    [delivery] = await road.deliveries(id_)
    assert Status(delivery["status"]) is Status.expired
    assert road.vendor.sent == []


async def test_a_blob_of_another_project_is_unknown(road: Road, database: Database) -> None:
    other = Road(database, await database.transaction(lambda conn: make_project(conn, "q")))
    await put_blobs(database, other.project_id, [LOGO])
    file = {"filename": "a.png", "content_type": "image/png", "blob": to_blob_id(LOGO.hash)}
    [mine], [theirs] = await road.ask({**MAIL, "attachments": [file]}), await other.ask({**MAIL, "attachments": [file]})
    assert isinstance(mine, Invalid)
    assert [error.pointer for error in mine.errors] == ["/attachments/0/blob"]
    assert isinstance(theirs, Accepted)


async def test_a_repeated_request_with_files_is_the_same_one(road: Road) -> None:
    body = {**MAIL, "attachments": [{"filename": "a.pdf", "content_type": "application/pdf", "content": PDF}]}
    [first] = await road.ask(body, key="k")
    await road.database.execute("DELETE FROM blob")
    [again] = await road.ask(body, key="k")
    assert (again.id, again.idempotent_replayed) == (first.id, True)
    [changed] = await road.ask({**body, "attachments": []}, key="k")
    assert isinstance(changed, IdempotencyMismatch)


# ---------------------------------------------------------------- the other channels


def apns_config() -> dict[str, Any]:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return {"team_id": "ABCDE12345", "key_id": "ABCDE12345", "private_key": pem, "topic": "com.example.app"}


def webpush_config() -> dict[str, Any]:
    key = ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value.to_bytes(32, "big")
    text = base64.urlsafe_b64encode(key).rstrip(b"=").decode()
    return {"private_key": text, "subject": "mailto:a@example.com"}


class Vendors:
    """One vendor of the tests' for each provider that is asked for."""

    def __init__(self) -> None:
        self.by_name: dict[str, Vendor] = {}

    def create(self, name: str, config: Config, surroundings: Surroundings) -> Provider:
        return cast(Provider, self.by_name.setdefault(name, Vendor()))  # as in road.py

    def sent_by(self, name: str) -> list[str]:
        return [message.to for message in self.by_name[name].sent] if name in self.by_name else []


APPLE, SLACK = "apns:" + "ab" * 32, "slack:default"


async def test_a_text_message_takes_its_options(road: Road) -> None:
    vendors = Vendors()
    use_vendors(road, vendors.create)
    await put(road, "texts", "sms", "simulator", {})
    body = {
        "to": {"phone": "+436641234567"}, "content": {"text": "Hi"}, "type": None,
        "options": {"sms": {"media": ["https://example.com/a.png"], "sender": "Shop"}},
    }  # fmt: skip
    await one(road, Channel.sms, body)
    [message] = vendors.by_name["simulator"].sent
    assert message.content == Sms("Hi", ("https://example.com/a.png",), "Shop")


async def test_push_and_chat_go_the_whole_road(road: Road) -> None:
    vendors = Vendors()
    use_vendors(road, vendors.create)
    await put(road, "apple", "push", "apns", apns_config())
    await put(road, "team", "chat", "slack", {"webhook_url": "https://hooks.slack.com/services/T0/B0/x"})
    push = {"to": {"push": APPLE.upper()}, "content": {"title": "Hi", "data": {"a": "b"}}, "type": None}
    delivery = await one(road, Channel.push, {**push, "priority": "high"})
    assert (Status(delivery["status"]), delivery["address"]) == (Status.sent, APPLE)
    [message] = vendors.by_name["apns"].sent
    assert message.content == Push("Hi", data=(("a", "b"),))
    assert message.priority is Priority.high
    delivery = await one(road, Channel.chat, {"to": {"chat": SLACK}, "content": {"text": "Hi"}, "type": None})
    assert Status(delivery["status"]) is Status.sent
    [message] = vendors.by_name["slack"].sent
    assert message.content == Chat("Hi")


@pytest.mark.parametrize(
    ("outcome", "status"), [("deliver", Status.delivered), ("bounce", Status.failed), ("fail", Status.failed)]
)
@pytest.mark.parametrize("channel", [Channel.push, Channel.chat])
async def test_simulated_devices_and_rooms(road: Road, channel: Channel, outcome: str, status: Status) -> None:
    use_vendors(road, registry.create)
    content = {"title": "Hi", "text": "Hi"} if channel is Channel.chat else {"title": "Hi"}
    body = {"to": {channel.name: f"simulator:{outcome}"}, "content": content, "type": None}
    assert Status((await one(road, channel, body))["status"]) is status


async def test_every_device_of_a_user_gets_it_from_its_vendor(road: Road) -> None:
    vendors = Vendors()
    use_vendors(road, vendors.create)
    await put(road, "apple", "push", "apns", apns_config())
    await put(road, "anything", "push", "simulator", {}, weight=1)
    devices = [APPLE, "apns:" + "cd" * 32, "fcm:abc"]
    await road.database.transaction(
        lambda conn: put_user(conn, Actor(road.project_id, "system"), "ada", addresses={Channel.push: devices})
    )
    await give_push_content(road)
    id_ = await road.accept(channels=["push"], type="everything")
    await road.plan()
    await road.send(Channel.push)
    deliveries = await road.deliveries(id_)
    assert sorted(d["address"] for d in deliveries) == sorted(devices)
    assert {Status(d["status"]) for d in deliveries} == {Status.sent}
    assert set(vendors.sent_by("apns")) <= {d for d in devices if d.startswith("apns:")}
    assert "fcm:abc" in vendors.sent_by("simulator")


async def test_a_device_whose_vendor_has_no_account_is_skipped(road: Road) -> None:
    use_vendors(road, Vendors().create)
    await put(road, "apple", "push", "apns", apns_config())
    delivery = await one(road, Channel.push, {"to": {"push": "fcm:abc"}, "content": {"title": "Hi"}, "type": None})
    assert (Status(delivery["status"]), delivery["reason"]) == (Status.skipped, "no_account")


async def test_what_was_claimed_for_another_vendors_account_goes_to_its_own(road: Road) -> None:
    """A replay, or a retry whose account was removed, is claimed for any account of the channel."""
    vendors = Vendors()
    use_vendors(road, vendors.create)
    apple = await put(road, "apple", "push", "apns", apns_config())
    wrong = await put(road, "web", "push", "webpush", webpush_config())
    id_ = await road.accept(to={"push": APPLE}, content={"title": "Hi"}, type=None)
    await road.plan()
    assert await road.database.fetchval("SELECT account_id FROM job") == apple
    await road.database.execute("UPDATE job SET account_id = $1", wrong)
    await road.send(Channel.push)
    job = await road.database.fetchrow("SELECT account_id, attempt FROM job")
    assert job is not None
    assert (job["account_id"], job["attempt"]) == (apple, 0)
    assert await road.count("event") == 0
    await road.send(Channel.push)
    [delivery] = await road.deliveries(id_)
    assert (Status(delivery["status"]), delivery["attempts"]) == (Status.sent, 1)
    assert vendors.sent_by("webpush") == []


async def test_a_retry_stays_with_the_devices_vendor(road: Road) -> None:
    vendors = Vendors()
    use_vendors(road, vendors.create)
    apple = await put(road, "apple", "push", "apns", apns_config())
    await put(road, "web", "push", "webpush", webpush_config())
    vendors.by_name["apns"] = vendor = Vendor()
    vendor.answers = [Deferred(Reason.provider_error)]
    await one(road, Channel.push, {"to": {"push": APPLE}, "content": {"title": "Hi"}, "type": None})
    assert await road.database.fetchval("SELECT account_id FROM job") == apple


async def test_a_dead_device_is_dropped_and_the_others_stay(road: Road) -> None:
    vendors = Vendors()
    use_vendors(road, vendors.create)
    await put(road, "apple", "push", "apns", apns_config())
    vendors.by_name["apns"] = vendor = Vendor()
    vendor.answers = [Rejected(Reason.gone)]
    devices = [APPLE, "apns:" + "cd" * 32]
    actor = Actor(road.project_id, "system")
    await road.database.transaction(lambda conn: put_user(conn, actor, "ada", addresses={Channel.push: devices}))
    await give_push_content(road)
    await road.accept(channels=["push"], type="everything")
    await road.plan()
    await road.send(Channel.push)
    left = await road.database.fetch("SELECT value FROM address WHERE user_id = 'ada' AND dropped_at IS NULL")
    assert len(left) == 1


async def give_push_content(road: Road) -> None:
    """A type with a template for push."""
    actor = Actor(road.project_id, "system")
    content = {
        "default_locale": "en",
        "channels": {"push": {"en": {"title": "Hi", "data": '{"user": {{ user.id }} }'}}},
    }

    async def work(conn: Connection) -> None:
        await put_template(conn, actor, "everything")
        version = await create_template_version(conn, actor, "everything", content)
        await publish_template(conn, actor, "everything", version.version)
        raw = {"category": "general", "template": "everything", "steps": [{"send": ["push"]}]}
        await put_type(conn, actor, "everything", parse_definition("everything", raw, timedelta(days=30)))

    await road.database.transaction(work)
    road.catalog.forget(road.project_id)
