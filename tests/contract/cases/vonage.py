import base64
import json
from datetime import timedelta

from tests.contract.provider_case import DELIVERY, NOW, Answer, ProviderCase
from tests.contract.servers import Act, HttpVendor, http_answer
from tidings.model.messages import Deferred, Email, Message, Rejected, SendResult, Sms, Throttled, Uncertain
from tidings.model.words import Channel, Reason

SECRET = "vonage-Api-Secret1"
SIGNATURE = "vonage-Signature-Secret-0123456789"
CALLBACK = "https://tidings.example/callbacks/acc_2"
TAKEN = b'{"message_uuid": "1d4723b0-9134-4440-8cf0-e9f39ccb1c6a"}'


def config(port: int) -> dict[str, object]:
    return {
        "api": "messages",
        "api_key": "abcd1234",
        "api_secret": SECRET,
        "signature_secret": SIGNATURE,
        "senders": [{"id": "Tidings", "countries": ["DE"]}, "+14155550100"],
        "base_url": f"http://127.0.0.1:{port}",
    }


def message(content: Sms, to: str = "+14155550123", **more: object) -> Message:
    return Message(DELIVERY, Channel.sms, to, content, **more)  # type: ignore[arg-type] # the keywords of Message


def check(vendor: HttpVendor, sent: Message, key: str) -> None:
    request = vendor.requests[-1]
    assert (request.method, request.target) == ("POST", "/v1/messages")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["authorization"] == f"Basic {base64.b64encode(f'abcd1234:{SECRET}'.encode()).decode()}"
    content = sent.content
    assert isinstance(content, Sms)
    expected: dict[str, object] = {
        "from": "Tidings" if sent.to.startswith("+49") else "14155550100",
        "to": sent.to[1:],
        "client_ref": key,
    }
    if content.media:
        image = {"url": content.media[0], "caption": content.text}
        expected |= {"channel": "mms", "message_type": "image", "image": image, "ttl": 600}
    else:
        expected |= {"channel": "sms", "message_type": "text", "text": content.text}
    assert json.loads(request.body) == expected


def says(status: int, problem: str, expected: SendResult, *headers: str) -> Answer:
    body = json.dumps({"type": f"https://developer.vonage.com/api-errors/messages#{problem}", "title": "No"}).encode()
    label = " ".join([str(status), problem, *headers])
    return Answer(label, lambda: HttpVendor(http_answer(status, *headers, body=body)), expected)


CASE = ProviderCase(
    config=config,
    secrets=[SECRET, SIGNATURE],
    message=lambda port: message(Sms("Hi")),
    more_messages=lambda port: {
        "full": message(
            Sms("Look & see", media=("https://example.com/a.jpg",), sender="+14155550100"),
            expires_at=NOW + timedelta(minutes=10),
        ),
        "non-ascii": message(Sms("Grüße, Zoë 🎉 あなた"), "+4915112345678"),
    },
    undeclared=lambda port: Message(DELIVERY, Channel.email, "ada@example.com", Email("Hi", text="Hi")),
    check=check,
    vendor=lambda: HttpVendor(http_answer(202, body=TAKEN)),
    answers=[
        says(401, "unauthorized", Rejected(Reason.unauthorized)),
        says(402, "low-balance", Rejected(Reason.quota_exceeded)),
        says(403, "account-suspended", Rejected(Reason.unauthorized)),
        says(404, "not-found", Rejected(Reason.unauthorized)),
        says(422, "1020", Rejected(Reason.rejected)),
        says(422, "1050", Rejected(Reason.opted_out)),
        says(422, "1120", Rejected(Reason.no_sender)),
        says(422, "1170", Rejected(Reason.invalid_address)),
        says(422, "1150", Rejected(Reason.rejected)),
        says(402, "1070", Rejected(Reason.quota_exceeded)),
        says(403, "1000", Throttled()),
        says(429, "1010", Throttled()),
        says(429, "1000", Throttled(timedelta(seconds=4)), "Retry-After: 4"),
        says(500, "1030", Deferred(Reason.provider_error)),
        says(503, "", Deferred(Reason.provider_error, timedelta(seconds=5)), "Retry-After: 5"),
        Answer("504", lambda: HttpVendor(http_answer(504)), Uncertain()),
        Answer("no id", lambda: HttpVendor(http_answer(202, body=b"{}")), Uncertain()),
    ],
    hangs_after_send=lambda: HttpVendor(Act.hang),
    resets_after_send=lambda: HttpVendor(Act.reset),
    garbage=lambda: HttpVendor(http_answer(202, body=b"\x00\xff what is this")),
    oversize=lambda: HttpVendor(http_answer(202, body=b"x" * 5_000_000)),
)
