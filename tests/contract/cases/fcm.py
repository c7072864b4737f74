import asyncio
import json
from datetime import timedelta
from urllib.parse import parse_qs

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from joserfc import jwk, jwt

from tests.contract.provider_case import DELIVERY, NOW, Answer, ProviderCase
from tests.contract.servers import Act, HttpRequest, HttpVendor, Vendor, http_answer
from tidings.model.messages import (
    Deferred,
    Message,
    Push,
    PushAction,
    Rejected,
    SendResult,
    Sent,
    Sms,
    Throttled,
    Uncertain,
)
from tidings.model.words import Channel, Priority, Reason

_KEY = rsa.generate_private_key(65537, 2048)
PRIVATE_KEY = _KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
PUBLIC_KEY = _KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
CLIENT = "push@shop-1.iam.gserviceaccount.com"
TOKEN = "bk3RNwTe3H0:CI2k_HHwgIpoDKCIZvvDMExUdFQ3P1-x"
REPORT_URL = "https://tidings.example/r/signed"
NAME = "projects/shop-1/messages/0:1500415314455276%31bd1c9631bd1c96"


def service_account(port: int, **changes: str) -> str:
    return json.dumps(
        {
            "type": "service_account",
            "project_id": "shop-1",
            "private_key_id": "k-1",
            "private_key": PRIVATE_KEY,
            "client_email": CLIENT,
            "client_id": "1",
            "token_uri": f"http://127.0.0.1:{port}/token",
            "universe_domain": "googleapis.com",
            **changes,
        }
    )


def config(port: int) -> dict[str, str]:
    return {"service_account": service_account(port), "base_url": f"http://127.0.0.1:{port}"}


def message(push: Push | Sms, **more: object) -> Message:
    return Message(DELIVERY, Channel.push, f"fcm:{TOKEN}", push, **more)  # type: ignore[arg-type]  # handed through


FULL = message(
    Push(
        title="Shipped",
        body="Order A-1 is on its way",
        url="https://shop.example/orders/A-1",
        image="https://shop.example/parcel.png",
        data=(("order", "A-1"), ("tracking", "")),
        actions=(PushAction("track", "Track", "https://shop.example/t/A-1"), PushAction("mute", "Mute")),
        badge=0,
        sound="chime",
        collapse_key="order-A-1",
    ),
    expires_at=NOW + timedelta(hours=2),
    priority=Priority.low,
    report_url=REPORT_URL,
)
FULL_BODY = {
    "message": {
        "token": TOKEN,
        "notification": {
            "title": "Shipped",
            "body": "Order A-1 is on its way",
            "image": "https://shop.example/parcel.png",
        },
        "data": {
            "order": "A-1",
            "tracking": "",
            "tidings_url": "https://shop.example/orders/A-1",
            "tidings_actions": '[{"id":"track","title":"Track","url":"https://shop.example/t/A-1"},'
            '{"id":"mute","title":"Mute"}]',
            "tidings_report": REPORT_URL,
        },
        "android": {
            "priority": "NORMAL",
            "ttl": "7200s",
            "collapseKey": "order-A-1",
            "notification": {"tag": "order-A-1", "sound": "chime", "notificationCount": 0},
        },
        "apns": {
            "headers": {
                "apns-push-type": "alert",
                "apns-priority": "5",
                "apns-expiration": "1795348800",
                "apns-collapse-id": "order-A-1",
            },
            "payload": {"aps": {"badge": 0, "sound": "chime", "mutable-content": 1}},
            "fcmOptions": {"image": "https://shop.example/parcel.png"},
        },
        "webpush": {
            "headers": {"Urgency": "low", "TTL": "7200"},
            "notification": {
                "tag": "order-A-1",
                "actions": [{"action": "track", "title": "Track"}, {"action": "mute", "title": "Mute"}],
            },
            "fcmOptions": {"link": "https://shop.example/orders/A-1"},
        },
    }
}


