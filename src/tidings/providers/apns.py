"""Push messages to Apple devices: the Apple Push Notification service over HTTP/2, with token authentication.

https://developer.apple.com/documentation/usernotifications/sending-notification-requests-to-apns

One payload is one request on one stream of a connection that the whole account shares; see `http2.py`. Apple gives no
receipts: a 200 says that it took the message. What the device itself knows, it reports (docs/how-to/push-reports.md).

File order: configuration, the table of reasons, the token, the payload, the provider.
This room knows Apple's service; it knows no account row and no retry policy.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final, Literal

import msgspec
from hpack import NeverIndexedHeaderTuple
from pydantic import Field, SecretStr, field_validator

from tidings.model.messages import Deferred, Message, Push, Rejected, SendResult, Sent, Throttled, split_scheme
from tidings.model.words import Channel, Priority, Reason
from tidings.providers.api import DETAIL_MAX, BaseUrl, decide_by_status, parse_body, parse_retry_after
from tidings.providers.http import HttpAnswer, TransportFailure, to_result
from tidings.providers.http2 import Headers, Http2Client
from tidings.providers.jwt import parse_ec_key, sign_jwt
from tidings.providers.port import Capability, Config, ProviderSpec, Surroundings, find_unsupported

_HOSTS: Final = {"production": "https://api.push.apple.com", "sandbox": "https://api.sandbox.push.apple.com"}
_PAYLOAD_MAX: Final = 4_096  # octets
_COLLAPSE_ID_MAX: Final = 64  # octets
_READ_CAP: Final = 4_096  # octets; answers are empty or name one reason
_TOKEN: Final = re.compile(r"(?:[0-9a-fA-F]{2}){1,100}")
_PRINTABLE: Final = re.compile(r"[\x20-\x7e]+")


class ApnsConfig(Config):
    """One application of an Apple developer team, with a signing key of the team."""

    guards_secrets: ClassVar[frozenset[str]] = frozenset({"base_url", "ca_pem"})

    team_id: str = Field(pattern=r"^[A-Za-z0-9]{10}$")
    """The team's id, ten characters; in the developer account under Membership."""
    key_id: str = Field(pattern=r"^[A-Za-z0-9]{10}$")
    """The id of the signing key, ten characters; it is part of the file's name, `AuthKey_<key id>.p8`."""
    private_key: SecretStr
    """The content of that `.p8` file."""
    topic: str = Field(pattern=r"^[A-Za-z0-9._-]{1,255}$")
    """The application's bundle id, such as `com.example.app`."""
    environment: Literal["production", "sandbox"] = "production"
    """`sandbox` for applications that are run from Xcode; each has device tokens of its own."""
    base_url: BaseUrl | None = None
    """Where to send instead of Apple's host, such as a proxy of yours."""
    ca_pem: str | None = None
    """Certificates (PEM) to trust instead of the system's."""
    max_connections: int = Field(default=3, ge=1, le=20)
    """At most so many at a time from one worker process. One usually does: it carries hundreds of messages."""

    @field_validator("private_key")
    @classmethod
    def _check_private_key(cls, value: SecretStr) -> SecretStr:
        parse_ec_key(value.get_secret_value())
        return value

    @field_validator("ca_pem")
    @classmethod
    def _check_ca_pem(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ssl.create_default_context(cadata=value)
            except ssl.SSLError:
                raise ValueError("must be one or more certificates in PEM") from None
        return value


# --- what an answer means ---------------------------------------------------------------------------------------------

# https://developer.apple.com/documentation/usernotifications/handling-notification-responses-from-apns
_REJECTED: Final[dict[str, Reason]] = {
    # 400: about this device. Neither says that the device is gone: the token may be one of the other environment or of
    # another application, for which another account may have been made.
    "BadDeviceToken": Reason.blocked,
    "DeviceTokenNotForTopic": Reason.blocked,
    # 400: about the account
    "BadTopic": Reason.unauthorized,
    "TopicDisallowed": Reason.unauthorized,
    "MissingTopic": Reason.unauthorized,
    # 400, 404, 405: requests that we should not have made
    "BadCollapseId": Reason.rejected,
    "BadExpirationDate": Reason.rejected,
    "BadMessageId": Reason.rejected,
    "BadPath": Reason.rejected,
    "BadPriority": Reason.rejected,
    "DuplicateHeaders": Reason.rejected,
    "InvalidPushType": Reason.rejected,
    "MethodNotAllowed": Reason.rejected,
    "MissingDeviceToken": Reason.rejected,
    "PayloadEmpty": Reason.rejected,
    # 403
    "BadCertificate": Reason.unauthorized,
    "BadCertificateEnvironment": Reason.unauthorized,
    "BadEnvironmentKeyIdInToken": Reason.unauthorized,
    "ExpiredProviderToken": Reason.unauthorized,
    "Forbidden": Reason.unauthorized,
    "InvalidProviderToken": Reason.unauthorized,
    "MissingProviderToken": Reason.unauthorized,
    "UnrelatedKeyIdInToken": Reason.unauthorized,
    # 410: the only answers that mean "dead"
    "ExpiredToken": Reason.gone,
    "Unregistered": Reason.gone,
    # 413
    "PayloadTooLarge": Reason.too_large,
}
_DEFERRED: Final[dict[str, Reason]] = {
    "IdleTimeout": Reason.connect_failed,  # 400
    "TooManyRequests": Reason.throttled,  # 429: to this device, not by this account
    "InternalServerError": Reason.provider_error,  # 500
    "ServiceUnavailable": Reason.provider_error,  # 503
    "Shutdown": Reason.provider_error,  # 503
}
_EXPIRED_TOKEN: Final = "ExpiredProviderToken"  # noqa: S105 - the name of an error


def decide_result(answer: HttpAnswer, now: datetime) -> SendResult:
    """What Apple's answer means: by its reason, else by its status."""
    if answer.status == 200:
        return Sent(answer.headers.get("apns-id"))
    reason, said = _parse_reason(answer)
    if (rejected := _REJECTED.get(reason)) is not None:
        return Rejected(rejected, said)
    retry_after = parse_retry_after(answer.headers.get("Retry-After"), now)
    if (deferred := _DEFERRED.get(reason)) is not None:
        return Deferred(deferred, retry_after, said)
    if reason == "TooManyProviderTokenUpdates":  # 429
        return Throttled(retry_after, said)
    if answer.status == 410:
        return Rejected(Reason.gone, said)
    return decide_by_status(answer, now, reason)


def _parse_reason(answer: HttpAnswer) -> tuple[str, str]:
    """Apple's word, and the evidence; a 410 says in milliseconds since when the token is known to be dead."""
    body = parse_body(answer)
    reason = body.get("reason") if isinstance(body, dict) else None
    if not isinstance(reason, str):
        return "", f"HTTP {answer.status}"
    said = f"HTTP {answer.status}: {reason[:DETAIL_MAX]}"
    since = body.get("timestamp")
    if type(since) is int and 0 < since < 253_402_300_800_000:
        said += f" since {datetime.fromtimestamp(since // 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return reason, said


# --- the token --------------------------------------------------------------------------------------------------------

# Apple takes a token for an hour, and wants no new one more often than every twenty minutes. The time is cut into
# spans, and a token is as old as its span: so all processes of an account, and one that was started anew, have the
# same token at the same time.
_SPAN: Final = timedelta(minutes=40)
_PAUSE: Final = timedelta(minutes=20)


class ProviderToken:
    """The signed token that says who we are, made anew when it is time."""

    def __init__(self, config: ApnsConfig) -> None:
        self._key = parse_ec_key(config.private_key.get_secret_value())
        self._key_id = config.key_id
        self._team_id = config.team_id
        self._issued_at: datetime | None = None
        self._keep_until: datetime | None = None
        self._header = b""

    def authorize(self, now: datetime) -> bytes:
        """The value of the header `authorization`."""
        seconds = _SPAN.total_seconds()
        due = datetime.fromtimestamp(now.timestamp() // seconds * seconds, UTC)
        if self._issued_at is None or (due > self._issued_at and (self._keep_until is None or now >= self._keep_until)):
            self._issue(due)
        return self._header

    def renew(self, now: datetime) -> bool:
        """Make one as young as can be, because Apple called ours stale; False if it is too young for that."""
        if self._issued_at is not None and now - self._issued_at < _PAUSE:
            return False
        self._issue(now)
        self._keep_until = now + _PAUSE
        return True

    def _issue(self, at: datetime) -> None:
        self._issued_at, self._keep_until = at, None
        claims = {"iss": self._team_id, "iat": int(at.timestamp())}
        self._header = b"bearer " + sign_jwt(self._key, claims, kid=self._key_id, typ=False).encode()


# --- the payload ------------------------------------------------------------------------------------------------------


def render_payload(push: Push, report_url: str | None = None) -> bytes:
    """The JSON document for the device. What Apple has no word for stands beside `aps` under `tidings_…`."""
    aps: dict[str, Any] = {}
    if push.silent:
        aps["content-available"] = 1
    alert = {name: text for name, text in (("title", push.title), ("body", push.body)) if text is not None}
    if alert:
        aps["alert"] = alert
    if push.badge is not None:
        aps["badge"] = push.badge
    if push.sound is not None:
        aps["sound"] = push.sound
    if not push.silent and (push.image or push.actions or report_url):
        # Lets the application's service extension fetch the picture, show the buttons and report the delivery.
        aps["mutable-content"] = 1
    return msgspec.json.encode({**dict(push.data), **render_extras(push, report_url), "aps": aps})


def render_extras(push: Push, report_url: str | None) -> dict[str, Any]:
    """What an application's own code makes use of."""
    extras: dict[str, Any] = {}
    if push.url is not None:
        extras["tidings_url"] = push.url
    if push.image is not None:
        extras["tidings_image"] = push.image
    if push.actions:
        extras["tidings_actions"] = [
            {name: text for name, text in msgspec.to_builtins(action).items() if text is not None}
            for action in push.actions
        ]
    if report_url is not None:
        extras["tidings_report"] = report_url
    return extras


class ApnsProvider:
    """Push messages to Apple devices."""

    spec: ClassVar[ProviderSpec] = ProviderSpec(
        name="apns",
        channels=frozenset({Channel.push}),
        config=ApnsConfig,
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
        idempotent=False,  # `apns-id` is echoed; nothing says that a second one is dropped
        confirms_delivery=False,
        timeout=timedelta(seconds=15),
        docs="https://developer.apple.com/documentation/usernotifications/sending-notification-requests-to-apns",
        schemes=frozenset({"apns"}),
        verified_by=(
            "a server over real TLS and HTTP/2 that follows the rules of Pushy's mock server; Apple's table of "
            "reasons; payloads of the client apns2, where Tidings has words for what they say (7 of 32). Only Apple "
            "can confirm that it takes the team's key and shows what was sent"
        ),
    )

    def __init__(self, config: ApnsConfig, surroundings: Surroundings) -> None:
        self._token = ProviderToken(config)
        self._clock = surroundings.clock
        self._timeout = surroundings.time_for(self.spec)
        self._topic = config.topic.encode()
        ca_pem = config.ca_pem
        self._client = Http2Client(
            config.base_url or _HOSTS[config.environment],
            surroundings.guard,
            lambda: _make_tls_context(ca_pem),
            connections=config.max_connections,
        )

    async def send(self, message: Message, key: str) -> SendResult:
        if (refused := find_unsupported(self.spec, message)) is not None:
            return refused
        assert isinstance(message.content, Push)
        scheme, token = split_scheme(message.to)
        if scheme != "apns" or not _TOKEN.fullmatch(token):
            return Rejected(Reason.invalid_address, "not a device token of Apple's")
        payload = render_payload(message.content, message.report_url)
        if len(payload) > _PAYLOAD_MAX:
            return Rejected(Reason.too_large, f"the payload has {len(payload)} octets; Apple takes {_PAYLOAD_MAX}")
        headers = self._render_headers(message, message.content)
        path = f"/3/device/{token}"
        try:
            now = self._clock.now()
            answer = await self._post(path, headers, payload, now)
            if answer.status == 403 and _parse_reason(answer)[0] == _EXPIRED_TOKEN and self._token.renew(now):
                answer = await self._post(path, headers, payload, now)
        except TransportFailure as failure:
            return to_result(failure)
        return decide_result(answer, self._clock.now())

    async def _post(self, path: str, headers: Headers, payload: bytes, now: datetime) -> HttpAnswer:
        all_headers = [(b"authorization", self._token.authorize(now)), *headers]
        return await self._client.post(path, all_headers, payload, timeout=self._timeout, read_cap=_READ_CAP)

    def _render_headers(self, message: Message, push: Push) -> list[tuple[bytes, bytes]]:
        # Background pushes must have 5: with 10 Apple refuses them.
        calm = push.silent or message.priority is Priority.low
        headers = [
            (b"apns-topic", self._topic),
            (b"apns-push-type", b"background" if push.silent else b"alert"),
            (b"apns-priority", b"5" if calm else b"10"),
            NeverIndexedHeaderTuple(b"apns-id", str(message.delivery).encode()),
        ]
        if message.expires_at is not None:
            headers.append((b"apns-expiration", str(int(message.expires_at.timestamp())).encode()))
        if push.collapse_key is not None:
            headers.append((b"apns-collapse-id", to_collapse_id(push.collapse_key)))
        return headers

    async def close(self) -> None:
        await self._client.close()


def to_collapse_id(key: str) -> bytes:
    """The key as a header may hold it; one that is too long, or not in ASCII, by its hash."""
    if len(key) <= _COLLAPSE_ID_MAX and _PRINTABLE.fullmatch(key) and key == key.strip():
        return key.encode()
    return hashlib.sha256(key.encode()).hexdigest().encode()  # 64 characters


def _make_tls_context(ca_pem: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=ca_pem)
    context.set_alpn_protocols(["h2"])
    return context
