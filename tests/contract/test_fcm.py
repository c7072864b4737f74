"""Firebase beyond what every provider has to do: the access token's life, and published data."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jwk, jwt

from tests.contract.cases.fcm import (
    CLIENT,
    FULL,
    FULL_BODY,
    NAME,
    PRIVATE_KEY,
    PUBLIC_KEY,
    TOKEN,
    FcmVendor,
    config,
    error,
    message,
    of,
    service_account,
)
from tests.contract.golden import cases, load, may_differ
from tests.contract.provider_case import DELIVERY, NOW, FixedClock
from tests.contract.servers import Act, http_answer
from tidings.errors import Invalid
from tidings.ids import to_public
from tidings.model.messages import Deferred, Message, Push, PushAction, Rejected, SendResult, Sent, Throttled, Uncertain
from tidings.model.words import Channel, Priority, Reason
from tidings.providers.fcm import FcmConfig, FcmProvider, decide_result, render_message
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport, HttpAnswer
from tidings.providers.port import Surroundings
from tidings.providers.registry import parse_config

KEY = to_public("dlv", DELIVERY)
HI = message(Push(body="Hi"))
OK = http_answer(200, body=json.dumps({"name": NAME}).encode())
UNAUTHENTICATED = error(401, "UNAUTHENTICATED")


class MovableClock(FixedClock):
    def __init__(self) -> None:
        super().__init__()
        self.at = NOW

    def now(self) -> datetime:
        return self.at


@contextlib.asynccontextmanager
async def sending_to(
    vendor: FcmVendor, clock: FixedClock | None = None, timeout: float | None = None
) -> AsyncIterator[FcmProvider]:
    guard = Guard(["127.0.0.0/8"])
    http = AiohttpTransport(guard)
    limit = None if timeout is None else timedelta(seconds=timeout)
    async with vendor:
        surroundings = Surroundings(http, guard, clock or FixedClock(), timeout=limit)
        provider = FcmProvider(FcmConfig.model_validate(config(vendor.port)), surroundings)
        try:
            yield provider
        finally:
            await provider.close()
            await http.close()


class TestAccessToken:
    async def test_one_fetch_for_many_sends(self) -> None:
        vendor = FcmVendor()
        vendor.gate = asyncio.Event()
        async with sending_to(vendor) as provider:
            sends = [asyncio.create_task(provider.send(HI, KEY)) for _ in range(20)]
            await asyncio.sleep(0)
            vendor.gate.set()
            assert all(isinstance(result, Sent) for result in await asyncio.gather(*sends))
        assert len(vendor.assertions) == 1
        assert len(vendor.requests) == 20

    async def test_one_that_gives_up_takes_it_from_nobody(self) -> None:
        vendor = FcmVendor()
        vendor.gate = asyncio.Event()
        async with sending_to(vendor) as provider:
            first, second = (asyncio.create_task(provider.send(HI, KEY)) for _ in range(2))
            await asyncio.sleep(0)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            vendor.gate.set()
            assert isinstance(await second, Sent)
        assert len(vendor.assertions) == 1

    async def test_it_is_kept_until_shortly_before_its_end(self) -> None:
        vendor, clock = FcmVendor(), MovableClock()
        async with sending_to(vendor, clock) as provider:
            await provider.send(HI, KEY)
            clock.at = NOW + timedelta(minutes=54)
            await provider.send(HI, KEY)
            assert len(vendor.assertions) == 1

    async def test_it_is_replaced_shortly_before_its_end(self) -> None:
        short = of(200, access_token="access-0", expires_in=3599)  # not counted, so it is what the vendor wants
        vendor, clock = FcmVendor(tokens=(short, short)), MovableClock()
        async with sending_to(vendor, clock) as provider:
            await provider.send(HI, KEY)
            clock.at = NOW + timedelta(minutes=56)
            assert isinstance(await provider.send(HI, KEY), Sent)
            assert len(vendor.assertions) == 2

    async def test_a_refused_token_is_replaced_once(self) -> None:
        vendor = FcmVendor(UNAUTHENTICATED, OK)
        async with sending_to(vendor) as provider:
            assert await provider.send(HI, KEY) == Sent(NAME)
        assert [r.headers["authorization"] for r in vendor.requests] == ["Bearer access-1", "Bearer access-2"]

    async def test_a_token_refused_again_is_the_accounts_fault(self) -> None:
        vendor = FcmVendor(UNAUTHENTICATED)
        async with sending_to(vendor) as provider:
            result = await provider.send(HI, KEY)
            assert isinstance(result, Rejected)
            assert result.reason is Reason.unauthorized
        assert (len(vendor.assertions), len(vendor.requests)) == (2, 2)

    async def test_sends_whose_token_was_refused_share_the_new_one(self) -> None:
        vendor = FcmVendor(*[UNAUTHENTICATED] * 10, OK)
        async with sending_to(vendor) as provider:
            results = await asyncio.gather(*(provider.send(HI, KEY) for _ in range(10)))
        assert all(isinstance(result, Sent) for result in results), results
        assert len(vendor.assertions) == 2

    async def test_no_token_in_time_means_nothing_was_sent(self) -> None:
        vendor = FcmVendor(tokens=(Act.hang,))
        async with sending_to(vendor, timeout=0.3) as provider:
            result = await provider.send(HI, KEY)
            assert isinstance(result, Deferred)
            assert result.reason is Reason.connect_failed
        assert vendor.requests == []

    async def test_the_token_endpoint_is_guarded(self) -> None:
        async with FcmVendor() as vendor:
            http = AiohttpTransport(Guard())
            provider = FcmProvider(
                FcmConfig.model_validate({"service_account": service_account(vendor.port)}),
                Surroundings(http, Guard(), FixedClock()),
            )
            result = await provider.send(HI, KEY)
            assert isinstance(result, Rejected)
            assert result.reason is Reason.target_refused
            assert vendor.connections == 0
            await provider.close()
            await http.close()


def pem_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.mark.parametrize(
    "value",
    [
        "no JSON",
        "[]",
        '{"type": "authorized_user"}',
        service_account(1, type="external_account"),
        service_account(1, private_key="x"),
        service_account(1, private_key=pem_of(ec.generate_private_key(ec.SECP256R1()))),
        service_account(1, token_uri="ftp://x"),
        service_account(1, project_id="a/b"),
    ],
    ids=["no-json", "a-list", "a-user", "another-type", "no-key", "another-key", "no-endpoint", "no-project"],
)
def test_files_that_are_no_service_account_are_refused(value: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_config("fcm", {"service_account": value})
    problem = caught.value.to_dict()
    assert [e["pointer"] for e in problem["errors"]] == ["/config/service_account"]
    assert PRIVATE_KEY.split("\n")[1] not in json.dumps(problem)


async def test_a_payload_too_large_does_not_leave() -> None:
    vendor = FcmVendor()
    async with sending_to(vendor) as provider:
        result = await provider.send(message(Push(body="x" * 4096)), KEY)
        assert isinstance(result, Rejected)
        assert result.reason is Reason.too_large
        assert vendor.connections == 0


async def test_an_address_of_another_vendor_does_not_leave() -> None:
    vendor = FcmVendor()
    async with sending_to(vendor) as provider:
        result = await provider.send(Message(DELIVERY, Channel.push, "apns:00", Push(body="Hi")), KEY)
        assert isinstance(result, Rejected)
        assert result.reason is Reason.invalid_address
        assert vendor.connections == 0


# --- published data ---------------------------------------------------------------------------------------------------


def find_misfits(schema: dict[str, Any], value: Any, at: str = "") -> list[str]:
    """Where a value does not fit a schema of Google's discovery documents."""
    schemas = load("fcm/discovery_fcm_v1.json")["schemas"]
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    match schema["type"]:
        case "object" if isinstance(value, dict):
            known, others = schema.get("properties", {}), schema.get("additionalProperties")
            found = []
            for name, item in value.items():
                inner = known.get(name, others)
                found += [f"{at}.{name} is unknown"] if inner is None else find_misfits(inner, item, f"{at}.{name}")
            return found
        case "array" if isinstance(value, list):
            return [m for i, item in enumerate(value) for m in find_misfits(schema["items"], item, f"{at}[{i}]")]
        case "string" if isinstance(value, str):
            return [] if value in schema.get("enum", [value]) else [f"{at} is none of {schema['enum']}"]
        case "integer" if type(value) is int:
            return []
        case "boolean" if isinstance(value, bool):
            return []
        case "any":
            return []
    return [f"{at} is no {schema['type']}"]


