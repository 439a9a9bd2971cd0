"""What bitsandbytes stores, as transformers saves it: LLM.int8 (Dettmers et al., 2022), NF4 and FP4 (QLoRA, 2023).

The sixteen values of NF4 and FP4 are no grid, so they have no codes, scales and zeros. They are read as plain numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from ...checkpoint.quantization import Scheme
from .base import Stored
from .codes import Codes, signed

STATE = "quant_state.bitsandbytes__"
"""How the name of the tensor begins that describes one of 4 bits, behind that tensor's name."""


class RowScaled:
    """`weight = SCB / 127 * int8`, with a scale for each output."""

    def __init__(self, _scheme: Scheme) -> None:
        """There is one such scheme."""

    def tensors(self, out_features: int, in_features: int) -> dict[str, Stored]:
        """See `Format`."""
        return {
            "weight": Stored((out_features, in_features), torch.int8),
            "SCB": Stored((out_features,)),
            "weight_format": Stored((), torch.uint8),
        }

    def decode(self, tensors: Mapping[str, Tensor]) -> Codes:
        """See `Format`."""
        if (order := int(tensors["weight_format"])) != 0:
            raise ValueError(f"weight_format is {order}: only 0, rows one behind the other, is supported")
        return signed(tensors["weight"], (tensors["SCB"].float() / 127).unsqueeze(1))


class _State(msgspec.Struct):
    """The text that describes a tensor of 4 bits."""

    shape: list[int]
    blocksize: int
    nested_blocksize: int = 0
    nested_offset: float = 0.0


@dataclass(frozen=True)
class FourBits:
    """A tensor of 4 bits: `table[code] * scales[i // block]` for number i, in the order of its rows."""

    shape: list[int]
    block: int
    table: Tensor
    """(16,) float32"""
    scales: Tensor
    """(blocks,) float32"""

    def numbers(self, data: Tensor, first: int, last: int) -> Tensor:
        """Numbers `first` to `last`, without `last`, float32, from the bytes (n,) that hold them: the upper half of a
        byte comes first."""
        codes = torch.stack((data >> 4, data & 15), 1).flatten()[first % 2 :][: last - first]
        return self.table[codes.long()] * self.scales[torch.arange(first, last) // self.block]


def read_state(tensors: Mapping[str, Tensor]) -> FourBits:
    """What tensors say of one of 4 bits, by what follows its name. ValueError for what makes no sense."""
    text = next(tensor for name, tensor in tensors.items() if name.startswith(STATE))
    try:
        state = msgspec.json.decode(bytes(text.tolist()), type=_State)
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise ValueError(f"{STATE}… cannot be read: {error}") from None
    if len(state.shape) != 2 or min(state.shape) < 1 or state.blocksize < 1:
        raise ValueError(f"{STATE}… has the shape {state.shape} and blocks of {state.blocksize}")
    num_blocks = -(-state.shape[0] * state.shape[1] // state.blocksize)
    scales = _tensor(tensors, "absmax", num_blocks)
    if state.nested_blocksize:  # scales have 8 bits, and scales of their own
        larger = _tensor(tensors, "nested_absmax", -(-num_blocks // state.nested_blocksize))
        if not (scales >= 0).all() or not (scales < 256).all():
            raise ValueError("absmax has numbers that are no bytes")
        values = _tensor(tensors, "nested_quant_map", 256)[scales.long()]
        scales = values * larger.repeat_interleave(state.nested_blocksize)[:num_blocks] + state.nested_offset
    table = _tensor(tensors, "quant_map", 16)
    if not (scales.isfinite().all() and table.isfinite().all()):
        raise ValueError("absmax or quant_map has scales that are no numbers")
    return FourBits(state.shape, state.blocksize, table, scales)


def _tensor(tensors: Mapping[str, Tensor], name: str, size: int) -> Tensor:
    if name not in tensors:
        raise ValueError(f"{name} is missing")
    if tensors[name].numel() != size:
        raise ValueError(f"{name} has {tensors[name].numel()} numbers, not {size}")
    return tensors[name].flatten().float()
