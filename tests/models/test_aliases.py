"""Models of other names run as the models that they are: files with those names are made of transformers' own."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from app.check_model import check
from app.checkpoint.folder import ModelFolder
from app.errors import ModelError
from app.models.loader import load_model
from tests.layers.packing import gptq_tensors
from tests.models.families import VOCAB_SIZE, write_checkpoint
from tests.models.test_oracle import (
    greedy,
    make_engine,
    make_requests,
    run_crowd,
    tiny_settings,
    tokens_of,
    write_tokenizer,
)

Tensors = dict[str, Tensor]
Config = dict[str, Any]


class Case(NamedTuple):
    """A model of transformers, and the same in another's words."""

    architecture: str
    family: str
    options: Config
    """Of transformers' model, beside those of all tiny ones."""
    config: Config
    """What config.json says otherwise; None for what it does not say."""
    names: Mapping[str, str] = MappingProxyType({})
    """Parts of tensors' names."""
    change: Callable[[Tensors], Tensors] = lambda tensors: tensors
    """Makes the tensors, by transformers' names, those of the other model."""


def merge(tensors: Tensors, into: str, join: Callable[[list[Tensor]], Tensor]) -> Tensors:
    """The tensors with those of queries, keys and values joined to one of another name."""
    told = dict(tensors)
    for name in tensors:
        if ".self_attn.q_proj." in name:
            parts = [told.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
            told[name.replace(".self_attn.q_proj.", into)] = join(parts)
    return told


def by_groups(parts: list[Tensor]) -> Tensor:
    """InternLM2's order, with two heads of queries for each of two heads of keys, of 16 numbers."""
    q, k, v = (part.view(2, -1, 16, *part.shape[1:]) for part in parts)
    return torch.cat([q, k, v], 1).flatten(0, 2)


def with_a_draft_head(tensors: Tensors) -> Tensors:
    return tensors | {"model.mtp_layers.0.input_layernorm.weight": torch.ones(64)}


def with_frequencies(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: merge(tensors, ".self_attention.query_key_value.", torch.cat) | {name: torch.ones(8)}


_H = {
    "model.embed_tokens.": "transformer.wte.",
    "model.layers.": "transformer.h.",
    "model.norm.": "transformer.ln_f.",
    ".input_layernorm.": ".ln_1.",
    ".post_attention_layernorm.": ".ln_2.",
}
_ROPE3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | {
    "original_max_position_embeddings": 64
}
_BIASED = {"bias": True, "attention_bias": None}
CASES = {
    "internlm": Case("InternLMForCausalLM", "Llama", {"attention_bias": True}, _BIASED),
    "internlm2": Case(
        "InternLM2ForCausalLM",
        "Llama",
        {"attention_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}},
        _BIASED,
        {
            "embed_tokens.": "tok_embeddings.",
            ".self_attn.o_proj.": ".attention.wo.",
            ".mlp.gate_proj.": ".feed_forward.w1.",
            ".mlp.down_proj.": ".feed_forward.w2.",
            ".mlp.up_proj.": ".feed_forward.w3.",
            ".input_layernorm.": ".attention_norm.",
            ".post_attention_layernorm.": ".ffn_norm.",
            "lm_head.": "output.",
        },
        lambda tensors: merge(tensors, ".attention.wqkv.", by_groups),
    ),
    "exaone": Case(
        "ExaoneForCausalLM",
        "Llama",
        {"rope_parameters": {"rope_theta": 10000.0, **_ROPE3}, "rms_norm_eps": 1e-5},
        {"num_layers": 3, "num_hidden_layers": None, "activation_function": "silu", "hidden_act": None}
        | {"layer_norm_epsilon": 1e-5, "rms_norm_eps": None, "rope_theta": 10000.0, "rope_scaling": _ROPE3},
        _H
        | {
            ".self_attn.o_proj.": ".attn.attention.out_proj.",
            ".self_attn.": ".attn.attention.",
            ".mlp.gate_proj.": ".mlp.c_fc_0.",
            ".mlp.up_proj.": ".mlp.c_fc_1.",
            ".mlp.down_proj.": ".mlp.c_proj.",
        },
    ),
    "qwen": Case(
        "QWenLMHeadModel",
        "Qwen2",
        {"num_key_value_heads": 4},
        {"kv_channels": 16, "seq_length": 300, "max_position_embeddings": 8192, "intermediate_size": 224}
        | {"rotary_emb_base": 10000, "rope_parameters": None, "layer_norm_epsilon": 1e-6, "rms_norm_eps": None}
        | {"use_logn_attn": True, "use_dynamic_ntk": True, "no_bias": True, "num_key_value_heads": None},
        _H
        | {
            ".self_attn.o_proj.": ".attn.c_proj.",
            ".mlp.gate_proj.": ".mlp.w2.",
            ".mlp.up_proj.": ".mlp.w1.",
            ".mlp.down_proj.": ".mlp.c_proj.",
        },
        lambda tensors: merge(tensors, ".attn.c_attn.", torch.cat),
    ),
    "chatglm": Case(
        "ChatGLMModel",
        "Glm",
        {"attention_bias": True, "head_dim": 16, "rms_norm_eps": 1e-5}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5}},
        {
            "num_layers": 3,
            "num_hidden_layers": None,
            "padded_vocab_size": VOCAB_SIZE,
            "vocab_size": 7,
            "ffn_hidden_size": 112,
            "intermediate_size": None,
            "kv_channels": 16,
            "head_dim": None,
            "seq_length": 512,
            "max_position_embeddings": None,
            "rms_norm_eps": None,
            "add_qkv_bias": True,
            "attention_bias": None,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "num_key_value_heads": None,
            "rope_ratio": 500,
            "rope_parameters": None,
            "rmsnorm": True,
            "original_rope": True,
            "post_layer_norm": True,
        },
        {
            "model.embed_tokens.": "transformer.embedding.word_embeddings.",
            "model.norm.": "transformer.encoder.final_layernorm.",
            "model.layers.": "transformer.encoder.layers.",
            "lm_head.": "transformer.output_layer.",
            ".self_attn.o_proj.": ".self_attention.dense.",
            ".mlp.gate_up_proj.": ".mlp.dense_h_to_4h.",
            ".mlp.down_proj.": ".mlp.dense_4h_to_h.",
        },
        with_frequencies("transformer.rotary_pos_emb.inv_freq"),
    ),
    "baichuan": Case(
        "BaiChuanForCausalLM",
        "Llama",
        {"num_key_value_heads": 4},
        {},
        {},
        lambda tensors: merge(tensors, ".self_attn.W_pack.", torch.cat),
    ),
    "mimo": Case("MiMoForCausalLM", "Qwen2", {}, {"attention_bias": True}, {}, with_a_draft_head),
    "Yi": Case("YiForCausalLM", "Llama", {}, {}, {".input_layernorm.": ".ln1.", ".post_attention_layernorm.": ".ln2."}),
    "aquila": Case("AquilaModel", "Llama", {}, {}),
    "xverse": Case("XverseForCausalLM", "Llama", {}, {}),
    "kimi_k2": Case(
        "DeepseekV3ForCausalLM",
        "DeepseekV3",
        {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        | {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12}
        | {"first_k_dense_replace": 1, "num_key_value_heads": 4},
        {},
    ),
}
"""By model_type."""


def write(kind: str, case: Case, folder: Path) -> PreTrainedModel:
    """A folder with the other model; returns transformers' own."""
    oracle = write_checkpoint(case.family, case.options, folder)
    tensors = case.change(load_file(folder / "model.safetensors"))
    save_as(folder, kind, case.architecture, case.config, rename(tensors, case.names))
    return oracle


def rename(tensors: Tensors, names: Mapping[str, str]) -> Tensors:
    told = {}
    for name, tensor in tensors.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        told[name] = tensor.contiguous()
    return told


def save_as(folder: Path, kind: str, architecture: str, fields: Config, tensors: Tensors) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": kind, "architectures": [architecture], "auto_map": {"AutoConfig": "configuration.Config"}}
    told = {name: value for name, value in (config | fields).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(told))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def check_greedy(folder: Path, oracle: PreTrainedModel) -> None:
    requests = make_requests(4, temperature=0.0)
    outputs, _ = run_crowd(make_engine(folder, tiny_settings()), requests)
    for name, (prompt, sampling) in requests.items():
        said = tokens_of(outputs[name])
        assert said == greedy(oracle, prompt, said, sampling.max_tokens), name


@pytest.mark.parametrize("kind", CASES)
def test_a_model_of_another_name_is_the_model_that_it_is(kind: str, tmp_path: Path) -> None:
    check_greedy(tmp_path, write(kind, CASES[kind], tmp_path))


def test_minicpm_is_a_llama_with_these_weights(tmp_path: Path) -> None:
    """As its authors' own script folds its factors into the weights of a Llama."""
    oracle = write_checkpoint("Llama", {}, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    factors = {"embed_tokens": 4.0, "o_proj": 1.4 / 3**0.5, "down_proj": 1.4 / 3**0.5, "lm_head": 16 / 64}
    told = {
        name: tensor / next((factor for part, factor in factors.items() if part in name), 1.0)
        for name, tensor in tensors.items()
    }
    fields = {"scale_emb": 4, "scale_depth": 1.4, "dim_model_base": 16}
    save_as(tmp_path, "minicpm", "MiniCPMForCausalLM", fields, told)
    check_greedy(tmp_path, oracle)
    save_as(tmp_path, "minicpm", "MiniCPMForCausalLM", {"num_experts": 8}, told)
    with pytest.raises(ModelError, match="num_experts is 8"):
        _ = ModelFolder(tmp_path).config


def test_baichuan_2_has_rows_of_length_one_in_its_last_layer(tmp_path: Path) -> None:
    oracle = write_checkpoint("Llama", {"num_key_value_heads": 4}, tmp_path)
    tensors = merge(load_file(tmp_path / "model.safetensors"), ".self_attn.W_pack.", torch.cat)
    save_as(tmp_path, "baichuan", "BaichuanForCausalLM", {}, tensors)
    oracle.lm_head.weight.data = torch.nn.functional.normalize(oracle.lm_head.weight.data)
    check_greedy(tmp_path, oracle)
    save_as(tmp_path, "baichuan", "BaichuanForCausalLM", {"max_position_embeddings": None}, tensors)
    with pytest.raises(ModelError, match="ALiBi"):
        _ = ModelFolder(tmp_path).config


def test_orion_is_a_llama_with_other_norms(tmp_path: Path) -> None:
    oracle = write_checkpoint("Llama", {"rms_norm_eps": 1e-5}, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for path, module in list(oracle.named_modules()):
        if path.endswith("norm"):
            norm = torch.nn.LayerNorm(64, eps=1e-5)
            norm.weight.data, norm.bias.data = module.weight.data, torch.linspace(-1, 1, 64)
            tensors[f"{path}.bias"] = norm.bias.data
            oracle.set_submodule(path, norm)
    save_as(tmp_path, "orion", "OrionForCausalLM", {}, tensors)
    check_greedy(tmp_path, oracle)


def test_quantized_weights_become_plain_numbers(tmp_path: Path) -> None:
    """Also those of merged projections, whose rows are put in another order, in files that cut through layers."""
    write("internlm2", CASES["internlm2"], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    stored, dense = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and "layers." in name:
            layer = name.removesuffix(".weight")
            parts, weight = gptq_tensors(stored.pop(name), 16, 4, False)
            dense[name] = weight.contiguous()
            stored |= {f"{layer}.{part}": value.contiguous() for part, value in parts.items()}
    save_file(dense, tmp_path / "model.safetensors", metadata={"format": "pt"})
    expected = run_crowd(make_engine(tmp_path, tiny_settings()), make_requests(4, temperature=0.0))[0]
    config = json.loads((tmp_path / "config.json").read_text())
    quantized = {"quant_method": "gptq", "bits": 4, "group_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": quantized}))
    (tmp_path / "model.safetensors").unlink()
    for number in range(2):
        some = {name: stored[name] for name in sorted(stored)[number::2]}
        save_file(some, tmp_path / f"model-{number}.safetensors", metadata={"format": "pt"})
    found = run_crowd(make_engine(tmp_path, tiny_settings()), make_requests(4, temperature=0.0))[0]
    assert {name: tokens_of(said) for name, said in found.items()} == {
        name: tokens_of(said) for name, said in expected.items()
    }
    name = next(name for name in some if name.endswith(".qweight"))
    save_file(some | {name: some[name][:-1].contiguous()}, tmp_path / "model-1.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"{name.rpartition('.')[0]}"):
        make_engine(tmp_path, tiny_settings())


def test_code_of_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    write("internlm2", CASES["internlm2"], tmp_path)
    (tmp_path / "configuration.py").write_text("raise SystemExit('run')")
    write_tokenizer(tmp_path)
    assert check(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "internlm9"}))
    assert not check(str(tmp_path))


def test_what_an_alias_cannot_read_is_named(tmp_path: Path) -> None:
    write("internlm2", CASES["internlm2"], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"model.layers.0.attention.extra.weight": torch.ones(4)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"attention\.extra"):
        load_model(ModelFolder.open(tmp_path), tiny_settings(), torch.float32, torch.device("cpu"), 64)
