"""POST /tokenize and /detokenize"""

from typing import Any

from fastapi import APIRouter

from app.api.chat_prompt import chat_prompt
from app.api.schemas.tokenize import DetokenizeRequest, TokenizeRequest
from app.api.service import ServiceDep
from app.errors import InvalidRequestError

router = APIRouter()


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, service: ServiceDep) -> dict[str, Any]:
    """Token ids of a text or a chat."""
    service.check_model(body.model)
    if body.prompt is not None:
        tokens = service.tokenizer.encode(body.prompt, body.add_special_tokens)
    else:
        tokens = chat_prompt(service, body)
    return {
        "tokens": tokens,
        "count": len(tokens),
        "max_model_len": service.ready().max_model_len,
        "token_strs": [service.tokenizer.token_text(id_) for id_ in tokens] if body.return_token_strs else None,
    }


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, service: ServiceDep) -> dict[str, str]:
    """The text of token ids, special ones included."""
    service.check_model(body.model)
    vocab_size = service.ready().vocab_size
    if any(id_ >= vocab_size for id_ in body.tokens):
        raise InvalidRequestError(f"tokens: token ids are below {vocab_size}", "tokens")
    return {"prompt": service.tokenizer.decode(body.tokens, skip_special_tokens=False)}
