"""The demo project: users, categories, templates, types, and accounts that lead to the mail catcher.

Only what the API cannot do is done in the database: making the project and its first key. All else goes through the
API by the Python client, because that is what every user of Tidings does: the seed is also its first test, and it
cannot make anything that the API would refuse.

Everything may be run again and again. What is a PUT is put; a template that has a published version is left alone,
so that somebody who plays with it keeps their changes.
"""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tidings.client import AsyncClient, NotFound
from tidings.clock import Clock
from tidings.db.pool import Connection, Database
from tidings.demo.keeping import DemoSecrets, load_demo_secrets, save_demo_secrets
from tidings.directory.access import Access, create_key
from tidings.directory.audit import Actor
from tidings.directory.projects import create_project, load_project_by_key
from tidings.errors import Conflict, Unauthenticated
from tidings.model.words import Scope

PROJECT: Final = "demo"


async def bootstrap_demo(database: Database, clock: Clock, *, data_dir: Path, api_url: str) -> DemoSecrets:
    """The demo project and a key for it: made at the first start, found again later.

    Needs no running API. The key is kept in `data_dir`, readable for its owner only; a new one is made when the kept
    one is lost or is not of this database.
    """
    kept = load_demo_secrets(data_dir)
    if kept is not None and not await _is_valid(database, clock, kept.api_key):
        kept = None

    async def work(conn: Connection) -> str:
        project = await load_project_by_key(conn, PROJECT)
        if project is None:
            project = await create_project(conn, PROJECT, "Demo", by="system")
        if kept is not None:
            return kept.api_key
        _, text = await create_key(conn, Actor(project.id, "system"), clock, name="demo", scopes=list(Scope))
        return text

    try:
        api_key = await database.transaction(work)
    except Conflict:  # another process made the project at the same moment
        api_key = await database.transaction(work)
    webhook_secret = kept.webhook_secret if kept else "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    found = DemoSecrets(api_key=api_key, webhook_secret=webhook_secret, api_url=api_url)
    if found != kept:
        save_demo_secrets(data_dir, found)
    return found


async def _is_valid(database: Database, clock: Clock, api_key: str) -> bool:
    try:
        caller = await Access(database, clock).authenticate(f"Bearer {api_key}")
    except Unauthenticated:
        return False
    return caller.project_key == PROJECT


async def seed_demo(client: AsyncClient, *, smtp_port: int, webhook_secret: str) -> None:
    """Fills the demo project over the API.

    Args:
        client: with a key of the demo project that may `manage`.
        smtp_port: where the mail catcher takes mails on 127.0.0.1; the operator's settings must allow that target.
        webhook_secret: `whsec_…`, what webhooks are signed with.

    Raises:
        TidingsClientError: the API refused, or went away.
    """
    for category in CATEGORIES:
        await client.categories.put(**category)
    await client.accounts.put(
        "catcher",
        provider="smtp",
        channel="email",
        config={
            "host": "127.0.0.1",
            "port": smtp_port,
            "security": "none",
            "from_address": "Tidings Demo <demo@example.com>",
        },
    )
    await client.accounts.put("webhooks", provider="webhook", channel="webhook", config={"secret": webhook_secret})
    for told in TOLD:
        await _put_template(client, told)
        await client.types.put(told.key, template=told.key, **told.type)
    for user, facts in USERS.items():
        try:
            await client.users.get(user)
        except NotFound:
            await client.users.put(user, **facts)


async def _put_template(client: AsyncClient, told: Told) -> None:
    try:
        if (await client.templates.get(told.key)).published_version is not None:
            return
    except NotFound:
        await client.templates.put(told.key, name=told.name)
    content = {"default_locale": "en", "channels": told.channels}
    made = await client.templates.create_version(told.key, content)
    await client.templates.publish(told.key, made.version)


# ---------------------------------------------------------------- what is in it


