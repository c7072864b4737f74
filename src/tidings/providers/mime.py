"""A rendered e-mail as the bytes that SMTP carries (RFC 5322, 2045-2047, 6532).

The standard library needs about a millisecond to build and serialise one `EmailMessage`; this needs about thirty
microseconds for the two shapes that nearly all mails have: one text part, or `multipart/alternative` of text and HTML.
With files the shapes are nested, each level only if it is needed:

    multipart/mixed
        multipart/alternative
            text/plain
            multipart/related
                text/html
                inline images, named by their Content-ID
        attachments

What the standard library's parser reads back is what went in; a property test holds that.

This room knows the format; it knows no connection, no server and no account.
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache
from typing import Final
from urllib.parse import quote

import msgspec
from email_validator import EmailNotValidError, validate_email

from tidings.model.messages import Attachment, Email

MAX_LINE: Final = 998
"""Octets in a line without its CRLF (RFC 5322, 2.1.1)."""

_FOLD_AT: Final = 76
_NAME_MAX: Final = 256
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_PLAIN: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_ATOMS: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_FIELD_NAME: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_PLAIN_ADDRESS: Final = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
_MAILBOX: Final = re.compile(r'(?P<name>"(?:[^"\\]|\\.)*"\s*|[^<>]*)<(?P<address>[^<>]*)>')
_MAILBOX_MAX: Final = 1_000
_FOLDABLE: Final = re.compile(r"(?<=\S) (?=\S)")
_RFC2045: Final = r"[A-Za-z0-9!#$&^_.+-]{1,64}"
_CONTENT_TYPE: Final = re.compile(
    rf"(?P<type>{_RFC2045}/{_RFC2045})"
    rf'(?P<parameters>(?:[ ]*;[ ]*{_RFC2045}=(?:{_RFC2045}|"[ !#-:<-\[\]-~]{{0,64}}")){{0,8}})'
)
_CONTENT_ID: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.@-]{1,200}")
_FILENAME_MAX: Final = 255
_FILENAME_PLAIN_MAX: Final = 60
_FILENAME_PLAIN: Final = re.compile(r"[A-Za-z0-9_.()+-](?:[A-Za-z0-9 _.()+-]*[A-Za-z0-9_.()+-])?")
_CHARSET_MARK: Final = "utf-8''"
_BASE64_LINE: Final = 76
_BASE64_KEPT: Final = 262_144

_OWN_FIELDS: Final = frozenset(
    {"from", "sender", "to", "cc", "bcc", "subject", "date", "message-id", "reply-to", "mime-version"}
    | {"return-path", "received"}
)


class MailRefused(ValueError):
    """A field of the mail cannot be sent. The message names the field and says what to mend; it quotes no content."""


class Mailbox(msgspec.Struct, frozen=True):
    """A parsed `Name <address>`."""

    address: str
    """As it goes into the envelope: ASCII, unless the local part has other characters (RFC 6531)."""
    header: str
    """As it goes into a header field, names encoded and long ones folded."""

    @property
    def domain(self) -> str:
        """After the `@`, ASCII."""
        return self.address.rpartition("@")[2]


@lru_cache(maxsize=4096)
def parse_mailbox(field: str, text: str) -> Mailbox:
    """The mailbox in `text`: `Name <address>`, `"Name" <address>` or an address.

    Raises:
        MailRefused: it is none of these; says so of `field`.
    """
    _refuse_control(field, text)
    if len(text) > _MAILBOX_MAX:
        raise MailRefused(f"{field}: longer than {_MAILBOX_MAX} characters")
    found = _MAILBOX.fullmatch(text.strip())
    if found is None:
        address = parse_envelope_address(field, text.strip())
        return Mailbox(address, address)
    address = parse_envelope_address(field, found["address"].strip())
    name = found["name"].strip()
    if len(name) >= 2 and name[0] == name[-1] == '"':
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    if len(name) > _NAME_MAX:
        raise MailRefused(f"{field}: the name before the address is longer than {_NAME_MAX} characters")
    return Mailbox(address, f"{_encode_phrase(field, name)} <{address}>" if name else address)


def parse_envelope_address(field: str, text: str) -> str:
    """The address as SMTP takes it: domain in ASCII (IDNA 2008), nothing in it that could end a command.

    Raises:
        MailRefused: it is not an e-mail address; says so of `field`.
    """
    if _PLAIN_ADDRESS.fullmatch(text) and len(text) <= 254:
        return text
    try:
        parsed = validate_email(text, check_deliverability=False, test_environment=True)
    except EmailNotValidError:
        raise MailRefused(f"{field}: not an e-mail address") from None
    return parsed.ascii_email or f"{parsed.local_part}@{parsed.ascii_domain}"


def render_mail(
    email: Email, *, sender: Mailbox, to: str, message_id: str, boundary: str, at: datetime, eight_bit: bool
) -> bytes:
    """The whole mail, lines ended by CRLF, not yet dot-stuffed.

    Line ends in the bodies become CRLF; a single part that does not end with one gets one. `email.bcc` is not in it.

    Args:
        to: one address, as `parse_envelope_address` gave it.
        message_id: without angle brackets.
        boundary: a string that no body is expected to contain; one that does gets a longer one.
        eight_bit: whether the way is clear for octets above 127 (8BITMIME). Without it they are encoded.

    Raises:
        MailRefused: a field cannot be sent.
    """
    head = [
        f"From: {sender.header}\r\nTo: {to}\r\nSubject: {_encode_unstructured('Subject', 'subject', email.subject)}\r\n"
        f"Date: {_format_date(int(at.timestamp()))}\r\nMessage-ID: <{message_id}>\r\nMIME-Version: 1.0\r\n"
    ]
    if email.cc:
        # A line each: they are as long as they are.
        head.append("Cc: " + ",\r\n ".join(parse_mailbox("cc", copy).header for copy in email.cc) + "\r\n")
    if email.reply_to is not None:
        head.append(f"Reply-To: {parse_mailbox('reply_to', email.reply_to).header}\r\n")
    for name, value in email.headers:
        lowered = name.lower()
        if not _FIELD_NAME.fullmatch(name) or lowered in _OWN_FIELDS or lowered.startswith("content-"):
            raise MailRefused(f"headers: the field name {name[:64]!r} is not allowed")
        head.append(f"{name}: {_encode_unstructured(name, f'headers: {name}', value)}\r\n")
    start = "".join(head).encode()
    if email.attachments:
        return start + _render_with_files(email, boundary.encode(), eight_bit)
    if email.text is not None and email.html is not None:
        text = _render_part("text", b"text/plain", email.text, eight_bit)
        html = _render_part("html", b"text/html", email.html, eight_bit)
        return start + _join_parts(b"alternative", _find_mark(boundary.encode(), text, html), text, html)
    if email.html is not None:
        part = _render_part("html", b"text/html", email.html, eight_bit)
    else:
        part = _render_part("text", b"text/plain", email.text or "", eight_bit)
    return start + part + (b"" if part.endswith(b"\r\n") else b"\r\n")


def _render_with_files(email: Email, boundary: bytes, eight_bit: bool) -> bytes:
    """The body of a mail with attachments; see the picture at the top. Without HTML nothing can show an image inline,
    so then all files are attachments."""
    inline = [file for file in email.attachments if file.content_id is not None and email.html is not None]
    others = [file for file in email.attachments if file.content_id is None or email.html is None]
    text = html = None
    if email.text is not None or email.html is None:
        text = _render_part("text", b"text/plain", email.text or "", eight_bit)
    if email.html is not None:
        html = _render_part("html", b"text/html", email.html, eight_bit)
    # Files are base64, which has no underscore, so they never hold the mark. No mark may begin another one (RFC 2046,
    # 5.1.2): the inner ones have a letter of their own in front.
    mark = _find_mark(boundary, text or b"", html or b"")
    body = html
    if html is not None and inline:
        body = _join_parts(b"related", b"r" + mark, html, *(_render_file(file, inline=True) for file in inline))
    if text is not None:
        body = text if body is None else _join_parts(b"alternative", b"a" + mark, text, body)
    assert body is not None
    if others:
        body = _join_parts(b"mixed", mark, body, *(_render_file(file, inline=False) for file in others))
    return body


def _find_mark(boundary: bytes, *parts: bytes) -> bytes:
    """The boundary, made longer until none of the parts has it."""
    while any(boundary in part for part in parts):
        boundary += b"_"
    return boundary


def _join_parts(kind: bytes, mark: bytes, *parts: bytes) -> bytes:
    """A multipart entity: its header field, an empty line, and the parts between their delimiters."""
    between = b"\r\n--%b\r\n" % mark
    return b'Content-Type: multipart/%b; boundary="%b"\r\n\r\n--%b\r\n%b\r\n--%b--\r\n' % (
        kind,
        mark,
        mark,
        between.join(parts),
        mark,
    )


def _render_file(file: Attachment, *, inline: bool) -> bytes:
    """Header fields, empty line and body of an attached file.

    A mail or a multipart as an attachment goes as `application/octet-stream`: RFC 2046, 5.2.1 allows no base64 for
    these, and relays would be free to change what is inside.
    """
    found = _CONTENT_TYPE.fullmatch(file.content_type)
    if found is None:
        raise MailRefused("attachments: a content type must be like text/calendar or text/calendar; method=REQUEST")
    kind = file.content_type
    if found["type"].lower().startswith(("message/", "multipart/")):
        kind = "application/octet-stream"
    elif found["parameters"]:
        kind = found["type"] + "".join(f";\r\n {part.strip()}" for part in found["parameters"].split(";")[1:])
    head = f"Content-Type: {kind}\r\nContent-Transfer-Encoding: base64\r\n"
    if inline:
        content_id = file.content_id or ""
        if not _CONTENT_ID.fullmatch(content_id):
            raise MailRefused("attachments: a content_id is 1 to 200 letters, digits and signs, without brackets")
        head += f"Content-ID: <{content_id}>\r\n"
    head += f"Content-Disposition: {'inline' if inline else 'attachment'}{_encode_filename(file.filename)}\r\n\r\n"
    encode = _encode_small_base64 if len(file.content) <= _BASE64_KEPT else _encode_base64
    return head.encode() + encode(file.content)


def _encode_filename(name: str) -> str:
    """The parameter `filename` with its semicolon: a quoted string, or as RFC 2231 has it, cut into pieces."""
    _refuse_control("attachments: filename", name)
    if not 0 < len(name) <= _FILENAME_MAX:
        raise MailRefused(f"attachments: a filename has 1 to {_FILENAME_MAX} characters")
    if len(name) <= _FILENAME_PLAIN_MAX and _FILENAME_PLAIN.fullmatch(name):
        return f';\r\n filename="{name}"'
    try:
        encoded = quote(name, safe="", encoding="utf-8", errors="strict")
    except UnicodeEncodeError:
        raise MailRefused("attachments: filename: half of a surrogate pair, which UTF-8 cannot carry") from None
    if len(encoded) <= _FILENAME_PLAIN_MAX:
        return f";\r\n filename*=utf-8''{encoded}"
    pieces: list[str] = []
    at = 0
    while at < len(encoded):
        end = at + _FILENAME_PLAIN_MAX
        while (cut := encoded.rfind("%", end - 2, end)) > at:  # not inside an escape
            end = cut
        pieces.append(encoded[at:end])
        at = end
    return "".join(f";\r\n filename*{n}*={'' if n else _CHARSET_MARK}{piece}" for n, piece in enumerate(pieces))


def _encode_base64(data: bytes) -> bytes:
    """In lines of 76, without the last line end."""
    encoded = binascii.b2a_base64(data, newline=False)
    return b"\r\n".join([encoded[at : at + _BASE64_LINE] for at in range(0, len(encoded), _BASE64_LINE)])


_encode_small_base64: Final = lru_cache(maxsize=16)(_encode_base64)
"""Kept for a moment: a logo goes to many people, one after the other."""


def _render_part(field: str, kind: bytes, text: str, eight_bit: bool) -> bytes:
    """Header fields, empty line and body of one part, in the first encoding that fits."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    try:
        data = text.replace("\n", "\r\n").encode()
    except UnicodeEncodeError:
        raise MailRefused(f"{field}: half of a surrogate pair, which UTF-8 cannot carry") from None
    ascii_only = data.isascii()
    fits = b"\0" not in data and (len(data) <= MAX_LINE or max(map(len, data.split(b"\r\n"))) <= MAX_LINE)
    if fits and ascii_only:
        encoding = b"7bit"
    elif fits and eight_bit:
        encoding = b"8bit"
    elif ascii_only or sum(map(len, re.findall(rb"[\x80-\xff]+", data))) * 6 < len(data):
        # Quoted-printable costs two octets for each foreign one, base64 a third of everything: 1/6 is the balance.
        encoding = b"quoted-printable"
        # Soft line breaks follow the style of the first line end, which a text of one line does not have.
        data = binascii.b2a_qp(data, istext=True).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    else:
        encoding = b"base64"
        data = base64.encodebytes(data).replace(b"\n", b"\r\n")
    return b"Content-Type: %b; charset=utf-8\r\nContent-Transfer-Encoding: %b\r\n\r\n%b" % (kind, encoding, data)


