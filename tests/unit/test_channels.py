import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.channels import CHANNELS
from tidings.errors import RenderError
from tidings.model.messages import Email, InApp, Sms, Webhook
from tidings.model.words import CHANNELS_OF_THIS_VERSION, Channel


def test_every_channel_of_this_version_has_rules() -> None:
    assert set(CHANNELS) == set(CHANNELS_OF_THIS_VERSION)
    for rules in CHANNELS.values():
        assert rules.required <= set(rules.fields)
        assert rules.one_of <= set(rules.fields)


@pytest.mark.parametrize(
    ("channel", "given_", "normal"),
    [
        ("email", "Ada@EXAMPLE.com", "Ada@example.com"),
        ("email", "ada@xn--bcher-kva.example", "ada@bücher.example"),
        ("sms", " +1 (415) 555-0123 ", "+14155550123"),
        ("webhook", "HTTPS://EX.example:443/ä?b=ü", "https://ex.example/%C3%A4?b=%C3%BC"),
        ("webhook", "http://127.0.0.1:8000/x", "http://127.0.0.1:8000/x"),
        ("in_app", "u-42", "u-42"),
    ],
)
def test_addresses_get_one_normal_form(channel: str, given_: str, normal: str) -> None:
    parse = CHANNELS[Channel[channel]].parse_address
    assert parse(given_) == normal
    assert parse(normal) == normal


@pytest.mark.parametrize(
    ("channel", "text", "says"),
    [
        ("email", "ada", "@-sign"),
        ("email", "ada@localhost", "period"),
        ("email", "a@x.de\r\nBcc: b@x.de", "not an e-mail address"),
        ("email", "Ada <ada@example.com>", "not an e-mail address"),
        ("sms", "4155550123", "starts with +"),
        ("sms", "+1", "phone number"),
        ("sms", "+999123456", "country code"),
        ("sms", "+1415555", "too short"),
        ("webhook", "ftp://example.com/", "https://"),
        ("webhook", "https:///x", "host"),
        ("webhook", "https://a:b@example.com/", "user name"),
        ("webhook", "https://a@example.com/", "user name"),
        ("webhook", "https://example.com/#x", "fragment"),
        ("webhook", "https://example.com/a b", "space"),
        ("webhook", "https://example.com\\@evil.example/", "backslash"),
        ("webhook", "https://example.com:99999/", "not a URL"),
        ("webhook", "https://example.com/" + "x" * 2000, "2,000"),
        ("in_app", "", "255"),
        ("in_app", "a\0b", "printable"),
    ],
)
def test_bad_addresses_say_what_to_mend(channel: str, text: str, says: str) -> None:
    with pytest.raises(ValueError, match="(?i)" + says.replace("+", r"\+")):
        CHANNELS[Channel[channel]].parse_address(text)


@given(st.sampled_from(list(CHANNELS)), st.text(max_size=60) | st.text("ab@.:/[]#?%+1 \r\n\0é", max_size=60))
def test_addresses_parse_or_raise_value_error_and_parsing_settles(channel: Channel, text: str) -> None:
    parse = CHANNELS[channel].parse_address
    try:
        normal = parse(text)
    except ValueError:
        return
    assert parse(normal) == normal
    assert not set("\r\n\0") & set(normal)


def build(channel: Channel, **parts: str) -> object:
    return CHANNELS[channel].to_content({name.rstrip("_"): value for name, value in parts.items()})


def test_content_of_each_channel() -> None:
    assert build(Channel.email, subject=" Hi ", text="T", html="<p>T</p>", from_="A <a@x.de>") == Email(
        "Hi", "T", "<p>T</p>", "A <a@x.de>"
    )
    assert build(Channel.email, subject="Hi", html="<p>T</p>", reply_to="") == Email("Hi", html="<p>T</p>")
    assert build(Channel.sms, text="T") == Sms("T")
    assert build(Channel.sms, text="T", media="", sender="") == Sms("T")
    assert build(Channel.sms, text="T", media="https://a.example/1 \n https://b.example/2", sender=" Shop ") == Sms(
        "T", ("https://a.example/1", "https://b.example/2"), "Shop"
    )
    assert build(Channel.sms, text="x" * 1530) == Sms("x" * 1530)
    assert build(Channel.sms, text="я" * 670) == Sms("я" * 670)
    assert build(Channel.in_app, title="T", body="B\nC", url="/orders/1") == InApp("T", "B\nC", "/orders/1")
    assert build(Channel.webhook, body=' {"a": "ü"}\n') == Webhook('{"a": "ü"}'.encode())


@pytest.mark.parametrize("name", ["subject", "from", "reply_to"])
@pytest.mark.parametrize("control", ["\r\n", "\n", "\r", "\0", "\x0b"])
def test_mail_headers_are_one_line(name: str, control: str) -> None:
    parts = {"subject": "Hi", "text": "T", name: f"a{control}Bcc: b@example.com"}
    with pytest.raises(RenderError, match=f"'{name}'"):
        CHANNELS[Channel.email].to_content(parts)


@pytest.mark.parametrize(
    ("channel", "parts", "says"),
    [
        ("email", {"subject": "Hi"}, "html and text"),
        ("email", {"text": "Hi"}, "'subject'"),
        ("email", {"subject": " ", "text": "Hi"}, "empty"),
        ("email", {"subject": "Hi", "text": "T", "cc": "x"}, "no field 'cc'"),
        ("email", {"subject": "x" * 999, "text": "T"}, "999"),
        ("email", {"subject": "Hi", "text": "T" * 2_000_000}, "octets"),
        ("email", {"subject": "Hi", "text": "\ud800"}, "surrogate"),
        ("sms", {"text": "x" * 1531}, "1,531"),
        ("sms", {"text": "я" * 671}, "11 parts in UCS-2"),
        ("sms", {"text": "€" * 766}, "11 parts in GSM-7"),
        ("sms", {"text": "Hi", "media": "http://a.example/1"}, "https"),
        ("sms", {"text": "Hi", "media": "https://user:word@a.example/1"}, "'media'"),
        ("sms", {"text": "Hi", "media": "https:///1"}, "'media'"),
        ("sms", {"text": "Hi", "media": "https://a.example/" + "x" * 2000}, "2,000"),
        ("sms", {"text": "Hi", "media": "https://a.example/1 " * 11}, "11 URLs"),
        ("sms", {"text": "Hi", "sender": "a\nb"}, "'sender'"),
        ("sms", {"text": "Hi", "sender": "x" * 65}, "'sender'"),
        ("in_app", {"title": "a\nb"}, "'title'"),
        ("in_app", {"title": "a", "url": "javascript:alert(1)"}, "'url'"),
        ("in_app", {"title": "a", "url": "//evil.example"}, "'url'"),
        ("in_app", {"title": "a", "url": "/\\evil.example"}, "'url'"),
        ("webhook", {"body": '{"a": }'}, "not JSON"),
        ("webhook", {"body": "[" * 100_000}, "'body'"),
    ],
)
def test_unfit_content_names_the_field(channel: str, parts: dict[str, str], says: str) -> None:
    with pytest.raises(RenderError, match=says):
        CHANNELS[Channel[channel]].to_content(parts)


@given(st.recursive(st.none() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=5))
def test_webhook_bodies_are_sent_as_rendered(value: object) -> None:
    text = json.dumps(value)
    assert build(Channel.webhook, body=text) == Webhook(text.encode())
