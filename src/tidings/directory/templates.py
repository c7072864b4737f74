"""Templates: content per channel and locale, in numbered versions that are never changed.

A version is a draft until it is published; one version of a template is published at a time, and going back is
publishing an earlier one again. A delivery pins the version that was published when it was planned.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from tidings.channels import CHANNELS
from tidings.db.pool import Connection, Database, Record
from tidings.db.sql import load_queries
from tidings.directory.accounts import notify_config
from tidings.directory.audit import Actor, apply_audit
from tidings.directory.digests import digest_of_one
from tidings.errors import Conflict, FieldError, Invalid, NotFound, RenderError
from tidings.model.words import Channel
from tidings.templating import compile_template

_queries: Final = load_queries(__package__, "templates.sql")
_CREATE_TEMPLATE: Final = _queries.create_template
_LOCK_TEMPLATE: Final = _queries.lock_template
_RENAME_TEMPLATE: Final = _queries.rename_template
_LOAD_TEMPLATE: Final = _queries.load_template
_LIST_TEMPLATES: Final = _queries.list_templates
_CREATE_TEMPLATE_VERSION: Final = _queries.create_template_version
_PUBLISH_TEMPLATE: Final = _queries.publish_template
_MARK_PUBLISHED: Final = _queries.mark_published
_LOAD_TEMPLATE_VERSION: Final = _queries.load_template_version
_LIST_TEMPLATE_VERSIONS: Final = _queries.list_template_versions


class Template(msgspec.Struct, frozen=True):
    """A template, without its content."""

    key: str
    name: str
    published_version: int | None
    """What new deliveries use; None: only drafts so far."""
    latest_version: int
    created_at: datetime
    updated_at: datetime


class Version(msgspec.Struct, frozen=True):
    """One version of a template."""

    template: str
    version: int
    content: dict[str, Any]
    required: list[str]
    """The dotted names that a request's data must have."""
    published_at: datetime | None
    """When it was published for the first time; None: a draft."""
    created_at: datetime


class Preview(msgspec.Struct, frozen=True):
    """What a version makes of some data."""

    version: int
    channel: str
    locale: str
    fields: dict[str, str]


async def put_template(conn: Connection, actor: Actor, key: str, *, name: str | None = None) -> tuple[Template, bool]:
    """Makes the template, or renames it; the second value says whether it is new. Its content comes as versions."""
    row = await conn.fetchrow(_CREATE_TEMPLATE, actor.project_id, key, name if name is not None else key)
    if row is not None:
        template = Template(**dict(row))
        await apply_audit(conn, actor, "template.put", f"template:{key}", after=template)
        return template, True
    before = await _lock_template(conn, actor.project_id, key)
    if name is None or name == before.name:
        return before, False
    template = Template(**dict(_found(await conn.fetchrow(_RENAME_TEMPLATE, actor.project_id, key, name))))
    await apply_audit(conn, actor, "template.put", f"template:{key}", before=before, after=template)
    return template, False


async def load_template(db: Database | Connection, project_id: int, key: str) -> Template:
    """One template.

    Raises:
        NotFound: this project has none with this key.
    """
    return Template(**dict(_found(await db.fetchrow(_LOAD_TEMPLATE, project_id, key))))


async def list_templates(
    db: Database | Connection, project_id: int, *, after: str | None = None, limit: int = 50
) -> list[Template]:
    """The project's templates by key; those after `after` (exclusive) when given."""
    return [Template(**dict(row)) for row in await db.fetch(_LIST_TEMPLATES, project_id, after, limit)]


async def create_template_version(conn: Connection, actor: Actor, key: str, content: Mapping[str, Any]) -> Version:
    """Adds a draft.

    Args:
        content: `{"default_locale": "en", "channels": {"email": {"en": {"subject": "…", "text": "…"}}}}`.

    Raises:
        NotFound: this project has no such template.
        Invalid: with a pointer, and the line, for each thing to mend.
    """
    await _lock_template(conn, actor.project_id, key)
    compiled = compile_template(content, CHANNELS)
    stored = {"default_locale": compiled.default_locale, "channels": content["channels"]}
    row = await conn.fetchrow(
        _CREATE_TEMPLATE_VERSION,
        actor.project_id,
        key,
        msgspec.json.encode(stored).decode(),
        sorted(compiled.required),
    )
    version = _to_version(_found(row))
    await apply_audit(conn, actor, "template.create_version", f"template:{key}", after=version)
    return version


