"""The hot routes as a caller meets them: what is taken, what is refused and how, and what is stored of it."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tidings.model.words import Scope

ONE = "/api/v1/notifications"
BATCH = "/api/v1/notifications/batch"
GOOD = {"type": "order", "to": {"user": "ada"}, "data": {"order": "A-1"}}


@pytest.fixture
async def shop(api: Any) -> Any:
    """A project with a user and a type that wants `order` and a number `total`."""
    tenant = await api.new_project("shop")
    await tenant.put("/api/v1/users/ada", {"locale": "de", "addresses": {"email": "ada@example.com"}})
    await tenant.put("/api/v1/templates/order", {})
    content = {"channels": {"email": {"en": {"subject": "Order {{ order }}", "text": "It is on its way."}}}}
    assert (await tenant.post("/api/v1/templates/order/versions", content)).status_code == 201
    assert (await tenant.post("/api/v1/templates/order/publish", {"version": 1})).status_code == 200
    schema = {"type": "object", "properties": {"total": {"type": "number"}}}
    definition = {"category": "general", "template": "order", "schema": schema}
    assert (await tenant.put("/api/v1/types/order", definition)).status_code == 201
    return tenant


async def _stored(shop: Any) -> int:
    count = "SELECT count(*) FROM notification WHERE project_id = $1"
    stored: int = await shop.api.deps.database.fetchval(count, shop.project_id)
    jobs = await shop.api.deps.database.fetchval(count.replace("notification", "job"), shop.project_id)
    assert jobs == stored, "a notification without its job, or the other way round"
    return stored


def _later(**span: int) -> str:
    return (datetime.now(UTC) + timedelta(**span)).isoformat()


@pytest.mark.parametrize("path", [ONE, "/api/v1/send_notification"])
async def test_a_request_is_stored_before_it_is_answered(shop: Any, path: str) -> None:
    answer = await shop.post(path, GOOD)
    assert answer.status_code == 202
    assert answer.json()["status"] == "queued"
    assert answer.json()["id"].startswith("ntf_")
    assert answer.headers["traceparent"].startswith("00-")
    assert await _stored(shop) == 1
    seen = await shop.get(f"{ONE}/{answer.json()['id']}")
    assert seen.json()["type"] == "order"
    assert [moment["event"] for moment in seen.json()["timeline"]] == ["requested"]


FILE = {"filename": "a.txt", "content_type": "text/plain"}
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("unknown field", {**GOOD, "prioritty": "high"}, "/prioritty"),
    ("unknown field below", {**GOOD, "to": {"usr": "ada"}}, "/to/usr"),
    ("wrong type", {**GOOD, "data": "A-1"}, "/data"),
    ("wrong type below", {**GOOD, "to": {"user": 7}}, "/to/user"),
    ("no recipient", {**GOOD, "to": {}}, "/to"),
    ("two recipients", {**GOOD, "to": {"user": "ada", "email": "a@example.com"}}, "/to"),
    ("unknown type", {**GOOD, "type": "ordr"}, "/type"),
    ("unknown user", {**GOOD, "to": {"user": "nobody"}}, "/to/user"),
    ("missing template variable", {**GOOD, "data": {}}, "/data/order"),
    ("data against the schema", {**GOOD, "data": {"order": "A-1", "total": "much"}}, "/data/total"),
    ("invalid e-mail", {**GOOD, "to": {"email": "not an address"}}, "/to/email"),
    ("invalid phone", {**GOOD, "to": {"phone": "12"}}, "/to/phone"),
    ("invalid URL", {**GOOD, "to": {"webhook": "ftp://example.com"}}, "/to/webhook"),
    ("invalid locale", {**GOOD, "locale": "not-a-locale-at-all"}, "/locale"),
    ("unknown priority", {**GOOD, "priority": "urgent"}, "/priority"),
    ("unknown channel", {**GOOD, "channels": ["pigeon"]}, "/channels/0"),
    ("a channel that the type does not use", {**GOOD, "channels": ["push"]}, "/channels"),
    ("invalid device", {**GOOD, "to": {"push": "token"}}, "/to/push"),
    ("invalid room", {**GOOD, "to": {"chat": "https://example.com/"}}, "/to/chat"),
    ("unknown option", {**GOOD, "options": {"email": {"ccs": []}}}, "/options/email/ccs"),
    ("wrong type of an option", {**GOOD, "options": {"email": {"cc": "a@example.com"}}}, "/options/email/cc"),
    ("a header of ours", {**GOOD, "options": {"email": {"headers": {"From": "x"}}}}, "/options/email/headers/From"),
    ("base64 that is none", {**GOOD, "attachments": [{**FILE, "content": "?"}]}, "/attachments/0/content"),
    ("unknown blob", {**GOOD, "attachments": [{**FILE, "blob": "sha256:" + "0" * 64}]}, "/attachments/0/blob"),
    ("unknown field of a file", {**GOOD, "attachments": [{**FILE, "name": "x"}]}, "/attachments/0/name"),
    ("NUL in an option", {**GOOD, "options": {"email": {"tags": ["a\u0000"]}}}, "/options/email/tags/0"),
    ("no channel left", {**GOOD, "channels": ["sms"]}, "/channels"),
    ("send_at in the past", {**GOOD, "send_at": _later(hours=-1)}, "/send_at"),
    ("send_at ten years ahead", {**GOOD, "send_at": _later(days=3650)}, "/send_at"),
    ("send_at without offset", {**GOOD, "send_at": "2026-12-01T09:00:00"}, "/send_at"),
    ("expired before it begins", {**GOOD, "send_at": _later(hours=2), "expires_at": _later(hours=1)}, "/expires_at"),
    ("NUL in data", {**GOOD, "data": {"order": "A\u0000"}}, "/data/order"),
    ("neither type nor content", {"to": {"email": "a@example.com"}}, "/type"),
    ("both type and content", {**GOOD, "content": {"text": "x"}}, "/content"),
    ("content for a user", {"to": {"user": "ada"}, "content": {"text": "x"}}, "/to"),
    (
        "header injection",
        {"to": {"email": "a@example.com"}, "content": {"subject": "a\nBcc: b", "text": "x"}},
        "/content",
    ),
    ("data too large", {**GOOD, "data": {"order": "x" * 70_000}}, "/data"),
]


@pytest.mark.parametrize(("body", "pointer"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
async def test_bad_input_is_told_what_to_mend_and_nothing_is_stored(
    shop: Any, body: dict[str, Any], pointer: str
) -> None:
    answer = await shop.post(ONE, body)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert pointer in [error.get("pointer") for error in answer.json()["errors"]], answer.text
    assert await _stored(shop) == 0


async def test_bodies_that_are_no_json(shop: Any) -> None:
    headers = {"content-type": "application/json"}
    for content, status in (
        (b"{", 400),
        (b'{"notifications": [' + b'{"data": ' * 100_000, 400),
        (b'{"data": "' + b"x" * 10_000_000 + b'"}', 413),
    ):
        for path in (ONE, BATCH) if content == b"{" else (BATCH,) if status == 400 else (ONE,):
            answer = await shop.request("POST", path, content=content, headers=headers)
            assert answer.status_code == status, answer.text
    for path, content in ((ONE, b'{"type": "\xff"}'), (BATCH, b'{"notifications": [{"type": "\xff"}]}')):
        assert (await shop.request("POST", path, content=content, headers=headers)).status_code == 400
    answer = await shop.request("POST", ONE, content=json.dumps(GOOD), headers={"content-type": "text/plain"})
    assert answer.status_code == 415
    assert (await shop.request("PUT", BATCH, json={})).status_code == 405
    assert await _stored(shop) == 0


async def test_a_batch_answers_each_in_order_and_stores_the_good_ones(shop: Any) -> None:
    bad = [body for _, body, _ in BAD]
    mixed = [item for body in bad for item in (GOOD, body)]
    answer = await shop.post(BATCH, {"notifications": mixed})
    assert answer.status_code == 202
    results = answer.json()["results"]
    assert len(results) == len(mixed)
    assert all("id" in result for result in results[::2])
    assert all(result["problem"]["status"] == 422 for result in results[1::2])
    assert await _stored(shop) == len(bad)
    assert (await shop.post(BATCH, {"notifications": []})).status_code == 422
    assert (await shop.post(BATCH, {"notifications": [GOOD] * 1001})).status_code == 422


async def test_an_idempotency_key_is_done_once(shop: Any) -> None:
    headers = {"idempotency-key": "order-A-1"}
    first = await shop.post(ONE, GOOD, headers=headers)
    again = await asyncio.gather(*(shop.post(ONE, GOOD, headers=headers) for _ in range(5)))
    assert {answer.json()["id"] for answer in again} == {first.json()["id"]}
    assert all(answer.json()["idempotent_replayed"] for answer in again)
    other = await shop.post(ONE, {**GOOD, "priority": "low"}, headers=headers)
    assert (other.status_code, other.json()["type"].partition("#")[2]) == (422, "idempotency-mismatch")
    shop.api.clock.passed = timedelta(hours=1)
    assert (await shop.post(ONE, GOOD, headers=headers)).json()["id"] == first.json()["id"]
    assert await _stored(shop) == 1


async def test_concurrent_requests_with_one_key_yield_one(shop: Any) -> None:
    answers = await asyncio.gather(*(shop.post(ONE, GOOD, headers={"idempotency-key": "k"}) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert await _stored(shop) == 1


async def test_a_test_key_is_not_a_live_key(shop: Any) -> None:
    tester = await shop.with_scopes(*Scope, test=True)
    headers = {"idempotency-key": "k"}
    assert (await tester.post(ONE, GOOD, headers=headers)).status_code == 202
    # Else the live request would be answered, and nothing ever sent.
    assert (await shop.post(ONE, GOOD, headers=headers)).status_code == 422
    live = (await shop.post(ONE, {**GOOD, "send_at": _later(hours=1)})).json()["id"]
    assert (await tester.post(f"{ONE}/{live}/cancel")).status_code == 403
    assert (await tester.post("/api/v1/dead_letters/replay", {})).status_code == 403
    account = {"channel": "sms", "provider": "simulator"}
    assert (await tester.put("/api/v1/accounts/mine", account)).status_code == 403
    assert (await shop.put("/api/v1/accounts/mine", account)).status_code == 201


async def test_refused_requests_leave_their_key_free(shop: Any) -> None:
    headers = {"idempotency-key": "k"}
    assert (await shop.post(ONE, {**GOOD, "data": {}}, headers=headers)).status_code == 422
    assert (await shop.post(ONE, GOOD, headers=headers)).status_code == 202


async def test_a_batch_is_repeated_safely(shop: Any) -> None:
    batch = {"notifications": [GOOD, {**GOOD, "idempotency_key": "own"}, {**GOOD, "type": "no"}]}
    first = (await shop.post(BATCH, batch, headers={"idempotency-key": "b"})).json()["results"]
    again = (await shop.post(BATCH, batch, headers={"idempotency-key": "b"})).json()["results"]
    assert [result.get("id") for result in first] == [result.get("id") for result in again]
    assert [result.get("idempotent_replayed") for result in again] == [True, True, None]
    longer = {"notifications": [GOOD, *batch["notifications"]]}
    other = (await shop.post(BATCH, longer, headers={"idempotency-key": "b"})).json()["results"]
    assert other[0]["problem"]["status"] == 422
    assert await _stored(shop) <= 3


async def test_keys_and_scopes(shop: Any, api: Any) -> None:
    reader = await shop.with_scopes(Scope.read)
    assert (await reader.post(ONE, GOOD)).status_code == 403
    sender = await shop.with_scopes(Scope.send)
    assert (await sender.post(ONE, GOOD)).status_code == 202
    assert (await sender.post(ONE, {**GOOD, "priority": "critical"})).status_code == 403
    critical = await shop.with_scopes(Scope.send, Scope.send_critical)
    assert (await critical.post(ONE, {**GOOD, "priority": "critical"})).status_code == 202
    assert (await api.client.post(ONE, json=GOOD)).status_code == 401
    expiring = await shop.with_scopes(Scope.send, expires_at=datetime.now(UTC) + timedelta(minutes=1))
    assert (await expiring.post(ONE, GOOD)).status_code == 202
    api.clock.passed = timedelta(minutes=2)
    assert (await expiring.post(ONE, GOOD)).status_code == 401


async def test_another_project_has_other_types_users_and_keys(shop: Any, api: Any) -> None:
    stranger = await api.new_project("stranger")
    assert (await stranger.post(ONE, GOOD)).json()["errors"][0]["pointer"] == "/type"
    content = {"to": {"email": "ada@example.com"}, "content": {"subject": "Hi", "text": "Hello"}}
    headers = {"idempotency-key": "same"}
    theirs = await stranger.post(ONE, content, headers=headers)
    ours = await shop.post(ONE, content, headers=headers)
    assert theirs.json()["id"] != ours.json()["id"]
    assert (await stranger.get(f"{ONE}/{ours.json()['id']}")).status_code == 404
    assert (await stranger.post(f"{ONE}/{ours.json()['id']}/cancel")).status_code == 404
    listed = (await stranger.get(ONE)).json()["items"]
    assert [line["id"] for line in listed] == [theirs.json()["id"]]


async def test_scheduled_listed_and_cancelled(shop: Any) -> None:
    later = (await shop.post(ONE, {**GOOD, "send_at": _later(hours=1), "metadata": {"trace": "x"}})).json()
    assert later["status"] == "scheduled"
    now = (await shop.post(ONE, GOOD)).json()
    lines = (await shop.get(f"{ONE}?user=ada&type=order")).json()["items"]
    assert [(line["id"], line["status"]) for line in lines] == [(now["id"], "queued"), (later["id"], "scheduled")]
    page = (await shop.get(f"{ONE}?limit=1")).json()
    rest = (await shop.get(f"{ONE}?limit=1&cursor={page['next_cursor']}")).json()
    assert [page["items"][0]["id"], rest["items"][0]["id"]] == [now["id"], later["id"]]
    for _ in range(2):
        answer = await shop.post(f"{ONE}/{later['id']}/cancel")
        assert answer.json() == {"id": later["id"], "result": "cancelled"}
    assert (await shop.get(f"{ONE}/{later['id']}")).json()["status"] == "cancelled"
    assert (await shop.get(f"{ONE}?status=nonsense")).status_code == 422
