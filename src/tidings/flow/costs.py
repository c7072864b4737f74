"""What a message costs with an account, by the table of costs that the account was given. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tidings.model.messages import Email, Message, Sms
from tidings.model.segments import count_segments, find_country

ANYWHERE: Final = "*"
"""The entry for every country that has none of its own."""


def cost_of(message: Message, costs: Mapping[str, int]) -> int:
    """Micro-units of the account's currency; 0 where the table says nothing.

    A text message costs the price of its country for each of its parts (with media it is one part: an MMS is not cut),
    an e-mail its price for each recipient, copies too, and any other message its price once.
    """
    if not costs:
        return 0
    match message.content:
        case Sms(text=text, media=media):
            country = find_country(message.to) if len(costs) > 1 or ANYWHERE not in costs else None
            price = costs.get(country or ANYWHERE, costs.get(ANYWHERE, 0))
            return price * (1 if media else count_segments(text).parts)
        case Email(cc=cc, bcc=bcc):
            return costs.get(ANYWHERE, 0) * (1 + len(cc) + len(bcc))
        case _:
            return costs.get(ANYWHERE, 0)
