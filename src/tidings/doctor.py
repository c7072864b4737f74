"""`tidings doctor`: looks at everything that has to be right, and says what to do where it is not.

It looks from outside, as an operator would: at the settings, at the database, at the API by the client, and at the
vendors and servers behind the provider accounts. It changes nothing and sends nothing.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from tidings.client import (
    Account,
    AsyncClient,
    Forbidden,
    Retries,
    TidingsAPIError,
    TidingsClientError,
    Unauthenticated,
)
from tidings.errors import DatabaseError, SettingsError
from tidings.settings import Settings, load_settings

State = Literal["ok", "warn", "fail"]

_SKEW: Final = timedelta(seconds=1)
_PARTITIONS: Final = 2
"""Days that must be prepared ahead; see /readyz."""
_PATIENCE: Final = 5.0
"""Seconds for each thing that is connected to."""
_VENDOR_PATIENCE: Final = 20.0
"""Seconds for the API to answer, which may ask a vendor first."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    subject: str
    state: State
    detail: str
    advice: str = ""

    def to_dict(self) -> dict[str, str]:
        """For scripts."""
        return {"subject": self.subject, "state": self.state, "detail": self.detail, "advice": self.advice}


async def examine(*, url: str | None, api_key: str | None) -> list[Finding]:
    """The whole report, in the order in which to mend things."""
    try:
        settings = load_settings()
    except SettingsError as error:
        return [Finding("settings", "fail", str(error), "Mend it in the environment or in .env; see .env.example.")]
    findings = [Finding("settings", "ok", "readable"), *_examine_settings(settings)]
    findings += [finding async for finding in _examine_database(settings)]
    findings += [finding async for finding in _examine_api(url, api_key)]
    return findings


def _examine_settings(settings: Settings) -> list[Finding]:
    findings = []
    if settings.database_url is not None and not settings.secret_keys:
        findings.append(
            Finding(
                "secret key",
                "fail",
                "TIDINGS_SECRET_KEY is not set",
                "Set it to 32 random bytes in base64, the same for all processes: openssl rand -base64 32",
            )
        )
    if settings.public_url is None:
        findings.append(
            Finding(
                "public URL",
                "warn",
                "TIDINGS_PUBLIC_URL is not set",
                "Set it to how the outside reaches the API; links and callback addresses need it.",
            )
        )
    return findings


async def _examine_database(settings: Settings) -> AsyncIterator[Finding]:
    if settings.database_url is None:
        yield Finding("database", "ok", "the private one of `tidings up`; the API says below whether it is well")
        return
    from tidings.db import migrate
    from tidings.db.partitions import partitions_ahead
    from tidings.db.pool import Database

    dsn = settings.database_url.get_secret_value()
    try:
        database = await Database.connect(
            dsn, min_size=1, max_size=1, application_name="tidings-doctor", connect_timeout=timedelta(seconds=_PATIENCE)
        )
    except DatabaseError as error:
        yield Finding("database", "fail", str(error), "Check TIDINGS_DATABASE_URL, and that the server runs.")
        return
    async with database:
        yield Finding("database", "ok", f"PostgreSQL {database.server_version}")
        before = datetime.now(UTC)
        told: datetime = await database.fetchval("SELECT clock_timestamp()")
        after = datetime.now(UTC)
        skew = max(told - after, before - told, timedelta())
        if skew > _SKEW:
            yield Finding(
                "clocks",
                "warn",
                f"this machine and the database are {skew.total_seconds():.1f} s apart",
                "Run a time daemon (NTP) on both: schedules follow the database's clock, signatures this machine's.",
            )
        else:
            yield Finding("clocks", "ok", "this machine and the database agree")
        waiting = await migrate.pending(dsn)
        if waiting:
            yield Finding("schema", "fail", f"not applied: {', '.join(waiting)}", "Run `tidings migrate`.")
            return
        yield Finding("schema", "ok", "up to date")
        async with database.acquire() as connection:
            days = await partitions_ahead(connection, told)
        if days < _PARTITIONS:
            yield Finding(
                "partitions",
                "fail",
                f"prepared for {days} days ahead",
                "They are made by the running workers: start one, or look into its log.",
            )
        else:
            yield Finding("partitions", "ok", f"prepared for {days} days ahead")


