"""The command `tidings`. It parses, prints and chooses exit codes; the work is done in the rooms below.

Everything but the parser is imported by the command that needs it, so that `tidings --help` is quick. Results go to
standard output, everything else to standard error; with `--json`, each command prints JSON and nothing else.
"""

# ruff: noqa: T201 - printing is what this file is for

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn, TypeVar

from cyclopts import App, Group, Parameter

from tidings.demo.welcome import UpInfo, render_welcome

if TYPE_CHECKING:
    from rich.progress import Progress

    from tidings.client import Broadcast, Client, Retries
    from tidings.settings import Settings

Result = TypeVar("Result")

ChannelOption = Literal["email", "sms", "push", "in_app", "webhook", "chat"]
PriorityOption = Literal["critical", "high", "medium", "low"]

REPLAY_AT_A_TIME: Final = 200
"""Dead letters in one request of `tidings replay --all`; the largest page of a list."""


class Exit(IntEnum):
    """What the exit code of every command means; the same table is in docs/reference/cli.md."""

    ok = 0
    failed = 1  # something went wrong on the way, or a check of `doctor` failed
    usage = 2  # the command line is wrong
    configuration = 3  # a setting is wrong or missing
    unreachable = 4  # the server or the database cannot be reached
    refused = 5  # the API said no
    interrupted = 130  # Ctrl-C


