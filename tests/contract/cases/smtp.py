import base64
import re
from email import message_from_bytes, policy
from typing import Any

import dkim
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.contract.provider_case import DELIVERY, NOW, Answer, ProviderCase
from tests.contract.servers import Act, SmtpScript, SmtpVendor
from tidings.model.messages import Attachment, Deferred, Email, Message, Rejected, SendResult, Sms, Throttled, Uncertain
from tidings.model.words import Channel, Reason

_KEY = rsa.generate_private_key(65537, 2048)
PEM = _KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()


def dns(name: bytes, timeout: int = 5) -> bytes:
    public = _KEY.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)


def message(content: Email, to: str = "ada@example.com") -> Message:
    return Message(DELIVERY, Channel.email, to, content)


def check(vendor: SmtpVendor, sent: Message, key: str) -> None:
    mail = message_from_bytes(vendor.mails[-1], policy=policy.default)
    content = sent.content
    assert isinstance(content, Email)
    assert mail["subject"] == content.subject
    assert mail["to"] == sent.to
    assert re.fullmatch(rf"<{key}-[0-9a-f]{{16}}@example\.com>", mail["message-id"])
    assert dkim.verify(vendor.mails[-1], dnsfunc=dns)
    assert mail["date"].datetime == NOW
    assert mail["mime-version"] == "1.0"
    assert mail["reply-to"] == content.reply_to
    assert [(name, mail[name]) for name, _ in content.headers] == list(content.headers)
    recipients = [sent.to, *content.cc, *content.bcc]
    sender, *named, _ = vendor.commands[-len(recipients) - 2 :]
    assert sender.startswith(b"MAIL FROM:<bounces+%b-" % key.encode())
    assert b"@bounce.example.com> SIZE=" in sender
    assert named == [f"RCPT TO:<{address}>".encode() for address in recipients]
    files = {part.get_filename(): part.get_payload(decode=True) for part in mail.walk() if part.get_filename()}
    assert files == {file.filename: file.content for file in content.attachments}
    for kind, expected in (("plain", content.text), ("html", content.html)):
        part = mail.get_body((kind,))
        found = part.get_content().replace("\r\n", "\n") if part is not None else None
        # A single part that does not end with a line end gets one.
        assert found in (expected, f"{expected}\n")


def says(label: str, expected: SendResult, **script: Any) -> Answer:
    def vendor() -> SmtpVendor:
        fields: dict[str, Any] = {k: [v] if isinstance(v, bytes | Act) else v for k, v in script.items()}
        return SmtpVendor(SmtpScript(**fields))

    return Answer(label, vendor, expected)


def greets(label: str, expected: SendResult, greeting: bytes | Act) -> Answer:
    return Answer(label, lambda: SmtpVendor(SmtpScript(greeting=greeting)), expected)


PLAIN = ("8BITMIME",)  # no PIPELINING
GREYLISTED = Deferred(Reason.greylisted)

