"""Layers that keep states, with kernels for whole steps: on a GPU where there is one, else in Triton's interpreter."""

from pathlib import Path

import pytest
import torch
import transformers

pytest.importorskip("triton")

from app.checkpoint.folder import ModelFolder
from app.core.sampling import SamplingParams
from app.models.at_once import compute_at_once
from app.models.gated_delta import GatedDelta
from app.models.loader import load_model
from app.worker.recorded import Recorded
from tests.models.adapters import merged, write_adapter
from tests.models.families import RECURRENT, VOCAB_SIZE, write_checkpoint
from tests.models.test_oracle import run_crowd, tiny_settings, tokens_of
from tests.models.test_recurrent import Asked, drawn
from tests.worker.test_gpu_runner import DEVICE, make_engine

WITHOUT_KERNELS = {"FalconMamba", "Jamba", "Mamba", "Zamba"}
FAMILIES = ["Zamba2", "Lfm2", "OlmoHybrid", "KimiLinear", "Qwen3_5Text"]
if DEVICE == "cuda":  # all that this version of transformers has
    FAMILIES = [
        family for family in RECURRENT if hasattr(transformers, f"{family}Config") and family not in WITHOUT_KERNELS
    ]
pytestmark = [  # numpy's, in the interpreter
    pytest.mark.filterwarnings("ignore:overflow encountered"),
    pytest.mark.filterwarnings("ignore:divide by zero encountered"),
]


@pytest.mark.parametrize("family", [*FAMILIES, "Mamba"])
def test_layers_equal_transformers_modules(family: str, tmp_path: Path) -> None:
    """Loading tries that, with a prompt in pieces beside another request."""
    write_checkpoint(family, RECURRENT[family], tmp_path)
    loaded = load_model(ModelFolder.open(tmp_path), tiny_settings(), torch.float32, torch.device(DEVICE), 48)
    layers = compute_at_once(loaded).recurrent_layers
    assert {layer.at_once for layer in layers} == {family not in WITHOUT_KERNELS}
    assert {isinstance(layer, GatedDelta) for layer in layers} == {family.startswith("Qwen3_5")}
    assert all(layer in loaded.model.modules() for layer in layers)


SMALL = {
    "layer_types": ["linear_attention", "full_attention"],
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
}
"""For the interpreter."""
PROJECTIONS = ("in_proj", "in_proj_qkv", "in_proj_a", "out_proj", "q_proj", "o_proj")


@pytest.mark.parametrize("family", FAMILIES if DEVICE == "cuda" else ["Qwen3_5Text"])
def test_recorded_steps_equal_transformers(family: str, tmp_path: Path) -> None:
    """Prompts of one chunk and of several, of which one begins with a snapshot of the other, greedy and not. On a GPU
    these two have an adapter, whose kernels take long in the interpreter.
    """
    base = write_checkpoint(family, RECURRENT[family] | (SMALL if DEVICE == "cpu" else {}), tmp_path)
    adapter = write_adapter(base, tmp_path / "adapter", 1, ends=PROJECTIONS)
    models = {"": base, "own": merged(base, adapter)}
    own = "own" if DEVICE == "cuda" else ""
    core = make_engine(tmp_path, "triton", lora={own: str(adapter)} if own else {})
    assert isinstance(core.worker.execution, Recorded)  # type: ignore[attr-defined]
    requests: Asked = {}
    for seed, length in enumerate([5, 10, 10]):
        prompt = [3 + (7 * at + length) % (VOCAB_SIZE - 3) for at in range(length)]
        requests[f"{seed}"] = prompt, SamplingParams(max_tokens=3, seed=seed, temperature=seed % 2)
    adapters = {"0": "", "1": own, "2": own}
    outputs, _ = run_crowd(core, requests, adapters=adapters)
    for name, (prompt, sampling) in requests.items():
        said = tokens_of(outputs[name])
        assert said == drawn(models[adapters[name]], prompt, said, sampling), name
    assert outputs["2"][0].num_cached_tokens == 8
