"""What can be asked of what exists before a notification: categories, types, templates, accounts, event rules, keys,
and the project with its audit trail. As in `requests`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from tidings.client.calls import (
    Call,
    ChannelName,
    FrequencyName,
    GuaranteeName,
    Listing,
    PriorityName,
    ScopeName,
    delete,
    get,
    given,
    post,
    put,
    to_path,
    to_query,
)
from tidings.client.records import (
    Account,
    AccountCheck,
    ApiKey,
    AuditEntry,
    Category,
    CreatedKey,
    EventRule,
    NotificationType,
    Preview,
    Project,
    Template,
    TemplateVersion,
)

# ---------------------------------------------------------------- categories, types


def put_category(
    key: str,
    *,
    name: str,
    description: str | None = None,
    required: bool | None = None,
    defaults: Mapping[ChannelName, bool] | None = None,
    frequency: FrequencyName | None = None,
    digest_hour: int | None = None,
    quiet_hours: Mapping[str, Any] | None = None,
    limits: Sequence[Mapping[str, Any]] | None = None,
) -> Call[Category]:
    """Create a category or replace it as a whole.

    Args:
        required: users cannot switch it off, and no frequency gathers it.
        defaults: by channel, on or off, for users who say nothing.
        frequency: how often users hear of it unless they say otherwise; daily and weekly ones at `digest_hour`.
        quiet_hours: for users who have none of their own: `{"ranges": [{"start": "22:00", "end": "07:00"}]}`.
        limits: per user over all types of it: `[{"max": 3, "window": "1d", "then": "digest"}]`.
    """
    body = given(
        name=name,
        description=description,
        required=required,
        defaults=defaults,
        frequency=frequency,
        digest_hour=digest_hour,
        quiet_hours=quiet_hours,
        limits=limits,
    )
    return put(to_path("categories", key), Category, body)


def get_category(key: str) -> Call[Category]:
    """One category."""
    return get(to_path("categories", key), Category)


def list_categories(*, limit: int | None = None) -> Listing[Category]:
    """All categories."""
    return Listing(path=to_path("categories"), item=Category, query=to_query(limit=limit))


def delete_category(key: str) -> Call[None]:
    """Remove a category that no type uses."""
    return delete(to_path("categories", key))


def put_type(
    key: str,
    *,
    category: str,
    template: str | None = None,
    priority: PriorityName | None = None,
    steps: Sequence[Mapping[str, Any]] | None = None,
    expires_after: str | None = None,
    guarantee: GuaranteeName | None = None,
    critical: bool | None = None,
    schema: Mapping[str, Any] | None = None,
    tracking: bool | None = None,
    digest: Mapping[str, Any] | None = None,
    limits: Sequence[Mapping[str, Any]] | None = None,
    quiet: Literal["wait", "digest", "ignore"] | None = None,
    preferences: Mapping[ChannelName, bool] | None = None,
    send_time: Mapping[str, Any] | None = None,
) -> Call[NotificationType]:
    """Create a type or, if anything changed, its next version.

    Args:
        template: default: the one with the type's key.
        steps: for example `[{"send": ["push"]}, {"wait": "10m", "unless": "seen"}, {"send": ["email"]}]`; without:
            every channel that the template covers.
        expires_after: a duration such as `2d`.
        critical: keys without the scope `send:critical` may send it with that priority.
        schema: JSON Schema of the data.
        tracking: False: opens and clicks are not watched, as for mails with passwords.
        digest: what is told of it is gathered: `{"window": "15m", "key": "photo.id"}`.
        limits: per user, counting this type: `[{"max": 1, "window": "1h"}]`.
        quiet: in quiet hours it waits, waits together with others, or goes all the same.
        preferences: by channel, instead of the defaults of category and project.
        send_time: at the hour at which the user looks: `{"within": "24h", "fallback": "10:00"}`.
    """
    body = given(
        category=category,
        template=template,
        priority=priority,
        steps=steps,
        expires_after=expires_after,
        guarantee=guarantee,
        critical=critical,
        schema=schema,
        tracking=tracking,
        digest=digest,
        limits=limits,
        quiet=quiet,
        preferences=preferences,
        send_time=send_time,
    )
    return put(to_path("types", key), NotificationType, body)


def get_type(key: str) -> Call[NotificationType]:
    """The current version of a type."""
    return get(to_path("types", key), NotificationType)


def list_types(*, limit: int | None = None) -> Listing[NotificationType]:
    """The current versions of all types."""
    return Listing(path=to_path("types"), item=NotificationType, query=to_query(limit=limit))


def list_type_versions(key: str, *, limit: int | None = None) -> Listing[NotificationType]:
    """All versions of a type, newest first."""
    return Listing(path=to_path("types", key, "versions"), item=NotificationType, query=to_query(limit=limit))


def delete_type(key: str) -> Call[None]:
    """Archive a type: nothing new is sent with it, what was sent keeps its version."""
    return delete(to_path("types", key))


# ---------------------------------------------------------------- templates


def put_template(key: str, *, name: str | None = None) -> Call[Template]:
    """Create a template or rename it; its content comes with `create_version`."""
    return put(to_path("templates", key), Template, given(name=name))


def get_template(key: str) -> Call[Template]:
    """One template, without contents."""
    return get(to_path("templates", key), Template)


def list_templates(*, limit: int | None = None) -> Listing[Template]:
    """All templates."""
    return Listing(path=to_path("templates"), item=Template, query=to_query(limit=limit))


def create_template_version(
    key: str, content: Mapping[str, Any], *, idempotency_key: str | None = None
) -> Call[TemplateVersion]:
    """Add a draft version.

    Args:
        content: `{"default_locale": "en", "channels": {"email": {"en": {"subject": …, "text": …, "html": …}}}}`.
    """
    return post(to_path("templates", key, "versions"), TemplateVersion, content, idempotency_key)


def get_template_version(key: str, version: int) -> Call[TemplateVersion]:
    """One version with its content."""
    return get(to_path("templates", key, "versions", version), TemplateVersion)


def list_template_versions(key: str, *, limit: int | None = None) -> Listing[TemplateVersion]:
    """All versions of a template, newest first."""
    return Listing(path=to_path("templates", key, "versions"), item=TemplateVersion, query=to_query(limit=limit))


def publish_template(key: str, version: int, *, idempotency_key: str | None = None) -> Call[Template]:
    """Make a version the one that new notifications use."""
    return post(to_path("templates", key, "publish"), Template, {"version": version}, idempotency_key)


def rollback_template(key: str, version: int, *, idempotency_key: str | None = None) -> Call[Template]:
    """Go back to a version that was published before."""
    return post(to_path("templates", key, "rollback"), Template, {"version": version}, idempotency_key)


def preview_template(
    key: str,
    *,
    channel: ChannelName,
    locale: str | None = None,
    data: Mapping[str, Any] | None = None,
    user: Mapping[str, Any] | None = None,
    version: int | None = None,
    idempotency_key: str | None = None,
) -> Call[Preview]:
    """Render without sending; the latest version if none is named. `user`: any of id, time_zone, attributes."""
    body = given(channel=channel, locale=locale, data=data, user=user, version=version)
    return post(to_path("templates", key, "preview"), Preview, body, idempotency_key)


# ---------------------------------------------------------------- accounts, keys, audit, project


def put_account(
    key: str,
    *,
    provider: str,
    channel: ChannelName,
    config: Mapping[str, Any],
    weight: int | None = None,
    rate: float | None = None,
    burst: int | None = None,
    concurrency: int | None = None,
    quotas: Mapping[str, Any] | None = None,
    costs: Mapping[str, float] | None = None,
    currency: str | None = None,
    enabled: bool | None = None,
) -> Call[Account]:
    """Create or change a provider account. A secret sent back as `"…"` keeps the stored one.

    Args:
        rate: messages per second, `burst` at once; None: no pace.
        concurrency: sends in flight per worker process.
        quotas: `{"day": {"messages": 1000, "spend": 50.0}, "month": {…}}`; what is missing has no end.
        costs: prices in the account's currency by the recipient's country or `*`.
    """
    body = given(
        provider=provider,
        channel=channel,
        config=config,
        weight=weight,
        rate=rate,
        burst=burst,
        concurrency=concurrency,
        quotas=quotas,
        costs=costs,
        currency=currency,
        enabled=enabled,
    )
    return put(to_path("accounts", key), Account, body)


def get_account(key: str) -> Call[Account]:
    """One account, without its secrets."""
    return get(to_path("accounts", key), Account)


def list_accounts(*, limit: int | None = None) -> Listing[Account]:
    """All accounts, without their secrets."""
    return Listing(path=to_path("accounts"), item=Account, query=to_query(limit=limit))


def check_account(key: str) -> Call[AccountCheck]:
    """Ask the account's vendor whether its credentials hold. Nothing is sent."""
    return post(to_path("accounts", key, "check"), AccountCheck, {}, None)


