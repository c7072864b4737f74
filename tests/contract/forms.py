"""Reads the forms that our requests carry, by a parser that is not ours."""

from __future__ import annotations

import io
from dataclasses import dataclass

from werkzeug.datastructures import MultiDict
from werkzeug.formparser import parse_form_data

from tests.contract.servers import HttpRequest


@dataclass
class Form:
    """A decoded form. Of a repeated field, the values in their order."""

    fields: dict[str, list[str]]
    files: list[tuple[str, str, str, bytes]]
    """Field, file name, content type, content."""


def _in_memory(
    total_content_length: int | None,
    content_type: str | None,
    filename: str | None,
    content_length: int | None = None,
) -> io.BytesIO:
    return io.BytesIO()


def parse_form(request: HttpRequest) -> Form:
    """The form in the request's body, whichever of the two encodings it has."""
    environ = {
        "REQUEST_METHOD": request.method,
        "CONTENT_TYPE": request.headers["content-type"],
        "CONTENT_LENGTH": str(len(request.body)),
        "wsgi.input": io.BytesIO(request.body),
    }
    _, fields, files = parse_form_data(environ, stream_factory=_in_memory, silent=False)
    assert isinstance(fields, MultiDict)
    return Form(
        {name: fields.getlist(name) for name in fields},
        [(name, file.filename or "", file.content_type or "", file.read()) for name, file in files.items(multi=True)],
    )
