"""Files over HTTP: stored as they are, named by their content, attached by name or in the request itself."""

from __future__ import annotations

import base64
from hashlib import sha256
from typing import Any

import pytest

from tidings.client import AsyncClient
from tidings.model.words import Scope

BLOBS, ONE, BATCH = "/api/v1/blobs", "/api/v1/notifications", "/api/v1/notifications/batch"
MAIL: dict[str, Any] = {"to": {"email": "ada@example.com"}, "content": {"subject": "Hi", "text": "Hello"}}
FILE = {"filename": "a.pdf", "content_type": "application/pdf"}
PDF = b"%PDF\x00\xff not JSON, not UTF-8"


async def put(tenant: Any, content: Any, **headers: str) -> Any:
    return await tenant.request("POST", BLOBS, content=content, headers=headers)


async def test_a_file_is_stored_once_whatever_it_says_it_is(tenant: Any) -> None:
    id_ = "sha256:" + sha256(PDF).hexdigest()
    for headers in ({}, {"content-type": "application/pdf"}, {"content-type": "application/json"}):
        answer = await put(tenant, PDF, **headers)
        assert (answer.status_code, answer.json()) == (201, {"id": id_, "size": len(PDF)})
    assert await tenant.api.deps.database.fetchval("SELECT count(*) FROM blob") == 1


async def test_large_ones_have_their_own_limit(tenant: Any) -> None:
    assert (await put(tenant, bytes(10 * 1024 * 1024))).status_code == 201

    async def chunks() -> Any:
        for _ in range(161):
            yield bytes(65536)

    answer = await put(tenant, chunks())
    assert answer.status_code == 413
    assert "10 MB" in answer.json()["detail"]
    assert (await put(tenant, b"")).status_code == 422
    sized = {**FILE, "content": base64.b64encode(bytes(900_000)).decode()}
    assert (await tenant.post(ONE, {**MAIL, "attachments": [sized]})).status_code == 413


async def test_storing_needs_the_scope_to_send(tenant: Any) -> None:
    sender = await tenant.with_scopes(Scope.send)
    assert (await put(sender, PDF)).status_code == 201
    reader = await tenant.with_scopes(Scope.read)
    assert (await put(reader, PDF)).status_code == 403
    assert (await tenant.api.client.post(BLOBS, content=PDF)).status_code == 401
    assert (await tenant.request("GET", BLOBS)).status_code == 405


async def test_a_file_is_attached_by_name_or_in_the_request(tenant: Any) -> None:
    id_ = (await put(tenant, PDF)).json()["id"]
    other = base64.b64encode(b"inline").decode()
    body = {**MAIL, "attachments": [{**FILE, "blob": id_}, {**FILE, "content": other}]}
    assert (await tenant.post(ONE, body)).status_code == 202
    assert await tenant.api.deps.database.fetchval("SELECT count(*) FROM blob") == 2
    bad = {**MAIL, "attachments": [{**FILE, "blob": "sha256:" + "0" * 64}]}
    told = (await tenant.post(BATCH, {"notifications": [body, bad, body]})).json()["results"]
    assert [("problem" in result) for result in told] == [False, True, False]
    assert told[1]["problem"]["errors"][0]["pointer"] == "/attachments/0/blob"


async def test_another_projects_file_is_unknown(api: Any) -> None:
    owner, stranger = await api.new_project("owner"), await api.new_project("stranger")
    id_ = (await put(owner, PDF)).json()["id"]
    body = {**MAIL, "attachments": [{**FILE, "blob": id_}]}
    assert (await owner.post(ONE, body)).status_code == 202
    answer = await stranger.post(ONE, body)
    assert answer.status_code == 422
    assert "no such blob in this project" in answer.text
    # Having stored it themselves, they have it; and neither learns of the other.
    assert (await put(stranger, PDF)).json()["id"] == id_
    assert (await stranger.post(ONE, body)).status_code == 202
    assert await api.deps.database.fetchval("SELECT count(*) FROM blob") == 2


