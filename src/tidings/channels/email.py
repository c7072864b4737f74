"""E-mail: addresses (RFC 5321, 6531), and a subject with text, HTML or both."""

from __future__ import annotations

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