class CliError(Exception):
    """A command cannot go on."""

    def __init__(self, code: Exit, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.details = details or {}


def _version() -> str:
    from importlib.metadata import version

    return f"tidings {version('tidings')}"


app: Final = App(
    name="tidings",
    help="Tell people what they need to know, once, in time.",
    version=_version,
    help_format="plaintext",
    default_parameter=Parameter(negative=()),
    result_action="return_value",
)

_RUN: Final = Group.create_ordered("Run it")
_USE: Final = Group.create_ordered("Use it")
_CARE: Final = Group.create_ordered("Look after it")

Json = Annotated[bool, Parameter(name="--json")]
Url = Annotated[str | None, Parameter(name="--url", env_var="TIDINGS_URL", show_env_var=True)]


def main(argv: list[str] | None = None) -> NoReturn:
    """The entry point: runs one command and exits with its code."""
    arguments = sys.argv[1:] if argv is None else argv
    as_json = "--json" in arguments
    try:
        code = app(arguments)
    except CliError as error:
        _print_error(str(error), as_json, error.details)
        code = error.code
    except KeyboardInterrupt:
        code = Exit.interrupted
    except BrokenPipeError:
        # The reader of our output has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = Exit.ok
    except Exception as error:
        known = _explain(error)
        if known is None:
            raise
        _print_error(str(known), as_json, known.details)
        code = known.code
    sys.exit(int(code or 0))


def _explain(error: Exception) -> CliError | None:
    """The errors that have an exit code of their own; None: a bug, and its traceback is what helps."""
    # Whoever raised one of these has imported its module: nothing is imported just to find out.
    if (errors := sys.modules.get("tidings.errors")) is not None:
        if isinstance(error, errors.SettingsError):
            return CliError(Exit.configuration, str(error))
        if isinstance(error, errors.DatabaseUnsupported):
            return CliError(Exit.configuration, str(error))
        if isinstance(error, errors.DatabaseError):
            return CliError(Exit.unreachable, str(error))
        if isinstance(error, errors.Problem):
            return CliError(Exit.failed, " ".join([error.detail, *(f"{e.pointer}: {e.detail}" for e in error.errors)]))
        if isinstance(error, errors.TidingsError):
            return CliError(Exit.failed, str(error))
    if (client := sys.modules.get("tidings.client")) is not None:
        if isinstance(error, client.BatchInterrupted):
            inner = _explain(error.__cause__) if isinstance(error.__cause__, Exception) else None
            return CliError(inner.code if inner else Exit.failed, str(error), {"answered": len(error.results)})
        if isinstance(error, client.TidingsAPIError):
            code = Exit.unreachable if isinstance(error, client.Unavailable) else Exit.refused
            return CliError(code, str(error), {"status": error.status, "type": error.type, "title": error.title})
        if isinstance(error, client.TidingsClientError):
            return CliError(Exit.unreachable, str(error))
    return None


# ---------------------------------------------------------------- running it


@app.command(group=_RUN)
def up(*, demo: Annotated[bool, Parameter(negative="--no-demo")] = True, json: Json = False) -> None:
    """Run everything in one process: a private database if none is set, API, worker, and the demo.

    Parameters
    ----------
    demo
        The demo project and the mail catcher; --no-demo leaves them out.
    json
        Print one line of JSON when everything runs, instead of the welcome.
    """
    settings = _start()
    from tidings import app as composition

    def ready(info: UpInfo) -> None:
        print_up(info, as_json=json)

    _run(composition.run_up(settings, demo=demo, ready=ready))


@app.command(group=_RUN)
def api() -> None:
    """Run the HTTP API."""
    settings = _start()
    from tidings import app as composition

    _run(composition.run_api(settings))


@app.command(group=_RUN)
def worker(*, channels: str | None = None, plan: Annotated[bool, Parameter(negative="--no-plan")] = True) -> None:
    """Run a worker.

    Parameters
    ----------
    channels
        Send only on these, comma-separated: email,sms. Without: on all.
    plan
        Also plan what is due; --no-plan leaves that to other workers.
    """
    chosen = None if channels is None else _parse_channels(channels)
    settings = _start()
    from tidings import app as composition

    _run(composition.run_worker(settings, channels=chosen, plan=plan))


@app.command(group=_CARE)
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

    dsn = _dsn(_settings())

    async def work() -> tuple[list[str], list[str]]:
        if check:
            return [], await migrations.pending(dsn)
        return await migrations.migrate(dsn), []

    with _spinner("Migrating" if not check else "Looking", quiet=json):
        applied, waiting = _run(work())
    if json:
        _print_json({"applied": applied, "pending": waiting})
    elif check:
        print(f"To be applied: {', '.join(waiting)}" if waiting else "The schema is up to date.")
    else:
        print(f"Applied: {', '.join(applied)}" if applied else "The schema is up to date.")
    return Exit.failed if waiting else Exit.ok


@app.command(group=_CARE)
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
        async with await Database.connect(_dsn(_settings()), application_name="tidings-project") as database:
            return await database.transaction(make)

    text = _run(work())
    if json:
        _print_json({"project": key, "api_key": text})
    else:
        print(text)
        print("Keep it: it is not shown again.", file=sys.stderr)
    return Exit.ok


@app.command(group=_CARE)
def reseal(*, json: Json = False) -> int:
    """Seal all stored credentials with the first of TIDINGS_SECRET_KEY's keys, so that the others can go.

    Parameters
    ----------
    json
        Print JSON.
    """
    settings = _settings()
    dsn = _dsn(settings)
    from tidings.db.pool import Database
    from tidings.directory.accounts import reseal_accounts
    from tidings.directory.credentials import Vault
    from tidings.directory.hooks import reseal_hooks

    async def work() -> int:
        async with await Database.connect(dsn, application_name="tidings-reseal") as database:
            vault = Vault(settings.secret_keys)
            return await reseal_accounts(database, vault) + await reseal_hooks(database, vault)

    with _spinner("Sealing", quiet=json):
        done = _run(work())
    if json:
        _print_json({"resealed": done})
    else:
        print(f"{done} sealed anew.")
    return Exit.ok


# ---------------------------------------------------------------- using it


@dataclass(frozen=True)
class _Addressee:
    """Whom to tell; one of them."""

    user: str | None = None
    email: str | None = None
    phone: str | None = None
    webhook: str | None = None

    def to_dict(self) -> dict[str, str]:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise CliError(Exit.usage, "Say whom to tell with one of --user, --email, --phone or --webhook.")
        return given


@app.command(group=_USE)
def send(
    *,
    type: str | None = None,
    user: str | None = None,
    email: str | None = None,
    phone: str | None = None,
    webhook: str | None = None,
    data: str | None = None,
    subject: str | None = None,
    text: str | None = None,
    html: str | None = None,
    priority: PriorityOption | None = None,
    channels: str | None = None,
    send_at: str | None = None,
    expires_at: str | None = None,
    locale: str | None = None,
    idempotency_key: str | None = None,
    file: Path | None = None,
    url: Url = None,
    json: Json = False,
) -> int:
    """Send a notification, or many from a file. The API key comes from TIDINGS_API_KEY.

    Parameters
    ----------
    type
        What is told. Without a type, say it with --subject, --text, --html.
    user
        Whom to tell: the id of a stored user.
    email
        Whom to tell: an e-mail address, without a stored user.
    phone
        Whom to tell: a phone number in international form.
    webhook
        Whom to tell: the URL of a webhook.
    data
        The template's variables: JSON, or @file, or - for standard input.
    subject
        Subject, when there is no type.
    text
        Plain text, when there is no type.
    html
        HTML, when there is no type.
    priority
        How urgent it is.
    channels
        Only on these, comma-separated.
    send_at
        Not before: RFC 3339, such as 2030-01-31T09:00:00Z.
    expires_at
        Not after: RFC 3339.
    locale
        In this language instead of the user's.
    idempotency_key
        Names the operation: the same key never sends twice within 24 hours.
    file
        Many: one JSON object a line, with the fields of the API; - is standard input. Give each line its own
        idempotency_key if the command may be repeated.
    url
        Where the API is.
    json
        Print JSON.
    """
    if file is not None:
        return _send_file(file, url, as_json=json)
    to = _Addressee(user, email, phone, webhook).to_dict()
    content = {k: v for k, v in (("subject", subject), ("text", text), ("html", html)) if v is not None}
    if bool(type) == bool(content):
        raise CliError(Exit.usage, "Say what to tell: either with --type, or with --subject, --text, --html.")
    with _client(url) as client:
        accepted = client.send(
            type=type,
            to=to,
            data=None if data is None else _parse_data(data),
            content=content or None,
            priority=priority,
            channels=None if channels is None else _parse_channels(channels),
            send_at=send_at,
            expires_at=expires_at,
            locale=locale,
            idempotency_key=idempotency_key,
        )
    if json:
        _print_json({"id": accepted.id, "status": accepted.status, "idempotent_replayed": accepted.idempotent_replayed})
    else:
        print(f"{accepted.id} {accepted.status}{' (again)' if accepted.idempotent_replayed else ''}")
    return Exit.ok


def _send_file(file: Path, url: str | None, *, as_json: bool) -> int:
    from tidings.client import Problem
    from tidings.client.requests import BATCH_ITEMS

    numbered = list(_parse_lines(_read(str(file))))
    refused = 0
    with _client(url) as client, _progress("Sending", len(numbered), quiet=as_json) as advance:
        for start in range(0, len(numbered), BATCH_ITEMS):
            chunk = numbered[start : start + BATCH_ITEMS]
            outcomes = client.send_batch([notification for _, notification in chunk])
            for (line, _), outcome in zip(chunk, outcomes, strict=True):
                if isinstance(outcome, Problem):
                    refused += 1
                    errors = [str(error) for error in outcome.errors]
                    if as_json:
                        _print_json({"line": line, "problem": outcome.detail, "errors": errors})
                    else:
                        print(f"line {line}: refused: {'; '.join([outcome.detail, *errors])}", file=sys.stderr)
                elif as_json:
                    _print_json({"line": line, "id": outcome.id, "status": outcome.status})
                else:
                    print(f"{outcome.id} {outcome.status}")
            advance(len(chunk))
    return Exit.refused if refused else Exit.ok


broadcast: Final = App(
    name="broadcast",
    help="Tell many users: send, look at, pause, resume or cancel a broadcast.",
    help_format="plaintext",
    group=_USE,
)
app.command(broadcast)

_WATCH_EVERY: Final = 1.0
"""Seconds between two looks of `tidings broadcast watch`."""


@broadcast.command(name="send")
def broadcast_send(
    *,
    type: str,
    user: list[str] | None = None,
    topic: list[str] | None = None,
    segment: list[str] | None = None,
    all: bool = False,
    exclude_user: list[str] | None = None,
    exclude_topic: list[str] | None = None,
    exclude_segment: list[str] | None = None,
    data: str | None = None,
    priority: PriorityOption | None = None,
    channels: str | None = None,
    send_at: str | None = None,
    local_time: str | None = None,
    expires_at: str | None = None,
    rate: float | None = None,
    once: str | None = None,
    confirm: int | None = None,
    dry_run: bool = False,
    watch: bool = False,
    idempotency_key: str | None = None,
    url: Url = None,
    json: Json = False,
) -> int:
    """Tell many users. Whoever comes from several sources is told once.

    Parameters
    ----------
    type
        What is told.
    user
        The id of a user; repeat it for more.
    topic
        Who is subscribed to it; `project/42/#` is `project/42` and all below.
    segment
        Who is in it.
    all
        Everybody in the project.
    exclude_user
        Leave out this user.
    exclude_topic
        Leave out who is subscribed to it.
    exclude_segment
        Leave out who is in it.
    data
        The template's variables: JSON, or @file, or - for standard input.
    priority
        How urgent it is.
    channels
        Only on these, comma-separated.
    send_at
        Not before: RFC 3339, such as 2030-01-31T09:00:00Z.
    local_time
        On each user's own clock, such as 2030-01-31T09:00.
    expires_at
        Not after: RFC 3339.
    rate
        Users per second.
    once
        At most one notification with this key reaches each user.
    confirm
        How many users you have agreed to; needed above the project's threshold.
    dry_run
        Only say how many users there are, with some of them.
    watch
        Stay, and show how far it is.
    idempotency_key
        Names the operation: the same key never makes a second broadcast within 24 hours.
    url
        Where the API is.
    json
        Print JSON.
    """
    sources = {"users": user, "topics": topic, "segments": segment, "all": all or None}
    left_out = {"users": exclude_user, "topics": exclude_topic, "segments": exclude_segment}
    to = {name: value for name, value in sources.items() if value is not None}
    exclude = {name: value for name, value in left_out.items() if value is not None}
    if not to:
        raise CliError(Exit.usage, "Say whom to tell with --user, --topic, --segment or --all.")
    variables = None if data is None else _parse_data(data)
    with _client(url) as client:
        if dry_run:
            found = client.broadcasts.estimate(type=type, to=to, exclude=exclude or None, data=variables)
            if json:
                _print_json({"count": found.count, "sample": found.sample})
            else:
                print("\n".join([f"{found.count} users, such as:", *found.sample] if found.sample else ["No users."]))
            return Exit.ok
        made = client.broadcasts.create(
            type=type,
            to=to,
            exclude=exclude or None,
            data=variables,
            priority=priority,
            channels=None if channels is None else _parse_channels(channels),
            send_at=send_at,
            local_time=local_time,
            expires_at=expires_at,
            rate=rate,
            once=once,
            confirm=confirm,
            idempotency_key=idempotency_key,
        )
        return _watch(client, made, as_json=json) if watch else _show_broadcast(made, as_json=json)


@broadcast.command(name="show")
def broadcast_show(id: str | None = None, /, *, url: Url = None, json: Json = False) -> int:
    """Show a broadcast, or the newest ones.

    Parameters
    ----------
    id
        The broadcast, brd_…
    url
        Where the API is.
    json
        Print JSON, one line a broadcast.
    """
    from itertools import islice

    with _client(url) as client:
        found = [client.broadcasts.get(id)] if id is not None else list(islice(client.broadcasts.list(limit=20), 20))
    for one in found:
        _show_broadcast(one, as_json=json)
    return Exit.ok


@broadcast.command(name="pause")
def broadcast_pause(id: str, /, *, url: Url = None, json: Json = False) -> int:
    """Make no further notifications until it is resumed.

    Parameters
    ----------
    id
        The broadcast, brd_…
    url
        Where the API is.
    json
        Print JSON.
    """
    with _client(url) as client:
        return _show_broadcast(client.broadcasts.pause(id), as_json=json)


@broadcast.command(name="resume")
def broadcast_resume(id: str, /, *, url: Url = None, json: Json = False) -> int:
    """Go on where it was paused.

    Parameters
    ----------
    id
        The broadcast, brd_…
    url
        Where the API is.
    json
        Print JSON.
    """
    with _client(url) as client:
        return _show_broadcast(client.broadcasts.resume(id), as_json=json)


@broadcast.command(name="cancel")
def broadcast_cancel(id: str, /, *, url: Url = None, json: Json = False) -> int:
    """Stop it for good, also what is not sent yet.

    Parameters
    ----------
    id
        The broadcast, brd_…
    url
        Where the API is.
    json
        Print JSON.
    """
    with _client(url) as client:
        return _show_broadcast(client.broadcasts.cancel(id), as_json=json)


@broadcast.command(name="watch")
def broadcast_watch(id: str, /, *, url: Url = None, json: Json = False) -> int:
    """Show how far it is until it ends; Ctrl-C ends the watching only.

    Parameters
    ----------
    id
        The broadcast, brd_…
    url
        Where the API is.
    json
        Print a line of JSON whenever something changed.
    """
    with _client(url) as client:
        return _watch(client, client.broadcasts.get(id), as_json=json)


def _watch(client: Client, seen: Broadcast, *, as_json: bool) -> int:
    import time

    if as_json:
        _show_broadcast(seen, as_json=True)
    with _progress("Telling", seen.estimated, quiet=as_json) as advance:
        advance(seen.expanded)
        while seen.status not in ("done", "cancelled"):
            time.sleep(_WATCH_EVERY)
            now = client.broadcasts.get(seen.id)
            advance(now.expanded - seen.expanded)
            if as_json and (now.status, now.expanded) != (seen.status, seen.expanded):
                _show_broadcast(now, as_json=True)
            seen = now
    return Exit.ok if as_json else _show_broadcast(seen, as_json=False)


def _show_broadcast(one: Broadcast, *, as_json: bool) -> int:
    if as_json:
        shown = ("id", "type", "status", "estimated", "expanded")
        _print_json({name: getattr(one, name) for name in shown})
    else:
        print(f"{one.id} {one.status}  {one.type}: {one.expanded} of {one.estimated} users")
    return Exit.ok


@app.command(name="import", group=_USE)
def import_(file: Path, /, *, csv: bool | None = None, url: Url = None, json: Json = False) -> int:
    """Make and change users from a file: NDJSON with a user a line, or CSV with a header.

    Importing a file again changes nothing; what a line does not say stays.

    Parameters
    ----------
    file
        At most 200 MB; - is standard input.
    csv
        It is CSV. Without: if its name ends in .csv.
    url
        Where the API is.
    json
        Print JSON.
    """
    from tidings.client import Retries

    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise CliError(Exit.usage, f"{file} cannot be read: {error.strerror}") from None
    as_csv = file.suffix.lower() == ".csv" if csv is None else csv
    with _client(url, Retries(timeout=900, deadline=1800)) as client, _spinner("Importing", quiet=json):
        told = client.users.import_file(content, csv=as_csv)
    if json:
        errors = [{"line": e.line, "detail": e.detail, "pointer": e.pointer} for e in told.errors]
        counts = {"imported": told.imported, "changed": told.changed, "failed": told.failed}
        _print_json({**counts, "errors": errors})
    else:
        for wrong in told.errors:
            where = f" {wrong.pointer}" if wrong.pointer else ""
            print(f"line {wrong.line}:{where} {wrong.detail}", file=sys.stderr)
        print(f"{told.imported} imported, {told.changed} of them changed something, {told.failed} failed")
    return Exit.refused if told.failed else Exit.ok


@app.command(group=_USE)
def replay(
    *deliveries: str,
    all: bool = False,
    channel: ChannelOption | None = None,
    reason: str | None = None,
    url: Url = None,
    json: Json = False,
) -> int:
    """Send dead letters again: those named, or all; without either, list them.

    Parameters
    ----------
    deliveries
        Ids of deliveries, dlv_…
    all
        Send all again, narrowed by --channel and --reason.
    channel
        Only those of this channel.
    reason
        Only those that failed for this reason.
    url
        Where the API is.
    json
        Print JSON.
    """
    if deliveries and (all or channel or reason):
        raise CliError(Exit.usage, "Name deliveries, or choose with --all, --channel and --reason; not both.")
    with _client(url) as client:
        if deliveries:
            answer = client.dead_letters.replay_many(list(deliveries))
            replayed, missing = answer.replayed, len(deliveries) - answer.replayed
        elif all:
            # Those that somebody else replays at the same time are not missed.
            replayed, missing = _replay_all(client, channel, reason, quiet=json), 0
        else:
            return _list_dead_letters(client, channel, reason, as_json=json)
    if json:
        _print_json({"replayed": replayed, "missing": missing})
    else:
        print(f"{replayed} put back to work" + (f", {missing} are no dead letters (any more)" if missing else ""))
    return Exit.failed if missing else Exit.ok


def _replay_all(client: Client, channel: ChannelOption | None, reason: str | None, *, quiet: bool) -> int:
    """Replays what the list shows, page by page: each dead letter once, even if it fails again meanwhile."""
    from itertools import islice

    replayed = 0
    letters = client.dead_letters.list(channel=channel, reason=reason, limit=REPLAY_AT_A_TIME)
    with _progress("Replaying", None, quiet=quiet) as advance:
        while chunk := [letter.delivery for letter in islice(letters, REPLAY_AT_A_TIME)]:
            answer = client.dead_letters.replay_many(chunk)
            replayed += answer.replayed
            advance(len(chunk))
    return replayed


def _list_dead_letters(client: Client, channel: ChannelOption | None, reason: str | None, *, as_json: bool) -> int:
    count = 0
    for letter in client.dead_letters.list(channel=channel, reason=reason):
        count += 1
        if as_json:
            _print_json(
                {
                    "delivery": letter.delivery,
                    "notification": letter.notification,
                    "channel": letter.channel,
                    "reason": letter.reason,
                    "attempts": letter.attempts,
                    "at": None if letter.at is None else letter.at.isoformat(),
                }
            )
        else:
            print(f"{letter.delivery}  {letter.channel:<8} {letter.reason} after {letter.attempts} attempts")
    if not count and not as_json:
        print("There are no dead letters.")
    return Exit.ok


# ---------------------------------------------------------------- looking after it


@app.command(group=_CARE)
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
        _print_json(rows)
    else:
        print("\n".join(lines))
    return Exit.ok


@app.command(group=_CARE)
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
        url, api_key = _whereabouts(url)
    with _spinner("Looking", quiet=json):
        findings = _run(room.examine(url=url, api_key=api_key))
    if json:
        _print_json({"findings": [finding.to_dict() for finding in findings]})
    else:
        for finding in findings:
            print(f"{finding.state:<5} {finding.subject}: {finding.detail}")
            if finding.advice:
                print(f"      → {finding.advice}")
    return Exit.failed if any(finding.state == "fail" for finding in findings) else Exit.ok


@app.command(group=_CARE)
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
            _print_json(handed.to_dict())
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
        _run(room.listen(url, host, port, report, lambda port: _say_listening(host, port, as_json=json)))
        return Exit.ok
    states = _run(bring(url))
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
        _print_json({"listening": f"{host}:{port}"})
    else:
        print(f"Listening at {host}:{port}", flush=True)


@app.command(group=_CARE)
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
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "bench" / "main.py").is_file():
        raise CliError(Exit.failed, "The benchmarks are not part of the installed package; run this in a checkout.")
    from importlib import import_module

    sys.path.insert(0, str(checkout))
    code: int = import_module("bench.main").main(list(names), quick=quick, as_json=json)
    return code


