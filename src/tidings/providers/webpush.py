"""Web Push: a browser's own push service (RFC 8030), encrypted for the browser (RFC 8291), signed by VAPID (RFC 8292).

The push service is part of the subscription: each browser maker runs one. It carries octets that only the browser can
read, and says whether it took them; whether they were shown, the service worker reports (docs/how-to/push-reports.md).

A message costs one agreement on a secret (ECDH, about 60 µs with the fresh key that the RFC asks for); the signature is
made once for each push service and half a day.

File order: configuration, encryption, the payload, the provider.
This room knows Web Push; it knows no account row and no retry policy.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections import OrderedDict
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDH,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    derive_private_key,
    generate_private_key,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import Field, SecretStr, ValidationInfo, field_validator
from yarl import URL

from tidings.model.messages import Deferred, Message, Push, Rejected, SendResult, Sent, split_scheme
from tidings.model.words import Channel, Priority, Reason
from tidings.providers.api import VendorApi, parse_retry_after
from tidings.providers.http import HttpAnswer, TransportFailure, to_result
from tidings.providers.jwt import parse_base64url, parse_ec_key, sign_jwt, to_base64url
from tidings.providers.port import Capability, Config, ProviderSpec, Surroundings, find_unsupported

_CURVE: Final = SECP256R1()
_READ_CAP: Final = 4_096  # octets of the answer
_TTL_MAX: Final = timedelta(weeks=4)


class WebPushConfig(Config):
    """The key pair (VAPID) by which push services know this application. Browsers subscribe with its public half."""

    private_key: SecretStr
    """P-256: 32 octets in base64url, as `npx web-push generate-vapid-keys` and others print it, or PEM."""
    public_key: str = Field(default="", validate_default=True)
    """The `applicationServerKey` that browsers subscribe with. Follows from the private key, whatever is given."""
    subject: str = Field(pattern=r"^(mailto:[^\s@<>]+@[^\s@<>]+|https://[^\s<>]+)$", max_length=255)
    """Whom a push service's operators may write to: a `mailto:` or `https:` URL."""

    @field_validator("private_key")
    @classmethod
    def _check_private_key(cls, value: SecretStr) -> SecretStr:
        parse_private_key(value)
        return value

    @field_validator("public_key")
    @classmethod
    def _set_public_key(cls, _: str, info: ValidationInfo) -> str:
        private = info.data.get("private_key")
        return "" if private is None else to_base64url(_to_point(parse_private_key(private).public_key()))


def parse_private_key(value: SecretStr) -> EllipticCurvePrivateKey:
    """The key in either of its forms.

    Raises:
        ValueError: it is none; the message does not contain it.
    """
    text = value.get_secret_value().strip()
    if text.startswith("-----"):
        return parse_ec_key(text)
    try:
        octets = parse_base64url(text)
        if len(octets) != 32:
            raise ValueError
        return derive_private_key(int.from_bytes(octets, "big"), _CURVE)
    except ValueError:
        raise ValueError("must be a P-256 private key: 32 octets in base64url, or PEM") from None


