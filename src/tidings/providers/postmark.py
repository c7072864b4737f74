"""E-mail by Postmark: the API of single mails, and its webhooks.

https://postmarkapp.com/developer/api/email-api
https://postmarkapp.com/developer/api/overview#error-codes
https://postmarkapp.com/developer/webhooks/webhooks-overview

The delivery's public id and the metadata travel as `Metadata`, which every webhook repeats. Postmark does not drop a
second send with the same. It signs nothing, so the address of its webhooks holds a secret.

This room knows Postmark; it knows no account row and no retry policy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final

import msgspec
from pydantic import Field, SecretStr, field_validator

from tidings.model.messages import Attachment, Deferred, Email, Message, Rejected, SendResult, Sent, Throttled
from tidings.model.words import Channel, EventKind, Reason
from tidings.providers.api import (
    DETAIL_MAX,
    BaseUrl,
    VendorApi,
    decide_by_status,
    parse_body,
    parse_retry_after,
    to_bad_answer,
)
from tidings.providers.http import HttpAnswer, TransportFailure, to_result
from tidings.providers.mail_api import (
    KEY_FIELD,
    MAIL_CAPABILITIES,
    MailParts,
    check_credential,
    check_sender,
    decide_reply_reason,
    parse_object,
    parse_parts,
    parse_recipient,
    parse_text,
    to_base64,
    to_json,
)
from tidings.providers.port import (
    Capability,
    Config,
    ProviderSpec,
    RawRequest,
    ReceiptAuth,
    ReceiptMalformed,
    Receipts,
    Report,
    Surroundings,
    find_unsupported,
)

# https://postmarkapp.com/support/article/1125-custom-metadata-faq
_METADATA_MAX: Final = 10
_METADATA_NAME_MAX: Final = 20
_METADATA_VALUE_MAX: Final = 80


class PostmarkConfig(Config):
    """One server of a Postmark account."""

    guards_secrets: ClassVar[frozenset[str]] = frozenset({"base_url"})

    server_token: SecretStr
    """The Server API token."""
    from_address: str
    """The sender of mails whose template names none: `Name <address>` or an address; a confirmed sender."""
    message_stream: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]{1,100}$")
    """The id of the message stream to send by; None takes the server's `outbound`."""
    base_url: BaseUrl = "https://api.postmarkapp.com"

    _check_token = field_validator("server_token")(check_credential)
    _check_from_address = field_validator("from_address")(check_sender)


