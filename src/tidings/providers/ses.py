"""E-mail through Amazon SES, version 2 of its API.

https://docs.aws.amazon.com/ses/latest/APIReference-V2/API_SendEmail.html
https://docs.aws.amazon.com/ses/latest/dg/event-publishing-retrieving-sns-contents.html

SES renders the mail (`Content.Simple`) where its fields can say all of it, and else gets it rendered
(`Content.Raw`): with header fields beyond ASCII, more than fifteen of them, or files whose names or types do not fit.
Our key, the tags, and those pairs of the metadata that keep to SES's alphabet go as `EmailTags`, which come back in
the events of a configuration set. The older notifications of an identity have no tags; they meet the message by its
id.

Events come as notifications of Amazon SNS (see `aws`), which also asks once whether the subscription is wanted.

This room knows SES; it knows no retry policy and no project.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final

import msgspec
from pydantic import Field, field_validator

from tidings.model.messages import Email, Message, Rejected, SendResult, Sent
from tidings.model.words import Channel, EventKind, Reason
from tidings.providers.api import decide_by_status, parse_body, to_bad_answer
from tidings.providers.aws import AwsApi, AwsConfig, Envelope, SnsReceiver, decide_by_code, to_evidence
from tidings.providers.http import HttpAnswer, TransportFailure, to_result
from tidings.providers.mail_api import (
    KEY_FIELD,
    MAIL_CAPABILITIES,
    Address,
    MailParts,
    check_sender,
    parse_object,
    parse_parts,
    parse_text,
    to_base64,
    to_json,
)
from tidings.providers.mime import MailRefused, parse_mailbox, render_mail
from tidings.providers.port import (
    Capability,
    ProviderSpec,
    RawRequest,
    ReceiptAuth,
    ReceiptMalformed,
    Receipts,
    Report,
    Surroundings,
    find_unsupported,
)

_TAG: Final = re.compile(r"[A-Za-z0-9_-]{1,256}")
_TAGS_MAX: Final = 50
_HEADERS_MAX: Final = 15
_HEADER_VALUE: Final = re.compile(r"[ -~]{1,995}")
_HEADER_MAX: Final = 996  # octets of name and value
_FILENAME: Final = re.compile(r"[ -~]{1,255}")
_FILE_FIELD: Final = re.compile(r"[ -~]{1,78}")  # a content type, a content id
_FETCH_SECONDS: Final = 5.0
"""For a certificate and for a confirmation: SNS itself waits 15 seconds for the callback's answer."""


class SesConfig(AwsConfig):
    """Credentials that may do `ses:SendEmail`, and the sender."""

    from_address: str
    """The sender of mails whose template names none: `Name <address>` or an address, of a verified identity."""
    configuration_set_name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """Names the set that publishes events. Without one there are only an identity's notifications."""
    sns_topic_arn: str | None = Field(default=None, pattern=r"^arn:aws[a-z-]*:sns:[a-z0-9-]+:[0-9]+:[A-Za-z0-9_.-]+$")
    """The topic that the events are published to. None refuses all callbacks."""

    _check_from_address = field_validator("from_address")(check_sender)


