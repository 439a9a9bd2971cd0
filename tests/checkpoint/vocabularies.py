"""GGUF files with a small vocabulary and nothing else, and what llama.cpp makes of them.

`llama_cpp.json` was made by running libllama (of node-llama-cpp 3.21.1) on files that `write_vocabulary` wrote from the
merges and pieces in it: `llama_tokenize` with `add_special` and `parse_special`, and `llama_vocab_is_eog`. The merges
were learned from the texts without cutting these at all, so that wherever a pattern cuts, other tokens come out. There
is null where llama.cpp's pattern lacks the combining marks that the models' own has.
"""

import json
from pathlib import Path
from typing import Any

import gguf
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.checkpoint.conftest import add_keys

LLAMA_CPP: dict[str, Any] = json.loads(Path(__file__).with_name("llama_cpp.json").read_text(encoding="utf-8"))
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|im_start|>", "<|im_end|>", "<think>"]
WHOLE = ["ĠWhole", "Unmerged"]
"""Tokens to which no merges lead."""
_CONTROL, _USER_DEFINED, _NORMAL, _UNKNOWN, _BYTE = 3, 4, 1, 2, 6


def write_vocabulary(path: Path, kind: str, data: dict[str, Any] = LLAMA_CPP, **keys: Any) -> Path:
    """A file with a vocabulary of byte pairs (gpt2) or of pieces with scores (llama), and other keys."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    special = [_USER_DEFINED if token == "<think>" else _CONTROL for token in SPECIAL]
    if kind == "gpt2":
        merged = [merge.replace(" ", "") for merge in data["merges"]]
        plain = list(dict.fromkeys([*bytes_to_unicode().values(), *merged, *WHOLE]))
        writer.add_token_list([*SPECIAL, *plain])
        writer.add_token_types([*special, *[_NORMAL] * len(plain)])
        writer.add_token_merges(data["merges"])
    else:
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
        pieces = data["pieces"]
        writer.add_token_list(["<unk>", "<s>", "</s>", *bytes_, *pieces, *SPECIAL])
        writer.add_token_scores(
            [*[0.0] * 259, *(-float(rank) for rank in range(len(pieces))), *[-1000.0] * len(SPECIAL)]
        )
        kinds = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, *[_NORMAL] * len(pieces), *special]
        writer.add_token_types(kinds)
    add_keys(writer, {f"tokenizer.ggml.{key}": value for key, value in keys.items()})
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
