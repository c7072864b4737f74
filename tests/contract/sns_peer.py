"""Amazon SNS played by a key and a certificate of our own, behind a transport that leads to nobody else."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from tidings.providers.http import ConnectFailed, HttpAnswer

TOPIC = "arn:aws:sns:eu-central-1:123456789012:mail"
CERTIFICATE_URL = "https://sns.eu-central-1.amazonaws.com/SimpleNotificationService-0123456789abcdef.pem"
SUBSCRIBE_URL = f"https://sns.eu-central-1.amazonaws.com/?Action=ConfirmSubscription&TopicArn={TOPIC}&Token=2336412f37"


@cache
def signing_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def certificate(
    host: str | None = "sns.amazonaws.com",
    key: Any = None,
    begins: datetime = datetime(2010, 1, 1, tzinfo=UTC),
    ends: datetime = datetime(2040, 1, 1, tzinfo=UTC),
) -> bytes:
    """PEM. Good for all times of the samples unless said otherwise."""
    key = key or signing_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host or "sns.amazonaws.com")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begins)
        .not_valid_after(ends)
    )
    if host is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class Amazon:
    """The transport: answers at the URLs that it was given, and remembers what was asked for."""

    def __init__(self, answers: Mapping[str, HttpAnswer | bytes] | None = None) -> None:
        default: Mapping[str, HttpAnswer | bytes] = {CERTIFICATE_URL: certificate(), SUBSCRIBE_URL: b"<Confirmed/>"}
        self.answers = dict(default if answers is None else answers)
        self.asked: list[tuple[str, str]] = []

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: float,
        read_cap: int,
    ) -> HttpAnswer:
        self.asked.append((method, url))
        answer = self.answers.get(url)
        if answer is None:
            raise ConnectFailed("nobody is there")
        return answer if isinstance(answer, HttpAnswer) else HttpAnswer(200, {}, answer)

    async def close(self) -> None:
        """There is nothing to close."""


def envelope(message: str, at: datetime, **fields: str) -> dict[str, str]:
    """An unsigned notification."""
    return {
        "Type": "Notification",
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": TOPIC,
        "Message": message,
        "Timestamp": f"{at - timedelta(seconds=1):%Y-%m-%dT%H:%M:%S}.123Z",
        **fields,
    }


def seal(fields: Mapping[str, str], *, version: str = "2", key: Any = None) -> bytes:
    """The callback's body: the fields and their signature."""
    names = ["Message", "MessageId", "Subject", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"]
    if fields["Type"] == "Notification":
        names = [name for name in names if name not in ("SubscribeURL", "Token")]
    text = "".join(f"{name}\n{fields[name]}\n" for name in names if name in fields)
    algorithm = hashes.SHA1() if version == "1" else hashes.SHA256()
    signature = (key or signing_key()).sign(text.encode(), padding.PKCS1v15(), algorithm)
    signed = {"SignatureVersion": version, "Signature": base64.b64encode(signature).decode()}
    return json.dumps({"SigningCertURL": CERTIFICATE_URL, **fields, **signed}).encode()
