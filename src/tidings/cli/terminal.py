"""What the commands share at the terminal: exit codes, options, parsing of what is typed, printing, progress.

It knows no settings, no database and no API.
"""

# ruff: noqa: T201 - printing is what this file is for

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from rich.progress import Progress

Json = Annotated[bool, Parameter(name="--json")]
Url = Annotated[str | None, Parameter(name="--url", env_var="TIDINGS_URL", show_env_var=True)]
ChannelOption = Literal["email", "sms", "push", "in_app", "webhook", "chat"]
PriorityOption = Literal["critical", "high", "medium", "low"]


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


# ---------------------------------------------------------------- parsing


def parse_channels(text: str) -> list[ChannelOption]:
    """`email,sms`: the channels to send on."""
    from typing import cast, get_args

    names = [name.strip() for name in text.split(",") if name.strip()]
    known = get_args(ChannelOption)
    for name in names:
        if name not in known:
            raise CliError(Exit.usage, f"{name!r} is no channel; there are {', '.join(known)}.")
    if not names:
        raise CliError(Exit.usage, "Name at least one channel.")
    return cast(list[ChannelOption], names)


def read_text(source: str) -> str:
    """A file's text, or that of standard input for `-`."""
    try:
        return sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except OSError as error:
        raise CliError(Exit.usage, f"{source} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CliError(Exit.usage, f"{source} is not UTF-8 text") from None


def parse_data(text: str) -> dict[str, Any]:
    """A template's variables: JSON, or `@file`, or `-` for standard input."""
    if text == "-" or text.startswith("@"):
        text = read_text(text.removeprefix("@"))
    return _parse_object(text, "--data")


def parse_lines(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
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


def print_json(value: Any) -> None:
    """One line, on standard output."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def print_error(message: str, as_json: bool, details: Mapping[str, Any]) -> None:
    """Why a command could not go on, on standard error."""
    if as_json:
        print(json.dumps({"error": message, **details}, ensure_ascii=False), file=sys.stderr)
    else:
        print(f"tidings: {message}", file=sys.stderr)


@contextlib.contextmanager
def spinner(what: str, *, quiet: bool) -> Iterator[None]:
    """Shows that something takes its time, on a terminal."""
    with progress(what, None, quiet=quiet):
        yield


@contextlib.contextmanager
def progress(what: str, total: int | None, *, quiet: bool) -> Iterator[Advance]:
    """A progress bar on a terminal's standard error; nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield Advance(None, 0)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = [SpinnerColumn(), TextColumn("{task.description}")]
    more = [] if total is None else [BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, *more, console=Console(stderr=True), transient=True) as shown:
        yield Advance(shown, shown.add_task(what, total=total))


class Advance:
    """Counts what has been done."""

    def __init__(self, progress: Progress | None, task: int) -> None:
        self._progress = progress
        self._task = task

    def __call__(self, n: int) -> None:
        if self._progress is not None:
            from rich.progress import TaskID

            self._progress.advance(TaskID(self._task), n)
