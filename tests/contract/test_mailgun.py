"""Mailgun against what Mailgun and others published, and what its events mean beyond that."""

from __future__ import annotations

import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contract import anymail, golden
from tests.contract.forms import parse_form
from tests.contract.golden import NotOurs
from tests.contract.provider_case import DELIVERY
from tests.contract.servers import HttpRequest
from tidings.errors import Invalid
from tidings.model.messages import Attachment, Email, Message, Rejected, Sent
from tidings.model.words import Channel, EventKind, Reason
from tidings.providers.mail_api import parse_parts
from tidings.providers.mailgun import to_fields, to_form_data, to_report
from tidings.providers.port import RawRequest, ReceiptMalformed, ReceiptRefused, Report
from tidings.providers.registry import parse_config

OPENAPI = "mailgun/openapi_mailgun_trimmed.json"
SIGNING_KEY = "TEST_WEBHOOK_SIGNING_KEY"
CONFIG = {
    "api_key": "test_api_key",
    "domain": "example.com",
    "from_address": "from@example.com",
    "webhook_signing_key": SIGNING_KEY,
}
NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)

KINDS = {
    "accepted": EventKind.sent,
    "delivered": EventKind.delivered,
    "failed": EventKind.failed,
    "rejected": EventKind.failed,
    "opened": EventKind.opened,
    "clicked": EventKind.clicked,
    "unsubscribed": EventKind.unsubscribed,
    "complained": EventKind.complained,
}


def sign(event: Any, at: datetime = NOW, key: str = SIGNING_KEY) -> bytes:
    timestamp, token = str(int(at.timestamp())), "0123456789abcdef"
    signature = hmac.new(key.encode(), f"{timestamp}{token}".encode(), "sha256").hexdigest()
    signed = {"timestamp": timestamp, "token": token, "signature": signature}
    return json.dumps({"signature": signed, "event-data": event}).encode()


async def receive(body: bytes, now: datetime = NOW, **config: Any) -> tuple[Report, ...]:
    request = RawRequest(
        "POST", "https://tidings.example/callbacks/mailgun", {"content-type": "application/json"}, body
    )
    async with anymail.provider("mailgun", {**CONFIG, **config}) as made:
        return (await made.receive(request, now)).reports


# --- sending ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden.cases("mailgun/anymail_send_golden.json"))
async def test_request_is_what_anymail_sends(case: Any) -> None:
    for sent, call in anymail.pair_calls(case):
        # Anymail takes the domain from the sender where none is configured; ours always configures it.
        domain = "example.com"
        if call is not None:
            version, domain, *rest = unquote(urlsplit(call["url"]).path.removeprefix("/")).split("/")
            assert (version, rest[-1]) == ("v3", "messages")
        config = {**CONFIG, "domain": domain}
        for message in anymail.to_messages(sent):
            result, vendor = await anymail.send("mailgun", config, message, case["mock_response"])
            anymail.check_taken(result, sent, message)
            if isinstance(result, Sent):
                assert f"<{result.provider_id}>" == sent["anymail_status"]["message_id"]
            if call is None:
                assert vendor.requests == []
                continue
            (request,) = vendor.requests
            assert request.target == f"/v3/{domain.encode('idna').decode()}/messages"
            ours = parse_form(request).fields
            check_form(ours)
            assert ours.pop("v:tidings_delivery") == [anymail.KEY]
            assert ours == normalise_theirs(call["data"], message)


def normalise_theirs(data: Any, message: Message) -> dict[str, list[str]]:
    """For one recipient, with the values that Mailgun would put in for it."""
    theirs = {name: value if isinstance(value, list) else [value] for name, value in data.items()}
    (theirs["to"],) = ([message.to] for to in theirs["to"] if message.to in to)
    (variables,) = theirs.pop("recipient-variables", ["{}"])
    for name, value in json.loads(variables).get(message.to, {}).items():
        for field, texts in theirs.items():
            theirs[field] = [text.replace(f"%recipient.{name}%", str(value)) for text in texts]
    return {name: values for name, values in theirs.items() if values != [""]}


def check_form(fields: dict[str, list[str]]) -> None:
    """Against Mailgun's own description: there, what may be repeated is an array."""
    repeated = ("to", "cc", "bcc", "o:tag")
    body = {name: values if name in repeated else values[0] for name, values in fields.items()}
    path = "/v3/{domain_name}/messages"
    golden.check_body(OPENAPI, path, body, content_type="multipart/form-data")


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
    message = Message(
        DELIVERY,
        Channel.email,
        "to@example.com",
        email,
        metadata=(("order", "1"),),
        expires_at=NOW + timedelta(days=3),
    )
    mock = {"status": 200, "body": '{"id": "<1@example.com>"}'}
    result, vendor = await anymail.send("mailgun", CONFIG, message, mock)
    assert result == Sent("1@example.com")
    fields = parse_form(vendor.requests[0]).fields
    check_form(fields)
    assert fields["o:deliver-within"] == ["24h0m"]


