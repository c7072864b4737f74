"""Text messages and MMS through Vonage: the Messages API (v1) and the older SMS API, and the callbacks of both.

https://developer.vonage.com/en/api/messages
https://developer.vonage.com/en/api/sms

The SMS API answers HTTP 200 to everything and puts its "no" into the body, once for each part of the message; it signs
callbacks with a parameter `sig` over the others. The Messages API answers with problem details (RFC 9457), and signs
callbacks with a JSON Web Token that holds the SHA-256 of the body. Both give our delivery's id back as `client-ref`.

File order: configuration, tables of codes, signatures, the provider, requests and answers, callbacks.
This room knows Vonage; it knows no retry policy. Which sender is used is decided in `senders.py`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Final, Literal, cast
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec
from pydantic import Field, SecretStr, field_validator, model_validator

from tidings.model.messages import Deferred, Message, Rejected, SendResult, Sent, Sms, Throttled, Uncertain
from tidings.model.segments import count_segments
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
from tidings.providers.jwt import parse_base64url, parse_rsa_key, sign_jwt
from tidings.providers.port import (
    CannotCheck,
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
from tidings.providers.senders import SenderConfig, Senders, choose_sender, parse_keyword, to_e164

SignatureMethod = Literal["md5hash", "md5", "sha1", "sha256", "sha512"]

_BASE_URLS: Final = {"messages": "https://api.nexmo.com", "sms": "https://rest.nexmo.com"}
_TTL: Final = (20, 604_800)  # seconds that Vonage takes, from and to
_TOLERANCE: Final = timedelta(minutes=5)
"""How far the time in a signature may be from ours."""
_TOKEN_TTL: Final = timedelta(minutes=15)
_TOKEN_RENEWAL: Final = timedelta(minutes=5)
"""A token that is valid for less than this is made anew."""
_MEDIA_TYPES: Final = {
    **dict.fromkeys(("mp3", "m4a", "wav", "amr", "aac", "ogg"), "audio"),
    **dict.fromkeys(("mp4", "3gp", "3gpp", "mov", "mpeg", "mpg", "webm"), "video"),
    **dict.fromkeys(("vcf", "vcard"), "vcard"),
}
"""By the ending of a media URL's path; every other one is taken for an image."""


class VonageConfig(Config):
    """One Vonage account, and the senders that it has."""

    guards_secrets: ClassVar[frozenset[str]] = frozenset({"base_url"})

    api: Literal["messages", "sms"] = "messages"
    """Which of the two APIs to use; MMS needs `messages`."""
    api_key: str
    api_secret: SecretStr | None = None
    application_id: str | None = None
    """Of the Vonage application that messages are sent as; with `private_key`."""
    private_key: SecretStr | None = None
    """The application's RSA key (PEM)."""
    signature_secret: Annotated[SecretStr, Field(min_length=1)] | None = None
    """Signs Vonage's callbacks; without it none is believed."""
    signature_method: SignatureMethod = "md5hash"
    """How callbacks of the SMS API are signed, as the account's settings at Vonage say."""
    senders: Senders
    """Numbers, short codes and names."""
    base_url: BaseUrl | None = None
    """None: the API's own."""

    @field_validator("private_key")
    @classmethod
    def _check_private_key(cls, pem: SecretStr | None) -> SecretStr | None:
        if pem is not None:
            parse_rsa_key(pem.get_secret_value())
        return pem

    @model_validator(mode="after")
    def _check_credentials(self) -> VonageConfig:
        if (self.application_id is None) != (self.private_key is None):
            raise ValueError("application_id and private_key go together")
        if self.api == "sms" and self.api_secret is None:
            raise ValueError("the SMS API needs an api_secret")
        if self.api_secret is None and self.private_key is None:
            raise ValueError("needs an api_secret, or an application_id and its private_key")
        return self


# --- what Vonage's codes mean -----------------------------------------------------------------------------------------

