"""Brevo against what others published, and what its events mean beyond that."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from email.header import decode_header, make_header
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract import anymail, golden
from tests.contract.provider_case import DELIVERY, NOW
from tidings.model.messages import Email, Message, Rejected, Sent
from tidings.model.words import Channel, EventKind, Reason
from tidings.providers.brevo import parse_message_id, to_report
from tidings.providers.port import RawRequest, ReceiptMalformed, Report

CONFIG = {"api_key": "test_api_key", "from_address": "from@example.com"}
TAKEN = {"status": 201, "body": {"messageId": "<1@smtp-relay.mailin.fr>"}}

NAMES = {
    "received": EventKind.sent,
    "deferred": EventKind.retrying,
    "dropped": EventKind.failed,
    "bounce": EventKind.failed,
    "open": EventKind.opened,
    "spam": EventKind.complained,
}
"""Symfony's words for events."""


async def receive(body: bytes) -> tuple[Report, ...]:
    async with anymail.provider("brevo", CONFIG) as made:
        return (await made.receive(RawRequest("POST", "https://tidings.example/", {}, body), NOW)).reports


# --- sending ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden.cases("brevo/anymail_send_golden.json"))
async def test_request_is_what_anymail_sends(case: Any) -> None:
    for sent, call in anymail.pair_calls(case):
        expected = call["json_body"] if call is not None else {}
        given_files = sent["message"].get("attachments", ())
        files = [
            (file["mimetype"], base64.b64decode(theirs["content"]))
            for file, theirs in zip(given_files, expected.get("attachment", ()), strict=call is not None)
        ]
        headers = {name: str(value) for name, value in sent["message"].get("extra_headers", {}).items()}
        whole = {**sent, "message": {"subject": "", **sent["message"], "extra_headers": headers}}
        for message in anymail.to_messages(whole, files):
            mock = case["mock_response"]
            if "messageIds" in str(mock["body"]):  # of a batch, where we send one by one
                id_ = sent["anymail_status"]["recipients"][message.to]["message_id"]
                mock = {"status": 201, "body": {"messageId": id_}}
            result, vendor = await anymail.send("brevo", CONFIG, message, mock)
            anymail.check_taken(result, sent, message)
            if call is None:
                assert vendor.requests == []
                continue
            (request,) = vendor.requests
            assert request.target == "/v3/smtp/email"
            assert request.headers["api-key"] == call["headers"]["api-key"]
            assert normalise_ours(json.loads(request.body)) == normalise_theirs(expected, message)


def normalise_ours(body: dict[str, Any]) -> dict[str, Any]:
    """Without what only we add."""
    assert body["headers"].pop("idempotencyKey") == str(DELIVERY)
    custom = json.loads(body["headers"].pop("X-Mailin-custom"))
    assert custom.pop("tidings_delivery") == anymail.KEY
    if custom:
        body["headers"]["X-Mailin-custom"] = custom
    if not body["headers"]:
        del body["headers"]
    return decode_names(body)


def normalise_theirs(body: dict[str, Any], message: Message) -> dict[str, Any]:
    """For one recipient, whose name our model does not have; its version of a batch, if it is one."""
    body = json.loads(json.dumps(body))
    versions = body.pop("messageVersions", [])
    version: dict[str, Any] = next((v for v in versions if v["to"][0]["email"] == message.to), {})
    headers = {**body.pop("headers", {}), **version.get("headers", {})}
    headers.pop("Message-ID", None)
    if "X-Mailin-custom" in headers:
        headers["X-Mailin-custom"] = {n: str(v) for n, v in json.loads(headers["X-Mailin-custom"]).items()}
    if headers:
        body["headers"] = headers
    return decode_names({"subject": "", **body, "to": [{"email": message.to}]})


def decode_names(body: dict[str, Any]) -> dict[str, Any]:
    """Encoded words can be spelled in two ways."""
    for mailbox in (body["sender"], body.get("replyTo", {}), *body.get("cc", ()), *body.get("bcc", ())):
        if "name" in mailbox:
            mailbox["name"] = str(make_header(decode_header(mailbox["name"])))
    return body


@pytest.mark.parametrize(
    "headers", [(("X-A", "Grüße"),), (("X-A", "1"), ("x-a", "2")), (("X-Mailin-Custom", "{}"),), (("Sender", "a"),)]
)
async def test_header_fields_that_would_not_arrive_are_refused(headers: tuple[tuple[str, str], ...]) -> None:
    message = Message(DELIVERY, Channel.email, "to@example.com", Email("Hi", text="Hello", headers=headers))
    result, vendor = await anymail.send("brevo", CONFIG, message, TAKEN)
    assert isinstance(result, Rejected)
    assert headers[0][0].lower() in str(result.detail).lower()
    assert vendor.connections == 0


async def test_the_id_has_no_brackets() -> None:
    message = Message(DELIVERY, Channel.email, "to@example.com", Email("Hi", text="Hello"))
    result, _ = await anymail.send("brevo", CONFIG, message, TAKEN)
    assert result == Sent("1@smtp-relay.mailin.fr")
    assert parse_message_id("1@smtp-relay.mailin.fr") == "1@smtp-relay.mailin.fr"
    assert parse_message_id("<>") is None


async def test_a_repetition_is_what_was_sent_before() -> None:
    message = Message(DELIVERY, Channel.email, "to@example.com", Email("Hi", text="Hello"))
    mock = {"status": 400, "body": {"code": "duplicate_parameter", "message": "idempotencyKey was used"}}
    result, _ = await anymail.send("brevo", CONFIG, message, mock)
    assert isinstance(result, Sent)
    assert result.provider_id is None
    assert "earlier attempt" in str(result.detail)


