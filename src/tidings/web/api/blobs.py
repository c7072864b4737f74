"""/api/v1/blobs: files to attach, sent as they are, so that the request that names one stays small."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request
from pydantic import Field

from tidings.directory.blobs import BLOB_MAX, put_blobs, to_blob, to_blob_id
from tidings.errors import FieldError, Invalid
from tidings.web.deps import Given, Sender
from tidings.web.fields import View

router = APIRouter(prefix="/blobs", tags=["blobs"])

_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {
                "schema": {"type": "string", "format": "binary", "minLength": 1, "maxLength": BLOB_MAX}
            }
        },
    }
}


class BlobView(View):
    """A stored file."""

    id: str = Field(examples=["sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])
    """Made from the content: the same file always has the same id."""
    size: int
    """Octets."""


@router.post("", status_code=201, response_model=BlobView, openapi_extra=_BODY)
async def create_blob(deps: Given, caller: Sender, request: Request) -> BlobView:
    """Stores a file of at most 10 MB: the body as it is, of any content type. Storing it again changes nothing. A blob
    that no request has named for as long as notifications are kept is deleted."""
    content = await request.body()
    if not content:
        raise Invalid(errors=[FieldError("is empty; send the file as the body", "")])
    blob = to_blob(content)
    await put_blobs(deps.database, caller.project_id, [blob])
    return BlobView(id=to_blob_id(blob.hash), size=len(content))
