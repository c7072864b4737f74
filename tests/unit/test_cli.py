"""The command line: what it sends, what it prints, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.unit.scripted_server import Server, Step
from tidings.cli import Exit, main
from tidings.cli.run import print_up
from tidings.demo.keeping import DemoSecrets, save_demo_secrets
from tidings.demo.welcome import UpInfo

ACCEPTED = Step(202, {"id": "ntf_1", "status": "queued"})


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture
def run(server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a command in an empty folder, against the scripted server."""
    monkeypatch.chdir(tmp_path)
    for name in ("TIDINGS_DATABASE_URL", "TIDINGS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TIDINGS_API_KEY", "tdg_demo_k_s3cret")
    monkeypatch.setenv("TIDINGS_URL", server.url)

    def run(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        captured = capsys.readouterr()
        return Outcome(int(caught.value.code or 0), captured.out, captured.err)

    return run


def test_help_is_quick() -> None:
    """What is slow to import, no command needs before it runs."""
    heavy = ["httpx", "pydantic", "asyncpg", "asyncio", "fastapi", "alembic", "aiohttp", "rich.markdown", "msgspec"]
    program = (
        "import sys; from tidings.cli import app; app(['--help']);"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    for command in ("up", "api", "worker", "migrate", "send", "replay", "doctor", "bench"):
        assert f" {command} " in done.stdout


def test_send(server: Server, run: Run) -> None:
    server.steps = [ACCEPTED]
    done = run(
        *("send", "--type", "order_shipped", "--user", "u-42", "--data", '{"order": "A-1"}', "--priority", "high"),
        *("--channels", "email, in_app", "--send-at", "2030-01-01T00:00:00Z", "--idempotency-key", "k"),
    )
    assert (done.code, done.out) == (0, "ntf_1 queued\n")
    [seen] = server.seen
    assert seen.headers["idempotency-key"] == "k"
    assert seen.headers["authorization"] == "Bearer tdg_demo_k_s3cret"
    assert seen.json == {
        "type": "order_shipped",
        "to": {"user": "u-42"},
        "data": {"order": "A-1"},
        "priority": "high",
        "channels": ["email", "in_app"],
        "send_at": "2030-01-01T00:00:00Z",
    }


def test_send_without_a_type_and_with_json(server: Server, run: Run) -> None:
    server.steps = [Step(202, {"id": "ntf_1", "status": "queued", "idempotent_replayed": True})]
    done = run("send", "--email", "ada@example.com", "--subject", "Hi", "--text", "Hello", "--json")
    assert done.json == {"id": "ntf_1", "status": "queued", "idempotent_replayed": True}
    assert server.seen[0].json["content"] == {"subject": "Hi", "text": "Hello"}


def test_data_from_a_file(server: Server, run: Run, tmp_path: Path) -> None:
    server.steps = [ACCEPTED]
    (tmp_path / "data.json").write_text('{"order": "Ä"}')
    assert run("send", "--type", "t", "--user", "u", "--data", "@data.json").code == 0
    assert server.seen[0].json["data"] == {"order": "Ä"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["send", "--type", "t"], "whom to tell"),
        (["send", "--type", "t", "--user", "u", "--email", "e@example.com"], "whom to tell"),
        (["send", "--user", "u"], "what to tell"),
        (["send", "--type", "t", "--user", "u", "--text", "x"], "what to tell"),
        (["send", "--type", "t", "--user", "u", "--data", "{"], "not JSON"),
        (["send", "--type", "t", "--user", "u", "--data", "[1]"], "JSON object"),
        (["send", "--type", "t", "--user", "u", "--data", "@gone.json"], "cannot be read"),
        (["send", "--type", "t", "--user", "u", "--channels", "email,pigeon"], "'pigeon' is no channel"),
        (["send", "--type", "t", "--user", "u", "--priority", "urgent"], "critical"),
        (["send", "--file", "gone.jsonl"], "cannot be read"),
        (["send", "--nonsense"], "nonsense"),
        (["replay", "dlv_1", "--all"], "not both"),
        (["worker", "--channels", ","], "at least one channel"),
        (["nonsense"], "nonsense"),
    ],
)
def test_usage(server: Server, run: Run, arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.code == Exit.usage
    assert said in done.err
    assert server.seen == []


def test_refused(server: Server, run: Run) -> None:
    server.steps = [
        Step(422, {"type": "x#invalid", "title": "T", "status": 422, "detail": "D", "errors": [{"detail": "wrong"}]})
    ]
    done = run("send", "--type", "t", "--user", "u")
    assert done.code == Exit.refused
    assert "wrong" in done.err
    assert "Traceback" not in done.err
    done = run("send", "--type", "t", "--user", "u", "--json")
    assert json.loads(done.err)["status"] == 422
    assert done.out == ""


def test_configuration(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("migrate").code == Exit.configuration
    monkeypatch.setenv("TIDINGS_PROT", "1")
    done = run("api")
    assert done.code == Exit.configuration
    assert "TIDINGS_PROT" in done.err
    monkeypatch.delenv("TIDINGS_PROT")
    monkeypatch.setenv("TIDINGS_URL", "nonsense")
    assert run("send", "--type", "t", "--user", "u").code == Exit.configuration


def test_unreachable(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDINGS_DATABASE_URL", "postgresql://u:s3cret@127.0.0.1:1/x")
    done = run("migrate", "--json")
    assert done.code == Exit.unreachable
    assert "cannot be reached" in json.loads(done.err)["error"]
    assert "s3cret" not in done.err


def test_send_many(server: Server, run: Run, tmp_path: Path) -> None:
    (tmp_path / "many.jsonl").write_text('{"type": "t", "to": {"user": "a"}}\n\n{"type": "t", "to": {"user": "b"}}\n')
    problem = {"type": "x#invalid", "title": "T", "status": 422, "detail": "no such user", "errors": []}
    server.steps = [Step(202, {"results": [{"id": "ntf_1", "status": "queued"}, {"problem": problem}]})]
    done = run("send", "--file", "many.jsonl")
    assert done.code == Exit.refused
    assert done.out == "ntf_1 queued\n"
    assert "line 3: refused: no such user" in done.err
    done = run("send", "--file", "many.jsonl", "--json")
    assert [json.loads(line)["line"] for line in done.out.splitlines()] == [1, 3]


def test_replay(server: Server, run: Run) -> None:
    letter = {"delivery": "dlv_1", "notification": "ntf_1", "channel": "email", "reason": "bounced", "attempts": 5}
    server.steps = [Step(200, {"items": [letter]})]
    done = run("replay", "--channel", "email")
    assert "dlv_1  email    bounced after 5 attempts" in done.out
    assert server.seen[0].query == {"channel": ["email"]}
    server.steps = [Step(200, {"replayed": 1})]
    done = run("replay", "dlv_1", "dlv_2")
    assert done.code == Exit.failed
    assert "1 put back to work, 1 are no dead letters" in done.out


def test_replay_all_takes_each_letter_once(server: Server, run: Run) -> None:
    def page(first: int, count: int, cursor: str | None) -> Step:
        letters = [
            {"delivery": f"dlv_{n}", "notification": "ntf_1", "channel": "email", "reason": "bounced"}
            for n in range(first, first + count)
        ]
        return Step(200, {"items": letters, "next_cursor": cursor})

    server.steps = [page(0, 200, "c"), Step(200, {"replayed": 200}), page(200, 5, None), Step(200, {"replayed": 5})]
    done = run("replay", "--all", "--reason", "bounced", "--json")
    assert done.json == {"replayed": 205, "missing": 0}
    assert [len(seen.json["deliveries"]) for seen in server.seen if seen.method == "POST"] == [200, 5]


def test_the_key_of_the_demo_started_here(
    server: Server, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TIDINGS_API_KEY")
    assert run("send", "--type", "t", "--user", "u").code == Exit.configuration
    secrets = DemoSecrets(api_key="tdg_demo_kept", webhook_secret="whsec_x", api_url=server.url)
    save_demo_secrets(tmp_path / ".tidings", secrets)
    monkeypatch.delenv("TIDINGS_URL")
    server.steps = [ACCEPTED]
    assert run("send", "--type", "t", "--user", "u").code == Exit.ok
    assert server.seen[0].headers["authorization"] == "Bearer tdg_demo_kept"
    # to another server it is not shown
    assert run("send", "--type", "t", "--user", "u", "--url", "http://127.0.0.1:1").code == Exit.configuration


def test_doctor(server: Server, run: Run) -> None:
    account = {"key": "catcher", "channel": "email", "provider": "smtp", "config": {"host": "127.0.0.1", "port": 1}}
    server.steps = [
        Step(200, {"status": "ok"}),
        Step(200, {"status": "ready", "checks": {"database": "ok"}}),
        Step(200, {"key": "demo"}),
        Step(200, {"items": [account]}),
    ]
    done = run("doctor", "--json")
    assert done.code == Exit.failed
    found = {finding["subject"]: finding for finding in done.json["findings"]}
    assert found["settings"]["state"] == "ok"
    assert found["API"]["state"] == "ok"
    assert found["API key"]["detail"] == "of the project demo"
    assert found["account catcher"]["state"] == "fail"
    assert found["account catcher"]["advice"]


def test_up_tells_where_to_look(capsys: pytest.CaptureFixture[str]) -> None:
    info = UpInfo(
        api_url="http://127.0.0.1:8000",
        docs_url="http://127.0.0.1:8000/docs",
        catcher_url="http://127.0.0.1:8025/",
        api_key="tdg_demo_x",
        database="private PostgreSQL in .tidings",
    )
    print_up(info)
    told = capsys.readouterr().out
    for word in ("http://127.0.0.1:8000/docs", "http://127.0.0.1:8025/", "tdg_demo_x", "curl -sS", "Ctrl-C"):
        assert word in told
    print_up(info, as_json=True)
    assert json.loads(capsys.readouterr().out)["api_key"] == "tdg_demo_x"
    print_up(UpInfo(api_url="http://h", docs_url="http://h/docs", database="d"))
    assert "curl" not in capsys.readouterr().out
    assert "tdg_demo_x" not in repr(info)
