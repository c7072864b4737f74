"""Every setting, in one frozen object that `cli` builds and hands down in slices. No module reads the environment.

Names are environment variables with the prefix `TIDINGS_` (a `.env` file in the working directory is read as well).
A name with the prefix that is not listed here is refused, so that a typing error cannot hide.
"""

from __future__ import annotations

import os
from datetime import timedelta
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tidings.errors import SettingsError

PREFIX: Final = "TIDINGS_"
_OF_TESTS: Final = ("TIDINGS_TEST_", "TIDINGS_SIM_", "TIDINGS_CONTRACTS")
_OF_CLIENTS: Final = ("TIDINGS_API_KEY", "TIDINGS_URL", "TIDINGS_BOUNCES_URL")
NOT_SETTINGS: Final = (*_OF_TESTS, *_OF_CLIENTS)
"""Names that belong to the test suite and to the client."""


class Settings(BaseSettings):
    """The configuration of one process."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", env_file_encoding="utf-8", extra="forbid", frozen=True
    )

    database_url: SecretStr | None = None
    """PostgreSQL (14 or newer), e.g. `postgresql://user:pass@host/db?sslmode=verify-full&sslrootcert=/etc/ca.pem`.
    Unset: `tidings up` runs a private PostgreSQL in `data_dir`."""
    data_dir: Path = Path(".tidings")
    """Where `tidings up` keeps its private PostgreSQL, its secret key and its demo key."""
    secret_key: SecretStr | None = None
    """32 bytes or more, base64; seals provider credentials. `tidings up` makes one in `data_dir` when unset.
    For rotation give several, comma-separated: the first seals, all open."""
    public_url: str | None = None
    """How the outside reaches the API, e.g. `https://tidings.example.com`; used in links and callback addresses."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Where the API listens; 0 takes a free port."""
    worker_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Where a stand-alone worker answers /healthz, /readyz and /metrics; unset: nowhere."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"
    """`auto`: console on a terminal, JSON lines elsewhere."""

    api_pool: Annotated[int, Field(ge=2, le=200)] = 8
    worker_pool: Annotated[int, Field(ge=3, le=200)] = 8
    """Database connections of an API process and of a worker process."""
    api_rate: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Requests per minute of each API key that has no rate of its own. Unset: no limit."""
    accept_window_ms: Annotated[float, Field(ge=0, le=100)] = 0.0
    """How long the first request of a group commit waits for company, milliseconds. 0: it leaves at once, and the next
    ones gather while it is written."""

    slots: Annotated[int, Field(ge=16, le=10_000)] = 256
    """Sends in flight per channel and worker process."""
    lease: timedelta = timedelta(seconds=60)
    """How long a claimed job is nobody else's. Must exceed twice every provider's time-out."""
    provider_timeout: timedelta = timedelta(seconds=20)
    """The longest that one send may take."""
    grace: timedelta = timedelta(seconds=25)
    """How long a stopping process may finish what is in flight."""
    planned_ahead: Annotated[int, Field(ge=16, le=100_000)] = 2_000
    """Planned but unsent deliveries per project, channel and priority, beyond which planning waits."""

    private_targets: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()
    """Networks, comma-separated, that webhooks, SMTP hosts and vendor URLs may reach although they are not public."""
    retention: timedelta = timedelta(days=90)
    """Notifications older than this are dropped, a day at a time. `send_at` is at most a day less than this ahead."""

    catcher_smtp_port: Annotated[int, Field(ge=0, le=65535)] = 2525
    catcher_port: Annotated[int, Field(ge=0, le=65535)] = 8025
    """Where the local mail catcher of `tidings up` takes mails, and where it shows them."""

    @field_validator("private_targets", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("lease", "provider_timeout", "grace", "retention", mode="before")
    @classmethod
    def _duration(cls, value: object) -> object:
        from tidings.durations import parse_duration

        return parse_duration(value) if isinstance(value, str) and value[-1:].isalpha() else value

    @model_validator(mode="after")
    def _leave_time_to_send(self) -> Self:
        # Just before the bytes leave, a lease must hold the time-out and some seconds for settling; with less, nothing
        # would ever be sent.
        if self.lease < max(2 * self.provider_timeout, self.provider_timeout + timedelta(seconds=3)):
            raise ValueError("TIDINGS_LEASE must be at least twice TIDINGS_PROVIDER_TIMEOUT, and 3 s more than it")
        return self

    @cached_property
    def secret_keys(self) -> tuple[str, ...]:
        """The sealing keys, newest first."""
        if self.secret_key is None:
            return ()
        return tuple(part.strip() for part in self.secret_key.get_secret_value().split(",") if part.strip())


def load_settings(**overrides: object) -> Settings:
    """Read the environment and `.env`; `overrides` win.

    Raises:
        SettingsError: a value is wrong, or a `TIDINGS_` name is not a setting.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    given = (k for k in os.environ if k.startswith(PREFIX) and not k.startswith(NOT_SETTINGS))
    unknown = sorted(k for k in given if k not in known)
    if unknown:
        raise SettingsError(f"unknown settings in the environment: {', '.join(unknown)} (known: see .env.example)")
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # checked by pydantic, field by field
    except ValidationError as error:
        told = "; ".join(
            f"{PREFIX}{'.'.join(str(part) for part in e['loc']).upper().removeprefix(PREFIX)}: {e['msg']}"
            if e["loc"]
            else e["msg"].removeprefix("Value error, ")
            for e in error.errors(include_input=False, include_url=False)
        )
        raise SettingsError(told) from None
