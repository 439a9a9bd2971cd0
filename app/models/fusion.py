"""Replaces some modules of transformers' models by faster ones, without changing the models' code.

The module at `q_proj` computes the products of `q_proj`, `k_proj` and `v_proj` at once, and the modules at the other
two return their slices of it; likewise for `gate_proj` and `up_proj`. Norms and other linear layers get Paceline's
kernels. Each replacement is tried on random numbers first, and dropped if the results differ.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.linear import MergedLinear
from ..layers.methods.plain import PLAIN, adopt, fill
from ..layers.norm import OffsetRMSNorm, RMSNorm

log = logging.getLogger(__name__)

_SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of linear layers that get the same input, in transformers' modules."""
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}
"""The difference that another order of additions makes, relative to the largest number."""


class _Merged(MergedLinear):
    """Stands at the first layer of a group. It keeps the slices of the other layers until these are called."""

    input: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = super().forward(x).split(self.sizes, dim=-1)
        self.input, self.kept = x, dict(enumerate(rest))
        return first

    def take_slice(self, x: Tensor, index: int) -> Tensor:
        """Another layer's slice of the product with x."""
        if x is not self.input:  # the model gives the two layers different inputs
            self(x)
        part = self.kept.pop(index)
        if not self.kept:
            self.input = None  # its memory may be freed
        return part


class _Slice(nn.Module):
    """Stands at another layer of a group, and returns its slice of the merged product."""

    def __init__(self, merged: _Merged, index: int) -> None:
        super().__init__()
        self._merged = (merged,)  # in a tuple, so that it is no submodule
        self._index = index

    def forward(self, x: Tensor) -> Tensor:
        return self._merged[0].take_slice(x, self._index)


@torch.inference_mode()
def fuse(model: Any) -> None:
    """Replace what can be replaced in one of transformers' causal models, except for its output embedding."""
    counts = {"merged": 0, "linear": 0, "norm": 0}
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for names in _SAME_INPUT:
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
    merged = _Merged(layers[0].in_features, [layer.out_features for layer in layers], has_bias)
    bias = torch.cat([layer.bias for layer in layers]) if has_bias else None
    fill(merged, torch.cat([layer.weight for layer in layers]), bias)
    merged.method = PLAIN
    slices = [_Slice(merged, index) for index in range(len(layers) - 1)]
    return _swap(parent, dict(zip(names, [merged, *slices], strict=True)), layers[0].in_features)


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
    """Replace modules by others, if these compute the same from the same input."""
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
