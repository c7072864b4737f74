import base64
from datetime import timedelta
from urllib.parse import parse_qs

from tests.contract.provider_case import DELIVERY, NOW, Answer, ProviderCase
from tests.contract.servers import Act, HttpVendor, http_answer
from tidings.model.messages import Deferred, Email, Message, Rejected, SendResult, Sent, Sms, Throttled, Uncertain
from tidings.model.words import Channel, Reason

SID = "AC" + "0" * 32
TOKEN = "f00dfeedf00dfeedf00dfeedf00dfeed"
SERVICE = "MG" + "a" * 32
CALLBACK = "https://tidings.example/callbacks/acc_1"
TAKEN = b'{"sid": "SMaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "status": "queued", "error_code": null}'


def config(port: int) -> dict[str, object]:
    return {
        "account_sid": SID,
        "auth_token": TOKEN,
        "senders": [{"id": SERVICE, "countries": ["DE"]}, "+14155550100"],
        "base_url": f"http://127.0.0.1:{port}",
    }


def message(content: Sms, to: str = "+14155550123", **more: object) -> Message:
    return Message(DELIVERY, Channel.sms, to, content, **more)  # type: ignore[arg-type] # the keywords of Message


def check(vendor: HttpVendor, sent: Message, key: str) -> None:
    request = vendor.requests[-1]
    assert (request.method, request.target) == ("POST", f"/2010-04-01/Accounts/{SID}/Messages.json")
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert request.headers["authorization"] == f"Basic {base64.b64encode(f'{SID}:{TOKEN}'.encode()).decode()}"
    form = parse_qs(request.body.decode(), strict_parsing=True)
    content = sent.content
    assert isinstance(content, Sms)
    sender = {"MessagingServiceSid": [SERVICE]} if sent.to.startswith("+49") else {"From": ["+14155550100"]}
    expected = {
        "To": [sent.to],
        "Body": [content.text],
        **sender,
    }
    if content.media:
        expected["MediaUrl"] = list(content.media)
    if sent.expires_at is not None:
        expected["ValidityPeriod"] = ["600"]
    assert form == expected


def says(status: int, code: int, expected: SendResult, *headers: str) -> Answer:
    body = b'{"code": %d, "message": "No.", "more_info": "https://www.twilio.com", "status": %d}' % (code, status)
    return Answer(f"{status} {code}", lambda: HttpVendor(http_answer(status, *headers, body=body)), expected)


CASE = ProviderCase(
    config=config,
    secrets=[TOKEN],
    message=lambda port: message(Sms("Hi")),
    more_messages=lambda port: {
        "full": message(
            Sms("Look & see", media=("https://example.com/a.jpg", "https://example.com/b.jpg"), sender="+14155550100"),
            expires_at=NOW + timedelta(minutes=10),
        ),
        "non-ascii": message(Sms("Grüße, Zoë 🎉 あなた"), "+4915112345678"),
    },
    undeclared=lambda port: Message(DELIVERY, Channel.email, "ada@example.com", Email("Hi", text="Hi")),
    check=check,
    vendor=lambda: HttpVendor(http_answer(201, body=TAKEN)),
    answers=[
        says(400, 21211, Rejected(Reason.invalid_address)),
        says(400, 21614, Rejected(Reason.invalid_address)),
        says(400, 21610, Rejected(Reason.opted_out)),
        says(400, 21606, Rejected(Reason.no_sender)),
        says(400, 21659, Rejected(Reason.no_sender)),
        says(400, 21408, Rejected(Reason.blocked)),
        says(400, 21608, Rejected(Reason.blocked)),
        says(400, 21617, Rejected(Reason.too_large)),
        says(400, 21620, Rejected(Reason.content_rejected)),
        says(400, 63038, Rejected(Reason.quota_exceeded)),
        says(429, 63038, Rejected(Reason.quota_exceeded)),
        says(400, 99999, Rejected(Reason.rejected)),
        says(401, 20003, Rejected(Reason.unauthorized)),
        says(403, 20005, Rejected(Reason.unauthorized)),
        says(404, 20404, Rejected(Reason.unauthorized)),
        says(429, 20429, Throttled()),
        says(429, 20429, Throttled(timedelta(seconds=2)), "Retry-After: 2"),
        says(429, 21611, Throttled()),
        says(429, 14107, Throttled()),
        says(500, 20500, Deferred(Reason.provider_error)),
        says(503, 20503, Deferred(Reason.provider_error, timedelta(seconds=3)), "Retry-After: 3"),
        Answer("no json", lambda: HttpVendor(http_answer(502, body=b"<html>")), Deferred(Reason.provider_error)),
        Answer("504", lambda: HttpVendor(http_answer(504)), Uncertain()),
        Answer(
            "taken, and failed at once",
            lambda: HttpVendor(http_answer(201, body=b'{"sid":"SM1","status":"failed","error_code":30034}')),
            Rejected(Reason.no_sender),
        ),
        Answer("no sid", lambda: HttpVendor(http_answer(201, body=b'{"sid": null}')), Uncertain()),
        Answer("taken", lambda: HttpVendor(http_answer(200, body=TAKEN)), Sent()),
    ],
    hangs_after_send=lambda: HttpVendor(Act.hang),
    resets_after_send=lambda: HttpVendor(Act.reset),
    garbage=lambda: HttpVendor(http_answer(201, body=b"\x00\xff what is this")),
    oversize=lambda: HttpVendor(http_answer(201, body=b"x" * 5_000_000)),
)
