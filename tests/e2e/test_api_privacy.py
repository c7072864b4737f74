"""Export and erase over HTTP."""

from __future__ import annotations

from typing import Any

from tidings.model.words import Scope


async def _fill(tenant: Any) -> None:
    user = {"attributes": {"name": "Ada"}, "addresses": {"email": "ada@example.com"}}
    assert (await tenant.put("/api/v1/users/a%2Fda", user)).status_code == 201
    content = {"subject": "Hi", "text": "Hello"}
    await tenant.put("/api/v1/templates/hi", {})
    made = await tenant.post("/api/v1/templates/hi/versions", {"channels": {"email": {"en": content}}})
    assert made.status_code == 201, made.text
    await tenant.post("/api/v1/templates/hi/publish", {"version": 1})
    assert (await tenant.put("/api/v1/types/hi", {"category": "general", "template": "hi"})).status_code == 201
    sent = await tenant.post("/api/v1/notifications", {"type": "hi", "to": {"user": "a/da"}, "data": {"x": 1}})
    assert sent.status_code == 202, sent.text


async def test_a_user_is_exported_and_erased(tenant: Any) -> None:
    await _fill(tenant)
    answer = await tenant.get("/api/v1/users/a%2Fda/export")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()
    assert found["id"] == "a/da"
    assert found["user"]["attributes"] == {"name": "Ada"}
    assert found["notifications"][0]["data"] == {"x": 1}
    erased = await tenant.post("/api/v1/users/a%2Fda/erase")
    assert (erased.status_code, erased.json()) == (200, {"status": "erased"})
    assert (await tenant.get("/api/v1/users/a%2Fda/export")).status_code == 404
    assert (await tenant.get("/api/v1/users/a%2Fda")).status_code == 404
    [line] = (await tenant.get("/api/v1/notifications")).json()["items"]
    assert (line["user"], line["to"], line["status"]) == (None, None, "cancelled")
    shown = (await tenant.get(f"/api/v1/notifications/{line['id']}")).json()
    assert shown["metadata"] == {}
    again = await tenant.post("/api/v1/users/a%2Fda/erase", {"suppressions": True})
    assert again.json() == {"status": "erased"}
    trail = (await tenant.get("/api/v1/audit", params={"object": "user:a/da"})).json()["items"]
    assert [entry["action"] for entry in trail] == ["user.erase", "user.erase", "user.put"]
    assert (trail[-1]["before"], trail[-1]["after"]) == (None, None)


async def test_one_project_neither_sees_nor_erases_users_of_another(tenant: Any) -> None:
    await _fill(tenant)
    other = await tenant.api.new_project("other")
    assert (await other.get("/api/v1/users/a%2Fda/export")).status_code == 404
    assert (await other.post("/api/v1/users/a%2Fda/erase")).status_code == 404
    assert (await tenant.get("/api/v1/users/a%2Fda")).status_code == 200


async def test_export_and_erase_need_the_scope_to_manage(tenant: Any) -> None:
    await _fill(tenant)
    for scope in (Scope.read, Scope.send):
        key = await tenant.with_scopes(scope)
        assert (await key.get("/api/v1/users/a%2Fda/export")).status_code == 403
        assert (await key.post("/api/v1/users/a%2Fda/erase")).status_code == 403
    test = await tenant.with_scopes(*Scope, test=True)
    assert (await test.post("/api/v1/users/a%2Fda/erase")).status_code == 403
    refused = await tenant.post("/api/v1/users/a%2Fda/erase", {"suppression": True})
    assert refused.json()["errors"][0]["pointer"] == "/suppression"
