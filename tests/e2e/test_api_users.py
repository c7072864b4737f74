"""Users, addresses, inbox over HTTP."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tidings.model.words import Scope


async def test_a_user_is_made_then_changed_then_forgotten(tenant: Any) -> None:
    user = {
        "locale": "de_at",
        "time_zone": "Europe/Vienna",
        "attributes": {"first_name": "Ada", "score": 1.5},
        "addresses": {
            "email": "Ada@EXAMPLE.com",
            "phone": ["+43 664 1234567"],
            "webhook": ["https://example.com/hook"],
        },
    }
    made = await tenant.put("/api/v1/users/u-42", user)
    assert made.status_code == 201, made.text
    body = made.json()
    assert body["locale"] == "de-AT"
    assert body["attributes"] == user["attributes"]
    assert body["addresses"] == {
        "email": ["Ada@example.com"],
        "sms": ["+436641234567"],
        "webhook": ["https://example.com/hook"],
    }
    assert (await tenant.get("/api/v1/users/u-42")).json() == body

    changed = await tenant.put("/api/v1/users/u-42", {"locale": "en"})
    assert changed.status_code == 200
    assert changed.json()["attributes"] == {}
    assert changed.json()["addresses"] == body["addresses"], "addresses that are not given stay"

    assert (await tenant.delete("/api/v1/users/u-42")).status_code == 204
    assert (await tenant.get("/api/v1/users/u-42")).status_code == 404
    assert (await tenant.delete("/api/v1/users/u-42")).status_code == 404


async def test_the_same_again_leaves_no_trace(tenant: Any) -> None:
    user = {"locale": "en", "addresses": {"email": ["b@example.com", "a@example.com", "a@example.com"]}}
    first = await tenant.put("/api/v1/users/u", user)
    second = await tenant.put("/api/v1/users/u", user)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()
    trail = (await tenant.get("/api/v1/audit", params={"object": "user:u"})).json()["items"]
    assert [entry["action"] for entry in trail] == ["user.put"]
    assert trail[0]["after"] == {"changed": ["locale", "addresses.email"]}, "which fields, not what stands in them"


async def test_addresses_are_replaced_as_a_whole(tenant: Any) -> None:
    assert (await tenant.put("/api/v1/users/u/addresses", {"email": "a@example.com"})).status_code == 404
    await tenant.put("/api/v1/users/u", {"addresses": {"email": ["a@example.com"], "sms": ["+436641234567"]}})
    answer = await tenant.put("/api/v1/users/u/addresses", {"email": "c@example.com"})
    assert answer.status_code == 200
    assert answer.json()["addresses"] == {"email": ["c@example.com"]}


async def test_a_dropped_address_comes_back_when_it_is_given_again(tenant: Any) -> None:
    await tenant.put("/api/v1/users/u", {"addresses": {"email": "a@example.com"}})
    await tenant.api.deps.database.execute(
        "UPDATE address SET dropped_at = now() WHERE project_id = $1", tenant.project_id
    )
    assert (await tenant.get("/api/v1/users/u")).json()["addresses"] == {}
    await tenant.put("/api/v1/users/u/addresses", {"email": "a@example.com"})
    assert (await tenant.get("/api/v1/users/u")).json()["addresses"] == {"email": ["a@example.com"]}


@pytest.mark.parametrize(
    ("path", "user_id"),
    [
        ("a%2Fb", "a/b"),
        ("a%252Fb", "a%2Fb"),
        ("100%25", "100%"),
        ("J%C3%BCrgen%20%E2%9C%93", "Jürgen ✓"),
        ("auth0%7C1", "auth0|1"),
    ],
)
async def test_an_id_may_hold_what_a_url_must_escape(tenant: Any, path: str, user_id: str) -> None:
    made = await tenant.put(f"/api/v1/users/{path}", {})
    assert made.status_code == 201, made.text
    assert made.json()["id"] == user_id
    assert (await tenant.get(f"/api/v1/users/{path}")).json()["id"] == user_id
    assert (await tenant.get(f"/api/v1/users/{path}/inbox")).status_code == 200


async def test_pages_lead_through_all_users_once(tenant: Any) -> None:
    names = [f"u-{n:02d}" for n in range(7)]
    for name in names:
        await tenant.put(f"/api/v1/users/{name}", {})
    seen: list[str] = []
    cursor = None
    while True:
        page = (await tenant.get("/api/v1/users", params={"limit": 3} | ({"cursor": cursor} if cursor else {}))).json()
        seen += [user["id"] for user in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == names


async def test_a_cursor_of_another_list_is_refused(tenant: Any) -> None:
    for name in ("a", "b"):
        await tenant.put(f"/api/v1/users/{name}", {})
    cursor = (await tenant.get("/api/v1/users?limit=1")).json()["next_cursor"]
    for path in ("/api/v1/categories", "/api/v1/users/a/inbox", "/api/v1/keys"):
        answer = await tenant.get(path, params={"cursor": cursor})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["parameter"] == "cursor"
    for broken in ("x", "ü", "AAAA", cursor[:-2]):
        assert (await tenant.get("/api/v1/users", params={"cursor": broken})).status_code == 422


async def test_the_inbox_is_newest_first_and_paged(tenant: Any) -> None:
    await tenant.put("/api/v1/users/u", {})
    await tenant.api.deps.database.executemany(
        "INSERT INTO inbox_item"
        " (project_id, user_id, seq, changed_seq, delivery_id, notification_id, title, body, category_key)"
        " VALUES ($1, 'u', $2, $2, $3, $4, 'Title', 'Body', 'general')",
        [(tenant.project_id, seq, uuid.uuid4(), uuid.uuid4()) for seq in (1, 2, 3)],
    )
    first = (await tenant.get("/api/v1/users/u/inbox?limit=2")).json()
    assert [item["seq"] for item in first["items"]] == [3, 2]
    assert first["items"][0]["id"].startswith("dlv_")
    assert first["items"][0]["notification"].startswith("ntf_")
    assert first["items"][0]["category"] == "general"
    rest = (await tenant.get("/api/v1/users/u/inbox", params={"cursor": first["next_cursor"]})).json()
    assert [item["seq"] for item in rest["items"]] == [1]
    assert rest["next_cursor"] is None
    assert (await tenant.get("/api/v1/users/nobody/inbox")).status_code == 404
    await tenant.delete("/api/v1/users/u")
    await tenant.put("/api/v1/users/u", {})
    assert (await tenant.get("/api/v1/users/u/inbox")).json()["items"] == []


async def test_reading_needs_read_and_writing_needs_manage(tenant: Any) -> None:
    reader, writer = await tenant.with_scopes(Scope.read), await tenant.with_scopes(Scope.manage)
    refused = await reader.put("/api/v1/users/u", {})
    assert refused.status_code == 403
    assert "`manage`" in refused.json()["detail"]
    assert (await writer.put("/api/v1/users/u", {})).status_code == 201
    assert (await writer.get("/api/v1/users/u")).status_code == 403
    assert (await reader.get("/api/v1/users/u")).status_code == 200
