"""Slack beyond what every provider has to do: the account's own webhook, hosts, limits, markup."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.provider_case import DELIVERY, FixedClock
from tidings.errors import Invalid
from tidings.model.messages import Chat, Message, Rejected, SendResult, Sent, Throttled
from tidings.model.words import Channel, Reason
from tidings.providers.guard import Guard
from tidings.providers.http import HttpAnswer
from tidings.providers.port import Surroundings
from tidings.providers.registry import create, parse_config
from tidings.providers.slack import TEXT_MAX, escape, render_body

HI = Chat("Hi")
TAKEN = HttpAnswer(200, {}, b"ok")
OWN = "https://hooks.slack.com/services/T0/B0/own"
THEIRS = "https://hooks.slack-gov.com/services/T0/B0/theirs"


class Wire:
    """An HTTP transport with one answer."""

    def __init__(self, answer: HttpAnswer) -> None:
        self.answer = answer
        self.urls: list[str] = []

    async def request(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes | None, timeout: float, read_cap: int
    ) -> HttpAnswer:
        self.urls.append(url)
        return self.answer

    async def close(self) -> None:
        """Nothing is open."""


async def send(
    to: str, config: dict[str, Any], answer: HttpAnswer = TAKEN, content: Chat = HI
) -> tuple[SendResult, list[str]]:
    wire = Wire(answer)
    surroundings = Surroundings(wire, Guard(), FixedClock())
    provider = create("slack", parse_config("slack", config), surroundings)
    return await provider.send(Message(DELIVERY, Channel.chat, to, content), "dlv_x"), wire.urls


@pytest.mark.parametrize(
    ("to", "config", "url"),
    [
        (f"slack:{THEIRS}", {}, THEIRS),
        (f"slack:{THEIRS}", {"webhook_url": OWN}, THEIRS),
        ("slack:default", {"webhook_url": OWN}, OWN),
        ("slack:ops", {"webhook_url": OWN, "name": "ops"}, OWN),
    ],
)
async def test_where_a_message_goes(to: str, config: dict[str, Any], url: str) -> None:
    assert await send(to, config) == (Sent(), [url])


@pytest.mark.parametrize(
    ("to", "config"),
    [
        ("slack:default", {}),
        ("slack:ops", {"webhook_url": OWN}),
        ("slack:https://hooks.slack.com.example.com/services/T0/B0/x", {}),
        ("slack:https://hooks.slack.com@example.com/services/T0/B0/x", {}),
        ("slack:https://hooks.slack.com:444/services/T0/B0/x", {}),
        ("slack:http://hooks.slack.com/services/T0/B0/x", {}),
        ("slack:https://hooks.slack.com/api/chat.postMessage", {}),
    ],
)
async def test_nothing_else_is_called(to: str, config: dict[str, Any]) -> None:
    result, urls = await send(to, config)
    assert isinstance(result, Rejected)
    assert result.reason is Reason.no_account
    assert urls == []


async def test_what_is_wrong_with_the_accounts_own_webhook_is_the_accounts_fault() -> None:
    config = {"webhook_url": OWN}
    gone, _ = await send("slack:default", config, HttpAnswer(404, {}, b"no_service"))
    assert isinstance(gone, Rejected)
    assert gone.reason is Reason.unauthorized
    slow, _ = await send("slack:default", config, HttpAnswer(429, {"Retry-After": "7"}, b""))
    assert slow == Throttled(timedelta(seconds=7), "HTTP 429")


async def test_a_text_that_slack_would_cut_off_is_refused() -> None:
    for length, expected in ((TEXT_MAX, Sent), (TEXT_MAX + 1, Rejected)):
        result, _ = await send(f"slack:{THEIRS}", {}, content=Chat("x" * length))
        assert isinstance(result, expected)


@pytest.mark.parametrize(
    "url",
    ["http://hooks.slack.com/services/T/B/x", "https://example.com/services/T/B/x", "https://hooks.slack.com/x", "x"],
)
def test_a_webhook_of_somebody_else_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_config("slack", {"webhook_url": url})
    assert [error.pointer for error in caught.value.errors] == ["/config/webhook_url"]
    assert url == "x" or url not in str(caught.value.to_dict())


@given(st.text())
def test_no_text_is_markup(text: str) -> None:
    shown = escape(text)
    assert "<" not in shown
    assert ">" not in shown
    # https://docs.slack.dev/messaging/formatting-message-text/#escaping
    assert shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == text


@given(st.text(), st.none() | st.text(), st.none() | st.just("https://example.com/"))
def test_every_content_has_a_text(text: str, title: str | None, url: str | None) -> None:
    body = render_body(Chat(text, title, url))
    assert set(body) == {"text"}
    assert escape(text) in str(body["text"])


def test_the_templates_own_fields_stand_over_ours() -> None:
    payload = {"text": "*bold*", "unfurl_links": False}
    assert render_body(Chat("plain", payload=msgspec.json.encode(payload))) == payload
