"""Faster modules in place of some of transformers' own, without a change to its models' code.

The module at `q_proj` computes what `k_proj` and `v_proj` would, too, as one product; these hand out their parts of
it. Likewise `gate_proj` and `up_proj`. Norms and other linear layers get kernels of Paceline's. Each swap is tried on
random numbers first, and left out if the results differ.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from app.layers.linear import MergedLinear
from app.layers.methods.plain import adopt, fill
from app.layers.norm import OffsetRMSNorm, RMSNorm

log = logging.getLogger(__name__)

_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Linear layers that see the same input, in modules of transformers."""
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}
"""Difference that other orders of adding make, relative to the largest number."""


class _First(MergedLinear):
    """Computes what its followers are asked for next, and keeps it until they are."""

    input: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = super().forward(x).split(self.sizes, dim=-1)
        self.input, self.kept = x, dict(enumerate(rest))
        return first

    def hand_out(self, x: Tensor, index: int) -> Tensor:
        """A follower's part of the product with x."""
        if x is not self.input:  # the model gives this layer another input than the first one
            self(x)
        part = self.kept.pop(index)
        if not self.kept:
            self.input = None  # nor is its memory held any longer
        return part


class _Follower(nn.Module):
    """Hands out its part of what the first one has computed."""

    def __init__(self, first: _First, index: int) -> None:
        super().__init__()
        self._first = (first,)  # not as a module of its own
        self._index = index

    def forward(self, x: Tensor) -> Tensor:
        return self._first[0].hand_out(x, self._index)


@torch.inference_mode()
def fuse(model: Any) -> None:
    """Swap what can be swapped in one of transformers' causal models; its output embedding stays."""
    counts = {"merged": 0, "linear": 0, "norm": 0}
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for names in _TOGETHER:
            counts["merged"] += _merge(parent, names)
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child is not head:
                counts["linear"] += _swap(parent, {name: adopt(child)}, child.in_features)
            elif type(child).__name__.endswith("RMSNorm"):
                counts["norm"] += _swap_norm(parent, name, child)
    log.info("faster modules: %(merged)d merged products, %(linear)d linear layers, %(norm)d norms", counts)


def _merge(parent: nn.Module, names: tuple[str, ...]) -> bool:
    layers = [getattr(parent, name, None) for name in names]
    if any(type(layer) is not nn.Linear for layer in layers):
        return False
    if len({(layer.in_features, layer.bias is None) for layer in layers}) > 1:  # type: ignore[union-attr]
        return False
    has_bias = layers[0].bias is not None
    first = _First(layers[0].in_features, [layer.out_features for layer in layers], has_bias)
    bias = torch.cat([layer.bias for layer in layers]) if has_bias else None
    fill(first, torch.cat([layer.weight for layer in layers]), bias)
    followers = [_Follower(first, index) for index in range(len(layers) - 1)]
    return _swap(parent, dict(zip(names, [first, *followers], strict=True)), layers[0].in_features)


def _swap_norm(parent: nn.Module, name: str, norm: nn.Module) -> bool:
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    parameters = dict(norm.named_parameters())
    if eps is None or set(parameters) != {"weight"}:
        return False
    for kind in (RMSNorm, OffsetRMSNorm):
        with torch.device("meta"):
            candidate = kind(len(parameters["weight"]), eps)
        candidate.weight = nn.Parameter(parameters["weight"], requires_grad=False)
        if _swap(parent, {name: candidate}, len(parameters["weight"])):
            return True
    return False


def _swap(parent: nn.Module, new: dict[str, nn.Module], in_features: int) -> bool:
    """Put modules in the place of others, if they give the same for the same input."""
    old = {name: getattr(parent, name) for name in new}
    parameter = next(next(iter(old.values())).parameters())
    x = torch.randn(1, 3, in_features, device=parameter.device, dtype=parameter.dtype)
    tolerance = _TOLERANCE.get(parameter.dtype, 0.0)
    for name, module in new.items():
        expected, found = (_run(m, x) for m in (old[name], module))
        if expected.shape != found.shape or (expected - found).abs().max() > tolerance * expected.abs().max():
            return False
    for name, module in new.items():
        setattr(parent, name, module)
    return True


def _run(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return module(x).float()