class SesProvider:
    """Sends e-mail through one region of Amazon SES."""

    spec: ClassVar[ProviderSpec] = ProviderSpec(
        name="ses",
        channels=frozenset({Channel.email}),
        config=SesConfig,
        capabilities=MAIL_CAPABILITIES | {Capability.inline_images, Capability.tracking},
        idempotent=False,
        confirms_delivery=False,
        timeout=timedelta(seconds=20),
        docs="https://docs.aws.amazon.com/ses/latest/APIReference-V2/API_SendEmail.html",
        receipts=ReceiptAuth.signature,
        reports=frozenset(
            {
                EventKind.sent,
                EventKind.delivered,
                EventKind.failed,
                EventKind.retrying,
                EventKind.opened,
                EventKind.clicked,
                EventKind.complained,
                EventKind.unsubscribed,
            }
        ),
        verified_by=(
            "AWS's own Signature Version 4 suite and API description (botocore), SNS messages that AWS signed, the "
            "developer guide's event samples, requests and callbacks of django-anymail, and moto as a peer. Only SES "
            "itself can confirm its error texts and that tracking overrides are honoured."
        ),
    )

    def __init__(self, config: SesConfig, surroundings: Surroundings) -> None:
        self._config = config
        self._clock = surroundings.clock
        self._api = AwsApi(config, "email", "ses", surroundings, self.spec)
        self._sns = SnsReceiver(config.sns_topic_arn, surroundings.http, _FETCH_SECONDS)

    async def send(self, message: Message, key: str) -> SendResult:
        if (refused := find_unsupported(self.spec, message)) is not None:
            return refused
        parts = parse_parts(message, self._config.from_address)
        if isinstance(parts, Rejected):
            return parts
        if not parts.to.isascii():
            return Rejected(Reason.unsupported, "Amazon SES takes no address with other than ASCII before the @")
        try:
            body = to_json(self._render_body(message, parts, key))
        except MailRefused as no:
            return Rejected(Reason.content_rejected, str(no))
        try:
            answer = await self._api.call("/v2/email/outbound-emails", "application/json", body)
        except TransportFailure as failure:
            return to_result(failure)
        if not 200 <= answer.status < 300:
            return decide_result(answer, self._clock.now())
        id_ = parse_text(parse_object(parse_body(answer)).get("MessageId"))
        return Sent(id_) if id_ is not None else to_bad_answer(answer)

    def _render_body(self, message: Message, parts: MailParts, key: str) -> dict[str, Any]:
        """The request's body. Raises MailRefused."""
        email = message.content
        assert isinstance(email, Email)
        destination = {"ToAddresses": [parts.to]}
        if parts.cc:
            destination["CcAddresses"] = [_to_header(copy) for copy in parts.cc]
        if parts.bcc:
            destination["BccAddresses"] = [_to_header(copy) for copy in parts.bcc]
        body: dict[str, Any] = {
            "FromEmailAddress": _to_header(parts.sender),
            "Destination": destination,
            "EmailTags": [{"Name": name, "Value": value} for name, value in _list_tags(message, email, key)],
        }
        if fits_simple(email):
            if parts.reply_to is not None:
                body["ReplyToAddresses"] = [_to_header(parts.reply_to)]
            body["Content"] = {"Simple": _render_simple(email)}
        else:
            body["Content"] = {"Raw": {"Data": base64.b64encode(self._render_raw(email, parts, key)).decode()}}
        if self._config.configuration_set_name is not None:
            body["ConfigurationSetName"] = self._config.configuration_set_name
        switches = (("OpenTrackingEnabled", email.track_opens), ("ClickTrackingEnabled", email.track_clicks))
        tracking = {name: "ENABLED" if wanted else "DISABLED" for name, wanted in switches if wanted is not None}
        if tracking:
            body["ConfigurationOverrides"] = {"Tracking": tracking}
        return body

    def _render_raw(self, email: Email, parts: MailParts, key: str) -> bytes:
        return render_mail(
            msgspec.structs.replace(email, cc=tuple(copy.formatted for copy in parts.cc)),
            sender=parse_mailbox("from", parts.sender.formatted),
            to=parts.to,
            message_id=f"{key}@{parts.sender.address.rpartition('@')[2]}",  # SES puts its own in place of it
            boundary=f"=_{key}",
            at=self._clock.now(),
            eight_bit=False,
        )

    async def check(self) -> str | None:
        """Asks for the account's state (https://docs.aws.amazon.com/ses/latest/APIReference-V2/API_GetAccount.html)."""
        return await self._api.check("/v2/email/account", "application/json", b"", method="GET")

    async def receive(self, request: RawRequest, now: datetime) -> Receipts:
        """What a notification of the account's topic says.

        A certificate or a confirmation that cannot be fetched just now is answered by 503, upon which SNS repeats.
        """
        try:
            envelope = await self._sns.open(request.body, now)
            if envelope.kind == "SubscriptionConfirmation":
                await self._sns.confirm(envelope)
        except TransportFailure:
            return Receipts(status=503)
        if envelope.kind != "Notification":
            return Receipts()
        return Receipts(reports=tuple(list_reports(envelope)))

    async def close(self) -> None:
        """The connections belong to the transport, which all accounts share."""
        await self._sns.close()


