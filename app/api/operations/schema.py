"""POST /tokenize and /detokenize"""

from pydantic import ConfigDict, Field

from app.api.chat.schema import ChatFields, Message
from app.api.edge.body import Label, RequestBody
from app.api.generation.fields import TokenId
from app.errors import InvalidRequestError


class TokenizeRequest(ChatFields):
    """A text, or a chat, to be turned into token ids."""

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
    """Token ids to be turned into text."""

    model_config = ConfigDict(json_schema_extra={"example": {"tokens": [1, 2, 3]}})

    token_fields = frozenset(("tokens",))
    model: Label | None = None
    tokens: list[TokenId]
