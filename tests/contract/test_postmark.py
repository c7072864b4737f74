"""Postmark against what others published, and what its events mean beyond that."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from email.utils import getaddresses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contract import anymail, golden
from tests.contract.provider_case import DELIVERY
from tidings.model.messages import Email, Message
from tidings.model.words import Channel, EventKind, Reason
from tidings.providers.port import RawRequest, ReceiptMalformed, Report
from tidings.providers.postmark import to_report

CONFIG = {"server_token": "test_server_token", "from_address": "from@example.com"}
NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


async def receive(body: bytes) -> tuple[Report, ...]:
    request = RawRequest("POST", "https://tidings.example/callbacks/postmark/secret", {}, body)
    async with anymail.provider("postmark", CONFIG) as made:
        return (await made.receive(request, NOW)).reports


# --- sending ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden.cases("postmark/anymail_send_golden.json"))
async def test_request_is_what_anymail_sends(case: Any) -> None:
    for sent, call in anymail.pair_calls(case):
        bodies = call["json_body"] if call is not None else {}
        files = [
            (file["ContentType"], base64.b64decode(file["Content"]))
            for file in (bodies.get("Attachments", ()) if isinstance(bodies, dict) else ())
        ]
        for message in anymail.to_messages(sent, files):
            result, vendor = await anymail.send("postmark", CONFIG, message, pick_answer(case, message))
            anymail.check_taken(result, sent, message)
            if call is None:
                assert vendor.requests == []
                continue
            golden.check_taken(bool(vendor.requests), True, result)
            (request,) = vendor.requests
            assert request.target == "/email"
            assert request.headers["x-postmark-server-token"] == call["headers"]["X-Postmark-Server-Token"]
            ours = json.loads(request.body)
            assert ours["Metadata"].pop("tidings_delivery") == anymail.KEY
            with golden.may_differ():
                assert ours == normalise_theirs(bodies, message)


def addresses(text: str) -> list[str]:
    return [address for _, address in getaddresses([text])]


def pick_answer(case: Any, message: Message) -> dict[str, Any]:
    """The answer for one recipient: a batch is answered by an array."""
    mock: dict[str, Any] = case["mock_response"]
    try:
        answers = json.loads(mock["body"])
    except ValueError:
        return mock
    if not isinstance(answers, list):
        return mock
    (body,) = (each for each in answers if each["To"] == message.to)
    return {**mock, "body": json.dumps(body)}


def normalise_theirs(bodies: Any, message: Message) -> dict[str, Any]:
    """For one recipient, out of a batch or of a mail to several."""
    (body,) = (
        dict(each) for each in (bodies if isinstance(bodies, list) else [bodies]) if message.to in addresses(each["To"])
    )
    body["To"] = message.to
    body["Metadata"] = {name: str(value) for name, value in body.get("Metadata", {}).items()}
    if headers := body.pop("Headers", None):
        email = message.content
        assert isinstance(email, Email)
        names = [name for name, _ in email.headers]  # their order says nothing
        body["Headers"] = sorted(
            (each for each in headers if each["Name"] != "Message-ID"), key=lambda each: names.index(each["Name"])
        )
    return body


async def test_metadata_that_postmark_would_refuse_the_mail_for_are_left_out() -> None:
    metadata = (
        ("x" * 21, "a"),
        ("b", "y" * 81),
        ("tidings_delivery", "not ours"),
        *((f"n{i}", "v") for i in range(20)),
    )
    message = Message(DELIVERY, Channel.email, "to@example.com", Email("Hi", text="Hello"), metadata=metadata)
    _, vendor = await anymail.send("postmark", CONFIG, message, {"status": 200, "body": '{"MessageID": "1"}'})
    body = json.loads(vendor.requests[0].body)
    assert body["Metadata"] == {"tidings_delivery": anymail.KEY, **{f"n{i}": "v" for i in range(9)}}
    assert "MessageStream" not in body


# --- events -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden.cases("postmark/anymail_callbacks_golden.json"))
async def test_event_is_what_anymail_makes_of_it(case: Any) -> None:
    for request in case["requests"]:
        if "exception" in request:
            with pytest.raises(ReceiptMalformed):
                await receive(request["body"].encode())
            continue
        raw = json.loads(request["body"])
        (report,) = await receive(request["body"].encode())
        (theirs,) = case["events"]
        assert report.kind is anymail.KINDS[theirs["event_type"]]
        assert report.address == theirs["recipient"]
        assert report.at == datetime.fromisoformat(theirs["timestamp"])
        assert report.provider_id == theirs["message_id"]
        assert report.event_id == theirs["event_id"]
        assert report.url == theirs["click_url"]
        assert report.reason is anymail.REASONS.get(theirs["reject_reason"])
        assert {**raw, "Content": None} == {**report.detail, "Content": None}
        assert "Content" not in report.detail


@pytest.mark.parametrize("case", golden.cases("postmark/symfony_callbacks_golden.json"))
async def test_event_is_what_symfony_makes_of_it(case: Any) -> None:
    raw = case["payload"]
    (report,) = await receive(json.dumps(raw).encode())
    (theirs,) = case["expected"]
    kinds = {"bounce": EventKind.failed, "delivered": EventKind.delivered, "spam": EventKind.complained}
    if theirs["name"] == "unsubscribe":
        # Symfony takes every change for one that the recipient asked for; this one says that the address bounced.
        assert raw["SuppressionReason"] == "HardBounce"
        assert (report.kind, report.reason) == (EventKind.failed, Reason.bounced)
    else:
        assert report.kind is kinds[theirs["name"]]
    assert report.provider_id == theirs["id"]
    assert report.address == theirs["recipient"]
    if "date" in theirs:
        assert report.at == datetime.fromisoformat(theirs["date"])


async def test_our_key_comes_back() -> None:
    (report,) = await receive(
        json.dumps({"RecordType": "Delivery", "Metadata": {"tidings_delivery": anymail.KEY}}).encode()
    )
    assert report.key == anymail.KEY


@pytest.mark.parametrize(
    ("type_", "details", "expected"),
    [
        ("HardBounce", "", (EventKind.failed, Reason.bounced)),
        ("HardBounce", "smtp;550 5.1.1 unknown", (EventKind.failed, Reason.bounced)),
        ("HardBounce", "smtp;550 5.7.1 not from you", (EventKind.failed, Reason.blocked)),
        ("Transient", "", (EventKind.retrying, None)),
        ("Transient", "smtp;451 4.7.1 greylisted", (EventKind.retrying, Reason.greylisted)),
        ("DnsError", "", (EventKind.retrying, None)),
        ("Unsubscribe", "", (EventKind.unsubscribed, None)),
        ("SpamNotification", "smtp;550 5.1.1 x", (EventKind.failed, Reason.content_rejected)),
        ("Unknown", "", (EventKind.failed, Reason.rejected)),
        ("SoftBounce", "", (EventKind.failed, Reason.mailbox_full)),
        ("SoftBounce", "smtp;552 5.3.4 too big", (EventKind.failed, Reason.too_large)),
        ("VirusNotification", "", (EventKind.failed, Reason.content_rejected)),
        ("ChallengeVerification", "", (EventKind.retrying, None)),
        ("BadEmailAddress", "", (EventKind.failed, Reason.invalid_address)),
        ("SpamComplaint", "", (EventKind.complained, Reason.complained)),
        ("ManuallyDeactivated", "", (EventKind.failed, Reason.suppressed)),
        ("Unconfirmed", "", (EventKind.failed, Reason.rejected)),
        ("Blocked", "", (EventKind.failed, Reason.blocked)),
        ("SMTPApiError", "", (EventKind.failed, Reason.rejected)),
        ("DMARCPolicy", "", (EventKind.failed, Reason.blocked)),
        ("TemplateRenderingFailed", "", (EventKind.failed, Reason.render_failed)),
    ],
)
def test_type_of_bounce(type_: str, details: str, expected: tuple[EventKind, Reason | None]) -> None:
    report = to_report("Bounce", {"RecordType": "Bounce", "Type": type_, "Details": details})
    assert report is not None
    assert (report.kind, report.reason) == expected


@pytest.mark.parametrize(
    "event",
    [
        *({"RecordType": "Bounce", "Type": type_} for type_ in ("AutoResponder", "Subscribe", "AddressChange", "New")),
        {"RecordType": "Bounce"},
        {"RecordType": "SubscriptionChange", "SuppressSending": False, "SuppressionReason": None},
        {"RecordType": "SubscriptionChange", "SuppressSending": True, "SuppressionReason": "New"},
        {"RecordType": "New"},
    ],
)
async def test_what_is_no_fate_of_a_mail_is_ignored(event: dict[str, Any]) -> None:
    assert await receive(json.dumps(event).encode()) == ()


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{}", b"[" * 100_000, b'{"RecordType": 1.5}', b"\xff"])
async def test_nonsense_is_malformed(body: bytes) -> None:
    with pytest.raises(ReceiptMalformed):
        await receive(body)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner))


@given(
    st.dictionaries(
        st.sampled_from(["ID", "Type", "MessageID", "Recipient", "Email", "BouncedAt", "Metadata", "SuppressSending"]),
        JSON,
    )
)
def test_no_event_breaks_the_reading(fields: dict[str, Any]) -> None:
    for record in ("Delivery", "Bounce", "SpamComplaint", "Open", "Click", "SubscriptionChange"):
        to_report(record, {"RecordType": record, **fields})
