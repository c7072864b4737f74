import base64
import json
from datetime import timedelta
from email.header import decode_header, make_header

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

API_KEY = "xkeysib-0123456789abcdef-AbCdEfGhIjKl"
TAKEN = http_answer(201, body=b'{"messageId":"<201801020304.1234567890@smtp-relay.mailin.fr>"}')

FULL = Email(
    "Your order",
    text="Thank you",
    html="<p>Thank you</p>",
    from_='"Shop, the" <shop@example.com>',
    reply_to="Help <help@example.com>",
    headers=(("X-Order", "A-1"), ("List-Unsubscribe", "<https://example.com/u>")),
    cc=("Carl <carl@example.com>", "ann@example.net"),  # the second is the recipient, who is not named twice
    bcc=("archive@example.com",),
    attachments=(Attachment("invoice.pdf", "application/pdf", b"%PDF-"),),
    tags=("order", "order", "two words"),
)
METADATA = (("order", "A-1"), ("name", "Zoë"), ("tidings_delivery", "not-ours"))


def message(email: Email, to: str = "ann@example.net", metadata: tuple[tuple[str, str], ...] = ()) -> Message:
    return Message(DELIVERY, Channel.email, to, email, metadata=metadata)


def check(vendor: HttpVendor, sent: Message, key: str) -> None:
    request = vendor.requests[-1]
    assert (request.method, request.target) == ("POST", "/v3/smtp/email")
    assert request.headers["api-key"] == API_KEY
    assert request.headers["content-type"] == "application/json"
    body = json.loads(request.body)
    email = sent.content
    assert isinstance(email, Email)
    assert body["to"] == [{"email": sent.to.replace("bücher", "xn--bcher-kva")}]
    assert body["headers"]["idempotencyKey"] == str(DELIVERY)
    assert body["headers"]["X-Mailin-custom"].isascii()
    custom = json.loads(body["headers"]["X-Mailin-custom"])
    assert custom == {**dict(sent.metadata), "tidings_delivery": key}
    assert (body["subject"], body.get("textContent"), body.get("htmlContent")) == (
        email.subject,
        email.text,
        email.html,
    )
    if email.from_ == '"Zoë, Dr." <zoe@example.com>':
        assert body["sender"]["name"].isascii()
        assert str(make_header(decode_header(body["sender"]["name"]))) == "Zoë, Dr."
    if email is not FULL:
        return
    assert body["sender"] == {"email": "shop@example.com", "name": "Shop, the"}
    assert body["cc"] == [{"email": "carl@example.com", "name": "Carl"}]
    assert body["bcc"] == [{"email": "archive@example.com"}]
    assert body["replyTo"] == {"email": "help@example.com", "name": "Help"}
    assert body["headers"]["X-Order"] == "A-1"
    assert body["headers"]["List-Unsubscribe"] == "<https://example.com/u>"
    assert body["tags"] == ["order", "two words"]
    (pdf,) = body["attachment"]
    assert pdf["name"] == "invoice.pdf"
    assert base64.b64decode(pdf["content"]) == b"%PDF-"


def says(status: int, code: str, expected: SendResult, text: str = "no", *headers: str) -> Answer:
    body = json.dumps({"code": code, "message": text}).encode()
    label = " ".join((str(status), code, text, *headers))
    return Answer(label, lambda: HttpVendor(http_answer(status, *headers, body=body)), expected)


CASE = ProviderCase(
    config=lambda port: {
        "api_key": API_KEY,
        "from_address": "Tidings <tidings@example.com>",
        "base_url": f"http://127.0.0.1:{port}",
    },
    secrets=[API_KEY],
    message=lambda port: message(Email("Hi", text="Hello")),
    more_messages=lambda port: {
        "full": message(FULL, metadata=METADATA),
        "non-ascii": message(
            Email("Grüße 🎉", html="<b>Zoë 🎉</b>", from_='"Zoë, Dr." <zoe@example.com>'), "zoe@bücher.example"
        ),
    },
    undeclared=lambda port: message(
        Email("Hi", html="<img src='cid:a'>", attachments=(Attachment("a.png", "image/png", b"", content_id="a"),))
    ),
    check=check,
    vendor=lambda: HttpVendor(TAKEN),
    answers=[
        Answer("201", lambda: HttpVendor(TAKEN), Sent()),
        Answer("201 without an id", lambda: HttpVendor(http_answer(201, body=b"{}")), Uncertain()),
        Answer("200 with a page", lambda: HttpVendor(http_answer(200, body=b"<html>")), Uncertain()),
        says(400, "invalid_parameter", Rejected(Reason.rejected), "valid sender email required"),
        says(400, "invalid_parameter", Rejected(Reason.invalid_address), "email is not valid in to"),
        says(400, "invalid_parameter", Rejected(Reason.rejected), "email is not valid in cc"),
        says(
            400,
            "invalid_parameter",
            Rejected(Reason.unauthorized),
            "Sending has been rejected because the sender you used a@b.c is not valid.",
        ),
        says(400, "missing_parameter", Rejected(Reason.rejected)),
        says(400, "out_of_range", Rejected(Reason.rejected)),
        says(400, "duplicate_parameter", Sent()),
        says(400, "duplicate_request", Sent()),
        says(400, "not_enough_credits", Rejected(Reason.quota_exceeded)),
        says(402, "not_enough_credits", Rejected(Reason.quota_exceeded)),
        says(401, "unauthorized", Rejected(Reason.unauthorized), "Key not found"),
        says(403, "permission_denied", Rejected(Reason.unauthorized)),
        says(400, "account_under_validation", Rejected(Reason.unauthorized)),
        says(405, "method_not_allowed", Rejected(Reason.unauthorized)),
        says(406, "not_acceptable", Rejected(Reason.rejected)),
        says(429, "too_many_requests", Throttled(timedelta(seconds=9)), "no", "Retry-After: 9"),
        Answer("429", lambda: HttpVendor(http_answer(429)), Throttled()),
        Answer("413", lambda: HttpVendor(http_answer(413)), Rejected(Reason.too_large)),
        Answer("500", lambda: HttpVendor(http_answer(500)), Deferred(Reason.provider_error)),
        Answer("502", lambda: HttpVendor(http_answer(502, body=b"<html>")), Deferred(Reason.provider_error)),
        Answer("504", lambda: HttpVendor(http_answer(504)), Uncertain()),
    ],
    hangs_after_send=lambda: HttpVendor(Act.hang),
    resets_after_send=lambda: HttpVendor(Act.reset),
    garbage=lambda: HttpVendor(b"\x00\xff 220 what is this\r\n\r\n"),
    oversize=lambda: HttpVendor(http_answer(400, body=b'{"message":"' + b"x" * 5_000_000)),
)
