"""Amazon SES against its own description and what others published, and what its events mean beyond that."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from email import message_from_bytes, message_from_string, policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import getaddresses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract import anymail, golden
from tests.contract.golden import NotOurs
from tests.contract.provider_case import DELIVERY, NOW, FixedClock
from tests.contract.shapes import check_shape
from tests.contract.sns_peer import CERTIFICATE_URL, SUBSCRIBE_URL, TOPIC, Amazon, envelope, seal
from tidings.errors import Invalid
from tidings.model.messages import Attachment, Email, Message, Rejected, SendResult, Sent
from tidings.model.words import Channel, EventKind, Reason
from tidings.providers.aws import Envelope
from tidings.providers.guard import Guard
from tidings.providers.http import HttpAnswer
from tidings.providers.mime import MailRefused
from tidings.providers.port import RawRequest, ReceiptMalformed, ReceiptRefused, Receipts, Report, Surroundings
from tidings.providers.registry import create, parse_config
from tidings.providers.ses import list_reports

MODEL = "aws/sesv2_2019-09-27_trimmed.json"
CONFIG = {
    "region": "eu-central-1",
    "access_key_id": "AKIDEXAMPLE123456789",
    "secret_access_key": "secret",
    "from_address": "from@example.com",
}
TAKEN = {"status": 200, "body": {"MessageId": "0100017-abc-000000"}}


async def send(
    message: Message, mock: Mapping[str, Any] = TAKEN, *headers: str, **config: str
) -> tuple[SendResult, dict[str, Any]]:
    """The result, and the body that SES got, which fits Amazon's description if that is at hand; nothing if it got
    none."""
    result, vendor = await anymail.send("ses", {**CONFIG, **config}, message, mock, *headers)
    if not vendor.requests:
        return result, {}
    body = json.loads(vendor.requests[0].body)
    if golden.ROOT is not None:
        check_shape(MODEL, "SendEmailRequest", body)
    return result, body


# --- sending ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden.cases("aws/anymail_send_golden.json"))
async def test_request_says_what_anymail_sends(case: Any) -> None:
    """It always sends raw mails; ours are compared by what their recipient reads."""
    for sent, call in anymail.pair_calls({**case, "http_calls": case["aws_calls"]}):
        theirs = read_theirs(call["kwargs"]) if call is not None else {}
        files = [(file["type"], file["content"]) for file in theirs.get("files", ())]
        whole = {**sent, "message": {"subject": "", "body": "", **sent["message"]}}
        config = {}
        if name := whole["message"].get("esp_extra", {}).get("ConfigurationSetName"):  # a setting of an account here
            del whole["message"]["esp_extra"]
            config["configuration_set_name"] = name
        try:
            messages = anymail.to_messages(whole, files)
        except MailRefused:  # the recipient's address
            assert sent["exception"]
            continue
        for message in messages:
            result, body = await send(message, *to_mock(sent), **config)
            anymail.check_taken(result, sent, message)
            if isinstance(result, Sent):
                assert result.provider_id == sent["anymail_status"]["message_id"]
            if call is None:
                golden.check_taken(bool(body), False, body)
                continue
            assert body.get("ConfigurationSetName") == call["kwargs"].get("ConfigurationSetName")
            assert theirs["to"].pop(message.to) is not None
            ours = read_ours(body)
            assert ours.pop("to") == {message.to: ""}
            with golden.may_differ():
                assert ours == {name: value for name, value in theirs.items() if name != "to"}
        assert not theirs.get("to")


def to_mock(sent: Mapping[str, Any]) -> tuple[dict[str, Any], *tuple[str, ...]]:
    """What the case's SES answered, which the recording has in words only."""
    words = sent.get("exception_text", "")
    if "(MessageRejected)" in words:
        text = words.partition("operation: ")[2].partition("\n")[0]
        return {"status": 400, "body": {"message": text}}, "x-amzn-ErrorType: MessageRejected"
    if "{'wrong': 'format'}" in words:
        return ({"status": 200, "body": {"wrong": "format"}},)
    if "anymail_status" not in sent:
        raise NotOurs("anymail's session could not be opened, so there is no answer to compare")
    return ({"status": 200, "body": {"MessageId": sent["anymail_status"]["message_id"]}},)


def read_theirs(request: Mapping[str, Any]) -> dict[str, Any]:
    if "Content" not in request:
        raise NotOurs("a bulk request with a template")
    mail = message_from_string(request["Content"]["Raw"]["Data"], policy=policy.default)
    return read_mail(mail, request["Destination"])


