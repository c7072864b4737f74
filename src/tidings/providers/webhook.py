"""Webhooks, signed as Standard Webhooks 1.0 says.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md

The receiver verifies `webhook-id.webhook-timestamp.body`: with the secret it shares with us (`whsec_…`, HMAC-SHA256,
signature `v1`), or with our public key (`whpk_…`; we hold `whsk_…`, Ed25519, signature `v1a`). `webhook-id` is the
delivery's public id and stays the same over all attempts, so a receiver that remembers ids drops repetitions.

This room knows the protocol and what receivers answer; it knows no retry policy.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, ClassVar, Final, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, SecretStr, field_validator

from tidings.ids import time_of
from tidings.model.messages import Deferred, Message, Rejected, SendResult, Sent, Webhook
from tidings.model.words import Channel, Reason
from tidings.providers.api import parse_retry_after
from tidings.providers.http import HttpAnswer, TransportFailure, to_result
from tidings.providers.port import Config, ProviderSpec, ReceiptRefused, Surroundings, find_unsupported

TOLERANCE: Final = timedelta(minutes=5)
"""How far the timestamp of a signature may be from now, either way; a recorded request is of no use after it."""
_READ_CAP: Final = 4096  # octets of the answer; a receiver has nothing to tell us but its status
_HOST: Final = re.compile(r"http://(?P<host>\[[^\]]*\]|[^/:?#]+)(?::(?P<port>\d{1,5}))?(?=[/?#]|$)", re.IGNORECASE)
_SECRET: Final = "whsec_"  # noqa: S105 - the prefix of all secrets
_PRIVATE: Final = "whsk_"
_PUBLIC: Final = "whpk_"

SigningKey = bytes | Ed25519PrivateKey
"""The key of an HMAC, or a private key."""


class WebhookConfig(Config):
    """How messages to webhooks are signed."""

    secret: SecretStr
    """`whsec_` and 24 to 64 octets in base64, which receivers share; or `whsk_` and an Ed25519 private key in base64,
    of which receivers have the public half."""
    previous_secret: SecretStr | None = None
    """While a secret is being rotated: the old one, which signs too. May be of the other kind."""
    envelope: Literal["none", "cloudevents"] = "none"
    """`cloudevents`: what a template says becomes the `data` of a CloudEvent (1.0, structured JSON)."""
    event_source: Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[!-~]+$")] = "/tidings"
    """Of CloudEvents: the `source`, a URI reference."""
    event_type: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[!-~]+$")] = "tidings.notification"
    """Of CloudEvents: the `type`."""

    @field_validator("secret", "previous_secret")
    @classmethod
    def _check_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            parse_secret(secret)
        return secret


def parse_secret(secret: SecretStr) -> SigningKey:
    """The key in a `whsec_…` or `whsk_…` secret.

    Raises:
        ValueError: it is neither; the message does not contain it.
    """
    text = secret.get_secret_value()
    if text.startswith(_PRIVATE):
        private = _decode(text.removeprefix(_PRIVATE), "whsk_")
        # As libsodium has it: the seed, and the public key behind it.
        if len(private) not in (32, 64):
            raise ValueError("must hold an Ed25519 private key of 32 or 64 octets, in base64 after whsk_")
        key = Ed25519PrivateKey.from_private_bytes(private[:32])
        if private[32:] and private[32:] != key.public_key().public_bytes_raw():
            raise ValueError("must hold a private key and its own public key after whsk_")
        return key
    shared = _decode(text.removeprefix(_SECRET), "whsec_")
    if not 24 <= len(shared) <= 64:
        raise ValueError("must hold between 24 and 64 octets, in base64 after whsec_")
    return shared


def _decode(text: str, prefix: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)  # padding is often left out
    except (binascii.Error, ValueError):
        raise ValueError(f"must be {prefix} followed by base64") from None


class WebhookProvider:
    """POSTs the message's body to the address, signed."""

    spec: ClassVar[ProviderSpec] = ProviderSpec(
        name="webhook",
        channels=frozenset({Channel.webhook}),
        config=WebhookConfig,
        capabilities=frozenset(),
        per_address=True,
        idempotent=True,  # by `webhook-id`, which the specification asks receivers to remember
        confirms_delivery=True,
        timeout=timedelta(seconds=15),
        docs="https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md",
        verified_by="the published signature vectors (HMAC and Ed25519), and the reference library as receiver",
    )

    def __init__(self, config: WebhookConfig, surroundings: Surroundings) -> None:
        secrets = (config.secret, config.previous_secret)
        self._keys = tuple(parse_secret(secret) for secret in secrets if secret is not None)
        self._config = config
        self._poster = Poster(surroundings, surroundings.time_for(self.spec))

    async def send(self, message: Message, key: str) -> SendResult:
        if (refused := find_unsupported(self.spec, message)) is not None:
            return refused
        assert isinstance(message.content, Webhook)
        body, content_type = message.content.body, "application/json"
        if self._config.envelope == "cloudevents":
            body, content_type = self._wrap(message, body, key), "application/cloudevents+json"
        return await self._poster.post(
            message.to, body, key, self._keys, content_type=content_type, traceparent=message.traceparent
        )

    def _wrap(self, message: Message, body: bytes, key: str) -> bytes:
        """A CloudEvent; the same one for every attempt.
        https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md"""
        return msgspec.json.encode(
            {
                "specversion": "1.0",
                "id": key,
                "source": self._config.event_source,
                "type": self._config.event_type,
                "time": time_of(message.delivery),
                "datacontenttype": "application/json",
                "data": msgspec.Raw(body),
            }
        )

    async def close(self) -> None:
        """The connections belong to the transport, which all accounts share."""