def _to_point(key: EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


# --- encryption (RFC 8291, with the content coding aes128gcm of RFC 8188) ---------------------------------------------

_RECORD_SIZE: Final = 4_096
_PLAINTEXT_MAX: Final = _RECORD_SIZE - 86 - 17
"""Octets: push services take bodies up to 4,096 (RFC 8030, 7.2), of which the header has 86, and the record's end and
the cipher's tag 17."""


def encrypt(
    plaintext: bytes, receiver: bytes, auth: bytes, *, key: EllipticCurvePrivateKey | None = None, salt: bytes = b""
) -> bytes:
    """The body that only the subscription's owner can read: one record.

    Args:
        receiver: the subscription's `p256dh`, an uncompressed point.
        auth: the subscription's secret.
        key: for tests alone; otherwise each message has a fresh one, as the RFC demands.
        salt: for tests alone.

    Raises:
        ValueError: `receiver` is no point of the curve.
    """
    key = key or generate_private_key(_CURVE)
    salt = salt or os.urandom(16)
    sender = _to_point(key.public_key())
    agreed = key.exchange(ECDH(), EllipticCurvePublicKey.from_encoded_point(_CURVE, receiver))
    # HKDF (RFC 5869) with outputs of at most one block, so each step is one HMAC.
    secret = _hmac(_hmac(auth, agreed), b"WebPush: info\0" + receiver + sender + b"\x01")
    pseudo_random = _hmac(salt, secret)
    content_key = _hmac(pseudo_random, b"Content-Encoding: aes128gcm\0\x01")[:16]
    nonce = _hmac(pseudo_random, b"Content-Encoding: nonce\0\x01")[:12]
    header = salt + _RECORD_SIZE.to_bytes(4, "big") + bytes([len(sender)]) + sender
    return header + AESGCM(content_key).encrypt(nonce, plaintext + b"\x02", None)


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


# --- the payload ------------------------------------------------------------------------------------------------------


def render_payload(push: Push, report_url: str | None = None) -> bytes:
    """The JSON document for the service worker, which shows it: docs/how-to/push-reports.md has one that does."""
    data = dict(push.data)
    if report_url is not None:
        data["tidings_report"] = report_url
    document: dict[str, Any] = {
        "title": push.title,
        "body": push.body,
        "url": push.url,
        "image": push.image,
        "badge": push.badge,
        "sound": push.sound,
        "tag": push.collapse_key,
        "silent": True if push.silent else None,
        "actions": [
            {name: text for name, text in msgspec.to_builtins(action).items() if text is not None}
            for action in push.actions
        ]
        or None,
        "data": data or None,
    }
    return msgspec.json.encode({name: value for name, value in document.items() if value is not None})


def parse_target(target: str) -> tuple[str, bytes, bytes]:
    """Endpoint, public key and secret of `<endpoint>#<p256dh>.<auth>`.

    Raises:
        ValueError: it is not of that form.
    """
    endpoint, _, keys = target.rpartition("#")
    p256dh, _, auth = keys.partition(".")
    receiver, secret = parse_base64url(p256dh), parse_base64url(auth)
    if not endpoint or len(receiver) != 65 or len(secret) != 16:
        raise ValueError("not a subscription")
    return endpoint, receiver, secret


def to_topic(collapse_key: str) -> str:
    """At most 32 characters of base64url (RFC 8030, 5.4), which tell the push service nothing."""
    return to_base64url(hashlib.sha256(collapse_key.encode()).digest())[:32]


# --- the provider -----------------------------------------------------------------------------------------------------

_URGENCY: Final = {
    Priority.critical: "high",
    Priority.high: "high",
    Priority.medium: "normal",
    Priority.low: "low",
}
_TOKEN_TTL: Final = timedelta(hours=12)  # at most 24 (RFC 8292, 2)
_TOKEN_KEPT: Final = timedelta(hours=6)
_ORIGINS_MAX: Final = 256
"""Push services that are remembered. Browsers have a handful; but a subscription may name any."""


class _Origin(msgspec.Struct):
    """One push service: how to call it, and the signature that it wants."""

    api: VendorApi
    authorization: str
    sign_again_at: datetime


class WebPushProvider:
    """Push messages to browsers."""

    spec: ClassVar[ProviderSpec] = ProviderSpec(
        name="webpush",
        channels=frozenset({Channel.push}),
        config=WebPushConfig,
        # All of these reach the service worker; what it can show is the browser's.
        capabilities=frozenset(
            {
                Capability.data,
                Capability.url,
                Capability.image,
                Capability.actions,
                Capability.badge,
                Capability.sound,
                Capability.collapse_key,
                Capability.silent,
            }
        ),
        idempotent=False,
        confirms_delivery=False,
        timeout=timedelta(seconds=15),
        docs="https://www.rfc-editor.org/rfc/rfc8030",
        per_address=True,
        schemes=frozenset({"webpush"}),
        verified_by=(
            "the vectors of RFC 8291 and RFC 8292, and web-push-testing, which decrypts what it gets and checks the "
            "signature. What each browser shows is seen in that browser only"
        ),
    )

    def __init__(self, config: WebPushConfig, surroundings: Surroundings) -> None:
        self._key = parse_private_key(config.private_key)
        self._public_key = config.public_key
        self._subject = config.subject
        self._surroundings = surroundings
        self._clock = surroundings.clock
        self._origins: OrderedDict[str, _Origin] = OrderedDict()

    async def send(self, message: Message, key: str) -> SendResult:
        if (refused := find_unsupported(self.spec, message)) is not None:
            return refused
        push = message.content
        assert isinstance(push, Push)
        scheme, target = split_scheme(message.to)
        payload = render_payload(push, message.report_url)
        if len(payload) > _PLAINTEXT_MAX:
            return Rejected(Reason.too_large, f"the payload has {len(payload)} octets; {_PLAINTEXT_MAX} fit")
        try:
            if scheme != "webpush":
                raise ValueError
            endpoint, receiver, auth = parse_target(target)
            url = URL(endpoint, encoded=True)
            origin = str(url.origin())
            body = encrypt(payload, receiver, auth)
        except ValueError:
            return Rejected(Reason.invalid_address, "not a Web Push subscription")
        now = self._clock.now()
        known = self._find_origin(origin, now)
        ttl = _TTL_MAX if message.expires_at is None else min(max(message.expires_at - now, timedelta()), _TTL_MAX)
        headers = {
            "Authorization": known.authorization,
            "Content-Encoding": "aes128gcm",
            "Content-Type": "application/octet-stream",
            "TTL": str(int(ttl.total_seconds())),
            "Urgency": _URGENCY[message.priority],
        }
        if push.collapse_key is not None:
            headers["Topic"] = to_topic(push.collapse_key)
        try:
            answer = await known.api.call(url.raw_path_qs, headers=headers, body=body, read_cap=_READ_CAP)
        except TransportFailure as failure:
            return to_result(failure)
        return decide_result(answer, now)

    def _find_origin(self, origin: str, now: datetime) -> _Origin:
        known = self._origins.get(origin)
        if known is None or now >= known.sign_again_at:
            claims = {"aud": origin, "exp": int((now + _TOKEN_TTL).timestamp()), "sub": self._subject}
            known = self._origins[origin] = _Origin(
                VendorApi(origin, self._surroundings, self.spec),
                f"vapid t={sign_jwt(self._key, claims)}, k={self._public_key}",
                now + _TOKEN_KEPT,
            )
            if len(self._origins) > _ORIGINS_MAX:
                self._origins.popitem(last=False)
        self._origins.move_to_end(origin)
        return known

    async def close(self) -> None:
        """The connections belong to the transport, which all accounts share."""


def decide_result(answer: HttpAnswer, now: datetime) -> SendResult:
    """What a push service's answer means.

    | status        | result                                                                                  |
    |---------------|-----------------------------------------------------------------------------------------|
    | 2xx           | Sent: 201 is the RFC's, Microsoft says 200, and 202 comes where receipts were asked for |
    | 3xx           | Rejected(target_refused): not followed, a redirect could lead anywhere                  |
    | 404, 410      | Rejected(gone): the subscription has ended (RFC 8030, 7.3)                              |
    | 401, 403      | Rejected(unauthorized): not the key that the browser subscribed with (RFC 8292, 4.2)    |
    | 413           | Rejected(too_large)                                                                     |
    | 429           | Deferred(throttled): one push service asks for time, not the whole account              |
    | 408, 425, 5xx | Deferred(provider_error)                                                                |
    | other 4xx     | Rejected(rejected)                                                                      |
    """
    status = answer.status
    detail = f"HTTP {status}"
    if 200 <= status < 300:
        return Sent(detail=detail)
    if 300 <= status < 400:
        return Rejected(Reason.target_refused, f"{detail}: redirects are not followed")
    if status in (404, 410):
        return Rejected(Reason.gone, detail)
    if status in (401, 403):
        return Rejected(Reason.unauthorized, detail)
    if status == 413:
        return Rejected(Reason.too_large, detail)
    retry_after = parse_retry_after(answer.headers.get("Retry-After"), now)
    if status == 429:
        return Deferred(Reason.throttled, retry_after, detail)
    if 400 <= status < 500 and status not in (408, 425):
        return Rejected(Reason.rejected, detail)
    return Deferred(Reason.provider_error, retry_after, detail)