class FcmVendor(HttpVendor):
    """Google: gives access tokens for good assertions, and answers messages by the script.

    Args:
        tokens: the answers to requests for an access token; empty gives `access-1`, `access-2` and so on.
    """

    def __init__(self, *script: bytes | Act, tokens: tuple[bytes | Act, ...] = ()) -> None:
        super().__init__(*(script or (http_answer(200, body=json.dumps({"name": NAME}).encode()),)))
        self.tokens = list(tokens)
        self.given = 0
        self.assertions: list[HttpRequest] = []
        self.gate: asyncio.Event | None = None
        """Set: no access token is given before it."""

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head[:-4].split("\r\n")
            method, target, _ = first.split(" ")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            request = HttpRequest(method, target, headers, body)
            if target == "/token":
                self.assertions.append(request)
                answer = await self.give_token(request)
            else:
                self.requests.append(request)
                answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
                if headers["authorization"] != f"Bearer access-{self.given}":
                    answer = error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
            if isinstance(answer, Act):
                await self.perform(answer, reader, writer)
            else:
                writer.write(answer)
                await writer.drain()

    async def give_token(self, request: HttpRequest) -> bytes | Act:
        if self.gate is not None:
            await self.gate.wait()
        if self.tokens:
            return self.tokens.pop(0)
        form = parse_qs(request.body.decode(), strict_parsing=True)
        assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
        token = jwt.decode(form["assertion"][0], jwk.import_key(PUBLIC_KEY, "RSA"), algorithms=["RS256"])
        assert token.header == {"alg": "RS256", "typ": "JWT", "kid": "k-1"}
        issued_at = int(NOW.timestamp())
        assert token.claims == {
            "iss": CLIENT,
            "aud": "https://oauth2.googleapis.com/token",
            "scope": "https://www.googleapis.com/auth/firebase.messaging",
            "iat": issued_at,
            "exp": issued_at + 3600,
        }
        self.given += 1
        answer = {"access_token": f"access-{self.given}", "expires_in": 3599, "token_type": "Bearer"}
        return http_answer(200, "Content-Type: application/json", body=json.dumps(answer).encode())


