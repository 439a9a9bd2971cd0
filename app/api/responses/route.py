"""POST /v1/responses and /v1/responses/input_tokens"""

from functools import partial
from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from ...errors import InvalidRequestError, UnsupportedError
from ..chat.parts import rename_errors
from ..chat.prepare import encode_chat, prepare_chat
from ..deps import ADMITTED, ServiceDep, body_of, entry_of
from ..edge.answer import json_response
from ..edge.body import body_schema
from ..edge.document import READS_BODY, RUNS, answers
from ..edge.sse import EventStream
from ..generation.choices import TokenLimit
from ..service import Service
from .answer import ResponseAnswer
from .conversation import Conversation
from .deps import BackgroundDep, OwnerDep, StoreDep
from .response import InputTokens, ResponseEvent, ResponseObject
from .schema import InputTokensRequest, ResponsesRequest
from .store import ResponseStore
from .translate import NAMES, images_of, to_chat

router = APIRouter()


@router.post(
    "/v1/responses",
    openapi_extra=body_schema(ResponsesRequest),
    responses=answers(ResponseObject, RUNS, events=(ResponseEvent,)),
    dependencies=ADMITTED,
)
async def create_response(
    body: Annotated[ResponsesRequest, Depends(body_of(ResponsesRequest))],
    request: Request,
    service: ServiceDep,
    store: StoreDep,
    background: BackgroundDep,
    owner: OwnerDep,
) -> Response:
    """Answer an input."""
    keeps = _is_kept(service, body, store)
    conversation = Conversation.of(body, store, owner)
    with rename_errors(NAMES):
        chat = to_chat(body, conversation)
        # It is a bound: as with OpenAI's models, it may exceed what the context leaves.
        limit = TokenLimit(None, body.max_output_tokens, "max_output_tokens", "input")
        run = await prepare_chat(service, chat, limit, entry_of(request), images_of(body, conversation))
    # Not the request's id, which clients may choose: whoever knows the id of a stored response can read it.
    unique = uuid4().hex
    keep = partial(store.put, owner, conversation.to_store(unique)) if keeps else None
    answer = ResponseAnswer(service, body, chat, run, conversation.tools, unique, keep)
    if not body.background:
        return await answer.respond(request, run.choices, 1, body.priority)
    entry, streams = request.scope["request_log"], service.streams if body.stream else None
    begun = background.start(entry, answer, run.choices[0], body.priority, streams)
    if not body.stream:
        return json_response(begun)
    return EventStream(service.streams.find(owner, begun.id).read(), lambda: None)


@router.post(
    "/v1/responses/input_tokens",
    openapi_extra=body_schema(InputTokensRequest),
    responses=answers(InputTokens, READS_BODY),
)
async def count_input_tokens(
    body: Annotated[InputTokensRequest, Depends(body_of(InputTokensRequest))],
    request: Request,
    service: ServiceDep,
    store: StoreDep,
    owner: OwnerDep,
) -> Response:
    """How many tokens the prompt of an input has."""
    service.check_model(body.model)
    conversation = Conversation.of(body, store, owner)
    with rename_errors(NAMES):
        chat, named = to_chat(body, conversation), images_of(body, conversation)
        prompt = await encode_chat(service, chat, entry_of(request), named)
    return json_response(InputTokens(input_tokens=len(prompt.token_ids)))


def _is_kept(service: Service, body: ResponsesRequest, store: ResponseStore) -> bool:
    """Whether the response will be stored. Raises UnsupportedError if it should be and cannot be."""
    if body.background and body.store is False:
        raise InvalidRequestError("background: a response that is not stored could not be read", "background")
    if store.is_enabled:
        return body.store is not False
    why = "api_workers: several" if service.settings.api_workers > 1 else "max_stored_bytes"
    for name in ("store", "background", "previous_response_id"):
        if getattr(body, name):
            raise UnsupportedError(f"{name}: this server stores no responses ({why})", name)
    return False