def _refuse_control(field: str, value: str) -> None:
    """CR and LF would start a field of the sender's choice; the other controls have no business in a header."""
    if _CONTROL.search(value):
        raise MailRefused(f"{field}: control characters (such as line ends or NUL) are not allowed in a mail header")


def _encode_unstructured(name: str, field: str, value: str) -> str:
    """The value of a header field: as it is, folded at spaces, or as encoded words."""
    column = len(name) + 2
    if value.isascii() and "=?" not in value and _PLAIN.fullmatch(value):
        if column + len(value) <= _FOLD_AT:
            return value
        if (folded := _fold(value, column)) is not None:
            return folded
    _refuse_control(field, value)
    return _encode_words(field, value, column)


def _fold(value: str, column: int) -> str | None:
    """The value with line breaks before some of its spaces; None if a piece of it is too long for a line."""
    lines: list[str] = []
    line = ""
    for piece in _FOLDABLE.split(value):
        if len(piece) > MAX_LINE - 100:
            return None
        if line and column + len(line) + 1 + len(piece) > _FOLD_AT:
            lines.append(line)
            line, column = piece, 1
        else:
            line = f"{line} {piece}" if line else piece
    return "\r\n ".join([*lines, line])


def _encode_words(field: str, value: str, column: int) -> str:
    """RFC 2047 encoded words, each at most 75 characters long and of whole characters, folded."""
    try:
        data = value.encode()
    except UnicodeEncodeError:
        raise MailRefused(f"{field}: half of a surrogate pair, which UTF-8 cannot carry") from None
    words: list[str] = []
    at = 0
    room = max((_FOLD_AT - column - 12) // 4 * 3, 0)
    start = ""
    if room < 9:  # hardly a character fits behind so long a name: begin on the next line
        start, room = "\r\n ", 45
    while at < len(data):
        end = min(at + room, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:  # not inside a character
            end -= 1
        words.append(f"=?utf-8?b?{binascii.b2a_base64(data[at:end], newline=False).decode()}?=")
        at, room = end, 45
    return start + "\r\n ".join(words)


def _encode_phrase(field: str, name: str) -> str:
    """A display name: atoms, a quoted string, or encoded words."""
    if name.isascii() and "=?" not in name:
        return name if _ATOMS.fullmatch(name) else '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'
    return _encode_words(field, name, len("Reply-To: "))


@lru_cache(maxsize=16)
def _format_date(unix_s: int) -> str:
    return format_datetime(datetime.fromtimestamp(unix_s, UTC))
