from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import EmailMessage, MIMEPart
from email.utils import parseaddr
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidings.model.messages import Email
from tidings.providers.mime import MAX_LINE, MailRefused, parse_envelope_address, parse_mailbox, render_mail

AT = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
SENDER = parse_mailbox("from", "Shop <shop@example.com>")

# Everything that UTF-8 can carry.
characters = st.characters(exclude_categories=["Cs"])
bodies = st.text(characters, max_size=3000) | st.text("a. =\n\r\t\0ü🎉", max_size=3000)
# What a header may hold: no control characters.
header_text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=300) | st.text(
    'ab =?ü🎉"\\,<', max_size=300
)


def render(email: Email, eight_bit: bool = True) -> bytes:
    return render_mail(
        email,
        sender=SENDER,
        to="ada@example.com",
        message_id="x@example.com",
        boundary="=_b",
        at=AT,
        eight_bit=eight_bit,
    )


def parse(raw: bytes) -> EmailMessage:
    message = message_from_bytes(raw, policy=policy.default)
    assert isinstance(message, EmailMessage)
    return message


def check_lines(raw: bytes, *, eight_bit: bool) -> None:
    assert raw.endswith(b"\r\n")
    assert b"\r" not in raw.replace(b"\r\n", b"")
    assert b"\n" not in raw.replace(b"\r\n", b"")
    assert b"\0" not in raw
    assert all(len(line) <= MAX_LINE for line in raw.split(b"\r\n"))
    assert eight_bit or raw.isascii()


def content(part: MIMEPart | None) -> str:
    assert part is not None
    payload = part.get_payload(decode=True)
    assert isinstance(payload, bytes)
    return payload.decode()


def normal(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")


@given(bodies, bodies, st.booleans())
@example("--=_b--", "\n--=_b", True)
@example("x" * 999, "ü" * 500, True)
def test_both_bodies_come_back(text: str, html: str, eight_bit: bool) -> None:
    raw = render(Email("Hi", text=text, html=html), eight_bit)
    check_lines(raw, eight_bit=eight_bit)
    message = parse(raw)
    assert not message.defects
    assert message.get_content_type() == "multipart/alternative"
    plain, rich = message.iter_parts()
    assert (plain.get_content_type(), rich.get_content_type()) == ("text/plain", "text/html")
    assert content(plain) == normal(text)
    assert content(rich) == normal(html)


@given(bodies, st.booleans(), st.booleans())
def test_one_body_comes_back_with_its_last_line_ended(body: str, rich: bool, eight_bit: bool) -> None:
    raw = render(Email("Hi", html=body) if rich else Email("Hi", text=body), eight_bit)
    check_lines(raw, eight_bit=eight_bit)
    found = content(parse(raw))
    assert found in (normal(body), normal(body) + "\r\n")


@given(header_text)
@example("Grüße " * 40)
@example("a" * 500)
@example(" leading and trailing ")
@example("word " * 60)
@example("=?utf-8?q?no?=")
@example("two  spaces   three" * 10)
def test_subject_and_other_fields_come_back(value: str) -> None:
    raw = render(Email(value, text="x", headers=(("X-Long-Field-Name-That-Takes-Much-Room", value),)))
    check_lines(raw, eight_bit=False)
    message = parse(raw)
    # The parser strips white space around a value that is not encoded; we encode such values.
    assert message["subject"] == value
    assert message["x-long-field-name-that-takes-much-room"] == value
    head = raw.split(b"\r\n\r\n")[0].split(b"\r\n")
    assert all(len(line) <= 76 for line in head if b"=?utf-8?b?" in line)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]) | st.sampled_from(' ,;"\\()ü'), max_size=100))
def test_display_names_come_back(name: str) -> None:
    name = " ".join(name.split())
    quoted = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    mailbox = parse_mailbox("from", f"{quoted} <shop@example.com>")
    raw = render_mail(
        Email("Hi", text="x"), sender=mailbox, to="a@example.com", message_id="x@y", boundary="b", at=AT, eight_bit=True
    )
    check_lines(raw, eight_bit=False)
    # The older of the parsers: the newer one forgets to drop the space between two encoded words of a phrase.
    value = message_from_bytes(raw)["from"]
    shown, address = parseaddr(value)
    assert address == "shop@example.com"
    assert str(make_header(decode_header(shown))) == name


@given(header_text, st.sampled_from("\r\n\0\x0b\x7f\x1f"), st.integers(0, 300))
def test_no_control_character_gets_into_a_header(value: str, control: str, at: int) -> None:
    bad = value[:at] + control + value[at:]
    with pytest.raises(MailRefused, match=r"^subject: control"):
        render(Email(bad, text="x"))
    with pytest.raises(MailRefused, match=r"^headers: X-A: control"):
        render(Email("Hi", text="x", headers=(("X-A", bad),)))
    with pytest.raises(MailRefused, match=r"^from: control"):
        parse_mailbox("from", f"{bad} <a@example.com>")
    with pytest.raises(MailRefused, match=r"^reply_to: control"):
        render(Email("Hi", text="x", reply_to=f"a@example.com{bad}"))


@pytest.mark.parametrize("name", ["From", "bcc", "Content-Type", "X A", "X:A", "", "X-Ü", "Message-ID"])
def test_own_and_impossible_field_names_are_refused(name: str) -> None:
    with pytest.raises(MailRefused, match=r"^headers: the field name"):
        render(Email("Hi", text="x", headers=((name, "1"),)))


@pytest.mark.parametrize("field", ["subject", "text", "html"])
def test_half_a_surrogate_pair_is_refused(field: str) -> None:
    parts: dict[str, Any] = {"subject": "Hi", "text": "x", field: "\ud800"}
    with pytest.raises(MailRefused, match=f"^{field}: half"):
        render(Email(**parts))


@pytest.mark.parametrize(
    ("text", "envelope"),
    [
        ("ada@example.com", "ada@example.com"),
        ("ada+x@simulator.test", "ada+x@simulator.test"),
        ("ada@bücher.example", "ada@xn--bcher-kva.example"),
        ("zoë@example.com", "zoë@example.com"),
    ],
)
def test_envelope_addresses(text: str, envelope: str) -> None:
    assert parse_envelope_address("to", text) == envelope


@pytest.mark.parametrize(
    "text",
    ["", "ada", "@x.de", "a@b@c.de", "a b@c.de", "a@c.de>\r\nRCPT TO:<b@c.de", "a@c.de SIZE=1", "<a@c.de>", "a@c..de"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(MailRefused, match=r"^to: not an e-mail address"):
        parse_envelope_address("to", text)


def test_mailboxes_with_an_unclosed_bracket_are_refused() -> None:
    for text in ("Shop <a@example.com", "Shop a@example.com>", "Shop <a@example.com> <b@example.com>", "Shop <>"):
        with pytest.raises(MailRefused):
            parse_mailbox("from", text)
