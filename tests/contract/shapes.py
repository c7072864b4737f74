"""Holds values against the shapes in Amazon's own descriptions of its services (botocore's service models)."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Any

from tests.contract import golden


def check_shape(file: str, name: str, value: Any) -> None:
    """Assert that the value is of the shape, in everything that the description says.

    Raises:
        AssertionError: with everything that does not fit.
    """
    errors = list(_find_errors(golden.load(file)["shapes"], name, value, name))
    assert not errors, errors


def _find_errors(shapes: Any, name: str, value: Any, at: str) -> Iterator[str]:
    shape = shapes[name]
    match shape["type"]:
        case "structure":
            if not isinstance(value, dict):
                yield f"{at}: no structure"
                return
            yield from (f"{at}: unknown {field}" for field in value.keys() - shape["members"].keys())
            yield from (f"{at}: lacks {field}" for field in set(shape.get("required", ())) - value.keys())
            for field in value.keys() & shape["members"].keys():
                yield from _find_errors(shapes, shape["members"][field]["shape"], value[field], f"{at}.{field}")
        case "list":
            if not isinstance(value, list):
                yield f"{at}: no list"
                return
            if len(value) > shape.get("max", len(value)):
                yield f"{at}: more than {shape['max']}"
            for number, item in enumerate(value):
                yield from _find_errors(shapes, shape["member"]["shape"], item, f"{at}[{number}]")
        case "map":
            for key, item in value.items():
                yield from _find_errors(shapes, shape["key"]["shape"], key, f"{at} key")
                yield from _find_errors(shapes, shape["value"]["shape"], item, f"{at}[{key}]")
        case "blob":
            base64.b64decode(value, validate=True)
        case "string":
            if not isinstance(value, str):
                yield f"{at}: no text"
                return
            if not shape.get("min", 0) <= len(value) <= shape.get("max", len(value)):
                yield f"{at}: {len(value)} characters"
            if "enum" in shape and value not in shape["enum"]:
                yield f"{at}: {value!r} is none of {shape['enum']}"
            if "pattern" in shape and not re.fullmatch(shape["pattern"], value):
                yield f"{at}: does not match {shape['pattern']}"
        case other:
            raise AssertionError(f"{at}: nothing is known of the type {other}")
