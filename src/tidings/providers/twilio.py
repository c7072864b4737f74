"""Text messages and MMS through Twilio's Programmable Messaging, its status callbacks and its inbound messages.

https://www.twilio.com/docs/messaging/api/message-resource

Twilio carries no metadata, but it calls back the address that each message names: our delivery's id is a parameter of
it, and is covered by the signature. The signature holds no time, so a callback that is repeated cannot be told by its
age; the same event said twice changes nothing.

This room knows Twilio; it knows no retry policy. Which sender is used is decided in `senders.py`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Final
from urllib.parse import parse_qs, parse_qsl, quote, urlencode, urlsplit

from pydantic import Field, SecretStr, StringConstraints, model_validator

from tidings.model.messages import Deferred, Message, Rejected, SendResult, Sent, Sms, Throttled
from tidings.model.segments import simplify
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
from tidings.providers.port import (
    Capability,
    Config,
    Inbound,
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
from tidings.providers.senders import SenderConfig, SenderKind, Senders, choose_sender, find_sender, parse_keyword

_VALIDITY_MAX: Final = 36_000  # seconds; also what Twilio takes where nothing is said
_FORM: Final = "application/x-www-form-urlencoded"
_KEY_PARAMETER: Final = "tidings_delivery"
_EMPTY_TWIML: Final = b'<?xml version="1.0" encoding="UTF-8"?><Response/>'


class TwilioConfig(Config):
    """One Twilio account or subaccount, and the senders that it has."""

    guards_secrets: ClassVar[frozenset[str]] = frozenset({"base_url"})

    account_sid: Annotated[str, StringConstraints(pattern="^AC[0-9a-fA-F]{32}$")]
    auth_token: Annotated[SecretStr, Field(min_length=1)] | None = None
    """Signs Twilio's callbacks; without it none is believed. Also used to send, unless there is an API key."""
    api_key_sid: Annotated[str, StringConstraints(pattern="^SK[0-9a-fA-F]{32}$")] | None = None
    api_key_secret: SecretStr | None = None
    senders: Senders
    """Numbers, short codes, names, and messaging services (`MG…`)."""
    base_url: BaseUrl = "https://api.twilio.com"
    """Another one for a region, such as `https://api.dublin.ie1.twilio.com`."""
    smart_encoding: bool = False
    """Twilio replaces typographic characters by plain ones where that saves parts."""

    @model_validator(mode="after")
    def _check_credentials(self) -> TwilioConfig:
        if (self.api_key_sid is None) != (self.api_key_secret is None):
            raise ValueError("api_key_sid and api_key_secret go together")
        if self.auth_token is None and self.api_key_secret is None:
            raise ValueError("needs an auth_token, or an API key")
        return self


# --- what Twilio's codes mean -----------------------------------------------------------------------------------------

