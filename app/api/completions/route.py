"""POST /v1/completions"""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from ..deps import ADMITTED, ServiceDep, body_of
from ..edge.body import body_schema
from ..edge.document import RUNS, answers
from ..edge.errors import ErrorAnswer
from .answer import Completion, CompletionChunk, TextAnswer
from .prepare import prepare_completion
from .schema import CompletionRequest

router = APIRouter()


@router.post(
    "/v1/completions",
    openapi_extra=body_schema(CompletionRequest),
    responses=answers(Completion, RUNS, events=(CompletionChunk, ErrorAnswer)),
    dependencies=ADMITTED,
)
async def create_completion(
    body: Annotated[CompletionRequest, Depends(body_of(CompletionRequest))], request: Request, service: ServiceDep
) -> Response:
    """Continue a text, or several, with n choices each."""
    choices = await prepare_completion(service, body)
    answer = TextAnswer(service, body, choices, request.scope["request_log"].request_id)
    return await answer.respond(request, choices, body.n, body.priority)
