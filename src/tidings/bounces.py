"""`tidings bounces`: hands mails that came back to the API, from where they lie or as they arrive by SMTP.

Each mail goes as it is (`message/rfc822`) to the callback URL of an SMTP account, which is a secret. What it says is
understood there (`providers/bounces.py`); here it is only brought, so that this part can run beside a mail server that
has nothing else of Tidings. Bringing a mail twice does no harm.
"""

from __future__ import annotations

import asyncio
import mailbox
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

import httpx
from aiosmtpd.smtp import SMTP, Envelope, Session

MAX_SENT: Final = 1_048_576
"""Octets of a mail that are handed over: reports stand in front, the rest is the body of what was returned."""
MAX_TAKEN: Final = 32 * 1_048_576
"""Octets of a mail that the listener takes."""
_PATIENCE: Final = 30.0
"""Seconds for the API to answer."""
_SILENCE: Final = 60.0
"""Seconds that an SMTP client may say nothing."""
_SESSIONS: Final = 100
_RECIPIENTS: Final = 10
"""Of one mail: a report goes to one return path."""

# What `return_path` of an SMTP account makes of `{key}`. Whether the tag is right only the API can tell.
_TAGGED: Final = re.compile(r"(?<![a-z0-9])dlv_[0-9a-z]{26}-[0-9a-f]{16}(?![0-9a-z])", re.IGNORECASE)
_MAILBOX: Final = re.compile(r"[!-~]{1,64}@[!-~]{1,255}")


@dataclass(frozen=True)
class Handed:
    """What became of one mail."""

    mail: str
    """Which one: a file, a number in a file, an envelope's recipient."""
    state: Literal["reported", "nothing", "refused", "unreachable"]
    """`nothing`: it was no bounce, or not one of ours; the API has looked at it."""
    detail: str

    def to_dict(self) -> dict[str, str]:
        return {"mail": self.mail, "state": self.state, "detail": self.detail}


def check_url(url: str) -> None:
    """
    Raises:
        ValueError: it is no http(s) URL. The message does not repeat it.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("the URL must be the callback URL of an SMTP account, http or https")


class Courier:
    """Brings mails to one callback URL."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = httpx.AsyncClient(timeout=_PATIENCE, follow_redirects=False, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def hand_over(self, name: str, mail: bytes) -> Handed:
        """Bring one mail. The URL is in no message."""
        try:
            answer = await self._http.post(
                self._url, content=mail[:MAX_SENT], headers={"content-type": "message/rfc822"}
            )
        except httpx.HTTPError as failure:
            return Handed(name, "unreachable", f"the API cannot be reached ({type(failure).__name__})")
        if answer.status_code >= 500 or answer.status_code == 429:
            return Handed(name, "unreachable", f"the API answered {answer.status_code}")
        if answer.status_code >= 300:
            return Handed(name, "refused", f"the API answered {answer.status_code}: is it the account's callback URL?")
        return _parse_answer(name, answer)


def _parse_answer(name: str, answer: httpx.Response) -> Handed:
    try:
        told: Any = answer.json()
        lines = [" ".join(filter(None, (r["kind"], r["reason"], r["key"]))) for r in told["reports"]]
        form = told["form"]
    except (ValueError, KeyError, TypeError):
        return Handed(name, "refused", "the answer is none of an SMTP account: is it the account's callback URL?")
    if lines:
        return Handed(name, "reported", "; ".join(lines))
    return Handed(
        name, "nothing", "no bounce" if form is None else "a report that is about no delivery of this account"
    )


# --- mails that lie somewhere -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lying:
    """A mail in a file or folder."""

    name: str
    content: bytes
    done: Callable[[], None]
    """Marks it as read, where its place knows such a thing."""


