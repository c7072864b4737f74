"""What a run leaves behind: JSON, a table for the terminal, the same as Markdown, and a picture.

The picture is drawn by hand as SVG, since it has to be read in a README in light and in dark: it brings its own colours
for both, and no font.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil
from rich.table import Table

Result = dict[str, Any]
"""A row as it stands in latest.json."""


def load_machine(server_version: str) -> dict[str, Any]:
    """What it is measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postgresql": server_version,
        "load_average_before": [round(value, 2) for value in os.getloadavg()],
    }


def to_sentence(machine: dict[str, Any], at: str) -> str:
    """The machine in one line."""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GiB, {machine['kernel']}, "
        f"Python {machine['python']}, PostgreSQL {machine['postgresql']}, {at[:10]}, "
        f"load average before: {machine['load_average_before'][0]:g}"
    )


def to_number(value: float) -> str:
    """Three significant figures, thousands with a comma."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _cells(row: Result) -> list[str]:
    low, high = row["spread"]
    bar = "" if row["bar"] is None else f"{'≥' if row['better'] == 'higher' else '<'} {row['bar']:,g}"
    costs = row.get("per_notification", {})
    python = costs.get("cpu_us_api", 0) + costs.get("cpu_us_worker", 0)
    return [
        row["title"],
        f"{to_number(row['value'])} {row['unit']}",
        f"{to_number(low)}–{to_number(high)}" if row["repetitions"] > 1 else "",
        bar,
        {True: "yes", False: "no", None: ""}[row["holds"]],
        f"{python:.0f} + {costs['cpu_us_postgresql']:.0f}" if costs else "",
        f"{costs['statements']:.2f}" if costs else "",
    ]


_HEAD: Final = ["", "median", "spread", "bar", "holds", "CPU µs: Python + PostgreSQL", "statements"]


def render_table(rows: Sequence[Result]) -> Table:
    """For the terminal."""
    table = Table(show_edge=False)
    for i, name in enumerate(_HEAD):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        style = {True: "green", False: "red", None: "dim"}[row["holds"]]
        cells = _cells(row)
        cells[4] = f"[{style}]{cells[4]}[/]" if cells[4] else ""
        table.add_row(*cells)
    return table


def render_markdown(run: dict[str, Any]) -> str:
    """The table for people who read it elsewhere."""
    lines = [
        f"Measured on {to_sentence(run['machine'], run['at'])}; everything on this one machine.",
        "CPU and statements are per notification: processor time of the API and the worker (Python), and of all",
        "PostgreSQL processes; statements include BEGIN and COMMIT.",
        "",
        "| " + " | ".join(_HEAD) + " |",
        "|---|" + "---:|" * (len(_HEAD) - 1),
        *("| " + " | ".join(_cells(row)) + " |" for row in run["rows"]),
        "",
    ]
    return "\n".join(lines)


# ---------------------------------------------------------------- the picture

_WIDTH: Final = 880
_LABEL: Final = 380
_PLOT: Final = 360
_LINE: Final = 26
_STYLE: Final = """
  text { font: 13px system-ui, sans-serif; fill: #1c2430 }
  .head { font-weight: 600; font-size: 15px } .soft { fill: #5b6675; font-size: 12px } .right { text-anchor: end }
  .mid { text-anchor: middle } .grid { stroke: #d8dee8 } .bar { stroke: #1c2430; stroke-width: 1.5 }
  .good { fill: #1f8a57 } .bad { fill: #c8453b } .peer { fill: #8a94a6 } .ours { fill: #2f6fd6 }
  .whisker { stroke: #5b6675; stroke-width: 1.5 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e4e9f2 } .soft { fill: #9aa6b8 } .grid { stroke: #39424f } .bar { stroke: #e4e9f2 }
    .good { fill: #3fb67c } .bad { fill: #ec6a5f } .peer { fill: #7b8798 } .ours { fill: #5b95f0 }
    .whisker { stroke: #9aa6b8 }
  }
"""
_TICKS: Final = (0.25, 0.5, 1, 2, 4, 8, 16)


def render_picture(run: dict[str, Any]) -> str:
    """Above, each row as a multiple of its bar (to the right is better); below, what the peers do a second."""
    barred = [row for row in run["rows"] if row["bar"] is not None]
    compared = _compared(run["rows"])
    parts: list[str] = []
    y = 30
    parts.append(f'<text class="head" x="16" y="{y}">Times better than the bar</text>')
    y += 16
    top, bottom = y, y + _LINE * len(barred) + 6
    for tick in _TICKS:
        x = _LABEL + _at(tick)
        kind = "bar" if tick == 1 else "grid"
        parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(
            f'<text class="soft mid" x="{x:.1f}" y="{bottom + 15}">{f"{tick:g}×" if tick != 1 else "bar"}</text>'
        )
    for i, row in enumerate(barred):
        middle = top + _LINE * i + _LINE / 2 + 3
        ratios = sorted(_ratio(row, value) for value in (*row["spread"], row["value"]))
        parts.append(f'<text class="right" x="{_LABEL - 12}" y="{middle + 4:.1f}">{escape(row["title"])}</text>')
        low, high = (_LABEL + _at(value) for value in (ratios[0], ratios[2]))
        parts.append(f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>')
        at = _LABEL + _at(_ratio(row, row["value"]))
        parts.append(f'<circle class="{"good" if row["holds"] else "bad"}" cx="{at:.1f}" cy="{middle:.1f}" r="6"/>')
        said = f"{to_number(row['value'])} {row['unit']}"
        parts.append(f'<text class="right" x="{_WIDTH - 16}" y="{middle + 4:.1f}">{escape(said)}</text>')
    y = bottom + 50
    if compared:
        parts.append(f'<text class="head" x="16" y="{y}">A second, beside what others do on the same machine</text>')
        y += 14
        most = max(row["value"] for row, _ in compared)
        for row, kind in compared:
            middle = y + _LINE / 2
            length = max(2.0, _PLOT * row["value"] / most)
            parts.append(f'<text class="right" x="{_LABEL - 12}" y="{middle + 4:.1f}">{escape(row["title"])}</text>')
            parts.append(
                f'<rect class="{kind}" x="{_LABEL}" y="{middle - 8:.1f}" width="{length:.1f}" height="16" rx="3"/>'
            )
            parts.append(f'<text class="right" x="{_WIDTH - 16}" y="{middle + 4:.1f}">{to_number(row["value"])}</text>')
            y += _LINE
        y += 22
    parts.append(f'<text class="soft" x="16" y="{y}">{escape(to_sentence(run["machine"], run["at"]))}</text>')
    height = y + 16
    title = "Tidings' speed: each measured row against its bar, and against peers"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">\n<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _compared(rows: Sequence[Result]) -> list[tuple[Result, str]]:
    ours = [(row, "ours") for row in rows if row["name"] in ("single_post", "e2e_http", "e2e_smtp")]
    peers = [(row, "peer") for row in rows if row["kind"] == "peer"]
    return ours + peers if peers else []


def _ratio(row: Result, value: float) -> float:
    """How many times better than the bar a value is."""
    return float(value / row["bar"] if row["better"] == "higher" else row["bar"] / max(value, 1e-9))


def _at(ratio: float) -> float:
    """Where a ratio stands on the logarithmic axis."""
    low, high = math.log2(_TICKS[0]), math.log2(_TICKS[-1])
    return _PLOT * (min(max(math.log2(max(ratio, 1e-9)), low), high) - low) / (high - low)


def write(run: dict[str, Any], folder: Path) -> None:
    """Write latest.json, latest.md and latest.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "latest.json": msgspec.json.format(msgspec.json.encode(run)).decode() + "\n",
        "latest.md": render_markdown(run),
        "latest.svg": render_picture(run),
    }
    for name, text in texts.items():
        draft = folder / f"{name}.tmp"
        draft.write_text(text, encoding="utf-8")
        draft.replace(folder / name)
