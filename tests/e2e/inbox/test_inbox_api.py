"""The inbox over HTTP: user tokens, lists, counts, marks, pages of other origins, other users and other projects."""

from __future__ import annotations

import base64
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.e2e.inbox.visitors import COOKIE, LISTED, OTHER, Page, fill, sign_in
from tidings.directory.credentials import Vault
from tidings.directory.tokens import Tokens
from tidings.errors import Unauthenticated
from tidings.model.messages import InAppAction
from tidings.model.words import Scope


@pytest.fixture
async def page(tenant: Any) -> Page:
    return Page(tenant, await sign_in(tenant))


async def test_a_user_lists_and_marks_their_items(tenant: Any, page: Page) -> None:
    first, second, third = await fill(tenant, "ada", ["one", "two", "three"])
    assert await page.titles() == ["three", "two", "one"]
    assert (await page.get("/counts")).json() == {"total": 3, "unseen": 3, "unread": 3, "last_seq": 3}

    read = (await page.post(f"/items/{first}/read")).json()
    assert read["read_at"]
    assert read["read_at"] == read["seen_at"]
    assert read["changed_seq"] == 4
    assert await page.titles("?unread=true") == ["three", "two"]
    again = (await page.post(f"/items/{first}/read")).json()
    assert again == read, "marking it again changed something"

    await page.post(f"/items/{second}/archive")
    assert await page.titles() == ["three", "one"]
    assert await page.titles("?archived=true") == ["two"]
    assert (await page.get("/counts")).json() == {"total": 2, "unseen": 1, "unread": 1, "last_seq": 5}

    await page.post(f"/items/{second}/unarchive")
    await page.post(f"/items/{first}/unread")
    clicked = (await page.post(f"/items/{third}/click")).json()
    assert clicked["clicked_at"] == clicked["read_at"] == clicked["seen_at"]
    assert (await page.get("/counts")).json() == {"total": 3, "unseen": 1, "unread": 2, "last_seq": 8}
    assert await page.titles("?unread=true") == ["two", "one"]


async def test_all_is_marked_up_to_what_was_shown(tenant: Any, page: Page) -> None:
    await fill(tenant, "ada", [f"no. {n}" for n in range(7)])
    counts = (await page.post("/seen-all", {"up_to": 5})).json()
    assert (counts["unseen"], counts["unread"]) == (2, 7)
    counts = (await page.post("/read-all", {"up_to": 3})).json()
    assert (counts["unseen"], counts["unread"]) == (2, 4)
    assert await page.titles("?unread=true") == ["no. 6", "no. 5", "no. 4", "no. 3"]
    counts = (await page.post("/read-all", {})).json()
    assert counts == {"total": 7, "unseen": 0, "unread": 0, "last_seq": 7 + 5 + 3 + 4}


async def test_pages_categories_and_actions(tenant: Any, page: Page) -> None:
    actions = (InAppAction("open", "Open it", "https://example.com/o"), InAppAction("later", "Later"))
    await fill(tenant, "ada", ["plain"])
    await fill(tenant, "ada", ["told", "asked"], category="news", body="<b>", url="/orders/1", actions=actions)
    shown = (await page.get("?limit=1&category=news")).json()
    [item] = shown["items"]
    assert item["title"] == "asked"
    assert item["actions"] == [
        {"id": "open", "title": "Open it", "url": "https://example.com/o"},
        {"id": "later", "title": "Later", "url": None},
    ]
    assert (item["body"], item["url"], item["category"]) == ("<b>", "/orders/1", "news")
    rest = await page.get("", params={"limit": 1, "category": "news", "cursor": shown["next_cursor"]})
    assert [i["title"] for i in rest.json()["items"]] == ["told"]
    foreign = await page.get("", params={"cursor": shown["next_cursor"]})
    assert foreign.status_code == 422, "a cursor of a list with other filters was taken"
    for_application = (await tenant.get("/api/v1/users/ada/inbox?unread=true")).json()["items"]
    assert [i["title"] for i in for_application] == ["asked", "told", "plain"]


async def test_users_and_projects_are_apart(api: Any) -> None:
    one, two = await api.new_project("one"), await api.new_project("two")
    ada, bob, other_ada = await sign_in(one, "ada"), await sign_in(one, "bob"), await sign_in(two, "ada")
    [item] = await fill(one, "ada", ["for Ada of one"])
    for tenant, token in ((one, bob), (two, other_ada)):
        stranger = Page(tenant, token)
        assert await stranger.titles() == []
        assert (await stranger.get("/counts")).json()["total"] == 0
        for mark in ("seen", "read", "unread", "archive", "unarchive", "click"):
            assert (await stranger.post(f"/items/{item}/{mark}")).status_code == 404
        await stranger.post("/read-all", {})
    assert (await Page(one, ada).get("/counts")).json() == {"total": 1, "unseen": 1, "unread": 1, "last_seq": 1}