# `status` of an answer of the SMS API. https://developer.vonage.com/en/api-errors/sms
_SMS_STATUS: Final[dict[str, Reason]] = {
    "2": Reason.rejected,  # a parameter is missing
    "3": Reason.rejected,  # a parameter is invalid
    "4": Reason.unauthorized,  # invalid credentials
    "6": Reason.rejected,  # invalid message, such as a prefix that is not known
    # The number is on a list of those that get nothing; another of our accounts must not get around it.
    "7": Reason.opted_out,
    "8": Reason.unauthorized,  # account suspended
    "9": Reason.quota_exceeded,  # no credit
    "11": Reason.unauthorized,  # account not enabled for this API
    "12": Reason.too_large,
    "14": Reason.unauthorized,  # invalid signature
    "15": Reason.no_sender,  # sender not allowed
    "22": Reason.rejected,  # invalid network code
    "23": Reason.rejected,  # invalid callback URL
    "29": Reason.blocked,  # demo account: number not listed
    "32": Reason.unauthorized,  # signature and secret together
    "33": Reason.bounced,  # number deactivated
    "101": Reason.opted_out,  # opted out of the short code's program
}
_SMS_LATER: Final = frozenset({"5", "13"})  # internal error, communication failed
_SMS_SLOW_DOWN: Final = frozenset({"1", "10"})  # rate, number of connections

# `err-code` of a delivery receipt. https://developer.vonage.com/en/messaging/sms/guides/delivery-receipts
_RECEIPT_CODES: Final[dict[str, Reason]] = {
    "2": Reason.rejected,  # absent for now
    "3": Reason.bounced,  # absent for good: not in use any more
    "4": Reason.opted_out,  # barred by the user
    "5": Reason.rejected,  # portability: the number has changed its carrier
    "6": Reason.content_rejected,  # anti-spam
    "7": Reason.rejected,  # handset busy
    "8": Reason.provider_error,  # network error
    "9": Reason.invalid_address,  # illegal number
    "10": Reason.content_rejected,  # invalid message
    "11": Reason.blocked,  # no route
    "12": Reason.rejected,  # unreachable
    "13": Reason.content_rejected,  # subscriber's age
    "14": Reason.blocked,  # by the carrier
    "15": Reason.rejected,  # recipient's prepaid card is empty
    "16": Reason.quota_exceeded,
    "50": Reason.blocked,  # entity, header, content and consent filters of a country
    "51": Reason.no_sender,
    "52": Reason.content_rejected,
    "53": Reason.opted_out,
    "54": Reason.blocked,
}

# `type` of a problem of the Messages API, its end: answers and callbacks. https://developer.vonage.com/en/api-errors/messages
_PROBLEMS: Final[dict[str, Reason]] = {
    "1000": Reason.throttled,
    "1030": Reason.provider_error,
    "1040": Reason.rejected,  # such as a prefix that is not known
    "1050": Reason.opted_out,  # number barred, see "7" above
    "1060": Reason.unauthorized,  # account barred
    "1070": Reason.quota_exceeded,
    "1080": Reason.unauthorized,  # account not enabled
    "1090": Reason.too_large,
    "1100": Reason.provider_error,  # communication failed
    "1120": Reason.no_sender,
    "1140": Reason.unauthorized,  # facility not allowed
    "1160": Reason.blocked,  # demo account: number not listed
    "1170": Reason.invalid_address,
    "1180": Reason.rejected,  # absent for now
    "1190": Reason.bounced,  # absent for good
    "1200": Reason.rejected,  # portability
    "1210": Reason.content_rejected,  # anti-spam
    "1220": Reason.rejected,  # handset busy
    "1230": Reason.provider_error,  # network
    "1240": Reason.invalid_address,  # illegal number
    "1241": Reason.throttled,
    "1250": Reason.blocked,  # no route
    "1260": Reason.rejected,  # unreachable
    "1270": Reason.content_rejected,  # subscriber's age
    "1280": Reason.blocked,  # by the carrier
    "1290": Reason.rejected,  # recipient's prepaid card is empty
    "1300": Reason.bounced,  # not in the provider's network
    "1310": Reason.rejected,  # device not suitable
    "1330": Reason.rejected,  # unknown
    "1360": Reason.expired,
    "low-balance": Reason.quota_exceeded,
    "account-suspended": Reason.unauthorized,
    "unprovisioned": Reason.unauthorized,
}