# --- sending ----------------------------------------------------------------------------------------------------------


def fits_simple(email: Email) -> bool:
    """Whether SES's own fields can say all of the mail."""
    return (
        len(email.headers) <= _HEADERS_MAX
        and all(
            _HEADER_VALUE.fullmatch(value) and len(name) + len(value) <= _HEADER_MAX for name, value in email.headers
        )
        and len({name.lower() for name, _ in email.headers}) == len(email.headers)
        and all(
            _FILENAME.fullmatch(file.filename)
            and _FILE_FIELD.fullmatch(file.content_type)
            and (file.content_id is None or _FILE_FIELD.fullmatch(file.content_id))
            for file in email.attachments
        )
    )


def _render_simple(email: Email) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if email.text is not None:
        body["Text"] = {"Data": email.text, "Charset": "UTF-8"}
    if email.html is not None:
        body["Html"] = {"Data": email.html, "Charset": "UTF-8"}
    simple: dict[str, Any] = {"Subject": {"Data": email.subject, "Charset": "UTF-8"}, "Body": body}
    if email.headers:
        simple["Headers"] = [{"Name": name, "Value": value} for name, value in email.headers]
    if email.attachments:
        simple["Attachments"] = [
            {
                "FileName": file.filename,
                "ContentType": file.content_type,
                "ContentTransferEncoding": "BASE64",
                "RawContent": to_base64(file),
                **(
                    {"ContentDisposition": "INLINE", "ContentId": file.content_id}
                    if file.content_id is not None and email.html is not None
                    else {"ContentDisposition": "ATTACHMENT"}
                ),
            }
            for file in email.attachments
        ]
    return simple


def _to_header(address: Address) -> str:
    """A mailbox as SES wants it: the name as encoded words (RFC 2047), on one line."""
    return parse_mailbox("address", address.formatted).header.replace("\r\n", "")


def _list_tags(message: Message, email: Email, key: str) -> list[tuple[str, str]]:
    """Our key first, then the tags (as `tag`, `tag_2`, …), then the metadata that SES's alphabet can say."""
    tags = {KEY_FIELD: key}
    for number, tag in enumerate(email.tags, start=1):
        tags["tag" if number == 1 else f"tag_{number}"] = re.sub(r"[^A-Za-z0-9_-]", "_", tag)[:256] or "_"
    for name, value in message.metadata:
        if _TAG.fullmatch(name) and _TAG.fullmatch(value):
            tags.setdefault(name, value)
    return list(tags.items())[:_TAGS_MAX]


# https://docs.aws.amazon.com/ses/latest/APIReference-V2/API_SendEmail.html#API_SendEmail_Errors
_ERRORS: Final[Mapping[str, Reason]] = {
    "AccountSuspendedException": Reason.unauthorized,  # for good, until AWS is talked to
    "SendingPausedException": Reason.unauthorized,  # of the account or the configuration set
    "MailFromDomainNotVerifiedException": Reason.unauthorized,
    "NotFoundException": Reason.unauthorized,  # the configuration set
    "LimitExceededException": Reason.quota_exceeded,
    "MessageRejected": Reason.content_rejected,
    "BadRequestException": Reason.rejected,
}


def decide_result(answer: HttpAnswer, now: datetime) -> SendResult:
    """What an answer outside of 2xx means: by the error's type, else by what all of Amazon's services have in common,
    else by the status."""
    fields = parse_object(parse_body(answer))
    text = str(fields.get("message") or fields.get("Message") or "")
    code = answer.headers.get("x-amzn-ErrorType") or str(fields.get("__type") or fields.get("code") or "")
    code = code.partition(":")[0].rpartition("#")[2]
    evidence = to_evidence(answer, code, text)
    lowered = text.lower()
    if code == "MessageRejected" and "not verified" in lowered:
        # In the sandbox that can be the recipient's identity; another account may do it in either case.
        return Rejected(Reason.unauthorized, evidence)
    if code in ("TooManyRequestsException", "ThrottlingException", "LimitExceededException") and "quota" in lowered:
        return Rejected(Reason.quota_exceeded, evidence)  # "Daily message quota exceeded."
    if code == "BadRequestException" and "message length" in lowered:
        return Rejected(Reason.too_large, evidence)
    if (reason := _ERRORS.get(code)) is not None:
        return Rejected(reason, evidence)
    return decide_by_code(code, answer, now, evidence) or decide_by_status(answer, now, evidence or None)


