"""What encoders of encoder-decoders read, as requests bring it along."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .media import Array, Media


def text_source(token_ids: Sequence[int]) -> Media:
    """A text."""
    return _source("input_ids", np.array(token_ids, dtype=np.int64), len(token_ids))


def sound_source(features: NDArray[np.float32], num_tokens: int) -> Media:
    """A spectrogram (mel bands, frames), of which the encoder makes `num_tokens` tokens."""
    return _source("input_features", features, num_tokens)


def _source(name: str, array: NDArray[Any], num_tokens: int) -> Media:
    digest = hashlib.sha256(f"{name} {array.shape}".encode() + array.tobytes()).digest()
    return Media(digest, {name: Array.of(array)}, num_tokens)
