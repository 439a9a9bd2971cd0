"""POST /v1/responses, GET and DELETE /v1/responses/{id}"""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.chat.parts import Fields, rename_errors
from app.api.chat.prepare import prepare_chat
from app.api.deps import ADMITTED, ServiceDep, body_of
from app.api.edge.answer import json_response
from app.api.edge.body import body_schema
from app.api.edge.document import ANY, RUNS, answers
from app.api.edge.request_log import RequestLog
from app.api.generation.choices import TokenLimit
from app.api.responses.answer import DeletedResponse, ResponseAnswer, ResponseEvent, ResponseObject
from app.api.responses.schema import ResponsesRequest
from app.api.responses.store import ResponseStore
from app.api.responses.translate import NAMES, messages_of, to_chat
from app.api.service import Service
from app.errors import InvalidRequestError, NotFoundError, UnsupportedError

router = APIRouter()


def _store(request: Request) -> ResponseStore:
    store: ResponseStore = request.app.state.responses
    return store


StoreDep = Annotated[ResponseStore, Depends(_store)]


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
) -> Response:
    """Answer an input."""
    keeps = _is_kept(service, body, store)
    owner = _owner(request)
    messages = _earlier(store, body, owner) + messages_of(body.input)
    with rename_errors(NAMES):
        chat = to_chat(body, messages)
        limit = TokenLimit(body.max_output_tokens, None, "max_output_tokens", "input")
        run = await prepare_chat(service, chat, limit)
    answer = ResponseAnswer(service, body, chat, run, messages, partial(store.put, owner) if keeps else None)
    return await answer.respond(request, run.choices, 1, body.priority)


@router.get("/v1/responses/{response_id}", responses=answers(ResponseObject, (*ANY, 404)))
async def get_response(response_id: str, request: Request, store: StoreDep) -> Response:
    """A stored response."""
    for name in request.query_params:  # such as `stream`
        raise UnsupportedError(f"{name} is not supported for a stored response", name)
    return Response(store.body(_owner(request), response_id), media_type="application/json")


@router.delete("/v1/responses/{response_id}", responses=answers(DeletedResponse, (*ANY, 404)))
async def delete_response(response_id: str, request: Request, store: StoreDep) -> Response:
    """Delete a stored response."""
    store.delete(_owner(request), response_id)
    return json_response(DeletedResponse(response_id))


def _owner(request: Request) -> str:
    entry: RequestLog = request.scope["request_log"]
    return entry.tenant.name


def _is_kept(service: Service, body: ResponsesRequest, store: ResponseStore) -> bool:
    """Whether the response will be stored. Raises UnsupportedError if it should be and cannot be."""
    if store.is_enabled:
        return body.store is not False
    for name, asks in (("store", body.store), ("previous_response_id", body.previous_response_id)):
        if asks:
            raise UnsupportedError(f"{name}: this server stores no responses ({_why(service)})", name)
    return False


def _why(service: Service) -> str:
    return "api_workers: several" if service.settings.api_workers > 1 else "max_stored_bytes"


def _earlier(store: ResponseStore, body: ResponsesRequest, owner: str) -> list[Fields]:
    """The conversation that a response continues."""
    if body.previous_response_id is None:
        return []
    try:
        return store.messages(owner, body.previous_response_id)
    except NotFoundError as error:
        refusal = InvalidRequestError(f"previous_response_id: {error.message}", "previous_response_id")
        refusal.code = "previous_response_not_found"
        raise refusal from None
