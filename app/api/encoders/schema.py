"""The requests of POST /v1/embeddings, /v1/rerank, /v1/score and /v1/classify"""

from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from ...errors import InvalidRequestError, UnsupportedError
from ..chat.message import Message
from ..edge.body import Label, RequestBody, Unsupported, refused
from ..generation.fields import Prompt

_UNSUPPORTED: Unsupported = refused("mm_processor_kwargs") | {"embed_dtype": ("float32",)}


class EncoderFields(RequestBody):
    """Fields that the requests of encoders share."""

    hints = frozenset({"user"})
    unsupported = _UNSUPPORTED
    token_fields = frozenset(("input",))
    model: Label | None = Field(None, description="the served model's name")
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, lt=2**31, description="cut inputs to so many tokens; -1: to what the model reads"
    )
    add_special_tokens: bool = Field(True, description="what the tokenizer puts around a text; not for chats")
    priority: int = Field(0, ge=-(2**31), lt=2**31, description="lower runs first")


class InputFields(EncoderFields):
    """What is read: texts, token ids, or a chat."""

    input: Prompt | None = Field(
        None, description="a text, several texts, token ids, or several lists of token ids; or give messages"
    )
    messages: list[Message] = Field(default_factory=list, description="a chat, which is one input")
    add_generation_prompt: bool = Field(False, description="of a chat: begin the assistant's next message")
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="of a chat")

    @field_validator("input", mode="before")
    @classmethod
    def _refuse_parts(cls, given: Any) -> Any:
        """Raise UnsupportedError for images, and InvalidRequestError for other parts that models of images read."""
        places = enumerate(given) if isinstance(given, list) else [(None, given)]
        for index, part in places:
            if isinstance(part, dict):
                path = "input" if index is None else f"input[{index}]"
                if part.keys() & {"image", "image_url"}:
                    raise UnsupportedError(f"{path}: this model reads texts, and no images", path)
                raise InvalidRequestError(f"{path}: a text or token ids are expected, and this is an object", path)
        return given

    def check(self) -> None:
        """See `RequestBody.check`."""
        if (self.input is None) == (not self.messages):
            raise InvalidRequestError("input: give either an input or messages", "input")
        for index, message in enumerate(self.messages):
            message.check_content(f"messages[{index}]")


class VectorFields(RequestBody):
    """The form of vectors."""

    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="keep so many numbers, and normalise again")
    normalize: bool | None = Field(None, description="whether vectors have length 1; by default as the model says")


class EmbeddingRequest(InputFields, VectorFields):
    """Embed a text, or several."""

    model_config = ConfigDict(json_schema_extra={"example": {"input": ["A cat.", "A dog."]}})
    unsupported = _UNSUPPORTED | {"use_activation": (True,)}

    prompt_name: str | None = Field(None, description="of the prompts in the model's files, the one in front of texts")
    instruction: str | None = Field(
        None, description="what is searched for, in the place of the instruction in the model's prompt for queries"
    )


class ClassifyRequest(InputFields):
    """Classify a text, or several."""

    model_config = ConfigDict(json_schema_extra={"example": {"input": ["What a day!"]}})

    use_activation: bool = Field(True, description="false: logits in the place of probabilities")


class PairFields(EncoderFields):
    """How texts are compared."""

    use_activation: bool = Field(True, description="false: the logit of a model that reads pairs, instead of its score")
    instruction: str | None = Field(None, description="what is searched for, for models that are told so")
    max_tokens_per_doc: int | None = Field(None, ge=1, description="cut documents to so many tokens")


class ScoreRequest(PairFields):
    """Score pairs of texts: one with one, one with each, or each with its counterpart."""

    model_config = ConfigDict(json_schema_extra={"example": {"text_1": "A cat.", "text_2": ["A kitten.", "A car."]}})

    text_1: str | list[str]
    text_2: str | list[str]


class Document(RequestBody):
    """A text to be ranked. Other fields would be a part of what is to be ranked, and are refused."""

    model_config = ConfigDict(extra="forbid")
    text: str


class RerankRequest(PairFields):
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
