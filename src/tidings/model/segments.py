"""What a text message is counted in: its parts on the air, and the country of its number.

A phone shows one message; the network carries 140 octets at a time (3GPP TS 23.040), and vendors charge for each of
those. What fits depends on the alphabet (3GPP TS 23.038): 160 septets of GSM 7-bit, where a few characters take two, or
70 units of UCS-2, where what is outside of the Basic Multilingual Plane takes two. In a message of several parts each
begins with a header of six octets that says how they join, which leaves 153 septets or 67 units.

Pure, and below everything that counts, cuts or prices text messages.
"""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec
import phonenumbers

Encoding = Literal["GSM-7", "UCS-2"]

# 3GPP TS 23.038, 6.2.1: the place in the text is the code; 0x1B leads to the extension table and is no character.
_BASIC: Final = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞ\x1bÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_ESCAPE: Final = 0x1B
# 3GPP TS 23.038, 6.2.1.1: each is sent as the escape and this code, two septets in all.
_EXTENSION: Final = {
    "\f": 0x0A, "^": 0x14, "{": 0x28, "}": 0x29, "\\": 0x2F, "[": 0x3C, "~": 0x3D, "]": 0x3E, "|": 0x40, "€": 0x65
}  # fmt: skip

_TO_OCTETS: Final[dict[str, bytes]] = {
    **{character: bytes((code,)) for code, character in enumerate(_BASIC) if code != _ESCAPE},
    **{character: bytes((_ESCAPE, code)) for character, code in _EXTENSION.items()},
}
_FROM_EXTENSION: Final = {code: character for character, code in _EXTENSION.items()}
_GSM: Final = re.compile("[" + re.escape("".join(_TO_OCTETS)) + "]*")
_DOUBLE: Final[dict[Encoding, re.Pattern[str]]] = {
    "GSM-7": re.compile("[" + re.escape("".join(_EXTENSION)) + "]"),
    "UCS-2": re.compile("[\U00010000-\U0010ffff]"),
}
"""The characters that take two units. Neither half of one may be parted from the other."""

SINGLE: Final[dict[Encoding, int]] = {"GSM-7": 160, "UCS-2": 70}
"""Units that a message of one part holds."""
JOINED: Final[dict[Encoding, int]] = {"GSM-7": 153, "UCS-2": 67}
"""Units that each part of a longer message holds."""

# What word processors and keyboards put in place of plain characters. One of them doubles the price of a message.
_LOOKALIKES: Final = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′ʹʻʼˈ`´", "'"),
        **dict.fromkeys("“”„‟″ʺ«»", '"'),
        **dict.fromkeys("‐‑‒–—―−﹘﹣－", "-"),
        **dict.fromkeys(
            "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "
        ),
        **dict.fromkeys("\u200b\u200c\u2060\ufeff\u00ad", None),
        "…": "...",
        "•": "-",
        "‹": "<",
        "›": ">",
        "⁄": "/",
        "∗": "*",
        "™": "(TM)",
        "©": "(C)",
        "®": "(R)",
        "\t": " ",
        "\u2028": "\n",
        "\u2029": "\n",
    }
)


class Segments(msgspec.Struct, frozen=True):
    """How a text is carried."""

    encoding: Encoding
    units: int
    """Septets or UTF-16 code units, without the headers that join parts."""
    parts: int
    """Messages on the air, which is what is charged; an empty text is one."""


def count_segments(text: str) -> Segments:
    """How many parts a text takes."""
    encoding: Encoding = "GSM-7" if _GSM.fullmatch(text) else "UCS-2"
    doubles = len(_DOUBLE[encoding].findall(text))
    units = len(text) + doubles
    if units <= SINGLE[encoding]:
        return Segments(encoding, units, 1)
    if not doubles:
        return Segments(encoding, units, -(-units // JOINED[encoding]))
    return Segments(encoding, units, len(_cut(text, encoding)))


def split_text(text: str, encoding: Encoding | None = None) -> tuple[Encoding, list[str]]:
    """The text cut into what each part carries; as many as :func:`count_segments` says.

    Args:
        encoding: "UCS-2" to carry it so even if GSM 7-bit would do; None for what it needs.
    """
    encoding = encoding or count_segments(text).encoding
    units = len(text) + len(_DOUBLE[encoding].findall(text))
    return encoding, [text] if units <= SINGLE[encoding] else _cut(text, encoding)


def _cut(text: str, encoding: Encoding) -> list[str]:
    room, is_double = JOINED[encoding], _DOUBLE[encoding].match
    parts, start, used = [], 0, 0
    for place, character in enumerate(text):
        size = 2 if is_double(character) else 1
        if used + size > room:
            parts.append(text[start:place])
            start, used = place, 0
        used += size
    parts.append(text[start:])
    return parts


def simplify(text: str) -> str:
    """The text with typographic characters replaced by their plain lookalikes, if that makes it fit GSM 7-bit; else
    as it was, for then nothing is gained by changing it."""
    if _GSM.fullmatch(text):
        return text
    plain = text.translate(_LOOKALIKES)
    return plain if _GSM.fullmatch(plain) else text


def encode_gsm(text: str) -> bytes:
    """The text in the GSM 7-bit alphabet, one septet an octet, as SMPP carries it.

    Raises:
        ValueError: a character is not in the alphabet.
    """
    try:
        return b"".join([_TO_OCTETS[character] for character in text])
    except KeyError:
        raise ValueError("the text holds a character that the GSM 7-bit alphabet has not") from None


def decode_gsm(octets: bytes) -> str:
    """What :func:`encode_gsm` made; a code that means nothing becomes a space, as the standard asks."""
    characters, escaped = [], False
    for octet in octets:
        if escaped:
            characters.append(_FROM_EXTENSION.get(octet, " "))
            escaped = False
        elif octet == _ESCAPE:
            escaped = True
        else:
            characters.append(_BASIC[octet] if octet < len(_BASIC) else " ")
    return "".join(characters)


def find_country(number: str) -> str | None:
    """The ISO 3166 code of the country that an E.164 number belongs to; None where there is none.

    Takes some tens of microseconds: the numbers of a shared country code (+1, +7, +44, …) are told apart by their
    first digits.
    """
    try:
        parsed = phonenumbers.parse(number)
    except phonenumbers.NumberParseException:
        return None
    code = parsed.country_code
    if code is None:
        return None
    regions = phonenumbers.region_codes_for_country_code(code)
    # A number that no range of the country knows (new, or made up) still says whose country code it has.
    found = (
        regions[0] if len(regions) == 1 else phonenumbers.region_code_for_number(parsed) or next(iter(regions), None)
    )
    return None if found in (None, "ZZ", "001") else found
