"""E-mail: addresses (RFC 5321, 6531), and a subject with text, HTML or both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from email_validator import EmailNotValidError, validate_email

from tidings.channels.rules import ChannelRules, refuse_control
from tidings.errors import RenderError
from tidings.model.messages import Email
from tidings.model.words import Channel

_SUBJECT_MAX: Final = 998  # characters; what one unfolded header line may hold (RFC 5322, 2.1.1)


def parse_address(text: str) -> str:
    """The address, Unicode in normal form and its domain in lower case. Domains are not looked up.

    The reserved domain `.test` and its names are allowed: the simulator and everybody's tests live there.

    Raises:
        ValueError: it is no address that mail could be sent to.
    """
    try:
        return validate_email(text, check_deliverability=False, test_environment=True).normalized
    except EmailNotValidError as problem:
        raise ValueError(f"This is not an e-mail address: {problem}") from None


_MAILBOX: Final = re.compile(r'(?P<name>"(?:[^"\\]|\\.)*"|[^<>"]*?)\s*<(?P<address>[^<>]*)>')
_NAME_MAX: Final = 256
_MAILBOX_MAX: Final = 1_000  # characters
_SPECIAL: Final = re.compile(r'[()<>\[\]:;@\\,."]')


def parse_mailbox(text: str) -> str:
    """`Name <address>`, `"Name" <address>` or an address alone, the address in its normal form, and the name in quotes
    where it would be read as something else without (RFC 5322, 3.2.4).

    Raises:
        ValueError: it is none of these.
    """
    if len(text) > _MAILBOX_MAX:  # the pattern takes time by the square of it
        raise ValueError(f"A name and an address together have at most {_MAILBOX_MAX:,} characters.")
    found = _MAILBOX.fullmatch(text.strip())
    if found is None:
        return parse_address(text.strip())
    name = found["name"].strip()
    if name.startswith('"'):
        name = re.sub(r"\\(.)", r"\1", name[1:-1]).strip()
    if len(name) > _NAME_MAX or not name.isprintable():
        raise ValueError(f"The name before the address has at most {_NAME_MAX} printable characters.")
    address = parse_address(found["address"].strip())
    if _SPECIAL.search(name):
        name = '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'
    return f"{name} <{address}>" if name else address


_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_HEADER_MAX: Final = 998
_HEADERS: Final = frozenset(
    {"archived-at", "auto-submitted", "autocrypt", "comments", "expires", "feedback-id", "importance", "in-reply-to"}
    | {"keywords", "organization", "precedence", "priority", "references", "require-recipient-valid-since"}
    | {"sensitivity", "thread-index", "thread-topic"}
)
_HEADER_FAMILIES: Final = ("x-", "list-")


_VENDOR_CONTROLS: Final = ("x-smtpapi", "x-ses-", "x-mailgun-", "x-mailin-", "x-sib-", "x-pm-", "x-msys-", "x-mc-")
"""What vendors take out of a mail and obey: subaccounts, lists, tracking, other templates."""


def parse_header(name: str, value: str) -> str:
    """The value of a further header field that a message may bring.

    Only fields that describe the message are taken: those that say whom it is from and for, what it is made of and
    which way it went are made by Tidings and by mail servers.

    Raises:
        ValueError: the field is not one of them, or the value is not one line of text.
    """
    lowered = name.lower()
    if lowered.startswith(_VENDOR_CONTROLS):
        raise ValueError("This header field steers a vendor's processing; use the options for what it does.")
    if not _HEADER_NAME.fullmatch(name) or not (lowered in _HEADERS or lowered.startswith(_HEADER_FAMILIES)):
        known = ", ".join(sorted(_HEADERS))
        raise ValueError(f"This header field cannot be set. Those that can begin with X- or List-, or are {known}.")
    value = value.strip(" ")
    if not 1 <= len(value) <= _HEADER_MAX or not value.isprintable():
        raise ValueError(f"The value of a header field is one line of 1 to {_HEADER_MAX} printable characters.")
    return value


def _build(parts: Mapping[str, str]) -> Email:
    subject = refuse_control("subject", parts["subject"])
    if len(subject) > _SUBJECT_MAX:
        raise RenderError(f"The field 'subject' has {len(subject):,} characters; it takes at most {_SUBJECT_MAX}.")
    sender = refuse_control("from", parts.get("from", ""))
    reply_to = refuse_control("reply_to", parts.get("reply_to", ""))
    return Email(
        subject=subject,
        text=parts.get("text"),
        html=parts.get("html"),
        from_=sender or None,
        reply_to=reply_to or None,
    )


RULES: Final = ChannelRules(
    channel=Channel.email,
    fields={"subject": "text", "text": "text", "html": "html", "from": "text", "reply_to": "text"},
    required=frozenset({"subject"}),
    one_of=frozenset({"text", "html"}),
    max_content=2_000_000,
    parse_address=parse_address,
    build=_build,
)
