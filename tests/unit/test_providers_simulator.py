from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.channels import CHANNELS
from tidings.clock import SystemClock
from tidings.model.messages import Deferred, Email, Message, Rejected, Sent, Uncertain
from tidings.model.words import Channel
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport
from tidings.providers.port import Surroundings
from tidings.providers.simulator import PHONES, Outcome, SimulatorConfig, SimulatorProvider, simulated_outcome


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_an_address_on_each_channel_that_the_channel_takes(outcome: Outcome) -> None:
    phone = next(number for number, found in PHONES.items() if found is outcome)
    for channel, address in (
        (Channel.email, f"{outcome}@simulator.test"),
        (Channel.email, f"{outcome}+42@simulator.test"),
        (Channel.webhook, f"https://{outcome}.simulator.test/a?b=c"),
        (Channel.webhook, f"https://{outcome}.simulator.test:8443"),
        (Channel.sms, phone),
        (Channel.push, f"simulator:{outcome}"),
        (Channel.push, f"simulator:{outcome}+my-phone"),
        (Channel.chat, f"simulator:{outcome}"),
    ):
        normal = CHANNELS[channel].parse_address(address)
        assert simulated_outcome(channel, normal) is outcome, address


def test_misspelt_simulator_addresses_stay_in_the_house_and_fail() -> None:
    assert simulated_outcome(Channel.email, "bonce@simulator.test") is Outcome.fail
    assert simulated_outcome(Channel.webhook, "https://simulator.test/") is Outcome.fail
    assert simulated_outcome(Channel.webhook, "https://x.deliver.simulator.test/") is Outcome.fail
    assert simulated_outcome(Channel.push, "simulator:bonce") is Outcome.fail


@pytest.mark.parametrize(
    ("channel", "address"),
    [
        (Channel.email, "deliver@example.com"),
        (Channel.email, "deliver@mysimulator.test"),
        (Channel.email, "deliver@simulator.test.example.com"),
        (Channel.webhook, "https://example.com/deliver.simulator.test/"),
        (Channel.webhook, "https://example.com/?https://deliver.simulator.test/"),
        (Channel.webhook, "https://deliver.simulator.test.example.com/"),
        (Channel.webhook, "https://evilsimulator.test/"),
        (Channel.sms, "+99900000006"),
        (Channel.sms, "+4915112345678"),
        (Channel.in_app, "deliver@simulator.test"),
        (Channel.push, "fcm:simulator"),
        (Channel.chat, "slack:simulator:deliver"),
        (Channel.email, "simulator:deliver"),
    ],
)
def test_other_addresses_are_not_the_simulators(channel: Channel, address: str) -> None:
    assert simulated_outcome(channel, address) is None


@given(st.sampled_from(Channel), st.text())
def test_any_text_has_an_answer(channel: Channel, address: str) -> None:
    assert simulated_outcome(channel, address) in (None, *Outcome)


def test_the_longest_latency_is_within_the_time_limit() -> None:
    config = SimulatorConfig(latency_ms=9_000)
    assert timedelta(milliseconds=config.latency_ms) < SimulatorProvider.spec.timeout


class Clock(SystemClock):
    """Sleeping is instant and remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.mark.parametrize(
    ("config", "to", "expected", "slept"),
    [
        ({}, "ada@example.com", Sent, []),
        ({"latency_ms": 50}, "ada@example.com", Sent, [0.05]),
        ({"outcome": "bounce"}, "ada@example.com", Rejected, []),
        ({"outcome": "bounce"}, "deliver@simulator.test", Sent, []),
        ({}, "defer@simulator.test", Deferred, []),
        ({}, "fail@simulator.test", Rejected, []),
        ({"latency_ms": 50}, "hang@simulator.test", Uncertain, [10.0]),
    ],
)
async def test_sending(config: dict[str, Any], to: str, expected: type, slept: list[float]) -> None:
    clock = Clock()
    guard = Guard()
    provider = SimulatorProvider(SimulatorConfig(**config), Surroundings(AiohttpTransport(guard), guard, clock))
    message = Message(UUID(int=7), Channel.email, to, Email("Hi", text="Hi"))
    result = await provider.send(message, "dlv_x")
    assert type(result) is expected
    assert clock.slept == slept