# `status` of callbacks of both APIs; what is not here ("unknown", "read", …) is ignored.
_KINDS: Final[dict[str, EventKind]] = {
    "submitted": EventKind.sent,
    "accepted": EventKind.sent,
    "buffered": EventKind.retrying,  # the carrier tries again by itself
    "delivered": EventKind.delivered,
    "failed": EventKind.failed,
    "rejected": EventKind.failed,
    "undeliverable": EventKind.failed,
    "expired": EventKind.failed,
}


# --- signatures -------------------------------------------------------------------------------------------------------


def sign_parameters(parameters: Mapping[str, str], secret: str, method: SignatureMethod) -> str:
    """`sig` of the SMS API, in lower-case hex: over the other parameters in the order of their names.

    https://developer.vonage.com/en/getting-started/concepts/signing-messages
    """
    escape = str.maketrans("&=", "__")
    content = "".join(f"&{n}={parameters[n].translate(escape)}" for n in sorted(parameters) if n != "sig")
    if method == "md5hash":
        return hashlib.md5((content + secret).encode(), usedforsecurity=False).hexdigest()
    return hmac.new(secret.encode(), content.encode(), method).hexdigest()


def verify_parameters(parameters: Mapping[str, str], secret: str, method: SignatureMethod) -> bool:
    """Whether the parameters hold the right `sig`; upper and lower case are the same."""
    if any("&" in name or "=" in name for name in parameters):
        return False  # no name of Vonage's; what is signed would read the same as other parameters
    given = parameters.get("sig", "").lower()
    return hmac.compare_digest(sign_parameters(parameters, secret, method).encode(), given.encode())


def parse_token(authorization: str, secret: str) -> dict[str, Any] | None:
    """The claims of a callback's token (`Bearer …`, HS256, RFC 7519); None if it is none, or another's."""
    scheme, _, token = authorization.strip().partition(" ")
    parts = token.strip().split(".")
    if scheme.lower() != "bearer" or len(parts) != 3:
        return None
    try:
        header, claims, signature = (parse_base64url(part) for part in parts)
        expected = hmac.digest(secret.encode(), f"{parts[0]}.{parts[1]}".encode(), "sha256")
        if not hmac.compare_digest(expected, signature) or msgspec.json.decode(header).get("alg") != "HS256":
            return None
        found = msgspec.json.decode(claims)
    except (ValueError, AttributeError, RecursionError):  # not base64, not JSON, no object
        return None
    return found if isinstance(found, dict) else None


def _is_recent(timestamp: Any, now: datetime) -> bool:
    try:
        return abs(now.timestamp() - float(timestamp)) <= _TOLERANCE.total_seconds()
    except (TypeError, ValueError):
        return False


# --- the provider -----------------------------------------------------------------------------------------------------


