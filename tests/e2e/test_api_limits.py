"""Limits on callers over HTTP: rates of keys, the breaker for runaway loops, and the limits of types and projects."""

from __future__ import annotations

from typing import Any

import pytest

from tidings.model.words import Scope

ONE = "/api/v1/notifications"
BATCH = "/api/v1/notifications/batch"
GOOD = {"content": {"subject": "Hi", "text": "Hello"}, "to": {"email": "ada@example.com"}}


@pytest.fixture
async def shop(api: Any) -> Any:
    """A project."""
    return await api.new_project("shop")


async def with_rate(tenant: Any, rate: int) -> Any:
    made = await tenant.post("/api/v1/keys", {"name": "k", "scopes": [*Scope], "rate": rate})
    assert made.status_code == 201, made.text
    assert made.json()["rate"] == rate
    return type(tenant)(tenant.api, tenant.project_id, tenant.project_key, made.json()["key"])


def said(answer: Any) -> tuple[str | None, str | None]:
    """Policy and what is left, without the seconds."""
    policy, left = answer.headers.get("ratelimit-policy"), answer.headers.get("ratelimit")
    return policy, left and left.partition(";t=")[0]


async def test_key_is_told_what_it_has_left_and_then_to_wait(shop: Any) -> None:
    limited = await with_rate(shop, 4)
    answer = await limited.get("/api/v1/categories")
    assert said(answer) == ('"key";q=4;w=60', '"key";r=3')
    assert 1 <= int(answer.headers["ratelimit"].partition(";t=")[2]) <= 60
    answer = await limited.post(ONE, GOOD)
    assert (answer.status_code, said(answer)) == (202, ('"key";q=4;w=60', '"key";r=2'))
    assert said(await limited.get("/api/v1/nothing/here")) == ('"key";q=4;w=60', '"key";r=1'), "every request counts"
    assert said(await limited.post(ONE, {"to": 1})) == ('"key";q=4;w=60', '"key";r=0')
    for refused in (await limited.post(ONE, GOOD), await limited.get("/api/v1/categories")):
        assert refused.status_code == 429
        assert refused.json()["type"].endswith("#rate-limited")
        assert said(refused) == ('"key";q=4;w=60', '"key";r=0')
        assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert (await shop.get("/api/v1/categories")).status_code == 200, "another key of the project"
    # The next minute: the row is that of the minute before.
    await shop.api.deps.database.execute("UPDATE key_budget SET begins = begins - interval '1 minute'")
    shop.api.clock.passed += type(shop.api.clock.passed)(seconds=60)
    assert (await limited.get("/api/v1/categories")).status_code == 200


async def test_batch_costs_what_it_brings(shop: Any) -> None:
    limited = await with_rate(shop, 30)
    answer = await limited.post(BATCH, {"notifications": [GOOD] * 20})
    assert (answer.status_code, said(answer)) == (202, ('"key";q=30;w=60', '"key";r=10'))
    refused = await limited.post(BATCH, {"notifications": [GOOD] * 12})
    assert (refused.status_code, said(refused)) == (429, ('"key";q=30;w=60', '"key";r=9'))
    assert "retry-after" in refused.headers
    assert (await limited.post(BATCH, {"notifications": [GOOD] * 9})).status_code == 202
    stored = await shop.api.deps.database.fetchval("SELECT count(*) FROM notification")
    assert stored == 29
    never = await limited.post(BATCH, {"notifications": [GOOD] * 31})
    assert never.status_code == 429


async def test_batch_that_never_fits_is_not_told_to_come_again(shop: Any) -> None:
    limited = await with_rate(shop, 30)
    never = await limited.post(BATCH, {"notifications": [GOOD] * 31})
    assert never.status_code == 429
    assert "retry-after" not in never.headers
    assert "more at once" in never.json()["detail"]


async def test_key_without_a_rate_is_told_nothing(shop: Any) -> None:
    for answer in (await shop.get("/api/v1/categories"), await shop.post(ONE, GOOD)):
        assert said(answer) == (None, None)


async def test_key_gives_no_more_than_its_rate(shop: Any) -> None:
    limited = await with_rate(shop, 40)
    for rate in (None, 41):
        refused = await limited.post("/api/v1/keys", {"name": "k", "scopes": ["send"], "rate": rate})
        assert refused.status_code == 403
        assert refused.json()["errors"][0]["pointer"] == "/rate"
    assert (await limited.post("/api/v1/keys", {"name": "k", "scopes": ["send"], "rate": 40})).status_code == 201
    for wrong in (0, 10_000_001, "many"):
        assert (await shop.post("/api/v1/keys", {"name": "k", "scopes": ["send"], "rate": wrong})).status_code == 422


async def test_runaway_loop_is_stopped_at_the_door(shop: Any) -> None:
    assert (await shop.put("/api/v1/project/settings", {"runaway_above": 5})).status_code == 200
    hello, other = GOOD, {**GOOD, "to": {"email": "bob@example.com"}}
    keyed = {"idempotency-key": "first"}
    first = await shop.post(ONE, hello, headers=keyed)
    answer = await shop.post(BATCH, {"notifications": [hello] * 6 + [other]})
    told = [one.get("problem", {}).get("type") for one in answer.json()["results"]]
    assert told == [None] * 4 + ["https://tidings.dev/errors#runaway"] * 2 + [None]
    refused = await shop.post(ONE, hello)
    assert refused.status_code == 429
    assert refused.json()["type"].endswith("#runaway")
    assert 1 <= int(refused.headers["retry-after"]) <= 12
    assert (await shop.post(ONE, other)).status_code == 202, "somebody else"
    again = await shop.post(ONE, hello, headers=keyed)
    assert again.json() == {**first.json(), "idempotent_replayed": True}, "what was accepted stays accepted"
    shop.api.clock.passed += type(shop.api.clock.passed)(seconds=60)
    assert (await shop.post(ONE, hello)).status_code == 202


async def test_limits_of_projects_categories_and_types(shop: Any) -> None:
    limits = [{"max": 3, "window": "24h", "then": "defer"}, {"max": 1, "window": "7d", "category": "news"}]
    answer = await shop.put("/api/v1/project/settings", {"limits": limits})
    assert answer.status_code == 200, answer.text
    stored = answer.json()["settings"]["limits"]
    assert [(one["max"], one["window"], one["category"]) for one in stored] == [(3, "1d", None), (1, "7d", "news")]
    for limit, pointer in (
        ({"max": 0, "window": "1d"}, "/limits/0/max"),
        ({"max": 1, "window": "soon"}, "/limits/0/window"),
    ):
        refused = await shop.put("/api/v1/project/settings", {"limits": [limit]})
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["pointer"] == pointer
    named = {"name": "News", "limits": [{"max": 1, "window": "1d", "category": "news"}]}
    refused = await shop.put("/api/v1/categories/news", named)
    assert refused.status_code == 422
