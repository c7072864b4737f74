"""Pages for people: unsubscribing with one click and with a button, and choosing preferences; without a browser."""

from __future__ import annotations

import random
import re
import time
from datetime import timedelta
from html import unescape
from typing import Any

import pytest

from tests.e2e.pages.guests import FORM, ONE_CLICK, holds, link, list_consents
from tests.e2e.test_api_receipts import look, sent
from tidings import ids
from tidings.flow.tracking import Guest
from tidings.model.words import Engagement, Scope

FIREFOX = {"user-agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"}


# ---------------------------------------------------------------- unsubscribing


async def test_a_get_asks_and_changes_nothing(shop: Any) -> None:
    path = link(shop, "u", user_id="ada", category="news")
    for method in ("GET", "HEAD"):
        answer = await shop.api.client.request(method, path)
        assert answer.status_code == 200
    page = (await shop.api.client.get(path)).text
    assert "News &lt;b&gt;" in page
    assert 'name="List-Unsubscribe" value="One-Click"' in page
    assert (await holds(shop, "news"))["email"]
    assert await list_consents(shop) == []


@pytest.mark.parametrize("form", ["urlencoded", "multipart"])
async def test_one_click_unsubscribes_without_anything_else(shop: Any, form: str) -> None:
    """RFC 8058: no cookie, no other header field."""
    path = link(shop, "u", user_id="ada", category="news")
    if form == "urlencoded":
        body, kind = ONE_CLICK, FORM["content-type"]
    else:
        kind = "multipart/form-data; boundary=FkdWkqVVQO8"
        body = (
            '--FkdWkqVVQO8\r\nContent-Disposition: form-data; name="List-Unsubscribe"\r\n\r\nOne-Click'
            "\r\n--FkdWkqVVQO8--\r\n"
        )
    answer = await shop.api.client.post(path, content=body, headers={"content-type": kind})
    assert answer.status_code == 200
    assert await holds(shop, "news") == {
        "email": False, "sms": True, "push": True, "in_app": True, "webhook": True, "chat": True,
    }  # fmt: skip
    assert (await holds(shop, "orders"))["email"]
    again = await shop.api.client.post(path, content=body, headers={"content-type": kind})
    assert again.status_code == 200
    [consent] = await list_consents(shop)
    assert (consent["decision"], consent["source"], consent["actor"]) == ("out", "one_click", "user")
    assert (consent["category"], consent["channel"], consent["wording"]) == ("news", "email", None)


async def test_the_pages_button_records_what_was_shown(shop: Any) -> None:
    path = link(shop, "u", user_id="ada", category="news")
    answer = await shop.api.client.post(path, content=f"{ONE_CLICK}&from=page", headers={**FORM, **FIREFOX})
    assert answer.status_code == 200
    further = re.search(r'href="(/p/[^"]+)"', unescape(answer.text))
    assert further is not None, "who clicked by mistake finds the way back"
    assert (await shop.api.client.get(further[1])).status_code == 200
    [consent] = await list_consents(shop)
    assert (consent["source"], consent["user_agent"]) == ("page", FIREFOX["user-agent"])
    assert "News <b>" in consent["wording"]


async def test_a_post_that_does_not_say_it_asks_again(shop: Any) -> None:
    path = link(shop, "u", user_id="ada", category="news")
    for body in ("", "List-Unsubscribe=Maybe", "x=1", "a=1&" * 9_000):
        answer = await shop.api.client.post(path, content=body, headers=FORM)
        assert answer.status_code in (400, 413), body[:20]
    assert (await holds(shop, "news"))["email"]


async def test_an_address_of_nobody_is_suppressed_for_the_category(shop: Any) -> None:
    delivery = await sent(shop)
    path = link(shop, "u", delivery=delivery, address="ada@example.com", category="news")
    for _ in range(2):
        assert (await shop.api.client.post(path, content=ONE_CLICK, headers=FORM)).status_code == 200
    [found] = (await shop.get("/api/v1/suppressions")).json()["items"]
    assert (found["channel"], found["address"], found["stream"]) == ("email", "ada@example.com", "news")
    assert found["reason"] == "opted_out"
    rows = await shop.api.deps.database.fetch("SELECT * FROM consent")
    assert [(r["address"], r["user_id"], r["source"]) for r in rows] == [("ada@example.com", None, "one_click")]
    assert (await look(shop, delivery))["engagement"] == Engagement.unsubscribed
    assert await shop.api.deps.database.fetchval("SELECT count(*) FROM event WHERE delivery_id = $1", delivery) == 1


