"""Twilio against what it and others published: requests, codes, signatures, callbacks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode

import msgspec
import pytest

from tests.contract.cases.twilio import CALLBACK, CASE, SERVICE, SID, TOKEN, message
from tests.contract.golden import ROOT, cases, check_body, load
from tests.contract.provider_case import DELIVERY, NOW, FixedClock
from tests.contract.servers import HttpVendor, http_answer
from tidings.errors import Invalid
from tidings.ids import to_public
from tidings.model.messages import Sent, Sms
from tidings.model.words import EFFECTS, Effect, EventKind, Reason
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport, HttpAnswer
from tidings.providers.port import Inbound, RawRequest, ReceiptMalformed, ReceiptRefused, Receipts, Surroundings
from tidings.providers.registry import parse_config
from tidings.providers.senders import SenderConfig
from tidings.providers.twilio import (
    _REASONS,
    TwilioConfig,
    TwilioProvider,
    decide_result,
    is_signed,
    parse_callback,
    sign,
    to_form,
)

KEY = to_public("dlv", DELIVERY)
PATH = "/2010-04-01/Accounts/{AccountSid}/Messages.json"
URL = f"{CALLBACK}?tidings_delivery={KEY}"


def configured(**changes: Any) -> TwilioConfig:
    config = parse_config("twilio", {**CASE.config(1025), **changes})
    assert isinstance(config, TwilioConfig)
    return config


async def receive(request: RawRequest, **changes: Any) -> Receipts:
    http = AiohttpTransport(None)
    provider = TwilioProvider(configured(**changes), Surroundings(http, Guard(), FixedClock()))
    return await provider.receive(request, NOW)


def callback(fields: dict[str, str], url: str = URL, token: str = TOKEN, **headers: str) -> RawRequest:
    signature = sign(token, url, {name: [value] for name, value in fields.items()})
    signed = {"content-type": "application/x-www-form-urlencoded", "x-twilio-signature": signature, **headers}
    return RawRequest("POST", url, signed, urlencode(fields).encode())


@pytest.mark.parametrize("label", ["minimal", "full", "non-ascii"])
@pytest.mark.parametrize("smart", [False, True])
def test_request_fits_the_published_description(label: str, smart: bool) -> None:
    sent = {"minimal": CASE.message(1), **CASE.more_messages(1)}[label]
    config = configured(smart_encoding=smart)
    content = sent.content
    assert isinstance(content, Sms)
    for sender in config.senders:
        form = to_form(config, sent, sender, KEY, NOW, CALLBACK)
        body: dict[str, Any] = dict(form)
        body["MediaUrl"] = [value for name, value in form if name == "MediaUrl"]
        if "ValidityPeriod" in body:
            body["ValidityPeriod"] = int(body["ValidityPeriod"])
        if "SmartEncoded" in body:
            body["SmartEncoded"] = body["SmartEncoded"] == "true"
        check_body(
            "twilio/openapi_api_v2010_messages.json", PATH, body, content_type="application/x-www-form-urlencoded"
        )
        described = load("twilio/openapi_api_v2010_messages.json")["paths"][PATH]["post"]["requestBody"]["content"]
        assert set(body) <= set(described["application/x-www-form-urlencoded"]["schema"]["properties"])


@pytest.mark.skipif(ROOT is None, reason="TIDINGS_CONTRACTS is not set")
def test_published_answers_are_understood() -> None:
    data = load("twilio/create_message_examples.json")
    answers = {
        name: e["value"] for name, e in data["examples"]["201"]["content"]["application/json"]["examples"].items()
    }
    assert len(answers) >= 5
    for name, answer in answers.items():
        result = decide_result(HttpAnswer(201, {}, msgspec.json.encode(answer)), NOW)
        assert result == Sent(answer["sid"]), name


# --- signatures -------------------------------------------------------------------------------------------------------


def to_lists(params: dict[str, Any] | None) -> dict[str, list[str]] | None:
    return None if params is None else {n: v if isinstance(v, list) else [v] for n, v in params.items()}


@pytest.mark.parametrize("case", cases("twilio/signature_vectors.json"))
def test_published_signature(case: dict[str, Any]) -> None:
    params, body = to_lists(case["params"]), (case["body"] or "").encode()
    assert is_signed(case["auth_token"], case["url"], params, body, case["signature"]) is case["valid"]


@pytest.mark.parametrize("case", cases("twilio/signature_vectors.json"))
async def test_published_signature_of_a_whole_request(case: dict[str, Any]) -> None:
    """Of the vectors, as the requests that they come from; what is signed but means nothing to us is malformed."""
    if case["params"] is None:
        request = RawRequest("POST", case["url"], {"content-type": "application/json"}, case["body"].encode())
    else:
        form = {"content-type": "application/x-www-form-urlencoded; charset=UTF-8"}
        request = RawRequest("POST", case["url"], form, urlencode(case["params"], doseq=True).encode())
    headers = {**request.headers, "x-twilio-signature": case["signature"]}
    with pytest.raises(ReceiptMalformed if case["valid"] else ReceiptRefused):
        await receive(RawRequest("POST", request.url, headers, request.body), auth_token=case["auth_token"])


async def test_unsigned_and_tampered_callbacks_are_refused() -> None:
    good = callback({"MessageSid": "SM1", "MessageStatus": "delivered"})
    assert (await receive(good)).reports
    for bad in (
        RawRequest("POST", good.url, {**good.headers, "x-twilio-signature": ""}, good.body),
        RawRequest("POST", good.url, {"content-type": good.headers["content-type"]}, good.body),
        RawRequest("POST", good.url, good.headers, good.body + b"&ErrorCode=30005"),
        RawRequest("POST", good.url.replace(KEY, KEY[:-1] + "0"), good.headers, good.body),
        RawRequest("POST", "https://[::1", good.headers, good.body),
        RawRequest("POST", good.url, good.headers, b"\xff\xfe"),
        callback({"MessageSid": "SM1", "MessageStatus": "delivered"}, token="another"),
    ):
        with pytest.raises(ReceiptRefused):
            await receive(bad)


async def test_without_an_auth_token_nothing_is_believed() -> None:
    key = {"auth_token": None, "api_key_sid": "SK" + "0" * 32, "api_key_secret": "s3cret"}
    with pytest.raises(ReceiptRefused):
        await receive(callback({"MessageSid": "SM1", "MessageStatus": "delivered"}), **key)


# --- callbacks --------------------------------------------------------------------------------------------------------

_CLASSES = {"NOTIFICATION_SENDING": None, "NOTIFICATION_DELIVERED": EventKind.delivered, None: None}


@pytest.mark.parametrize("case", cases("twilio/status_callbacks.json"))
async def test_published_status_callback(case: dict[str, Any]) -> None:
    fields = dict(parse_qsl(case["form"]))
    told = await receive(callback(fields))
    assert (told.status, told.body, told.inbound) == (200, b'<?xml version="1.0" encoding="UTF-8"?><Response/>', ())
    expected = case["expected"]["va_status"]
    if expected == "NOTIFICATION_PERMANENT_FAILURE":
        [report] = told.reports
        assert report.kind is EventKind.failed
        assert report.reason is not None
        assert EFFECTS[report.reason] is not Effect.retry
    else:
        assert [r.kind for r in told.reports] == ([EventKind.delivered] if _CLASSES[expected] else [])
    for report in told.reports:
        assert report.provider_id == fields["MessageSid"]
        assert report.key == KEY
        assert report.address == fields["To"]
        done = fields.get("RawDlrDoneDate")
        assert report.at == (datetime.strptime(done, "%y%m%d%H%M").replace(tzinfo=UTC) if done else None)
        assert report.detail == fields


@pytest.mark.parametrize(
    "entry", cases("twilio/status_callbacks.json", lambda d: ((e["message_status"], e) for e in d["status_map"]))
)
def test_published_status(entry: dict[str, str]) -> None:
    told = parse_callback({"MessageSid": "SM1", "MessageStatus": entry["message_status"]}, (), None, None)
    expected = {"sending": None, "permanent_failure": "failed"}.get(entry["class"], entry["class"])
    assert [r.kind.name for r in told.reports] == ([expected] if expected else [])


@pytest.mark.parametrize(
    "entry", cases("twilio/status_callbacks.json", lambda d: ((str(e["code"]), e) for e in d["error_code_map"]))
)
def test_published_error_code(entry: dict[str, Any]) -> None:
    """Where another sender gives up, so do we, and the other way round; and a number they call invalid is given up."""
    fields = {"MessageSid": "SM1", "MessageStatus": "failed", "ErrorCode": str(entry["code"]), "From": "+14155550100"}
    [report] = parse_callback(fields, (), None, None).reports
    assert report.reason is not None
    effect = EFFECTS[report.reason]
    assert (effect is Effect.retry) is (entry["class"] == "temporary_failure")
    if entry["reason"] == "invalid_number":
        assert effect is Effect.suppress
    if entry["reason"] in ("blocked", "undeliverable"):
        assert effect is not Effect.suppress


def test_a_short_code_that_does_not_reach_a_carrier_gives_up_no_number() -> None:
    fields = {"MessageSid": "SM1", "MessageStatus": "undelivered", "ErrorCode": "30006"}
    for sender, reason in (("+14155550100", Reason.invalid_address), ("90210", Reason.blocked)):
        [report] = parse_callback({**fields, "From": sender}, (), None, None).reports
        assert report.reason is reason


async def test_repetitions_and_unknown_events_are_tolerated() -> None:
    mark = {"i-twilio-idempotency-token": "7b2f"}
    request = callback({"MessageSid": "SM1", "MessageStatus": "delivered"}, **mark)
    first, second = await receive(request), await receive(request)
    assert first == second
    assert first.reports[0].event_id == "7b2f"
    for fields in ({"MessageSid": "SM1", "MessageStatus": "teleported"}, {"SmsSid": "SM1"}):
        assert (await receive(callback(fields))).reports == ()
    with pytest.raises(ReceiptMalformed):
        await receive(callback({"Foo": "bar"}))


INBOUND = {"MessageSid": "SM2", "SmsStatus": "received", "From": "+14155550123", "To": "+14155550100", "NumMedia": "0"}


@pytest.mark.parametrize(
    ("fields", "keyword"),
    [
        ({"Body": "Thanks!"}, None),
        ({"Body": " Stop. "}, "stop"),
        ({"Body": "STOPALL", "OptOutType": "STOP"}, "stop"),
        ({"Body": "ARRET", "OptOutType": "STOP"}, "stop"),  # a word of the account's own, known to Twilio
        ({"Body": "start", "OptOutType": "START"}, "start"),
        ({"Body": "HELP", "OptOutType": "HELP"}, "help"),
        ({"Body": "please stop"}, None),
    ],
)
async def test_inbound_message(fields: dict[str, str], keyword: str | None) -> None:
    told = await receive(callback({**INBOUND, **fields}, CALLBACK))
    assert told.inbound == (Inbound("+14155550123", "+14155550100", fields["Body"], "SM2", None, keyword),)
    assert told.reports == ()
    assert (told.content_type, told.body[-11:]) == ("text/xml; charset=utf-8", b"<Response/>")


async def test_who_opts_out_of_a_messaging_service_opts_out_of_the_service() -> None:
    told = await receive(callback({**INBOUND, "Body": "STOP", "MessagingServiceSid": SERVICE}, CALLBACK))
    assert told.inbound[0].recipient == SERVICE
    told = await receive(callback({**INBOUND, "Body": "STOP", "MessagingServiceSid": "MG" + "b" * 32}, CALLBACK))
    assert told.inbound[0].recipient == "+14155550100"


async def test_callbacks_by_get() -> None:
    url = f"{CALLBACK}?{urlencode({**INBOUND, 'Body': 'STOP'})}"
    told = await receive(RawRequest("GET", url, {"x-twilio-signature": sign(TOKEN, url, {})}, b""))
    assert [i.keyword for i in told.inbound] == ["stop"]


# --- configuration and requests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"account_sid": "AC1"},
        {"auth_token": None},
        {"auth_token": ""},  # anybody could sign with it
        {"api_key_sid": "SK" + "0" * 32},
        {"senders": []},
        {"senders": ["not a sender, by its length"]},
        {"base_url": "ftp://api.twilio.com"},
    ],
)
def test_configurations_that_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        configured(**changes)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (None, None),
        (CALLBACK, {"tidings_delivery": [KEY]}),
        (f"{CALLBACK}?a=b", {"a": ["b"], "tidings_delivery": [KEY]}),
    ],
)
async def test_each_message_names_its_own_callback(url: str | None, expected: dict[str, list[str]] | None) -> None:
    taken = b'{"sid": "SM1", "status": "queued"}'
    async with HttpVendor(http_answer(201, body=taken)) as vendor:
        guard = Guard(["127.0.0.0/8"])
        http = AiohttpTransport(guard)
        config = configured(base_url=f"http://127.0.0.1:{vendor.port}")
        provider = TwilioProvider(config, Surroundings(http, guard, FixedClock(), callback_url=url))
        assert await provider.send(message(Sms("Hi")), KEY) == Sent("SM1")
        await http.close()
    form = parse_qs(vendor.requests[0].body.decode())
    if expected is None:
        assert "StatusCallback" not in form
    else:
        target, _, query = form["StatusCallback"][0].partition("?")
        assert (target, parse_qs(query)) == (CALLBACK, expected)


@pytest.mark.parametrize(("text", "asked"), [("It’s here", True), ("It's here", False), ("あ’", False)])
def test_smart_encoding_is_asked_for_where_it_saves(text: str, asked: bool) -> None:
    config = configured(smart_encoding=True)
    assert ("SmartEncoded" in dict(to_form(config, message(Sms(text)), config.senders[1], KEY, NOW, None))) is asked


def test_time_to_live_stays_within_what_twilio_takes() -> None:
    config, sender = configured(), SenderConfig.model_validate("+14155550100")
    for seconds, expected in ((0, "1"), (1, "1"), (35_999, "35999"), (36_000, None), (1_000_000, None)):
        expires_at = datetime.fromtimestamp(NOW.timestamp() + seconds, UTC)
        form = dict(to_form(config, message(Sms("Hi"), expires_at=expires_at), sender, KEY, NOW, None))
        assert form.get("ValidityPeriod") == expected


def test_account_sid_is_no_secret_and_the_api_key_is() -> None:
    config = configured(api_key_sid="SK" + "0" * 32, api_key_secret="s3cret")
    assert "s3cret" not in repr(config)
    assert SID in repr(config)


def test_table_has_no_reason_of_ours() -> None:
    ours = {Reason.no_address, Reason.no_template, Reason.no_account, Reason.suppressed, Reason.render_failed}
    assert not ours & set(_REASONS.values())
