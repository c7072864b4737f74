"""SMPP beyond what every provider has to do: parts, alphabets, windows, the life of a session, receipts."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from aiosmpplib.protocol import BindTransceiver, BindTransmitter, DeliverSm, SubmitSm
from aiosmpplib.state import MESSAGE_STATE, NPI, RECEIPTED_MESSAGE_ID, TON, OptionalParam, PhoneNumber
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.cases.smpp import CASE, message
from tests.contract.http2_server import make_certificate
from tests.contract.provider_case import DELIVERY, NOW, FixedClock
from tests.contract.servers import Act, free_port
from tests.contract.smpp_server import SmppScript, SmppVendor
from tidings.errors import Invalid
from tidings.ids import to_public
from tidings.model.messages import Deferred, Rejected, SendResult, Sent, Sms, Throttled, Uncertain
from tidings.model.segments import decode_gsm
from tidings.model.words import EventKind, Reason
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport
from tidings.providers.pdu import parse_delivered, to_validity
from tidings.providers.port import Inbound, Receipts, Report, Surroundings
from tidings.providers.registry import parse_config
from tidings.providers.smpp import SmppConfig, SmppProvider, encode_parts, to_receipts

KEY = to_public("dlv", DELIVERY)
PHONE = PhoneNumber("14155550123", TON.INTERNATIONAL, NPI.ISDN)
OURS = PhoneNumber("447700900100", TON.INTERNATIONAL, NPI.ISDN)


def configured(port: int = 1025, **changes: Any) -> SmppConfig:
    config = parse_config("smpp", {**CASE.config(port), **changes})
    assert isinstance(config, SmppConfig)
    return config


@contextlib.asynccontextmanager
async def provider_for(
    port: int, timeout: timedelta | None = None, guard: Guard | None = None, **changes: Any
) -> AsyncIterator[SmppProvider]:
    guard = guard or Guard(["127.0.0.0/8"])
    surroundings = Surroundings(AiohttpTransport(guard), guard, FixedClock(), timeout=timeout)
    provider = SmppProvider(configured(port, **changes), surroundings)
    try:
        yield provider
    finally:
        await provider.close()


class Ear:
    """Keeps what came over a session."""

    def __init__(self, failures: int = 0) -> None:
        self.heard: asyncio.Queue[Receipts] = asyncio.Queue()
        self.failures = failures

    async def __call__(self, receipts: Receipts) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the database is away")
        self.heard.put_nowait(receipts)

    async def next(self) -> Receipts:
        return await asyncio.wait_for(self.heard.get(), 5)


# --- what is sent -----------------------------------------------------------------------------------------------------


async def send(text: str, **changes: Any) -> tuple[SmppVendor, SendResult]:
    vendor = SmppVendor(SmppScript(ids=["id-1", "id-2", "id-3"]))
    async with vendor, provider_for(vendor.port, **changes) as provider:
        return vendor, await provider.send(message(Sms(text)), KEY)


@pytest.mark.parametrize(
    ("text", "coding", "parts"),
    [("a" * 160, None, 1), ("a" * 161, None, 2), ("€" * 81, None, 2), ("я" * 70, "ucs2", 1), ("😀" * 70, "ucs2", 3)],
)
async def test_long_texts_are_cut_with_headers(text: str, coding: str | None, parts: int) -> None:
    vendor, result = await send(text)
    assert result == Sent(f"id-{parts}")
    assert len(vendor.messages) == parts
    assert "".join(m.short_message for m in vendor.messages) == text
    assert {m.encoding for m in vendor.messages} == {coding}
    if parts == 1:
        assert not vendor.messages[0].is_segmented()
    else:
        references, numbers, totals = zip(*(m.get_segmentation_data() for m in vendor.messages), strict=True)
        assert (len(set(references)), numbers, set(totals)) == (1, tuple(range(1, parts + 1)), {parts})
        assert all(m.esm_class == 0x40 for m in vendor.messages)
    # One receipt for the whole: of the part whose id the message has.
    assert [m.registered_delivery for m in vendor.messages] == [0] * (parts - 1) + [1]


@pytest.mark.parametrize("text", ["a" * 161, "a" * 300, "я" * 71, "я" * 300])
async def test_long_texts_can_go_whole(text: str) -> None:
    vendor, result = await send(text, long_messages="payload")
    assert isinstance(result, Sent)
    [got] = vendor.messages
    assert (got.short_message or got.message_payload) == text
    assert got.esm_class == 0


def test_alphabets() -> None:
    latin = configured(default_alphabet="latin-1")
    assert encode_parts("Grüße", 1, latin) == (0, ["Grüße".encode("latin-1")])
    assert encode_parts("5 €", 1, latin) == (8, ["5 €".encode("utf-16-be")])
    assert len(encode_parts("€" + "a" * 70, 1, latin)[1]) == 2
    assert encode_parts("5 €", 1, configured()) == (0, [b"5 \x1be"])


@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("ab€é"), max_size=400), st.integers())
def test_no_part_is_larger_than_a_telephone_takes(text: str, reference: int) -> None:
    coding, parts = encode_parts(text, reference, configured())
    joined = len(parts) > 1
    for part in parts:
        body = part[6:] if joined else part
        octets = len(body) if coding else -(-len(body) * 7 // 8)
        assert octets + 6 * joined <= 140
    bodies = [part[6:] if joined else part for part in parts]
    found = "".join(b.decode("utf-16-be") for b in bodies) if coding else "".join(map(decode_gsm, bodies))
    assert found == text


@given(st.integers(1, 63 * 86_400))
def test_validity_is_read_back_by_another_implementation(seconds: int) -> None:
    assert SubmitSm.smpp_time_to_datetime(to_validity(timedelta(seconds=seconds))) == timedelta(seconds=seconds)


def test_validity_stays_within_what_the_field_holds() -> None:
    assert to_validity(timedelta(seconds=-5)) == "000000000001000R"
    assert to_validity(timedelta(days=400)) == "000203000000000R"


@pytest.mark.parametrize(
    ("submit", "expected"),
    [
        ([0, 0x58], Uncertain("1 of 3 parts were taken; command_status 0x00000058")),
        ([0, 0, Act.close], Uncertain("connection closed by the centre")),
        ([0x0B], Rejected(Reason.invalid_address, "command_status 0x0000000B")),
    ],
)
async def test_a_text_of_which_only_a_part_was_taken(submit: list[Any], expected: SendResult) -> None:
    vendor = SmppVendor(SmppScript(submit=submit))
    async with vendor, provider_for(vendor.port) as provider:
        assert await provider.send(message(Sms("a" * 400)), KEY) == expected


async def test_expired_already() -> None:
    vendor = SmppVendor()
    async with vendor, provider_for(vendor.port) as provider:
        await provider.send(message(Sms("Hi"), expires_at=NOW - timedelta(seconds=1)), KEY)
    assert vendor.messages[0].validity_period == timedelta(seconds=1)


# --- the window -------------------------------------------------------------------------------------------------------


async def test_messages_wait_for_their_answers_together_and_answers_may_come_in_any_order() -> None:
    texts = [f"message {i}" for i in range(10)]
    vendor = SmppVendor(SmppScript(holds=10))
    async with vendor, provider_for(vendor.port, window=10) as provider:
        results = await asyncio.gather(*(provider.send(message(Sms(text)), KEY) for text in texts))
    by_text = {m.short_message: f"id-{m.sequence_num}" for m in vendor.messages}
    assert [r.provider_id for r in results if isinstance(r, Sent)] == [by_text[text] for text in texts]
    assert vendor.connections == 1


async def test_no_more_messages_than_the_window_holds() -> None:
    vendor = SmppVendor(SmppScript(holds=3))
    async with vendor, provider_for(vendor.port, timedelta(milliseconds=400), window=2) as provider:
        results = await asyncio.gather(*(provider.send(message(Sms("Hi")), KEY) for _ in range(3)))
    assert [type(r) for r in results] == [Uncertain, Uncertain, Throttled]
    assert len(vendor.messages) == 2


# --- the life of a session --------------------------------------------------------------------------------------------


async def test_an_idle_link_is_probed_and_kept() -> None:
    vendor = SmppVendor()
    async with vendor, provider_for(vendor.port, enquire_seconds=0.05) as provider:
        assert isinstance(await provider.send(message(Sms("Hi")), KEY), Sent)
        for _ in range(3):
            await asyncio.wait_for(vendor.probed.wait(), 5)
            vendor.probed.clear()
        assert isinstance(await provider.send(message(Sms("Hi")), KEY), Sent)
        assert vendor.connections == 1


async def test_a_link_whose_probe_is_not_answered_is_given_up() -> None:
    vendor = SmppVendor(SmppScript(answers_probes=False))
    async with vendor, provider_for(vendor.port, enquire_seconds=0.05) as provider:
        assert isinstance(await provider.send(message(Sms("Hi")), KEY), Sent)
        await vendor.wait_until_nobody_is_connected()
        assert isinstance(await provider.send(message(Sms("Hi")), KEY), Sent)
        assert vendor.connections == 2


async def test_a_session_that_the_centre_ends_is_opened_anew() -> None:
    vendor = SmppVendor()
    async with vendor, provider_for(vendor.port) as provider:
        assert isinstance(await provider.send(message(Sms("Hi")), KEY), Sent)
        vendor.unbind()
        await vendor.wait_until_nobody_is_connected()
        assert isinstance(await provider.send(message(Sms("Hi")), KEY), Sent)
        assert vendor.connections == 2


async def test_closing_says_goodbye() -> None:
    vendor = SmppVendor()
    async with vendor:
        async with provider_for(vendor.port) as provider:
            await provider.send(message(Sms("Hi")), KEY)
        await asyncio.wait_for(vendor.unbound.wait(), 5)


async def test_nothing_in_the_clear_to_public_networks() -> None:
    async with provider_for(2775, host="1.1.1.1", guard=Guard()) as provider:
        assert await provider.send(message(Sms("Hi")), KEY) == Rejected(
            Reason.target_refused, "the centre has to be reached over TLS"
        )


async def test_inner_targets_are_refused() -> None:
    async with SmppVendor() as vendor, provider_for(vendor.port, guard=Guard(), security="tls") as provider:
        result = await provider.send(message(Sms("Hi")), KEY)
        assert isinstance(result, Rejected)
        assert result.reason is Reason.target_refused
        assert vendor.connections == 0


async def test_a_centre_that_does_not_speak_tls() -> None:
    vendor = SmppVendor()
    async with vendor, provider_for(vendor.port, timedelta(milliseconds=400), security="tls") as provider:
        result = await provider.send(message(Sms("Hi")), KEY)
        assert isinstance(result, Deferred)
        assert result.reason is Reason.connect_failed
        assert not vendor.binds


async def test_tls() -> None:
    pem, context = make_certificate()
    vendor = SmppVendor(tls=context)
    tls: dict[str, Any] = {"security": "tls", "ca_pem": pem}
    async with vendor:
        async with provider_for(vendor.port, **tls) as provider:
            assert isinstance(await provider.send(message(Sms("Hi")), KEY), Sent)
        async with provider_for(vendor.port, security="tls") as provider:
            result = await provider.send(message(Sms("Hi")), KEY)
            assert isinstance(result, Deferred), "an unknown certificate is not trusted"
            assert result.reason is Reason.connect_failed
        async with provider_for(vendor.port, **{**tls, "host": "localhost"}) as provider:
            assert isinstance(await provider.send(message(Sms("Hi")), KEY), Deferred), "nor one of another name"
        async with provider_for(vendor.port, security="tls", verify_certificates=False) as provider:
            assert isinstance(await provider.send(message(Sms("Hi")), KEY), Sent)
    assert [m.short_message for m in vendor.messages] == ["Hi", "Hi"]


# --- what comes -------------------------------------------------------------------------------------------------------


def receipt(text: str, *options: OptionalParam, esm_class: int = 0x04) -> DeliverSm:
    return DeliverSm(
        sequence_num=7, short_message=text, source=PHONE, destination=OURS, esm_class=esm_class,
        registered_delivery=0, optional_params=list(options),
    )  # fmt: skip


def parsed(delivered: DeliverSm, **changes: Any) -> Receipts:
    return to_receipts(parse_delivered(delivered.pdu()[16:]), configured(**changes))


def text_of(stat: str, id_: str = "id-1") -> str:
    return (
        f"id:{id_} sub:001 dlvrd:001 submit date:2611221000 done date:2611221001 stat:{stat} err:000 "
        "Text:stat:EXPIRED secret"
    )


@pytest.mark.parametrize(
    ("stat", "kind", "reason"),
    [
        ("DELIVRD", EventKind.delivered, None),
        ("ACCEPTD", EventKind.sent, None),
        ("ENROUTE", EventKind.sent, None),
        ("EXPIRED", EventKind.failed, Reason.expired),
        ("DELETED", EventKind.failed, Reason.cancelled),
        ("UNDELIV", EventKind.failed, Reason.rejected),
        ("REJECTD", EventKind.failed, Reason.blocked),
    ],
)
def test_receipt(stat: str, kind: EventKind, reason: Reason | None) -> None:
    [report] = parsed(receipt(text_of(stat))).reports
    assert (report.kind, report.reason) == (kind, reason)
    assert (report.provider_id, report.key, report.address) == ("id-1", None, "+14155550123")
    assert "secret" not in str(report.detail)
    assert f"stat:{stat}" in report.detail["receipt"]


def test_receipts_with_parameters_beat_their_text() -> None:
    options = (OptionalParam(RECEIPTED_MESSAGE_ID, "id-2"), OptionalParam(MESSAGE_STATE, 2))
    [report] = parsed(receipt(text_of("UNDELIV"), *options)).reports
    assert (report.kind, report.provider_id) == (EventKind.delivered, "id-2")
    [report] = parsed(receipt("free words", *options)).reports
    assert (report.kind, report.provider_id) == (EventKind.delivered, "id-2")


def test_intermediate_notification_is_not_the_end() -> None:
    [report] = parsed(receipt(text_of("UNDELIV"), esm_class=0x20)).reports
    assert report.kind is EventKind.retrying


def test_receipts_that_say_nothing() -> None:
    assert parsed(receipt(text_of("UNKNOWN"))) == Receipts()
    assert parsed(receipt("read by its owner", esm_class=0x10)) == Receipts()
    with pytest.raises(ValueError, match="names no message"):
        parsed(receipt("stat:DELIVRD"))


def test_ids_that_receipts_write_in_decimal() -> None:
    [report] = parsed(receipt(text_of("DELIVRD", "0000003735928559")), receipt_ids="decimal").reports
    assert report.provider_id == "3735928559"
    options = (OptionalParam(RECEIPTED_MESSAGE_ID, "DEADBEEF"),)
    [report] = parsed(receipt(text_of("DELIVRD", "3735928559"), *options), receipt_ids="decimal").reports
    assert report.provider_id == "3735928559"


async def test_sent_ids_have_the_form_of_receipts() -> None:
    vendor = SmppVendor(SmppScript(ids=["DEADBEEF"]))
    async with vendor, provider_for(vendor.port, receipt_ids="decimal") as provider:
        assert await provider.send(message(Sms("Hi")), KEY) == Sent("3735928559")


def wrote(text: str, **more: Any) -> DeliverSm:
    return DeliverSm(sequence_num=8, short_message=text, source=PHONE, destination=OURS, registered_delivery=0, **more)


@pytest.mark.parametrize(
    ("text", "encoding", "keyword"),
    [("STOP", None, "stop"), ("Grüße [€]", None, None), ("あなた 😀", "ucs2", None), ("Help", "latin_1", "help")],
)
def test_inbound_message(text: str, encoding: str | None, keyword: str | None) -> None:
    told = parsed(wrote(text, encoding=encoding))
    assert told.inbound == (Inbound("+14155550123", "+447700900100", text, keyword=keyword),)


def test_inbound_message_with_a_header_or_in_the_payload() -> None:
    delivered = parse_delivered(wrote("x").pdu()[16:])
    joined = to_receipts(
        type(delivered)("14155550123", "90210", 0x40, 0, b"\x05\x00\x03\x07\x02\x01Hello", {}), configured()
    )
    assert joined.inbound == (Inbound("+14155550123", "90210", "Hello"),)
    [inbound] = parsed(DeliverSm(sequence_num=8, message_payload="y" * 300, source=PHONE, destination=OURS)).inbound
    assert inbound.text == "y" * 300
    assert to_receipts(type(delivered)("1", "2", 0, 4, b"\x00\x01", {}), configured()) == Receipts()  # binary


@given(st.binary(max_size=120))
def test_broken_octets_are_refused_or_read(octets: bytes) -> None:
    with contextlib.suppress(ValueError):
        to_receipts(parse_delivered(octets), configured())


async def test_what_comes_reaches_the_listener_and_is_acknowledged() -> None:
    vendor, ear = SmppVendor(), Ear()
    async with vendor, provider_for(vendor.port) as provider:
        provider.listen(ear)
        await vendor.wait_until_bound()  # without a message to send
        assert isinstance(vendor.binds[0], BindTransceiver)
        assert not isinstance(vendor.binds[0], BindTransmitter)
        result = await provider.send(message(Sms("Hi")), KEY)
        assert isinstance(result, Sent)
        vendor.deliver(receipt(text_of("DELIVRD", result.provider_id or "")))
        [report] = (await ear.next()).reports
        assert isinstance(report, Report)
        assert (report.kind, report.provider_id) == (EventKind.delivered, result.provider_id)
        vendor.deliver(wrote("Stop"))
        assert [i.keyword for i in (await ear.next()).inbound] == ["stop"]
        assert [await vendor.answered.get() for _ in range(2)] == [0, 0]
        assert vendor.connections == 1


async def test_what_the_listener_cannot_keep_is_delivered_again() -> None:
    vendor, ear = SmppVendor(), Ear(failures=1)
    async with vendor, provider_for(vendor.port) as provider:
        provider.listen(ear)
        await vendor.wait_until_bound()
        for expected in (0x64, 0):  # ESME_RX_T_APPN, then taken
            vendor.deliver(wrote("Stop"))
            assert await asyncio.wait_for(vendor.answered.get(), 5) == expected
        assert (await ear.next()).inbound


async def test_a_flood_waits_at_the_centre_and_not_here() -> None:
    """What is more than can be kept at a time is to be delivered again; messages of ours are not held up by it."""
    vendor, gate = SmppVendor(), asyncio.Event()

    async def handle(receipts: Receipts) -> None:
        await gate.wait()

    async with vendor, provider_for(vendor.port) as provider:
        provider.listen(handle)
        await vendor.wait_until_bound()
        for _ in range(150):
            vendor.deliver(wrote("Hello"))
        assert isinstance(await provider.send(message(Sms("Hi")), KEY), Sent)
        assert [await asyncio.wait_for(vendor.answered.get(), 5) for _ in range(50)] == [0x64] * 50
        gate.set()
        assert [await asyncio.wait_for(vendor.answered.get(), 5) for _ in range(100)] == [0] * 100


async def test_what_nobody_understands_is_not_delivered_again() -> None:
    vendor, ear = SmppVendor(), Ear()
    async with vendor, provider_for(vendor.port) as provider:
        provider.listen(ear)
        await vendor.wait_until_bound()
        for broken in (receipt("no id"), receipt(text_of("UNKNOWN"))):
            vendor.deliver(broken)
            assert await asyncio.wait_for(vendor.answered.get(), 5) == 0
        assert ear.heard.empty()


async def test_a_listener_is_bound_again_after_every_loss() -> None:
    vendor, ear = SmppVendor(), Ear()
    async with vendor, provider_for(vendor.port) as provider:
        provider.listen(ear)
        for _ in range(3):
            await vendor.wait_until_bound()
            vendor.unbind()
        await vendor.wait_until_bound()
        vendor.deliver(wrote("Hello"))
        assert (await ear.next()).inbound[0].text == "Hello"


async def test_listening_waits_for_a_centre_that_is_not_there_yet() -> None:
    port, ear = free_port(), Ear()
    async with provider_for(port) as provider:
        provider.listen(ear)
        assert isinstance(await provider.send(message(Sms("Hi")), KEY), Deferred)


async def test_who_begins_to_listen_later_is_bound_anew() -> None:
    vendor, ear = SmppVendor(), Ear()
    async with vendor, provider_for(vendor.port) as provider:
        assert isinstance(await provider.send(message(Sms("Hi")), KEY), Sent)
        assert isinstance(vendor.binds[0], BindTransmitter)
        await vendor.wait_until_bound()
        provider.listen(ear)
        await vendor.wait_until_bound()
        assert not isinstance(vendor.binds[1], BindTransmitter)


async def test_without_a_listener_nothing_is_taken() -> None:
    vendor = SmppVendor()
    async with vendor, provider_for(vendor.port) as provider:
        await provider.send(message(Sms("Hi")), KEY)
        vendor.deliver(wrote("Hello"))
        assert await asyncio.wait_for(vendor.answered.get(), 5) == 0x64


async def test_an_unknown_request_of_the_centre_is_answered_with_generic_nack() -> None:
    unknown = struct.pack("!IIII", 16, 0x103, 0, 5)  # data_sm
    vendor = SmppVendor(SmppScript(submit=[unknown]))
    async with vendor, provider_for(vendor.port, timedelta(milliseconds=300)) as provider:
        assert isinstance(await provider.send(message(Sms("Hi")), KEY), Uncertain)
        assert [m.short_message for m in vendor.messages] == ["Hi"]


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "no host"},
        {"system_id": ""},
        {"system_id": "x" * 16},
        {"password": "päss"},
        {"ca_pem": "no certificate"},
        {"senders": ["MG" + "0" * 40]},
        {"window": 0},
    ],
)
def test_configurations_that_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        configured(**changes)
