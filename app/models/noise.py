"""Weights of a model that has none, for measurements."""

import torch
from torch import nn

from ..layers.linear import Linear
from ..layers.methods.mxfp4 import Mxfp4


@torch.no_grad()
def fill_with_noise(model: nn.Module, device: torch.device) -> None:
    """Give a model the weights of one before its training, so that its activations are ordinary numbers.

    They are drawn where the model is to be: a GPU does that a thousand times faster, also for what is rounded then.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.device.type != device.type:
                parameter.data = torch.empty_like(parameter, device=device)
            if parameter.is_floating_point() and parameter.dim() > 1:
                parameter.normal_(0.0, 0.02)
            elif parameter.is_floating_point():
                parameter.fill_(0.0 if name == "bias" else 1.0)
        if isinstance(module, Linear):
            if isinstance(module.method, Mxfp4):
                module.method.draw(module)
            module.method.finish(module)