def test_a_time_to_live_too_short_for_mailgun_is_not_said() -> None:
    message = Message(
        DELIVERY,
        Channel.email,
        "to@example.com",
        Email("Hi", text="Hello"),
        expires_at=NOW + timedelta(minutes=4),
    )
    parts = parse_parts(message, "from@example.com")
    assert not isinstance(parts, Rejected)
    assert "o:deliver-within" not in [field.name for field in to_fields(message, parts, anymail.KEY, NOW)]


@given(
    st.text(max_size=30),
    st.binary(max_size=200),
    st.text(min_size=1, max_size=20).filter(lambda name: not set(name) & set("\r\n\\/\0;")),
)
def test_files_and_texts_come_through_the_form_unchanged(text: str, content: bytes, name: str) -> None:
    email = Email("Hi", text=text, attachments=(Attachment("a.bin", "application/x-a", content),))
    message = Message(DELIVERY, Channel.email, "to@example.com", email, metadata=((name, text),))
    parts = parse_parts(message, "from@example.com")
    assert not isinstance(parts, Rejected)
    boundary = "0123456789abcdef"
    body = to_form_data(to_fields(message, parts, anymail.KEY, NOW), boundary)
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    form = parse_form(HttpRequest("POST", "/", headers, body))
    assert form.fields["text"] == [text]
    assert form.files == [("attachment", "a.bin", "application/x-a", content)]


