"""Types, templates and accounts over HTTP."""

from __future__ import annotations

from typing import Any

from tidings.model.words import Channel, Scope

CONTENT = {
    "default_locale": "en",
    "channels": {
        "email": {
            "en": {"subject": "Order {{ order.id }}", "html": "<p>{{ note|default('-') }}</p>"},
            "de": {"subject": "Bestellung {{ order.id }}", "text": "Hallo {{ user.attributes.name }}"},
        },
        "in_app": {"en": {"title": "Order {{ order.id }}"}},
    },
}


async def make_template(tenant: Any, key: str = "shipped") -> None:
    assert (await tenant.put(f"/api/v1/templates/{key}", {"name": "Shipped"})).status_code == 201
    made = await tenant.post(f"/api/v1/templates/{key}/versions", CONTENT)
    assert made.status_code == 201, made.text


# ---------------------------------------------------------------- templates


async def test_a_template_from_draft_to_published_and_back(tenant: Any) -> None:
    await make_template(tenant)
    draft = (await tenant.get("/api/v1/templates/shipped/versions/1")).json()
    assert (draft["version"], draft["required"], draft["published_at"]) == (1, ["order.id"], None)
    assert draft["content"] == CONTENT
    template = (await tenant.get("/api/v1/templates/shipped")).json()
    assert (template["published_version"], template["latest_version"]) == (None, 1)

    published = await tenant.post("/api/v1/templates/shipped/publish", {"version": 1})
    assert (published.status_code, published.json()["published_version"]) == (200, 1)
    await tenant.post("/api/v1/templates/shipped/versions", {"channels": {"sms": {"en": {"text": "x"}}}})
    refused = await tenant.post("/api/v1/templates/shipped/rollback", {"version": 2})
    assert refused.status_code == 409
    assert (await tenant.post("/api/v1/templates/shipped/publish", {"version": 2})).json()["published_version"] == 2
    back = await tenant.post("/api/v1/templates/shipped/rollback", {"version": 1})
    assert back.json()["published_version"] == 1
    assert (await tenant.post("/api/v1/templates/shipped/publish", {"version": 9})).status_code == 404

    listed = (await tenant.get("/api/v1/templates/shipped/versions?limit=1")).json()
    assert [v["version"] for v in listed["items"]] == [2]
    rest = (await tenant.get(f"/api/v1/templates/shipped/versions?limit=1&cursor={listed['next_cursor']}")).json()
    assert ([v["version"] for v in rest["items"]], rest["next_cursor"]) == ([1], None)
    assert [t["key"] for t in (await tenant.get("/api/v1/templates")).json()["items"]] == ["shipped"]
    actions = [entry["action"] for entry in (await tenant.get("/api/v1/audit?object=template:shipped")).json()["items"]]
    assert actions == [
        "template.rollback",
        "template.publish",
        "template.create_version",
        "template.publish",
        "template.create_version",
        "template.put",
    ]


async def test_a_template_is_renamed(tenant: Any) -> None:
    assert (await tenant.put("/api/v1/templates/a", {})).json()["name"] == "a"
    assert (await tenant.put("/api/v1/templates/a", {"name": "B"})).json()["name"] == "B"
    assert (await tenant.put("/api/v1/templates/a", {})).json()["name"] == "B"


async def test_faults_in_content_are_told_with_their_place(tenant: Any) -> None:
    await tenant.put("/api/v1/templates/bad", {})
    answer = await tenant.post(
        "/api/v1/templates/bad/versions",
        {
            "channels": {
                "email": {"en": {"subject": "Hi\n{{ name", "text": "{{ x|safe }}"}},
                "push": {"en": {"title": "x", "data": "{{ order", "actions": "[{{ a }}]"}},
                "in_app": {"en": {"body": "no title"}},
            }
        },
    )
    assert answer.status_code == 422
    told = {e["pointer"]: e["detail"] for e in answer.json()["errors"]}
    assert told["/channels/email/en/subject"].startswith("line 2:")
    assert "values are always escaped" in told["/channels/email/en/text"]
    assert told["/channels/push/en/data"].startswith("line 1:")
    assert "title" in told["/channels/in_app/en"]
    assert (await tenant.get("/api/v1/templates/bad")).json()["latest_version"] == 0


