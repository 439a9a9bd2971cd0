"""Weights packed as AWQ and GPTQ files have them, number by number, as the formats' descriptions say."""

import numpy as np
import torch
from torch import Tensor

AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""The place in its word of each of eight neighbours."""


def packed(numbers: np.ndarray, bits: int, places: tuple[int, ...] | None = None) -> Tensor:
    """Whole numbers (rows, columns) in int32 words along the columns."""
    per_word = 32 // bits
    words = np.zeros((numbers.shape[0], numbers.shape[1] // per_word), np.uint32)
    for column in range(numbers.shape[1]):
        place = column % per_word if places is None else places[column % per_word]
        words[:, column // per_word] |= numbers[:, column].astype(np.uint32) << np.uint32(bits * place)
    return torch.from_numpy(words.view(np.int32))


def _rounded(weight: Tensor, index: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers (inputs, outputs), and zero points and scales (groups, outputs), for inputs in these groups."""
    matrix = weight.double().numpy().T
    middle = 2 ** (bits - 1)
    scales = np.stack([abs(matrix[index == group]).max(0) / (middle - 1) for group in range(index.max() + 1)])
    scales = scales.astype(np.float16).astype(np.float64)
    zero_points = np.full(scales.shape, middle)
    numbers = np.clip(np.rint(matrix / scales[index]) + middle, 0, 2**bits - 1).astype(np.int64)
    return numbers, zero_points, scales


def _dense(numbers: np.ndarray, zero_points: np.ndarray, scales: np.ndarray, index: np.ndarray) -> Tensor:
    return torch.from_numpy((scales[index] * (numbers - zero_points[index])).T).float()


def gptq_tensors(weight: Tensor, group: int, bits: int, is_sorted: bool) -> tuple[dict[str, Tensor], Tensor]:
    """A weight (outputs, inputs) as GPTQ stores it, and what that stands for."""
    index = np.arange(weight.shape[1]) // group
    if is_sorted:
        index = np.random.default_rng(0).permutation(index)
    numbers, zero_points, scales = _rounded(weight, index, bits)
    stored = {
        "qweight": packed(numbers.T, bits).T,
        "qzeros": packed(zero_points - 1, bits),
        "scales": torch.from_numpy(scales).half(),
        "g_idx": torch.from_numpy(index.astype(np.int32)),
    }
    return stored, _dense(numbers, zero_points, scales, index)


def awq_tensors(weight: Tensor, group: int, bits: int, _is_sorted: bool) -> tuple[dict[str, Tensor], Tensor]:
    """A weight (outputs, inputs) as AWQ stores it, and what that stands for."""
    index = np.arange(weight.shape[1]) // group
    numbers, zero_points, scales = _rounded(weight, index, bits)
    stored = {
        "qweight": packed(numbers, bits, AWQ_PLACES),
        "qzeros": packed(zero_points, bits, AWQ_PLACES),
        "scales": torch.from_numpy(scales).half(),
    }
    return stored, _dense(numbers, zero_points, scales, index)
