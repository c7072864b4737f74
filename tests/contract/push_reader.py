"""A browser's side of Web Push: takes a body apart as RFC 8188 and RFC 8291 say, written from the RFCs alone."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDH,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


class Unreadable(Exception):
    """The body is not what it should be."""


def decrypt(body: bytes, key: EllipticCurvePrivateKey, auth: bytes) -> bytes:
    """The plain text.

    Raises:
        Unreadable: it is not for this browser, or altered.
    """
    if len(body) < 21:
        raise Unreadable("shorter than its header")
    salt, size, id_length = body[:16], int.from_bytes(body[16:20], "big"), body[20]
    sender, content = body[21 : 21 + id_length], body[21 + id_length :]
    if size < 18 or len(sender) != 65:
        raise Unreadable("a record size or a key that cannot be")
    receiver = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    agreed = key.exchange(ECDH(), EllipticCurvePublicKey.from_encoded_point(SECP256R1(), sender))
    secret = HKDF(SHA256(), 32, auth, b"WebPush: info\0" + receiver + sender).derive(agreed)
    content_key = HKDF(SHA256(), 16, salt, b"Content-Encoding: aes128gcm\0").derive(secret)
    nonce = int.from_bytes(HKDF(SHA256(), 12, salt, b"Content-Encoding: nonce\0").derive(secret), "big")
    records = [content[i : i + size] for i in range(0, len(content), size)]
    if not records:
        raise Unreadable("no record")
    plain = []
    for number, record in enumerate(records):
        try:
            padded = AESGCM(content_key).decrypt((nonce ^ number).to_bytes(12, "big"), record, None).rstrip(b"\0")
        except InvalidTag:
            raise Unreadable("a record was altered") from None
        last = number == len(records) - 1
        if padded[-1:] != (b"\x02" if last else b"\x01"):
            raise Unreadable("a wrong delimiter")
        plain.append(padded[:-1])
    return b"".join(plain)
