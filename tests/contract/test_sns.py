"""Amazon SNS: the requests against its own description, and what is particular to text messages."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import pytest

from tests.contract import anymail
from tests.contract.provider_case import DELIVERY
from tests.contract.servers import HttpVendor, http_answer
from tests.contract.shapes import check_shape
from tidings.errors import Invalid
from tidings.model.messages import Message, Rejected, SendResult, Sent, Sms
from tidings.model.words import Channel, Reason
from tidings.providers.port import ReceiptAuth
from tidings.providers.registry import PROVIDERS, parse_config

MODEL = "aws/sns_2010-03-31_trimmed.json"
CONFIG = {"region": "eu-central-1", "access_key_id": "AKIDEXAMPLE123456789", "secret_access_key": "secret"}
TAKEN = http_answer(200, body=b"<PublishResult><MessageId>567910cd-659e</MessageId></PublishResult>")


async def send(message: Message, **config: Any) -> tuple[SendResult, HttpVendor]:
    async with HttpVendor(TAKEN) as vendor:
        assert isinstance(vendor, HttpVendor)
        whole = {**CONFIG, **config, "base_url": f"http://127.0.0.1:{vendor.port}"}
        async with anymail.provider("sns", whole) as made:
            return await made.send(message, "dlv_1"), vendor


def message(text: str = "Hi", to: str = "+4915112345678", **fields: Any) -> Message:
    sender = fields.pop("sender", None)
    return Message(DELIVERY, Channel.sms, to, Sms(text, sender=sender), **fields)


def unfold(body: bytes) -> dict[str, Any]:
    """The structure that a form of Amazon's query protocol stands for."""
    fields = dict(parse_qsl(body.decode(), strict_parsing=True))
    assert (fields.pop("Action"), fields.pop("Version")) == ("Publish", "2010-03-31")
    entries: dict[str, dict[str, str]] = {}
    for name in [name for name in fields if name.startswith("MessageAttributes.entry.")]:
        _, _, number, part = name.split(".", 3)
        entries.setdefault(number, {})[part.removeprefix("Value.")] = fields.pop(name)
    assert list(entries) == [str(number) for number in range(1, len(entries) + 1)]
    return {**fields, "MessageAttributes": {entry.pop("Name"): entry for entry in entries.values()}}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"message_type": "Promotional", "max_price": 0.25, "senders": ["Shop"], "entity_id": "1001"},
        {"senders": ["+498912345678"]},
    ],
)
async def test_requests_fit_amazons_own_description(config: dict[str, Any]) -> None:
    result, vendor = await send(message("Grüße 🎉"), **config)
    assert result == Sent("567910cd-659e")
    structure = unfold(vendor.requests[0].body)
    check_shape(MODEL, "PublishInput", structure)
    assert structure["PhoneNumber"] == "+4915112345678"
    assert structure["Message"] == "Grüße 🎉"


async def test_attributes() -> None:
    _, vendor = await send(message(), max_price="0.25", senders=["Shop"], entity_id="1001")
    assert unfold(vendor.requests[0].body)["MessageAttributes"] == {
        "AWS.SNS.SMS.SMSType": {"DataType": "String", "StringValue": "Transactional"},
        "AWS.SNS.SMS.MaxPrice": {"DataType": "Number", "StringValue": "0.25"},
        "AWS.SNS.SMS.SenderID": {"DataType": "String", "StringValue": "Shop"},
        "AWS.MM.SMS.EntityId": {"DataType": "String", "StringValue": "1001"},
    }


async def test_senders() -> None:
    """Chosen as everywhere; without any, SNS chooses."""
    _, vendor = await send(message())
    assert list(unfold(vendor.requests[0].body)["MessageAttributes"]) == ["AWS.SNS.SMS.SMSType"]
    _, vendor = await send(message(sender="+498912345678"), senders=["Shop", "+498912345678"])
    attributes = unfold(vendor.requests[0].body)["MessageAttributes"]
    assert attributes["AWS.MM.SMS.OriginationNumber"]["StringValue"] == "+498912345678"
    for result, vendor in (
        await send(message(sender="Other"), senders=["Shop"]),
        await send(message(sender="Other")),
        await send(message(to="+14155550123"), senders=["Shop"]),
    ):
        assert isinstance(result, Rejected)
        assert result.reason is Reason.no_sender
        assert vendor.connections == 0
    result, vendor = await send(message(barred=frozenset({"+498912345678"})), senders=["+498912345678"])
    assert isinstance(result, Rejected)
    assert result.reason is Reason.opted_out
    assert vendor.connections == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_price", "0"),
        ("max_price", "free"),
        ("message_type", "Spam"),
        ("senders", [{"id": "MG" + "0" * 32, "kind": "messaging_service"}]),
        ("entity_id", "no spaces"),
    ],
)
def test_configuration(field: str, value: Any) -> None:
    with pytest.raises(Invalid) as caught:
        parse_config("sns", {**CONFIG, field: value})
    assert [error.pointer for error in caught.value.errors] == [f"/config/{field}"]


def test_it_says_that_there_are_no_receipts() -> None:
    spec = PROVIDERS["sns"].spec
    assert (spec.receipts, spec.reports) == (None, frozenset())
    assert PROVIDERS["ses"].spec.receipts is ReceiptAuth.signature
