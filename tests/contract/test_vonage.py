"""Vonage against what it and others published: requests and answers of both APIs, signatures, callbacks."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from openapi_schema_validator import OAS30Validator

from tests.contract.cases.vonage import CALLBACK, CASE, SECRET, SIGNATURE, message
from tests.contract.golden import ROOT, NotOurs, cases, load, may_differ, path
from tests.contract.provider_case import DELIVERY, NOW, FixedClock
from tests.contract.servers import Act, HttpVendor, http_answer
from tidings.errors import Invalid
from tidings.ids import to_public
from tidings.model.messages import Deferred, Message, Rejected, SendResult, Sent, Sms, Throttled, Uncertain
from tidings.model.words import Channel, EventKind, Reason
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport, HttpAnswer
from tidings.providers.port import Inbound, RawRequest, ReceiptMalformed, ReceiptRefused, Receipts, Surroundings
from tidings.providers.registry import parse_config
from tidings.providers.senders import SenderConfig
from tidings.providers.vonage import (
    VonageConfig,
    VonageProvider,
    decide_messages_result,
    decide_sms_result,
    parse_token,
    sign_parameters,
    to_messages_body,
    to_sms_form,
    verify_parameters,
)

KEY = to_public("dlv", DELIVERY)
_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM = _RSA.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()


def configured(**changes: Any) -> VonageConfig:
    config = parse_config("vonage", {**CASE.config(1025), **changes})
    assert isinstance(config, VonageConfig)
    return config


def made(config: VonageConfig, guard: Guard | None = None) -> VonageProvider:
    guard = guard or Guard()
    return VonageProvider(config, Surroundings(AiohttpTransport(guard), guard, FixedClock()))


def answer(status: int, body: Any) -> HttpAnswer:
    return HttpAnswer(status, {}, body.encode() if isinstance(body, str) else json.dumps(body).encode())


# --- requests and answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("vonage/send_golden.json"))
def test_published_request(case: dict[str, Any]) -> None:
    """Our message from what their library was told, as far as ours can say it, becomes their request.

    We always give our delivery's id along; where theirs has no reference, ours is left out of the comparison.
    """
    [asked] = case["sdk_input"]
    api = "sms" if case["request"][0] == "/sms/json" else "messages"
    medium = asked.get(asked.get("messageType", ""), None)
    media, text = ((medium["url"],), medium.get("caption", "")) if isinstance(medium, dict) else ((), asked.get("text"))
    config, callback = configured(api=api), asked.get("callback") or asked.get("webhookUrl")
    expires_at = NOW + timedelta(milliseconds=asked["ttl"]) if "ttl" in asked else None
    sent = Message(DELIVERY, Channel.sms, f"+{asked['to']}", Sms(text or "", media), expires_at=expires_at)
    if not asked["from"].isdigit():
        raise NotOurs("a sender of a channel that Tidings does not have")
    sender, key = SenderConfig.model_validate(f"+{asked['from']}"), asked.get("clientRef", KEY)
    if api == "sms":
        ours: dict[str, Any] = dict(to_sms_form(config, sent, sender, key, NOW, callback))
        assert (ours.pop("api_key"), ours.pop("api_secret")) == ("abcd1234", SECRET)
    else:
        ours = to_messages_body(config, sent, sender, key, NOW, callback)
    name = "client-ref" if api == "sms" else "client_ref"
    if name not in case["request"][2]:
        assert ours.pop(name) == key
    with may_differ():
        assert ours == case["request"][2]


@pytest.mark.skipif(ROOT is None, reason="TIDINGS_CONTRACTS is not set")
@pytest.mark.parametrize(("kind", "ending"), [("audio", ".mp3"), ("video", ".mp4"), ("vcard", ".vcf")])
def test_published_request_of_a_medium_whose_url_tells_its_kind(kind: str, ending: str) -> None:
    """As above, for the cases that are listed because their URLs have no ending: here they get one, on both sides."""
    asked_of_it = [
        case for case in load("vonage/send_golden.json")["cases"] if case["request"][2].get("message_type") == kind
    ]
    assert len(asked_of_it) >= 2
    for case in asked_of_it:
        theirs = json.loads(json.dumps(case["request"][2]))
        [asked] = case["sdk_input"]
        url = theirs[kind]["url"] = f"https://example.com/a{ending}"
        sent = Message(DELIVERY, Channel.sms, f"+{asked['to']}", Sms(asked[kind].get("caption", ""), (url,)))
        sender, key = SenderConfig.model_validate(f"+{asked['from']}"), asked.get("clientRef", KEY)
        ours = to_messages_body(configured(), sent, sender, key, NOW, asked.get("webhookUrl"))
        if "client_ref" not in theirs:
            assert ours.pop("client_ref") == key
        assert ours == theirs, case["id"]


@pytest.mark.skipif(ROOT is None, reason="TIDINGS_CONTRACTS is not set")
def test_published_answers_to_requests() -> None:
    for case in load("vonage/send_golden.json")["cases"]:
        status, body = case["response"]
        decide = decide_sms_result if case["request"][0] == "/sms/json" else decide_messages_result
        result = decide(answer(status, body), NOW)
        if case["error"] is not None:
            assert isinstance(result, Rejected), case["id"]
            assert result.reason is Reason.unauthorized
        else:
            expected = case["expected"]
            id_ = expected.get("messageUUID") or expected["messages"][0]["message-id"]
            assert result == Sent(id_), case["id"]


EXPECTED_RESULTS: dict[str, tuple[int, SendResult]] = {
    "vonage-php/sms-fail-shortcode": (200, Rejected(Reason.opted_out)),
    "vonage-php/sms-fail": (200, Rejected(Reason.rejected)),
    "vonage-php/sms-mt-limit": (200, Throttled()),
    "vonage-php/sms-multi": (200, Sent("00000124")),
    "vonage-php/sms-ratelimit-notime": (200, Throttled()),
    "vonage-php/sms-ratelimit": (200, Throttled(timedelta(milliseconds=702))),
    "vonage-php/sms-send-success": (200, Sent("0A0000000123ABCD1")),
    "vonage-php/messages-rate-limit": (429, Throttled()),
    "vonage-python/messages-invalid_error": (422, Rejected(Reason.rejected)),
    "vonage-python/messages-low_balance_error": (402, Rejected(Reason.quota_exceeded)),
    "vonage-python/messages-not_found": (404, Rejected(Reason.unauthorized)),
    "vonage-python/messages-send_message": (202, Sent("d8f86df1-dec6-442f-870a-2241be27d721")),
    "vonage-python/sms-send_long_sms": (200, Sent("62dfdf68-6c7c-479a-a190-5c52f798a787")),
    "vonage-python/sms-send_sms": (200, Sent("3295d748-4e14-4681-af78-166dca3c5aab")),
    "vonage-python/sms-send_sms_error": (200, Rejected(Reason.opted_out)),
    "vonage-python/sms-send_sms_partial_error": (200, Uncertain()),
}
"""By recorded answer: the HTTP status that it comes with, and what it has to become."""


@pytest.mark.parametrize(
    "case", cases("vonage/callbacks_and_responses.json", lambda d: ((r["id"], r) for r in d["responses"]))
)
def test_published_answer(case: dict[str, Any]) -> None:
    status, expected = EXPECTED_RESULTS[case["id"]]
    decide = decide_sms_result if "/sms-" in case["id"] else decide_messages_result
    result = decide(answer(status, case["body"]), NOW)
    if isinstance(expected, Sent):
        assert result == expected
    else:
        assert type(result) is type(expected)
        assert getattr(result, "reason", None) == getattr(expected, "reason", None)
        assert getattr(result, "retry_after", None) == getattr(expected, "retry_after", None)
        assert result.detail


@pytest.mark.skipif(ROOT is None, reason="TIDINGS_CONTRACTS is not set")
def test_every_published_status_means_something() -> None:
    for code, name in load("vonage/callbacks_and_responses.json")["documented_rules"]["sms_status_codes"].items():
        body = {"messages": [{"status": code, "message-id": "1", "error-text": name}]}
        result = decide_sms_result(answer(200, body), NOW)
        kinds: dict[str, type[object]] = {"0": Sent, "1": Throttled, "5": Deferred, "10": Throttled}
        assert isinstance(result, kinds.get(code, Rejected)), name
        assert code in ("0", "2", "3", "6", "22", "23") or result != Rejected(Reason.rejected, result.detail), name


@pytest.mark.skipif(ROOT is None, reason="TIDINGS_CONTRACTS is not set")
@pytest.mark.parametrize("label", ["minimal", "non-ascii", "with a time to live"])
def test_sms_request_fits_the_published_description(label: str) -> None:
    description = yaml.safe_load(path("vonage/openapi_sms.yml").read_text("utf-8"))
    schema = {**description["components"]["schemas"]["NewMessage"], "components": description["components"]}
    sent = {
        "minimal": message(Sms("Hi")),
        "non-ascii": message(Sms("あ")),
        "with a time to live": message(Sms("Hi"), expires_at=NOW + timedelta(hours=1)),
    }[label]
    config = configured(api="sms")
    form: dict[str, Any] = dict(to_sms_form(config, sent, config.senders[1], KEY, NOW, CALLBACK))
    if "ttl" in form:
        form["ttl"] = int(form["ttl"])
        assert form["ttl"] == 3_600_000
    form["status-report-req"] = form["status-report-req"] == "true"
    assert not [f"{e.json_path}: {e.message}" for e in OAS30Validator(schema).iter_errors(form)]
    assert set(form) <= set(schema["properties"])
    assert form.get("type") == ("unicode" if label == "non-ascii" else None)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("https://example.com/a.png", "image"),
        ("https://example.com/a", "image"),
        ("https://example.com/a.MP4?x=y.mp3", "video"),
        ("https://example.com/a.mp3", "audio"),
        ("https://example.com/a.vcf", "vcard"),
    ],
)
def test_kinds_of_media(url: str, kind: str) -> None:
    config = configured()
    body = to_messages_body(config, message(Sms("See", media=(url,))), config.senders[1], KEY, NOW, None)
    assert (body["channel"], body["message_type"]) == ("mms", kind)
    assert body[kind] == {"url": url, "caption": "See"}


@pytest.mark.parametrize(
    ("api", "media"), [("sms", ("https://example.com/a.png",)), ("messages", ("https://e.com/a", "https://e.com/b"))]
)
async def test_media_that_an_api_cannot_send_are_refused(api: str, media: tuple[str, ...]) -> None:
    result = await made(configured(api=api)).send(message(Sms("See", media=media)), KEY)
    assert isinstance(result, Rejected)
    assert result.reason is Reason.unsupported


async def test_sms_api_over_the_network() -> None:
    taken = b'{"message-count": "1", "messages": [{"status": "0", "message-id": "0A1"}]}'
    async with HttpVendor(http_answer(200, body=taken), http_answer(200, body=b"[]"), Act.hang) as vendor:
        guard = Guard(["127.0.0.0/8"])
        http = AiohttpTransport(guard)
        config = configured(api="sms", base_url=f"http://127.0.0.1:{vendor.port}")
        provider = VonageProvider(
            config, Surroundings(http, guard, FixedClock(), CALLBACK, timedelta(milliseconds=300))
        )
        try:
            assert await provider.send(message(Sms("Grüße")), KEY) == Sent("0A1")
            [request] = vendor.requests
            assert request.target == "/sms/json"
            assert "authorization" not in request.headers
            assert dict(parse_qsl(request.body.decode())) == {
                "api_key": "abcd1234",
                "api_secret": SECRET,
                "from": "14155550100",
                "to": "14155550123",
                "text": "Grüße",
                "client-ref": KEY,
                "status-report-req": "true",
                "callback": CALLBACK,
            }
            assert isinstance(await provider.send(message(Sms("Hi")), KEY), Uncertain)
            assert isinstance(await provider.send(message(Sms("Hi")), KEY), Uncertain)
        finally:
            await http.close()


async def test_application_token() -> None:
    async with HttpVendor(http_answer(202, body=b'{"message_uuid": "u"}')) as vendor:
        guard = Guard(["127.0.0.0/8"])
        http = AiohttpTransport(guard)
        app = {"api_secret": None, "application_id": "aaaaaaaa-bbbb", "private_key": PEM}
        clock = FixedClock()
        config = configured(base_url=f"http://127.0.0.1:{vendor.port}", **app)
        provider = VonageProvider(config, Surroundings(http, guard, clock))
        for _ in range(2):
            assert await provider.send(message(Sms("Hi")), KEY) == Sent("u")
        await http.close()
    first, second = (r.headers["authorization"] for r in vendor.requests)
    assert first == second  # made once
    head, claims, signature = first.removeprefix("Bearer ").split(".")
    _RSA.public_key().verify(
        base64.urlsafe_b64decode(signature + "=="), f"{head}.{claims}".encode(), padding.PKCS1v15(), SHA256()
    )
    assert json.loads(base64.urlsafe_b64decode(head + "==")) == {"alg": "RS256", "typ": "JWT"}
    found = json.loads(base64.urlsafe_b64decode(claims + "=="))
    assert found["application_id"] == "aaaaaaaa-bbbb"
    assert found["iat"] == int(NOW.timestamp()) < found["exp"] <= found["iat"] + 86_400
    assert found["jti"]
    assert PEM not in repr(config)


# --- signatures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("vonage/sms_signature_vectors.json"))
def test_published_sms_signature(case: dict[str, Any]) -> None:
    signed = {**case["params"], "sig": case["sig"]}
    assert verify_parameters(signed, case["secret"], case["method"]) is case["valid"]
    ours = sign_parameters(signed, case["secret"], case["method"])
    assert (ours == case["sig"].lower()) is case["valid"]


@pytest.mark.parametrize("case", cases("vonage/jwt_vectors.json", lambda d: ((c["id"], c) for c in d["webhook_cases"])))
def test_published_token(case: dict[str, Any]) -> None:
    assert (parse_token(case["authorization"], case["signature_secret"]) is not None) is case["valid"]


@pytest.mark.parametrize(
    "case", cases("vonage/jwt_vectors.json", lambda d: ((c["id"], c) for c in d["payload_hash_cases"]))
)
async def test_published_signed_callback(case: dict[str, Any]) -> None:
    provider = made(configured(signature_secret=case["signature_secret"]))
    now = datetime.fromtimestamp(1_587_494_962, UTC)  # `iat` of the tokens
    request = RawRequest("POST", CALLBACK, {"authorization": case["authorization"]}, case["body"].encode())
    if case["valid"]:
        [report] = (await provider.receive(request, now)).reports
        assert (report.kind, report.address) == (EventKind.delivered, "+447700900000")
        for late in (timedelta(minutes=6), -timedelta(minutes=6)):
            with pytest.raises(ReceiptRefused, match="old"):
                await provider.receive(request, now + late)
    else:
        with pytest.raises(ReceiptRefused):
            await provider.receive(request, now)


# --- callbacks --------------------------------------------------------------------------------------------------------


def to_bearer(body: bytes, secret: str = SIGNATURE, **claims: Any) -> dict[str, str]:
    """The header of a callback that Vonage signs, made without our code."""

    def encode(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    claims = {"iat": int(NOW.timestamp()), "iss": "Vonage", "payload_hash": hashlib.sha256(body).hexdigest(), **claims}
    content = f"{encode({'alg': 'HS256', 'typ': 'JWT'})}.{encode(claims)}"
    signature = hmac.new(secret.encode(), content.encode(), "sha256").digest()
    return {"authorization": f"Bearer {content}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"}


def to_signed(parameters: Mapping[str, str], at: datetime = NOW) -> dict[str, str]:
    """The parameters with `timestamp` and `sig` (md5hash), made without our code."""
    signed = {**parameters, "timestamp": str(int(at.timestamp()))}
    signed.pop("sig", None)
    content = "".join(f"&{k}={v}" for k, v in sorted(signed.items())) + SIGNATURE
    return {**signed, "sig": hashlib.md5(content.encode()).hexdigest()}


def recorded(raw: str) -> RawRequest:
    head, _, body = raw.partition("\n\n")
    first, *lines = head.split("\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return RawRequest(method, f"https://{headers['host']}{target}", headers, body.encode())


def signed_anew(request: RawRequest) -> RawRequest:
    """A recorded callback, signed now with our secret: theirs is not published."""
    base, _, query = request.url.partition("?")
    if request.method == "GET":
        return RawRequest("GET", f"{base}?{urlencode(to_signed(dict(parse_qsl(query))))}", request.headers, b"")
    if "json" in request.headers["content-type"]:
        return RawRequest("POST", base, request.headers, json.dumps(to_signed(json.loads(request.body))).encode())
    return RawRequest(
        "POST", base, request.headers, urlencode(to_signed(dict(parse_qsl(request.body.decode())))).encode()
    )


@pytest.mark.parametrize(
    "case", cases("vonage/callbacks_and_responses.json", lambda d: ((c["id"], c) for c in d["callbacks"]))
)
async def test_published_sms_callback(case: dict[str, Any]) -> None:
    provider, request = made(configured()), recorded(case["raw_http"])
    with pytest.raises(ReceiptRefused):
        await provider.receive(request, NOW)  # as it was: not signed, or with another secret
    if case["id"] == "vonage-php/invalid":
        with pytest.raises(ReceiptMalformed):
            await provider.receive(signed_anew(request), NOW)
        return
    told = await provider.receive(signed_anew(request), NOW)
    if "dlr" in case["id"]:
        [report] = told.reports
        assert (report.kind, report.provider_id) == (EventKind.delivered, "14000000F9DBBBBB")
        assert (report.address, report.reason) == ("+14845552121", None)
        assert report.key == ("my-ref" if case["id"].endswith("get") else None)
        assert report.at is not None
        assert report.at.replace(second=0, minute=0) == datetime(2020, 7, 17, 2, tzinfo=UTC)
        assert "sig" not in report.detail
        assert report.detail["network-code"] == "310004"
    elif case["id"].endswith("binary"):
        assert told == Receipts()
    else:
        at = datetime(2016, 5, 24, 11, 12, 1, tzinfo=UTC)
        assert told.inbound == (Inbound("+14845552121", "+16105553939", "Test this.", "02000000DA7C52E7", at),)


@pytest.mark.parametrize(
    "case", cases("vonage/callbacks_and_responses.json", lambda d: ((c["id"], c) for c in d["messages_status"]))
)
async def test_published_messages_callback(case: dict[str, Any]) -> None:
    body = json.dumps(case["payload"]).encode()
    told = await made(configured()).receive(RawRequest("POST", CALLBACK, to_bearer(body), body), NOW)
    [expected], [report] = case["expected"], told.reports
    assert report.kind.name == expected["name"]
    assert report.provider_id == expected["id"]
    assert report.address == f"+{expected['recipient_phone']}"
    assert report.key == case["payload"]["client_ref"]
    assert report.reason is (Reason.throttled if expected["name"] == "failed" else None)
    assert report.detail == case["payload"]


DLR = {"msisdn": "14845552121", "to": "16105553939", "messageId": "0A1", "client-ref": KEY, "err-code": "0"}


async def told_by(**changes: str) -> Receipts:
    parameters = to_signed({**DLR, **changes})
    return await made(configured()).receive(RawRequest("GET", f"{CALLBACK}?{urlencode(parameters)}", {}, b""), NOW)


@pytest.mark.parametrize(
    ("status", "code", "kind", "reason"),
    [
        ("delivered", "0", EventKind.delivered, None),
        ("accepted", "0", EventKind.sent, None),
        ("buffered", "0", EventKind.retrying, None),
        ("expired", "1", EventKind.failed, Reason.expired),
        ("failed", "1", EventKind.failed, Reason.rejected),
        ("failed", "2", EventKind.failed, Reason.rejected),
        ("failed", "3", EventKind.failed, Reason.bounced),
        ("rejected", "4", EventKind.failed, Reason.opted_out),
        ("rejected", "6", EventKind.failed, Reason.content_rejected),
        ("rejected", "9", EventKind.failed, Reason.invalid_address),
        ("rejected", "14", EventKind.failed, Reason.blocked),
        ("failed", "4711", EventKind.failed, Reason.rejected),
    ],
)
async def test_delivery_receipt(status: str, code: str, kind: EventKind, reason: Reason | None) -> None:
    [report] = (await told_by(status=status, **{"err-code": code})).reports
    assert (report.kind, report.reason, report.key) == (kind, reason, KEY)


async def test_what_says_nothing_is_ignored() -> None:
    assert await told_by(status="unknown") == Receipts()
    for body in (
        {"message_uuid": "u", "channel": "whatsapp", "status": "delivered"},
        {"message_uuid": "u", "channel": "sms", "status": "teleported"},
        {"message_uuid": "u", "channel": "mms", "message_type": "image", "from": "1", "to": "2"},
    ):
        raw = json.dumps(body).encode()
        assert await made(configured()).receive(RawRequest("POST", CALLBACK, to_bearer(raw), raw), NOW) == Receipts()


async def test_inbound_by_the_messages_api() -> None:
    body = {
        "channel": "sms",
        "message_uuid": "u",
        "to": "14155550100",
        "from": "14155550123",
        "timestamp": "2026-11-22T10:59:00+01:00",
        "text": "Unsubscribe",
        "message_type": "text",
    }
    raw = json.dumps(body).encode()
    [inbound] = (await made(configured()).receive(RawRequest("POST", CALLBACK, to_bearer(raw), raw), NOW)).inbound
    at = datetime(2026, 11, 22, 9, 59, tzinfo=UTC)
    assert inbound == Inbound("+14155550123", "+14155550100", "Unsubscribe", "u", at, "stop")


async def test_callbacks_that_prove_nothing_are_refused() -> None:
    provider, body = made(configured()), b'{"message_uuid": "u", "status": "delivered"}'
    old = to_signed(DLR, NOW - timedelta(minutes=6))
    stale = int(NOW.timestamp()) - 301
    # What is signed of these reads like what is signed of `good`, but the status stands in another parameter's name.
    good = to_signed({**DLR, "status": "delivered"})
    names = sorted(good)
    before = names[names.index("status") - 1]
    merged = {n: good[n] for n in names if n not in (before, "status")}
    merged[f"{before}={good[before]}&status"] = good["status"]
    for request in (
        RawRequest("POST", CALLBACK, {}, body),
        RawRequest("POST", CALLBACK, {"content-type": "application/json"}, body),
        RawRequest("POST", CALLBACK, {"content-type": "application/json"}, b"[]"),
        RawRequest("POST", CALLBACK, {}, b"\xff"),
        RawRequest("GET", f"{CALLBACK}?{urlencode(old)}", {}, b""),
        RawRequest("GET", f"{CALLBACK}?{urlencode(to_signed(DLR) | {'status': 'failed'})}", {}, b""),
        RawRequest("GET", f"{CALLBACK}?{urlencode(merged)}", {}, b""),
        RawRequest("POST", CALLBACK, to_bearer(body, "another secret"), body),
        RawRequest("POST", CALLBACK, to_bearer(body, payload_hash=""), body),
        RawRequest("POST", CALLBACK, to_bearer(body, iat=stale), body),
        RawRequest("POST", CALLBACK, to_bearer(body, iat="soon"), body),
        RawRequest("POST", CALLBACK, to_bearer(body, iat=None), body),
        RawRequest("POST", CALLBACK, {"authorization": "Basic YTpi"}, body),
        RawRequest("POST", CALLBACK, {"authorization": "Bearer a.b.c"}, body),
    ):
        with pytest.raises(ReceiptRefused):
            await provider.receive(request, NOW)
    with pytest.raises(ReceiptMalformed):
        await provider.receive(RawRequest("POST", CALLBACK, to_bearer(b"[]"), b"[]"), NOW)
    with pytest.raises(ReceiptRefused, match="signature_secret"):
        await made(configured(signature_secret=None)).receive(RawRequest("POST", CALLBACK, to_bearer(body), body), NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"api": "sms", "api_secret": None, "application_id": "a", "private_key": PEM},
        {"api_secret": None},
        {"application_id": "a"},
        {"application_id": "a", "private_key": "no key"},
        {"signature_secret": ""},  # anybody could sign with it
        {"signature_method": "sha3"},
    ],
)
def test_configurations_that_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        configured(**changes)
