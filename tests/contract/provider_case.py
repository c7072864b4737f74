"""What a provider's case file tells the contract suite."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from tests.contract.servers import Vendor
from tidings.clock import SystemClock
from tidings.model.messages import Message, SendResult

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
DELIVERY = UUID("019a0000-0000-7000-8000-000000000001")


class FixedClock(SystemClock):
    """Always the same moment; sleeping is instant and remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    @property
    def random(self) -> random.Random:
        return random.Random(1)

    def now(self) -> datetime:
        return NOW

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@dataclass
class Answer:
    """A documented answer of the vendor, and what it has to become."""

    label: str
    vendor: Callable[[], Vendor]
    expected: SendResult
    """Compared without `detail` and `provider_id`."""


@dataclass
class ProviderCase:
    """One provider under the suite. `vendor` None: it connects to nothing."""

    config: Callable[[int], Mapping[str, Any]]
    """A full raw configuration, for a vendor on this port."""
    message: Callable[[int], Message]
    """The smallest message, for a vendor on this port."""
    more_messages: Callable[[int], Mapping[str, Message]]
    """By label: at least `full` and `non-ascii`."""
    undeclared: Callable[[int], Message]
    """A message that asks for what the provider does not declare."""
    check: Callable[[Any, Message, str], None] = lambda vendor, message, key: None
    """Asserts that the vendor received just this message."""
    secrets: Sequence[str] = ()
    """The secret values in `config`."""
    vendor: Callable[[], Vendor] | None = None
    """A vendor that takes everything."""
    answers: Sequence[Answer] = field(default_factory=list)
    hangs_after_send: Callable[[], Vendor] | None = None
    resets_after_send: Callable[[], Vendor] | None = None
    garbage: Callable[[], Vendor] | None = None
    oversize: Callable[[], Vendor] | None = None
    """Answers without end."""
    excused: Mapping[str, str] = field(default_factory=dict)
    """Tests of the suite that cannot hold for this provider, each with the reason."""
