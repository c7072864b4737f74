"""A mail catcher: takes every mail by real SMTP, delivers none, and shows them in the browser.

It listens on the loopback interface only, keeps the last mails in memory, and forgets them when it stops. What it
takes in is untrusted: nothing of a mail reaches a page unescaped, HTML parts are shown in a sandboxed frame under a
content security policy that runs no script and loads nothing, and the pages answer only to a loopback host name, so
that no web site can read them by pointing its own name at 127.0.0.1 (DNS rebinding).

This file knows SMTP and HTTP and nothing of Tidings.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from functools import cached_property
from html import escape
from types import TracebackType
from typing import Any, Final, Self, cast
from urllib.parse import urlsplit

from aiohttp import web
from aiosmtpd.smtp import SMTP, Envelope, Session

HOST: Final = "127.0.0.1"
MAX_MAILS: Final = 1_000
MAX_TOTAL_BYTES: Final = 64 * 1024 * 1024
MAX_MAIL_BYTES: Final = 10 * 1024 * 1024

_LOOPBACK_NAMES: Final = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True)
class Mail:
    """One caught mail. Everything but the envelope is read from `raw` when it is first asked for."""

    n: int
    """Counts from 1; a number is never given twice."""
    at: datetime
    sender: str
    """The envelope's sender; empty for a bounce."""
    recipients: tuple[str, ...]
    raw: bytes

    @cached_property
    def _message(self) -> EmailMessage:
        return email.message_from_bytes(self.raw, policy=email.policy.default)

    @cached_property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """All header fields in order, decoded as far as they can be."""
        return tuple(self._decoded_headers())

    def _decoded_headers(self) -> Iterator[tuple[str, str]]:
        for name, raw in self._message.raw_items():
            try:
                value = str(self._message.policy.header_fetch_parse(name, raw))
            except Exception:  # the standard parser gives up on some malformed fields in many ways
                value = str(raw)
            yield name, _clean(value)

    def header(self, name: str) -> str:
        """The first field of that name; empty when there is none."""
        return next((value for found, value in self.headers if found.lower() == name.lower()), "")

    @property
    def subject(self) -> str:
        return self.header("Subject")

    @cached_property
    def text(self) -> str | None:
        """The plain text part, if there is one."""
        return self._body("plain")

    @cached_property
    def html(self) -> str | None:
        """The HTML part, if there is one. Untrusted."""
        return self._body("html")

    def _body(self, kind: str) -> str | None:
        try:
            part = self._message.get_body(preferencelist=(kind,))
            if part is None:
                return None
            payload = part.get_payload(decode=True)
            charset = part.get_content_charset("utf-8")
        except Exception:  # as above: a catcher shows what it can
            return None
        if not isinstance(payload, bytes):
            return None
        try:
            text = payload.decode(charset, "replace")
        except LookupError:  # a charset that does not exist
            text = payload.decode("utf-8", "replace")
        return _clean(text).replace("\r\n", "\n")

    def to_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "n": self.n,
            "at": self.at.isoformat(),
            "from": self.sender,
            "to": list(self.recipients),
            "subject": self.subject,
            "headers": [list(pair) for pair in self.headers],
            "text": self.text,
            "html": self.html,
        }


def _clean(text: str) -> str:
    """Without lone surrogates, which the parser uses for bytes it could not decode and which UTF-8 cannot carry."""
    return text.encode("utf-8", "replace").decode()


