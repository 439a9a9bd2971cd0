"""What the files of sentence-transformers say, as its versions from 2 to 6 write them.

modules.json names modules that run one after the other, most of them with a folder and a config.json of their own.
Raises ValueError, TypeError or AttributeError for what makes no sense, or changes the embedding and is not supported.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

Pooling = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
"""How one vector is made of the hidden states of all tokens."""
Activation = Literal["Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid"]
"""Classes of torch.nn."""
Read = Callable[[str], Any]
"""Gives the content of a JSON file by its name in the model's folder, and None if there is no such file."""

_FLAGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Pooling up to version 5.3, in the order in which the vectors of several are put side by side."""
_POOLING_KEYS = _FLAGS.keys() | {"pooling_mode", "include_prompt", "embedding_dimension", "word_embedding_dimension"}
_DENSE_KEYS = {"in_features", "out_features", "bias", "activation_function"}
_SAYS_NOTHING = {
    "module_input_name": "sentence_embedding",
    "module_output_name": "sentence_embedding",
    "use_residual": False,
}
"""Keys of a Dense or Normalize module, with the value that leaves it as it is without them."""


@dataclass(frozen=True)
class Dense:
    """A linear layer behind the pooling."""

    folder: str
    """Of its weights, in the model's folder."""
    in_features: int
    out_features: int
    has_bias: bool
    activation: Activation


@dataclass(frozen=True)
class Modules:
    """What stands behind the model that computes hidden states."""

    pooling: tuple[Pooling, ...] = ()
    """The vectors of several are put side by side. None are named without files: then it is the last token's vector if
    tokens see only those before them, and the mean if they see all."""
    includes_prompt: bool = True
    """Whether the tokens of a prompt take part in the pooling."""
    dense: tuple[Dense, ...] = ()
    normalizes: bool = True


DEFAULT_MODULES = Modules()
"""Of a model without modules.json."""


def parse_modules(read: Read, modules: list[dict[str, Any]]) -> Modules:
    """What modules.json and the modules' own files say."""
    steps = [(_kind(module), str(module.get("path"))) for module in modules]
    kinds = [kind for kind, _ in steps]
    if kinds[:2] != ["Transformer", "Pooling"] or "Normalize" in kinds[:-1] or steps[0][1]:
        raise ValueError(f"modules.json: {', then '.join(kinds)} is not supported")
    pooling, includes_prompt = _pooling(read, f"{steps[1][1]}/config.json")
    return Modules(
        pooling=pooling,
        includes_prompt=includes_prompt,
        dense=tuple(_dense(read, folder) for kind, folder in steps[2:] if kind == "Dense"),
        normalizes=kinds[-1] == "Normalize" and _says_nothing(read, f"{steps[-1][1]}/config.json"),
    )


def parse_answer_tokens(read: Read, modules: list[dict[str, Any]]) -> tuple[int, int]:
    """The tokens of the good and of the bad answer, of a CrossEncoder that is made of a generator."""
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    if kinds != ["Transformer", "LogitScore"] or modules[0].get("path"):
        raise ValueError(f"modules.json: {', then '.join(kinds)} of a CrossEncoder that generates is not supported")
    file = f"{modules[1].get('path')}/config.json"
    given = read(file) or {}
    good, bad = given.get("true_token_id"), given.get("false_token_id")
    if type(good) is not int or type(bad) is not int:
        raise ValueError(f"{file}: true_token_id {good!r} and false_token_id {bad!r} are not two tokens")
    _says_nothing(read, file, {"true_token_id", "false_token_id"}, {"module_input_name": "causal_logits"})
    return good, bad


def _kind(module: dict[str, Any]) -> str:
    """The class of a module, without the packages in which different versions have it."""
    package, _, kind = str(module.get("type")).rpartition(".")
    if package.partition(".")[0] != "sentence_transformers" or kind not in (
        "Transformer",
        "Pooling",
        "Dense",
        "Normalize",
    ):
        raise ValueError(f"modules.json: {module.get('type')} is not supported")
    return kind


def _pooling(read: Read, file: str) -> tuple[tuple[Pooling, ...], bool]:
    """Pooling, and whether a prompt takes part in it."""
    given = read(file)
    if given is None:
        raise ValueError(f"{file} is missing")
    if unknown := given.keys() - _POOLING_KEYS:
        raise ValueError(f"{file}: {', '.join(sorted(unknown))} is not supported")
    named = given.get("pooling_mode", [mode for flag, mode in _FLAGS.items() if given.get(flag)])
    modes = tuple([named] if isinstance(named, str) else named)
    if not modes or set(modes) - set(get_args(Pooling)):
        raise ValueError(f"{file}: pooling by {' and '.join(map(str, modes)) or 'nothing'} is not supported")
    return modes, given.get("include_prompt", True) is not False


def _dense(read: Read, folder: str) -> Dense:
    file = f"{folder}/config.json"
    given = read(file)
    if given is None:
        raise ValueError(f"{file} is missing")
    _says_nothing(read, file, _DENSE_KEYS)
    activation = activation_of(given.get("activation_function", "torch.nn.modules.activation.Tanh"))
    return Dense(
        folder, int(given["in_features"]), int(given["out_features"]), bool(given.get("bias", True)), activation
    )


def _says_nothing(
    read: Read, file: str, understood: Collection[str] = (), harmless: Mapping[str, Any] = _SAYS_NOTHING
) -> bool:
    """Whether a module's file has nothing that changes what it does, beside what is understood; ValueError names it."""
    for key, value in (read(file) or {}).items():
        if key not in understood and (key not in harmless or value not in (harmless[key], None)):
            raise ValueError(f"{file}: {key} {value!r} is not supported")
    return True


def activation_of(path: Any) -> Activation:
    """The activation that stands in a file as a class of torch, such as torch.nn.modules.linear.Identity."""
    package, _, name = str(path).rpartition(".")
    if package.partition(".")[0] != "torch" or name not in get_args(Activation):
        raise ValueError(f"the activation {path} is not supported")
    return cast(Activation, name)
