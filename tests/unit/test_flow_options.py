"""Options and attachments of a request: every fault by its place, and what comes through to the message."""

from __future__ import annotations

import base64
import hashlib
import random
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings import ids
from tidings.channels import CHANNELS
from tidings.channels.email import parse_mailbox
from tidings.directory.access import Caller
from tidings.directory.blobs import BLOB_MAX, to_blob, to_blob_id
from tidings.directory.catalog import TemplateVersion, TypeVersion
from tidings.errors import Invalid, RenderError
from tidings.flow.load import Delivery
from tidings.flow.options import (
    ATTACHMENTS_MAX,
    COPIES_MAX,
    EmailOptions,
    Options,
    decode_extras,
    parse_options,
    to_stored,
)
from tidings.flow.render import render_message
from tidings.flow.request import Draft, Request, decide_acceptance, to_fingerprint
from tidings.model.messages import Attachment, Chat, Email, Message, Push, Sms
from tidings.model.words import Channel, Priority, Scope, Status
from tidings.templating import compile_template

NOW = datetime(2031, 3, 14, 12, tzinfo=UTC)
RNG = random.Random(1)
ID = ids.new_id(NOW, RNG)
CALLER = Caller(7, "p", UUID(int=1), frozenset({Scope.send}), False)
COMPILED = compile_template(
    {
        "default_locale": "en",
        "channels": {
            "email": {"en": {"subject": "Hi", "text": "x", "from": "Shop <shop@example.com>"}},
            "sms": {"en": {"text": "x"}},
            "push": {"en": {"title": "Hi", "badge": "3", "data": '{"order": {{ order }} }'}},
            "in_app": {"en": {"title": "x"}},
        },
    },
    CHANNELS,
)
TEMPLATE = TemplateVersion(3, 7, "t", 1, COMPILED.required, COMPILED.channels, COMPILED)
TYPE = TypeVersion(5, 7, "order", 1, "orders", False, Priority.high, False, "t", (), timedelta(hours=2), False, None)
TYPED: dict[str, Any] = {"to": {"user": "ada"}, "type": "order", "data": {"order": "A-1"}}
MAIL: dict[str, Any] = {"to": {"email": "ada@example.com"}, "content": {"subject": "Hi", "text": "Hello"}}
PDF = {"filename": "a.pdf", "content_type": "application/pdf", "content": base64.b64encode(b"%PDF").decode()}
KNOWN = to_blob(b"known")


def decide(body: dict[str, Any], **blobs: int) -> Draft:
    request = msgspec.convert(body, Request)
    typed = request.type is not None
    return decide_acceptance(
        CALLER,
        request,
        TYPE if typed else None,
        TEMPLATE if typed else None,
        now=NOW,
        horizon=timedelta(days=89),
        id_=ID,
        traceparent=None,
        blobs={KNOWN.hash: 5, **{bytes.fromhex(h): size for h, size in blobs.items()}},
    )


def faults(body: dict[str, Any]) -> list[str | None]:
    """The places of what is wrong with a request."""
    try:
        decide(body)
    except Invalid as problem:
        return [error.pointer for error in problem.errors]
    return []


def render(draft: Draft, channel: Channel, address: str, files: dict[str, bytes] | None = None, **more: Any) -> Message:
    """The message that a delivery of this notification becomes."""
    row = draft.row
    delivery = Delivery(
        ID, 7, ID, channel, Status.queued, address, 3 if row.type_version_id else None, "en", None, None,
        row.type_version_id, row.user_id, row.data, row.content, False, False, row.expires_at, False, False, None,
        False, NOW, None, None, row.priority, row.metadata, row.options,
    )  # fmt: skip
    return render_message(
        delivery,
        TEMPLATE if row.type_version_id else None,
        None,
        category=draft.category,
        extras=decode_extras(row.options) if row.options is not None else None,
        read=lambda file: (files or {}).get(file.hash),
        **more,
    )


