"""Push: a device's token or a browser's subscription, and a title and body, or data alone that wakes the application.

The address is what the vendor calls the target, with the vendor's scheme in front:

    fcm:<registration token>                    Firebase Cloud Messaging
    apns:<device token, hexadecimal>            Apple
    webpush:<endpoint>#<p256dh>.<auth>          Web Push (RFC 8030); both keys in base64url without padding
    simulator:<outcome>                         the simulator

A Web Push subscription may also be given as the JSON that a browser makes of it (`JSON.stringify(subscription)`).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey

from tidings.channels import webhook
from tidings.channels.rules import ChannelRules, refuse_control
from tidings.errors import RenderError
from tidings.model.messages import Push, PushAction
from tidings.model.words import Channel

_ADDRESS_MAX: Final = 2_000  # characters
_JSON_MAX: Final = 8_000  # characters of a subscription as JSON
_FCM: Final = re.compile(r"[A-Za-z0-9_.:-]{1,1024}")
_APNS: Final = re.compile(r"(?:[0-9a-f]{2}){32,100}")  # today 32 octets; Apple asks not to count on it, up to 100
_SIMULATOR: Final = re.compile(r"[a-z]{1,20}(?:\+[A-Za-z0-9._-]{1,200})?")
_ACTION_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_DEEP_LINK: Final = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_NO_LINKS: Final = frozenset({"javascript", "data", "vbscript", "file", "blob", "about"})
"""What a tap must never open: it would run or read something on the device."""

_CONTENT_MAX: Final = 4_096  # octets; no vendor takes a larger payload
_COLLAPSE_KEY_MAX: Final = 64  # octets; the least that a vendor allows (Apple)
_LINE_MAX: Final = 2_000
_ACTIONS_MAX: Final = 10
_BADGE_MAX: Final = 2**31 - 1
_RESERVED: Final = frozenset({"aps", "from", "message_type"})
_RESERVED_STARTS: Final = ("google.", "gcm.", "tidings_")
"""Names that the vendors keep for themselves, and ours."""


# --- addresses --------------------------------------------------------------------------------------------------------


class _Keys(msgspec.Struct):
    p256dh: str
    auth: str


class _Subscription(msgspec.Struct):
    """https://www.w3.org/TR/push-api/#dom-pushsubscriptionjson; its `expirationTime` is not looked at: the push
    service says when a subscription has ended."""

    endpoint: str
    keys: _Keys


def parse_address(text: str) -> str:
    """The address in its one normal form, with its scheme.

    Raises:
        ValueError: no known scheme, or not a target of it.
    """
    text = text.strip()
    if text.startswith("{"):
        return _parse_subscription_json(text)
    if len(text) > _ADDRESS_MAX:
        raise ValueError(f"The address has more than {_ADDRESS_MAX:,} characters.")
    scheme, _, target = text.partition(":")
    scheme = scheme.lower()
    if scheme == "fcm":
        if not _FCM.fullmatch(target):
            raise ValueError("After fcm: stands the registration token: letters, digits and _ - . : only.")
        return f"fcm:{target}"
    if scheme == "apns":
        if not _APNS.fullmatch(token := target.lower()):
            raise ValueError("After apns: stands the device token: 64 to 200 hexadecimal digits, an even number.")
        return f"apns:{token}"
    if scheme == "webpush":
        if target.startswith("{"):
            return _parse_subscription_json(target)
        endpoint, _, keys = target.rpartition("#")
        p256dh, _, auth = keys.partition(".")
        return _join_subscription(endpoint, p256dh, auth)
    if scheme == "simulator":
        if not _SIMULATOR.fullmatch(target):
            raise ValueError("After simulator: stands what shall become of the message, such as simulator:deliver.")
        return f"simulator:{target}"
    raise ValueError(
        "A push address is fcm:<token>, apns:<token>, or a Web Push subscription: its JSON, or "
        "webpush:<endpoint>#<p256dh>.<auth>."
    )


def _parse_subscription_json(text: str) -> str:
    if len(text) > _JSON_MAX:
        raise ValueError(f"The subscription has more than {_JSON_MAX:,} characters.")
    try:
        given = msgspec.json.decode(text, type=_Subscription)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise ValueError(
            'This is not a Web Push subscription; it looks like {"endpoint": "https://…", "keys": {"p256dh": "…", '
            '"auth": "…"}}.'
        ) from None
    return _join_subscription(given.endpoint, given.keys.p256dh, given.keys.auth)


def _join_subscription(endpoint: str, p256dh: str, auth: str) -> str:
    try:
        url = webhook.parse_address(endpoint)
    except ValueError as problem:
        raise ValueError(f"The subscription's endpoint does not do: {problem}") from None
    if not url.startswith("https://") and not _is_inner_host(url):
        raise ValueError("The subscription's endpoint must start with https://.")
    point, secret = _decode_key("p256dh", p256dh), _decode_key("auth", auth)
    try:
        if len(point) != 65:  # no compressed points (RFC 8291, 3.1)
            raise ValueError
        EllipticCurvePublicKey.from_encoded_point(SECP256R1(), point)
    except ValueError:
        raise ValueError("The subscription's p256dh is not a public key (65 octets, P-256, in base64url).") from None
    if len(secret) != 16:
        raise ValueError("The subscription's auth must be 16 octets in base64url.")
    address = f"webpush:{url}#{_encode_key(point)}.{_encode_key(secret)}"
    if len(address) > _ADDRESS_MAX:
        raise ValueError(f"The subscription has more than {_ADDRESS_MAX:,} characters.")
    return address


def _is_inner_host(url: str) -> bool:
    """A push service on the own machine or network, by its number: for tests. Without TLS it is reached only where an
    operator opened that network, which is decided when it is connected to."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return not ip_address(host).is_global
    except ValueError:
        return False