def read_ours(request: Mapping[str, Any]) -> dict[str, Any]:
    tags = request["EmailTags"]
    assert tags[0] == {"Name": "tidings_delivery", "Value": anymail.KEY}
    content = request["Content"]
    if "Raw" in content:
        raw = base64.b64decode(content["Raw"]["Data"])
        assert raw.isascii()
        return read_mail(message_from_bytes(raw, policy=policy.default), request["Destination"])
    # As Amazon says that it renders it.
    simple = content["Simple"]
    mail = EmailMessage()
    mail["Subject"] = simple["Subject"]["Data"]
    found = read_mail(mail, request["Destination"])
    found["from"] = read_addresses(request["FromEmailAddress"])
    found["cc"] = read_addresses(", ".join(request["Destination"].get("CcAddresses", ())))
    found["reply_to"] = read_addresses(", ".join(request.get("ReplyToAddresses", ())))
    found["headers"] = {header["Name"]: header["Value"] for header in simple.get("Headers", ())}
    found["text"] = simple["Body"].get("Text", {}).get("Data")
    found["html"] = simple["Body"].get("Html", {}).get("Data")
    found["files"] = [
        {
            "name": file["FileName"],
            "type": file["ContentType"],
            "content": base64.b64decode(file["RawContent"]),
            "id": file.get("ContentId"),
        }
        for file in simple.get("Attachments", ())
    ]
    return found


def read_mail(mail: EmailMessage, destination: Mapping[str, list[str]]) -> dict[str, Any]:
    """What a recipient reads: fields, bodies, files; and who are the recipients."""
    files = []
    bodies: dict[str, str | None] = {"text": None, "html": None}
    for part in mail.walk():
        if part.is_multipart():
            continue
        kind = part.get_content_type()
        if part.get_content_disposition() is None and kind in ("text/plain", "text/html") and part.get_payload():
            bodies["text" if kind == "text/plain" else "html"] = part.get_content().replace("\r\n", "\n")
        elif part.get_content_disposition() is not None:
            content_id = part["Content-ID"]
            files.append(
                {
                    "name": part.get_filename(),
                    "type": part["Content-Type"],
                    "content": part.get_payload(decode=True),
                    "id": content_id.strip("<>") if content_id else None,
                }
            )
    raw = {name.lower(): value for name, value in mail.raw_items()}
    own = {"subject", "from", "to", "cc", "reply-to", "date", "message-id", "mime-version"}
    return {
        "subject": mail["Subject"],
        "from": read_addresses(raw.get("from")),
        "to": {address.rpartition("<")[2].rstrip(">"): "" for address in destination["ToAddresses"]},
        "cc": read_addresses(raw.get("cc")),
        "bcc": [address.rpartition("<")[2].rstrip(">") for address in destination.get("BccAddresses", ())],
        "reply_to": read_addresses(raw.get("reply-to")),
        "headers": {
            name: value for name, value in mail.items() if name.lower() not in own and not name.startswith("Content-")
        },
        "text": bodies["text"].rstrip("\n") if bodies["text"] else "" if bodies["html"] is None else None,
        "html": bodies["html"].rstrip("\n") if bodies["html"] else None,
        "files": files,
    }


def read_addresses(header: str | None) -> list[tuple[str, str]]:
    """Names and addresses. By the old parser: the new one keeps the space between two encoded words."""
    found = getaddresses([" ".join((header or "").splitlines())])
    return [(str(make_header(decode_header(name))), address) for name, address in found if address]


