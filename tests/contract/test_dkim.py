"""DKIM: what we sign, the verifier of dkimpy accepts, also after a real SMTP server has taken it."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import dkim
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from dkim.canonicalization import CanonicalizationPolicy
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.test_smtp import aiosmtpd_server, provider, send
from tidings.errors import Invalid
from tidings.model.messages import Attachment, Email, Sent
from tidings.providers.dkim import DkimSigner, canonicalize_body
from tidings.providers.registry import parse_config

Private = rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey

RSA = rsa.generate_private_key(65537, 2048)
EDWARDS = ed25519.Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"fixed").digest())
ONE_CLICK = (
    ("List-Unsubscribe", "<https://example.com/u/1>"),
    ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"),
)
FULL = Email(
    "Grüße " * 20,
    text="Hello  Ada \n\n trailing \t \n\n\n",
    html="<p>Zoë</p>",
    reply_to="help@example.com",
    headers=ONE_CLICK,
    cc=("bob@example.com",),
    attachments=(Attachment("ü.png", "image/png", bytes(range(256)), "logo"),),
)


def to_pem(key: Private) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def dns(name: bytes, timeout: int = 5) -> bytes:
    """The TXT record of our RSA key."""
    assert name == b"s1._domainkey.example.com."
    public = RSA.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)


def config(key: Private = RSA) -> dict[str, Any]:
    return {"dkim_domain": "example.com", "dkim_selector": "s1", "dkim_private_key": to_pem(key)}


async def receive(key: Private, content: Email) -> bytes:
    """The mail as a real SMTP server got it."""
    async with aiosmtpd_server(None) as (port, catcher), provider(port, **config(key)) as smtp:
        assert isinstance(await send(smtp, content), Sent)
    raw = catcher.messages[0].as_bytes(policy=catcher.messages[0].policy.clone(linesep="\r\n", max_line_length=0))
    return b"\r\n".join(
        line for line in raw.split(b"\r\n") if not line.startswith((b"X-Peer", b"X-MailFrom", b"X-RcptTo"))
    )


@pytest.mark.parametrize(
    "content", [Email("Hi", text="Hello"), Email("", html=""), FULL], ids=["minimal", "empty", "full"]
)
async def test_dkimpy_verifies_what_a_real_server_got(content: Email) -> None:
    raw = await receive(RSA, content)
    assert dkim.verify(raw, dnsfunc=dns)
    assert raw.isascii(), "a relay that recodes eight-bit mails would break the signature"


async def test_every_field_that_matters_is_covered_and_from_twice() -> None:
    raw = await receive(RSA, FULL)
    tags = dkim.util.parse_tag_value(dkim.rfc822_parse(raw)[0][0][1])
    covered = b"".join(tags[b"h"].split()).decode().split(":")
    assert covered == [
        *("from", "from", "to", "cc", "subject", "date", "message-id", "mime-version", "content-type", "reply-to"),
        *("list-unsubscribe", "list-unsubscribe-post"),
    ]
    for change in (
        (b"Subject: ", b"Subject: x"),
        (b"One-Click", b"Two-Clicks"),
        (b"Cc: bob", b"Cc: eve"),
        (b"Hello", b"Hallo"),
    ):
        assert not dkim.verify(raw.replace(*change, 1), dnsfunc=dns), change
    assert not dkim.verify(b"From: Eve <eve@example.com>\r\n" + raw, dnsfunc=dns), "nobody can add a second sender"
    assert dkim.verify(b"Received: from a by b\r\n" + raw.replace(b"Subject: ", b"Subject:   "), dnsfunc=dns)


async def test_ed25519() -> None:
    """dkimpy needs PyNaCl for these; the text that is signed is made by dkimpy, the signature checked here."""
    raw = await receive(EDWARDS, FULL)
    headers, body = dkim.rfc822_parse(raw)
    (field,) = [value for name, value in headers if name.lower() == b"dkim-signature"]
    tags = {name: b"".join(value.split()) for name, value in dkim.util.parse_tag_value(field).items()}
    assert tags[b"a"] == b"ed25519-sha256"
    policy = CanonicalizationPolicy.from_c_value(b"relaxed/relaxed")
    assert base64.b64encode(hashlib.sha256(policy.canonicalize_body(body)).digest()) == tags[b"bh"]
    hasher = dkim.HashThrough(hashlib.sha256())
    names = [name.lower() for name in tags[b"h"].split(b":")]
    dkim.hash_headers(hasher, policy, policy.canonicalize_headers(headers), names, (b"DKIM-Signature", field), tags)
    EDWARDS.public_key().verify(base64.b64decode(tags[b"b"]), hasher.digest())
    with pytest.raises(InvalidSignature):
        EDWARDS.public_key().verify(base64.b64decode(tags[b"b"]), hashlib.sha256(b"another").digest())


@given(st.text(" \t\r\nab", max_size=80))
def test_bodies_are_canonicalized_as_dkimpy_does(text: str) -> None:
    body = text.replace("\r", "").replace("\n", "\r\n").encode() + b"\r\n"  # as all our mails end
    assert canonicalize_body(body) == CanonicalizationPolicy.from_c_value(b"relaxed/relaxed").canonicalize_body(body)


@given(st.text(" ab:\t", max_size=60))
def test_signatures_of_any_subject_verify(subject: str) -> None:
    mail = f"From: a@example.com\r\nSUBJECT:{subject.rstrip()}\r\n\r\nx".encode()
    assert dkim.verify(DkimSigner("example.com", "s1", to_pem(RSA)).sign(mail, 1_700_000_000) + mail, dnsfunc=dns)


@pytest.mark.parametrize(
    "change",
    [
        {"dkim_selector": None},
        {"dkim_private_key": None},
        {"dkim_domain": "a b"},
        {"dkim_selector": "s1; d=evil.example"},
        {"dkim_private_key": "do-not-repeat"},
        {"dkim_private_key": to_pem(ec.generate_private_key(ec.SECP256R1()))},
        {"dkim_private_key": to_pem(rsa.generate_private_key(65537, 1024)).replace("PRIVATE", "PUBLIC")},
    ],
)
def test_unusable_keys_and_names(change: dict[str, Any]) -> None:
    raw = {"host": "mail.example.com", "from_address": "shop@example.com", **config(), **change}
    with pytest.raises(Invalid) as caught:
        parse_config("smtp", {name: value for name, value in raw.items() if value is not None})
    assert "do-not-repeat" not in str(caught.value.to_dict())
    assert "PRIVATE" not in str(caught.value.to_dict())