async def test_a_users_address_is_not_suppressed_so_they_can_come_back(shop: Any) -> None:
    delivery = await sent(shop)
    path = link(shop, "u", user_id="ada", delivery=delivery, category="news")
    assert (await shop.api.client.post(path, content=ONE_CLICK, headers=FORM)).status_code == 200
    assert (await look(shop, delivery))["engagement"] == Engagement.unsubscribed
    assert (await shop.get("/api/v1/suppressions")).json()["items"] == []


async def test_who_left_as_an_address_comes_back_as_a_user(shop: Any) -> None:
    """Not where the address complained: that is for the application to look at."""
    for category in ("news", "orders"):
        path = link(shop, "u", address="ada@example.com", category=category)
        assert (await shop.api.client.post(path, content=ONE_CLICK, headers=FORM)).status_code == 200
    await shop.api.deps.database.execute("UPDATE suppression SET reason = 'complained' WHERE stream = 'orders'")
    form = await Form.open(shop)
    assert ("on", "email:news") not in form.fields, "the page shows what reaches them, not what would"
    assert "Nothing was changed" in (await form.save()).text
    form.tick("email:news")
    assert "News &lt;b&gt; · E-mail: on" in (await form.save()).text
    assert [one["stream"] for one in (await shop.get("/api/v1/suppressions")).json()["items"]] == ["orders"]
    assert ("on", "email:news") in (await Form.open(shop)).fields


async def test_a_word_for_a_single_type_does_not_survive_unsubscribing(shop: Any) -> None:
    content = {"default_locale": "en", "channels": {"email": {"en": {"subject": "s", "text": "t"}}}}
    await shop.put("/api/v1/templates/t", {})
    assert (await shop.post("/api/v1/templates/t/versions", content)).status_code == 201
    await shop.post("/api/v1/templates/t/publish", {"version": 1})
    for key, category in (("weekly", "news"), ("shipped", "orders")):
        answer = await shop.put(f"/api/v1/types/{key}", {"category": category, "template": "t"})
        assert answer.status_code == 201, answer.text
    said = {"types": {"weekly": {"enabled": True}, "shipped": {"enabled": True}}}
    assert (await shop.put("/api/v1/users/ada/preferences", said)).status_code == 200
    path = link(shop, "u", user_id="ada", category="news")
    assert (await shop.api.client.post(path, content=ONE_CLICK, headers=FORM)).status_code == 200
    view = (await shop.get("/api/v1/users/ada/preferences")).json()
    types = {one["key"]: one["channels"]["email"]["on"] for one in view["types"]}
    assert types == {"weekly": False, "shipped": True}


@pytest.mark.parametrize("who", [{"user_id": "ada"}, {"address": "ada@example.com"}])
async def test_a_category_that_became_required_cannot_be_left(shop: Any, who: dict[str, str]) -> None:
    path = link(shop, "u", category="security", **who)
    answer = await shop.api.client.post(path, content=ONE_CLICK, headers=FORM)
    assert answer.status_code == 409
    assert "cannot unsubscribe" in answer.text
    assert (await holds(shop, "security"))["email"]
    assert (await shop.get("/api/v1/suppressions")).json()["items"] == []


async def test_links_outlive_user_category_and_message(shop: Any) -> None:
    gone = ids.child_id(ids.new_id(shop.api.clock.now(), random.Random(1)), random.Random(2))
    path = link(shop, "u", user_id="nobody", category="no_more", delivery=gone)
    assert (await shop.api.client.get(path)).status_code == 200
    assert (await shop.api.client.post(path, content=ONE_CLICK, headers=FORM)).status_code == 200


