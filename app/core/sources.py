"""What encoders of encoder-decoders read, as requests bring it along."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .media import Array, Media


def text_source(token_ids: Sequence[int], is_seen: Sequence[bool] = ()) -> Media:
    """A text. `is_seen`: parallel to it, unless all of its tokens are seen: others only take up their positions."""
    arrays = {"input_ids": np.array(token_ids, dtype=np.int64)}
    if not all(is_seen):
        arrays["attention_mask"] = np.array(is_seen, dtype=np.int64)
    return _source(arrays, len(token_ids))


def num_seen(source: Media) -> int:
    """How many of a source's tokens the decoder sees."""
    mask = source.arrays.get("attention_mask")
    return source.num_tokens if mask is None else int(mask.numpy().sum())


def sound_source(features: NDArray[np.float32], num_tokens: int) -> Media:
    """A spectrogram (mel bands, frames), of which the encoder makes `num_tokens` tokens."""
    return _source({"input_features": features}, num_tokens)


def _source(arrays: Mapping[str, NDArray[Any]], num_tokens: int) -> Media:
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.shape}".encode() + array.tobytes())
    return Media(digest.digest(), {name: Array.of(array) for name, array in arrays.items()}, num_tokens)
