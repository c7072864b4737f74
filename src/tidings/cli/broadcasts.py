"""The commands `tidings broadcast …`: clients of the API, which know nothing behind it."""

# ruff: noqa: T201 - printing is what this file is for

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cyclopts import App

from tidings.cli.reach import open_client
from tidings.cli.terminal import (
    CliError,
    Exit,
    Json,
    PriorityOption,
    Url,
    parse_channels,
    parse_data,
    print_json,
    progress,
)

if TYPE_CHECKING:
    from tidings.client import Broadcast, Client

broadcast: Final = App(
    name="broadcast",
    help="Tell many users: send, look at, pause, resume or cancel a broadcast.",
    help_format="plaintext",
)

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
    variables = None if data is None else parse_data(data)
    with open_client(url) as client:
        if dry_run:
            found = client.broadcasts.estimate(type=type, to=to, exclude=exclude or None, data=variables)
            if json:
                print_json({"count": found.count, "sample": found.sample})
            else:
                print("\n".join([f"{found.count} users, such as:", *found.sample] if found.sample else ["No users."]))
            return Exit.ok
        made = client.broadcasts.create(
            type=type,
            to=to,
            exclude=exclude or None,
            data=variables,
            priority=priority,
            channels=None if channels is None else parse_channels(channels),
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

    with open_client(url) as client:
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
    with open_client(url) as client:
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
    with open_client(url) as client:
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
    with open_client(url) as client:
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
    with open_client(url) as client:
        return _watch(client, client.broadcasts.get(id), as_json=json)


def _watch(client: Client, seen: Broadcast, *, as_json: bool) -> int:
    import time

    if as_json:
        _show_broadcast(seen, as_json=True)
    with progress("Telling", seen.estimated, quiet=as_json) as advance:
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
        print_json({name: getattr(one, name) for name in shown})
    else:
        print(f"{one.id} {one.status}  {one.type}: {one.expanded} of {one.estimated} users")
    return Exit.ok
