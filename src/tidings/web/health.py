"""Health and metrics of a process: what probes and Prometheus ask, of an API and of a stand-alone worker alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tidings.telemetry import METRICS_CONTENT_TYPE, Metrics

Ready = Callable[[], Awaitable[Mapping[str, str | None]]]
"""What /readyz asks: the name of each check, and None where all is well or else what is wrong."""

Endpoint = Callable[[Request], Awaitable[Response]]


def health_endpoints(ready: Ready, metrics: Metrics) -> Mapping[str, Endpoint]:
    """The endpoints by their path.

    | path     | answers                                                                          |
    |----------|----------------------------------------------------------------------------------|
    | /healthz | 200 while the process runs: restart it when this fails                            |
    | /readyz  | 200 when every check is well, else 503 with what is wrong: send no traffic then    |
    | /metrics | the Prometheus text format                                                       |
    """

    async def healthz(_: Request) -> Response:
        return _json({"status": "ok"})

    async def readyz(_: Request) -> Response:
        checks = await ready()
        well = all(wrong is None for wrong in checks.values())
        body = {"status": "ready" if well else "not ready", "checks": {k: v or "ok" for k, v in checks.items()}}
        return _json(body, status=200 if well else 503)

    async def tell_metrics(_: Request) -> Response:
        return Response(metrics.render(), headers={"content-type": METRICS_CONTENT_TYPE})

    return {"/healthz": healthz, "/readyz": readyz, "/metrics": tell_metrics}


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
