"""In-app items: the address is the user's id, the message a title with an optional body, link and buttons."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import msgspec

from tidings.channels.rules import ChannelRules, refuse_control
from tidings.errors import RenderError
from tidings.model.messages import InApp, InAppAction
from tidings.model.words import Channel

ACTIONS_MAX: Final = 5
"""Buttons of one item."""
_USER_ID_MAX: Final = 255
_ACTION_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_ACTION_TITLE_MAX: Final = 100


class _Action(msgspec.Struct, forbid_unknown_fields=True):
    """A button as a template writes it."""

    id: str
    title: str
    url: str | None = None


_decode_actions: Final = msgspec.json.Decoder(list[_Action]).decode


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
    return InApp(
        title=refuse_control("title", parts["title"]),
        body=body,
        url=url or None,
        actions=_parse_actions(parts.get("actions", "")),
    )


def _parse_actions(text: str) -> tuple[InAppAction, ...]:
    """The buttons; a template whose field is empty or `null` has none."""
    if not text.strip() or text.strip() == "null":
        return ()
    try:
        given = _decode_actions(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        # The decoder's own words may quote the content.
        raise RenderError(
            "The field 'actions' must be a JSON list of objects with 'id', 'title' and, if wanted, 'url'."
        ) from None
    if len(given) > ACTIONS_MAX:
        raise RenderError(f"The field 'actions' lists {len(given)} buttons; there may be {ACTIONS_MAX}.")
    if len({action.id for action in given}) < len(given):
        raise RenderError("Two buttons in the field 'actions' have the same id.")
    return tuple(_build_action(action) for action in given)


def _build_action(action: _Action) -> InAppAction:
    if not _ACTION_ID.fullmatch(action.id):
        raise RenderError("The id of a button in 'actions' must be 1 to 40 of letters, digits, '_', '-' and '.'.")
    title = refuse_control("actions", action.title)
    if not 1 <= len(title) <= _ACTION_TITLE_MAX:
        raise RenderError(f"The title of a button in 'actions' must have 1 to {_ACTION_TITLE_MAX} characters.")
    url = refuse_control("actions", action.url or "")
    if url and not _is_link(url):
        raise RenderError(
            "The url of a button in 'actions' must be an http or https URL, or a path that starts with one slash."
        )
    return InAppAction(action.id, title, url or None)


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
    fields={"title": "text", "body": "text", "url": "text", "actions": "json"},
    required=frozenset({"title"}),
    one_of=frozenset(),
    max_content=64_000,
    parse_address=parse_address,
    build=_build,
)