@pytest.mark.parametrize("misspelt", [("optoins", {}), ("attachment", [])])
async def test_a_misspelt_field_is_guessed(tenant: Any, misspelt: tuple[str, Any]) -> None:
    answer = await tenant.post(ONE, {**MAIL, misspelt[0]: misspelt[1]})
    assert "did you mean" in answer.json()["detail"]
    answer = await tenant.post(ONE, {**MAIL, "attachments": [{**FILE, "content": ""}, {**FILE, "contnt": ""}]})
    assert answer.json()["errors"][0]["pointer"] == "/attachments/1/contnt"
    assert "did you mean `content`?" in answer.json()["detail"]


async def test_the_client_stores_and_attaches(tenant: Any) -> None:
    transport = tenant.api.client._transport
    async with AsyncClient("http://api", tenant.token, transport=transport) as tidings:
        blob = await tidings.blobs.create(PDF)
        assert blob.size == len(PDF)
        accepted = await tidings.send(
            to={"email": "ada@example.com"},
            content={"subject": "Hi", "text": "Hello"},
            options={"email": {"cc": ["bob@example.com"]}},
            attachments=[{**FILE, "blob": blob.id}, {**FILE, "content": b"bytes"}],
        )
        assert accepted.status == "queued"
        user = await tidings.users.put("ada", addresses={"push": ["fcm:abc", "apns:" + "AB" * 32]})
        assert user.addresses == {"push": ["apns:" + "ab" * 32, "fcm:abc"]}


async def test_devices_and_rooms_are_addresses_of_a_user(tenant: Any) -> None:
    p256dh = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"
    browser = {"endpoint": "https://push.example/x", "keys": {"p256dh": p256dh, "auth": "BTBZMqHH6r4Tts7J_aSIgg"}}
    addresses = {"push": ["fcm:abc", browser], "chat": "https://hooks.slack.com/services/T0/B0/x1"}
    answer = await tenant.put("/api/v1/users/ada", {"addresses": addresses})
    assert answer.status_code == 201, answer.text
    assert answer.json()["addresses"] == {
        "push": ["fcm:abc", f"webpush:https://push.example/x#{p256dh}.BTBZMqHH6r4Tts7J_aSIgg"],
        "chat": ["slack:https://hooks.slack.com/services/T0/B0/x1"],
    }
    alone = await tenant.put("/api/v1/users/ada/addresses", {"push": browser})
    assert [text.partition(":")[0] for text in alone.json()["addresses"]["push"]] == ["webpush"]


@pytest.mark.parametrize(
    ("channel", "fields", "shown"),
    [
        ("push", {"title": "{{ t }}", "data": '{"order": {{ t }} }'}, {"title": 'a"b', "data": '{"order": "a\\"b" }'}),
        ("chat", {"text": "{{ t }}", "payload": '{"blocks": [{{ t }}]}'}, {"payload": '{"blocks": ["a\\"b"]}'}),
    ],
)
async def test_templates_of_push_and_chat_are_previewed(
    tenant: Any, channel: str, fields: dict[str, str], shown: dict[str, str]
) -> None:
    await tenant.put("/api/v1/templates/t", {})
    made = await tenant.post("/api/v1/templates/t/versions", {"channels": {channel: {"en": fields}}})
    assert made.status_code == 201, made.text
    answer = await tenant.post("/api/v1/templates/t/preview", {"channel": channel, "data": {"t": 'a"b'}})
    assert answer.status_code == 200, answer.text
    assert shown.items() <= answer.json()["fields"].items()
    typed = {"template": "t", "category": "general", "steps": [{"send": [channel]}]}
    await tenant.post("/api/v1/templates/t/publish", {"version": 1})
    assert (await tenant.put("/api/v1/types/told", typed)).status_code == 201
