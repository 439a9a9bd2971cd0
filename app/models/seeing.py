"""Models of transformers that read images among their tokens.

A part of the model, the tower, makes an image into embeddings, which stand in the places of some tokens. The rest is
the decoder, which reads a step's tokens as that of any other model does. Some families have more: positions along three
axes (Wang et al., 2024, "Qwen2-VL"), features that are added to the hidden states of the first layers (Meng et al.,
2024, "DeepStack"), and images whose tokens see each other (Gemma Team, 2025, "Gemma 3 Technical Report").
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..checkpoint.seeing import SEEING_AHEAD
from ..layers.recurrent import RecurrentStep, step_of
from .fusion import fuse
from .generic import GenericModel, split

_OF_TOWERS = "sdpa"
"""Attention of the parts that see, which have no cache: torch's own."""
_IMAGE = 1
"""transformers' number of a token's kind."""


@dataclass(frozen=True)
class StepImages:
    """What stands in the places of a step's tokens. All of it lies in memory that does not move."""

    is_image: Tensor
    """(tokens,) bool"""
    rows: Tensor
    """(1 + layers, tokens, hidden_size): embeddings, then what is added behind each of the first layers. What stands
    there for other tokens may be anything."""
    axes: Tensor | None
    """(3, tokens): positions along the axes of time, height and width, if the model has them."""


class SeeingModel(GenericModel):
    """A generic model that keeps its tower."""

    def __init__(self, model: Any, reads_with: nn.Module) -> None:
        """`reads_with`: the decoder, a part of the model's body."""
        super().__init__(model)
        self._decoder = (reads_with,)  # in a tuple, so that it is no second name of a submodule
        self._embed: nn.Module = reads_with.get_input_embeddings()  # type: ignore[operator]
        self.dtype = next(reads_with.parameters()).dtype
        vision = model.config.vision_config
        self.num_added = len(getattr(vision, "deepstack_visual_indexes", ()))
        """Layers behind which features of images are added."""
        self.tokens_at_once: int = getattr(model.config, "mm_tokens_per_image", 0)
        """Of an image, where its tokens see each other."""
        self.has_axes = hasattr(self.body, "get_rope_index")
        self._images: StepImages | None = None
        for index in range(self.num_added):
            reads_with.layers[index].register_forward_hook(partial(self._add, 1 + index))  # type: ignore[union-attr,index]
        self._arguments = set(inspect.signature(self.body.get_image_features).parameters)  # type: ignore[arg-type]

    def forward(
        self, input_ids: Tensor, positions: Tensor, recurrent: RecurrentStep = (), images: StepImages | None = None
    ) -> Tensor:
        """See `GenericModel.forward`."""
        self.places.set(positions)
        self._images = images
        x = self._embed(input_ids)
        along: Tensor = positions[None]
        if images is not None:
            x = torch.where(images.is_image[:, None], images.rows[0], x)
            along = along if images.axes is None else images.axes[:, None]
        with step_of(recurrent):
            out = self._decoder[0](inputs_embeds=x[None], position_ids=along, use_cache=False)
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def _add(self, which: int, _layer: nn.Module, _given: Any, out: Tensor) -> Tensor:
        """Of a layer's output (1, tokens, hidden_size)."""
        images = self._images
        if images is None:
            return out
        return out + torch.where(images.is_image[:, None], images.rows[which], 0)

    # ------------------------------------------------------------------ images

    def see(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """What stands for an image: (1 + layers, tokens, hidden_size), as in `StepImages`. `arrays`: see `Media`."""
        given = {
            name: array.to(self.dtype) if array.is_floating_point() else array
            for name, array in arrays.items()
            if name in self._arguments
        }
        out = self.body.get_image_features(**given)  # type: ignore[operator]
        return torch.stack([_joined(part) for part in (out.pooler_output, *(getattr(out, "deepstack_features", ())))])

    def axes_of(self, is_image: Tensor, grids: Tensor | None) -> Tensor:
        """Positions (3, tokens) of a prompt; is_image (tokens,) bool; grids (images, 3), as transformers has them."""
        kinds = is_image.long()[None] * _IMAGE
        positions, _ = self.body.get_rope_index(  # type: ignore[operator]
            torch.zeros_like(kinds), mm_token_type_ids=kinds, image_grid_thw=grids
        )
        axes: Tensor = positions[:, 0]
        return axes


def _joined(features: Any) -> Tensor:
    """The rows of an image, whose parts some families return one by one."""
    whole: Tensor = features if isinstance(features, Tensor) else torch.cat([one.flatten(0, -2) for one in features])
    return whole.flatten(0, -2)


def divide(model: Any, takes_adapters: bool) -> GenericModel:
    """Body, tower and head of one of transformers' models that see; see `app.models.generic.load_generic`."""
    decoder = _decoder_of(model)
    fuse(model, takes_adapters, leave=_towers_of(model))
    for module in decoder.modules() if model.config.model_type in SEEING_AHEAD else ():
        module.sees_ahead = True  # type: ignore[assignment]  # read where attention is described
    return split(model, lambda whole: SeeingModel(whole, decoder))


def _decoder_of(model: Any) -> nn.Module:
    """The part of a model that reads embeddings. The others' attention becomes torch's own."""
    decoder: nn.Module = model.get_decoder()
    inside = set(decoder.modules())
    for part in model.modules():
        is_tower = isinstance(part, PreTrainedModel) and part not in inside and decoder not in set(part.modules())
        if is_tower:
            part.set_attn_implementation(_OF_TOWERS)
    return decoder


def _towers_of(model: Any) -> set[nn.Module]:
    """The modules of a model that a text does not pass."""
    inside = {*model.get_decoder().modules(), model.get_output_embeddings()}
    return {module for module in model.modules() if module not in inside and inside.isdisjoint(module.modules())}