# --- receipts ---------------------------------------------------------------------------------------------------------

# https://docs.aws.amazon.com/ses/latest/dg/notification-contents.html#bounce-types
_BOUNCES: Final[Mapping[tuple[str, str], Reason]] = {
    ("Permanent", "General"): Reason.bounced,
    ("Permanent", "NoEmail"): Reason.invalid_address,
    ("Permanent", "Suppressed"): Reason.bounced,  # SES remembers a recent hard bounce of anybody's
    ("Permanent", "OnAccountSuppressionList"): Reason.bounced,
    ("Permanent", "UnsubscribedRecipient"): Reason.opted_out,
    ("Transient", "MailboxFull"): Reason.mailbox_full,
    ("Transient", "MessageTooLarge"): Reason.too_large,
    ("Transient", "ContentRejected"): Reason.content_rejected,
    ("Transient", "AttachmentRejected"): Reason.content_rejected,
}
_BOUNCE_TYPES: Final[Mapping[str, Reason]] = {"Permanent": Reason.bounced}
"""For sub-types that are not listed."""

# https://docs.aws.amazon.com/ses/latest/dg/event-publishing-retrieving-sns-contents.html (deliveryDelay object)
_DELAYS: Final[Mapping[str, Reason]] = {
    "InternalFailure": Reason.provider_error,
    "General": Reason.provider_error,
    "MailboxFull": Reason.mailbox_full,
    "SpamDetected": Reason.blocked,
    "RecipientServerError": Reason.provider_error,
    "IPFailure": Reason.blocked,
    "TransientCommunicationFailure": Reason.connect_failed,
    "BYOIPHostNameLookupUnavailable": Reason.provider_error,
    "Undetermined": Reason.provider_error,
    "SendingDeferral": Reason.throttled,
}

_NO_EVENT: Final = "Successfully validated SNS topic"
"""How the text begins that SES publishes when a topic is set."""


def list_reports(envelope: Envelope) -> Iterator[Report]:
    """The facts in one SES event; none for a kind of event that is not known.

    Raises:
        ReceiptMalformed: it is no event of SES.
    """
    if envelope.message.startswith(_NO_EVENT):
        return
    try:
        event: Any = msgspec.json.decode(envelope.message)
    except (msgspec.DecodeError, RecursionError):
        raise ReceiptMalformed("the notification holds no event of Amazon SES") from None
    if not isinstance(event, dict):
        raise ReceiptMalformed("the notification holds no event of Amazon SES")
    kind = event.get("eventType") or event.get("notificationType")
    mail = event.get("mail")
    if not isinstance(mail, dict) or not isinstance(mail.get("messageId"), str):
        return  # "AmazonSnsSubscriptionSucceeded", "Received": not about a mail that was sent
    found = list(_read_event(str(kind), event, mail))
    tags = parse_object(mail.get("tags"))
    keys = tags.get(KEY_FIELD)
    detail = {
        **{name: value for name, value in event.items() if name != "mail"},
        # Without the mail's own header fields: they are content.
        "mail": {name: value for name, value in mail.items() if name not in ("headers", "commonHeaders")},
    }
    for number, report in enumerate(found):
        yield msgspec.structs.replace(
            report,
            provider_id=mail["messageId"],
            key=keys[0] if isinstance(keys, list) and keys and isinstance(keys[0], str) else None,
            at=report.at or envelope.at,
            event_id=envelope.id if len(found) == 1 else f"{envelope.id}/{number}",
            detail=detail,
        )


