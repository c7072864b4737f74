"""Broadcasts over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tidings.model.words import Scope

CONTENT = {"default_locale": "en", "channels": {"email": {"en": {"subject": "Hi", "text": "{{ order }}"}}}}


@pytest.fixture
async def shop(tenant: Any) -> Any:
    """A type `news` that needs `order`, and four users."""
    for path, body in (
        ("/api/v1/templates/news", {"name": "News"}),
        ("/api/v1/templates/news/versions", CONTENT),
    ):
        answer = await (tenant.put if path.endswith("news") else tenant.post)(path, body)
        assert answer.is_success, answer.text
    assert (await tenant.post("/api/v1/templates/news/publish", {"version": 1})).is_success
    made = await tenant.put("/api/v1/types/news", {"category": "general", "template": "news"})
    assert made.is_success, made.text
    for name in ("a", "b", "c", "d"):
        await tenant.put(f"/api/v1/users/{name}", {"addresses": {"email": f"{name}@example.com"}})
    return tenant


BODY = {"type": "news", "to": {"users": ["a", "b"], "topic": "t/#"}, "data": {"order": "A-1"}}


async def test_made_seen_steered(shop: Any) -> None:
    await shop.put("/api/v1/topics/t/1/members", {"users": ["b", "c"]})
    made = await shop.post("/api/v1/broadcasts", {**BODY, "exclude": {"users": ["a"]}, "metadata": {"x": "y"}})
    assert made.status_code == 202, made.text
    broadcast = made.json()
    assert broadcast["id"].startswith("brd_")
    assert (broadcast["status"], broadcast["estimated"], broadcast["expanded"]) == ("running", 2, 0)
    assert broadcast["to"] == {"users": 2, "topics": ["t/#"], "segments": [], "all": False}
    where = f"/api/v1/broadcasts/{broadcast['id']}"
    assert (await shop.get(where)).json() == broadcast
    for what, status in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")):
        answer = await shop.post(f"{where}/{what}")
        assert (answer.status_code, answer.json()["status"]) == (200, status), answer.text
    assert (await shop.post(f"{where}/resume")).status_code == 409
    assert (await shop.get("/api/v1/broadcasts/brd_01h455vb4pex5vsknk084sn02q")).status_code == 404


async def test_the_same_key_makes_one(shop: Any) -> None:
    headers = {"idempotency-key": "k"}
    first = await shop.post("/api/v1/broadcasts", BODY, headers=headers)
    again = await shop.post("/api/v1/broadcasts", BODY, headers=headers)
    assert first.json() == again.json()
    assert again.headers["idempotent-replayed"] == "true"
    other = await shop.post("/api/v1/broadcasts", {**BODY, "rate": 5.0}, headers=headers)
    assert other.status_code == 422
    assert len((await shop.get("/api/v1/broadcasts")).json()["items"]) == 1


async def test_a_dry_run_answers_with_count_and_sample(shop: Any) -> None:
    answer = await shop.post("/api/v1/broadcasts", {**BODY, "to": {"all": True}, "dry_run": True})
    assert answer.status_code == 200
    assert answer.json()["count"] == 4
    assert sorted(answer.json()["sample"]) == ["a", "b", "c", "d"]
    assert (await shop.get("/api/v1/broadcasts")).json()["items"] == []
    sender = await shop.with_scopes(Scope.send)
    refused = await sender.post("/api/v1/broadcasts", {**BODY, "dry_run": True})
    assert refused.status_code == 403, "it shows users"


async def test_above_the_threshold_the_number_has_to_be_named(shop: Any) -> None:
    await shop.api.deps.database.execute("""UPDATE project SET settings = '{"confirm_above": 1}'""")
    refused = await shop.post("/api/v1/broadcasts", BODY)
    assert refused.status_code == 409
    problem = refused.json()
    assert problem["type"].endswith("#confirmation-needed")
    assert problem["count"] == 2
    assert (await shop.post("/api/v1/broadcasts", {**BODY, "confirm": problem["count"]})).status_code == 202


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"data": {}}, "/data/order"),
        ({"type": "none"}, "/type"),
        ({"to": {}}, "/to"),
        ({"to": {"topics": ["a", "#/x"]}}, "/to/topics/1"),
        ({"to": {"segment": "none"}}, "/to/segments/0"),
        ({"exclude": {"all": True}}, "/exclude/all"),
        ({"channels": ["sms"]}, "/channels"),
        ({"local_time": "2030-12-01T09:00:00Z"}, "/local_time"),
        ({"local_time": "2020-12-01T09:00"}, "/local_time"),
        ({"options": {"email": {"tag": []}}}, "/options/email/tag"),
        ({"rate": 0.0}, "/rate"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "/expires_at"),
        ({"unknown": 1}, "/unknown"),
    ],
)
async def test_what_cannot_be_taken_is_pointed_at(shop: Any, change: dict[str, Any], pointer: str) -> None:
    answer = await shop.post("/api/v1/broadcasts", {**BODY, **change})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["pointer"] == pointer


async def test_critical_needs_leave(shop: Any) -> None:
    sender = await shop.with_scopes(Scope.send)
    assert (await sender.post("/api/v1/broadcasts", {**BODY, "priority": "critical"})).status_code == 403
    assert (await shop.post("/api/v1/broadcasts", {**BODY, "priority": "critical"})).status_code == 202


async def test_pages_and_filter(shop: Any) -> None:
    for _ in range(3):
        assert (await shop.post("/api/v1/broadcasts", BODY)).status_code == 202
    page = (await shop.get("/api/v1/broadcasts?limit=2")).json()
    rest = (await shop.get(f"/api/v1/broadcasts?limit=2&cursor={page['next_cursor']}")).json()
    found = [item["id"] for item in (*page["items"], *rest["items"])]
    assert len(found) == 3
    assert found == sorted(found, reverse=True)
    assert rest["next_cursor"] is None
    assert (await shop.get("/api/v1/broadcasts?status=paused")).json()["items"] == []


async def test_other_projects_see_nothing_of_it(shop: Any) -> None:
    broadcast = (await shop.post("/api/v1/broadcasts", BODY)).json()
    other = await shop.api.new_project("other")
    assert (await other.get(f"/api/v1/broadcasts/{broadcast['id']}")).status_code == 404
    assert (await other.post(f"/api/v1/broadcasts/{broadcast['id']}/cancel")).status_code == 404
    assert (await other.get("/api/v1/broadcasts")).json()["items"] == []
