"""What a run of training has come to, in a file from which it goes on as if nothing had happened."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..errors import StartupError

_STATE = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW keeps of each parameter."""


def write_checkpoint(
    file: Path, model: nn.Module, optimizer: torch.optim.AdamW, progress: Mapping[str, Any], run: Mapping[str, Any]
) -> None:
    """Keep the weights that learn, the optimizer's state, and two JSON objects: how far it is, and what it is for."""
    tensors = {}
    for name, parameter in _learning(model):
        tensors[f"weight {name}"] = parameter.detach()
        tensors |= {f"{kind} {name}": optimizer.state[parameter][kind] for kind in _STATE}
    new = file.with_suffix(".new")
    save_file(tensors, new, {"progress": json.dumps(progress), "run": json.dumps(run)})
    new.replace(file)


def read_checkpoint(
    file: Path, model: nn.Module, optimizer: torch.optim.AdamW, run: Mapping[str, Any]
) -> dict[str, Any]:
    """Fill model and optimizer, and return how far the run was. Raises StartupError for a run with other options."""
    try:
        with safe_open(file, "pt") as content:
            metadata = content.metadata()
            if json.loads(metadata["run"]) != run:
                raise StartupError(f"--out: {file} is of a run with other options: repeat them, or remove the file")
            with torch.no_grad():
                for name, parameter in _learning(model):
                    parameter.copy_(content.get_tensor(f"weight {name}"))
                    state = {kind: content.get_tensor(f"{kind} {name}") for kind in _STATE}
                    step = state.pop("step")
                    optimizer.state[parameter] = {"step": step} | {
                        kind: tensor.to(parameter.device) for kind, tensor in state.items()
                    }
            progress: dict[str, Any] = json.loads(metadata["progress"])
            return progress
    except (OSError, SafetensorError) as error:
        raise StartupError(f"--out: {file} cannot be read: {error}") from error


def _learning(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
