import json
from datetime import timedelta

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.contract.http2_server import Answer2, ApnsVendor, Http2Vendor, make_certificate, refuse
from tests.contract.provider_case import DELIVERY, NOW, Answer, ProviderCase
from tests.contract.servers import Act
from tidings.model.messages import Deferred, Message, Push, PushAction, Rejected, SendResult, Sent, Sms, Throttled
from tidings.model.words import Channel, Priority, Reason

TEAM, KEY_ID, TOPIC = "ABCDE12345", "KEYID67890", "com.example.app"
TOKEN = "00fc13adff785122b4ad28809a3420982341241421348097878e577c991de8f0"
_KEY = ec.generate_private_key(ec.SECP256R1())
PRIVATE_KEY = _KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
PUBLIC_KEY = _KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
REPORT_URL = "https://tidings.example/r/signed"


def config(port: int) -> dict[str, str]:
    return {
        "team_id": TEAM,
        "key_id": KEY_ID,
        "private_key": PRIVATE_KEY,
        "topic": TOPIC,
        "base_url": f"https://127.0.0.1:{port}",
        "ca_pem": make_certificate()[0],
    }


def message(push: Push | Sms, **more: object) -> Message:
    return Message(DELIVERY, Channel.push, f"apns:{TOKEN}", push, **more)  # type: ignore[arg-type]  # handed through


FULL = message(
    Push(
        title="Shipped",
        body="Order A-1 is on its way",
        url="https://shop.example/orders/A-1",
        image="https://shop.example/parcel.png",
        data=(("order", "A-1"), ("tracking", "")),
        actions=(PushAction("track", "Track", "https://shop.example/t/A-1"), PushAction("mute", "Mute")),
        badge=0,
        sound="chime.caf",
        collapse_key="order-A-1",
    ),
    expires_at=NOW + timedelta(hours=2),
    priority=Priority.low,
    report_url=REPORT_URL,
)


def vendor(*script: Answer2 | Act | bytes, **more: object) -> ApnsVendor:
    return ApnsVendor(*script, keys={KEY_ID: PUBLIC_KEY}, team=TEAM, topic=TOPIC, **more)  # type: ignore[arg-type]  # handed through


def check(vendor: Http2Vendor, sent: Message, key: str) -> None:
    request = vendor.requests[-1]
    push = sent.content
    assert isinstance(push, Push)
    assert (request.method, request.target) == ("POST", f"/3/device/{TOKEN}")
    headers = dict(request.headers)
    assert headers.pop("authorization").startswith("bearer ")
    expected = {
        "apns-topic": TOPIC,
        "apns-push-type": "background" if push.silent else "alert",
        "apns-priority": "5" if push.silent or sent.priority is Priority.low else "10",
        "apns-id": str(DELIVERY),
    }
    if sent.expires_at is not None:
        expected["apns-expiration"] = "1795348800"
    if push.collapse_key == "order-A-1":
        expected["apns-collapse-id"] = "order-A-1"
    elif push.collapse_key is not None:
        assert len(headers.pop("apns-collapse-id")) == 64
    assert headers == expected
    body = json.loads(request.body)
    if sent is FULL:
        assert body == {
            "aps": {
                "alert": {"title": "Shipped", "body": "Order A-1 is on its way"},
                "badge": 0,
                "sound": "chime.caf",
                "mutable-content": 1,
            },
            "order": "A-1",
            "tracking": "",
            "tidings_url": "https://shop.example/orders/A-1",
            "tidings_image": "https://shop.example/parcel.png",
            "tidings_actions": [
                {"id": "track", "title": "Track", "url": "https://shop.example/t/A-1"},
                {"id": "mute", "title": "Mute"},
            ],
            "tidings_report": REPORT_URL,
        }
    elif push.silent:
        assert body == {"aps": {"content-available": 1}, **dict(push.data)}
    else:
        assert body == {"aps": {"alert": {"body": push.body}}}


def says(status: int, reason: str, expected: SendResult) -> Answer:
    return Answer(f"{status} {reason}", lambda: vendor(refuse(status, reason)), expected)