async def test_a_draft_is_made_once_for_an_idempotency_key(tenant: Any) -> None:
    await tenant.put("/api/v1/templates/a", {})
    headers = {"idempotency-key": "k1"}
    first = await tenant.post("/api/v1/templates/a/versions", CONTENT, headers=headers)
    second = await tenant.post("/api/v1/templates/a/versions", CONTENT, headers=headers)
    assert first.json() == second.json()
    assert second.headers["idempotent-replayed"] == "true"
    assert (await tenant.get("/api/v1/templates/a")).json()["latest_version"] == 1


async def test_a_preview_renders_and_stores_nothing(tenant: Any) -> None:
    await make_template(tenant)
    preview = await tenant.post(
        "/api/v1/templates/shipped/preview",
        {
            "channel": "email",
            "locale": "de-AT",
            "data": {"order": {"id": "A-1"}},
            "user": {"attributes": {"name": "Ada"}},
        },
    )
    assert preview.json() == {
        "version": 1,
        "channel": "email",
        "locale": "de-AT",
        "fields": {"subject": "Bestellung A-1", "text": "Hallo Ada"},
    }
    path = "/api/v1/templates/shipped/preview"
    lacking = await tenant.post(path, {"channel": "email"})
    assert [e["pointer"] for e in lacking.json()["errors"]] == ["/data/order/id"]
    broken = await tenant.post(path, {"channel": "email", "locale": "de", "data": {"order": {"id": "A"}}})
    assert broken.status_code == 422
    assert "email/de/text, line 1" in broken.json()["detail"]
    header = await tenant.post(path, {"channel": "email", "data": {"order": {"id": "A\r\nBcc: x"}}})
    assert header.status_code == 422
    assert (await tenant.post(path, {"channel": "sms"})).json()["errors"][0]["pointer"] == "/channel"
    assert (await tenant.post(path, {"channel": "email", "version": 7})).status_code == 404
    reader = await tenant.with_scopes(Scope.read)
    assert (await reader.post(path, {"channel": "in_app", "data": {"order": {"id": 1}}})).status_code == 200


# ---------------------------------------------------------------- types


async def test_a_type_has_a_version_for_every_change(tenant: Any) -> None:
    await make_template(tenant)
    body = {"template": "shipped", "steps": [{"send": ["email", "in_app"]}], "schema": {"type": "object"}}
    made = await tenant.put("/api/v1/types/order_shipped", body)
    assert made.status_code == 201, made.text
    assert made.json() == {
        "key": "order_shipped",
        "version": 1,
        "category": "general",
        "template": "shipped",
        "priority": "medium",
        "steps": [{"send": ["email", "in_app"]}],
        "expires_after": None,
        "guarantee": "at_least_once",
        "critical": False,
        "schema": {"type": "object"},
        "tracking": True,
        "digest": None,
        "limits": [],
        "quiet": "wait",
        "preferences": {},
        "send_time": None,
        "created_at": made.json()["created_at"],
        "archived_at": None,
    }
    same = await tenant.put("/api/v1/types/order_shipped", body)
    assert (same.status_code, same.json()) == (200, made.json())
    changed = await tenant.put("/api/v1/types/order_shipped", {**body, "expires_after": "2d"})
    assert (changed.json()["version"], changed.json()["expires_after"]) == (2, "2d")
    assert (await tenant.get("/api/v1/types/order_shipped")).json() == changed.json()
    versions = (await tenant.get("/api/v1/types/order_shipped/versions")).json()["items"]
    assert [(v["version"], v["expires_after"]) for v in versions] == [(2, "2d"), (1, None)]
    assert (await tenant.delete("/api/v1/categories/general")).status_code == 409


async def test_an_archived_type_is_taken_up_again(tenant: Any) -> None:
    await make_template(tenant)
    await tenant.put("/api/v1/types/shipped", {})
    assert (await tenant.delete("/api/v1/types/shipped")).status_code == 204
    assert (await tenant.delete("/api/v1/types/shipped")).status_code == 204
    assert (await tenant.get("/api/v1/types")).json()["items"] == []
    assert (await tenant.get("/api/v1/types/shipped")).json()["archived_at"] is not None
    again = await tenant.put("/api/v1/types/shipped", {})
    assert (again.status_code, again.json()["version"], again.json()["archived_at"]) == (200, 1, None)