async def test_a_test_message_changes_nothing(shop: Any) -> None:
    path = link(shop, "u", user_id="ada", category="news", test=True)
    answer = await shop.api.client.post(path, content=ONE_CLICK, headers=FORM)
    assert answer.status_code == 200
    assert "test message" in answer.text
    assert (await holds(shop, "news"))["email"]


async def test_a_test_message_shows_no_choices_of_a_live_user(shop: Any) -> None:
    """Whoever has a test key can have one sent to any user, and read it."""
    said = {
        "muted": True,
        "categories": {"news": {"frequency": "weekly"}, "orders": {"channels": {"email": False}}},
        "quiet_hours": {"ranges": [{"start": "21:07", "end": "06:43"}]},
        "time_zone": "Asia/Tokyo",
    }
    assert (await shop.put("/api/v1/users/ada/preferences", said)).status_code == 200
    consents = await list_consents(shop)
    path, nobodys = (link(shop, "p", user_id=user, test=True) for user in ("ada", "bob"))
    await shop.put("/api/v1/users/bob", {})
    page = (await shop.api.client.get(path)).text
    assert "test message" in page
    assert "News &lt;b&gt;" in page
    assert (" checked" in page, "<button" in page, 'name="form"' in page) == (False, False, False)
    assert page.count("<fieldset") == page.count("<fieldset disabled") > 0
    assert page == (await shop.api.client.get(nobodys)).text, "the same for whoever chose nothing, and has no address"
    mark = shop.api.deps.signer.mark_form(Guest("p", shop.project_id, user_id="ada"))
    answer = await shop.api.client.post(path, data={"shown": "news email", "form": mark})
    assert answer.status_code == 200
    assert "Nothing was changed" in answer.text
    assert " checked" not in answer.text
    assert (await shop.get("/api/v1/users/ada/preferences")).json()["said"]["muted"]
    assert await list_consents(shop) == consents


async def test_other_tokens_lead_nowhere(shop: Any) -> None:
    good = link(shop, "u", user_id="ada", category="news").removeprefix("/u/")
    choose = link(shop, "p", user_id="ada").removeprefix("/p/")
    changed = ("B" if good[0] == "A" else "A") + good[1:]
    for page, token in (("u", choose), ("p", good), ("u", changed), ("u", good[:-2]), ("p", "x"), ("u", "ü")):
        for method in ("GET", "POST"):
            answer = await shop.api.client.request(
                method, f"/{page}/{token}", headers={**FORM, "accept-language": "de-AT,de;q=0.9"}, content=ONE_CLICK
            )
            assert answer.status_code == 404
            assert '<html lang="de"' in answer.text
    assert (await holds(shop, "news"))["email"]


async def test_pages_can_be_read_by_nothing_else(shop: Any) -> None:
    for path in (link(shop, "u", user_id="ada", category="news"), link(shop, "p", user_id="ada"), "/p/x"):
        headers = (await shop.api.client.get(path)).headers
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert headers["x-frame-options"] == "DENY"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "form-action 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy


# ---------------------------------------------------------------- preferences


class Form:
    """The preference page as somebody fills it in."""

    def __init__(self, tenant: Any, path: str, html: str) -> None:
        self._tenant = tenant
        self._path = path
        self.html = html
        self.fields: list[tuple[str, str]] = []
        for tag in re.findall(r"<input [^>]*>", html):
            name, value = (re.search(rf' {part}="([^"]*)"', tag) for part in ("name", "value"))
            assert name is not None
            if 'type="checkbox"' not in tag or " checked" in tag:
                self.fields.append((unescape(name[1]), unescape(value[1]) if value is not None else "on"))
        for name_, options in re.findall(r'<select [^>]*name="([^"]*)"[^>]*>(.*?)</select>', html, re.DOTALL):
            chosen = re.search(r"<option(?: value=\"([^\"]*)\")? selected>([^<]*)", options)
            self.fields.append((unescape(name_), "" if chosen is None else unescape(chosen[1] or chosen[2])))

    @classmethod
    async def open(cls, tenant: Any, **said: Any) -> Form:
        path = link(tenant, "p", **{"user_id": "ada", **said})
        answer = await tenant.api.client.get(path)
        assert answer.status_code == 200
        return cls(tenant, path, answer.text)

    def untick(self, value: str) -> None:
        self.fields.remove(("on", value))

    def tick(self, value: str) -> None:
        self.fields.append(("on", value))

    def fill(self, **values: str) -> None:
        for name, value in values.items():
            self.fields = [(n, v) for n, v in self.fields if n != name] + [(name, value)]

    async def save(self, **headers: str) -> Any:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        data: dict[str, list[str]] = {}
        for name, value in self.fields:
            data.setdefault(name, []).append(value)
        return await self._tenant.api.client.post(self._path, data=data, headers=given)


