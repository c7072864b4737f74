"""Push addresses and contents."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from tidings.channels.push import RULES
from tidings.errors import RenderError
from tidings.model.messages import Push, PushAction

# RFC 8291, 5: the receiver's keys of the example.
P256DH = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"
AUTH = "BTBZMqHH6r4Tts7J_aSIgg"
ENDPOINT = "https://push.example.net/push/JzLQ3raZJfFBR0aqvOMsLrt54w4rJUsV"
ADDRESS = f"webpush:{ENDPOINT}#{P256DH}.{AUTH}"
APNS = "00fc13adff785122b4ad28809a3420982341241421348097878e577c991de8f0"


def subscription(**changes: Any) -> str:
    keys = {"p256dh": P256DH, "auth": AUTH, **changes.pop("keys", {})}
    return json.dumps({"endpoint": ENDPOINT, "expirationTime": None, "keys": keys, **changes})


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (" fcm:bk3RNwTe3H0:CI2k_HHwg-Ipo ", "fcm:bk3RNwTe3H0:CI2k_HHwg-Ipo"),
        ("FCM:Abc", "fcm:Abc"),
        (f"apns:{APNS.upper()}", f"apns:{APNS}"),
        (f"apns:{APNS * 3}", f"apns:{APNS * 3}"),
        (subscription(), ADDRESS),
        (f"webpush:{subscription()}", ADDRESS),
        (ADDRESS, ADDRESS),
        (subscription(endpoint="HTTPS://Push.example.net:443" + ENDPOINT[24:]), ADDRESS),
        (subscription(keys={"p256dh": P256DH.replace("-", "+").replace("_", "/") + "=", "auth": AUTH + "=="}), ADDRESS),
        (f"webpush:http://127.0.0.1:9000/x#{P256DH}.{AUTH}", f"webpush:http://127.0.0.1:9000/x#{P256DH}.{AUTH}"),
        ("simulator:deliver", "simulator:deliver"),
        ("simulator:bounce+device.1", "simulator:bounce+device.1"),
    ],
)
def test_addresses_get_one_normal_form(text: str, normal: str) -> None:
    assert RULES.parse_address(text) == normal
    assert RULES.parse_address(normal) == normal


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "A push address is"),
        ("abc", "A push address is"),
        ("gcm:abc", "A push address is"),
        ("fcm:", "registration token"),
        ("fcm:a b", "registration token"),
        ("fcm:a/../b", "registration token"),
        ("fcm:" + "x" * 1025, "registration token"),
        ("fcm:" + "x" * 2001, "2,000"),
        ("apns:" + "0" * 62, "64 to 200"),
        ("apns:" + "0" * 65, "64 to 200"),
        ("apns:" + "g" * 64, "64 to 200"),
        ("{}", "not a Web Push subscription"),
        ("{" * 9000, "8,000"),
        (subscription(endpoint="http://push.example.net/x"), "https://"),
        (subscription(endpoint="http://8.8.8.8/x"), "https://"),
        (subscription(endpoint="ftp://push.example.net/x"), "endpoint"),
        (subscription(endpoint="https://a:b@push.example.net/x"), "user name"),
        (subscription(endpoint="https://push.example.net/#x"), "fragment"),
        (subscription(endpoint="https://push.example.net/" + "x" * 1900), "2,000"),
        (subscription(keys={"auth": "x"}), "auth"),
        (subscription(keys={"auth": "!" * 22}), "auth"),
        (subscription(keys={"auth": P256DH}), "auth"),
        (subscription(keys={"p256dh": AUTH}), "p256dh"),
        (subscription(keys={"p256dh": "B" + "A" * 86}), "p256dh"),
        (f"webpush:{ENDPOINT}", "endpoint"),
        (f"webpush:{ENDPOINT}#{P256DH}", "auth"),
        ("simulator:", "simulator:"),
        ("simulator:a b", "simulator:"),
    ],
)
def test_bad_addresses_say_what_to_mend(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        RULES.parse_address(text)


@pytest.mark.parametrize("endpoint", ["https://push.example.net/x", "https://wns.example/w/?token=BQYAAA%2b%2fz%3d"])
def test_subscriptions_of_real_keys(endpoint: str) -> None:
    point = ec.generate_private_key(ec.SECP256R1()).public_key()
    key = base64.urlsafe_b64encode(point.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)).decode()
    address = RULES.parse_address(subscription(endpoint=endpoint, keys={"p256dh": key}))
    assert address.endswith(f"#{key.rstrip('=')}.{AUTH}")
    assert RULES.parse_address(address) == address


@given(st.text('fcmapnswebsh:{}#."/ 0aA-_', max_size=80))
def test_parsing_settles(text: str) -> None:
    try:
        normal = RULES.parse_address(text)
    except ValueError:
        return
    assert RULES.parse_address(normal) == normal


def build(**parts: str) -> object:
    return RULES.to_content(parts)


def test_contents() -> None:
    assert build(title=" Hi ") == Push(title="Hi")
    assert build(title="", body="A\nB\n") == Push(body="A\nB")
    assert build(silent="true", data='{"a": "b"}') == Push(silent=True, data=(("a", "b"),))
    assert build(silent=" True ") == Push(silent=True)
    assert build(
        title="T",
        body="B",
        url="shop://orders/1",
        image="https://shop.example/x.png",
        badge=" 0 ",
        sound="default",
        collapse_key="order-1",
        silent="false",
        data='{"order": "1"}',
        actions='[{"id": "track", "title": " Track ", "url": "/t"}, {"id": "mute", "title": "Mute", "url": null}]',
    ) == Push(
        title="T",
        body="B",
        url="shop://orders/1",
        image="https://shop.example/x.png",
        data=(("order", "1"),),
        actions=(PushAction("track", "Track", "/t"), PushAction("mute", "Mute")),
        badge=0,
        sound="default",
        collapse_key="order-1",
    )


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({}, "title"),
        ({"url": "/x"}, "title"),
        ({"title": " ", "body": "\n"}, "'title' and 'body'"),
        ({"title": "a\nb"}, "'title'"),
        ({"body": "a\0"}, "'body'"),
        ({"title": "T", "silent": "true"}, "'title'"),
        ({"silent": "true", "badge": "0"}, "'badge'"),
        ({"silent": "true", "sound": "x"}, "'sound'"),
        ({"title": "T", "silent": "yes"}, "'silent'"),
        ({"title": "T", "badge": "-1"}, "'badge'"),
        ({"title": "T", "badge": "1.5"}, "'badge'"),
        ({"title": "T", "badge": "9" * 5000}, "4,096|'badge'"),
        ({"title": "T", "url": "javascript:alert(1)"}, "'url'"),
        ({"title": "T", "url": "JavaScript:alert(1)"}, "'url'"),
        ({"title": "T", "url": "data:text/html,x"}, "'url'"),
        ({"title": "T", "url": "//evil.example"}, "'url'"),
        ({"title": "T", "url": "/\\evil.example"}, "'url'"),
        ({"title": "T", "url": "https:///x"}, "'url'"),
        ({"title": "T", "url": "orders"}, "'url'"),
        ({"title": "T", "image": "/x.png"}, "'image'"),
        ({"title": "T", "collapse_key": "ä" * 33}, "'collapse_key'"),
        ({"title": "T", "data": "{"}, "'data'"),
        ({"title": "T", "data": "[]"}, "'data'"),
        ({"title": "T", "data": '{"a": 1}'}, "'data'"),
        ({"title": "T", "data": '{"aps": "x"}'}, "'data'"),
        ({"title": "T", "data": '{"google.x": "x"}'}, "'data'"),
        ({"title": "T", "data": '{"tidings_report": "x"}'}, "'data'"),
        ({"title": "T", "data": "[" * 4000}, "'data'"),
        ({"title": "T", "actions": "{}"}, "'actions'"),
        ({"title": "T", "actions": '[{"id": "a"}]'}, "'actions'"),
        ({"title": "T", "actions": '[{"id": "a b", "title": "x"}]'}, "'actions'"),
        ({"title": "T", "actions": '[{"id": "a", "title": "x", "icon": "y"}]'}, "'actions'"),
        ({"title": "T", "actions": '[{"id": "a", "title": "x", "url": "javascript:1"}]'}, "'actions'"),
        ({"title": "T", "actions": '[{"id": "a", "title": "x"}, {"id": "a", "title": "y"}]'}, "same id"),
        ({"title": "T", "body": "x" * 4096}, "4,096"),
        ({"title": "T", "text": "x"}, "no field 'text'"),
    ],
)
def test_unfit_content_names_the_field(parts: dict[str, str], says: str) -> None:
    with pytest.raises(RenderError, match=says):
        RULES.to_content(parts)
