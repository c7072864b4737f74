"""Text messages: E.164 numbers, and a text of at most ten parts; with media it is an MMS."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import phonenumbers
from yarl import URL

from tidings.channels.rules import ChannelRules, refuse_control
from tidings.errors import RenderError
from tidings.model.messages import Sms
from tidings.model.segments import count_segments
from tidings.model.words import Channel

# No country has the code 999 (ITU-T E.164, "reserved"), so these can never be somebody's; the simulator answers them.
_SIMULATED: Final = re.compile(r"\+9990000000[1-5]")
PARTS_MAX: Final = 10
"""Parts on the air: 1,530 characters of the GSM 7-bit alphabet, 670 of others."""
MEDIA_MAX: Final = 10
_URL_MAX: Final = 2_000  # characters
_SENDER_MAX: Final = 64  # characters; what kinds there are is the account's affair


def parse_address(text: str) -> str:
    """The number as E.164: `+`, country code, number, nothing else.

    Raises:
        ValueError: no country code, or no such number.
    """
    text = text.strip()
    if not text.startswith("+"):
        raise ValueError("A phone number starts with + and the country code, such as +14155550123.")
    if _SIMULATED.fullmatch(text):
        return text
    try:
        number = phonenumbers.parse(text)
    except phonenumbers.NumberParseException:
        raise ValueError("This is not a phone number; it starts with + and a country code.") from None
    if not phonenumbers.is_possible_number(number):
        raise ValueError("This number is too short or too long for its country.")
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def parse_media(text: str) -> str:
    """The URL of a picture or the like, which the vendor fetches.

    Raises:
        ValueError: not https, no host, with credentials, or too long.
    """
    text = text.strip()
    try:
        url = URL(text)
    except ValueError:
        raise ValueError("A media URL starts with https:// and a host.") from None
    if url.scheme != "https" or not url.host or url.raw_user is not None or url.raw_password is not None:
        raise ValueError("A media URL starts with https:// and a host, and holds no user name or password.")
    if len(text) > _URL_MAX or not text.isprintable():
        raise ValueError(f"A media URL has at most {_URL_MAX:,} characters, and none that cannot be printed.")
    return text


def _build(parts: Mapping[str, str]) -> Sms:
    text = parts["text"]
    counted = count_segments(text)
    if counted.parts > PARTS_MAX:
        raise RenderError(
            f"The text has {len(text):,} characters, which take {counted.parts} parts in {counted.encoding}; "
            f"a text message takes at most {PARTS_MAX}."
        )
    media = parts.get("media", "").split()
    if len(media) > MEDIA_MAX:
        raise RenderError(f"The field 'media' names {len(media)} URLs; it takes at most {MEDIA_MAX}.")
    sender = refuse_control("sender", parts.get("sender", ""))
    if len(sender) > _SENDER_MAX:
        raise RenderError(f"The field 'sender' has {len(sender)} characters; it takes at most {_SENDER_MAX}.")
    try:
        return Sms(text, media=tuple(parse_media(url) for url in media), sender=sender or None)
    except ValueError as problem:
        raise RenderError(f"The field 'media': {problem}") from None


RULES: Final = ChannelRules(
    channel=Channel.sms,
    fields={"text": "text", "media": "text", "sender": "text"},
    required=frozenset({"text"}),
    one_of=frozenset(),
    max_content=4 * 1_530 + MEDIA_MAX * _URL_MAX,
    parse_address=parse_address,
    build=_build,
)
