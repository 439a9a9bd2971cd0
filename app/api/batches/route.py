"""POST and GET /v1/batches, and the end of a batch before its time"""

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from ...errors import InvalidRequestError
from ..deps import body_of
from ..edge.answer import json_response
from ..edge.body import body_schema
from ..edge.document import ANY, READS_BODY, answers
from .deps import FolderDep, page
from .objects import ENDED, BatchList, BatchObject, RequestCounts
from .schema import BatchRequest
from .store import new_batch_id

router = APIRouter()

_NAMED = (*ANY, 404)
_MAX_LIMIT = 100
_WINDOW_SECONDS = 24 * 3600


@router.post("/v1/batches", openapi_extra=body_schema(BatchRequest), responses=answers(BatchObject, READS_BODY))
async def create_batch(body: Annotated[BatchRequest, Depends(body_of(BatchRequest))], folder: FolderDep) -> Response:
    """Answer the requests of a file, under the live traffic."""
    if folder.file(body.input_file_id, "input_file_id").purpose != "batch":
        raise InvalidRequestError("input_file_id: it is a file of answers", "input_file_id")
    now = int(time.time())
    batch = BatchObject(
        id=new_batch_id(),
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        completion_window=body.completion_window,
        created_at=now,
        expires_at=now + _WINDOW_SECONDS,
        request_counts=RequestCounts(),
        metadata=body.metadata,
    )
    await asyncio.to_thread(folder.add_batch, batch)
    return json_response(batch)


@router.get("/v1/batches", responses=answers(BatchList, _NAMED))
async def list_batches(
    folder: FolderDep,
    after: Annotated[str | None, Query(description="the id of the batch before the first one")] = None,
    limit: Annotated[str, Query(description=f"1 to {_MAX_LIMIT}")] = "20",
) -> Response:
    """The batches of the key's owner, the latest first."""
    batches = await asyncio.to_thread(folder.batches)
    return json_response(BatchList(**page(batches[::-1], after, limit, _MAX_LIMIT)._asdict()))


@router.get("/v1/batches/{batch_id}", responses=answers(BatchObject, _NAMED))
async def get_batch(batch_id: str, folder: FolderDep) -> Response:
    """How far a batch is."""
    return json_response(folder.batch(batch_id))


@router.post("/v1/batches/{batch_id}/cancel", responses=answers(BatchObject, _NAMED))
async def cancel_batch(batch_id: str, folder: FolderDep) -> Response:
    """End a batch. What is answered already stays."""
    batch = folder.batch(batch_id)
    if batch.status in ENDED:
        raise InvalidRequestError(f"batch_id: the batch is {batch.status} already", "batch_id")
    folder.cancel(batch_id)
    return json_response(folder.batch(batch_id))
