"""Mails with files, copies and signatures as a real parser, a real SMTP server and a real verifier see them."""

from __future__ import annotations

from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidings.model.messages import Attachment, Email
from tidings.providers.mime import MAX_LINE, MailRefused, parse_mailbox, render_mail

AT = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
SENDER = parse_mailbox("from", "Shop <shop@example.com>")

words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=200)
bodies = st.text(st.characters(exclude_categories=["Cs"]), max_size=200) | st.text("-=_brma\n", max_size=60)
filenames = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=120) | st.text(
    "a .;=\"'%\\*?/üя🎉", min_size=1, max_size=120
)
content_types = st.sampled_from(["image/png", "application/pdf", "text/plain", "text/calendar; method=REQUEST"])
content_ids = st.from_regex(r"[A-Za-z0-9._+-]{1,30}(@[a-z]{1,10}\.example)?", fullmatch=True)
files = st.builds(Attachment, filenames, content_types, st.binary(max_size=400), st.none() | content_ids)


def render(email: Email, *, eight_bit: bool = True) -> bytes:
    return render_mail(
        email, sender=SENDER, to="ada@example.com", message_id="x@y", boundary="=_b", at=AT, eight_bit=eight_bit
    )


def parse(raw: bytes) -> EmailMessage:
    assert raw.endswith(b"\r\n")
    assert b"\n" not in raw.replace(b"\r\n", b"")
    assert all(len(line) <= MAX_LINE for line in raw.split(b"\r\n"))
    message = message_from_bytes(raw, policy=policy.default)
    assert isinstance(message, EmailMessage)
    return message


def body_of(message: EmailMessage, kind: str) -> str | None:
    part = message.get_body((kind,))
    if part is None:
        return None
    payload = part.get_payload(decode=True)
    assert isinstance(payload, bytes)
    return payload.decode()


def normal(text: str | None) -> str | None:
    return None if text is None else text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")


@given(st.none() | bodies, st.none() | bodies, st.lists(files, min_size=1, max_size=4), st.booleans())
@example("--=_b--", "--r=_b--\n--a=_b", [Attachment("a.png", "image/png", b"--=_b--", "logo")], True)
@example(None, None, [Attachment("ü" * 100, "image/png", b"", "logo")], False)
@example("x", None, [Attachment("a" * 250 + ".txt", "text/plain", b"\r\n.\r\n")], False)
@example(None, None, [Attachment('""', "image/png", b""), Attachment("<a>", "image/png", b"")], False)
def test_what_the_standard_parser_reads_is_what_went_in(
    text: str | None, html: str | None, attached: list[Attachment], eight_bit: bool
) -> None:
    raw = render(Email("Hi", text=text, html=html, attachments=tuple(attached)), eight_bit=eight_bit)
    assert eight_bit or raw.isascii()
    message = parse(raw)
    assert not message.defects
    for part in message.walk():
        assert not part.defects, part.defects
    leaves = [part for part in message.walk() if not part.is_multipart()]
    if text is not None or html is None:
        assert leaves[0].get_content_type() == "text/plain"
        assert leaves[0].get_payload(decode=True) == (normal(text) or "").encode()
    if html is not None:
        rich = next(part for part in leaves if part.get_content_type() == "text/html")
        assert rich.get_payload(decode=True) == (normal(html) or "").encode()
    # Not `get_filename`: it takes white space, quotes and angle brackets off the ends of names.
    found = [
        (part["content-disposition"].params["filename"], part.get_payload(decode=True), part["content-id"])
        for part in leaves
        if part.get_content_disposition() is not None
    ]
    expected = [
        (f.filename, f.content, f"<{f.content_id}>" if f.content_id is not None and html is not None else None)
        for f in attached
    ]
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    inline = [p for p in leaves if p.get_content_disposition() == "inline"]
    assert len(inline) == sum(f.content_id is not None for f in attached) * (html is not None)


def test_the_nesting_is_what_mail_programs_expect() -> None:
    logo = Attachment("logo.png", "image/png", b"\x89PNG", "logo")
    bill = Attachment("bill.pdf", "application/pdf", b"%PDF")
    message = parse(render(Email("Hi", "text", '<img src="cid:logo">', attachments=(bill, logo))))
    assert [part.get_content_type() for part in message.walk()] == [
        "multipart/mixed",
        *("multipart/alternative", "text/plain"),
        *("multipart/related", "text/html", "image/png"),
        "application/pdf",
    ]
    assert body_of(message, "plain") == "text"
    assert body_of(message, "html") == '<img src="cid:logo">'
    assert [part.get_filename() for part in message.iter_attachments()] == ["bill.pdf"]


def test_parameters_of_a_content_type_stay() -> None:
    file = Attachment("invite.ics", 'text/calendar; method=REQUEST; charset="utf-8"', b"BEGIN:VCALENDAR")
    (part,) = parse(render(Email("Hi", "text", attachments=(file,)))).iter_attachments()
    assert part.get_content_type() == "text/calendar"
    assert dict(part["content-type"].params) == {"method": "REQUEST", "charset": "utf-8"}


def test_a_mail_as_an_attachment_goes_as_octets() -> None:
    """RFC 2046, 5.2.1 allows no base64 for `message/rfc822`; relays could change it on the way."""
    file = Attachment("original.eml", "message/rfc822", b"Subject: x\r\n\r\ny\r\n")
    (part,) = parse(render(Email("Hi", "text", attachments=(file,)))).iter_attachments()
    assert (part.get_content_type(), part.get_filename()) == ("application/octet-stream", "original.eml")
    assert part.get_payload(decode=True) == file.content


@pytest.mark.parametrize(
    ("file", "names"),
    [
        (Attachment("a\r\nX-Evil: 1", "image/png", b""), "filename"),
        (Attachment("", "image/png", b""), "filename"),
        (Attachment("x" * 256, "image/png", b""), "filename"),
        (Attachment("a\ud800", "image/png", b""), "filename"),
        (Attachment("a", "image", b""), "content type"),
        (Attachment("a", "image/png\r\nX-Evil: 1", b""), "content type"),
        (Attachment("a", "image/png; a=b; c", b""), "content type"),
        (Attachment("a", 'image/png; a="b\r\nX-Evil: 1"', b""), "content type"),
        (Attachment("a", "image/png", b"", "x>\r\nX-Evil: 1"), "content_id"),
        (Attachment("a", "image/png", b"", "<x>"), "content_id"),
        (Attachment("a", "image/png", b"", ""), "content_id"),
    ],
)
def test_what_cannot_be_said_in_a_header_is_refused(file: Attachment, names: str) -> None:
    with pytest.raises(MailRefused, match=f"^attachments: .*{names}"):
        render(Email("Hi", html="x", attachments=(file,)))


def test_copies_stand_in_the_header_and_blind_ones_do_not() -> None:
    raw = render(Email("Hi", "text", cc=("Zoë <zoe@example.com>", "bob@example.com"), bcc=("eve@example.com",)))
    message = parse(raw)
    assert message["cc"].addresses[0].display_name == "Zoë"
    assert [a.addr_spec for a in message["cc"].addresses] == ["zoe@example.com", "bob@example.com"]
    assert message["bcc"] is None
    assert b"eve" not in raw
    with pytest.raises(MailRefused, match=r"^cc: "):
        render(Email("Hi", "text", cc=("a@b.de\r\nBcc: c@d.de",)))