@pytest.mark.parametrize(
    "body",
    [
        FULL_BODY,
        {"message": render_message(HI, Push(body="Hi"), TOKEN, NOW)},
        {"message": render_message(HI, Push(silent=True, data=(("a", "b"),)), TOKEN, NOW)},
        {"message": render_message(FULL, Push("T", badge=3, sound="s", collapse_key="c"), TOKEN, NOW)},
    ],
    ids=["full", "minimal", "silent", "some"],
)
def test_bodies_fit_googles_description(body: dict[str, Any]) -> None:
    assert find_misfits({"$ref": "SendMessageRequest"}, body) == []


def test_the_check_itself_finds_misfits() -> None:
    body = {"message": {"token": 1, "android": {"priority": "high", "ttll": ""}, "data": {"a": 1}}}
    assert find_misfits({"$ref": "SendMessageRequest"}, body) == [
        ".message.token is no string",
        ".message.android.priority is none of ['NORMAL', 'HIGH']",
        ".message.android.ttll is unknown",
        ".message.data.a is no string",
    ]


@pytest.mark.parametrize("case", cases("fcm/encode_golden.json"))
def test_bodies_of_the_admin_sdk(case: dict[str, Any]) -> None:
    """All that the SDK says for a message, we say for ours; that ours says more is no fault. A topic as the target is
    left out: Tidings sends to registration tokens alone. So a case that says nothing but its topic compares nothing."""
    given = case["message"]
    android, notification = given.get("android", {}), given.get("notification", {})
    ttl = android.get("ttl")
    ttl = ttl.get("timedelta_s") if isinstance(ttl, dict) else ttl
    web = given.get("webpush", {}).get("notification", {})
    apns = given.get("apns", {})
    aps = apns.get("payload", {}).get("aps", {})
    sound = aps.get("sound")
    push = Push(
        title=notification.get("title") or web.get("title"),
        body=notification.get("body") or web.get("body"),
        data=tuple(given.get("data", {}).items()),
        collapse_key=android.get("collapse_key") or web.get("tag"),
        badge=aps.get("badge"),
        sound=sound if isinstance(sound, str) else None,
        image=apns.get("fcm_options", {}).get("image"),
        silent=bool(aps.get("content_available")),
        actions=tuple(PushAction(action["action"], action["title"]) for action in web.get("actions", [])),
    )
    expires_at = None if ttl is None else NOW + timedelta(seconds=ttl)
    priority = Priority.high if android.get("priority") == "high" else Priority.medium
    token = given.get("token", TOKEN)
    ours = render_message(message(push, expires_at=expires_at, priority=priority), push, token, NOW)
    expected = {name: part for name, part in case["request_body"]["message"].items() if name not in ("topic", "fid")}
    with may_differ():
        assert find_missing(to_camel_case(expected), ours) == []


