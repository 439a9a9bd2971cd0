"""Weights as AWQ, GPTQ and bitsandbytes files have them, as the formats' descriptions say."""

import json

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


NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
"""The values of NF4, of QLoRA's appendix E."""


def nf4_tensors(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """A weight (outputs, inputs) as bitsandbytes stores it in blocks of 64, and what that stands for."""
    blocks = weight.flatten().float().unflatten(0, (-1, 64))
    largest = blocks.abs().amax(1, keepdim=True)
    codes = ((blocks / largest).unsqueeze(-1) - NF4).abs().argmin(-1)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(weight.shape)}
    pairs = codes.view(-1, 2).to(torch.uint8)
    stored = {
        "weight": pairs[:, :1] << 4 | pairs[:, 1:],
        "weight.absmax": largest[:, 0],
        "weight.quant_map": NF4.clone(),
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }
    return stored, (NF4[codes] * largest).view(weight.shape)


def int8_tensors(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """A weight (outputs, inputs) as LLM.int8 stores it, and what that stands for."""
    largest = weight.abs().amax(1).float()
    codes = (weight * 127 / largest[:, None]).round().to(torch.int8)
    stored = {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return stored, (codes.double() * largest[:, None] / 127).float()
