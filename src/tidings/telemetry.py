"""What a process tells about itself: log lines, metrics, and the trace that a request belongs to.

Logs are structlog events with constant dotted names (`http.request`, `delivery.attempt`) and ids as keys. Addresses,
message bodies, attributes and secrets never stand in one. Metrics are one object per process, handed down from the
composition root. Traces are W3C Trace Context, level 1 (https://www.w3.org/TR/trace-context-1/): a `traceparent` comes
in with a request, rides on the job, and goes out to the provider.
"""

from __future__ import annotations

import logging
import random
import re
import sys
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

if TYPE_CHECKING:
    from structlog.typing import Processor

METRICS_CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

# ---------------------------------------------------------------- logs


def set_up_logging(
    level: Literal["debug", "info", "warning", "error"] = "info", form: Literal["auto", "json", "console"] = "auto"
) -> None:
    """Sends every log line of this process to standard error, once per process and before anything logs.

    Args:
        level: the least severe that is shown.
        form: `json` is one object a line; `console` is for eyes; `auto` is `console` on a terminal, else `json`.
    """
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    last: list[Processor] = (
        [structlog.dev.ConsoleRenderer(sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)]
        if console
        # Tracebacks without local variables: those may hold addresses and secrets.
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_to_json)]
    )
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # What libraries log by way of the standard module comes out in the same form.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries narrate at info level what this product logs itself, with URLs and addresses in it.
    root.setLevel(max(threshold, logging.WARNING))


def _to_json(event: object, **_options: object) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()


# ---------------------------------------------------------------- traces

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class Trace(msgspec.Struct, frozen=True):
    """A place in a trace: the trace's id, the id of the span that calls, and whether it is recorded."""

    trace_id: str
    span_id: str
    flags: int = 1

    def to_header(self) -> str:
        """The value of a `traceparent` header."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def parse_traceparent(header: str | None) -> Trace | None:
    """The place that a `traceparent` header names; None when there is none or it must be ignored.

    Strict as the standard has it: lower-case hex, no all-zero ids, version ff refused, version 00 of exactly four
    fields; of a later version the first four fields count. Of the flags only `sampled` is known and passed on.
    """
    if header is None or len(header) > 512:
        return None
    match = _TRACEPARENT.fullmatch(header)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest is not None):
        return None
    if trace_id == "0" * 32 or span_id == "0" * 16:
        return None
    return Trace(trace_id, span_id, int(flags, 16) & 1)


def new_trace(rng: random.Random) -> Trace:
    """The start of a trace that nobody began before us."""
    return Trace(f"{rng.getrandbits(128) or 1:032x}", f"{rng.getrandbits(64) or 1:016x}")


def child_trace(parent: Trace, rng: random.Random) -> Trace:
    """A new span in the parent's trace."""
    return Trace(parent.trace_id, f"{rng.getrandbits(64) or 1:016x}", parent.flags)


# ---------------------------------------------------------------- metrics

_LATENCY: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Metrics:
    """The metrics of one process, each in its own registry so that two of these never meet.

    Hot paths keep the labelled child (`metrics.accepted.labels("accepted")`) instead of asking for it on each call, and
    count once per batch. No label holds a project, a user or an id: the number of series stays small.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.http_requests = Counter(
            "tidings_http_requests", "Requests answered", ["method", "route", "status"], registry=registry
        )
        self.http_seconds = Histogram(
            "tidings_http_request_seconds",
            "Time to the end of the answer",
            ["method", "route"],
            buckets=_LATENCY,
            registry=registry,
        )
        self._http: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self.accepted = Counter(
            "tidings_notifications", "Notification requests, by what became of them", ["outcome"], registry=registry
        )
        """Outcomes: accepted, duplicate, refused."""
        self.runaways = Counter(
            "tidings_runaways", "Notification requests refused as a loop gone wild", registry=registry
        )
        self.deliveries = Counter(
            "tidings_deliveries",
            "Deliveries that came to a status, and why",
            ["status", "channel", "provider", "reason"],
            registry=registry,
        )
        """Where there is none: provider `none`, reason empty."""
        self.attempts = Counter(
            "tidings_attempts", "Calls to providers, by result", ["channel", "provider", "result"], registry=registry
        )
        self.attempt_seconds = Histogram(
            "tidings_attempt_seconds",
            "Duration of calls to providers",
            ["channel", "provider"],
            buckets=_LATENCY,
            registry=registry,
        )
        self.receipts = Counter(
            "tidings_receipts",
            "Facts that vendors reported: recorded, repeated, refused (callbacks), malformed (callbacks)",
            ["provider", "outcome"],
            registry=registry,
        )
        self.jobs_waiting = Gauge("tidings_jobs_waiting", "Due jobs that nobody works on", ["lane"], registry=registry)
        self.job_lag_seconds = Gauge(
            "tidings_job_lag_seconds", "Age of the oldest due job that nobody works on", ["lane"], registry=registry
        )
        self.inbox_streams = Gauge("tidings_inbox_streams", "Live streams of inboxes that are open", registry=registry)
        self.flush_rows = Histogram(
            "tidings_flush_rows", "Rows in one group commit", ["stage"], buckets=_ROWS, registry=registry
        )
        """Stages: accept, plan, claim, settle."""

    def observe_http(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts one request; `route` is a template, so that there are few."""
        children = self._http.get((method, route, status))
        if children is None:
            children = (
                self.http_requests.labels(method, route, status),
                self.http_seconds.labels(method, route),
            )
            self._http[(method, route, status)] = children
        children[0].inc()
        children[1].observe(seconds)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)
