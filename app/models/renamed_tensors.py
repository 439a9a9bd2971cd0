"""Reads the tensors of models that have an alias by the names that transformers' model has for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.aliases import Alias, Config, Take


class RenamedTensors:
    """What `safetensors.safe_open` gives, with other names. Merged tensors are given as those that they hold."""

    def __init__(self, file: Any, alias: Alias, config: Config) -> None:
        self._file = file
        self._stored: dict[str, tuple[str, Take | None]] = {}
        for stored in file.keys():  # noqa: SIM118 - not a dict
            for name, take in alias.tensors(stored, config):
                self._stored[name] = stored, take

    def keys(self) -> Sequence[str]:
        """The names of all tensors."""
        return list(self._stored)

    def get_slice(self, name: str) -> Any:
        """A tensor, of which parts will be read."""
        stored, take = self._stored[name]
        whole = self._file.get_slice(stored)
        return whole if take is None else _Part(whole, take)

    def get_tensor(self, name: str) -> Tensor:
        """A whole tensor."""
        stored, take = self._stored[name]
        whole: Tensor = self._file.get_tensor(stored)
        return whole if take is None else take(whole).contiguous()


@dataclass(frozen=True)
class _Part:
    """A part of a stored tensor, which is read as a whole when something of it is asked for."""

    whole: Any
    take: Take

    def get_shape(self) -> list[int]:
        return [*self.take(torch.empty(self.whole.get_shape(), device="meta")).shape]

    def get_dtype(self) -> str:
        """safetensors' name of it."""
        dtype: str = self.whole.get_dtype()
        return dtype

    def __getitem__(self, index: Any) -> Tensor:
        part: Tensor = self.take(self.whole[:])[index]
        return part
