"""What is special about each channel: what an address is, which fields a template has, how large a message may be.

One file per channel; all pure. This room knows formats; it knows no provider, no database and no template language.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tidings.channels import chat, email, in_app, push, sms, webhook
from tidings.channels.rules import ChannelRules, Kind
from tidings.model.words import Channel

__all__ = ["CHANNELS", "ChannelRules", "Kind"]

CHANNELS: Final[Mapping[Channel, ChannelRules]] = {
    rules.channel: rules for rules in (email.RULES, sms.RULES, push.RULES, in_app.RULES, webhook.RULES, chat.RULES)
}
"""The channels of this version; a channel that is not among them is not supported yet."""
