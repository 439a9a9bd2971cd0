"""Answers of encoders, and how they are computed from a model's vectors."""

import base64
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from ...checkpoint.encoders import EncoderConfig
from ...errors import InvalidRequestError
from ...text.entities import entities
from ...text.tokenizer import EncoderInput
from ..edge.answer import AnswerBody
from .run import Encoded, Vectors
from .schema import VectorFields


class EncoderUsage(AnswerBody, kw_only=True):
    """How many tokens were read. A ranking has only the total."""

    prompt_tokens: int | UnsetType = UNSET
    total_tokens: int


class EncoderList(AnswerBody, kw_only=True):
    """What the answers of encoders have in common."""

    object: Literal["list"] = "list"
    data: Sequence[Any]
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


class ClassifiedText(AnswerBody):
    """What a classifier says of a text."""

    index: int


class Classification(ClassifiedText):
    """The most probable label of a text."""

    label: str
    probs: list[float]
    num_classes: int


class FoundEntity(AnswerBody):
    """A part of a text that a model of tokens has given a label, such as a name."""

    label: str
    score: float
    start: int
    """In characters."""
    end: int
    """The character behind its last."""
    text: str


class TokenClassification(ClassifiedText):
    """The entities of a text, in their order."""

    entities: list[FoundEntity]


class Classifications(EncoderList, kw_only=True):
    """A label for each text, or its entities."""

    data: Sequence[ClassifiedText]


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


def embed(normalizes: bool, vectors: Vectors, body: VectorFields) -> list[Embedding]:
    """Vectors in the requested form. Raises InvalidRequestError if they have fewer dimensions.

    normalizes: whether the model's vectors have length 1.
    """
    if body.dimensions is not None and body.dimensions > len(vectors[0]):
        raise InvalidRequestError(f"dimensions: this model has {len(vectors[0])}", "dimensions")
    by_default = body.dimensions is not None or normalizes
    rows = np.stack(vectors)[:, : body.dimensions]
    if by_default if body.normalize is None else body.normalize:
        rows = normalised(rows)
    is_base64 = body.encoding_format == "base64"
    return [
        Embedding(
            index=index,
            embedding=base64.b64encode(row.tobytes()).decode() if is_base64 else row.tolist(),
        )
        for index, row in enumerate(rows)
    ]


def label(config: EncoderConfig, vectors: Vectors, use_activation: bool) -> list[Classification]:
    """The labels of texts, from a classifier's logits."""
    logits = np.stack(vectors)
    probs = _probs(config, logits) if use_activation else logits
    best = probs.argmax(axis=1).tolist()
    return [
        Classification(index, config.labels[at], row.tolist(), len(row))
        for index, (at, row) in enumerate(zip(best, probs, strict=True))
    ]


def find_entities(config: EncoderConfig, encoded: Encoded, texts: list[Any]) -> list[TokenClassification]:
    """The entities of texts, from the logits of their tokens."""
    found = []
    for index, (flat, one, text) in enumerate(zip(encoded.vectors, encoded.inputs, texts, strict=True)):
        assert isinstance(one, EncoderInput)
        probs = softmax(flat.reshape(-1, len(config.labels)))
        parts = entities(probs, config.labels, one.places)
        told = [FoundEntity(*part, text[part.start : part.end]) for part in parts]
        found.append(TokenClassification(index, told))
    return found


def rank(vectors: Vectors, texts: list[str], top_n: int | None, return_documents: bool) -> list[RankedDocument]:
    """Texts by scores, the best first."""
    values = np.concatenate(vectors)
    return [
        RankedDocument(index, float(values[index]), RankedText(texts[index]) if return_documents else UNSET)
        for index in np.argsort(-values, kind="stable").tolist()[:top_n]
    ]


def normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors (vectors, dimensions) with length 1."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit


def cosines(texts: list[str], vectors: Vectors, pairs: list[tuple[str, str]]) -> Vectors:
    """How similar the texts of each pair are, from the vector of each text."""
    unit = dict(zip(texts, normalised(np.stack(vectors)), strict=True))
    return [np.atleast_1d(unit[one] @ unit[other]) for one, other in pairs]


def scores(config: EncoderConfig, logits: Vectors, use_activation: bool) -> Vectors:
    """Scores of pairs, from the logit of a classifier with one label, or those of a judge's good and bad answer."""
    if config.task == "judge":  # whose score is the probability of the good one of the two
        logits = [good_and_bad[:1] - good_and_bad[1:] for good_and_bad in logits]
    if config.activation == "Identity" or not use_activation:
        return logits
    return list(sigmoid(np.stack(logits)))


def _probs(config: EncoderConfig, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return sigmoid(logits) if config.is_multi_label else softmax(logits)


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probability of each label, independent of the others."""
    return (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probability of each label (..., labels), of which one applies."""
    weights: NDArray[np.float64] = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probs: NDArray[np.float32] = (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)
    return probs
