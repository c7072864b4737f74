"""Projects: the isolation unit. Made by the operator (CLI), never over the API of another project."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final, Literal

import msgspec

from tidings.db.pool import Connection, Database, Record
from tidings.db.sql import load_queries
from tidings.directory.accounts import create_builtin_accounts, notify_config
from tidings.directory.audit import Actor, apply_audit
from tidings.directory.categories import DEFAULT_CATEGORY, check_hours_and_limits, put_category
from tidings.directory.limits import Limit
from tidings.directory.quiet import QuietHours
from tidings.directory.types import parse_defaults
from tidings.directory.users import parse_time_zone
from tidings.errors import Conflict, FieldError, Invalid, NotFound

_queries: Final = load_queries(__package__, "projects.sql")
_CREATE_PROJECT: Final = _queries.create_project
_LOAD_PROJECT: Final = _queries.load_project
_LOAD_PROJECT_BY_KEY: Final = _queries.load_project_by_key
_LIST_PROJECTS: Final = _queries.list_projects

_LOCK_PROJECT: Final = _queries.lock_project
_UPDATE_SETTINGS: Final = _queries.update_settings

ORIGINS_MAX: Final = 50
PACE_MIN: Final = 0.001
"""Messages per second."""
PACE_MAX: Final = 100_000.0
COUNT_MAX: Final = 2**31 - 1
"""Of thresholds: users of a broadcast, notifications per minute."""
ADDRESS_MAX: Final = 2_000
_ORIGIN: Final = re.compile(
    r"https?://(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?::\d{1,5})?"
)
_KEY: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


class Tracking(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether mails tell when they are opened and clicked. Off until the project turns it on."""

    opens: bool = False
    clicks: bool = False
    domain: str | None = None
    """Where the links point, such as `https://click.example.com`, which must lead to the API; null: the API's own
    address (`TIDINGS_PUBLIC_URL`)."""


class ProjectSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a project sets for itself."""

    tracking: Tracking = Tracking()
    sms_help: str | None = None
    """What answers HELP in a text message, for vendors that do not answer it themselves; null: nothing."""
    origins: tuple[str, ...] = ()
    """Web origins, such as `https://shop.example.com`, whose pages may use the inbox with a user's token."""
    time_zone: str | None = None
    """Of users who have none; null: UTC."""
    defaults: dict[str, bool] = {}
    """By channel: whether users hear of things there unless they, or a category, say otherwise. Not named: yes."""
    quiet_hours: QuietHours | None = None
    limits: tuple[Limit, ...] = ()
    """Per user, over all types."""
    pace: float | None = None
    """Messages per second of the whole project, over all channels; null: no limit."""
    confirm_above: int = 10_000
    """A broadcast to more users than this has to be confirmed with their number."""
    runaway_above: int | None = 600
    """Notifications per minute of one type to one user, above which requests are refused as a loop gone wild; null:
    never."""
    address: str | None = None
    """Postal address or imprint, shown on the preference page."""


NO_SETTINGS: Final = ProjectSettings()
"""Of a project that has set nothing."""


class Project(msgspec.Struct, frozen=True):
    """One project."""

    id: int
    """Internal; the API shows the key."""
    key: str
    name: str
    created_at: datetime
    settings: ProjectSettings = NO_SETTINGS


async def create_project(conn: Connection, key: str, name: str, *, by: Literal["cli", "system"] = "cli") -> Project:
    """A new project with what every project has: a category `general`, a simulator per channel, and an inbox.

    Args:
        key: 1 to 40 of a-z, 0-9 and `-`; it stands in API keys, tokens and callback addresses, so it never changes.

    Raises:
        Invalid: the key has another form.
        Conflict: the key is taken.
    """
    if not _KEY.fullmatch(key):
        detail = "must be 1 to 40 characters of a-z, 0-9 and `-`, and begin with a letter or digit"
        raise Invalid(errors=[FieldError(detail, pointer="/key")])
    row = await conn.fetchrow(_CREATE_PROJECT, key, name)
    if row is None:
        raise Conflict(f"There is a project `{key}` already.")
    project = _to_project(row)
    actor = Actor(project.id, by)
    await apply_audit(conn, actor, "project.create", f"project:{key}", after=project)
    await put_category(conn, actor, DEFAULT_CATEGORY, name="General")
    await create_builtin_accounts(conn, project.id)
    return project


