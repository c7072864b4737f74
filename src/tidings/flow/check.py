"""Check: whether an account's credentials hold, as its vendor says. Nothing is sent, and nothing is written down."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
import structlog

from tidings.db.pool import Database
from tidings.directory.accounts import load_config
from tidings.directory.credentials import Vault
from tidings.errors import Problem, TidingsError
from tidings.providers import registry
from tidings.providers.port import CannotCheck, Surroundings

log = structlog.get_logger(__name__)

TIMEOUT: Final = 15.0
"""Seconds for a vendor to answer, if the operator does not allow less."""


class Check(msgspec.Struct, frozen=True):
    """What a vendor says of an account."""

    ok: bool | None
    """None: this vendor cannot be asked without sending something."""
    detail: str | None = None
    """What is wrong, or why it cannot be said; in a sentence."""


async def check_account(
    database: Database, vault: Vault, surroundings: Surroundings, project_id: int, key: str
) -> Check:
    """Ask the vendor of an account, enabled or not, whether it knows us.

    Raises:
        NotFound: this project has no such account.
    """
    try:
        name, config = await load_config(database, vault, project_id, key)
        provider = registry.create(name, config, surroundings)
    except Problem:
        raise
    except TidingsError as error:  # the credentials do not open, or cannot be used
        return Check(False, str(error))
    ask = getattr(provider, "check", None)
    try:
        if ask is None:
            return Check(None)
        async with asyncio.timeout(min(TIMEOUT, surroundings.time_for(provider.spec))):
            wrong = await ask()
    except TimeoutError:
        wrong = "no answer in time"
    except CannotCheck as error:
        return Check(None, str(error))
    except TidingsError as error:
        wrong = str(error)
    except Exception as error:
        log.error("account.check_broke", provider=name, exc_info=error)
        wrong = f"the adapter failed: {type(error).__name__}"
    finally:
        await provider.close()
    return Check(wrong is None, wrong)