def bare(status: int, expected: SendResult) -> Answer:
    return Answer(f"{status} without a reason", lambda: vendor(Answer2(status, b"<html>")), expected)


CASE = ProviderCase(
    config=config,
    secrets=[PRIVATE_KEY, *PRIVATE_KEY.split("\n")[1:3]],
    message=lambda port: message(Push(body="Hi")),
    more_messages=lambda port: {
        "full": FULL,
        "non-ascii": message(Push(body="Zoë 🎉", collapse_key="Zoë")),
        "silent": message(Push(silent=True, data=(("sync", "now"),))),
    },
    undeclared=lambda port: Message(DELIVERY, Channel.sms, "+14155550123", Sms("Hi")),
    check=check,
    vendor=vendor,
    answers=[
        Answer("200", vendor, Sent()),
        says(400, "BadDeviceToken", Rejected(Reason.blocked)),
        says(400, "DeviceTokenNotForTopic", Rejected(Reason.blocked)),
        says(400, "TopicDisallowed", Rejected(Reason.unauthorized)),
        says(400, "BadTopic", Rejected(Reason.unauthorized)),
        says(400, "MissingTopic", Rejected(Reason.unauthorized)),
        says(400, "BadCollapseId", Rejected(Reason.rejected)),
        says(400, "BadExpirationDate", Rejected(Reason.rejected)),
        says(400, "BadMessageId", Rejected(Reason.rejected)),
        says(400, "BadPriority", Rejected(Reason.rejected)),
        says(400, "DuplicateHeaders", Rejected(Reason.rejected)),
        says(400, "IdleTimeout", Deferred(Reason.connect_failed)),
        says(400, "InvalidPushType", Rejected(Reason.rejected)),
        says(400, "MissingDeviceToken", Rejected(Reason.rejected)),
        says(400, "PayloadEmpty", Rejected(Reason.rejected)),
        says(403, "BadCertificate", Rejected(Reason.unauthorized)),
        says(403, "BadCertificateEnvironment", Rejected(Reason.unauthorized)),
        says(403, "ExpiredProviderToken", Rejected(Reason.unauthorized)),
        says(403, "Forbidden", Rejected(Reason.unauthorized)),
        says(403, "InvalidProviderToken", Rejected(Reason.unauthorized)),
        says(403, "MissingProviderToken", Rejected(Reason.unauthorized)),
        says(404, "BadPath", Rejected(Reason.rejected)),
        says(405, "MethodNotAllowed", Rejected(Reason.rejected)),
        says(410, "ExpiredToken", Rejected(Reason.gone)),
        says(410, "Unregistered", Rejected(Reason.gone)),
        says(413, "PayloadTooLarge", Rejected(Reason.too_large)),
        says(429, "TooManyProviderTokenUpdates", Throttled()),
        says(429, "TooManyRequests", Deferred(Reason.throttled)),
        says(500, "InternalServerError", Deferred(Reason.provider_error)),
        says(503, "ServiceUnavailable", Deferred(Reason.provider_error)),
        says(503, "Shutdown", Deferred(Reason.provider_error)),
        says(400, "SomethingNew", Rejected(Reason.rejected)),
        says(403, "SomethingNew", Rejected(Reason.unauthorized)),
        bare(410, Rejected(Reason.gone)),
        bare(413, Rejected(Reason.too_large)),
        bare(500, Deferred(Reason.provider_error)),
        Answer(
            "503 with Retry-After",
            lambda: vendor(Answer2(503, b"", (("retry-after", "120"),))),
            Deferred(Reason.provider_error, timedelta(minutes=2)),
        ),
        Answer(
            "429 with Retry-After",
            lambda: vendor(Answer2(429, b"", (("retry-after", "7"),))),
            Throttled(timedelta(seconds=7)),
        ),
    ],
    hangs_after_send=lambda: vendor(Act.hang),
    resets_after_send=lambda: vendor(Act.reset),
    garbage=lambda: Http2Vendor(greeting=b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n" * 9),
    oversize=lambda: vendor(Answer2(400, b'{"reason": "' + b"x" * 2_000_000)),
)
