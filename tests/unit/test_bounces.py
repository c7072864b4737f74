"""`tidings bounces`: where mails come from, what is said of each, and what its exit code means."""

from __future__ import annotations

import asyncio
import io
import json
import mailbox
import os
import smtplib
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.scripted_server import Server, Step
from tidings.bounces import MAX_SENT, Courier, Handed, Listener
from tidings.cli import Exit, main

KEY = "dlv_01kb0000000000000000000000"
RETURN_PATH = f"bounces+{KEY}-0123456789abcdef@bounce.example.com"
REPORTED = Step(200, {"form": "delivery-status", "reports": [{"kind": "failed", "reason": "bounced", "key": KEY}]})
NO_BOUNCE = Step(200, {"form": None, "reports": []})
FOREIGN = Step(200, {"form": "text", "reports": []})
MAIL = b"From: MAILER-DAEMON\nTo: x@example.com\nSubject: failed\n\ntext\n"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("TIDINGS_BOUNCES_URL", f"{server.url}/callbacks/shop/smtp/mail/s3cret-path")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["bounces", *arguments])
        captured = capsys.readouterr()
        assert "s3cret-path" not in captured.out + captured.err
        return int(caught.value.code or 0), captured.out, captured.err

    return run


def test_a_single_mail_in_a_file(run: Run, server: Server, tmp_path: Path) -> None:
    server.steps = [REPORTED]
    (tmp_path / "one.eml").write_bytes(MAIL)
    assert run(str(tmp_path / "one.eml")) == (Exit.ok, f"one.eml: failed bounced {KEY}\n", "")
    (seen,) = server.seen
    assert (seen.method, seen.path, seen.body) == ("POST", "/callbacks/shop/smtp/mail/s3cret-path", MAIL)
    assert seen.headers["content-type"] == "message/rfc822"


def test_a_mail_on_standard_input(run: Run, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.steps = [NO_BOUNCE]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(MAIL)))
    assert run() == (Exit.ok, "standard input: no bounce\n", "")
    assert server.seen[0].body == MAIL


def test_all_mails_of_an_mbox_file(run: Run, server: Server, tmp_path: Path) -> None:
    box = mailbox.mbox(tmp_path / "box")
    for n in range(3):
        box.add(MAIL + b"%d\n" % n)
    box.close()
    before = (tmp_path / "box").read_bytes()
    server.steps = [REPORTED, NO_BOUNCE, FOREIGN]
    code, out, _ = run(str(tmp_path / "box"), "--json")
    assert code == Exit.ok
    assert [json.loads(line)["state"] for line in out.splitlines()] == ["reported", "nothing", "nothing"]
    assert [seen.body.splitlines()[-1] for seen in server.seen] == [b"0", b"1", b"2"]
    assert (tmp_path / "box").read_bytes() == before


def test_the_new_mails_of_a_maildir_become_seen_when_the_api_has_them(run: Run, server: Server, tmp_path: Path) -> None:
    box = mailbox.Maildir(tmp_path / "box")
    for _ in range(2):
        box.add(MAIL)
    server.steps = [REPORTED, Step(503)]
    code, out, _ = run(str(tmp_path / "box"))
    assert code == Exit.unreachable
    assert "the API answered 503" in out
    assert sorted(len(list((tmp_path / "box" / part).iterdir())) for part in ("new", "cur")) == [1, 1]
    assert [message.get_flags() for message in mailbox.Maildir(tmp_path / "box", create=False)].count("S") == 1
    server.steps = [REPORTED]
    assert run(str(tmp_path / "box"))[0] == Exit.ok
    assert list((tmp_path / "box" / "new").iterdir()) == []
    assert run(str(tmp_path / "box")) == (Exit.ok, "", "")


@pytest.mark.parametrize(
    ("step", "code", "says"),
    [
        (Step(404), Exit.refused, "is it the account's callback URL?"),
        (Step(200, {"status": "ok"}), Exit.refused, "is it the account's callback URL?"),
        (Step(200, b"<html>"), Exit.refused, "is it the account's callback URL?"),
        (Step(302, headers={"location": "http://127.0.0.1:1/"}), Exit.refused, "the API answered 302"),
        (Step(429), Exit.unreachable, "the API answered 429"),
        (Step(instead="reset"), Exit.unreachable, "the API cannot be reached"),
        (Step(instead="garbage"), Exit.unreachable, "the API cannot be reached"),
    ],
)
def test_what_the_api_may_answer(run: Run, server: Server, tmp_path: Path, step: Step, code: int, says: str) -> None:
    (tmp_path / "one.eml").write_bytes(MAIL)
    server.steps = [step]
    found, out, _ = run(str(tmp_path / "one.eml"))
    assert found == code
    assert says in out


