"""What an encoder model is for, and how its hidden states become an answer: as its files say."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.errors import ModelError

ENCODERS = frozenset(
    ("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "modernbert", "mpnet")
) | {"nomic_bert", "roberta", "xlm-roberta"}
"""transformers' model types whose tokens see all others."""
Pooling = Literal["mean", "cls", "last", "max"]

_OFFSET = {"roberta": 2, "xlm-roberta": 2, "camembert": 2, "mpnet": 2}
"""Positions that a family does not use for tokens, of those that max_position_embeddings counts."""
_POOLING: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
}


@dataclass(frozen=True)
class EncoderConfig:
    """An encoder: a model that reads a text as a whole, and generates none."""

    task: Literal["embed", "classify"]
    max_len: int
    """Tokens of an input."""
    pooling: Pooling = "mean"
    """Which hidden states make the embedding."""
    normalizes: bool = True
    labels: tuple[str, ...] = ()
    """Of a classifier."""
    is_multi_label: bool = False
    """Whether each label is true or false by itself, instead of one of them being true."""

    @classmethod
    def from_folder(cls, folder: Path) -> "EncoderConfig | None":
        """Read a model folder; None for a model that generates. ModelError for files that say nothing sensible."""
        try:
            return _parse(folder)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ModelError(f"the files in {folder} do not say what the model is: {error}") from error


def _parse(folder: Path) -> EncoderConfig | None:
    config = _read(folder / "config.json", {})
    architecture = str((config.get("architectures") or [""])[0])
    modules = _read(folder / "modules.json", [])
    if config.get("model_type") not in ENCODERS and not modules:
        return None
    max_len = _max_len(folder, config)
    if architecture.endswith("ForSequenceClassification"):
        names = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(int(config.get("num_labels", 2)))}
        labels = tuple(str(name) for _, name in sorted(names.items(), key=lambda item: int(item[0])))
        is_multi_label = config.get("problem_type") == "multi_label_classification" or len(labels) == 1
        return EncoderConfig("classify", max_len, labels=labels, is_multi_label=is_multi_label)
    pooling, normalizes = _pooling(folder, modules)
    return EncoderConfig("embed", max_len, pooling, normalizes)


def _pooling(folder: Path, modules: list[dict[str, Any]]) -> tuple[Pooling, bool]:
    """As sentence-transformers writes it down; mean and normalised if nothing is written."""
    if not modules:
        return "mean", True
    kinds = {str(module.get("type")).rsplit(".", 1)[-1]: str(module.get("path")) for module in modules}
    if unknown := kinds.keys() - {"Transformer", "Pooling", "Normalize"}:
        raise ValueError(f"modules.json: {', '.join(sorted(unknown))} is not supported")
    given = _read(folder / kinds.get("Pooling", "1_Pooling") / "config.json", {})
    modes = [name for name, value in given.items() if name.startswith("pooling_mode_") and value is True]
    if len(modes) > 1 or any(mode not in _POOLING for mode in modes):
        raise ValueError(f"pooling by {' and '.join(modes)} is not supported")
    return _POOLING[modes[0]] if modes else "mean", "Normalize" in kinds


def _max_len(folder: Path, config: dict[str, Any]) -> int:
    positions = config.get("max_position_embeddings")
    most = int(positions) - _OFFSET.get(str(config.get("model_type")), 0) if positions else 512
    asked = _read(folder / "sentence_bert_config.json", {}).get("max_seq_length")
    return min(most, int(asked)) if asked else most


def _read(file: Path, default: Any) -> Any:
    """A JSON file; `default` if there is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
