"""Answers of encoders, and how they are computed from a model's vectors."""

import base64
from typing import Any, Literal

import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from ...checkpoint.encoders import EncoderConfig
from ...errors import InvalidRequestError
from ..edge.answer import AnswerBody
from .run import Vectors


class EncoderUsage(AnswerBody, kw_only=True):
    """How many tokens were read. A ranking has only the total."""

    prompt_tokens: int | UnsetType = UNSET
    total_tokens: int


class EncoderList(AnswerBody, kw_only=True):
    """What the answers of encoders have in common."""

    object: Literal["list"] = "list"
    data: list[Any]
    model: str
    usage: EncoderUsage


class Embedding(AnswerBody, kw_only=True):
    """The vector of a text; in base64, its numbers are float32 in little endian."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Embeddings(EncoderList, kw_only=True):
    """A vector for each text."""

    data: list[Embedding]


class Classification(AnswerBody):
    """The most probable label of a text."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class Classifications(EncoderList, kw_only=True):
    """A label for each text."""

    data: list[Classification]


class Score(AnswerBody):
    """How similar two texts are, or how well one answers the other."""

    index: int
    object: Literal["score"]
    score: float


class Scores(EncoderList, kw_only=True):
    """A score for each pair."""

    data: list[Score]


class RankedText(AnswerBody):
    """A document."""

    text: str


class RankedDocument(AnswerBody):
    """A document's index among those that were sent, and how well it answers."""

    index: int
    relevance_score: float
    document: RankedText | UnsetType = UNSET
    """Only with return_documents."""


class Ranking(AnswerBody):
    """Documents, the best first."""

    id: str
    model: str
    usage: EncoderUsage
    results: list[RankedDocument]


def embed(config: EncoderConfig, vectors: Vectors, dimensions: int | None, encoding_format: str) -> list[Embedding]:
    """Vectors in the requested form. Raises InvalidRequestError if they have fewer dimensions."""
    if dimensions is not None and dimensions > len(vectors[0]):
        raise InvalidRequestError(f"dimensions: this model has {len(vectors[0])}", "dimensions")
    if dimensions is not None or config.modules.normalizes:
        vectors = [normalised(vector[:dimensions]) for vector in vectors]
    return [
        Embedding(
            index=index,
            embedding=base64.b64encode(vector.tobytes()).decode() if encoding_format == "base64" else vector.tolist(),
        )
        for index, vector in enumerate(vectors)
    ]


def label(config: EncoderConfig, vectors: Vectors) -> list[Classification]:
    """The labels of texts, from a classifier's logits."""
    found = []
    for index, logits in enumerate(vectors):
        probs = sigmoid(logits) if config.is_multi_label else _softmax(logits)
        found.append(Classification(index, config.labels[int(probs.argmax())], probs.tolist(), len(probs)))
    return found


def rank(vectors: Vectors, texts: list[str], top_n: int | None, return_documents: bool) -> list[RankedDocument]:
    """Texts by scores, the best first."""
    values = np.concatenate(vectors)
    return [
        RankedDocument(index, float(values[index]), RankedText(texts[index]) if return_documents else UNSET)
        for index in np.argsort(-values, kind="stable").tolist()[:top_n]
    ]


def normalised(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vector with length 1."""
    return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)


def scores(config: EncoderConfig, logits: Vectors) -> Vectors:
    """Scores of pairs, from the logit of a classifier with one label."""
    if config.activation == "Identity":
        return logits
    return [sigmoid(logit) for logit in logits]


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probability of each label, independent of the others."""
    return (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    weights: NDArray[np.float64] = np.exp(logits.astype(np.float64) - logits.max())
    probs: NDArray[np.float32] = (weights / weights.sum()).astype(np.float32)
    return probs