async def _examine_api(url: str | None, api_key: str | None) -> AsyncIterator[Finding]:
    retries = Retries(attempts=1, timeout=_VENDOR_PATIENCE, deadline=_VENDOR_PATIENCE)
    try:
        client = AsyncClient(url, api_key, retries=retries)
    except ValueError as error:
        yield Finding("API", "fail", str(error), "Correct TIDINGS_URL or TIDINGS_API_KEY.")
        return
    async with client:
        try:
            await client.health()
        except TidingsClientError as error:
            yield Finding("API", "fail", str(error), "Start it with `tidings up` or `tidings api`, or set TIDINGS_URL.")
            return
        yield Finding("API", "ok", "answers")
        yield await _examine_readiness(client)
        if api_key is None:
            yield Finding("API key", "warn", "none is set, so accounts were not looked at", "Set TIDINGS_API_KEY.")
            return
        try:
            project = await client.project()
            yield Finding("API key", "ok", f"of the project {project.key}")
            accounts = [account async for account in client.accounts.list()]
        except Unauthenticated as error:
            yield Finding("API key", "fail", error.detail, "Take another key: TIDINGS_API_KEY is not a valid one.")
            return
        except Forbidden as error:
            yield Finding("API key", "warn", error.detail, "Accounts are looked at with a key that has the scope read.")
            return
        except TidingsAPIError as error:
            yield Finding("API key", "fail", str(error), "Look into the log of the API.")
            return
        if not any(account.enabled and not account.test for account in accounts):
            yield Finding(
                "accounts", "warn", "there is none that really sends", "Make one: PUT /api/v1/accounts/{key}."
            )
        for account in accounts:
            finding = await _ask_vendor(client, account) or await _examine_account(account)
            if finding is not None:
                yield finding


async def _examine_readiness(client: AsyncClient) -> Finding:
    try:
        answer = await client.readiness()
    except TidingsClientError as error:
        return Finding("readiness", "fail", str(error), "Look into the log of the API.")
    wrong = [f"{name}: {detail}" for name, detail in answer.checks.items() if detail not in (None, "ok", True)]
    if wrong:
        return Finding("readiness", "fail", "; ".join(wrong), "Mend these; until then the API takes no traffic.")
    return Finding("readiness", "ok", "the API can do its work")


async def _ask_vendor(client: AsyncClient, account: Account) -> Finding | None:
    """What the vendor says of an account's credentials, which only the API can open; None where it cannot be asked."""
    if not account.enabled or account.test:
        return None
    subject = f"account {account.key}"
    try:
        check = await client.accounts.check(account.key)
    except Forbidden:  # this key may read, not manage
        return None
    except TidingsClientError as error:
        return Finding(subject, "fail", str(error), "Look into the log of the API.")
    if check.outcome == "failed":
        advice = "Check the account's configuration, and with the vendor: PUT /api/v1/accounts/{key} changes it."
        return Finding(subject, "fail", check.detail or "the vendor does not accept it", advice)
    return Finding(subject, "ok", "the vendor accepts the credentials") if check.outcome == "ok" else None


async def _examine_account(account: Account) -> Finding | None:
    """Whether the server behind an account can be spoken to from here; None where there is nothing to connect to."""
    subject = f"account {account.key}"
    if not account.enabled:
        return Finding(subject, "warn", "is switched off", "")
    if account.provider != "smtp":
        return None
    host, port = str(account.config.get("host")), int(account.config.get("port", 587))
    security = str(account.config.get("security", "starttls"))
    try:
        said = await _greet_smtp(host, port, security, account.config)
    except (OSError, TimeoutError, EOFError, ValueError) as error:
        return Finding(
            subject,
            "fail",
            f"{host}:{port} {str(error) or 'does not answer'}",
            "Check host, port and security, the firewall, and that the server runs.",
        )
    return Finding(subject, "ok", f"{host}:{port} {said}")


async def _greet_smtp(host: str, port: int, security: str, config: dict[str, Any]) -> str:
    """Connects and says EHLO, as a sending client would; without credentials, which the API never shows.

    Raises:
        OSError, TimeoutError, EOFError: no connection, TLS refused, silence, or hung up.
        ValueError: the server says no, or does not speak SMTP.
    """
    context: ssl.SSLContext | None = None
    if security == "tls":
        context = ssl.create_default_context(cadata=config.get("ca_pem"))
        if not config.get("verify_certificates", True):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
    async with asyncio.timeout(_PATIENCE):
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        try:
            await _read_answer(reader, "220")
            writer.write(b"EHLO tidings-doctor.invalid\r\n")
            offers = await _read_answer(reader, "250")
            writer.write(b"QUIT\r\n")
            await writer.drain()
        finally:
            writer.close()
    if security == "starttls" and "STARTTLS" not in offers:
        raise ValueError("does not offer STARTTLS, which the account requires")
    return "takes mail" + (", with TLS" if security != "none" else "")


async def _read_answer(reader: asyncio.StreamReader, code: str) -> set[str]:
    """The first words of an answer's lines, in capitals."""
    words = set()
    while True:
        line = (await reader.readline()).decode("ascii", "replace").strip()
        if not line and reader.at_eof():
            raise EOFError("hangs up")
        if not line.startswith(code):
            raise ValueError(f"answers {line[:100]!r} where {code} was expected")
        words.add(line[4:].split(" ")[0].upper())
        if line[3:4] != "-":
            return words
