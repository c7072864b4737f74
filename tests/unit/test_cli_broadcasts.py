"""`tidings broadcast` and `tidings import`: what they send and print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.scripted_server import Server, Step
from tests.unit.test_cli import Run, run
from tidings.cli import broadcasts

__all__ = ["run"]  # the fixture

MADE = {"id": "brd_1", "status": "running", "type": "news", "estimated": 3, "expanded": 0}


def step(code: int = 200, **changes: Any) -> Step:
    return Step(code, {**MADE, **changes})


def test_send(server: Server, run: Run) -> None:
    server.steps = [step(202)]
    done = run(
        *("broadcast", "send", "--type", "news", "--user", "a", "--user", "b", "--topic", "t/#", "--rate", "5"),
        *("--exclude-user", "c", "--local-time", "2030-01-31T09:00", "--confirm", "3", "--idempotency-key", "k"),
    )
    assert (done.code, done.out) == (0, "brd_1 running  news: 0 of 3 users\n"), done.err
    [seen] = server.seen
    assert seen.path == "/api/v1/broadcasts"
    assert seen.headers["idempotency-key"] == "k"
    assert seen.json == {
        "type": "news",
        "to": {"users": ["a", "b"], "topics": ["t/#"]},
        "exclude": {"users": ["c"]},
        "local_time": "2030-01-31T09:00",
        "rate": 5.0,
        "confirm": 3,
    }


def test_a_dry_run(server: Server, run: Run) -> None:
    server.steps = [Step(200, {"count": 2, "sample": ["a", "b"]})]
    done = run("broadcast", "send", "--type", "news", "--all", "--dry-run")
    assert (done.code, done.out) == (0, "2 users, such as:\na\nb\n")
    assert server.seen[0].json == {"type": "news", "to": {"all": True}, "dry_run": True}


def test_nobody_is_a_mistake(run: Run) -> None:
    assert run("broadcast", "send", "--type", "news").code == 2


def test_an_unconfirmed_one_is_refused(server: Server, run: Run) -> None:
    said = {"type": "https://tidings.dev/errors#confirmation-needed", "title": "Confirmation needed", "status": 409}
    server.steps = [Step(409, {**said, "detail": "This is for 3 users."})]
    done = run("broadcast", "send", "--type", "news", "--all")
    assert done.code == 5
    assert "3 users" in done.err


@pytest.mark.parametrize("what", ["pause", "resume", "cancel"])
def test_steering(server: Server, run: Run, what: str) -> None:
    server.steps = [step()]
    assert run("broadcast", what, "brd_1").code == 0
    assert (server.seen[0].method, server.seen[0].path) == ("POST", f"/api/v1/broadcasts/brd_1/{what}")


def test_show(server: Server, run: Run) -> None:
    server.steps = [Step(200, {"items": [MADE, {**MADE, "id": "brd_0"}], "next_cursor": "more"})]
    done = run("broadcast", "show", "--json")
    assert len(done.out.splitlines()) == 20, "the newest, whatever follows"


def test_watch_ends_with_the_broadcast(server: Server, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcasts, "_WATCH_EVERY", 0.0)
    server.steps = [step(), step(expanded=2), step(expanded=2), step(expanded=3), Step(200, {**MADE, "status": "done"})]
    done = run("broadcast", "watch", "brd_1", "--json")
    assert len(done.out.splitlines()) == 4
    assert done.code == 0


def test_import(server: Server, run: Run, tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("id\na\n")
    told = {
        "imported": 1,
        "changed": 1,
        "failed": 1,
        "errors": [{"line": 3, "detail": "is wrong", "pointer": "/email"}],
    }
    server.steps = [Step(200, told)]
    done = run("import", "users.csv")
    assert (done.code, done.out) == (5, "1 imported, 1 of them changed something, 1 failed\n")
    assert done.err == "line 3: /email is wrong\n"
    assert server.seen[0].headers["content-type"] == "text/csv"
    assert server.seen[0].body == b"id\na\n"
    server.steps = [Step(200, {"imported": 1, "changed": 0, "failed": 0})]
    (tmp_path / "users.ndjson").write_text('{"id": "a"}')
    assert run("import", "users.ndjson").code == 0
    assert server.seen[1].headers["content-type"] == "application/x-ndjson"
