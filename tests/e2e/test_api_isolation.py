"""Two projects: with the other's ids and keys no route shows, changes or removes anything.

The test walks every route of the application, so a new router is tried as soon as it is mounted. `_ids_of`
says what each path parameter is in the other project; a parameter that it does not know fails the test.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from tidings.ids import DELIVERY, NOTIFICATION, child_id, new_id, to_public
from tidings.model.words import Scope
from tidings.web.app import to_openapi

SECRET = "only-the-owner-knows-this"


async def _ids_of(owner: Any) -> dict[str, str]:
    """Ids of things that exist in the owner's project, by path parameter."""
    await owner.put(
        f"/api/v1/users/{SECRET}", {"attributes": {"note": SECRET}, "addresses": {"email": "a@example.com"}}
    )
    said = {"channels": {"sms": False}, "consent": {"wording": SECRET}}
    await owner.put(f"/api/v1/users/{SECRET}/preferences", said)
    await owner.put(f"/api/v1/categories/{SECRET}", {"name": SECRET})
    await owner.put(f"/api/v1/templates/{SECRET}", {"name": SECRET})
    content = {"channels": {"email": {"en": {"subject": SECRET, "text": SECRET}}}}
    await owner.post(f"/api/v1/templates/{SECRET}/versions", content)
    await owner.post(f"/api/v1/templates/{SECRET}/publish", {"version": 1})
    await owner.put(f"/api/v1/types/{SECRET}", {"category": SECRET, "template": SECRET})
    await owner.put(f"/api/v1/topics/{SECRET}/members", {"users": [SECRET]})
    await owner.put(f"/api/v1/segments/{SECRET}", {"name": SECRET, "condition": {"topic": SECRET}})
    account = {"channel": "email", "provider": "smtp", "config": {"host": "a.example", "from_address": "a@a.example"}}
    await owner.put(f"/api/v1/accounts/{SECRET}", account)
    await owner.request("POST", "/api/v1/blobs", content=SECRET.encode())
    clock, database = owner.api.clock, owner.api.deps.database
    notification = new_id(clock.now(), clock.random)
    delivery = child_id(notification, clock.random)
    await database.execute(
        "INSERT INTO notification (id, project_id, user_id, priority, content) VALUES ($1, $2, $3, 2, '{}')",
        notification,
        owner.project_id,
        SECRET,
    )
    await database.execute(
        "INSERT INTO delivery (id, project_id, notification_id, channel, status, address)"
        " VALUES ($1, $2, $3, 1, 4, $4)",
        delivery,
        owner.project_id,
        notification,
        SECRET,
    )
    await database.execute(
        "INSERT INTO dead_letter (project_id, delivery_id, notification_id, channel, reason, attempts)"
        " VALUES ($1, $2, $3, 1, 'bounced', 1)",
        owner.project_id,
        delivery,
        notification,
    )
    rule = {"event": {"type": "a.b"}, "type": SECRET, "to": {"user": "subject"}}
    await owner.put(f"/api/v1/event_rules/{SECRET}", rule)
    ask = {"type": SECRET, "to": {"users": [SECRET]}, "send_at": (clock.now() + timedelta(days=1)).isoformat()}
    broadcast = await owner.post("/api/v1/broadcasts", ask)
    key = await owner.post("/api/v1/keys", {"name": SECRET, "scopes": ["read"]})
    return {
        "user_id": SECRET,
        "key": SECRET,
        "key_id": key.json()["id"],
        "notification_id": to_public(NOTIFICATION, notification),
        "delivery_id": to_public(DELIVERY, delivery),
        "broadcast_id": broadcast.json()["id"],
        "version": "1",
        "mark": "read",
    }


async def _snapshot(api: Any, project_id: int) -> dict[str, list[Any]]:
    tables: tuple[str, ...] = (
        "app_user",
        "address",
        "category",
        "api_key",
        "template",
        "template_version",
        "type",
        "account",
        "audit",
        "consent",
    )
    tables += ("notification", "delivery", "event", "dead_letter", "job", "blob", "broadcast", "broadcast_cohort")
    tables += ("topic", "topic_member", "segment", "event_rule")
    return {
        table: await api.deps.database.fetch(f"SELECT * FROM {table} WHERE project_id = $1 ORDER BY 1, 2", project_id)
        for table in tables
    }


async def test_no_route_reaches_into_another_project(api: Any) -> None:
    owner, stranger = await api.new_project("owner"), await api.new_project("stranger")
    ids = await _ids_of(owner)
    for noun in ("users", "categories", "templates", "types", "accounts"):
        assert (await owner.get(f"/api/v1/{noun}/{SECRET}")).status_code == 200, f"the owner's {noun} were not made"
    before = await _snapshot(api, owner.project_id)
    tried = 0
    # Writes come last: under a key that each project chooses for itself they make the stranger's own thing.
    for wanted in ("get", "delete", "post", "patch", "put"):
        for path in (path for path, item in to_openapi(api.app, {})["paths"].items() if wanted in item):
            where = f"{wanted} {path}"
            names = re.findall(r"{(\w+)}", path)
            unknown = set(names) - set(ids)
            assert not unknown, f"{where}: say in _ids_of what {unknown} is in the owner's project"
            body: dict[str, object] | None = {} if wanted in ("put", "post", "patch") else None
            if where == "delete /api/v1/topics/{key}/members":
                body = {"users": [SECRET]}
            answer = await stranger.request(wanted.upper(), path.format_map(ids), json=body)
            tried += 1
            assert answer.status_code < 500, f"{where}: {answer.text}"
            if wanted == "delete" or (wanted == "get" and names):
                assert answer.status_code == 404, f"{where} answered {answer.status_code}: {answer.text}"
            if wanted == "post" and names:
                assert answer.status_code >= 400, f"{where} did something: {answer.text}"
            if wanted == "get" and not names:
                assert SECRET not in answer.text, f"{where} shows what is the owner's"
    assert tried >= 15
    assert await _snapshot(api, owner.project_id) == before


async def test_every_route_asks_for_a_key_and_a_scope(api: Any) -> None:
    tenant = await api.new_project("owner")
    powerless = await tenant.with_scopes(Scope.send_critical)  # opens nothing by itself
    for path, item in to_openapi(api.app, {})["paths"].items():
        url = re.sub(r"{\w+}", "x", path)
        for method in item:
            assert (await api.client.request(method.upper(), url)).status_code == 401
            answer = await powerless.request(method.upper(), url, json={})
            assert answer.status_code == 403, f"{method} {path}: {answer.text}"
