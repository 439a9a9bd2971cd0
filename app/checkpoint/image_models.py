"""What the files of a model say that reads images, and answers with labels or vectors."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..core.media import Array, Media
from ..core.wire import Task
from .sentence_transformers import Read

_CLASSIFIES = ("ForImageClassification", "ForImageClassificationWithTeacher")
"""Ends of the names of transformers' classes that classify images."""
_EMBED = frozenset(
    (
        *("BeitModel", "BitModel", "CLIPVisionModel", "ConvNextModel", "ConvNextV2Model", "Data2VecVisionModel"),
        *("DINOv3ConvNextModel", "DINOv3ViTModel", "DeiTModel", "Dinov2Model", "Dinov2WithRegistersModel"),
        *("EfficientNetModel", "FocalNetModel", "HieraModel", "IJepaModel", "MobileNetV1Model", "MobileNetV2Model"),
        *("MobileViTModel", "MobileViTV2Model", "RegNetModel", "ResNetModel", "Siglip2VisionModel"),
        *("SiglipVisionModel", "SwinModel", "Swinv2Model", "ViTMSNModel", "ViTModel"),
    )
)
"""Classes whose output is of an image as a whole: what is pooled, or else its first token."""
_COMPARE: dict[str, Literal["clip", "siglip"]] = {
    "CLIPModel": "clip",
    "SiglipModel": "siglip",
    "Siglip2Model": "siglip",
}
"""Classes that embed images and texts in one space, and how they compare them."""
_TOKEN_PIXELS = 16 * 16
_SIDE = 224
"""Pixels, if neither the model's files nor those of its processor say it."""
_MOST_TEXT = {"clip": 77, "siglip": 64}
_PAD = {"clip": 1, "siglip": 1}
"""transformers' values of what config.json may leave out."""


@dataclass(frozen=True)
class ImageModelConfig:
    """A model that reads images; one that `compares` reads texts, too.

    An image counts as a token for each 16 by 16 of its pixels, once it is prepared.
    """

    task: Literal["classify", "embed"]
    side: int
    """Pixels of an image's height and width, as it is usually prepared."""
    is_in_patches: bool = False
    """Whether an image is prepared as a list of patches, padded to one length, as for SigLIP 2."""
    labels: tuple[str, ...] = ()
    """The names of a classifier's outputs."""
    is_multi_label: bool = False
    """Whether several labels, or none, may apply at once."""
    compares: Literal["clip", "siglip"] | None = None
    """How it tells how well an image and a text belong together: SigLIP judges each pair by itself."""
    max_text_len: int = 0
    """The most tokens of a text. SigLIP reads texts padded to as many."""
    pad_id: int = 0
    pads_left: bool = False
    lowercases: bool = False
    """Whether texts are read in lower case."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it can do. A model that compares also classifies, by labels that a request brings along."""
        return ("embed", "classify") if self.compares else (self.task,)

    @property
    def max_len(self) -> int:
        """The most tokens of an input: an image may be prepared twice as high and wide as usual."""
        return max(4 * self.trial().num_tokens, self.max_text_len)

    def image(self, digest: bytes, arrays: Mapping[str, Array]) -> Media:
        """A prepared image, as the model's `Reader` wants it. Raises ValueError for one that is too large."""
        *_, height, width = arrays["pixel_values"].shape
        num_tokens = height if self.is_in_patches else -(-height * width // _TOKEN_PIXELS)
        return Media(digest, dict(arrays), num_tokens)

    def text(self, token_ids: list[int]) -> Media:
        """A text, as the `Reader` wants it."""
        if self.compares == "siglip":
            padding = [self.pad_id] * (self.max_text_len - len(token_ids))
            token_ids = padding + token_ids if self.pads_left else token_ids + padding
        ids = Array.of(np.array(token_ids, np.int64))
        return Media(hashlib.blake2b(ids.data, digest_size=16).digest(), {"input_ids": ids}, len(token_ids))

    def trial(self) -> Media:
        """An image to try the model with: a black one."""
        if not self.is_in_patches:
            return self.image(b"", {"pixel_values": Array.of(np.zeros((1, 3, self.side, self.side), np.float32))})
        arrays: dict[str, NDArray[Any]] = {
            "pixel_values": np.zeros((1, self.side**2 // _TOKEN_PIXELS, 3 * _TOKEN_PIXELS), np.float32),
            "pixel_attention_mask": np.ones((1, self.side**2 // _TOKEN_PIXELS), np.int64),
            "spatial_shapes": np.full((1, 2), self.side // 16),
        }
        return self.image(b"", {name: Array.of(array) for name, array in arrays.items()})


def parse_image_model(read: Read) -> ImageModelConfig | None:
    """What the files of a model of images say; None for any other model.

    Raises ValueError, TypeError or AttributeError for what makes no sense, or is not supported.
    """
    raw = read("config.json") or {}
    names = raw.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    classifies, compares = architecture.endswith(_CLASSIFIES), _COMPARE.get(architecture)
    if not classifies and compares is None and architecture not in _EMBED:
        return None
    vision = raw.get("vision_config") or raw
    if (channels := vision.get("num_channels", 3)) != 3:
        raise ValueError(f"config.json: images with {channels} channels are not supported")
    processor = read("preprocessor_config.json") or (read("processor_config.json") or {}).get("image_processor")
    if processor is None:
        raise ValueError("preprocessor_config.json, which says how images are prepared, is missing")
    is_in_patches = architecture.startswith("Siglip2")
    side = 16 * int(processor.get("max_num_patches", 256) ** 0.5) if is_in_patches else _side(vision, processor)
    if compares is not None:
        return _comparing(read, raw, compares, side, is_in_patches)
    labels = raw.get("id2label") or {}
    if classifies and not labels:
        labels = {str(index): f"LABEL_{index}" for index in range(int(raw.get("num_labels", 2)))}
    return ImageModelConfig(
        "classify" if classifies else "embed",
        side,
        is_in_patches,
        labels=tuple(str(name) for _, name in sorted(labels.items(), key=lambda item: int(item[0]))),
        is_multi_label=raw.get("problem_type") == "multi_label_classification",
    )


def _comparing(
    read: Read, raw: dict[str, Any], compares: Literal["clip", "siglip"], side: int, is_in_patches: bool
) -> ImageModelConfig:
    text, tokenizer = raw.get("text_config") or {}, read("tokenizer_config.json") or {}
    kind = str(tokenizer.get("tokenizer_class", ""))
    return ImageModelConfig(
        "embed",
        side,
        is_in_patches,
        compares=compares,
        max_text_len=int(text.get("max_position_embeddings", _MOST_TEXT[compares])),
        pad_id=int(text.get("pad_token_id", _PAD[compares])),
        pads_left=tokenizer.get("padding_side") == "left",
        lowercases=bool(tokenizer.get("do_lower_case", kind.startswith("Siglip"))) and compares == "siglip",
    )


def _side(vision: dict[str, Any], processor: dict[str, Any]) -> int:
    """The usual height of a prepared image, by its processor's files or else by the model's."""
    crop = processor.get("crop_size") if processor.get("do_center_crop") else None
    size = crop or processor.get("size") or vision.get("image_size") or _SIDE
    if isinstance(size, dict):
        size = next((size[name] for name in ("height", "shortest_edge", "longest_edge") if size.get(name)), _SIDE)
    return int(size[0] if isinstance(size, list) else size)
