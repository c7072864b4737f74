"""The built-in provider of in-app items: the user's inbox in our own database.

There is nothing to call: settle stores the item in the same transaction as the delivery's state, so an item is
`delivered` exactly when it can be read.

This room knows no database: it only says that the item may be stored.
"""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar, Final

from tidings.model.messages import Message, SendResult, Sent
from tidings.model.words import Channel
from tidings.providers.port import Config, ProviderSpec, Surroundings, find_unsupported

_SENT: Final = Sent()


class InboxConfig(Config):
    """The inbox has nothing to configure."""


class InboxProvider:
    """Says `Sent` at once; see the module's docstring for who stores the item."""

    spec: ClassVar[ProviderSpec] = ProviderSpec(
        name="inbox",
        channels=frozenset({Channel.in_app}),
        config=InboxConfig,
        capabilities=frozenset(),
        idempotent=True,
        confirms_delivery=True,
        timeout=timedelta(seconds=5),
        docs="docs/reference/channels.md",
        local=True,
        verified_by="the road's own tests",
    )

    def __init__(self, config: InboxConfig, surroundings: Surroundings) -> None:
        """An inbox account has no state."""

    async def send(self, message: Message, key: str) -> SendResult:
        return find_unsupported(self.spec, message) or _SENT

    async def close(self) -> None:
        """Nothing is open."""
