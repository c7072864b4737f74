from tests.contract.provider_case import DELIVERY, ProviderCase
from tidings.model.messages import Email, InApp, Message, Sms, Webhook
from tidings.model.words import Channel

CASE = ProviderCase(
    config=lambda port: {"outcome": "deliver", "latency_ms": 5},
    message=lambda port: Message(DELIVERY, Channel.email, "deliver@simulator.test", Email("Hi", text="Hi")),
    more_messages=lambda port: {
        "full": Message(
            DELIVERY,
            Channel.email,
            "deliver+x@simulator.test",
            Email("Hi", "Hi", "<p>Hi</p>", "a@example.com", "b@example.com", (("X-A", "1"),)),
        ),
        "non-ascii": Message(DELIVERY, Channel.sms, "+99900000001", Sms("Grüße")),
        "webhook": Message(DELIVERY, Channel.webhook, "https://deliver.simulator.test/x", Webhook(b"{}")),
        "in_app": Message(DELIVERY, Channel.in_app, "u-42", InApp("Hi")),
    },
    undeclared=lambda port: Message(DELIVERY, Channel.push, "token", InApp("Hi")),
)
