"""A GGUF file small enough to convert in a moment, and `find_model` in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
_FILE_TYPES = {
    gguf.GGMLQuantizationType.F32: gguf.LlamaFileType.ALL_F32,
    gguf.GGMLQuantizationType.F16: gguf.LlamaFileType.MOSTLY_F16,
}
MERGES = ["Ġ Ġ", "ĠĠ ĠĠ", "Ċ Ċ", "t h", "th e", "Ġ the", "i n", "Ġ in", "Ġ x"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FIND = """
import sys
from app.errors import ModelError
from app.checkpoint.source import find_model
try:
    print(find_model(sys.argv[1]))
    assert "torch" not in sys.modules
except ModelError as error:
    print("ModelError:", error)
"""


def start_find(model: str | Path, **env: str) -> subprocess.Popen[str]:
    """`find_model` in a process that prints the path or "ModelError: text"."""
    command = [sys.executable, "-c", FIND, str(model)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | env, **pipes)


def find(model: str | Path, **env: str) -> str:
    """The output of `start_find`, once it has ended."""
    with start_find(model, **env) as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    return output.strip()


def write_gguf(
    path: Path,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    leave_out: str = "",
    more_keys: dict[str, Any] | None = None,
    more_tensors: dict[str, Any] | None = None,
) -> Path:
    """A random Llama of two layers with a byte-level vocabulary, of SmolLM2's kind."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(_FILE_TYPES.get(kind, gguf.LlamaFileType.MOSTLY_Q4_1))
    add_keys(writer, more_keys or {})
    for name, tensor in (more_tensors or {}).items():
        writer.add_tensor(name, tensor)
    vocabulary = add_tokenizer(writer)
    random = np.random.default_rng(0)
    for name, shape in _shapes(vocabulary).items():
        weights = random.standard_normal(shape, dtype=np.float32) / 8
        if name == leave_out:
            continue
        if len(shape) == 1:
            writer.add_tensor(name, weights)
        elif kind == gguf.GGMLQuantizationType.IQ4_NL:
            writer.add_tensor(name, iq4_nl(weights.shape), raw_dtype=kind)
        else:
            writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def iq4_nl(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Blocks of 32 numbers of a type that Paceline has no reader for: a scale in float16, and codes by chance."""
    *rows, inputs = shape
    codes = np.random.default_rng(inputs).integers(0, 256, (*rows, inputs // 32, 18), np.uint8)
    codes[..., :2] = np.full(1, 0.002, np.float16).view(np.uint8)
    return codes.reshape(*rows, -1)


def add_keys(writer: gguf.GGUFWriter, keys: dict[str, Any]) -> None:
    """Add values of the types that their Python types stand for."""
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in keys.items():
        (writer.add_array if isinstance(value, list) else add[type(value)])(key, value)


def add_tokenizer(writer: gguf.GGUFWriter, most: int | None = None) -> int:
    """A vocabulary, of at most so many tokens."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = [*SPECIAL, *bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in MERGES)][:most]
    kinds = [gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * (len(tokens) - len(SPECIAL))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(MERGES if most is None else [])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)  # as many files have it: only the chat template tells that a turn ends otherwise
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    return len(tokens)


def _shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, 64), "output_norm.weight": (64,)}
    for layer in range(2):
        block = f"blk.{layer}"
        shapes |= {f"{block}.{name}_norm.weight": (64,) for name in ("attn", "ffn")}
        shapes |= {f"{block}.attn_{name}.weight": (64, 64) for name in ("q", "output")}
        shapes |= {f"{block}.attn_{name}.weight": (32, 64) for name in ("k", "v")}
        shapes |= {f"{block}.ffn_{name}.weight": (96, 64) for name in ("gate", "up")}
        shapes[f"{block}.ffn_down.weight"] = (64, 96)
    return shapes


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", gguf.GGMLQuantizationType.Q4_1)


@pytest.fixture(scope="session")
def odd_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose weights have to be converted, since Paceline cannot read their type."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "odd.gguf", gguf.GGMLQuantizationType.IQ4_NL)
