"""What a checkpoint holds is used as transformers uses it, or refused: nothing is left out without a word."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from app.check_model import _largest_difference
from app.checkpoint.folder import ModelFolder
from app.engine.build import build_engine
from app.errors import ModelError
from app.settings import Settings, load_settings
from app.worker.encoder_factory import build_encoder
from tests.models.families import DECODER, write_checkpoint
from tests.models.test_broken_checkpoints import rewrite_config
from tests.worker.test_encoder_runner import write_encoder


def settings(impl: str = "auto") -> Settings:
    return load_settings(device="cpu", dtype="float32", num_kv_blocks=64, max_model_len=60, model_impl=impl)


def add_tensors(folder: Path, **tensors: torch.Tensor) -> None:
    file = folder / "model.safetensors"
    save_file({**load_file(file), **tensors}, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with two embeddings, whose config.json says so."""
    folder = tmp_path_factory.mktemp("untied")
    write_checkpoint("Llama", {"tie_word_embeddings": False}, folder)
    return folder


@pytest.mark.parametrize("shard_size", ["10MB", "60KB"])
@pytest.mark.parametrize("impl", ["decoder", "generic"])
def test_a_head_of_its_own_counts_more_than_a_config_that_ties_it(
    impl: str, shard_size: str, untied: Path, tmp_path: Path
) -> None:
    LlamaForCausalLM.from_pretrained(untied).save_pretrained(tmp_path, max_shard_size=shard_size)
    rewrite_config(tmp_path, tie_word_embeddings=True)
    core, ready = build_engine(settings(impl), tmp_path)
    assert _largest_difference(core, untied, ready.vocab_size) < 1e-4


@pytest.mark.parametrize("impl", ["decoder", "generic"])
def test_a_head_that_equals_the_tied_embedding_is_no_other(impl: str, tmp_path: Path) -> None:
    write_checkpoint("Llama", {"tie_word_embeddings": True}, tmp_path)
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    add_tensors(tmp_path, **{"lm_head.weight": embedding.clone()})
    core, ready = build_engine(settings(impl), tmp_path)
    assert _largest_difference(core, tmp_path, ready.vocab_size) < 1e-4


@pytest.mark.parametrize(
    "name",
    ["score.weight", "model.layers.1.mlp.down_proj.weight_scale", "model.layers.0.self_attn.q_proj.lora_A.weight"],
)
@pytest.mark.parametrize("impl", ["decoder", "generic"])
def test_a_tensor_that_is_not_read_is_named(impl: str, name: str, tmp_path: Path) -> None:
    write_checkpoint("Llama", {"tie_word_embeddings": True}, tmp_path)
    add_tensors(tmp_path, **{name: torch.ones(3)})
    with pytest.raises(ModelError, match=f"a tensor that the model does not: {name}"):
        build_engine(settings(impl), tmp_path)


@pytest.mark.parametrize("impl", ["decoder", "generic"])
def test_frequencies_in_old_checkpoints_are_left_out(impl: str, tmp_path: Path) -> None:
    write_checkpoint("Llama", DECODER["Llama"], tmp_path)
    add_tensors(tmp_path, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    core, ready = build_engine(settings(impl), tmp_path)
    assert _largest_difference(core, tmp_path, ready.vocab_size) < 1e-4


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    write_checkpoint("Llama", DECODER["Llama"], tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "one.safetensors")
    save_file({"model.norm.weight": torch.ones(64)}, tmp_path / "two.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.norm\.weight twice"):
        build_engine(settings("decoder"), tmp_path)


def test_an_adapter_beside_base_weights_is_refused(tmp_path: Path) -> None:
    write_checkpoint("Llama", DECODER["Llama"], tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    save_file({"base_model.lora_A.weight": torch.ones(2, 64)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"an adapter \(adapter_config\.json\)"):
        build_engine(settings(), tmp_path)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("Bert", "ForQuestionAnswering"),
        ("Roberta", "ForMaskedLM"),
        ("Llama", "ForQuestionAnswering"),
    ],
)
def test_another_task_is_refused_by_the_name_of_its_class(family: str, kind: str, tmp_path: Path) -> None:
    if family in DECODER:
        write_checkpoint(family, DECODER[family], tmp_path)
        rewrite_config(tmp_path, architectures=[f"{family}{kind}"])
    else:
        write_encoder(tmp_path, family, kind)
    with pytest.raises(ModelError, match=f"{family}{kind} is neither a generator nor an encoder that is supported"):
        build_engine(settings(), tmp_path)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("Model", "score.weight"),
        ("Model", "encoder.layer.0.output.dense.weight_scale"),
        ("ForSequenceClassification", "x"),
    ],
)
def test_a_tensor_of_an_encoder_that_is_not_read_is_named(kind: str, name: str, tmp_path: Path) -> None:
    write_encoder(tmp_path, "Bert", kind)
    config = ModelFolder(tmp_path).predictor
    assert config is not None
    add_tensors(tmp_path, **{name: torch.ones(3)})
    with pytest.raises(ModelError, match=f"a tensor that the model does not: {name}"):
        build_encoder(load_settings(device="cpu"), tmp_path, config)


def test_a_classifier_without_its_head_is_not_made_up(tmp_path: Path) -> None:
    write_encoder(tmp_path, "Bert", "Model")
    rewrite_config(tmp_path, architectures=["BertForSequenceClassification"])
    config = ModelFolder(tmp_path).predictor
    assert config is not None
    with pytest.raises(ModelError, match=r"lacks 2 tensors of the model, classifier\.bias"):
        build_encoder(load_settings(device="cpu"), tmp_path, config)


# ---------------------------------------------------------------------- windows

WINDOWS: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {"sliding_window": 8}),
    ("Llama", {"sliding_window": 8, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 3}),
    ("Olmo2", {"sliding_window": 8}),
    ("Mistral", {"sliding_window": 8, "use_sliding_window": False}),
    ("Phi3", {"sliding_window": 8}),
    ("Qwen2", {"sliding_window": 8, "use_sliding_window": False, "max_window_layers": 1}),
    ("Qwen3", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2}),
    ("Qwen3", {"sliding_window": 8, "use_sliding_window": True, "layer_types": ["full_attention"] * 3}),
    ("SmolLM3", {"sliding_window": 8, "use_sliding_window": True, "no_rope_layers": [1, 0, 1]}),
    ("Gemma3Text", {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
]


@pytest.mark.parametrize(("family", "options"), WINDOWS)
def test_windows_are_where_transformers_has_them(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    write_checkpoint(family, {}, tmp_path)
    layer_types = {"layer_types": ...} if "layer_types" not in options else {}
    rewrite_config(tmp_path, **layer_types, **options)
    core, ready = build_engine(settings("decoder"), tmp_path)
    assert _largest_difference(core, tmp_path, ready.vocab_size) < 1e-4
