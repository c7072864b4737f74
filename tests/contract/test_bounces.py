"""Mails that came back: published bounces and complaints, real ones of Postfix, forged ones, and any octets at all."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.contract import golden
from tests.contract.golden import cases, load
from tests.contract.provider_case import DELIVERY, NOW
from tests.contract.servers import SmtpVendor
from tests.contract.test_smtp import KEY, VERP, provider, send
from tidings.ids import to_public
from tidings.model.messages import Sent
from tidings.model.words import EventKind, Reason
from tidings.providers.bounces import Bounce, Returned, parse_bounce
from tidings.providers.port import RawRequest, Receipts, Report
from tidings.providers.refusals import decide_reason
from tidings.providers.smtp import SmtpProvider

FILE = "bounces/expected.json"

SAME_REASON: dict[str, set[Reason]] = {
    # An unknown, moved or closed mailbox, an unknown domain.
    "userunknown": {Reason.bounced, Reason.invalid_address},
    "hostunknown": {Reason.bounced},
    "hasmoved": {Reason.bounced},
    "suspend": {Reason.bounced},
    "mailboxfull": {Reason.mailbox_full},
    # Sisimai's "filtered" is a no after the whole mail was sent, mostly with the words of an unknown user.
    "filtered": {Reason.bounced, Reason.rejected, Reason.blocked, Reason.content_rejected},
    # Not now, or not this way: suppresses nothing.
    "expired": {Reason.connect_failed, Reason.provider_error, Reason.greylisted},
    "networkerror": {Reason.connect_failed, Reason.provider_error, Reason.rejected},
    "systemerror": {Reason.provider_error, Reason.rejected, Reason.connect_failed},
    "systemfull": {Reason.provider_error, Reason.mailbox_full},
    "mailererror": {Reason.provider_error, Reason.rejected},
    "onhold": {Reason.rejected, Reason.provider_error, Reason.blocked},
    "syntaxerror": {Reason.provider_error, Reason.rejected},
    # It is about the sender.
    "rejected": {Reason.blocked, Reason.rejected, Reason.content_rejected},
    "blocked": {Reason.blocked, Reason.throttled},
    "requireptr": {Reason.blocked},
    "badreputation": {Reason.blocked},
    "toomanyconn": {Reason.blocked, Reason.throttled},
    "speeding": {Reason.blocked, Reason.throttled},
    "authfailure": {Reason.blocked, Reason.unauthorized, Reason.content_rejected},
    "norelaying": {Reason.blocked, Reason.rejected, Reason.unauthorized},
    "notaccept": {Reason.bounced, Reason.rejected, Reason.blocked},
    # It is about the mail.
    "policyviolation": {Reason.content_rejected, Reason.blocked},
    "securityerror": {Reason.content_rejected, Reason.blocked},
    "spamdetected": {Reason.content_rejected, Reason.blocked},
    "virusdetected": {Reason.content_rejected, Reason.blocked},
    "contenterror": {Reason.content_rejected, Reason.rejected},
    "notcompliantrfc": {Reason.content_rejected, Reason.rejected},
    "mesgtoobig": {Reason.too_large},
    "exceedlimit": {Reason.too_large},
}
"""What Sisimai calls a cause, and what we may call it. Its words are finer in some places and coarser in others."""


def read(case: dict[str, Any]) -> Returned | None:
    return parse_bounce(golden.path(f"bounces/{case['file']}").read_bytes())


def check_delivery_status(case: dict[str, Any], returned: Returned | None) -> None:
    """Recipient, action and status of each recipient, against the fields that Python's `email` finds."""
    fields = [f for f in case["delivery_status_fields"] if {"final-recipient", "original-recipient"} & f.keys()]
    assert returned is not None
    if not fields:  # the report is empty, or broken in a way that hides the fields from Python's `email`
        assert len(returned.bounces) == len(case["sisimai"])
        return
    assert returned.form == "delivery-status"
    if len(returned.bounces) != len(fields):
        # The returned original was a report itself: its recipients are not this mail's. Sisimai says so too.
        assert len(returned.bounces) == len(case["sisimai"]) < len(fields)
    for expected, bounce in zip(fields, returned.bounces, strict=False):
        named = [expected[name] for name in ("original-recipient", "final-recipient") if name in expected]
        assert bounce.recipient in [name.rpartition(";")[2].strip(" <>") for name in named]
        if "action" in expected:
            assert bounce.action == expected["action"].lower()
        if "status" in expected:
            assert bounce.status == expected["status"].split()[0]


