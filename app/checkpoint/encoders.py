"""What the files of a model that reads texts say: what it is for, and how its hidden states become an answer."""

from dataclasses import dataclass
from typing import Any, Literal

from ..core.wire import Task
from .families import max_position_embeddings
from .sentence_transformers import DEFAULT_MODULES, Modules, Read, activation_of, parse_answer_tokens, parse_modules

TaskSetting = Literal["auto", "embed", "score"]
"""What a model is to do: what its files say, or something that its files do not say."""

_GENERATORS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""Ends of the names of transformers' classes that generate text."""
_BODIES = ("Model", "Encoder")
"""Those of classes without a head."""
_ROBERTAS = frozenset(
    ("camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta")
) | {"roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"}
"""Families of whose max_position_embeddings two are not for tokens."""


@dataclass(frozen=True)
class EncoderConfig:
    """A model that reads a text as a whole, and generates none."""

    task: Literal["embed", "classify", "token_classify", "judge"]
    """judge: to say how probable it is that a generator goes on with one word rather than with another."""
    max_len: int
    """The most tokens of an input."""
    modules: Modules = DEFAULT_MODULES
    """How hidden states become an embedding."""
    prompt: str = ""
    """Stands in front of every text that is embedded; the instruction of a judge."""
    prompts: tuple[tuple[str, str], ...] = ()
    """Names of prompts, and these."""
    lowercases: bool = False
    """Whether texts are read in lower case."""
    labels: tuple[str, ...] = ()
    """The names of a classifier's outputs."""
    is_multi_label: bool = False
    """Whether several labels, or none, may apply at once."""
    activation: Literal["Identity", "Sigmoid"] = "Sigmoid"
    """From the logit of a classifier with one label to a score, or from the difference of a judge's two."""
    answer_ids: tuple[int, int] | None = None
    """The tokens of a judge's good and bad answer; None: those of yes and no."""
    adds_generation_prompt: bool = False
    """Whether a judge's chat template is to begin the answer, where it has roles for a query and a document."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it can do. Texts are compared by the cosine of their embeddings, or read in pairs by a classifier."""
        if self.task == "judge":
            return ("score",)
        compares = self.task == "embed" or (self.task == "classify" and len(self.labels) == 1)
        return (self.task, "score") if compares else (self.task,)


def parse_encoder_config(read: Read, wanted: TaskSetting = "auto") -> EncoderConfig | None:
    """What an encoder's files say of it; None for a model that generates, unless it is wanted for something else.

    Raises ValueError, TypeError or AttributeError for what makes no sense, or is no model for these tasks.
    """
    config, modules = read("config.json") or {}, read("modules.json") or []
    asked = read("config_sentence_transformers.json") or {}
    if (kind := asked.get("model_type", "SentenceTransformer")) not in ("SentenceTransformer", "CrossEncoder"):
        raise ValueError(f"config_sentence_transformers.json: a {kind} is not supported")
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        return None  # `ModelFolder.architecture` says so
    architecture = str(names[0])
    generates = architecture.endswith(_GENERATORS)
    if wanted == "score" or (wanted == "auto" and generates and kind == "CrossEncoder"):
        if not generates:
            raise ValueError(f"task: score is for models that generate, and {architecture} is none")
        return _judge(read, config, asked, modules)
    if wanted == "auto" and architecture.endswith("ForSequenceClassification"):
        return _classifier(read, config, asked)
    if wanted == "auto" and architecture.endswith("ForTokenClassification"):
        return EncoderConfig("token_classify", _max_len(read, config), labels=_labels(config))
    if modules and kind == "SentenceTransformer":
        return _embedder(read, config, asked, parse_modules(read, modules))
    if wanted == "embed" or (architecture.endswith(_BODIES) and not generates):
        return _embedder(read, config, asked, DEFAULT_MODULES)
    if not generates:
        raise ValueError(f"{architecture} is neither a generator nor an encoder that is supported")
    return None


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    names = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(int(config.get("num_labels", 2)))}
    return tuple(str(name) for _, name in sorted(names.items(), key=lambda item: int(item[0])))


def _classifier(read: Read, config: dict[str, Any], asked: dict[str, Any]) -> EncoderConfig:
    labels = _labels(config)
    if _prompt(asked):
        raise ValueError("config_sentence_transformers.json: a prompt of a classifier is not supported")
    return EncoderConfig(
        "classify",
        _max_len(read, config),
        lowercases=_lowercases(read),
        labels=labels,
        is_multi_label=config.get("problem_type") == "multi_label_classification" or len(labels) == 1,
        activation=_activation(config, asked),
    )


def _activation(config: dict[str, Any], asked: dict[str, Any]) -> Literal["Identity", "Sigmoid"]:
    """From logits to scores. Versions 5, 4 and 3 of sentence-transformers have it in these places."""
    path = (
        asked.get("activation_fn")
        or (config.get("sentence_transformers") or {}).get("activation_fn")
        or config.get("sbert_ce_default_activation_function")
    )
    activation = activation_of(path) if path else "Sigmoid"
    if activation not in ("Identity", "Sigmoid"):
        raise ValueError(f"the activation {path} of a classifier is not supported")
    return activation


def _judge(read: Read, config: dict[str, Any], asked: dict[str, Any], modules: list[dict[str, Any]]) -> EncoderConfig:
    """A generator that says yes or no, as sentence-transformers' CrossEncoder runs one."""
    is_described = asked.get("model_type") == "CrossEncoder"
    processing = (read("sentence_bert_config.json") or {}).get("processing_kwargs") or {}
    template = dict(processing.get("chat_template") or {})
    adds_generation_prompt = bool(template.pop("add_generation_prompt", False))
    template.pop("restore_suffix", None)  # says how to truncate
    if template:
        raise ValueError(f"sentence_bert_config.json: {min(template)} of the chat template is not supported")
    return EncoderConfig(
        "judge",
        _max_len(read, config),
        prompt=_prompt(asked) if is_described else "",
        activation=_activation(config, asked),
        answer_ids=parse_answer_tokens(read, modules) if is_described and modules else None,
        adds_generation_prompt=adds_generation_prompt,
    )


def _embedder(read: Read, config: dict[str, Any], asked: dict[str, Any], modules: Modules) -> EncoderConfig:
    if asked.get("truncate_dim"):
        raise ValueError("config_sentence_transformers.json: truncate_dim is not supported")
    prompt, max_len = _prompt(asked), _max_len(read, config)
    prompts = tuple((str(name), str(text)) for name, text in (asked.get("prompts") or {}).items())
    return EncoderConfig("embed", max_len, modules, prompt, prompts, _lowercases(read))


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
    positions = max_position_embeddings(config, config.get("text_config") or config)
    most = positions - 2 * (config.get("model_type") in _ROBERTAS) if positions else 512
    asked = (read("sentence_bert_config.json") or {}).get("max_seq_length")
    return min(most, int(asked)) if asked else most
