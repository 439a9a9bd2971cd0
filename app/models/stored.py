"""Has transformers fill its models from quantized checkpoints: tensors as they are stored, in layers of ours.

transformers matches names, which differ between checkpoints and its modules, and says what is missing or unread.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..checkpoint.folder import ModelFolder
from ..checkpoint.quantization import has_four_bits
from ..errors import ModelError
from ..layers.linear import Linear
from ..layers.methods import Methods
from ..layers.moe import Stacked
from .stored_experts import StoredExperts
from .weights import plain_matrices, plain_tensors, refuse_codes


def load_pretrained(
    kind: Any, folder: ModelFolder, methods: Methods, config: Any, dtype: torch.dtype, **options: Any
) -> Any:
    """What `kind.from_pretrained` gives for a folder with safetensors, whose weights may be quantized.

    `kind`: a class of transformers' models, or one of the classes that choose one by `config`.
    """
    place: Path | None = folder.path
    if methods.quantization is None:
        refuse_codes(folder)
        is_renamed = folder.alias is not None and folder.alias.renames_tensors
        if is_renamed or has_four_bits(folder.quantization or {}):
            if not is_renamed:
                del config.quantization_config
            kind, place, options = own_class(kind, config), None, options | {"state_dict": plain_tensors(folder)}
    elif (folder.quantization or {}).get("quant_method") == "mxfp4":
        config.quantization_config |= {"dequantize": True}  # by transformers: its experts take plain numbers
    elif folder.gguf_file is not None:
        raise ModelError(f"{folder.path}: GGUF files are for the decoder, which does not run {folder.architecture}")
    else:
        del config.quantization_config  # it is for transformers' own quantized layers
        plain, kind = plain_matrices(folder), own_class(kind, config)
        ignored = getattr(kind, "_keys_to_ignore_on_load_unexpected", None) or ()
        experts = StoredExperts(folder, methods, plain, ignored)
        if (others := experts.others()) is not None:
            place, options = None, options | {"state_dict": others}
        kind = _with_stored_layers(kind, methods, plain, experts)
    model, info = kind.from_pretrained(
        place,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        device_map=None,
        trust_remote_code=False,
        output_loading_info=True,
        **options,
    )
    _leave_out_missing(model, info, dtype)
    return model, info


def finish_stored(model: nn.Module) -> None:
    """Make the layers that transformers has filled ready to multiply, once it has said that nothing is missing.

    Then read the experts that it has not.
    """
    for layer in model.modules():
        if isinstance(layer, Linear) and not isinstance(layer, Stacked):
            layer.method.finish(layer)
    if isinstance(model, _Holding):
        model.stored_experts.fill()


class _Holding:
    """A model of transformers' with our layers in the place of those that are quantized."""

    stored_experts: StoredExperts


def _with_stored_layers(
    original: type[PreTrainedModel], methods: Methods, plain: set[str], experts: StoredExperts
) -> type[PreTrainedModel]:
    """The class of models that are `_Holding`."""

    def init(self: Any, *arguments: Any, **options: Any) -> None:
        original.__init__(self, *arguments, **options)
        _hold(self, methods, plain)
        experts.hold(self)

    own = {"__init__": init, "__module__": original.__module__, "stored_experts": experts}
    return type(original.__name__, (original, _Holding), own)


def own_class(kind: Any, config: Any) -> Any:
    """The class of the models that a class of transformers' gives, if it chooses one by the config."""
    if issubclass(kind, PreTrainedModel):
        return kind
    with torch.device("meta"):
        return type(kind.from_config(config))


def _hold(model: Any, methods: Methods, plain: set[str]) -> None:
    ends = {end for name in plain for end in _ends(name)}
    for path, layer in list(model.named_modules()):
        if type(layer) is not nn.Linear or layer is model.get_output_embeddings():
            continue
        # Checkpoints and modules may have different prefixes.
        if path in ends or not plain.isdisjoint(_ends(path)) or (method := methods.stored([path])) is None:
            continue
        ours = Linear(layer.in_features, layer.out_features, layer.bias is not None)
        ours.method, ours.bias = method, layer.bias
        method.register(ours)
        model.set_submodule(path, ours)


def _leave_out_missing(model: Any, info: dict[str, Any], dtype: torch.dtype) -> None:
    """Layers of which a checkpoint has nothing are plain layers that miss their weight. Not every caller needs them."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, Linear) and not isinstance(layer, Stacked):
            stored = {f"{path}.{kind}" for kind, _ in layer.named_parameters() if kind != "bias"}
            if stored <= info["missing_keys"]:
                plain = nn.Linear(layer.in_features, layer.out_features, layer.has_bias, dtype=dtype)
                model.set_submodule(path, plain)
                info["missing_keys"] = info["missing_keys"] - stored | {f"{path}.weight"}


def _ends(name: str) -> Iterator[str]:
    """A name, and what is left of it without its first parts."""
    while name:
        yield name
        name = name.partition(".")[2]
