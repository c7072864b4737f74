import json
from datetime import timedelta

from tests.contract.provider_case import DELIVERY, Answer, ProviderCase
from tests.contract.servers import Act, HttpVendor, http_answer
from tidings.model.messages import Chat, Deferred, Message, Rejected, SendResult, Sent, Sms, Uncertain
from tidings.model.words import Channel, Reason

TOKEN = "XXXXXXXXXXXXXXXXXXXXXXXX"
OWN_TOKEN = "OWNOWNOWNOWNOWNOWNOWNOWN"
PATH = f"/services/T00000000/B00000000/{TOKEN}"
OWN_PATH = f"/services/T00000000/B00000001/{OWN_TOKEN}"
PAYLOAD = b'{"blocks": [{"type": "divider"}]}'


def message(content: Chat, to: str = f"slack:https://hooks.slack.com{PATH}") -> Message:
    return Message(DELIVERY, Channel.chat, to, content)


def check(vendor: HttpVendor, sent: Message, key: str) -> None:
    request = vendor.requests[-1]
    assert isinstance(sent.content, Chat)
    path = OWN_PATH if sent.to == "slack:default" else PATH
    assert (request.method, request.target) == ("POST", path)
    assert request.headers["content-type"] == "application/json"
    body = json.loads(request.body)
    if sent.content.title is None:
        assert body == {"text": sent.content.text}
    else:
        text = "*<https://shop.example.com/?a=1&amp;b=2|Order &lt;A-1&gt;>*\nIt is &lt;!channel&gt; &amp; on its way"
        assert body == {"text": text, "blocks": [{"type": "divider"}]}


def vendor(status: int = 200, body: str = "ok", *headers: str) -> HttpVendor:
    return HttpVendor(http_answer(status, *headers, body=body.encode()))


def answers(status: int, body: str, expected: SendResult, *headers: str) -> Answer:
    return Answer(" ".join([str(status), body, *headers]), lambda: vendor(status, body, *headers), expected)


CASE = ProviderCase(
    config=lambda port: {
        "webhook_url": f"https://hooks.slack.com{OWN_PATH}",
        "base_url": f"http://127.0.0.1:{port}",
    },
    secrets=[OWN_TOKEN],
    message=lambda port: message(Chat("Hi")),
    more_messages=lambda port: {
        "full": message(
            Chat(
                "It is <!channel> & on its way",
                title="Order <A-1>",
                url="https://shop.example.com/?a=1&b=2",
                payload=PAYLOAD,
            )
        ),
        "own webhook": message(Chat("Hi"), to="slack:default"),
        "non-ascii": message(Chat("Zoë 🎉")),
    },
    undeclared=lambda port: Message(DELIVERY, Channel.chat, f"slack:https://hooks.slack.com{PATH}", Sms("Hi")),
    check=check,
    vendor=vendor,
    answers=[
        answers(200, "ok", Sent()),
        answers(200, "<html>", Uncertain()),
        answers(302, "", Rejected(Reason.rejected), "Location: http://127.0.0.1:1/"),
        answers(400, "invalid_payload", Rejected(Reason.content_rejected)),
        answers(400, "no_text", Rejected(Reason.content_rejected)),
        answers(400, "too_many_attachments", Rejected(Reason.content_rejected)),
        answers(400, "user_not_found", Rejected(Reason.gone)),
        answers(400, "something_new", Rejected(Reason.rejected)),
        answers(403, "action_prohibited", Rejected(Reason.rejected)),
        answers(403, "invalid_token", Rejected(Reason.gone)),
        answers(403, "posting_to_general_channel_denied", Rejected(Reason.rejected)),
        answers(403, "something_new", Rejected(Reason.rejected)),
        answers(404, "channel_not_found", Rejected(Reason.gone)),
        answers(404, "no_service", Rejected(Reason.gone)),
        answers(404, "no_active_hooks", Rejected(Reason.gone)),
        answers(404, "no_team", Rejected(Reason.gone)),
        answers(410, "channel_is_archived", Rejected(Reason.rejected)),
        answers(413, "", Rejected(Reason.too_large)),
        answers(429, "rate_limited", Deferred(Reason.throttled)),
        answers(429, "", Deferred(Reason.throttled, timedelta(seconds=30)), "Retry-After: 30"),
        answers(500, "rollup_error", Rejected(Reason.content_rejected)),
        answers(500, "", Deferred(Reason.provider_error)),
        answers(503, "", Deferred(Reason.provider_error, timedelta(seconds=3)), "Retry-After: 3"),
        answers(504, "", Uncertain()),
    ],
    hangs_after_send=lambda: HttpVendor(Act.hang),
    resets_after_send=lambda: HttpVendor(Act.reset),
    garbage=lambda: HttpVendor(b"\x00\xff 220 what is this\r\n\r\n"),
    oversize=lambda: HttpVendor(http_answer(200, body=b"x" * 5_000_000)),
)
