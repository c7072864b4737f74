"""A provider for every channel that reaches nobody: what becomes of a message is written in its address.

    e-mail   deliver@simulator.test   bounce@…   defer@…   fail@…   hang@…     (`deliver+anything@…` too)
    webhook  https://deliver.simulator.test/any/path    (and so on)
    phone    +99900000001 deliver   …02 bounce   …03 defer   …04 fail   …05 hang    (no country has the code 999)
    push     simulator:deliver   simulator:bounce   …   (`simulator:deliver+anything` too)
    chat     the same

Other addresses, which a test key's messages keep, get the account's `outcome`. Nothing is stored and nothing is sent:
it takes any load. Test keys are always routed here; live keys for the addresses above only.

This room knows the addresses and their outcomes; it knows no key and no account.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import ClassVar, Final

from pydantic import Field

from tidings.model.messages import Deferred, Message, Rejected, SendResult, Sent, Uncertain, split_scheme
from tidings.model.words import CHANNELS_OF_THIS_VERSION, Channel, Reason
from tidings.providers.port import Capability, Config, ProviderSpec, Surroundings, find_unsupported

DOMAIN: Final = "simulator.test"
SCHEME: Final = "simulator"
"""Of push and chat addresses."""


class Outcome(StrEnum):
    """What becomes of a simulated message."""

    deliver = "deliver"  # Sent, and received
    bounce = "bounce"  # Rejected(bounced): the address is suppressed
    defer = "defer"  # Deferred(greylisted), every time: it is retried until its attempts are used up
    fail = "fail"  # Rejected(rejected)
    hang = "hang"  # no answer until the time is up, then Uncertain


PHONES: Final = {f"+9990000000{n}": outcome for n, outcome in enumerate(Outcome, 1)}

_EMAIL_END: Final = "@" + DOMAIN
_OUTCOMES: Final = {outcome.value: outcome for outcome in Outcome}
_RESULTS: Final[dict[Outcome, SendResult]] = {
    Outcome.deliver: Sent(),
    Outcome.bounce: Rejected(Reason.bounced, "simulated: no such mailbox"),
    Outcome.defer: Deferred(Reason.greylisted, detail="simulated: try again later"),
    Outcome.fail: Rejected(Reason.rejected, "simulated: refused, or not one of the simulator's addresses"),
    Outcome.hang: Uncertain("simulated: no answer in time"),
}


def simulated_outcome(channel: Channel, address: str) -> Outcome | None:
    """What the simulator does with this address; None if the address is not one of its own.

    An address of the simulator's domain that names no outcome fails, so that a misspelt one is noticed and does not
    leave the house. In-app users have no such addresses.
    """
    if channel is Channel.email:
        if not address.endswith(_EMAIL_END):
            return None
        return _OUTCOMES.get(address[: -len(_EMAIL_END)].partition("+")[0].lower(), Outcome.fail)
    if channel is Channel.sms:
        return PHONES.get(address)
    if channel is Channel.webhook:
        if DOMAIN not in address:
            return None
        host = address.partition("://")[2].partition("/")[0].partition("?")[0].partition(":")[0].lower()
        if host != DOMAIN and not host.endswith("." + DOMAIN):
            return None
        return _OUTCOMES.get(host.partition(".")[0], Outcome.fail)
    if channel is Channel.push or channel is Channel.chat:
        scheme, target = split_scheme(address)
        return _OUTCOMES.get(target.partition("+")[0], Outcome.fail) if scheme == SCHEME else None
    return None


class SimulatorConfig(Config):
    """An account of the simulator."""

    outcome: Outcome = Outcome.deliver
    """What becomes of messages to addresses that are not the simulator's own."""
    latency_ms: int = Field(default=0, ge=0, le=9_000)
    """Milliseconds before the answer; 0 answers without waiting at all."""


class SimulatorProvider:
    """Answers as the address says."""

    spec: ClassVar[ProviderSpec] = ProviderSpec(
        name="simulator",
        channels=frozenset(CHANNELS_OF_THIS_VERSION),
        config=SimulatorConfig,
        capabilities=frozenset(Capability),
        idempotent=True,
        confirms_delivery=True,
        timeout=timedelta(seconds=10),
        docs="docs/reference/simulator.md",
        local=True,
        verified_by="the road's own tests",
    )

    def __init__(self, config: SimulatorConfig, surroundings: Surroundings) -> None:
        self._outcome = config.outcome
        self._latency = config.latency_ms / 1000
        self._clock = surroundings.clock

    async def send(self, message: Message, key: str) -> SendResult:
        if (refused := find_unsupported(self.spec, message)) is not None:
            return refused
        outcome = simulated_outcome(message.channel, message.to) or self._outcome
        if outcome is Outcome.hang:
            await self._clock.sleep(self.spec.timeout.total_seconds())
        elif self._latency:
            await self._clock.sleep(self._latency)
        return _RESULTS[outcome]

    async def close(self) -> None:
        """Nothing is open."""
