import base64
import json
import re
from datetime import timedelta
from email import message_from_bytes, policy

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

KEY_ID = "AKIDEXAMPLE123456789"
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
TOKEN = "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4"
TAKEN = http_answer(200, "Content-Type: application/json", body=b'{"MessageId":"0100017-abc-000000"}')

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
    track_opens=False,
    track_clicks=True,
)
METADATA = (("order", "A-1"), ("free text", "does not fit"), ("tidings_delivery", "not-ours"))


def message(email: Email, to: str = "ann@example.net", metadata: tuple[tuple[str, str], ...] = ()) -> Message:
    return Message(DELIVERY, Channel.email, to, email, metadata=metadata)


def check(vendor: HttpVendor, sent: Message, key: str) -> None:
    request = vendor.requests[-1]
    assert (request.method, request.target) == ("POST", "/v2/email/outbound-emails")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["host"] == f"127.0.0.1:{vendor.port}"
    assert request.headers["x-amz-date"] == NOW.strftime("%Y%m%dT%H%M%SZ")
    assert request.headers["x-amz-security-token"] == TOKEN
    assert re.fullmatch(
        rf"AWS4-HMAC-SHA256 Credential={KEY_ID}/20261122/eu-central-1/ses/aws4_request, "
        r"SignedHeaders=content-type;host;x-amz-date;x-amz-security-token, Signature=[0-9a-f]{64}",
        request.headers["authorization"],
    )
    body = json.loads(request.body)
    email = sent.content
    assert isinstance(email, Email)
    assert body["Destination"]["ToAddresses"] == [sent.to.replace("bücher", "xn--bcher-kva")]
    assert body["EmailTags"][0] == {"Name": "tidings_delivery", "Value": key}
    assert body["ConfigurationSetName"] == "tidings"
    if "Raw" in body["Content"]:
        mail = message_from_bytes(base64.b64decode(body["Content"]["Raw"]["Data"]), policy=policy.default)
        assert mail["subject"] == email.subject
        assert [mail[name] for name, _ in email.headers] == [value for _, value in email.headers]
        return
    simple = body["Content"]["Simple"]
    assert simple["Subject"]["Data"] == email.subject
    assert {kind: part["Data"] for kind, part in simple["Body"].items()} == {
        kind: value for kind, value in (("Text", email.text), ("Html", email.html)) if value is not None
    }
    if email is not FULL:
        return
    assert body["FromEmailAddress"] == '"Shop, the" <shop@example.com>'
    assert body["Destination"]["CcAddresses"] == ["Carl <carl@example.com>"]
    assert body["Destination"]["BccAddresses"] == ["archive@example.com"]
    assert body["ReplyToAddresses"] == ["Help <help@example.com>"]
    assert body["EmailTags"][1:] == [
        {"Name": "tag", "Value": "order"},
        {"Name": "tag_2", "Value": "two_words"},
        {"Name": "order", "Value": "A-1"},
    ]
    assert body["ConfigurationOverrides"] == {
        "Tracking": {"OpenTrackingEnabled": "DISABLED", "ClickTrackingEnabled": "ENABLED"}
    }
    assert simple["Headers"] == [{"Name": name, "Value": value} for name, value in email.headers]
    pdf, logo = simple["Attachments"]
    assert base64.b64decode(pdf["RawContent"]) == b"%PDF-"
    assert (pdf["FileName"], pdf["ContentType"], pdf["ContentDisposition"]) == (
        "invoice.pdf",
        "application/pdf",
        "ATTACHMENT",
    )
    assert (logo["FileName"], logo["ContentDisposition"], logo["ContentId"]) == ("logo.png", "INLINE", "logo@shop")


def says(
    status: int, type_: str, expected: SendResult, text: str = "no", *headers: str, as_body: bool = False
) -> Answer:
    """An error as SES words it: its type in a header field, or (as services behind a proxy do) in the body."""
    fields = {"message": text}
    if as_body:
        fields["__type"] = f"com.amazonaws.sesv2#{type_}"
    else:
        headers = (*headers, f"x-amzn-ErrorType: {type_}:http://internal.amazon.com/coral/com.amazonaws.sesv2/")
    raw = json.dumps(fields).encode()
    return Answer(f"{status} {type_} {text}", lambda: HttpVendor(http_answer(status, *headers, body=raw)), expected)


