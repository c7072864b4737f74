"""From which of an account's numbers or names a text message goes, and what a reply says about that.

Pure. A recipient is told from the same sender every time as long as the account's senders stay as they are, and hears
from another one only if it has to be: whoever answers STOP does so to a sender, and :func:`choose_sender` makes its
choice before it looks at who is barred, so no other number is ever used to get around a STOP.

This room knows senders and keywords; it knows no vendor.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Collection, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Final, Literal

import phonenumbers
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from tidings.model.messages import Message, Rejected, Sms
from tidings.model.segments import find_country
from tidings.model.words import Reason

Keyword = Literal["stop", "start", "help"]


class SenderKind(StrEnum):
    """What the recipient sees as the sender."""

    long_code = "long_code"  # an ordinary number, E.164
    short_code = "short_code"  # a number of three to eight digits, known in one country
    toll_free = "toll_free"  # E.164
    alphanumeric = "alphanumeric"  # a name of up to eleven characters, which nobody can answer
    messaging_service = "messaging_service"  # a pool of the vendor's, which chooses itself


_MEDIA_KINDS: Final = frozenset(set(SenderKind) - {SenderKind.alphanumeric})

# Where carriers deliver nothing that comes from a name: the United States with its territories, and Canada.
# https://help.twilio.com/articles/223133767 (international support for alphanumeric sender ids)
_NO_NAMES: Final = frozenset({"US", "CA", "PR", "VI", "GU", "AS", "MP"})

_NUMBER: Final = re.compile(r"\+[1-9][0-9]{6,14}")
_SHORT: Final = re.compile(r"[0-9]{3,8}")
_DIALLED: Final = re.compile(r"(?:\+|00)?([1-9][0-9]{8,14})")
_NAME: Final = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9 &+_-]{1,11}")
_SERVICE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TWILIO_SERVICE: Final = re.compile(r"MG[0-9a-fA-F]{32}")
_SHAPES: Final = {
    SenderKind.long_code: (_NUMBER, "a number starting with + and the country code"),
    SenderKind.toll_free: (_NUMBER, "a number starting with + and the country code"),
    SenderKind.short_code: (_SHORT, "three to eight digits"),
    SenderKind.alphanumeric: (_NAME, "one to eleven letters, digits and spaces, with a letter among them"),
    SenderKind.messaging_service: (_SERVICE, "the vendor's id of the service"),
}


class SenderConfig(BaseModel):
    """One number or name that an account may send from. A plain text stands for one without conditions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    id: str
    """The number (`+…`), short code, name, or the vendor's id of a messaging service."""
    kind: SenderKind
    """Left out: what `id` looks like."""
    countries: tuple[Annotated[str, StringConstraints(pattern="^[A-Z]{2}$")], ...] = ()
    """Recipients' countries (ISO 3166, two letters) that it is for; empty: all."""
    categories: tuple[str, ...] = ()
    """Categories of types that it is for, and before senders that are for all; empty: all."""
    weight: int = Field(default=1, ge=0, le=1000)
    """Its share among equals; 0: only for messages that ask for it by name."""

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, raw: Any) -> Any:
        if isinstance(raw, str):
            raw = {"id": raw}
        if isinstance(raw, dict) and "kind" not in raw and isinstance(raw.get("id"), str):
            return {**raw, "kind": _guess_kind(raw["id"])}
        return raw

    @model_validator(mode="after")
    def _check_id(self) -> SenderConfig:
        shape, words = _SHAPES[self.kind]
        if not shape.fullmatch(self.id):
            raise ValueError(f"the id of a sender of the kind {self.kind.value} is {words}")
        return self


Senders = Annotated[tuple[SenderConfig, ...], Field(min_length=1, max_length=500)]
"""The field type of an account's senders."""


def _guess_kind(id_: str) -> SenderKind:
    if id_.startswith("+"):
        try:
            kind = phonenumbers.number_type(phonenumbers.parse(id_))
        except phonenumbers.NumberParseException:
            return SenderKind.long_code
        return SenderKind.toll_free if kind == phonenumbers.PhoneNumberType.TOLL_FREE else SenderKind.long_code
    if _TWILIO_SERVICE.fullmatch(id_):
        return SenderKind.messaging_service
    return SenderKind.short_code if _SHORT.fullmatch(id_) else SenderKind.alphanumeric


