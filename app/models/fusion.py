"""Replaces some modules of transformers' models by faster ones, without changing the models' code.

The module at `q_proj` computes the products of `q_proj`, `k_proj` and `v_proj` at once, and the modules at the other
two return their slices of it; likewise for `gate_proj` and `up_proj`, and what else has one input. Gated feed-forward
layers, stacked experts, norms and other linear layers get Paceline's kernels. Each replacement is tried on random
numbers first, and dropped if the results differ.
"""

import logging
from collections.abc import Collection
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.ops import ACTIVATIONS, gated
from ..layers.adapters import MOST_PARTS
from ..layers.linear import Linear, MergedLinear
from ..layers.methods.plain import PLAIN, adopt, fill
from ..layers.norm import GatedRMSNorm, OffsetRMSNorm, RMSNorm
from .experts import form_of, stacked_experts, take_weights
from .trials import SCALES, are_same

log = logging.getLogger(__name__)

_SAME_INPUT = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),
    ("in_proj_qkvz", "in_proj_ba"),
)
"""Names of linear layers that get the same input, in transformers' modules."""


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


class _GatedMLP(nn.Module):
    """Stands for a feed-forward layer whose gate and input are merged already."""

    def __init__(self, merged: _Merged, down: Linear, activation: str) -> None:
        super().__init__()
        self.gate_up_proj = MergedLinear(merged.in_features, merged.sizes, merged.has_bias, merged.names)
        fill(self.gate_up_proj, merged.weight, merged.bias)
        self.gate_up_proj.method = PLAIN
        self.down_proj, self.activation = down, activation

    def forward(self, x: Tensor) -> Tensor:
        gate_up = self.gate_up_proj(x).flatten(0, -2)
        out: Tensor = self.down_proj(gated(gate_up, self.activation))
        return out.view(*x.shape[:-1], -1)


@torch.inference_mode()
def fuse(model: Any, takes_adapters: bool = False, leave: Collection[nn.Module] = ()) -> None:
    """Replace what can be replaced in one of transformers' causal models, except for its output embedding, and for
    what is in the modules to `leave` as they are. If it `takes_adapters`, few layers are merged to one.
    """
    counts = {"merged": 0, "linear": 0, "norm": 0, "mlp": 0, "experts": 0}
    head = model.get_output_embeddings()
    parents = [module for module in model.modules() if module not in leave]
    for parent in parents:
        for names in _SAME_INPUT:
            most = MOST_PARTS if takes_adapters else len(names)
            counts["merged"] += sum(_merge(parent, names[at : at + most]) for at in range(0, len(names), most))
        for name, child in list(parent.named_children()):
            if child in leave:
                continue
            if type(child) is nn.Linear and child is not head:
                counts["linear"] += _swap(parent, {name: adopt(child)}, child.in_features)
            elif type(child).__name__.endswith("RMSNorm"):
                counts["norm"] += _swap_norm(parent, name, child)
            elif type(child).__name__.endswith("RMSNormGated"):
                counts["norm"] += _swap_gated_norm(parent, name, child)
    for path, experts in list(stacked_experts(model)):
        parent_path, _, name = path.rpartition(".")
        counts["experts"] += experts not in leave and _swap_experts(model.get_submodule(parent_path), name, experts)
    for parent in parents:  # whose gates are merged now
        for name, child in list(parent.named_children()):
            counts["mlp"] += _swap_mlp(parent, name, child)
    kinds = "%(merged)d merged products, %(linear)d linear layers, %(norm)d norms, %(mlp)d gated layers"
    log.info(f"faster modules: {kinds}, %(experts)d mixtures of experts", counts)


def _merge(parent: nn.Module, names: tuple[str, ...]) -> bool:
    layers = [getattr(parent, name, None) for name in names]
    if len(names) < 2 or any(type(layer) is not nn.Linear for layer in layers):
        return False
    if len({(layer.in_features, layer.bias is None) for layer in layers}) > 1:  # type: ignore[union-attr]
        return False
    has_bias = layers[0].bias is not None
    merged = _Merged(layers[0].in_features, [layer.out_features for layer in layers], has_bias, names)
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


def _swap_gated_norm(parent: nn.Module, name: str, norm: nn.Module) -> bool:
    """Of which some gate before they norm, and some norm groups of numbers."""
    parameters = dict(norm.named_parameters())
    eps: float | None = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if eps is None or set(parameters) != {"weight"}:
        return False
    size = len(parameters["weight"])
    group: int = getattr(norm, "group_size", None) or size
    for activation, gates_first in product(("silu", "sigmoid"), (False, True)):
        with torch.device("meta"):
            candidate = GatedRMSNorm(size, eps, group, activation, gates_first)
        candidate.weight = nn.Parameter(parameters["weight"], requires_grad=False)
        if _swap(parent, {name: candidate}, size, num_inputs=2):
            return True
    return False


def _swap_mlp(parent: nn.Module, name: str, mlp: nn.Module) -> bool:
    merged, down = getattr(mlp, "gate_proj", None), getattr(mlp, "down_proj", None)
    names = {name for name, part in mlp.named_children() if any(True for _ in part.parameters())}
    if names != {"gate_proj", "down_proj"} or not isinstance(merged, _Merged) or not isinstance(down, Linear):
        return False
    x = torch.randn(1, 3, merged.in_features, device=down.weight.device, dtype=down.weight.dtype)
    for candidate in (_GatedMLP(merged, down, activation) for activation in ACTIVATIONS):
        if all(are_same(mlp, candidate, scale * x) for scale in SCALES):
            setattr(parent, name, candidate)
            return True
    return False


def _swap_experts(parent: nn.Module, name: str, experts: nn.Module) -> bool:
    if (form := form_of(experts)) is None:
        log.info("experts of the form of %s stay transformers' own, in plain numbers", type(experts).__name__)
        return False
    with torch.device("meta"):
        ours = form.make(experts.get_parameter("down_proj").shape)
    take_weights(ours, experts)
    setattr(parent, name, ours)
    return True


def _swap(parent: nn.Module, new: dict[str, nn.Module], in_features: int, num_inputs: int = 1) -> bool:
    """Replace modules by others, if these compute the same from the same inputs."""
    old = {name: getattr(parent, name) for name in new}
    parameter = next(next(iter(old.values())).parameters())
    inputs = torch.randn(num_inputs, 1, 3, in_features, device=parameter.device, dtype=parameter.dtype)
    if not all(are_same(old[name], module, *inputs) for name, module in new.items()):
        return False
    for name, module in new.items():
        setattr(parent, name, module)
    return True
