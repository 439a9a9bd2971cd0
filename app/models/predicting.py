"""What of transformers stands for each use of a model that reads texts."""

from typing import Any

from tokenizers import Tokenizer
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from ..checkpoint.encoders import EncoderConfig
from ..checkpoint.folder import ModelFolder
from ..errors import ModelError

CLASSES: dict[str, Any] = {
    "embed": AutoModel,
    "classify": AutoModelForSequenceClassification,
    "token_classify": AutoModelForTokenClassification,
    "judge": AutoModelForCausalLM,
}
"""What loads a model, by `EncoderConfig.task`."""


def answer_tokens(folder: ModelFolder, config: EncoderConfig) -> tuple[int, int]:
    """The tokens of a judge's good and bad answer. ModelError if yes and no are not one token each."""
    if config.answer_ids is not None:
        return config.answer_ids
    fast = Tokenizer.from_file(str(folder.path / "tokenizer.json"))
    yes, no = fast.token_to_id("yes"), fast.token_to_id("no")  # as sentence-transformers looks them up
    if yes is None or no is None:
        raise ModelError(f"{folder.path}: yes and no are not one token each, so the model cannot score texts")
    return yes, no
