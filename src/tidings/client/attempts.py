"""When a request that did not succeed is tried again. Pure: time and chance are arguments.

Everything that the client sends may be repeated: GET, PUT and DELETE are idempotent by their meaning (RFC 9110,
section 9.2.2), and every POST carries one idempotency key through all of its attempts.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from tidings.client.errors import TidingsClientError


@dataclass(frozen=True)
class Retries:
    """How patient a client is.

    The n-th wait is a random time up to `first_wait * 2**n`, at most `longest_wait` ("full jitter": callers that
    failed together do not come back together). A `Retry-After` of the server is the least that is waited. All times
    are seconds.
    """

    attempts: int = 6
    """Tries in all; 1 never repeats."""
    first_wait: float = 0.2
    longest_wait: float = 10.0
    deadline: float = 60.0
    """From the first try: no try starts later, and no wait is begun that would end later."""
    timeout: float = 15.0
    """The longest silence of the server within one try."""

    def __post_init__(self) -> None:
        if self.attempts < 1 or min(self.first_wait, self.longest_wait, self.deadline, self.timeout) <= 0:
            raise ValueError("attempts must be 1 or more, and all times must be above 0")


class Patience:
    """The tries of one request."""

    def __init__(self, retries: Retries, now: float) -> None:
        self._retries = retries
        self._deadline = now + retries.deadline
        self.attempts = 0
        """Tries that were begun."""

    def begin(self, now: float) -> float:
        """Counts a try and returns its time-out in seconds."""
        self.attempts += 1
        return max(0.001, min(self._retries.timeout, self._deadline - now))

    def decide_wait(self, failure: TidingsClientError, now: float, rng: random.Random) -> float:
        """Seconds until the next try.

        Raises:
            TidingsClientError: `failure` itself, when no further try is worth it.
        """
        retries = self._retries
        if not failure.retryable or self.attempts >= retries.attempts:
            raise failure
        ceiling = min(retries.longest_wait, retries.first_wait * 2 ** (self.attempts - 1))
        wait = rng.uniform(0, ceiling)
        if failure.retry_after is not None:
            # Later than asked by a little, so that those who were all told "2" do not return in the same moment.
            wait = failure.retry_after + rng.uniform(0, retries.first_wait)
        if now + wait >= self._deadline:
            raise failure
        return wait


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds named by a `Retry-After` header (RFC 9110, section 10.2.3: seconds or an HTTP date); None if unusable."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit() and len(value) < 10:
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    if at.tzinfo is None:  # "-0000": UTC without a claim about the sender's zone (RFC 5322, section 3.3)
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - (now or datetime.now(UTC))).total_seconds())