def delete_account(key: str) -> Call[None]:
    """Remove an account."""
    return delete(to_path("accounts", key))


def create_key(
    *,
    name: str,
    scopes: Sequence[ScopeName],
    test: bool | None = None,
    rate: int | None = None,
    expires_at: datetime | str | None = None,
    idempotency_key: str | None = None,
) -> Call[CreatedKey]:
    """Make an API key. Its text is in this answer and nowhere else.

    If the answer got lost and a retry finds the key made already, its text is gone: `key` is None; revoke it.
    """
    body = given(name=name, scopes=scopes, test=test, rate=rate, expires_at=expires_at)
    return post(to_path("keys"), CreatedKey, body, idempotency_key)


def get_key(id: str) -> Call[ApiKey]:
    """One API key, without its secret."""
    return get(to_path("keys", id), ApiKey)


def list_keys(*, limit: int | None = None) -> Listing[ApiKey]:
    """All API keys of the project, without their secrets."""
    return Listing(path=to_path("keys"), item=ApiKey, query=to_query(limit=limit))


def revoke_key(id: str) -> Call[None]:
    """Make a key useless, within five seconds."""
    return delete(to_path("keys", id))


def list_audit(
    *, object: str | None = None, action: str | None = None, limit: int | None = None
) -> Listing[AuditEntry]:
    """Who changed what, newest first."""
    return Listing(path=to_path("audit"), item=AuditEntry, query=to_query(object=object, action=action, limit=limit))


