"""The commands that send, import and replay: clients of the API, which know nothing behind it."""

# ruff: noqa: T201 - printing is what this file is for

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tidings.cli.reach import open_client
from tidings.cli.terminal import (
    ChannelOption,
    CliError,
    Exit,
    Json,
    PriorityOption,
    Url,
    parse_channels,
    parse_data,
    parse_lines,
    print_json,
    progress,
    read_text,
    spinner,
)

if TYPE_CHECKING:
    from tidings.client import Client

REPLAY_AT_A_TIME: Final = 200
"""Dead letters in one request of `tidings replay --all`; the largest page of a list."""


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
    with open_client(url) as client:
        accepted = client.send(
            type=type,
            to=to,
            data=None if data is None else parse_data(data),
            content=content or None,
            priority=priority,
            channels=None if channels is None else parse_channels(channels),
            send_at=send_at,
            expires_at=expires_at,
            locale=locale,
            idempotency_key=idempotency_key,
        )
    if json:
        print_json({"id": accepted.id, "status": accepted.status, "idempotent_replayed": accepted.idempotent_replayed})
    else:
        print(f"{accepted.id} {accepted.status}{' (again)' if accepted.idempotent_replayed else ''}")
    return Exit.ok


def _send_file(file: Path, url: str | None, *, as_json: bool) -> int:
    from tidings.client import Problem
    from tidings.client.requests import BATCH_ITEMS

    numbered = list(parse_lines(read_text(str(file))))
    refused = 0
    with open_client(url) as client, progress("Sending", len(numbered), quiet=as_json) as advance:
        for start in range(0, len(numbered), BATCH_ITEMS):
            chunk = numbered[start : start + BATCH_ITEMS]
            outcomes = client.send_batch([notification for _, notification in chunk])
            for (line, _), outcome in zip(chunk, outcomes, strict=True):
                if isinstance(outcome, Problem):
                    refused += 1
                    errors = [str(error) for error in outcome.errors]
                    if as_json:
                        print_json({"line": line, "problem": outcome.detail, "errors": errors})
                    else:
                        print(f"line {line}: refused: {'; '.join([outcome.detail, *errors])}", file=sys.stderr)
                elif as_json:
                    print_json({"line": line, "id": outcome.id, "status": outcome.status})
                else:
                    print(f"{outcome.id} {outcome.status}")
            advance(len(chunk))
    return Exit.refused if refused else Exit.ok


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
    with open_client(url, Retries(timeout=900, deadline=1800)) as client, spinner("Importing", quiet=json):
        told = client.users.import_file(content, csv=as_csv)
    if json:
        errors = [{"line": e.line, "detail": e.detail, "pointer": e.pointer} for e in told.errors]
        counts = {"imported": told.imported, "changed": told.changed, "failed": told.failed}
        print_json({**counts, "errors": errors})
    else:
        for wrong in told.errors:
            where = f" {wrong.pointer}" if wrong.pointer else ""
            print(f"line {wrong.line}:{where} {wrong.detail}", file=sys.stderr)
        print(f"{told.imported} imported, {told.changed} of them changed something, {told.failed} failed")
    return Exit.refused if told.failed else Exit.ok


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
    with open_client(url) as client:
        if deliveries:
            answer = client.dead_letters.replay_many(list(deliveries))
            replayed, missing = answer.replayed, len(deliveries) - answer.replayed
        elif all:
            # Those that somebody else replays at the same time are not missed.
            replayed, missing = _replay_all(client, channel, reason, quiet=json), 0
        else:
            return _list_dead_letters(client, channel, reason, as_json=json)
    if json:
        print_json({"replayed": replayed, "missing": missing})
    else:
        print(f"{replayed} put back to work" + (f", {missing} are no dead letters (any more)" if missing else ""))
    return Exit.failed if missing else Exit.ok


def _replay_all(client: Client, channel: ChannelOption | None, reason: str | None, *, quiet: bool) -> int:
    """Replays what the list shows, page by page: each dead letter once, even if it fails again meanwhile."""
    from itertools import islice

    replayed = 0
    letters = client.dead_letters.list(channel=channel, reason=reason, limit=REPLAY_AT_A_TIME)
    with progress("Replaying", None, quiet=quiet) as advance:
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
            print_json(
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