# --- events -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden.cases("brevo/anymail_callbacks_golden.json"))
async def test_event_is_what_anymail_makes_of_it(case: Any) -> None:
    (request,) = case["requests"]
    raw = json.loads(request["body"])
    (report,) = await receive(request["body"].encode())
    (theirs,) = case["events"]
    assert report.kind is anymail.KINDS[theirs["event_type"]]
    assert report.provider_id == theirs["message_id"].strip("<>")
    assert report.address == theirs["recipient"]
    assert report.url == theirs["click_url"]
    assert report.machine is ("proxy" in raw["event"])
    if theirs["timestamp"] is not None:
        with golden.may_differ():
            assert report.at == datetime.fromisoformat(theirs["timestamp"])
    if theirs["reject_reason"] in anymail.REASONS and raw["event"] != "soft_bounce":
        assert report.reason is anymail.REASONS[theirs["reject_reason"]]


@pytest.mark.parametrize("case", golden.cases("brevo/symfony_callbacks_golden.json"))
async def test_event_is_what_symfony_makes_of_it(case: Any) -> None:
    raw = case["payload"]
    (report,) = await receive(json.dumps(raw).encode())
    (theirs,) = case["expected"]
    assert report.kind is NAMES[theirs["name"]]
    assert report.provider_id == theirs["id"].strip("<>")
    assert report.address == theirs["recipient"]
    assert report.at is not None
    # Symfony takes `ts_event`; we take the finer `ts_epoch`, which one of Brevo's samples has half a minute earlier.
    assert abs(report.at - datetime.fromtimestamp(int(theirs["date"]), UTC)).total_seconds() < 60
    assert report.machine is (raw["event"] == "proxy_open")
    assert report.key is None


MAIL = {
    "message-id": "<1@smtp-relay.mailin.fr>",
    "email": "a@example.com",
    "ts_epoch": 1520363423000,
    "subject": "secret",
}


@pytest.mark.parametrize(
    ("fields", "kind", "reason"),
    [
        ({"event": "hard_bounce", "reason": "550 5.1.1 unknown"}, EventKind.failed, Reason.bounced),
        ({"event": "soft_bounce", "reason": "452 4.2.2 mailbox full"}, EventKind.failed, Reason.mailbox_full),
        ({"event": "soft_bounce", "reason": "550 5.1.1 unknown"}, EventKind.failed, Reason.rejected),
        ({"event": "soft_bounce", "reason": "server is down"}, EventKind.failed, Reason.rejected),
        ({"event": "soft_bounce"}, EventKind.failed, Reason.rejected),
        ({"event": "deferred", "reason": "452 4.2.2 mailbox full"}, EventKind.retrying, Reason.mailbox_full),
        ({"event": "deferred", "reason": "spam"}, EventKind.retrying, Reason.content_rejected),
        ({"event": "deferred", "reason": "server is down"}, EventKind.retrying, None),
        ({"event": "invalid_email"}, EventKind.failed, Reason.invalid_address),
        ({"event": "blocked", "reason": "blocked : due to blacklist user"}, EventKind.failed, Reason.suppressed),
        ({"event": "error"}, EventKind.failed, Reason.provider_error),
        ({"event": "complaint"}, EventKind.complained, Reason.complained),
        ({"event": "click", "link": "https://example.com/"}, EventKind.clicked, None),
        ({"event": "unsubscribed"}, EventKind.unsubscribed, None),
    ],
)
def test_meaning(fields: dict[str, Any], kind: EventKind, reason: Reason | None) -> None:
    report = to_report({**MAIL, **fields})
    assert report is not None
    assert (report.kind, report.reason) == (kind, reason)
    assert report.url == fields.get("link")
    assert "secret" not in json.dumps(report.detail)


async def test_batches_and_unknown_events() -> None:
    events = [{**MAIL, "event": "delivered"}, {**MAIL, "event": "list_addition"}, {"event": "opened"}, {}]
    (report,) = await receive(json.dumps(events).encode())
    assert report.kind is EventKind.delivered


@pytest.mark.parametrize("body", [b"", b"null", b"1", b"[1]", b"\xff", b"[" * 100_000])
async def test_nonsense_is_malformed(body: bytes) -> None:
    with pytest.raises(ReceiptMalformed):
        await receive(body)


@pytest.mark.parametrize(
    ("custom", "key"),
    [
        ('{"tidings_delivery":"dlv_1","order":"A-1"}', "dlv_1"),
        ("some_custom_header", None),
        ("{}", None),
        ("[" * 100_000, None),
        (None, None),
        (7, None),
    ],
)
def test_key(custom: Any, key: str | None) -> None:
    report = to_report({**MAIL, "event": "delivered", "X-Mailin-custom": custom})
    assert report is not None
    assert report.key == key


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner))
FIELDS = st.sampled_from(["message-id", "email", "reason", "link", "ts", "ts_event", "ts_epoch", "X-Mailin-custom"])


@settings(max_examples=50)
@given(st.dictionaries(FIELDS, JSON))
def test_no_event_breaks_the_reading(fields: dict[str, Any]) -> None:
    for name in ("request", "soft_bounce", "deferred", "click", "unique_proxy_open"):
        to_report({**MAIL, "event": name, **fields})
