"""POST /v1/chat/completions"""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.chat.answer import ChatAnswer
from app.api.chat.prepare import prepare_chat
from app.api.chat.schema import ChatRequest
from app.api.deps import ADMITTED, ServiceDep, body_of
from app.api.edge.body import body_schema
from app.api.edge.document import RUNS, answers
from app.api.generation.answers import ChatCompletion

router = APIRouter()

_STREAM = """data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[\
{"index":0,"delta":{"content":"Hi"},"logprobs":null,"finish_reason":null}]}

data: [DONE]

"""


@router.post(
    "/v1/chat/completions",
    openapi_extra=body_schema(ChatRequest),
    responses=answers(ChatCompletion, RUNS, stream=_STREAM),
    dependencies=ADMITTED,
)
async def create_chat_completion(
    body: Annotated[ChatRequest, Depends(body_of(ChatRequest))], request: Request, service: ServiceDep
) -> Response:
    """Answer a chat with n choices."""
    chat = await prepare_chat(service, body)
    parsers = [chat.new_parser() for _ in chat.choices]
    answer = ChatAnswer(service, body, parsers, request.scope["request_log"].request_id)
    return await answer.respond(request, chat.choices, body.n, body.priority)
