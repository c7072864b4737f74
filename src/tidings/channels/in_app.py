"""In-app items: the address is the user's id, the message a title with an optional body and link."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from tidings.channels.rules import ChannelRules, refuse_control
from tidings.errors import RenderError
from tidings.model.messages import InApp
from tidings.model.words import Channel

_USER_ID_MAX: Final = 255


def parse_address(text: str) -> str:
    """The user's id, as it is.

    Raises:
        ValueError: empty, too long, or with control characters.
    """
    if not text or len(text) > _USER_ID_MAX or not text.isprintable():
        raise ValueError(f"A user's id has 1 to {_USER_ID_MAX} printable characters.")
    return text


def _build(parts: Mapping[str, str]) -> InApp:
    url = refuse_control("url", parts.get("url", ""))
    # A link that the user's browser will follow: no javascript:, no data:. Relative links stay in the application.
    if url and not _is_link(url):
        raise RenderError("The field 'url' must be an http or https URL, or a path that starts with one slash.")
    body = parts.get("body", "")
    if "\x00" in body:  # has many lines, but is stored: PostgreSQL's text knows no U+0000
        raise RenderError("The field 'body' holds the character U+0000, which cannot be stored.")
    return InApp(title=refuse_control("title", parts["title"]), body=body, url=url or None)


def _is_link(url: str) -> bool:
    if url.startswith("/"):
        # Browsers read // and /\ as the start of another host.
        return url[1:2] not in ("/", "\\")
    try:
        split = urlsplit(url)
    except ValueError:
        return False
    return split.scheme in ("http", "https") and bool(split.hostname)


RULES: Final = ChannelRules(
    channel=Channel.in_app,
    fields={"title": "text", "body": "text", "url": "text"},
    required=frozenset({"title"}),
    one_of=frozenset(),
    max_content=64_000,
    parse_address=parse_address,
    build=_build,
)
