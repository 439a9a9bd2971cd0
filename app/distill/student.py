"""The student: some of the teacher's layers, between its embeddings and its head."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedConfig, PreTrainedModel

from ..checkpoint.copy_files import copy_beside_weights
from ..checkpoint.folder import ModelFolder
from ..errors import ModelError, StartupError
from .acceptance import Runs, matches, runs_of
from .answers import Answer
from .batches import Batch, divide, make_batch
from .loss import divergence

OwnAnswers = Callable[[PreTrainedModel, Sequence[Answer], int], Sequence[Answer]]
"""From a student, answers of the teacher and a seed: the student's own answers, which the teacher has judged."""
_LAYER = re.compile(r"\.(\d+)\.")
"""The first number in the name of a weight is that of its layer."""


def count_layers(teacher: PreTrainedModel) -> int:
    """Layers of the teacher. Raises ModelError for a model that is more than one stack of them."""
    if teacher.config.get_text_config() is not teacher.config:
        raise ModelError(f"--teacher: {type(teacher).__name__} is more than one stack of layers, and has no students")
    return int(teacher.config.num_hidden_layers)


def _name_of_count(config: PreTrainedConfig) -> str:
    """What a family calls the number of its layers."""
    return str(config.attribute_map.get("num_hidden_layers", "num_hidden_layers"))


def spaced_layers(total: int, wanted: int) -> list[int]:
    """Some of the teacher's layers, from 0: the first, the last, and others evenly between them.

    Without training, a student of the first layers is nearer to the teacher; after a few steps it is far behind (see
    benchmarks/README.md). Raises StartupError if the teacher has too few.
    """
    if not 0 < wanted < total:
        raise StartupError(f"--layers: {wanted} is not between 1 and {total - 1}: the teacher has {total} layers")
    return [round(index * (total - 1) / max(1, wanted - 1)) for index in range(wanted)]


def make_student(teacher: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A model of these layers of the teacher, with its embeddings and head, which do not learn. Raises ModelError.

    `teacher`: in float32, as `app.models.reference.transformers_model` loads it.
    """
    config = _config_with(teacher.config, layers)
    config._attn_implementation = teacher.config._attn_implementation
    student: PreTrainedModel = type(teacher)(config).eval()  # dropout would only make it slower to learn
    weights = teacher.state_dict()
    try:
        student.load_state_dict({name: weights[_name_in_teacher(name, layers)] for name in student.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"--layers: layers of {type(teacher).__name__} are too different to be left out") from error
    student.requires_grad_(True)
    for fixed in (student.get_input_embeddings(), student.get_output_embeddings()):
        fixed.requires_grad_(False)
    return student


def _config_with(config: PreTrainedConfig, layers: Sequence[int]) -> PreTrainedConfig:
    """A configuration with these layers, of plain numbers. What it lists of each layer is chosen, too."""
    content, name = config.to_dict(), _name_of_count(config)
    content.pop("quantization_config", None)  # of a GGUF file, whose weights are plain numbers by now
    chosen = {
        key: [value[layer] for layer in layers]
        for key, value in content.items()
        if isinstance(value, list) and len(value) == content[name] and "layer" in key
    }
    return type(config).from_dict(content | chosen | {name: len(layers)})


def _name_in_teacher(name: str, layers: Sequence[int]) -> str:
    return _LAYER.sub(lambda found: f".{layers[int(found[1])]}.", name, count=1)


@torch.no_grad()
def perplexity(model: PreTrainedModel, answers: Sequence[Answer], batch_tokens: int, fast: bool) -> float:
    """Of the tokens of answers, each behind those before it. `fast`: see `StudentLearner`."""
    surprise, count = 0.0, 0
    for part in divide(answers, batch_tokens):
        batch = make_batch(part, model.device)
        tokens = torch.tensor([token for answer in part for token in answer.tokens], device=model.device)
        surprise += float(cross_entropy(_logits_of(model, batch, fast), tokens, reduction="sum"))
        count += len(tokens)
    return math.exp(surprise / count)


@dataclass
class StudentLearner:
    """See `Learner`."""

    module: PreTrainedModel
    layers: Sequence[int]
    """Of the teacher."""
    own: OwnAnswers
    fast: bool
    """Whether products are in bfloat16."""
    perplexity_of_teacher: float
    """Of the held-out answers."""

    @property
    def sizes(self) -> dict[str, Any]:
        """See `Learner`."""
        return {
            "layers": list(self.layers),
            "parameters": self.module.num_parameters(),
            "learning_parameters": self.module.num_parameters(only_trainable=True),
        }

    def divergence(self, answers: Sequence[Answer]) -> Tensor:
        """See `Learner`."""
        batch = make_batch(answers, self.module.device)
        logits = _logits_of(self.module, batch, self.fast)
        return divergence(logits, batch.top_ids, batch.top_logprobs, batch.rest)

    def judge(self, answers: Sequence[Answer], other_luck: int = 0) -> tuple[Tensor, list[Runs]]:
        """See `Learner`."""
        batch = make_batch(answers, self.module.device)
        logits = _logits_of(self.module, batch, self.fast)
        parts = logits.split([len(answer.tokens) for answer in answers])
        runs = [runs_of(matches(answer, part, other_luck)) for answer, part in zip(answers, parts, strict=True)]
        return divergence(logits, batch.top_ids, batch.top_logprobs, batch.rest), runs

    def own_answers(self, answers: Sequence[Answer], seed: int) -> Sequence[Answer]:
        """See `Learner`."""
        return self.own(self.module, answers, seed)

    def more_figures(self, held_out: Sequence[Answer], batch_tokens: int) -> dict[str, Any]:
        """See `Learner`."""
        own = perplexity(self.module, held_out, batch_tokens, self.fast)
        return {"perplexity": own, "perplexity_of_teacher": self.perplexity_of_teacher}

    def save(self, teacher: ModelFolder, out: Path) -> None:
        """See `Learner`. The folder is a model's, with the teacher's dtype and tokenizer."""
        self.module.to(getattr(torch, teacher.dtype))
        self.module.save_pretrained(out)
        copy_beside_weights(teacher.path, out)
        self.module.to(torch.float32)  # type: ignore[arg-type]


def _logits_of(student: PreTrainedModel, batch: Batch, fast: bool) -> Tensor:
    """Logits (n, vocab) behind all tokens that predict a token of an answer. `fast`: products in bfloat16."""
    kept = batch.is_scored.shape[1]
    with torch.autocast(batch.token_ids.device.type, torch.bfloat16, enabled=fast):
        logits: Tensor = student(
            input_ids=batch.token_ids,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=kept,
        ).logits
    return logits[:, -kept:][batch.is_scored].float()
