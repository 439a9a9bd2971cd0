"""transformers' own model for a folder: what Paceline's results are compared with, and what a student is made of."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoint.convert import transformers_reads
from ..checkpoint.folder import ModelFolder
from ..checkpoint.gguf.file import GgufFile

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def transformers_model(
    folder: Path, dtype: torch.dtype = torch.float32, attn_implementation: str = "eager"
) -> "PreTrainedModel":
    """transformers' own model for a folder.

    Attention is eager, unless another is asked for: some faster ones leave out features of models, such as
    soft-capping.
    """
    from transformers import AutoConfig  # seconds, which wait until the model is found

    from .classes import auto_class, config_of, encoder_decoder_class
    from .gguf_tensors import GgufTensors
    from .stored import own_class
    from .weights import plain_tensors

    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
    opened = ModelFolder(folder)
    place: Path | None = folder
    if (file := opened.gguf_file) is not None:
        # It needs to be told the model's configuration, of which it reads less from the file than Paceline.
        config = {key: value for key, value in opened.config.items() if key != "quantization_config"}
        read = GgufFile(file)
        shape = AutoConfig.for_model(**config | {"tie_word_embeddings": "output.weight" not in read.tensors})
        if transformers_reads(read):
            options |= {"gguf_file": file.name}
        else:
            options |= {"state_dict": GgufTensors(file, opened.quantization or {}).plain()}
    else:
        shape = config_of(opened)
    described = opened.encoder_decoder
    kind = auto_class(shape, opened.architecture) if described is None else encoder_decoder_class(described)
    if opened.alias is not None and opened.alias.renames_tensors:
        options |= {"state_dict": plain_tensors(opened)}
    if "state_dict" in options:
        kind, place = own_class(kind, shape), None
    model: Any = kind.from_pretrained(place, config=shape, **options)
    loaded: PreTrainedModel = model.eval()
    return loaded
