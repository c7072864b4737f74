import base64
import json
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jwk, jwt

from tests.contract.provider_case import DELIVERY, NOW, Answer, ProviderCase
from tests.contract.push_reader import decrypt
from tests.contract.servers import Act, HttpVendor, http_answer
from tidings.model.messages import Deferred, Message, Push, PushAction, Rejected, SendResult, Sent, Sms
from tidings.model.words import Channel, Priority, Reason


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


_VAPID = ec.generate_private_key(ec.SECP256R1())
PRIVATE_KEY = b64(_VAPID.private_numbers().private_value.to_bytes(32, "big"))
PUBLIC_KEY = b64(_VAPID.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))
BROWSER = ec.generate_private_key(ec.SECP256R1())
BROWSER_KEY = b64(BROWSER.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))
AUTH = bytes(range(16))
REPORT_URL = "https://tidings.example/r/signed"


def config(port: int) -> dict[str, str]:
    return {"private_key": PRIVATE_KEY, "subject": "mailto:push@shop.example"}


def message(port: int, push: Push | Sms, **more: Any) -> Message:
    to = f"webpush:http://127.0.0.1:{port}/push/a%2Fb?token=x%2Bz%3D#{BROWSER_KEY}.{b64(AUTH)}"
    return Message(DELIVERY, Channel.push, to, push, **more)


FULL_PUSH = Push(
    title="Shipped",
    body="Order A-1 is on its way",
    url="https://shop.example/orders/A-1",
    image="https://shop.example/parcel.png",
    data=(("order", "A-1"), ("tracking", "")),
    actions=(PushAction("track", "Track", "https://shop.example/t/A-1"), PushAction("mute", "Mute")),
    badge=0,
    sound="chime",
    collapse_key="order-A-1 of Zoë",
)
FULL_PAYLOAD = {
    "title": "Shipped",
    "body": "Order A-1 is on its way",
    "url": "https://shop.example/orders/A-1",
    "image": "https://shop.example/parcel.png",
    "badge": 0,
    "sound": "chime",
    "tag": "order-A-1 of Zoë",
    "actions": [
        {"id": "track", "title": "Track", "url": "https://shop.example/t/A-1"},
        {"id": "mute", "title": "Mute"},
    ],
    "data": {"order": "A-1", "tracking": "", "tidings_report": REPORT_URL},
}


class PushService(HttpVendor):
    def __init__(self, *script: bytes | Act) -> None:
        super().__init__(*(script or (http_answer(201, "Location: https://push.example/m/1"),)))


def check(vendor: PushService, sent: Message, key: str) -> None:
    request = vendor.requests[-1]
    push = sent.content
    assert isinstance(push, Push)
    assert (request.method, request.target) == ("POST", "/push/a%2Fb?token=x%2Bz%3D")
    assert request.headers["content-encoding"] == "aes128gcm"
    assert len(request.body) <= 4096
    payload = json.loads(decrypt(request.body, BROWSER, AUTH))
    scheme, _, fields = request.headers["authorization"].partition(" ")
    assert scheme == "vapid"
    given = dict(field.strip().split("=", 1) for field in fields.split(","))
    assert given["k"] == PUBLIC_KEY
    point = _VAPID.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    token = jwt.decode(given["t"], jwk.import_key(point, "EC"), algorithms=["ES256"])
    assert token.claims == {
        "aud": f"http://127.0.0.1:{vendor.port}",
        "exp": int((NOW + timedelta(hours=12)).timestamp()),
        "sub": "mailto:push@shop.example",
    }
    headers = {name: request.headers.get(name) for name in ("ttl", "urgency", "topic")}
    if push is FULL_PUSH:
        assert payload == FULL_PAYLOAD
        assert headers == {"ttl": "7200", "urgency": "low", "topic": "eL97qvCd2-i1VLaE3aVKcaGPimFoiOKR"}
    else:
        assert headers == {"ttl": "2419200", "urgency": "normal", "topic": None}
        expected = {"silent": True, "data": dict(push.data)} if push.silent else {"body": push.body}
        assert payload == expected


def answers(status: int, expected: SendResult, *headers: str) -> Answer:
    label = " ".join([str(status), *headers])
    return Answer(label, lambda: HttpVendor(http_answer(status, "Set-Cookie: a=b", *headers)), expected)


CASE = ProviderCase(
    config=config,
    secrets=[PRIVATE_KEY],
    message=lambda port: message(port, Push(body="Hi")),
    more_messages=lambda port: {
        "full": message(
            port, FULL_PUSH, expires_at=NOW + timedelta(hours=2), priority=Priority.low, report_url=REPORT_URL
        ),
        "non-ascii": message(port, Push(body="Zoë 🎉")),
        "silent": message(port, Push(silent=True, data=(("sync", "now"),))),
    },
    undeclared=lambda port: Message(DELIVERY, Channel.sms, "+14155550123", Sms("Hi")),
    check=check,
    vendor=PushService,
    answers=[
        answers(200, Sent()),
        answers(201, Sent()),
        answers(202, Sent()),
        answers(301, Rejected(Reason.target_refused), "Location: http://127.0.0.1:1/"),
        answers(400, Rejected(Reason.rejected)),
        answers(401, Rejected(Reason.unauthorized)),
        answers(403, Rejected(Reason.unauthorized)),
        answers(404, Rejected(Reason.gone)),
        answers(408, Deferred(Reason.provider_error)),
        answers(410, Rejected(Reason.gone)),
        answers(413, Rejected(Reason.too_large)),
        answers(429, Deferred(Reason.throttled)),
        answers(429, Deferred(Reason.throttled, timedelta(minutes=2)), "Retry-After: 120"),
        answers(500, Deferred(Reason.provider_error)),
        answers(503, Deferred(Reason.provider_error, timedelta(seconds=3)), "Retry-After: 3"),
    ],
    hangs_after_send=lambda: PushService(Act.hang),
    resets_after_send=lambda: PushService(Act.reset),
    garbage=lambda: PushService(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    oversize=lambda: PushService(http_answer(201, body=b"x" * 2_000_000)),
)