class VonageProvider:
    """Sends through one Vonage account, and reads what Vonage calls back."""

    spec: ClassVar[ProviderSpec] = ProviderSpec(
        name="vonage",
        channels=frozenset({Channel.sms}),
        config=VonageConfig,
        capabilities=frozenset({Capability.media, Capability.sender}),
        idempotent=False,
        confirms_delivery=False,
        timeout=timedelta(seconds=15),
        docs="https://developer.vonage.com/en/api/messages",
        receipts=ReceiptAuth.signature,
        echoes_key=True,
        reports=frozenset({EventKind.sent, EventKind.delivered, EventKind.failed, EventKind.retrying}),
        verified_by=(
            "requests of both APIs against those of Vonage's Node library (its text messages and media) and, for the "
            "SMS API, Vonage's OpenAPI description; signatures against the vectors of the Ruby, PHP, Node and Python "
            "libraries; answers and callbacks against those recorded by the PHP and Python libraries and Symfony. Only "
            "Vonage itself can confirm the current Messages API, whose description is not published."
        ),
    )

    def __init__(self, config: VonageConfig, surroundings: Surroundings) -> None:
        self._config = config
        self._clock = surroundings.clock
        self._callback_url = surroundings.callback_url
        self._api = VendorApi(config.base_url or _BASE_URLS[config.api], surroundings, self.spec)
        self._account_api = VendorApi(config.base_url or _BASE_URLS["sms"], surroundings, self.spec)
        secret = f"{config.api_key}:{config.api_secret.get_secret_value()}" if config.api_secret is not None else None
        self._basic = f"Basic {base64.b64encode(secret.encode()).decode()}" if secret is not None else None
        self._key = parse_rsa_key(config.private_key.get_secret_value()) if config.private_key is not None else None
        self._token, self._token_expires_at = "", datetime.min.replace(tzinfo=UTC)

    async def send(self, message: Message, key: str) -> SendResult:
        if (refused := find_unsupported(self.spec, message)) is not None:
            return refused
        content = message.content
        assert isinstance(content, Sms)
        config = self._config
        if content.media and config.api == "sms":
            return Rejected(Reason.unsupported, "Vonage's SMS API cannot send media; the Messages API can")
        if len(content.media) > 1:
            return Rejected(Reason.unsupported, "Vonage sends one medium in a message")
        sender = choose_sender(config.senders, message)
        if isinstance(sender, Rejected):
            return sender
        now = self._clock.now()
        if config.api == "sms":
            path, content_type = "/sms/json", "application/x-www-form-urlencoded"
            body = urlencode(to_sms_form(config, message, sender, key, now, self._callback_url)).encode()
            headers = {}
        else:
            path, content_type = "/v1/messages", "application/json"
            body = msgspec.json.encode(to_messages_body(config, message, sender, key, now, self._callback_url))
            headers = {"Authorization": self._authorize(now)}
        headers |= {"Content-Type": content_type, "Accept": "application/json"}
        try:
            answer = await self._api.call(path, headers=headers, body=body)
        except TransportFailure as failure:
            return to_result(failure)
        return decide_sms_result(answer, now) if config.api == "sms" else decide_messages_result(answer, now)

    def _authorize(self, now: datetime) -> str:
        """The `Authorization` header of the Messages API: the application's token, else key and secret."""
        if self._key is None:
            return cast(str, self._basic)  # the configuration has a secret or a key
        if self._token_expires_at - now < _TOKEN_RENEWAL:
            expires_at = now + _TOKEN_TTL
            claims = {
                "application_id": self._config.application_id,
                "iat": int(now.timestamp()),
                "exp": int(expires_at.timestamp()),
                "jti": str(uuid.uuid4()),
            }
            self._token = sign_jwt(self._key, claims)
            self._token_expires_at = expires_at
        return f"Bearer {self._token}"

    async def check(self) -> str | None:
        """Asks for the balance (https://developer.vonage.com/en/api/account), which takes the account's secret."""
        if self._basic is None:
            raise CannotCheck("an application's key may only send; with an api_secret the account can be checked")
        return await self._account_api.check("/account/get-balance", headers={"Authorization": self._basic})

    async def receive(self, request: RawRequest, now: datetime) -> Receipts:
        if self._config.signature_secret is None:
            raise ReceiptRefused("the account has no signature_secret to check signatures with")
        secret = self._config.signature_secret.get_secret_value()
        if "authorization" in request.headers:
            claims = parse_token(request.headers["authorization"], secret)
            if claims is None:
                raise ReceiptRefused("the token is not Vonage's")
            digest = hashlib.sha256(request.body).hexdigest()
            if not hmac.compare_digest(digest.encode(), str(claims.get("payload_hash", "")).lower().encode()):
                raise ReceiptRefused("the token is another body's")
            if not _is_recent(claims.get("iat"), now):
                raise ReceiptRefused("the token is too old")
            return parse_messages_callback(_parse_object(request.body))
        parameters = _parse_parameters(request)
        if not verify_parameters(parameters, secret, self._config.signature_method):
            raise ReceiptRefused("the signature is not Vonage's")
        if not _is_recent(parameters.get("timestamp"), now):
            raise ReceiptRefused("the signature is too old")
        return parse_sms_callback(parameters)

    async def close(self) -> None:
        """The connections belong to the transport, which all accounts share."""


# --- requests and answers ---------------------------------------------------------------------------------------------


def _to_ttl(message: Message, now: datetime) -> int | None:
    """Seconds for which the message is of use, within what Vonage takes; None leaves it to Vonage."""
    if message.expires_at is None:
        return None
    seconds = int((message.expires_at - now).total_seconds())
    least, most = _TTL
    return max(seconds, least) if seconds < most else None


