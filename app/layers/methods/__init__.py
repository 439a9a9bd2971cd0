"""The methods of linear layers, each in a file of its own, and the choice between them."""

import torch

from ...checkpoint.folder import ModelFolder
from ...errors import ModelError
from ..linear import LinearMethod
from .onednn import OneDnn, has_bfloat16
from .plain import PLAIN


def choose(folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> LinearMethod:
    """The method for a model's linear layers. ModelError names a form of weights that no method supports."""
    if folder.quantization:
        raise ModelError(
            f"{folder.path / 'config.json'}: quantization_config ({folder.quantization.get('quant_method')}): "
            "quantized safetensors weights are not supported"
        )
    # In float32 the reordered form is faster from about eight rows on. An encoder has as many, a decode has not.
    is_faster = folder.encoder is not None if dtype is torch.float32 else dtype is torch.bfloat16 and has_bfloat16()
    return OneDnn() if device.type == "cpu" and is_faster else PLAIN
