"""E-mail by Mailgun: the messages API v3, and its signed webhooks.

https://documentation.mailgun.com/docs/mailgun/api-reference/send/mailgun/messages
https://documentation.mailgun.com/docs/mailgun/user-manual/tracking-messages
https://documentation.mailgun.com/docs/mailgun/user-manual/webhooks/securing-webhooks

The delivery's public id and the metadata travel as `v:` variables; Mailgun gives them back as `user-variables`, and
shows them to whoever reads the mail's source (`X-Mailgun-Variables`). It does not drop a second send with the same.

The signature covers a time and a random token, **not the event beside them**: whoever has seen one callback can make
up others until its time is too old. So the callback's address holds a secret as well.

This room knows Mailgun; it knows no account row and no retry policy.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final
from urllib.parse import quote

import msgspec
from pydantic import SecretStr, field_validator

from tidings.model.messages import Email, Message, Rejected, SendResult, Sent, Throttled
from tidings.model.words import Channel, EventKind, Reason
from tidings.providers.api import RETRY_AFTER_MAX, BaseUrl, VendorApi, decide_by_status, parse_body, to_bad_answer
from tidings.providers.http import HttpAnswer, TransportFailure, to_result
from tidings.providers.mail_api import (
    KEY_FIELD,
    MAIL_CAPABILITIES,
    MailParts,
    check_credential,
    check_sender,
    decide_reply_reason,
    parse_address,
    parse_object,
    parse_parts,
    parse_recipient,
    parse_text,
    parse_unix,
)
from tidings.providers.mime import MailRefused, parse_envelope_address
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

STALE_AFTER: Final = timedelta(hours=9)
"""A callback's signed time may be as old as that. Mailgun repeats what was not answered for eight hours and does not
say whether it signs it anew; an old callback does no harm, since each event is recorded once."""
CLOCK_SKEW: Final = timedelta(minutes=5)

_VARIABLES_MAX: Final = 4_096  # octets; beyond them Mailgun cuts off what it gives back
_WITHIN_MIN: Final = timedelta(minutes=5)
_WITHIN_MAX: Final = timedelta(hours=24)


class MailgunConfig(Config):
    """One sending domain of a Mailgun account."""

    guards_secrets: ClassVar[frozenset[str]] = frozenset({"base_url"})

    api_key: SecretStr
    """A sending key of the domain, or a key of the whole account."""
    domain: str
    """The domain that Mailgun sends for, such as `mg.example.com`."""
    from_address: str
    """The sender of mails whose template names none: `Name <address>` or an address."""
    base_url: BaseUrl = "https://api.mailgun.net"
    """`https://api.eu.mailgun.net` for domains of the EU region."""
    webhook_signing_key: SecretStr | None = None
    """The account's HTTP webhook signing key; without it no receipt is believed."""

    _check_api_key = field_validator("api_key")(check_credential)
    _check_from_address = field_validator("from_address")(check_sender)

    @field_validator("webhook_signing_key")
    @classmethod
    def _check_signing_key(cls, value: SecretStr | None) -> SecretStr | None:
        return value if value is None else check_credential(value)

    @field_validator("domain")
    @classmethod
    def _check_domain(cls, value: str) -> str:
        try:
            return parse_envelope_address("domain", f"x@{value.strip()}").partition("@")[2].lower()
        except MailRefused:
            raise ValueError("must be a domain such as mg.example.com") from None


