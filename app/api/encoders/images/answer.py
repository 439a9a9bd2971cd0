"""What becomes of the numbers of a model that reads images."""

from collections.abc import Sequence

import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from ....checkpoint.image_models import ImageModelConfig
from ...edge.answer import AnswerBody
from ..answer import Classification, normalised, sigmoid, softmax
from ..run import Vectors


class LabelScore(AnswerBody):
    """A label and its probability."""

    label: str
    score: float


class ImageClassification(Classification, kw_only=True):
    """The most probable label of an image. `probs` are in the order of the labels."""

    top: list[LabelScore] | UnsetType = UNSET
    """With top_k: labels, the most probable first."""


def classified(index: int, probs: NDArray[np.float32], labels: Sequence[str], top_k: int | None) -> ImageClassification:
    """The answer for an image with these probabilities."""
    top: list[LabelScore] | UnsetType = UNSET
    if top_k is not None:
        order = np.argsort(-probs, kind="stable").tolist()
        top = [LabelScore(labels[at], float(probs[at])) for at in order[:top_k]]
    return ImageClassification(
        index=index,
        label=labels[int(probs.argmax())],
        probs=probs.tolist(),
        num_classes=len(labels),
        top=top,
    )


def probabilities(config: ImageModelConfig, images: Vectors) -> NDArray[np.float32]:
    """Of a classifier's labels, from its logits: (images, labels)."""
    logits = np.stack(images)
    return sigmoid(logits) if config.is_multi_label else softmax(logits)


def compared(config: ImageModelConfig, images: Vectors, texts: Vectors) -> NDArray[np.float32]:
    """Of labels that are texts, for images: (images, labels).

    The vectors are those of `app.worker.image_reader.ImageReader`.
    CLIP shares one image's probability among them, SigLIP judges each by itself.
    """
    of_images, of_texts = np.stack(images), np.stack(texts)
    scale, bias = of_images[:, -2:-1], of_images[:, -1:]
    cosines = normalised(of_images[:, :-2]) @ normalised(of_texts[:, :-2]).T
    logits = (scale * cosines + bias).astype(np.float32)
    return softmax(logits) if config.compares == "clip" else sigmoid(logits)


def vector_of(config: ImageModelConfig, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vector among a model's numbers."""
    return numbers[:-2] if config.compares else numbers
