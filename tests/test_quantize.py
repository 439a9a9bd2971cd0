"""Folders with quantized weights that Paceline writes are what compressed-tensors and transformers read."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from app import quantize as module
from app.checkpoint.quantization import parse_quantization
from app.cli import main
from app.errors import StartupError
from app.layers.formats import format_of
from app.quantize import WrittenFormat, quantize
from tests.models.families import write_checkpoint
from tests.models.test_quantized import errors, greedy
from tests.worker.test_encoder_runner import write_encoder

SIZES = {"hidden_size": 64, "intermediate_size": 128, "attention_bias": True}
STEPS = {"int8": 1 / 254, "int4": 1 / 15, "fp8": 1 / 16}
"""The largest rounding error, relative to the largest number of the group."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of a tiny model in bfloat16, with a file that is to be copied and one that is not."""
    folder = tmp_path / "source"
    write_checkpoint("Llama", SIZES, folder)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors["model.layers.1.self_attn.q_proj.weight"][5] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    (folder / "tokenizer.json").write_text('{"model": {}}')
    (folder / "pytorch_model.bin").write_text("weights")
    return folder


@pytest.mark.parametrize("to", ["int8", "int4", "fp8"])
def test_other_libraries_read_what_is_written(
    to: WrittenFormat, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are the same to the last bit, and no further from those before than rounding makes them."""
    monkeypatch.setattr(module, "_SHARD_BYTES", 30_000)
    out = tmp_path / "out"
    assert "21 layers are rounded" in quantize(str(source), out, to)
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    tensors = {name: t for file in sorted(set(index.values())) for name, t in load_file(out / file).items()}
    assert tensors.keys() == index.keys()
    assert (out / "tokenizer.json").read_text() == '{"model": {}}'
    assert not (out / "pytorch_model.bin").exists()
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    theirs = QuantizationConfig.model_validate(config).config_groups["group_0"]
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    for name, plain in load_file(source / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            assert torch.equal(tensors.pop(name), plain)
            continue
        layer = name.removesuffix("weight")
        stored = {kind.removeprefix(layer): tensors.pop(kind) for kind in list(tensors) if kind.startswith(layer)}
        scheme = parse_quantization(config).scheme(layer.rstrip("."))
        assert scheme is not None
        ours = format_of(scheme).decode(stored).dense().bfloat16()
        bias = stored.pop("bias", None)
        if bias is not None:
            tensors[f"{layer}bias"] = bias
        assert torch.equal(ours, compressor.decompress(stored, theirs)["weight"])
        groups = plain.float().unflatten(1, (-1, 64 if to == "fp8" else 32))
        error = (ours.float().view_as(groups) - groups).abs().amax(-1)
        width = groups.amax(-1).clamp(min=0) - groups.amin(-1).clamp(max=0) if to == "int4" else groups.abs().amax(-1)
        assert bool((error <= width * (STEPS[to] + 2**-7)).all())
    assert not tensors


@pytest.mark.parametrize(
    ("to", "family", "options", "message"),
    [
        ("int4", "Llama", SIZES, "21 layers are rounded to int4. The weights"),
        (
            "int8",
            "Qwen3",
            {"head_dim": 32, "tie_word_embeddings": True},
            "and 3 stay plain",
        ),
        ("fp8", "Phi3", {}, "12 layers are rounded to fp8. The weights"),
    ],
)
def test_a_written_model_generates_what_transformers_does(
    to: WrittenFormat, family: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    write_checkpoint(family, options, source)
    (source / "tokenizer.json").write_text("{}")
    assert message in quantize(str(source), out, to)
    config = AutoConfig.from_pretrained(out)
    if to == "fp8":  # activations are rounded to FP8, too, unless weights become plain numbers
        config.quantization_config["dequantize"] = True
    theirs: PreTrainedModel = AutoModelForCausalLM.from_pretrained(out, config=config, dtype=torch.float32)
    assert float(errors(theirs.eval(), greedy(out, "none")).max()) < 1e-4


def test_what_cannot_be_written_is_one_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def refusal(model: Path, target: Path = out) -> str:
        monkeypatch.setattr(sys, "argv", ["paceline", "quantize", str(model), str(target), "--format", "int8"])
        with pytest.raises(SystemExit) as raised:
            main()
        assert raised.value.code == 2
        printed = capsys.readouterr().err
        assert printed.startswith("paceline: ")
        assert printed.count("\n") == 1
        return printed

    encoder, generic = tmp_path / "encoder", tmp_path / "generic"
    write_encoder(encoder, "Bert", "Model")
    write_checkpoint("StableLm", {}, generic)
    for folder in (encoder, generic):
        (folder / "tokenizer.json").write_text("{}")
    capsys.readouterr()
    assert "BertModel is an encoder" in refusal(encoder)
    assert "StableLmForCausalLM" in refusal(generic)
    assert "source is not an empty folder" in refusal(source, source)
    assert "tokenizer.json is not an empty folder" in refusal(source, source / "tokenizer.json")
    assert not out.exists()

    quantize(str(source), out, "int8")
    capsys.readouterr()
    assert "quantized already (compressed-tensors)" in refusal(out, tmp_path / "again")
    tensors = load_file(source / "model.safetensors")
    missing = tensors.pop("model.layers.2.mlp.up_proj.weight")
    save_file(tensors, source / "model.safetensors")
    assert "lacks layers.2.mlp.up_proj.weight" in refusal(source, tmp_path / "again")
    save_file(tensors | {"model.layers.2.mlp.up_proj.weight": missing[:5]}, source / "model.safetensors")
    assert "model.layers.2.mlp.up_proj.weight has shape" in refusal(source, tmp_path / "again")


def test_a_folder_that_could_not_be_finished_is_removed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", fail)
    with pytest.raises(StartupError, match=r"out cannot be written: .*No space left"):
        quantize(str(source), tmp_path / "out", "int4")
    assert not (tmp_path / "out").exists()
