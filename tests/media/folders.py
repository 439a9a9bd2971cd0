"""Tiny random models that see, with the files of transformers' processors beside them."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForMultimodalLM, PreTrainedModel

from app.checkpoint.byte_alphabet import byte_alphabet
from tests.models.families import random_model

_MARKS = ["<|im_start|>", "<|im_end|>"]
_FIRST_MARK = 256
VOCAB_SIZE = 320
_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": 257,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_LINEAR = {
    "num_hidden_layers": 4,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_EYES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
_CLIP = {**_EYES, "model_type": "clip_vision_model"}
_PIXTRAL = {**_EYES, "model_type": "pixtral", "head_dim": 16, "image_size": 112}
_QWEN_EYES = {"depth": 2, "num_heads": 2, "hidden_size": 32, "intermediate_size": 32}
_QWEN3_EYES = {**_QWEN_EYES, "out_hidden_size": 64, "num_position_embeddings": 64, "patch_size": 14}
_QWEN3: dict[str, dict[str, Any]] = {
    "Qwen3VL": {},
    "Qwen3VLMoe": _EXPERTS | {"decoder_sparse_step": 1},
    "Qwen3_5": _LINEAR,
    "Qwen3_5Moe": _LINEAR | _EXPERTS | {"shared_expert_intermediate_size": 32},
}
_AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
_QWEN_MARKS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_QWEN_IDS = {
    "vision_start_token_id": 258,
    "vision_end_token_id": 259,
    "image_token_id": 260,
    "video_token_id": 261,
}
_QWEN_SIZE = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 30}
_QWEN_FILES = {
    "preprocessor_config.json": {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "min_pixels": _QWEN_SIZE["shortest_edge"],
        "max_pixels": _QWEN_SIZE["longest_edge"],
    }
}
_TILED_FILES = {
    "preprocessor_config.json": {
        "size": {"longest_edge": 112},
        "max_image_size": {"longest_edge": 56},
        "do_image_splitting": True,
    }
}
_TILED_MARKS = [
    "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
]  # fmt: skip
_PIXTRAL_FILES = {
    "preprocessor_config.json": {
        "image_processor_type": "PixtralImageProcessor",
        "size": {"longest_edge": 112},
        "patch_size": {"height": 14, "width": 14},
    }
}
_PIXTRAL_MARKS = ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]
_CLIP_FILE = {
    "size": {"shortest_edge": 56},
    "crop_size": {"height": 56, "width": 56},
}


class Folder:
    """How a family's folder is made."""

    def __init__(
        self,
        config: dict[str, Any],
        processor: str,
        marks: list[str],
        image: str,
        files: dict[str, Any],
        named: dict[str, str] | None = None,
    ) -> None:
        """`marks`: control tokens, whose ids go up from 258. `image`: what the chat template writes for an image.

        `files`: of the processor. `named`: names of tokens in tokenizer_config.json.
        """
        self.config, self.processor, self.marks, self.image = config, processor, marks, image
        self.files, self.named = files, named or {}


