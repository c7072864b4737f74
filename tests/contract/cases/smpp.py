from datetime import timedelta

from tests.contract.provider_case import DELIVERY, NOW, Answer, ProviderCase
from tests.contract.servers import Act
from tests.contract.smpp_server import SmppScript, SmppVendor
from tidings.model.messages import Deferred, Message, Rejected, SendResult, Sms, Throttled, Uncertain
from tidings.model.words import Channel, Reason

PASSWORD = "pa55word"


def config(port: int) -> dict[str, object]:
    return {
        "host": "127.0.0.1",
        "port": port,
        "security": "none",
        "system_id": "tidings",
        "password": PASSWORD,
        "senders": [{"id": "Tidings", "countries": ["DE"]}, {"id": "90210", "countries": ["US"]}, "+447700900100"],
        "enquire_seconds": 0.15,
    }


def message(content: Sms, to: str = "+14155550123", **more: object) -> Message:
    return Message(DELIVERY, Channel.sms, to, content, **more)  # type: ignore[arg-type] # the keywords of Message


def check(vendor: SmppVendor, sent: Message, key: str) -> None:
    assert [(b.system_id, b.password, b.interface_version) for b in vendor.binds] == [("tidings", PASSWORD, 0x34)]
    got, content = vendor.messages[-1], sent.content
    assert isinstance(content, Sms)
    assert got.short_message == content.text
    assert (got.destination.number, got.destination.ton, got.destination.npi) == (sent.to[1:], 1, 1)
    source = (got.source.number, got.source.ton, got.source.npi)
    if content.sender is not None:
        assert source == ("447700900100", 1, 1)
    else:
        assert source == (("Tidings", 5, 0) if sent.to.startswith("+49") else ("90210", 3, 0))
    assert got.registered_delivery == 1
    assert got.validity_period == (timedelta(minutes=10) if sent.expires_at is not None else None)


def says(label: str, expected: SendResult, **script: object) -> Answer:
    def vendor() -> SmppVendor:
        listed = {k: [v] if k == "submit" and not isinstance(v, list) else v for k, v in script.items()}
        return SmppVendor(SmppScript(**listed))  # type: ignore[arg-type] # the fields of SmppScript

    return Answer(label, vendor, expected)


CASE = ProviderCase(
    config=config,
    secrets=[PASSWORD],
    message=lambda port: message(Sms("Hi")),
    more_messages=lambda port: {
        "full": message(
            Sms("Costs {5} € ~ [now]", sender="+447700900100"), "+447700900123", expires_at=NOW + timedelta(minutes=10)
        ),
        "non-ascii": message(Sms("Grüße, Zoë 🎉 あなた"), "+4915112345678"),
    },
    undeclared=lambda port: message(Sms("Hi", media=("https://example.com/a.jpg",))),
    check=check,
    vendor=SmppVendor,
    answers=[
        says("ESME_RINVPASWD", Rejected(Reason.unauthorized), bind=0x0E),
        says("ESME_RINVSYSID", Rejected(Reason.unauthorized), bind=0x0F),
        says("ESME_RBINDFAIL", Rejected(Reason.unauthorized), bind=0x0D),
        says("a vendor's own status at bind", Rejected(Reason.unauthorized), bind=0x410),
        says("ESME_RALYBND", Deferred(Reason.provider_error), bind=0x05),
        says("ESME_RTHROTTLED at bind", Throttled(), bind=0x58),
        says("closes at bind", Deferred(Reason.connect_failed), bind=Act.close),
        says("no SMPP at bind", Deferred(Reason.connect_failed), bind=b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        says("ESME_RTHROTTLED", Throttled(), submit=0x58),
        says("ESME_RMSGQFUL", Throttled(), submit=0x14),
        says("ESME_RINVDSTADR", Rejected(Reason.invalid_address), submit=0x0B),
        says("ESME_RINVSRCADR", Rejected(Reason.no_sender), submit=0x0A),
        says("ESME_RINVMSGLEN", Rejected(Reason.too_large), submit=0x01),
        says("ESME_RSYSERR", Deferred(Reason.provider_error), submit=0x08),
        says("ESME_RSUBMITFAIL", Deferred(Reason.provider_error), submit=0x45),
        says("ESME_RX_T_APPN", Deferred(Reason.provider_error), submit=0x64),
        says("ESME_RX_R_APPN", Rejected(Reason.rejected), submit=0x66),
        says("a vendor's own status", Rejected(Reason.rejected), submit=0x400),
        says("closes after the message", Uncertain(), submit=Act.close),
        # generic_nack with the message's number (2: the bind was 1)
        says("generic_nack", Rejected(Reason.rejected), submit=bytes.fromhex("00000010 80000000 00000003 00000002")),
        says("no SMPP after the message", Uncertain(), submit=b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    ],
    hangs_after_send=lambda: SmppVendor(SmppScript(submit=[Act.hang])),
    resets_after_send=lambda: SmppVendor(SmppScript(submit=[Act.reset])),
    garbage=lambda: SmppVendor(SmppScript(submit=[b"\x00\xff 220 what is this\r\n\r\n"])),
    oversize=lambda: SmppVendor(SmppScript(submit=[b"\x00\x4c\x4b\x40" + b"x" * 5_000_000])),
)
