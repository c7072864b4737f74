"""Reports come in, links lead on, suppressions are managed; by HTTP, as vendors, devices and applications do it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest

from tidings import ids
from tidings.directory.accounts import to_callback_path
from tidings.engine.wakes import Wakes
from tidings.flow.accept import Acceptor
from tidings.flow.inbound import HelpDesk, InboundRecorder
from tidings.flow.measure import Meter
from tidings.flow.tracking import Token
from tidings.model.words import Channel, EventKind, Scope, Status
from tidings.providers.port import Inbound
from tidings.web.server import serve

FIREFOX = {"user-agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"}
POSTMARK = {
    "channel": "email",
    "provider": "postmark",
    "config": {"server_token": "11111111-2222-3333-4444-555555555555", "from_address": "shop@example.com"},
}


async def sent(tenant: Any, account: str | None = None) -> UUID:
    """A delivery that was sent with this account an hour ago, as the road would have left it."""
    database, clock = tenant.api.deps.database, tenant.api.clock
    at = clock.now() - timedelta(hours=1)
    rng = random.Random(7)
    notification = ids.new_id(at, rng)
    delivery = ids.child_id(notification, rng)
    await database.execute(
        "INSERT INTO notification (id, project_id, to_channel, to_address, priority, created_at)"
        " VALUES ($1, $2, 1, 'ada@example.com', 2, $3)",
        notification, tenant.project_id, at,
    )  # fmt: skip
    await database.execute(
        "INSERT INTO delivery (id, project_id, notification_id, channel, status, address, account_id, attempts,"
        " created_at, sent_at) VALUES ($1, $2, $3, 1, 2, 'ada@example.com',"
        " (SELECT id FROM account WHERE project_id = $2 AND key = $4), 1, $5, $5)",
        delivery, tenant.project_id, notification, account, at,
    )  # fmt: skip
    return delivery


async def look(tenant: Any, delivery: UUID) -> Any:
    return await tenant.api.deps.database.fetchrow("SELECT * FROM delivery WHERE id = $1", delivery)


async def test_a_click_is_recorded_and_leads_on(api: Any) -> None:
    tenant = await api.new_project()
    delivery = await sent(tenant)
    url = "https://shop.example.com/orders/1?a=b&c=ü"
    token = api.deps.signer.sign(Token(EventKind.clicked, tenant.project_id, delivery, url))
    answer = await api.client.get(f"/c/{token}", headers=FIREFOX)
    assert answer.status_code == 302
    assert answer.headers["location"] == "https://shop.example.com/orders/1?a=b&c=%C3%BC"
    assert "no-store" in answer.headers["cache-control"]
    assert (await look(tenant, delivery))["engagement"] == 4
    await api.client.get(f"/c/{token}", headers=FIREFOX)
    row = await api.deps.database.fetchrow("SELECT count(*) AS n, max(detail::text) AS detail FROM event")
    assert row is not None
    assert row["n"] == 1
    assert json.loads(row["detail"])["url"] == url


async def test_a_pixel_is_a_picture_whoever_asks_and_counts_people_only(api: Any) -> None:
    tenant = await api.new_project()
    delivery = await sent(tenant)
    token = api.deps.signer.sign(Token(EventKind.opened, tenant.project_id, delivery))
    for path, method, headers, engagement, machine in (
        ("/o/nonsense", "GET", FIREFOX, 0, 0),
        (f"/o/{token[:-2]}AA", "GET", FIREFOX, 0, 0),
        (f"/o/{token}", "HEAD", FIREFOX, 0, 2),
        (f"/o/{token}", "GET", {"user-agent": "Mozilla/5.0"}, 0, 2),
        (f"/o/{token}.gif", "GET", FIREFOX, 2, 2),
    ):
        answer = await api.client.request(method, path, headers=headers)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/gif")
        row = await look(tenant, delivery)
        assert (row["engagement"], row["machine_engagement"]) == (engagement, machine)


async def test_links_that_are_not_ours_lead_nowhere(api: Any) -> None:
    tenant = await api.new_project()
    delivery = await sent(tenant)
    bad = api.deps.signer.sign(Token(EventKind.clicked, tenant.project_id, delivery, "javascript:alert(1)"))
    for token in ("https://evil.example/", "x", bad, "ü"):
        answer = await api.client.get(f"/c/{token}", headers=FIREFOX)
        assert answer.status_code == 404
        assert "location" not in answer.headers


async def test_links_outlive_their_message(api: Any) -> None:
    tenant = await api.new_project()
    gone = ids.child_id(ids.new_id(api.clock.now(), random.Random(1)), random.Random(2))
    token = api.deps.signer.sign(Token(EventKind.clicked, tenant.project_id, gone, "https://example.com/"))
    answer = await api.client.get(f"/c/{token}", headers=FIREFOX)
    assert (answer.status_code, answer.headers["location"]) == (302, "https://example.com/")


async def test_a_device_reports_what_became_of_a_push_message(api: Any) -> None:
    tenant = await api.new_project()
    delivery = await sent(tenant)
    token = api.deps.signer.sign(Token(EventKind.delivered, tenant.project_id, delivery))
    for said, status in (({"event": "delivered"}, 204), ({"event": "opened"}, 204), ({"event": "eaten"}, 422)):
        answer = await api.client.post(f"/r/{token}", json=said)
        assert answer.status_code == status, answer.text
    assert (await api.client.post(f"/r/{token}", content=b"{")).status_code == 400
    assert (await api.client.post("/r/nonsense", json={"event": "opened"})).status_code == 404
    row = await look(tenant, delivery)
    assert (row["status"], row["engagement"]) == (Status.delivered, 2)


# ---------------------------------------------------------------- callbacks


async def postmark(tenant: Any, key: str = "post") -> str:
    """An account of a vendor that signs nothing; answers with its callback's path."""
    assert (await tenant.put(f"/api/v1/accounts/{key}", POSTMARK)).status_code == 201
    id_ = await tenant.api.deps.database.fetchval(
        "SELECT id FROM account WHERE project_id = $1 AND key = $2", tenant.project_id, key
    )
    path = to_callback_path(tenant.api.deps.vault, tenant.project_id, tenant.project_key, "postmark", key, id_)
    assert path is not None
    return path


