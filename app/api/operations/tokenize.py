"""POST /tokenize and /detokenize"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from app.api.chat.prompt import encode_chat
from app.api.deps import ServiceDep, body_of
from app.api.edge.body import body_schema
from app.api.edge.document import READS_BODY, answers
from app.api.generation.prompts import check_token_ids, encode_texts
from app.api.operations.answers import Detokenized, Tokens
from app.api.operations.schema import DetokenizeRequest, TokenizeRequest

router = APIRouter()


@router.post(
    "/tokenize", openapi_extra=body_schema(TokenizeRequest), responses=answers(errors=READS_BODY), response_model=Tokens
)
async def tokenize(
    body: Annotated[TokenizeRequest, Depends(body_of(TokenizeRequest))], service: ServiceDep
) -> dict[str, Any]:
    """Token ids of a text or a chat."""
    service.check_model(body.model)
    if body.prompt is not None:
        (tokens,) = await encode_texts(service, [body.prompt], "prompt", body.add_special_tokens)
    else:
        tokens = (await encode_chat(service, body)).token_ids
    return {
        "tokens": tokens,
        "count": len(tokens),
        "max_model_len": service.ready().max_model_len,
        "token_strs": [service.tokenizer.token_text(id_) for id_ in tokens] if body.return_token_strs else None,
    }


@router.post(
    "/detokenize",
    openapi_extra=body_schema(DetokenizeRequest),
    responses=answers(errors=READS_BODY),
    response_model=Detokenized,
)
async def detokenize(
    body: Annotated[DetokenizeRequest, Depends(body_of(DetokenizeRequest))], service: ServiceDep
) -> dict[str, str]:
    """The text of token ids, special ones included."""
    service.check_model(body.model)
    if body.tokens:
        check_token_ids(body.tokens, service.ready().vocab_size, "tokens")
    return {"prompt": service.tokenizer.decode(body.tokens, skip_special_tokens=False)}
