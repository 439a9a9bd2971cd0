"""What the files of an encoder say: what it is for, and how its hidden states become an answer."""

from dataclasses import dataclass
from typing import Any, Literal

from ..core.wire import Task
from .sentence_transformers import DEFAULT_MODULES, Modules, Read, activation_of, parse_modules

ENCODERS = frozenset(
    ("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "modernbert", "mpnet")
) | {"nomic_bert", "roberta", "xlm-roberta"}
"""transformers' model types in which every token attends to all others."""

_GENERATORS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""Ends of the names of transformers' classes that generate text."""
_OFFSET = {"roberta": 2, "xlm-roberta": 2, "camembert": 2, "mpnet": 2}
"""How many of a family's max_position_embeddings are not for tokens."""


@dataclass(frozen=True)
class EncoderConfig:
    """A model that reads a text as a whole, and generates none."""

    task: Literal["embed", "classify"]
    max_len: int
    """The most tokens of an input."""
    modules: Modules = DEFAULT_MODULES
    """How hidden states become an embedding."""
    prompt: str = ""
    """Stands in front of every text that is embedded."""
    lowercases: bool = False
    """Whether texts are read in lower case."""
    labels: tuple[str, ...] = ()
    """The names of a classifier's outputs."""
    is_multi_label: bool = False
    """Whether several labels, or none, may apply at once."""
    activation: Literal["Identity", "Sigmoid"] = "Sigmoid"
    """From the logit of a classifier with one label to a score."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it can do. Texts are compared by the cosine of their embeddings, or read in pairs by a classifier."""
        compares = self.task == "embed" or len(self.labels) == 1
        return (self.task, "score") if compares else (self.task,)


def parse_encoder_config(read: Read) -> EncoderConfig | None:
    """What an encoder's files say of it; None for a model that generates.

    Raises ValueError, TypeError or AttributeError for what makes no sense, or is no model for these tasks.
    """
    config, modules = read("config.json") or {}, read("modules.json") or []
    asked = read("config_sentence_transformers.json") or {}
    if (kind := asked.get("model_type", "SentenceTransformer")) not in ("SentenceTransformer", "CrossEncoder"):
        raise ValueError(f"config_sentence_transformers.json: a {kind} is not supported")
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        return None  # `ModelFolder.architecture` says so
    architecture, is_encoder = str(names[0]), config.get("model_type") in ENCODERS
    if is_encoder and architecture.endswith("ForSequenceClassification"):
        return _classifier(read, config, asked)
    if modules and kind == "SentenceTransformer":
        return _embedder(read, config, asked, parse_modules(read, modules))
    if is_encoder and architecture.endswith("Model") and not architecture.endswith(_GENERATORS):
        return _embedder(read, config, asked, DEFAULT_MODULES)
    if is_encoder or kind == "CrossEncoder" or not architecture.endswith(_GENERATORS):
        raise ValueError(f"{architecture} is neither a generator nor an encoder that is supported")
    return None


def _classifier(read: Read, config: dict[str, Any], asked: dict[str, Any]) -> EncoderConfig:
    names = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(int(config.get("num_labels", 2)))}
    labels = tuple(str(name) for _, name in sorted(names.items(), key=lambda item: int(item[0])))
    if _prompt(asked):
        raise ValueError("config_sentence_transformers.json: a prompt of a classifier is not supported")
    # Versions 5, 4 and 3 of sentence-transformers have it in these places.
    path = (
        asked.get("activation_fn")
        or (config.get("sentence_transformers") or {}).get("activation_fn")
        or config.get("sbert_ce_default_activation_function")
    )
    activation = activation_of(path) if path else "Sigmoid"
    if activation not in ("Identity", "Sigmoid"):
        raise ValueError(f"the activation {path} of a classifier is not supported")
    return EncoderConfig(
        "classify",
        _max_len(read, config),
        lowercases=_lowercases(read),
        labels=labels,
        is_multi_label=config.get("problem_type") == "multi_label_classification" or len(labels) == 1,
        activation=activation,
    )


def _embedder(read: Read, config: dict[str, Any], asked: dict[str, Any], modules: Modules) -> EncoderConfig:
    if asked.get("truncate_dim"):
        raise ValueError("config_sentence_transformers.json: truncate_dim is not supported")
    prompt, max_len = _prompt(asked), _max_len(read, config)
    return EncoderConfig("embed", max_len, modules, prompt, _lowercases(read))


def _prompt(asked: dict[str, Any]) -> str:
    """The prompt of all texts for which nobody chooses one."""
    name, prompts = asked.get("default_prompt_name"), asked.get("prompts") or {}
    if name is None:
        return ""
    if not isinstance(prompts.get(name), str):
        raise ValueError(f"config_sentence_transformers.json: there is no prompt {name}")
    return str(prompts[name])


def _lowercases(read: Read) -> bool:
    return bool((read("sentence_bert_config.json") or {}).get("do_lower_case"))


def _max_len(read: Read, config: dict[str, Any]) -> int:
    positions = (config.get("text_config") or config).get("max_position_embeddings")
    most = int(positions) - _OFFSET.get(str(config.get("model_type")), 0) if positions else 512
    asked = (read("sentence_bert_config.json") or {}).get("max_seq_length")
    return min(most, int(asked)) if asked else most
