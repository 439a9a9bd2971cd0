"""POST /v1/completions"""

from typing import ClassVar

from pydantic import ConfigDict, Field

from app.api.schemas.common import SamplingFields, TokenId


class CompletionRequest(SamplingFields):
    """Continue a text, or several."""

    model_config = ConfigDict(json_schema_extra={"example": {"prompt": "The capital of France is", "max_tokens": 16}})

    DEFAULT_MAX_TOKENS: ClassVar[int] = 16

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]] = Field(
        description="a text, several texts, token ids, or several lists of token ids"
    )
    max_tokens: int = Field(DEFAULT_MAX_TOKENS, ge=0, lt=2**31, description="0 only with echo")
    logprobs: int | None = Field(None, ge=0, description="most probable tokens to report at each position")
    echo: bool = Field(False, description="return the prompt too")
