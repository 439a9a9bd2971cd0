"""GGUF files run from the file: their tensors are those that transformers reads, and their blocks are multiplied."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, dequantize, quantize
from transformers import AutoModelForCausalLM

from app.checkpoint.convert import convert
from app.checkpoint.folder import ModelFolder
from app.core.wire import EngineReady
from app.engine.build import build_engine
from app.errors import ModelError
from app.kernels.cpu import integer
from app.layers.formats.gguf import read_blocks
from app.layers.methods.integer import Integer
from app.models.gguf_tensors import GgufTensors
from app.models.loader import load_model
from app.settings import load_settings
from tests.checkpoint.conftest import add_tokenizer, iq4_nl, write_gguf
from tests.models.families import DECODER, VOCAB_SIZE, write_checkpoint
from tests.models.test_quantized import errors, greedy

KINDS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
"""What the library `gguf` can write."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def write(kind: str, folder: Path) -> tuple[Path, Path]:
    """A file whose weights are of a type, and the model folder for it."""
    file = write_gguf(folder / "written.gguf", GGMLQuantizationType[kind])
    convert(file, folder / "model")
    return file, folder / "model"


def test_tensors_are_those_that_transformers_reads(kind: str, tmp_path: Path) -> None:
    file, folder = write(kind, tmp_path)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).state_dict()
    opened = ModelFolder.open(folder)
    tensors = GgufTensors(folder / "model.gguf", opened.quantization or {})
    for name in tensors.keys():  # noqa: SIM118 - not a dict
        found = tensors.get_tensor(name)
        if name.endswith(".blocks"):
            name = name.removesuffix("blocks") + "weight"
            found = read_blocks(kind, found).dense()
        assert torch.equal(found.float(), expected.pop(name) if name != "lm_head.weight" else expected[name]), name
    assert expected.keys() <= {"lm_head.weight"}


def test_some_rows_are_those_of_the_whole(kind: str, tmp_path: Path) -> None:
    _, folder = write(kind, tmp_path)
    tensors = GgufTensors(folder / "model.gguf", ModelFolder.open(folder).quantization or {})
    for name in tensors.keys():  # noqa: SIM118 - not a dict
        assert torch.equal(tensors.get_slice(name)[5:9], tensors.get_tensor(name)[5:9])


