"""What `tidings up` tells when everything runs. Pure."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class UpInfo:
    """Where the running system is to be found."""

    api_url: str
    docs_url: str
    database: str
    """In words, without credentials: `private PostgreSQL in .tidings/postgres`."""
    catcher_url: str | None = None
    """The mail catcher's pages; None without the demo."""
    api_key: str | None = field(default=None, repr=False)
    """The demo project's key; None without the demo."""

    def to_dict(self) -> dict[str, Any]:
        """For scripts; holds the key."""
        return {
            "api_url": self.api_url,
            "docs_url": self.docs_url,
            "catcher_url": self.catcher_url,
            "database": self.database,
            "api_key": self.api_key,
        }


def render_curl(info: UpInfo) -> str:
    """A command that sends a real e-mail through SMTP into the catcher."""
    body = {"type": "welcome", "to": {"user": "ada"}, "data": {"product": "Tidings"}}
    return " \\\n  ".join(
        [
            f"curl -sS {shlex.quote(info.api_url + '/api/v1/notifications')}",
            f"-H {shlex.quote(f'Authorization: Bearer {info.api_key}')}",
            "-H 'Content-Type: application/json'",
            f"-d {shlex.quote(json.dumps(body))}",
        ]
    )


def render_welcome(info: UpInfo) -> str:
    """The whole text, for a terminal."""
    facts = [("API", info.api_url), ("Docs", info.docs_url)]
    if info.catcher_url:
        facts.append(("Mails", info.catcher_url))
    facts.append(("Database", info.database))
    if info.api_key:
        facts.append(("API key", info.api_key))
    lines = ["", "Tidings is running.", "", *(f"  {name:<9}{value}" for name, value in facts), ""]
    if info.api_key and info.catcher_url:
        lines += ["Send an e-mail, and see it arrive under Mails:", "", render_curl(info), ""]
    lines += ["Ctrl-C stops everything.", ""]
    return "\n".join(lines)