def _read_event(kind: str, event: Mapping[str, Any], mail: Mapping[str, Any]) -> Iterator[Report]:
    """What happened to whom. Send, Open, Click and Reject do not say to whom: it is only known of a mail to one."""
    destination = [address for address in _list(mail, "destination") if isinstance(address, str)]
    only = destination[0] if len(destination) == 1 else None
    match kind:
        case "Send":
            yield Report(EventKind.sent, address=only, at=_parse_at(mail))
        case "Delivery":
            about = parse_object(event.get("delivery"))
            for address in _list(about, "recipients"):
                if isinstance(address, str):
                    yield Report(EventKind.delivered, address=address, at=_parse_at(about))
        case "Bounce":
            yield from _read_bounce(parse_object(event.get("bounce")))
        case "Complaint":
            yield from _read_complaint(parse_object(event.get("complaint")))
        case "Reject":  # SES found a virus; it sent nothing
            yield Report(EventKind.failed, address=only, reason=Reason.content_rejected, at=_parse_at(mail))
        case "Rendering Failure":
            yield Report(EventKind.failed, address=only, reason=Reason.rejected)
        case "DeliveryDelay":
            about = parse_object(event.get("deliveryDelay"))
            reason = _DELAYS.get(str(about.get("delayType")), Reason.provider_error)
            for address in _list_addresses(about, "delayedRecipients"):
                yield Report(EventKind.retrying, address=address, reason=reason, at=_parse_at(about))
        case "Open":
            yield Report(EventKind.opened, address=only, at=_parse_at(parse_object(event.get("open"))))
        case "Click":
            about = parse_object(event.get("click"))
            yield Report(EventKind.clicked, address=only, url=parse_text(about.get("link")), at=_parse_at(about))
        case "Subscription":
            about = parse_object(event.get("subscription"))
            if parse_object(about.get("newTopicPreferences")).get("unsubscribeAll") is True:
                yield Report(EventKind.unsubscribed, address=only, at=_parse_at(about))


def _read_bounce(bounce: Mapping[str, Any]) -> Iterator[Report]:
    """A bounce is the end of a mail, with one exception: answers of people who are away come as `Transient` and
    `General`, too, and only lack what a failed delivery has, an action, a status and a diagnosis."""
    type_, sub_type = str(bounce.get("bounceType")), str(bounce.get("bounceSubType"))
    reason = _BOUNCES.get((type_, sub_type)) or _BOUNCE_TYPES.get(type_)
    at = _parse_at(bounce)
    for recipient in _list(bounce, "bouncedRecipients"):
        if not isinstance(recipient, dict) or not isinstance(recipient.get("emailAddress"), str):
            continue
        address = recipient["emailAddress"]
        if reason is not None:
            yield Report(EventKind.failed, address=address, reason=reason, at=at)
        elif recipient.get("action") == "failed" or recipient.get("diagnosticCode") or recipient.get("status"):
            yield Report(EventKind.failed, address=address, reason=Reason.rejected, at=at)
        else:
            yield Report(EventKind.retrying, address=address, at=at)


def _read_complaint(complaint: Mapping[str, Any]) -> Iterator[Report]:
    if complaint.get("complaintFeedbackType") == "not-spam":  # moved out of the junk folder
        return
    # On the account's suppression list for an earlier complaint: SES took the mail and did not send it.
    suppressed = complaint.get("complaintSubType") == "OnAccountSuppressionList"
    for address in _list_addresses(complaint, "complainedRecipients"):
        if suppressed:
            yield Report(EventKind.failed, address=address, reason=Reason.complained, at=_parse_at(complaint))
        else:
            yield Report(EventKind.complained, address=address, reason=Reason.complained, at=_parse_at(complaint))


def _list(mapping: Mapping[str, Any], name: str) -> list[Any]:
    value = mapping.get(name)
    return value if isinstance(value, list) else []


def _list_addresses(mapping: Mapping[str, Any], name: str) -> Iterator[str]:
    for recipient in _list(mapping, name):
        if isinstance(recipient, dict) and isinstance(recipient.get("emailAddress"), str):
            yield recipient["emailAddress"]


def _parse_at(about: Mapping[str, Any]) -> datetime | None:
    try:
        at = datetime.fromisoformat(str(about.get("timestamp")))
    except ValueError:
        return None
    return at if at.tzinfo is not None else None
