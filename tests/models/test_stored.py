"""Quantized checkpoints of models that transformers' modules run: encoders, and what the decoder does not know."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from app.checkpoint.folder import ModelFolder
from app.errors import ModelError
from app.kernels.cpu import integer
from app.layers.methods.integer import Integer
from app.layers.methods.plain import Plain
from app.layers.moe import Stacked
from app.models.loader import load_model
from app.settings import load_settings
from app.worker.encoder_factory import build_encoder
from tests.models.families import GENERIC, RECURRENT, write_checkpoint
from tests.models.test_oracle import make_engine, tiny_settings
from tests.models.test_quantized import errors, greedy, needs_kernel, quantize_folder
from tests.worker.test_encoder_runner import alone, encode, make_requests, write_encoder, write_modules

SIZES = {"intermediate_size": 128, "use_qkv_bias": True}
IN_ENCODER = r".*layer\.\d+\..*(query|key|value|dense)"
FORMATS = ["W4A16", "W8A8", "FP8 in blocks", "AWQ", "GPTQ with act-order", "NF4", "LLM.int8"]


def write_generic(name: str, folder: Path) -> Any:
    """A model that only the generic path runs, quantized; transformers' own with the weights that are stored."""
    return quantize_folder(name, folder, write_checkpoint("StableLm", SIZES, folder))


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "FP8 in blocks"])
def test_plain_numbers_are_what_is_stored(name: str, tmp_path: Path) -> None:
    model = write_generic(name, tmp_path)
    assert float(errors(model, greedy(tmp_path, "none")).max()) < 1e-4


EXPERTS = {"moe_intermediate_size": 64, "moe_shared_expert_intermediate_size": 64, "n_routed_experts": 4}


@pytest.mark.parametrize(
    ("family", "sizes", "name", "layers"),
    [
        ("Qwen3_5Text", RECURRENT["Qwen3_5Text"], "FP8 in blocks", r".*(_proj|in_proj_qkv|in_proj_z)"),
        ("DeepseekV3", GENERIC["DeepseekV3"], "FP8 in blocks", r".*(_proj|_proj_with_mqa)"),
        (
            "NemotronH",
            RECURRENT["NemotronH"] | {"layers_block_type": ["mamba", "attention", "moe", "mamba"]},
            "W4A16",
            r".*_proj",
        ),
    ],
)
def test_layers_that_keep_states_and_experts_that_transformers_stacks(
    family: str, sizes: dict[str, Any], name: str, layers: str, tmp_path: Path
) -> None:
    """In checkpoints, they have names that transformers changes."""
    sizes = sizes | EXPERTS | {"intermediate_size": 128}
    model = quantize_folder(name, tmp_path, write_checkpoint(family, sizes, tmp_path), layers)
    assert float(errors(model, greedy(tmp_path, "none")).max()) < 2e-4
    loaded = load_model(ModelFolder.open(tmp_path), load_settings(), torch.float32, torch.device("cpu"), 200)
    methods = {type(layer.method) for layer in loaded.model.modules() if isinstance(layer, Stacked)}
    kept = Integer if name == "W4A16" and integer.lanes() else Plain
    assert methods == (set() if family == "Qwen3_5Text" else {kept})  # which has no experts


@needs_kernel
@pytest.mark.parametrize("name", ["W4A16", "GPTQ with act-order"])
def test_codes_are_multiplied_as_they_are(name: str, tmp_path: Path) -> None:
    model = write_generic(name, tmp_path)
    assert 0 < float(errors(model, greedy(tmp_path, "auto")).mean()) < 0.02


def encodings(folder: Path, quantization: str) -> list[np.ndarray]:
    """What an encoder gives for the inputs of `make_requests`."""
    config = ModelFolder(folder).predictor
    assert config is not None
    built = build_encoder(load_settings(device="cpu", dtype="float32", quantization=quantization), folder, config)
    return [np.frombuffer(vector, np.float32) for vector in encode(built, make_requests(has_types=True))]


def expected(model: torch.nn.Module) -> list[np.ndarray]:
    """The same by transformers, for one input at a time."""
    outputs = [alone(model, request, has_types=True) for request in make_requests(has_types=True)]
    return [(out.logits[0] if "logits" in out else out.last_hidden_state[0].mean(0)).numpy() for out in outputs]


@pytest.mark.parametrize("kind", ["Model", "ForSequenceClassification", "ForMaskedLM"])
@pytest.mark.parametrize("name", FORMATS)
def test_encoders(name: str, kind: str, tmp_path: Path) -> None:
    """Also where single layers are plain, such as the classifier, or are not there, such as the pooler."""
    oracle = quantize_folder(name, tmp_path, write_encoder(tmp_path, "Bert", kind, hidden_size=64), IN_ENCODER)
    if kind == "ForMaskedLM":
        write_modules(tmp_path, "mean")
        oracle = oracle.bert
    for found, wanted in zip(encodings(tmp_path, "none"), expected(oracle), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@needs_kernel
def test_an_encoders_codes_are_multiplied_as_they_are(tmp_path: Path) -> None:
    oracle = quantize_folder("W8A8", tmp_path, write_encoder(tmp_path, "Bert", "Model", hidden_size=64), IN_ENCODER)
    found, wanted = np.stack(encodings(tmp_path, "auto")), np.stack(expected(oracle))
    assert 1e-4 < np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 0.02


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    write_generic("GPTQ", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    key = "model.layers.1.mlp.up_proj"
    no_numbers = torch.full_like(tensors[f"{key}.scales"], torch.nan)
    for name, tensor, words in (
        (f"{key}.scales", None, rf"lacks 1 tensors of the model, {key}.scales"),
        (f"{key}.scales", no_numbers, f"{key} has scales that are no numbers"),
        (f"{key}.more", torch.ones(1), f"has a tensor that the model does not: {key}.more"),
    ):
        others = {other: t for other, t in tensors.items() if other != name}
        content = others if tensor is None else others | {name: tensor}
        save_file(content, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=words):
            make_engine(tmp_path, tiny_settings())