async def test_the_page_shows_what_holds(shop: Any) -> None:
    await shop.put("/api/v1/categories/news", {"name": "News", "defaults": {"sms": False}, "frequency": "daily"})
    form = await Form.open(shop)
    ticked = {value for name, value in form.fields if name == "on"}
    assert ticked == {"email:general", "sms:general", "email:news", "email:orders", "sms:orders"}
    assert ("often:news", "daily") in form.fields
    assert ("often:orders", "instant") in form.fields
    assert "security" not in "".join(value for _, value in form.fields), "what is required is not asked"
    assert "cannot be switched off" in form.html


async def test_a_form_that_was_not_changed_says_nothing(shop: Any) -> None:
    answer = await (await Form.open(shop)).save()
    assert answer.status_code == 200
    assert "Nothing was changed" in answer.text
    assert (await shop.get("/api/v1/users/ada/preferences")).json()["said"]["categories"] == {}
    assert await list_consents(shop) == []


async def test_only_what_was_changed_is_saved(shop: Any) -> None:
    form = await Form.open(shop)
    form.untick("email:news")
    form.fill(**{"often:orders": "weekly"}, quiet_start="22:00", quiet_end="07:00", time_zone="Europe/Vienna")
    answer = await form.save(**FIREFOX)
    assert answer.status_code == 200
    saved = re.search(r'role="status">(.*?)</div>', answer.text, re.DOTALL)
    assert saved is not None
    assert "News &lt;b&gt; · E-mail: off" in saved[1]
    assert "22:00–07:00" in saved[1]
    said = (await shop.get("/api/v1/users/ada/preferences")).json()["said"]
    assert said["categories"]["news"]["channels"] == {"email": False}
    assert said["categories"]["orders"]["frequency"] == "weekly"
    assert "general" not in said["categories"]
    assert said["quiet_hours"]["ranges"][0]["start"] == "22:00"
    assert said["time_zone"] == "Europe/Vienna"
    made = await list_consents(shop)
    assert {(one["category"], one["decision"]) for one in made} == {("news", "out"), ("orders", "weekly")}
    assert all(one["source"] == "page" and "News <b> · E-mail: off" in one["wording"] for one in made)

    back = await Form.open(shop)
    assert ("quiet_start", "22:00") in back.fields
    assert ("time_zone", "Europe/Vienna") in back.fields
    back.tick("email:news")
    back.fill(quiet_start="", quiet_end="")
    assert (await back.save()).status_code == 200
    assert (await holds(shop, "news"))["email"]
    assert (await shop.get("/api/v1/users/ada/preferences")).json()["said"]["quiet_hours"] is None


async def test_a_break_mutes_and_ends(shop: Any) -> None:
    form = await Form.open(shop)
    form.fill(pause="pause_7")
    assert (await form.save()).status_code == 200
    said = (await shop.get("/api/v1/users/ada/preferences")).json()["said"]
    assert said["muted"] is True
    assert said["muted_until"] is not None
    assert not (await holds(shop, "news"))["email"]
    form = await Form.open(shop)
    assert ("on", "email:news") in form.fields, "a break hides what holds after it"
    assert ("pause", "pause_keep") in form.fields
    assert "Nothing was changed" in (await form.save()).text
    form.fill(pause="pause_ever")
    await form.save()
    assert (await shop.get("/api/v1/users/ada/preferences")).json()["said"]["muted_until"] is None
    form = await Form.open(shop)
    form.fill(pause="pause_no")
    await form.save()
    assert (await holds(shop, "news"))["email"]


