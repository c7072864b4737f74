"""Traces by the letter of the standard, and logs that a machine can read."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from tidings.telemetry import Metrics, Trace, child_trace, new_trace, parse_traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("header", "trace"),
    [
        (f"00-{TRACE}-{SPAN}-01", Trace(TRACE, SPAN, 1)),
        (f"00-{TRACE}-{SPAN}-00", Trace(TRACE, SPAN, 0)),
        (f"00-{TRACE}-{SPAN}-ff", Trace(TRACE, SPAN, 1)),
        (f"01-{TRACE}-{SPAN}-01", Trace(TRACE, SPAN, 1)),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", Trace(TRACE, SPAN, 1)),
        (f"cc-{TRACE}-{SPAN}-01.what", None),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE[1:]}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}-1", None),
        (f" 00-{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}-01\n", None),
        ("", None),
        (None, None),
        ("00-" + "x" * 1000, None),
    ],
)
def test_traceparent_is_read_strictly(header: str | None, trace: Trace | None) -> None:
    assert parse_traceparent(header) == trace


def test_a_trace_keeps_its_id_and_gets_a_new_span() -> None:
    rng = random.Random(7)
    parent = new_trace(rng)
    child = child_trace(parent, rng)
    assert parse_traceparent(child.to_header()) == child
    assert child.trace_id == parent.trace_id
    assert child.span_id != parent.span_id


def test_two_processes_in_one_have_metrics_of_their_own() -> None:
    one, other = Metrics(), Metrics()
    one.accepted.labels("accepted").inc(3)
    assert b'tidings_notifications_total{outcome="accepted"} 3.0' in one.render()
    assert b'outcome="accepted"' not in other.render()


def test_log_lines_are_json_and_tell_no_local_variables() -> None:
    program = """
import logging, structlog
from tidings.telemetry import set_up_logging
set_up_logging("info", "json")
log = structlog.get_logger()
log.debug("hidden")
log.info("shown", n=1, what=object)
logging.getLogger("library").info("narration")
logging.getLogger("library").warning("trouble %s", 7)
try:
    secret_value = "hunter2"
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["shown", "trouble 7", "failed"]
    assert (lines[0]["n"], lines[0]["level"]) == (1, "info")
    assert "ZeroDivisionError" in lines[2]["exception"]
    assert "hunter2" not in done.stderr.replace('secret_value = "hunter2"', "")
