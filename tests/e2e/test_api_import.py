"""Users from a file."""

from __future__ import annotations

import asyncio
import io
import json
import tracemalloc
from collections.abc import AsyncIterator
from itertools import islice
from typing import Any

import pytest

from tidings.directory import imports
from tidings.model.words import Scope

WHERE = "/api/v1/users/import"


async def send(tenant: Any, content: str | bytes | AsyncIterator[bytes], kind: str) -> Any:
    return await tenant.request("POST", WHERE, content=content, headers={"content-type": kind})


def lines(*rows: Any) -> str:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


async def test_ndjson(tenant: Any) -> None:
    answer = await send(
        tenant,
        lines(
            {"id": "ada", "locale": "de_at", "email": "Ada@EXAMPLE.com", "attributes": {"plan": "pro", "n": 1}},
            "",
            {"id": "bob", "addresses": {"sms": ["+43 664 1234567"], "email": []}, "topics": ["news", "a/b"]},
        ),
        "application/x-ndjson",
    )
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"imported": 2, "changed": 2, "failed": 0, "errors": []}
    ada = (await tenant.get("/api/v1/users/ada")).json()
    assert (ada["locale"], ada["addresses"]) == ("de-AT", {"email": ["Ada@example.com"]})
    assert ada["attributes"] == {"plan": "pro", "n": 1}
    topics = (await tenant.get("/api/v1/users/bob/topics")).json()["items"]
    assert sorted(item["topic"] for item in topics) == ["a/b", "news"]


async def test_a_bad_line_is_told_with_its_number_and_spoils_no_other(tenant: Any) -> None:
    answer = await send(
        tenant,
        lines(
            {"id": "a"},
            "{not json",
            {"id": "b", "email": "nobody"},
            {"id": "c", "unknown": 1},
            {"locale": "de"},
            {"id": "d", "addresses": {"sms": ["+436641234567", "12"]}, "time_zone": "Mars/Olympus"},
            {"id": "e", "attributes": {"x": "\0"}},
            {"id": "f"},
        ).encode()
        + b'\n{"id": "\xff"}\n'
        + b'{"id": "g"}',
        "application/x-ndjson",
    )
    told = answer.json()
    assert (told["imported"], told["failed"]) == (3, 7)
    assert [(error["line"], error["pointer"]) for error in told["errors"]] == [
        (2, None),
        (3, "/email"),
        (4, None),
        (5, None),
        (6, "/time_zone"),
        (6, "/addresses/sms/1"),
        (7, "/attributes"),
        (9, None),
    ]
    found = (await tenant.get("/api/v1/users")).json()["items"]
    assert [user["id"] for user in found] == ["a", "f", "g"]


async def test_csv(tenant: Any) -> None:
    text = (
        "\ufeffid,email,phone,locale,time_zone,attributes.first_name,attributes.address.city,topics\r\n"
        'ada,ada@example.com,+436641234567,de,Europe/Vienna,"Ada, ""the"" first",Wien,news;a/b\r\n'
        "bob,,,,,=1+1,,\r\n"
        "\r\n"
        'cleo,,,,,"two\nlines",,\r\n'
        "dora,x,,,,,,\r\n"
        "eve,too,few\r\n"
    )
    answer = await send(tenant, text, "text/csv; charset=utf-8")
    told = answer.json()
    assert (told["imported"], told["changed"], told["failed"]) == (3, 3, 2)
    assert [(error["line"], error["pointer"]) for error in told["errors"]] == [(7, "/email"), (8, None)]
    ada = (await tenant.get("/api/v1/users/ada")).json()
    assert ada["attributes"] == {"first_name": 'Ada, "the" first', "address": {"city": "Wien"}}
    assert ada["addresses"] == {"email": ["ada@example.com"], "sms": ["+436641234567"]}
    bob = (await tenant.get("/api/v1/users/bob")).json()
    assert bob["attributes"] == {"first_name": "=1+1"}, "a formula is text"
    assert (await tenant.get("/api/v1/users/cleo")).json()["attributes"] == {"first_name": "two\nlines"}


async def test_semicolons_and_other_encodings(tenant: Any) -> None:
    text = "id;attributes.name\na;Müller\n".encode() + "b;Jürgen\n".encode("latin-1") + b"c;x\n"
    told = (await send(tenant, text, "text/csv")).json()
    assert (told["imported"], [error["line"] for error in told["errors"]]) == (2, [3])


@pytest.mark.parametrize("header", ["email,locale", "id,id", "id,name", "id,attributes.", ""])
async def test_a_header_that_cannot_be_used(tenant: Any, header: str) -> None:
    answer = await send(tenant, f"{header}\na,b\n", "text/csv")
    assert answer.status_code == 422
    assert answer.json()["errors"]


