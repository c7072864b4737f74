"""The command `tidings`: its parts, its entry point, and the exit codes that errors become.

The commands parse, print and choose exit codes; the work is done in the rooms below. Each file here holds the commands
for one purpose: `run` (processes), `use` and `broadcasts` (clients of the API), `care` (the installation). They share
`terminal` (what is read and printed) and `reach` (settings, database, API).

Everything but the parser is imported by the command that needs it, so that `tidings --help` is quick. Results go to
standard output, everything else to standard error; with `--json`, each command prints JSON and nothing else.
"""

from __future__ import annotations

import os
import sys
from typing import Final, NoReturn

from cyclopts import App, Group, Parameter

from tidings.cli import care, run, use
from tidings.cli.broadcasts import broadcast
from tidings.cli.terminal import CliError, Exit, print_error

__all__ = ["Exit", "app", "main"]


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

# The reference in the documentation keeps this order; `--help` sorts by name.
app.command(run.up, group=_RUN)
app.command(run.api, group=_RUN)
app.command(run.worker, group=_RUN)
app.command(care.migrate, group=_CARE)
app.command(care.project, group=_CARE)
app.command(care.reseal, group=_CARE)
app.command(use.send, group=_USE)
broadcast.group = _USE
app.command(broadcast)
app.command(use.import_, name="import", group=_USE)
app.command(use.replay, group=_USE)
app.command(care.providers, group=_CARE)
app.command(care.doctor, group=_CARE)
app.command(care.bounces, group=_CARE)
app.command(care.bench, group=_CARE)


def main(argv: list[str] | None = None) -> NoReturn:
    """The entry point: runs one command and exits with its code."""
    arguments = sys.argv[1:] if argv is None else argv
    as_json = "--json" in arguments
    try:
        code = app(arguments)
    except CliError as error:
        print_error(str(error), as_json, error.details)
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
        print_error(str(known), as_json, known.details)
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
