"""Reads the tensors of a GGUF file, in the place of safetensors' reader."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.gguf.file import parts_of
from ..checkpoint.gguf.tensors import KIND_OF, StoredTensor, row_bytes
from ..checkpoint.quantization import gguf_tensors
from ..errors import ModelError
from ..layers.formats.gguf import read_blocks

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Of plain numbers."""


class GgufTensors:
    """What `safetensors.safe_open` gives, for a GGUF file that a folder's quantization_config describes.

    A layer that is quantized has a tensor `blocks`. Others that are, such as embeddings, are given as float32.
    """

    def __init__(self, file: Path, quantization: dict[str, Any]) -> None:
        try:
            data = _Parts(file)
            blocks, numbers = (gguf_tensors(quantization, part) for part in ("blocks", "numbers"))
            tensors = {f"{name}.blocks": GgufTensor(data.rows_of(at), at, True) for name, at in blocks.items()}
            self._tensors = tensors | {name: GgufTensor(data.rows_of(at), at, False) for name, at in numbers.items()}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ModelError(f"{file} is not the GGUF file that config.json describes: {error}") from error

    def keys(self) -> Sequence[str]:
        """The names of all tensors."""
        return list(self._tensors)

    def get_slice(self, name: str) -> "GgufTensor":
        """A tensor, of which the rows that an index names will be read."""
        return self._tensors[name]

    def get_tensor(self, name: str) -> Tensor:
        """A whole tensor."""
        return self._tensors[name][:]

    def plain(self) -> dict[str, Tensor]:
        """All tensors as plain numbers, by their names in a checkpoint."""
        return {
            f"{name.removesuffix('.blocks')}.weight" if tensor.is_blocks else name: replace(tensor, is_blocks=False)[:]
            for name, tensor in self._tensors.items()
        }


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file, of which rows are read when they are asked for."""

    data: Any
    """(rows, bytes of a row), memory-mapped. A vector has a number in each row."""
    stored: StoredTensor
    is_blocks: bool
    """Whether it is given as it is stored."""

    def get_shape(self) -> list[int]:
        """In torch's order."""
        return list(self.data.shape if self.is_blocks else self.stored.shape)

    def get_dtype(self) -> str:
        """safetensors' name of it."""
        if self.is_blocks:
            return "U8"
        return self.stored.kind if self.stored.kind in _DTYPES and not self.stored.added else "F32"

    def in_numbers(self, shape: Sequence[int]) -> tuple[int, ...]:
        """A shape such as `get_shape` gives, with the numbers in a row instead of its bytes."""
        if not self.is_blocks:
            return tuple(shape)
        kind = KIND_OF[self.stored.kind]
        return *shape[:-1], shape[-1] // kind.size * kind.inputs

    def __getitem__(self, rows: slice) -> Tensor:
        """Some of the rows."""
        stored = self.stored
        chosen = rows if not stored.heads else _checkpoints_order(len(self.data), stored.heads)[rows]
        data = torch.from_numpy(self.data[chosen])
        if self.is_blocks:
            return data
        plain = data.view(_DTYPES[stored.kind]) if stored.kind in _DTYPES else read_blocks(stored.kind, data).dense()
        shaped = plain.view(-1, *stored.shape[1:])
        return shaped.float() - stored.added if stored.added else shaped


def _checkpoints_order(rows: int, heads: int) -> Any:
    """Which row of the file each row of the checkpoint is; see `StoredTensor.heads`."""
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).flatten()


class _Parts:
    """All files of a model, memory-mapped."""

    def __init__(self, file: Path) -> None:
        # torch wants what could be written to; nobody does
        self._parts = [np.memmap(part, np.uint8, "c") for part in parts_of(file)]

    def rows_of(self, stored: StoredTensor) -> Any:
        """The bytes of a tensor: (rows, bytes of a row)."""
        rows, begin = stored.shape[0], stored.begin
        size = row_bytes(stored.kind, prod(stored.shape[1:]))
        for part in self._parts:
            if begin < len(part):
                return part[begin : begin + rows * size].reshape(rows, size)
            begin -= len(part)
        raise ValueError(f"the file ends before byte {stored.begin}")
