"""Families whose images Paceline reads: transformers' names of them."""

SEEING = frozenset(
    (
        *("gemma3", "idefics3", "internvl", "llava", "llava_next", "mistral3"),
        *("qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe", "smolvlm"),
    )
)
SEEING_AHEAD = frozenset(("gemma3",))
"""Those of them where the tokens of an image see each other."""
FILES = ("preprocessor_config.json", "processor_config.json")
"""Which say how an image is prepared. A folder that reads images has one of them."""
