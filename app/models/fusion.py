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

from ..kernels.ops import ACTIVATIONS, gated, routes_of
from ..layers.linear import Linear, MergedLinear
from ..layers.methods.plain import PLAIN, adopt, fill
from ..layers.moe import Experts
from ..layers.norm import GatedRMSNorm, OffsetRMSNorm, RMSNorm

log = logging.getLogger(__name__)

_SAME_INPUT = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),
    ("in_proj_qkvz", "in_proj_ba"),
)
"""Names of linear layers that get the same input, in transformers' modules."""
_SCALES = 1, 100
"""Of random numbers: some models bound what goes through an activation, which only large ones show."""
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


class _ChosenExperts(Experts):
    """Stacked experts as transformers' models call them, which choose the experts by themselves."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(hidden_states, routes_of(top_k_index, top_k_weights, self.gate_up_proj.num_experts))


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
def fuse(model: Any, leave: Collection[nn.Module] = ()) -> None:
    """Replace what can be replaced in one of transformers' causal models, except for its output embedding, and for
    what is in the modules to `leave` as they are."""
    counts = {"merged": 0, "linear": 0, "norm": 0, "mlp": 0, "experts": 0}
    head = model.get_output_embeddings()
    parents = [module for module in model.modules() if module not in leave]
    for parent in parents:
        for names in _SAME_INPUT:
            counts["merged"] += _merge(parent, names)
        for name, child in list(parent.named_children()):
            if child in leave:
                continue
            if type(child) is nn.Linear and child is not head:
                counts["linear"] += _swap(parent, {name: adopt(child)}, child.in_features)
            elif type(child).__name__.endswith("RMSNorm"):
                counts["norm"] += _swap_norm(parent, name, child)
            elif type(child).__name__.endswith("RMSNormGated"):
                counts["norm"] += _swap_gated_norm(parent, name, child)
            elif {"gate_up_proj", "down_proj"} == dict(child.named_parameters()).keys():
                counts["experts"] += _swap_experts(parent, name, child)
    for parent in parents:  # whose gates are merged now
        for name, child in list(parent.named_children()):
            counts["mlp"] += _swap_mlp(parent, name, child)
    kinds = "%(merged)d merged products, %(linear)d linear layers, %(norm)d norms, %(mlp)d gated layers"
    log.info(f"faster modules: {kinds}, %(experts)d mixtures of experts", counts)


def _merge(parent: nn.Module, names: tuple[str, ...]) -> bool:
    layers = [getattr(parent, name, None) for name in names]
    if any(type(layer) is not nn.Linear for layer in layers):
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
        if all(_are_same(mlp, candidate, scale * x) for scale in _SCALES):
            setattr(parent, name, candidate)
            return True
    return False


def _swap_experts(parent: nn.Module, name: str, experts: nn.Module) -> bool:
    gate_up, down = experts.get_parameter("gate_up_proj"), experts.get_parameter("down_proj")
    if gate_up.dim() != 3 or down.shape != (len(gate_up), gate_up.shape[2], gate_up.shape[1] // 2):
        return False
    (count, _, size), inner = gate_up.shape, down.shape[2]
    x = torch.randn(3, size, device=gate_up.device, dtype=gate_up.dtype)
    weights, chosen = torch.rand(3, count, device=x.device).topk(min(2, count))
    for activation in ACTIVATIONS:
        with torch.device("meta"):
            candidate = _ChosenExperts(count, size, inner, activation, ("gate_proj", "up_proj", "down_proj"))
        for layer, weight in ((candidate.gate_up_proj, gate_up), (candidate.down_proj, down)):
            fill(layer, weight.flatten(0, 1), None)
            layer.method = PLAIN
        are_same = (_are_same(experts, candidate, scale * x, chosen, weights.to(x.dtype)) for scale in _SCALES)
        if all(are_same):
            setattr(parent, name, candidate)
            return True
    return False


def _swap(parent: nn.Module, new: dict[str, nn.Module], in_features: int, num_inputs: int = 1) -> bool:
    """Replace modules by others, if these compute the same from the same inputs."""
    old = {name: getattr(parent, name) for name in new}
    parameter = next(next(iter(old.values())).parameters())
    inputs = torch.randn(num_inputs, 1, 3, in_features, device=parameter.device, dtype=parameter.dtype)
    if not all(_are_same(old[name], module, *inputs) for name, module in new.items()):
        return False
    for name, module in new.items():
        setattr(parent, name, module)
    return True


def _are_same(old: nn.Module, new: nn.Module, *arguments: Tensor) -> bool:
    """Whether two modules compute the same numbers, but for rounding."""
    return is_close(*(module(*arguments) for module in (old, new)))


def is_close(expected: Tensor, found: Tensor) -> bool:
    """Whether two results of one dtype are the same, but for rounding."""
    if expected.shape != found.shape:
        return False
    tolerance = _TOLERANCE.get(expected.dtype, 0.0)
    expected, found = expected.float(), found.float()
    return bool((expected - found).abs().max() <= tolerance * expected.abs().max())
