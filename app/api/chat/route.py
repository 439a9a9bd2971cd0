"""POST /v1/chat/completions"""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from ..deps import ADMITTED, ServiceDep, body_of, entry_of
from ..edge.body import body_schema
from ..edge.document import RUNS, answers
from ..edge.errors import ErrorAnswer
from .answer import ChatAnswer, ChatChunk, ChatCompletion
from .prepare import prepare_chat
from .schema import ChatRequest

router = APIRouter()


@router.post(
    "/v1/chat/completions",
    openapi_extra=body_schema(ChatRequest),
    responses=answers(ChatCompletion, RUNS, events=(ChatChunk, ErrorAnswer)),
    dependencies=ADMITTED,
)
async def create_chat_completion(
    body: Annotated[ChatRequest, Depends(body_of(ChatRequest))], request: Request, service: ServiceDep
) -> Response:
    """Answer a chat with n choices."""
    chat = await prepare_chat(service, body, entry=entry_of(request))
    parsers = [chat.new_parser() for _ in chat.choices]
    answer = ChatAnswer(service, body, parsers, request.scope["request_log"].request_id)
    return await answer.respond(request, chat.choices, body.n, body.priority)