def delivered(delivery: UUID) -> dict[str, Any]:
    return {
        "RecordType": "Delivery", "MessageID": "883953f4-6105-42a2-a16a-77a8eac79483",
        "Recipient": "ada@example.com", "DeliveredAt": "2026-11-22T10:00:00Z", "Details": "250 ok",
        "Metadata": {"tidings_delivery": ids.to_public(ids.DELIVERY, delivery)},
    }  # fmt: skip


async def test_a_vendors_report_reaches_the_timeline(api: Any) -> None:
    tenant = await api.new_project()
    path = await postmark(tenant)
    delivery = await sent(tenant, "post")
    for _ in range(2):
        answer = await api.client.post(path, json=delivered(delivery))
        assert answer.status_code == 200, answer.text
    row = await look(tenant, delivery)
    assert row["status"] == Status.delivered
    view = (await tenant.get(f"/api/v1/notifications/{ids.to_public('ntf', row['notification_id'])}")).json()
    [event] = [moment for moment in view["timeline"] if moment["event"] == "delivered"]
    assert event["provider"] == "postmark"
    assert event["detail"]["receipt"]["Details"] == "250 ok"


async def test_only_the_account_that_sent_it_may_report_it(api: Any) -> None:
    tenant, other = await api.new_project(), await api.new_project()
    delivery = await sent(tenant, "none")
    paths = [await postmark(tenant), await postmark(other)]
    for path in paths:
        answer = await api.client.post(path, json=delivered(delivery))
        assert answer.status_code == 200, "a vendor is not told what we have"
    assert (await look(tenant, delivery))["status"] == Status.sent


async def test_addresses_that_do_not_exist_say_nothing_of_those_that_do(api: Any) -> None:
    tenant = await api.new_project()
    path = await postmark(tenant)
    base, _, secret = path.rpartition("/")
    answers = [
        await api.client.post(wrong, json={})
        for wrong in (
            base,
            f"{base}/{'A' * len(secret)}",
            path.replace("/post/", "/other/"),
            path.replace("/postmark/", "/smtp/"),
            path.replace("/postmark/", "/inbox/"),
            path.replace(tenant.project_key, "nobody"),
        )
    ]
    assert [a.status_code for a in answers] == [404] * 6
    assert len({a.json()["detail"] for a in answers}) == 1