async def publish_template(conn: Connection, actor: Actor, key: str, version: int) -> Template:
    """Makes a version the one that new deliveries use; doing it again changes nothing.

    Raises:
        NotFound: there is no such template or version.
    """
    return await _publish(conn, actor, key, version, "template.publish")


async def rollback_template(conn: Connection, actor: Actor, key: str, version: int) -> Template:
    """Goes back to a version that was published before.

    Raises:
        NotFound: there is no such template or version.
        Conflict: that version never was published.
    """
    if (await load_template_version(conn, actor.project_id, key, version)).published_at is None:
        raise Conflict(f"Version {version} never was published; publish it.")
    return await _publish(conn, actor, key, version, "template.rollback")


async def load_template_version(db: Database | Connection, project_id: int, key: str, version: int) -> Version:
    """One version with its content.

    Raises:
        NotFound: there is no such template or version.
    """
    row = await db.fetchrow(_LOAD_TEMPLATE_VERSION, project_id, key, version)
    if row is None:
        raise NotFound("There is no such version of a template in this project.")
    return _to_version(row)


async def list_template_versions(
    db: Database | Connection, project_id: int, key: str, *, before: int | None = None, limit: int = 50
) -> list[Version]:
    """A template's versions with their content, the newest first; those before `before` (exclusive) when given.

    Raises:
        NotFound: this project has no such template.
    """
    await load_template(db, project_id, key)
    rows = await db.fetch(_LIST_TEMPLATE_VERSIONS, project_id, key, before, limit)
    return [_to_version(row) for row in rows]


def render_preview(
    version: Version, channel: Channel, locale: str | None, data: Mapping[str, Any], user: Mapping[str, Any]
) -> Preview:
    """What the version makes of the data, by the same steps as a delivery. Pure; nothing is stored.

    Args:
        user: what is known of the user: any of id, time_zone, attributes.

    Raises:
        Invalid: a variable is missing, the channel has no content, or rendering fails.
    """
    compiled = compile_template(version.content, CHANNELS)
    if channel not in compiled.channels:
        covered = ", ".join(sorted(c.name for c in compiled.channels))
        raise Invalid(errors=[FieldError(f"the template has content for {covered} only", "/channel")])
    if missing := compiled.missing(data):
        raise Invalid(
            "The data lacks what the template needs.",
            errors=[FieldError(f"the template needs {name}", f"/data/{name.replace('.', '/')}") for name in missing],
        )
    chosen = compiled.resolve_locale(channel, locale)
    known = {"id": "u-preview", "locale": chosen, "time_zone": None, "attributes": {}, **user}
    variables = {
        "digest": digest_of_one("ntf_preview", datetime(2026, 1, 1, tzinfo=UTC), data),
        **data,
        "notification": {"id": "ntf_preview"},
        "delivery": {"id": "dlv_preview", "channel": channel.name},
        "links": {"unsubscribe": "https://example.com/u/preview", "preferences": "https://example.com/p/preview"},
        "user": known,
    }
    try:
        fields = compiled.render(channel, chosen, variables)
        CHANNELS[channel].to_content(fields)
    except RenderError as error:
        raise Invalid(f"The template cannot be rendered with this data: {error}") from None
    return Preview(version.version, channel.name, chosen, fields)


async def _publish(conn: Connection, actor: Actor, key: str, version: int, action: str) -> Template:
    before = await _lock_template(conn, actor.project_id, key)
    await load_template_version(conn, actor.project_id, key, version)
    if before.published_version == version:
        return before
    await conn.execute(_MARK_PUBLISHED, actor.project_id, key, version)
    after = Template(**dict(_found(await conn.fetchrow(_PUBLISH_TEMPLATE, actor.project_id, key, version))))
    await apply_audit(conn, actor, action, f"template:{key}", before=before, after=after)
    await notify_config(conn, actor.project_id)
    return after


async def _lock_template(conn: Connection, project_id: int, key: str) -> Template:
    return Template(**dict(_found(await conn.fetchrow(_LOCK_TEMPLATE, project_id, key))))


def _found(row: Record | None) -> Record:
    if row is None:
        raise NotFound("There is no such template in this project.")
    return row


def _to_version(row: Record) -> Version:
    return Version(
        template=row["template_key"],
        version=row["version"],
        content=msgspec.json.decode(row["content"]),
        required=row["required"],
        published_at=row["published_at"],
        created_at=row["created_at"],
    )