def list_mails(source: str | None) -> Iterator[Lying]:
    """The mails of an mbox file, the new ones of a Maildir folder, or for None the one on standard input.

    Raises:
        OSError: it cannot be read, or is neither.
    """
    if source is None:
        yield Lying("standard input", sys.stdin.buffer.read(MAX_TAKEN), lambda: None)
        return
    path = Path(source)
    if path.is_dir():
        if not (path / "new").is_dir():
            raise NotADirectoryError(f"{source} is no Maildir: it has no folder new")
        for file in sorted((path / "new").iterdir()):
            if file.is_file() and not file.name.startswith("."):
                yield Lying(file.name, file.read_bytes(), lambda file=file: _mark_seen(file))  # type: ignore[misc] # mypy knows no defaults of lambdas
        return
    with path.open("rb") as content:
        first = content.read(5)
    if first != b"From ":
        yield Lying(path.name, path.read_bytes(), lambda: None)  # a single mail
        return
    box = mailbox.mbox(path, create=False)
    try:
        for key in box.iterkeys():
            yield Lying(f"{path.name} {int(key) + 1}", box.get_bytes(key), lambda: None)
    finally:
        box.close()


def _mark_seen(file: Path) -> None:
    """As Maildir has it: out of `new`, with the flag S."""
    (file.parent.parent / "cur").mkdir(exist_ok=True)
    file.rename(file.parent.parent / "cur" / f"{file.name.partition(':')[0]}:2,S")


# --- mails that arrive ------------------------------------------------------------------------------------------------


class Listener:
    """An SMTP server that takes mails for return paths only, and takes one only when the API has it."""

    def __init__(self, courier: Courier, report: Callable[[Handed], None]) -> None:
        self._courier = courier
        self._report = report
        self._sessions: set[SMTP] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen; port 0 takes a free one.

        Raises:
            OSError: the port is taken.
        """
        self._server = await asyncio.get_running_loop().create_server(self._open, host, port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Takes no more; cuts what is open, whose senders will try again."""
        if self._server is None:
            return
        self._server.close()
        for session in tuple(self._sessions):
            if session.transport is not None:
                session.transport.close()
        await self._server.wait_closed()
        self._server = None

    def _open(self) -> SMTP:
        self._sessions = {session for session in self._sessions if session.transport is not None}
        session = SMTP(
            self if len(self._sessions) < _SESSIONS else _Busy(),
            data_size_limit=MAX_TAKEN,
            enable_SMTPUTF8=True,
            ident="Tidings bounces",
            timeout=_SILENCE,
            loop=asyncio.get_running_loop(),
        )
        self._sessions.add(session)
        return session

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """aiosmtpd's hook: only return paths are known here."""
        if not _MAILBOX.fullmatch(address) or not _TAGGED.search(address.rpartition("@")[0]):
            return "550 5.1.1 no such mailbox"
        if len(envelope.rcpt_tos) >= _RECIPIENTS:
            return "452 4.5.3 too many recipients"
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 2.1.5 ok"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """aiosmtpd's hook: a whole mail has come."""
        content = envelope.content
        mail = content if isinstance(content, bytes) else (content or "").encode("utf-8", "surrogateescape")
        for address in envelope.rcpt_tos:
            handed = await self._courier.hand_over(address, b"Delivered-To: %b\r\n%b" % (address.encode(), mail))
            self._report(handed)
            if handed.state in ("refused", "unreachable"):
                return "451 4.3.0 not now, try again later"  # the sender keeps it; what is wrong here may be mended
        return "250 2.0.0 ok"


class _Busy:
    """Answers instead of the listener when too many talk at a time."""

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        return "421 4.3.2 too many connections, try again later"


async def listen(
    url: str, host: str, port: int, report: Callable[[Handed], None], ready: Callable[[int], None]
) -> None:
    """Run the listener until SIGINT or SIGTERM.

    Args:
        ready: is told the port.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with Courier(url) as courier:
        listener = Listener(courier, report)
        await listener.start(host, port)
        try:
            ready(listener.port)
            await stop.wait()
        finally:
            await listener.stop()
