"""Reads images: transformers' own models, on batches of images that are prepared alike."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.image_models import ImageModelConfig
from ..core.media import Media
from ..core.step import NewRequest


class ImageReader:
    """A model of images; see `app.worker.predictive_runner.Reader`.

    Its numbers for an image are logits (labels,), or a vector (dimensions,). A model that compares images and texts
    gives the scale and the bias behind each vector, which make a logit of a cosine.
    """

    def __init__(self, model: Any, config: ImageModelConfig, device: torch.device) -> None:
        self.model = model
        self.config = config
        self.device = device

    def read(self, requests: Sequence[NewRequest]) -> list[Tensor]:
        """See the class."""
        alike: defaultdict[tuple[tuple[str, tuple[int, ...]], ...], list[int]] = defaultdict(list)
        media = [request.extras.media for request in requests]
        for index, one in enumerate(media):
            assert one is not None
            is_text = "input_ids" in one.arrays  # texts are padded to the longest
            shapes = () if is_text else tuple((name, tuple(a.shape)) for name, a in sorted(one.arrays.items()))
            alike[shapes].append(index)
        numbers: dict[int, Tensor] = {}
        for shapes, indices in alike.items():
            those = [one for index in indices if (one := media[index]) is not None]
            rows = self._images(those) if shapes else self._texts(those)
            numbers |= dict(zip(indices, self._with_scale(rows), strict=True))
        return [numbers[index] for index in range(len(requests))]

    def _images(self, media: list[Media]) -> Tensor:
        """(images, numbers)"""
        inputs = {name: self._stacked(media, name) for name in media[0].arrays}
        if self.config.compares:
            return _vectors(self.model.get_image_features(**inputs))
        output = self.model(**inputs)
        if self.config.task == "embed":
            return _vectors(output)
        logits: Tensor = output.logits
        return logits

    def _stacked(self, media: list[Media], name: str) -> Tensor:
        stacked = torch.cat([torch.tensor(one.arrays[name].numpy()) for one in media]).to(self.device)
        return stacked.to(self.model.dtype) if stacked.is_floating_point() else stacked

    def _texts(self, media: list[Media]) -> Tensor:
        """(texts, dimensions)"""
        ids = [one.arrays["input_ids"].numpy().tolist() for one in media]
        longest = max(map(len, ids))
        padded = torch.tensor([row + [self.config.pad_id] * (longest - len(row)) for row in ids], device=self.device)
        mask = {}
        if self.config.compares == "clip":
            lengths = torch.tensor([len(row) for row in ids], device=self.device)
            mask["attention_mask"] = (torch.arange(longest, device=self.device) < lengths[:, None]).long()
        return _vectors(self.model.get_text_features(input_ids=padded, **mask))

    def _with_scale(self, rows: Tensor) -> Tensor:
        if not self.config.compares:
            return rows
        scale = self.model.logit_scale.float().exp().reshape(1)
        bias = self.model.logit_bias.float().reshape(1) if self.config.compares == "siglip" else torch.zeros_like(scale)
        return torch.cat([rows.float(), torch.cat([scale, bias]).expand(len(rows), 2)], 1)


def _vectors(output: Any) -> Tensor:
    """(inputs, dimensions): what is pooled, or else the hidden states of the first token."""
    pooled: Tensor | None = getattr(output, "pooler_output", None)
    if pooled is None:
        hidden: Tensor = output.last_hidden_state
        return hidden[:, 0] if hidden.dim() == 3 else hidden.mean((-2, -1))
    return pooled.flatten(1)
