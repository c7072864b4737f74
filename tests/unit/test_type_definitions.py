"""Type definitions and data schemas: what they become, and what is refused with which word."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from tidings.directory.types import compile_schema, parse_definition
from tidings.errors import Invalid

RETENTION = timedelta(days=90)


def refused(**raw: Any) -> dict[str | None, str]:
    with pytest.raises(Invalid) as caught:
        parse_definition("welcome", {"category": "general", **raw}, RETENTION)
    return {e.pointer: e.detail for e in caught.value.errors}


def test_a_definition_takes_its_defaults() -> None:
    definition = parse_definition("welcome", {"category": "general"}, RETENTION)
    assert definition.template == "welcome"
    assert (definition.priority, definition.steps, definition.guarantee) == ("medium", [], "at_least_once")
    assert (definition.critical, definition.expires_after, definition.schema) == (False, None, None)


def test_a_critical_type_has_leave() -> None:
    assert parse_definition("w", {"category": "general", "priority": "critical"}, RETENTION).critical


def test_rules_are_kept_in_their_normal_form() -> None:
    definition = parse_definition(
        "w",
        {
            "category": "general",
            "steps": [
                {"send": ["push"]},
                {"wait": "600s", "unless": "seen"},
                {"if": {"data": "urgent", "is": True}, "then": [{"first": ["sms", "email"], "within": "300s"}]},
            ],
            "digest": {"window": "900s", "key": "order"},
            "limits": [{"max": 3, "window": "24h", "then": "digest"}],
            "quiet": "digest",
            "preferences": {"sms": False},
            "send_time": {"within": "12h"},
        },
        RETENTION,
    )
    assert definition.steps[1] == {"wait": "10m", "unless": ["seen"]}
    assert definition.steps[2]["then"] == [{"first": ["sms", "email"], "within": "5m", "otherwise": "stop"}]
    assert definition.digest is not None
    assert (definition.digest.window, definition.digest.key) == ("15m", "order")
    [limit] = definition.limits
    assert (limit.max, limit.window, limit.then) == (3, "1d", "digest")
    assert (definition.quiet, definition.preferences) == ("digest", {"sms": False})
    assert definition.send_time is not None
    again = parse_definition("w", {"category": "general", **msgspec.to_builtins(definition)}, RETENTION)
    assert again == definition, "what is shown may be put again"


def test_durations_have_one_form() -> None:
    assert parse_definition("w", {"category": "general", "expires_after": "48h"}, RETENTION).expires_after == "2d"


@pytest.mark.parametrize(
    ("raw", "pointer", "says"),
    [
        ({"digest": {"window": "15x"}}, "/digest/window", "a duration such as"),
        ({"limits": [{"max": 0, "window": "1d"}]}, "/limits/0/max", "1"),
        ({"quiet": "sleep"}, "/quiet", "must be one of wait, digest, ignore"),
        ({"preferences": {"pigeon": True}}, "/preferences/pigeon", "must be one of email, sms"),
        ({"preferences": {"sms": "no"}}, "/preferences/sms", "must be true or false"),
        ({"preferences": [True]}, "/preferences", "must be an object"),
        ({"send_time": {"within": "soon"}}, "/send_time/within", "duration"),
        ({"steps": [{"wait": "10m"}]}, "/steps/0/unless", "write `delay`"),
        ({"steps": [{"wait": "10m", "unless": "forgotten"}]}, "/steps/0/unless", "must be one of delivered, seen"),
        ({"steps": [{"send": ["email"]}, {"first": ["sms", "owl"]}]}, "/steps/1/first/1", "must be one of"),
        ({"steps": [{"delay": "90d"}]}, "/steps/0/delay", "to 89d"),
        ({"steps": [{"if": {"data": "a", "is": 1}}]}, "/steps/0", "`then` or `else`"),
        ({"steps": [{"if": {"data": "a", "is": 1}, "send": ["email"]}]}, "/steps/0", "exactly one"),
        ({"steps": [{"sned": ["email"]}]}, "/steps/0", "exactly one"),
        ({"steps": [{"send": ["email"], "within": "1m"}]}, "/steps/0/within", "not known"),
        ({"steps": [{"throttle": {"max": 0, "window": "1h"}}]}, "/steps/0/throttle/max", "from 1"),
        ({"steps": [{"send": ["push", "pigeon"]}]}, "/steps/0/send/1", "must be one of email, sms, push, in_app, web"),
        ({"steps": [{"send": ["email", "email"]}]}, "/steps/0/send/1", "named twice"),
        ({"steps": [{"send": []}]}, "/steps/0/send", "one or more"),
        ({"steps": [{}]}, "/steps/0", "exactly one"),
        ({"steps": ["email"]}, "/steps/0", "must be an object"),
        ({"steps": [{"send": ["email"]}] * 21}, "/steps", "more than 20"),
        ({"expires_after": "soon"}, "/expires_after", "is not a duration"),
        ({"expires_after": "90d"}, "/expires_after", "to 89d"),
        ({"expires_after": "0s"}, "/expires_after", "from 1s"),
        ({"expires_after": "999999999w"}, "/expires_after", ""),
        ({"priority": "urgent"}, "/priority", "critical, high, medium, low"),
        ({"guarantee": "exactly_once"}, "/guarantee", "at_least_once, at_most_once"),
        ({"schema": {"type": "objct"}}, "/schema/type", "no JSON Schema"),
    ],
)  # fmt: skip
def test_what_is_refused(raw: dict[str, Any], pointer: str, says: str) -> None:
    assert says in refused(**raw)[pointer]


def test_all_faults_are_told_at_once() -> None:
    assert set(refused(digest=[], priority="x", steps=[{"first": []}], expires_after="x")) == {
        "/digest",
        "/priority",
        "/steps/0/first",
        "/expires_after",
    }


def test_data_are_checked_with_pointers_and_without_values() -> None:
    schema = compile_schema(
        {
            "type": "object",
            "required": ["order"],
            "properties": {"order": {"type": "string"}, "items": {"type": "array", "items": {"$ref": "#/$defs/i"}}},
            "$defs": {"i": {"properties": {"n/a": {"type": "integer"}}}},
        }
    )
    assert schema.check({"order": "A-1", "items": [{"n/a": 1}]}) == []
    errors = {e.pointer: e.detail for e in schema.check({"items": [{"n/a": 1}, {"n/a": "hush"}]})}
    assert set(errors) == {"", "/items/1/n~1a"}
    assert "hush" not in " ".join(errors.values())
    assert len(schema.check({"order": "x", "items": [{"n/a": "x"}] * 100})) == 20


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ({"$ref": "https://example.com/schema.json"}, "/schema/$ref"),
        ({"$ref": "file:///etc/passwd"}, "/schema/$ref"),
        ({"properties": {"a": {"$ref": "other.json#/x"}}}, "/schema/properties/a/$ref"),
        ({"$ref": "#"}, "/schema/$ref"),
        ({"$ref": "#/nowhere"}, "/schema/$ref"),
        ({"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}, "/schema/$defs/a"),
        ({"$dynamicRef": "#x"}, "/schema/$dynamicRef"),
        ({"$id": "https://example.com/"}, "/schema/$id"),
        ({"$schema": "https://example.com/meta"}, "/schema"),
        ({"properties": {"a": {"type": 3}}}, "/schema/properties/a/type"),
        ({"pattern": "("}, "/schema/pattern"),
        ({"pattern": "(?=look)ahead"}, "/schema/pattern"),
        ({"enum": ["x" * 40_000]}, "/schema"),
    ],
)
def test_schemas_that_are_refused(schema: dict[str, Any], pointer: str) -> None:
    with pytest.raises(Invalid) as caught:
        compile_schema(schema)
    assert [e.pointer for e in caught.value.errors] == [pointer]


def test_schemas_that_grow_by_reference_are_refused() -> None:
    twice = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)}
    with pytest.raises(Invalid, match="cannot be accepted"):
        compile_schema({"$defs": {**twice, "a40": {"type": "object"}}, "$ref": "#/$defs/a0"})
    deep: dict[str, Any] = {}
    for _ in range(500):
        deep = {"not": deep}
    with pytest.raises(Invalid):
        compile_schema(deep)


def test_no_pattern_backtracks() -> None:
    schema = compile_schema({"properties": {"a": {"pattern": "^(a+)+$"}}})
    started = time.monotonic()
    assert schema.check({"a": "a" * 50_000 + "b"})
    assert time.monotonic() - started < 1