class Poster:
    """POSTs signed bodies to URLs that a project chose: what webhooks and status callbacks have in common.

    Args:
        timeout: seconds for one request.
    """

    def __init__(self, surroundings: Surroundings, timeout: float) -> None:
        self._http = surroundings.http
        self._guard = surroundings.guard
        self._clock = surroundings.clock
        self._timeout = timeout

    async def post(
        self,
        url: str,
        body: bytes,
        id_: str,
        keys: Sequence[SigningKey],
        *,
        content_type: str = "application/json",
        traceparent: str | None = None,
    ) -> SendResult:
        """One attempt.

        Args:
            id_: the `webhook-id`: the same for each attempt of one message.
            keys: the present one first, then the one before, if it still signs.
        """
        if not url.startswith("https://") and not await self._permits_plain(url):
            return Rejected(Reason.target_refused, "a webhook's URL has to start with https://")
        now = self._clock.now()
        timestamp = str(int(now.timestamp()))
        headers = {
            "Content-Type": content_type,
            "webhook-id": id_,
            "webhook-timestamp": timestamp,
            "webhook-signature": sign(keys, id_, timestamp, body),
        }
        if traceparent is not None:
            headers["traceparent"] = traceparent
        try:
            answer = await self._http.request(
                "POST", url, headers=headers, body=body, timeout=self._timeout, read_cap=_READ_CAP
            )
        except TransportFailure as failure:
            return to_result(failure)
        return decide_result(answer, now)

    async def _permits_plain(self, url: str) -> bool:
        found = _HOST.match(url)
        return found is not None and await self._guard.permits_plain(found["host"], int(found["port"] or 80))


# ---------------------------------------------------------------- signatures


def sign(keys: Sequence[SigningKey], id_: str, timestamp: str, body: bytes) -> str:
    """The `webhook-signature` header: one signature for each key, the current one first."""
    content = _to_signed(id_, timestamp, body)
    return " ".join(
        "v1," + _base64(hmac.digest(key, content, "sha256"))
        if isinstance(key, bytes)
        else "v1a," + _base64(key.sign(content))
        for key in keys
    )


