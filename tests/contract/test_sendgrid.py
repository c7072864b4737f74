"""SendGrid against what SendGrid and others published, and what its events mean beyond that."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from tests.contract import anymail, golden
from tests.contract.provider_case import DELIVERY
from tidings.errors import Invalid
from tidings.model.messages import Email, Message, Rejected, Sent
from tidings.model.words import Channel, EventKind, Reason
from tidings.providers.port import RawRequest, ReceiptMalformed, ReceiptRefused, Report
from tidings.providers.registry import parse_config
from tidings.providers.sendgrid import parse_message_id, to_report

OPENAPI = "sendgrid/openapi_mail_v3.json"
SIGNER = ec.generate_private_key(ec.SECP256R1())
PUBLIC_KEY = base64.b64encode(
    SIGNER.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
).decode()
CONFIG = {"api_key": "test_api_key", "from_address": "from@example.com", "webhook_public_key": PUBLIC_KEY}
NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
SIGNATURE = "x-twilio-email-event-webhook-signature"
TIMESTAMP = "x-twilio-email-event-webhook-timestamp"

KINDS = {
    "processed": EventKind.sent,
    "delivered": EventKind.delivered,
    "deferred": EventKind.retrying,
    "bounce": EventKind.failed,
    "dropped": EventKind.failed,
    "open": EventKind.opened,
    "click": EventKind.clicked,
    "spamreport": EventKind.complained,
    "spam": EventKind.complained,  # Symfony's word
    "unsubscribe": EventKind.unsubscribed,
    "group_unsubscribe": EventKind.unsubscribed,
}


def callback(body: bytes, at: datetime = NOW) -> RawRequest:
    timestamp = str(int(at.timestamp()))
    signature = SIGNER.sign(timestamp.encode() + body, ec.ECDSA(SHA256()))
    headers = {SIGNATURE: base64.b64encode(signature).decode(), TIMESTAMP: timestamp}
    return RawRequest("POST", "https://tidings.example/callbacks/sendgrid", headers, body)


async def receive(request: RawRequest, now: datetime = NOW, **config: Any) -> tuple[Report, ...]:
    async with anymail.provider("sendgrid", {**CONFIG, **config}) as made:
        return (await made.receive(request, now)).reports


# --- sending ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden.cases("sendgrid/anymail_send_golden.json"))
async def test_request_is_what_anymail_sends(case: Any) -> None:
    for sent, call in anymail.pair_calls(case):
        expected = call["json_body"] if call is not None else {}
        files = [(file["type"], base64.b64decode(file["content"])) for file in expected.get("attachments", ())]
        for message in anymail.to_messages(sent, files):
            result, vendor = await anymail.send("sendgrid", CONFIG, message, case["mock_response"])
            anymail.check_taken(result, sent, message)
            if call is None:
                assert vendor.requests == []
                continue
            (request,) = vendor.requests
            assert request.target == "/v3/mail/send"
            assert request.headers["authorization"] == call["headers"]["Authorization"]
            ours = json.loads(request.body)
            golden.check_body(OPENAPI, "/v3/mail/send", ours)
            assert normalise_ours(ours) == normalise_theirs(expected, message)


def normalise_ours(body: dict[str, Any]) -> dict[str, Any]:
    (envelope,) = body["personalizations"]
    assert envelope["custom_args"].pop("tidings_delivery") == anymail.KEY
    for file in body.get("attachments", ()):
        if file["disposition"] == "attachment":  # is what nothing means
            del file["disposition"]
    return body


def normalise_theirs(body: dict[str, Any], message: Message) -> dict[str, Any]:
    """For one recipient, in the one of several ways to say it that we chose."""
    body = json.loads(json.dumps(body))
    (envelope,) = (p for p in body["personalizations"] if message.to in [to["email"] for to in p["to"]])
    envelope["to"] = [{"email": message.to}]
    envelope["custom_args"] = {**body.pop("custom_args", {}), **envelope.get("custom_args", {})}
    envelope["custom_args"].pop("anymail_id", None)
    body["personalizations"] = [envelope]
    if "reply_to_list" in body:
        (body["reply_to"],) = body.pop("reply_to_list")
    headers = {**body.pop("headers", {}), **envelope.pop("headers", {})}
    headers.pop("Message-ID", None)
    return {**body, "headers": headers} if headers else body


async def test_full_request_fits_the_official_description() -> None:
    email = Email(
        "Hi",
        text="Hello",
        html="<b>Hello</b>",
        reply_to="a@example.com",
        headers=(("X-A", "b"),),
        cc=("c@example.com",),
        bcc=("d@example.com",),
        tags=("one", "two"),
        track_opens=True,
        track_clicks=False,
    )
    message = Message(DELIVERY, Channel.email, "to@example.com", email, metadata=(("order", "1"),))
    result, vendor = await anymail.send(
        "sendgrid", CONFIG, message, {"status": 202, "body": ""}, "X-Message-Id: 14c5.d"
    )
    assert result == Sent("14c5.d")
    golden.check_body(OPENAPI, "/v3/mail/send", json.loads(vendor.requests[0].body))


@pytest.mark.parametrize(
    "email",
    [
        Email("Hi", text="Hello", tags=tuple(map(str, range(11)))),
        Email("Hi", text="Hello", headers=(("X-A", "1"), ("x-a", "2"))),
    ],
)
async def test_what_a_request_of_sendgrid_cannot_say_is_refused(email: Email) -> None:
    message = Message(DELIVERY, Channel.email, "to@example.com", email)
    result, vendor = await anymail.send("sendgrid", CONFIG, message, {"status": 202, "body": ""})
    assert isinstance(result, Rejected)
    assert result.reason is Reason.unsupported
    assert vendor.connections == 0


async def test_metadata_leave_room_for_our_key() -> None:
    metadata = (("a", "x" * 5_000), ("b", "y" * 4_000), ("c", "z" * 5_000))
    message = Message(DELIVERY, Channel.email, "to@example.com", Email("Hi", text="Hello"), metadata=metadata)
    _, vendor = await anymail.send("sendgrid", CONFIG, message, {"status": 202, "body": ""})
    args = json.loads(vendor.requests[0].body)["personalizations"][0]["custom_args"]
    assert set(args) == {"tidings_delivery", "a", "b"}
    assert len(json.dumps(args)) < 10_000


# --- signatures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden.cases("sendgrid/signature_vectors.json"))
async def test_published_signature(case: Any) -> None:
    headers = {name.lower(): value for name, value in case["headers"].items()}
    request = RawRequest("POST", "https://tidings.example/", headers, case["body"].encode())
    now = datetime.fromtimestamp(1600112502, UTC)
    if case["valid"]:
        (report,) = await receive(request, now, webhook_public_key=case["public_key_der_base64"])
        assert report.reason is Reason.bounced
        with pytest.raises(ReceiptRefused, match="too old"):
            await receive(request, now + timedelta(hours=26), webhook_public_key=case["public_key_der_base64"])
    else:
        with pytest.raises(ReceiptRefused):
            await receive(request, now, webhook_public_key=case["public_key_der_base64"])


async def test_receipt_without_or_with_another_signature_is_refused() -> None:
    signed = callback(b"[]")
    assert await receive(signed) == ()
    for headers in (
        {},
        {TIMESTAMP: signed.headers[TIMESTAMP]},
        {SIGNATURE: signed.headers[SIGNATURE]},
        {**signed.headers, SIGNATURE: "%%%"},
        {**signed.headers, SIGNATURE: "ü"},
        {**signed.headers, TIMESTAMP: "٣"},
        {**signed.headers, TIMESTAMP: "9" * 400},
    ):
        with pytest.raises(ReceiptRefused):
            await receive(RawRequest("POST", signed.url, headers, signed.body))
    with pytest.raises(ReceiptRefused, match="webhook_public_key"):
        await receive(signed, webhook_public_key=None)


@pytest.mark.parametrize("age", [timedelta(hours=26), timedelta(minutes=-6)])
async def test_receipt_from_another_time_is_refused(age: timedelta) -> None:
    with pytest.raises(ReceiptRefused):
        await receive(callback(b"[]", NOW - age))


@pytest.mark.parametrize("body", [b"", b"{}", b"null", b"[" * 100_000, b'["\xff"]'])
async def test_signed_nonsense_is_malformed(body: bytes) -> None:
    with pytest.raises(ReceiptMalformed):
        await receive(callback(body))


def test_verification_key_is_checked_when_it_is_configured() -> None:
    other = ec.generate_private_key(ec.SECP384R1()).public_key()
    pem = SIGNER.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    parse_config("sendgrid", {**CONFIG, "webhook_public_key": pem})
    for wrong in (
        "",
        "no key",
        base64.b64encode(b"no key").decode(),
        base64.b64encode(other.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode(),
    ):
        with pytest.raises(Invalid) as caught:
            parse_config("sendgrid", {**CONFIG, "webhook_public_key": wrong})
        assert [error.pointer for error in caught.value.errors] == ["/config/webhook_public_key"]


# --- events -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden.cases("sendgrid/anymail_callbacks_golden.json"))
async def test_event_is_what_anymail_makes_of_it(case: Any) -> None:
    (request,) = case["requests"]
    # The implementations name their own id differently; SendGrid gives back whatever name it was given.
    body = request["body"].replace('"anymail_id"', '"tidings_delivery"')
    reports = await receive(callback(body.encode()))
    events = json.loads(body)
    assert len(reports) == len(case["events"]) == len(events)
    for report, theirs, raw in zip(reports, case["events"], events, strict=True):
        assert report.kind is anymail.KINDS[theirs["event_type"]]
        assert report.address == theirs["recipient"]
        assert report.at == datetime.fromisoformat(theirs["timestamp"])
        assert report.event_id == theirs["event_id"]
        assert report.url == theirs["click_url"]
        assert report.machine is False
        # Without an id of its own, Anymail takes the Message-ID, which is no key of ours.
        assert report.key == (theirs["message_id"] if "tidings_delivery" in raw else None)
        if theirs["reject_reason"] in anymail.REASONS:
            assert report.reason is anymail.REASONS[theirs["reject_reason"]]
        if report.provider_id is None:
            assert raw["sg_message_id"].startswith("filter")
        else:
            assert raw["sg_message_id"].startswith(f"{report.provider_id}.filter")
        assert report.detail == raw


@pytest.mark.parametrize("case", golden.cases("sendgrid/symfony_callbacks_golden.json"))
async def test_event_is_what_symfony_makes_of_it(case: Any) -> None:
    reports = await receive(callback(json.dumps(case["payload"]).encode()))
    assert len(reports) == len(case["expected"])
    for report, theirs in zip(reports, case["expected"], strict=True):
        assert report.kind is KINDS[theirs["name"]]
        assert report.address == theirs["recipient"]
        assert report.at == datetime.fromtimestamp(int(theirs["date"]), UTC)
        assert report.provider_id is not None
        assert theirs["id"].startswith(f"{report.provider_id}.")
        assert report.reason is (Reason.bounced if theirs.get("reason") == "Bounced Address" else None)


@pytest.mark.parametrize("case", golden.cases("sendgrid/event_webhook_samples_docs.json"))
async def test_event_of_the_documentation(case: Any) -> None:
    raw = case["payload"]
    reports = await receive(callback(json.dumps([raw]).encode()))
    kind = KINDS.get(case["event"].lower())
    if kind is None:
        assert case["event"] == "group_resubscribe"
        assert reports == ()
        return
    (report,) = reports
    assert report.kind is kind
    assert report.address == raw.get("email")
    assert report.event_id == raw.get("sg_event_id")
    assert report.url == (raw["url"] if case["event"] == "click" else None)
    assert report.at is not None
    seconds = float(raw["timestamp"])
    assert report.at.timestamp() == (seconds if seconds < 1e11 else seconds / 1000)
    assert report.provider_id == (
        (raw.get("sg_message_id") or "").partition(".filter")[0].partition(".stfilter")[0] or None
    )
    expected = {"blocked": Reason.blocked, "bounce": Reason.bounced}.get(raw.get("type", ""))
    if case["event"] == "dropped":
        expected = Reason.bounced
    assert report.reason is (Reason.complained if case["event"] == "spamreport" else expected)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"event": "dropped", "reason": "Invalid"}, Reason.invalid_address),
        ({"event": "dropped", "reason": "Unsubscribed Address"}, Reason.opted_out),
        ({"event": "dropped", "reason": "Spam Reporting Address"}, Reason.complained),
        ({"event": "dropped", "reason": "Spam Content"}, Reason.content_rejected),
        ({"event": "dropped", "reason": "Recipient List over Package Quota"}, Reason.quota_exceeded),
        ({"event": "dropped", "reason": "something new"}, Reason.rejected),
        ({"event": "bounce", "type": "bounce", "reason": "552 5.2.2 over quota"}, Reason.mailbox_full),
        ({"event": "bounce", "type": "bounce", "reason": "no such user", "status": "5.1.1"}, Reason.bounced),
        ({"event": "bounce", "type": "bounce", "bounce_classification": "Content"}, Reason.content_rejected),
        ({"event": "bounce", "reason": "whatever"}, Reason.bounced),
        ({"event": "bounce", "type": "blocked", "reason": "550 5.1.1 unknown"}, Reason.blocked),
        ({"event": "bounce", "type": "blocked", "bounce_classification": "Content"}, Reason.content_rejected),
        ({"event": "bounce", "type": "blocked", "bounce_classification": "Invalid Address"}, Reason.blocked),
        ({"event": "deferred", "response": "451 4.7.1 greylisted, come back"}, Reason.greylisted),
        ({"event": "deferred", "response": "452 4.2.2 mailbox full"}, Reason.mailbox_full),
        ({"event": "deferred", "response": "busy"}, None),
    ],
)
def test_reason(event: dict[str, Any], reason: Reason | None) -> None:
    report = to_report(event)
    assert report is not None
    assert report.reason is reason


def test_opens_by_machines_are_marked() -> None:
    for event, machine in (
        ({"event": "open", "sg_machine_open": True}, True),
        ({"event": "open", "sg_machine_open": False}, False),
        ({"event": "open"}, False),
        ({"event": "delivered", "sg_machine_open": True}, False),
    ):
        report = to_report(event)
        assert report is not None
        assert report.machine is machine


@pytest.mark.parametrize(
    ("given_id", "expected"),
    [
        ("LRzXl_NHStOGhQ4kofSm_A.filterdrecv-p3mdw1-756b745b58-kmzbl-18-5F5FC76C-9.0", "LRzXl_NHStOGhQ4kofSm_A"),
        ("14c5d75ce93.dfd.64b469.filter0001.16648.5515E0B88.0", "14c5d75ce93.dfd.64b469"),
        ("Kx8.recvd-5f54b5d587-pczjm-1-61766F96-11.0", "Kx8"),
        ("5lFl7Fr1Rjme_EyzNNB_5A.stfilter-015.5185.55F883172.0", "5lFl7Fr1Rjme_EyzNNB_5A"),
        ("unknown.0", "unknown"),
        ("filter0093p1las1.9128.5717FB8127.0", None),
        ("", None),
        (None, None),
        ({}, None),
    ],
)
def test_message_id(given_id: Any, expected: str | None) -> None:
    assert parse_message_id(given_id) == expected


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner))


@given(st.dictionaries(st.sampled_from(["email", "timestamp", "reason", "status", "type", "url", "sg_event_id"]), JSON))
def test_no_event_breaks_the_reading(fields: dict[str, Any]) -> None:
    for name in KINDS:
        to_report({"event": name, **fields})