def _decode_key(name: str, text: str) -> bytes:
    text = text.strip().rstrip("=").replace("+", "-").replace("/", "_")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"The subscription's {name} is not base64url.") from None


def _encode_key(key: bytes) -> str:
    return base64.urlsafe_b64encode(key).rstrip(b"=").decode()


# --- content ----------------------------------------------------------------------------------------------------------


def _build(parts: Mapping[str, str]) -> Push:
    silent = _parse_flag("silent", parts.get("silent", ""))
    push = Push(
        title=refuse_control("title", parts.get("title", "")) or None,
        body=_parse_text("body", parts.get("body", "")),
        url=_parse_link("url", parts.get("url", "")),
        image=_parse_image(parts.get("image", "")),
        data=_parse_data(parts.get("data", "")),
        actions=_parse_actions(parts.get("actions", "")),
        badge=_parse_badge(parts.get("badge", "")),
        sound=_parse_line("sound", parts.get("sound", ""), 200),
        collapse_key=_parse_line("collapse_key", parts.get("collapse_key", ""), _COLLAPSE_KEY_MAX),
        silent=silent,
    )
    if silent:
        for name in ("title", "body", "image", "sound", "actions"):
            if getattr(push, name):
                raise RenderError(f"A silent push message shows nothing, so the field {name!r} must be empty.")
        if push.badge is not None:
            raise RenderError("A silent push message shows nothing, so the field 'badge' must be empty.")
    elif push.title is None and push.body is None:
        raise RenderError("The fields 'title' and 'body' are both empty after rendering, and 'silent' is not true.")
    return push


def _parse_flag(name: str, text: str) -> bool:
    match text.strip().lower():
        case "true":
            return True
        case "" | "false":
            return False
    raise RenderError(f"The field {name!r} must be true or false.")


def _parse_text(name: str, text: str) -> str | None:
    if "\x00" in text:
        raise RenderError(f"The field {name!r} holds the character U+0000.")
    return text.strip() or None


def _parse_line(name: str, text: str, most: int) -> str | None:
    line = refuse_control(name, text)
    if len(line.encode()) > most:
        raise RenderError(f"The field {name!r} takes at most {most:,} octets.")
    return line or None


def _parse_link(name: str, text: str) -> str | None:
    """http, https, a path, or an application's own scheme."""
    url = _parse_line(name, text, _LINE_MAX)
    if url is None:
        return None
    if url.startswith("/"):
        if url[1:2] in ("/", "\\"):  # browsers read both as the start of another host
            raise RenderError(f"The field {name!r} must start with one slash only, or with a scheme.")
        return url
    found = _DEEP_LINK.match(url)
    if found is None or found[0][:-1].lower() in _NO_LINKS or (_is_web(url) and not _has_host(url)):
        raise RenderError(f"The field {name!r} must be a URL, a path, or a link with the application's own scheme.")
    return url


def _parse_image(text: str) -> str | None:
    url = _parse_line("image", text, _LINE_MAX)
    if url is not None and not (_is_web(url) and _has_host(url)):
        raise RenderError("The field 'image' must be an http or https URL.")
    return url


def _is_web(url: str) -> bool:
    return url.lower().startswith(("http:", "https:"))


def _has_host(url: str) -> bool:
    try:
        return bool(urlsplit(url).hostname)
    except ValueError:
        return False


def _parse_badge(text: str) -> int | None:
    text = text.strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > _BADGE_MAX:
        raise RenderError("The field 'badge' must be a whole number from 0 up.")
    return int(text)


def _parse_json(name: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as problem:
        raise RenderError(f"The field {name!r} is not JSON after rendering: {problem}.") from None
    except RecursionError:
        raise RenderError(f"The field {name!r} is nested too deeply.") from None


def _parse_data(text: str) -> tuple[tuple[str, str], ...]:
    if not text.strip():
        return ()
    data = _parse_json("data", text)
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        raise RenderError("The field 'data' must be a JSON object whose values are all strings.")
    for name in data:
        if not name or name in _RESERVED or name.startswith(_RESERVED_STARTS):
            raise RenderError("The field 'data' uses a name that push services keep for themselves.")
    return tuple(data.items())


def _parse_actions(text: str) -> tuple[PushAction, ...]:
    if not text.strip():
        return ()
    items = _parse_json("actions", text)
    if not isinstance(items, list) or len(items) > _ACTIONS_MAX:
        raise RenderError(f"The field 'actions' must be a JSON list of at most {_ACTIONS_MAX} buttons.")
    actions = tuple(map(_parse_action, items))
    if len({action.id for action in actions}) < len(actions):
        raise RenderError("The field 'actions' has two buttons with the same id.")
    return actions


def _parse_action(item: Any) -> PushAction:
    match item:
        case {"id": str(id_), "title": str(title), **rest} if _ACTION_ID.fullmatch(id_) and title.strip():
            if rest.keys() <= {"url"} and isinstance(url := rest.get("url"), str | None):
                title = refuse_control("actions", title)
                return PushAction(id_, title, _parse_link("actions", url) if url else None)
    raise RenderError("Each of the 'actions' has an id (letters, digits, _ - . :), a title, and perhaps a url.")


RULES: Final = ChannelRules(
    channel=Channel.push,
    fields={
        "title": "text",
        "body": "text",
        "url": "text",
        "image": "text",
        "badge": "text",
        "sound": "text",
        "collapse_key": "text",
        "silent": "text",
        "data": "json",
        "actions": "json",
    },
    required=frozenset(),
    one_of=frozenset({"title", "body", "silent"}),
    max_content=_CONTENT_MAX,
    parse_address=parse_address,
    build=_build,
)
