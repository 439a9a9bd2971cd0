"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API"""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from ..chat.parts import rename_errors
from ..chat.prepare import encode_chat, prepare_chat
from ..deps import ADMITTED, ServiceDep, body_of, entry_of
from ..edge.answer import json_response
from ..edge.body import body_schema
from ..edge.document import READS_BODY, RUNS, answers
from ..edge.errors import AnthropicErrorAnswer
from ..generation.choices import TokenLimit
from .answer import AnthropicMessage, MessageAnswer, MessageEvent, TokenCount
from .schema import CountTokensRequest, MessagesRequest
from .translate import NAMES, images_of, to_chat

router = APIRouter()


@router.post(
    "/v1/messages",
    openapi_extra=body_schema(MessagesRequest),
    responses=answers(AnthropicMessage, RUNS, events=(MessageEvent, AnthropicErrorAnswer), error=AnthropicErrorAnswer),
    dependencies=ADMITTED,
)
async def create_message(
    body: Annotated[MessagesRequest, Depends(body_of(MessagesRequest))], request: Request, service: ServiceDep
) -> Response:
    """Answer a conversation with one message."""
    with rename_errors(NAMES):
        chat = to_chat(body)
        # As with Anthropic's models, max_tokens may exceed what the context leaves.
        limit = TokenLimit(None, body.max_tokens, "max_tokens", "messages")
        run = await prepare_chat(service, chat, limit, entry_of(request), images_of(body))
    request_id = request.scope["request_log"].request_id
    answer = MessageAnswer(service, body, chat, run, request_id)
    return await answer.respond(request, run.choices, 1, body.priority)


@router.post(
    "/v1/messages/count_tokens",
    openapi_extra=body_schema(CountTokensRequest),
    responses=answers(TokenCount, READS_BODY, error=AnthropicErrorAnswer),
)
async def count_tokens(
    body: Annotated[CountTokensRequest, Depends(body_of(CountTokensRequest))], request: Request, service: ServiceDep
) -> Response:
    """How many tokens the prompt of a conversation has."""
    service.check_model(body.model)
    with rename_errors(NAMES):
        prompt = await encode_chat(service, to_chat(body), entry_of(request), images_of(body))
    return json_response(TokenCount(len(prompt.token_ids)))
