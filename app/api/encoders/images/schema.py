"""The requests of POST /v1/embeddings and /v1/classify to a model that reads images"""

from typing import Literal

from pydantic import ConfigDict, Field

from ....errors import InvalidRequestError
from ...edge.body import Label, RequestBody, refused
from ..schema import VectorFields

_UNSUPPORTED = refused("max_tokens_per_doc task truncate") | {
    "add_special_tokens": (True,),
    "embed_dtype": ("float32",),
    "embedding_type": ("float",),
    "instruction": ("",),
    "late_chunking": (False,),
    "normalized": (True,),
    "use_activation": (True,),
}
_IMAGE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mM8UaHBgA0wMeAAg1MCAB4nAXgllso1AAAAAElFTkSuQmCC"
)


class ImageUrl(RequestBody):
    """An image, as OpenAI's parts of messages have it."""

    hints = frozenset({"detail"})
    url: str = Field(description="a data URL, such as data:image/png;base64,...; nothing is fetched")


class Part(RequestBody):
    """A text or an image: as Jina has it in `input`, or OpenAI and vLLM in messages."""

    hints = frozenset({"uuid"})
    type: Literal["text", "image_url"] | None = None
    text: str | None = None
    image: str | None = Field(None, description="a data URL, or the file in base64")
    image_url: ImageUrl | str | None = None

    def check(self) -> None:
        """See `RequestBody.check`."""
        if sum(given is not None for given in (self.text, self.image, self.image_url)) != 1:
            raise InvalidRequestError("input: a part has one of text, image and image_url", "input")


class Uploaded(Part):
    """An image that is a file of a form."""

    path: str
    """Of its field."""
    file: bytes

    def check(self) -> None:
        """See `RequestBody.check`."""


class InputMessage(RequestBody):
    """A message whose one part is what the model reads, as vLLM has it."""

    role: Literal["user"]
    content: str | list[Part]


class ImageFields(RequestBody):
    """Fields that the requests share."""

    hints = frozenset({"user"})
    unsupported = _UNSUPPORTED
    model: Label | None = Field(None, description="the served model's name")
    input: str | Part | list[str | Part] | None = Field(
        None, description="images as data URLs, in parts or, if modality says so, as texts; and texts"
    )
    messages: list[InputMessage] = Field([], description="in the place of input: one message with one part")
    modality: Literal["text", "image"] | None = Field(
        None, description="what strings in input are: by default texts, if the model reads any"
    )
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, lt=2**31, description="cut texts to so many tokens; -1: to what the model reads"
    )
    priority: int = Field(0, ge=-(2**31), lt=2**31, description="lower runs first")

    def check(self) -> None:
        """See `RequestBody.check`."""
        if (self.input is None) == (not self.messages):
            raise InvalidRequestError("input: give either input or messages", "input")
        given = self.input if isinstance(self.input, list) else [self.input]
        for part in given:
            if isinstance(part, Part):
                part.check()


class ImageEmbeddingRequest(ImageFields, VectorFields):
    """Embed images, and texts in the same space if the model reads any."""

    model_config = ConfigDict(json_schema_extra={"example": {"input": [{"image": _IMAGE}]}})


class ImageClassifyRequest(ImageFields):
    """Classify images: by the model's labels, or by those of the request if the model compares images with texts."""

    model_config = ConfigDict(json_schema_extra={"example": {"input": [{"image": _IMAGE}], "top_k": 5}})

    labels: list[str] | None = Field(None, min_length=1, description="of a model that compares images with texts")
    candidate_labels: list[str] | None = Field(None, min_length=1, description="another name of labels")
    hypothesis_template: str = Field(
        "This is a photo of {}.", max_length=1024, description="the text of a label, which stands in the place of {}"
    )
    top_k: int | None = Field(None, ge=1, description="how many labels to name, the most probable first")

    def check(self) -> None:
        """See `RequestBody.check`."""
        super().check()
        if self.labels is not None and self.candidate_labels is not None:
            raise InvalidRequestError("labels: give either labels or candidate_labels", "labels")
        if "{}" not in self.hypothesis_template:
            raise InvalidRequestError("hypothesis_template: has no {}", "hypothesis_template")
