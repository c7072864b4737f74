"""Discord beyond what every provider has to do: the account's own webhook, limits, and its own description."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.contract.golden import check_body
from tests.contract.provider_case import DELIVERY, FixedClock
from tests.contract.servers import HttpVendor, http_answer
from tidings.errors import Invalid
from tidings.model.messages import Chat, Message, Rejected, SendResult, Sent, Throttled
from tidings.model.words import Channel, Reason
from tidings.providers.discord import TEXT_MAX, TITLE_MAX, render_body
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport
from tidings.providers.port import Surroundings
from tidings.providers.registry import create, parse_config

DESCRIPTION = "discord/openapi_webhook_execute_trimmed.json"
PATH = "/webhooks/{webhook_id}/{webhook_token}"
HI = Chat("Hi")
OWN = "https://discord.com/api/webhooks/223704706495545344/own-token-own-token"
THEIRS = "https://discord.com/api/webhooks/223704706495545345/their-token-their-token"


async def send(to: str, vendor: HttpVendor, content: Chat = HI, **config: Any) -> SendResult:
    guard = Guard(["127.0.0.0/8"])
    http = AiohttpTransport(guard)
    async with vendor:
        given = {"base_url": f"http://127.0.0.1:{vendor.port}/api", **config}
        provider = create("discord", parse_config("discord", given), Surroundings(http, guard, FixedClock()))
        try:
            return await provider.send(Message(DELIVERY, Channel.chat, to, content), "dlv_x")
        finally:
            await provider.close()
            await http.close()


@pytest.mark.parametrize(
    "content",
    [
        Chat("Hi"),
        Chat("Hi", title="Order A-1"),
        Chat("Hi", url="https://shop.example.com/" + "x" * 1_000),
        Chat("x" * TEXT_MAX, title="x" * TITLE_MAX, url="https://shop.example.com/"),
        Chat("Hi", payload=b'{"embeds": [{"title": "A", "color": 255, "fields": [{"name": "n", "value": "v"}]}]}'),
        Chat("Hi", payload=b'{"allowed_mentions": {"parse": ["users"]}, "username": "Shop"}'),
    ],
)
def test_requests_fit_the_vendors_description(content: Chat) -> None:
    check_body(DESCRIPTION, PATH, render_body(content))


def test_the_description_would_find_a_fault() -> None:
    with pytest.raises(AssertionError, match="content"):
        check_body(DESCRIPTION, PATH, render_body(Chat("x" * (TEXT_MAX + 1))))


def test_nobody_is_mentioned() -> None:
    assert render_body(Chat("@everyone"))["allowed_mentions"] == {"parse": []}


async def test_the_answer_has_the_messages_id() -> None:
    vendor = HttpVendor(http_answer(200, body=b'{"id": "1189943225125183588"}'))
    assert await send(f"discord:{THEIRS}", vendor) == Sent("1189943225125183588")
    assert vendor.requests[0].target == "/api/webhooks/223704706495545345/their-token-their-token?wait=true"


async def test_what_is_wrong_with_the_accounts_own_webhook_is_the_accounts_fault() -> None:
    gone = await send("discord:default", HttpVendor(http_answer(404, body=b'{"code": 10015}')), webhook_url=OWN)
    assert isinstance(gone, Rejected)
    assert gone.reason is Reason.unauthorized
    slow = await send("discord:default", HttpVendor(http_answer(429, body=b'{"retry_after": 1.5}')), webhook_url=OWN)
    assert slow == Throttled(timedelta(seconds=1.5), "HTTP 429")


@pytest.mark.parametrize(
    "content", [Chat("x" * (TEXT_MAX + 1)), Chat("Hi", title="x" * (TITLE_MAX + 1)), Chat("Hi", url="x" * 2_049)]
)
async def test_what_discord_would_refuse_stays_here(content: Chat) -> None:
    vendor = HttpVendor()
    result = await send(f"discord:{THEIRS}", vendor, content)
    assert isinstance(result, Rejected)
    assert result.reason is Reason.too_large
    assert vendor.connections == 0


@pytest.mark.parametrize(
    "to",
    [
        "discord:default",
        "discord:https://discord.com.example.com/api/webhooks/223704706495545345/their-token",
        "discord:https://discord.com/api/webhooks/../users/223704706495545345",
        "discord:https://discord.com/api/webhooks/223704706495545345/their-token?wait=false",
    ],
)
async def test_nothing_else_is_called(to: str) -> None:
    vendor = HttpVendor()
    result = await send(to, vendor)
    assert isinstance(result, Rejected)
    assert result.reason is Reason.no_account
    assert vendor.connections == 0


def test_a_webhook_of_somebody_else_is_refused_and_not_repeated() -> None:
    with pytest.raises(Invalid) as caught:
        parse_config("discord", {"webhook_url": "https://example.com/api/webhooks/223704706495545345/token-token"})
    assert [error.pointer for error in caught.value.errors] == ["/config/webhook_url"]
    assert "token-token" not in str(caught.value.to_dict())
