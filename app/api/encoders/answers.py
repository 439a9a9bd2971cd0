"""Answers of /v1/embeddings, /v1/rerank, /v1/score and /v1/classify"""

from typing import Literal

from pydantic import Field

from app.api.edge.answers import AnswerBody


class TotalUsage(AnswerBody):
    """How many tokens were read."""

    total_tokens: int


class EncoderUsage(TotalUsage):
    """How many tokens were read."""

    prompt_tokens: int


class EncoderList(AnswerBody):
    """What the answers of encoders have in common."""

    object: Literal["list"]
    model: str
    usage: EncoderUsage


class Embedding(AnswerBody):
    """The vector of a text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="with encoding_format base64: float32, little endian")


class Embeddings(EncoderList):
    """A vector for each text."""

    data: list[Embedding]


class Classification(AnswerBody):
    """The most probable label of a text."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class Classifications(EncoderList):
    """A label for each text."""

    data: list[Classification]


class Score(AnswerBody):
    """How well two texts go together."""

    object: Literal["score"]
    index: int
    score: float


class Scores(EncoderList):
    """A score for each pair."""

    data: list[Score]


class RankedText(AnswerBody):
    """A document."""

    text: str


class RankedDocument(AnswerBody):
    """A document's place among those that were sent, and how well it answers."""

    index: int
    relevance_score: float
    document: RankedText | None = Field(None, description="left out unless return_documents")


class Ranking(AnswerBody):
    """Documents, the best first."""

    id: str
    model: str
    usage: TotalUsage
    results: list[RankedDocument]