# Of an answer, or `ErrorCode` of a status callback. https://www.twilio.com/docs/api/errors
_REASONS: Final[dict[int, Reason]] = {
    # the recipient's number
    21211: Reason.invalid_address,  # invalid 'To' number
    21217: Reason.invalid_address,  # the number does not appear to be valid
    21265: Reason.invalid_address,  # 'To' cannot be a short code
    21614: Reason.invalid_address,  # not a mobile number
    21635: Reason.invalid_address,  # 'To' cannot be a landline
    21610: Reason.opted_out,  # answered STOP to this sender
    30004: Reason.blocked,  # the number is blocked from receiving it
    30005: Reason.bounced,  # unknown destination handset: the number is not in use
    30006: Reason.invalid_address,  # landline, or a carrier that cannot be reached
    # Switched off, without service, or a landline: nobody knows which, so the number is not given up.
    30003: Reason.rejected,
    # our sender
    21212: Reason.no_sender,  # invalid 'From' number
    21267: Reason.no_sender,  # alphanumeric sender cannot be used
    21601: Reason.no_sender,  # 'From' cannot send text messages
    21603: Reason.no_sender,  # a 'From' is required
    21606: Reason.no_sender,  # 'From' is not ours, or cannot send to this country
    21612: Reason.no_sender,  # not with this pair of 'To' and 'From'
    21659: Reason.no_sender,  # 'From' is not a Twilio number
    21660: Reason.no_sender,  # 'From' is another account's
    21661: Reason.no_sender,  # 'From' cannot send text messages
    21703: Reason.no_sender,  # the messaging service has no number to use
    21704: Reason.no_sender,  # the messaging service has no numbers
    21705: Reason.no_sender,  # the messaging service is invalid
    30024: Reason.no_sender,  # numeric sender not provisioned with the carrier
    30032: Reason.no_sender,  # toll-free number not verified
    30034: Reason.no_sender,  # number not registered for A2P 10DLC
    # our account
    20003: Reason.unauthorized,  # authentication failed
    20005: Reason.unauthorized,  # account not active
    20006: Reason.unauthorized,  # access denied
    20008: Reason.unauthorized,  # test credentials
    30002: Reason.unauthorized,  # account suspended
    21219: Reason.blocked,  # trial account: number not verified
    21408: Reason.blocked,  # no permission for this region
    21608: Reason.blocked,  # trial account: number not verified
    30450: Reason.blocked,  # delivery blocked by fraud protection
    30023: Reason.quota_exceeded,  # the carrier's daily cap
    30010: Reason.quota_exceeded,  # dearer than the account's highest price
    63038: Reason.quota_exceeded,  # the account's daily limit
    # the message
    21602: Reason.content_rejected,  # no body
    21605: Reason.too_large,  # body too long
    21617: Reason.too_large,  # body too long
    21619: Reason.content_rejected,  # neither body nor media
    21620: Reason.content_rejected,  # invalid media URL
    21623: Reason.too_large,  # more than ten media
    30007: Reason.content_rejected,  # filtered by the carrier
    30008: Reason.rejected,  # the carrier gives no cause
    30019: Reason.too_large,  # larger than the carrier takes
    30038: Reason.content_rejected,  # one-time password filtered
    12300: Reason.content_rejected,  # a content type that the media must not have
    11200: Reason.content_rejected,  # the media could not be fetched
    # time
    30036: Reason.expired,  # validity period ran out
    30001: Reason.throttled,  # queue overflow
    30022: Reason.throttled,  # A2P 10DLC rate
    30410: Reason.provider_error,  # the carrier did not answer
    30500: Reason.provider_error,  # inside Twilio
    60005: Reason.provider_error,  # inside the carrier
}
# Slower, please: about the account, not about the message.
_SLOW_DOWN: Final = frozenset(
    {
        14107,  # message rate
        20429,  # too many requests
        21611,  # queue of the 'From' number full
        30001,  # queue overflow
        30022,  # A2P 10DLC rate
        63017,  # rate of the account
        63018,  # rate of the channel
    }
)
_LATER: Final = frozenset({20500, 20503, 20504, 30410, 30500})

# `MessageStatus` of a callback. https://www.twilio.com/docs/messaging/guides/outbound-message-status-in-status-callbacks
# accepted, scheduled, queued and sending say no more than that we have sent it; what is not here is ignored.
_KINDS: Final[dict[str, EventKind]] = {
    "sent": EventKind.sent,  # the carrier has it
    "delivered": EventKind.delivered,
    "undelivered": EventKind.failed,  # the carrier says so
    "failed": EventKind.failed,  # it never left Twilio
    "canceled": EventKind.failed,
}


def decide_result(answer: HttpAnswer, now: datetime) -> SendResult:
    """What Twilio's answer to a message means: by its code, else by the status."""
    body = parse_body(answer)
    said = body if isinstance(body, dict) else {}
    if 200 <= answer.status < 300:
        sid = said.get("sid")
        if not isinstance(sid, str) or not sid:
            return to_bad_answer(answer)
        code = _to_int(said.get("error_code"))
        if said.get("status") == "failed" and code:
            return _decide_by_code(code, None, str(said.get("error_message"))) or Rejected(Reason.rejected, str(code))
        return Sent(sid)
    code = _to_int(said.get("code"))
    words = f"{code}: {said.get('message')}" if code else None
    retry_after = parse_retry_after(answer.headers.get("Retry-After"), now)
    return _decide_by_code(code, retry_after, words) or decide_by_status(answer, now, words)


def _decide_by_code(code: int, retry_after: timedelta | None, words: str | None) -> SendResult | None:
    detail = words[:DETAIL_MAX] if words else None
    if code in _SLOW_DOWN:
        return Throttled(retry_after, detail)
    if code in _LATER:
        return Deferred(Reason.provider_error, retry_after, detail)
    reason = _REASONS.get(code)
    return Rejected(reason, detail) if reason is not None else None


def _to_int(value: Any) -> int:
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


# --- signatures -------------------------------------------------------------------------------------------------------


def sign(auth_token: str, url: str, parameters: Mapping[str, Sequence[str]]) -> str:
    """`X-Twilio-Signature`: HMAC-SHA1 over the URL and the form's parameters, names in byte order, values of one name
    once each and in order. https://www.twilio.com/docs/usage/security#validating-requests"""
    content = url + "".join(name + value for name in sorted(parameters) for value in sorted(set(parameters[name])))
    return base64.b64encode(hmac.digest(auth_token.encode(), content.encode(), "sha1")).decode()


