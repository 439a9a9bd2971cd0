"""POST, GET and DELETE /v1/files: the files of batches."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.datastructures import UploadFile
from starlette.responses import FileResponse, Response

from ...errors import InvalidRequestError, UnsupportedError
from ..edge.answer import json_response
from ..edge.document import ANY, READS_BODY, answers
from ..edge.form import FORM, Files, is_form, open_form
from .deps import FolderDep, page
from .objects import DeletedFile, FileList, FileObject

router = APIRouter()

PATH = "/v1/files"
_NAMED = (*ANY, 404)
_MAX_LIMIT = 10_000
_MOST_TEXTS = 8
"""Of a form; only one means anything."""
_LINES = {"schema": {"type": "string"}}
_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string", "enum": ["batch"]}},
}


@router.post(
    PATH,
    openapi_extra={"requestBody": {"required": True, "content": {FORM: {"schema": _FORM}}}},
    responses=answers(FileObject, READS_BODY),
)
async def create_file(request: Request, folder: FolderDep) -> Response:
    """Keep a file of requests for a batch, one JSON object a line."""
    if not is_form(request):
        raise InvalidRequestError(f"the Content-Type must be {FORM}")
    async with open_form(request, Files(fields=("file",), most=1), _MOST_TEXTS) as form:
        if others := form.keys() - {"file", "purpose"}:
            raise UnsupportedError(f"{min(others)} is not supported", min(others))
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise InvalidRequestError("file: a file is needed", "file")
        if form.get("purpose") != "batch":
            raise UnsupportedError("purpose: only batch is supported", "purpose")
        name = (file.filename or "file")[:255]
        kept = await asyncio.to_thread(folder.add_file, file.file, name, "batch")
    return json_response(kept)


@router.get(PATH, responses=answers(FileList, _NAMED))
async def list_files(
    folder: FolderDep,
    purpose: Annotated[str | None, Query(description="batch or batch_output: only such files")] = None,
    after: Annotated[str | None, Query(description="the id of the file before the first one")] = None,
    limit: Annotated[str, Query(description=f"1 to {_MAX_LIMIT}")] = str(_MAX_LIMIT),
    order: Annotated[str, Query(description="asc, or desc: the latest first")] = "desc",
) -> Response:
    """The files of the key's owner."""
    if order not in ("asc", "desc"):
        raise InvalidRequestError("order: asc or desc is expected", "order")
    files = [file for file in await asyncio.to_thread(folder.files) if purpose in (None, file.purpose)]
    if order == "desc":
        files.reverse()
    return json_response(FileList(**page(files, after, limit, _MAX_LIMIT)._asdict()))


@router.get(f"{PATH}/{{file_id}}", responses=answers(FileObject, _NAMED))
async def get_file(file_id: str, folder: FolderDep) -> Response:
    """What is known of a file."""
    return json_response(folder.file(file_id))


@router.get(
    f"{PATH}/{{file_id}}/content",
    responses=answers(None, _NAMED) | {200: {"description": "The lines", "content": {"application/jsonl": _LINES}}},
)
async def get_content(file_id: str, folder: FolderDep) -> Response:
    """What is in a file."""
    return FileResponse(folder.content_of(folder.file(file_id).id), media_type="application/jsonl")


@router.delete(f"{PATH}/{{file_id}}", responses=answers(DeletedFile, _NAMED))
async def delete_file(file_id: str, folder: FolderDep) -> Response:
    """Delete a file. A batch whose requests it has cannot go on."""
    folder.delete_file(file_id)
    return json_response(DeletedFile(file_id))
