"""GPT-OSS from its own file, with experts in MXFP4, says what transformers says with the weights that these are."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from app.errors import ModelError
from app.layers.methods.invariant import Invariant
from app.layers.methods.mxfp4 import Mxfp4
from app.layers.moe import Stacked
from app.models.loader import _check_invariance
from tests.models.families import DECODER, write_checkpoint
from tests.models.test_oracle import greedy, make_engine, make_requests, run_crowd, tiny_settings, tokens_of

SIZES = {"intermediate_size": 96}


def write_mxfp4(folder: Path) -> torch.nn.Module:
    """A checkpoint as gpt-oss has it; returns transformers' model with the weights that it stands for."""
    model = write_checkpoint("GptOss", DECODER["GptOss"] | SIZES, folder)
    file = folder / "model.safetensors"
    tensors, draw = load_file(file), torch.Generator().manual_seed(0)
    for name, weight in list(tensors.items()):
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, inputs, outputs = tensors.pop(name).shape
            blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8, generator=draw)
            scales = torch.randint(121, 126, blocks.shape[:-1], dtype=torch.uint8, generator=draw)
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            dense = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
            model.get_parameter(name).data = dense.view(weight.shape)
    save_file(tensors, file)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("impl", ["decoder", "generic"])
def test_a_crowd_says_what_transformers_says_alone(impl: str, tmp_path: Path) -> None:
    model = write_mxfp4(tmp_path)
    requests = make_requests(8, temperature=0.0)
    outputs, _ = run_crowd(make_engine(tmp_path, tiny_settings(model_impl=impl)), requests)
    for name, (prompt, sampling) in requests.items():
        said = tokens_of(outputs[name])
        assert said == greedy(model, prompt, said, sampling.max_tokens), name


def test_scales_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    write_mxfp4(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.experts.down_proj_scales"][0, 0, 0] = 255
    save_file(tensors, file)
    with pytest.raises(ModelError, match="scales that are no numbers"):
        make_engine(tmp_path, tiny_settings())


def test_a_gpu_is_told_what_makes_experts_batch_invariant() -> None:
    layer = Stacked(2, 32, (8,), ("up",))
    model = torch.nn.ModuleDict({"experts": layer})
    for has_kernel in (True, False):  # with `quantization` auto and none
        layer.method = Mxfp4(Invariant(), torch.empty(0), has_kernel)
        layer.method.create(layer)
        layer.get_parameter("scales").fill_(120)
        if has_kernel:
            with pytest.raises(ModelError, match=r"experts with numbers in MXFP4 .* with quantization none"):
                _check_invariance(model)
        else:
            layer.method.finish(layer)
            _check_invariance(model)