def to_sms_form(
    config: VonageConfig, message: Message, sender: SenderConfig, key: str, now: datetime, callback_url: str | None
) -> dict[str, str]:
    """The parameters of `POST /sms/json`.

    Args:
        callback_url: where Vonage reports what became of the message; None: where the account's settings there say.
    """
    content = message.content
    assert isinstance(content, Sms)
    assert config.api_secret is not None
    form = {
        "api_key": config.api_key,
        "api_secret": config.api_secret.get_secret_value(),
        "from": sender.id.removeprefix("+"),
        "to": message.to.removeprefix("+"),
        "text": content.text,
        "client-ref": key,
    }
    if count_segments(content.text).encoding == "UCS-2":
        form["type"] = "unicode"
    if (ttl := _to_ttl(message, now)) is not None:
        form["ttl"] = str(ttl * 1000)
    if callback_url is not None:
        form |= {"status-report-req": "true", "callback": callback_url}
    return form


def to_messages_body(
    config: VonageConfig, message: Message, sender: SenderConfig, key: str, now: datetime, callback_url: str | None
) -> dict[str, Any]:
    """The JSON of `POST /v1/messages`; `callback_url` as in :func:`to_sms_form`."""
    content = message.content
    assert isinstance(content, Sms)
    body: dict[str, Any] = {"from": sender.id.removeprefix("+"), "to": message.to.removeprefix("+"), "client_ref": key}
    if content.media:
        url = content.media[0]
        kind = _MEDIA_TYPES.get(urlsplit(url).path.rpartition(".")[2].lower(), "image")
        caption = {"caption": content.text} if content.text else {}
        body |= {"channel": "mms", "message_type": kind, kind: {"url": url, **caption}}
    else:
        body |= {"channel": "sms", "message_type": "text", "text": content.text}
    if (ttl := _to_ttl(message, now)) is not None:
        body["ttl"] = ttl
    if callback_url is not None:
        body |= {"webhook_url": callback_url, "webhook_version": "v1"}
    return body


_WAIT: Final = re.compile(r"wait \[ (\d{1,6}) \]")  # milliseconds, in the words of a refusal


def decide_sms_result(answer: HttpAnswer, now: datetime) -> SendResult:
    """What an answer of the SMS API means; it holds one status for each part of the message."""
    if not 200 <= answer.status < 300:
        return decide_by_status(answer, now)
    body = parse_body(answer)
    parts = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        return to_bad_answer(answer)
    refused = [part for part in parts if str(part.get("status")) != "0"]
    if not refused:
        return Sent(str(parts[0].get("message-id") or "") or None)
    status, words = str(refused[0].get("status")), str(refused[0].get("error-text", ""))
    detail = f"{status}: {words}"[:DETAIL_MAX]
    if len(refused) < len(parts):
        return Uncertain(f"{len(parts) - len(refused)} of {len(parts)} parts were taken; {detail}"[:DETAIL_MAX])
    if status in _SMS_SLOW_DOWN:
        wait = _WAIT.search(words)
        return Throttled(timedelta(milliseconds=int(wait[1])) if wait else None, detail)
    if status in _SMS_LATER:
        return Deferred(Reason.provider_error, detail=detail)
    return Rejected(_SMS_STATUS.get(status, Reason.rejected), detail)


def decide_messages_result(answer: HttpAnswer, now: datetime) -> SendResult:
    """What an answer of the Messages API means: by the problem's type where the status leaves it open."""
    body = parse_body(answer)
    said = body if isinstance(body, dict) else {}
    if 200 <= answer.status < 300:
        id_ = said.get("message_uuid")
        return Sent(id_) if isinstance(id_, str) and id_ else to_bad_answer(answer)
    words = f"{said.get('title')}: {said.get('detail')}"[:DETAIL_MAX] if said else None
    # The numbers of problems have changed their meaning over the years (1010 was "rate limit hit"); the status has not.
    if answer.status in (401, 429):
        return decide_by_status(answer, now, words)
    reason = _PROBLEMS.get(_to_problem(said))
    if reason is None:
        return decide_by_status(answer, now, words)
    retry_after = parse_retry_after(answer.headers.get("Retry-After"), now)
    if reason is Reason.throttled:
        return Throttled(retry_after, words)
    if reason is Reason.provider_error:
        return Deferred(reason, retry_after, words)
    return Rejected(reason, words)