async def test_a_token_opens_the_inbox_and_nothing_else(tenant: Any, page: Page) -> None:
    for path in ("/api/v1/users", "/api/v1/users/ada", "/api/v1/users/ada/inbox", "/api/v1/project"):
        answer = await tenant.api.client.get(path, headers=page.headers)
        assert answer.status_code == 401, path
    answer = await tenant.api.client.post("/api/v1/notifications", headers=page.headers, json={})
    assert answer.status_code == 401


async def test_an_api_key_does_not_open_a_users_own_inbox(tenant: Any) -> None:
    answer = await tenant.get("/api/v1/inbox")
    assert answer.status_code == 403
    assert "user token" in answer.json()["detail"]
    assert (await tenant.api.client.get("/api/v1/inbox", headers={"authorization": "Bearer no"})).status_code == 401
    assert (await tenant.api.client.get("/api/v1/inbox")).status_code == 401
    assert (await tenant.api.client.get("/api/v1/inbox?token=tdu_x&access_token=tdu_x")).status_code == 401


async def test_a_token_is_issued_with_manage_for_users_that_exist(tenant: Any) -> None:
    await tenant.put("/api/v1/users/ada", {})
    weak = await tenant.with_scopes(Scope.send, Scope.read)
    assert (await weak.post("/api/v1/users/ada/tokens", {})).status_code == 403
    assert (await tenant.post("/api/v1/users/nobody/tokens", {})).status_code == 404
    for wrong in ("25h", "0s", "soon", 3600):
        answer = await tenant.post("/api/v1/users/ada/tokens", {"expires_after": wrong})
        assert answer.status_code == 422, wrong
    answer = (await tenant.post("/api/v1/users/ada/tokens", {})).json()
    left = datetime.fromisoformat(answer["expires_at"]) - tenant.api.clock.now()
    assert timedelta(minutes=59) < left <= timedelta(hours=1)
    assert answer["token"].startswith("tdu_shop.")


async def test_a_token_ends_with_its_time_or_its_user(tenant: Any) -> None:
    short, long = await sign_in(tenant, life="1m"), await sign_in(tenant, life="24h")
    tenant.api.clock.passed = timedelta(minutes=2)
    answer = await Page(tenant, short).get()
    assert answer.status_code == 401
    assert "expired" in answer.json()["detail"]
    assert (await Page(tenant, long).get()).status_code == 200
    await tenant.delete("/api/v1/users/ada")
    assert (await Page(tenant, long).get()).status_code == 401
    await tenant.put("/api/v1/users/ada", {})
    assert (await Page(tenant, long).get()).status_code == 401, "a token of another user of this name works again"


async def test_a_deleted_user_is_noticed_by_other_processes_too(tenant: Any, page: Page) -> None:
    assert (await page.get()).status_code == 200
    await tenant.api.deps.database.execute("DELETE FROM app_user WHERE id = 'ada'")
    tenant.api.clock.passed = timedelta(seconds=5)
    assert (await page.get()).status_code == 401


async def test_no_octet_of_a_token_can_be_changed(tenant: Any) -> None:
    token = await sign_in(tenant)
    tokens = tenant.api.deps.tokens
    for at in range(len(token) - 1):  # the last character has bits that mean nothing
        changed = "B" if token[at] == "A" else "A"
        with pytest.raises(Unauthenticated):
            await tokens.authenticate(f"{token[:at]}{changed}{token[at + 1 :]}")
    for wrong in (
        "",
        "tdu_",
        "tdu_shop..",
        token + "A",
        token[:-1],
        token.replace("shop", "shop-"),
        "tdu_a.b.c" * 2000,
    ):
        with pytest.raises(Unauthenticated):
            await tokens.authenticate(wrong)


async def test_tokens_outlive_the_rotation_of_the_secret_key(tenant: Any) -> None:
    token = await sign_in(tenant)
    deps = tenant.api.deps
    old, new = (base64.b64encode(bytes(range(n, n + 32))).decode() for n in (0, 100))
    rotated = Tokens(deps.database, Vault((new, old)), deps.clock)
    assert (await rotated.authenticate(token)).user_id == "ada"
    fresh = (await rotated.issue(tenant.project_id, "ada", timedelta(hours=1))).token
    with pytest.raises(Unauthenticated):
        await deps.tokens.authenticate(fresh)
    with pytest.raises(Unauthenticated):
        await Tokens(deps.database, Vault((new,)), deps.clock).authenticate(token)


# ---------------------------------------------------------------- pages


