"""What a model folder says, without torch, and how it says what is wrong."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.checkpoint.folder import ModelFolder
from app.checkpoint.whisper import parse_speech_tokens
from app.errors import ModelError

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 99}


def write(folder: Path, **config: Any) -> ModelFolder:
    (folder / "config.json").write_text(json.dumps(config))
    return ModelFolder(folder)


def test_a_file_is_read_once(tmp_path: Path) -> None:
    folder = write(tmp_path, **LLAMA, dtype="bfloat16", quantization_config={"quant_method": "fp8"})
    assert folder.architecture == "LlamaForCausalLM"
    (tmp_path / "config.json").unlink()
    assert (folder.model_type, folder.dtype, folder.vocab_size) == ("llama", "bfloat16", 99)
    assert folder.max_position_embeddings == 2048  # its family's
    assert folder.quantization == {"quant_method": "fp8"}
    assert folder.predictor is None


@pytest.mark.parametrize(
    ("config", "dtype"),
    [({}, "float32"), ({"torch_dtype": "float16"}, "float16"), ({"dtype": "int4"}, "float32")],
)
def test_the_dtype_is_a_name(config: dict[str, str], dtype: str, tmp_path: Path) -> None:
    assert write(tmp_path, **LLAMA, **config).dtype == dtype


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": 3}, "model_type is 3"),
        ({"architectures": []}, "architectures is []"),
        ({"max_position_embeddings": 1}, "max_position_embeddings is 1"),
        ({"text_config": "none"}, "text_config is 'none'"),
        ({"quantization_config": "awq"}, "quantization_config is 'awq'"),
    ],
)
def test_what_loading_needs_is_checked_when_a_folder_is_opened(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    write(tmp_path, **LLAMA | changes)
    error = f"{tmp_path}/config.json is not a usable model configuration: {words}"
    with pytest.raises(ModelError, match=re.escape(error)):
        ModelFolder.open(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [("[1]", "is not a JSON object"), ("{", "is not readable JSON"), ("[" * 100_000, "is not readable JSON")],
)
def test_a_file_that_is_no_object_is_named(content: str, words: str, tmp_path: Path) -> None:
    assert ModelFolder(tmp_path).read_object("generation_config.json") == {}
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ModelError, match=f"generation_config.json {words}"):
        ModelFolder(tmp_path).read_object("generation_config.json")


def test_reading_a_folder_takes_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'safetensors'}"
    code = f"import sys, app.checkpoint.folder, app.checkpoint.source; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_alignment_heads_of_a_larger_whisper_are_not_taken() -> None:
    """Models that were distilled have them from their teachers."""
    asked = {"no_timestamps_token_id": 7, "eos_token_id": 1, "decoder_layers": 2, "decoder_attention_heads": 4}
    for heads, expected in (([[1, 3], [0, 0]], ((1, 3), (0, 0))), ([[1, 3], [2, 0]], ()), ([[1, 4]], ()), (None, ())):
        speech = parse_speech_tokens(asked | {"alignment_heads": heads}, 0)
        assert speech is not None
        assert speech.alignment_heads == expected