def check_feedback(case: dict[str, Any], returned: Returned | None) -> None:
    assert returned is not None
    assert returned.form == "feedback"
    assert len(returned.bounces) == len(case["sisimai"])
    kinds = {"abuse": EventKind.complained, "opt-out": EventKind.unsubscribed, "auth-failure": None}
    for expected, bounce in zip(case["sisimai"], returned.bounces, strict=True):
        assert returned.feedback_type == expected["other"]
        assert bounce.kind is kinds[expected["other"]]


def check_text(case: dict[str, Any], returned: Returned | None) -> None:
    """As many recipients as Sisimai finds, with the same causes, and the status where Sisimai did not make it up."""
    if case["sisimai"][0]["reason"] == "vacation":
        assert returned is None
        return
    golden.check_taken(returned is not None, True, returned)
    assert returned is not None
    with golden.may_differ():
        assert len(returned.bounces) == len(case["sisimai"])
    for expected, bounce in zip(case["sisimai"], returned.bounces, strict=True):
        assert "@" in bounce.recipient
        made_up = ".0.9" in expected["status"] or expected["status"].endswith(".0.0")
        with golden.may_differ():
            assert bounce.reason in SAME_REASON[expected["reason"]]
            assert made_up or bounce.status == expected["status"]


@pytest.mark.parametrize("case", cases(FILE))
def test_published_mail(case: dict[str, Any]) -> None:
    returned = read(case)
    if case["has_delivery_status"]:
        check_delivery_status(case, returned)
    elif case["has_feedback_report"]:
        check_feedback(case, returned)
    else:
        check_text(case, returned)


def test_what_may_not_be_read_is_little() -> None:
    """No delivery report and no complaint is excepted, and of the free texts at most two in five."""
    listed = golden.LISTED[FILE]
    free = 0
    for case in load(FILE)["cases"]:
        if case["has_delivery_status"] or case["has_feedback_report"]:
            assert case["id"] not in listed
        else:
            free += 1
    assert len(listed) <= 0.4 * free


def test_causes_of_delivery_reports_agree_with_sisimai() -> None:
    """Nine in ten at least; and where it is not agreed, hardly ever is an address given up wrongly."""
    agreed = differ = wrongly_given_up = 0
    for case in load(FILE)["cases"]:
        returned = read(case)
        if not case["has_delivery_status"] or returned is None or len(returned.bounces) != len(case["sisimai"]):
            continue
        for expected, bounce in zip(case["sisimai"], returned.bounces, strict=True):
            if expected["reason"] not in SAME_REASON:
                continue
            if bounce.reason in SAME_REASON[expected["reason"]]:
                agreed += 1
            else:
                differ += 1
                wrongly_given_up += bounce.reason in (Reason.bounced, Reason.invalid_address)
    assert agreed >= 9 * differ, (agreed, differ)
    assert wrongly_given_up <= 5


@pytest.mark.parametrize("name", ["is-not-bounce-01", "rb-issue-368-bug"])
def test_what_is_no_bounce(name: str) -> None:
    returned = parse_bounce(golden.path(f"bounces/not/{name}.eml").read_bytes())
    if name == "rb-issue-368-bug":
        # Sisimai has no rule for it, but it says in plain words that a mailbox is full, and whose.
        assert returned is not None
        assert [(b.recipient, b.reason) for b in returned.bounces] == [("xxxx@yyyyyy.net", Reason.mailbox_full)]
    else:
        assert returned is None


def test_what_a_real_postfix_reported() -> None:
    folder = golden.path("bounces/postfix_live")
    failed = parse_bounce((folder / "postfix-3.7.11-failed-5.1.1.eml").read_bytes())
    assert failed is not None
    assert failed.bounces == (
        Bounce(
            EventKind.failed,
            "nouser@test.local",
            "failed",
            "5.1.1",
            Reason.bounced,
            'X-Postfix; unknown user: "nouser"',
        ),
    )
    assert failed.message_ids == ("bounce.unknown.user@t",)
    assert failed.addressees == ("ptest@test.local",)
    assert failed.at == datetime(2026, 11, 22, 12, 13, 48, tzinfo=UTC)
    success = parse_bounce((folder / "postfix-3.7.11-success.eml").read_bytes())
    assert success is not None
    (bounce,) = success.bounces
    assert (bounce.kind, bounce.action, bounce.status[0]) == (EventKind.delivered, "delivered", "2")


