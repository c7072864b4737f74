"""JSON Web Tokens as vendors want them signed (RFC 7515, 7518): ES256 and RS256, nothing else.

This room knows the form and the two algorithms; it knows no vendor and no claim.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

_RSA_BITS_MIN: Final = 2048  # RFC 7518, 3.3


def parse_ec_key(pem: str) -> EllipticCurvePrivateKey:
    """A private key for ES256, from PEM.

    Raises:
        ValueError: it is none; the message does not contain it.
    """
    key = _load_pem(pem)
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise ValueError("must be an elliptic-curve private key (P-256) in PEM, without a password")
    return key


def parse_rsa_key(pem: str) -> RSAPrivateKey:
    """A private key for RS256, from PEM.

    Raises:
        ValueError: it is none; the message does not contain it.
    """
    key = _load_pem(pem)
    if not isinstance(key, RSAPrivateKey) or key.key_size < _RSA_BITS_MIN:
        raise ValueError(f"must be an RSA private key of at least {_RSA_BITS_MIN} bits in PEM, without a password")
    return key


def _load_pem(pem: str) -> object:
    try:
        return load_pem_private_key(pem.strip().encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # no PEM, broken, encrypted, or of a strange kind
        raise ValueError("must be a private key in PEM, without a password") from None


def sign_jwt(
    key: EllipticCurvePrivateKey | RSAPrivateKey, claims: Mapping[str, Any], *, kid: str | None = None, typ: bool = True
) -> str:
    """The compact form of a signed token.

    ES256 signatures are made without chance (RFC 6979): the same claims give the same token in every process.

    Args:
        kid: the key's id, for the header.
        typ: whether the header says `"typ": "JWT"`.
    """
    header: dict[str, str] = {"typ": "JWT"} if typ else {}
    header["alg"] = "ES256" if isinstance(key, EllipticCurvePrivateKey) else "RS256"
    if kid is not None:
        header["kid"] = kid
    content = f"{to_base64url(msgspec.json.encode(header))}.{to_base64url(msgspec.json.encode(claims))}"
    if isinstance(key, EllipticCurvePrivateKey):
        r, s = decode_dss_signature(key.sign(content.encode(), ECDSA(SHA256(), deterministic_signing=True)))
        signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")  # RFC 7518, 3.4
    else:
        signature = key.sign(content.encode(), PKCS1v15(), SHA256())
    return f"{content}.{to_base64url(signature)}"


def to_base64url(data: bytes) -> str:
    """Base64 with the URL's alphabet and without padding (RFC 7515, 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def parse_base64url(text: str) -> bytes:
    """The octets of base64url, with or without padding.

    Raises:
        ValueError: it is none.
    """
    text = text.strip().rstrip("=")
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