def choose_sender(senders: Sequence[SenderConfig], message: Message) -> SenderConfig | Rejected:
    """The sender of a text message.

    1. One that the message names, if the account has it and it reaches the recipient.
    2. Else those that are for the recipient's country and the message's category and can carry what the message
       holds. Of them, first those that name the category, then those of the recipient's own country.
    3. Among equals, by weight, the same one for the same recipient every time; a sender that is added or taken away
       moves no more recipients than it has to.
    4. Only now: nothing goes out if the recipient is barred from the chosen one.

    Returns:
        `Rejected(no_sender)` if none is left, which another account may have; `Rejected(opted_out)` if the recipient
        answered STOP to the chosen one.
    """
    content = message.content
    assert isinstance(content, Sms)
    if len(senders) == 1 and content.sender is None and _reaches_everybody(senders[0], has_media=bool(content.media)):
        return _respect_stop(senders[0], message)  # the common case, without finding out whose number it is
    country = find_country(message.to)
    able = [s for s in senders if _reaches(s, country, has_media=bool(content.media))]
    if content.sender is not None:
        wanted = _to_normal(content.sender)
        chosen = next((s for s in able if _to_normal(s.id) == wanted), None)
        if chosen is None:
            known = any(_to_normal(s.id) == wanted for s in senders)
            return Rejected(
                Reason.no_sender,
                f"the sender that the message names cannot send this to {country or 'this number'}"
                if known
                else "the account has no such sender as the message names",
            )
    else:
        fitting = [s for s in able if s.weight and (not s.categories or message.category in s.categories)]
        if not fitting:
            return Rejected(Reason.no_sender, f"no sender of the account fits a message to {country or 'this number'}")
        ranks = [_rank(s, country) for s in fitting]
        best = max(ranks)
        equals = [s for s, rank in zip(fitting, ranks, strict=True) if rank == best]
        chosen = equals[0] if len(equals) == 1 else max(equals, key=lambda s: _draw(s, message.to))
    return _respect_stop(chosen, message)


def _respect_stop(chosen: SenderConfig, message: Message) -> SenderConfig | Rejected:
    if message.barred and _to_normal(chosen.id) in {_to_normal(sender) for sender in message.barred}:
        return Rejected(Reason.opted_out, "the recipient answered STOP to the sender of this message")
    return chosen


def _reaches_everybody(sender: SenderConfig, *, has_media: bool) -> bool:
    restricted = sender.countries or sender.categories or not sender.weight
    return (
        not restricted and sender.kind is not SenderKind.alphanumeric and (not has_media or sender.kind in _MEDIA_KINDS)
    )


def _reaches(sender: SenderConfig, country: str | None, *, has_media: bool) -> bool:
    if sender.countries and country not in sender.countries:
        return False
    if has_media and sender.kind not in _MEDIA_KINDS:
        return False
    return sender.kind is not SenderKind.alphanumeric or country not in _NO_NAMES


_find_home: Final = lru_cache(maxsize=4096)(find_country)
"""Of senders, which are few and looked at for every message; recipients are many and looked at once."""


def _rank(sender: SenderConfig, country: str | None) -> tuple[bool, bool]:
    """Whether it is for this category in particular, and whether it is at home where the recipient is."""
    if sender.kind in (SenderKind.long_code, SenderKind.toll_free):
        local = country is not None and _find_home(sender.id) == country
    else:
        local = country in sender.countries
    return bool(sender.categories), local


def _draw(sender: SenderConfig, to: str) -> float:
    """Weighted rendezvous hashing: each sender draws a number for the recipient, and the highest wins."""
    digest = hashlib.blake2b(f"{sender.id}\0{to}".encode(), digest_size=8).digest()
    fraction = (int.from_bytes(digest, "big") + 1) / (2**64 + 1)
    return sender.weight / -math.log(fraction)


def to_e164(number: str) -> str:
    """A number as a vendor writes it (with or without `+` or `00`) as E.164; what is no such number as it is."""
    number = number.strip()
    found = _DIALLED.fullmatch(number)
    return f"+{found[1]}" if found else number


def find_sender(senders: Collection[SenderConfig], id_: str) -> SenderConfig | None:
    """The account's sender of this id, however the vendor writes it."""
    wanted = _to_normal(id_)
    return next((sender for sender in senders if _to_normal(sender.id) == wanted), None)


def _to_normal(id_: str) -> str:
    return to_e164(id_).casefold()


# The words that carriers and vendors take for an answer to the sender rather than to the message.
# CTIA Messaging Principles and Best Practices, 5.1.3; https://help.twilio.com/articles/223134027
_KEYWORDS: Final[dict[str, Keyword]] = {
    **dict.fromkeys(("stop", "stopall", "unsubscribe", "cancel", "end", "quit", "revoke", "optout"), "stop"),
    **dict.fromkeys(("start", "unstop", "yes"), "start"),
    **dict.fromkeys(("help", "info"), "help"),
}
_WORDS_MAX: Final = 2  # "opt out", "stop all"


def parse_keyword(text: str) -> Keyword | None:
    """The keyword that a reply consists of, whatever its case and the punctuation around it; None if it says more."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())
    return _KEYWORDS.get("".join(words)) if 1 <= len(words) <= _WORDS_MAX else None
