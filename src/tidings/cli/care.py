"""The commands that look after an installation: its schema, projects, credentials, accounts, bounces, speed.

They know which room does the work, and which setting it needs; the work itself they do not know.
"""

# ruff: noqa: T201 - printing is what this file is for

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from tidings.cli.reach import load_settings, load_whereabouts, require_dsn, run_async
from tidings.cli.terminal import CliError, Exit, Json, Url, print_json, spinner


def migrate(*, check: bool = False, json: Json = False) -> int:
    """Bring the database's schema up to date. Any number may run at once.

    Parameters
    ----------
    check
        Change nothing; exit with 1 if something is to be done.
    json
        Print JSON.
    """
    from tidings.db import migrate as migrations

    dsn = require_dsn(load_settings())

    async def work() -> tuple[list[str], list[str]]:
        if check:
            return [], await migrations.pending(dsn)
        return await migrations.migrate(dsn), []

    with spinner("Migrating" if not check else "Looking", quiet=json):
        applied, waiting = run_async(work())
    if json:
        print_json({"applied": applied, "pending": waiting})
    elif check:
        print(f"To be applied: {', '.join(waiting)}" if waiting else "The schema is up to date.")
    else:
        print(f"Applied: {', '.join(applied)}" if applied else "The schema is up to date.")
    return Exit.failed if waiting else Exit.ok


def project(key: str, *, name: str | None = None, rate: int | None = None, json: Json = False) -> int:
    """Make a project if there is none with this key, and print a new API key for it, with every scope.

    Parameters
    ----------
    key
        1 to 40 of a-z, 0-9 and -. It stands in the project's API keys and never changes.
    name
        A name for people to read.
    rate
        Requests per minute that the key may make; none given: as TIDINGS_API_RATE says.
    json
        Print JSON.
    """
    from tidings.clock import SystemClock
    from tidings.db.pool import Connection, Database
    from tidings.directory.access import create_key
    from tidings.directory.audit import Actor
    from tidings.directory.projects import create_project, load_project_by_key
    from tidings.model.words import Scope

    async def make(conn: Connection) -> str:
        found = await load_project_by_key(conn, key) or await create_project(conn, key, name or key)
        _, text = await create_key(
            conn, Actor(found.id, "cli"), SystemClock(), name="from the command line", scopes=list(Scope), rate=rate
        )
        return text

    async def work() -> str:
        async with await Database.connect(require_dsn(load_settings()), application_name="tidings-project") as database:
            return await database.transaction(make)

    text = run_async(work())
    if json:
        print_json({"project": key, "api_key": text})
    else:
        print(text)
        print("Keep it: it is not shown again.", file=sys.stderr)
    return Exit.ok


def reseal(*, json: Json = False) -> int:
    """Seal all stored credentials with the first of TIDINGS_SECRET_KEY's keys, so that the others can go.

    Parameters
    ----------
    json
        Print JSON.
    """
    settings = load_settings()
    dsn = require_dsn(settings)
    from tidings.db.pool import Database
    from tidings.directory.accounts import reseal_accounts
    from tidings.directory.credentials import Vault
    from tidings.directory.hooks import reseal_hooks

    async def work() -> int:
        async with await Database.connect(dsn, application_name="tidings-reseal") as database:
            vault = Vault(settings.secret_keys)
            return await reseal_accounts(database, vault) + await reseal_hooks(database, vault)

    with spinner("Sealing", quiet=json):
        done = run_async(work())
    if json:
        print_json({"resealed": done})
    else:
        print(f"{done} sealed anew.")
    return Exit.ok


def providers(*, services: bool = False, json: Json = False) -> int:
    """List the providers that accounts can be made of.

    Parameters
    ----------
    services
        List the services that the provider `apprise` reaches, with what their URLs begin with.
    json
        Print JSON.
    """
    if services:
        from tidings.providers.apprise import list_reachable

        found = list_reachable()
        rows: list[dict[str, Any]] = [{"service": name, "schemes": list(schemes)} for name, schemes in found.items()]
        lines = [f"{name:<32}{'  '.join(f'{scheme}://' for scheme in schemes)}" for name, schemes in found.items()]
    else:
        from tidings.providers.registry import PROVIDERS

        specs = [PROVIDERS[name].spec for name in PROVIDERS]
        rows = [
            {
                "provider": spec.name,
                "channels": [channel.name for channel in sorted(spec.channels)],
                "capabilities": sorted(spec.capabilities),
                "receipts": spec.receipts,
                "docs": spec.docs,
            }
            for spec in specs
        ]
        lines = [f"{spec.name:<16}{', '.join(c.name for c in sorted(spec.channels)):<32}{spec.docs}" for spec in specs]
    if json:
        print_json(rows)
    else:
        print("\n".join(lines))
    return Exit.ok