@pytest.mark.parametrize("domain", ["", "a/b", "example.com # oops", "example.com%2Finvalid", "-", "a\r\nb.example"])
def test_a_domain_that_could_lead_elsewhere_is_refused(domain: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_config("mailgun", {**CONFIG, "domain": domain})
    assert [error.pointer for error in caught.value.errors] == ["/config/domain"]


# --- signatures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden.cases("mailgun/signature_vectors.json"))
async def test_published_signature(case: Any) -> None:
    signature = {name: case[name] for name in ("timestamp", "token", "signature")}
    body = json.dumps({"signature": signature, "event-data": {"event": "accepted"}}).encode()
    now = datetime.fromtimestamp(int(case["timestamp"]), UTC)
    if case["valid"]:
        (report,) = await receive(body, now, webhook_signing_key=case["signing_key"])
        assert report.event_id == case["token"]
        with pytest.raises(ReceiptRefused, match="too old"):
            await receive(body, now + timedelta(hours=10), webhook_signing_key=case["signing_key"])
    else:
        with pytest.raises(ReceiptRefused):
            await receive(body, now, webhook_signing_key=case["signing_key"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"[" * 100_000,
        b'{"signature": 1}',
        b'{"signature": {"timestamp": 1, "token": null, "signature": []}}',
        b'{"signature": {"timestamp": "\\ud800", "token": "a", "signature": "b"}}',
        b'{"signature": {"timestamp": "1", "token": "a", "signature": "\xc3\xbc"}}',
        sign({"event": "delivered"}, key="another"),
        sign({"event": "delivered"}, at=NOW - timedelta(hours=10)),
        sign({"event": "delivered"}, at=NOW + timedelta(minutes=6)),
    ],
)
async def test_receipt_without_a_good_signature_is_refused(body: bytes) -> None:
    with pytest.raises(ReceiptRefused):
        await receive(body)


async def test_account_without_a_signing_key_believes_nothing() -> None:
    with pytest.raises(ReceiptRefused, match="webhook_signing_key"):
        await receive(sign({"event": "delivered"}), webhook_signing_key=None)


@pytest.mark.parametrize("event", [None, [], "text", 1])
async def test_signed_nonsense_is_malformed(event: Any) -> None:
    with pytest.raises(ReceiptMalformed):
        await receive(sign(event))


# --- events -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden.cases("mailgun/anymail_callbacks_golden.json"))
async def test_event_is_what_anymail_makes_of_it(case: Any) -> None:
    (request,) = case["requests"]
    if not request["body"].startswith("{"):
        raise NotOurs("a form, as Mailgun posted it before 2018")
    payload = json.loads(request["body"])
    raw = payload["event-data"]
    now = datetime.fromtimestamp(int(payload["signature"]["timestamp"]), UTC)
    (report,) = await receive(request["body"].encode(), now)
    (theirs,) = case["events"]
    assert report.kind is anymail.KINDS[theirs["event_type"]]
    assert report.address == theirs["recipient"]
    assert report.at == (datetime.fromisoformat(theirs["timestamp"]) if theirs["timestamp"] else None)
    assert report.provider_id == (theirs["message_id"].strip("<>") if theirs["message_id"] else None)
    # Anymail takes the callback's token. The event's own id is the same when Mailgun posts the event once more.
    assert report.event_id == raw.get("id", theirs["event_id"])
    assert report.url == theirs["click_url"]
    if theirs["reject_reason"] in anymail.REASONS:
        assert report.reason is anymail.REASONS[theirs["reject_reason"]]
    elif report.kind is EventKind.failed:
        assert report.reason is Reason.rejected
    assert "storage" not in report.detail
    assert set(raw) - {"storage"} == set(report.detail)


@pytest.mark.parametrize("case", golden.cases("mailgun/symfony_callbacks_golden.json"))
async def test_event_is_what_symfony_makes_of_it(case: Any) -> None:
    raw = case["payload"]["event-data"]
    (report,) = await receive(sign(raw))
    (theirs,) = case["expected"]
    kinds = {
        "bounce": EventKind.failed,
        "dropped": EventKind.failed,
        "delivered": EventKind.delivered,
        "open": EventKind.opened,
        "click": EventKind.clicked,
        "spam": EventKind.complained,
        "unsubscribe": EventKind.unsubscribed,
    }
    assert report.kind is kinds[theirs["name"]]
    assert report.event_id == theirs["id"]
    assert report.address == theirs["recipient"]
    assert report.at == datetime.fromtimestamp(float(theirs["date"]), UTC)
    assert report.provider_id == raw["message"]["headers"]["message-id"]
    assert report.url == (raw.get("url") if theirs["name"] == "click" else None)
    assert report.reason is {"bounce": Reason.bounced, "dropped": Reason.bounced, "spam": Reason.complained}.get(
        theirs["name"]
    )


@pytest.mark.parametrize("case", golden.cases("mailgun/event_samples_docs.json"))
async def test_event_of_the_documentation(case: Any) -> None:
    raw = case["payload"]
    reports = await receive(sign(raw))
    kind = KINDS.get(case["event"])
    if kind is None:
        assert case["event"] in ("stored", "unknown_event")
        assert reports == ()
        return
    (report,) = reports
    if raw.get("severity") == "temporary":
        assert (report.kind, report.reason) == (EventKind.retrying, None)
    else:
        assert report.kind is kind
        assert report.reason is (Reason.bounced if kind is EventKind.failed else None)
    assert report.at == datetime.fromtimestamp(float(raw["timestamp"]), UTC)
    assert report.address == raw.get("recipient")
    assert report.event_id == raw.get("id", "0123456789abcdef")
    assert report.provider_id == raw.get("message", {}).get("headers", {}).get("message-id")


async def test_our_key_comes_back() -> None:
    variables = {"tidings_delivery": anymail.KEY, "order": "1"}
    (report,) = await receive(sign({"event": "delivered", "user-variables": variables}))
    assert report.key == anymail.KEY


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"reason": "bounce", "delivery-status": {"code": 550, "message": "5.1.1 unknown"}}, Reason.bounced),
        ({"reason": "bounce", "delivery-status": {"code": 552, "message": "5.2.2 full"}}, Reason.mailbox_full),
        ({"reason": "bounce"}, Reason.bounced),
        ({"reason": "suppress-complaint", "delivery-status": {"code": 607}}, Reason.complained),
        ({"reason": "suppress-unsubscribe", "delivery-status": {"code": 606}}, Reason.opted_out),
        ({"reason": "espblock", "delivery-status": {"code": 550}}, Reason.blocked),
        ({"reason": "old", "delivery-status": {"code": 602}}, Reason.attempts_exhausted),
        ({"reason": "generic", "delivery-status": {"code": 498, "message": "No MX for example.com"}}, Reason.bounced),
        ({"reason": "generic", "delivery-status": {"code": 554, "message": "5.7.1 not from you"}}, Reason.blocked),
        ({"reason": "generic"}, Reason.rejected),
        ({}, Reason.rejected),
    ],
)
def test_reason_of_a_permanent_failure(event: dict[str, Any], reason: Reason) -> None:
    report = to_report({"event": "failed", "severity": "permanent", **event}, None)
    assert report is not None
    assert (report.kind, report.reason) == (EventKind.failed, reason)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({"code": 450, "message": "4.2.2 over quota"}, Reason.mailbox_full),
        ({"code": 451, "message": "4.7.1 greylisted"}, Reason.greylisted),
        ({"code": 499, "message": "cannot connect"}, None),
        (None, None),
    ],
)
def test_reason_of_a_delay(status: Any, reason: Reason | None) -> None:
    report = to_report({"event": "failed", "severity": "temporary", "delivery-status": status}, None)
    assert report is not None
    assert (report.kind, report.reason) == (EventKind.retrying, reason)


def test_opens_by_machines_are_marked() -> None:
    for info, machine in (({"bot": "apple"}, True), ({"bot": ""}, False), ({}, False), (None, False)):
        report = to_report({"event": "opened", "client-info": info}, None)
        assert report is not None
        assert report.machine is machine


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["code", "message", "headers", "to"]), inner),
)


@given(
    st.dictionaries(
        st.sampled_from(["id", "timestamp", "recipient", "reason", "severity", "url", "message", "delivery-status"]),
        JSON,
    )
)
def test_no_event_breaks_the_reading(fields: dict[str, Any]) -> None:
    for name in KINDS:
        to_report({"event": name, **fields}, None)
