"""Events in: CloudEvents in every form over HTTP, and what the rules make of them."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import pytest

from tidings.model.words import Scope

EVENTS = "/api/v1/events"
RULES = "/api/v1/event_rules"
EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "e-1",
    "source": "/shop",
    "type": "com.shop.order.shipped",
    "data": {"customer": {"id": "ada"}, "order": {"id": "A-1"}},
}
RULE: dict[str, Any] = {
    "event": {"type": "com.shop.order.*"},
    "type": "order",
    "to": {"user": "data.customer.id"},
    "data": {"order": "data.order.id"},
}


@pytest.fixture
async def shop(api: Any) -> Any:
    """A project with a user, a type that wants `order`, and a rule."""
    tenant = await api.new_project("shop")
    await tenant.put("/api/v1/users/ada", {"addresses": {"email": "ada@example.com"}})
    await tenant.put("/api/v1/templates/order", {})
    content = {"channels": {"email": {"en": {"subject": "Order {{ order }}", "text": "It is on its way."}}}}
    assert (await tenant.post("/api/v1/templates/order/versions", content)).status_code == 201
    assert (await tenant.post("/api/v1/templates/order/publish", {"version": 1})).status_code == 200
    assert (await tenant.put("/api/v1/types/order", {"category": "general", "template": "order"})).status_code == 201
    made = await tenant.put(f"{RULES}/orders", RULE)
    assert made.status_code == 201, made.text
    return tenant


async def _post(shop: Any, body: Any, content_type: str = "application/cloudevents+json", **headers: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await shop.request("POST", EVENTS, content=content, headers={"content-type": content_type, **headers})


async def _stored(shop: Any) -> int:
    count = "SELECT count(*) FROM notification WHERE project_id = $1"
    stored: int = await shop.api.deps.database.fetchval(count, shop.project_id)
    return stored


async def test_a_rule_is_made_changed_listed_and_removed(shop: Any) -> None:
    shown = (await shop.get(f"{RULES}/orders")).json()
    assert RULE.items() <= {**shown, "event": {"type": shown["event"]["type"]}}.items()
    assert (await shop.put(f"{RULES}/orders", RULE)).json() == shown, "the same again changes nothing"
    changed = await shop.put(f"{RULES}/orders", {**RULE, "enabled": False})
    assert (changed.status_code, changed.json()["enabled"]) == (200, False)
    assert [rule["key"] for rule in (await shop.get(RULES)).json()["items"]] == ["orders"]
    assert (await shop.delete(f"{RULES}/orders")).status_code == 204
    assert (await shop.get(f"{RULES}/orders")).status_code == 404
    trail = (await shop.get("/api/v1/audit", params={"object": "event_rule:orders"})).json()["items"]
    assert [entry["action"] for entry in trail] == ["event_rule.delete", "event_rule.put", "event_rule.put"]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"type": "nothing"}, "/type"),
        ({"to": {"segment": "all"}}, "/to/segment"),
        ({"when": {"user": "plan", "is": "pro"}}, "/when"),
        ({"rate": 5}, "/rate"),
        ({"event": {"kind": "x"}}, "/event/type"),
    ],
)
async def test_what_is_no_rule_is_refused_with_its_place(shop: Any, change: dict[str, Any], pointer: str) -> None:
    answer = await shop.put(f"{RULES}/orders", {**RULE, **change})
    assert answer.status_code == 422
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]


async def test_an_event_becomes_a_notification_and_is_taken_once(shop: Any) -> None:
    answer = await _post(shop, EVENT)
    assert answer.status_code == 202, answer.text
    [result] = answer.json()["results"]
    assert result["id"] == "e-1"
    [made] = result["notifications"]
    assert (made["rule"], made["status"]) == ("orders", "queued")
    shown = (await shop.get(f"/api/v1/notifications/{made['id']}")).json()
    assert (shown["type"], shown["user"]) == ("order", "ada")
    again = await _post(shop, EVENT)
    assert again.json()["results"] == [{"id": "e-1", "notifications": [{**made, "idempotent_replayed": True}]}]
    # Also when the rule, or what the event says, is another one meanwhile.
    await shop.put(f"{RULES}/orders", {**RULE, "priority": "high"})
    changed = await _post(shop, {**EVENT, "data": {**EVENT["data"], "order": {"id": "B-2"}}})
    assert changed.json()["results"][0]["notifications"][0]["id"] == made["id"]
    assert await _stored(shop) == 1
    other = await _post(shop, {**EVENT, "source": "/other"})
    assert other.json()["results"][0]["notifications"][0]["id"] != made["id"]
    assert await _stored(shop) == 2


async def test_every_form_of_an_event_is_taken(shop: Any) -> None:
    for number, (body, content_type, headers) in enumerate(
        [
            ({**EVENT, "id": "f-0"}, "application/cloudevents+json; charset=utf-8", {}),
            ({**EVENT, "id": "f-1"}, "application/json", {}),
            ([{**EVENT, "id": "f-2"}], "application/cloudevents-batch+json", {}),
            ([{**EVENT, "id": "f-3"}], "application/json", {}),
            (
                EVENT["data"],
                "application/json",
                {
                    "ce-specversion": "1.0",
                    "ce-id": "f-4",
                    "ce-source": "/shop",
                    "ce-type": EVENT["type"],
                    "ce-subject": "caf%C3%A9",
                },
            ),
        ]
    ):
        answer = await _post(shop, body, content_type, **headers)
        assert answer.status_code == 202, answer.text
        [result] = answer.json()["results"]
        assert result["id"] == f"f-{number}"
        assert result["notifications"][0]["status"] == "queued", result
    assert (await _post(shop, [], "application/cloudevents-batch+json")).json() == {"results": []}


@pytest.mark.parametrize(
    ("body", "content_type", "headers", "status"),
    [
        (EVENT, "text/plain", {}, 415),
        (b"{", "application/cloudevents+json", {}, 400),
        ([EVENT], "application/cloudevents+json", {}, 422),
        (EVENT, "application/cloudevents-batch+json", {}, 422),
        ({**EVENT, "specversion": "2.0"}, "application/cloudevents+json", {}, 422),
        ({**EVENT, "data": "\0"}, "application/cloudevents+json", {}, 422),
        ([EVENT] * 1001, "application/cloudevents-batch+json", {}, 422),
        (b"x", "text/plain", {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/", "ce-type": "x"}, 415),
        ({}, "application/json", {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/"}, 422),
        ({}, "application/json", {"ce-specversion": "1.0", "ce-id": "%ff", "ce-source": "/", "ce-type": "x"}, 400),
    ],
)
async def test_what_is_no_event_is_refused(
    shop: Any, body: Any, content_type: str, headers: dict[str, str], status: int
) -> None:
    answer = await _post(shop, body, content_type, **headers)
    assert answer.status_code == status, answer.text
    assert await _stored(shop) == 0


async def test_in_a_batch_each_event_goes_its_own_way(shop: Any) -> None:
    second = {**RULE, "event": {"type": "*"}, "when": {"data": "vip", "is": True}, "metadata": {"event": "{id}"}}
    assert (await shop.put(f"{RULES}/vips", second)).status_code == 201
    events = [
        {**EVENT, "id": "1"},
        {**EVENT, "id": "2", "type": "com.other"},
        {**EVENT, "id": "3", "data": {"customer": {"id": "nobody"}, "order": {"id": "A"}}},
        {"id": "4"},
        {**EVENT, "id": "5", "data": {**EVENT["data"], "vip": True}},
        {**EVENT, "id": "6", "data": {"customer": {"id": "ada"}}},
        {**EVENT, "id": "1"},
    ]
    answer = await _post(shop, events, "application/cloudevents-batch+json")
    assert answer.status_code == 202, answer.text
    results = answer.json()["results"]
    assert [result["id"] for result in results] == ["1", "2", "3", "4", "5", "6", "1"]
    assert results[1] == {"id": "2", "notifications": []}
    assert results[2]["notifications"][0]["problem"]["errors"][0]["pointer"] == "/to/user"
    assert {e["pointer"] for e in results[3]["problem"]["errors"]} == {"/specversion", "/source", "/type"}
    assert [made["rule"] for made in results[4]["notifications"]] == ["orders", "vips"]
    assert results[5]["notifications"][0]["problem"]["errors"][0]["pointer"] == "/data/order"
    assert results[6]["notifications"][0]["id"] == results[0]["notifications"][0]["id"]
    assert await _stored(shop) == 3
    shown = (await shop.get(f"/api/v1/notifications/{results[4]['notifications'][1]['id']}")).json()
    assert shown["metadata"] == {"event": "5"}


async def test_events_need_the_scope_to_send_and_critical_ones_leave(shop: Any) -> None:
    reader = await shop.with_scopes(Scope.read)
    assert (await _post(reader, EVENT)).status_code == 403
    await shop.put(f"{RULES}/orders", {**RULE, "priority": "critical"})
    sender = await shop.with_scopes(Scope.send)
    [made] = (await _post(sender, EVENT)).json()["results"][0]["notifications"]
    assert made["problem"]["status"] == 403
    assert "id" in (await _post(shop, EVENT)).json()["results"][0]["notifications"][0]


async def test_what_rules_make_of_an_event_counts_against_the_keys_rate(shop: Any) -> None:
    for n in range(4):
        assert (await shop.put(f"{RULES}/more-{n}", RULE)).status_code == 201
    made = await shop.post("/api/v1/keys", {"name": "k", "scopes": ["send"], "rate": 7})
    limited = type(shop)(shop.api, shop.project_id, shop.project_key, made.json()["key"])
    unknown = {**EVENT, "id": "e-2", "data": {"customer": {}}}
    answer = await _post(limited, [EVENT, unknown, {**EVENT, "id": "e-3"}], "application/cloudevents-batch+json")
    assert answer.status_code == 202, answer.text
    # Seven: three for the events, each of which pays for the first that is made of it, and four for further ones.
    first, second, third = ([one.get("problem") for one in r["notifications"]] for r in answer.json()["results"])
    assert first == [None] * 5
    assert {problem["status"] for problem in second} == {422}, "nothing was made, so nothing is counted"
    assert third[0] is None
    assert [problem["status"] for problem in third[1:]] == [429] * 4
    assert third[1]["type"].endswith("#rate-limited")
    assert await _stored(shop) == 6
    again = await _post(shop, {**EVENT, "id": "e-3"})
    assert ["id" in one for one in again.json()["results"][0]["notifications"]] == [True] * 5, "what was refused comes"
    assert await _stored(shop) == 10


async def test_rules_of_one_project_see_no_events_of_another(shop: Any) -> None:
    other = await shop.api.new_project("other")
    assert (await _post(other, EVENT)).json()["results"] == [{"id": "e-1", "notifications": []}]
    assert (await other.get(f"{RULES}/orders")).status_code == 404


async def test_a_send_once_key_is_stored_with_the_notification(shop: Any) -> None:
    await shop.put(f"{RULES}/orders", {**RULE, "once": "shipped:{data.order.id}"})
    [made] = (await _post(shop, EVENT)).json()["results"][0]["notifications"]
    assert "id" in made
    direct = {"type": "order", "to": {"user": "ada"}, "data": {"order": "1"}, "once": "welcome"}
    assert (await shop.post("/api/v1/notifications", direct)).status_code == 202
    keys = await shop.api.deps.database.fetch("SELECT once_key FROM notification ORDER BY id")
    assert {row["once_key"] for row in keys} == {"shipped:A-1", "welcome"}
    for bad in ("", "x" * 256, "a\nb"):
        refused = await shop.post("/api/v1/notifications", {**direct, "once": bad})
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["pointer"] == "/once"


async def test_an_event_is_bounded_in_size(shop: Any) -> None:
    """Conditions of rules look through all of its data, while others wait."""
    large = {**EVENT, "id": "e-2", "data": {**EVENT["data"], "list": [1] * 150_000}}
    assert (await _post(shop, large)).status_code == 413
    answer = await _post(shop, [large, EVENT], "application/cloudevents-batch+json")
    assert answer.status_code == 202
    first, second = answer.json()["results"]
    assert (first["id"], first["problem"]["status"]) == ("e-2", 413)
    assert len(second["notifications"]) == 1


async def test_costly_rules_hold_up_nobody_else(shop: Any) -> None:
    """A thousand events against conditions with long lists: others get their turn meanwhile, and it ends."""
    values = [*range(99), 2.5]
    when = {"any": [{"data": "n", "not_in": [*values, 7 + i][1:]} for i in range(48)]}
    for n in range(20):
        assert (await shop.put(f"{RULES}/costly-{n}", {**RULE, "when": when})).status_code == 201
    events = [{**EVENT, "id": f"e{n}", "data": {"n": 7}} for n in range(300)]
    busy = asyncio.create_task(_post(shop, events, "application/cloudevents-batch+json"))
    longest = 0.0
    while not busy.done():
        began = time.perf_counter()
        await asyncio.sleep(0)
        longest = max(longest, time.perf_counter() - began)
    assert (await busy).status_code in (202, 503)
    assert longest < 1


async def test_nul_in_binary_data_is_refused_for_that_event_alone(shop: Any) -> None:
    """The edge looks for it in the body; here it is hidden in base64."""
    for text in ('{"customer": {"id": "ada"}, "order": {"id": "\\u0000"}}', '{"customer": {"id": "a\\u0000"}}'):
        hidden = {**EVENT, "id": "e-3", "data_base64": base64.b64encode(text.encode()).decode()}
        del hidden["data"]
        answer = await _post(shop, [hidden, {**EVENT, "id": text}], "application/cloudevents-batch+json")
        assert answer.status_code == 202, answer.text
        first, second = answer.json()["results"]
        assert "problem" in (first["notifications"] or [first])[0], first
        assert "id" in second["notifications"][0]


async def test_explaining_takes_leave_to_read(shop: Any) -> None:
    """It shows a user's addresses and choices, which a key that may only send does not see."""
    body: dict[str, Any] = {"notification": {"type": "order", "to": {"user": "ada"}, "data": {"order": "A-1"}}}
    assert "ada@example.com" in (await shop.post("/api/v1/explain", body)).text
    shop.token = await shop.api.new_key(shop.project_id, (Scope.send,))
    assert (await shop.post("/api/v1/explain", body)).status_code == 403


@pytest.mark.parametrize("at", ["9999-12-31T00:00:00Z", "0001-01-01T00:00:00Z"])
async def test_what_if_it_were_the_end_of_the_calendar(shop: Any, at: str) -> None:
    body = {"notification": {"type": "order", "to": {"user": "ada"}, "data": {"order": "A-1"}}, "at": at}
    answer = await shop.post("/api/v1/explain", body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/at")
