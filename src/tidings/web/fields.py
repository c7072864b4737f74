"""What bodies, views and parameters are made of: strict models and the types of their fields.

A field type checks and normalises in one place what many routes take. Its errors are `ValueError`s whose text says what
to mend; `problems.py` puts them beside the pointer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Generic, TypeVar
from urllib.parse import unquote
from uuid import UUID

from fastapi import Path
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_before_validator_function

from tidings.directory.users import USER_ID_MAX, parse_user_id
from tidings.ids import parse_public

Item = TypeVar("Item")

_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")


class Body(BaseModel):
    """What a caller sends: unknown fields are refused, and nothing is converted (`"1"` is not 1)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class View(BaseModel):
    """What a caller gets, made from the attributes of what the directory returns."""

    model_config = ConfigDict(from_attributes=True, frozen=True, use_attribute_docstrings=True)


class Page(View, Generic[Item]):
    """A part of a list. `next_cursor` leads on; null at the end."""

    items: list[Item]
    next_cursor: str | None = None


def _parse_moment(value: Any) -> datetime:
    if not isinstance(value, str) or not _MOMENT.fullmatch(value):
        raise ValueError("must be a time with offset as in RFC 3339, such as 2026-11-22T13:00:00Z")
    try:
        return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("must be a time that exists, such as 2026-11-22T13:00:00Z") from None


Moment = Annotated[datetime, BeforeValidator(_parse_moment), WithJsonSchema({"type": "string", "format": "date-time"})]
"""A time, RFC 3339 with an offset; aware and in UTC inside."""


# The edge leaves %2F and %25 in the path undecoded, so that an id may hold a slash; here they are decoded.
UserId = Annotated[
    str,
    Path(description="The user's id, chosen by the application."),
    AfterValidator(lambda text: parse_user_id(unquote(text))),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": USER_ID_MAX, "examples": ["u-42"]}),
]

KEY_PATTERN: Final = r"^[a-z0-9][a-z0-9_.-]{0,63}$"


def _check_key(text: str) -> str:
    if not re.fullmatch(KEY_PATTERN[1:-1], text):
        raise ValueError("must be 1 to 64 characters of a-z, 0-9, `_`, `-` and `.`, and begin with a letter or digit")
    return text


Key = Annotated[str, AfterValidator(_check_key), WithJsonSchema({"type": "string", "pattern": KEY_PATTERN})]
"""The key of a category, type, template or account, chosen by the project."""

Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
"""A name for people to read."""


@dataclass(frozen=True)
class public_id:
    """The type of a parameter that takes a public id, a UUID inside: `Annotated[UUID, public_id("key")]`."""

    prefix: str

    def _parse(self, value: Any) -> Any:
        if isinstance(value, UUID):
            return value
        found = parse_public(self.prefix, value) if isinstance(value, str) else None
        if found is None:
            raise ValueError(f"is no id of this kind; those begin with `{self.prefix}_` and 26 characters follow")
        return found

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_before_validator_function(self._parse, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^{self.prefix}_[0-7][0-9a-hjkmnp-tv-z]{{25}}$"}