async def test_again_changes_nothing_and_what_is_not_said_stays(tenant: Any) -> None:
    first = {"id": "a", "locale": "de", "attributes": {"x": 1, "y": 1}, "addresses": {"email": "a@example.com"}}
    phone = {"id": "a", "attributes": {"y": 2}, "phone": "+436641234567", "topics": ["t"]}
    counts = []
    for row in (first, first, phone, phone, {**first, "email": "b@example.com", "addresses": None}):
        told = (await send(tenant, lines(row), "application/x-ndjson")).json()
        counts.append((told["imported"], told["changed"]))
    assert counts == [(1, 1), (1, 0), (1, 1), (1, 0), (1, 1)]
    user = (await tenant.get("/api/v1/users/a")).json()
    assert user["attributes"] == {"x": 1, "y": 1}
    assert user["addresses"] == {"email": ["b@example.com"], "sms": ["+436641234567"]}
    trail = (await tenant.get("/api/v1/audit?action=user.import")).json()["items"]
    assert len(trail) == 5
    assert trail[0]["after"] == {"imported": 1, "changed": 1, "failed": 0}


async def test_the_last_line_about_a_user_counts(tenant: Any) -> None:
    rows = [{"id": "a", "attributes": {"n": n}} for n in range(3)]
    told = (await send(tenant, lines(*rows), "application/x-ndjson")).json()
    assert told["imported"] == 3
    assert (await tenant.get("/api/v1/users/a")).json()["attributes"] == {"n": 2}


async def test_only_what_is_offered_and_only_for_managers(tenant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await send(tenant, "{}", "application/json")).status_code == 415
    assert (await send(await tenant.with_scopes(Scope.read), "{}", "text/csv")).status_code == 403
    monkeypatch.setattr("tidings.web.api.imports.FILE_MAX", 1000)
    assert (await send(tenant, "x" * 1001, "text/csv")).status_code == 413


async def test_many_and_a_line_that_is_too_long(tenant: Any) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for n in range(2_500):
            yield json.dumps({"id": f"u{n}", "email": f"u{n}@example.com"}).encode() + b"\n"
        yield b'{"id": "' + b"x" * imports.LINE_MAX * 3 + b'"}\n'
        yield b'{"id": "last"}\n'

    told = (await send(tenant, parts(), "application/x-ndjson")).json()
    assert (told["imported"], told["changed"]) == (2501, 2501)
    assert told["errors"][0]["line"] == 2501


@pytest.mark.parametrize(
    "head", [b"id," + b"x" * 200_000, b"id," + b",".join(b"attributes.a%d" % n for n in range(5_000))]
)
async def test_a_header_that_is_too_large_is_refused(tenant: Any, head: bytes) -> None:
    """Each of its columns is compared with the others."""
    answer = await send(tenant, head + b"\nu-1\n", "text/csv")
    assert (answer.status_code, answer.json()["title"]) == (422, "Invalid request"), answer.text


def test_no_row_is_held_in_memory_whole() -> None:
    """Neither a long line nor a row of many lines; and both are told with the line that they begin on."""
    cells, quoted = b"," * 10_000_000, b'"' + b'\n",\n"' * 2_000_000 + b'"'
    file = io.BytesIO(b"\n".join([b"id,email", b"a,", cells, b"b,", b"x" + quoted]))
    tracemalloc.start()
    try:
        read = list(islice(imports._read_csv(file), 4))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [number for number, _ in read] == [2, 3, 4, 5]
    assert [isinstance(line, list) for _, line in read] == [False, True, False, True]
    assert peak < 16 * 1024**2


async def test_slow_files_of_one_project_are_few(tenant: Any) -> None:
    """Each may fill the disk, for as long as its sender likes."""
    begun, go_on = asyncio.Queue[None](), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b'{"id": "a"}\n'
        begun.put_nowait(None)
        await go_on.wait()

    slow = [asyncio.create_task(send(tenant, slowly(), "application/x-ndjson")) for _ in range(2)]
    for _ in slow:
        await begun.get()
    refused = await send(tenant, b'{"id": "b"}', "application/x-ndjson")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
    assert (await send(await tenant.api.new_project(), b'{"id": "b"}', "application/x-ndjson")).status_code == 200
    go_on.set()
    assert [answer.status_code for answer in await asyncio.gather(*slow)] == [200, 200]
    assert (await send(tenant, b'{"id": "b"}', "application/x-ndjson")).status_code == 200
