"""Categories, keys, the audit trail, the project, and idempotent POSTs over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

from tidings.model.words import Scope


async def test_categories(tenant: Any) -> None:
    assert [item["key"] for item in (await tenant.get("/api/v1/categories")).json()["items"]] == ["general"]
    made = await tenant.put("/api/v1/categories/orders", {"name": "Orders", "required": True})
    assert made.status_code == 201
    assert made.json()["required"] is True
    again = await tenant.put("/api/v1/categories/orders", {"name": "Orders", "required": True})
    assert (again.status_code, again.json()) == (200, made.json())
    changed = await tenant.put("/api/v1/categories/orders", {"name": "Your orders"})
    assert changed.json()["required"] is False
    assert (await tenant.get("/api/v1/categories/orders")).json() == changed.json()
    assert (await tenant.delete("/api/v1/categories/orders")).status_code == 204
    assert (await tenant.delete("/api/v1/categories/orders")).status_code == 404


async def test_a_category_in_use_stays(tenant: Any) -> None:
    database = tenant.api.deps.database
    await database.execute(
        "INSERT INTO type (project_id, key, current_version) VALUES ($1, 'welcome', 1)", tenant.project_id
    )
    await database.execute(
        "INSERT INTO type_version (project_id, type_key, version, definition, category_key, template_key)"
        " VALUES ($1, 'welcome', 1, '{}', 'general', 'welcome')",
        tenant.project_id,
    )
    assert (await tenant.delete("/api/v1/categories/general")).status_code == 409
    await database.execute("UPDATE type SET archived_at = now() WHERE project_id = $1", tenant.project_id)
    assert (await tenant.delete("/api/v1/categories/general")).status_code == 204


async def test_the_project_of_a_key(tenant: Any) -> None:
    answer = (await tenant.get("/api/v1/project")).json()
    assert (answer["key"], answer["name"]) == ("shop", "Shop")


async def test_a_key_is_made_used_and_revoked(tenant: Any) -> None:
    made = await tenant.post("/api/v1/keys", {"name": "backend", "scopes": ["read"]})
    assert made.status_code == 201, made.text
    text, key_id = made.json()["key"], made.json()["id"]
    assert text.startswith("tdg_shop_")
    assert key_id.startswith("key_")
    bearer = {"authorization": f"Bearer {text}"}
    client = tenant.api.client
    assert (await client.get("/api/v1/project", headers=bearer)).status_code == 200
    shown = (await tenant.get(f"/api/v1/keys/{key_id}")).json()
    assert "key" not in shown
    assert text.split("_", 3)[3] not in (await tenant.get("/api/v1/audit")).text

    assert (await tenant.delete(f"/api/v1/keys/{key_id}")).status_code == 204
    refused = await client.get("/api/v1/project", headers=bearer)
    assert refused.status_code == 401
    assert "revoked" in refused.json()["detail"]
    assert (await tenant.delete(f"/api/v1/keys/{key_id}")).status_code == 204, "again changes nothing"
    listed = {key["id"]: key for key in (await tenant.get("/api/v1/keys")).json()["items"]}
    assert listed[key_id]["revoked_at"] is not None


async def test_a_test_key_says_so(tenant: Any) -> None:
    made = (await tenant.post("/api/v1/keys", {"name": "t", "scopes": ["send"], "test": True})).json()
    assert made["key"].startswith("tdgt_shop_")
    # The mark is no more than a reader's help: what counts is the row.
    forged = made["key"].replace("tdgt_", "tdg_")
    answer = await tenant.api.client.get("/api/v1/project", headers={"authorization": f"Bearer {forged}"})
    assert answer.status_code == 401


async def test_a_key_gives_only_what_it_has(tenant: Any) -> None:
    manager = await tenant.with_scopes(Scope.manage)
    refused = await manager.post("/api/v1/keys", {"name": "more", "scopes": ["manage", "send"]})
    assert refused.status_code == 403
    assert "send" in refused.json()["errors"][0]["detail"]
    tester = await tenant.with_scopes(*Scope, test=True)
    assert (await tester.post("/api/v1/keys", {"name": "live", "scopes": ["send"]})).status_code == 403


async def test_a_wrong_key_request_is_refused(tenant: Any) -> None:
    for body, pointer in (
        ({"name": "x", "scopes": []}, "/scopes"),
        ({"name": "x", "scopes": ["everything"]}, "/scopes/0"),
        ({"name": "", "scopes": ["read"]}, "/name"),
        ({"scopes": ["read"]}, "/name"),
        ({"name": "x", "scopes": ["read"], "expires_at": "2020-01-01T00:00:00Z"}, "/expires_at"),
        ({"name": "x", "scopes": ["read"], "expires_at": "2030-01-01"}, "/expires_at"),
        ({"name": "x", "scopes": ["read"], "expires_at": 1893456000}, "/expires_at"),
        ({"name": "x", "scopes": ["read"], "expires_at": "9999-12-31T23:59:59-23:59"}, "/expires_at"),
        ({"name": "x", "scopes": ["read"], "test": "yes"}, "/test"),
    ):
        answer = await tenant.post("/api/v1/keys", body)
        assert answer.status_code == 422, body
        assert answer.json()["errors"][0]["pointer"] == pointer, answer.text
    assert len((await tenant.get("/api/v1/keys")).json()["items"]) == 1


async def test_every_write_leaves_its_trace(tenant: Any) -> None:
    await tenant.put("/api/v1/users/u", {"locale": "en"})
    await tenant.put("/api/v1/users/u", {"locale": "de"})
    await tenant.put("/api/v1/users/u/addresses", {"email": "a@example.com"})
    await tenant.delete("/api/v1/users/u")
    trail = (await tenant.get("/api/v1/audit", params={"object": "user:u"})).json()["items"]
    assert [entry["action"] for entry in reversed(trail)] == [
        "user.put",
        "user.put",
        "user.put_addresses",
        "user.delete",
    ]
    change = trail[2]
    assert (change["before"], change["after"]) == (None, {"changed": ["locale"]}), "which fields, not what is in them"
    assert change["actor"] == "key"
    assert change["key_id"] == "key_" + tenant.token.split("_")[2]
    only = (await tenant.get("/api/v1/audit", params={"action": "user.delete"})).json()["items"]
    assert [entry["object"] for entry in only] == ["user:u"]
    first = (await tenant.get("/api/v1/audit?limit=2")).json()
    rest = (await tenant.get("/api/v1/audit", params={"cursor": first["next_cursor"]})).json()
    ids = [entry["id"] for entry in first["items"] + rest["items"]]
    assert ids == sorted(ids, reverse=True)
    assert len(set(ids)) == len(ids)


async def test_a_repeated_post_is_done_once(tenant: Any) -> None:
    body = {"name": "backend", "scopes": ["read", "send"]}
    once = {"Idempotency-Key": "order-1"}
    first = await tenant.post("/api/v1/keys", body, headers=once)
    second = await tenant.post("/api/v1/keys", dict(reversed(body.items())), headers={"Idempotency-Key": '"order-1"'})
    assert (first.status_code, second.status_code) == (201, 201)
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert second.json() == {**first.json(), "key": None}, "the secret is not kept"
    kept = await tenant.api.deps.database.fetchval("SELECT answer FROM idempotency")
    assert first.json()["key"] not in kept

    other = await tenant.post("/api/v1/keys", {**body, "name": "other"}, headers=once)
    assert other.status_code == 422
    assert other.json()["type"].endswith("#idempotency-mismatch")
    assert len((await tenant.get("/api/v1/keys")).json()["items"]) == 2


async def test_only_success_is_remembered_and_only_for_a_day(tenant: Any) -> None:
    once = {"Idempotency-Key": "k"}
    past = {"name": "x", "scopes": ["read"], "expires_at": "2020-01-01T00:00:00Z"}
    assert (await tenant.post("/api/v1/keys", past, headers=once)).status_code == 422
    good = {"name": "x", "scopes": ["read"]}
    assert (await tenant.post("/api/v1/keys", good, headers=once)).status_code == 201
    await tenant.api.deps.database.execute("UPDATE idempotency SET expires_at = now()")
    fresh = await tenant.post("/api/v1/keys", {**good, "name": "y"}, headers=once)
    assert (fresh.status_code, fresh.json()["name"]) == (201, "y")


async def test_duplicates_at_the_same_time_wait_for_the_first(tenant: Any) -> None:
    body, once = {"name": "x", "scopes": ["read"]}, {"Idempotency-Key": "k"}
    answers = await asyncio.gather(*(tenant.post("/api/v1/keys", body, headers=once) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1


async def test_a_duplicate_that_waits_too_long_is_told_so(tenant: Any) -> None:
    body, once = {"name": "x", "scopes": ["read"]}, {"Idempotency-Key": "k"}
    async with tenant.api.deps.database.acquire() as slow:
        await slow.execute("BEGIN")
        await slow.execute(
            "INSERT INTO idempotency VALUES ($1, 'k', '', 0, 'null', now() + interval '1 day')", tenant.project_id
        )
        answer = await tenant.post("/api/v1/keys", body, headers=once)
        await slow.execute("ROLLBACK")
    assert answer.status_code == 409
    assert answer.json()["type"].endswith("#idempotency-busy")
    assert answer.headers["retry-after"] == "1"
    assert (await tenant.post("/api/v1/keys", body, headers=once)).status_code == 201


async def test_a_wrong_idempotency_key_is_refused(tenant: Any) -> None:
    for key in ("", '""', "x" * 256, "\x01"):
        answer = await tenant.post(
            "/api/v1/keys", {"name": "x", "scopes": ["read"]}, headers={"Idempotency-Key": key.encode()}
        )
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["parameter"] == "Idempotency-Key"
