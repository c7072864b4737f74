"""CloudEvents and event rules: what they look like and what becomes of them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from tidings.directory.event_rules import StoredRule, parse_rule
from tidings.errors import FieldError, Invalid, Problem
from tidings.flow.events import decide_match, plan_request, to_key, to_print
from tidings.flow.request import Request
from tidings.model.cloud_events import MISSING, CloudEvent, parse_event, parse_path

NOW = datetime(2026, 11, 22, tzinfo=UTC)
EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "e-1",
    "source": "/shop",
    "type": "com.shop.order.shipped",
    "subject": "u-42",
    "time": "2026-11-22T12:00:00Z",
    "retries": 3,
    "data": {"order": {"id": "A-1", "total": 12.5}, "customer": {"id": 42}, "gift": None, "lines": [{"sku": 1}]},
}


def read(**changes: Any) -> CloudEvent:
    errors: list[FieldError] = []
    raw = {name: value for name, value in {**EVENT, **changes}.items() if value is not ...}
    event = parse_event(raw, errors)
    assert event is not None, errors
    return event


def make_rule(**changes: Any) -> StoredRule:
    raw = {"event": {"type": "com.shop.order.*"}, "type": "shipped", "to": {"user": "data.customer.id"}, **changes}
    return StoredRule("r", parse_rule(raw), True, NOW, NOW)


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"specversion": "0.3"}, "/specversion"),
        ({"id": ...}, "/id"),
        ({"id": None}, "/id"),
        ({"id": ""}, "/id"),
        ({"source": "no uri"}, "/source"),
        ({"type": 5}, "/type"),
        ({"subject": ""}, "/subject"),
        ({"subject": "a\x7fb"}, "/subject"),
        ({"time": "yesterday"}, "/time"),
        ({"time": "2026-13-01T00:00:00Z"}, "/time"),
        ({"dataschema": "relative/one"}, "/dataschema"),
        ({"datacontenttype": "json"}, "/datacontenttype"),
        ({"Upper": "x"}, "/Upper"),
        ({"with_underscore": "x"}, "/with_underscore"),
        ({"extension": 2**31}, "/extension"),
        ({"extension": 1.5}, "/extension"),
        ({"extension": {"a": 1}}, "/extension"),
        ({"data_base64": "eA=="}, "/data_base64"),
        ({"data": ..., "data_base64": "?"}, "/data_base64"),
    ],
)
def test_what_is_no_event_is_refused_with_its_place(change: dict[str, Any], pointer: str) -> None:
    errors: list[FieldError] = []
    raw = {name: value for name, value in {**EVENT, **change}.items() if value is not ...}
    assert parse_event(raw, errors) is None
    assert [error.pointer for error in errors] == [pointer]


def test_what_an_event_may_leave_out_and_add() -> None:
    bare = read(data=..., time=..., subject=..., retries=...)
    assert bare.data is MISSING
    assert bare.find("data.order.id") is MISSING
    assert read(time="2026-11-22T12:00:00.123456789+01:00", flag=True).attributes["flag"] is True
    assert read(data=..., data_base64="eyJhIjogMX0=").find("data.a") == 1
    assert read(data=..., data_base64="/////w==").data is MISSING, "octets that are no JSON"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("data.order.id", "A-1"),
        ("data.order.none", MISSING),
        ("data.gift", MISSING),
        ("data.gift.inside", MISSING),
        ("data.lines.0", MISSING),
        ("subject", "u-42"),
        ("retries", 3),
        ("nothing", MISSING),
    ],
)
def test_paths_lead_to_values(path: str, found: Any) -> None:
    assert read().find(parse_path(path)) == found


@pytest.mark.parametrize("path", ["", ".", "data.", "data..a", "order.id", "data.{a}", "a b", ".".join(["data"] * 9)])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_path(path)


@pytest.mark.parametrize(
    ("changes", "pointers"),
    [
        ({"event": {"type": "com.*.shop"}}, ["/event/type"]),
        ({"event": {"type": "*", "source": "*a"}}, ["/event/source"]),
        ({"to": {"topic": "orders"}}, ["/to/topic", "/to/user"]),
        ({"to": {"user": "customer.id"}}, ["/to/user"]),
        ({"to": {"user": 5}}, ["/to/user"]),
        ({"data": {"order": "order.id"}}, ["/data/order"]),
        ({"once": "shipped:{data.order"}, ["/once"]),
        ({"metadata": {"a/b": "{x.y}"}}, ["/metadata/a~1b"]),
        ({"when": {"user": "plan", "is": "pro"}}, ["/when"]),
    ],
)
def test_what_is_no_rule_is_refused_with_its_place(changes: dict[str, Any], pointers: list[str]) -> None:
    with pytest.raises(Invalid) as refused:
        make_rule(**changes)
    assert [error.pointer for error in refused.value.errors] == pointers


@pytest.mark.parametrize(
    ("changes", "matches"),
    [
        ({}, True),
        ({"event": {"type": "com.shop.order.shipped"}}, True),
        ({"event": {"type": "com.shop.order"}}, False),
        ({"event": {"type": "*"}}, True),
        ({"event": {"type": "*", "source": "/shop"}}, True),
        ({"event": {"type": "*", "source": "/shops*"}}, False),
        ({"when": {"data": "order.total", "at_least": 12}}, True),
        ({"when": {"data": "order.total", "above": 100}}, False),
        ({"when": {"data": "order.none", "exists": False}}, True),
    ],
)
def test_a_rule_takes_what_fits(changes: dict[str, Any], matches: bool) -> None:
    assert decide_match(make_rule(**changes), read(), NOW) is matches


def test_a_condition_on_data_that_is_no_object_finds_nothing() -> None:
    rule = make_rule(when={"data": "order.total", "exists": True})
    assert not decide_match(rule, read(data="text"), NOW)


def plan(rule: StoredRule, event: CloudEvent) -> Request:
    request = plan_request(rule, event)
    assert isinstance(request, Request), request.errors
    return request


def test_a_rule_makes_a_request_of_an_event() -> None:
    assert plan(make_rule(), read()).data == EVENT["data"]
    request = plan(
        make_rule(
            data={"order": "data.order.id", "none": "data.none"},
            once="shipped:{data.order.id}:{retries}",
            metadata={"event": "{id} of {source}", "gone": "{data.none}", "fixed": "x"},
            priority="low",
        ),
        read(),
    )
    assert request.to.user == "42"
    assert (request.type, request.priority) == ("shipped", "low")
    assert request.data == {"order": "A-1"}
    assert request.once == "shipped:A-1:3"
    assert request.metadata == {"event": "e-1 of /shop", "fixed": "x"}


def test_what_an_event_lacks_is_said() -> None:
    for user in (True, 1.5, {"id": 1}, None):
        refused = plan_request(make_rule(), read(data={"customer": {"id": user}}))
        assert isinstance(refused, Problem)
        assert refused.errors[0].pointer == "/data/customer/id"
    refused = plan_request(make_rule(once="x:{data.none}"), read())
    assert isinstance(refused, Problem)
    assert refused.errors[0].pointer == "/data/none"


def test_an_event_is_named_by_its_source_and_id() -> None:
    key = to_key("r", read())
    assert key == to_key("r", read(type="other", data={}))
    assert len({key, to_key("s", read()), to_key("r", read(id="e-2")), to_key("r", read(source="/shop2"))}) == 4
    assert to_print("r", read(), test=True) != to_print("r", read(), test=False)


def test_a_rule_is_stored_and_read_again() -> None:
    rule = make_rule(when={"data": "order.total", "above": 1}, once="x", metadata={"a": "{id}"}).rule
    assert msgspec.json.decode(msgspec.json.encode(rule), type=type(rule)) == rule