@pytest.mark.parametrize(
    ("start", "end", "field", "text"),
    [
        ("22:00", "", "quiet_end", "both times"),
        ("", "07:00", "quiet_start", "both times"),
        ("25:00", "07:00", "quiet_start", "such as 22:00"),
        ("7:00", "x", "quiet_end", "such as 22:00"),
        ("07:00", "07:00", "quiet_end", "must differ"),
    ],
)
async def test_what_cannot_be_taken_is_explained_and_nothing_is_lost(
    shop: Any, start: str, end: str, field: str, text: str
) -> None:
    form = await Form.open(shop)
    form.untick("email:news")
    form.fill(quiet_start=start, quiet_end=end)
    answer = await form.save()
    assert answer.status_code == 422
    assert "<title>Error: " in answer.text
    assert f'href="#{field}"' in answer.text
    assert text in answer.text
    control = re.search(rf'<input type="time" id="{field}"[^>]*>', answer.text)
    assert control is not None
    assert 'aria-invalid="true"' in control[0]
    assert f"{field}-fault" in control[0]
    kept = Form(shop, "", answer.text).fields
    assert ("on", "email:news") not in kept
    assert ("quiet_start", start) in kept
    assert (await holds(shop, "news"))["email"]


async def test_a_form_of_another_page_is_refused(shop: Any) -> None:
    form = await Form.open(shop)
    form.untick("email:news")
    assert (await form.save(sec_fetch_site="cross-site")).status_code == 403
    other = await Form.open(shop, expires_at=shop.api.clock.now() + timedelta(days=1))
    for mark in ("", "0" * 32, "ü", dict(other.fields)["form"]):
        form.fill(form=mark)
        assert (await form.save()).status_code == 403
    assert (await holds(shop, "news"))["email"]


async def test_made_up_fields_change_nothing(shop: Any) -> None:
    form = await Form.open(shop)
    form.fields += [("shown", "security email"), ("often:news", "never"), ("on", "fax:news"), ("shown", "nothing")]
    form.fill(time_zone="Moon/Base", pause="pause_999", **{"often:security": "weekly"})
    answer = await form.save()
    assert "Nothing was changed" in answer.text


async def test_a_category_made_meanwhile_stays_as_it_is(shop: Any) -> None:
    form = await Form.open(shop)
    await shop.put("/api/v1/categories/later", {"name": "Later"})
    await form.save()
    assert (await holds(shop, "later"))["email"]


async def test_a_category_made_required_meanwhile_stays_on(shop: Any) -> None:
    form = await Form.open(shop)
    form.untick("email:news")
    await shop.put("/api/v1/categories/news", {"name": "News", "required": True})
    await form.save()
    assert (await holds(shop, "news"))["email"]


async def test_quiet_hours_of_many_parts_stay(shop: Any) -> None:
    quiet = {"ranges": [{"start": "22:00", "end": "07:00", "days": ["sat"]}]}
    await shop.put("/api/v1/users/ada/preferences", {"quiet_hours": quiet})
    form = await Form.open(shop)
    assert "more detail" in form.html
    form.fill(quiet_start="01:00", quiet_end="02:00")
    await form.save()
    said = (await shop.get("/api/v1/users/ada/preferences")).json()["said"]
    assert said["quiet_hours"]["ranges"][0]["days"] == ["sat"]


async def test_pages_speak_their_readers_language(shop: Any) -> None:
    path = link(shop, "p", user_id="ada")

    async def language(accept: str) -> str:
        html = (await shop.api.client.get(path, headers={"accept-language": accept})).text
        found = re.search(r'<html lang="(\w+)" dir="(\w+)"', html)
        assert found is not None
        return f"{found[1]} {found[2]}"

    assert await language("xx, fr;q=0.5, de;q=0.8") == "de ltr"
    assert await language("de;q=0, nl;q=0.1") == "nl ltr"
    assert await language("ar-EG") == "ar rtl"
    assert await language("tlh;q=x, *") == "en ltr"
    await shop.put("/api/v1/users/ada", {"locale": "es-MX"})
    assert await language("fr") == "es ltr"


