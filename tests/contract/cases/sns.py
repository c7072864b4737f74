import re
from datetime import timedelta
from urllib.parse import parse_qsl

from tests.contract.provider_case import DELIVERY, NOW, Answer, ProviderCase
from tests.contract.servers import Act, HttpVendor, http_answer
from tidings.model.messages import Deferred, Message, Rejected, SendResult, Sent, Sms, Throttled, Uncertain
from tidings.model.words import Channel, Reason

KEY_ID = "AKIDEXAMPLE123456789"
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
TAKEN = http_answer(
    200,
    "Content-Type: text/xml",
    body=b'<PublishResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><PublishResult><MessageId>'
    b"567910cd-659e-55d4-8ccb-5aaf14679dc0</MessageId></PublishResult></PublishResponse>",
)
FULL = Sms("Your code is 1234", sender="+498912345678")


def message(content: Sms, to: str = "+4915112345678") -> Message:
    return Message(DELIVERY, Channel.sms, to, content)


def check(vendor: HttpVendor, sent: Message, key: str) -> None:
    request = vendor.requests[-1]
    assert (request.method, request.target) == ("POST", "/")
    assert request.headers["content-type"] == "application/x-www-form-urlencoded; charset=utf-8"
    assert request.headers["x-amz-date"] == NOW.strftime("%Y%m%dT%H%M%SZ")
    assert re.fullmatch(
        rf"AWS4-HMAC-SHA256 Credential={KEY_ID}/20261122/eu-central-1/sns/aws4_request, "
        r"SignedHeaders=content-type;host;x-amz-date, Signature=[0-9a-f]{64}",
        request.headers["authorization"],
    )
    content = sent.content
    assert isinstance(content, Sms)
    named = content.sender is None
    assert parse_qsl(request.body.decode(), strict_parsing=True) == [
        ("Action", "Publish"),
        ("Version", "2010-03-31"),
        ("PhoneNumber", sent.to),
        ("Message", content.text),
        ("MessageAttributes.entry.1.Name", "AWS.SNS.SMS.SMSType"),
        ("MessageAttributes.entry.1.Value.DataType", "String"),
        ("MessageAttributes.entry.1.Value.StringValue", "Promotional"),
        ("MessageAttributes.entry.2.Name", "AWS.SNS.SMS.MaxPrice"),
        ("MessageAttributes.entry.2.Value.DataType", "Number"),
        ("MessageAttributes.entry.2.Value.StringValue", "0.50"),
        ("MessageAttributes.entry.3.Name", "AWS.SNS.SMS.SenderID" if named else "AWS.MM.SMS.OriginationNumber"),
        ("MessageAttributes.entry.3.Value.DataType", "String"),
        ("MessageAttributes.entry.3.Value.StringValue", "Tidings" if named else "+498912345678"),
    ]


def says(status: int, code: str, expected: SendResult, text: str = "no", *headers: str) -> Answer:
    body = (
        '<ErrorResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><Error><Type>Sender</Type>'
        f"<Code>{code}</Code><Message>{text}</Message></Error><RequestId>9d9c2d0c</RequestId></ErrorResponse>"
    ).encode()
    return Answer(f"{status} {code} {text}", lambda: HttpVendor(http_answer(status, *headers, body=body)), expected)


NUMBER = "Invalid parameter: PhoneNumber Reason:"

CASE = ProviderCase(
    config=lambda port: {
        "region": "eu-central-1",
        "access_key_id": KEY_ID,
        "secret_access_key": SECRET,
        "message_type": "Promotional",
        "max_price": "0.50",
        "senders": ["Tidings", {"id": "+498912345678", "weight": 0}],
        "base_url": f"http://127.0.0.1:{port}",
    },
    secrets=[SECRET],
    message=lambda port: message(Sms("Hello")),
    more_messages=lambda port: {"full": message(FULL), "non-ascii": message(Sms("Grüße & 🎉 = 100 % +"))},
    undeclared=lambda port: message(Sms("Look", media=("https://example.com/cat.png",))),
    check=check,
    vendor=lambda: HttpVendor(TAKEN),
    answers=[
        Answer("200", lambda: HttpVendor(TAKEN), Sent()),
        Answer("200 without an id", lambda: HttpVendor(http_answer(200, body=b"<PublishResponse/>")), Uncertain()),
        says(400, "OptedOut", Rejected(Reason.opted_out)),
        says(400, "InvalidParameter", Rejected(Reason.opted_out), f"{NUMBER} +4915112345678 is opted out"),
        says(400, "InvalidParameter", Rejected(Reason.invalid_address), f"{NUMBER} +1 is not valid to publish to"),
        says(400, "InvalidParameter", Rejected(Reason.too_large), "Invalid parameter: Message too long"),
        says(400, "InvalidParameter", Rejected(Reason.rejected), "Invalid parameter: MessageAttributes"),
        says(400, "ParameterValueInvalid", Rejected(Reason.rejected)),
        says(400, "ValidationException", Rejected(Reason.rejected)),
        says(403, "AuthorizationError", Rejected(Reason.unauthorized)),
        says(403, "InvalidSecurity", Rejected(Reason.unauthorized)),
        says(403, "InvalidClientTokenId", Rejected(Reason.unauthorized)),
        says(403, "SignatureDoesNotMatch", Rejected(Reason.unauthorized)),
        says(404, "NotFound", Rejected(Reason.unauthorized)),
        says(400, "Throttling", Throttled(), "Rate exceeded"),
        says(429, "Throttled", Throttled(timedelta(seconds=2)), "Rate exceeded", "Retry-After: 2"),
        says(500, "InternalError", Deferred(Reason.provider_error)),
        says(503, "ServiceUnavailable", Deferred(Reason.provider_error)),
        Answer("502", lambda: HttpVendor(http_answer(502, body=b"<html>")), Deferred(Reason.provider_error)),
        Answer("504", lambda: HttpVendor(http_answer(504)), Uncertain()),
    ],
    hangs_after_send=lambda: HttpVendor(Act.hang),
    resets_after_send=lambda: HttpVendor(Act.reset),
    garbage=lambda: HttpVendor(b"\x00\xff 220 what is this\r\n\r\n"),
    oversize=lambda: HttpVendor(http_answer(400, body=b"<Message>" + b"x" * 5_000_000)),
)