CASE = ProviderCase(
    config=lambda port: {
        "region": "eu-central-1",
        "access_key_id": KEY_ID,
        "secret_access_key": SECRET,
        "session_token": TOKEN,
        "from_address": "Tidings <tidings@example.com>",
        "configuration_set_name": "tidings",
        "sns_topic_arn": "arn:aws:sns:eu-central-1:123456789012:mail",
        "base_url": f"http://127.0.0.1:{port}",
    },
    secrets=[SECRET, TOKEN],
    message=lambda port: message(Email("Hi", text="Hello")),
    more_messages=lambda port: {
        "full": message(FULL, metadata=METADATA),
        "non-ascii": message(
            Email("Grüße 🎉", html="<b>Zoë 🎉</b>", from_="Zoë <zoe@example.com>"), "zoe@bücher.example"
        ),
        "raw": message(Email("Grüße 🎉", text="Zoë 🎉", headers=(("X-Greeting", "Grüße"),))),
    },
    undeclared=lambda port: Message(DELIVERY, Channel.sms, "+15005550006", FULL),
    check=check,
    vendor=lambda: HttpVendor(TAKEN),
    answers=[
        Answer("200", lambda: HttpVendor(TAKEN), Sent()),
        Answer("200 without an id", lambda: HttpVendor(http_answer(200, body=b"{}")), Uncertain()),
        Answer("200 with a page", lambda: HttpVendor(http_answer(200, body=b"<html>")), Uncertain()),
        says(400, "AccountSuspendedException", Rejected(Reason.unauthorized)),
        says(400, "SendingPausedException", Rejected(Reason.unauthorized)),
        says(400, "MailFromDomainNotVerifiedException", Rejected(Reason.unauthorized)),
        says(404, "NotFoundException", Rejected(Reason.unauthorized), "Configuration set <tidings> does not exist."),
        says(400, "LimitExceededException", Rejected(Reason.quota_exceeded)),
        says(400, "MessageRejected", Rejected(Reason.content_rejected), "Transaction failed: Unwanted content"),
        says(
            400,
            "MessageRejected",
            Rejected(Reason.unauthorized),
            "Email address is not verified. The following identities failed the check in region EU-CENTRAL-1: a@b.c",
        ),
        says(400, "BadRequestException", Rejected(Reason.rejected), "Missing final '@domain'"),
        says(400, "BadRequestException", Rejected(Reason.too_large), "Message length is more than 41943040 bytes long"),
        says(429, "TooManyRequestsException", Throttled(), "Maximum sending rate exceeded."),
        says(429, "TooManyRequestsException", Throttled(timedelta(seconds=4)), "Slower.", "Retry-After: 4"),
        says(429, "TooManyRequestsException", Rejected(Reason.quota_exceeded), "Daily message quota exceeded."),
        says(400, "ThrottlingException", Throttled(), "Rate exceeded", as_body=True),
        says(403, "InvalidSignatureException", Rejected(Reason.unauthorized), as_body=True),
        says(403, "UnrecognizedClientException", Rejected(Reason.unauthorized)),
        says(403, "AccessDeniedException", Rejected(Reason.unauthorized)),
        says(403, "ExpiredTokenException", Rejected(Reason.unauthorized)),
        says(400, "RequestExpired", Rejected(Reason.unauthorized)),
        says(400, "SomethingNewException", Rejected(Reason.rejected)),
        says(500, "InternalFailure", Deferred(Reason.provider_error)),
        says(503, "ServiceUnavailable", Deferred(Reason.provider_error, timedelta(seconds=5)), "no", "Retry-After: 5"),
        Answer("413", lambda: HttpVendor(http_answer(413)), Rejected(Reason.too_large)),
        Answer("502", lambda: HttpVendor(http_answer(502, body=b"<html>")), Deferred(Reason.provider_error)),
        Answer("504", lambda: HttpVendor(http_answer(504)), Uncertain()),
    ],
    hangs_after_send=lambda: HttpVendor(Act.hang),
    resets_after_send=lambda: HttpVendor(Act.reset),
    garbage=lambda: HttpVendor(b"\x00\xff 220 what is this\r\n\r\n"),
    oversize=lambda: HttpVendor(http_answer(400, body=b'{"message":"' + b"x" * 5_000_000)),
)
