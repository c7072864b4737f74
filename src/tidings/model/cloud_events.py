"""CloudEvents 1.0: what an application says happened, before a rule makes a notification of it. Pure.

The form is that of https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md and its JSON event format. An
event that came in another form (the binary mode of HTTP) is brought into this one first.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from tidings.errors import FieldError, escape

PATH_PARTS_MAX: Final = 8
"""Parts of a path."""
ATTRIBUTES_MAX: Final = 50
"""Attributes of an event, its extensions among them."""
ATTRIBUTE_LENGTH_MAX: Final = 2_000
"""Characters of an attribute's value."""

_NAME: Final = re.compile(r"[a-z0-9]{1,64}")
_REQUIRED: Final = ("specversion", "id", "source", "type")
_OPTIONAL: Final = ("subject", "time", "datacontenttype", "dataschema")
_RESERVED: Final = frozenset({"data", "data_base64"})
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_URI: Final = re.compile(r"[!#$&-;=?-Z_a-z~%\[\]]+")
"""The characters of a URI reference (RFC 3986); how they stand together is nobody's concern here."""
_MEDIA_TYPE: Final = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+(\s*;.*)?", re.ASCII)
_UNPRINTABLE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17))
    + "]"
)
"""Control characters, unpaired surrogates, and the noncharacters at the end of each plane."""
_INTEGERS: Final = range(-(2**31), 2**31)
_PATH: Final = re.compile(r"[^.{}\s]{1,100}(\.[^.{}\s]{1,100})*")

MISSING: Final = msgspec.UNSET
"""What stands at a path where nothing does."""


class CloudEvent(msgspec.Struct, frozen=True):
    """One event."""

    id: str
    source: str
    type: str
    attributes: Mapping[str, str | int | bool]
    """All of them, extensions too, by their names."""
    data: Any = msgspec.UNSET
    """Anything JSON knows; unset without data, and with data that is not JSON."""

    def find(self, path: str) -> Any:
        """What stands at a path (see `parse_path`); `MISSING` where nothing does, or null. Lists have no names."""
        head, *rest = path.split(".")
        if head != "data":
            return self.attributes.get(head, MISSING) if not rest else MISSING
        found = self.data
        for part in rest:
            found = found.get(part, MISSING) if isinstance(found, Mapping) else MISSING
        return MISSING if found is None else found


def parse_path(text: str) -> str:
    """A path into an event: `data`, a dotted name below it (`data.customer.id`), or an attribute (`subject`).

    Raises:
        ValueError: it is none.
    """
    head, *rest = text.split(".")
    if not _PATH.fullmatch(text) or len(rest) >= PATH_PARTS_MAX:
        raise ValueError(f"must be a dotted name of at most {PATH_PARTS_MAX} parts, such as data.customer.id")
    if head != "data" and (rest or not _NAME.fullmatch(head)):
        raise ValueError("must begin with `data`, as in data.customer.id, or be an attribute such as subject")
    return text


def parse_event(raw: object, errors: list[FieldError], at: str = "") -> CloudEvent | None:
    """The event in its JSON form; None, and errors with pointers under `at`, when it is none."""
    if not isinstance(raw, Mapping):
        errors.append(FieldError("must be an event: an object with `specversion`, `id`, `source` and `type`", at))
        return None
    before = len(errors)
    attributes: dict[str, str | int | bool] = {}
    if len(raw) > ATTRIBUTES_MAX:
        errors.append(FieldError(f"has more than {ATTRIBUTES_MAX} attributes", at))
        return None
    for name, value in raw.items():
        if name in _RESERVED or value is None:  # null is the same as nothing (JSON event format, section 2.1)
            continue
        place = f"{at}/{escape(name)}"
        if not _NAME.fullmatch(name):
            errors.append(FieldError("an attribute's name is made of a-z and 0-9", place))
        elif (said := _refuse(name, value)) is not None:
            errors.append(FieldError(said, place))
        else:
            attributes[name] = value
    errors += [FieldError("is required", f"{at}/{name}") for name in _REQUIRED if raw.get(name) is None]
    data = raw.get("data", MISSING)
    if raw.get("data_base64") is not None:
        if "data" in raw:
            errors.append(FieldError("stands beside `data`; give one of them", f"{at}/data_base64"))
        else:
            data = _decode_binary(raw["data_base64"], f"{at}/data_base64", errors)
    if len(errors) > before:
        return None
    return CloudEvent(
        id=str(attributes["id"]),
        source=str(attributes["source"]),
        type=str(attributes["type"]),
        attributes=attributes,
        data=data,
    )


def _refuse(name: str, value: object) -> str | None:
    """What is wrong with an attribute; None: nothing."""
    if name not in _REQUIRED and name not in _OPTIONAL:
        if isinstance(value, bool):
            return None
        if isinstance(value, int):
            return None if value in _INTEGERS else "must be an integer of 32 bits"
        if not isinstance(value, str):
            return "must be text, a whole number, or true or false"
        return _refuse_text(value)
    if not isinstance(value, str):
        return "must be text"
    if not value:
        return "must not be empty"
    if (said := _refuse_text(value)) is not None:
        return said
    match name:
        case "specversion":
            return None if value == "1.0" else "must be 1.0"
        case "source":
            return None if _URI.fullmatch(value) else "must be a URI reference, such as /orders or https://shop.example"
        case "dataschema":
            fits = _URI.fullmatch(value) and _SCHEME.match(value)
            return None if fits else "must be an absolute URI"
        case "time":
            return None if _is_time(value) else "must be a time with offset as in RFC 3339"
        case "datacontenttype":
            return None if _MEDIA_TYPE.fullmatch(value) else "must be a media type, such as application/json"
    return None


def _refuse_text(text: str) -> str | None:
    if len(text) > ATTRIBUTE_LENGTH_MAX:
        return f"must have at most {ATTRIBUTE_LENGTH_MAX:,} characters"
    if _UNPRINTABLE.search(text):
        return "must not contain control characters"
    return None


def _is_time(text: str) -> bool:
    if not _TIME.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text.upper())
    except ValueError:
        return False
    return True


def _decode_binary(value: object, at: str, errors: list[FieldError]) -> Any:
    """Binary data that is JSON all the same; unset for any other."""
    try:
        content = base64.b64decode(value, validate=True) if isinstance(value, str) else None
    except (binascii.Error, ValueError):
        content = None
    if content is None:
        errors.append(FieldError("must be text in base64", at))
        return MISSING
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return MISSING
