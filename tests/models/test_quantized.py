"""Quantized checkpoints generate what transformers generates with the weights that they stand for."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel

from app.checkpoint.folder import ModelFolder
from app.core.sampling import SamplingParams
from app.core.wire import RequestOutput
from app.errors import ModelError
from app.kernels.cpu import integer
from app.layers.methods.integer import Integer
from app.models.loader import load_model
from app.settings import load_settings
from tests.layers.packing import awq_tensors, gptq_tensors, int8_tensors, nf4_tensors
from tests.models.families import DECODER, GENERIC, write_checkpoint
from tests.models.test_oracle import make_engine, make_requests, run_crowd, tiny_settings, tokens_of

needs_kernel = pytest.mark.skipif(not integer.lanes(), reason="the processor has no AVX2")
SIZES = {"hidden_size": 64, "intermediate_size": 128, "attention_bias": True}
COMPRESSED: dict[str, tuple[str, dict[str, Any]]] = {
    "W4A16": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}),
    "W8A8": ("int-quantized", {"num_bits": 8, "strategy": "channel"}),
    "FP8": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "FP8 in blocks": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [48, 64]},
    ),
}
OTHERS = {
    "AWQ": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
    "GPTQ": {"quant_method": "gptq", "bits": 4, "group_size": 32},
    "GPTQ with act-order": {"quant_method": "gptq", "bits": 8, "group_size": 64, "desc_act": True},
}
BITSANDBYTES = {
    "NF4": (nf4_tensors, {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}),
    "LLM.int8": (int8_tensors, {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}),
}


def write_quantized(name: str, folder: Path) -> Any:
    """A checkpoint in a format, and transformers' model with the weights that the checkpoint stands for."""
    return quantize_folder(name, folder, write_checkpoint("Llama", SIZES, folder))


def quantize_folder(name: str, folder: Path, model: Module, layers: str = r".*_proj") -> Any:
    """Quantize the layers of a checkpoint whose names match a pattern. Returns `model` with what they stand for."""
    tensors = load_file(folder / "model.safetensors")
    matching = [key.removesuffix(".weight") for key in tensors if re.fullmatch(rf"{layers}\.weight", key)]
    config: dict[str, Any]
    for layer in matching:
        weight = tensors.pop(f"{layer}.weight")
        if name in COMPRESSED:
            stored, dense, config = _compressed(weight, *COMPRESSED[name])
        elif name in BITSANDBYTES:
            store, config = BITSANDBYTES[name]
            stored, dense = store(weight)
        else:
            config = OTHERS[name]
            write = awq_tensors if name == "AWQ" else gptq_tensors
            stored, dense = write(weight, config["group_size"], config["bits"], bool(config.get("desc_act")))
        tensors |= {f"{layer}.{kind}": tensor.contiguous() for kind, tensor in stored.items()}
        _weight_of(model, layer).copy_(dense)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"quantization_config": config}))
    return model


def _weight_of(model: Module, layer: str) -> Tensor:
    """Of a layer of a checkpoint, in transformers' model, which stacks experts."""
    path, _, name = layer.replace("backbone.", "model.").rpartition(".")
    if ".experts." not in layer:
        return model.get_submodule(f"{path}.{name}").weight.data  # type: ignore[union-attr, return-value]
    experts, _, index = path.rpartition(".")
    stacked = dict(model.get_submodule(experts).named_parameters())
    weight = stacked.get(name, stacked.get("gate_up_proj")).data[int(index)]  # type: ignore[union-attr]
    return (
        weight
        if name in stacked
        else {"gate_proj": weight[: len(weight) // 2], "up_proj": weight[len(weight) // 2 :]}[name]
    )


def _compressed(weight: Tensor, form: str, options: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**options), format=form)
    rows, columns = weight.shape
    largest = {4: 7, 8: 448 if options.get("type") == "float" else 127}[options["num_bits"]]
    if options["strategy"] == "block":
        high, wide = options["block_structure"]
        padded = torch.nn.functional.pad(weight, (0, -columns % wide, 0, -rows % high))
        scale = padded.unflatten(1, (-1, wide)).unflatten(0, (-1, high)).abs().amax((1, 3)) / largest
    else:
        size = options.get("group_size", columns)
        scale = weight.unflatten(1, (-1, size)).abs().amax(-1) / largest
    state = {"weight": weight, "weight_scale": scale.bfloat16().float()}
    if not options.get("symmetric", True):
        state["weight_zero_point"] = torch.ones(scale.shape, dtype=torch.int8)
    compressor = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(state, scheme)
    dense = compressor.decompress(stored, scheme)["weight"]
    group = scheme.model_dump()
    config = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }
    return stored, dense, config


