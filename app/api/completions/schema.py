"""The request of POST /v1/completions"""

from pydantic import ConfigDict, Field

from ...errors import InvalidRequestError, UnsupportedError
from ..edge.body import Label
from ..generation.fields import Prompt, SamplingFields
from ..generation.structured import StructuredFields

DEFAULT_MAX_TOKENS = 16
"""As in OpenAI's API."""


class CompletionRequest(StructuredFields, SamplingFields):
    """Continue a text, or several."""

    model_config = ConfigDict(json_schema_extra={"example": {"prompt": "The capital of France is", "max_tokens": 16}})

    token_fields = frozenset(("prompt",))
    prompt: Prompt = Field(description="a text, several texts, token ids, or several lists of token ids")
    max_tokens: int | None = Field(None, ge=0, lt=2**31, description="16 by default; 0 only with echo")
    logprobs: int | None = Field(None, ge=0, description="most probable tokens to report at each position")
    echo: bool = Field(False, description="return the prompt too")
    add_special_tokens: bool = Field(True, description="what the tokenizer puts around a text")
    source_language: Label | None = Field(None, description="of the prompt, for models that translate: its token")
    target_language: Label | None = Field(None, description="what it is to be translated to")
    best_of: int | None = Field(None, ge=1, description="1 or n: choices are not ranked")

    def check(self) -> None:
        """See `RequestBody.check`."""
        super().check()
        if self.best_of not in (None, 1, self.n):
            raise UnsupportedError("best_of: only 1 or n is supported", "best_of")
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequestError("max_tokens: at least 1, unless the prompt is echoed", "max_tokens")
