"""POST /v1/completions"""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from ..deps import ADMITTED, ServiceDep, body_of
from ..edge.body import body_schema
from ..edge.document import RUNS, answers
from ..edge.errors import ErrorAnswer
from ..generation.choices import TokenLimit, check_logprobs, check_num_choices, make_choices
from ..generation.prompts import as_list, check_token_ids, encode_texts
from ..generation.structured import grammar_of
from ..service import Service
from .answer import Completion, CompletionChunk, TextAnswer
from .schema import DEFAULT_MAX_TOKENS, CompletionRequest

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
    service.check_model(body.model)
    service.check_task("generate")
    service.ready()
    check_logprobs(service, body.logprobs, "logprobs")
    prompts = await _prompts(service, body)
    grammar = await grammar_of(service, body, body.constraint())
    choices = make_choices(
        service,
        body,
        prompts,
        TokenLimit(body.max_tokens, DEFAULT_MAX_TOKENS, "max_tokens", "prompt"),
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
        grammar=grammar,
    )
    answer = TextAnswer(service, body, choices, request.scope["request_log"].request_id)
    return await answer.respond(request, choices, body.n, body.priority)


async def _prompts(service: Service, body: CompletionRequest) -> list[list[int]]:
    """The prompts as token ids. Raises InvalidRequestError if one is empty or has unknown tokens."""
    prompt = as_list(body.prompt, "prompt")
    check_num_choices(service, len(prompt), body.n)
    prompts = prompt
    if isinstance(prompt[0], str):
        prompts = await encode_texts(service, prompt, "prompt", body.add_special_tokens)
    for token_ids in prompts:
        check_token_ids(token_ids, service.ready().vocab_size, "prompt")
    return prompts
