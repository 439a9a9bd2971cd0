"""POST /tokenize and /detokenize"""

from pydantic import Field, model_validator

from app.api.schemas.chat import ChatFields, Message
from app.api.schemas.common import RequestBody, TokenId
from app.errors import InvalidRequestError


class TokenizeRequest(ChatFields):
    """A text, or a chat, to be turned into token ids."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] = Field(default_factory=list)
    add_special_tokens: bool = Field(True, description="what the tokenizer puts around a text; not for chats")
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _check_input(self) -> "TokenizeRequest":
        if (self.prompt is None) == (not self.messages):
            raise InvalidRequestError("give either prompt or messages", "prompt")
        return self


class DetokenizeRequest(RequestBody):
    """Token ids to be turned into text."""

    model: str | None = None
    tokens: list[TokenId]
