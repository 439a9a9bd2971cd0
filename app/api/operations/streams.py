"""GET /v1/streams/{id}"""

from typing import Annotated

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from ..deps import ServiceDep
from ..edge.document import ANY, answers
from ..edge.errors import ErrorAnswer
from ..edge.sse import EventStream
from ..generation.answer import Chunk

router = APIRouter()


@router.get(
    "/v1/streams/{stream_id:path}",
    responses=answers(None, (*ANY, 404), events=(Chunk, ErrorAnswer)),
    response_class=Response,
)
async def read_stream(
    stream_id: str,
    request: Request,
    service: ServiceDep,
    last_event_id: Annotated[str, Header(description="the last one seen")] = "0",
) -> Response:
    """Continue to read a stream that was begun with `X-Resumable: true`. Its id is the X-Request-ID of that answer."""
    stream = service.streams.find(request.scope["request_log"].tenant.name, stream_id)
    return EventStream(stream.read(stream.number(last_event_id, "Last-Event-ID")), lambda: None)