async def test_the_imprint_is_on_every_page(shop: Any) -> None:
    answer = await shop.put("/api/v1/project/settings", {"address": "Shop <GmbH>\nVienna"})
    assert answer.status_code == 200, answer.text
    shop.api.clock.passed = timedelta(seconds=6)
    for path in (link(shop, "p", user_id="ada"), link(shop, "u", user_id="ada", category="news")):
        assert "Shop &lt;GmbH&gt;\nVienna" in (await shop.api.client.get(path)).text


# ---------------------------------------------------------------- links by the API


async def test_an_application_asks_for_a_link(shop: Any) -> None:
    answer = await shop.post("/api/v1/users/ada/preference_link", {})
    assert answer.status_code == 409
    assert "TIDINGS_PUBLIC_URL" in answer.json()["detail"]
    domain = {"tracking": {"domain": "https://click.example.com"}}
    assert (await shop.put("/api/v1/project/settings", domain)).status_code == 200
    shop.api.clock.passed = timedelta(seconds=6)
    made = (await shop.post("/api/v1/users/ada/preference_link", {"expires_after": "2d"})).json()
    assert made["url"].startswith("https://click.example.com/p/")
    path = made["url"].removeprefix("https://click.example.com")
    assert (await shop.api.client.get(path)).status_code == 200
    shop.api.clock.passed += timedelta(days=2)
    assert (await shop.api.client.get(path)).status_code == 404
    assert (await shop.post("/api/v1/users/nobody/preference_link", {})).status_code == 404
    assert (await shop.post("/api/v1/users/ada/preference_link", {"expires_after": "soon"})).status_code == 422
    for scopes, test in (((Scope.read, Scope.send), False), (tuple(Scope), True)):
        other = await shop.with_scopes(*scopes, test=test)
        assert (await other.post("/api/v1/users/ada/preference_link", {})).status_code == 403


async def test_a_link_ends_with_its_user(shop: Any) -> None:
    path = link(shop, "p", user_id="ada")
    await shop.delete("/api/v1/users/ada")
    assert (await shop.api.client.get(path)).status_code == 404


async def test_projects_are_apart(api: Any, shop: Any) -> None:
    other = await api.new_project("other")
    await other.put("/api/v1/users/ada", {"addresses": {"email": ["ada@example.com"]}})
    path = link(other, "u", user_id="ada", category="general")
    assert (await api.client.post(path, content=ONE_CLICK, headers=FORM)).status_code == 200
    assert not (await holds(other, "general"))["email"]
    assert (await holds(shop, "general"))["email"]


async def test_a_form_of_parts_in_parts_holds_nobody_up(shop: Any) -> None:
    """Their parser's time grows with the square of their number, and everybody with a mail of ours has a token."""
    depth = 900
    parts = "".join(f"--b{n}\r\nContent-Type: multipart/mixed; boundary=b{n + 1}\r\n\r\n" for n in range(depth))
    body = parts + "x\r\n" * 50_000
    began_at = time.perf_counter()
    headers = {"content-type": "multipart/form-data; boundary=b0"}
    answer = await shop.api.client.post(link(shop, "p", user_id="ada"), content=body, headers=headers)
    assert answer.status_code == 403
    assert time.perf_counter() - began_at < 1


async def test_who_leaves_a_category_that_is_gone_is_heard(shop: Any) -> None:
    path = link(shop, "u", user_id="ada", category="gone")
    assert (await shop.api.client.get(path)).status_code == 200
    answer = await shop.api.client.post(path, content=ONE_CLICK, headers=FORM)
    assert answer.status_code == 200, answer.text
    path = link(shop, "u", address="eve@example.com", category="gone")
    assert (await shop.api.client.post(path, content=ONE_CLICK, headers=FORM)).status_code == 200
