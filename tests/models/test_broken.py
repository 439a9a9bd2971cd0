"""Checkpoints that cannot run are refused in one line that says what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.errors import ModelError
from app.worker.factory import build_worker
from tests.models.families import DECODER, GENERIC, write_checkpoint
from tests.models.test_oracle import tiny_settings

BROKEN: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such family": (
        "Llama",
        {"model_type": "no-such-model", "architectures": ["NoSuchForCausalLM"]},
        "no-such-model",
    ),
    "of remote code": (
        "Llama",
        {"model_type": "mine", "architectures": ["Mine"], "auto_map": {"AutoConfig": "mine.Config"}},
        "code of its own",
    ),
    "quantized": ("Llama", {"quantization_config": {"quant_method": "gptq"}}, "quantized checkpoints .gptq."),
    "no heads": ("Llama", {"num_attention_heads": 0, "head_dim": None}, "ZeroDivisionError"),
    "a number as a word": ("Llama", {"hidden_size": "wide"}, "does not describe a llama"),
    "a negative size": ("Llama", {"intermediate_size": -1}, "does not describe a llama"),
    "half a rotary embedding": ("Llama", {"rope_parameters": {"rope_type": "llama3"}}, "does not describe a llama"),
    "odd layer types": ("Qwen3", {"layer_types": 3}, "does not describe a qwen3"),
    "a length as a word": ("Llama", {"max_position_embeddings": "long"}, "max_position_embeddings"),
    "other sizes than the weights": ("Llama", {"hidden_size": 32, "head_dim": 16}, "has shape"),
    "generic, of odd values": ("Cohere", {"num_attention_heads": "many"}, "cannot run"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family, changes, words = BROKEN[name]
    write_checkpoint(family, {**DECODER, **GENERIC}[family], tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question to a user who is not there"))
    with pytest.raises(ModelError, match=words) as error:
        build_worker(tiny_settings(), tmp_path)
    assert "\n" not in str(error.value)


def test_the_shortest_context(tmp_path: Path) -> None:
    write_checkpoint("Llama", {}, tmp_path)
    assert build_worker(tiny_settings(max_model_len=2), tmp_path).limits.max_model_len == 2


def test_a_context_that_nobody_asked_for_shrinks_to_the_blocks(tmp_path: Path) -> None:
    write_checkpoint("Llama", {}, tmp_path)  # for 512 tokens
    assert build_worker(tiny_settings(max_model_len=None, num_kv_blocks=5), tmp_path).limits.max_model_len == 40