@pytest.mark.parametrize("quantization", ["none", "auto"])
@pytest.mark.parametrize("kind", ["F16", "Q4_0", "Q8_0"])
def test_a_crowd_gets_what_transformers_computes(kind: str, quantization: str, tmp_path: Path) -> None:
    file, folder = write(kind, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    found = errors(model, greedy(folder, quantization))
    is_rounded = quantization == "auto" and kind != "F16" and integer.lanes() > 0
    assert float(found.max()) < 1e-4 or (is_rounded and 0 < float(found.mean()) < 0.02)


@pytest.mark.skipif(not integer.lanes(), reason="the processor has no AVX2")
def test_blocks_are_multiplied_as_they_are(tmp_path: Path) -> None:
    _, folder = write("Q4_1", tmp_path)
    loaded = load_model(ModelFolder.open(folder), load_settings(), torch.float32, torch.device("cpu"), 200)
    layers = [layer for layer in loaded.model.modules() if hasattr(layer, "method")]
    assert len(layers) == 9  # the head too, although its weight is that of the embeddings
    assert all(isinstance(layer.method, Integer) for layer in layers)
    assert not any("embed" in name for name, _ in loaded.model.named_parameters())  # they are the head's, only once


@pytest.mark.skipif(not integer.lanes(), reason="the processor has no AVX2")
def test_plain_numbers_are_rounded_at_the_start(tmp_path: Path) -> None:
    file, folder = write("F16", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    assert 0 < float(errors(model, greedy(folder, "int8")).mean()) < 0.03


_OF_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{name}_proj": f"attn_{name}" for name in "qkv"},
    **{f"self_attn.{name}_norm": f"attn_{name}_norm" for name in "qk"},
    "self_attn.o_proj": "attn_output",
    "mlp.gate": "ffn_gate_inp",
}


def write_experts(family: str, name: str, kind: GGMLQuantizationType, folder: Path) -> tuple[Any, Path]:
    """A file of a family that llama.cpp calls `name`; transformers' model with the weights that the file stands for."""
    options = {**DECODER[family], "head_dim": 16, "intermediate_size": 96, "mlp_only_layers": []}
    model = write_checkpoint(family, options, folder / "plain")
    config, sizes = model.config, model.config.to_dict()
    writer = GGUFWriter(folder / "written.gguf", name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if "moe_intermediate_size" in sizes:
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_vocab_size(VOCAB_SIZE)
    writer.add_file_type(LlamaFileType.ALL_F32)  # so that what is converted is not rounded
    add_tokenizer(writer, VOCAB_SIZE)
    for path, parameter in model.named_parameters():
        rounds = parameter.dim() > 1 and ".mlp.gate." not in path
        stored = _blocks(parameter.data.numpy(), kind) if rounds else parameter.data.numpy()
        parameter.data = torch.from_numpy(dequantize(stored, kind)) if rounds else parameter.data
        for theirs, part in _named(path, stored, name):
            writer.add_tensor(theirs, np.ascontiguousarray(part), raw_dtype=kind if rounds else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    convert(folder / "written.gguf", folder / "model")
    return model, folder / "model"


def _blocks(weight: Any, kind: GGMLQuantizationType) -> Any:
    """A weight in a type; others in the one that has to be converted, and which the library only reads."""
    return iq4_nl(weight.shape) if kind == GGMLQuantizationType.IQ4_NL else quantize(weight, kind)


def _named(path: str, stored: Any, name: str) -> list[tuple[str, Any]]:
    """The tensors of a file for a parameter of transformers' model."""
    others = {"lm_head": "output", "model.norm": "output_norm", "model.embed_tokens": "token_embd"}
    if (module := path.removesuffix(".weight")) in others:
        return [(f"{others[module]}.weight", stored)]
    layer, _, of_layer = module.removeprefix("model.layers.").partition(".")
    if of_layer == "mlp.experts.gate_up_proj":
        half = stored.shape[1] // 2
        parts = {"ffn_gate_exps": stored[:, :half], "ffn_up_exps": stored[:, half:]}
    elif of_layer == "mlp.experts.down_proj":
        parts = {"ffn_down_exps": stored}
    else:
        if name == "llama" and of_layer in ("self_attn.q_proj", "self_attn.k_proj"):  # it rotates neighbours
            stored = stored.reshape(-1, 2, 8, stored.shape[1]).swapaxes(1, 2).reshape(stored.shape)
        parts = {_OF_LAYER[of_layer]: stored}
    return [(f"blk.{layer}.{theirs}.weight", part) for theirs, part in parts.items()]


@pytest.mark.parametrize(
    ("family", "name", "kind"),
    [
        ("Mixtral", "llama", "Q8_0"),
        ("Mixtral", "llama", "IQ4_NL"),
        ("Olmoe", "olmoe", "Q8_0"),
        ("Qwen3Moe", "qwen3moe", "F32"),
    ],
)
def test_experts_run_from_the_file_or_converted(family: str, name: str, kind: str, tmp_path: Path) -> None:
    model, folder = write_experts(family, name, GGMLQuantizationType[kind], tmp_path)
    assert float(errors(model, greedy(folder, "none")).max()) < 1e-4
    if kind == "Q8_0" and family == "Olmoe" and integer.lanes():
        loaded = load_model(ModelFolder.open(folder), load_settings(), torch.float32, torch.device("cpu"), 200)
        layers = [layer for layer in loaded.model.modules() if hasattr(layer, "method")]
        assert all(isinstance(layer.method, Integer) for layer in layers)
        assert 0 < float(errors(model, greedy(folder, "auto")).median()) < 0.05


def test_a_file_that_has_become_shorter_is_refused(tmp_path: Path) -> None:
    file, folder = write("Q4_1", tmp_path)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"is not the GGUF file that config\.json describes"):
        started(folder)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    file, folder = write("Q4_1", tmp_path)
    file.unlink()
    with pytest.raises(ModelError, match=r"has no model\.gguf"):
        started(folder)


@pytest.mark.parametrize(
    "change", [{"kind": "Q9"}, {"begin": -5}, {"shape": [2**40, 64]}, {"shape": []}, {"more": 1}, {"heads": 7}]
)
def test_a_folder_that_says_nonsense_of_its_file_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    _, folder = write("Q4_1", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["blocks"]["model.layers.1.self_attn.k_proj"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"k_proj|GGUF|quantization_config"):
        started(folder)


def test_what_does_not_fit_is_named_as_in_the_file(tmp_path: Path) -> None:
    file, folder = write("Q4_1", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 128}))
    with pytest.raises(ModelError, match=rf"{file}: blk\.0\.attn_q\.weight has shape \(64, 64\), not \(64, 128\)"):
        started(folder)
    for layer in (0, 1):
        del config["quantization_config"]["blocks"][f"model.layers.{layer}.self_attn.o_proj"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"{file} lacks 2 tensors of the model, blk\.0\.attn_output\.weight for one"):
        started(folder)


def started(folder: Path) -> EngineReady:
    settings = load_settings(device="cpu", dtype="float32", num_kv_blocks=32, max_model_len=60)
    return build_engine(settings, folder)[1]