# --- what the provider makes of them ----------------------------------------------------------------------------------


def dsn(to: str, recipient: str = "ada@example.com", message_id: str = "x@y", extra: str = "") -> bytes:
    return f"""\
Return-Path: <>
Date: Sun, 22 Nov 2026 09:00:00 +0000
From: Mail Delivery System <MAILER-DAEMON@mx.example.net>
Subject: Undelivered Mail Returned to Sender
To: {to}
Message-Id: <b1@mx.example.net>
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="b"

--b
Content-Type: text/plain

<{recipient}>: no such user
--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.net
{extra}
Final-Recipient: rfc822; {recipient}
Action: failed
Status: 5.1.1
Remote-MTA: dns; mx.example.com
Diagnostic-Code: smtp; 550 5.1.1 no such user

--b
Content-Type: text/rfc822-headers

From: shop@example.com
Message-ID: <{message_id}>
--b--
""".replace("\n", "\r\n").encode()


async def receive(smtp: SmtpProvider, mail: bytes) -> Receipts:
    url = "https://tidings.example.com/callbacks/shop/smtp/mail/secret"
    return await smtp.receive(RawRequest("POST", url, {"content-type": "message/rfc822"}, mail), NOW)


async def sent_address(**config: Any) -> str:
    """The return path of a mail that was sent with this configuration."""
    async with SmtpVendor() as vendor, provider(vendor.port, **config) as smtp:
        assert isinstance(await send(smtp), Sent)
    return vendor.commands[1].decode().partition("<")[2].partition(">")[0]


async def test_a_bounce_to_our_return_path_becomes_a_report() -> None:
    async with provider(1, **VERP) as smtp:
        mail = dsn(await sent_address(**VERP))
        receipts = await receive(smtp, mail)
        assert receipts.reports == (
            Report(
                kind=EventKind.failed,
                key=KEY,
                address="ada@example.com",
                reason=Reason.bounced,
                at=datetime(2026, 11, 22, 9, 0, tzinfo=UTC),
                event_id=receipts.reports[0].event_id,
                detail={
                    "form": "delivery-status",
                    "action": "failed",
                    "status": "5.1.1",
                    "diagnostic": "smtp; 550 5.1.1 no such user",
                    "remote": "mx.example.com",
                },
            ),
        )
        assert json.loads(receipts.body) == {
            "form": "delivery-status",
            "reports": [{"kind": "failed", "reason": "bounced", "key": KEY}],
        }
        again = await receive(smtp, b"Received: by another way\r\n" + mail)
        assert again.reports[0].event_id == receipts.reports[0].event_id, "the same mail is known again"


async def test_our_id_is_found_wherever_it_comes_back() -> None:
    async with provider(1, **VERP) as smtp:
        address = await sent_address(**VERP)
        tagged = address.partition("+")[2].partition("@")[0]
        for mail in (
            dsn(address.upper()),
            dsn(f"The Shop <{address}>"),
            b"Delivered-To: " + address.encode() + b"\r\n" + dsn("postmaster@example.com"),
            dsn("postmaster@example.com", extra=f"Original-Envelope-Id: {tagged}"),
            dsn("postmaster@example.com", message_id=f"{tagged}@example.com"),
        ):
            assert [r.key for r in (await receive(smtp, mail)).reports] == [KEY]


async def test_nobody_can_forge_a_bounce() -> None:
    other = to_public("dlv", type(DELIVERY)(int=DELIVERY.int + 1))
    async with provider(1, **VERP) as smtp:
        ours = await sent_address(**VERP)
        forged = await sent_address(**{**VERP, "verp_secret": "another-secret-of-theirs"})
        for mail in (
            dsn(forged),
            dsn(ours.replace(KEY, other)),
            dsn(f"bounces+{KEY}@bounce.example.com"),
            dsn("shop@example.com", message_id=f"{KEY}@example.com"),
            dsn("shop@example.com", extra=f"Original-Envelope-Id: {KEY}"),
            dsn(ours.replace("-", "-0")),
        ):
            receipts = await receive(smtp, mail)
            assert receipts.reports == ()
            assert json.loads(receipts.body) == {"form": "delivery-status", "reports": []}