async def test_a_type_with_every_rule_is_shown_as_it_may_be_put(tenant: Any) -> None:
    await make_template(tenant)
    body: dict[str, Any] = {
        "category": "general",
        "steps": [
            {"send": ["push", "in_app"]},
            {"wait": "10m", "unless": "seen"},
            {"if": {"data": "urgent", "is": True}, "then": [{"first": ["sms", "email"], "within": "5m"}]},
            {"delay": "1h"},
            {"throttle": {"max": 2, "window": "1d"}},
        ],
        "digest": {"window": "15m", "key": "order", "max": 20},
        "limits": [{"max": 3, "window": "1d", "channel": "sms", "then": "defer"}],
        "quiet": "digest",
        "preferences": {"sms": False},
        "send_time": {"within": "12h", "fallback": "09:00"},
    }
    made = await tenant.put("/api/v1/types/shipped", body)
    assert made.status_code == 201, made.text
    shown = made.json()
    assert (shown["quiet"], shown["preferences"]) == ("digest", {"sms": False})
    assert body["digest"].items() <= shown["digest"].items()
    assert body["limits"][0].items() <= shown["limits"][0].items()
    assert body["send_time"].items() <= shown["send_time"].items()
    again = await tenant.put(
        "/api/v1/types/shipped",
        {name: value for name, value in shown.items() if name not in ("key", "version", "created_at", "archived_at")},
    )
    assert (again.status_code, again.json()) == (200, shown)


async def test_what_a_type_cannot_be_is_refused_with_its_place(tenant: Any) -> None:
    await make_template(tenant)
    answer = await tenant.put(
        "/api/v1/types/shipped",
        {
            "digest": {"window": "15x"},
            "limits": [{"max": 0, "window": "1d"}],
            "steps": [{"first": []}, {"wait": "1m"}, {"send": ["push", "pigeon"]}],
            "preferences": {"sms": False},
            "schema": {"$ref": "https://example.com/x"},
        },
    )
    assert answer.status_code == 422
    assert {e["pointer"] for e in answer.json()["errors"]} == {
        "/digest/window",
        "/limits/0/max",
        "/steps/0/first",
        "/steps/1/unless",
        "/steps/2/send/1",
        "/schema/$ref",
    }
    for body, at in (
        ({"categori": "x"}, "/categori"),
        ({"digest": {"windows": "1m"}}, "/digest/windows"),
        ({"limits": [{"max": 1}]}, "/limits/0/window"),
        ({"quiet": "sleep"}, "/quiet"),
        ({"preferences": {"pigeon": True}}, "/preferences/pigeon"),
    ):
        unknown = await tenant.put("/api/v1/types/shipped", body)
        assert unknown.json()["errors"][0]["pointer"] == at


async def test_a_type_names_what_there_is(tenant: Any) -> None:
    answer = await tenant.put("/api/v1/types/shipped", {"category": "nope"})
    assert {e["pointer"] for e in answer.json()["errors"]} == {"/category", "/template"}
    assert (await tenant.get("/api/v1/types/shipped")).status_code == 404
    assert (await tenant.get("/api/v1/types/shipped/versions")).status_code == 404
    assert (await tenant.delete("/api/v1/types/shipped")).status_code == 404


# ---------------------------------------------------------------- accounts


async def test_an_account_over_its_life(tenant: Any) -> None:
    secret = "whsec_" + "c2VjcmV0" * 6
    body = {"channel": "webhook", "provider": "webhook", "config": {"secret": secret}, "rate": 10, "burst": 5}
    made = await tenant.put("/api/v1/accounts/hooks", body)
    assert made.status_code == 201, made.text
    config = made.json()["config"]
    assert (config["secret"], config["previous_secret"]) == ("…", None)
    assert (made.json()["rate"], made.json()["burst"], made.json()["enabled"]) == (10, 5, True)
    kept = await tenant.put("/api/v1/accounts/hooks", {**body, "config": made.json()["config"], "enabled": False})
    assert (kept.status_code, kept.json()["revision"]) == (200, 2)
    assert (await tenant.get("/api/v1/accounts/hooks")).json() == kept.json()
    for path in ("/api/v1/accounts", "/api/v1/accounts/hooks", "/api/v1/audit"):
        assert secret not in (await tenant.get(path)).text
    assert (await tenant.delete("/api/v1/accounts/hooks")).status_code == 204
    assert (await tenant.get("/api/v1/accounts/hooks")).status_code == 404
    keys = [a["key"] for a in (await tenant.get("/api/v1/accounts")).json()["items"]]
    assert keys == ["inbox", *(f"simulator-{name}" for name in sorted(Channel.__members__))]