def email(**fields: Any) -> Message:
    return Message(DELIVERY, Channel.email, fields.pop("to", "ann@example.net"), Email("Hi", text="Hello", **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"headers": (("X-A", "Grüße"),)},
        {"headers": tuple((f"X-{n}", "1") for n in range(16))},
        {"headers": (("X-A", "x " * 498),)},
        {"headers": (("X-A", ""),)},
        {"headers": (("Comments", "1"), ("comments", "2"))},
        {"attachments": (Attachment("Rechnung für Zoë.pdf", "application/pdf", b"%PDF-"),)},
        {"attachments": (Attachment("a.bin", "application/" + "x" * 60 + "; name=" + "x" * 20, b"a"),)},
    ],
)
async def test_what_simple_content_cannot_say_goes_raw(fields: dict[str, Any]) -> None:
    result, body = await send(email(**fields, cc=("Zoë <zoe@example.com>",), bcc=("b@example.com",)))
    assert isinstance(result, Sent)
    assert set(body["Content"]) == {"Raw"}
    raw = base64.b64decode(body["Content"]["Raw"]["Data"])
    mail = message_from_bytes(raw, policy=policy.default)
    assert read_mail(mail, body["Destination"])["cc"] == [("Zoë", "zoe@example.com")]
    assert mail["Bcc"] is None
    names = [name for name, _ in mail.items() if name.startswith("X-") or name.lower() == "comments"]
    assert names == [name for name, _ in fields.get("headers", ())]
    assert body["Destination"] == {
        "ToAddresses": ["ann@example.net"],
        "CcAddresses": ["=?utf-8?b?Wm/Dqw==?= <zoe@example.com>"],
        "BccAddresses": ["b@example.com"],
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"headers": (("X-A", "1"),)},
        {"headers": tuple((f"X-{n}", "1") for n in range(15))},
        {"attachments": (Attachment("a.pdf", "application/pdf", b"%PDF-", content_id="not-inline-without-html"),)},
    ],
)
async def test_what_simple_content_can_say_goes_so(fields: dict[str, Any]) -> None:
    result, body = await send(email(**fields, from_="Zoë " * 30 + "<zoe@example.com>"))
    assert isinstance(result, Sent)
    assert set(body["Content"]) == {"Simple"}
    assert body["FromEmailAddress"].isascii()
    assert "\n" not in body["FromEmailAddress"]
    for file in body["Content"]["Simple"].get("Attachments", ()):
        assert file["ContentDisposition"] == "ATTACHMENT"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (email(to="zoë@example.com"), Reason.unsupported),
        (email(to="nobody"), Reason.invalid_address),
        (email(headers=(("X-A", "a\r\nBcc: b@example.com"),)), Reason.content_rejected),
        (email(headers=(("Bcc", "b@example.com"),)), Reason.content_rejected),
        (email(cc=("a@b, c@d",)), Reason.content_rejected),
        (email(attachments=(Attachment("", "text/plain", b""),)), Reason.content_rejected),
    ],
)
async def test_what_is_refused_before_anything_is_sent(message: Message, reason: Reason) -> None:
    result, body = await send(message)
    assert isinstance(result, Rejected)
    assert (result.reason, body) == (reason, {})


