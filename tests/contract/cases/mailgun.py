import base64
import json
from datetime import timedelta

from tests.contract.forms import parse_form
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

API_KEY = "c1b2d3a4f5e6-not-a-key-0123456789ab"
SIGNING_KEY = "0p6mqbf74lb20gzq9f4dhpn9rg3zyk26-signing"
TAKEN = http_answer(
    200, body=b'{"id": "<20160306015544.116301.25145@mg.example.com>", "message": "Queued. Thank you."}'
)

FULL = Email(
    "Your order",
    text="Thank you\r\n--boundary\r\n",
    html="<p>Thank you <img src='cid:logo@shop'></p>",
    from_='"Shop, the" <shop@example.com>',
    reply_to="Help <help@example.com>",
    headers=(("X-Order", "A-1"), ("List-Unsubscribe", "<https://example.com/u>")),
    cc=("Carl <carl@example.com>", "ann@example.net"),  # the second is the recipient, who is not named twice
    bcc=("archive@example.com",),
    attachments=(
        Attachment('in"voice ü.pdf', "application/pdf", b"%PDF-\r\n\x00\xff"),
        Attachment("logo.png", "image/png", b"\x89PNG", content_id="logo@shop"),
    ),
    tags=("order", "order", "eu"),
    track_opens=False,
    track_clicks=True,
)
METADATA = (("order", "A-1"), ('odd "name', "größe"), ("tidings_delivery", "ours wins"), ("long", "x" * 5_000))


def message(email: Email, to: str = "ann@example.net", metadata: tuple[tuple[str, str], ...] = ()) -> Message:
    return Message(DELIVERY, Channel.email, to, email, metadata=metadata, expires_at=NOW + timedelta(minutes=90))


def check(vendor: HttpVendor, sent: Message, key: str) -> None:
    request = vendor.requests[-1]
    assert (request.method, request.target) == ("POST", "/v3/mg.example.com/messages")
    assert base64.b64decode(request.headers["authorization"].removeprefix("Basic ")).decode() == f"api:{API_KEY}"
    form = parse_form(request)
    email = sent.content
    assert isinstance(email, Email)
    assert form.fields["to"] == [sent.to.replace("bücher", "xn--bcher-kva")]
    assert form.fields["subject"] == [email.subject]
    assert form.fields.get("text") == ([email.text] if email.text is not None else None)
    assert form.fields.get("html") == ([email.html] if email.html is not None else None)
    assert form.fields["v:tidings_delivery"] == [key]
    assert form.fields["o:deliver-within"] == ["1h30m"]
    if email is not FULL:
        assert form.files == []
        return
    assert form.fields["from"] == ['"Shop, the" <shop@example.com>']
    assert form.fields["cc"] == ["Carl <carl@example.com>"]
    assert form.fields["bcc"] == ["archive@example.com"]
    assert form.fields["h:Reply-To"] == ["Help <help@example.com>"]
    assert form.fields["h:X-Order"] == ["A-1"]
    assert form.fields["h:List-Unsubscribe"] == ["<https://example.com/u>"]
    assert form.fields["o:tag"] == ["order", "eu"]
    assert (form.fields["o:tracking-opens"], form.fields["o:tracking-clicks"]) == (["no"], ["yes"])
    assert form.fields["v:order"] == ["A-1"]
    assert form.fields['v:odd "name'] == ["größe"]
    assert "v:long" not in form.fields
    assert form.files == [
        ("attachment", 'in"voice ü.pdf', "application/pdf", b"%PDF-\r\n\x00\xff"),
        ("inline", "logo@shop", "image/png", b"\x89PNG"),
    ]


def answers(status: int, expected: SendResult, *headers: str, said: str = "", label: str = "") -> Answer:
    body = json.dumps({"message": said}).encode() if said else b""
    return Answer(label or f"{status} {said}", lambda: HttpVendor(http_answer(status, *headers, body=body)), expected)


CASE = ProviderCase(
    config=lambda port: {
        "api_key": API_KEY,
        "domain": "mg.example.com",
        "from_address": "Tidings <tidings@example.com>",
        "base_url": f"http://127.0.0.1:{port}",
        "webhook_signing_key": SIGNING_KEY,
    },
    secrets=[API_KEY, SIGNING_KEY],
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
        Answer("200 with an id", lambda: HttpVendor(TAKEN), Sent()),
        answers(200, Uncertain(), said="Queued, but without an id"),
        Answer(
            "200 of another API",
            lambda: HttpVendor(http_answer(200, body=b"Mailgun Magnificent API")),
            Rejected(Reason.unauthorized),
        ),
        answers(
            400,
            Rejected(Reason.invalid_address),
            said="to parameter is not a valid address. please check documentation",
        ),
        answers(400, Rejected(Reason.invalid_address), said="'to' parameter is not a valid address."),
        answers(400, Rejected(Reason.rejected), said="from parameter is missing"),
        answers(400, Rejected(Reason.rejected), said="cc parameter is not a valid address. please check documentation"),
        Answer(
            "401 Forbidden",
            lambda: HttpVendor(http_answer(401, body=b"Forbidden")),
            Rejected(Reason.unauthorized),
        ),
        answers(402, Rejected(Reason.quota_exceeded), said="Request Failed"),
        answers(
            403,
            Rejected(Reason.unauthorized),
            said="Domain mg.example.com is not allowed to send: The domain is unverified.",
        ),
        answers(404, Rejected(Reason.unauthorized), said="Domain not found: mg.example.com"),
        answers(413, Rejected(Reason.too_large), said="Request Entity Too Large"),
        answers(429, Throttled(timedelta(seconds=9)), "Retry-After: 9", label="429 with Retry-After"),
        answers(
            429,
            Throttled(timedelta(seconds=120)),
            said="Domain mg.example.com is not allowed to send: account-requests-per-sec limit exceeded, "
            "try again after 120 seconds",
        ),
        answers(
            400,
            Throttled(timedelta(seconds=60)),
            said="Domain mg.example.com is not allowed to send: recipient limit exceeded, try again after 60 seconds",
        ),
        answers(500, Deferred(Reason.provider_error), said="Internal Server Error"),
        answers(503, Deferred(Reason.provider_error, timedelta(seconds=5)), "Retry-After: 5"),
        answers(504, Uncertain()),
    ],
    hangs_after_send=lambda: HttpVendor(Act.hang),
    resets_after_send=lambda: HttpVendor(Act.reset),
    garbage=lambda: HttpVendor(b"\x00\xff 220 what is this\r\n\r\n"),
    oversize=lambda: HttpVendor(http_answer(200, body=b'{"id":"' + b"x" * 5_000_000)),
)
