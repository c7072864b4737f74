"""Preferences, consents and the rules of categories, types and projects over HTTP."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from tidings.model.words import Scope

PATH = "/api/v1/users/ada/preferences"
OWN = "/api/v1/inbox/preferences"
SILENT: dict[str, Any] = {
    "muted": False,
    "muted_until": None,
    "channels": {},
    "categories": {},
    "types": {},
    "quiet_hours": None,
}


@pytest.fixture
async def shop(tenant: Any) -> Any:
    """A project with a required category, one that is off on SMS, types of both, and a user."""
    await tenant.put("/api/v1/users/ada", {"time_zone": "Europe/Vienna"})
    await tenant.put("/api/v1/categories/security", {"name": "Security", "required": True})
    await tenant.put("/api/v1/categories/news", {"name": "News", "defaults": {"sms": False}, "frequency": "weekly"})
    await tenant.put("/api/v1/templates/t", {})
    await tenant.put("/api/v1/types/login", {"category": "security", "template": "t"})
    await tenant.put("/api/v1/types/offer", {"category": "news", "template": "t", "preferences": {"push": False}})
    await tenant.put("/api/v1/types/digestible", {"category": "news", "template": "t"})
    return tenant


async def sign_in(tenant: Any) -> dict[str, str]:
    issued = await tenant.post("/api/v1/users/ada/tokens", {})
    return {"authorization": f"Bearer {issued.json()['token']}"}


def pointers(answer: Any) -> set[str]:
    assert answer.status_code == 422, answer.text
    return {error.get("pointer") for error in answer.json()["errors"]}


def levels(row: Any) -> dict[str, tuple[bool, str]]:
    return {name: (cell["on"], cell["level"]) for name, cell in row["channels"].items()}


# ---------------------------------------------------------------- what is said, and what holds


async def test_who_says_nothing_gets_the_defaults(shop: Any) -> None:
    answer = (await shop.get(PATH)).json()
    assert answer["said"] == {**SILENT, "time_zone": "Europe/Vienna"}
    general, news, security = answer["categories"]
    assert [general["key"], news["key"], security["key"]] == ["general", "news", "security"]
    assert set(levels(general).values()) == {(True, "default")}
    assert levels(news)["sms"] == (False, "category")
    assert news["channels"]["sms"] == {
        "on": False,
        "level": "category",
        "detail": "the default of the category `news` for sms is off",
        "required": False,
        "locked": False,
    }
    assert news["frequency"] == {"value": "weekly", "level": "category", "locked": False}
    assert all(cell["locked"] and cell["on"] for cell in security["channels"].values())
    assert [(row["key"], row["category"]) for row in answer["types"]] == [("offer", "news")]
    assert levels(answer["types"][0])["push"] == (False, "type")
    assert (await shop.get("/api/v1/users/nobody/preferences")).status_code == 404


async def test_put_replaces_and_patch_merges(shop: Any) -> None:
    said = {
        "muted": True,
        "muted_until": "2099-01-01T00:00:00+01:00",
        "channels": {"sms": False},
        "categories": {"news": {"enabled": True, "channels": {"sms": True}, "frequency": "daily"}},
        "types": {"offer": {"enabled": False}, "not-there-yet": {"channels": {"push": True}}},
    }
    put = await shop.put(PATH, said)
    assert put.status_code == 200, put.text
    assert put.json()["said"] == {
        **said,
        "muted_until": "2098-12-31T23:00:00Z",
        "categories": {"news": {"enabled": True, "channels": {"sms": True}, "frequency": "daily"}},
        "types": {
            "offer": {"enabled": False, "channels": {}},
            "not-there-yet": {"enabled": None, "channels": {"push": True}},
        },
        "quiet_hours": None,
        "time_zone": "Europe/Vienna",
    }
    again = await shop.put(PATH, put.json()["said"])
    assert again.json() == put.json() == (await shop.get(PATH)).json(), "what was said is a body too"
    assert len((await shop.get("/api/v1/audit?action=user.put_preferences")).json()["items"]) == 1

    patch = {
        "muted": None,
        "categories": {"news": {"channels": {"sms": None, "chat": False}}},
        "types": {"offer": None},
    }
    patched = (await shop.request("PATCH", PATH, json=patch)).json()
    assert patched["said"] == {
        "muted": False,
        "muted_until": None,
        "channels": {"sms": False},
        "categories": {"news": {"enabled": True, "channels": {"chat": False}, "frequency": "daily"}},
        "types": {"not-there-yet": {"enabled": None, "channels": {"push": True}}},
        "quiet_hours": None,
        "time_zone": "Europe/Vienna",
    }
    news = patched["categories"][1]
    assert levels(news)["chat"] == (False, "user_category_channel")
    assert levels(news)["sms"] == (False, "user_channel"), "off wins over on"
    assert levels(news)["email"] == (True, "user_category")
    assert news["frequency"]["level"] == "user_category"

    cleared = (await shop.put(PATH, {"time_zone": None})).json()["said"]
    assert cleared == {**SILENT, "time_zone": None}
    assert (await shop.get("/api/v1/users/ada")).json()["time_zone"] is None


async def test_preferences_of_a_required_category_cannot_be_switched_off(shop: Any) -> None:
    refused = await shop.put(
        PATH,
        {
            "categories": {
                "security": {"enabled": False, "channels": {"email": False, "sms": True}, "frequency": "daily"},
                "news": {"enabled": False},
            },
            "types": {"login": {"channels": {"push": False}}, "offer": {"enabled": False}},
        },
    )
    assert pointers(refused) == {
        "/categories/security/enabled",
        "/categories/security/channels/email",
        "/categories/security/frequency",
        "/types/login/channels/push",
    }
    assert "required: it cannot be switched off" in refused.text
    assert pointers(await shop.request("PATCH", PATH, json={"categories": {"security": {"enabled": False}}}))
    own = await shop.request("PATCH", OWN, json={"types": {"login": {"enabled": False}}}, headers=await sign_in(shop))
    assert pointers(own) == {"/types/login/enabled"}
    assert (await shop.get(PATH)).json()["said"]["categories"] == {}

    # What is said of everything stays allowed, and does not reach what is required.
    muted = (await shop.put(PATH, {"muted": True, "categories": {"security": {"enabled": True}}})).json()
    assert levels(muted["categories"][2])["email"] == (True, "category")
    assert levels(muted["categories"][1])["email"] == (False, "user")

    # What becomes required later is told all the same, whatever was said before.
    await shop.put(PATH, {"categories": {"news": {"enabled": False}}})
    await shop.put("/api/v1/categories/news", {"name": "News", "required": True})
    patched = await shop.request("PATCH", PATH, json={"channels": {"sms": False}})
    assert patched.status_code == 200
    assert levels(patched.json()["categories"][1])["sms"] == (True, "category")


async def test_what_cannot_be_said_is_refused_with_its_place(shop: Any) -> None:
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({"channels": {"pigeon": False}}, {"/channels/pigeon"}),
        ({"channels": {"sms": "no"}}, {"/channels/sms"}),
        ({"categories": {"news": {"often": True}}}, {"/categories/news/often"}),
        ({"categories": {"news": {"frequency": "yearly"}}}, {"/categories/news/frequency"}),
        ({"muted_until": "2099-01-01T00:00:00Z"}, {"/muted_until"}),
        ({"muted": True, "muted_until": "tomorrow"}, {"/muted_until"}),
        ({"time_zone": "Vienna"}, {"/time_zone"}),
        ({"consent": {"ip": "localhost"}}, {"/consent/ip"}),
        ({"types": {f"type-{n:050}": {"enabled": False} for n in range(300)}}, {""}),
    ]
    for body, at in cases:
        assert pointers(await shop.put(PATH, body)) == at, body
    for method in ("PUT", "PATCH"):
        assert (await shop.request(method, "/api/v1/users/nobody/preferences", json={})).status_code == 404
        reader = await shop.with_scopes(Scope.read)
        assert (await reader.request(method, PATH, json={})).status_code == 403
        tester = await shop.with_scopes(*Scope, test=True)
        assert (await tester.request(method, PATH, json={})).status_code == 403
    assert (await shop.get("/api/v1/users/ada/consents")).json()["items"] == []


async def test_quiet_hours_are_a_users_own_too(shop: Any) -> None:
    hours = {"ranges": [{"start": "22:00", "end": "07:00", "days": ["fri", "sat"]}], "channels": ["push", "sms"]}
    put = await shop.put(PATH, {"quiet_hours": hours, "time_zone": "Asia/Kathmandu"})
    assert put.status_code == 200, put.text
    said = put.json()["said"]
    assert said["quiet_hours"]["ranges"] == hours["ranges"]
    assert set(said["quiet_hours"]["channels"]) == {"push", "sms"}
    assert (await shop.put(PATH, said)).json() == put.json()
    kept = await shop.request("PATCH", PATH, json={"channels": {"chat": False}})
    assert kept.json()["said"]["quiet_hours"] == said["quiet_hours"]
    assert kept.json()["said"]["time_zone"] == "Asia/Kathmandu"
    assert (await shop.get("/api/v1/users/ada")).json()["time_zone"] == "Asia/Kathmandu"
    wrong = {"ranges": [{"start": "25:00", "end": "07:00"}]}
    assert pointers(await shop.put(PATH, {"quiet_hours": wrong})) == {"/quiet_hours/ranges/0/start"}
    gone = await shop.request("PATCH", PATH, json={"quiet_hours": None})
    assert gone.json()["said"]["quiet_hours"] is None
    assert gone.json()["said"]["channels"] == {"chat": False}
    assert (await shop.put(PATH, {})).json()["said"]["time_zone"] == "Asia/Kathmandu", "left out, it stays"
    told = [row["decision"] for row in (await shop.get("/api/v1/users/ada/consents")).json()["items"]]
    assert told == ["reset", "out"], "hours and zones are no consents"


async def test_changes_at_the_same_moment_do_not_undo_each_other(shop: Any) -> None:
    names = ["email", "sms", "push", "in_app", "webhook", "chat"]
    answers = await asyncio.gather(*(shop.request("PATCH", PATH, json={"channels": {name: False}}) for name in names))
    assert {answer.status_code for answer in answers} == {200}
    assert (await shop.get(PATH)).json()["said"]["channels"] == dict.fromkeys(names, False)
    assert len((await shop.get("/api/v1/users/ada/consents")).json()["items"]) == len(names)


# ---------------------------------------------------------------- users themselves, and the ledger


async def test_a_user_reads_and_changes_their_own(shop: Any) -> None:
    headers = await sign_in(shop)
    assert (await shop.get(OWN, headers=headers)).json() == (await shop.get(PATH)).json()
    body = {"categories": {"news": {"enabled": False}}, "time_zone": "Asia/Tokyo", "wording": "News: off"}
    patched = await shop.request("PATCH", OWN, json=body, headers={**headers, "user-agent": "Browser/1"})
    assert patched.status_code == 200, patched.text
    assert patched.json() == (await shop.get(PATH)).json()
    assert patched.json()["said"]["time_zone"] == "Asia/Tokyo"
    [row] = (await shop.get("/api/v1/users/ada/consents")).json()["items"]
    assert row == {
        "at": row["at"],
        "decision": "out",
        "channel": None,
        "address": None,
        "category": "news",
        "type": None,
        "actor": "user",
        "source": "inbox",
        "wording": "News: off",
        "ip": None,  # the peer is not on the open internet
        "user_agent": "Browser/1",
        "key_id": None,
    }
    [trail] = (await shop.get("/api/v1/audit?action=user.put_preferences")).json()["items"]
    assert (trail["actor"], trail["object"]) == ("user", "user:ada")
    assert (await shop.get(OWN)).status_code == 403, "an API key has its own door"
    assert (await shop.request("PATCH", OWN, json={"consent": {}}, headers=headers)).status_code == 422


async def test_a_page_of_a_listed_origin_may_change_them(shop: Any) -> None:
    page = "https://shop.example.com"
    await shop.put("/api/v1/project/settings", {"origins": [page]})
    shop.api.clock.passed += timedelta(seconds=10)
    asked = {"origin": page, "access-control-request-method": "PATCH"}
    answer = await shop.api.client.options(OWN, headers=asked)
    assert "PATCH" in answer.headers["access-control-allow-methods"]


async def test_the_ledger_tells_every_decision_newest_first(shop: Any) -> None:
    evidence = {"wording": "Tell me by SMS", "ip": "2001:db8::7", "user_agent": "App/2"}
    await shop.put(
        PATH, {"channels": {"sms": True}, "categories": {"news": {"frequency": "daily"}}, "consent": evidence}
    )
    await shop.request("PATCH", PATH, json={"muted": True, "types": {"offer": {"channels": {"email": False}}}})
    await shop.put(PATH, {})
    items: list[Any] = []
    cursor = ""
    while True:
        page = (await shop.get(f"/api/v1/users/ada/consents?limit=3{cursor}")).json()
        items += page["items"]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    told = [(i["decision"], i["channel"], i["category"], i["type"]) for i in items]
    assert told == [
        ("reset", "sms", None, None),
        ("reset", "email", None, "offer"),
        ("in", None, None, None),
        ("reset_frequency", None, "news", None),
        ("out", "email", None, "offer"),
        ("out", None, None, None),
        ("in", "sms", None, None),
        ("daily", None, "news", None),
    ]
    assert {i["actor"] for i in items} == {"key"}
    assert all(i["key_id"].startswith("key_") for i in items)
    assert [(i["wording"], i["ip"], i["user_agent"]) for i in items[-2:]] == [tuple(evidence.values())] * 2
    assert items[0]["wording"] is None
    assert (await shop.get("/api/v1/users/nobody/consents")).status_code == 404

    await shop.delete("/api/v1/users/ada")
    await shop.put("/api/v1/users/ada", {})
    assert (await shop.get("/api/v1/users/ada/consents")).json()["items"] == [], "erased with the user"
    assert (await shop.get(PATH)).json()["said"] == {**SILENT, "time_zone": None}


# ---------------------------------------------------------------- rules


async def test_rules_of_a_category(shop: Any) -> None:
    body = {"name": "News", "defaults": {"push": True, "sms": False}, "frequency": "daily", "digest_hour": 18}
    put = await shop.put("/api/v1/categories/news", body)
    assert put.status_code == 200, put.text
    assert {**body, "quiet_hours": None, "limits": []}.items() <= put.json().items()
    assert (await shop.get("/api/v1/categories/news")).json() == put.json()
    assert put.json() in (await shop.get("/api/v1/categories")).json()["items"]
    again = await shop.put("/api/v1/categories/news", body)
    assert again.json() == put.json(), "the same again changes nothing"
    entry = (await shop.get("/api/v1/audit?object=category:news")).json()["items"][0]
    assert (entry["before"]["rules"]["frequency"], entry["after"]["rules"]["frequency"]) == ("weekly", "daily")
    version = await shop.api.deps.catalog.load_type(shop.project_id, "offer")
    assert (version.rules.frequency, version.rules.digest_hour) == ("daily", 18)
    assert version.defaults == {3: False}
    hours = {"ranges": [{"start": "22:00", "end": "07:00"}]}
    full = {**body, "quiet_hours": hours, "limits": [{"max": 3, "window": "24h", "then": "defer"}]}
    shown = (await shop.put("/api/v1/categories/news", full)).json()
    assert (shown["limits"][0]["window"], shown["quiet_hours"]["ranges"][0]["start"]) == ("1d", "22:00")
    given = {name: value for name, value in shown.items() if name not in ("key", "created_at", "updated_at")}
    assert (await shop.put("/api/v1/categories/news", given)).json() == shown, "what is shown may be put again"
    bare = (await shop.put("/api/v1/categories/news", {"name": "News"})).json()
    assert (bare["defaults"], bare["frequency"], bare["digest_hour"]) == ({}, "instant", 9)
    for wrong, at in (
        ({"defaults": {"pigeon": True}}, "/defaults/pigeon"),
        ({"frequency": "yearly"}, "/frequency"),
        ({"digest_hour": 24}, "/digest_hour"),
        ({"quiet_hours": {"range": []}}, "/quiet_hours/range"),
        ({"limits": [{"window": "1d"}]}, "/limits/0/max"),
        ({"limits": [{"max": 1, "window": "1d", "category": "news"}]}, "/limits/0/category"),
    ):
        assert pointers(await shop.put("/api/v1/categories/news", {"name": "News", **wrong})) == {at}


async def test_defaults_of_a_project(shop: Any) -> None:
    settings: dict[str, Any] = {
        "time_zone": "Europe/Vienna",
        "defaults": {"sms": False, "chat": True},
        "quiet_hours": None,
        "limits": [],
        "pace": 50.0,
        "confirm_above": 100,
        "runaway_above": None,
        "address": "Shop Ltd, 1 High Street",
    }
    put = await shop.put("/api/v1/project/settings", settings)
    assert put.status_code == 200, put.text
    assert settings.items() <= put.json()["settings"].items()
    assert (await shop.get("/api/v1/project")).json() == put.json()
    ruled = {
        **settings,
        "quiet_hours": {"ranges": [{"start": "22:00", "end": "07:00"}], "time_zone": "UTC"},
        "limits": [{"max": 10, "window": "1d", "category": "news"}],
    }
    put = await shop.put("/api/v1/project/settings", ruled)
    assert put.status_code == 200, put.text
    assert put.json()["settings"]["limits"][0]["category"] == "news"
    assert (await shop.put("/api/v1/project/settings", put.json()["settings"])).json() == put.json()
    general = (await shop.get(PATH)).json()["categories"][0]
    assert (levels(general)["sms"], levels(general)["chat"]) == ((False, "project"), (True, "project"))
    for wrong, at in (
        ({"time_zone": "Vienna"}, "/time_zone"),
        ({"defaults": {"pigeon": True}}, "/defaults/pigeon"),
        ({"pace": 0}, "/pace"),
        ({"confirm_above": -1}, "/confirm_above"),
        ({"runaway_above": 0}, "/runaway_above"),
        ({"address": ""}, "/address"),
        ({"quiet_hours": {"ranges": [{"start": "22:00"}]}}, "/quiet_hours/ranges/0/end"),
        ({"limits": [{"max": "3", "window": "1d"}]}, "/limits/0/max"),
    ):
        assert pointers(await shop.put("/api/v1/project/settings", wrong)) == {at}
    assert (await shop.get("/api/v1/project")).json() == put.json()


async def test_the_region_of_a_user(tenant: Any) -> None:
    made = await tenant.put("/api/v1/users/ada", {"region": "us-fl"})
    assert made.json()["region"] == "US-FL"
    assert (await tenant.put("/api/v1/users/ada", {"region": "DE"})).json()["region"] == "DE"
    assert (await tenant.get("/api/v1/users/ada")).json()["region"] == "DE"
    for wrong in ("Florida", "XX", "ZZ", "US-FLORIDA", "U", "ÜS"):
        assert pointers(await tenant.put("/api/v1/users/ada", {"region": wrong})) == {"/region"}
    assert (await tenant.put("/api/v1/users/ada", {})).json()["region"] is None
