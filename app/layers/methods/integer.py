"""Weights as small whole numbers, multiplied as they are, by the CPU's kernel for them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.cpu import integer
from ...kernels.ops import CPU_DTYPES
from ...kernels.routes import Routes
from ..formats.base import Weight
from ..formats.codes import Codes, joined
from ..linear import Linear
from ..moe import Stacked
from .plain import Plain


class _Piece(NamedTuple):
    """The weight of some neighbouring outputs."""

    weight: integer.Packed
    order: Tensor | None
    """Of the inputs; see `Codes`."""


class Integer(Plain):
    """The method of one layer, whose outputs are made up of pieces: a checkpoint may store them in different forms."""

    is_batch_invariant = True

    def __init__(self, pieces: Sequence[Codes], num_experts: int = 1) -> None:
        """Of several experts there is one piece, with their outputs one after the other."""
        self._pieces = [
            _Piece(
                integer.pack(piece.codes, piece.scales, piece.zeros, piece.bits, num_experts=num_experts), piece.order
            )
            for piece in pieces
        ]

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """See `LinearMethod`."""
        inputs = x.reshape(-1, layer.in_features)
        out = torch.empty(len(inputs), layer.out_features, dtype=layer.out_dtype or x.dtype)
        first, in_own_order = 0, dict[int, integer.Rows]()  # by parts: most pieces share them
        for weight, order in self._pieces:
            if order is not None:
                rows = integer.quantize_rows(inputs[:, order], weight.part)
            elif weight.part in in_own_order:
                rows = in_own_order[weight.part]
            else:
                rows = in_own_order[weight.part] = integer.quantize_rows(inputs, weight.part)
            integer.multiply(weight, rows, layer.bias, first, out)
            first += weight.outputs
        return out.view(*x.shape[:-1], layer.out_features)

    def grouped(self, layer: Linear, x: Tensor, routes: Routes) -> Tensor:
        """See `LinearMethod`."""
        [(weight, order)] = self._pieces
        out = torch.empty(routes.num_pairs, weight.outputs, dtype=x.dtype)
        rows = integer.quantize_rows(x if order is None else x[:, order], weight.part, routes)
        integer.multiply(weight, rows, layer.bias, 0, out, routes)
        return out

    def rows(self, layer: Linear, at: Tensor, dtype: torch.dtype) -> Tensor:
        """See `LinearMethod`."""
        [(weight, order)] = self._pieces
        assert order is None  # no format of embeddings sorts inputs
        return integer.take_rows(weight, layer.in_features, at, dtype)


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for a device, and for activations of a dtype."""
    return device.type == "cpu" and dtype in CPU_DTYPES and integer.lanes() > 0


def keep(layer: Linear, pieces: Sequence[Weight]) -> Integer | None:
    """See `Keeper`. Those of experts must be of one form."""
    codes = [piece for piece in pieces if isinstance(piece, Codes)]
    fit = [piece for piece in codes if integer.can_pack(piece.codes.shape[1], piece.group)]
    if len(fit) < len(pieces):
        return None
    if isinstance(layer, Stacked):
        whole = joined(fit)
        return None if whole is None else Integer([whole], layer.num_experts)
    return Integer(fit)
