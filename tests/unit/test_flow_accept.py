"""What is accepted and what is not: every fault by its place, all at once."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import msgspec
import pytest

from tidings import ids
from tidings.channels import CHANNELS
from tidings.directory.access import Caller
from tidings.directory.catalog import TemplateVersion, TypeVersion
from tidings.directory.types import compile_schema
from tidings.engine.jobs import FEEDER
from tidings.errors import Forbidden, Invalid
from tidings.flow.request import DATA_LIMIT, Draft, Request, decide_acceptance
from tidings.model.words import Channel, Priority, Scope
from tidings.templating import compile_template

NOW = datetime(2031, 3, 14, 12, tzinfo=UTC)
ID = ids.new_id(NOW, random.Random(1))
CALLER = Caller(7, "p", UUID(int=1), frozenset({Scope.send}), False)
URGENT = Caller(7, "p", UUID(int=1), frozenset({Scope.send, Scope.send_critical}), False)
COMPILED = compile_template(
    {
        "default_locale": "en",
        "channels": {
            "email": {"en": {"subject": "{{ order.id }}", "text": "x"}},
            "in_app": {"en": {"title": "x"}},
        },
    },
    CHANNELS,
)
TEMPLATE = TemplateVersion(3, 7, "t", 1, frozenset({"order.id"}), frozenset({Channel.email, Channel.in_app}), COMPILED)
TYPE = TypeVersion(
    5, 7, "order", 1, "orders", False, Priority.high, False, "t", (), timedelta(hours=2), False,
    compile_schema({"type": "object", "properties": {"n": {"type": "integer"}}}),
)  # fmt: skip
GOOD: dict[str, Any] = {"to": {"user": "ada"}, "type": "order", "data": {"order": {"id": "A-1"}}}
DIRECT: dict[str, Any] = {"to": {"email": "ada@example.com"}, "content": {"subject": "Hi", "text": "Hello"}}


def decide(body: dict[str, Any], *, caller: Caller = CALLER, type_: TypeVersion = TYPE) -> Draft:
    request = msgspec.convert(body, Request)
    typed = request.type is not None
    return decide_acceptance(
        caller,
        request,
        type_ if typed else None,
        TEMPLATE if typed else None,
        now=NOW,
        horizon=timedelta(days=89),
        id_=ID,
        traceparent=None,
    )


def test_a_good_request_becomes_a_row_and_a_job() -> None:
    draft = decide(GOOD)
    assert draft.row.priority == draft.job.priority == Priority.high
    assert draft.row.expires_at == NOW + timedelta(hours=2)
    assert draft.job.lane == FEEDER + (1 << Channel.email) + (1 << Channel.in_app)
    assert draft.job.due_at is None
    assert (draft.row.project_id, draft.row.type_version_id, draft.category) == (7, 5, "orders")
    narrowed = decide({**GOOD, "channels": ["email"]})
    assert narrowed.job.lane == FEEDER + (1 << Channel.email)
    direct = decide(DIRECT)
    assert (direct.row.to_channel, direct.row.to_address) == (Channel.email, "ada@example.com")
    assert direct.job.lane == FEEDER + (1 << Channel.email)


def test_times_are_taken_as_utc_and_just_past_means_now() -> None:
    vienna = timezone(timedelta(hours=1))
    at = (NOW + timedelta(hours=3)).astimezone(vienna)
    draft = decide({**GOOD, "send_at": at})
    assert draft.row.send_at == draft.job.due_at == at
    assert draft.row.send_at is not None
    assert draft.row.send_at.tzinfo is UTC
    assert draft.row.expires_at == at + timedelta(hours=2)
    assert decide({**GOOD, "send_at": NOW - timedelta(seconds=59)}).job.due_at is None


def test_a_backslash_before_u0000_is_text() -> None:
    assert decide({**GOOD, "data": {"order": {"id": "\\u0000"}}}).row.data is not None
    assert decide({**GOOD, "data": {"order": {"id": "\\\\"}}}).row.data is not None


@pytest.mark.parametrize(
    ("change", "pointers"),
    [
        ({"to": {}}, ["/to"]),
        ({"to": {"user": "ada", "email": "a@example.com"}}, ["/to"]),
        ({"to": {"email": "no address"}}, ["/to/email"]),
        ({"to": {"email": "a@example.com\r\nBcc: b@example.com"}}, ["/to/email"]),
        ({"to": {"phone": "12"}}, ["/to/phone"]),
        ({"to": {"webhook": "ftp://example.com"}}, ["/to/webhook"]),
        ({"channels": []}, ["/channels"]),
        ({"channels": ["push"]}, ["/channels"]),
        ({"channels": ["webhook"]}, ["/channels"]),
        ({"to": {"phone": "+436641234567"}}, ["/channels"]),
        ({"content": {"text": "x"}}, ["/content"]),
        ({"data": {}}, ["/data/order/id"]),
        ({"data": {"order": {"id": 1}, "n": "one"}}, ["/data/n"]),
        ({"data": {"order": {"id": "x" * DATA_LIMIT}}}, ["/data"]),
        ({"data": {"order": {"id": "a\x00b"}}}, ["/data"]),
        ({"metadata": {"a\x00": "b"}}, ["/metadata"]),
        ({"metadata": {"a": "x" * 9_000}}, ["/metadata"]),
        ({"send_at": NOW - timedelta(minutes=2)}, ["/send_at"]),
        ({"send_at": NOW + timedelta(days=90)}, ["/send_at"]),
        ({"send_at": datetime(2031, 3, 15)}, ["/send_at"]),
        ({"send_at": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))}, ["/send_at"]),
        ({"send_at": datetime(9999, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-14)))}, ["/send_at"]),
        ({"expires_at": NOW - timedelta(seconds=1)}, ["/expires_at"]),
        ({"send_at": NOW + timedelta(hours=2), "expires_at": NOW + timedelta(hours=1)}, ["/expires_at"]),
        ({"locale": "xx-such"}, ["/locale"]),
        ({"locale": "\x00"}, ["/locale"]),
        ({"idempotency_key": ""}, ["/idempotency_key"]),
        ({"idempotency_key": "ä"}, ["/idempotency_key"]),
        ({"idempotency_key": "x" * 256}, ["/idempotency_key"]),
        ({"to": {}, "locale": "?", "data": {}}, ["/to", "/data/order/id", "/locale"]),
    ],
)
def test_every_fault_is_told_by_its_place(change: dict[str, Any], pointers: list[str]) -> None:
    with pytest.raises(Invalid) as caught:
        decide({**GOOD, **change})
    assert [error.pointer for error in caught.value.errors] == pointers


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"to": {"user": "ada"}}, "/type"),
        ({"to": {"user": "ada"}, "content": {"text": "x"}}, "/to"),
        ({**DIRECT, "data": {}}, "/data"),
        ({**DIRECT, "content": {"text": "x"}}, "/content"),
        ({**DIRECT, "content": {"subject": "a\r\nBcc: b@example.com", "text": "x"}}, "/content"),
    ],
)
def test_direct_content_has_rules_too(body: dict[str, Any], pointer: str) -> None:
    with pytest.raises(Invalid) as caught:
        decide(body)
    assert [error.pointer for error in caught.value.errors] == [pointer]


def test_critical_needs_leave() -> None:
    body = {**GOOD, "priority": "critical"}
    with pytest.raises(Forbidden):
        decide(body)
    assert decide(body, caller=URGENT).row.priority == Priority.critical
    leave = msgspec.structs.replace(TYPE, critical=True)
    assert decide(body, type_=leave).row.priority == Priority.critical
    assert decide({**GOOD, "priority": "low"}).row.priority == Priority.low


def test_the_guarantee_is_the_types_unless_asked_otherwise() -> None:
    careful = msgspec.structs.replace(TYPE, at_most_once=True)
    assert decide(GOOD, type_=careful).row.at_most_once
    assert not decide({**GOOD, "guarantee": "at_least_once"}, type_=careful).row.at_most_once
    assert decide({**DIRECT, "guarantee": "at_most_once"}).row.at_most_once
