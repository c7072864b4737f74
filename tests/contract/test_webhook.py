"""Webhooks beyond what every provider has to do: keys that rotate, envelopes, and which targets are allowed."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from tests.contract.provider_case import DELIVERY, NOW, FixedClock
from tests.contract.servers import HttpRequest, HttpVendor, http_answer
from tidings.errors import Invalid
from tidings.ids import time_of, to_public
from tidings.model.messages import Message, Rejected, SendResult, Sent, Webhook
from tidings.model.words import Channel, Reason
from tidings.providers.api import parse_retry_after
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport, BrokenAnswer, HttpAnswer
from tidings.providers.port import Surroundings
from tidings.providers.registry import create, parse_config
from tidings.providers.webhook import decide_result, verify_signature

KEY = to_public("dlv", DELIVERY)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


async def send(url: str, guard: Guard) -> SendResult:
    http = AiohttpTransport(guard)
    provider = create("webhook", parse_config("webhook", {"secret": SECRET}), Surroundings(http, guard, FixedClock()))
    try:
        return await provider.send(Message(DELIVERY, Channel.webhook, url, Webhook(b"{}")), KEY)
    finally:
        await provider.close()
        await http.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0x7f000001", "127.1"])
async def test_inner_targets_are_refused_however_they_are_written(scheme: str, host: str) -> None:
    async with HttpVendor() as vendor:
        result = await send(f"{scheme}://{host}:{vendor.port}/", Guard())
        assert isinstance(result, Rejected), result
        assert result.reason is Reason.target_refused
        assert "127" not in str(result.detail)
        assert vendor.connections == 0


async def test_plain_text_is_refused_unless_an_operator_opened_the_target() -> None:
    async with HttpVendor() as vendor:
        for url in (
            f"http://1.1.1.1:{vendor.port}/",
            f"HTTP://127.0.0.1@1.1.1.1:{vendor.port}/",
            "gopher://127.0.0.1/",
        ):
            result = await send(url, Guard(["127.0.0.0/8"]))
            assert isinstance(result, Rejected), url
            assert result.reason is Reason.target_refused
        assert vendor.connections == 0


async def test_redirects_are_not_followed() -> None:
    async with HttpVendor() as inner, HttpVendor() as vendor:
        vendor.script = [http_answer(307, f"Location: http://127.0.0.1:{inner.port}/")]
        result = await send(f"http://127.0.0.1:{vendor.port}/", Guard(["127.0.0.0/8"]))
        assert isinstance(result, Rejected)
        assert inner.connections == 0


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", "whsec_%%%", "whsec_" + "QUJD" * 30])
def test_bad_secrets_are_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_config("webhook", {"secret": secret})
    (error,) = caught.value.errors
    assert error.pointer == "/config/secret"
    assert not secret.removeprefix("whsec_") or secret.removeprefix("whsec_") not in str(caught.value.to_dict())


PRIVATE = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
PUBLIC = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="


async def receive(config: dict[str, str], body: bytes = b"{}", traceparent: str | None = None) -> HttpRequest:
    """What a receiver gets from an account that is configured so."""
    guard = Guard(["127.0.0.0/8"])
    http = AiohttpTransport(guard)
    provider = create("webhook", parse_config("webhook", config), Surroundings(http, guard, FixedClock()))
    async with HttpVendor() as vendor:
        url = f"http://127.0.0.1:{vendor.port}/"
        result = await provider.send(
            Message(DELIVERY, Channel.webhook, url, Webhook(body), traceparent=traceparent), KEY
        )
        assert isinstance(result, Sent), result
    await provider.close()
    await http.close()
    return vendor.requests[0]


@pytest.mark.parametrize(
    "config",
    [
        {"secret": SECRET, "previous_secret": PRIVATE},
        {"secret": PRIVATE, "previous_secret": SECRET},
        {"secret": PRIVATE},
    ],
)
async def test_each_key_of_a_rotation_signs_whatever_its_kind(config: dict[str, str]) -> None:
    request = await receive(config)
    signatures = request.headers["webhook-signature"].split(" ")
    assert [s.partition(",")[0] for s in signatures] == ["v1a" if k == PRIVATE else "v1" for k in config.values()]
    for secret in config.values():
        verifying = PUBLIC if secret == PRIVATE else secret
        verify_signature(SecretStr(verifying), request.headers, request.body, NOW)


async def test_a_cloud_event_holds_the_document_and_is_what_is_signed() -> None:
    config = {"secret": SECRET, "envelope": "cloudevents", "event_source": "//shop.example.com", "event_type": "order"}
    request = await receive(config, b'{"order":  "A-1", "n": 2.50}')
    assert request.headers["content-type"] == "application/cloudevents+json"
    verify_signature(SecretStr(SECRET), request.headers, request.body, NOW)
    event = json.loads(request.body)
    # https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md#required-attributes
    assert datetime.fromisoformat(event.pop("time")) == time_of(DELIVERY)
    assert event == {
        "specversion": "1.0",
        "id": KEY,
        "source": "//shop.example.com",
        "type": "order",
        "datacontenttype": "application/json",
        "data": {"order": "A-1", "n": 2.5},
    }
    assert b'"data":{"order":  "A-1", "n": 2.50}' in request.body, "the document is not written anew"


@pytest.mark.parametrize(("field", "value"), [("envelope", "soap"), ("event_source", "a b"), ("event_type", "")])
def test_bad_envelopes_are_refused(field: str, value: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_config("webhook", {"secret": SECRET, field: value})
    assert [error.pointer for error in caught.value.errors] == [f"/config/{field}"]


@given(st.integers(100, 999), st.none() | st.text(max_size=40))
def test_every_answer_means_something(status: int, retry_after: str | None) -> None:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    decide_result(HttpAnswer(status, headers, b""), NOW)


@given(st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)))
def test_retry_after_dates(at: datetime) -> None:
    found = parse_retry_after(at.strftime("%a, %d %b %Y %H:%M:%S GMT"), NOW)
    assert found is not None
    assert 0 <= found.total_seconds() <= 86400


async def test_transport_caps_what_it_reads_and_undoes_no_compression() -> None:
    guard = Guard(["127.0.0.0/8"])
    http = AiohttpTransport(guard)
    script = [
        http_answer(200, "Content-Encoding: gzip", body=b"\x1f\x8b not unpacked"),
        http_answer(200, body=b"x" * 1_000_000),
    ]
    async with HttpVendor(*script) as vendor:
        url = f"http://127.0.0.1:{vendor.port}/"
        kept = await http.request("GET", url, headers={}, body=None, timeout=5, read_cap=100)
        assert kept.body == b"\x1f\x8b not unpacked"
        capped = await http.request("GET", url, headers={}, body=None, timeout=5, read_cap=70_000)
        assert capped.body == b"x" * 70_000
        assert vendor.requests[0].headers["accept-encoding"] == "identity"
    await http.close()


async def test_an_answer_that_is_not_http_is_no_answer() -> None:
    http = AiohttpTransport(Guard(["127.0.0.0/8"]))
    async with HttpVendor(b"HTTP/1.1 nonsense\r\n\r\n") as vendor:
        url = f"http://127.0.0.1:{vendor.port}/"
        with pytest.raises(BrokenAnswer) as caught:
            await http.request("POST", url, headers={}, body=b"x", timeout=5, read_cap=100)
        assert caught.value.sent
    await http.close()