@pytest.mark.parametrize(
    ("options", "pointers"),
    [
        ({"email": {"cc": ["nobody"]}}, ["/options/email/cc/0"]),
        ({"email": {"cc": ["a@example.com"], "bcc": ["b@example.com", "x\r\ny"]}}, ["/options/email/bcc/1"]),
        ({"email": {"cc": ["Ada, Bob <a@example.com>\n"] * 2}}, []),
        ({"email": {"cc": [f"a{n}@example.com" for n in range(COPIES_MAX + 1)]}}, ["/options/email/cc"]),
        ({"email": {"from": "a@example.com, b@example.com"}}, ["/options/email/from"]),
        ({"email": {"from": "Ada\nBcc: x <a@example.com>"}}, ["/options/email/from"]),
        ({"email": {"reply_to": ""}}, ["/options/email/reply_to"]),
        ({"email": {"headers": {"From": "x"}}}, ["/options/email/headers/From"]),
        ({"email": {"headers": {"bcc": "x@example.com"}}}, ["/options/email/headers/bcc"]),
        ({"email": {"headers": {"Content-Type": "x/y"}}}, ["/options/email/headers/Content-Type"]),
        ({"email": {"headers": {"DKIM-Signature": "x"}}}, ["/options/email/headers/DKIM-Signature"]),
        ({"email": {"headers": {"Received": "x"}}}, ["/options/email/headers/Received"]),
        ({"email": {"headers": {"X-A: b\r\nBcc": "x"}}}, ["/options/email/headers/X-A: b\r\nBcc"]),
        ({"email": {"headers": {"X-A": "b\r\nBcc: c@example.com"}}}, ["/options/email/headers/X-A"]),
        ({"email": {"headers": {"X-A": "1", "x-a": "2"}}}, ["/options/email/headers/x-a"]),
        ({"email": {"headers": {"X-A": " "}}}, ["/options/email/headers/X-A"]),
        ({"email": {"headers": {f"X-{n}": "x" for n in range(31)}}}, ["/options/email/headers"]),
        ({"email": {"tags": ["ok", "a,b", ""]}}, ["/options/email/tags/1", "/options/email/tags/2"]),
        ({"email": {"tags": [str(n) for n in range(11)]}}, ["/options/email/tags"]),
        ({"email": {"headers": {"X-A": "x" * 40_000}}}, ["/options"]),
        ({"sms": {"media": ["http://example.com/a.png"]}}, ["/options/sms/media/0"]),
        ({"sms": {"media": ["https://a:b@example.com/a.png"]}}, ["/options/sms/media/0"]),
        ({"sms": {"media": ["https://example.com/a.png"] * 11}}, ["/options/sms/media"]),
        ({"sms": {"sender": "ü"}}, ["/options/sms/sender"]),
        ({"sms": {"sender": ""}}, ["/options/sms/sender"]),
        ({"push": {"badge": -1}}, ["/options/push"]),
        ({"push": {"url": "javascript:alert(1)"}}, ["/options/push"]),
        ({"push": {"silent": True, "sound": "x"}}, ["/options/push"]),
        ({"push": {"actions": [{"id": "a", "title": "A"}] * 2}}, ["/options/push"]),
    ],
)
def test_every_fault_of_options_is_told_by_its_place(options: dict[str, Any], pointers: list[str]) -> None:
    assert faults({**TYPED, "options": options}) == pointers


@pytest.mark.parametrize(
    "body",
    [
        {"options": {"email": {"ccs": []}}},
        {"options": {"chat": {}}},
        {"options": {"push": {"title": "x"}}},
        {"options": {"push": {"data": {"a": 1}}}},
        {"attachments": [{**PDF, "disposition": "inline"}]},
        {"attachments": [{**PDF, "content": "no base64!"}]},
    ],
)
def test_what_is_not_known_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode({**MAIL, **body}), type=Request)


