"""Errors become problems, and problems become answers, without FastAPI."""

from __future__ import annotations

import asyncio
import json

import asyncpg
import pytest
import structlog

from tidings.errors import (
    ERRORS_TOLD,
    CommitUnknown,
    DatabaseUnavailable,
    FieldError,
    Invalid,
    TooLarge,
    Unauthenticated,
)
from tidings.web.edge import ClientGone, read_body, refuse_nul
from tidings.web.problems import to_problem, to_response, to_unknown_field


def test_a_problem_is_its_own_answer() -> None:
    status, headers, body = to_response(Invalid(errors=[FieldError("is required", pointer="/to")]))
    assert status == 422
    assert dict(headers)[b"content-type"] == b"application/problem+json"
    assert json.loads(body)["errors"] == [{"detail": "is required", "pointer": "/to"}]
    assert b"www-authenticate" in dict(to_response(Unauthenticated())[1])


def test_an_answer_lists_some_of_very_many_errors() -> None:
    told = Invalid(errors=[FieldError("is wrong", pointer=f"/channels/{n}") for n in range(100_000)]).to_dict()[
        "errors"
    ]
    assert len(told) == ERRORS_TOLD + 1
    assert told[-1] == {"detail": f"and {100_000 - ERRORS_TOLD} more"}


@pytest.mark.parametrize(
    "error", [DatabaseUnavailable(), CommitUnknown(), ConnectionRefusedError(), asyncpg.AdminShutdownError("bye")]
)
def test_a_database_that_is_away_is_503(error: Exception) -> None:
    with structlog.testing.capture_logs():
        status, headers, body = to_response(to_problem(error))
    assert status == 503
    assert dict(headers)[b"retry-after"] == b"1"
    assert b"same idempotency key" in body


def test_an_error_that_nobody_foresaw_is_logged_under_the_reference_that_is_told() -> None:
    with structlog.testing.capture_logs() as lines:
        problem = to_problem(KeyError("hunter2"))
    assert problem.status == 500
    assert "hunter2" not in problem.detail
    assert lines[0]["reference"] in problem.detail


def test_the_nearest_known_field_is_named() -> None:
    assert "did you mean `send_at`?" in to_unknown_field("sendAt", ["send_at", "type"])
    assert "known here: type" in to_unknown_field("zzz", ["type"])
    assert len(to_unknown_field("z" * 10_000, ["type"])) < 200


async def _read(*messages: dict[str, object], limit: int = 10) -> bytes:
    queue: asyncio.Queue[dict[str, object]] = asyncio.Queue()
    for message in messages:
        queue.put_nowait({"type": "http.request", **message})
    return await read_body(queue.get, limit)


async def test_bodies_are_read_whole_or_not_at_all() -> None:
    assert await _read({"body": b"12345", "more_body": True}, {"body": b"67890"}) == b"1234567890"
    assert await _read({}) == b""
    with pytest.raises(TooLarge):
        await _read({"body": b"12345", "more_body": True}, {"body": b"678901"})
    with pytest.raises(TooLarge):
        await _read({"body": b"12345678901"})
    with pytest.raises(ClientGone):
        await _read({"body": b"12345", "more_body": True}, {"type": "http.disconnect"})


def test_nul_is_pointed_at() -> None:
    with pytest.raises(Invalid) as raised:
        refuse_nul({"a": [{"b/c": "x\0"}], "k\0": 1})
    assert {error.pointer for error in raised.value.errors} == {"/a/0/b~1c", ""}
    refuse_nul({"a": "\\u0000"})
