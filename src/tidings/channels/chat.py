"""Chat: a room's own webhook, or the name of one that an account keeps, and a text with an optional heading.

The address is what the vendor calls the target, with the vendor's scheme in front:

    slack:https://hooks.slack.com/services/T…/B…/…        an incoming webhook of Slack
    discord:https://discord.com/api/webhooks/<id>/<token>   one of Discord
    slack:<name>   discord:<name>   apprise:<name>          what the account of that name is configured with
    simulator:<outcome>                                     the simulator

The URL alone is taken too. Whoever knows it can write into the room: it is a secret, and in no log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import msgspec
from yarl import URL

from tidings.channels.rules import ChannelRules, refuse_control
from tidings.errors import RenderError
from tidings.model.messages import Chat
from tidings.model.words import Channel

_ADDRESS_MAX: Final = 2_000  # characters
_CONTENT_MAX: Final = 256_000  # octets; vendors take less, and each says so itself
_LINE_MAX: Final = 2_000
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_SIMULATOR: Final = re.compile(r"[a-z]{1,20}(?:\+[A-Za-z0-9._-]{1,200})?")

# https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks/
_SLACK_HOSTS: Final = frozenset({"hooks.slack.com", "hooks.slack-gov.com"})
_SLACK_PATH: Final = re.compile(r"/services/[A-Za-z0-9]+/[A-Za-z0-9]+/[A-Za-z0-9]+")
# https://docs.discord.com/developers/resources/webhook
_DISCORD_HOSTS: Final = frozenset({"discord.com", "discordapp.com", "ptb.discord.com", "canary.discord.com"})
_DISCORD_PATH: Final = re.compile(r"/api(?:/v\d{1,2})?/webhooks/(?P<id>\d{10,24})/(?P<token>[A-Za-z0-9_-]{10,200})")
_DISCORD_THREAD: Final = re.compile(r"thread_id=\d{10,24}")


# --- addresses --------------------------------------------------------------------------------------------------------


def parse_address(text: str) -> str:
    """The address in its one normal form, with its scheme.

    Raises:
        ValueError: no known scheme, or not a target of it. The sentence quotes nothing of what was given.
    """
    text = text.strip()
    if len(text) > _ADDRESS_MAX:
        raise ValueError(f"The address has more than {_ADDRESS_MAX:,} characters.")
    if text[:8].lower() == "https://":
        host = _parse_url(text).host
        if host in _SLACK_HOSTS:
            return _parse_slack(text)
        if host in _DISCORD_HOSTS:
            return _parse_discord(text)
        raise ValueError("The URL is no webhook of Slack or Discord; for other services there is apprise:<name>.")
    scheme, _, target = text.partition(":")
    scheme = scheme.lower()
    if scheme == "simulator":
        if not _SIMULATOR.fullmatch(target):
            raise ValueError("After simulator: stands what is to happen, such as deliver or bounce.")
        return f"simulator:{target}"
    if scheme not in ("slack", "discord", "apprise"):
        raise ValueError("A chat address begins with slack:, discord: or apprise:, or is the URL of a webhook.")
    if _NAME.fullmatch(target):
        return f"{scheme}:{target}"
    if scheme == "slack":
        return _parse_slack(target)
    if scheme == "discord":
        return _parse_discord(target)
    raise ValueError("After apprise: stands the name that an account gives: a-z, 0-9, _, - and .")


def _parse_slack(text: str) -> str:
    url = _parse_url(text)
    if url.host not in _SLACK_HOSTS or not _SLACK_PATH.fullmatch(url.raw_path) or url.raw_query_string:
        raise ValueError("This is no webhook of Slack; those read https://hooks.slack.com/services/T…/B…/….")
    return f"slack:https://{url.host}{url.raw_path}"


def _parse_discord(text: str) -> str:
    url = _parse_url(text)
    found = _DISCORD_PATH.fullmatch(url.raw_path)
    if url.host not in _DISCORD_HOSTS or found is None:
        raise ValueError("This is no webhook of Discord; those read https://discord.com/api/webhooks/<id>/<token>.")
    thread = url.raw_query_string
    if thread and not _DISCORD_THREAD.fullmatch(thread):
        raise ValueError("A webhook of Discord may have ?thread_id=<number> behind it, and nothing else.")
    # All hosts and versions of the path lead to the same webhook.
    normal = f"discord:https://discord.com/api/webhooks/{found['id']}/{found['token']}"
    return f"{normal}?{thread}" if thread else normal


def _parse_url(text: str) -> URL:
    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text or "#" in text:
        raise ValueError("The URL holds characters that a webhook's never has.")
    try:
        url = URL(text, encoded=True)
        plain = (
            url.scheme == "https" and url.explicit_port is None and url.raw_user is None and url.raw_password is None
        )
    except ValueError:
        plain = False
    if not plain or not url.host:
        raise ValueError("The URL must start with https:// and a host, without a port or credentials.")
    return url


# --- content ----------------------------------------------------------------------------------------------------------


def _build(parts: Mapping[str, str]) -> Chat:
    for name in ("title", "url"):
        if len(parts.get(name, "")) > _LINE_MAX:
            raise RenderError(f"The field {name!r} has more than {_LINE_MAX:,} characters.")
    title = refuse_control("title", parts.get("title", ""))
    url = refuse_control("url", parts.get("url", ""))
    if url and not _is_link(url):
        raise RenderError("The field 'url' must be an http or https URL.")
    return Chat(
        text=parts["text"].strip(),
        title=title or None,
        url=url or None,
        payload=_to_payload(parts["payload"]) if parts.get("payload", "").strip() else None,
    )


def _is_link(text: str) -> bool:
    try:
        split = urlsplit(text)
    except ValueError:
        return False
    return split.scheme in ("http", "https") and bool(split.hostname) and not re.search(r"[\s<>|\"]", text)


def _to_payload(text: str) -> bytes:
    try:
        payload = msgspec.json.decode(text)
    except msgspec.DecodeError as problem:
        raise RenderError(f"The field 'payload' is not JSON after rendering: {problem}.") from None
    except RecursionError:
        raise RenderError("The field 'payload' is nested too deeply.") from None
    if not isinstance(payload, dict):
        raise RenderError("The field 'payload' must be a JSON object.")
    return text.strip().encode()


RULES: Final = ChannelRules(
    channel=Channel.chat,
    fields={"text": "text", "title": "text", "url": "text", "payload": "json"},
    required=frozenset({"text"}),
    one_of=frozenset(),
    max_content=_CONTENT_MAX,
    parse_address=parse_address,
    build=_build,
)