def to_camel_case(value: Any) -> Any:
    """The SDK writes names as protocol buffers have them, we as JSON has them; Google takes both."""
    if not isinstance(value, dict):
        return value
    return {
        name if name == "data" else name.split("_")[0] + "".join(p.title() for p in name.split("_")[1:]): (
            item if name == "data" else to_camel_case(item)
        )
        for name, item in value.items()
    }


def find_missing(expected: Any, ours: Any, at: str = "") -> list[str]:
    if isinstance(expected, dict) and isinstance(ours, dict):
        return [m for name, item in expected.items() for m in find_missing(item, ours.get(name), f"{at}.{name}")]
    return [] if expected == ours else [f"{at}: {expected!r}, and ours is {ours!r}"]


# By id, as far as the file says what is to come out of it; those of the Go SDK come without an HTTP status.
MEANINGS: dict[str, tuple[int, type[SendResult], Reason | None]] = {
    "fcm-error/go-01": (500, Deferred, Reason.provider_error),
    "fcm-error/go-02": (400, Rejected, Reason.rejected),
    "fcm-error/go-03": (404, Rejected, Reason.unauthorized),
    "fcm-error/go-04": (429, Throttled, None),
    "fcm-error/go-06": (500, Deferred, Reason.provider_error),
    "fcm-error/go-07": (404, Rejected, Reason.gone),
    "fcm-error/go-09": (429, Throttled, None),
    "fcm-error/go-10": (503, Deferred, Reason.provider_error),
    "fcm-error/go-12": (400, Rejected, Reason.rejected),
    "fcm-error/py-empty": (404, Rejected, Reason.unauthorized),
    "fcm-error/py-canonical-status": (404, Rejected, Reason.unauthorized),
    "fcm-error/py-unknown-fcm-code": (400, Rejected, Reason.rejected),
    "fcm-error/docs-bad-field": (400, Rejected, Reason.rejected),
    "fcm-error/docs-bad-token": (400, Rejected, Reason.invalid_address),
}


