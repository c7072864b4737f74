"""What Amazon's services share: requests signed with Signature Version 4, and notifications that Amazon SNS signed.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html

This room knows Amazon's signatures and the errors that all its services have; it knows no mail and no text message.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final
from urllib.parse import quote, unquote

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from pydantic import Field, SecretStr
from yarl import URL

from tidings.model.messages import Deferred, Rejected, SendResult, Throttled
from tidings.model.words import Reason
from tidings.providers.api import DETAIL_MAX, BaseUrl, VendorApi, parse_retry_after, to_complaint
from tidings.providers.http import HttpAnswer, HttpTransport, TransportFailure
from tidings.providers.port import CannotCheck, Config, ProviderSpec, ReceiptRefused, Surroundings

_NOT_PERMITTED: Final = re.compile(rb"\bAccessDenied|\bAuthorizationError\b")

# --- accounts ---------------------------------------------------------------------------------------------------------


class AwsConfig(Config):
    """Whose requests they are, and which region takes them."""

    guards_secrets: ClassVar[frozenset[str]] = frozenset({"base_url"})

    region: str = Field(pattern=r"^[a-z]{2}(-[a-z]+)+-[0-9]{1,2}$")
    """Such as eu-central-1."""
    access_key_id: str = Field(pattern=r"^\w{16,128}$")
    secret_access_key: SecretStr = Field(min_length=1)
    session_token: SecretStr | None = None
    """Of temporary credentials; they end, so this is for short trials."""
    base_url: BaseUrl | None = None
    """Another place to send to: a VPC endpoint or a stand-in for tests. None takes Amazon's own for the region."""


class AwsApi:
    """One of Amazon's services as one account calls it.

    Args:
        prefix: what stands before the region in the name of the service's host.
        service: what the service is called in signatures.
    """

    def __init__(
        self, config: AwsConfig, prefix: str, service: str, surroundings: Surroundings, spec: ProviderSpec
    ) -> None:
        domain = "amazonaws.com.cn" if config.region.startswith("cn-") else "amazonaws.com"
        base = config.base_url or f"https://{prefix}.{config.region}.{domain}"
        self._api = VendorApi(base, surroundings, spec)
        self._clock = surroundings.clock
        self._host = URL(base).host_port_subcomponent or ""
        self._path = URL(base).raw_path.rstrip("/")
        self._config = config
        self._scope = (config.region, service)
        self._token = config.session_token.get_secret_value() if config.session_token else None
        self._key = ("", b"")
        """A day and the signing key that is derived for it."""

    async def call(self, path: str, content_type: str, body: bytes, *, method: str = "POST") -> HttpAnswer:
        """Send the body, signed at this moment.

        Raises:
            TransportFailure: no complete answer came.
        """
        at = f"{self._clock.now():%Y%m%dT%H%M%SZ}"
        headers = {"content-type": content_type, "host": self._host, "x-amz-date": at}
        if self._token is not None:
            headers["x-amz-security-token"] = self._token
        signed, request = render_canonical_request(method, self._path + path, "", headers.items(), body)
        day = at[:8]
        if self._key[0] != day:
            self._key = (day, derive_key(self._config.secret_access_key.get_secret_value(), day, *self._scope))
        scope = "/".join((day, *self._scope, "aws4_request"))
        signature = sign(self._key[1], render_string_to_sign(at, scope, request))
        headers["authorization"] = render_authorization(self._config.access_key_id, scope, signed, signature)
        return await self._api.call(path, headers=headers, body=body or None, method=method)

    async def check(self, path: str, content_type: str, body: bytes, *, method: str) -> str | None:
        """What is wrong with the account, by a call that only reads.

        Raises:
            CannotCheck: Amazon knows the credentials, and they may not make this call.
        """
        try:
            answer = await self.call(path, content_type, body, method=method)
        except TransportFailure as failure:
            return str(failure)
        said = (answer.headers.get("x-amzn-ErrorType") or "").encode() + answer.body
        if answer.status == 403 and _NOT_PERMITTED.search(said):
            raise CannotCheck("Amazon knows the credentials; what they may do, it does not tell them")
        return to_complaint(answer)


# --- Signature Version 4 ----------------------------------------------------------------------------------------------


def render_canonical_request(
    method: str, path: str, query: str, headers: Iterable[tuple[str, str]], body: bytes
) -> tuple[str, str]:
    """The names of the headers that are signed, and the request in the form that is signed.

    Args:
        path: as it stands in the request; encoded once more here, as every service but S3 wants it.
        query: as it stands in the request, without the question mark.
        headers: all of them are signed; `host` and `x-amz-date` have to be among them.
    """
    values: dict[str, list[str]] = {}
    for name, value in headers:
        values.setdefault(name.lower(), []).append(" ".join(value.split()))
    names = sorted(values)
    signed = ";".join(names)
    lines = [
        method,
        quote(_normalise_path(path), safe="/-_.~"),
        _render_query(query),
        *(f"{name}:{','.join(values[name])}" for name in names),
        "",
        signed,
        hashlib.sha256(body).hexdigest(),
    ]
    return signed, "\n".join(lines)