def is_signed(
    auth_token: str, url: str, parameters: Mapping[str, Sequence[str]] | None, body: bytes, signature: str
) -> bool:
    """Whether Twilio signed the request.

    Args:
        url: as Twilio was told it; whether it signs a port, and an apostrophe as it is or escaped, differs from
            product to product, so each way is tried.
        parameters: the form's; None for another body, whose SHA-256 the URL must then hold as `bodySHA256`.
    """
    if parameters is None:
        expected = parse_qs(urlsplit(url).query).get("bodySHA256", [""])[-1]
        if not hmac.compare_digest(hashlib.sha256(body).hexdigest().encode(), expected.encode()):
            return False
        parameters = {}
    given = signature.encode()
    return any(hmac.compare_digest(sign(auth_token, u, parameters).encode(), given) for u in set(_spell(url)))


def _spell(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return
    standard = {"https": 443, "http": 80}.get(parts.scheme)
    bare = parts.netloc.removesuffix(f":{port}") if port is not None else parts.netloc
    for netloc in (parts.netloc, bare, f"{bare}:{standard}"):
        spelled = url.replace(parts.netloc, netloc, 1)
        yield spelled
        yield spelled.replace("'", "%27")
        yield spelled.replace("%27", "'")


# --- the provider -----------------------------------------------------------------------------------------------------


class TwilioProvider:
    """Sends through one Twilio account, and reads what Twilio calls back."""

    spec: ClassVar[ProviderSpec] = ProviderSpec(
        name="twilio",
        channels=frozenset({Channel.sms}),
        config=TwilioConfig,
        capabilities=frozenset({Capability.media, Capability.sender}),
        idempotent=False,
        confirms_delivery=False,
        timeout=timedelta(seconds=15),
        docs="https://www.twilio.com/docs/messaging/api/message-resource",
        receipts=ReceiptAuth.signature,
        echoes_key=True,  # in the address that Twilio calls back
        reports=frozenset({EventKind.sent, EventKind.delivered, EventKind.failed}),
        verified_by=(
            "requests against Twilio's OpenAPI description; signatures against the vectors of the Python, Node and "
            "Java libraries; segments against Twilio's calculator; status callbacks and codes against those recorded "
            "by notification-api and Symfony. Only Twilio itself can confirm which number of a messaging service it "
            "takes, and what the carriers make of it."
        ),
    )

    def __init__(self, config: TwilioConfig, surroundings: Surroundings) -> None:
        self._config = config
        self._clock = surroundings.clock
        self._callback_url = surroundings.callback_url
        self._api = VendorApi(config.base_url, surroundings, self.spec)
        self._path = f"/2010-04-01/Accounts/{config.account_sid}/Messages.json"
        self._account_path = f"/2010-04-01/Accounts/{config.account_sid}.json"
        user, secret = config.account_sid, config.auth_token
        if config.api_key_sid is not None:
            user, secret = config.api_key_sid, config.api_key_secret
        assert secret is not None
        credentials = base64.b64encode(f"{user}:{secret.get_secret_value()}".encode()).decode()
        self._headers = {"Authorization": f"Basic {credentials}", "Content-Type": _FORM, "Accept": "application/json"}

    async def send(self, message: Message, key: str) -> SendResult:
        if (refused := find_unsupported(self.spec, message)) is not None:
            return refused
        sender = choose_sender(self._config.senders, message)
        if isinstance(sender, Rejected):
            return sender
        now = self._clock.now()
        body = urlencode(to_form(self._config, message, sender, key, now, self._callback_url)).encode()
        try:
            answer = await self._api.call(self._path, headers=self._headers, body=body)
        except TransportFailure as failure:
            return to_result(failure)
        return decide_result(answer, now)

    async def check(self) -> str | None:
        """Asks for the account (https://www.twilio.com/docs/iam/api/account). A standard API key may not see that: with
        one, for the newest message."""
        path = self._path + "?PageSize=1" if self._config.api_key_sid is not None else self._account_path
        return await self._api.check(path, headers=self._headers)

    async def receive(self, request: RawRequest, now: datetime) -> Receipts:
        if self._config.auth_token is None:
            raise ReceiptRefused("the account has no auth_token to check Twilio's signature with")
        form = request.headers.get("content-type", "").partition(";")[0].strip().lower() == _FORM
        parameters = _parse_form(request.body) if form or not request.body else None
        if not is_signed(
            self._config.auth_token.get_secret_value(),
            request.url,
            parameters,
            request.body,
            request.headers.get("x-twilio-signature", ""),
        ):
            raise ReceiptRefused("the signature is not Twilio's")
        query = urlsplit(request.url).query
        if parameters is None:
            raise ReceiptMalformed("the callback is no form")
        fields = {name: values[-1] for name, values in parameters.items()} or dict(parse_qsl(query))
        key = parse_qs(query).get(_KEY_PARAMETER, [None])[-1]
        return parse_callback(fields, self._config.senders, key, request.headers.get("i-twilio-idempotency-token"))

    async def close(self) -> None:
        """The connections belong to the transport, which all accounts share."""


def to_form(
    config: TwilioConfig, message: Message, sender: SenderConfig, key: str, now: datetime, callback_url: str | None
) -> list[tuple[str, str]]:
    """The parameters of `POST …/Messages.json`.

    Args:
        callback_url: where Twilio reports what became of the message; None: where the account's settings there say.
    """
    content = message.content
    assert isinstance(content, Sms)
    form = [
        ("To", message.to),
        ("MessagingServiceSid" if sender.kind is SenderKind.messaging_service else "From", sender.id),
        ("Body", content.text),
        *(("MediaUrl", url) for url in content.media),
    ]
    if callback_url is not None:
        mark = "&" if "?" in callback_url else "?"
        form.append(("StatusCallback", f"{callback_url}{mark}{_KEY_PARAMETER}={quote(key, safe='')}"))
    if message.expires_at is not None:
        seconds = int((message.expires_at - now).total_seconds())
        if seconds < _VALIDITY_MAX:
            form.append(("ValidityPeriod", str(max(seconds, 1))))
    if config.smart_encoding and simplify(content.text) != content.text:
        form.append(("SmartEncoded", "true"))
    return form


def _parse_form(body: bytes) -> dict[str, list[str]]:
    """A form's parameters; one that is left empty counts."""
    try:
        return parse_qs(body.decode(), keep_blank_values=True, max_num_fields=500)
    except ValueError:  # not UTF-8, or too many
        raise ReceiptRefused("the form cannot be read, and so neither can what was signed") from None


def parse_callback(
    fields: Mapping[str, str], senders: Sequence[SenderConfig], key: str | None, event_id: str | None
) -> Receipts:
    """What a callback says, after its signature was checked: of a message of ours, or one that somebody wrote to us.

    Args:
        key: our delivery's id, from the address that was called.
        event_id: Twilio's mark of this callback, the same when it is repeated.

    Raises:
        ReceiptMalformed: it names no message.
    """
    sid = fields.get("MessageSid") or fields.get("SmsSid")
    if not sid:
        raise ReceiptMalformed("the callback names no message")
    reports: tuple[Report, ...] = ()
    inbound: tuple[Inbound, ...] = ()
    status = fields.get("MessageStatus")
    if status is None and "Body" in fields and "From" in fields:
        inbound = (_to_inbound(fields, senders, sid),)
    elif (kind := _KINDS.get(status or "")) is not None:
        code = _to_int(fields.get("ErrorCode"))
        reason = None
        if kind is EventKind.failed:
            reason = Reason.cancelled if status == "canceled" else _REASONS.get(code, Reason.rejected)
            if code == 30006 and not fields.get("From", "").startswith("+"):
                reason = Reason.blocked  # from a short code it may be the carrier that cannot be reached
        reports = (
            Report(
                kind,
                provider_id=sid,
                key=key,
                address=fields.get("To"),
                reason=reason,
                at=_parse_done(fields.get("RawDlrDoneDate", "")),
                event_id=event_id,
                detail=dict(fields),
            ),
        )
    return Receipts(reports, inbound, content_type="text/xml; charset=utf-8", body=_EMPTY_TWIML)


def _to_inbound(fields: Mapping[str, str], senders: Sequence[SenderConfig], sid: str) -> Inbound:
    recipient = fields.get("To", "")
    # Who opts out of a messaging service opts out of all of its numbers, and we only know the service.
    service = fields.get("MessagingServiceSid")
    if service is not None and find_sender(senders, service) is not None:
        recipient = service
    text = fields["Body"]
    # Twilio says so itself where its opt-out management is on: https://www.twilio.com/docs/messaging/tutorials/advanced-opt-out
    named = parse_keyword(fields.get("OptOutType", ""))
    return Inbound(fields["From"], recipient, text, sid, keyword=named or parse_keyword(text))


def _parse_done(text: str) -> datetime | None:
    """`RawDlrDoneDate`: when the carrier says it was done, as YYMMDDhhmm in UTC."""
    try:
        return datetime.strptime(text[:10], "%y%m%d%H%M").replace(tzinfo=UTC)
    except ValueError:
        return None
