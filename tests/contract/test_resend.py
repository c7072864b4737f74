"""Resend against its own description and what others published, and what its events mean beyond that."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from tests.contract import anymail, golden
from tests.contract.provider_case import DELIVERY, NOW
from tidings.errors import Invalid
from tidings.model.messages import Attachment, Email, Message, Rejected, Sent
from tidings.model.words import Channel, EventKind, Reason
from tidings.providers.port import RawRequest, ReceiptMalformed, ReceiptRefused, Report
from tidings.providers.registry import parse_config
from tidings.providers.resend import list_reports
from tidings.providers.webhook import parse_secret, sign

OPENAPI = "resend/openapi_resend_emails_trimmed.json"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
CONFIG = {"api_key": "test_api_key", "from_address": "from@example.com", "webhook_secret": SECRET}
EVENT_ID = "msg_2W2D3qXLS5fOaPja1GDg7rF2CwB"


def callback(event: Any, at: datetime = NOW, names: str = "svix") -> RawRequest:
    body = event if isinstance(event, bytes) else json.dumps(event).encode()
    timestamp = str(int(at.timestamp()))
    headers = {
        f"{names}-id": EVENT_ID,
        f"{names}-timestamp": timestamp,
        f"{names}-signature": sign((parse_secret(SecretStr(SECRET)),), EVENT_ID, timestamp, body),
    }
    return RawRequest("POST", "https://tidings.example/callbacks/shop/resend/main", headers, body)


async def receive(request: RawRequest, now: datetime = NOW, **config: Any) -> tuple[Report, ...]:
    async with anymail.provider("resend", {**CONFIG, **config}) as made:
        return (await made.receive(request, now)).reports


# --- sending ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden.cases("resend/anymail_send_golden.json"))
async def test_request_is_what_anymail_sends(case: Any) -> None:
    for sent, call in anymail.pair_calls(case):
        body = call["json_body"] if call is not None else {}
        listed = body if isinstance(body, list) else [body]  # one request, or a batch of them
        files = [(f["content_type"], base64.b64decode(f["content"])) for f in listed[0].get("attachments", ())]
        whole = {**sent, "message": {"subject": "", "body": "", **sent["message"]}}
        for message in anymail.to_messages(whole, files):
            mock = case["mock_response"]
            if isinstance(body, list) and mock["status"] == 200:
                mock = {"status": 200, "body": {"id": sent["anymail_status"]["recipients"][message.to]["message_id"]}}
            result, vendor = await anymail.send("resend", CONFIG, message, mock)
            anymail.check_taken(result, sent, message)
            if isinstance(result, Sent):
                said = mock["body"] if isinstance(mock["body"], dict) else json.loads(mock["body"])
                assert result.provider_id == said["id"]
            if call is None:
                assert vendor.requests == []
                continue
            (request,) = vendor.requests
            assert request.target == "/emails"
            assert request.headers["authorization"] == call["headers"]["Authorization"]
            ours = json.loads(request.body)
            golden.check_body(OPENAPI, "/emails", ours)
            theirs = next(one for one in listed if len(listed) == 1 or message.to in one["to"][0])
            ours["tags"].sort(key=itemgetter("name"))
            assert ours == normalise_theirs(theirs, message)


def normalise_theirs(body: dict[str, Any], message: Message) -> dict[str, Any]:
    """For one recipient, whose name our model does not have; tags and metadata as tags, where Anymail has no place
    for them but header fields."""
    headers = dict(body.get("headers", {}))
    labels = json.loads(headers.pop("X-Tags", "[]"))
    names = ["tag" if n == 1 else f"tag_{n}" for n in range(1, len(labels) + 1)]
    pairs = {
        "tidings_delivery": anymail.KEY,
        **dict(zip(names, (label.replace(" ", "_") for label in labels), strict=True)),
        **{name: str(value) for name, value in json.loads(headers.pop("X-Metadata", "{}")).items()},
    }
    expected = {name: value for name, value in body.items() if name != "headers"}
    expected |= {"to": [message.to], "tags": [{"name": name, "value": value} for name, value in sorted(pairs.items())]}
    return {**expected, "headers": headers} if headers else expected


def message(email: Email) -> Message:
    return Message(DELIVERY, Channel.email, "to@example.com", email)


async def test_full_request_fits_the_official_description() -> None:
    email = Email(
        "Hi",
        text="Hello",
        html="<b>Hello</b>",
        reply_to="a@example.com",
        headers=(("X-A", "b"),),
        cc=("c@example.com",),
        bcc=("d@example.com",),
        attachments=(Attachment("a.png", "image/png", b"\x89PNG", "a"),),
        tags=("one", "two"),
    )
    result, vendor = await anymail.send("resend", CONFIG, message(email), {"status": 200, "body": {"id": "x-1"}})
    assert result == Sent("x-1")
    golden.check_body(OPENAPI, "/emails", json.loads(vendor.requests[0].body))


@pytest.mark.parametrize(
    "email",
    [
        Email("Hi", text="Hello", headers=(("X-A", "1"), ("x-a", "2"))),
        Email("Hi", text="Hello", cc=tuple(f"c{n}@example.com" for n in range(50))),
    ],
)
async def test_what_resend_does_not_take_is_refused_by_name(email: Email) -> None:
    result, vendor = await anymail.send("resend", CONFIG, message(email), {"status": 200, "body": {"id": "x-1"}})
    assert isinstance(result, Rejected)
    assert result.reason is Reason.unsupported
    assert vendor.connections == 0


# --- signatures -------------------------------------------------------------------------------------------------------

SENT = {
    "type": "email.sent",
    "created_at": "2026-11-22T09:59:59Z",
    "data": {"email_id": "e-1", "to": ["a@example.com"]},
}


@pytest.mark.parametrize("names", ["svix", "webhook"])
async def test_signed_events_are_believed(names: str) -> None:
    (report,) = await receive(callback(SENT, names=names))
    assert (report.kind, report.event_id) == (EventKind.sent, EVENT_ID)


async def test_published_vector() -> None:
    vector = golden.load("standard-webhooks/signature_vectors.json")["signing"]
    headers = {
        "svix-id": vector["id"],
        "svix-timestamp": str(vector["timestamp"]),
        "svix-signature": vector["expected"],
    }
    request = RawRequest("POST", "https://tidings.example/", headers, vector["payload"].encode())
    now = datetime.fromtimestamp(vector["timestamp"], UTC)
    with pytest.raises(ReceiptMalformed):  # signed, and no event
        await receive(request, now, webhook_secret=vector["secret"])
    with pytest.raises(ReceiptRefused):
        await receive(request, now + timedelta(minutes=6), webhook_secret=vector["secret"])


async def test_others_are_refused() -> None:
    good = callback(SENT)
    for headers in (
        {},
        {**good.headers, "svix-id": "msg_other"},
        {**good.headers, "svix-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="},
    ):
        with pytest.raises(ReceiptRefused):
            await receive(RawRequest("POST", good.url, headers, good.body))
    with pytest.raises(ReceiptRefused):
        await receive(RawRequest("POST", good.url, good.headers, good.body + b" "))
    for age in (timedelta(minutes=6), timedelta(minutes=-6)):
        with pytest.raises(ReceiptRefused):
            await receive(callback(SENT, NOW - age))
    with pytest.raises(ReceiptRefused, match="webhook_secret"):
        await receive(good, webhook_secret=None)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{}", b'{"data": []}', b"\xff", b"[" * 100_000])
async def test_signed_nonsense_is_malformed(body: bytes) -> None:
    with pytest.raises(ReceiptMalformed):
        await receive(callback(body))


@pytest.mark.parametrize("secret", ["", "whsec_x", "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbc="])
def test_signing_secret_is_checked_when_it_is_configured(secret: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_config("resend", {**CONFIG, "webhook_secret": secret})
    assert [error.pointer for error in caught.value.errors] == ["/config/webhook_secret"]


# --- events -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden.cases("resend/anymail_callbacks_golden.json"))
async def test_event_is_what_anymail_makes_of_it(case: Any) -> None:
    (request,) = case["requests"]
    reports = await receive(callback(request["body"].encode()))
    # Anymail tells of the first recipient only.
    (theirs,) = case["events"]
    report = reports[0]
    assert len(reports) == len(json.loads(request["body"])["data"]["to"])
    assert report.kind is anymail.KINDS[theirs["event_type"]]
    assert report.provider_id == theirs["message_id"]
    assert report.address == theirs["recipient"]
    assert report.at == datetime.fromisoformat(theirs["timestamp"])
    assert report.url == theirs["click_url"]
    assert report.key is None
    if theirs["reject_reason"] is not None:
        assert report.reason is anymail.REASONS[theirs["reject_reason"]]


@pytest.mark.parametrize("case", golden.cases("resend/symfony_callbacks_golden.json"))
async def test_event_is_what_symfony_makes_of_it(case: Any) -> None:
    (report,) = await receive(callback(case["payload"]))
    (theirs,) = case["expected"]
    assert (report.kind, theirs["name"]) == (EventKind.sent, "received")
    assert report.provider_id == theirs["id"]
    assert report.address == theirs["recipient"]
    assert report.at == datetime.fromisoformat(theirs["date"])


def event(name: str, **data: Any) -> dict[str, Any]:
    base = {
        "email_id": "e-1",
        "to": ["Ann <a@example.com>"],
        "subject": "secret",
        "headers": [{"name": "X", "value": "y"}],
    }
    return {"type": name, "created_at": "2026-11-22T09:59:59.000Z", "data": {**base, **data}}


def bounce(type_: str, sub_type: str, *said: str) -> dict[str, Any]:
    return event(
        "email.bounced", bounce={"type": type_, "subType": sub_type, "message": "…", "diagnosticCode": list(said)}
    )


NO_SUCH_USER = "smtp; 550 5.1.1 user unknown"


@pytest.mark.parametrize(
    ("raw", "kind", "reason"),
    [
        (bounce("Permanent", "General", NO_SUCH_USER), EventKind.failed, Reason.bounced),
        (bounce("Permanent", "NoEmail"), EventKind.failed, Reason.invalid_address),
        (bounce("Transient", "MailboxFull"), EventKind.failed, Reason.mailbox_full),
        (bounce("Transient", "MessageTooLarge"), EventKind.failed, Reason.too_large),
        (bounce("Transient", "ContentRejected"), EventKind.failed, Reason.content_rejected),
        (bounce("Transient", "AttachmentRejected"), EventKind.failed, Reason.content_rejected),
        (bounce("Transient", "General", "smtp; 452 4.2.2 full"), EventKind.failed, Reason.mailbox_full),
        (bounce("Transient", "General", NO_SUCH_USER), EventKind.failed, Reason.rejected),
        (bounce("Undetermined", "Undetermined", "smtp; 554 no"), EventKind.failed, Reason.rejected),
        (bounce("Transient", "General"), EventKind.retrying, None),  # somebody is away
        (event("email.suppressed", suppressed={"reason": "previous_bounce"}), EventKind.failed, Reason.bounced),
        (event("email.suppressed", suppressed={"reason": "previous_complaint"}), EventKind.failed, Reason.complained),
        (event("email.failed", failed={"reason": "reached_daily_quota"}), EventKind.failed, Reason.quota_exceeded),
        (event("email.failed", failed={"reason": "something new"}), EventKind.failed, Reason.rejected),
        (event("email.delivery_delayed"), EventKind.retrying, None),
        (event("email.complained"), EventKind.complained, Reason.complained),
        (event("email.clicked", click={"link": "https://example.com/"}), EventKind.clicked, None),
    ],
)
async def test_meaning(raw: dict[str, Any], kind: EventKind, reason: Reason | None) -> None:
    (report,) = await receive(callback(raw))
    assert (report.kind, report.reason, report.address) == (kind, reason, "a@example.com")
    assert report.url == ("https://example.com/" if kind is EventKind.clicked else None)
    assert report.event_id == EVENT_ID
    assert "secret" not in json.dumps(report.detail)


@pytest.mark.parametrize("name", ["email.scheduled", "email.received", "domain.created", "contact.updated", "", "new"])
async def test_other_kinds_of_events_are_ignored(name: str) -> None:
    assert await receive(callback(event(name))) == ()


@pytest.mark.parametrize("tags", [{"tidings_delivery": "dlv_1"}, [{"name": "tidings_delivery", "value": "dlv_1"}]])
async def test_our_key_comes_back_as_a_tag(tags: Any) -> None:
    (report,) = await receive(callback(event("email.delivered", tags=tags)))
    assert report.key == "dlv_1"


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner))
FIELDS = st.sampled_from(["to", "tags", "bounce", "click", "failed", "suppressed", "email_id"])


@settings(max_examples=50)
@given(st.dictionaries(FIELDS, JSON | st.dictionaries(st.text(), JSON)), JSON)
def test_no_event_breaks_the_reading(data: dict[str, Any], created_at: Any) -> None:
    for name in ("sent", "bounced", "failed", "suppressed", "complained", "clicked"):
        raw = {"type": f"email.{name}", "created_at": created_at, "data": {"email_id": "e-1", **data}}
        list(list_reports(raw, None))