FOLDERS: dict[str, Folder] = {
    "Llava": Folder(
        {"text_config": {**_TEXT, "model_type": "llama"}, "vision_config": _CLIP, "image_token_index": 258}
        | {"image_seq_length": 16},
        "LlavaProcessor",
        ["<image>"],
        "<image>\n",
        {
            "preprocessor_config.json": {**_CLIP_FILE, "image_processor_type": "CLIPImageProcessor"},
            "processor_config.json": {"patch_size": 14, "num_additional_image_tokens": 1}
            | {"vision_feature_select_strategy": "default", "image_token": "<image>"},
        },
    ),
    "LlavaNext": Folder(
        {"text_config": {**_TEXT, "model_type": "mistral"}, "vision_config": _CLIP, "image_token_index": 258}
        | {"image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]], "image_seq_length": 16},
        "LlavaNextProcessor",
        ["<image>"],
        "<image>\n",
        {
            "preprocessor_config.json": {**_CLIP_FILE, "image_processor_type": "LlavaNextImageProcessor"}
            | {"image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]]},
            "processor_config.json": {"patch_size": 14, "num_additional_image_tokens": 1}
            | {"vision_feature_select_strategy": "default", "image_token": "<image>"},
        },
    ),
    "Qwen2VL": Folder(
        {"text_config": {**_TEXT, "rope_parameters": _AXES}, **_QWEN_IDS}
        | {"vision_config": {"depth": 2, "num_heads": 2, "embed_dim": 32, "hidden_size": 64}},
        "Qwen2VLProcessor",
        _QWEN_MARKS,
        "<|vision_start|><|image_pad|><|vision_end|>",
        _QWEN_FILES,
    ),
    "Qwen2_5_VL": Folder(
        {"text_config": {**_TEXT, "rope_parameters": _AXES}, **_QWEN_IDS}
        | {"vision_config": {**_QWEN_EYES, "out_hidden_size": 64, "fullatt_block_indexes": [1], "window_size": 56}},
        "Qwen2_5_VLProcessor",
        _QWEN_MARKS,
        "<|vision_start|><|image_pad|><|vision_end|>",
        _QWEN_FILES,
    ),
    **{
        name: Folder(
            {"text_config": {**_TEXT, **special, "rope_parameters": _AXES | {"mrope_interleaved": True}}, **_QWEN_IDS}
            | {"vision_config": {**_QWEN3_EYES, **({} if "3_5" in name else {"deepstack_visual_indexes": [0, 1]})}},
            "Qwen3VLProcessor",
            _QWEN_MARKS,
            "<|vision_start|><|image_pad|><|vision_end|>",
            _QWEN_FILES,
        )
        for name, special in _QWEN3.items()
    },
    "Gemma3": Folder(
        {
            "text_config": {**_TEXT, "sliding_window": 12, "num_hidden_layers": 4}
            | {"layer_types": ["sliding_attention", "full_attention"] * 2},
            "vision_config": {**_EYES, "image_size": 112, "model_type": "siglip_vision_model"},
            "mm_tokens_per_image": 16,
            "boi_token_index": 258,
            "eoi_token_index": 259,
            "image_token_index": 260,
        },
        "Gemma3Processor",
        ["<start_of_image>", "<end_of_image>", "<image_soft_token>"],
        "<start_of_image>",
        {
            "preprocessor_config.json": {
                "image_processor_type": "Gemma3ImageProcessor",
                "size": {"height": 112, "width": 112},
                "image_seq_length": 16,
            },
            "processor_config.json": {"image_seq_length": 16},
        },
        {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
    ),
    "Idefics3": Folder(
        {"text_config": {**_TEXT, "model_type": "llama"}, "vision_config": _EYES, "scale_factor": 2}
        | {"image_token_id": 258, "pad_token_id": 0},
        "Idefics3Processor",
        _TILED_MARKS,
        "<image>",
        {
            "preprocessor_config.json": _TILED_FILES["preprocessor_config.json"]
            | {"image_processor_type": "Idefics3ImageProcessor"},
            "processor_config.json": {"image_seq_len": 4},
        },
    ),
    "SmolVLM": Folder(
        {"text_config": {**_TEXT, "model_type": "llama"}, "vision_config": _EYES, "scale_factor": 2}
        | {"image_token_id": 258, "pad_token_id": 0},
        "SmolVLMProcessor",
        _TILED_MARKS,
        "<image>",
        {
            "preprocessor_config.json": _TILED_FILES["preprocessor_config.json"]
            | {"image_processor_type": "SmolVLMImageProcessor"},
            "processor_config.json": {"image_seq_len": 4},
        },
    ),
    "InternVL": Folder(
        {"text_config": {**_TEXT, "model_type": "qwen2"}, "image_token_id": 258, "image_seq_length": 4}
        | {"vision_config": {**_EYES, "image_size": [56, 56], "patch_size": [14, 14]}, "downsample_ratio": 0.5},
        "InternVLProcessor",
        ["<IMG_CONTEXT>", "<img>", "</img>", "<video>"],
        "<IMG_CONTEXT>\n",
        {
            "preprocessor_config.json": {
                "image_processor_type": "GotOcr2ImageProcessorFast",
                "size": {"height": 56, "width": 56},
                "crop_to_patches": True,
                "min_patches": 1,
                "max_patches": 4,
            },
            "processor_config.json": {"image_seq_length": 4},
        },
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ),
    "Pixtral": Folder(
        {"text_config": {**_TEXT, "model_type": "mistral"}, "vision_config": _PIXTRAL, "image_token_index": 258}
        | {"vision_feature_layer": -1, "vision_feature_select_strategy": "full", "model_type": "llava"},
        "PixtralProcessor",
        _PIXTRAL_MARKS,
        "[IMG]",
        _PIXTRAL_FILES | {"processor_config.json": {"patch_size": 14}},
    ),
    "Mistral3": Folder(
        {"text_config": {**_TEXT, "model_type": "mistral"}, "vision_config": _PIXTRAL, "image_token_index": 258}
        | {"spatial_merge_size": 2, "vision_feature_layer": -1},
        "PixtralProcessor",
        _PIXTRAL_MARKS,
        "[IMG]",
        _PIXTRAL_FILES | {"processor_config.json": {"patch_size": 14, "spatial_merge_size": 2}},
    ),
}
"""By family: all that Paceline reads images for."""


def write_folder(family: str, folder: Path) -> PreTrainedModel:
    """A random model that sees, saved to a folder; returns transformers' model in float32."""
    made = FOLDERS[family]
    config = getattr(transformers, f"{'Llava' if family == 'Pixtral' else family}Config")(**made.config)
    random_model(AutoModelForMultimodalLM, config).save_pretrained(folder)
    _write_tokenizer(made, folder)
    for name, content in made.files.items():
        (folder / name).write_text(json.dumps(content | {"processor_class": made.processor}))
    loaded: Any = AutoModelForMultimodalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model: PreTrainedModel = loaded.eval()
    return model


def template_of(family: str) -> str:
    """A chat template that writes an image where it stands, as the family's does."""
    image = json.dumps(FOLDERS[family].image)
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
        "{% if p.type == 'image' %}{{ " + image + " }}{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def _write_tokenizer(made: Folder, folder: Path) -> None:
    """Tokens that are bytes, and control tokens."""
    fast = Tokenizer(models.BPE(vocab=byte_alphabet(), merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(text, special=True) for text in [*_MARKS, *made.marks]])
    fast.save(str(folder / "tokenizer.json"))
    family = next(name for name, one in FOLDERS.items() if one is made)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": template_of(family),
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "extra_special_tokens": made.named,
        **made.named,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