@pytest.mark.parametrize(
    ("change", "pointers"),
    [
        ({"filename": ""}, ["/attachments/0/filename"]),
        ({"filename": "../a.pdf"}, ["/attachments/0/filename"]),
        ({"filename": "a\r\nb"}, ["/attachments/0/filename"]),
        ({"filename": "x" * 256}, ["/attachments/0/filename"]),
        ({"content_type": "pdf"}, ["/attachments/0/content_type"]),
        ({"content_type": "a/b\r\nX: y"}, ["/attachments/0/content_type"]),
        ({"content_type": "message/rfc822"}, ["/attachments/0/content_type"]),
        ({"content_type": "text/calendar; method=REQUEST"}, []),
        ({"content": ""}, ["/attachments/0/content"]),
        ({"content": None}, ["/attachments/0"]),
        ({"blob": to_blob_id(KNOWN.hash)}, ["/attachments/0"]),
        ({"content": None, "blob": to_blob_id(KNOWN.hash)}, []),
        ({"content": None, "blob": to_blob_id(bytes(32))}, ["/attachments/0/blob"]),
        ({"content": None, "blob": "sha1:00"}, ["/attachments/0/blob"]),
        ({"content_id": "<logo>"}, ["/attachments/0/content_id"]),
        ({"content_id": "logo@shop"}, []),
    ],
)
def test_every_fault_of_an_attachment_is_told_by_its_place(change: dict[str, Any], pointers: list[str]) -> None:
    assert faults({**MAIL, "attachments": [{**PDF, **change}]}) == pointers


def test_files_are_bounded_together() -> None:
    with pytest.raises(Invalid) as many:
        decide({**MAIL, "attachments": [PDF] * (ATTACHMENTS_MAX + 1)})
    assert many.value.errors[0].pointer == "/attachments"
    large = {key: value for key, value in PDF.items() if key != "content"} | {"blob": to_blob_id(b"\1" * 32)}
    assert decide({**MAIL, "attachments": [large]}, **{"01" * 32: BLOB_MAX})
    with pytest.raises(Invalid) as heavy:
        decide({**MAIL, "attachments": [large, PDF]}, **{"01" * 32: BLOB_MAX})
    assert heavy.value.errors[0].pointer == "/attachments"
    with pytest.raises(Invalid) as twice:
        decide({**MAIL, "attachments": [{**PDF, "content_id": "a"}] * 2})
    assert twice.value.errors[0].pointer == "/attachments/1/content_id"


def test_options_for_a_channel_that_is_not_used_are_a_mistake() -> None:
    text = {"to": {"phone": "+436641234567"}, "content": {"text": "Hi"}}
    for body, pointer in (
        ({**text, "options": {"email": {"tags": ["a"]}}}, "/options/email"),
        ({**text, "attachments": [PDF]}, "/attachments"),
        ({**MAIL, "options": {"push": {"sound": "x"}}}, "/options/push"),
        ({**TYPED, "channels": ["email"], "options": {"sms": {"sender": "Shop"}}}, "/options/sms"),
    ):
        with pytest.raises(Invalid) as caught:
            decide(body)
        assert [error.pointer for error in caught.value.errors] == [pointer]


def test_a_request_without_options_stores_nothing_and_brings_nothing() -> None:
    draft = decide(MAIL)
    assert draft.row.options is None
    assert draft.blobs == ()
    assert decide({**MAIL, "options": {}, "attachments": []}).row.options is None


