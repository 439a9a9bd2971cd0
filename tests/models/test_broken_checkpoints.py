"""The error of a broken checkpoint is one line that names the file."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from app.engine.build import build_engine
from app.errors import ModelError, StartupError
from app.settings import Settings, load_settings
from tests.models.families import DECODER, write_checkpoint


def tiny_settings(**options: Any) -> Settings:
    return load_settings(**{"device": "cpu", "dtype": "float32", "num_kv_blocks": 64, **options})


def rewrite_config(folder: Path, **changes: Any) -> None:
    """Change values in config.json; `...` removes one."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    write_checkpoint("Llama", DECODER["Llama"], folder)
    return folder


@pytest.fixture
def checkpoint(llama: Path, tmp_path: Path) -> Path:
    """A checkpoint that the test may break."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((llama / name).read_bytes())
    return tmp_path


CODE = {"AutoConfig": "configuration.Mine", "AutoModelForCausalLM": "modeling.Mine"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "perceptron"}, "knows no model_type perceptron"),
        ({"model_type": "perceptron", "auto_map": CODE}, "code that comes with a checkpoint (auto_map) is not run"),
        (
            {"model_type": "siglip_vision_model", "architectures": ["SiglipForConditionalGeneration"]},
            "has no siglip_vision_model that generates from text alone",
        ),
        ({"model_type": 3}, "model_type is 3"),
        ({"architectures": []}, "architectures is []"),
        ({"architectures": None}, "architectures is None"),
        ({"text_config": "none"}, "text_config is 'none'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config: group_size is None"),
        (
            {"quantization_config": {"quant_method": "quip"}},
            "quantization_config: quant_method 'quip' is not supported",
        ),
        ({"max_position_embeddings": "many"}, "max_position_embeddings is 'many'"),
        ({"max_position_embeddings": 1}, "max_position_embeddings is 1"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": "4"}, "num_attention_heads is '4'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}}, "KeyError: 'factor'"),
        ({"rope_parameters": 7}, "TypeError"),
        ({"layer_types": ["full_attention"]}, "layer_types are of 1 layers, not 3"),
        ({"model_type": "mistral", "sliding_window": "wide"}, "sliding_window is 'wide'"),
    ],
)
def test_config_json_is_named_with_what_is_wrong(changes: dict[str, Any], words: str, checkpoint: Path) -> None:
    rewrite_config(checkpoint, **changes)
    with pytest.raises(ModelError) as raised:
        build_engine(tiny_settings(), checkpoint)
    message = str(raised.value)
    assert words in message
    assert f"{checkpoint}/config.json" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "changes", [{"num_attention_heads": 0}, {"hidden_size": "64"}, {"rope_parameters": 7}, {"vocab_size": -5}]
)
def test_whatever_transformers_raises_is_one_line(changes: dict[str, Any], checkpoint: Path) -> None:
    rewrite_config(checkpoint, **changes)
    with pytest.raises(ModelError, match=f"cannot load {checkpoint}") as raised:
        build_engine(tiny_settings(model_impl="generic"), checkpoint)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("impl", ["decoder", "generic"])
def test_a_tensor_that_is_missing_is_not_made_up(impl: str, checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 tensors of the model, \S*layers\.1\.mlp\.down_proj\.weight"):
        build_engine(tiny_settings(model_impl=impl), checkpoint)


def test_code_of_a_checkpoint_is_not_run_where_its_family_is_known(checkpoint: Path) -> None:
    (checkpoint / "modeling.py").write_text("raise SystemExit('it was run')")
    rewrite_config(checkpoint, auto_map=CODE)
    for impl in ("decoder", "generic"):
        assert build_engine(tiny_settings(model_impl=impl), checkpoint)[1].model_impl == impl


@pytest.mark.parametrize(
    ("config", "length"),
    [({"model_type": "phi3"}, 4096), ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, 131072)],
)
def test_the_context_of_a_family_counts_where_config_json_leaves_it_out(
    config: dict[str, Any], length: int, checkpoint: Path
) -> None:
    rewrite_config(checkpoint, max_position_embeddings=..., **config)
    with pytest.raises(StartupError, match=f"more than the {length} the model was made for"):
        build_engine(tiny_settings(max_model_len=length + 1), checkpoint)


@pytest.mark.parametrize("block_size", [1, 16])
def test_the_shortest_context_starts(block_size: int, checkpoint: Path) -> None:
    _, ready = build_engine(tiny_settings(max_model_len=2, block_size=block_size), checkpoint)
    assert ready.max_model_len == 2


def test_an_automatic_context_shrinks_to_the_blocks_and_a_wanted_one_is_refused(checkpoint: Path) -> None:
    _, ready = build_engine(tiny_settings(num_kv_blocks=10), checkpoint)
    assert (ready.max_model_len, ready.num_kv_blocks) == (160, 10)
    with pytest.raises(StartupError, match="10 KV blocks are too few: one request of 161 tokens needs 11"):
        build_engine(tiny_settings(num_kv_blocks=10, max_model_len=161), checkpoint)


@pytest.mark.parametrize("worker", ["model", "echo"])
def test_a_step_with_less_tokens_than_requests_is_refused(worker: str, checkpoint: Path) -> None:
    with pytest.raises(StartupError, match="max_num_batched_tokens: 10 is less than max_num_seqs, which is 20"):
        build_engine(tiny_settings(worker=worker, max_num_seqs=20, max_num_batched_tokens=10), checkpoint)