async def test_quotas_costs_and_state_of_an_account(tenant: Any) -> None:
    body = {
        "channel": "sms",
        "provider": "simulator",
        "quotas": {"day": {"messages": 100}, "month": {"spend": 25.5}},
        "costs": {"US": 0.0079, "*": 0.05},
        "currency": "USD",
    }
    made = (await tenant.put("/api/v1/accounts/texts", body)).json()
    assert made["quotas"] == {"day": {"messages": 100, "spend": None}, "month": {"messages": None, "spend": 25.5}}
    assert (made["costs"], made["currency"]) == (body["costs"], "USD")
    nothing = {"messages": 0, "spend": 0.0}
    assert made["state"] == {
        "breaker": "closed",
        "open_until": None,
        "paused_until": None,
        "exhausted_until": None,
        "learned_rate": None,
        "health": 1.0,
        "effective_weight": 100.0,
        "used": {"day": nothing, "month": nothing},
    }
    again = await tenant.put("/api/v1/accounts/texts", body)
    assert (again.status_code, again.json()["revision"]) == (200, 1)
    changed = await tenant.put("/api/v1/accounts/texts", {**body, "quotas": {}})
    assert changed.json()["revision"] == 2
    last = (await tenant.get("/api/v1/audit")).json()["items"][0]
    assert last["before"]["quotas"]["day"]["messages"] == 100
    assert last["after"]["quotas"]["day"]["messages"] is None


async def test_a_vendor_is_asked_about_an_account(tenant: Any) -> None:
    checked = await tenant.post("/api/v1/accounts/inbox/check", {})
    assert (checked.status_code, checked.json()) == (200, {"outcome": "unknown", "detail": None})
    body = {"channel": "email", "provider": "smtp", "config": {"host": "127.0.0.1", "from_address": "a@example.com"}}
    assert (await tenant.put("/api/v1/accounts/mail", {**body, "enabled": False})).status_code == 201
    checked = (await tenant.post("/api/v1/accounts/mail/check", {})).json()
    assert checked["outcome"] == "failed"
    assert checked["detail"] == "the target is not a public address"
    assert (await tenant.post("/api/v1/accounts/nobody/check", {})).status_code == 404
    reader = await tenant.with_scopes(Scope.read)
    assert (await reader.post("/api/v1/accounts/mail/check", {})).status_code == 403


async def test_accounts_that_are_refused(tenant: Any) -> None:
    for body, pointer in (
        ({"channel": "pigeon", "provider": "x"}, "/channel"),
        ({"channel": "email", "provider": "nobody"}, "/provider"),
        ({"channel": "sms", "provider": "smtp"}, "/provider"),
        ({"channel": "email", "provider": "smtp", "config": {"host": "h"}}, "/config/from_address"),
        ({"channel": "webhook", "provider": "webhook", "config": {"secret": "whsec_hush"}}, "/config/secret"),
        ({"channel": "email", "provider": "simulator", "rate": 0}, "/rate"),
        ({"channel": "email", "provider": "simulator", "rate": 1e-7}, "/rate"),
        ({"channel": "email", "provider": "simulator", "weight": "5"}, "/weight"),
        ({"channel": "email", "provider": "simulator", "costs": {"US": 0.01}}, "/costs/US"),
        ({"channel": "sms", "provider": "simulator", "costs": {"usa": 0.01}}, "/costs/usa"),
        ({"channel": "sms", "provider": "simulator", "costs": {"US": -1}}, "/costs/US"),
        ({"channel": "sms", "provider": "simulator", "currency": "Euro"}, "/currency"),
        ({"channel": "sms", "provider": "simulator", "quotas": {"day": {"messages": -1}}}, "/quotas/day/messages"),
        ({"channel": "sms", "provider": "simulator", "quotas": {"week": {}}}, "/quotas/week"),
    ):
        answer = await tenant.put("/api/v1/accounts/new", body)
        assert answer.status_code == 422, answer.text
        assert [e["pointer"] for e in answer.json()["errors"]] == [pointer]
        assert "hush" not in answer.text
    assert (await tenant.delete("/api/v1/accounts/simulator-email")).status_code == 409


async def test_readers_cannot_write(tenant: Any) -> None:
    reader = await tenant.with_scopes(Scope.read)
    assert (await reader.get("/api/v1/accounts")).status_code == 200
    for path in ("/api/v1/accounts/x", "/api/v1/types/x", "/api/v1/templates/x"):
        assert (await reader.put(path, {})).status_code == 403