# ---------------------------------------------------------------- what the commands share


def _settings() -> Settings:
    from tidings.settings import load_settings

    return load_settings()


def _start() -> Settings:
    """Settings and logs of a process that stays."""
    settings = _settings()
    from tidings.telemetry import set_up_logging

    set_up_logging(settings.log_level, settings.log_format)
    return settings


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    """Runs a command's asynchronous part, on uvloop where there is one."""
    import asyncio

    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _dsn(settings: Settings) -> str:
    if settings.database_url is None:
        raise CliError(
            Exit.configuration,
            "TIDINGS_DATABASE_URL is not set. (`tidings up` migrates its private database by itself.)",
        )
    return settings.database_url.get_secret_value()


def _client(url: str | None, retries: Retries | None = None) -> Client:
    from tidings.client import Client

    url, key = _whereabouts(url)
    if key is None:
        raise CliError(
            Exit.configuration, "No API key: set TIDINGS_API_KEY, or run this where `tidings up` made its demo project."
        )
    try:
        return Client(url, key, retries=retries)
    except ValueError as error:
        raise CliError(Exit.configuration, str(error)) from None


def _whereabouts(url: str | None) -> tuple[str | None, str | None]:
    """Where the API is, and the key for it: from the environment, else those of the demo that was started here."""
    if key := os.environ.get("TIDINGS_API_KEY"):
        return url, key
    from tidings.demo.keeping import load_demo_secrets

    secrets = load_demo_secrets(_settings().data_dir)
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