async def _ask(tenant: Any, token: str, method: str = "GET", path: str = "", **headers: str) -> httpx.Response:
    """What a browser sends for a page, with the cookie."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    answer: httpx.Response = await tenant.api.client.request(
        method,
        f"/api/v1/inbox{path}",
        headers={"cookie": f"a=b; {COOKIE}={token}", **given},
        json={} if method == "POST" else None,
    )
    return answer


@pytest.fixture
async def listed(tenant: Any) -> str:
    """A user's token, of a project that lists an origin."""
    answer = await tenant.put("/api/v1/project/settings", {"origins": [LISTED]})
    assert answer.status_code == 200, answer.text
    return await sign_in(tenant)


async def test_with_the_cookie_the_page_counts(tenant: Any, listed: str) -> None:
    same = {"origin": "http://api", "sec_fetch_site": "same-origin"}
    cross = {"origin": OTHER, "sec_fetch_site": "cross-site"}
    assert (await _ask(tenant, listed, sec_fetch_site="same-origin")).status_code == 200
    assert (await _ask(tenant, listed, "POST", "/read-all", **same)).status_code == 200
    assert (await _ask(tenant, listed, "POST", "/read-all", origin="http://api")).status_code == 200
    assert (
        await _ask(tenant, listed, "POST", "/read-all", origin=LISTED, sec_fetch_site="cross-site")
    ).status_code == 200
    for headers in (
        {},  # neither header: no page of a browser of today
        {"sec_fetch_site": "none"},  # typed, or a bookmark
        {"sec_fetch_site": "cross-site"},
        cross,
        {"origin": OTHER, "sec_fetch_site": "same-site"},
        {"origin": "null", "sec_fetch_site": "cross-site"},
        {"origin": "http://api", "sec_fetch_site": "cross-site"},  # the same host over another scheme
        {"origin": "http://api.evil.example.net"},
        {"origin": "http://[", "sec_fetch_site": "same-origin"},
    ):
        for method, path in (("GET", ""), ("POST", "/read-all")):
            answer = await _ask(tenant, listed, method, path, **headers)
            assert answer.status_code == 403, f"{method} with {headers} answered {answer.status_code}"
            assert "access-control-allow-origin" not in answer.headers


async def test_a_header_is_asked_before_the_cookie(tenant: Any, listed: str) -> None:
    answer = await _ask(tenant, listed, sec_fetch_site="same-origin", authorization="Bearer tdu_x")
    assert answer.status_code == 401


async def test_pages_of_listed_origins_may_read_the_answers(tenant: Any, listed: str) -> None:
    for page, status in ((Page(tenant, listed, origin=LISTED), 200), (Page(tenant, "no", origin=LISTED), 401)):
        answer = await page.get()
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == LISTED
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert answer.headers["vary"] == "origin"
    elsewhere = await Page(tenant, listed, origin=OTHER).get()
    assert "access-control-allow-origin" not in elsewhere.headers
    assert elsewhere.headers["vary"] == "origin"


async def test_an_origin_of_another_project_may_not_read(api: Any, tenant: Any, listed: str) -> None:
    stranger = await api.new_project("stranger")
    answer = await Page(stranger, await sign_in(stranger), origin=LISTED).get()
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers
    with_cookie = await _ask(stranger, await sign_in(stranger), origin=LISTED, sec_fetch_site="cross-site")
    assert with_cookie.status_code == 403


async def test_preflights_are_answered_for_listed_origins(tenant: Any, listed: str) -> None:
    async def preflight(origin: str) -> httpx.Response:
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        answer: httpx.Response = await tenant.api.client.options(
            "/api/v1/inbox/read-all", headers={"origin": origin, **asked}
        )
        assert answer.status_code == 204
        return answer

    good = (await preflight(LISTED)).headers
    assert good["access-control-allow-origin"] == LISTED
    assert "authorization" in good["access-control-allow-headers"]
    assert "POST" in good["access-control-allow-methods"]
    assert not [name for name in (await preflight(OTHER)).headers if name.startswith("access-control")]


async def test_made_up_origins_cost_one_question(tenant: Any) -> None:
    """Before anybody has shown a token, the database is not asked for each origin that somebody thinks of."""
    tokens, database = tenant.api.deps.tokens, tenant.api.deps.database
    assert not await tokens.knows_origin(OTHER)
    await database.execute("ALTER TABLE project RENAME TO away")
    for n in range(100):
        assert not await tokens.knows_origin(f"https://{n}.example.net")
    await database.execute("ALTER TABLE away RENAME TO project")
    await tenant.put("/api/v1/project/settings", {"origins": [LISTED]})
    tenant.api.clock.passed = timedelta(seconds=5)
    assert await tokens.knows_origin(LISTED)


async def test_deleting_a_user_empties_the_inbox_and_its_counts(tenant: Any, page: Page) -> None:
    await fill(tenant, "ada", ["one", "two"])
    await tenant.delete("/api/v1/users/ada")
    anew = Page(tenant, await sign_in(tenant))
    assert await anew.titles() == []
    assert (await anew.get("/counts")).json() == {"total": 0, "unseen": 0, "unread": 0, "last_seq": 2}