def get_project() -> Call[Project]:
    """The project that the API key belongs to."""
    return get(to_path("project"), Project)


def put_settings(settings: Mapping[str, Any]) -> Call[Project]:
    """Replace the project's settings as a whole: `{**client.project().settings, "pace": 50}` changes one of them."""
    return put(to_path("project", "settings"), Project, settings)


# ---------------------------------------------------------------- event rules


def put_event_rule(
    key: str,
    *,
    event: Mapping[str, str],
    type: str,
    to: Mapping[str, str],
    when: Mapping[str, Any] | None = None,
    data: Mapping[str, str] | None = None,
    once: str | None = None,
    priority: PriorityName | None = None,
    metadata: Mapping[str, str] | None = None,
    enabled: bool | None = None,
) -> Call[EventRule]:
    """Create or change a rule that makes notifications of events.

    Args:
        event: which ones: `{"type": "com.shop.order.*", "source": "/shop"}`.
        type: of the notification.
        to: where the event has the user's id: `{"user": "data.customer.id"}`.
        when: a condition on the event's data.
        data: by the template's variable the path of its value; without: the event's data as they are.
        once: a send-once key, with paths in braces, such as `shipped:{data.order.id}`; so may be values of `metadata`.
    """
    body = given(
        event=event,
        type=type,
        to=to,
        when=when,
        data=data,
        once=once,
        priority=priority,
        metadata=metadata,
        enabled=enabled,
    )
    return put(to_path("event_rules", key), EventRule, body)


def get_event_rule(key: str) -> Call[EventRule]:
    """One rule."""
    return get(to_path("event_rules", key), EventRule)


def list_event_rules(*, limit: int | None = None) -> Listing[EventRule]:
    """All rules, by key."""
    return Listing(path=to_path("event_rules"), item=EventRule, query=to_query(limit=limit))


def delete_event_rule(key: str) -> Call[None]:
    """Remove a rule; what it has made of events goes its way."""
    return delete(to_path("event_rules", key))
