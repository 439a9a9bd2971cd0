"""Tiny random encoder-decoders, as checkpoints on disk."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from transformers import AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq, PreTrainedModel

from tests.models.families import VOCAB_SIZE

_IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_T5 = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 24,
    "decoder_start_token_id": 1,
}
_BART = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "decoder_start_token_id": 2,
}
_TABLE = {"max_position_embeddings": 200}
_GATED = {"feed_forward_proj": "gated-gelu"}
WHISPER = {**_BART, "max_source_positions": 14, "max_target_positions": 200, "num_mel_bins": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "T5": _T5,
    "MT5": {**_T5, **_GATED},
    "UMT5": {**_T5, **_GATED},
    "Bart": {**_BART, **_TABLE},
    "MBart": {**_BART, **_TABLE, "scale_embedding": True},
    "Pegasus": {**_BART, **_TABLE, "decoder_start_token_id": 1},
    "Marian": {**_BART, **_TABLE, "decoder_start_token_id": 1, "activation_function": "swish"},
    "M2M100": {**_BART, **_TABLE},
    "PLBart": {**_BART, **_TABLE},
    "Whisper": WHISPER,
}
"""transformers' name of the config, and its arguments."""
_UNSCALED = "T5", "MT5", "UMT5"
"""Their scores are not divided by anything."""


def write_encoder_decoder(
    family: str, folder: Path, changes: Mapping[str, Any] = MappingProxyType({}), **generation: object
) -> PreTrainedModel:
    """A random model of a family, saved to a folder; returns transformers' model in float32.

    `changes`: of the config. `generation`: what generation_config.json has beside the defaults.
    """
    config = getattr(transformers, f"{family}Config")(
        **{"vocab_size": VOCAB_SIZE, **_IDS, **FAMILIES[family], **changes}
    )
    auto: Any = AutoModelForSpeechSeq2Seq if family == "Whisper" else AutoModelForSeq2SeqLM
    torch.manual_seed(0)
    model = auto.from_config(config)
    for parameter in model.parameters():  # large, so that texts depend on all that is attended to
        if parameter.dim() > 1 and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1 if family in _UNSCALED else 0.25)
    model.save_pretrained(folder)
    file = folder / "generation_config.json"
    content = json.loads(file.read_text())
    content.pop("_from_model_config", None)  # or transformers would read the model's config in its place
    file.write_text(json.dumps(content | generation))
    loaded: PreTrainedModel = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return loaded.eval()
