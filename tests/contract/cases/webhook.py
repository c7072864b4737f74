from datetime import timedelta

from standardwebhooks import Webhook as Verifier

from tests.contract.provider_case import DELIVERY, NOW, Answer, ProviderCase
from tests.contract.servers import Act, HttpVendor, http_answer
from tidings.model.messages import Deferred, Message, Rejected, SendResult, Sent, Sms, Webhook
from tidings.model.words import Channel, Reason

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PREVIOUS = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def message(port: int, body: bytes, traceparent: str | None = None) -> Message:
    url = f"http://127.0.0.1:{port}/hook?a=b"
    return Message(DELIVERY, Channel.webhook, url, Webhook(body), traceparent=traceparent)


def check(vendor: HttpVendor, sent: Message, key: str) -> None:
    request = vendor.requests[-1]
    assert isinstance(sent.content, Webhook)
    assert (request.method, request.target, request.body) == ("POST", "/hook?a=b", sent.content.body)
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == key
    assert request.headers["webhook-timestamp"] == str(int(NOW.timestamp()))
    assert request.headers.get("traceparent") == sent.traceparent
    assert "cookie" not in request.headers
    signatures = request.headers["webhook-signature"].split(" ")
    assert len(signatures) == 2
    for secret, signature in zip((SECRET, PREVIOUS), signatures, strict=True):
        # The reference implementation compares with its own clock, so it signs here and we compare.
        assert signature == Verifier(secret).sign(key, NOW, sent.content.body.decode())


def answers(status: int, expected: SendResult, *headers: str) -> Answer:
    label = " ".join([str(status), *headers])
    # A `Set-Cookie` on every answer: nothing of it may come back.
    return Answer(label, lambda: HttpVendor(http_answer(status, "Set-Cookie: a=b", *headers)), expected)


CASE = ProviderCase(
    config=lambda port: {"secret": SECRET, "previous_secret": PREVIOUS},
    secrets=[SECRET, PREVIOUS, SECRET.removeprefix("whsec_"), PREVIOUS.removeprefix("whsec_")],
    message=lambda port: message(port, b"{}"),
    more_messages=lambda port: {
        "full": message(port, b'{"order": "A-1",  "n": [1, 2.50]}', TRACE),
        "non-ascii": message(port, '{"name": "Zoë 🎉"}'.encode()),
    },
    undeclared=lambda port: Message(DELIVERY, Channel.webhook, f"http://127.0.0.1:{port}/", Sms("Hi")),
    check=check,
    vendor=HttpVendor,
    answers=[
        answers(200, Sent()),
        answers(204, Sent()),
        answers(301, Rejected(Reason.target_refused), "Location: http://127.0.0.1:1/"),
        answers(307, Rejected(Reason.target_refused), "Location: /elsewhere"),
        answers(400, Rejected(Reason.rejected)),
        answers(401, Rejected(Reason.rejected)),
        answers(404, Rejected(Reason.rejected)),
        answers(408, Deferred(Reason.provider_error)),
        answers(410, Rejected(Reason.gone)),
        answers(413, Rejected(Reason.too_large)),
        answers(425, Deferred(Reason.provider_error)),
        answers(429, Deferred(Reason.throttled)),
        answers(429, Deferred(Reason.throttled, timedelta(seconds=7)), "Retry-After: 7"),
        answers(429, Deferred(Reason.throttled, timedelta(seconds=90)), "Retry-After: Sun, 22 Nov 2026 10:01:30 GMT"),
        answers(429, Deferred(Reason.throttled, timedelta()), "Retry-After: Sun, 22 Nov 2026 09:00:00 GMT"),
        answers(429, Deferred(Reason.throttled, timedelta(days=1)), "Retry-After: 99999999999999999999"),
        answers(429, Deferred(Reason.throttled), "Retry-After: soon"),
        answers(500, Deferred(Reason.provider_error)),
        answers(502, Deferred(Reason.provider_error)),
        answers(503, Deferred(Reason.provider_error)),
        answers(503, Deferred(Reason.throttled, timedelta(seconds=3)), "Retry-After: 3"),
        answers(599, Deferred(Reason.provider_error)),
    ],
    hangs_after_send=lambda: HttpVendor(Act.hang),
    resets_after_send=lambda: HttpVendor(Act.reset),
    garbage=lambda: HttpVendor(b"\x00\xff 220 what is this\r\n\r\n"),
    oversize=lambda: HttpVendor(http_answer(200, body=b"x" * 5_000_000)),
)