def _normalise_path(path: str) -> str:
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    return "/" + "/".join(kept) + ("/" if kept and path.endswith("/") else "")


def _render_query(query: str) -> str:
    pairs = (pair.partition("=") for pair in query.split("&") if pair)
    encoded = sorted(
        (quote(unquote(name), safe="-_.~"), quote(unquote(value), safe="-_.~")) for name, _, value in pairs
    )
    return "&".join(f"{name}={value}" for name, value in encoded)


def render_string_to_sign(at: str, scope: str, canonical_request: str) -> str:
    """What the signature is made of.

    Args:
        at: the value of `x-amz-date`, such as 20261122T100000Z.
        scope: day, region, service and `aws4_request`, with slashes between.
    """
    return f"AWS4-HMAC-SHA256\n{at}\n{scope}\n{hashlib.sha256(canonical_request.encode()).hexdigest()}"


def derive_key(secret: str, day: str, region: str, service: str) -> bytes:
    """The key that signs for one day, region and service."""
    key = b"AWS4" + secret.encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def sign(key: bytes, string_to_sign: str) -> str:
    """The signature, in hexadecimal digits."""
    return hmac.digest(key, string_to_sign.encode(), "sha256").hex()


def render_authorization(access_key_id: str, scope: str, signed: str, signature: str) -> str:
    """The value of the header `Authorization`."""
    return f"AWS4-HMAC-SHA256 Credential={access_key_id}/{scope}, SignedHeaders={signed}, Signature={signature}"


# --- errors that all services have ------------------------------------------------------------------------------------

