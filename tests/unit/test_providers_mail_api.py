"""What the HTTP APIs of mail vendors share: addresses, header fields, and what receivers' words mean."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import getaddresses
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.model.messages import Email, Message, Rejected
from tidings.model.words import Channel, Reason
from tidings.providers.mail_api import (
    Address,
    MailParts,
    decide_reply_reason,
    parse_address,
    parse_parts,
    parse_recipient,
    parse_text,
    parse_unix,
    to_json,
)
from tidings.providers.mime import MailRefused


def parts(email: Email, to: str = "ann@example.com") -> MailParts | Rejected:
    message = Message(UUID(int=1), Channel.email, to, email)
    return parse_parts(message, "Tidings <tidings@example.com>")


def test_the_account_s_sender_stands_in() -> None:
    found = parts(Email("Hi", text="Hello"))
    assert isinstance(found, MailParts)
    assert found.sender == Address("tidings@example.com", "Tidings")


def test_nobody_is_named_twice() -> None:
    email = Email(
        "Hi",
        text="Hello",
        cc=("Ann <ANN@example.com>", "Bea <bea@example.com>", "bea@example.com"),
        bcc=("BEA@example.com", "carl@example.com"),
    )
    found = parts(email)
    assert isinstance(found, MailParts)
    assert found.cc == (Address("bea@example.com", "Bea"),)
    assert found.bcc == (Address("carl@example.com"),)


@pytest.mark.parametrize(
    ("email", "field"),
    [
        (Email("Hi\r\nBcc: eve@example.com", text="Hello"), "subject"),
        (Email("Hi", text="Hello", from_="nobody"), "from"),
        (Email("Hi", text="Hello", reply_to="a@example.com, B <b@example.com>"), "reply_to"),
        (Email("Hi", text="Hello", cc=("a@example.com\nb@example.com",)), "cc"),
        (Email("Hi", text="Hello", bcc=("",)), "bcc"),
        (Email("Hi", text="Hello", headers=(("X-A", "b\nc"),)), "headers: X-A"),
        (Email("Hi", text="Hello", headers=(("X-A: b", "c"),)), "headers"),
        (Email("Hi", text="Hello", headers=(("Subject", "Another"),)), "headers"),
        (Email("Hi", text="Hello", headers=(("message-id", "<a@b>"),)), "headers"),
        (Email("Hi", text="Hello", headers=(("Content-Type", "text/plain"),)), "headers"),
        (Email("Hi", text="Hello", headers=(("Reply-To", "a@example.com"),)), "headers"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_name(email: Email, field: str) -> None:
    refused = parts(email)
    assert isinstance(refused, Rejected)
    assert refused.reason is Reason.content_rejected
    assert refused.detail is not None
    assert refused.detail.startswith(f"{field}:")


@pytest.mark.parametrize("to", ["", "ann", "ann@example.com\r\nbea@example.com", "a@b@c", "<ann@example.com>"])
def test_a_recipient_that_is_no_address_is_refused(to: str) -> None:
    refused = parts(Email("Hi", text="Hello"), to)
    assert isinstance(refused, Rejected)
    assert refused.reason is Reason.invalid_address


@pytest.mark.parametrize(
    ("text", "address", "formatted"),
    [
        ("a@example.com", Address("a@example.com"), "a@example.com"),
        ("<a@example.com>", Address("a@example.com"), "a@example.com"),
        ("Ann Bee <a@example.com>", Address("a@example.com", "Ann Bee"), "Ann Bee <a@example.com>"),
        ('"Bee, Ann" <a@example.com>', Address("a@example.com", "Bee, Ann"), '"Bee, Ann" <a@example.com>'),
        ("Bee, Ann <a@example.com>", Address("a@example.com", "Bee, Ann"), '"Bee, Ann" <a@example.com>'),
        (r'"A \"B\" < C" <a@example.com>', Address("a@example.com", 'A "B" < C'), r'"A \"B\" < C" <a@example.com>'),
        ("Zoë <zoë@bücher.example>", Address("zoë@xn--bcher-kva.example", "Zoë"), "Zoë <zoë@xn--bcher-kva.example>"),
    ],
)
def test_address(text: str, address: Address, formatted: str) -> None:
    assert parse_address("from", text) == address
    assert address.formatted == formatted
    assert parse_address("from", formatted).name == address.name


def test_several_addresses_are_not_taken_for_a_name() -> None:
    with pytest.raises(MailRefused, match="several addresses"):
        parse_address("reply_to", "a@example.com, B <b@example.com>")


@given(st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=30))
def test_a_formatted_name_is_read_back(name: str) -> None:
    address = Address("a@example.com", name)
    assert getaddresses([address.formatted]) == [(name, "a@example.com")]


@pytest.mark.parametrize("value", ["\ud800", {"\ud800": ["a", "\udfff"]}, "Zoë 🎉"])
def test_json_is_always_utf8(value: Any) -> None:
    assert msgspec.json.decode(to_json(value)) is not None


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (("550 5.1.1 unknown user",), Reason.bounced),
        (("550-5.1.1 unknown user",), Reason.bounced),
        (("smtp;550 5.1.1 unknown user",), Reason.bounced),
        (("No Such User Here", "550"), Reason.bounced),
        (("5.1.1 The account does not exist", "550"), Reason.bounced),
        (("", "", "5.1.1"), Reason.bounced),
        (("552 5.2.2 over quota",), Reason.mailbox_full),
        (("554 5.7.1 not from you",), Reason.blocked),
        (("535 5.7.8 who are you",), Reason.blocked),
        (("451 4.7.1 come back",), Reason.greylisted),
        (("452 4.2.2 full",), Reason.mailbox_full),
        (("421 4.7.0 slow down",), Reason.throttled),
        (("400 try again later",), None),
        (("No MX for example.com", "498"), None),
        (("", "", "5.0.0"), None),
        (("250 OK",), None),
        (("",), None),
        (("x", "abc", "1.2"), None),
    ],
)
def test_what_a_receiver_said(said: tuple[str, ...], reason: Reason | None) -> None:
    assert decide_reply_reason(*said) is reason


@given(st.text(max_size=60), st.text(max_size=5), st.text(max_size=9))
def test_nothing_that_a_receiver_says_breaks_the_reading(text: str, code: str, enhanced: str) -> None:
    decide_reply_reason(text, code, enhanced)


def test_recipients_are_as_deliveries_have_them() -> None:
    assert parse_recipient("zoe@xn--bcher-kva.example") == "zoe@bücher.example"
    assert parse_recipient("no address xn--") == "no address xn--"
    assert parse_recipient("Ann@Example.com") == "Ann@Example.com"
    assert parse_recipient(None) is None


def test_times_and_texts() -> None:
    at = datetime(2017, 12, 15, 0, 59, 29, tzinfo=UTC)
    assert parse_unix(1513299569) == parse_unix("1513299569") == parse_unix(1513299569000) == at
    wrongs: tuple[object, ...] = (None, "", "now", [], {}, float("nan"), float("inf"), -1e300, 1e300)
    for wrong in wrongs:
        assert parse_unix(wrong) is None
    assert parse_text(12) == "12"
    assert parse_text("a") == "a"
    nothings: tuple[object, ...] = ("", None, True, [], {}, 1.5)
    for nothing in nothings:
        assert parse_text(nothing) is None
