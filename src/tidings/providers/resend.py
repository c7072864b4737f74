"""E-mail by Resend, and its webhooks, which Svix signs as Standard Webhooks says.

https://resend.com/docs/api-reference/emails/send-email
https://resend.com/docs/dashboard/emails/idempotency-keys
https://resend.com/docs/dashboard/webhooks/event-types

The delivery's public id is the request's `Idempotency-Key`: for 24 hours Resend answers a repetition as it answered
the first time and sends nothing. It also travels as a tag, together with the e-mail's tags and those pairs of the
metadata that keep to the alphabet of Resend's tags; events bring the tags back.

This room knows Resend; it knows no account row and no retry policy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from email.utils import parseaddr
from typing import Any, ClassVar, Final

import msgspec
from pydantic import SecretStr, field_validator

from tidings.model.messages import Deferred, Email, Message, Rejected, SendResult, Sent, Uncertain
from tidings.model.words import Channel, EventKind, Reason
from tidings.providers.api import (
    DETAIL_MAX,
    BaseUrl,
    VendorApi,
    decide_by_status,
    parse_body,
    parse_retry_after,
    to_bad_answer,
    to_complaint,
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
    ReceiptRefused,
    Receipts,
    Report,
    Surroundings,
    find_unsupported,
)
from tidings.providers.webhook import parse_secret, verify_signature

_TAG: Final = re.compile(r"[A-Za-z0-9_-]{1,256}")
_RECIPIENTS_MAX: Final = 50


class ResendConfig(Config):
    """One API key of a Resend team."""

    guards_secrets: ClassVar[frozenset[str]] = frozenset({"base_url"})

    api_key: SecretStr
    """`re_…`, with sending access."""
    from_address: str
    """The sender of mails whose template names none: `Name <address>` or an address, of a verified domain."""
    webhook_secret: SecretStr | None = None
    """`whsec_…`, which Resend shows with the webhook. Without it no receipt is believed."""
    base_url: BaseUrl = "https://api.resend.com"

    _check_api_key = field_validator("api_key")(check_credential)
    _check_from_address = field_validator("from_address")(check_sender)

    @field_validator("webhook_secret")
    @classmethod
    def _check_webhook_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and not isinstance(parse_secret(secret), bytes):
            raise ValueError("must be whsec_ followed by base64")
        return secret


class ResendProvider:
    """Sends e-mail with one API key, and reads the events that Resend posts."""

    spec: ClassVar[ProviderSpec] = ProviderSpec(
        name="resend",
        channels=frozenset({Channel.email}),
        config=ResendConfig,
        capabilities=MAIL_CAPABILITIES | {Capability.inline_images},
        idempotent=True,
        confirms_delivery=False,
        timeout=timedelta(seconds=20),
        docs="https://resend.com/docs/api-reference/emails/send-email",
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
            }
        ),
        verified_by=(
            "Resend's OpenAPI description; requests that django-anymail makes of the same mails; the vectors of "
            "Standard Webhooks; callbacks recorded by django-anymail and Symfony. Only Resend itself can confirm which "
            "errors it answers with."
        ),
    )

    def __init__(self, config: ResendConfig, surroundings: Surroundings) -> None:
        self._api = VendorApi(config.base_url, surroundings, self.spec)
        self._clock = surroundings.clock
        self._from_address = config.from_address
        self._webhook_secret = config.webhook_secret
        self._headers = {
            "Authorization": f"Bearer {config.api_key.get_secret_value()}",
            "Content-Type": "application/json",
        }

    async def send(self, message: Message, key: str) -> SendResult:
        if (refused := find_unsupported(self.spec, message)) is not None:
            return refused
        email = message.content
        assert isinstance(email, Email)
        parts = parse_parts(message, self._from_address)
        if isinstance(parts, Rejected):
            return parts
        if 1 + len(parts.cc) + len(parts.bcc) > _RECIPIENTS_MAX:
            return Rejected(Reason.unsupported, f"resend takes at most {_RECIPIENTS_MAX} recipients")
        if len({name.lower() for name, _ in parts.headers}) < len(parts.headers):
            return Rejected(Reason.unsupported, "resend takes each header field once")
        body = to_json(to_request(message, email, parts, key))
        try:
            answer = await self._api.call("/emails", headers={**self._headers, "Idempotency-Key": key}, body=body)
        except TransportFailure as failure:
            return to_result(failure)
        return decide_result(answer, self._clock.now())

    async def check(self) -> str | None:
        """Asks for the domains (https://resend.com/docs/api-reference/domains/list-domains)."""
        try:
            answer = await self._api.call("/domains", headers=self._headers, method="GET")
        except TransportFailure as failure:
            return str(failure)
        match parse_body(answer):
            case {"name": "restricted_api_key"}:
                return None  # Resend knows the key: it is one that may only send
        return to_complaint(answer)

    async def receive(self, request: RawRequest, now: datetime) -> Receipts:
        """What one event says. Signatures older than five minutes are refused; Svix signs its repetitions anew."""
        if self._webhook_secret is None:
            raise ReceiptRefused("the account has no webhook_secret")
        verify_signature(self._webhook_secret, request.headers, request.body, now)
        try:
            event: Any = msgspec.json.decode(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ReceiptMalformed("the body is not JSON") from None
        if not isinstance(event, dict) or not isinstance(event.get("data"), dict):
            raise ReceiptMalformed("the body is no event of Resend")
        event_id = request.headers.get("webhook-id") or request.headers.get("svix-id")
        return Receipts(tuple(list_reports(event, event_id)))

    async def close(self) -> None:
        """The connections belong to the transport, which all accounts share."""


# --- sending ----------------------------------------------------------------------------------------------------------


def to_request(message: Message, email: Email, parts: MailParts, key: str) -> dict[str, Any]:
    """The body of `POST /emails`."""
    body: dict[str, Any] = {"from": parts.sender.formatted, "to": [parts.to], "subject": email.subject}
    if parts.cc:
        body["cc"] = [copy.formatted for copy in parts.cc]
    if parts.bcc:
        body["bcc"] = [copy.formatted for copy in parts.bcc]
    if parts.reply_to is not None:
        body["reply_to"] = [parts.reply_to.formatted]
    if email.text is not None:
        body["text"] = email.text
    if email.html is not None:
        body["html"] = email.html
    if parts.headers:
        body["headers"] = dict(parts.headers)
    if email.attachments:
        body["attachments"] = [
            {
                "filename": file.filename,
                "content": to_base64(file),
                "content_type": file.content_type,
                **({"content_id": file.content_id} if file.content_id is not None else {}),
            }
            for file in email.attachments
        ]
    body["tags"] = [{"name": name, "value": value} for name, value in _list_tags(message, email, key)]
    return body


def _list_tags(message: Message, email: Email, key: str) -> list[tuple[str, str]]:
    """Our key first, then the tags (as `tag`, `tag_2`, …), then the metadata that Resend's alphabet can say."""
    tags = {KEY_FIELD: key}
    for number, tag in enumerate(email.tags, start=1):
        tags["tag" if number == 1 else f"tag_{number}"] = re.sub(r"[^A-Za-z0-9_-]", "_", tag)[:256] or "_"
    for name, value in message.metadata:
        if _TAG.fullmatch(name) and _TAG.fullmatch(value):
            tags.setdefault(name, value)
    return list(tags.items())


# `name` of an error, where it says more than the status. https://resend.com/docs/api-reference/errors
_ERRORS: Final[Mapping[str, Reason]] = {
    "missing_api_key": Reason.unauthorized,
    "invalid_api_key": Reason.unauthorized,
    "restricted_api_key": Reason.unauthorized,
    "daily_quota_exceeded": Reason.quota_exceeded,
    "monthly_quota_exceeded": Reason.quota_exceeded,
    "security_error": Reason.content_rejected,
    "invalid_attachment": Reason.content_rejected,
    "missing_required_field": Reason.rejected,
    "invalid_parameter": Reason.rejected,
    "invalid_idempotency_key": Reason.rejected,
}


def decide_result(answer: HttpAnswer, now: datetime) -> SendResult:
    """What an answer means: by the error's name, else by the status.

    Errors come as `{"statusCode", "message", "name"}`. The name `validation_error` stands with 400 (a field is wrong,
    or, in the words only, the API key) and with 403 (a domain that is not verified, or a recipient that a trial
    account must not write to).
    """
    said = parse_object(parse_body(answer))
    if 200 <= answer.status < 300:
        id_ = parse_text(said.get("id"))
        return Sent(id_) if id_ is not None else to_bad_answer(answer)
    name, words = parse_text(said.get("name")) or "", parse_text(said.get("message")) or ""
    evidence = f"HTTP {answer.status} {name}: {words}"[:DETAIL_MAX]
    if name == "concurrent_idempotent_requests":  # an earlier attempt is still under way there
        return Deferred(Reason.provider_error, parse_retry_after(answer.headers.get("Retry-After"), now), evidence)
    if name == "invalid_idempotent_request":
        # An earlier attempt had another body: most likely it was taken, and this one was not.
        return Uncertain(evidence)
    if name == "validation_error" and "api key is invalid" in words.lower():
        return Rejected(Reason.unauthorized, evidence)
    if name == "validation_error" and answer.status in (400, 422) and "`to` field" in words:
        return Rejected(Reason.invalid_address, evidence)
    if (reason := _ERRORS.get(name)) is not None:
        return Rejected(reason, evidence)
    return decide_by_status(answer, now, f"{name}: {words}" if name else None)


# --- receipts ---------------------------------------------------------------------------------------------------------

# https://resend.com/docs/dashboard/webhooks/event-types
# Of the others, email.scheduled is nothing that we ask for, email.received is somebody else's mail, and domain.* and
# contact.* tell nothing of a delivery.
_KINDS: Final[Mapping[str, EventKind]] = {
    "email.sent": EventKind.sent,
    "email.delivered": EventKind.delivered,
    "email.delivery_delayed": EventKind.retrying,
    "email.bounced": EventKind.failed,
    "email.suppressed": EventKind.failed,  # not even tried: an earlier bounce or complaint
    "email.failed": EventKind.failed,  # not even tried: quota, domain, attachment
    "email.complained": EventKind.complained,
    "email.opened": EventKind.opened,
    "email.clicked": EventKind.clicked,
}

# `type` and `subType` of a bounce, as the OpenAPI description lists them; they are those of Amazon SES.
_BOUNCES: Final[Mapping[tuple[str, str], Reason]] = {
    ("Permanent", "NoEmail"): Reason.invalid_address,
    ("Transient", "MailboxFull"): Reason.mailbox_full,
    ("Transient", "MessageTooLarge"): Reason.too_large,
    ("Transient", "ContentRejected"): Reason.content_rejected,
    ("Transient", "AttachmentRejected"): Reason.content_rejected,
}
_SUPPRESSED: Final[Mapping[str, Reason]] = {
    "previous_bounce": Reason.bounced,
    "previous_complaint": Reason.complained,
}
_FAILED: Final[Mapping[str, Reason]] = {
    "reached_daily_quota": Reason.quota_exceeded,
    "reached_monthly_quota": Reason.quota_exceeded,
}
# Reasons that would suppress an address: a bounce that Resend calls transient is never one of them.
_ABOUT_THE_ADDRESS: Final = frozenset({Reason.bounced, Reason.invalid_address})


def list_reports(event: Mapping[str, Any], event_id: str | None) -> Iterator[Report]:
    """The facts of one event: one for each address that it names as concerned; none for other kinds of events."""
    name = parse_text(event.get("type")) or ""
    kind = _KINDS.get(name)
    data = parse_object(event.get("data"))
    provider_id = parse_text(data.get("email_id"))
    if kind is None or provider_id is None:
        return
    listed = data.get("to")
    addresses = [parseaddr(to)[1] or to for to in listed if isinstance(to, str)] if isinstance(listed, list) else []
    reason = _decide_reason(name, data)
    if kind is EventKind.failed and reason is None:
        kind = EventKind.retrying
    report = Report(
        kind,
        provider_id=provider_id,
        key=_find_key(data.get("tags")),
        reason=reason,
        at=_parse_at(event.get("created_at")),
        url=parse_text(parse_object(data.get("click")).get("link")) if kind is EventKind.clicked else None,
        # Without the subject and the header fields: they are content.
        detail={**event, "data": {n: value for n, value in data.items() if n not in ("subject", "headers")}},
    )
    for number, address in enumerate(addresses or [None]):
        id_ = f"{event_id}/{number}" if event_id is not None and len(addresses) > 1 else event_id
        yield msgspec.structs.replace(report, address=address, event_id=id_)


def _find_key(tags: Any) -> str | None:
    """Of the tags, which events have as an object, and older ones as they were sent."""
    if isinstance(tags, list):
        tags = {parse_text(tag.get("name")): tag.get("value") for tag in tags if isinstance(tag, dict)}
    return parse_text(parse_object(tags).get(KEY_FIELD))


def _decide_reason(name: str, data: Mapping[str, Any]) -> Reason | None:
    """The reason of an event. None for a bounce that nothing says to be the end: the answers of people who are away
    come as such (see `ses`, which is what Resend sends through)."""
    if name == "email.complained":
        return Reason.complained
    if name == "email.suppressed":
        return _SUPPRESSED.get(parse_text(parse_object(data.get("suppressed")).get("reason")) or "", Reason.bounced)
    if name == "email.failed":
        return _FAILED.get(parse_text(parse_object(data.get("failed")).get("reason")) or "", Reason.rejected)
    if name != "email.bounced":
        return None
    bounce = parse_object(data.get("bounce"))
    type_, sub_type = parse_text(bounce.get("type")) or "", parse_text(bounce.get("subType")) or ""
    if (reason := _BOUNCES.get((type_, sub_type))) is not None:
        return reason
    # Events of 2023 have neither; their words call the bounce hard.
    if type_ == "Permanent" or (not type_ and "hard bounce" in (parse_text(bounce.get("message")) or "")):
        return Reason.bounced
    said = bounce.get("diagnosticCode")
    first = parse_text(said[0]) if isinstance(said, list) and said else None
    if first is None:
        return None
    by_codes = decide_reply_reason(first)
    return by_codes if by_codes is not None and by_codes not in _ABOUT_THE_ADDRESS else Reason.rejected


def _parse_at(value: Any) -> datetime | None:
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return at if at is not None and at.tzinfo is not None else None