async def test_a_body_for_no_address_is_not_read(api: Any) -> None:
    tenant = await api.new_project()
    path = await postmark(tenant)
    base, _, secret = path.rpartition("/")
    read: list[str] = []

    async def body(asked: str) -> AsyncIterator[bytes]:
        read.append(asked)
        yield b"{}"

    wrong = [base, f"{base}/{'A' * len(secret)}", path.replace("/post/", "/other/"), "/callbacks/what"]
    # Twice: what was asked for a moment ago is remembered.
    assert [(await api.client.post(asked, content=body(asked))).status_code for asked in wrong * 2] == [404] * 8
    assert read == []
    assert (await api.client.post(path, content=body(path))).status_code == 400
    assert read == [path]


async def test_who_knows_no_address_hears_so_without_sending_a_body(api: Any) -> None:
    tenant = await api.new_project()
    head = f"POST /callbacks/{tenant.project_key}/postmark/none HTTP/1.1\r\nhost: a\r\ncontent-length: 2000000\r\n\r\n"
    async with serve(api.front, "127.0.0.1", 0, timedelta(seconds=1)) as url, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(head.encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 404 ")
        writer.close()
        await writer.wait_closed()


async def test_what_a_vendor_cannot_mean_is_refused_and_survived(api: Any) -> None:
    tenant = await api.new_project()
    path = await postmark(tenant)
    for body in (b"", b"\xff\xfe", b"[[[", b"null", b'{"RecordType": 7}', b"x" * 100_000):
        assert (await api.client.post(path, content=body)).status_code in (200, 400)
    assert (await api.client.post(path, content=b"x" * 9_000_000)).status_code == 413


async def test_the_address_is_told_to_who_may_manage_and_nobody_else(api: Any) -> None:
    tenant = await api.new_project()
    path = await postmark(tenant)
    object.__setattr__(api.deps, "public_url", "https://tidings.example.com/")
    reader = await tenant.with_scopes(Scope.read)
    assert (await tenant.get("/api/v1/accounts/post")).json()["callback_url"] == f"https://tidings.example.com{path}"
    assert (await reader.get("/api/v1/accounts/post")).json()["callback_url"] is None
    test = await tenant.with_scopes(*Scope, test=True)  # who knows it could report what they please of live messages
    assert (await test.get("/api/v1/accounts/post")).json()["callback_url"] is None
    assert all(a["callback_url"] is None for a in (await reader.get("/api/v1/accounts")).json()["items"])


# ---------------------------------------------------------------- suppressions and settings


async def test_suppressions_are_made_found_and_lifted(api: Any) -> None:
    tenant, other = await api.new_project(), await api.new_project()
    body = {"channel": "email", "address": "Ada@EXAMPLE.com", "note": "asked by phone"}
    made = await tenant.put("/api/v1/suppressions", body)
    assert made.status_code == 201, made.text
    assert made.json()["address"] == "Ada@example.com"
    assert (await tenant.put("/api/v1/suppressions", body)).status_code == 200
    for stream in ("news", "sender:+15550001"):
        await tenant.put("/api/v1/suppressions", {**body, "stream": stream})
    seen: list[str] = []
    cursor = None
    while True:
        page = (
            await tenant.get("/api/v1/suppressions", params={"limit": 2, **({"cursor": cursor} if cursor else {})})
        ).json()
        seen += [item["stream"] for item in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert sorted(seen) == ["", "news", "sender:+15550001"]
    found = await tenant.get(
        "/api/v1/suppressions", params={"channel": "email", "address": "Ada@EXAMPLE.COM", "stream": "news"}
    )
    assert [item["reason"] for item in found.json()["items"]] == ["manual"]
    assert (await other.get("/api/v1/suppressions")).json()["items"] == []
    lift = {"channel": "email", "address": "Ada@example.com", "stream": "news"}
    answers = [await asked.post("/api/v1/suppressions/lift", lift) for asked in (other, tenant, tenant)]
    assert [answer.json() for answer in answers] == [{"lifted": False}, {"lifted": True}, {"lifted": False}]
    actions = [a["action"] for a in (await tenant.get("/api/v1/audit")).json()["items"]]
    assert actions.count("suppression.put") == 3
    assert actions.count("suppression.delete") == 1


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"channel": "pigeon", "address": "a"}, "/channel"),
        ({"channel": "sms", "address": "0151"}, "/address"),
        ({"channel": "email", "address": ""}, "/address"),
        ({"channel": "email", "address": "a@example.com", "stream": "a\nb"}, "/stream"),
    ],
)
async def test_what_cannot_be_suppressed_is_said(api: Any, body: dict[str, str], pointer: str) -> None:
    tenant = await api.new_project()
    answer = await tenant.put("/api/v1/suppressions", body)
    assert answer.status_code == 422
    assert [e["pointer"] for e in answer.json()["errors"]] == [pointer]