# https://docs.aws.amazon.com/ses/latest/APIReference-V2/CommonErrors.html
# https://docs.aws.amazon.com/sns/latest/api/CommonErrors.html
# JSON services say UnrecognizedClientException where query services say InvalidClientTokenId; both forms are listed.
_REFUSED_CREDENTIALS: Final = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "NotAuthorized",
        "OptInRequired",
        "RequestExpired",  # our clock is wrong; waits for an operator, too
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_SLOW_DOWN: Final = frozenset(
    {
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "Throttled",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_BROKEN: Final = frozenset(
    {"InternalError", "InternalFailure", "InternalServerError", "ServiceUnavailable", "ServiceUnavailableException"}
)


def decide_by_code(code: str, answer: HttpAnswer, now: datetime, said: str) -> SendResult | None:
    """What an error means that any of Amazon's services may answer; None if it is not one of these."""
    if code in _SLOW_DOWN:
        return Throttled(parse_retry_after(answer.headers.get("Retry-After"), now), said)
    if code in _REFUSED_CREDENTIALS:
        return Rejected(Reason.unauthorized, said)
    if code in _BROKEN:
        return Deferred(Reason.provider_error, parse_retry_after(answer.headers.get("Retry-After"), now), said)
    return None


_ECHOES: Final = frozenset({"InvalidSignatureException", "SignatureDoesNotMatch", "IncompleteSignature"})
"""Errors whose words repeat the request that was signed, a session token included."""


def to_evidence(answer: HttpAnswer, code: str, text: str) -> str:
    """Status, code and words of an error, short."""
    if code in _ECHOES:
        text = text.partition("\n")[0][:200].partition("Authorization")[0]
    return f"HTTP {answer.status} {code}: {text}"[:DETAIL_MAX]


# --- notifications of Amazon SNS --------------------------------------------------------------------------------------

MAX_AGE: Final = timedelta(minutes=70)
"""SNS repeats a notification for up to an hour and keeps its first time stamp, so five minutes would lose the
repetitions. The rest is for clocks that differ. https://docs.aws.amazon.com/sns/latest/dg/sns-message-delivery-retries.html"""
MAX_AHEAD: Final = timedelta(minutes=5)
"""How far a time stamp may lie in the future."""

_HOST: Final = re.compile(r"sns\.[a-z0-9-]{1,40}\.amazonaws\.com(\.cn)?")
_CERTIFICATE_PATH: Final = re.compile(r"/[A-Za-z0-9_-]{1,120}\.pem")
_CERTIFICATE_CAP: Final = 16 * 1024
_CERTIFICATES_KEPT: Final = 8
_KEY_BITS: Final = 2048
_SIGNED: Final[Mapping[str, tuple[str, ...]]] = {
    "Notification": ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"),
    "SubscriptionConfirmation": ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
    "UnsubscribeConfirmation": ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
}


class Envelope(msgspec.Struct, frozen=True):
    """A notification whose signature was right."""

    kind: str
    """Notification, SubscriptionConfirmation or UnsubscribeConfirmation."""
    id: str
    """The same in repetitions."""
    message: str
    at: datetime
    subscribe_url: str | None = None


class SnsReceiver:
    """Opens the notifications of one topic.

    What is believed, and why: the certificate comes over verified TLS from a host of Amazon's SNS, and from nowhere
    else; it is made out to SNS, is in force now, and its key signed the notification. Amazon serves the certificate
    without those of its issuers, so its own chain cannot be followed further than that.

    Args:
        topic_arn: the only topic whose notifications are opened; None opens none.
        timeout: seconds that fetching a certificate may take.
    """

    def __init__(self, topic_arn: str | None, http: HttpTransport, timeout: float) -> None:
        self._topic_arn = topic_arn
        self._http = http
        self._timeout = timeout
        self._certificates: dict[str, x509.Certificate] = {}
        self._fetching: dict[str, asyncio.Task[x509.Certificate]] = {}

    async def open(self, body: bytes, now: datetime) -> Envelope:
        """The notification in a callback's body.

        Raises:
            ReceiptRefused: it is none, of another topic, too old, or not signed by Amazon SNS.
            TransportFailure: the certificate could not be fetched; a repetition may succeed.
        """
        fields = _parse_fields(body)
        if self._topic_arn is None:
            raise ReceiptRefused("the account has no sns_topic_arn, so no notification can be meant for it")
        if not hmac.compare_digest(fields["TopicArn"].encode(), self._topic_arn.encode()):
            raise ReceiptRefused("the notification is of another topic than the account's sns_topic_arn")
        at = _parse_timestamp(fields["Timestamp"])
        if not now - MAX_AGE <= at <= now + MAX_AHEAD:
            raise ReceiptRefused("the notification's time stamp is too old or lies in the future")
        certificate = await self._load_certificate(parse_certificate_url(fields["SigningCertURL"]))
        check_certificate(certificate, now)
        check_signature(fields, certificate)
        return Envelope(fields["Type"], fields["MessageId"], fields["Message"], at, fields.get("SubscribeURL"))

    async def confirm(self, envelope: Envelope) -> None:
        """Follow the URL by which a subscription is confirmed.

        Raises:
            ReceiptRefused: the URL is not one of Amazon SNS, or SNS says no.
            TransportFailure: no answer; a repetition may succeed.
        """
        url = parse_subscribe_url(envelope.subscribe_url or "")
        answer = await self._http.request(
            "GET", url, headers={}, body=None, timeout=self._timeout, read_cap=_CERTIFICATE_CAP
        )
        if answer.status >= 500 or answer.status == 429:
            raise TransportFailure(f"SNS answered HTTP {answer.status} to the confirmation")
        if answer.status != 200:
            raise ReceiptRefused(f"SNS answered HTTP {answer.status} to the confirmation")

    async def close(self) -> None:
        """Give up what is being fetched."""
        for task in [*self._fetching.values()]:
            task.cancel()

    async def _load_certificate(self, url: str) -> x509.Certificate:
        """The certificate at a URL of Amazon's; many notifications may wait for the same one, which is fetched once."""
        if (kept := self._certificates.get(url)) is not None:
            return kept
        task = self._fetching.get(url)
        if task is None:
            if len(self._fetching) >= _CERTIFICATES_KEPT:
                raise TransportFailure("too many certificates are being fetched")
            task = self._fetching[url] = asyncio.create_task(self._fetch_certificate(url))
            task.add_done_callback(lambda done: self._forget(url, done))
        try:
            return await asyncio.shield(task)  # whoever gives up waiting takes it from nobody else
        except asyncio.CancelledError:
            if task.cancelled():
                raise TransportFailure("the account is being closed") from None
            raise

    def _forget(self, url: str, done: asyncio.Task[x509.Certificate]) -> None:
        self._fetching.pop(url, None)
        if not done.cancelled():
            done.exception()  # seen, also if nobody waits any more

    async def _fetch_certificate(self, url: str) -> x509.Certificate:
        answer = await self._http.request(
            "GET", url, headers={}, body=None, timeout=self._timeout, read_cap=_CERTIFICATE_CAP
        )
        if answer.status >= 500 or answer.status == 429:
            raise TransportFailure(f"the certificate's host answered HTTP {answer.status}")
        if answer.status != 200:
            raise ReceiptRefused(f"there is no certificate at its URL: HTTP {answer.status}")
        try:
            certificate = x509.load_pem_x509_certificate(answer.body)
        except ValueError:
            raise ReceiptRefused("what is at the certificate's URL is no certificate") from None
        while len(self._certificates) >= _CERTIFICATES_KEPT:
            del self._certificates[next(iter(self._certificates))]
        self._certificates[url] = certificate
        return certificate


def _parse_fields(body: bytes) -> dict[str, str]:
    """The texts of a notification. Lambda's spelling of the URLs becomes the usual one."""
    try:
        raw: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ReceiptRefused("the body is no notification of Amazon SNS (is raw message delivery on?)") from None
    if not isinstance(raw, dict):
        raise ReceiptRefused("the body is no notification of Amazon SNS")
    fields = {re.sub("Url$", "URL", name): value for name, value in raw.items() if isinstance(value, str)}
    if fields.get("Type") not in _SIGNED:
        raise ReceiptRefused("the body is no notification of Amazon SNS")
    needed = {*_SIGNED[fields["Type"]], "Signature", "SignatureVersion", "SigningCertURL"} - {"Subject"}
    if not needed <= fields.keys():
        raise ReceiptRefused("the notification lacks " + ", ".join(sorted(needed - fields.keys())))
    return fields


def _parse_timestamp(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ReceiptRefused("the notification's time stamp is none") from None
    if at.tzinfo is None:
        raise ReceiptRefused("the notification's time stamp has no time zone")
    return at


def _parse_amazon_url(text: str) -> URL:
    """A URL that leads to Amazon SNS and nowhere else."""
    try:
        url = URL(text)
    except ValueError:
        raise ReceiptRefused("a URL of the notification is none") from None
    plain = url.raw_user is None and url.raw_password is None and url.explicit_port is None and not url.raw_fragment
    # The host is compared as it is written: what yarl would still normalise is not Amazon's spelling.
    if url.scheme != "https" or not plain or not _HOST.fullmatch(url.raw_host or ""):
        raise ReceiptRefused("a URL of the notification does not lead to Amazon SNS over https")
    return url


def parse_certificate_url(text: str) -> str:
    """Where the certificate is, if that is Amazon's.

    Raises:
        ReceiptRefused: not https, not a host of Amazon SNS, or no `.pem` file.
    """
    url = _parse_amazon_url(text)
    if not _CERTIFICATE_PATH.fullmatch(url.raw_path) or url.raw_query_string:
        raise ReceiptRefused("the certificate's URL does not lead to a certificate of Amazon SNS")
    return str(url)


def parse_subscribe_url(text: str) -> str:
    """Where a subscription is confirmed, if that is Amazon's.

    Raises:
        ReceiptRefused: not https, not a host of Amazon SNS, or something else than a confirmation.
    """
    url = _parse_amazon_url(text)
    if url.raw_path != "/" or url.query.getall("Action", []) != ["ConfirmSubscription"]:
        raise ReceiptRefused("the URL to subscribe at is no confirmation of a subscription")
    return text


def check_certificate(certificate: x509.Certificate, now: datetime) -> None:
    """Hold a certificate against what can be known of one of Amazon SNS.

    Raises:
        ReceiptRefused: not in force, made out to somebody else, or with a weak key.
    """
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise ReceiptRefused("the signing certificate is not in force")
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = names.get_values_for_type(x509.DNSName)
    except (x509.ExtensionNotFound, ValueError):
        hosts = []
    if not any(host in ("sns.amazonaws.com", "sns.amazonaws.com.cn") or _HOST.fullmatch(host) for host in hosts):
        raise ReceiptRefused("the signing certificate is not made out to Amazon SNS")
    key = certificate.public_key()
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size < _KEY_BITS:
        raise ReceiptRefused("the signing certificate has no RSA key, or a short one")


def check_signature(fields: Mapping[str, str], certificate: x509.Certificate) -> None:
    """Verify a notification's signature, of version 1 (SHA-1) or 2 (SHA-256).

    Raises:
        ReceiptRefused: it is not of this certificate's key over these fields.
    """
    algorithm: hashes.HashAlgorithm
    match fields["SignatureVersion"]:
        case "1":
            algorithm = hashes.SHA1()  # noqa: S303 - what SNS signs with unless the topic says 2
        case "2":
            algorithm = hashes.SHA256()
        case _:
            raise ReceiptRefused("the notification's signature has an unknown version")
    try:
        signature = base64.b64decode(fields["Signature"], validate=True)
    except (binascii.Error, ValueError):
        raise ReceiptRefused("the notification's signature is no base64") from None
    signed = "".join(f"{name}\n{fields[name]}\n" for name in _SIGNED[fields["Type"]] if name in fields)
    key = certificate.public_key()
    if not isinstance(key, rsa.RSAPublicKey):
        raise ReceiptRefused("the signing certificate has no RSA key")
    try:
        key.verify(signature, signed.encode(), padding.PKCS1v15(), algorithm)
    except InvalidSignature:
        raise ReceiptRefused("the notification's signature is wrong") from None