@dataclass(frozen=True)
class Told:
    """A type and the template of the same key."""

    key: str
    name: str
    type: dict[str, Any]
    channels: dict[str, dict[str, dict[str, str]]] = field(repr=False)


CATEGORIES: Final[tuple[dict[str, Any], ...]] = (
    {"key": "orders", "name": "Orders", "description": "What becomes of what you bought."},
    {"key": "account", "name": "Account", "description": "Sign-in and security.", "required": True},
    {"key": "news", "name": "News", "description": "New things, now and then."},
)

USERS: Final[dict[str, dict[str, Any]]] = {
    "ada": {
        "locale": "en-GB",
        "time_zone": "Europe/London",
        "attributes": {"first_name": "Ada", "plan": "pro"},
        "addresses": {"email": ["ada@example.com"]},
    },
    "grace": {
        "locale": "en-US",
        "time_zone": "America/New_York",
        "attributes": {"first_name": "Grace", "plan": "free"},
        "addresses": {"email": ["grace@example.com"]},
    },
    "alan": {
        "locale": "de-AT",
        "time_zone": "Europe/Vienna",
        "attributes": {"first_name": "Alan", "plan": "free"},
        "addresses": {"email": ["alan@example.com"]},
    },
}

_NAME: Final = '{{ user.attributes.first_name | default("") }}'


def _html(language: str, heading: str, *paragraphs: str, button: tuple[str, str] | None = None) -> str:
    """A small page that mail programs show well: one column, inline styles, no image, nothing to load."""
    text = "".join(f'<p style="margin:0 0 16px">{paragraph}</p>' for paragraph in paragraphs)
    link = (
        f'<p style="margin:24px 0 8px"><a href="{button[1]}" style="display:inline-block;padding:12px 22px;'
        f'border-radius:6px;background:#1f5fd0;color:#ffffff;text-decoration:none;font-weight:600">{button[0]}</a></p>'
        if button
        else ""
    )
    return (
        f'<!doctype html><html lang="{language}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"></head>'
        '<body style="margin:0;padding:32px 16px;background:#f3f5f9;font-family:system-ui,Arial,sans-serif;'
        'font-size:16px;line-height:1.55;color:#1c2430">'
        '<div style="max-width:520px;margin:0 auto;padding:32px;background:#ffffff;border-radius:10px;'
        'border:1px solid #e3e7ee"><h1 style="margin:0 0 16px;font-size:22px;line-height:1.3">'
        f"{heading}</h1>{text}{link}</div></body></html>"
    )


_HELLO: Final = f"Hello{{% if user.attributes.first_name is defined %}} {_NAME}{{% endif %}},"
_HALLO: Final = f"Hallo{{% if user.attributes.first_name is defined %}} {_NAME}{{% endif %}},"

