"""The chat channel: addresses that are secrets, and fields."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.channels import CHANNELS
from tidings.errors import RenderError
from tidings.model.messages import Chat
from tidings.model.words import Channel

CHAT = CHANNELS[Channel.chat]
SLACK = "https://hooks.slack.com/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX"
DISCORD = "https://discord.com/api/webhooks/223704706495545344/3d89bb7572e0fb30d8128367b3b1b44f"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (SLACK, f"slack:{SLACK}"),
        (f"slack:{SLACK}", f"slack:{SLACK}"),
        (f" SLACK:{SLACK.replace('hooks', 'HOOKS')} ", f"slack:{SLACK}"),
        (SLACK.replace("slack", "slack-gov"), f"slack:{SLACK.replace('slack', 'slack-gov')}"),
        (DISCORD, f"discord:{DISCORD}"),
        (f"discord:{DISCORD}", f"discord:{DISCORD}"),
        (DISCORD.replace("discord", "discordapp"), f"discord:{DISCORD}"),
        (DISCORD.replace("discord", "ptb.discord").replace("/api", "/api/v10"), f"discord:{DISCORD}"),
        (f"{DISCORD}?thread_id=223704706495545999", f"discord:{DISCORD}?thread_id=223704706495545999"),
        ("slack:default", "slack:default"),
        ("Discord:ops-2", "discord:ops-2"),
        ("apprise:team.chat", "apprise:team.chat"),
        ("simulator:deliver", "simulator:deliver"),
        ("simulator:bounce+anything", "simulator:bounce+anything"),
    ],
)
def test_an_address_has_one_form(text: str, address: str) -> None:
    assert CHAT.parse_address(text) == address
    assert CHAT.parse_address(address) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "default",
        "slack:",
        "slack:Default",
        "slack:two words",
        "teams:default",
        "apprise:json://example.com/secret",
        "simulator:https://example.com/secret",
        f"slack:{DISCORD}",
        f"discord:{SLACK}",
        SLACK.replace("https", "http"),
        SLACK.replace(".com", ".com.example.com"),
        SLACK.replace(".com", ".com@example.com"),
        SLACK.replace(".com", ".com:8443"),
        SLACK.replace("https://", "https://ada:secret@"),
        SLACK.replace("services", "workflows"),
        SLACK.replace("/B", "/../B"),
        f"{SLACK}/more",
        f"{SLACK}?a=secret",
        f"{SLACK}#secret",
        SLACK.replace("hooks.", "hooks\uff0e"),
        SLACK.replace("/services", "\\services"),
        DISCORD.replace("api/webhooks", "api/channels"),
        f"{DISCORD}?wait=true",
        f"{DISCORD}?thread_id=x",
        f"{DISCORD}/slack",
        "https://example.com/secret",
        "https://[::1/",
        "x" * 3_000,
    ],
)
def test_what_is_no_address_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        CHAT.parse_address(text)
    for secret in ("XXXXXXXX", "3d89bb", "secret"):
        assert secret not in str(caught.value)


@given(st.text() | st.from_regex(r"(slack|discord|apprise|simulator|https)://?.{0,80}"))
def test_any_text_is_an_address_or_is_not(text: str) -> None:
    try:
        address = CHAT.parse_address(text)
    except ValueError:
        return
    assert CHAT.parse_address(address) == address


def test_fields() -> None:
    full = {"text": " Hi \n", "title": "Order", "url": "https://example.com/", "payload": ' {"blocks": []} '}
    assert CHAT.to_content(full) == Chat("Hi", "Order", "https://example.com/", b'{"blocks": []}')
    assert CHAT.to_content({"text": "Hi", "title": "", "url": " ", "payload": " "}) == Chat("Hi")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"text": " "}, "text"),
        ({"title": "Only"}, "text"),
        ({"text": "Hi", "title": "two\nlines"}, "title"),
        ({"text": "Hi", "title": "x" * 2_001}, "title"),
        ({"text": "Hi", "url": "javascript:alert(1)"}, "url"),
        ({"text": "Hi", "url": "https://example.com/|<x>"}, "url"),
        ({"text": "Hi", "url": "/relative"}, "url"),
        ({"text": "Hi", "payload": "{"}, "payload"),
        ({"text": "Hi", "payload": "[]"}, "payload"),
        ({"text": "Hi", "payload": "[" * 100_000}, "payload"),
        ({"text": "Hi", "html": "<p>"}, "html"),
    ],
)
def test_unfit_fields_are_named(fields: dict[str, str], named: str) -> None:
    with pytest.raises(RenderError, match=f"'{named}'"):
        CHAT.to_content(fields)
