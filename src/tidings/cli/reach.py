"""How a command reaches what it works with: the settings, the database, the API. It prints nothing."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from tidings.cli.terminal import CliError, Exit

if TYPE_CHECKING:
    from tidings.client import Client, Retries
    from tidings.settings import Settings

Result = TypeVar("Result")


def load_settings() -> Settings:
    """The settings, imported only here and now. Raises SettingsError."""
    from tidings import settings

    return settings.load_settings()


def run_async(work: Coroutine[Any, Any, Result]) -> Result:
    """Runs a command's asynchronous part, on uvloop where there is one."""
    import asyncio

    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def require_dsn(settings: Settings) -> str:
    """The database's address. Raises CliError if none is set."""
    if settings.database_url is None:
        raise CliError(
            Exit.configuration,
            "TIDINGS_DATABASE_URL is not set. (`tidings up` migrates its private database by itself.)",
        )
    return settings.database_url.get_secret_value()


def open_client(url: str | None, retries: Retries | None = None) -> Client:
    """A client of the API at `url`, or where `load_whereabouts` says. Raises CliError without a key."""
    from tidings.client import Client

    url, key = load_whereabouts(url)
    if key is None:
        raise CliError(
            Exit.configuration, "No API key: set TIDINGS_API_KEY, or run this where `tidings up` made its demo project."
        )
    try:
        return Client(url, key, retries=retries)
    except ValueError as error:
        raise CliError(Exit.configuration, str(error)) from None


def load_whereabouts(url: str | None) -> tuple[str | None, str | None]:
    """Where the API is, and the key for it: from the environment, else those of the demo that was started here."""
    if key := os.environ.get("TIDINGS_API_KEY"):
        return url, key
    from tidings.demo.keeping import load_demo_secrets

    secrets = load_demo_secrets(load_settings().data_dir)
    if secrets is None or (url is not None and not _is_same_server(url, secrets.api_url)):
        return url, None  # the demo's key is shown to no other server
    return secrets.api_url, secrets.api_key


def _is_same_server(url: str, other: str) -> bool:
    from urllib.parse import urlsplit

    def place(text: str) -> tuple[str | None, int | None]:
        parts = urlsplit(text)
        return ("127.0.0.1" if parts.hostname == "localhost" else parts.hostname, parts.port)

    try:
        return place(url) == place(other)
    except ValueError:  # no port at all; the client will say so
        return False