TOLD: Final[tuple[Told, ...]] = (
    Told(
        "welcome",
        "Welcome",
        {
            "category": "account",
            "steps": [{"send": ["email", "in_app"]}],
            "schema": {
                "type": "object",
                "properties": {"product": {"type": "string", "maxLength": 100}},
                "required": ["product"],
            },
        },
        {
            "email": {
                "en": {
                    "subject": "Welcome to {{ product }}",
                    "text": f"{_HELLO}\n\nYour account with {{{{ product }}}} is ready.\n\nGood to have you here.\n",
                    "html": _html(
                        "en",
                        "Welcome to {{ product }}",
                        _HELLO,
                        "Your account with {{ product }} is ready. Good to have you here.",
                    ),
                },
                "de": {
                    "subject": "Willkommen bei {{ product }}",
                    "text": f"{_HALLO}\n\nIhr Konto bei {{{{ product }}}} ist bereit.\n\nSchön, dass Sie da sind.\n",
                    "html": _html(
                        "de",
                        "Willkommen bei {{ product }}",
                        _HALLO,
                        "Ihr Konto bei {{ product }} ist bereit. Schön, dass Sie da sind.",
                    ),
                },
            },
            "in_app": {
                "en": {"title": "Welcome to {{ product }}", "body": "Your account is ready."},
                "de": {"title": "Willkommen bei {{ product }}", "body": "Ihr Konto ist bereit."},
            },
        },
    ),
    Told(
        "reset_password",
        "Reset password",
        {
            "category": "account",
            "priority": "critical",
            "critical": True,
            "steps": [{"send": ["email"]}],
            "expires_after": "15m",
            "schema": {
                "type": "object",
                "properties": {"url": {"type": "string", "pattern": "^https?://", "maxLength": 2000}},
                "required": ["url"],
            },
        },
        {
            "email": {
                "en": {
                    "subject": "Reset your password",
                    "text": f"{_HELLO}\n\nChoose a new password here, within 15 minutes:\n\n{{{{ url }}}}\n\n"
                    "If you did not ask for this, ignore it: nothing has changed.\n",
                    "html": _html(
                        "en",
                        "Reset your password",
                        _HELLO,
                        "Choose a new password within 15 minutes. If you did not ask for this, ignore it: "
                        "nothing has changed.",
                        button=("Choose a new password", "{{ url }}"),
                    ),
                },
                "de": {
                    "subject": "Passwort zurücksetzen",
                    "text": f"{_HALLO}\n\nhier vergeben Sie binnen 15 Minuten ein neues Passwort:\n\n{{{{ url }}}}\n\n"
                    "Falls Sie das nicht wollten, ist nichts zu tun: Ihr Passwort gilt weiter.\n",
                    "html": _html(
                        "de",
                        "Passwort zurücksetzen",
                        _HALLO,
                        "vergeben Sie binnen 15 Minuten ein neues Passwort. Falls Sie das nicht wollten, ist nichts zu "
                        "tun: Ihr Passwort gilt weiter.",
                        button=("Neues Passwort vergeben", "{{ url }}"),
                    ),
                },
            }
        },
    ),
    Told(
        "order_shipped",
        "Order shipped",
        {
            "category": "orders",
            "priority": "high",
            "expires_after": "2d",
            "schema": {
                "type": "object",
                "properties": {
                    "order": {"type": "string", "maxLength": 40},
                    "url": {"type": "string", "pattern": "^https?://", "maxLength": 2000},
                },
                "required": ["order"],
            },
        },
        {
            "email": {
                "en": {
                    "subject": "Order {{ order }} is on its way",
                    "text": f"{_HELLO}\n\nYour order {{{{ order }}}} has left our house.\n"
                    "{% if url is defined %}\nFollow it: {{ url }}\n{% endif %}",
                    "html": _html(
                        "en",
                        "Order {{ order }} is on its way",
                        _HELLO,
                        "Your order <strong>{{ order }}</strong> has left our house."
                        '{% if url is defined %} <a href="{{ url }}">Follow it</a>.{% endif %}',
                    ),
                },
                "de": {
                    "subject": "Bestellung {{ order }} ist unterwegs",
                    "text": f"{_HALLO}\n\nIhre Bestellung {{{{ order }}}} hat unser Haus verlassen.\n"
                    "{% if url is defined %}\nVerfolgen: {{ url }}\n{% endif %}",
                    "html": _html(
                        "de",
                        "Bestellung {{ order }} ist unterwegs",
                        _HALLO,
                        "Ihre Bestellung <strong>{{ order }}</strong> hat unser Haus verlassen."
                        '{% if url is defined %} <a href="{{ url }}">Verfolgen</a>.{% endif %}',
                    ),
                },
            },
            "in_app": {
                "en": {"title": "Order {{ order }} is on its way", "body": "It has left our house."},
                "de": {"title": "Bestellung {{ order }} ist unterwegs", "body": "Sie hat unser Haus verlassen."},
            },
            "webhook": {
                "en": {"body": '{"event": "order_shipped", "order": {{ order }}, "user": {{ user.id }}}'},
            },
        },
    ),
)
