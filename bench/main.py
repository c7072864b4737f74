"""`tidings bench [NAME…]`, `python -m bench [NAME…]`: runs the measurements on one stage and reports them.

A whole run writes bench/results; a run of some names, or a quick one, only prints.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import uvloop
from rich.console import Console

from bench import broadcasts, planning, report, rows
from bench.rows import QUICK, Row, Scale
from bench.stage import Stage, admin, open_stage
from bench.vendors import measure_vendors

Measurement = Callable[[Stage, Scale], Awaitable[list[Row]]]

ROWS: Final[dict[str, Measurement]] = {
    "idle_latency": rows.idle_latency,
    "single_post": rows.single_post,
    "e2e_http": rows.e2e_http,
    "e2e_smtp": rows.e2e_smtp,
    "e2e_vendors": measure_vendors,
    "batch_accept": rows.batch_accept,
    "live_inboxes": rows.live_inboxes,
    "critical_overtake": rows.large_backlog,
    "claim_cost": rows.claim_cost,
    "planning_cpu": planning.planning_cpu,
    "broadcast_expansion": broadcasts.broadcast_expansion,
    "broadcast_live": broadcasts.broadcast_live,
    "harness": rows.harness,
    "peers": rows.others,
}
"""Every measurement in the order of the table, by the name that `tidings bench NAME` takes."""

RESULTS: Final = Path(__file__).resolve().parent / "results"
BOUND: Final = 300.0
"""Seconds that one measurement may take."""


async def measure(names: list[str], scale: Scale, console: Console) -> dict[str, Any]:
    """Run the named measurements; one that breaks is reported under `failed` and takes no other down."""
    if (whole := asyncio.current_task()) is not None:  # a SIGTERM ends every process of ours too
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, whole.cancel)
    measured: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    at = datetime.now(UTC).isoformat(timespec="seconds")
    async with open_stage() as stage:
        async with admin(stage.server.dsn) as conn:
            machine = report.load_machine(await conn.fetchval("SHOW server_version"))
        for name in names:
            began = time.monotonic()
            try:
                async with asyncio.timeout(BOUND):
                    made = [row.to_dict() for row in await ROWS[name](stage, scale)]
            except Exception as error:
                failed[name] = "\n".join([f"{type(error).__name__}: {error}", *stage.last_complaints()])
                console.print(f"{name}: failed: {failed[name]}", highlight=False, markup=False)
                await stage.discard_backlog()
                continue
            measured += made
            told = ", ".join(f"{report.to_number(row['value'])} {row['unit']}" for row in made)
            console.print(f"{name}: {told}  [dim]({time.monotonic() - began:.0f} s)[/]", highlight=False)
    return {"machine": machine, "at": at, "rows": measured, "failed": failed}


def main(names: list[str] | None = None, *, quick: bool = False, as_json: bool = False) -> int:
    """Measure, print, and (a whole run) write.

    Returns:
        The exit code: 1 if a measurement failed, 2 if there is none of a name, 143 when ended by SIGTERM.
    """
    console = Console(stderr=True)
    if unknown := [name for name in names or () if name not in ROWS]:
        console.print(f"There is no benchmark {', '.join(unknown)}; there are {', '.join(ROWS)}.")
        return 2
    chosen = [name for name in ROWS if not names or name in names]
    try:
        run = uvloop.run(measure(chosen, QUICK if quick else Scale(), console))
    except asyncio.CancelledError:
        return 143
    if as_json:
        print(json.dumps(run, ensure_ascii=False))
    else:
        Console().print(report.render_table(run["rows"]))
    if not names and not quick and not run["failed"]:
        report.write(run, RESULTS)
        console.print(f"Written to {RESULTS}")
    return 1 if run["failed"] else 0


def parse_arguments() -> argparse.Namespace:
    """The command line of `python -m bench`."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure this checkout's speed.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(ROWS)}; without: all")
    parser.add_argument("--quick", action="store_true", help="a short run that only shows that everything works")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()
