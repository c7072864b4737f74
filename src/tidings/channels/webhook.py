"""Webhooks: the address is a URL, the message a JSON document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from yarl import URL

from tidings.channels.rules import ChannelRules
from tidings.errors import RenderError
from tidings.model.messages import Webhook
from tidings.model.words import Channel

_URL_MAX: Final = 2_000


def parse_address(text: str) -> str:
    """The URL in its normal form: scheme and host in lower case, host in ASCII, no default port.

    Whether it may be reached (a public address, TLS) is decided when it is connected to, not here.

    Raises:
        ValueError: not http or https, no host, or with user name, password or fragment.
    """
    text = text.strip()
    if len(text) > _URL_MAX:
        raise ValueError(f"The URL has more than {_URL_MAX:,} characters.")
    if not text.isprintable() or " " in text or "\\" in text:
        raise ValueError("The URL holds a space, a backslash or a control character; encode it with %.")
    try:
        url = URL(text)
    except ValueError:
        raise ValueError("This is not a URL.") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("The URL must start with https:// and a host.")
    if url.raw_user is not None or url.raw_password is not None:
        raise ValueError("The URL must not hold a user name or password: requests are signed instead.")
    if url.raw_fragment or "#" in text:
        raise ValueError("The URL must not have a fragment (#...): it would not be sent.")
    normal = str(url)
    if len(normal) > _URL_MAX:
        raise ValueError(f"The URL has more than {_URL_MAX:,} characters once encoded.")
    return normal


def _build(parts: Mapping[str, str]) -> Webhook:
    body = parts["body"].strip().encode()
    try:
        msgspec.json.decode(body)
    except msgspec.DecodeError as problem:
        raise RenderError(f"The field 'body' is not JSON after rendering: {problem}.") from None
    except RecursionError:
        raise RenderError("The field 'body' is nested too deeply.") from None
    return Webhook(body)


RULES: Final = ChannelRules(
    channel=Channel.webhook,
    fields={"body": "json"},
    required=frozenset({"body"}),
    one_of=frozenset(),
    max_content=256_000,
    parse_address=parse_address,
    build=_build,
)
