"""The Python client of the Tidings API, sync and async.

    from tidings.client import Client

    with Client() as tidings:  # TIDINGS_URL and TIDINGS_API_KEY
        accepted = tidings.send(type="order_shipped", to={"user": "u-42"}, data={"order": "A-1"})
        print(tidings.get(accepted.id).status)

This room knows the HTTP API and nothing else: it imports no other room, so what holds for it holds for every caller.
Reading order: `requests` (what can be asked, once for both clients), `answers` (what comes back), `errors`,
`attempts` (when to try again), `clients` (the two that do I/O).
"""

from tidings.client.answers import (
    Accepted,
    Account,
    ApiKey,
    AuditEntry,
    Cancelled,
    Category,
    CreatedKey,
    DeadLetter,
    Delivery,
    FieldError,
    InboxItem,
    Notification,
    NotificationSummary,
    NotificationType,
    Preview,
    Problem,
    Project,
    Readiness,
    Replayed,
    Template,
    TemplateVersion,
    TimelineEntry,
    User,
)
from tidings.client.attempts import Retries
from tidings.client.clients import AsyncClient, Client
from tidings.client.errors import (
    BatchInterrupted,
    Conflict,
    Forbidden,
    IdempotencyBusy,
    IdempotencyMismatch,
    Invalid,
    NotFound,
    RateLimited,
    RequestRefused,
    ServerFailed,
    TidingsAPIError,
    TidingsClientError,
    TidingsConnectionError,
    Unauthenticated,
    Unavailable,
)
from tidings.client.requests import ChannelName, GuaranteeName, NotificationRequest, PriorityName, ScopeName, To

__all__ = [
    "Accepted",
    "Account",
    "ApiKey",
    "AsyncClient",
    "AuditEntry",
    "BatchInterrupted",
    "Cancelled",
    "Category",
    "ChannelName",
    "Client",
    "Conflict",
    "CreatedKey",
    "DeadLetter",
    "Delivery",
    "FieldError",
    "Forbidden",
    "GuaranteeName",
    "IdempotencyBusy",
    "IdempotencyMismatch",
    "InboxItem",
    "Invalid",
    "NotFound",
    "Notification",
    "NotificationRequest",
    "NotificationSummary",
    "NotificationType",
    "Preview",
    "PriorityName",
    "Problem",
    "Project",
    "RateLimited",
    "Readiness",
    "Replayed",
    "RequestRefused",
    "Retries",
    "ScopeName",
    "ServerFailed",
    "Template",
    "TemplateVersion",
    "TidingsAPIError",
    "TidingsClientError",
    "TidingsConnectionError",
    "TimelineEntry",
    "To",
    "Unauthenticated",
    "Unavailable",
    "User",
]
