"""The mail transaction of SMTP (RFC 5321) on an open connection, and what a server's answers mean.

MAIL, RCPT and DATA go in one write where the server announces PIPELINING (RFC 2920), and at each moment it is known
where the bytes stood: before the last byte of the mail had left, nothing was delivered; after it, only the answer
would tell.

This room knows one connection and one mail; it knows no configuration and no pool: those are in `smtp.py`.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

import msgspec

from tidings.model.messages import Deferred, Rejected, SendResult, Sent, Throttled, Uncertain
from tidings.model.words import Reason
from tidings.providers.refusals import REASON_BY_DETAIL

_REFUSALS_TOLD: Final = 5  # of copies, in the evidence
_REPLY_CAP: Final = 32_768  # octets of unread answers; a server that sends more is not speaking SMTP


# --- what an answer means ---------------------------------------------------------------------------------------------


class Reply(msgspec.Struct, frozen=True):
    """One SMTP answer, continuation lines joined by spaces."""

    code: int
    text: str

    @property
    def enhanced(self) -> str:
        """The enhanced status code (RFC 3463) that the text begins with, or nothing."""
        found = _ENHANCED.match(self.text)
        return found[0] if found else ""

    @property
    def evidence(self) -> str:
        """Code and words, short. Servers quote addresses, never credentials."""
        return f"{self.code} {self.text}"[:300]


_ENHANCED: Final = re.compile(r"[245]\.\d{1,3}\.\d{1,3}(?=\s|$)")


class Stage(IntEnum):
    """How far a mail has come; also what an answer was an answer to."""

    waiting = 0  # for a free connection
    connecting = 1  # until the connection is ready, authentication included
    mail = 2  # MAIL FROM
    rcpt = 3  # RCPT TO
    data = 4  # DATA
    body = 5  # the mail itself has been handed to the kernel


# The enhanced code beats the basic one, with class 4 (Deferred) and 5 (Rejected) alike: by subject and detail the table
# in refusals.py; where only the subject is known: "5.6.x" is about the content, whatever x. `7` depends on the stage.
_BY_SUBJECT: Final[dict[str, Reason]] = {"6": Reason.content_rejected}

# Without an enhanced code: the basic one (RFC 5321, 4.2.3; RFC 4954; RFC 7504), by what it answered.
_BY_CODE: Final[dict[int, Reason]] = {
    521: Reason.bounced,  # host does not accept mail
    530: Reason.unauthorized,  # authentication required
    534: Reason.unauthorized,
    535: Reason.unauthorized,
    538: Reason.unauthorized,
    552: Reason.too_large,
    556: Reason.bounced,  # domain does not accept mail
}
_BY_CODE_AT_RCPT: Final[dict[int, Reason]] = {
    550: Reason.bounced,  # mailbox unavailable
    551: Reason.bounced,  # user not local
    552: Reason.mailbox_full,  # exceeded storage allocation
    553: Reason.invalid_address,  # mailbox name not allowed
}
_BY_CODE_AT_BODY: Final[dict[int, Reason]] = {
    550: Reason.content_rejected,
    554: Reason.content_rejected,  # transaction failed: spam filters say this
}
_BY_CODE_EARLIER: Final[dict[int, Reason]] = {
    550: Reason.blocked,  # refused before the recipient was named: it is about us
    554: Reason.blocked,
}


def decide_result(reply: Reply, stage: Stage) -> SendResult:
    """What a refusal (4xx, 5xx, or an answer that makes no sense here) at a stage means for the mail.

    Temporary (4xx) refusals, by the enhanced code, else by code and stage:

    | answer                                 | result                                                              |
    |----------------------------------------|---------------------------------------------------------------------|
    | 421 4.7.x, 4.7.x before RCPT           | Throttled: too many connections or mails, it is about the account   |
    | 421 otherwise                          | Deferred(provider_error): the server is going down                  |
    | 4.2.2                                  | Deferred(mailbox_full)                                              |
    | 4.7.x at RCPT or later; 450/451 without an enhanced code at RCPT | Deferred(greylisted)                      |
    | 454 4.7.0 while authenticating, others | Deferred(provider_error)                                            |

    Permanent (5xx) ones: the tables above; 5.7.x is `blocked` (about us) until the body was sent and
    `content_rejected` after it; what none of them knows is `rejected`.
    """
    code, enhanced, evidence = reply.code, reply.enhanced, reply.evidence
    _, _, tail = enhanced.partition(".")
    subject = tail.partition(".")[0]
    if 400 <= code < 500:
        if code == 421:
            return Throttled(detail=evidence) if subject == "7" else Deferred(Reason.provider_error, detail=evidence)
        if tail == "2.2":
            return Deferred(Reason.mailbox_full, detail=evidence)
        if subject == "7":
            if stage >= Stage.rcpt:
                return Deferred(Reason.greylisted, detail=evidence)
            if stage is Stage.mail:
                return Throttled(detail=evidence)
        if not enhanced and code in (450, 451) and stage is Stage.rcpt:
            return Deferred(Reason.greylisted, detail=evidence)
        return Deferred(Reason.provider_error, detail=evidence)
    if 500 <= code < 600:
        if (reason := REASON_BY_DETAIL.get(tail) or _BY_SUBJECT.get(subject)) is None:
            if subject == "7":
                reason = Reason.content_rejected if stage is Stage.body else Reason.blocked
            if code in (530, 534, 535, 538):
                reason = Reason.unauthorized
        if reason is None:
            if stage is Stage.rcpt:
                by_stage = _BY_CODE_AT_RCPT
            else:
                by_stage = _BY_CODE_AT_BODY if stage is Stage.body else _BY_CODE_EARLIER
            reason = by_stage.get(code) or _BY_CODE.get(code) or Reason.rejected
        return Rejected(reason, evidence)
    if stage is Stage.body:
        return Uncertain(f"the server answered the mail with {evidence}")
    return Deferred(Reason.bad_answer, detail=evidence)


# --- one connection ---------------------------------------------------------------------------------------------------


class ConnectionLost(Exception):
    """The connection broke, or what came over it is not SMTP. The message says which."""


class OutgoingMail:
    """One mail on its way: what to write, and how far it has come."""

    __slots__ = ("content", "copies", "envelope_id", "refused", "sender", "stage", "to", "utf8")

    def __init__(self, sender: str, to: str, copies: Sequence[str], utf8: bool, envelope_id: str) -> None:
        self.sender = sender
        self.to = to
        self.copies = copies
        """Further recipients. The answer about `to` decides."""
        self.utf8 = utf8
        """Whether an address needs SMTPUTF8 (RFC 6531)."""
        self.envelope_id = envelope_id
        """What a delivery report shall give back (ENVID, RFC 3461)."""
        self.stage = Stage.waiting
        self.content = b""
        self.refused: list[Reply] = []
        """What the server said of copies that it did not take."""

    def decide_lost(self, detail: str) -> SendResult:
        """What it means that the talk ended here without an answer."""
        if self.stage is Stage.waiting:
            return Throttled(detail="all connections of this account are busy")
        if self.stage is Stage.body:
            return Uncertain(f"{detail}, after the whole mail was sent")
        return Deferred(Reason.connect_failed, detail=f"{detail}, before the mail was sent")


class Connection(asyncio.Protocol):
    """An open, authenticated connection, taken over from aiosmtplib. Runs one mail transaction at a time."""

    def __init__(self, transport: asyncio.Transport, extensions: dict[str, str]) -> None:
        self.transport = transport
        self.mails = 0
        self.idle_since = 0.0
        self.usable = True
        self.eight_bit = "8bitmime" in extensions
        self.smtputf8 = "smtputf8" in extensions
        self.pipelining = "pipelining" in extensions
        self.dsn = "dsn" in extensions
        size = extensions.get("size", "")
        self.size_limit = int(size) if size.isascii() and size.isdigit() else 0
        """Octets that the server takes; 0 when it did not say."""
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._lines: list[str] = []
        self._replies: deque[Reply] = deque()
        self._expected = 0
        self._waiter: asyncio.Future[None] | None = None
        self._lost: str | None = None
        self._kernel_has_all = True
        # With no high-water mark, pause_writing says "not everything could be handed to the kernel at once", and
        # resume_writing "now it has all": that is how we know whether the end of a mail has left.
        transport.set_write_buffer_limits(high=0)

    # asyncio.Protocol

    def pause_writing(self) -> None:
        self._kernel_has_all = False

    def resume_writing(self) -> None:
        self._kernel_has_all = True

    def data_received(self, data: bytes) -> None:
        data = self._received + data
        lines = data.split(b"\n")
        self._received = lines.pop()
        for line in lines:
            code, mark = line[:3], line[3:4]
            if len(code) != 3 or not code.isdigit() or mark not in (b" ", b"-", b"\r", b""):
                return self._fail("the server's answer is not SMTP")
            self._lines.append(line[4:].decode("utf-8", "replace").strip())
            if mark != b"-":
                self._replies.append(Reply(int(code), " ".join(self._lines)))
                self._lines.clear()
        if len(self._received) + sum(map(len, self._lines)) + len(self._lines) > _REPLY_CAP:
            return self._fail("the server's answer does not end")
        if len(self._replies) > self._expected:
            # Unasked, such as "421 closing" on an idle connection: never to be taken for the next command's answer.
            return self._fail(self._replies[-1].evidence)
        if self._waiter is not None and len(self._replies) == self._expected and not self._waiter.done():
            self._waiter.set_result(None)
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"connection lost ({type(exc).__name__})" if exc else "connection closed by the server")

    def _fail(self, why: str) -> None:
        self.usable = False
        if self._lost is None:
            self._lost = why
        self.transport.abort()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # the talk

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise ConnectionLost(self._lost)

    async def _ask(self, data: bytes, answers: int) -> list[Reply]:
        """Write, and wait for so many answers; fewer, but not none, if the connection ended before.

        Raises:
            ConnectionLost: no answer came.
        """
        self._raise_if_lost()
        self._expected = answers
        self.transport.write(data)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._expected = 0
        replies = list(self._replies)
        self._replies.clear()
        if not replies:
            raise ConnectionLost(self._lost)
        return replies

    async def transact(self, mail: OutgoingMail) -> SendResult:
        """Send one mail. `mail.stage` follows the progress.

        Raises:
            ConnectionLost: no answer came any more.
        """
        self.mails += 1
        mail.stage = Stage.mail
        options = f" SIZE={len(mail.content)}" if self.size_limit else ""
        if self.eight_bit and not mail.content.isascii():
            options += " BODY=8BITMIME"
        if mail.utf8:
            options += " SMTPUTF8"
        if self.dsn:  # RFC 3461: reports shall name the delivery, and need not bring the whole mail back
            options += f" RET=HDRS ENVID={mail.envelope_id}"
        sender = f"MAIL FROM:<{mail.sender}>{options}\r\n"
        if mail.copies:
            refusal, replies = await self._name_all(mail, sender)
        else:
            refusal, replies = await self._name_one(mail, sender)
        if refusal is not None:
            if refusal.code == 421 and mail.stage is Stage.mail and self.mails > 1:
                raise ConnectionLost(refusal.evidence)  # "you have been idle for too long": not about this mail
            await self._abandon(replies)
            return decide_result(refusal, mail.stage)
        answer = await self._send_content(mail)
        if answer.code == 421 or not self._kernel_has_all:
            self.close()
        if 200 <= answer.code < 300:
            return Sent(
                detail="; ".join(
                    [answer.evidence, *(f"a copy was refused: {no.evidence}" for no in mail.refused[:_REFUSALS_TOLD])]
                )
            )
        return decide_result(answer, Stage.body)

    async def _name_one(self, mail: OutgoingMail, sender: str) -> tuple[Reply | None, list[Reply]]:
        """MAIL, RCPT and DATA in as few round trips as the server allows: the refusal if there is one, and all answers.

        Raises:
            ConnectionLost: before everything was answered.
        """
        envelope = (sender, self._recipient(mail.to), "DATA\r\n")
        replies: list[Reply] = []
        refusal = None
        if self.pipelining:
            replies = await self._ask("".join(envelope).encode(), 3)
            refusal = _find_refusal(mail, replies)
        else:
            for command in envelope:
                replies += await self._ask(command.encode(), 1)
                if (refusal := _find_refusal(mail, replies)) is not None:
                    break
        if refusal is None and len(replies) < len(envelope):
            raise ConnectionLost(self._lost)
        return refusal, replies

    async def _name_all(self, mail: OutgoingMail, sender: str) -> tuple[Reply | None, list[Reply]]:
        """The same with further recipients. DATA waits until the answer about the main one is there: a mail that it
        does not get, the others shall not get either, for it will be tried again for all of them.

        Raises:
            ConnectionLost: before everything was answered.
        """
        envelope = [sender, self._recipient(mail.to), *(self._recipient(copy) for copy in mail.copies)]
        replies: list[Reply] = []
        if self.pipelining:
            replies = await self._ask("".join(envelope).encode(), len(envelope))
        else:
            for command in envelope:
                replies += await self._ask(command.encode(), 1)
                if (refusal := _find_refusal(mail, replies[:2])) is not None:
                    return refusal, replies
        if (refusal := _find_refusal(mail, replies[:2])) is not None:
            return refusal, replies
        if len(replies) < len(envelope):
            raise ConnectionLost(self._lost)
        mail.refused = [reply for reply in replies[2:] if not 200 <= reply.code < 300]
        mail.stage = Stage.data
        (answer,) = await self._ask(b"DATA\r\n", 1)
        return (None if answer.code == 354 else answer), [answer]

    def _recipient(self, address: str) -> str:
        # ORCPT: where a forwarding address is refused further on, the report still names the one that we know.
        original = f" ORCPT=rfc822;{_to_xtext(address)}" if self.dsn and address.isascii() else ""
        return f"RCPT TO:<{address}>{original}\r\n"

    async def _send_content(self, mail: OutgoingMail) -> Reply:
        # RFC 5321, 4.5.2; the first line is a header field and begins with no dot.
        data = mail.content.replace(b"\r\n.", b"\r\n..") + b".\r\n"
        self._raise_if_lost()
        mail.stage = Stage.body
        try:
            return (await self._ask(data, 1))[0]
        except BaseException:  # lost, or cancelled by the time limit
            if not self._kernel_has_all:
                mail.stage = Stage.data  # the end never left, so the server cannot have taken the mail
            raise

    async def _abandon(self, replies: list[Reply]) -> None:
        """After a refusal: bring the connection back to where a new transaction can start, or close it."""
        if any(reply.code == 421 for reply in replies):
            return self.close()
        try:
            if len(replies) == 3 and replies[2].code == 354:
                # A pipelining server took DATA with no recipient left: it waits for a mail that must be empty
                # (RFC 2920, 3.1), and refuses it; nobody gets it in any case.
                await self._ask(b".\r\n", 1)
            if (await self._ask(b"RSET\r\n", 1))[0].code != 250:
                self.close()
        except ConnectionLost:
            self.close()
        return None

    def close(self) -> None:
        """Say goodbye without waiting for the answer."""
        if self.usable:
            self.usable = False
            self._expected = 1
            self.transport.write(b"QUIT\r\n")
            self.transport.close()

    def abort(self) -> None:
        """Drop the connection in the middle of whatever it is doing."""
        self.usable = False
        self.transport.abort()


def _to_xtext(text: str) -> str:
    """RFC 3461, 4: what may stand in a parameter; the rest as `+` and two hexadecimal digits."""
    return re.sub(r"[^!-*,-<>-~]", lambda found: f"+{ord(found[0]):02X}", text)


def _find_refusal(mail: OutgoingMail, replies: list[Reply]) -> Reply | None:
    """The first answer that is no yes; `mail.stage` becomes the stage of the last one that was looked at."""
    for stage, reply in zip((Stage.mail, Stage.rcpt, Stage.data), replies, strict=False):
        mail.stage = stage
        if (reply.code != 354) if stage is Stage.data else not 200 <= reply.code < 300:
            return reply
    return None
