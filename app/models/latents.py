"""Attention whose keys and values are kept as the latents that they are computed from.

In multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) the keys and values of all heads are linear
functions of one latent of each token, and a part of the keys that is rotated is the same for all heads. So the function
of the keys can be applied to the queries instead, and that of the values to what attention gives. Then all heads have
the same key, the latent with the rotated part behind it, and the same value, the latent. For DeepSeek-V3 that is 1,088
numbers a token and layer instead of 40,960; scores take three times as many products.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from .trials import is_close

log = logging.getLogger(__name__)
_TOKENS = 3
"""Of the trial."""


class Latents(nn.Module):
    """What the keys and values of one layer are of its latents."""

    def __init__(self, to_keys: Tensor, to_values: Tensor) -> None:
        """to_keys (heads, not rotated, rank), to_values (heads, v_head_dim, rank)."""
        super().__init__()
        self.to_keys = nn.Parameter(to_keys.contiguous(), requires_grad=False)
        self.to_values = nn.Parameter(to_values.transpose(1, 2).contiguous(), requires_grad=False)

    def queries(self, q: Tensor) -> Tensor:
        """Queries (tokens, heads, head_dim) of keys as queries (tokens, heads, rank + rotated) of latents."""
        plain, rotated = q.split((self.to_keys.shape[1], q.shape[2] - self.to_keys.shape[1]), dim=-1)
        return torch.cat((torch.bmm(plain.transpose(0, 1), self.to_keys).transpose(0, 1), rotated), dim=-1)

    def values(self, attended: Tensor) -> Tensor:
        """What attention gives of latents (tokens, heads, rank) as that of values (tokens, heads, v_head_dim)."""
        return torch.bmm(attended.transpose(0, 1), self.to_values).transpose(0, 1)

    def forward(self, latents: Tensor, rotated: Tensor) -> tuple[Tensor, Tensor]:
        """The key (..., rank + rotated) and the value (..., rank) that all heads have."""
        return torch.cat((latents, rotated), dim=-1), latents


def keep_latents(model: nn.Module) -> None:
    """Have layers of transformers' that expand latents to keys and values keep the latents.

    A trial shows that a layer expands them as `Latents` does, and that there are fewer numbers of them.
    """
    found = [(layer, latents) for layer in model.modules() if (latents := _latents_of(layer)) is not None]
    for layer, latents in found:
        layer.latents = latents
        # transformers calls it between its projections and its attention function. A module would not replace a method.
        layer.__dict__["expand_kv"] = latents.forward
        del layer.kv_b_proj
    if found:
        log.info("keys and values of %d layers are kept as latents", len(found))


@torch.inference_mode()
def _latents_of(layer: Any) -> Latents | None:
    projection, expand = getattr(layer, "kv_b_proj", None), getattr(layer, "expand_kv", None)
    if type(projection) is not nn.Linear or projection.bias is not None or expand is None:
        return None
    weight, rank, own = projection.weight, projection.in_features, layer.qk_rope_head_dim

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=weight.device, dtype=weight.dtype)

    latents, rotated = random(1, 1, _TOKENS, rank), random(1, 1, _TOKENS, own)
    keys, values = (each[0] for each in expand(latents, rotated))  # (heads, tokens, ...)
    heads, _, head_dim = keys.shape
    made = Latents(*weight.view(heads, -1, rank).split((head_dim - own, values.shape[2]), dim=1))
    key, value = (each[0, 0] for each in made(latents, rotated))  # (tokens, ...)
    q = random(_TOKENS, heads, head_dim)
    pairs = (
        (torch.einsum("qhd,hkd->qhk", q, keys), torch.einsum("qhd,kd->qhk", made.queries(q), key)),
        (values.transpose(0, 1), made.values(value[:, None].expand(-1, heads, -1))),
    )
    is_smaller = len(key.T) + len(value.T) < heads * (head_dim + values.shape[2])
    return made if is_smaller and all(is_close(*pair) for pair in pairs) else None
