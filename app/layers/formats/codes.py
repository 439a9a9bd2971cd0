"""The one form that quantized weights have in memory, whatever format they come in."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import some_rows

GROUP = 32
"""Inputs that share a scale, of weights that Paceline rounds to whole numbers."""


@dataclass(frozen=True)
class Codes:
    """A weight as small whole numbers: `weight[o, i] = scales[o, i // group] * codes[o, i] + zeros[o, i // group]`.

    Where a checkpoint's groups are not runs of neighbours (GPTQ's act-order), the inputs are sorted by group, and
    `order` says which input each column belongs to.
    """

    codes: Tensor
    """(out_features, in_features) uint8, each less than 2 ** bits."""
    scales: Tensor
    """(out_features, groups) float32"""
    zeros: Tensor
    """(out_features, groups) float32"""
    bits: int
    """4 or 8: what a code is stored in."""
    order: Tensor | None = None
    """(in_features,) int64; None if column i belongs to input i."""

    @property
    def group(self) -> int:
        """Inputs that share a scale and a zero."""
        return self.codes.shape[1] // self.scales.shape[1]

    def is_finite(self) -> bool:
        """Whether all numbers are."""
        return bool(self.scales.isfinite().all() and self.zeros.isfinite().all())

    def dense(self) -> Tensor:
        """The weight that this stands for, (out_features, in_features) float32, rounded once."""
        spread = torch.repeat_interleave
        product = spread(self.scales, self.group, 1) * self.codes
        weight = product + spread(self.zeros, self.group, 1)
        if self.order is None:
            return weight
        out = torch.empty_like(weight)
        out[:, self.order] = weight
        return out


def joined(pieces: Sequence[Codes]) -> Codes | None:
    """Weights of neighbouring outputs as one; None if they are not of one form, with their inputs in one order."""
    first = pieces[0]
    if len(pieces) == 1:
        return first
    if any((piece.bits, piece.group) != (first.bits, first.group) for piece in pieces):
        return None
    if any(not _are_equal(piece.order, first.order) for piece in pieces):
        return None
    codes, scales, zeros = (
        torch.cat([getattr(piece, kind) for piece in pieces]) for kind in ("codes", "scales", "zeros")
    )
    return Codes(codes, scales, zeros, first.bits, first.order)


def _are_equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def around(codes: Tensor, scales: Tensor, zero_points: Tensor | int, bits: int, order: Tensor | None = None) -> Codes:
    """Codes for `scales * (code - zero_point)`; one zero point for all, or (out_features, groups)."""
    return Codes(codes, scales, -zero_points * scales, bits, order)


def signed(numbers: Tensor, scales: Tensor) -> Codes:
    """Codes of 8 bits for `scales * numbers`, whose numbers (out_features, in_features) are int8.

    With 128 added, the highest bit says whether a number was positive.
    """
    return around(numbers.view(torch.uint8) ^ 128, scales, 128, 8)


def quantize(weight: Tensor, bits: int, group: int, stored: torch.dtype | None = None) -> Codes:
    """Round a weight (out_features, in_features) to the nearest codes: a group's largest number decides its scale.

    With 8 bits the range is symmetric; with 4, whose codes are few, it goes from a group's least number to its largest.
    Codes for a file have scales that are numbers of the dtype `stored`, and zeros that are whole codes.
    """
    out_features, in_features = weight.shape
    scales = torch.empty(out_features, in_features // group, device=weight.device)
    codes = Codes(torch.empty_like(weight, dtype=torch.uint8), scales, torch.empty_like(scales), bits)
    for rows in some_rows(weight):
        part = _quantize(weight[rows].float().unflatten(1, (-1, group)), bits, stored)
        codes.codes[rows], codes.scales[rows], codes.zeros[rows] = part.codes, part.scales, part.zeros
    return codes


def _quantize(groups: Tensor, bits: int, stored: torch.dtype | None) -> Codes:
    """The same for weights (out_features, groups, inputs of a group) float32."""
    if bits == 8:
        scales = _scales(groups.abs().amax(-1) / 127, stored)
        return signed((groups / scales.unsqueeze(-1)).round().clamp(-127, 127).to(torch.int8).flatten(1), scales)
    least, most = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    levels = 2**bits - 1
    scales = _scales((most - least) / levels, stored)
    if stored is not None:
        least = (least / scales).round().clamp(min=-levels) * scales
    codes = (groups - least.unsqueeze(-1)) / scales.unsqueeze(-1)
    return Codes(codes.round().clamp(0, levels).to(torch.uint8).flatten(1), scales, least, bits)


def _scales(scales: Tensor, stored: torch.dtype | None) -> Tensor:
    """What a file can say of scales. One of groups that are all zeros may be anything, but zero."""
    scales = scales.to(stored).float() if stored else scales
    return torch.where(scales == 0, 1.0, scales)
