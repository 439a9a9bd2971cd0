"""Which models of transformers run, and say what transformers says: a tiny random one of every type is tried.

`python -m tests.models.breadth` tries all and writes the list in docs/models.md, which takes some minutes. With names
of model types it tries these, and prints what came of them.
"""

import dataclasses
import re
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from app.errors import ModelError
from app.models.classes import auto_class
from tests.models.families import DECODER, GENERIC, RECURRENT, SEEING, VOCAB_SIZE, random_model
from tests.models.test_oracle import greedy, make_engine, make_requests, run_crowd, tiny_settings, tokens_of

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- python -m tests.models.breadth writes this -->\n", "<!-- until here -->"
KINDS = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES})
_LARGEST = 1e8
"""Weights of what is tried."""
_LONGEST = 200
"""Characters of a reason on the page."""

_SIZES = {
    VOCAB_SIZE: "vocab_size n_words",
    64: "hidden_size d_model n_embd dim embedding_size word_embed_proj_dim emb_dim out_hidden_size lru_width "
    "projection_dim embed_dim",
    112: "intermediate_size ffn_dim n_inner encoder_ffn_dim decoder_ffn_dim ffn_hidden_size block_ff_dim",
    3: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads num_experts "
    "num_local_experts n_routed_experts moe_num_experts",
    2: "num_key_value_heads num_experts_per_tok num_experts_per_token moe_k moe_topk top_k_experts",
    16: "head_dim kv_channels attention_head_dim global_head_dim kv_lora_rank qk_nope_head_dim v_head_dim num_mel_bins",
    512: "max_position_embeddings n_positions max_seq_len n_ctx seq_length",
    32: "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size "
    "router_hidden_size moe_shared_expert_intermediate_size",
    1: "n_group topk_group num_expert_group first_k_dense_replace depth bos_token_id",
    8: "qk_rope_head_dim hidden_size_per_layer_input",
    20: "sliding_window",
    28: "image_size",
    14: "patch_size",
    0: "pad_token_id num_kv_shared_layers",
}
_OF_NAME = {name: size for size, names in _SIZES.items() for name in names.split()}
_ONLY_IF_SET = {"sliding_window", "embedding_size", "n_inner", "num_kv_shared_layers", "lru_width"}
"""Fields that turn something on."""
_MLA = {"num_key_value_heads": 4}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def _axes(*sections: int) -> dict[str, Any]:
    return {"rope_parameters": {**_ROPE, "mrope_section": [*sections]}}


_MORE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(["qwen2_vl_text", "qwen2_5_vl_text", "glm4v_text", "glm_ocr_text", "glmga_text"], _axes(2, 3, 3)),
    **dict.fromkeys(["ernie4_5_vl_moe_text", "cosmos3_edge_text"], _axes(3, 3, 2)),
    "paddleocr_vl_text": _axes(2, 3, 3),
    "glm4v_moe_text": _axes(1, 1, 2),
    "hunyuan_vl_text": _axes(2, 2, 2, 2),
    "qwen2_5_omni_text": _axes(2, 3, 3),
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), _ROPE)},
    "step3p5": {"sliding_window": 20},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "granite4_vision": {"image_grid_pinpoints": [[28, 28]], "deepstack_layer_map": [], "spatial_target_layers": []}
    | {"downsample_rate": "1/2"},
    "chameleon": {"vocabulary_map": {"<image>": 5}},
    "mllama_text_model": {"cross_attention_layers": [1]},
    **dict.fromkeys(["axk1", "glm4_moe_lite", "minicpm3", "youtu"], _MLA),
    "dots1": {"n_shared_experts": 1},
    "granite": {"logits_scaling": 2.0, "attention_multiplier": 0.3},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "longcat_flash": _MLA | {"zero_expert_num": 2, "num_layers": 2, "head_dim": 8},
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "reformer": {"is_decoder": True},
    "zaya": {"num_experts_per_tok": 1},
    "deepseek_v2": _MLA | {"topk_method": "greedy"},
}
"""What a type needs beside sizes."""
_FAMILIES = DECODER | GENERIC | RECURRENT | SEEING
_WHOLE = {"mllama"}
"""Types that transformers takes for a part of themselves where nothing says what they are."""


def tiny_config(kind: str) -> Any:
    """A small configuration of a type: sizes by the names of its fields, and what the other tests say of it."""
    return _shrunk(CONFIG_MAPPING[kind])


