from tests.contract.provider_case import DELIVERY, ProviderCase
from tidings.model.messages import Email, InApp, Message
from tidings.model.words import Channel


def message(content: InApp, to: str = "u-42") -> Message:
    return Message(DELIVERY, Channel.in_app, to, content)


CASE = ProviderCase(
    config=lambda port: {},
    message=lambda port: message(InApp("Hello")),
    more_messages=lambda port: {
        "full": message(InApp("Hello", "Your order is on its way.", "https://example.com/orders/1")),
        "non-ascii": message(InApp("Grüße", "あなたの注文", "/b/ü")),
    },
    undeclared=lambda port: Message(DELIVERY, Channel.email, "a@example.com", Email("Hi", text="Hi")),
)
