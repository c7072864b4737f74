"""An SMS centre that speaks SMPP 3.4 with `aiosmpplib`'s codec, which shares nothing with ours."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aiosmpplib.protocol import (
    MESSAGE_TYPE_MAP,
    PDU_HEADER_LENGTH,
    BindTransceiver,
    BindTransceiverResp,
    BindTransmitter,
    BindTransmitterResp,
    DeliverSm,
    DeliverSmResp,
    EnquireLink,
    EnquireLinkResp,
    SmppMessage,
    SubmitSm,
    SubmitSmResp,
    Unbind,
    UnbindResp,
)
from aiosmpplib.state import SmppCommandStatus

from tests.contract.servers import Act, Vendor


@dataclass
class SmppScript:
    """What the centre answers. A list gives one answer after the other; the last one again and again."""

    bind: int | bytes | Act = 0
    """A command_status, or octets that are written in place of an answer."""
    submit: list[int | bytes | Act] = field(default_factory=lambda: [0])
    ids: Sequence[str] = ()
    """Ids of messages, one after the other; then they are made up."""
    answers_probes: bool = True
    holds: int = 0
    """Answers nothing before so many messages are there; then all of them, the last one first."""


class SmppVendor(Vendor):
    """Takes messages by the script, and hands over what a test wants to have delivered."""

    def __init__(self, script: SmppScript | None = None, tls: ssl.SSLContext | None = None) -> None:
        super().__init__()
        self._tls = tls
        self.script = script or SmppScript()
        self.binds: list[BindTransceiver] = []
        self.messages: list[SubmitSm] = []
        self.raw: list[bytes] = []
        self.answered: asyncio.Queue[int] = asyncio.Queue()
        """The command_status of each answer to a deliver_sm."""
        self.bound = asyncio.Event()
        self.unbound = asyncio.Event()
        self.probed = asyncio.Event()
        self._held: list[SubmitSm] = []
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> SmppVendor:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        while True:
            head = await reader.readexactly(PDU_HEADER_LENGTH)
            header = SmppMessage.parse_header(head)
            pdu = head + await reader.readexactly(header.pdu_length - PDU_HEADER_LENGTH)
            kind: Any = MESSAGE_TYPE_MAP[header.smpp_command]
            asked = kind.from_pdu(pdu, header, "gsm0338")
            if isinstance(asked, BindTransceiver):  # a transmitter's is one too
                self.binds.append(asked)
                answer = BindTransmitterResp if isinstance(asked, BindTransmitter) else BindTransceiverResp
                await self._say(self.script.bind, asked, answer(system_id="centre"), reader)
                self.bound.set()
            elif isinstance(asked, DeliverSmResp):
                self.answered.put_nowait(asked.command_status)
            elif isinstance(asked, SubmitSm):
                self.messages.append(asked)
                self.raw.append(pdu)
                self._held.append(asked)
                if len(self._held) >= self.script.holds:
                    for held in reversed(self._held):
                        await self._answer(held, reader)
                    self._held.clear()
            elif isinstance(asked, EnquireLink):
                self.probed.set()
                if self.script.answers_probes:
                    self._write(EnquireLinkResp(asked.sequence_num))
            elif isinstance(asked, Unbind):
                self.unbound.set()
                self._write(UnbindResp(asked.sequence_num))

    async def _answer(self, asked: SubmitSm, reader: asyncio.StreamReader) -> None:
        script = self.script
        status = script.submit.pop(0) if len(script.submit) > 1 else script.submit[0]
        number = len(self.messages) - 1
        id_ = script.ids[number] if number < len(script.ids) else f"id-{asked.sequence_num}"
        await self._say(status, asked, SubmitSmResp(message_id=id_), reader)

    async def _say(self, what: int | bytes | Act, asked: Any, answer: Any, reader: asyncio.StreamReader) -> None:
        if isinstance(what, Act):
            await self.perform(what, reader, self._writer)
        elif isinstance(what, bytes):
            self._writer.write(what)
            await self._writer.drain()
        else:
            answer.sequence_num = asked.sequence_num
            pdu = answer.pdu()
            # Not through the library: it knows only the specification's own.
            self._writer.write(pdu[:8] + what.to_bytes(4, "big") + pdu[12:])

    def _write(self, message: Any) -> None:
        assert message.command_status is SmppCommandStatus.ESME_ROK
        self._writer.write(message.pdu())

    def deliver(self, message: DeliverSm) -> None:
        """Hand it to the session that came last."""
        self._write(message)

    def unbind(self) -> None:
        self._write(Unbind(99))

    async def wait_until_bound(self) -> None:
        await asyncio.wait_for(self.bound.wait(), 5)
        self.bound.clear()
