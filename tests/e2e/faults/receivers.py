"""Those who are told: an endpoint for webhooks and a mail server that remember what came, and misbehave on demand."""

from __future__ import annotations

import asyncio
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from standardwebhooks import Webhook, WebhookVerificationError

from tests.contract.servers import Act, HttpRequest, SmtpScript, SmtpVendor, Vendor, http_answer

_MESSAGE_ID = re.compile(rb"^Message-ID: <([^>]*)>\r$", re.MULTILINE | re.IGNORECASE)


class Watched:
    """Something that can be waited for, not polled."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def changed(self) -> None:
        async def tell() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.create_task(tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait_until(self, condition: Callable[[], bool], timeout: float = 15) -> None:
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(condition), timeout)


@dataclass(frozen=True)
class Receipt:
    """One webhook that came in, complete and with a good signature."""

    id: str
    path: str
    at: float
    """Seconds on the event loop's clock."""
    body: bytes


class WebhookReceiver(Vendor):
    """Answers 200 unless the path's script says otherwise; keeps connections.

    Args:
        secret: `whsec_…`, to check signatures with.
    """

    def __init__(self, secret: str) -> None:
        super().__init__()
        self._verifier = Webhook(secret)
        self.scripts: dict[str, list[bytes | Act]] = defaultdict(lambda: [http_answer(200)])
        """By path: one answer after the other, the last one again and again."""
        self.latency = 0.0
        """Seconds between a request and its answer."""
        self.gate = asyncio.Event()
        """While it is not set, nobody is answered."""
        self.gate.set()
        self.receipts: list[Receipt] = []
        self.forged: list[HttpRequest] = []
        self.busy = 0
        """Requests that wait for their answer."""
        self.most_busy = 0
        self.news = Watched()

    def count(self) -> Counter[str]:
        """How often each `webhook-id` came."""
        return Counter(receipt.id for receipt in self.receipts)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head[:-4].split("\r\n")
            method, path, _ = first.split(" ")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self._take(HttpRequest(method, path, headers, body))
            script = self.scripts[path]
            answer = script.pop(0) if len(script) > 1 else script[0]
            self.busy += 1
            self.most_busy = max(self.busy, self.most_busy)
            try:
                await self.gate.wait()
                if self.latency:
                    await asyncio.sleep(self.latency)
                if isinstance(answer, Act):
                    await self.perform(answer, reader, writer)
                else:
                    writer.write(answer)
                    await writer.drain()
            finally:
                self.busy -= 1

    def _take(self, request: HttpRequest) -> None:
        try:
            self._verifier.verify(request.body, dict(request.headers))
        except WebhookVerificationError:
            self.forged.append(request)
        else:
            now = asyncio.get_running_loop().time()
            self.receipts.append(Receipt(request.headers["webhook-id"], request.target, now, request.body))
        self.news.changed()


class MailReceiver(SmtpVendor):
    """Takes mails; what it says to a recipient or a mail can be scripted by the recipient's address."""

    def __init__(self, script: SmtpScript | None = None) -> None:
        super().__init__(script)
        self.to_recipient: dict[str, list[bytes | Act]] = {}
        """Answers to RCPT by address, one after the other, the last one again and again."""
        self.received: Counter[str] = Counter()
        """How often the mail of each Message-ID came, complete to its last dot, whatever was answered."""
        self.news = Watched()

    async def say(
        self, answers: list[bytes | Act], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes:
        if answers is self.script.rcpt:
            address = self.commands[-1].partition(b"<")[2].partition(b">")[0].decode()
            answers = self.to_recipient.get(address, answers)
        return await super().say(answers, reader, writer)

    async def take_mail(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rcpt_ok: bool) -> None:
        if self.script.inside_data is None and rcpt_ok:
            text = await reader.readuntil(b"\r\n.\r\n")
            found = _MESSAGE_ID.search(text)
            assert found is not None
            self.received[found[1].decode()] += 1
            self.news.changed()
            self.mails.append(text)
            await self.say(self.script.body, reader, writer)
        else:
            await super().take_mail(reader, writer, rcpt_ok)
