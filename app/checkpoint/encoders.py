"""What the files of an encoder say: what it is for, and how its hidden states become an answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

ENCODERS = frozenset(
    ("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "modernbert", "mpnet")
) | {"nomic_bert", "roberta", "xlm-roberta"}
"""transformers' model types in which every token attends to all others."""
Pooling = Literal["mean", "cls", "last", "max"]

_OFFSET = {"roberta": 2, "xlm-roberta": 2, "camembert": 2, "mpnet": 2}
"""How many of a family's max_position_embeddings are not for tokens."""
_POOLING: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
}


@dataclass(frozen=True)
class EncoderConfig:
    """A model that reads a text as a whole, and generates none."""

    task: Literal["embed", "classify"]
    max_len: int
    """The most tokens of an input."""
    pooling: Pooling = "mean"
    """How the embedding is made from the hidden states of all tokens."""
    normalizes: bool = True
    labels: tuple[str, ...] = ()
    """The names of a classifier's outputs."""
    is_multi_label: bool = False
    """Whether several labels, or none, may apply at once."""


def parse_encoder_config(read: Callable[[str], Any]) -> EncoderConfig | None:
    """What an encoder's files say of it; None for a model that generates.

    `read` gives the content of a JSON file by its name in the model's folder, and None if there is no such file.
    Raises ValueError, TypeError or AttributeError for what makes no sense.
    """
    config = read("config.json") or {}
    architecture = str((config.get("architectures") or [""])[0])
    modules = read("modules.json") or []
    if config.get("model_type") not in ENCODERS and not modules:
        return None
    max_len = _max_len(read, config)
    if architecture.endswith("ForSequenceClassification"):
        names = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(int(config.get("num_labels", 2)))}
        labels = tuple(str(name) for _, name in sorted(names.items(), key=lambda item: int(item[0])))
        is_multi_label = config.get("problem_type") == "multi_label_classification" or len(labels) == 1
        return EncoderConfig("classify", max_len, labels=labels, is_multi_label=is_multi_label)
    pooling, normalizes = _pooling(read, modules)
    return EncoderConfig("embed", max_len, pooling, normalizes)


def _pooling(read: Callable[[str], Any], modules: list[dict[str, Any]]) -> tuple[Pooling, bool]:
    """Pooling, and whether embeddings are normalised, as sentence-transformers stores them; by default mean and yes."""
    if not modules:
        return "mean", True
    kinds = {str(module.get("type")).rsplit(".", 1)[-1]: str(module.get("path")) for module in modules}
    if unknown := kinds.keys() - {"Transformer", "Pooling", "Normalize"}:
        raise ValueError(f"modules.json: {', '.join(sorted(unknown))} is not supported")
    given = read(f"{kinds.get('Pooling', '1_Pooling')}/config.json") or {}
    modes = [name for name, value in given.items() if name.startswith("pooling_mode_") and value is True]
    if len(modes) > 1 or any(mode not in _POOLING for mode in modes):
        raise ValueError(f"pooling by {' and '.join(modes)} is not supported")
    return _POOLING[modes[0]] if modes else "mean", "Normalize" in kinds


def _max_len(read: Callable[[str], Any], config: dict[str, Any]) -> int:
    positions = config.get("max_position_embeddings")
    most = int(positions) - _OFFSET.get(str(config.get("model_type")), 0) if positions else 512
    asked = (read("sentence_bert_config.json") or {}).get("max_seq_length")
    return min(most, int(asked)) if asked else most
