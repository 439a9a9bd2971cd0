"""The ways in which linear layers keep their weights, each in a file, and the choice between them."""

import torch

from app.checkpoint.folder import ModelFolder
from app.errors import ModelError
from app.layers.linear import LinearMethod
from app.layers.methods.onednn import OneDnn, has_bfloat16
from app.layers.methods.plain import PLAIN


def choose(folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> LinearMethod:
    """The method for a model's linear layers. ModelError names a form of weights that there is no method for."""
    if folder.quantization:
        raise ModelError(
            f"{folder.path / 'config.json'}: quantization_config ({folder.quantization.get('quant_method')}): "
            "quantized safetensors weights are not supported"
        )
    # In float32 reordering pays from some eight rows on: an encoder has them, a decode does not.
    is_faster = folder.encoder is not None if dtype is torch.float32 else dtype is torch.bfloat16 and has_bfloat16()
    return OneDnn() if device.type == "cpu" and is_faster else PLAIN