@pytest.mark.parametrize("topic", ["", "mail", "arn:aws:sqs:eu-central-1:123456789012:mail", f"{TOPIC} "])
def test_topic_is_checked_when_it_is_configured(topic: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_config("ses", {**CONFIG, "sns_topic_arn": topic})
    assert [error.pointer for error in caught.value.errors] == ["/config/sns_topic_arn"]


# --- receipts ---------------------------------------------------------------------------------------------------------


async def receive(
    body: bytes, amazon: Amazon | None = None, now: datetime = NOW, topic: str | None = TOPIC
) -> Receipts:
    surroundings = Surroundings(amazon or Amazon(), Guard(), FixedClock())
    provider = create("ses", parse_config("ses", {**CONFIG, "sns_topic_arn": topic}), surroundings)
    return await provider.receive(RawRequest("POST", "https://tidings.example/callbacks/shop/ses/main", {}, body), now)


async def read(event: Any) -> tuple[Report, ...]:
    return (await receive(seal(envelope(json.dumps(event), NOW)))).reports


@pytest.mark.parametrize("case", golden.cases("aws/anymail_callbacks_golden.json"))
async def test_callback_is_what_anymail_makes_of_it(case: Any) -> None:
    """The recorded signatures are placeholders or missing, so the notifications are signed anew here."""
    (request,) = case["requests"]
    fields = json.loads(request["body"])
    fields = {"TopicArn": TOPIC, "Timestamp": "2018-03-26T17:58:59.675Z", **fields, "SigningCertURL": CERTIFICATE_URL}
    now = datetime.fromisoformat(fields["Timestamp"]) + timedelta(minutes=1)
    amazon = Amazon()
    if "SubscribeURL" in fields:
        amazon.answers[fields["SubscribeURL"]] = HttpAnswer(500 if "failure" in case["id"] else 200, {}, b"")
    receipts = await receive(seal(fields), amazon, now, fields["TopicArn"])
    if fields["Type"] != "Notification":
        confirmed = ("GET", fields["SubscribeURL"]) in amazon.asked
        assert confirmed is (fields["Type"] == "SubscriptionConfirmation")
        assert receipts == Receipts(status=503 if "failure" in case["id"] else 200)
        return
    assert len(receipts.reports) == len(case["events"])
    raw = json.loads(fields["Message"])
    for report, theirs in zip(receipts.reports, case["events"], strict=True):
        assert report.kind is anymail.KINDS[theirs["event_type"]]
        assert report.provider_id == theirs["message_id"]
        assert report.address == theirs["recipient"]
        assert str(report.event_id).partition("/")[0] == theirs["event_id"]
        assert report.url == theirs["click_url"]
        if theirs["reject_reason"] is not None:
            assert report.reason is anymail.REASONS[theirs["reject_reason"]]
        # Anymail takes the notification's time; we take the event's own where it has one.
        own = raw.get(theirs["event_type"], raw.get(raw.get("notificationType", raw.get("eventType", "")).lower(), {}))
        stamp = raw["mail"].get("timestamp") if raw.get("eventType") == "Send" else own.get("timestamp")
        assert report.at == datetime.fromisoformat(stamp or theirs["timestamp"])


KINDS = {
    "Complaint": EventKind.complained,
    "Delivery": EventKind.delivered,
    "Send": EventKind.sent,
    "Open": EventKind.opened,
    "Click": EventKind.clicked,
    "DeliveryDelay": EventKind.retrying,
    "Bounce": EventKind.failed,
}


@pytest.mark.parametrize("case", golden.cases("aws/ses_event_samples_docs.json"))
async def test_event_of_the_developer_guide(case: Any) -> None:
    event = case["payload"]
    reports = await read(event)
    parts = {"DeliveryDelay": "deliveryDelay"}
    about = event[parts.get(case["kind"], case["kind"].lower())]
    listed = ("bouncedRecipients", "complainedRecipients", "delayedRecipients")
    named = [recipient["emailAddress"] for name in listed for recipient in about.get(name, ())]
    assert [report.address for report in reports] == (named or about.get("recipients") or event["mail"]["destination"])
    reason = {"Bounce": Reason.bounced, "Complaint": Reason.complained, "DeliveryDelay": Reason.connect_failed}
    for report in reports:
        assert report.kind is KINDS[case["kind"]]
        assert report.provider_id == event["mail"]["messageId"]
        assert report.at == datetime.fromisoformat(about.get("timestamp", event["mail"]["timestamp"]))
        assert report.reason is reason.get(case["kind"])
        assert report.url == about.get("link")
        assert "commonHeaders" not in json.dumps(report.detail)
    assert len({report.event_id for report in reports}) == len(reports)


BOUNCES = {
    ("Undetermined", "Undetermined"): Reason.rejected,
    ("Permanent", "General"): Reason.bounced,
    ("Permanent", "NoEmail"): Reason.invalid_address,
    ("Permanent", "Suppressed"): Reason.bounced,
    ("Permanent", "OnAccountSuppressionList"): Reason.bounced,
    ("Transient", "General"): Reason.rejected,
    ("Transient", "MailboxFull"): Reason.mailbox_full,
    ("Transient", "MessageTooLarge"): Reason.too_large,
    ("Transient", "ContentRejected"): Reason.content_rejected,
    ("Transient", "AttachmentRejected"): Reason.content_rejected,
}


def bounce(type_: str, sub_type: str, **recipient: str) -> dict[str, Any]:
    recipients = [{"emailAddress": "a@example.com", **recipient}]
    about = {"bounceType": type_, "bounceSubType": sub_type, "bouncedRecipients": recipients}
    return {"eventType": "Bounce", "bounce": about, "mail": {"messageId": "m-1", "destination": ["a@example.com"]}}


@pytest.mark.parametrize(
    "row",
    golden.cases(
        "aws/ses_bounce_types_table.json",
        lambda data: ((f"{row['bounceType']} {row['bounceSubType']}", row) for row in data["rows"]),
    ),
)
async def test_each_documented_bounce(row: dict[str, str]) -> None:
    (report,) = await read(bounce(row["bounceType"], row["bounceSubType"], action="failed", status="5.0.0"))
    assert report.kind is EventKind.failed
    assert report.reason is BOUNCES[row["bounceType"], row["bounceSubType"]]


@pytest.mark.parametrize(
    ("event", "kind", "reason"),
    [
        (bounce("Transient", "General"), EventKind.retrying, None),  # somebody is away
        (bounce("Transient", "General", diagnosticCode="smtp; 554 no"), EventKind.failed, Reason.rejected),
        (bounce("Permanent", "SomethingNew"), EventKind.failed, Reason.bounced),
        (bounce("Permanent", "UnsubscribedRecipient"), EventKind.failed, Reason.opted_out),
        (
            {
                "eventType": "Complaint",
                "complaint": {
                    "complaintSubType": "OnAccountSuppressionList",
                    "complainedRecipients": [{"emailAddress": "a@example.com"}],
                },
            },
            EventKind.failed,
            Reason.complained,
        ),
        ({"eventType": "Reject", "reject": {"reason": "Bad content"}}, EventKind.failed, Reason.content_rejected),
        ({"eventType": "Rendering Failure", "failure": {}}, EventKind.failed, Reason.rejected),
        (
            {"eventType": "Subscription", "subscription": {"newTopicPreferences": {"unsubscribeAll": True}}},
            EventKind.unsubscribed,
            None,
        ),
    ],
)
async def test_meaning(event: dict[str, Any], kind: EventKind, reason: Reason | None) -> None:
    (report,) = await read({"mail": {"messageId": "m-1", "destination": ["a@example.com"]}, **event})
    assert (report.kind, report.reason, report.address) == (kind, reason, "a@example.com")
    assert report.at is not None  # of the notification


async def test_our_key_comes_back_as_a_tag() -> None:
    mail = {"messageId": "m-1", "destination": ["a@example.com"], "tags": {"tidings_delivery": ["dlv_1"], "tag": ["x"]}}
    (report,) = await read({"eventType": "Send", "mail": mail, "send": {}})
    assert report.key == "dlv_1"


async def test_opens_of_a_mail_to_several_are_nobodys() -> None:
    mail = {"messageId": "m-1", "destination": ["a@example.com", "b@example.com"]}
    (report,) = await read({"eventType": "Open", "mail": mail, "open": {}})
    assert report.address is None


@pytest.mark.parametrize(
    "event",
    [
        {"notificationType": "Received"},
        {"notificationType": "AmazonSnsSubscriptionSucceeded", "message": "You have successfully subscribed"},
        {"eventType": "Something new", "mail": {"messageId": "m-1"}},
        {
            "eventType": "Complaint",
            "mail": {"messageId": "m-1"},
            "complaint": {"complaintFeedbackType": "not-spam", "complainedRecipients": [{"emailAddress": "a@b.c"}]},
        },
    ],
)
async def test_what_tells_nothing_is_ignored(event: dict[str, Any]) -> None:
    assert await read(event) == ()


async def test_texts_that_are_no_events() -> None:
    told = await receive(seal(envelope("Successfully validated SNS topic for Amazon SES event publishing.", NOW)))
    assert told == Receipts()
    for text in ("", "Hello world", "[]", "null", "[" * 100_000):
        with pytest.raises(ReceiptMalformed):
            await receive(seal(envelope(text, NOW)))


async def test_unsigned_events_are_refused() -> None:
    event = json.dumps(bounce("Permanent", "General"))
    for body in (event.encode(), seal(envelope(event, NOW)).replace(b"General", b"NoEmail")):
        with pytest.raises(ReceiptRefused):
            await receive(body)
    with pytest.raises(ReceiptRefused, match="sns_topic_arn"):
        await receive(seal(envelope(event, NOW)), topic=None)


async def test_subscribing() -> None:
    asks = {"Type": "SubscriptionConfirmation", "Token": "2", "SubscribeURL": SUBSCRIBE_URL}
    amazon = Amazon()
    assert await receive(seal(envelope("You have chosen …", NOW, **asks)), amazon) == Receipts()
    assert amazon.asked[-1] == ("GET", SUBSCRIBE_URL)
    amazon = Amazon()
    evil = {**asks, "SubscribeURL": "https://evil.example/?Action=ConfirmSubscription"}
    with pytest.raises(ReceiptRefused):
        await receive(seal(envelope("You have chosen …", NOW, **evil)), amazon)
    assert [url for _, url in amazon.asked] == [CERTIFICATE_URL]
    # Nobody is answered the first time: SNS shall come again.
    assert await receive(seal(envelope("…", NOW, **asks)), Amazon({})) == Receipts(status=503)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["emailAddress", "timestamp", "tags"]), inner),
)
PARTS = ("mail", "bounce", "complaint", "delivery", "deliveryDelay", "open", "click")
LISTS = ("bouncedRecipients", "complainedRecipients", "delayedRecipients", "recipients", "destination")
FIELDS = st.sampled_from((*PARTS, *LISTS, "timestamp", "tags", "link", "delayType"))


@settings(max_examples=30)
@given(st.dictionaries(FIELDS, JSON | st.dictionaries(FIELDS, JSON)))
def test_no_event_breaks_the_reading(fields: dict[str, Any]) -> None:
    given = fields.get("mail")
    mail = {**(given if isinstance(given, dict) else {}), "messageId": "m-1"}
    for kind in (*KINDS, "Reject", "Subscription"):
        text = json.dumps({**fields, "eventType": kind, "mail": mail})
        list(list_reports(Envelope("Notification", "e-1", text, NOW)))
