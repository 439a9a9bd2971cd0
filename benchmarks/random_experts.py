"""Writes a GGUF file with OLMoE's layer shapes, in Q8_0, with random weights and the tokenizer of another file.

For comparisons with other servers: `serve_vs_llama.py` takes the file.
"""

import argparse
from pathlib import Path
from typing import Any

import gguf
import numpy as np

HIDDEN, EXPERTS, CHOSEN, INNER, HEADS = 2048, 64, 8, 1024, 16
"""Of OLMoE-1B-7B (Muennighoff et al., 2024)."""
_BLOCK = 32
_SPREAD = 0.02
"""The standard deviation of weights."""


def q8_0(random: np.random.Generator, *shape: int) -> Any:
    """Blocks of evenly distributed codes, with one scale: (..., bytes of a row)."""
    *outer, inputs = shape
    blocks = random.integers(-127, 128, (*outer, inputs // _BLOCK, 2 + _BLOCK), np.int8).view(np.uint8)
    blocks[..., :2] = np.array([_SPREAD / (127 / 3**0.5)], np.float16).view(np.uint8)
    return blocks.reshape(*outer, -1)


def add_tokenizer(writer: gguf.GGUFWriter, source: Path) -> int:
    """Copy what another file says of its tokenizer; returns how many tokens there are."""
    reader = gguf.GGUFReader(source)
    for key, field in reader.fields.items():
        if key.startswith("tokenizer."):
            kind, *inner = field.types
            writer.add_key_value(key, field.contents(), kind, inner[-1] if inner else None)
    return len(reader.fields["tokenizer.ggml.tokens"].data)


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    random, writer = np.random.default_rng(0), gguf.GGUFWriter(args.out, "olmoe", use_temp_file=True)
    writer.add_block_count(args.layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(CHOSEN)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    tokens = add_tokenizer(writer, args.tokenizer)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(f"{name}.weight", q8_0(random, *shape), raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    def add_norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, np.float32))

    add("token_embd", tokens, HIDDEN)
    add("output", tokens, HIDDEN)
    add_norm("output_norm")
    for layer in range(args.layers):
        for name in ("attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm"):
            add_norm(f"blk.{layer}.{name}")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}", HIDDEN, HIDDEN)
        router = (random.standard_normal((EXPERTS, HIDDEN)) * _SPREAD).astype(np.float32)
        writer.add_tensor(f"blk.{layer}.ffn_gate_inp.weight", router)
        add(f"blk.{layer}.ffn_gate_exps", EXPERTS, INNER, HIDDEN)
        add(f"blk.{layer}.ffn_up_exps", EXPERTS, INNER, HIDDEN)
        add(f"blk.{layer}.ffn_down_exps", EXPERTS, HIDDEN, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
