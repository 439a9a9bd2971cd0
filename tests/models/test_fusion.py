"""Modules of transformers' models are swapped for faster ones. The oracle tests show that results stay the same."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from app.layers.linear import Linear, MergedLinear
from app.layers.moe import Experts
from app.layers.norm import RMSNorm
from app.models.fusion import _GatedMLP, fuse
from tests.models.families import _TINY, DECODER, GENERIC, RECURRENT, write_checkpoint

pytestmark = pytest.mark.usefixtures("compiled_kernels")


def fused_llama() -> tuple[LlamaForCausalLM, torch.Tensor]:
    """A model, and its logits for the tokens 1, 2, 3 before its modules were swapped."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**_TINY, **DECODER["Llama"]})).eval().requires_grad_(False)
    before = model(torch.tensor([[1, 2, 3]])).logits
    fuse(model)
    return model, before


def test_all_layers_of_a_llama_are_swapped() -> None:
    model, before = fused_llama()
    kinds = [type(module) for module in model.modules()]
    layers = model.config.num_hidden_layers
    assert sum(issubclass(kind, MergedLinear) for kind in kinds) == 2 * layers
    assert sum(issubclass(kind, Linear) for kind in kinds) == 4 * layers
    assert sum(issubclass(kind, RMSNorm) for kind in kinds) == 2 * layers + 1
    assert kinds.count(_GatedMLP) == layers
    with torch.inference_mode():
        assert torch.allclose(model(torch.tensor([[1, 2, 3]])).logits, before, atol=1e-5)


def test_merged_layers_may_get_different_inputs() -> None:
    attention = fused_llama()[0].model.layers[0].self_attn
    first, other = torch.randn(1, 2, 64), torch.randn(1, 2, 64)
    attention.q_proj(first)
    k = attention.k_proj(other)
    attention.q_proj(other)
    assert torch.allclose(k, attention.k_proj(other))
    assert attention.q_proj.input is not None
    attention.v_proj(other)
    assert attention.q_proj.input is None


@pytest.mark.parametrize("bound", [None, 7.0])
def test_experts_are_swapped_unless_they_bound_numbers(bound: float | None) -> None:
    """A bound that the numbers of a first trial do not reach."""
    torch.manual_seed(0)
    model = Qwen2MoeForCausalLM(Qwen2MoeConfig(**{**_TINY, **GENERIC["Qwen2Moe"]})).eval().requires_grad_(False)
    experts = model.model.layers[1].mlp.experts
    if bound is not None:
        experts.act_fn.forward = lambda gate: torch.nn.functional.silu(gate.clamp(max=bound))
    before = model(torch.tensor([[1, 2, 3]])).logits
    fuse(model)
    assert isinstance(model.model.layers[0].mlp.experts, Experts)
    assert isinstance(model.model.layers[1].mlp.experts, Experts) == (bound is None)
    with torch.inference_mode():
        assert torch.allclose(model(torch.tensor([[1, 2, 3]])).logits, before, atol=1e-5)


def test_modules_that_compute_something_else_are_not_swapped() -> None:
    model = LlamaForCausalLM(LlamaConfig(**_TINY)).requires_grad_(False)

    class OddRMSNorm(type(model.model.norm)):  # type: ignore[misc]
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden_states) + 0.01

    odd = model.model.norm = OddRMSNorm(64)
    fuse(model)
    assert model.model.norm is odd


@pytest.mark.parametrize("family", ["Bamba", "Qwen3_5Text", "KimiLinear"])
def test_gated_norms_are_swapped(family: str, tmp_path: Path) -> None:
    """They gate before they norm, or behind it, by different functions."""
    model = write_checkpoint(family, RECURRENT[family], tmp_path)
    tokens = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        before = model(tokens).logits
        fuse(model)
        assert torch.allclose(model(tokens).logits, before, atol=1e-4)
    names = [type(module).__name__ for module in model.modules()]
    assert "GatedRMSNorm" in names
    assert not any(name.endswith("RMSNormGated") for name in names)
