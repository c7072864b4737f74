import base64
import json
from datetime import timedelta

from tests.contract.provider_case import DELIVERY, NOW, Answer, ProviderCase
from tests.contract.servers import Act, HttpVendor, http_answer
from tidings.model.messages import (
    Attachment,
    Deferred,
    Email,
    Message,
    Rejected,
    SendResult,
    Sent,
    Throttled,
    Uncertain,
)
from tidings.model.words import Channel, Reason

API_KEY = "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"
PUBLIC_KEY = (
    "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE83T4O/n84iotIvIW4mdBgQ/7dAfSmpqIM8kF9mN1flpVKS3GRqe62gw+2fNNRaINXvVpiglSI8eN"
    "Ec6wEA3F+g=="
)
TAKEN = http_answer(202, "X-Message-Id: 14c5d75ce93")

FULL = Email(
    "Your order",
    text="Thank you",
    html="<p>Thank you <img src='cid:logo@shop'></p>",
    from_='"Shop, the" <shop@example.com>',
    reply_to="Help <help@example.com>",
    headers=(("X-Order", "A-1"), ("List-Unsubscribe", "<https://example.com/u>")),
    cc=("Carl <carl@example.com>", "ann@example.net"),  # the second is the recipient, who is not named twice
    bcc=("archive@example.com",),
    attachments=(
        Attachment("invoice.pdf", "application/pdf", b"%PDF-"),
        Attachment("logo.png", "image/png", b"\x89PNG", content_id="logo@shop"),
    ),
    tags=("order", "order", "eu"),
    track_opens=False,
    track_clicks=True,
)
METADATA = (("order", "A-1"), ("timestamp", "never"))


def message(email: Email, to: str = "ann@example.net", metadata: tuple[tuple[str, str], ...] = ()) -> Message:
    return Message(DELIVERY, Channel.email, to, email, metadata=metadata)


def check(vendor: HttpVendor, sent: Message, key: str) -> None:
    request = vendor.requests[-1]
    assert (request.method, request.target) == ("POST", "/v3/mail/send")
    assert request.headers["authorization"] == f"Bearer {API_KEY}"
    assert request.headers["content-type"] == "application/json"
    body = json.loads(request.body)
    email = sent.content
    assert isinstance(email, Email)
    (envelope,) = body["personalizations"]
    assert envelope["to"] == [{"email": sent.to.replace("bücher", "xn--bcher-kva")}]
    assert envelope["custom_args"]["tidings_delivery"] == key
    assert body["subject"] == email.subject
    assert {part["type"]: part["value"] for part in body["content"]} == {
        kind: value for kind, value in (("text/plain", email.text), ("text/html", email.html)) if value is not None
    }
    if email is not FULL:
        return
    assert envelope["custom_args"] == {"tidings_delivery": key, "order": "A-1"}
    assert envelope["cc"] == [{"email": "carl@example.com", "name": "Carl"}]
    assert envelope["bcc"] == [{"email": "archive@example.com"}]
    assert body["from"] == {"email": "shop@example.com", "name": "Shop, the"}
    assert body["reply_to"] == {"email": "help@example.com", "name": "Help"}
    assert body["headers"] == {"X-Order": "A-1", "List-Unsubscribe": "<https://example.com/u>"}
    assert body["categories"] == ["order", "eu"]
    assert body["tracking_settings"] == {"click_tracking": {"enable": True}, "open_tracking": {"enable": False}}
    pdf, logo = body["attachments"]
    assert base64.b64decode(pdf["content"]) == b"%PDF-"
    assert (pdf["filename"], pdf["type"], pdf["disposition"]) == ("invoice.pdf", "application/pdf", "attachment")
    assert base64.b64decode(logo["content"]) == b"\x89PNG"
    assert (logo["filename"], logo["disposition"], logo["content_id"]) == ("logo.png", "inline", "logo@shop")


def answers(
    status: int, expected: SendResult, *headers: str, said: str = "", field: str | None = None, label: str = ""
) -> Answer:
    body = json.dumps({"errors": [{"message": said, "field": field, "help": None}]}).encode() if said else b""
    return Answer(label or f"{status} {said}", lambda: HttpVendor(http_answer(status, *headers, body=body)), expected)


CASE = ProviderCase(
    config=lambda port: {
        "api_key": API_KEY,
        "from_address": "Tidings <tidings@example.com>",
        "base_url": f"http://127.0.0.1:{port}",
        "webhook_public_key": PUBLIC_KEY,
    },
    secrets=[API_KEY],
    message=lambda port: message(Email("Hi", text="Hello")),
    more_messages=lambda port: {
        "full": message(FULL, metadata=METADATA),
        "non-ascii": message(
            Email("Grüße 🎉", html="<b>Zoë 🎉</b>", from_="Zoë <zoe@example.com>"), "zoe@bücher.example"
        ),
    },
    undeclared=lambda port: Message(DELIVERY, Channel.sms, "+15005550006", FULL),
    check=check,
    vendor=lambda: HttpVendor(TAKEN),
    answers=[
        answers(202, Sent(), "X-Message-Id: 14c5d75ce93"),
        answers(202, Sent(), label="202 without an id"),
        answers(200, Uncertain(), label="200, which the sandbox says"),
        answers(
            400,
            Rejected(Reason.invalid_address),
            said="Does not contain a valid address.",
            field="personalizations.0.to.0.email",
        ),
        answers(
            400,
            Rejected(Reason.rejected),
            said="Does not contain a valid address.",
            field="personalizations.0.cc.0.email",
            label="400 about a copy",
        ),
        answers(400, Rejected(Reason.rejected), said="The subject is required.", field="subject"),
        answers(401, Rejected(Reason.unauthorized), said="authorization required"),
        answers(401, Rejected(Reason.quota_exceeded), said="Maximum credits exceeded"),
        answers(
            403,
            Rejected(Reason.unauthorized),
            said="The from address does not match a verified Sender Identity.",
            field="from",
        ),
        answers(404, Rejected(Reason.unauthorized), said="not found"),
        answers(405, Rejected(Reason.unauthorized), said="method not allowed"),
        answers(413, Rejected(Reason.too_large), said="content too large"),
        answers(429, Throttled(timedelta(seconds=30)), "Retry-After: 30", said="too many requests"),
        answers(
            429,
            Throttled(timedelta(seconds=42)),
            f"X-RateLimit-Reset: {int(NOW.timestamp()) + 42}",
            said="too many requests",
            label="429 with a time of reset",
        ),
        answers(429, Throttled(), label="429 without a time"),
        answers(500, Deferred(Reason.provider_error), said="internal server error"),
        answers(503, Deferred(Reason.provider_error, timedelta(seconds=5)), "Retry-After: 5"),
        answers(504, Uncertain()),
    ],
    hangs_after_send=lambda: HttpVendor(Act.hang),
    resets_after_send=lambda: HttpVendor(Act.reset),
    garbage=lambda: HttpVendor(b"\x00\xff 220 what is this\r\n\r\n"),
    oversize=lambda: HttpVendor(http_answer(400, body=b'{"errors":"' + b"x" * 5_000_000)),
)