async def test_without_a_secret_the_message_id_is_enough() -> None:
    async with provider(1) as smtp:
        reports = (await receive(smtp, dsn("shop@example.com", message_id=f"{KEY}@example.com"))).reports
        assert [(r.key, r.reason) for r in reports] == [(KEY, Reason.bounced)]


async def test_a_report_names_the_address_that_we_know() -> None:
    """A forwarding address leads elsewhere; what counts is whom we sent to."""
    async with provider(1, **VERP) as smtp:
        mail = dsn(await sent_address(**VERP), "ada@elsewhere.example")
        (report,) = (await receive(smtp, mail)).reports
        assert report.address == "ada@elsewhere.example"
        mail = mail.replace(b"Final-Recipient:", b"Original-Recipient: rfc822;ada@example.com\r\nFinal-Recipient:")
        (report,) = (await receive(smtp, mail)).reports
        assert report.address == "ada@example.com"
        assert report.detail["final_recipient"] == "ada@elsewhere.example"


async def test_a_complaint_names_its_delivery() -> None:
    async with provider(1, **VERP) as smtp:
        address = await sent_address(**VERP)
        mail = f"""\
From: fbl@example.net
To: fbl@example.com
Subject: complaint
Content-Type: multipart/report; report-type=feedback-report; boundary=b

--b
Content-Type: message/feedback-report

Feedback-Type: abuse
User-Agent: Some/1
Version: 1
Original-Mail-From: <{address}>
Original-Rcpt-To: <ada@example.com>

--b
Content-Type: message/rfc822

From: shop@example.com
To: ada@example.com

x
--b--
"""
        (report,) = (await receive(smtp, mail.encode())).reports
        assert (report.kind, report.key, report.address) == (EventKind.complained, KEY, "ada@example.com")


@pytest.mark.parametrize(
    "body", [b"", b"hello", b"From: Ada <ada@example.com>\r\nSubject: Re: hi\r\n\r\nThanks!", b"\0" * 99]
)
async def test_other_mails_are_taken_and_say_nothing(body: bytes) -> None:
    async with provider(1, **VERP) as smtp:
        receipts = await receive(smtp, body)
        assert (receipts.reports, receipts.status) == ((), 200)


async def test_a_date_in_the_future_is_not_believed() -> None:
    async with provider(1, **VERP) as smtp:
        mail = dsn(await sent_address(**VERP)).replace(b"22 Nov 2026", b"22 Nov 2036")
        assert (await receive(smtp, mail)).reports[0].at == NOW


# --- any octets at all ------------------------------------------------------------------------------------------------

_PIECES = st.sampled_from(
    [
        *(
            b"\r\n",
            b"\n",
            b"\r\n\r\n",
            b": ",
            b"--b\r\n",
            b"--b--",
            b"<",
            b">",
            b"@",
            b";",
            b"\xff",
            b"=?utf-8?q?",
            b" ",
        ),
        *(b"Content-Type: multipart/report; boundary=b", b"Content-Type: message/delivery-status"),
        *(
            b"Content-Type: message/rfc822",
            b"Content-Type: text/html; charset=x-none",
            b"Content-Type: message/feedback-report",
        ),
        *(b"Content-Transfer-Encoding: base64", b"Content-Transfer-Encoding: uuencode", b"From: MAILER-DAEMON@x"),
        *(
            b"Final-Recipient: rfc822;",
            b"Action: ",
            b"failed",
            b"Status: 5.1.1",
            b"To: ",
            b"a@b.de",
            b"Date: ",
            b"<style",
        ),
        *(
            b"Diagnostic-Code: smtp; 550",
            b"Message-ID: <x@y>",
            b"X-Failed-Recipients: ",
            b"generated from ",
            b"Subject: ",
        ),
    ]
)


@settings(max_examples=300)
@given(st.lists(_PIECES | st.binary(max_size=12), max_size=40).map(b"".join))
@example(
    b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\nContent-Type: multipart/mixed; boundary=b\n\n" * 3000
)
def test_any_octets_are_survived(raw: bytes) -> None:
    returned = parse_bounce(raw)
    if returned is not None:
        for bounce in returned.bounces:
            assert len(bounce.diagnostic) <= 500
            json.dumps([bounce.recipient, bounce.diagnostic, bounce.status]).encode()


