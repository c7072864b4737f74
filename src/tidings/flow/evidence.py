"""Evidence: the events of a delivery's life, and what vendors said, in a form that can be stored beside what others'
vendors said.

Whoever chooses what an account's API is called chooses what it answers. None of it may spoil the batch that it is
stored with, or fill the memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from tidings.model.words import EventKind
from tidings.providers.port import Inbound, Report

DETAIL_MAX: Final = 16 * 1024
"""Octets of a vendor's own words that are kept with an event."""
REF_MAX: Final = 500
"""Characters of a vendor's id of a message. Real ones have a hundred; an index takes 2,700 octets."""


class Event(NamedTuple):
    """A row of `event`; the order of the fields is that of insert_events' arrays."""

    id: UUID
    project_id: int
    notification_id: UUID
    delivery_id: UUID
    kind: EventKind
    attempt: int | None
    account_id: int | None
    reason: str | None
    provider_id: str | None
    detail: str | None


def to_json(value: object) -> str:
    """JSON that PostgreSQL takes: its json knows no U+0000, and anything may be in evidence."""
    return msgspec.json.encode(value).replace(b"\\u0000", b"\\ufffd").decode()


def to_ref(provider_id: str | None) -> str | None:
    """A vendor's id of a message as it is stored: itself, or a hash of one that PostgreSQL would not take as a key."""
    if provider_id is None or (len(provider_id) <= REF_MAX and "\0" not in provider_id):
        return provider_id
    return f"sha256:{hashlib.sha256(provider_id.encode('utf-8', 'replace')).hexdigest()}"


def to_storable_text(message: Inbound) -> Inbound:
    """The text message as PostgreSQL's text takes it: without U+0000."""
    return msgspec.structs.replace(
        message,
        sender=message.sender.replace("\0", "\ufffd"),
        recipient=message.recipient.replace("\0", "\ufffd"),
        text=message.text.replace("\0", "\ufffd"),
        provider_id=to_ref(message.provider_id),
    )


def to_storable(report: Report, cut: dict[int, Mapping[str, Any]]) -> Report:
    """The report with an id and a detail that can be stored.

    Args:
        cut: details by the identity of what they were. The reports of one callback may share a large one, which as many
            copies would fill the memory.
    """
    ref, detail = to_ref(report.provider_id), report.detail
    if detail:
        found = cut.get(id(detail))
        if found is None:
            text = to_json(detail)
            found = detail if len(text) <= DETAIL_MAX else {"cut": text[: DETAIL_MAX // 2]}
            cut[id(detail)] = found
        detail = found
    if ref == report.provider_id and detail is report.detail:
        return report
    return msgspec.structs.replace(report, provider_id=ref, detail=detail)