@pytest.mark.parametrize(
    "case", cases("fcm/error_codes.json", lambda data: ((case["id"], case) for case in data["responses"]))
)
def test_answers_of_the_sdks(case: dict[str, Any]) -> None:
    status, kind, reason = MEANINGS[case["id"]]
    assert case.get("http", status) == status
    result = decide_result(HttpAnswer(status, {}, case["body"].encode()), NOW)
    assert isinstance(result, kind), result
    assert getattr(result, "reason", None) is reason


@pytest.mark.parametrize(
    "row", cases("fcm/error_codes.json", lambda data: ((row["errorCode"], row) for row in data["table"]))
)
def test_the_table_of_codes(row: dict[str, Any]) -> None:
    status = row["http"] or 500
    answer = HttpAnswer(status, {}, error(status, "X", "x", row["errorCode"]).partition(b"\r\n\r\n")[2])
    result = decide_result(answer, NOW)
    dead = isinstance(result, Rejected) and result.reason is Reason.gone
    assert dead == (row["handling"] == "permanent: delete the token")
    if row["handling"].startswith("retry"):
        assert isinstance(result, Deferred | Throttled)
    if row["handling"].startswith(("permanent", "configuration")):
        assert isinstance(result, Rejected)


@pytest.mark.parametrize(
    "case",
    cases("fcm/oauth_jwt_expectations.json", lambda data: ((case["id"], case) for case in data["token_responses"])),
)
async def test_answers_to_a_request_for_a_token(case: dict[str, Any]) -> None:
    body = case["body"] if case["body"] == "" else json.dumps(case["body"])
    vendor = FcmVendor(tokens=(http_answer(case["status"], body=body.encode()),))
    async with sending_to(vendor) as provider:
        result = await provider.send(HI, KEY)
    expect = case.get("expect", "")
    if not expect:  # the vendor here wants another token than "token", and gives it at the second time of asking
        assert result == Sent(NAME)
        assert [r.headers["authorization"] for r in vendor.requests] == ["Bearer token", "Bearer access-1"]
        return
    assert vendor.requests == []
    if expect.startswith("permanent"):
        assert isinstance(result, Rejected)
        assert result.reason is Reason.unauthorized
        assert "help: I'm alive" in str(result.detail)
    else:
        assert isinstance(result, Deferred)


async def test_the_request_for_a_token_is_googles() -> None:
    data = load("fcm/oauth_jwt_expectations.json")
    vendor = FcmVendor()
    async with sending_to(vendor) as provider:
        await provider.send(HI, KEY)
    request, expected = vendor.assertions[0], data["token_request"]
    assert request.method == expected["method"]
    assert request.headers["content-type"] == expected["content_type"]
    form = parse_qs(request.body.decode())
    assert form.keys() == expected["form"].keys()
    assert form["grant_type"] == [expected["form"]["grant_type"]]
    token = jwt.decode(form["assertion"][0], jwk.import_key(PUBLIC_KEY, "RSA"), algorithms=["RS256"])
    assert token.header == {**data["assertion_header"], "kid": "k-1"}
    issued_at = int(NOW.timestamp())
    assert token.claims == {**data["assertion_claims"], "iss": CLIENT, "iat": issued_at, "exp": issued_at + 3600}
    sent = vendor.requests[0]
    expected = data["fcm_request"]
    assert sent.method == expected["method"]
    assert sent.target == expected["url"].removeprefix("https://fcm.googleapis.com").format(project_id="shop-1")
    assert sent.headers["content-type"] == expected["content_type"]


async def test_a_broken_answer_is_uncertain() -> None:
    async with sending_to(FcmVendor(http_answer(200, body=b'{"name": 3}'))) as provider:
        assert isinstance(await provider.send(HI, KEY), Uncertain)