class PostmarkProvider:
    """Sends e-mail one by one, and reads the events that Postmark posts."""

    spec: ClassVar[ProviderSpec] = ProviderSpec(
        name="postmark",
        channels=frozenset({Channel.email}),
        config=PostmarkConfig,
        capabilities=MAIL_CAPABILITIES | {Capability.inline_images, Capability.tracking},
        idempotent=False,
        confirms_delivery=False,
        timeout=timedelta(seconds=20),
        docs="https://postmarkapp.com/developer/api/email-api",
        receipts=ReceiptAuth.hidden_path,
        echoes_key=True,
        reports=frozenset(
            {
                EventKind.delivered,
                EventKind.failed,
                EventKind.retrying,
                EventKind.opened,
                EventKind.clicked,
                EventKind.complained,
                EventKind.unsubscribed,
            }
        ),
        verified_by="Requests that django-anymail makes of the same mails, with the answers that it recorded; webhooks "
        "as django-anymail and Symfony recorded them. Not by Postmark itself: it publishes no machine-readable "
        "description, so error codes and bounce types are from its documentation.",
    )

    def __init__(self, config: PostmarkConfig, surroundings: Surroundings) -> None:
        self._api = VendorApi(config.base_url, surroundings, self.spec)
        self._clock = surroundings.clock
        self._from_address = config.from_address
        self._stream = config.message_stream
        self._headers = {
            "X-Postmark-Server-Token": config.server_token.get_secret_value(),
            "Content-Type": "application/json",
            "Accept": "application/json",
        }

    async def send(self, message: Message, key: str) -> SendResult:
        if (refused := find_unsupported(self.spec, message)) is not None:
            return refused
        email = message.content
        assert isinstance(email, Email)
        if len(set(email.tags)) > 1:
            return Rejected(Reason.unsupported, "postmark takes one tag")
        parts = parse_parts(message, self._from_address)
        if isinstance(parts, Rejected):
            return parts
        body = to_json(to_request(email, parts, _choose_metadata(message, key), self._stream))
        try:
            answer = await self._api.call("/email", headers=self._headers, body=body)
        except TransportFailure as failure:
            return to_result(failure)
        return decide_result(answer, parts.to, self._clock.now())

    async def check(self) -> str | None:
        """Asks for the server that the token is of (https://postmarkapp.com/developer/api/server-api)."""
        return await self._api.check("/server", headers=self._headers)

    async def receive(self, request: RawRequest, now: datetime) -> Receipts:
        try:
            event = msgspec.json.decode(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ReceiptMalformed("the body is not JSON") from None
        kind = parse_text(parse_object(event).get("RecordType"))
        if kind is None or kind == "Inbound":
            # Likely Postmark's hook for inbound mail was set to this address.
            raise ReceiptMalformed("this is not an event of an outbound mail")
        report = to_report(kind, event)
        return Receipts((report,) if report is not None else ())

    async def close(self) -> None:
        """The connections belong to the transport, which all accounts share."""


# --- sending ----------------------------------------------------------------------------------------------------------


def _choose_metadata(message: Message, key: str) -> dict[str, str]:
    """Our key, and the pairs that Postmark can carry: it refuses the whole mail for one that is too long."""
    chosen = {KEY_FIELD: key}
    for name, value in message.metadata:
        if len(chosen) == _METADATA_MAX:
            break
        if name != KEY_FIELD and len(name) <= _METADATA_NAME_MAX and len(value) <= _METADATA_VALUE_MAX:
            chosen[name] = value
    return chosen


def to_request(email: Email, parts: MailParts, metadata: Mapping[str, str], stream: str | None) -> dict[str, Any]:
    """The body of `POST /email`."""
    body: dict[str, Any] = {
        "From": parts.sender.formatted,
        "To": parts.to,
        "Subject": email.subject,
        "Metadata": metadata,
    }
    if parts.cc:
        body["Cc"] = ", ".join(copy.formatted for copy in parts.cc)
    if parts.bcc:
        body["Bcc"] = ", ".join(copy.formatted for copy in parts.bcc)
    if email.text is not None:
        body["TextBody"] = email.text
    if email.html is not None:
        body["HtmlBody"] = email.html
    if parts.reply_to is not None:
        body["ReplyTo"] = parts.reply_to.formatted
    if parts.headers:
        body["Headers"] = [{"Name": name, "Value": value} for name, value in parts.headers]
    if email.attachments:
        body["Attachments"] = [_to_attachment(attachment) for attachment in email.attachments]
    if email.tags:
        body["Tag"] = email.tags[0]
    if email.track_opens is not None:
        body["TrackOpens"] = email.track_opens
    if email.track_clicks is not None:
        body["TrackLinks"] = "HtmlAndText" if email.track_clicks else "None"
    if stream is not None:
        body["MessageStream"] = stream
    return body


def _to_attachment(attachment: Attachment) -> dict[str, str]:
    file = {
        "Name": attachment.filename,
        "Content": to_base64(attachment),
        "ContentType": attachment.content_type,
    }
    if attachment.content_id is not None:
        file["ContentID"] = f"cid:{attachment.content_id}"
    return file


# `ErrorCode` of an answer, whatever its HTTP status. https://postmarkapp.com/developer/api/overview#error-codes
_ERRORS: Final[Mapping[int, Reason]] = {
    10: Reason.unauthorized,  # bad or missing API token
    # 300 (invalid email request) and 406 (inactive recipient): see decide_result
    400: Reason.unauthorized,  # sender signature not found
    401: Reason.unauthorized,  # sender signature not confirmed
    402: Reason.rejected,  # invalid JSON
    403: Reason.rejected,  # incompatible JSON
    405: Reason.quota_exceeded,  # not allowed to send: out of credits
    406: Reason.suppressed,  # inactive recipient: bounced, complained or was deactivated; Postmark does not say which
    409: Reason.rejected,  # JSON required
    411: Reason.content_rejected,  # forbidden attachment type
    412: Reason.unauthorized,  # account is pending approval
    413: Reason.unauthorized,  # account may not send
    1235: Reason.unauthorized,  # the message stream does not exist on this server
}
_MAINTENANCE: Final = 100
_INVALID_REQUEST: Final = 300
_RATE_LIMIT: Final = 429

_ABOUT_TO: Final = re.compile(r"(Invalid|Error parsing) 'To'")
_INACTIVE: Final = re.compile(r"inactive addresses: (?P<addresses>.*?)\.(?:\s|$)", re.DOTALL)


def decide_result(answer: HttpAnswer, to: str, now: datetime) -> SendResult:
    """What an answer of the e-mail API means: `{"ErrorCode", "Message", "MessageID", …}`.

    | answer                                                    | result                                             |
    |-----------------------------------------------------------|----------------------------------------------------|
    | 2xx with `MessageID`, `ErrorCode` 0 or none               | Sent                                               |
    | the same, but `Message` names `to` as inactive            | Rejected(suppressed): only the copies were sent    |
    | `ErrorCode` 100, maintenance                              | Deferred(provider_error)                           |
    | `ErrorCode` 300 about 'To'                                | Rejected(invalid_address)                          |
    | other 300, and codes that are not in the table            | Rejected(rejected)                                 |
    | `ErrorCode` 429 or HTTP 429                               | Throttled                                          |
    | another `ErrorCode`                                       | Rejected, as the table says                        |
    | no `ErrorCode`, or HTTP 413 or 5xx                        | by the HTTP status                                 |

    Args:
        to: the recipient, without the copies'.
    """
    said = parse_object(parse_body(answer))
    code, words = said.get("ErrorCode"), parse_text(said.get("Message")) or ""
    if 200 <= answer.status < 300 and code in (None, 0):
        if (id_ := parse_text(said.get("MessageID"))) is None:
            return to_bad_answer(answer)
        inactive = _INACTIVE.search(words)
        if inactive and to.lower() in (each.strip().lower() for each in inactive["addresses"].split(",")):
            return Rejected(Reason.suppressed, words[:DETAIL_MAX])
        return Sent(id_)
    if not isinstance(code, int) or answer.status == 413 or answer.status >= 500:
        return decide_by_status(answer, now, words or None)
    detail = f"HTTP {answer.status}, ErrorCode {code}: {words}"[:DETAIL_MAX]
    retry_after = parse_retry_after(answer.headers.get("Retry-After"), now)
    if code == _RATE_LIMIT or answer.status == _RATE_LIMIT:
        return Throttled(retry_after, detail)
    if code == _MAINTENANCE:
        return Deferred(Reason.provider_error, retry_after, detail)
    if code == _INVALID_REQUEST and _ABOUT_TO.match(words):
        return Rejected(Reason.invalid_address, detail)
    return Rejected(_ERRORS.get(code, Reason.rejected), detail)


# --- receipts ---------------------------------------------------------------------------------------------------------

# `Type` of a bounce. https://postmarkapp.com/developer/api/bounce-api#bounce-types
# A reason marked with * is only taken where the receiving server's codes in `Details` say nothing.
_BOUNCES: Final[Mapping[str, tuple[EventKind, Reason | None]]] = {
    "HardBounce": (EventKind.failed, Reason.bounced),  # * 1
    "Transient": (EventKind.retrying, None),  # * 2: delayed
    "Unsubscribe": (EventKind.unsubscribed, None),  # 16: the recipient asked by mail
    # Subscribe 32, AutoResponder 64, AddressChange 128 and OpenRelayTest 1024 are no failures
    "DnsError": (EventKind.retrying, None),  # * 256: temporary
    "SpamNotification": (EventKind.failed, Reason.content_rejected),  # 512
    "Unknown": (EventKind.failed, Reason.rejected),  # * 2048
    "SoftBounce": (EventKind.failed, Reason.mailbox_full),  # * 4096: mailbox full, disabled, out of space
    "VirusNotification": (EventKind.failed, Reason.content_rejected),  # 8192
    "ChallengeVerification": (EventKind.retrying, None),  # 16384: the receiver waits for somebody's proof
    "BadEmailAddress": (EventKind.failed, Reason.invalid_address),  # 100000
    "SpamComplaint": (EventKind.complained, Reason.complained),  # 100001
    "ManuallyDeactivated": (EventKind.failed, Reason.suppressed),  # 100002
    "Unconfirmed": (EventKind.failed, Reason.rejected),  # 100003: registration not confirmed
    "Blocked": (EventKind.failed, Reason.blocked),  # 100006: by the receiver, for content or reputation
    "SMTPApiError": (EventKind.failed, Reason.rejected),  # 100007
    # InboundError 100008 is about inbound mail
    "DMARCPolicy": (EventKind.failed, Reason.blocked),  # 100009
    "TemplateRenderingFailed": (EventKind.failed, Reason.render_failed),  # 100010
}
_BY_CODES_FIRST: Final = frozenset({"HardBounce", "Transient", "DnsError", "Unknown", "SoftBounce"})

# `SuppressionReason` of a SubscriptionChange that stops sending.
_SUPPRESSIONS: Final[Mapping[str, tuple[EventKind, Reason | None]]] = {
    "HardBounce": (EventKind.failed, Reason.bounced),
    "SpamComplaint": (EventKind.complained, Reason.complained),
    "ManualSuppression": (EventKind.unsubscribed, None),
}

_PLAIN_KINDS: Final[Mapping[str, EventKind]] = {
    "Delivery": EventKind.delivered,
    "Open": EventKind.opened,
    "Click": EventKind.clicked,
}

_TIMES: Final = ("BouncedAt", "DeliveredAt", "ReceivedAt", "ChangedAt")
_LEFT_OUT: Final = frozenset({"Content"})
"""Of a raw event: the bounce's whole text, which quotes the mail."""


def to_report(record: str, event: Mapping[str, Any]) -> Report | None:
    """The event; None for one that tells nothing of a delivery.

    Args:
        record: its `RecordType`.
    """
    kind, reason = _decide_kind(record, event)
    if kind is None:
        return None
    times = (at for name in _TIMES if (at := _parse_time(event.get(name))) is not None)
    return Report(
        kind,
        provider_id=parse_text(event.get("MessageID")),
        key=parse_text(parse_object(event.get("Metadata")).get(KEY_FIELD)),
        address=parse_recipient(event.get("Recipient")) or parse_recipient(event.get("Email")),
        reason=reason,
        at=next(times, None),
        url=parse_text(event.get("OriginalLink")) if kind is EventKind.clicked else None,
        event_id=parse_text(event.get("ID")),
        detail={name: value for name, value in event.items() if name not in _LEFT_OUT},
    )


def _decide_kind(record: str, event: Mapping[str, Any]) -> tuple[EventKind | None, Reason | None]:
    if record in _PLAIN_KINDS:
        return _PLAIN_KINDS[record], None
    if record == "SpamComplaint":
        return EventKind.complained, Reason.complained
    if record == "SubscriptionChange":
        if event.get("SuppressSending") is not True:  # somebody may be written to again
            return None, None
        return _SUPPRESSIONS.get(parse_text(event.get("SuppressionReason")) or "", (None, None))
    if record != "Bounce":
        return None, None
    type_ = parse_text(event.get("Type")) or ""
    kind, reason = _BOUNCES.get(type_, (None, None))
    if type_ in _BY_CODES_FIRST:
        reason = decide_reply_reason(parse_text(event.get("Details")) or "") or reason
    return kind, reason


def _parse_time(value: Any) -> datetime | None:
    """ISO 8601 with up to seven decimals of a second, which Python cuts to six."""
    try:
        at = datetime.fromisoformat(value)
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None