def error(status: int, word: str, said: str = "test", code: str = "", *headers: str, field: str = "") -> bytes:
    details: list[dict[str, object]] = []
    if code:
        details.append({"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code})
    if field:
        violations = [{"field": field, "description": said}]
        details.append({"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": violations})
    body = {"error": {"code": status, "message": said, "status": word, "details": details}}
    return http_answer(status, *headers, body=json.dumps(body).encode())


def check(vendor: Vendor, sent: Message, key: str) -> None:
    assert isinstance(vendor, FcmVendor)
    request = vendor.requests[-1]
    assert (request.method, request.target) == ("POST", "/v1/projects/shop-1/messages:send")
    assert request.headers["authorization"] == "Bearer access-1"
    assert request.headers["content-type"] == "application/json"
    assert len(vendor.assertions) == 1
    body = json.loads(request.body)
    push = sent.content
    assert isinstance(push, Push)
    if sent is FULL:
        assert body == FULL_BODY
    elif push.silent:
        assert body == {
            "message": {
                "token": TOKEN,
                "data": dict(push.data),
                "android": {"priority": "NORMAL"},
                "apns": {
                    "headers": {"apns-push-type": "background", "apns-priority": "5"},
                    "payload": {"aps": {"content-available": 1}},
                },
                "webpush": {"headers": {"Urgency": "normal"}},
            }
        }
    else:
        assert body["message"]["notification"] == {"body": push.body}
        assert body["message"]["android"]["priority"] == "HIGH"


def says(label: str, answer: bytes, expected: SendResult) -> Answer:
    return Answer(label, lambda: FcmVendor(answer), expected)


def token_says(label: str, answer: bytes | Act, expected: SendResult) -> Answer:
    return Answer(f"token: {label}", lambda: FcmVendor(tokens=(answer,)), expected)


def of(status: int, **body: object) -> bytes:
    return http_answer(status, body=json.dumps(body).encode())


CASE = ProviderCase(
    config=config,
    secrets=[*PRIVATE_KEY.split("\n")[1:3], "access-1"],
    message=lambda port: message(Push(body="Hi")),
    more_messages=lambda port: {
        "full": FULL,
        "non-ascii": message(Push(body="Zoë 🎉")),
        "silent": message(Push(silent=True, data=(("sync", "now"),))),
    },
    undeclared=lambda port: Message(DELIVERY, Channel.sms, "+14155550123", Sms("Hi")),
    check=check,
    vendor=FcmVendor,
    answers=[
        Answer("200", FcmVendor, Sent()),
        says("UNREGISTERED", error(404, "NOT_FOUND", "gone", "UNREGISTERED"), Rejected(Reason.gone)),
        says(
            "SENDER_ID_MISMATCH", error(403, "PERMISSION_DENIED", "x", "SENDER_ID_MISMATCH"), Rejected(Reason.blocked)
        ),
        says("no such project", error(404, "NOT_FOUND"), Rejected(Reason.unauthorized)),
        says("no permission", error(403, "PERMISSION_DENIED"), Rejected(Reason.unauthorized)),
        says(
            "THIRD_PARTY_AUTH_ERROR",
            error(401, "UNAUTHENTICATED", "Auth error from APNS or Web Push Service", "THIRD_PARTY_AUTH_ERROR"),
            Rejected(Reason.unauthorized),
        ),
        says("401 again and again", error(401, "UNAUTHENTICATED"), Rejected(Reason.unauthorized)),
        says(
            "a token that is none",
            error(400, "INVALID_ARGUMENT", "The registration token is not a valid FCM registration token"),
            Rejected(Reason.invalid_address),
        ),
        says(
            "a field: the token",
            error(400, "INVALID_ARGUMENT", "Invalid value", field="message.token"),
            Rejected(Reason.invalid_address),
        ),
        says(
            "a field: another",
            error(400, "INVALID_ARGUMENT", "Invalid value", field="message.data[0].value"),
            Rejected(Reason.rejected),
        ),
        says(
            "too big",
            error(400, "INVALID_ARGUMENT", "Android message is too big", "INVALID_ARGUMENT"),
            Rejected(Reason.too_large),
        ),
        says(
            "QUOTA_EXCEEDED",
            error(429, "RESOURCE_EXHAUSTED", "quota", "QUOTA_EXCEEDED"),
            Throttled(timedelta(minutes=1)),
        ),
        says(
            "QUOTA_EXCEEDED with Retry-After",
            error(429, "RESOURCE_EXHAUSTED", "quota", "QUOTA_EXCEEDED", "Retry-After: 90"),
            Throttled(timedelta(seconds=90)),
        ),
        says(
            "UNAVAILABLE",
            error(503, "UNAVAILABLE", "later", "UNAVAILABLE", "Retry-After: 5"),
            Deferred(Reason.provider_error, timedelta(seconds=5)),
        ),
        says("INTERNAL", error(500, "INTERNAL", "oops", "INTERNAL"), Deferred(Reason.provider_error)),
        says("500", http_answer(500), Deferred(Reason.provider_error)),
        says("504", http_answer(504), Uncertain()),
        says("429", http_answer(429, "Retry-After: 3"), Throttled(timedelta(seconds=3))),
        says("413", http_answer(413), Rejected(Reason.too_large)),
        token_says("refused", of(400, error="invalid_grant", error_description="x"), Rejected(Reason.unauthorized)),
        token_says("passing", of(400, error="internal_failure"), Deferred(Reason.provider_error)),
        token_says("503", http_answer(503), Deferred(Reason.provider_error)),
        token_says("504", http_answer(504), Deferred(Reason.provider_error)),
        token_says("429", http_answer(429, "Retry-After: 9"), Throttled(timedelta(seconds=9))),
        token_says("404", http_answer(404), Rejected(Reason.unauthorized)),
        token_says("none in it", of(200, expires_in=500), Deferred(Reason.bad_answer)),
        token_says("a string", http_answer(200, body=b'"oh no"'), Deferred(Reason.bad_answer)),
        token_says("connection reset", Act.reset, Deferred(Reason.connect_failed)),
    ],
    hangs_after_send=lambda: FcmVendor(Act.hang),
    resets_after_send=lambda: FcmVendor(Act.reset),
    garbage=lambda: FcmVendor(http_answer(200, body=b"\x00\xff<html>")),
    oversize=lambda: FcmVendor(http_answer(400, body=b'{"error": "' + b"x" * 2_000_000)),
)
