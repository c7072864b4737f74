import json
from datetime import timedelta

from tests.contract.golden import ROOT, check_body
from tests.contract.provider_case import DELIVERY, Answer, ProviderCase
from tests.contract.servers import Act, HttpVendor, http_answer
from tidings.model.messages import Chat, Deferred, Message, Rejected, SendResult, Sent, Sms, Throttled, Uncertain
from tidings.model.words import Channel, Reason

TOKEN = "3d89bb7572e0fb30d8128367b3b1b44fecd1726de135cbe28a41f8b2f777c372ba2939e72279b94526ff5d1bd4358d65cf11"
OWN_TOKEN = "own-7572e0fb30d8128367b3b1b44fecd1726de135cbe28a41f8b2f777c372ba2939e72279b94526ff5d1bd4358d65cf11"
PATH = f"/webhooks/223704706495545344/{TOKEN}"
OWN_PATH = f"/webhooks/223704706495545345/{OWN_TOKEN}"
DESCRIPTION = "discord/openapi_webhook_execute_trimmed.json"
PAYLOAD = b'{"username": "Shop", "tts": false}'


def message(content: Chat, to: str = f"discord:https://discord.com/api{PATH}") -> Message:
    return Message(DELIVERY, Channel.chat, to, content)


def check(vendor: HttpVendor, sent: Message, key: str) -> None:
    request = vendor.requests[-1]
    assert isinstance(sent.content, Chat)
    path = OWN_PATH if sent.to == "discord:default" else PATH
    thread = "&thread_id=223704706495545999" if "thread_id" in sent.to else ""
    assert (request.method, request.target) == ("POST", f"{path}?wait=true{thread}")
    assert request.headers["content-type"] == "application/json"
    body = json.loads(request.body)
    expected: dict[str, object] = {"content": sent.content.text, "allowed_mentions": {"parse": []}}
    if sent.content.title is not None:
        embed = {"title": "Order A-1", "url": "https://shop.example.com/?a=1&b=2"}
        expected |= {"embeds": [embed], "username": "Shop", "tts": False}
    assert body == expected
    if ROOT is not None:  # the vendor's own description, where it is at hand
        check_body(DESCRIPTION, "/webhooks/{webhook_id}/{webhook_token}", body)


def vendor(status: int = 200, body: object = None, *headers: str) -> HttpVendor:
    stored = {"id": "1189943225125183588", "channel_id": "1", "content": "Hi"} if body is None else body
    return HttpVendor(http_answer(status, "Content-Type: application/json", *headers, body=json.dumps(stored).encode()))


def answers(status: int, body: object, expected: SendResult, *headers: str) -> Answer:
    label = " ".join([str(status), json.dumps(body), *headers])
    return Answer(label, lambda: vendor(status, body, *headers), expected)


def refused(code: int) -> dict[str, object]:
    return {"message": "In words", "code": code}


CASE = ProviderCase(
    config=lambda port: {
        "webhook_url": f"https://discord.com/api{OWN_PATH}",
        "base_url": f"http://127.0.0.1:{port}",
    },
    secrets=[OWN_TOKEN],
    message=lambda port: message(Chat("Hi")),
    more_messages=lambda port: {
        "full": message(
            Chat(
                "On its way, @everyone",
                title="Order A-1",
                url="https://shop.example.com/?a=1&b=2",
                payload=PAYLOAD,
            ),
            to=f"discord:https://discord.com/api{PATH}?thread_id=223704706495545999",
        ),
        "own webhook": message(Chat("Hi"), to="discord:default"),
        "non-ascii": message(Chat("Zoë 🎉")),
    },
    undeclared=lambda port: Message(DELIVERY, Channel.chat, f"discord:https://discord.com/api{PATH}", Sms("Hi")),
    check=check,
    vendor=vendor,
    answers=[
        answers(200, {"id": "1189943225125183588"}, Sent()),
        Answer("204", lambda: HttpVendor(http_answer(204)), Sent()),
        answers(200, {"no": "id"}, Uncertain()),
        answers(200, [], Uncertain()),
        answers(302, {}, Rejected(Reason.rejected), "Location: http://127.0.0.1:1/"),
        answers(400, refused(50006), Rejected(Reason.content_rejected)),
        answers(400, refused(50035), Rejected(Reason.content_rejected)),
        answers(400, refused(50109), Rejected(Reason.content_rejected)),
        answers(400, refused(200000), Rejected(Reason.content_rejected)),
        answers(400, refused(220001), Rejected(Reason.rejected)),
        answers(400, refused(0), Rejected(Reason.rejected)),
        answers(401, refused(50027), Rejected(Reason.gone)),
        answers(401, refused(0), Rejected(Reason.rejected)),
        answers(404, refused(10015), Rejected(Reason.gone)),
        answers(404, refused(10003), Rejected(Reason.gone)),
        answers(404, refused(0), Rejected(Reason.rejected)),
        answers(413, refused(40005), Rejected(Reason.too_large)),
        answers(
            429,
            {"message": "You are being rate limited.", "retry_after": 0.65, "global": False},
            Deferred(Reason.throttled, timedelta(seconds=0.65)),
        ),
        answers(429, {"retry_after": 64.57, "global": True}, Throttled(timedelta(seconds=64.57))),
        answers(429, {"retry_after": 1e300}, Deferred(Reason.throttled, timedelta(days=1))),
        answers(429, {"retry_after": "soon"}, Deferred(Reason.throttled)),
        answers(429, "slow down", Deferred(Reason.throttled, timedelta(seconds=5)), "Retry-After: 5"),
        answers(500, {}, Deferred(Reason.provider_error)),
        answers(502, {}, Deferred(Reason.provider_error)),
        answers(504, {}, Uncertain()),
    ],
    hangs_after_send=lambda: HttpVendor(Act.hang),
    resets_after_send=lambda: HttpVendor(Act.reset),
    garbage=lambda: HttpVendor(b"\x00\xff 220 what is this\r\n\r\n"),
    oversize=lambda: HttpVendor(http_answer(200, body=b"x" * 5_000_000)),
)
