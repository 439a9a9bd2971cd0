"""What a GGUF file says of its model is in config.json, and what is not understood is named."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from app.check_model import _largest_difference
from app.checkpoint.convert import convert
from app.checkpoint.gguf.by_name import tensors_by_name
from app.checkpoint.gguf.config import model_config
from app.checkpoint.gguf.file import GgufFile
from app.engine.build import build_engine
from app.models.reference import transformers_model
from app.settings import load_settings
from tests.checkpoint.conftest import add_keys, write_gguf

SIZES: dict[str, Any] = {
    "context_length": 4096,
    "embedding_length": 64,
    "block_count": 2,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-6,
}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 1024}


def describe(path: Path, family: str, **keys: Any) -> dict[str, Any]:
    """config.json of a file that has no weights."""
    writer = gguf.GGUFWriter(path / "model.gguf", family)
    add_keys(writer, {f"{family}.{key}": value for key, value in (SIZES | keys).items()})
    writer.add_tensor("token_embd.weight", np.zeros((99, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    config = model_config(GgufFile(path / "model.gguf"))
    assert config is not None
    return config


def default(theta: float = 10000.0) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


@pytest.mark.parametrize(
    ("family", "keys", "expected"),
    [
        ("llama", {"rope.freq_base": 5e5, "rope.dimension_count": 16}, {"rope_parameters": default(5e5)}),
        (
            "llama",
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
            {"rope_parameters": {**default(), "rope_type": "linear", "factor": 4.0}},
        ),
        ("llama", {"rope.scale_linear": 2.0}, {"rope_parameters": {**default(), "rope_type": "linear", "factor": 2.0}}),
        ("llama", {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {"rope_parameters": default()}),
        (
            "qwen2",
            YARN,
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 10000.0,
                    "factor": 4.0,
                    "attention_factor": 1 + 0.1 * math.log(4),
                    "original_max_position_embeddings": 1024,
                    "beta_fast": 32.0,
                    "beta_slow": 1.0,
                }
            },
        ),
        ("qwen3", {"attention.key_length": 32, "attention.value_length": 32}, {"head_dim": 32, "model_type": "qwen3"}),
        (
            "phi3",
            {"rope.dimension_count": 12, "attention.sliding_window": 2047},
            {"rope_parameters": {**default(), "partial_rotary_factor": 0.75}, "sliding_window": 2047},
        ),
        ("phi3", {"attention.sliding_window": 0}, {"sliding_window": None}),
        (
            "gemma2",
            {"attn_logit_softcapping": 40.0, "attention.sliding_window": 512, "attention.key_length": 32,
             "attention.value_length": 32},
            {"attn_logit_softcapping": 40.0, "final_logit_softcapping": 30.0, "sliding_window": 512,
             "query_pre_attn_scalar": 32},
        ),
        ("gemma2", {"block_count": 46, "attention.key_length": 32, "attention.value_length": 32},
         {"query_pre_attn_scalar": 16}),
        (
            "gemma3",
            {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "attention.sliding_window": 1024},
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                    "sliding_attention": default(),
                },
                "sliding_window": 1024,
                "sliding_window_pattern": 6,
            },
        ),
        (
            "qwen3moe",
            {"expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 24},
            {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True},
        ),
    ],
)  # fmt: skip
def test_metadata_as_transformers_writes_it(
    family: str, keys: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    config = describe(tmp_path, family, **keys)
    assert {key: config[key] for key in expected} == expected
    assert (config["vocab_size"], config["hidden_size"], config["rms_norm_eps"]) == (99, 64, pytest.approx(1e-6))
    AutoConfig.for_model(**config).validate_rope()


@pytest.mark.parametrize(
    ("family", "keys", "words"),
    [
        ("llama", {"rope.scaling.type": "su"}, r"rope\.scaling\.type su"),
        ("qwen3", {"expert_count": 8}, "experts"),
        ("llama", {"attention.value_length": 8}, "values of another length"),
        ("llama", {"vocab_size": 100}, "vocab_size"),
        ("llama", {"attention.head_count": [4, 2]}, "num_attention_heads is"),
        ("llama", {"context_length": [1, 2]}, "max_position_embeddings is"),
        ("llama", {"attention.head_count": 0}, "num_attention_heads is 0"),
        ("llama", {"attention.key_length": 0, "attention.value_length": 0}, "key_length is 0"),
        ("granite", {"rope.scaling.finetuned": False}, r"without rotation \(rope\.scaling\.finetuned\)"),
        ("minicpm", {"embedding_scale": 12.0}, r"lacks minicpm\.residual_scale"),
        ("lfm2", {"attention.head_count_kv": [0, 2]}, r"lfm2\.shortconv\.l_cache is None"),
        ("lfm2moe", {"attention.head_count_kv": [0, 2], "expert_gating_func": 1}, "expert_gating_func"),
        ("jamba", {"attention.head_count_kv": [0, 2, 2, 0], "block_count": 4}, "head_count_kv: .* regular turns"),
        ("mamba2", {"ssm.inner_size": 100}, "ssm.inner_size is 100, and embedding_length 64"),
        ("hunyuan-moe", {"expert_count": 4, "expert_shared_count": 2}, "expert_shared_count is 2, and not 1"),
        ("gemma4", {"feed_forward_length": [96, 96]}, "sliding_window_pattern"),
    ],
)
def test_what_a_family_cannot_do_is_named(family: str, keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        describe(tmp_path, family, **keys)


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    def key(name: bytes, kind: int, value: bytes) -> bytes:
        return struct.pack(f"<Q{len(name)}sI", len(name), name, kind) + value

    file = tmp_path / "model.gguf"
    for content, words in (
        (key(b"general.alignment", 4, struct.pack("<I", 0)), "alignment is 0"),
        (key(b"general.alignment", 6, struct.pack("<f", 32)), "alignment is 32.0"),
        (key(b"a", 9, struct.pack("<IQ", 9, 1) * 5000), "not a readable GGUF file"),  # lists of lists of lists
        (key(b"a", 9, struct.pack("<IQ", 4, 2**62)), "not a readable GGUF file"),
        (key(b"a", 8, struct.pack("<Q", 2**63)), "ends within a text"),
    ):
        file.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + content)
        with pytest.raises(ValueError, match=words):
            GgufFile(file)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"llama.attention.sliding_window": 64}, r"llama\.attention\.sliding_window"),
        ({"llama.logit_scale": 0.5}, r"llama\.logit_scale"),
        ({"tokenizer.ggml.normalizer.lowercase": True}, r"tokenizer\.ggml\.normalizer\.lowercase"),
    ],
)
def test_a_key_that_nobody_reads_is_named(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"do not know: {words}"):
        convert(write_gguf(tmp_path / "model.gguf", more_keys=keys), tmp_path / "model")


def test_a_tensor_that_nobody_reads_is_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", more_tensors={"blk.0.attn_sinks.weight": np.ones(4, np.float32)})
    with pytest.raises(ValueError, match=r"do not know: blk\.0\.attn_sinks\.weight"):
        convert(path, tmp_path / "model")


def test_a_tensor_of_another_shape_is_named_with_both(tmp_path: Path) -> None:
    """A transposed one has as many numbers. Dimensions of one, as of convolutions, may be dropped."""
    file, name = GgufFile(write_gguf(tmp_path / "model.gguf")), "model.layers.1.mlp.up_proj.weight"
    config = model_config(file) or {}
    assert [found.shape for _, found in tensors_by_name(file, config, {name: (96, 1, 64)})] == [(96, 1, 64)]
    words = r"mlp\.up_proj\.weight of the model has shape \(64, 96\), and the file blk\.1\.ffn_up\.weight \(96, 64\)"
    with pytest.raises(ValueError, match=words):
        list(tensors_by_name(file, config, {name: (64, 96)}))


def test_what_is_wrong_with_a_tensor_is_named_as_in_the_file(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "granitehybrid")
    shapes = {"0.ssm_norm": (2, 64), "1.ssm_norm": (64, 2), "0.attn_k": (31, 64), "0.ffn_gate": (96, 64)}
    for name, shape in {**shapes, "0.ffn_down_exps": (2, 64, 96)}.items():
        writer.add_tensor(f"blk.{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "model.gguf")
    config = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "mamba_n_groups": 2}
    assert len(list(tensors_by_name(file, config, {"model.layers.0.mamba.norm.weight": (128,)}))) == 1
    for name, size, words in (
        ("1.mamba.norm.weight", (128,), r"blk\.1\.ssm_norm\.weight \(64, 2\)"),
        ("0.self_attn.k_proj.weight", (32, 64), r"blk\.0\.attn_k\.weight has 31 rows, .* 2 heads"),
        ("0.shared_mlp.input_linear.weight", (192, 64), r"lacks blk\.0\.ffn_up\.weight"),
        ("0.block_sparse_moe.experts.gate_up_proj", (2, 192, 64), r"lacks blk\.0\.ffn_gate_exps\.weight"),
        ("1.mamba.dt_bias", (4,), r"lacks blk\.1\.ssm_dt\.bias"),
    ):
        with pytest.raises(ValueError, match=words):
            list(tensors_by_name(file, config, {f"model.layers.{name}": size}))


def test_a_token_beyond_the_embeddings_is_refused(tmp_path: Path) -> None:
    embeddings = np.ones((50, 64), np.float32)
    path = write_gguf(
        tmp_path / "model.gguf", leave_out="token_embd.weight", more_tensors={"token_embd.weight": embeddings}
    )
    with pytest.raises(ValueError, match=r"tokens, and token_embd\.weight the shape \(50, 64\)"):
        convert(path, tmp_path / "model")


def test_factors_of_rotary_frequencies_are_those_of_llama_3(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    factors = (1.0 / 10000.0 ** (torch.arange(0, 16, 2) / 16) / scaled).numpy()
    converted, oracle = tmp_path / "converted", tmp_path / "oracle"
    described = {"general.name": "any", "general.quantized_by": "me", "quantize.imatrix.file": "x"}
    sampling = {"general.sampling.temp": 0.5, "general.sampling.top_k": 20}
    keys = {**described, **sampling}
    path = write_gguf(tmp_path / "m.gguf", more_tensors={"rope_freqs.weight": factors}, more_keys=keys)
    convert(path, converted)
    recommended = json.loads((converted / "generation_config.json").read_text())
    assert (recommended["temperature"], recommended["top_k"], "top_p" in recommended) == (0.5, 20, False)
    described_model = json.loads((converted / "config.json").read_text())
    del described_model["quantization_config"]
    model = LlamaForCausalLM(LlamaConfig(**described_model))
    model.load_state_dict(transformers_model(converted).state_dict())
    model.save_pretrained(oracle)
    written = json.loads((oracle / "config.json").read_text())
    (oracle / "config.json").write_text(json.dumps(written | {"rope_parameters": rope}))
    assert difference(converted, oracle) < 1e-4


def difference(converted: Path, oracle: Path) -> float:
    """The largest difference between what both compute: Paceline, and transformers from a checkpoint of its own."""
    settings = load_settings(device="cpu", dtype="float32", num_kv_blocks=32, max_model_len=60)
    core, ready = build_engine(settings, converted)
    return _largest_difference(core, oracle, ready.vocab_size)
