import base64
import json
from datetime import timedelta

from tests.contract.provider_case import DELIVERY, Answer, ProviderCase
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

API_KEY = "re_123456789_abcdefghijklmnop"
WEBHOOK_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TAKEN = http_answer(200, body=b'{"id":"49a3999c-0ce1-4ea6-ab68-afcd6dc2e794"}')

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
    tags=("order", "two words"),
)
METADATA = (("order", "A-1"), ("free text", "does not fit"), ("tidings_delivery", "not-ours"))


def message(email: Email, to: str = "ann@example.net", metadata: tuple[tuple[str, str], ...] = ()) -> Message:
    return Message(DELIVERY, Channel.email, to, email, metadata=metadata)


def check(vendor: HttpVendor, sent: Message, key: str) -> None:
    request = vendor.requests[-1]
    assert (request.method, request.target) == ("POST", "/emails")
    assert request.headers["authorization"] == f"Bearer {API_KEY}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["idempotency-key"] == key
    body = json.loads(request.body)
    email = sent.content
    assert isinstance(email, Email)
    assert body["to"] == [sent.to.replace("bücher", "xn--bcher-kva")]
    assert body["tags"][0] == {"name": "tidings_delivery", "value": key}
    assert (body["subject"], body.get("text"), body.get("html")) == (email.subject, email.text, email.html)
    if email.from_ == "Zoë <zoe@example.com>":
        assert body["from"] == email.from_
    if email is not FULL:
        return
    assert body["from"] == '"Shop, the" <shop@example.com>'
    assert body["cc"] == ["Carl <carl@example.com>"]
    assert body["bcc"] == ["archive@example.com"]
    assert body["reply_to"] == ["Help <help@example.com>"]
    assert body["headers"] == {"X-Order": "A-1", "List-Unsubscribe": "<https://example.com/u>"}
    assert body["tags"][1:] == [
        {"name": "tag", "value": "order"},
        {"name": "tag_2", "value": "two_words"},
        {"name": "order", "value": "A-1"},
    ]
    pdf, logo = body["attachments"]
    assert base64.b64decode(pdf["content"]) == b"%PDF-"
    assert (pdf["filename"], pdf["content_type"], pdf.get("content_id")) == ("invoice.pdf", "application/pdf", None)
    assert (logo["filename"], logo["content_id"]) == ("logo.png", "logo@shop")


def says(status: int, name: str, expected: SendResult, text: str = "no", *headers: str) -> Answer:
    body = json.dumps({"statusCode": status, "message": text, "name": name}).encode()
    label = " ".join((str(status), name, text, *headers))
    return Answer(label, lambda: HttpVendor(http_answer(status, *headers, body=body)), expected)


# https://resend.com/docs/api-reference/errors, all of those that sending can meet
CASE = ProviderCase(
    config=lambda port: {
        "api_key": API_KEY,
        "from_address": "Tidings <tidings@example.com>",
        "webhook_secret": WEBHOOK_SECRET,
        "base_url": f"http://127.0.0.1:{port}",
    },
    secrets=[API_KEY, WEBHOOK_SECRET],
    message=lambda port: message(Email("Hi", text="Hello")),
    more_messages=lambda port: {
        "full": message(FULL, metadata=METADATA),
        "non-ascii": message(
            Email("Grüße 🎉", html="<b>Zoë 🎉</b>", from_="Zoë <zoe@example.com>"), "zoe@bücher.example"
        ),
    },
    undeclared=lambda port: message(Email("Hi", text="Hello", track_opens=False)),
    check=check,
    vendor=lambda: HttpVendor(TAKEN),
    answers=[
        Answer("200", lambda: HttpVendor(TAKEN), Sent()),
        Answer("200 without an id", lambda: HttpVendor(http_answer(200, body=b"{}")), Uncertain()),
        Answer("200 with a page", lambda: HttpVendor(http_answer(200, body=b"<html>")), Uncertain()),
        says(400, "invalid_idempotency_key", Rejected(Reason.rejected)),
        says(400, "validation_error", Rejected(Reason.rejected), "We found an error with one or more fields."),
        says(400, "validation_error", Rejected(Reason.unauthorized), "API key is invalid"),
        says(401, "missing_api_key", Rejected(Reason.unauthorized)),
        says(401, "restricted_api_key", Rejected(Reason.unauthorized)),
        says(403, "invalid_api_key", Rejected(Reason.unauthorized)),
        says(403, "validation_error", Rejected(Reason.unauthorized), "The example.com domain is not verified."),
        says(403, "validation_error", Rejected(Reason.unauthorized), "You can only send testing emails to yourself."),
        says(404, "not_found", Rejected(Reason.unauthorized)),
        says(405, "method_not_allowed", Rejected(Reason.unauthorized)),
        says(409, "invalid_idempotent_request", Uncertain()),
        says(409, "concurrent_idempotent_requests", Deferred(Reason.provider_error)),
        says(422, "invalid_attachment", Rejected(Reason.content_rejected)),
        says(422, "invalid_from_address", Rejected(Reason.rejected)),
        says(422, "missing_required_field", Rejected(Reason.rejected)),
        says(422, "validation_error", Rejected(Reason.invalid_address), "Invalid `to` field. The email address needs"),
        says(429, "rate_limit_exceeded", Throttled(timedelta(seconds=1)), "Too many requests.", "retry-after: 1"),
        says(429, "rate_limit_exceeded", Throttled()),
        says(429, "daily_quota_exceeded", Rejected(Reason.quota_exceeded)),
        says(429, "monthly_quota_exceeded", Rejected(Reason.quota_exceeded)),
        says(451, "security_error", Rejected(Reason.content_rejected)),
        says(500, "application_error", Deferred(Reason.provider_error)),
        says(500, "internal_server_error", Deferred(Reason.provider_error)),
        Answer("413", lambda: HttpVendor(http_answer(413)), Rejected(Reason.too_large)),
        Answer("502", lambda: HttpVendor(http_answer(502, body=b"<html>")), Deferred(Reason.provider_error)),
        Answer("504", lambda: HttpVendor(http_answer(504)), Uncertain()),
    ],
    hangs_after_send=lambda: HttpVendor(Act.hang),
    resets_after_send=lambda: HttpVendor(Act.reset),
    garbage=lambda: HttpVendor(b"\x00\xff 220 what is this\r\n\r\n"),
    oversize=lambda: HttpVendor(http_answer(400, body=b'{"message":"' + b"x" * 5_000_000)),
)
