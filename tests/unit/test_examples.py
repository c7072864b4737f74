"""The examples of the README do what they say."""

from __future__ import annotations

import base64
import runpy
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import HTTPServer
from pathlib import Path

import httpx
import pytest
from standardwebhooks import Webhook

from tests.unit.scripted_server import Server, Step

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
AT = "2026-01-01T00:00:00Z"
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


@pytest.fixture
def example(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    monkeypatch.setenv("TIDINGS_URL", server.url)
    monkeypatch.setenv("TIDINGS_API_KEY", "tdg_demo_k")

    def run(name: str) -> str:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_send_email(server: Server, example: Callable[[str], str]) -> None:
    timeline = [{"at": AT, "event": "sent", "channel": "email"}]
    done = {"id": "ntf_1", "status": "sent", "created_at": AT, "timeline": timeline}
    server.steps = [Step(202, {"id": "ntf_1", "status": "queued"}), Step(200, done)]
    assert "sent email" in example("send_email.py")


def test_send_in_app(server: Server, example: Callable[[str], str]) -> None:
    server.steps = [
        Step(202, {"id": "ntf_1", "status": "queued"}),
        Step(200, {"id": "ntf_1", "status": "delivered", "created_at": AT}),
        Step(200, {"items": [{"id": "dlv_1", "seq": 3, "title": "Order A-1 is on its way"}]}),
    ]
    assert example("send_in_app.py") == "3 Order A-1 is on its way\n"


def test_send_webhook(server: Server, example: Callable[[str], str]) -> None:
    server.steps = [Step(202, {"id": "ntf_1", "status": "queued"})]
    assert example("send_webhook.py") == "ntf_1 queued\n"


def test_receive_webhook(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Against another implementation of Standard Webhooks."""
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    receiver = runpy.run_path(str(EXAMPLES / "receive_webhook.py"))["Receiver"]
    http = HTTPServer(("127.0.0.1", 0), receiver)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def post(at: datetime, body: str, *, signed: str | None = None, extra: str = "") -> int:
        headers = {
            "webhook-id": "dlv_1",
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": extra + Webhook(SECRET).sign("dlv_1", at, signed or body),
        }
        return httpx.post(f"http://127.0.0.1:{http.server_port}/", content=body, headers=headers).status_code

    try:
        now = datetime.now(UTC)
        assert post(now, '{"a": "ä"}') == 204
        assert post(now, '{"a": "ä"}', extra="v1,AAAA ") == 204
        assert post(now, '{"a": 2}', signed='{"a": 1}') == 401
        assert post(now - timedelta(hours=1), "{}") == 401
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
    assert 'genuine dlv_1 {"a": "ä"}' in capfd.readouterr().out
