"""The port between the road and the vendors.

A provider knows its vendor's API and nothing else: no database, queue, retry policy or project. It is made once per
account, is used for many sends at a time, and answers with a value of the closed set `SendResult`; it raises only for
bugs. What a vendor can say is turned into our reasons in the provider's own file.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from tidings.clock import Clock
from tidings.model.messages import Email, Message, Rejected, SendResult, type_of_content
from tidings.model.words import Channel, Reason
from tidings.providers.guard import Guard
from tidings.providers.http import HttpTransport


class Capability(StrEnum):
    """What a message may ask of a provider. Asking for one that is not declared is refused loudly."""

    html = "html"
    text = "text"
    headers = "headers"
    reply_to = "reply_to"


class Config(BaseModel):
    """Base of each vendor's account configuration. Fields of type `SecretStr` are stored encrypted and never shown."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    guards_secrets: ClassVar[frozenset[str]] = frozenset()
    """Fields that say to whom the secrets are sent, and how safely. Whoever changes one gives the secrets anew: else
    anybody who may edit the account could have them sent to a server of their own."""


@dataclass(frozen=True)
class ProviderSpec:
    """What is known of a provider without an account."""

    name: str
    channels: frozenset[Channel]
    config: type[Config]
    capabilities: frozenset[Capability]
    idempotent: bool
    """The vendor (or the receiver's protocol) drops a second send with the same key."""
    confirms_delivery: bool
    """`Sent` means that the receiver has it: the delivery is `delivered`, not only `sent`."""
    timeout: timedelta
    """How long one send may take; the lease must outlast it."""
    docs: str
    """The page that the adapter was written from."""
    per_address: bool = False
    """Each address is a server of its own, so a failure says nothing about the account's other messages."""
    local: bool = False
    """Ours, not a vendor's: needs no credentials (the simulator, the inbox)."""


@dataclass(frozen=True)
class Surroundings:
    """What a provider may use of the world."""

    http: HttpTransport
    """Guarded: a project may choose where it goes."""
    guard: Guard
    """For protocols that open their own sockets."""
    clock: Clock
    timeout: timedelta | None = None
    """The longest that the operator lets one send take; None leaves it to the provider."""

    def time_for(self, spec: ProviderSpec) -> float:
        """Seconds that one send of this provider may take here."""
        return min(spec.timeout, self.timeout or spec.timeout).total_seconds()


@runtime_checkable
class Provider(Protocol):
    """One vendor on one channel, configured as one account."""

    spec: ClassVar[ProviderSpec]

    def __init__(self, config: Config, surroundings: Surroundings) -> None: ...

    async def send(self, message: Message, key: str) -> SendResult:
        """Hand the message over, within `spec.timeout`.

        Args:
            key: the delivery's public id (`dlv_…`): the same for every attempt of one delivery.
        """
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...


def find_unsupported(spec: ProviderSpec, message: Message) -> Rejected | None:
    """A refusal that names what the message asks for and the provider never declared; None if there is nothing."""
    channel = message.channel
    if channel not in spec.channels:
        return Rejected(Reason.unsupported, f"{spec.name} does not do the channel {channel.name}")
    content = message.content
    expected: type = type_of_content[channel]
    if type(content) is not expected:
        return Rejected(Reason.unsupported, f"{type(content).__name__} is not the content of an {channel.name} message")
    if isinstance(content, Email):
        declared = spec.capabilities
        for capability, used in (
            (Capability.html, content.html is not None),
            (Capability.text, content.text is not None),
            (Capability.reply_to, content.reply_to is not None),
            (Capability.headers, bool(content.headers)),
        ):
            if used and capability not in declared:
                return Rejected(Reason.unsupported, f"{spec.name} cannot send {capability.value}")
    return None
