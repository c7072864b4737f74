"""E-mail by Brevo (once Sendinblue): transactional mails of its API v3, and their webhooks.

https://developers.brevo.com/reference/send-transac-email
https://developers.brevo.com/docs/heterogenous-versions-batch-emails (idempotency)
https://developers.brevo.com/docs/transactional-webhooks

The delivery's UUID is the request's `idempotencyKey`: for 30 minutes Brevo refuses a repetition by the code
`duplicate_parameter`, which here means that an earlier attempt was taken. The delivery's public id and the metadata
travel in the header field `X-Mailin-custom`, which whoever reads the mail's source can see. Not every kind of event
brings it back, so events are matched by Brevo's `message-id`, too.

Brevo signs nothing: the callback's address holds a secret. It takes header fields in ASCII only, writes their names in
its own case, and knows no inline images.

This room knows Brevo; it knows no account row and no retry policy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final

import msgspec
from pydantic import SecretStr, field_validator

from tidings.model.messages import Email, Message, Rejected, SendResult, Sent
from tidings.model.words import Channel, EventKind, Reason
from tidings.providers.api import DETAIL_MAX, BaseUrl, VendorApi, decide_by_status, parse_body, to_bad_answer
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
    parse_text,
    parse_unix,
    to_base64,
    to_json,
)
from tidings.providers.mime import parse_mailbox
from tidings.providers.port import (
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

_CUSTOM: Final = "X-Mailin-custom"
_OWN_FIELDS: Final = frozenset({"x-mailin-custom", "idempotencykey", "idempotency-key", "sender.ip"})
_NEEDS_ENCODING: Final = re.compile(r"(?=.*[^\x00-\x7f])(?=.*[()<>@,;:\\\".\[\]])", re.DOTALL)


class BrevoConfig(Config):
    """One API key of a Brevo account."""

    guards_secrets: ClassVar[frozenset[str]] = frozenset({"base_url"})

    api_key: SecretStr
    """`xkeysib-…`"""
    from_address: str
    """The sender of mails whose template names none: `Name <address>` or an address; a sender that Brevo verified."""
    base_url: BaseUrl = "https://api.brevo.com"

    _check_api_key = field_validator("api_key")(check_credential)
    _check_from_address = field_validator("from_address")(check_sender)


class BrevoProvider:
    """Sends e-mail with one API key, and reads the events that Brevo posts."""

    spec: ClassVar[ProviderSpec] = ProviderSpec(
        name="brevo",
        channels=frozenset({Channel.email}),
        config=BrevoConfig,
        capabilities=MAIL_CAPABILITIES,
        idempotent=True,  # for half an hour
        confirms_delivery=False,
        timeout=timedelta(seconds=20),
        docs="https://developers.brevo.com/reference/send-transac-email",
        receipts=ReceiptAuth.hidden_path,
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
            "Requests that django-anymail makes of the same mails; callbacks recorded by django-anymail and Symfony. "
            "There is no public description to hold requests against. Only Brevo itself can confirm its errors, and "
            "that the idempotency key works for single mails as its guide shows."
        ),
    )

    def __init__(self, config: BrevoConfig, surroundings: Surroundings) -> None:
        self._api = VendorApi(config.base_url, surroundings, self.spec)
        self._clock = surroundings.clock
        self._from_address = config.from_address
        self._headers = {
            "api-key": config.api_key.get_secret_value(),
            "Content-Type": "application/json",
            "Accept": "application/json",
        }

    async def send(self, message: Message, key: str) -> SendResult:
        if (refused := find_unsupported(self.spec, message)) is not None:
            return refused
        email = message.content
        assert isinstance(email, Email)
        parts = parse_parts(message, self._from_address)
        if isinstance(parts, Rejected):
            return parts
        if (refused := _find_refused_field(parts)) is not None:
            return refused
        try:
            answer = await self._api.call(
                "/v3/smtp/email", headers=self._headers, body=to_json(to_request(message, email, parts, key))
            )
        except TransportFailure as failure:
            return to_result(failure)
        return decide_result(answer, self._clock.now())

    async def check(self) -> str | None:
        """Asks for the account (https://developers.brevo.com/reference/get-account)."""
        return await self._api.check("/v3/account", headers=self._headers)

    async def receive(self, request: RawRequest, now: datetime) -> Receipts:
        """What one event says, or a batch of them. That the address was the right one has been checked before."""
        try:
            body: Any = msgspec.json.decode(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ReceiptMalformed("the body is not JSON") from None
        events = body if isinstance(body, list) else [body]
        if not all(isinstance(event, dict) for event in events):
            raise ReceiptMalformed("the body is no event of Brevo")
        reports = (to_report(event) for event in events)
        return Receipts(tuple(report for report in reports if report is not None))

    async def close(self) -> None:
        """The connections belong to the transport, which all accounts share."""


# --- sending ----------------------------------------------------------------------------------------------------------


def _find_refused_field(parts: MailParts) -> Rejected | None:
    """A header field that would not arrive as it is, named."""
    seen: set[str] = set()
    for name, value in parts.headers:
        lowered = name.lower()
        if lowered in seen or lowered in _OWN_FIELDS:
            return Rejected(Reason.unsupported, f"brevo takes the header field {name} once or not at all")
        if not value.isascii():
            return Rejected(Reason.unsupported, f"brevo takes the header field {name} in ASCII only")
        seen.add(lowered)
    return None


def to_request(message: Message, email: Email, parts: MailParts, key: str) -> dict[str, Any]:
    """The body of `POST /v3/smtp/email`."""
    custom = {**dict(message.metadata), KEY_FIELD: key}
    body: dict[str, Any] = {
        "sender": _to_mailbox(parts.sender),
        "to": [{"email": parts.to}],
        "subject": email.subject,
        "headers": {
            **dict(parts.headers),
            _CUSTOM: json.dumps(custom, separators=(",", ":")),  # in ASCII, as header fields are
            "idempotencyKey": str(message.delivery),
        },
    }
    if parts.cc:
        body["cc"] = [_to_mailbox(copy) for copy in parts.cc]
    if parts.bcc:
        body["bcc"] = [_to_mailbox(copy) for copy in parts.bcc]
    if parts.reply_to is not None:
        body["replyTo"] = _to_mailbox(parts.reply_to)
    if email.text is not None:
        body["textContent"] = email.text
    if email.html is not None:
        body["htmlContent"] = email.html
    if email.attachments:
        body["attachment"] = [{"name": file.filename, "content": to_base64(file)} for file in email.attachments]
    if email.tags:
        body["tags"] = list(dict.fromkeys(email.tags))
    return body


def _to_mailbox(address: Address) -> dict[str, str]:
    """Brevo puts no quotes around a name that is not ASCII, so one that needs them goes as encoded words."""
    if not address.name:
        return {"email": address.address}
    name = address.name
    if _NEEDS_ENCODING.match(name):
        name = parse_mailbox("name", address.formatted).header.replace("\r\n", "").rpartition(" <")[0]
    return {"email": address.address, "name": name}


# `code` of an error. https://developers.brevo.com/docs/how-it-works#error-codes
_ERRORS: Final[Mapping[str, Reason]] = {
    "unauthorized": Reason.unauthorized,  # the key, or an address of ours that is not allowed
    "permission_denied": Reason.unauthorized,
    "account_under_validation": Reason.unauthorized,
    "not_enough_credits": Reason.quota_exceeded,
    "invalid_parameter": Reason.rejected,
    "missing_parameter": Reason.rejected,
    "out_of_range": Reason.rejected,
    "bad_request": Reason.rejected,
    "not_acceptable": Reason.rejected,
    "unprocessable_entity": Reason.rejected,
}
_DUPLICATE: Final = frozenset({"duplicate_parameter", "duplicate_request"})
_ABOUT_TO: Final = re.compile(r"email is not valid in to\b|\bto\[?\d*\]?[. ]?email\b", re.IGNORECASE)
_ABOUT_SENDER: Final = re.compile(r"because the sender you used", re.IGNORECASE)


def decide_result(answer: HttpAnswer, now: datetime) -> SendResult:
    """What an answer means: by the error's code, else by the status. Errors come as `{"code", "message"}`."""
    said = parse_object(parse_body(answer))
    if 200 <= answer.status < 300:
        id_ = parse_message_id(said.get("messageId"))
        return Sent(id_) if id_ is not None else to_bad_answer(answer)
    code, words = parse_text(said.get("code")) or "", parse_text(said.get("message")) or ""
    evidence = f"HTTP {answer.status} {code}: {words}"[:DETAIL_MAX]
    if code in _DUPLICATE:
        return Sent(detail=f"an earlier attempt was taken: {evidence}"[:DETAIL_MAX])
    if code == "invalid_parameter" and _ABOUT_TO.search(words):
        return Rejected(Reason.invalid_address, evidence)
    if code == "invalid_parameter" and _ABOUT_SENDER.search(words):  # it is not verified
        return Rejected(Reason.unauthorized, evidence)
    if 400 <= answer.status < 500 and answer.status != 429 and (reason := _ERRORS.get(code)) is not None:
        return Rejected(reason, evidence)
    return decide_by_status(answer, now, f"{code}: {words}" if code else None)


# --- receipts ---------------------------------------------------------------------------------------------------------

# `event` of a callback. The names under which webhooks are set up differ (`hardBounce`, `spam`, `click`, …).
_KINDS: Final[Mapping[str, EventKind]] = {
    "request": EventKind.sent,
    "sent": EventKind.sent,
    "delivered": EventKind.delivered,
    "deferred": EventKind.retrying,
    "soft_bounce": EventKind.failed,
    "hard_bounce": EventKind.failed,
    "invalid_email": EventKind.failed,
    "blocked": EventKind.failed,  # the recipient is on Brevo's block list
    "error": EventKind.failed,
    "complaint": EventKind.complained,
    "spam": EventKind.complained,
    "opened": EventKind.opened,
    "unique_opened": EventKind.opened,
    "proxy_open": EventKind.opened,
    "unique_proxy_open": EventKind.opened,
    "click": EventKind.clicked,
    "unsubscribed": EventKind.unsubscribed,
    "unsubscribe": EventKind.unsubscribed,
}
_BY_MACHINE: Final = frozenset({"proxy_open", "unique_proxy_open"})
"""Apple's Mail Privacy Protection and the like."""

_REASONS: Final[Mapping[str, Reason]] = {
    "hard_bounce": Reason.bounced,
    "invalid_email": Reason.invalid_address,
    # For a hard bounce, a complaint or an unsubscription of the past: no other account should get around that.
    "blocked": Reason.suppressed,
    "error": Reason.provider_error,
    "complaint": Reason.complained,
    "spam": Reason.complained,
}
# Reasons that would suppress an address: what Brevo calls soft is never one of them.
_ABOUT_THE_ADDRESS: Final = frozenset({Reason.bounced, Reason.invalid_address})


def to_report(event: Mapping[str, Any]) -> Report | None:
    """One event; None for one that tells nothing of a delivery."""
    name = (parse_text(event.get("event")) or "").lower()
    kind = _KINDS.get(name)
    provider_id = parse_message_id(event.get("message-id"))
    if kind is None or provider_id is None:
        return None
    return Report(
        kind,
        provider_id=provider_id,
        key=_find_key(event.get(_CUSTOM)),
        address=parse_text(event.get("email")),
        reason=_REASONS.get(name) or _decide_soft_reason(name, parse_text(event.get("reason")) or ""),
        at=_find_time(event),
        machine=name in _BY_MACHINE,
        url=parse_text(event.get("link")) if kind is EventKind.clicked else None,
        detail={field: value for field, value in event.items() if field != "subject"},
    )


def _decide_soft_reason(name: str, words: str) -> Reason | None:
    if name not in ("soft_bounce", "deferred"):
        return None
    by_codes = decide_reply_reason(words)
    if by_codes is not None and by_codes not in _ABOUT_THE_ADDRESS:
        return by_codes
    return Reason.rejected if name == "soft_bounce" else None


def _find_key(custom: Any) -> str | None:
    try:
        return parse_text(parse_object(msgspec.json.decode(parse_text(custom) or "")).get(KEY_FIELD))
    except (msgspec.DecodeError, RecursionError):
        return None  # another application's


def _find_time(event: Mapping[str, Any]) -> datetime | None:
    """`ts_epoch` has milliseconds (but seconds in some of Brevo's own samples), the others have seconds."""
    times = (parse_unix(event.get(field)) for field in ("ts_epoch", "ts_event", "ts", "s_epoch"))
    return next((at for at in times if at is not None), None)


def parse_message_id(value: Any) -> str | None:
    """A `Message-ID` without its brackets, which Brevo writes or leaves out."""
    return (parse_text(value) or "").strip().removeprefix("<").removesuffix(">") or None
