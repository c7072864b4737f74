"""E-mail by Twilio SendGrid: Mail Send v3, and the signed Event Webhook.

https://www.twilio.com/docs/sendgrid/api-reference/mail-send/mail-send
https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/event
https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/getting-started-event-webhook-security-features

The delivery's public id and the metadata travel as `custom_args`; SendGrid puts them among the fields of each event.
It does not drop a second send with the same ones. Its own id of a message is `X-Message-Id`, with which every
`sg_message_id` begins.

This room knows SendGrid; it knows no account row and no retry policy.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pydantic import SecretStr, field_validator

from tidings.model.messages import Attachment, Email, Message, Rejected, SendResult, Sent, Throttled
from tidings.model.words import Channel, EventKind, Reason
from tidings.providers.api import RETRY_AFTER_MAX, BaseUrl, VendorApi, decide_by_status, parse_body, to_bad_answer
from tidings.providers.http import HttpAnswer, TransportFailure, to_result
from tidings.providers.mail_api import (
    KEY_FIELD,
    MAIL_CAPABILITIES,
    Address,
    MailParts,
    check_credential,
    check_sender,
    decide_reply_reason,
    parse_object,
    parse_parts,
    parse_recipient,
    parse_text,
    parse_unix,
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
    ReceiptRefused,
    Receipts,
    Report,
    Surroundings,
    find_unsupported,
)

STALE_AFTER: Final = timedelta(hours=25)
"""A callback's signed time may be as old as that. SendGrid repeats what was not answered for a day and does not say
whether it signs it anew; an old callback does no harm, since each event is recorded once."""
CLOCK_SKEW: Final = timedelta(minutes=5)

_TAGS_MAX: Final = 10
_ARGS_MAX: Final = 10_000  # octets of all custom_args together


class SendGridConfig(Config):
    """One API key of a SendGrid account."""

    guards_secrets: ClassVar[frozenset[str]] = frozenset({"base_url"})

    api_key: SecretStr
    """With the permission Mail Send."""
    from_address: str
    """The sender of mails whose template names none: `Name <address>` or an address; a verified sender."""
    base_url: BaseUrl = "https://api.sendgrid.com"
    """`https://api.eu.sendgrid.com` for subusers in the EU."""
    webhook_public_key: str | None = None
    """The verification key that SendGrid shows for the Signed Event Webhook; without it no receipt is believed."""

    _check_api_key = field_validator("api_key")(check_credential)
    _check_from_address = field_validator("from_address")(check_sender)

    @field_validator("webhook_public_key")
    @classmethod
    def _check_public_key(cls, value: str | None) -> str | None:
        if value is not None:
            parse_public_key(value)
        return value


def parse_public_key(text: str) -> EllipticCurvePublicKey:
    """The key as SendGrid shows it: a SubjectPublicKeyInfo in base64, with or without the lines of PEM around it.

    Raises:
        ValueError: it is no public key on the curve P-256.
    """
    lines = [line.strip() for line in text.strip().splitlines()]
    try:
        key = load_der_public_key(
            base64.b64decode("".join(line for line in lines if not line.startswith("-----")), validate=True)
        )
    except (binascii.Error, ValueError, UnsupportedAlgorithm):
        raise ValueError("must be the verification key as SendGrid shows it (base64)") from None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise ValueError("must be a key on the curve P-256")
    return key


class SendGridProvider:
    """Sends e-mail by the Mail Send API, and reads the events that SendGrid posts."""

    spec: ClassVar[ProviderSpec] = ProviderSpec(
        name="sendgrid",
        channels=frozenset({Channel.email}),
        config=SendGridConfig,
        capabilities=MAIL_CAPABILITIES | {Capability.inline_images, Capability.tracking},
        idempotent=False,
        confirms_delivery=False,
        timeout=timedelta(seconds=20),
        docs="https://www.twilio.com/docs/sendgrid/api-reference/mail-send/mail-send",
        receipts=ReceiptAuth.signature,
        echoes_key=True,
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
        verified_by="SendGrid's OpenAPI description of Mail Send v3; requests that django-anymail makes of the same "
        "mails; the signature vectors of SendGrid's own libraries; the event samples of its documentation, "
        "django-anymail and Symfony. Not by SendGrid itself: which errors it answers with, and whether a callback "
        "that it repeats carries a new time.",
    )

    def __init__(self, config: SendGridConfig, surroundings: Surroundings) -> None:
        self._api = VendorApi(config.base_url, surroundings, self.spec)
        self._clock = surroundings.clock
        self._from_address = config.from_address
        self._headers = {
            "Authorization": f"Bearer {config.api_key.get_secret_value()}",
            "Content-Type": "application/json",
        }
        self._key = parse_public_key(config.webhook_public_key) if config.webhook_public_key is not None else None

    async def send(self, message: Message, key: str) -> SendResult:
        if (refused := find_unsupported(self.spec, message)) is not None:
            return refused
        email = message.content
        assert isinstance(email, Email)
        if len(set(email.tags)) > _TAGS_MAX:
            return Rejected(Reason.unsupported, f"sendgrid takes at most {_TAGS_MAX} tags")
        parts = parse_parts(message, self._from_address)
        if isinstance(parts, Rejected):
            return parts
        if len({name.lower() for name, _ in parts.headers}) < len(parts.headers):
            return Rejected(Reason.unsupported, "sendgrid takes each header field once")
        body = to_json(to_request(email, parts, _choose_args(message, key)))
        try:
            answer = await self._api.call("/v3/mail/send", headers=self._headers, body=body)
        except TransportFailure as failure:
            return to_result(failure)
        return decide_result(answer, self._clock.now())

    async def check(self) -> str | None:
        """Asks what the key may do (https://www.twilio.com/docs/sendgrid/api-reference/api-key-permissions)."""
        return await self._api.check("/v3/scopes", headers=self._headers)

    async def receive(self, request: RawRequest, now: datetime) -> Receipts:
        self._verify(request, now)
        try:
            events = msgspec.json.decode(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ReceiptMalformed("the body is not JSON") from None
        if not isinstance(events, list):
            raise ReceiptMalformed("the body is not an array of events")
        reports = (to_report(event) for event in events if isinstance(event, dict))
        return Receipts(tuple(report for report in reports if report is not None))

    def _verify(self, request: RawRequest, now: datetime) -> None:
        """ECDSA (P-256, SHA-256) over the header's time and the raw body."""
        if self._key is None:
            raise ReceiptRefused("the account has no webhook_public_key")
        timestamp = request.headers.get("x-twilio-email-event-webhook-timestamp", "")
        signature = request.headers.get("x-twilio-email-event-webhook-signature", "")
        signed_at = parse_unix(timestamp) if timestamp.isascii() and timestamp.isdigit() else None
        try:
            self._key.verify(
                base64.b64decode(signature, validate=True), timestamp.encode() + request.body, ECDSA(SHA256())
            )
        except (binascii.Error, ValueError, InvalidSignature):
            raise ReceiptRefused("the signature is missing or wrong") from None
        if signed_at is None or not -CLOCK_SKEW <= now - signed_at <= STALE_AFTER:
            raise ReceiptRefused("the signature is too old, or the clocks differ")

    async def close(self) -> None:
        """The connections belong to the transport, which all accounts share."""


# --- sending ----------------------------------------------------------------------------------------------------------

# What SendGrid itself puts into events: a custom argument of the same name would be taken for it.
_EVENT_FIELDS: Final = frozenset(
    {"email", "timestamp", "event", "smtp-id", "useragent", "ip", "sg_event_id", "sg_message_id", "reason", "status"}
    | {"response", "attempt", "tls", "url", "url_offset", "category", "asm_group_id", "type", "cert_err", "pool"}
    | {"unique_args", "marketing_campaign_id", "marketing_campaign_name", "bounce_classification", "send_at"}
    | {"sg_machine_open", "sg_content_type", "sg_user_id", "newsletter", KEY_FIELD}
)


def _choose_args(message: Message, key: str) -> dict[str, str]:
    """Our key, and as much of the metadata as can come back without being taken for something else."""
    args = {KEY_FIELD: key}
    room = _ARGS_MAX - len(to_json(args))
    for name, value in message.metadata:
        room -= len(to_json({name: value}))
        if room < 0:
            break
        if name.lower() not in _EVENT_FIELDS:
            args[name] = value
    return args


def to_request(email: Email, parts: MailParts, custom_args: Mapping[str, str]) -> dict[str, Any]:
    """The body of `POST /v3/mail/send`."""
    envelope: dict[str, Any] = {"to": [{"email": parts.to}], "custom_args": custom_args}
    if parts.cc:
        envelope["cc"] = [_to_mailbox(copy) for copy in parts.cc]
    if parts.bcc:
        envelope["bcc"] = [_to_mailbox(copy) for copy in parts.bcc]
    contents = (("text/plain", email.text), ("text/html", email.html))  # in this order, or it is refused
    body: dict[str, Any] = {
        "personalizations": [envelope],
        "from": _to_mailbox(parts.sender),
        "subject": email.subject,
        "content": [{"type": kind, "value": value} for kind, value in contents if value],
    }
    if parts.reply_to is not None:
        body["reply_to"] = _to_mailbox(parts.reply_to)
    if parts.headers:
        body["headers"] = dict(parts.headers)
    if email.attachments:
        body["attachments"] = [_to_attachment(attachment) for attachment in email.attachments]
    if email.tags:
        body["categories"] = list(dict.fromkeys(email.tags))
    tracking: dict[str, Any] = {}
    if email.track_clicks is not None:
        tracking["click_tracking"] = {"enable": email.track_clicks}
    if email.track_opens is not None:
        tracking["open_tracking"] = {"enable": email.track_opens}
    if tracking:
        body["tracking_settings"] = tracking
    return body


def _to_mailbox(address: Address) -> dict[str, str]:
    return {"email": address.address, "name": address.name} if address.name else {"email": address.address}


def _to_attachment(attachment: Attachment) -> dict[str, str]:
    file = {
        "content": to_base64(attachment),
        "type": attachment.content_type,
        "filename": attachment.filename,
        "disposition": "attachment",
    }
    if attachment.content_id is not None:
        file |= {"disposition": "inline", "content_id": attachment.content_id}
    return file


_ABOUT_TO: Final = re.compile(r"personalizations\.\d+\.to(\.|$)")


def decide_result(answer: HttpAnswer, now: datetime) -> SendResult:
    """What an answer of Mail Send means. Errors come as `{"errors": [{"message", "field", "help"}]}`.

    https://www.twilio.com/docs/sendgrid/api-reference/how-to-use-the-sendgrid-v3-api/responses

    | answer                                             | result                                                    |
    |----------------------------------------------------|-----------------------------------------------------------|
    | 202                                                | Sent, with `X-Message-Id`                                 |
    | other 2xx (200 is the sandbox's)                   | Uncertain                                                 |
    | 400 about `personalizations.0.to.…`                | Rejected(invalid_address)                                 |
    | 400 about a duplicate or anything else             | Rejected(rejected)                                        |
    | 401, 403 "Maximum credits exceeded"                | Rejected(quota_exceeded)                                  |
    | 401, 403, 404, 405                                 | Rejected(unauthorized): key, sender or URL is wrong       |
    | 413                                                | Rejected(too_large): more than 30 MB                      |
    | 429                                                | Throttled until `X-RateLimit-Reset`, a time since 1970    |
    | 5xx                                                | Deferred(provider_error); 504 Uncertain                   |
    """
    if answer.status == 202:
        return Sent(parse_text(answer.headers.get("X-Message-Id")))
    if 200 <= answer.status < 300:
        return to_bad_answer(answer)
    listed = parse_object(parse_body(answer)).get("errors")
    errors = [parse_object(error) for error in listed] if isinstance(listed, list) else []
    detail = "; ".join(text for error in errors if (text := parse_text(error.get("message"))))
    result = decide_by_status(answer, now, detail or None)
    if answer.status in (401, 403) and "credits exceeded" in detail.lower():
        return Rejected(Reason.quota_exceeded, result.detail)
    if answer.status == 400 and any(_ABOUT_TO.match(parse_text(error.get("field")) or "") for error in errors):
        return Rejected(Reason.invalid_address, result.detail)
    if isinstance(result, Throttled) and result.retry_after is None:
        reset_at = parse_unix(answer.headers.get("X-RateLimit-Reset"))
        if reset_at is not None:
            return Throttled(min(max(reset_at - now, timedelta()), RETRY_AFTER_MAX), result.detail)
    return result


# --- receipts ---------------------------------------------------------------------------------------------------------

# https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/event#events
_KINDS: Final[Mapping[str, EventKind]] = {
    "processed": EventKind.sent,
    "delivered": EventKind.delivered,
    "deferred": EventKind.retrying,
    "bounce": EventKind.failed,  # `type` says whether for good ("bounce") or because we were blocked ("blocked")
    "dropped": EventKind.failed,  # not even tried
    "open": EventKind.opened,
    "click": EventKind.clicked,
    "spamreport": EventKind.complained,
    "unsubscribe": EventKind.unsubscribed,
    "group_unsubscribe": EventKind.unsubscribed,
    # group_resubscribe and account_status_change tell nothing of a delivery
}

# The `reason` of a dropped message, lower case.
_DROPPED: Final[Mapping[str, Reason]] = {
    "bounced address": Reason.bounced,
    "invalid": Reason.invalid_address,
    "spam reporting address": Reason.complained,
    "unsubscribed address": Reason.opted_out,
    "spam content": Reason.content_rejected,
    "spam content (if spam checker app enabled)": Reason.content_rejected,
    "invalid smtpapi header": Reason.rejected,
    "recipient list over package quota": Reason.quota_exceeded,
}

# https://www.twilio.com/docs/sendgrid/ui/analytics-and-reporting/bounce-and-block-classifications
_CLASSIFICATIONS: Final[Mapping[str, Reason]] = {
    "invalid address": Reason.bounced,
    "mailbox unavailable": Reason.mailbox_full,
    "reputation": Reason.blocked,
    "content": Reason.content_rejected,
    "frequency or volume too high": Reason.throttled,
    "technical failure": Reason.provider_error,
    # "unclassified" says nothing
}

# Reasons that would suppress an address: SendGrid calls a refusal "blocked" exactly when the address may be good.
_ABOUT_THE_ADDRESS: Final = frozenset({Reason.bounced, Reason.invalid_address, Reason.complained})


def to_report(event: Mapping[str, Any]) -> Report | None:
    """One event; None for one that tells nothing of a delivery."""
    name = (parse_text(event.get("event")) or "").lower()
    kind = _KINDS.get(name)
    if kind is None:
        return None
    return Report(
        kind,
        provider_id=parse_message_id(event.get("sg_message_id")),
        key=parse_text(event.get(KEY_FIELD)),
        address=parse_recipient(event.get("email")),
        reason=_decide_reason(name, event),
        at=parse_unix(event.get("timestamp")),
        machine=kind in (EventKind.opened, EventKind.clicked) and event.get("sg_machine_open") is True,
        url=parse_text(event.get("url")) if kind is EventKind.clicked else None,
        event_id=parse_text(event.get("sg_event_id")),
        detail=dict(event),
    )


def _decide_reason(name: str, event: Mapping[str, Any]) -> Reason | None:
    """The reason of an event, by SendGrid's name of it: the receiver's own codes first, then SendGrid's opinion."""
    if name == "spamreport":
        return Reason.complained
    said = parse_text(event.get("reason")) or parse_text(event.get("response")) or ""
    if name == "dropped":
        return _DROPPED.get(said.strip().lower(), Reason.rejected)
    by_codes = decide_reply_reason(said, enhanced=parse_text(event.get("status")) or "")
    if name == "deferred":
        return by_codes
    if name != "bounce":
        return None
    by_class = _CLASSIFICATIONS.get((parse_text(event.get("bounce_classification")) or "").lower())
    if event.get("type") != "blocked":
        return by_codes or by_class or Reason.bounced
    reasons = (reason for reason in (by_codes, by_class) if reason is not None and reason not in _ABOUT_THE_ADDRESS)
    return next(reasons, Reason.blocked)


_FILTER: Final = re.compile(r"(?:^|\.)(?:st)?(?:filter|recvd)")


def parse_message_id(value: Any) -> str | None:
    """What `X-Message-Id` was: `sg_message_id` up to the name of the machine that filtered the message.

    Old ids have dots of their own, so the cut is before that name where it is known.
    """
    text = parse_text(value) or ""
    found = _FILTER.search(text)
    return (text[: found.start()] if found else text.partition(".")[0]) or None