class MailCatcher:
    """The SMTP server, the mails, and their pages, on the running event loop."""

    def __init__(
        self,
        *,
        smtp_port: int = 2525,
        http_port: int = 8025,
        max_mails: int = MAX_MAILS,
        max_bytes: int = MAX_TOTAL_BYTES,
    ) -> None:
        """Port 0 takes a free one; see `smtp_port` and `url` after the start. The oldest mails beyond the bounds go."""
        self._max_mails = max_mails
        self._max_bytes = max_bytes
        self._ports = (smtp_port, http_port)
        self._mails: deque[Mail] = deque()
        self._bytes = 0
        self._last = 0
        self._came = asyncio.Condition()
        self._sessions: weakref.WeakSet[SMTP] = weakref.WeakSet()
        self._server: asyncio.Server | None = None
        self._runner: web.AppRunner | None = None
        self.smtp_port = 0
        self.http_port = 0

    @property
    def url(self) -> str:
        """Where a browser sees the mails."""
        return f"http://{HOST}:{self.http_port}/"

    @property
    def mails(self) -> Sequence[Mail]:
        """What is kept, oldest first."""
        return tuple(self._mails)

    async def start(self) -> None:
        """Listens on both ports.

        Raises:
            OSError: a port is taken.
        """
        loop = asyncio.get_running_loop()
        smtp_port, http_port = self._ports
        self._server = await loop.create_server(self._session, HOST, smtp_port)
        self.smtp_port = self._server.sockets[0].getsockname()[1]
        self._runner = web.AppRunner(self._pages(), access_log=None, handle_signals=False)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, HOST, http_port).start()
        except OSError:
            await self.stop()
            raise
        self.http_port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Frees both ports and cuts the connections."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._server is not None:
            self._server.close()
            for session in tuple(self._sessions):
                if session.transport is not None:
                    session.transport.close()
            await self._server.wait_closed()
            self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def wait_for(self, wanted: Callable[[Mail], bool]) -> Mail:
        """The first mail, kept or still to come, that is `wanted`."""
        async with self._came:
            while True:
                for mail in self._mails:
                    if wanted(mail):
                        return mail
                await self._came.wait()

    # ---------------------------------------------------------------- SMTP

    def _session(self) -> SMTP:
        session = SMTP(
            self,
            data_size_limit=MAX_MAIL_BYTES,
            enable_SMTPUTF8=True,
            hostname="catcher.localhost",
            ident="Tidings mail catcher",
            loop=asyncio.get_running_loop(),
        )
        self._sessions.add(session)
        return session

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """aiosmtpd's hook: a whole mail has come."""
        content = envelope.content
        raw = content if isinstance(content, bytes) else (content or "").encode("utf-8", "surrogateescape")
        self._last += 1
        mail = Mail(self._last, datetime.now(UTC), envelope.mail_from or "", tuple(envelope.rcpt_tos), raw)
        self._mails.append(mail)
        self._bytes += len(raw)
        while len(self._mails) > self._max_mails or self._bytes > self._max_bytes:
            self._bytes -= len(self._mails.popleft().raw)
        async with self._came:
            self._came.notify_all()
        return f"250 2.0.0 caught as number {mail.n}"

    # ---------------------------------------------------------------- pages

    def _pages(self) -> web.Application:
        app = web.Application(middlewares=[_guard], client_max_size=1024)
        app.router.add_get("/", self._show_list)
        app.router.add_get("/style.css", self._show_style)
        app.router.add_get("/mails.json", self._show_json)
        app.router.add_get(r"/mails/{n:\d{1,15}}", self._show_mail)
        app.router.add_get(r"/mails/{n:\d{1,15}}/html", self._show_html)
        app.router.add_get(r"/mails/{n:\d{1,15}}/raw", self._show_raw)
        return app

    def _find(self, request: web.Request) -> Mail:
        n = int(request.match_info["n"])
        for mail in self._mails:
            if mail.n == n:
                return mail
        raise web.HTTPNotFound(text=f"There is no mail number {n}; only the last {self._max_mails} are kept.")

    async def _show_list(self, request: web.Request) -> web.Response:
        rows = "".join(
            f"<tr><td class=time><time datetime={_quoted(mail.at.isoformat())}>{mail.at.astimezone():%H:%M:%S}</time>"
            f"<td>{escape(mail.sender)}<td>{escape(', '.join(mail.recipients))}"
            f"<td><a href='/mails/{mail.n}'>{escape(mail.subject) or '(no subject)'}</a>"
            for mail in reversed(self._mails)
        )
        table = (
            f"<table><thead><tr><th>Time<th>From<th>To<th>Subject<tbody>{rows}</table>"
            if rows
            else f"<p class=empty>No mail yet. Send one to port {self.smtp_port}; this page refreshes itself."
        )
        return _page("Mails", f"<header><h1>Mails</h1><p>{len(self._mails)} kept</header>{table}", refresh=True)

    async def _show_mail(self, request: web.Request) -> web.Response:
        mail = self._find(request)
        headers = "".join(f"<tr><th>{escape(name)}<td>{escape(value)}" for name, value in mail.headers)
        parts = [
            f"<header><p><a href='/'>← All mails</a><h1>{escape(mail.subject) or '(no subject)'}</h1>"
            f"<p>{escape(mail.sender) or '(bounce)'} → {escape(', '.join(mail.recipients))}</header>"
        ]
        if mail.html is not None:
            parts.append(
                f"<h2>HTML</h2><iframe src='/mails/{mail.n}/html' title='HTML part' {_SANDBOX}></iframe>",
            )
        if mail.text is not None:
            parts.append(f"<h2>Text</h2><pre>{escape(mail.text)}</pre>")
        parts.append(f"<h2>Headers</h2><table class=headers><tbody>{headers}</table>")
        parts.append(f"<p><a href='/mails/{mail.n}/raw'>Raw source</a> ({len(mail.raw):,} bytes)")
        return _page(mail.subject or "Mail", "".join(parts))

    async def _show_html(self, request: web.Request) -> web.Response:
        mail = self._find(request)
        if mail.html is None:
            raise web.HTTPNotFound(text="This mail has no HTML part.")
        # Links open in a new tab: inside the frame they would be refused by our own policy.
        return web.Response(
            text='<!doctype html><base target="_blank">' + mail.html,
            content_type="text/html",
            headers={"Content-Security-Policy": _MAIL_POLICY},
        )

    async def _show_raw(self, request: web.Request) -> web.Response:
        return web.Response(body=self._find(request).raw, content_type="text/plain", charset="utf-8")

    async def _show_json(self, request: web.Request) -> web.Response:
        """`?to=` an address, `?after=` a number: what came for whom since then."""
        to, after = request.query.get("to"), request.query.get("after", "0")
        if not (after.isascii() and after.isdigit()):
            raise web.HTTPBadRequest(text="after: give the number of a mail")
        found = [m for m in self._mails if m.n > int(after[:15]) and (to is None or to in m.recipients)]
        return web.json_response([mail.to_dict() for mail in found])

    async def _show_style(self, request: web.Request) -> web.Response:
        return web.Response(text=_STYLE, content_type="text/css")


