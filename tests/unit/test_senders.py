"""Which sender a message goes from, and what a reply says."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tidings.model.messages import Message, Rejected, Sms
from tidings.model.words import Channel, Reason
from tidings.providers.senders import (
    SenderConfig,
    SenderKind,
    Senders,
    choose_sender,
    find_sender,
    parse_keyword,
    to_e164,
)

DELIVERY = UUID("019a0000-0000-7000-8000-000000000001")
US, CA, DE, GB = "+14155550123", "+14165550123", "+4915112345678", "+447700900123"
PICTURE = ("https://example.com/a.png",)
SERVICE = "MG" + "a" * 32


def message(to: str = US, sender: str | None = None, media: tuple[str, ...] = (), **more: Any) -> Message:
    return Message(DELIVERY, Channel.sms, to, Sms("Hi", media=media, sender=sender), **more)


def senders(*raw: Any) -> tuple[SenderConfig, ...]:
    return TypeAdapter(Senders).validate_python(raw)


def chosen(found: SenderConfig | Rejected) -> str | Reason:
    return found.reason if isinstance(found, Rejected) else found.id


LONG, TOLL_FREE, SHORT = "+14155550100", "+18005550100", {"id": "90210", "countries": ["US"]}
NAME, BRITISH = "Tidings", "+447700900100"
OTP = {"id": "+14155550199", "categories": ["otp"]}


@pytest.mark.parametrize(
    ("pool", "asked", "expected"),
    [
        ([LONG], message(DE), LONG),
        ([LONG, BRITISH], message(GB), BRITISH),  # a local number
        ([BRITISH, LONG], message(US), LONG),
        ([BRITISH, SHORT], message(US), "90210"),  # a short code is at home where it is for
        ([BRITISH, SHORT], message(GB), BRITISH),
        ([SHORT], message(CA), Reason.no_sender),
        ([NAME], message(DE), NAME),
        ([NAME], message(US), Reason.no_sender),  # no names there
        ([NAME], message(CA), Reason.no_sender),
        ([NAME, BRITISH], message(CA), BRITISH),
        ([NAME], message(DE, media=PICTURE), Reason.no_sender),  # a name carries no media
        ([NAME, LONG], message(DE, media=PICTURE), LONG),
        ([SERVICE], message(DE, media=PICTURE), SERVICE),
        ([OTP], message(US), Reason.no_sender),
        ([OTP], message(US, category="news"), Reason.no_sender),
        ([OTP, LONG], message(US, category="news"), LONG),
        ([OTP, LONG], message(US, category="otp"), "+14155550199"),  # it is there for just this
        ([OTP, BRITISH], message(GB, category="otp"), "+14155550199"),  # even though another one is local
        ([{"id": LONG, "weight": 0}], message(), Reason.no_sender),
        ([{"id": LONG, "weight": 0}, BRITISH], message(), BRITISH),
        ([{"id": LONG, "countries": ["DE"]}], message("+999123"), Reason.no_sender),
    ],
)
def test_choice(pool: list[Any], asked: Message, expected: str | Reason) -> None:
    assert chosen(choose_sender(senders(*pool), asked)) == expected


@pytest.mark.parametrize(
    ("pool", "asked", "expected"),
    [
        ([LONG, BRITISH], message(US, sender=BRITISH), BRITISH),
        ([LONG, BRITISH], message(US, sender="447700900100"), BRITISH),  # however it is written
        ([LONG, NAME], message(DE, sender="TIDINGS"), NAME),
        ([LONG, NAME], message(US, sender=NAME), Reason.no_sender),
        ([LONG, SHORT], message(DE, sender="90210"), Reason.no_sender),
        ([LONG], message(US, sender="+14155550111"), Reason.no_sender),
        ([LONG, OTP], message(US, sender="+14155550199"), "+14155550199"),  # asked for by name, whatever the category
        ([{"id": LONG, "weight": 0}], message(US, sender=LONG), LONG),
    ],
)
def test_choice_of_the_message(pool: list[Any], asked: Message, expected: str | Reason) -> None:
    assert chosen(choose_sender(senders(*pool), asked)) == expected


def numbers(count: int) -> tuple[SenderConfig, ...]:
    return senders(*(f"+1415555{i:04d}" for i in range(100, 100 + count)))


RECIPIENTS = [f"+1212555{i:04d}" for i in range(1000)]


def test_the_same_recipient_hears_from_the_same_sender() -> None:
    pool = numbers(10)
    for to in RECIPIENTS[:50]:
        assert choose_sender(pool, message(to)) == choose_sender(tuple(reversed(pool)), message(to))


def test_recipients_are_shared_out_by_weight() -> None:
    pool = senders(LONG, {"id": "+14155550101", "weight": 3})
    share = [chosen(choose_sender(pool, message(to))) for to in RECIPIENTS].count(LONG)
    assert 200 < share < 300


def test_a_sender_more_moves_no_more_recipients_than_it_gets() -> None:
    before, after = numbers(9), numbers(10)
    moved = [
        (old, new)
        for to in RECIPIENTS
        if (old := choose_sender(before, message(to))) != (new := choose_sender(after, message(to)))
    ]
    assert 50 < len(moved) < 150
    assert {new for _, new in moved} == {after[-1]}


@given(st.integers(1, 8), st.sampled_from(RECIPIENTS), st.data())
def test_stop_is_never_got_around(count: int, to: str, data: st.DataObject) -> None:
    """Whoever is barred from the sender that was theirs hears from none, whatever other senders there are."""
    pool = numbers(count)
    first = choose_sender(pool, message(to))
    assert isinstance(first, SenderConfig)
    others = data.draw(st.frozensets(st.sampled_from([s.id for s in pool])))
    refused = choose_sender(pool, message(to, barred=others | {first.id}))
    assert chosen(refused) is Reason.opted_out
    assert choose_sender(pool, message(to, barred=others - {first.id})) == first


@pytest.mark.parametrize(
    ("id_", "to", "barred"),
    [(LONG, US, "14155550100"), (NAME, DE, "tidings"), (SERVICE, US, SERVICE), ("90210", US, "90210")],
)
def test_a_bar_holds_however_the_vendor_wrote_the_sender(id_: str, to: str, barred: str) -> None:
    assert chosen(choose_sender(senders(id_), message(to, barred=frozenset({barred})))) is Reason.opted_out
    asked = message(to, sender=id_, barred=frozenset({barred}))
    assert chosen(choose_sender(senders(id_), asked)) is Reason.opted_out


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id_", "kind"),
    [
        (LONG, SenderKind.long_code),
        (TOLL_FREE, SenderKind.toll_free),
        ("+448001111111", SenderKind.toll_free),
        ("90210", SenderKind.short_code),
        (NAME, SenderKind.alphanumeric),
        ("My Shop 24", SenderKind.alphanumeric),
        (SERVICE, SenderKind.messaging_service),
    ],
)
def test_a_plain_text_is_a_sender(id_: str, kind: SenderKind) -> None:
    [sender] = senders(id_)
    assert (sender.id, sender.kind, sender.weight) == (id_, kind, 1)
    assert SenderConfig.model_validate(sender.model_dump(mode="json")) == sender


@pytest.mark.parametrize(
    "raw",
    [
        [],
        [""],
        ["+1"],
        ["0151 123456"],
        ["+1٤155550100"],
        ["12"],
        ["Much too long a name"],
        ["<script>"],
        [{"id": LONG, "kind": "short_code"}],
        [{"id": "90210", "kind": "alphanumeric"}],
        [{"id": LONG, "countries": ["us"]}],
        [{"id": LONG, "countries": ["USA"]}],
        [{"id": LONG, "weight": -1}],
        [{"id": LONG, "price": 1}],
        [7],
    ],
)
def test_what_is_no_sender(raw: list[Any]) -> None:
    with pytest.raises(ValidationError):
        senders(*raw)


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("14155550100", "+14155550100"),
        ("+14155550100", "+14155550100"),
        ("0014155550100", "+14155550100"),
        (" 447700900100 ", "+447700900100"),
        ("01511234567", "01511234567"),  # of some country
        ("90210", "90210"),
        ("Tidings", "Tidings"),
        ("", ""),
    ],
)
def test_e164(written: str, number: str) -> None:
    assert to_e164(written) == number


def test_find_sender() -> None:
    pool = senders(LONG, NAME)
    assert find_sender(pool, "14155550100") == pool[0]
    assert find_sender(pool, "TIDINGS") == pool[1]
    assert find_sender(pool, "nobody") is None


# --- keywords ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("STOP", "stop", "Stop.", "“Stop”", " stop\n", "stop 🛑", "ＳＴＯＰ", "STOP" + "!" * 100),
        *("STOPALL", "STOP ALL", "Unsubscribe", "CANCEL", "end", "quit", "REVOKE", "OPTOUT", "opt out", "Opt-out."),
    ],
)
def test_stop(text: str) -> None:
    assert parse_keyword(text) == "stop"


@pytest.mark.parametrize("text", ["START", "unstop", "Yes!", " yes "])
def test_start(text: str) -> None:
    assert parse_keyword(text) == "start"


@pytest.mark.parametrize("text", ["HELP", "info?"])
def test_help(text: str) -> None:
    assert parse_keyword(text) == "help"


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "...", "🛑", "please stop", "stop it", "stop sending me this", "stopped", "S T O P"),
        *("the end", "end of", "yes please", "no help"),
    ],
)
def test_a_keyword_is_the_whole_message(text: str) -> None:
    assert parse_keyword(text) is None


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    assert parse_keyword(text) in ("stop", "start", "help", None)
