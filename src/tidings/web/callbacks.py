"""The open doors for reports: vendors' callbacks, tracking links and pixels, and devices.

    ANY  /callbacks/{project}/{provider}/{account}[/{secret}]   what a vendor reports
    GET  /o/{token}                                             the pixel of an opened mail
    GET  /c/{token}                                             a clicked link: leads to where the message said
    POST /r/{token}                                             what a device tells of a push message

Nobody here has a key. A callback is signed by the vendor, or its path holds a secret; the others are signed by us.
Links and pixels say the same to everybody. A callback with a bad signature hears 403 and an unknown address 404, so the
names of accounts can be guessed there; of those whose address is the secret, nothing can.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import Final

import msgspec
import structlog
from fastapi import FastAPI, Request, Response
from starlette.responses import RedirectResponse

from tidings.errors import Invalid, Malformed, NotFound
from tidings.flow.receipts import Fact, Receiver
from tidings.flow.tracking import Token, is_machine
from tidings.model.words import EventKind
from tidings.providers.port import RawRequest, Report
from tidings.web.deps import Deps
from tidings.web.edge import read_body

log = structlog.get_logger(__name__)

CALLBACK: Final = "/callbacks/{project}/{provider}/{account}"
PATHS: Final = frozenset({CALLBACK, CALLBACK + "/{secret}", "/o/{token}", "/c/{token}", "/r/{token}"})
CALLBACK_MAX: Final = 2 * 1024 * 1024
"""Bytes of what a vendor posts. The largest are bounced mails."""
REPORT_MAX: Final = 4 * 1024
PATIENCE: Final = 0.5
"""Seconds that a person waits for us to store that they clicked; then they go on, and it is stored behind them."""

_PIXEL: Final = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
_NO_STORE: Final = {"cache-control": "no-store, no-cache, must-revalidate, private, max-age=0", "pragma": "no-cache"}
_DEVICE: Final = {"access-control-allow-origin": "*", "access-control-allow-methods": "POST"}
_DEVICE_EVENTS: Final = {
    "delivered": EventKind.delivered,
    "opened": EventKind.opened,
    "clicked": EventKind.clicked,
}


class _DeviceReport(msgspec.Struct, forbid_unknown_fields=True):
    event: str


def add_callbacks(app: FastAPI, deps: Deps) -> None:
    """Mount the routes."""

    async def callback(request: Request, project: str, provider: str, account: str, secret: str = "") -> Response:
        # Whoever knows no address makes us read nothing.
        source = await deps.callbacks.find(project, provider, account, secret or None)
        body = await read_body(request.receive, CALLBACK_MAX)
        receipts = await deps.callbacks.take(source, _to_raw(request, body, deps.public_url))
        return Response(receipts.body, receipts.status, media_type=receipts.content_type)

    async def opened(request: Request, token: str) -> Response:
        if (read := deps.signer.read(token.removesuffix(".gif"), EventKind.opened)) is not None:
            await _see(deps.receiver, read, EventKind.opened, request)
        # The same for everybody: a broken picture helps nobody, and whether the token was good is not the asker's.
        return Response(_PIXEL, media_type="image/gif", headers=_NO_STORE)

    async def clicked(request: Request, token: str) -> Response:
        read = deps.signer.read(token, EventKind.clicked)
        if read is None:
            raise NotFound("This link is not one of ours, or a part of it was lost on the way.")
        await _see(deps.receiver, read, EventKind.clicked, request)
        return RedirectResponse(read.url, 302, headers=_NO_STORE)

    async def reported(request: Request, token: str) -> Response:
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={**_DEVICE, "access-control-allow-headers": "content-type"})
        read = deps.signer.read(token, EventKind.delivered)
        if read is None:
            raise NotFound("This is no address to report to.")
        kind = _parse_report(await request.body())
        await deps.receiver.record([Fact(read.project_id, None, Report(kind), read.delivery)])
        return Response(status_code=204, headers=_DEVICE)

    for path, endpoint, methods in (
        (CALLBACK, callback, ["GET", "HEAD", "POST", "PUT"]),
        (CALLBACK + "/{secret}", callback, ["GET", "HEAD", "POST", "PUT"]),
        ("/o/{token}", opened, ["GET", "HEAD"]),
        ("/c/{token}", clicked, ["GET", "HEAD"]),
        ("/r/{token}", reported, ["POST", "OPTIONS"]),
    ):
        app.add_api_route(path, endpoint, methods=methods, include_in_schema=False)


def _to_raw(request: Request, body: bytes, public_url: str | None) -> RawRequest:
    """The request as the vendor made it: under the URL that it was told, behind whatever proxies."""
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    raw_path = request.scope.get("raw_path") or request.scope["path"].encode()
    target = raw_path.decode("latin-1")
    if query := request.scope.get("query_string", b""):
        target += "?" + query.decode("latin-1")
    base = public_url or f"{request.url.scheme}://{headers.get('host', '')}"
    return RawRequest(request.method, base.rstrip("/") + target, headers, body)


def _parse_report(body: bytes) -> EventKind:
    if len(body) > REPORT_MAX:
        raise Malformed("A report is one short JSON object.")
    try:
        said = msgspec.json.decode(body, type=_DeviceReport)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Malformed('A report is a JSON object such as {"event": "delivered"}.') from None
    kind = _DEVICE_EVENTS.get(said.event)
    if kind is None:
        raise Invalid(f"A device reports one of {', '.join(_DEVICE_EVENTS)}.")
    return kind


async def _see(receiver: Receiver, token: Token, kind: EventKind, request: Request) -> None:
    """Record an open or a click; a person waits a moment for it, and is not held back when it cannot be stored."""
    headers: Mapping[str, str] = request.headers
    machine = is_machine(request.method, headers)
    report = Report(
        kind, machine=machine, url=token.url or None, detail={"user_agent": headers.get("user-agent", "")[:300]}
    )
    recording = asyncio.ensure_future(receiver.record([Fact(token.project_id, None, report, token.delivery)]))
    recording.add_done_callback(_tell_failure)
    await asyncio.wait([recording], timeout=PATIENCE)


def _tell_failure(recording: asyncio.Future[int]) -> None:
    if not recording.cancelled() and (error := recording.exception()) is not None:
        log.error("tracking.not_recorded", error=type(error).__name__)
