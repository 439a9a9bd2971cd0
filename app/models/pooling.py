"""From the hidden states of an input's tokens to its embedding, as sentence-transformers computes it."""

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..checkpoint.folder import ModelFolder
from ..checkpoint.sentence_transformers import Dense, Modules, Pooling
from ..errors import ModelError


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