def test_of_a_large_mail_only_the_beginning_is_handed_over(run: Run, server: Server, tmp_path: Path) -> None:
    server.steps = [NO_BOUNCE]
    (tmp_path / "large").write_bytes(MAIL + b"x" * 2 * MAX_SENT)
    assert run(str(tmp_path / "large"))[0] == Exit.ok
    assert len(server.seen[0].body) == MAX_SENT


def test_wrong_command_lines(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run("box", "--listen", "127.0.0.1:1")[0] == Exit.usage
    for place in ("2526", "host:", ":1", "host:x", "host:99999"):
        assert run("--listen", place)[0] == Exit.usage, place
    assert run(str(tmp_path / "nothing")) == (
        Exit.usage,
        "",
        f"tidings: {tmp_path / 'nothing'} cannot be read: No such file or directory\n",
    )
    code, _, err = run(str(tmp_path))
    assert (code, "no Maildir" in err) == (Exit.usage, True)
    assert run("box", "--url", "ftp://x/s3cret-path")[0] == Exit.configuration
    monkeypatch.delenv("TIDINGS_BOUNCES_URL")
    assert run("box")[0] == Exit.configuration


# --- the listener -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def listening(server: Server) -> AsyncIterator[tuple[int, list[Handed]]]:
    told: list[Handed] = []
    async with Courier(f"{server.url}/callbacks/shop/smtp/mail/s3cret-path") as courier:
        listener = Listener(courier, told.append)
        await listener.start("127.0.0.1", 0)
        try:
            yield listener.port, told
        finally:
            await listener.stop()


async def deliver(port: int, *to: str, mail: bytes = MAIL.replace(b"\n", b"\r\n")) -> dict[str, tuple[int, bytes]]:
    """Which recipients were refused."""

    def talk() -> dict[str, tuple[int, bytes]]:
        with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
            try:
                return client.sendmail("", to, mail)
            except smtplib.SMTPRecipientsRefused as no:
                return no.recipients
            except smtplib.SMTPDataError as no:
                return {"": (no.smtp_code, no.smtp_error if isinstance(no.smtp_error, bytes) else b"")}

    return await asyncio.to_thread(talk)


async def test_a_bounce_that_arrives_is_handed_over_with_its_recipient(server: Server) -> None:
    server.steps = [REPORTED]
    async with listening(server) as (port, told):
        assert await deliver(port, RETURN_PATH.upper()) == {}
    assert told == [Handed(RETURN_PATH.upper(), "reported", f"failed bounced {KEY}")]
    head, _, rest = server.seen[0].body.partition(b"\r\n")
    assert head == f"Delivered-To: {RETURN_PATH.upper()}".encode()
    assert rest == MAIL.replace(b"\n", b"\r\n")


async def test_other_recipients_are_unknown_here(server: Server) -> None:
    async with listening(server) as (port, told):
        for address in ("postmaster@example.com", f"{KEY}@example.com", f"x@{KEY}-0123456789abcdef.example"):
            refused = await deliver(port, address)
            assert refused[address][0] == 550
        server.steps = [REPORTED]
        assert set(await deliver(port, "ada@example.com", RETURN_PATH)) == {"ada@example.com"}
    assert len(told) == len(server.seen) == 1


async def test_one_mail_is_not_handed_over_a_thousand_times(server: Server) -> None:
    addresses = [f"b+{KEY[:-2]}{n:02d}-0123456789abcdef@bounce.example.com" for n in range(12)]
    async with listening(server) as (port, told):
        server.steps = [REPORTED] * 10
        assert {code for code, _ in (await deliver(port, *addresses)).values()} == {452}
    assert len(told) == len(server.seen) == 10


@pytest.mark.parametrize("step", [Step(503), Step(404), Step(instead="reset")])
async def test_a_mail_that_the_api_does_not_take_stays_with_its_sender(server: Server, step: Any) -> None:
    async with listening(server) as (port, told):
        server.steps = [step]
        assert (await deliver(port, RETURN_PATH))[""][0] == 451
        server.steps = [REPORTED]
        assert await deliver(port, RETURN_PATH) == {}
    assert [handed.state == "reported" for handed in told] == [False, True]


async def test_the_command_listens_until_it_is_told_to_stop(server: Server) -> None:
    server.steps = [REPORTED]
    environment = {**os.environ, "TIDINGS_BOUNCES_URL": f"{server.url}/callbacks/shop/smtp/mail/s3cret-path"}
    command = [sys.executable, "-m", "tidings", "bounces", "--listen", "127.0.0.1:0", "--json"]
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        place = json.loads(await process.stdout.readline())["listening"]
        assert await deliver(int(place.rpartition(":")[2]), RETURN_PATH) == {}
        assert json.loads(await process.stdout.readline())["state"] == "reported"
        process.terminate()
        assert await process.wait() == Exit.ok
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