async def test_a_test_key_changes_nothing_that_live_messages_meet(api: Any) -> None:
    tenant = await (await api.new_project()).with_scopes(*Scope, test=True)
    body = {"channel": "email", "address": "ada@example.com"}
    assert (await tenant.put("/api/v1/suppressions", body)).status_code == 403
    assert (await tenant.post("/api/v1/suppressions/lift", body)).status_code == 403
    assert (await tenant.put("/api/v1/project/settings", {})).status_code == 403


async def test_help_is_answered_in_the_projects_words_once(api: Any) -> None:
    tenant = await api.new_project()
    meter = Meter(api.deps.database, api.clock)
    acceptor = Acceptor(api.deps.database, api.deps.catalog, meter, api.clock, Wakes())
    desk = HelpDesk(acceptor, api.deps.catalog)
    inbound = InboundRecorder(api.deps.database, api.clock, answer_help=desk.answer)
    help_ = Inbound("+4915112345678", "+15550001", "HELP", "in-1", keyword="help")
    await inbound.record(tenant.project_id, 1, Channel.sms, [help_])
    assert await api.deps.database.fetchval("SELECT count(*) FROM notification") == 0, "it has no words yet"
    await tenant.put("/api/v1/project/settings", {"sms_help": "Shop: write to help@example.com. STOP ends this."})
    again = msgspec.structs.replace(help_, provider_id="in-2")
    for _ in range(2):
        await inbound.record(tenant.project_id, 1, Channel.sms, [again])
    [row] = await api.deps.database.fetch("SELECT to_address, content::text, options::text FROM notification")
    assert row["to_address"] == "+4915112345678"
    assert json.loads(row["content"])["text"].startswith("Shop:")
    assert json.loads(row["options"])["sms"]["sender"] == "+15550001"


async def test_settings_are_replaced_checked_and_audited(api: Any) -> None:
    tenant = await api.new_project()
    settings = {
        "tracking": {"opens": True, "clicks": True, "domain": "https://click.example.com"},
        "sms_help": None,
        "origins": ["https://shop.example.com", "http://localhost:5173"],
    }
    answer = await tenant.put("/api/v1/project/settings", settings)
    assert answer.status_code == 200, answer.text
    shown = (await tenant.get("/api/v1/project")).json()["settings"]
    assert settings.items() <= shown.items()
    assert (await tenant.put("/api/v1/project/settings", shown)).json()["settings"] == shown
    assert (await api.deps.catalog.load_project(tenant.project_id)).settings.tracking.opens
    bad = {"tracking": {"domain": "https://x.example.com/path"}, "origins": ["*"]}
    answer = await tenant.put("/api/v1/project/settings", bad)
    assert [e["pointer"] for e in answer.json()["errors"]] == ["/tracking/domain", "/origins/0"]
    assert "project.settings" in [a["action"] for a in (await tenant.get("/api/v1/audit")).json()["items"]]


@pytest.mark.parametrize("id_", ["a\0b", "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=60_000))])
async def test_ids_that_no_vendor_would_give_spoil_nothing(api: Any, id_: str) -> None:
    tenant = await api.new_project()
    path = await postmark(tenant)
    delivery = await sent(tenant, "post")
    event = delivered(delivery) | {"MessageID": id_}
    assert (await api.client.post(path, json={**event, "Metadata": {}})).status_code == 200
    assert (await api.client.post(path, json=event)).status_code == 200
    assert (await look(tenant, delivery))["status"] == Status.delivered


@pytest.mark.parametrize(
    ("method", "path", "most"), [("POST", "/r/x", 16 * 1024), ("GET", "/o/x", 0), ("GET", "/c/x", 0)]
)
async def test_strangers_may_not_send_much(api: Any, method: str, path: str, most: int) -> None:
    assert (await api.client.request(method, path, content=b"x" * most)).status_code in (200, 404)
    assert (await api.client.request(method, path, content=b"x" * (most + 1))).status_code == 413


async def test_an_account_that_cannot_be_opened_tells_strangers_nothing(api: Any) -> None:
    tenant = await api.new_project()
    path = await postmark(tenant)
    await api.deps.database.execute("UPDATE account SET config = '{\"unknown\": 1}' WHERE key = 'post'")
    answer = await api.client.post(path, json={})
    assert answer.status_code == 503, "the vendor repeats it until the account is mended"
    assert answer.json()["detail"] == "This cannot be taken now; repeat it later."