def doctor(*, url: Url = None, json: Json = False) -> int:
    """Look at settings, database, API, key and provider accounts, and say what to do.

    Parameters
    ----------
    url
        Where the API is.
    json
        Print JSON.
    """
    from tidings import doctor as room
    from tidings.errors import SettingsError

    with contextlib.suppress(SettingsError):  # the report says it
        url, api_key = load_whereabouts(url)
    with spinner("Looking", quiet=json):
        findings = run_async(room.examine(url=url, api_key=api_key))
    if json:
        print_json({"findings": [finding.to_dict() for finding in findings]})
    else:
        for finding in findings:
            print(f"{finding.state:<5} {finding.subject}: {finding.detail}")
            if finding.advice:
                print(f"      → {finding.advice}")
    return Exit.failed if any(finding.state == "fail" for finding in findings) else Exit.ok


def bounces(
    *sources: str,
    listen: str | None = None,
    url: Annotated[str | None, Parameter(name="--url", env_var="TIDINGS_BOUNCES_URL", show_env_var=True)] = None,
    json: Json = False,
) -> int:
    """Hand mails that came back to the API: from files, from standard input, or as they arrive by SMTP.

    In an alias of a mail server, let it try again when the API is away:
    |"/opt/tidings/.venv/bin/tidings bounces || exit 75"

    Parameters
    ----------
    sources
        Files in mbox format or of one mail each, Maildir folders (their new mails, which become seen). Without any: one
        mail on standard input.
    listen
        Take mails by SMTP at this host:port, for the return paths of the account only, until Ctrl-C.
    url
        The callback URL of the SMTP account. It is a secret: better in the environment than on a command line.
    json
        Print JSON, one line a mail.
    """
    if url is None:
        raise CliError(Exit.configuration, "Set TIDINGS_BOUNCES_URL to the callback URL of the SMTP account.")
    if sources and listen is not None:
        raise CliError(Exit.usage, "Say where the mails are, or --listen; not both.")
    if not sources and listen is None and sys.stdin.isatty():
        raise CliError(Exit.usage, "Say where the mails are, give one on standard input, or --listen.")
    from tidings import bounces as room

    def report(handed: room.Handed) -> None:
        if json:
            print_json(handed.to_dict())
        else:
            print(f"{handed.mail}: {handed.detail}", flush=True)

    async def bring(url: str) -> set[str]:
        states: set[str] = set()
        async with room.Courier(url) as courier:
            for source in sources or (None,):
                try:
                    for mail in room.list_mails(source):
                        handed = await courier.hand_over(mail.name, mail.content)
                        report(handed)
                        states.add(handed.state)
                        if handed.state in ("reported", "nothing"):
                            mail.done()
                except BrokenPipeError:
                    raise
                except OSError as error:
                    raise CliError(Exit.usage, f"{source} cannot be read: {error.strerror or error}") from None
        return states

    try:
        room.check_url(url)
    except ValueError as error:
        raise CliError(Exit.configuration, str(error)) from None
    if listen is not None:
        host, port = _parse_place(listen)
        run_async(room.listen(url, host, port, report, lambda port: _say_listening(host, port, as_json=json)))
        return Exit.ok
    states = run_async(bring(url))
    if "refused" in states:
        return Exit.refused
    return Exit.unreachable if "unreachable" in states else Exit.ok


def _parse_place(text: str) -> tuple[str, int]:
    """`host:port`; an IPv6 host in brackets."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise CliError(Exit.usage, f"{text!r} is not host:port, such as 127.0.0.1:2526")
    return host.strip("[]"), int(port)


def _say_listening(host: str, port: int, *, as_json: bool) -> None:
    if as_json:
        print_json({"listening": f"{host}:{port}"})
    else:
        print(f"Listening at {host}:{port}", flush=True)


def bench(*names: str, quick: bool = False, json: Json = False) -> int:
    """Measure this checkout's speed: all benchmarks, or those named. A whole run writes bench/results.

    Parameters
    ----------
    names
        Benchmarks to run; without: all.
    quick
        A short run that only shows that everything works.
    json
        Print JSON.
    """
    checkout = Path(__file__).resolve().parents[3]
    if not (checkout / "bench" / "main.py").is_file():
        raise CliError(Exit.failed, "The benchmarks are not part of the installed package; run this in a checkout.")
    from importlib import import_module

    sys.path.insert(0, str(checkout))
    code: int = import_module("bench.main").main(list(names), quick=quick, as_json=json)
    return code
