"""/api/v1/users/import: many users from a file."""

from __future__ import annotations

import tempfile
from typing import Final

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.requests import ClientDisconnect

from tidings.directory import imports
from tidings.directory.access import Caller
from tidings.directory.imports import ERRORS_MAX, FILE_MAX, Imported
from tidings.errors import TooLarge, UnsupportedMediaType
from tidings.web.deps import Admin, Deps, Given
from tidings.web.edge import ClientGone
from tidings.web.fields import View
from tidings.web.turns import Turns

router = APIRouter(prefix="/users", tags=["users"])

_NDJSON: Final = ("application/x-ndjson", "application/ndjson", "application/jsonl")
_CSV: Final = "text/csv"
_KEPT_IN_MEMORY: Final = 1024 * 1024
"""Octets of a file; more of it goes to a temporary one."""
_TURNS: Final = Turns(2, "Two files of this project are being imported; wait for one.", retry_after=10)
"""Each file may be slow to come, and fill as much of the disk."""


class LineErrorView(View):
    """What is wrong with a line."""

    line: int
    detail: str
    pointer: str | None


class ImportView(View):
    """What became of a file."""

    imported: int
    """Lines that were taken."""
    changed: int
    """Users who were made or changed by them."""
    failed: int
    """Lines that were not."""
    errors: list[LineErrorView] = Field(max_length=ERRORS_MAX)
    """Why not; at most a thousand are told."""


_FILE: Final = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in (_NDJSON[0], _CSV)},
    }
}


@router.post("/import", response_model=ImportView, openapi_extra=_FILE)
async def import_users(deps: Given, caller: Admin, request: Request) -> Imported:
    """Makes and changes users from a file of at most 200 MB: NDJSON with a user a line (`id` and the fields of a user,
    `topics` to subscribe to), or CSV with the columns `id`, `email`, `phone`, `locale`, `time_zone`, `region`,
    `topics`, `attributes.<name>`. What a line does not say stays. A line that cannot be taken spoils no other, and
    importing the same file again changes nothing."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (*_NDJSON, _CSV):
        raise UnsupportedMediaType(f"Send `Content-Type: {_NDJSON[0]}` or `{_CSV}`.")
    with _TURNS.take(caller.project_id):
        return await _import(deps, caller, request, as_csv=kind == _CSV)


async def _import(deps: Deps, caller: Caller, request: Request, *, as_csv: bool) -> Imported:
    # The file is stored before anybody waits for the database, so a slow sender holds up no one.
    with tempfile.SpooledTemporaryFile(_KEPT_IN_MEMORY) as file:
        size = 0
        try:
            async for part in request.stream():
                size += len(part)
                if size > FILE_MAX:
                    raise TooLarge(f"The file is larger than {FILE_MAX // 1024**2} MB; import it in parts.")
                file.write(part)
        except ClientDisconnect:
            raise ClientGone from None
        file.seek(0)
        return await imports.import_users(deps.database, caller.actor, file, as_csv=as_csv)