def verify_signature(secret: SecretStr, headers: Mapping[str, str], body: bytes, now: datetime) -> None:
    """Check that a request was signed as Standard Webhooks 1.0 says, in the last minutes.

    Args:
        secret: `whsec_…` (the prefix may be missing), or `whpk_…`: the sender's public key.
        headers: names in lower case. Those of Svix, which the standard came from, are taken too.
        body: as it came, octet for octet.

    Raises:
        ReceiptRefused: a header is missing, the time is off, or no signature fits.
        ValueError: the secret is none.
    """
    id_, timestamp, signatures = (
        headers.get(f"webhook-{name}") or headers.get(f"svix-{name}") for name in ("id", "timestamp", "signature")
    )
    if not id_ or not timestamp or not signatures:
        raise ReceiptRefused("the request is not signed")
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 16):
        raise ReceiptRefused("the signature's timestamp is none")
    if abs(now.timestamp() - int(timestamp)) > TOLERANCE.total_seconds():
        raise ReceiptRefused("the signature is too old, or from the future")
    content = _to_signed(id_, timestamp, body)
    given = [signature.partition(",") for signature in signatures.split(" ")]
    text = secret.get_secret_value()
    if text.startswith(_PUBLIC):
        public = Ed25519PublicKey.from_public_bytes(_decode(text.removeprefix(_PUBLIC), "whpk_"))
        fits = any(version == "v1a" and _is_by(public, signature, content) for version, _, signature in given)
    else:
        key = parse_secret(secret)
        if not isinstance(key, bytes):
            raise ValueError("a private key verifies nothing; take the public one")
        expected = _base64(hmac.digest(key, content, "sha256")).encode()
        # Every one is compared, so that the time says nothing about which of them fitted.
        fits = False
        for version, _, signature in given:
            same = hmac.compare_digest(signature.encode(errors="replace"), expected)
            fits |= version == "v1" and same
    if not fits:
        raise ReceiptRefused("no signature fits")


def _is_by(public: Ed25519PublicKey, signature: str, content: bytes) -> bool:
    try:
        public.verify(base64.b64decode(signature, validate=True), content)
    except (InvalidSignature, ValueError):
        return False
    return True


def _to_signed(id_: str, timestamp: str, body: bytes) -> bytes:
    return f"{id_}.{timestamp}.".encode() + body


def _base64(octets: bytes) -> str:
    return binascii.b2a_base64(octets, newline=False).decode()


# ---------------------------------------------------------------- answers


def decide_result(answer: HttpAnswer, now: datetime) -> SendResult:
    """What a receiver's answer means.

    | status        | result                                                                              |
    |---------------|-------------------------------------------------------------------------------------|
    | 2xx           | Sent; the receiver has it                                                           |
    | 3xx           | Rejected(target_refused): not followed, a redirect could lead anywhere              |
    | 410           | Rejected(gone): the specification's way to say "never again"                        |
    | 408, 425      | Deferred(provider_error)                                                            |
    | 429, 503 with `Retry-After` | Deferred(throttled): one endpoint is slow, not the whole account        |
    | 413           | Rejected(too_large)                                                                 |
    | other 4xx     | Rejected(rejected)                                                                  |
    | 5xx, 1xx      | Deferred(provider_error)                                                            |
    """
    status = answer.status
    detail = f"HTTP {status}"
    if 200 <= status < 300:
        return Sent(detail=detail)
    if 300 <= status < 400:
        return Rejected(Reason.target_refused, f"{detail}: redirects are not followed")
    if status == 410:
        return Rejected(Reason.gone, detail)
    retry_after = parse_retry_after(answer.headers.get("Retry-After"), now)
    if status == 429 or (status == 503 and retry_after is not None):
        return Deferred(Reason.throttled, retry_after, detail)
    if status == 413:
        return Rejected(Reason.too_large, detail)
    if 400 <= status < 500 and status not in (408, 425):
        return Rejected(Reason.rejected, detail)
    return Deferred(Reason.provider_error, retry_after, detail)
