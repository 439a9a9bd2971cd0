"""Reads safetensors files with weights of 4 bits by bitsandbytes, which are given as plain numbers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..layers.formats.bitsandbytes import STATE, FourBits, read_state

_PARTS = re.compile(rf"(.*)\.(absmax|quant_map|nested_absmax|nested_quant_map|{re.escape(STATE)}\w+)")


class FourBitTensors:
    """What `safetensors.safe_open` gives, for such a file. Others of its tensors are given as they are."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._of: dict[str, list[str]] = {}  # tensors that describe one, by that one's name
        for name in file.keys():  # noqa: SIM118 - not a dict
            if match := _PARTS.fullmatch(name):
                self._of.setdefault(match[1], []).append(match[2])
        self._of = {name: parts for name, parts in self._of.items() if any(part.startswith(STATE) for part in parts)}
        self._hidden = {f"{name}.{part}" for name, parts in self._of.items() for part in parts}

    def keys(self) -> Sequence[str]:
        """The names of all tensors, but for those that only describe others."""
        return [name for name in self._file.keys() if name not in self._hidden]  # noqa: SIM118

    def get_slice(self, name: str) -> Any:
        """A tensor, of which the rows that an index names will be read. ModelError names one that is broken."""
        if name not in self._of:
            return self._file.get_slice(name)
        packed = self._file.get_slice(name)
        try:
            state = read_state({part: self._file.get_tensor(f"{name}.{part}") for part in self._of[name]})
            rows, columns = state.shape
            if packed.get_dtype() != "U8" or packed.get_shape() != [-(-rows * columns // 2), 1]:
                raise ValueError(f"{packed.get_shape()} of dtype {packed.get_dtype()} are no {rows} x {columns} codes")
        except ValueError as error:
            raise ModelError(f"{name}: {error}") from None
        return _Rows(packed, state)

    def get_tensor(self, name: str) -> Tensor:
        """A whole tensor."""
        tensor: Tensor = self.get_slice(name)[:] if name in self._of else self._file.get_tensor(name)
        return tensor


@dataclass(frozen=True)
class _Rows:
    """A tensor of 4 bits, of which rows are read when they are asked for."""

    packed: Any
    state: FourBits

    def get_shape(self) -> list[int]:
        """(rows, columns)"""
        return self.state.shape

    def get_dtype(self) -> str:
        """safetensors' name of it."""
        return "F32"

    def __getitem__(self, rows: slice) -> Tensor:
        """Some neighbouring rows."""
        start, stop, _ = rows.indices(self.state.shape[0])
        first, last = (row * self.state.shape[1] for row in (start, max(start, stop)))
        data = torch.as_tensor(self.packed[first // 2 : -(-last // 2)]).flatten()
        return self.state.numbers(data, first, last).view(-1, self.state.shape[1])