@pytest.mark.parametrize("seed", range(4))
def test_damaged_mails_are_survived(seed: int) -> None:
    """The standard parser raises what it likes when one asks it for the text of such mails."""
    chance = random.Random(seed)
    mails = [golden.path(f"bounces/{case['file']}").read_bytes()[:40_000] for case in load(FILE)["cases"]]
    junk = [b"\xff", b"\0", b"\r\n\r\n", b"=?x?q?", b"charset=\xff", b"charset*=utf-8''%ff", b'boundary=""', b"--"]
    junk += [b"Content-Type: message/rfc822\n\n", b"Date: Mon, 99 Foo 99999 99:99:99 +9999\n"]
    for _ in range(1_000):
        mail, other = bytearray(chance.choice(mails)), chance.choice(mails)
        for _ in range(chance.randint(1, 12)):
            at, start = chance.randrange(len(mail) + 1), chance.randrange(len(other))
            piece = chance.choice([*junk, b"", chance.randbytes(3), other[start : start + 200]])
            mail[at : at + chance.choice([0, 3, 60])] = piece
        parse_bounce(bytes(mail))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "unit",
    [
        b"a@",
        b"<",
        b"a",
        b" ",
        b"a.",
        b"to ",
        b"<style",
        b">>> MAIL FROM ",
        b"exceed ",
        b"5.1.",
        b"a\n",
        b"user ",
        b"a: b\n",
    ],
)
def test_no_text_takes_long(unit: bytes) -> None:
    head = b"From: MAILER-DAEMON@x\r\nContent-Type: text/html\r\n\r\n"
    parse_bounce(head + b"<p>Final-Recipient: x\n" + unit * (1_000_000 // len(unit)))
    parse_bounce(head + unit * (1_000_000 // len(unit)))
    parse_bounce(b"To: " + unit.replace(b"\n", b"") * (200_000 // len(unit)) + b"\r\n" + head)


@given(st.from_regex(r"([245]\.\d\.\d{1,2})?", fullmatch=True), st.text(max_size=100))
def test_every_cause_is_a_reason(status: str, words: str) -> None:
    assert isinstance(decide_reason(status, words), Reason)


def test_an_address_is_only_given_up_where_something_says_so() -> None:
    for status, words, reason in (
        ("5.0.0", "550 Rejected", Reason.rejected),
        ("5.1.1", "550 5.1.1 <a@b.de>: mailbox full", Reason.mailbox_full),
        ("5.1.1", "550 5.1.1 blocked, see https://spamhaus.example", Reason.bounced),
        ("5.1.1", "550 5.1.1 listed at Spamhaus", Reason.blocked),
        ("5.7.1", "550 5.7.1 listed in RBL", Reason.blocked),
        ("", "550 User unknown", Reason.bounced),
        ("4.4.7", "delivery time expired", Reason.connect_failed),
        ("5.1.8", "553 5.1.8 (in reply to MAIL FROM command) Domain of sender address does not exist", Reason.blocked),
        ("", "", Reason.rejected),
    ):
        assert decide_reason(status, words) is reason, words


_HEAD = b"From: MAILER-DAEMON@example.com\nSubject: Undelivered Mail\n"
_PARTS = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(300))


@pytest.mark.parametrize(
    "mail",
    [
        _HEAD + b"X-Failed-Recipients: " + b"\n ".join(b"u%d@e.test" % n for n in range(20_000)) + b"\n\n550 no" * 999,
        _HEAD + b"\n" + b"".join(b"Final-Recipient: rfc822; u%d@example.com\n\n" % n for n in range(20_000)),
        _HEAD + b"\nFinal-Recipient: rfc822; u@example.com\n\n" + b"".join(b"X%d: a\n\n" % n for n in range(60_000)),
        _HEAD + b"Content-Type: text/plain; " + b"a=b; " * 200_000 + b"\n\n550 no",
        _HEAD + b"Content-Type: text/plain" + b";\n a=b" * 160_000 + b"\n\n550 no",
        _HEAD + _PARTS + b"--x\n" * 200_000,
    ],
    ids=["failed recipients", "recipients", "fields", "parameters", "folded parameters", "parts"],
)
def test_no_mail_costs_more_than_it_has_octets(mail: bytes) -> None:
    """Whoever knows a return path can send one. These took minutes, or a gigabyte."""
    told = parse_bounce(mail)
    assert told is None or len(told.bounces) <= 100
