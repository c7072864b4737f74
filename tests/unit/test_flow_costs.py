"""What messages cost."""

from __future__ import annotations

from uuid import UUID

import pytest

from tidings.flow.costs import cost_of
from tidings.model.messages import Content, Email, Message, Push, Sms
from tidings.model.words import Channel

COSTS = {"US": 7_900, "CA": 8_000, "*": 50_000}


def message(channel: Channel, to: str, content: Content) -> Message:
    return Message(UUID(int=1), channel, to, content)


@pytest.mark.parametrize(
    ("to", "text", "costs", "cost"),
    [
        ("+12125550123", "Hello", COSTS, 7_900),
        ("+16135550123", "Hello", COSTS, 8_000),  # the same country code
        ("+4915112345678", "Hello", COSTS, 50_000),
        ("+12125550123", "x" * 161, COSTS, 2 * 7_900),
        ("+12125550123", "ж" * 71, COSTS, 2 * 7_900),
        ("+4915112345678", "Hello", {"US": 7_900}, 0),
        ("+12125550123", "Hello", {"*": 9}, 9),
        ("SHORTCODE", "Hello", COSTS, 50_000),
        ("+12125550123", "Hello", {}, 0),
    ],
)
def test_text_messages_cost_by_country_and_part(to: str, text: str, costs: dict[str, int], cost: int) -> None:
    assert cost_of(message(Channel.sms, to, Sms(text)), costs) == cost


def test_others_cost_by_recipient_or_message() -> None:
    mms = Sms("x" * 500, media=("https://example.com/a.png",))
    assert cost_of(message(Channel.sms, "+12125550123", mms), COSTS) == 7_900
    email = Email("Hello", text="Hello", cc=("a@example.com",), bcc=("b@example.com", "c@example.com"))
    assert cost_of(message(Channel.email, "ada@example.com", email), {"*": 100}) == 400
    assert cost_of(message(Channel.push, "fcm:x", Push("Hello")), {"*": 3}) == 3
