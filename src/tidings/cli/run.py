"""The commands that stay: `up`, `api`, `worker`. How a process is put together, `tidings.app` knows."""

# ruff: noqa: T201 - printing is what this file is for

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tidings.cli.reach import load_settings, run_async
from tidings.cli.terminal import Json, parse_channels, print_json

if TYPE_CHECKING:
    from tidings.demo.welcome import UpInfo
    from tidings.settings import Settings


def up(*, demo: Annotated[bool, Parameter(negative="--no-demo")] = True, json: Json = False) -> None:
    """Run everything in one process: a private database if none is set, API, worker, and the demo.

    Parameters
    ----------
    demo
        The demo project and the mail catcher; --no-demo leaves them out.
    json
        Print one line of JSON when everything runs, instead of the welcome.
    """
    settings = start_process()
    from tidings import app as composition

    def ready(info: UpInfo) -> None:
        print_up(info, as_json=json)

    run_async(composition.run_up(settings, demo=demo, ready=ready))


def api() -> None:
    """Run the HTTP API."""
    settings = start_process()
    from tidings import app as composition

    run_async(composition.run_api(settings))


def worker(*, channels: str | None = None, plan: Annotated[bool, Parameter(negative="--no-plan")] = True) -> None:
    """Run a worker.

    Parameters
    ----------
    channels
        Send only on these, comma-separated: email,sms. Without: on all.
    plan
        Also plan what is due; --no-plan leaves that to other workers.
    """
    chosen = None if channels is None else parse_channels(channels)
    settings = start_process()
    from tidings import app as composition

    run_async(composition.run_worker(settings, channels=chosen, plan=plan))


def print_up(info: UpInfo, *, as_json: bool = False) -> None:
    """Tells that everything runs, and where."""
    if as_json:
        print_json(info.to_dict())
    else:
        from tidings.demo.welcome import render_welcome

        print(render_welcome(info), flush=True)


def start_process() -> Settings:
    """Settings and logs of a process that stays."""
    settings = load_settings()
    from tidings.telemetry import set_up_logging

    set_up_logging(settings.log_level, settings.log_format)
    return settings
