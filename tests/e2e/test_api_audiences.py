"""Topics and segments over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tidings.db.pool import Connection
from tidings.model.words import Scope

PRO = {"user": "plan", "is": "pro"}


async def make_users(tenant: Any, **plans: str) -> None:
    for name, plan in plans.items():
        assert (await tenant.put(f"/api/v1/users/{name}", {"attributes": {"plan": plan}})).status_code == 201


# ---------------------------------------------------------------- topics


async def test_users_are_added_to_a_topic_and_removed(tenant: Any) -> None:
    await make_users(tenant, ada="pro", bob="free")
    path = "/api/v1/topics/project/42/comments"
    assert (await tenant.get(path)).status_code == 404
    answer = await tenant.put(f"{path}/members", {"users": ["ada", "bob", "nobody"]})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"added": 2, "already": 0, "unknown": ["nobody"]}
    assert (await tenant.get(path)).json()["key"] == "project/42/comments"
    first = (await tenant.get(f"{path}/members?limit=1")).json()
    assert [member["user"] for member in first["items"]] == ["ada"]
    rest = (await tenant.get(f"{path}/members", params={"cursor": first["next_cursor"]})).json()
    assert ([member["user"] for member in rest["items"]], rest["next_cursor"]) == (["bob"], None)
    removed = await tenant.request("DELETE", f"{path}/members", json={"users": ["ada", "nobody"]})
    assert (removed.status_code, removed.json()) == (200, {"removed": 1})
    of_bob = (await tenant.get("/api/v1/users/bob/topics")).json()["items"]
    assert [(m["topic"], m["user"]) for m in of_bob] == [("project/42/comments", "bob")]
    assert (await tenant.get("/api/v1/users/nobody/topics")).status_code == 404
    assert (await tenant.delete(path)).status_code == 204
    assert (await tenant.get(f"{path}/members")).status_code == 404
    assert (await tenant.get("/api/v1/users/bob/topics")).json()["items"] == []


async def test_a_topic_has_a_name_and_stands_in_the_list(tenant: Any) -> None:
    for key in ("news", "project/42", "project/42/comments", "project/42-old"):
        made = await tenant.put(f"/api/v1/topics/{key}", {"name": key.title()})
        assert made.status_code == 201, made.text
    assert (await tenant.put("/api/v1/topics/news", {"name": "News"})).status_code == 200
    escaped = await tenant.get("/api/v1/topics/project%2F42%2Fcomments")
    assert escaped.json()["key"] == "project/42/comments"
    found = (await tenant.get("/api/v1/topics", params={"pattern": "project/42/#", "limit": 1})).json()
    rest = await tenant.get("/api/v1/topics", params={"pattern": "project/42/#", "cursor": found["next_cursor"]})
    assert [t["key"] for t in found["items"] + rest.json()["items"]] == ["project/42", "project/42/comments"]
    assert (await tenant.get("/api/v1/topics", params={"cursor": found["next_cursor"]})).status_code == 422
    assert len((await tenant.get("/api/v1/topics")).json()["items"]) == 4


@pytest.mark.parametrize("key", ["a%20b", "a//b", "a/", "a/%23", "x" * 201, "a/members/members"])
async def test_a_key_that_is_none_is_refused(tenant: Any, key: str) -> None:
    answer = await tenant.put(f"/api/v1/topics/{key}", {})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["parameter"] == "key"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/users"),
        ({"users": []}, "/users"),
        ({"users": ["u"] * 1001}, "/users"),
        ({"users": ["ada", ""]}, "/users/1"),
        ({"users": [1]}, "/users/0"),
        ({"users": ["ada"], "all": True}, "/all"),
    ],
)
async def test_members_that_are_none_are_refused(tenant: Any, body: Any, pointer: str) -> None:
    for method in ("PUT", "DELETE"):
        answer = await tenant.request(method, "/api/v1/topics/t/members", json=body)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == pointer


async def test_a_pattern_that_is_none_is_refused(tenant: Any) -> None:
    answer = await tenant.get("/api/v1/topics", params={"pattern": "a/#/b"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["parameter"] == "pattern"


# ---------------------------------------------------------------- segments


async def test_a_segment_is_tried_kept_and_asked_who_is_in_it(tenant: Any) -> None:
    await make_users(tenant, ada="pro", bob="free", cleo="pro")
    tried = await tenant.post("/api/v1/segments/preview", {"condition": PRO})
    assert (tried.status_code, tried.json()) == (200, {"count": 2, "sample": ["ada", "cleo"]}), tried.text
    made = await tenant.put("/api/v1/segments/pro", {"name": "Payers", "condition": PRO})
    assert made.status_code == 201, made.text
    body = made.json()
    assert (body["key"], body["condition"], body["tracked"], body["counted"]) == ("pro", PRO, False, None)
    assert (await tenant.get("/api/v1/segments/pro")).json() == body
    assert (await tenant.get("/api/v1/segments")).json() == {"items": [body], "next_cursor": None}
    first = (await tenant.get("/api/v1/segments/pro/members?limit=1")).json()
    rest = await tenant.get("/api/v1/segments/pro/members", params={"cursor": first["next_cursor"]})
    assert [m["user"] for m in first["items"] + rest.json()["items"]] == ["ada", "cleo"]
    changed = await tenant.put("/api/v1/segments/pro", {"condition": {"not": PRO}, "tracked": True})
    assert (changed.status_code, changed.json()["tracked"]) == (200, True)
    stale = await tenant.get("/api/v1/segments/pro/members", params={"cursor": first["next_cursor"]})
    assert stale.status_code == 422, "the cursor is of another list"
    assert (await tenant.get("/api/v1/segments/pro/members")).json()["items"] == [{"user": "bob"}]
    assert (await tenant.delete("/api/v1/segments/pro")).status_code == 204
    assert (await tenant.get("/api/v1/segments/pro/members")).status_code == 404


@pytest.mark.parametrize(
    ("condition", "pointer"),
    [
        ({"user": "plan", "iz": "pro"}, "/condition"),
        ({"all": [PRO, {"user": "plan", "above": "1"}]}, "/condition/all/1/above"),
        ({"data": "amount", "above": 1}, "/condition"),
        ([PRO], "/condition"),
    ],
)
async def test_a_condition_that_is_none_is_refused_where_it_is_wrong(tenant: Any, condition: Any, pointer: str) -> None:
    for answer in (
        await tenant.put("/api/v1/segments/s", {"condition": condition}),
        await tenant.post("/api/v1/segments/preview", {"condition": condition}),
    ):
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == pointer


async def test_long_looks_of_one_project_are_few(tenant: Any) -> None:
    """Each holds a connection, of which others need some."""
    waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'app_user'::regclass AND NOT granted"
    database = tenant.api.deps.database
    await tenant.put("/api/v1/segments/pro", {"condition": PRO})
    everybody = {"type": "t", "to": {"all": True}, "dry_run": True}
    preview, members, dry_run = "/api/v1/segments/preview", "/api/v1/segments/pro/members", "/api/v1/broadcasts"
    other = await tenant.api.new_project("other")

    async def work(conn: Connection) -> list[asyncio.Task[Any]]:
        await conn.execute("LOCK TABLE app_user IN ACCESS EXCLUSIVE MODE")
        looks = [
            asyncio.create_task(tenant.post(preview, {"condition": PRO})),
            asyncio.create_task(tenant.get(members)),
        ]
        while await conn.fetchval(waiting) < 2:
            pass
        for refused in (
            await tenant.post(preview, {"condition": PRO}),
            await tenant.get(members),
            await tenant.post(dry_run, everybody),
        ):
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "5"), refused.text
            assert refused.json()["type"].endswith("#too-many-requests")
        looks.append(asyncio.create_task(other.post(preview, {"condition": PRO})))
        while await conn.fetchval(waiting) < 3:
            pass
        return looks

    looks = await database.transaction(work)
    assert [answer.status_code for answer in await asyncio.gather(*looks)] == [200, 200, 200]
    assert (await tenant.get(members)).status_code == 200


async def test_only_fifty_are_tracked(tenant: Any) -> None:
    for n in range(50):
        answer = await tenant.put(f"/api/v1/segments/s{n}", {"condition": PRO, "tracked": True})
        assert answer.status_code == 201, answer.text
    answer = await tenant.put("/api/v1/segments/s50", {"condition": PRO, "tracked": True})
    assert answer.status_code == 409
    assert (await tenant.put("/api/v1/segments/s50", {"condition": PRO})).status_code == 201


async def test_projects_do_not_see_each_other(tenant: Any) -> None:
    other = await tenant.api.new_project("other")
    await make_users(tenant, ada="pro")
    await make_users(other, ada="pro", eve="pro")
    await tenant.put("/api/v1/topics/t/members", {"users": ["ada"]})
    await tenant.put("/api/v1/segments/pro", {"condition": PRO})
    assert (await other.get("/api/v1/topics/t")).status_code == 404
    assert (await other.get("/api/v1/users/ada/topics")).json()["items"] == []
    assert (await other.get("/api/v1/segments/pro")).status_code == 404
    assert (await other.post("/api/v1/segments/preview", {"condition": {"topic": "#"}})).json()["count"] == 0
    assert (await tenant.post("/api/v1/segments/preview", {"condition": PRO})).json()["sample"] == ["ada"]
    assert (await other.put("/api/v1/topics/t/members", {"users": ["eve"]})).json()["added"] == 1
    members = (await tenant.get("/api/v1/topics/t/members")).json()["items"]
    assert [member["user"] for member in members] == ["ada"]


async def test_a_reader_reads_and_changes_nothing(tenant: Any) -> None:
    await make_users(tenant, ada="pro")
    await tenant.put("/api/v1/topics/t/members", {"users": ["ada"]})
    await tenant.put("/api/v1/segments/pro", {"condition": PRO})
    reader = await tenant.with_scopes(Scope.read)
    assert (await reader.get("/api/v1/topics/t/members")).status_code == 200
    assert (await reader.post("/api/v1/segments/preview", {"condition": PRO})).status_code == 200
    for answer in (
        await reader.put("/api/v1/topics/t", {}),
        await reader.put("/api/v1/topics/t/members", {"users": ["ada"]}),
        await reader.request("DELETE", "/api/v1/topics/t/members", json={"users": ["ada"]}),
        await reader.delete("/api/v1/topics/t"),
        await reader.put("/api/v1/segments/pro", {"condition": PRO}),
        await reader.delete("/api/v1/segments/pro"),
    ):
        assert answer.status_code == 403