async def load_project(db: Database | Connection, project_id: int) -> Project:
    """One project.

    Raises:
        NotFound: there is none with this id.
    """
    row = await db.fetchrow(_LOAD_PROJECT, project_id)
    if row is None:
        raise NotFound("There is no such project.")
    return _to_project(row)


async def load_project_by_key(db: Database | Connection, key: str) -> Project | None:
    """The project with this key, if there is one."""
    row = await db.fetchrow(_LOAD_PROJECT_BY_KEY, key)
    return None if row is None else _to_project(row)


async def list_projects(db: Database | Connection) -> list[Project]:
    """All projects by key: for the operator."""
    return [_to_project(row) for row in await db.fetch(_LIST_PROJECTS)]


async def put_settings(conn: Connection, actor: Actor, settings: ProjectSettings) -> Project:
    """Replace the project's settings.

    Raises:
        Invalid: one error per thing to mend, with pointers such as `/quiet_hours/ranges/0/start`.
    """
    errors: list[FieldError] = []
    domain = settings.tracking.domain
    if domain is not None and (fault := _find_origin_fault(domain)) is not None:
        errors.append(FieldError(fault, "/tracking/domain"))
    if len(settings.origins) > ORIGINS_MAX:
        errors.append(FieldError(f"at most {ORIGINS_MAX} origins are taken", "/origins"))
    for i, origin in enumerate(settings.origins[:ORIGINS_MAX]):
        if (fault := _find_origin_fault(origin)) is not None:
            errors.append(FieldError(fault, f"/origins/{i}"))
    settings = _check_rules(settings, errors)
    if errors:
        raise Invalid(errors=errors)
    row = await conn.fetchrow(_LOCK_PROJECT, actor.project_id)
    if row is None:
        raise NotFound("There is no such project.")
    before = _to_project(row)
    if before.settings == settings:
        return before
    row = await conn.fetchrow(_UPDATE_SETTINGS, actor.project_id, msgspec.json.encode(settings).decode())
    assert row is not None  # it is locked
    project = _to_project(row)
    await apply_audit(conn, actor, "project.settings", f"project:{project.key}", before=before, after=project)
    await notify_config(conn, actor.project_id)
    return project


def _check_rules(settings: ProjectSettings, errors: list[FieldError]) -> ProjectSettings:
    """The settings with what they say of users, limits and pace in its normal form."""
    if settings.time_zone is not None:
        try:
            parse_time_zone(settings.time_zone)
        except ValueError as problem:
            errors.append(FieldError(str(problem), "/time_zone"))
    defaults = parse_defaults(settings.defaults, "/defaults", errors)
    quiet_hours, limits = check_hours_and_limits(settings.quiet_hours, settings.limits, errors, categories=True)
    if settings.pace is not None and not PACE_MIN <= settings.pace <= PACE_MAX:  # NaN is neither
        errors.append(FieldError(f"must be from {PACE_MIN} to {PACE_MAX:,.0f} messages per second", "/pace"))
    if not 0 <= settings.confirm_above <= COUNT_MAX:
        errors.append(FieldError(f"must be from 0 to {COUNT_MAX:,}", "/confirm_above"))
    if settings.runaway_above is not None and not 1 <= settings.runaway_above <= COUNT_MAX:
        errors.append(FieldError(f"must be from 1 to {COUNT_MAX:,}, or null", "/runaway_above"))
    if settings.address is not None and not 1 <= len(settings.address) <= ADDRESS_MAX:
        errors.append(FieldError(f"must have 1 to {ADDRESS_MAX:,} characters, or be null", "/address"))
    return msgspec.structs.replace(settings, defaults=defaults, quiet_hours=quiet_hours, limits=limits)


def _find_origin_fault(text: str) -> str | None:
    if not _ORIGIN.fullmatch(text):
        return "must be an origin such as https://example.com, without a path"
    return None


def parse_settings(text: str) -> ProjectSettings:
    """The settings as they are stored; what this version does not know is left out."""
    raw = msgspec.json.decode(text)
    known = {f.encode_name: raw[f.encode_name] for f in msgspec.structs.fields(ProjectSettings) if f.encode_name in raw}
    return msgspec.convert(known, ProjectSettings)


def _to_project(row: Record) -> Project:
    return Project(row["id"], row["key"], row["name"], row["created_at"], parse_settings(row["settings"]))
