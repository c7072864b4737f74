"""Text messages: E.164 numbers, and a text of at most ten parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import phonenumbers

from tidings.channels.rules import ChannelRules
from tidings.errors import RenderError
from tidings.model.messages import Sms
from tidings.model.words import Channel

# No country has the code 999 (ITU-T E.164, "reserved"), so these can never be somebody's; the simulator answers them.
_SIMULATED: Final = re.compile(r"\+9990000000[1-5]")
_LENGTH_MAX: Final = 1_530  # characters: ten parts of 153 in the GSM 7-bit alphabet (3GPP TS 23.038)


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


def _build(parts: Mapping[str, str]) -> Sms:
    text = parts["text"]
    if len(text) > _LENGTH_MAX:
        raise RenderError(f"The text has {len(text):,} characters; a text message takes at most {_LENGTH_MAX:,}.")
    return Sms(text)


RULES: Final = ChannelRules(
    channel=Channel.sms,
    fields={"text": "text"},
    required=frozenset({"text"}),
    one_of=frozenset(),
    max_content=4 * _LENGTH_MAX,
    parse_address=parse_address,
    build=_build,
)