_SANDBOX: Final = "sandbox='allow-popups allow-popups-to-escape-sandbox'"
_MAIL_POLICY: Final = (
    "sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'; "
    "style-src 'unsafe-inline'; img-src data:; form-action 'none'; frame-ancestors 'self'"
)
_PAGE_POLICY: Final = (
    "default-src 'none'; style-src 'self'; img-src data:; frame-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@web.middleware
async def _guard(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
    """Refuses foreign host names, and gives every answer its security headers."""
    try:
        name = urlsplit(f"//{request.host}").hostname
    except ValueError:
        name = None
    try:
        if name not in _LOOPBACK_NAMES:
            raise web.HTTPForbidden(text="The mail catcher answers only at http://localhost or http://127.0.0.1.")
        response = cast(web.StreamResponse, await handler(request))
    except web.HTTPException as error:
        response = error
    response.headers.setdefault("Content-Security-Policy", _PAGE_POLICY)
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers["Cache-Control"] = "no-store"
    if isinstance(response, web.HTTPException):
        raise response
    return response


def _quoted(value: str) -> str:
    return f"'{escape(value)}'"


def _page(title: str, content: str, *, refresh: bool = False) -> web.Response:
    head = "<meta http-equiv=refresh content=2>" if refresh else ""
    return web.Response(
        text=f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>{head}"
        f"<title>{escape(title)} · Tidings mail catcher</title><link rel=stylesheet href='/style.css'>"
        f"<link rel=icon href='data:,'><main>{content}</main></html>",
        content_type="text/html",
    )


_STYLE: Final = """\
:root { color-scheme: light dark; --ink: #1c2430; --soft: #667085; --line: #e3e7ee; --paper: #fff; --back: #f5f7fa;
  --link: #1f5fd0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8ecf3; --soft: #98a2b3; --line: #2b3342; --paper: #171c26; --back: #0f131a; --link: #7fb0ff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
header { margin-bottom: 1.25rem; }
h1 { margin: 0; font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { margin: 1.75rem 0 .5rem; font-size: .8rem; letter-spacing: .06em; text-transform: uppercase; color: var(--soft); }
header p, .empty { margin: .25rem 0; color: var(--soft); }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
table { width: 100%; border-collapse: collapse; background: var(--paper); border: 1px solid var(--line); }
th, td { padding: .55rem .8rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
tbody tr:last-child > * { border-bottom: 0; }
thead th, .headers th { color: var(--soft); font-weight: 500; white-space: nowrap; }
.time { white-space: nowrap; font-variant-numeric: tabular-nums; color: var(--soft); }
pre, iframe { width: 100%; margin: 0; background: var(--paper); border: 1px solid var(--line); }
pre { padding: .8rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; }
iframe { height: 30rem; background: #fff; }
"""
