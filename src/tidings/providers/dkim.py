"""DKIM signatures on outgoing mail (RFC 6376, RFC 8463): relaxed/relaxed, RSA or Ed25519.

`dkimpy` computes RSA in Python, 6 ms a mail, which is slower than everything else on the road together; with
`cryptography` it is 0.3 ms (RSA-2048) and less than 0.1 ms (Ed25519). The tests verify our signatures with `dkimpy`.

This room knows the signature; it knows no connection and no account.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

_MIN_RSA_BITS: Final = 1024  # RFC 8301: verifiers take no shorter ones
_SIGNED: Final = (
    "from",
    "to",
    "cc",
    "subject",
    "date",
    "message-id",
    "mime-version",
    "content-type",
    "reply-to",
    "list-unsubscribe",  # RFC 8058, 4: one-click mails have to have both under the signature
    "list-unsubscribe-post",
)
_SPACES: Final = re.compile(rb"[ \t]+")
_FOLD: Final = re.compile(rb"\r\n(?=[ \t])")
_TRAILING: Final = re.compile(rb" (?=\r\n)")
_NAME: Final = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,62}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)


class DkimSigner:
    """Signs mails for one domain with one selector's key. May be used from many tasks."""

    def __init__(self, domain: str, selector: str, private_key_pem: str) -> None:
        """
        Args:
            domain: the `d=`, ASCII; should be that of the From address, or what DMARC calls aligned with it.
            selector: the `s=`: the public key is in the TXT record `<selector>._domainkey.<domain>`.
            private_key_pem: RSA or Ed25519, PKCS #8 or PKCS #1, without a password.

        Raises:
            ValueError: one of them cannot be used. The message repeats nothing of the key.
        """
        for field, value in (("domain", domain), ("selector", selector)):
            if len(value) > 253 or not _NAME.fullmatch(value):
                raise ValueError(f"the DKIM {field} must be a DNS name")
        self._sign, algorithm = _load_key(private_key_pem)
        self._opening = f"v=1; a={algorithm}; c=relaxed/relaxed; d={domain.lower()}; s={selector};\r\n t="

    def sign(self, mail: bytes, unix_s: int) -> bytes:
        """The field `DKIM-Signature` with its line end, to be put in front of the mail.

        `From` is signed once more than it occurs, so that nobody can add a second one (RFC 6376, 8.15).

        Args:
            mail: with CRLF line ends, as it will be sent.
            unix_s: when it is signed.
        """
        head, _, body = mail.partition(b"\r\n\r\n")
        fields = _parse_fields(head)
        names = [name for name in _SIGNED if name in fields]
        digest = base64.b64encode(hashlib.sha256(canonicalize_body(body)).digest()).decode()
        covered = ":".join(["from", *names])
        value = f"{self._opening}{unix_s}; h={_fold(covered)};\r\n bh={digest};\r\n b="
        signed = b"".join(b"%b:%b\r\n" % (name.encode(), fields[name]) for name in names)
        unsigned = b"dkim-signature:" + _relax(value.encode())
        signature = base64.b64encode(self._sign(signed + unsigned)).decode()
        lines = "\r\n ".join(signature[at : at + 72] for at in range(0, len(signature), 72))
        return f"DKIM-Signature: {value}{lines}\r\n".encode()


def _load_key(pem: str) -> tuple[Callable[[bytes], bytes], str]:
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError):  # TypeError: it has a password
        raise ValueError("the DKIM key must be a private key in PEM without a password") from None
    if isinstance(key, ed25519.Ed25519PrivateKey):
        # RFC 8463, 3: what is signed is the SHA-256 digest, not the text itself.
        edwards = key
        return lambda data: edwards.sign(hashlib.sha256(data).digest()), "ed25519-sha256"
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < _MIN_RSA_BITS:
            raise ValueError(f"the DKIM key must have {_MIN_RSA_BITS} bits at least")
        private = key
        return lambda data: private.sign(data, padding.PKCS1v15(), hashes.SHA256()), "rsa-sha256"
    raise ValueError("the DKIM key must be RSA or Ed25519")


def _parse_fields(head: bytes) -> dict[str, bytes]:
    """By name in lower case: the relaxed value. Of a repeated field the last one, which is what a verifier takes."""
    fields: dict[str, bytes] = {}
    for line in _FOLD.sub(b"", head).split(b"\r\n"):
        name, _, value = line.partition(b":")
        fields[name.strip().decode("ascii", "replace").lower()] = _relax(value)
    return fields


def _relax(value: bytes) -> bytes:
    """RFC 6376, 3.4.2: unfolded, runs of white space as one space, none at the ends."""
    return _SPACES.sub(b" ", _FOLD.sub(b"", value)).strip(b" ")


def canonicalize_body(body: bytes) -> bytes:
    """RFC 6376, 3.4.4: runs of white space as one space, none at line ends, no empty lines at the end."""
    if b"  " in body or b"\t" in body:
        body = _SPACES.sub(b" ", body)
    if b" \r\n" in body or body.endswith(b" "):
        body = _TRAILING.sub(b"", body).removesuffix(b" ")
    end = len(body)
    while body.endswith(b"\r\n", 0, end):
        end -= 2
    return body[:end] + b"\r\n" if end else b""


def _fold(names: str) -> str:
    """The list of names on lines that are not too long; a verifier ignores the white space."""
    first, _, rest = names.partition(":date")
    return f"{first}\r\n :date{rest}" if rest or names.endswith(":date") else names
