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

TOKEN = "5f1b0c5e-not-a-token-2d3c-9a8b7c6d5e4f"

FULL = Email(
    "Your order",
    text="Thank you",
    html="<p>Thank you <img src='cid:logo@shop'></p>",
    from_='"Shop, the" <shop@example.com>',
    reply_to="Help <help@example.com>",
    headers=(("X-Order", "A-1"), ("List-Unsubscribe", "<https://example.com/u>")),
    cc=("Carl <carl@example.com>", "Dora <dora@example.com>", "ann@example.net"),  # the last is the recipient
    bcc=("archive@example.com",),
    attachments=(
        Attachment("invoice.pdf", "application/pdf", b"%PDF-"),
        Attachment("logo.png", "image/png", b"\x89PNG", content_id="logo@shop"),
    ),
    tags=("order", "order"),
    track_opens=False,
    track_clicks=True,
)
METADATA = (("order", "A-1"), ("a name of more than 20", "x"), ("long", "x" * 81))


def message(email: Email, to: str = "ann@example.net", metadata: tuple[tuple[str, str], ...] = ()) -> Message:
    return Message(DELIVERY, Channel.email, to, email, metadata=metadata)


def check(vendor: HttpVendor, sent: Message, key: str) -> None:
    request = vendor.requests[-1]
    assert (request.method, request.target) == ("POST", "/email")
    assert request.headers["x-postmark-server-token"] == TOKEN
    assert request.headers["content-type"] == "application/json"
    body = json.loads(request.body)
    email = sent.content
    assert isinstance(email, Email)
    assert body["To"] == sent.to.replace("bücher", "xn--bcher-kva")
    assert body["Subject"] == email.subject
    assert (body.get("TextBody"), body.get("HtmlBody")) == (email.text, email.html)
    assert body["Metadata"]["tidings_delivery"] == key
    assert body["MessageStream"] == "news"
    if email is not FULL:
        return
    assert body["From"] == '"Shop, the" <shop@example.com>'
    assert body["Cc"] == "Carl <carl@example.com>, Dora <dora@example.com>"
    assert body["Bcc"] == "archive@example.com"
    assert body["ReplyTo"] == "Help <help@example.com>"
    assert body["Headers"] == [
        {"Name": "X-Order", "Value": "A-1"},
        {"Name": "List-Unsubscribe", "Value": "<https://example.com/u>"},
    ]
    assert body["Tag"] == "order"
    assert (body["TrackOpens"], body["TrackLinks"]) == (False, "HtmlAndText")
    assert body["Metadata"] == {"tidings_delivery": key, "order": "A-1"}
    assert body["Attachments"] == [
        {"Name": "invoice.pdf", "ContentType": "application/pdf", "Content": base64.b64encode(b"%PDF-").decode()},
        {
            "Name": "logo.png",
            "ContentType": "image/png",
            "Content": base64.b64encode(b"\x89PNG").decode(),
            "ContentID": "cid:logo@shop",
        },
    ]


def said(status: int, code: int, words: str, *headers: str, **more: str) -> bytes:
    return http_answer(status, *headers, body=json.dumps({"ErrorCode": code, "Message": words, **more}).encode())


TAKEN = said(200, 0, "OK", To="ann@example.net", MessageID="b7bc2f4a-e38e-4336-af7d-e6c392c2f817")
INACTIVE = "Message OK, but will not deliver to these inactive addresses: {}. Inactive recipients are ones that have."


def answers(status: int, code: int, words: str, expected: SendResult, *headers: str, **more: str) -> Answer:
    return Answer(
        f"{status}, {code} {words}", lambda: HttpVendor(said(status, code, words, *headers, **more)), expected
    )


CASE = ProviderCase(
    config=lambda port: {
        "server_token": TOKEN,
        "from_address": "Tidings <tidings@example.com>",
        "base_url": f"http://127.0.0.1:{port}",
        "message_stream": "news",
    },
    secrets=[TOKEN],
    message=lambda port: message(Email("Hi", text="Hello")),
    more_messages=lambda port: {
        "full": message(FULL, metadata=METADATA),
        "non-ascii": message(
            Email("Grüße 🎉", html="<b>Zoë 🎉</b>", from_="Zoë <zoe@example.com>"), "zoe@bücher.example"
        ),
    },
    undeclared=lambda port: message(Email("Hi", text="Hello", tags=("one", "two"))),
    check=check,
    vendor=lambda: HttpVendor(TAKEN),
    answers=[
        Answer("200 OK", lambda: HttpVendor(TAKEN), Sent()),
        Answer(
            "200 delayed",
            lambda: HttpVendor(http_answer(200, body=b'{"Message": "may be delayed", "MessageID": "38360f97"}')),
            Sent(),
        ),
        answers(200, 0, INACTIVE.format("ann@example.net, x@example.com"), Rejected(Reason.suppressed), MessageID="1"),
        answers(200, 0, INACTIVE.format("carl@example.com"), Sent(), MessageID="1"),
        answers(200, 0, "OK, but no id", Uncertain()),
        answers(200, 451, "an error all the same", Rejected(Reason.rejected)),
        answers(401, 10, "The Server Token you provided was invalid.", Rejected(Reason.unauthorized)),
        answers(200, 100, "Maintenance", Deferred(Reason.provider_error)),
        answers(422, 300, "Invalid 'To' address: 'ann'.", Rejected(Reason.invalid_address)),
        answers(422, 300, "Error parsing 'To': Illegal email domain.", Rejected(Reason.invalid_address)),
        answers(422, 300, "Error parsing 'Cc': Illegal email domain.", Rejected(Reason.rejected)),
        answers(422, 400, "Sender Signature not found", Rejected(Reason.unauthorized)),
        answers(422, 401, "Sender Signature not confirmed", Rejected(Reason.unauthorized)),
        answers(422, 402, "Invalid JSON", Rejected(Reason.rejected)),
        answers(422, 405, "Not allowed to send", Rejected(Reason.quota_exceeded)),
        answers(422, 406, "You tried to send to a recipient marked as inactive.", Rejected(Reason.suppressed)),
        answers(422, 411, "Forbidden attachment type", Rejected(Reason.content_rejected)),
        answers(422, 412, "Account is pending", Rejected(Reason.unauthorized)),
        answers(422, 413, "Account may not send", Rejected(Reason.unauthorized)),
        answers(422, 1235, "The stream does not exist on this server", Rejected(Reason.unauthorized)),
        answers(422, 9999, "something new", Rejected(Reason.rejected)),
        answers(413, 300, "the request is too large", Rejected(Reason.too_large)),
        answers(429, 429, "Rate limit exceeded", Throttled(timedelta(seconds=7)), "Retry-After: 7"),
        Answer("429 without a body", lambda: HttpVendor(http_answer(429)), Throttled()),
        Answer(
            "403 of a firewall", lambda: HttpVendor(http_answer(403, body=b"<html>")), Rejected(Reason.unauthorized)
        ),
        answers(500, 0, "OK", Deferred(Reason.provider_error)),
        answers(503, 100, "Service Unavailable", Deferred(Reason.provider_error)),
        Answer("504", lambda: HttpVendor(http_answer(504)), Uncertain()),
    ],
    hangs_after_send=lambda: HttpVendor(Act.hang),
    resets_after_send=lambda: HttpVendor(Act.reset),
    garbage=lambda: HttpVendor(b"\x00\xff 220 what is this\r\n\r\n"),
    oversize=lambda: HttpVendor(http_answer(200, body=b'{"MessageID":"' + b"x" * 5_000_000)),
)
