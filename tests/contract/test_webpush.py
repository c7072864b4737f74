"""Web Push beyond what every provider has to do: the RFCs' vectors, the keys, and what is remembered of a service."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwk, jws, jwt
from pydantic import SecretStr

from tests.contract.cases.webpush import (
    AUTH,
    BROWSER,
    BROWSER_KEY,
    PRIVATE_KEY,
    PUBLIC_KEY,
    PushService,
    b64,
    config,
    message,
)
from tests.contract.golden import cases, load, may_differ
from tests.contract.provider_case import DELIVERY, NOW, FixedClock
from tests.contract.push_reader import Unreadable, decrypt
from tidings.channels import CHANNELS
from tidings.errors import Invalid
from tidings.ids import to_public
from tidings.model.messages import Message, Push, Rejected, SendResult, Sent
from tidings.model.words import Channel, Reason
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport
from tidings.providers.port import Surroundings
from tidings.providers.registry import merge_secrets, parse_config, split_secrets
from tidings.providers.webpush import WebPushConfig, WebPushProvider, encrypt, parse_private_key, parse_target, to_topic

KEY = to_public("dlv", DELIVERY)
RECEIVER = base64.urlsafe_b64decode(BROWSER_KEY + "=")


def octets(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class MovableClock(FixedClock):
    def __init__(self) -> None:
        super().__init__()
        self.at = NOW

    def now(self) -> datetime:
        return self.at


@contextlib.asynccontextmanager
async def provider_with(guard: Guard, clock: FixedClock | None = None) -> AsyncIterator[WebPushProvider]:
    http = AiohttpTransport(guard)
    provider = WebPushProvider(
        WebPushConfig.model_validate(config(1)), Surroundings(http, guard, clock or FixedClock())
    )
    try:
        yield provider
    finally:
        await provider.close()
        await http.close()


class TestVectors:
    @pytest.mark.parametrize(
        "case",
        cases(
            "webpush/encryption_vectors.json", lambda data: ((c["id"], c) for c in [*data["encrypt"], *data["decrypt"]])
        ),
    )
    def test_published_ones(self, case: dict[str, Any]) -> None:
        """We encrypt octet by octet as they do; and the reader of these tests reads as browsers have to."""
        auth = octets(case["auth_secret"])
        if "salt" in case:
            key = parse_private_key(SecretStr(case["as_private"]))
            body = encrypt(
                case["plaintext"].encode(), octets(case["ua_public"]), auth, key=key, salt=octets(case["salt"])
            )
            with may_differ():
                assert b64(body) == case["body"]
        elif case["valid"]:
            key = parse_private_key(SecretStr(case["ua_private"]))
            assert decrypt(octets(case["body"]), key, auth).decode() == case["plaintext"]
        else:
            with pytest.raises(Unreadable):
                decrypt(octets(case["body"]), parse_private_key(SecretStr(case["ua_private"])), auth)

    @given(st.binary(max_size=3993))
    def test_what_is_encrypted_can_be_read(self, plaintext: bytes) -> None:
        body = encrypt(plaintext, RECEIVER, AUTH)
        assert decrypt(body, BROWSER, AUTH) == plaintext
        assert len(body) <= 4096

    def test_no_two_bodies_are_alike(self) -> None:
        bodies = {encrypt(b"x", RECEIVER, AUTH) for _ in range(20)}
        assert len({body[:16] for body in bodies}) == len({body[21:86] for body in bodies}) == 20

    async def test_the_signature_is_as_in_rfc_8292(self) -> None:
        data = load("webpush/vapid_rfc8292.json")
        async with PushService() as service, provider_with(Guard(["127.0.0.0/8"])) as provider:
            await provider.send(message(service.port, Push(body="Hi")), KEY)
        example, ours = (parse_vapid(text) for text in (data["authorization_header"], authorization_of(service)))
        reference = jws.deserialize_compact(example["t"], jwk.import_key(data["public_key_jwk"]), algorithms=["ES256"])
        assert json.loads(reference.payload) == data["claims"]
        token = jwt.decode(ours["t"], jwk_of(octets(ours["k"])), algorithms=["ES256"])
        assert token.header == data["header"]
        assert token.claims.keys() == data["claims"].keys()
        assert ours.keys() == example.keys()
        assert len(octets(ours["k"])) == 65
        assert token.claims["exp"] - NOW.timestamp() <= 24 * 3600


def authorization_of(service: PushService, number: int = -1) -> str:
    return service.requests[number].headers["authorization"]


def parse_vapid(header: str) -> dict[str, str]:
    return dict(field.strip().split("=", 1) for field in header.removeprefix("vapid ").split(","))


def jwk_of(point: bytes) -> Any:
    return jwk.import_key({"kty": "EC", "crv": "P-256", "x": b64(point[1:33]), "y": b64(point[33:])})


class TestKeys:
    def test_the_public_key_is_shown_and_follows_the_private_one(self) -> None:
        made = parse_config("webpush", config(1))
        public, secret = split_secrets(made)
        assert public == {"public_key": PUBLIC_KEY, "subject": "mailto:push@shop.example"}
        other = ec.generate_private_key(ec.SECP256R1())
        replaced = merge_secrets(
            "webpush", public, {**secret, "private_key": b64(other.private_numbers().private_value.to_bytes(32, "big"))}
        )
        assert isinstance(replaced, WebPushConfig)
        assert len(replaced.public_key) == 87
        assert replaced.public_key != PUBLIC_KEY

    def test_pem_does_too(self) -> None:
        key = parse_private_key(SecretStr(PRIVATE_KEY))
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        made = parse_config("webpush", {**config(1), "private_key": pem})
        assert isinstance(made, WebPushConfig)
        assert made.public_key == PUBLIC_KEY

    @pytest.mark.parametrize(
        "key",
        ["", "x", b64(bytes(32)), b64(bytes(31)), b64(b"\xff" * 32), "ä" * 43, PUBLIC_KEY],
        ids=["empty", "no-base64", "zero", "short", "beyond-the-order", "no-ascii", "public"],
    )
    def test_others_are_refused(self, key: str) -> None:
        with pytest.raises(Invalid) as caught:
            parse_config("webpush", {**config(1), "private_key": key})
        assert [e["pointer"] for e in caught.value.to_dict()["errors"]] == ["/config/private_key"]

    @pytest.mark.parametrize("subject", ["", "push@shop.example", "http://shop.example", "mailto:", "mailto:a b@c.d"])
    def test_subjects_that_nobody_could_write_to_are_refused(self, subject: str) -> None:
        with pytest.raises(Invalid):
            parse_config("webpush", {**config(1), "subject": subject})


async def test_one_signature_for_each_service_and_half_a_day() -> None:
    clock = MovableClock()
    async with PushService() as one, PushService() as two, provider_with(Guard(["127.0.0.0/8"]), clock) as provider:
        for service in (one, one, two):
            assert isinstance(await provider.send(message(service.port, Push(body="Hi")), KEY), Sent)
        clock.at += timedelta(hours=7)
        await provider.send(message(one.port, Push(body="Hi")), KEY)
        first, second, later = (authorization_of(one, i) for i in range(3))
    assert first == second
    assert len({first, later, authorization_of(two)}) == 3


async def send(to: str, guard: Guard, push: Push | None = None) -> SendResult:
    async with provider_with(guard) as provider:
        return await provider.send(Message(DELIVERY, Channel.push, to, push or Push(body="Hi")), KEY)


@pytest.mark.parametrize("endpoint", ["https://127.0.0.1:{}/x", "http://127.0.0.1:{}/x", "https://localhost:{}/x"])
async def test_inner_targets_are_refused(endpoint: str) -> None:
    async with PushService() as service:
        result = await send(f"webpush:{endpoint.format(service.port)}#{BROWSER_KEY}.{b64(AUTH)}", Guard())
        assert isinstance(result, Rejected)
        assert result.reason is Reason.target_refused
        assert service.connections == 0


@pytest.mark.parametrize(
    "to",
    [
        "apns:00",
        "webpush:https://push.example/x",
        f"webpush:#{BROWSER_KEY}.{b64(AUTH)}",
        f"webpush:https://push.example/x#{BROWSER_KEY}",
        f"webpush:https://push.example/x#{b64(b'%c' % 4 + bytes(64))}.{b64(AUTH)}",
        f"webpush:/x#{BROWSER_KEY}.{b64(AUTH)}",
    ],
    ids=["another-scheme", "no-keys", "no-endpoint", "no-secret", "no-point", "no-host"],
)
async def test_what_is_no_subscription_does_not_leave(to: str) -> None:
    result = await send(to, Guard())
    assert isinstance(result, Rejected)
    assert result.reason is Reason.invalid_address


async def test_a_payload_too_large_does_not_leave() -> None:
    async with PushService() as service, provider_with(Guard(["127.0.0.0/8"])) as provider:
        result = await provider.send(message(service.port, Push(body="x" * 3982)), KEY)
        assert isinstance(result, Sent)  # the largest: {"body":"…"} has eleven octets more
        assert len(service.requests[0].body) == 4096
        result = await provider.send(message(service.port, Push(body="x" * 3983)), KEY)
        assert isinstance(result, Rejected)
        assert result.reason is Reason.too_large


def test_what_the_channel_gives_is_what_the_provider_takes() -> None:
    subscription = {"endpoint": "https://push.example/x?a=b", "keys": {"p256dh": BROWSER_KEY, "auth": b64(AUTH)}}
    address = CHANNELS[Channel.push].parse_address(json.dumps(subscription))
    assert parse_target(address.removeprefix("webpush:")) == ("https://push.example/x?a=b", RECEIVER, AUTH)


@given(st.text())
def test_topics_fit_their_header(key: str) -> None:
    assert len(to_topic(key)) == 32
    assert set(to_topic(key)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
