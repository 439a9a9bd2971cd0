"""From the hidden states of an input's tokens to its embedding, as sentence-transformers computes it."""

import logging
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..checkpoint.folder import ModelFolder
from ..checkpoint.sentence_transformers import Dense, Modules, Pooling
from ..errors import ModelError

log = logging.getLogger(__name__)

_ROUNDING = 1e-3
"""The difference, relative to a vector's length, up to which two computations of it count as the same."""


class Pooler(nn.Module):
    """Pooling and the linear layers behind it, in float32. What is to be normalised is normalised by the API worker."""

    def __init__(self, folder: ModelFolder, modules: Modules) -> None:
        """Read the layers' weights. ModelError names a file that is missing or does not fit."""
        super().__init__()
        self.modes = modules.pooling
        self.dense = nn.Sequential(*(_dense(folder, dense) for dense in modules.dense))

    def forward(self, hidden: Tensor, lengths: Tensor, ignored: Tensor) -> Tensor:
        """(inputs, dimensions) for hidden states (inputs, tokens, hidden_size).

        lengths, ignored: (inputs,), how many tokens are not padding, and how many of these, at the front, do not count.
        """
        hidden = hidden.float()
        vectors: Tensor = self.dense(torch.cat([_pool(mode, hidden, lengths, ignored) for mode in self.modes], dim=-1))
        return vectors


def pooling_of(modules: Modules, model: Any) -> tuple[Pooling, ...]:
    """How a model of transformers' is pooled, also where its files do not say."""
    if modules.pooling:
        return modules.pooling
    pooling: Pooling = "lasttoken" if _sees_only_what_is_before(model) else "mean"
    log.info("pooling %s: the model's files do not say", pooling)
    return (pooling,)


@torch.inference_mode()
def _sees_only_what_is_before(model: Any) -> bool:
    """Whether the hidden state of a token is the same whatever follows it, in a model of transformers'."""
    first, other = (
        model(input_ids=torch.tensor([ids], device=model.device)).last_hidden_state[0, 0].float()
        for ids in ([1, 2, 3, 4], [1, 5, 6, 7])
    )
    return bool((first - other).norm() <= _ROUNDING * first.norm())


def _pool(mode: Pooling, hidden: Tensor, lengths: Tensor, ignored: Tensor) -> Tensor:
    """hidden (inputs, tokens, hidden_size) to (inputs, hidden_size)."""
    rows, places = torch.arange(len(lengths), device=hidden.device), torch.arange(hidden.shape[1], device=hidden.device)
    counts = ((places < lengths[:, None]) & (places >= ignored[:, None]))[:, :, None]
    match mode:
        case "cls":
            return hidden[rows, ignored]
        case "lasttoken":
            return hidden[rows, lengths - 1]
        case "max":
            return hidden.masked_fill(~counts, float("-inf")).amax(dim=1)
        case "mean":
            return (hidden * counts).sum(dim=1) / counts.sum(dim=1)
        case "mean_sqrt_len_tokens":
            return (hidden * counts).sum(dim=1) / counts.sum(dim=1).sqrt()
        case "weightedmean":
            weights = counts * (places + 1)[:, None]
            return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def _dense(folder: ModelFolder, dense: Dense) -> nn.Module:
    layer, path = nn.Linear(dense.in_features, dense.out_features, dense.has_bias), folder.path / dense.folder
    if not (path / "model.safetensors").is_file():
        raise ModelError(f"{path} has no model.safetensors: only safetensors weights are loaded")
    try:
        tensors = load_file(path / "model.safetensors")
        layer.load_state_dict({name.removeprefix("linear."): tensor for name, tensor in tensors.items()})
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{path} is not a usable linear layer: {reason}") from error
    activation: nn.Module = getattr(nn, dense.activation)()
    return nn.Sequential(layer, activation)