def test_a_mail_with_everything() -> None:
    logo = {"filename": "logo.png", "content_type": "image/png", "blob": to_blob_id(KNOWN.hash), "content_id": "logo"}
    options = {
        "cc": ["Bob <bob@EXAMPLE.com>"], "bcc": ["cleo@example.com"], "from": "Tidings <t@example.com>",
        "reply_to": "help@example.com", "headers": {"X-Order": "A-1", "List-Unsubscribe": "<mailto:u@example.com>"},
        "tags": ["invoice"], "track_opens": False, "track_clicks": True,
    }  # fmt: skip
    body = {**TYPED, "metadata": {"trace": "t-1"}, "options": {"email": options}, "attachments": [PDF, logo]}
    draft = decide(body)
    [inline] = draft.blobs
    assert inline.content == b"%PDF"
    files = {inline.hash.hex(): inline.content, KNOWN.hash.hex(): KNOWN.content}
    road = [("List-Unsubscribe", "<https://us.example/u>"), ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click")]
    message = render(draft, Channel.email, "ada@example.com", files, headers=road)
    assert message.content == Email(
        "Hi",
        "x",
        from_="Tidings <t@example.com>",
        reply_to="help@example.com",
        headers=(
            ("X-Order", "A-1"),
            ("List-Unsubscribe", "<mailto:u@example.com>"),
            ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"),
        ),
        cc=("Bob <bob@example.com>",),
        bcc=("cleo@example.com",),
        attachments=(
            Attachment("a.pdf", "application/pdf", b"%PDF"),
            Attachment("logo.png", "image/png", b"known", "logo"),
        ),
        tags=("invoice",),
        track_opens=False,
        track_clicks=True,
    )
    assert (message.priority, message.category, message.metadata) == (Priority.high, "orders", (("trace", "t-1"),))
    assert message.expires_at == NOW + timedelta(hours=2)
    with pytest.raises(RenderError, match="not kept any more"):
        render(draft, Channel.email, "ada@example.com", {})
    # The same options leave the other channels of the notification alone.
    assert render(draft, Channel.sms, "+436641234567").content == Sms("x")
    plain = render(decide(MAIL), Channel.email, "ada@example.com", headers=road)
    assert isinstance(plain.content, Email)
    assert plain.content.headers == tuple(road)


def test_a_text_message_with_pictures_and_its_sender() -> None:
    options = {"sms": {"media": ["https://example.com/a.png", "https://example.com/b.png"], "sender": "Shop"}}
    content = render(decide({**TYPED, "options": options}), Channel.sms, "+436641234567").content
    assert content == Sms("x", ("https://example.com/a.png", "https://example.com/b.png"), "Shop")


def test_push_options_replace_what_the_template_says() -> None:
    template_only = render(decide(TYPED), Channel.push, "fcm:abc").content
    assert template_only == Push("Hi", badge=3, data=(("order", "A-1"),))
    options = {"push": {"badge": 0, "sound": "ping", "data": {"a": "b"}, "actions": [{"id": "go", "title": "Go"}]}}
    content = render(decide({**TYPED, "options": options}), Channel.push, "fcm:abc").content
    assert isinstance(content, Push)
    assert (content.title, content.badge, content.sound, content.data) == ("Hi", 0, "ping", (("a", "b"),))
    assert [(a.id, a.title, a.url) for a in content.actions] == [("go", "Go", None)]


def test_push_said_directly() -> None:
    body = {
        "to": {"push": "FCM:abc"},
        "content": {
            "title": "Hi",
            "body": "Ho",
            "badge": 2,
            "data": {"k": "v"},
            "actions": [{"id": "a", "title": "A"}],
        },
    }
    draft = decide(body)
    assert (draft.row.to_channel, draft.row.to_address) == (Channel.push, "fcm:abc")
    content = render(draft, Channel.push, "fcm:abc").content
    assert isinstance(content, Push)
    assert (content.title, content.body, content.badge, content.data) == ("Hi", "Ho", 2, (("k", "v"),))
    silent = {"to": {"push": "fcm:abc"}, "content": {"silent": True, "data": {"sync": "1"}}}
    assert render(decide(silent), Channel.push, "fcm:abc").content == Push(silent=True, data=(("sync", "1"),))
    with pytest.raises(Invalid) as caught:
        decide({"to": {"push": "fcm:abc"}, "content": {"title": "Hi", "data": {"n": 1}}})
    assert [error.pointer for error in caught.value.errors] == ["/content"]


def test_a_browsers_subscription_is_an_address() -> None:
    p256dh = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"
    subscription = {"endpoint": "https://push.example/x", "keys": {"p256dh": p256dh, "auth": "BTBZMqHH6r4Tts7J_aSIgg"}}
    draft = decide({"to": {"push": subscription}, "content": {"title": "Hi"}})
    assert draft.row.to_address == f"webpush:https://push.example/x#{p256dh}.BTBZMqHH6r4Tts7J_aSIgg"
    with pytest.raises(Invalid) as caught:
        decide({"to": {"push": {"endpoint": "x"}}, "content": {"title": "Hi"}})
    assert [error.pointer for error in caught.value.errors] == ["/to/push"]


def test_chat_said_directly() -> None:
    draft = decide({"to": {"chat": "slack:default"}, "content": {"text": "Hi", "payload": {"blocks": []}}})
    assert (draft.row.to_channel, draft.row.to_address) == (Channel.chat, "slack:default")
    content = render(draft, Channel.chat, "slack:default").content
    assert isinstance(content, Chat)
    assert (content.text, content.payload) == ("Hi", b'{"blocks":[]}')


def test_content_fields_that_a_channel_does_not_have_are_told() -> None:
    with pytest.raises(Invalid, match="no field 'payload'"):
        decide({**MAIL, "content": {"subject": "Hi", "text": "x", "payload": {}}})


def test_the_fingerprint_does_not_change_with_fields_that_are_left_out() -> None:
    # Remembered keys outlive an upgrade to a version whose requests have more fields.
    request = msgspec.convert({"to": {"user": "ada"}, "type": "order"}, Request)
    assert to_fingerprint(request, test=False) == hashlib.sha256(b'live{"to":{"user":"ada"},"type":"order"}').digest()


NAMES = st.text(st.characters(categories=("L", "N", "Zs"), include_characters=" "), max_size=20)
MAILBOXES = st.lists(
    st.one_of(st.just("a@example.com"), NAMES.map(lambda name: f"{name.strip()} <b@example.com>")), max_size=3
)


@pytest.mark.parametrize(
    ("given_", "normal"),
    [
        ("ada@EXAMPLE.com", "ada@example.com"),
        ("Ada <ada@EXAMPLE.com>", "Ada <ada@example.com>"),
        ("<ada@example.com>", "ada@example.com"),
        ("Lovelace, Ada <ada@example.com>", '"Lovelace, Ada" <ada@example.com>'),
        ('"Lovelace, Ada"<ada@example.com>', '"Lovelace, Ada" <ada@example.com>'),
        (r'"Ada \"Countess\"" <ada@example.com>', r'"Ada \"Countess\"" <ada@example.com>'),
        ('"Ada" <ada@example.com>', "Ada <ada@example.com>"),
        ("Bücher <ada@bücher.example>", "Bücher <ada@bücher.example>"),
    ],
)
def test_mailboxes_get_one_normal_form(given_: str, normal: str) -> None:
    assert parse_mailbox(given_) == normal
    assert parse_mailbox(normal) == normal


@given(
    cc=MAILBOXES,
    bcc=MAILBOXES,
    headers=st.dictionaries(
        st.from_regex(r"(X|List)-[A-Za-z]{1,10}", fullmatch=True), st.text("aä =?<>", min_size=1).map(lambda t: t + "x")
    ),
    tags=st.lists(st.text("abc -_ü", min_size=1, max_size=9).filter(lambda t: t == t.strip()), max_size=10),
    flags=st.tuples(*[st.none() | st.booleans()] * 2),
)
def test_what_was_taken_is_stored_and_read_back(
    cc: list[str], bcc: list[str], headers: dict[str, str], tags: list[str], flags: tuple[bool | None, bool | None]
) -> None:
    errors: list[Any] = []
    email = EmailOptions(cc, bcc, None, None, headers, tags, *flags)
    extras, _ = parse_options(Options(email), None, 1 << Channel.email, {}, errors)
    if errors:  # two header fields that differ in case only, or names with spaces that cannot be printed
        return
    stored = to_stored(extras)
    if stored is None:
        assert email == EmailOptions()
        return
    again = decode_extras(stored)
    assert again == extras
    # Taken once more, the normal form stays as it is.
    assert parse_options(Options(again.email), None, 1 << Channel.email, {}, errors)[0] == again
    assert not errors


def test_no_mailbox_takes_long() -> None:
    """A megabyte of spaces took ten minutes."""
    with pytest.raises(ValueError, match="at most"):
        parse_mailbox("a" + " " * 1_000_000 + "b")