class MailgunProvider:
    """Sends e-mail by the messages API, and reads the events that Mailgun posts."""

    spec: ClassVar[ProviderSpec] = ProviderSpec(
        name="mailgun",
        channels=frozenset({Channel.email}),
        config=MailgunConfig,
        capabilities=MAIL_CAPABILITIES | {Capability.inline_images, Capability.tracking},
        idempotent=False,
        confirms_delivery=False,
        timeout=timedelta(seconds=20),
        docs="https://documentation.mailgun.com/docs/mailgun/api-reference/send/mailgun/messages",
        receipts=ReceiptAuth.hidden_path,  # and signed, which is not enough: see above
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
        verified_by="Mailgun's OpenAPI description of its messages API; requests that django-anymail makes of the same "
        "mails; signatures that Mailgun made; the event samples of its documentation, its Go library, django-anymail "
        "and Symfony. Not by Mailgun itself: which errors it answers with, and whether a callback that it repeats "
        "carries a new time.",
    )

    def __init__(self, config: MailgunConfig, surroundings: Surroundings) -> None:
        self._api = VendorApi(config.base_url, surroundings, self.spec)
        self._clock = surroundings.clock
        self._from_address = config.from_address
        domain = quote(config.domain, safe="")
        self._path = f"/v3/{domain}/messages"
        self._domain_path = f"/v3/domains/{domain}"
        credentials = f"api:{config.api_key.get_secret_value()}".encode()
        self._authorization = f"Basic {base64.b64encode(credentials).decode('ascii')}"
        key = config.webhook_signing_key
        self._signing_key = key.get_secret_value().encode() if key is not None else None

    async def send(self, message: Message, key: str) -> SendResult:
        if (refused := find_unsupported(self.spec, message)) is not None:
            return refused
        parts = parse_parts(message, self._from_address)
        if isinstance(parts, Rejected):
            return parts
        boundary = secrets.token_hex(16)  # nobody can write a part of their own without knowing it
        body = to_form_data(to_fields(message, parts, key, self._clock.now()), boundary)
        headers = {
            "Authorization": self._authorization,
            "Content-Type": f"multipart/form-data; boundary={boundary}",
        }
        try:
            answer = await self._api.call(self._path, headers=headers, body=body)
        except TransportFailure as failure:
            return to_result(failure)
        return decide_result(answer, self._clock.now())

    async def check(self) -> str | None:
        """Asks for the domain (https://documentation.mailgun.com/docs/mailgun/api-reference/send/mailgun/domains)."""
        complaint = await self._api.check(self._domain_path, headers={"Authorization": self._authorization})
        return complaint and f"{complaint}; a key that may only send cannot be checked"

    async def receive(self, request: RawRequest, now: datetime) -> Receipts:
        try:
            payload = parse_object(msgspec.json.decode(request.body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ReceiptRefused("the body is not JSON, where the signature would be") from None
        signature = parse_object(payload.get("signature"))
        self._verify(signature, now)
        event = payload.get("event-data")
        if not isinstance(event, dict):
            raise ReceiptMalformed("there is no event-data")
        report = to_report(event, parse_text(signature.get("token")))
        return Receipts((report,) if report is not None else ())

    def _verify(self, signature: Mapping[str, Any], now: datetime) -> None:
        """HMAC-SHA256, in hexadecimal, over the time and the token."""
        if self._signing_key is None:
            raise ReceiptRefused("the account has no webhook_signing_key")
        timestamp, token = parse_text(signature.get("timestamp")) or "", parse_text(signature.get("token")) or ""
        given = parse_text(signature.get("signature")) or ""
        try:
            expected = hmac.digest(self._signing_key, f"{timestamp}{token}".encode(), "sha256").hex()
            right = hmac.compare_digest(given.encode(), expected.encode())
        except UnicodeEncodeError:  # half of a surrogate pair
            right = False
        if not right:
            raise ReceiptRefused("the signature is missing or wrong")
        signed_at = parse_unix(timestamp)
        if signed_at is None or not -CLOCK_SKEW <= now - signed_at <= STALE_AFTER:
            raise ReceiptRefused("the signature is too old, or the clocks differ")

    async def close(self) -> None:
        """The connections belong to the transport, which all accounts share."""


# --- sending ----------------------------------------------------------------------------------------------------------


class FormField(msgspec.Struct, frozen=True):
    """One part of a form; a file where it has a file's name."""

    name: str
    value: bytes
    filename: str | None = None
    content_type: str | None = None


def to_fields(message: Message, parts: MailParts, key: str, now: datetime) -> list[FormField]:
    """The form of `POST /v3/{domain}/messages`."""
    email = message.content
    assert isinstance(email, Email)
    fields = [_to_field("from", parts.sender.formatted), _to_field("to", parts.to)]
    fields += [_to_field("cc", copy.formatted) for copy in parts.cc]
    fields += [_to_field("bcc", copy.formatted) for copy in parts.bcc]
    fields.append(_to_field("subject", email.subject))
    if email.text is not None:
        fields.append(_to_field("text", email.text))
    if email.html is not None:
        fields.append(_to_field("html", email.html))
    if parts.reply_to is not None:
        fields.append(_to_field("h:Reply-To", parts.reply_to.formatted))
    fields += [_to_field(f"h:{name}", value) for name, value in parts.headers]
    fields += [_to_field("o:tag", tag) for tag in dict.fromkeys(email.tags)]
    if email.track_opens is not None:
        fields.append(_to_field("o:tracking-opens", "yes" if email.track_opens else "no"))
    if email.track_clicks is not None:
        fields.append(_to_field("o:tracking-clicks", "yes" if email.track_clicks else "no"))
    if message.expires_at is not None and message.expires_at - now >= _WITHIN_MIN:
        minutes = int(min(message.expires_at - now, _WITHIN_MAX).total_seconds()) // 60
        fields.append(_to_field("o:deliver-within", f"{minutes // 60}h{minutes % 60}m"))
    fields += _to_variables(message, key)
    for file in email.attachments:
        # An inline image is named by what the HTML calls it: `cid:` and its file name.
        name, filename = ("inline", file.content_id) if file.content_id is not None else ("attachment", file.filename)
        fields.append(FormField(name, file.content, filename, file.content_type))
    return fields


def _to_field(name: str, value: str) -> FormField:
    return FormField(name, value.encode("utf-8", "replace"))


def _to_variables(message: Message, key: str) -> Iterable[FormField]:
    """Our key, and as much of the metadata as will come back whole."""
    yield _to_field(f"v:{KEY_FIELD}", key)
    room = _VARIABLES_MAX - len(KEY_FIELD) - len(key)
    for name, value in message.metadata:
        field = _to_field(f"v:{name}", value)
        room -= len(name.encode("utf-8", "replace")) + len(field.value) + 8
        if room < 0:
            return
        if name != KEY_FIELD:
            yield field


def to_form_data(fields: Iterable[FormField], boundary: str) -> bytes:
    """The fields as `multipart/form-data` (RFC 7578; names are escaped as browsers do it).

    Args:
        boundary: what nobody who has a say in a value could know.
    """
    lines: list[bytes] = []
    for field in fields:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{_escape(field.name)}"'
        if field.filename is not None:
            head += f'; filename="{_escape(field.filename)}"'
        if field.content_type is not None:
            head += f"\r\nContent-Type: {_escape(field.content_type, quotes=False)}"
        lines += [head.encode("utf-8", "replace"), b"", field.value]
    return b"\r\n".join([*lines, f"--{boundary}--".encode(), b""])


def _escape(text: str, *, quotes: bool = True) -> str:
    text = text.replace("\r", "%0D").replace("\n", "%0A")
    return text.replace('"', "%22") if quotes else text


_TRY_AGAIN: Final = re.compile(r"try again after (\d{1,6}) second", re.IGNORECASE)
_BAD_TO: Final = re.compile(r"^'?to'? parameter is not a valid address", re.IGNORECASE)


def decide_result(answer: HttpAnswer, now: datetime) -> SendResult:
    """What an answer of the messages API means. Errors come as `{"message"}`, or as plain text.

    | answer                                                    | result                                             |
    |-----------------------------------------------------------|----------------------------------------------------|
    | 2xx with an `id`                                          | Sent                                               |
    | 2xx "Mailgun Magnificent API"                             | Rejected(unauthorized): the URL is not this API's  |
    | other 2xx                                                 | Uncertain                                          |
    | any other, "… try again after 120 seconds"                | Throttled for so long                              |
    | 429                                                       | Throttled, for as long as `Retry-After` says       |
    | 400 "to parameter is not a valid address …"               | Rejected(invalid_address)                          |
    | other 400                                                 | Rejected(rejected)                                 |
    | 401 "Forbidden", 403 (domain unverified, sandbox), 404    | Rejected(unauthorized)                             |
    | 402                                                       | Rejected(quota_exceeded)                           |
    | 413                                                       | Rejected(too_large): more than 25 MB               |
    | 5xx                                                       | Deferred(provider_error); 504 Uncertain            |
    """
    said = parse_body(answer)
    if 200 <= answer.status < 300:
        if (id_ := parse_text(parse_object(said).get("id"))) is not None:
            return Sent(id_.strip("<>"))  # as it stands in the events
        if answer.body.startswith(b"Mailgun Magnificent API"):
            return Rejected(Reason.unauthorized, "base_url does not lead to Mailgun's API")
        return to_bad_answer(answer)
    detail = parse_text(parse_object(said).get("message")) or parse_text(said)
    result = decide_by_status(answer, now, detail)
    if detail is None or answer.status >= 500:
        return result
    if (found := _TRY_AGAIN.search(detail)) is not None:
        return Throttled(min(timedelta(seconds=int(found[1])), RETRY_AFTER_MAX), result.detail)
    if answer.status == 400 and _BAD_TO.match(detail):
        return Rejected(Reason.invalid_address, result.detail)
    return result


# --- receipts ---------------------------------------------------------------------------------------------------------

# https://documentation.mailgun.com/docs/mailgun/user-manual/events/event-structure
_KINDS: Final[Mapping[str, EventKind]] = {
    "accepted": EventKind.sent,
    "rejected": EventKind.failed,  # by Mailgun itself, after it had taken the message
    "delivered": EventKind.delivered,
    "failed": EventKind.failed,  # `severity` temporary: Mailgun tries again
    "opened": EventKind.opened,
    "clicked": EventKind.clicked,
    "unsubscribed": EventKind.unsubscribed,
    "complained": EventKind.complained,
    # stored and the events of mailing lists tell nothing of a delivery
}

# Of a permanent failure: `reason`. https://documentation.mailgun.com/docs/mailgun/user-manual/tracking-messages/tracking-failures
_REASONS: Final[Mapping[str, Reason]] = {
    "suppress-bounce": Reason.bounced,
    "suppress-complaint": Reason.complained,
    "suppress-unsubscribe": Reason.opted_out,
    "espblock": Reason.blocked,
    "old": Reason.attempts_exhausted,  # Mailgun's own attempts
}

# Mailgun's codes of its own in `delivery-status.code`, where no server was asked.
_CODES: Final[Mapping[str, Reason]] = {
    "498": Reason.bounced,  # no MX for the domain
    "602": Reason.attempts_exhausted,  # too old
    "605": Reason.bounced,  # previously bounced
    "606": Reason.opted_out,  # unsubscribed
    "607": Reason.complained,  # marked as spam
}


def to_report(event: Mapping[str, Any], token: str | None) -> Report | None:
    """The event; None for one that tells nothing of a delivery.

    Args:
        token: the callback's; it stands in for the id of an event that has none.
    """
    name = parse_text(event.get("event")) or ""
    kind = _KINDS.get(name)
    if kind is None:
        return None
    if name == "failed" and event.get("severity") == "temporary":
        kind = EventKind.retrying
    headers = parse_object(parse_object(event.get("message")).get("headers"))
    return Report(
        kind,
        provider_id=(parse_text(headers.get("message-id")) or "").strip("<>") or None,
        key=parse_text(parse_object(event.get("user-variables")).get(KEY_FIELD)),
        address=parse_recipient(event.get("recipient")) or _find_recipient(headers),
        reason=_decide_reason(kind, event),
        at=parse_unix(event.get("timestamp")),
        machine=kind in (EventKind.opened, EventKind.clicked)
        and bool(parse_object(event.get("client-info")).get("bot")),
        url=parse_text(event.get("url")) if kind is EventKind.clicked else None,
        event_id=parse_text(event.get("id")) or token,
        detail={field: value for field, value in event.items() if field != "storage"},  # a link to the mail itself
    )


def _find_recipient(headers: Mapping[str, Any]) -> str | None:
    """An event without `recipient` is about the mail as a whole: then it is the one in `To`."""
    try:
        return parse_recipient(parse_address("to", parse_text(headers.get("to")) or "").address)
    except MailRefused:
        return None


def _decide_reason(kind: EventKind, event: Mapping[str, Any]) -> Reason | None:
    if kind is EventKind.complained:
        return Reason.complained
    if event.get("event") == "rejected":
        return Reason.rejected
    if kind not in (EventKind.failed, EventKind.retrying):
        return None
    status = parse_object(event.get("delivery-status"))
    code = parse_text(status.get("code")) or ""
    said = parse_text(status.get("message")) or parse_text(status.get("description")) or ""
    by_codes = decide_reply_reason(said, code, parse_text(status.get("enhanced-code")) or "")
    if kind is EventKind.retrying:
        return by_codes
    reason = parse_text(event.get("reason")) or ""
    if reason == "bounce":
        return by_codes or Reason.bounced
    return _REASONS.get(reason) or _CODES.get(code) or by_codes or Reason.rejected