def _parse_channels(text: str) -> list[ChannelOption]:
    from typing import cast, get_args

    names = [name.strip() for name in text.split(",") if name.strip()]
    known = get_args(ChannelOption)
    for name in names:
        if name not in known:
            raise CliError(Exit.usage, f"{name!r} is no channel; there are {', '.join(known)}.")
    if not names:
        raise CliError(Exit.usage, "Name at least one channel.")
    return cast(list[ChannelOption], names)


def _read(source: str) -> str:
    try:
        return sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except OSError as error:
        raise CliError(Exit.usage, f"{source} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CliError(Exit.usage, f"{source} is not UTF-8 text") from None


def _parse_data(text: str) -> dict[str, Any]:
    if text == "-" or text.startswith("@"):
        text = _read(text.removeprefix("@"))
    return _parse_object(text, "--data")


def _parse_lines(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number and the object of each line that is not empty."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _parse_object(line, f"line {number}")


def _parse_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise CliError(Exit.usage, f"{where} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CliError(Exit.usage, f"{where} must be a JSON object")
    return value


# ---------------------------------------------------------------- printing


def print_up(info: UpInfo, *, as_json: bool = False) -> None:
    """Tells that everything runs, and where."""
    if as_json:
        _print_json(info.to_dict())
    else:
        print(render_welcome(info), flush=True)


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)


def _print_error(message: str, as_json: bool, details: Mapping[str, Any]) -> None:
    if as_json:
        print(json.dumps({"error": message, **details}, ensure_ascii=False), file=sys.stderr)
    else:
        print(f"tidings: {message}", file=sys.stderr)


@contextlib.contextmanager
def _spinner(what: str, *, quiet: bool) -> Iterator[None]:
    """Shows that something takes its time, on a terminal."""
    with _progress(what, None, quiet=quiet):
        yield


@contextlib.contextmanager
def _progress(what: str, total: int | None, *, quiet: bool) -> Iterator[_Advance]:
    """A progress bar on a terminal's standard error; nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield _Advance(None, 0)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = [SpinnerColumn(), TextColumn("{task.description}")]
    more = [] if total is None else [BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, *more, console=Console(stderr=True), transient=True) as progress:
        yield _Advance(progress, progress.add_task(what, total=total))


class _Advance:
    """Counts what has been done."""

    def __init__(self, progress: Progress | None, task: int) -> None:
        self._progress = progress
        self._task = task

    def __call__(self, n: int) -> None:
        if self._progress is not None:
            from rich.progress import TaskID

            self._progress.advance(TaskID(self._task), n)
