"""Signatures of Standard Webhooks against what its authors and Svix published, both ways."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from standardwebhooks import Webhook as Reference

from tests.contract.golden import cases, load
from tidings.providers.port import ReceiptRefused
from tidings.providers.webhook import TOLERANCE, parse_secret, sign, verify_signature

FILE = "standard-webhooks/signature_vectors.json"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


def by_id(data: Any) -> list[tuple[str, Any]]:
    return [(case["id"].removeprefix("standard-webhooks/"), case) for case in data["cases"]]


@pytest.mark.parametrize("case", cases(FILE, by_id))
def test_published_case(case: Any) -> None:
    secret = SecretStr(case.get("public_key") or case["secret"])
    headers = {name.lower(): value for name, value in case["headers"].items()}
    now = datetime.fromtimestamp(case["now"], UTC)
    assert timedelta(seconds=case["tolerance_s"]) == TOLERANCE
    body = case["body"].encode()
    if not case["valid"]:
        with pytest.raises(ReceiptRefused):
            verify_signature(secret, headers, body, now)
        return
    verify_signature(secret, headers, body, now)
    key = parse_secret(SecretStr(case.get("private_key") or case["secret"]))
    assert sign([key], headers["webhook-id"], headers["webhook-timestamp"], body) in (
        headers["webhook-signature"].split(" ")
    )


def test_published_signatures() -> None:
    vector = load(FILE)["signing"]
    shared, private = (parse_secret(SecretStr(vector[name])) for name in ("secret", "ed25519_private_key"))
    arguments = (vector["id"], str(vector["timestamp"]), vector["payload"].encode())
    assert sign([shared], *arguments) == vector["expected"]
    assert sign([private], *arguments) == vector["ed25519_expected"]
    assert sign([private, shared], *arguments) == f"{vector['ed25519_expected']} {vector['expected']}"


@given(st.text(st.characters(codec="ascii", exclude_characters=". "), min_size=1), st.text())
def test_the_reference_signs_the_same(id_: str, body: str) -> None:
    ours = sign([parse_secret(SecretStr(SECRET))], id_, str(int(NOW.timestamp())), body.encode())
    assert ours == Reference(SECRET).sign(id_, NOW, body)


@given(st.binary(max_size=200), st.integers(0, 1))
def test_what_is_signed_verifies_and_nothing_else(body: bytes, kind: int) -> None:
    private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    public = "whpk_" + base64.b64encode(private.public_key().public_bytes_raw()).decode()
    key, secret = ((parse_secret(SecretStr(SECRET)), SECRET), (private, public))[kind]
    timestamp = str(int(NOW.timestamp()))
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": timestamp,
        "webhook-signature": sign([key], "msg_1", timestamp, body),
    }
    verify_signature(SecretStr(secret), headers, body, NOW)
    for changed in ({**headers, "webhook-id": "msg_2"}, {**headers, "webhook-signature": "v1a,é v1,\x00 v1"}):
        with pytest.raises(ReceiptRefused):
            verify_signature(SecretStr(secret), changed, body, NOW)
    with pytest.raises(ReceiptRefused):
        verify_signature(SecretStr(secret), headers, body + b" ", NOW)
    svix = {name.replace("webhook-", "svix-"): value for name, value in headers.items()}
    verify_signature(SecretStr(secret), svix, body, NOW)


@pytest.mark.parametrize(
    "secret", ["whsk_", "whsk_c2hvcnQ=", "whsk_%%%", "whsk_" + base64.b64encode(bytes(64)).decode()]
)
def test_bad_private_keys_are_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(ValueError, match="whsk_") as caught:
        parse_secret(SecretStr(secret))
    assert not secret[5:] or secret[5:] not in str(caught.value)


def test_a_seed_alone_is_a_private_key() -> None:
    seed = bytes(range(32))
    whole = seed + Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    short, long = (parse_secret(SecretStr("whsk_" + base64.b64encode(octets).decode())) for octets in (seed, whole))
    assert sign([short], "a", "1", b"") == sign([long], "a", "1", b"")


def test_a_private_key_does_not_verify() -> None:
    secret = SecretStr("whsk_" + base64.b64encode(bytes(range(32))).decode())
    headers = {"webhook-id": "a", "webhook-timestamp": str(int(NOW.timestamp())), "webhook-signature": "v1,x"}
    with pytest.raises(ValueError, match="public"):
        verify_signature(secret, headers, b"", NOW)
