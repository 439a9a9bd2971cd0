"""POST /tokenize and /detokenize"""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import ConfigDict, Field
from starlette.responses import Response

from ...errors import InvalidRequestError
from ..chat.message import Message
from ..chat.prepare import encode_chat
from ..chat.schema import ChatFields
from ..deps import ServiceDep, body_of, entry_of
from ..edge.answer import AnswerBody, json_response
from ..edge.body import Label, RequestBody, body_schema
from ..edge.document import READS_BODY, answers
from ..generation.fields import TokenId
from ..generation.prompts import check_token_ids, encode_texts

router = APIRouter()


class TokenizeRequest(ChatFields):
    """Tokenize a text or a chat."""

    model_config = ConfigDict(json_schema_extra={"example": {"prompt": "Hello."}})

    model: Label | None = None
    prompt: str | None = None
    messages: list[Message] = Field(default_factory=list)
    add_special_tokens: bool = Field(True, description="what the tokenizer puts around a text; not for chats")
    return_token_strs: bool = False

    def check(self) -> None:
        """See `RequestBody.check`."""
        if (self.prompt is None) == (not self.messages):
            raise InvalidRequestError("prompt: give either a prompt or messages", "prompt")
        super().check()


class DetokenizeRequest(RequestBody):
    """Turn token ids into text."""

    model_config = ConfigDict(json_schema_extra={"example": {"tokens": [1, 2, 3]}})

    token_fields = frozenset(("tokens",))
    model: Label | None = None
    tokens: list[TokenId]


class Tokens(AnswerBody):
    """A text as tokens."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None
    """With return_token_strs, the text of each token."""


class Detokenized(AnswerBody):
    """Tokens as a text."""

    prompt: str


@router.post("/tokenize", openapi_extra=body_schema(TokenizeRequest), responses=answers(Tokens, READS_BODY))
async def tokenize(
    body: Annotated[TokenizeRequest, Depends(body_of(TokenizeRequest))], request: Request, service: ServiceDep
) -> Response:
    """Token ids of a text or a chat."""
    service.check_model(body.model)
    service.check_text()
    if body.prompt is not None:
        (tokens,) = await encode_texts(service, [body.prompt], "prompt", body.add_special_tokens)
    else:
        tokens = (await encode_chat(service, body, entry_of(request))).token_ids
    strs = [service.tokenizer.token_text(id_) for id_ in tokens] if body.return_token_strs else None
    return json_response(Tokens(tokens, len(tokens), service.ready().max_model_len, strs))


@router.post("/detokenize", openapi_extra=body_schema(DetokenizeRequest), responses=answers(Detokenized, READS_BODY))
async def detokenize(
    body: Annotated[DetokenizeRequest, Depends(body_of(DetokenizeRequest))], service: ServiceDep
) -> Response:
    """The text of token ids, special ones included."""
    service.check_model(body.model)
    service.check_text()
    if body.tokens:
        check_token_ids(body.tokens, service.ready().vocab_size, "tokens")
    return json_response(Detokenized(service.tokenizer.decode(body.tokens, skip_special_tokens=False)))
