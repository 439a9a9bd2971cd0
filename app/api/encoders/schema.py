"""The requests of POST /v1/embeddings, /v1/rerank, /v1/score and /v1/classify"""

from typing import Literal

from pydantic import ConfigDict, Field

from ..edge.body import Label, RequestBody, Unsupported, refused
from ..generation.fields import Prompt

_UNSUPPORTED: Unsupported = refused("max_tokens_per_doc messages") | {
    "add_special_tokens": (True,),
    "embed_dtype": ("float32",),
    "instruction": ("",),
    "normalize": (True,),
    "use_activation": (True,),
}


class EncoderFields(RequestBody):
    """Fields that the requests of encoders share."""

    hints = frozenset({"user"})
    unsupported = _UNSUPPORTED
    token_fields = frozenset(("input",))
    model: Label | None = Field(None, description="the served model's name")
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, lt=2**31, description="cut inputs to so many tokens; -1: to what the model reads"
    )
    priority: int = Field(0, ge=-(2**31), lt=2**31, description="lower runs first")


class EmbeddingRequest(EncoderFields):
    """Embed a text, or several."""

    model_config = ConfigDict(json_schema_extra={"example": {"input": ["A cat.", "A dog."]}})

    input: Prompt = Field(description="a text, several texts, token ids, or several lists of token ids")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="keep so many numbers, and normalise again")


class ClassifyRequest(EncoderFields):
    """Classify a text, or several."""

    model_config = ConfigDict(json_schema_extra={"example": {"input": ["What a day!"]}})

    input: Prompt = Field(description="a text, several texts, token ids, or several lists of token ids")


class ScoreRequest(EncoderFields):
    """Score pairs of texts: one with one, one with each, or each with its counterpart."""

    model_config = ConfigDict(json_schema_extra={"example": {"text_1": "A cat.", "text_2": ["A kitten.", "A car."]}})

    text_1: str | list[str]
    text_2: str | list[str]


class Document(RequestBody):
    """A text to be ranked. Other fields would be a part of what is to be ranked, and are refused."""

    model_config = ConfigDict(extra="forbid")
    text: str


class RerankRequest(EncoderFields):
    """Order documents by how well they answer a query."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"query": "What purrs?", "documents": ["A cat.", "A car."], "top_n": 1}}
    )

    query: str
    documents: list[str | Document] = Field(min_length=1)
    top_n: int | None = Field(None, ge=1, description="how many to return; all by default")
    return_documents: bool = True

    def texts(self) -> list[str]:
        """The documents' texts."""
        return [document if isinstance(document, str) else document.text for document in self.documents]