CASE = ProviderCase(
    config=lambda port: {
        "host": "127.0.0.1",
        "port": port,
        "security": "none",
        "from_address": "The Shop <shop@example.com>",
        "helo_name": "client.example.com",
        "return_path": "bounces+{key}@bounce.example.com",
        "verp_secret": "a-secret-for-tags",
        "dkim_domain": "example.com",
        "dkim_selector": "s1",
        "dkim_private_key": PEM,
    },
    message=lambda port: message(Email("Hi", text="Hello")),
    more_messages=lambda port: {
        "full": message(
            Email(
                "Your order has shipped",
                text="Hello Ada\n.\n..leading dots\n",
                html="<p>Hello Ada</p>\n.\n" + "x" * 3000,
                from_='"Shop, The" <shop@example.com>',
                reply_to="help@example.com",
                headers=(("X-Order", "A-1"), ("List-Unsubscribe", "<https://example.com/u/1>")),
            )
        ),
        "files and copies": message(
            Email(
                "Your bill",
                text="Hello",
                html='<img src="cid:logo">',
                cc=("bob@example.com",),
                bcc=("eve@example.com",),
                attachments=(
                    Attachment("bill.pdf", "application/pdf", b"%PDF" + bytes(range(256))),
                    Attachment("Grüße.png", "image/png", b"\x89PNG", "logo"),
                ),
            )
        ),
        "non-ascii": message(
            Email("Grüße aus Köln 🎉 " * 9, text="Zoë\nあなた", html="<p>Zoë</p>", from_="Zoë <shop@example.com>")
        ),
    },
    undeclared=lambda port: Message(DELIVERY, Channel.sms, "+14155550123", Sms("Hi")),
    check=check,
    secrets=("a-secret-for-tags", PEM, PEM.splitlines()[1]),
    vendor=SmtpVendor,
    answers=[
        greets("greeting 554", Rejected(Reason.blocked), b"554 5.7.1 go away\r\n"),
        greets("greeting 421", Deferred(Reason.provider_error), b"421 4.3.2 shutting down\r\n"),
        greets("greeting 421 4.7.0", Throttled(), b"421 4.7.0 too many connections\r\n"),
        greets("greeting closes", Deferred(Reason.connect_failed), Act.close),
        says("sender refused", Rejected(Reason.blocked), mail=b"550 5.7.1 sender not allowed\r\n"),
        says("sender refused, plain", Rejected(Reason.blocked), mail=b"550 no\r\n", extensions=PLAIN),
        says("sender throttled", Throttled(), mail=b"451 4.7.1 slow down\r\n"),
        says("not authenticated", Rejected(Reason.unauthorized), mail=b"530 5.7.0 authentication required\r\n"),
        says("too large at MAIL", Rejected(Reason.too_large), mail=b"552 5.3.4 too big\r\n"),
        says("no such user", Rejected(Reason.bounced), rcpt=b"550 5.1.1 no such user\r\n"),
        says("no such user, plain", Rejected(Reason.bounced), rcpt=b"550 5.1.1 no\r\n", extensions=PLAIN),
        says(
            "no such user, but DATA was taken",  # RFC 2920, 3.1
            Rejected(Reason.bounced),
            rcpt=b"550 5.1.1 no such user\r\n",
            data=[b"354 go ahead\r\n", b"354 go ahead\r\n"],
        ),
        says("basic 550", Rejected(Reason.bounced), rcpt=b"550 no\r\n"),
        says("basic 553", Rejected(Reason.invalid_address), rcpt=b"553 no\r\n"),
        says("full for good", Rejected(Reason.mailbox_full), rcpt=b"552 5.2.2 over quota\r\n"),
        says("full", Deferred(Reason.mailbox_full), rcpt=b"452 4.2.2 over quota\r\n"),
        says("greylisted", GREYLISTED, rcpt=b"450 4.7.1 greylisted, come back\r\n"),
        says("greylisted, basic", GREYLISTED, rcpt=b"451 try later\r\n"),
        says("several lines", GREYLISTED, rcpt=b"450-4.7.1 greylisted\r\n450 4.7.1 come back\r\n"),
        says("out of space", Deferred(Reason.provider_error), rcpt=b"452 4.3.1 no space\r\n"),
        says("policy at RCPT", Rejected(Reason.blocked), rcpt=b"554 5.7.1 listed at example\r\n"),
        says("unknown 5xx", Rejected(Reason.rejected), rcpt=b"555 5.5.4 parameters\r\n"),
        says("DATA refused", Deferred(Reason.provider_error), data=b"451 4.3.0 queue down\r\n"),
        says("DATA nonsense", Deferred(Reason.bad_answer), data=b"250 sure\r\n"),
        says("spam", Rejected(Reason.content_rejected), body=b"554 5.7.1 spam\r\n"),
        says("spam, basic", Rejected(Reason.content_rejected), body=b"550 spam\r\n"),
        says("too large", Rejected(Reason.too_large), body=b"552 5.3.4 too big\r\n"),
        says("later", Deferred(Reason.provider_error), body=b"451 4.3.0 later\r\n"),
        says("421 at the end", Deferred(Reason.provider_error), body=b"421 4.3.2 bye\r\n"),
        says("nonsense at the end", Uncertain(), body=b"354 again\r\n"),
        says("drops at MAIL", Deferred(Reason.connect_failed), mail=Act.reset),
        says("drops at DATA", Deferred(Reason.connect_failed), data=Act.close),
        says("drops at the end", Uncertain(), body=Act.close),
    ],
    hangs_after_send=lambda: SmtpVendor(SmtpScript(body=[Act.hang])),
    resets_after_send=lambda: SmtpVendor(SmtpScript(body=[Act.reset])),
    garbage=lambda: SmtpVendor(SmtpScript(mail=[b"HTTP/1.1 200 OK\r\n"])),
    oversize=lambda: SmtpVendor(SmtpScript(mail=[b"250-never ending\r\n" * 300_000])),
)