def _shrunk(cls: Any) -> Any:
    more = _FAMILIES.get(cls.__name__.removesuffix("Config"), {}) | _MORE.get(cls.model_type, {})
    default, names = cls(), {field.name for field in dataclasses.fields(cls)}
    sizes = {name: size for name, size in _OF_NAME.items() if name in names and _applies(default, name)}
    sizes |= {"num_key_value_heads": 4} if sizes.get("qk_rope_head_dim") else {}
    for name, sub in (getattr(cls, "sub_configs", None) or {}).items():
        kind = type(getattr(default, name, None)) if sub.__name__ == "AutoConfig" else sub
        if name not in more and kind is not type(None):
            sizes[name] = _shrunk(kind).to_dict()
    return cls(**sizes | more)


def _applies(default: Any, name: str) -> bool:
    try:
        value = getattr(default, name)
    except Exception:  # it differs by layer
        return True
    return not isinstance(value, list | tuple) and (value is not None or name not in _ONLY_IF_SET)


def judge(kind: str, folder: Path) -> str:
    """ "exact", or why the model is not served, or why a tiny one could not be tried."""
    try:
        model = _write(kind, folder)
    except Exception as error:  # of all kinds: configurations are made up
        return f"not tried: {_short(f'{type(error).__name__}: {error}')}"
    try:
        core = make_engine(folder, tiny_settings())
    except ModelError as error:
        return f"refused: {_short(str(error).replace(str(folder), 'it'))}"
    requests = make_requests(4, temperature=0.0)
    outputs, _ = run_crowd(core, requests)
    for name, (prompt, sampling) in requests.items():
        said = tokens_of(outputs[name])
        if said != greedy(model, prompt, said, sampling.max_tokens):
            return "DIFFERS"
    return "exact"


def _write(kind: str, folder: Path) -> PreTrainedModel:
    config = tiny_config(kind)
    auto: Any = auto_class(config, MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[kind] if kind in _WHOLE else "")
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in auto.from_config(config).parameters())
    if size > _LARGEST:
        raise ValueError(f"{size / 1e6:.0f} million weights are not tiny")
    model = random_model(auto, config)
    model.save_pretrained(folder)
    loaded: Any = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    tried: PreTrainedModel = loaded.eval()
    tried(torch.ones(1, 3, dtype=torch.int64))  # it runs at all
    return tried


def _short(reason: str) -> str:
    words = " ".join(reason.split())
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}…"


def listed(page: str) -> list[str]:
    """The types that the page says are exact."""
    words = page.partition(BEGIN)[2].partition(END)[0]
    return re.findall(r"`([\w.-]+)`", words.partition("\n\n")[2].partition("\n\n")[0])


def _page(results: dict[str, str]) -> str:
    kinds: dict[str, list[str]] = {}
    for kind, result in results.items():
        what, _, reason = result.replace(f"{kind} ", "it ").replace(f"{kind}: ", "").partition(": ")
        reason = re.sub(r": \w+ is neither", ": it is neither", reason)
        kinds.setdefault(reason if what == "refused" else what, []).append(kind)
    exact, not_tried = (kinds.pop(what, []) for what in ("exact", "not tried"))
    rows = [f"| {', '.join(names)} | {reason.replace('|', '/')} |" for reason, names in sorted(kinds.items())]
    lines = [
        f"Of {len(results)} types of models that generate in transformers {transformers.__version__}, tiny random "
        f"ones of {len(exact)} say token for token what transformers says:",
        ", ".join(f"`{kind}`" for kind in exact) + ".",
        "These are refused, with the reason as `serve` and `check-model` give it:",
        "\n".join(["| type | reason |", "| --- | --- |", *rows]),
        "Of these, no tiny one has been made that runs in transformers: " + ", ".join(not_tried) + ".",
    ]
    return "\n\n".join(lines) + "\n"


def _tried(kind: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return judge(kind, Path(folder))


def main(kinds: Iterable[str]) -> None:
    """Try these types, or all of them and write the page."""
    chosen, results = list(kinds), {}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for kind, result in zip(chosen or KINDS, pool.map(_tried, chosen or KINDS), strict=True):
            results[kind] = result
            print(kind, "|", result, flush=True)
    if not chosen:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}{_page(results)}{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main(sys.argv[1:])
