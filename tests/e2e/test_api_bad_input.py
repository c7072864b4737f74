"""What is wrong with a request is told in words and places; nothing of it is stored."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest

from tidings.model.words import Scope

USER = "/api/v1/users/u"
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("body", "pointer", "told"),
    [
        ({"locales": "de"}, "/locales", "unknown field `locales`; did you mean `locale`?"),
        ({"addresses": {"mail": "a@b.example"}}, "/addresses/mail", "did you mean `email`?"),
        ({"addresses": {"pigeon": "Otto"}}, "/addresses/pigeon", "known here: chat, email, phone, push, sms, webhook"),
        ({"addresses": {"push": "token"}}, "/addresses/push/0", "fcm:<token>"),
        ({"addresses": {"push": ["fcm:abc", {"endpoint": "x"}]}}, "/addresses/push/1", "subscription"),
        ({"addresses": {"chat": "https://example.com/services/x"}}, "/addresses/chat/0", "Slack or Discord"),
        ({"zzz/~": 1}, "/zzz~1~0", "unknown field"),
        ({"locale": 7}, "/locale", "must be text"),
        ({"attributes": []}, "/attributes", "must be an object"),
        ({"locale": "xx-YY"}, "/locale", "is not a known locale"),
        ({"locale": "../../etc"}, "/locale", "is not a known locale"),
        ({"time_zone": "Mars/Olympus"}, "/time_zone", "is not a known time zone"),
        ({"time_zone": "../UTC"}, "/time_zone", "is not a known time zone"),
        ({"addresses": {"email": "ada"}}, "/addresses/email/0", ""),
        ({"addresses": {"email": ["a@example.com", "a@b\r\nBcc: x@y.z"]}}, "/addresses/email/1", ""),
        ({"addresses": {"email": [1]}}, "/addresses/email/0", "must be text"),
        ({"addresses": {"sms": "0123"}}, "/addresses/sms/0", ""),
        ({"addresses": {"webhook": "ftp://example.com"}}, "/addresses/webhook/0", ""),
        ({"addresses": {"webhook": "https://user:pw@example.com/"}}, "/addresses/webhook/0", ""),
        ({"addresses": {"email": [f"a{n}@example.com" for n in range(21)]}}, "/addresses/email", "at most 20 items"),
        ({"attributes": {"a": "x" * 17_000}}, "/attributes", "at most 16 kB"),
        ({"attributes": {"a": {"b": ["ok", "x\0y"]}}}, "/attributes/a/b/1", "NUL"),
        ([], "", "must be an object"),
    ],
)
async def test_a_wrong_user_is_refused_with_a_pointer(tenant: Any, body: Any, pointer: str, told: str) -> None:
    answer = await tenant.put(USER, body)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == "https://tidings.dev/errors#invalid"
    assert problem["errors"][0].get("pointer", "") == pointer
    assert told in problem["errors"][0]["detail"]
    assert (await tenant.get(USER)).status_code == 404


async def test_everything_that_is_wrong_is_told_at_once(tenant: Any) -> None:
    answer = await tenant.put(USER, {"locale": 1, "time_zone": "x", "nonsense": True})
    assert {error["pointer"] for error in answer.json()["errors"]} == {"/locale", "/time_zone", "/nonsense"}


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b'{"locale": ', JSON, 400, "malformed"),
        (b'{"locale": "\xff"}', JSON, 400, "malformed"),
        (b'{"attributes": {"a": NaN}}', JSON, 400, "malformed"),
        (b'{"attributes": {"a": 1e999}}', JSON, 400, "malformed"),
        (b'{"attributes": {"a": "\\ud800"}}', JSON, 400, "malformed"),
        (b'{"attributes": ' + b"[" * 100_000, JSON, 400, "malformed"),
        (b"{}", {"content-type": "text/plain"}, 415, "unsupported-media-type"),
        (b"{}", {"content-type": "application/json; charset=latin-1"}, 415, "unsupported-media-type"),
        (b"{}", {}, 415, "unsupported-media-type"),
        (b"", JSON, 422, "invalid"),
        (b'{"attributes": {"a": "' + b"x" * 10_000_000 + b'"}}', JSON, 413, "too-large"),
    ],
)
async def test_a_wrong_body_is_refused(
    tenant: Any, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    answer = await tenant.request("PUT", USER, content=content, headers=headers)
    assert (answer.status_code, answer.json()["type"].partition("#")[2]) == (status, code)
    assert (await tenant.get(USER)).status_code == 404


async def test_the_size_is_counted_not_believed(tenant: Any) -> None:
    async def chunks() -> Any:
        for _ in range(40):
            yield b" " * 65536

    # No Content-Length: the body comes in chunks.
    assert (await tenant.request("PUT", USER, content=chunks(), headers=JSON)).status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status", "parameter"),
    [
        ("GET", "/api/v1/users/%00", 422, "user_id"),
        ("GET", "/api/v1/users/%0A", 422, "user_id"),
        ("GET", "/api/v1/users/%2E%2E", 422, "user_id"),
        ("GET", "/api/v1/users/" + "x" * 256, 422, "user_id"),
        ("GET", "/api/v1/users/%FF", 400, None),
        ("GET", "/api/v1/users?limit=0", 422, "limit"),
        ("GET", "/api/v1/users?limit=many", 422, "limit"),
        ("GET", "/api/v1/users?limit=99999999999999999999999", 422, "limit"),
        ("GET", "/api/v1/audit?object=%00", 422, "object"),
        ("GET", "/api/v1/categories/UPPER", 422, "key"),
        ("GET", "/api/v1/keys/key_x", 422, "key_id"),
        ("GET", "/api/v1/nothing", 404, None),
        ("GET", "/api/v1/users/", 422, "user_id"),
        ("PATCH", "/api/v1/users/u", 405, None),
        ("GET", "/nothing", 404, None),
    ],
)
async def test_a_wrong_path_or_parameter_is_a_problem(
    tenant: Any, method: str, path: str, status: int, parameter: str | None
) -> None:
    answer = await tenant.request(method, path)
    assert answer.headers["content-type"] == "application/problem+json"
    if path.endswith("/users/"):  # an empty id is no id: the path has no route
        assert answer.status_code == 404
        return
    assert answer.status_code == status, answer.text
    if parameter:
        assert answer.json()["errors"][0]["parameter"] == parameter
    if status == 405:
        assert "PUT" in answer.headers["allow"]


async def test_a_key_that_does_not_count_is_refused(tenant: Any) -> None:
    api = tenant.api
    soon = datetime.now(UTC) + timedelta(minutes=1)
    expiring = await tenant.with_scopes(Scope.read, expires_at=soon)
    assert (await expiring.get("/api/v1/project")).status_code == 200
    api.clock.passed = timedelta(minutes=2)
    told = await expiring.get("/api/v1/project")
    assert told.status_code == 401
    assert "expired" in told.json()["detail"]
    changed = tenant.token[:-1] + ("A" if tenant.token[-1] != "A" else "B")
    for header in (
        "",
        "Bearer",
        "Basic abc",
        f"Bearer {tenant.token}x",
        f"Bearer {changed}",
        "Bearer tdg_ü",
    ):
        answer = await api.client.get("/api/v1/project", headers={"authorization": header.encode()})
        assert answer.status_code == 401, header
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert (await api.client.get("/api/v1/project")).status_code == 401


async def test_a_stranger_is_refused_before_the_body_is_read(api: Any) -> None:
    answer = await api.client.put("/api/v1/users/u", content=b"{not json", headers=JSON)
    assert answer.status_code == 401


@pytest.mark.parametrize("noun", ["templates", "types"])
async def test_a_made_up_cursor_is_no_error_of_ours(tenant: Any, noun: str) -> None:
    await tenant.put("/api/v1/templates/t", {})
    await tenant.post("/api/v1/templates/t/versions", {"channels": {"sms": {"en": {"text": "Hello"}}}})
    await tenant.put("/api/v1/types/t", {})
    mark = sha256(f"{noun}/t/versions".encode()).hexdigest()[:8]
    for place, status in ((1 << 40, 200), ((1 << 63) - 1, 200), (1 << 63, 422), (-1, 422), ("1", 422)):
        cursor = urlsafe_b64encode(json.dumps([mark, place]).encode()).decode().rstrip("=")
        answer = await tenant.get(f"/api/v1/{noun}/t/versions", params={"cursor": cursor})
        assert answer.status_code == status, answer.text


async def test_since_may_lie_before_all_ids(tenant: Any) -> None:
    answer = await tenant.get("/api/v1/notifications", params={"since": "0001-01-01T00:00:00Z"})
    assert (answer.status_code, answer.json()["items"]) == (200, [])


async def test_many_errors_of_a_small_request_make_no_large_answer(tenant: Any) -> None:
    body = {"to": {"email": "a@example.com"}, "content": {"subject": "a", "text": "b"}, "channels": ["push"] * 50_000}
    answer = await tenant.post("/api/v1/notifications", body)
    assert answer.status_code == 422
    assert len(answer.content) < 10_000


async def test_nothing_of_an_internal_error_is_told(tenant: Any) -> None:
    await tenant.api.deps.database.execute("ALTER TABLE category RENAME TO secret_name")
    answer = await tenant.get("/api/v1/categories")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "category" not in answer.text
    assert "reference" in answer.json()["detail"]


async def test_a_database_that_is_away_is_told_with_when_to_come_back(tenant: Any) -> None:
    await tenant.api.deps.database.close()
    answer = await tenant.get("/api/v1/categories")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
