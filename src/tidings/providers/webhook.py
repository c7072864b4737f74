"""Webhooks, signed as Standard Webhooks 1.0 says.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md

The receiver verifies `webhook-id.webhook-timestamp.body` with the secret it shares with us. `webhook-id` is the
delivery's public id and stays the same over all attempts, so a receiver that remembers ids drops repetitions.

This room knows the protocol and what receivers answer; it knows no retry policy.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from datetime import datetime, timedelta
from typing import ClassVar, Final

from pydantic import SecretStr, field_validator

from tidings.model.messages import Deferred, Message, Rejected, SendResult, Sent, Webhook
from tidings.model.words import Channel, Reason
from tidings.providers.api import parse_retry_after
from tidings.providers.http import HttpAnswer, TransportFailure, to_result
from tidings.providers.port import Config, ProviderSpec, Surroundings, find_unsupported

_READ_CAP: Final = 4096  # octets of the answer; a receiver has nothing to tell us but its status
_HOST: Final = re.compile(r"http://(?P<host>\[[^\]]*\]|[^/:?#]+)(?::(?P<port>\d{1,5}))?(?=[/?#]|$)", re.IGNORECASE)


class WebhookConfig(Config):
    """How messages to webhooks are signed."""

    secret: SecretStr
    """`whsec_` and 24 to 64 octets in base64."""
    previous_secret: SecretStr | None = None
    """While a secret is being rotated: the old one, which signs too."""

    @field_validator("secret", "previous_secret")
    @classmethod
    def _check_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            parse_secret(secret)
        return secret


def parse_secret(secret: SecretStr) -> bytes:
    """The key in a `whsec_…` secret.

    Raises:
        ValueError: it is not one; the message does not contain it.
    """
    text = secret.get_secret_value().removeprefix("whsec_")
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)  # padding is often left out
    except (binascii.Error, ValueError):
        raise ValueError("must be whsec_ followed by base64") from None
    if not 24 <= len(key) <= 64:
        raise ValueError("must hold between 24 and 64 octets, in base64 after whsec_")
    return key


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
    )

    def __init__(self, config: WebhookConfig, surroundings: Surroundings) -> None:
        secrets = (config.secret, config.previous_secret)
        self._keys = tuple(parse_secret(secret) for secret in secrets if secret is not None)
        self._http = surroundings.http
        self._guard = surroundings.guard
        self._clock = surroundings.clock
        self._timeout = surroundings.time_for(self.spec)

    async def send(self, message: Message, key: str) -> SendResult:
        if (refused := find_unsupported(self.spec, message)) is not None:
            return refused
        assert isinstance(message.content, Webhook)
        if not message.to.startswith("https://") and not await self._permits_plain(message.to):
            return Rejected(Reason.target_refused, "a webhook's URL has to start with https://")
        now = self._clock.now()
        body = message.content.body
        timestamp = str(int(now.timestamp()))
        headers = {
            "Content-Type": "application/json",
            "webhook-id": key,
            "webhook-timestamp": timestamp,
            "webhook-signature": sign(self._keys, key, timestamp, body),
        }
        if message.traceparent is not None:
            headers["traceparent"] = message.traceparent
        try:
            answer = await self._http.request(
                "POST", message.to, headers=headers, body=body, timeout=self._timeout, read_cap=_READ_CAP
            )
        except TransportFailure as failure:
            return to_result(failure)
        return decide_result(answer, now)

    async def _permits_plain(self, url: str) -> bool:
        found = _HOST.match(url)
        return found is not None and await self._guard.permits_plain(found["host"], int(found["port"] or 80))

    async def close(self) -> None:
        """The connections belong to the transport, which all accounts share."""


def sign(keys: tuple[bytes, ...], id_: str, timestamp: str, body: bytes) -> str:
    """The `webhook-signature` header: one signature for each key, the current one first."""
    content = f"{id_}.{timestamp}.".encode() + body
    return " ".join(
        "v1," + binascii.b2a_base64(hmac.digest(key, content, "sha256"), newline=False).decode() for key in keys
    )


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