def _to_problem(problem: Mapping[str, Any]) -> str:
    """The end of a problem's `type`: a number, or a word."""
    return str(problem.get("type", "")).rpartition("#")[2]


# --- callbacks --------------------------------------------------------------------------------------------------------


def _parse_parameters(request: RawRequest) -> dict[str, str]:
    """The parameters of a callback of the SMS API: in the query, in a form, or in a JSON object."""
    parameters = dict(parse_qsl(urlsplit(request.url).query, keep_blank_values=True))
    if request.method != "GET" and request.body:
        if "json" in request.headers.get("content-type", ""):
            found = _parse_object(request.body, ReceiptRefused)
            parameters |= {str(name): value if isinstance(value, str) else str(value) for name, value in found.items()}
        else:
            try:
                parameters |= dict(parse_qsl(request.body.decode(), keep_blank_values=True, max_num_fields=500))
            except ValueError:
                raise ReceiptRefused("the form cannot be read, and so neither can what was signed") from None
    return parameters


def _parse_object(body: bytes, failure: type[ReceiptMalformed] | type[ReceiptRefused] = ReceiptMalformed) -> Any:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise failure("the callback is no JSON object")
    return found


def parse_sms_callback(parameters: Mapping[str, str]) -> Receipts:
    """What a callback of the SMS API says, after its signature was checked.

    Raises:
        ReceiptMalformed: it names no message.
    """
    id_, number = parameters.get("messageId"), parameters.get("msisdn")
    if not id_ or not number:
        raise ReceiptMalformed("the callback names no message, or no number")
    at = _parse_time(parameters.get("message-timestamp"))
    if "status" not in parameters:
        text = parameters.get("text")
        if text is None or parameters.get("type") == "binary":
            return Receipts()
        recipient = to_e164(parameters.get("to", ""))
        return Receipts(inbound=(Inbound(to_e164(number), recipient, text, id_, at, parse_keyword(text)),))
    kind = _KINDS.get(parameters["status"])
    if kind is None:
        return Receipts()
    reason = None
    if kind is EventKind.failed:
        fallback = Reason.expired if parameters["status"] == "expired" else Reason.rejected
        reason = _RECEIPT_CODES.get(parameters.get("err-code", ""), fallback)
    report = Report(
        kind,
        provider_id=id_,
        key=parameters.get("client-ref"),
        address=to_e164(number),
        reason=reason,
        at=at,
        detail={name: value for name, value in parameters.items() if name not in ("sig", "nonce", "api-key")},
    )
    return Receipts((report,))


def parse_messages_callback(body: Mapping[str, Any]) -> Receipts:
    """What a callback of the Messages API says, after its token was checked. Other channels' are ignored.

    Raises:
        ReceiptMalformed: it names no message.
    """
    id_ = body.get("message_uuid")
    if not isinstance(id_, str):
        raise ReceiptMalformed("the callback names no message")
    if body.get("channel", "sms") not in ("sms", "mms"):
        return Receipts()
    at = _parse_time(body.get("timestamp"))
    if "status" not in body:
        text = body.get("text", "")
        if body.get("message_type") != "text" or not isinstance(text, str):
            return Receipts()
        sender, recipient = (to_e164(str(body.get(name, ""))) for name in ("from", "to"))
        return Receipts(inbound=(Inbound(sender, recipient, text, id_, at, parse_keyword(text)),))
    kind = _KINDS.get(str(body["status"]))
    if kind is None:
        return Receipts()
    key, to = body.get("client_ref"), body.get("to")
    error = body.get("error")
    reason = None
    if kind is EventKind.failed:
        reason = _PROBLEMS.get(_to_problem(error) if isinstance(error, dict) else "", Reason.rejected)
    report = Report(
        kind,
        provider_id=id_,
        key=key if isinstance(key, str) else None,
        address=to_e164(to) if isinstance(to, str) else None,
        reason=reason,
        at=at,
        detail=dict(body),
    )
    return Receipts((report,))


def _parse_time(text: Any) -> datetime | None:
    """A time as either API writes it, in UTC where it does not say."""
    if not isinstance(text, str):
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