def greedy(folder: Path, quantization: str, **options: str) -> dict[str, list[RequestOutput]]:
    """What a crowd gets, with the logarithms of probabilities."""
    core = make_engine(folder, tiny_settings(quantization=quantization, **options))
    outputs, _ = run_crowd(core, make_requests(6, temperature=0.0, logprobs=0, prompt_logprobs=0))
    return outputs


@torch.inference_mode()
def log_probabilities(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """Of all tokens but the first, given those before."""
    logits = torch.log_softmax(model(torch.tensor([tokens])).logits[0].float(), -1)
    return logits[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]


def errors(model: PreTrainedModel, outputs: dict[str, list[RequestOutput]]) -> Tensor:
    """The differences between the engine's and the model's logarithms of probabilities."""
    found, expected = [], []
    for name, (prompt, _) in make_requests(6, temperature=0.0).items():
        entries = [e for o in outputs[name] for e in o.prompt_logprobs] + [e for o in outputs[name] for e in o.logprobs]
        found += [entry.logprobs[0] for entry in entries]
        expected.append(log_probabilities(model, prompt + tokens_of(outputs[name])))
    return (torch.tensor(found) - torch.cat(expected)).abs()


@pytest.mark.parametrize("name", [*COMPRESSED, *OTHERS, *BITSANDBYTES])
def test_plain_numbers_are_what_is_stored(name: str, tmp_path: Path) -> None:
    model = write_quantized(name, tmp_path)
    assert float(errors(model, greedy(tmp_path, "none")).max()) < 1e-4


@needs_kernel
@pytest.mark.parametrize("name", ["W4A16", "W8A8", "GPTQ with act-order", "LLM.int8"])
def test_codes_are_multiplied_as_they_are(name: str, tmp_path: Path) -> None:
    """Only activations are rounded, to 8 bits. The texts of a crowd are those of each request alone."""
    model = write_quantized(name, tmp_path)
    outputs = greedy(tmp_path, "auto")
    assert 0 < float(errors(model, outputs).mean()) < 0.02
    _are_those_of_each_alone(outputs, tmp_path)


@needs_kernel
@pytest.mark.parametrize("name", ["W4A16", "W8A8"])
def test_experts_are_multiplied_as_they_are(name: str, tmp_path: Path) -> None:
    """A token alone goes to the same experts, with the same results, as in a crowd. Few go to others than unrounded."""
    sizes = {**DECODER["Olmoe"], "intermediate_size": 96}
    model = quantize_folder(name, tmp_path, write_checkpoint("Olmoe", sizes, tmp_path))
    assert float(errors(model, greedy(tmp_path, "none")).max()) < 1e-4
    outputs = greedy(tmp_path, "auto")
    found = errors(model, outputs)
    assert 0 < float(found.median()) < 0.02
    assert float(found.mean()) < 0.1
    _are_those_of_each_alone(outputs, tmp_path)


def _are_those_of_each_alone(outputs: dict[str, list[RequestOutput]], folder: Path, **options: str) -> None:
    core = make_engine(folder, tiny_settings(**options))
    for alone, request in make_requests(6, temperature=0.0).items():
        found, _ = run_crowd(core, {alone: request})
        assert tokens_of(found[alone]) == tokens_of(outputs[alone])


@pytest.mark.parametrize("family", ["Llama", "GPTNeoX"])
def test_k_and_v_are_kept_in_8_bits(family: str, tmp_path: Path) -> None:
    """By the decoder and on the generic path, which store them each in its own way."""
    model = write_checkpoint(family, (DECODER | GENERIC)[family], tmp_path)
    outputs = greedy(tmp_path, "none", kv_dtype="int8")
    assert 0 < float(errors(model, outputs).mean()) < 0.005
    _are_those_of_each_alone(outputs, tmp_path, kv_dtype="int8")


@needs_kernel
@pytest.mark.parametrize(
    ("family", "quantization", "tolerance"), [("Llama", "int8", 0.03), ("Llama", "int4", 0.3), ("Olmoe", "int8", 0.1)]
)
def test_plain_weights_are_rounded_at_the_start(
    family: str, quantization: str, tolerance: float, tmp_path: Path
) -> None:
    model = write_checkpoint(family, {**DECODER[family], **SIZES}, tmp_path)
    assert float(errors(model, greedy(tmp_path, quantization)).mean()) < tolerance
    loaded = load_model(
        ModelFolder.open(tmp_path), load_settings(quantization=quantization), torch.float32, torch.device("cpu"), 200
    )
    layers = [layer for layer in loaded.model.modules() if hasattr(layer, "method")]
    assert layers
    assert all(isinstance(layer.method, Integer) and layer.weight.numel() == 0 for layer in layers)


def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    write_quantized("GPTQ", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    key = "model.layers.1.mlp.up_proj"
    broken: dict[str, tuple[Tensor | None, str]] = {
        "scales": (torch.full_like(tensors[f"{key}.scales"], torch.nan), f"{key} has scales that are no numbers"),
        "g_idx": (torch.full_like(tensors[f"{key}.g_idx"], 99), "up_proj: g_idx"),
        "qweight": (tensors[f"{key}.qweight"][:5], rf"{key}.qweight has shape"),
        "qzeros": (None, "qzeros"),
    }
    for kind, (tensor, words) in broken.items():
        others = {name: t for name, t in tensors.items() if name != f"{key}.{kind}"}
        save_file(
            others if tensor is None else others | {f"{key}.{kind}": tensor.contiguous()},
            tmp_path / "model.safetensors",
        )
        with pytest.raises(ModelError, match=words):
            make_engine(tmp_path, tiny_settings())


def test_what_bitsandbytes_says_has_to_make_sense(tmp_path: Path) -> None:
    write_quantized("NF4", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    key = "model.layers.1.mlp.up_proj.weight"
    state = next(name for name in tensors if name.startswith(f"{key}.quant_state"))
    broken: dict[str, tuple[Tensor, str]] = {
        f"{key}.absmax": (torch.full_like(tensors[f"{key}.absmax"], torch.nan), f"{key}: absmax .* no numbers"),
        f"{key}.quant_map": (tensors[f"{key}.quant_map"][:5], f"{key}: quant_map has 5 numbers, not 16"),
        state: (tensors[state][:-3], f"{key}: quant_state.* cannot be read"),
        key: (tensors[key][:-3], rf"{key}: \[4093, 1\] of dtype U8 are no 128 x 64 codes"),
    }
    for name, (tensor, words) in broken.items():
        save_file(tensors | {name: tensor}, tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match=words):
            make_engine(tmp_path, tiny_settings())
    save_file({name: t for name, t in tensors.items() if name != f"{key}.absmax"}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=f"{key}: absmax is missing"):
        make_engine(tmp_path, tiny_settings())


@needs_kernel
def test_nf4_is_rounded_to_codes_where_that_is_wanted(tmp_path: Path) -> None:
    model = write_quantized("NF4", tmp_path)
    assert 0 < float(errors(model, greedy(tmp_path, "int8")).mean()) < 0.03


@pytest.mark.parametrize(("config", "words"), [({"bits": 3}, "3 bits"), ({"group_size": 48}, "whole groups of 48")])
def test_a_scheme_that_does_not_fit_is_refused(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    write_quantized("GPTQ", tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["quantization_config"] |= config
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=words):
        make_engine(tmp_path, tiny_settings())


def test_a_quantized_checkpoint_is_not_rounded_again(tmp_path: Path) -> None:
    write_quantized("GPTQ", tmp_path)
    with pytest.raises(ModelError, match="quantized already"):
        make_engine(tmp_path, tiny_settings(quantization="int8"))


@needs_kernel
@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_a_stream_goes_on_with_its_own_text_behind_what_another_engine_has_said(kv_dtype: str, tmp_path: Path) -> None:
    """With default settings, in bfloat16: what is said becomes a prompt, and the rest is the same, token for token."""
    write_checkpoint("Llama", DECODER["Llama"], tmp_path)
    settings = tiny_settings(quantization="int8", kv_dtype=kv_dtype)
    core = make_engine(tmp_path, settings.model_copy(update={"dtype": "bfloat16"}))
    requests = {
        str(seed): ([3 + (7 * seed + at) % 190 for at in range(20 + seed)], _until(40, seed, 0.9 * (seed % 2)))
        for seed in range(8)
    }
    whole = {name: tokens_of(news) for name, news in run_crowd(core, requests)[0].items()}
    said = {name: 5 + 4 * int(name) for name in requests}
    rest = {
        name: (prompt + whole[name][: said[name]], _until(40 - said[name], sampling.seed, sampling.temperature))
        for name, (prompt, sampling) in requests.items()
    }
    for name, news in run_crowd(core, rest, seed=1)[0].items():
        assert tokens_of(news) == whole[name][said[name] :], name


def _until(tokens: int, seed: int, temperature: float) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, seed=seed, temperature=temperature)
