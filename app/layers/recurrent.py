"""Layers that keep a state of fixed size for each request, instead of K and V for each token.

Such a layer mixes tokens along the row that it is given. So it must not see tokens of two requests in a row. One that
computes in parts gets decodes as a batch of rows of one token, and each piece of a prompt as a row alone. One with
kernels that know where requests begin, and where their states lie, computes a whole step at once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .adapters import adapters_of_some


class StateKind(NamedTuple):
    """One tensor of the state that a layer keeps of a request."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class StatePart(NamedTuple):
    """What a layer computes at once: all decodes of a step, or a piece of one prompt."""

    tokens: Tensor | slice
    """Which of the step's tokens."""
    slots: Tensor | slice
    """Whose states: parallel to the tokens for decodes, and one slot for a piece of a prompt."""
    is_prompt: bool
    copies: Sequence[tuple[int, int]] = ()
    """Slots whose states are copied to other slots then."""


class SlotStep(NamedTuple):
    """A step, for layers that compute it at once. The numbers may change under a recorded step."""

    entries: Tensor
    """(entries, 5) int32: the step's requests, and padding; see `app.kernels.entries`."""
    entry_of: Tensor
    """(tokens,) int32: the entry of each token, or -1 for padding."""
    chunks: Tensor
    """(chunks, 2) int32: see `app.kernels.entries`; there is none, nor padding, in a step of decodes."""


RecurrentStep = Sequence[StatePart] | SlotStep
"""Parts, or for layers that are `at_once` a step."""
_step: ContextVar[Any] = ContextVar("recurrent_step")


@contextmanager
def step_of(step: RecurrentStep) -> Iterator[None]:
    """Make a step known to the recurrent layers that run inside this block, in this thread."""
    token = _step.set(step)
    try:
        yield
    finally:
        _step.reset(token)


def current_step() -> Any:
    """The step that is being run, in the form that the layer takes; LookupError outside of one."""
    return _step.get()


class Recurrent(nn.Module):
    """A layer with the states of all requests, each in a slot of its memory.

    `forward` takes (1, tokens, width) of a step.
    """

    module: nn.Module
    """transformers' own, in whose place it stands."""
    at_once = False
    """Whether it computes a step at once, and can be recorded."""
    kinds: Sequence[StateKind]
    memory: Sequence[Tensor] = ()
    """(slots, ...) for each of `kinds`, which the worker allocates. Zeros are the state before the first token."""

    @property
    def bytes_of_slot(self) -> int:
        """What the state of one request takes."""
        return sum(prod(kind.shape) * kind.dtype.itemsize for kind in self.kinds)


class RecurrentInParts(Recurrent):
    """One that computes a step in parts."""

    def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:
        """(1, tokens, width) of a step to (1, tokens, width of the output), with what `advance` takes beside.

        Tensors among that are of the step's tokens, too: (1, tokens, ...).
        """
        out = None
        for part in current_step():

            def take(x: Any, part: StatePart = part) -> Any:
                if not isinstance(x, Tensor):
                    return x
                return x[:, part.tokens] if part.is_prompt else x[:, part.tokens].transpose(0, 1)

            states = [memory[part.slots] for memory in self.memory]  # of a slice, this is the memory itself
            with adapters_of_some(part.tokens):
                y = self.advance(take(hidden_states), states, **{name: take(x) for name, x in options.items()})
            if isinstance(part.slots, Tensor):
                for memory, state in zip(self.memory, states, strict=True):
                    memory[part.slots] = state
            for source, target in part.copies:
                for memory in self.memory:
                    memory[target] = memory[source]
            if out is None:
                out = y.new_empty(1, hidden_states.shape[1], y.shape[-1])
            out[:, part.tokens] = y if part.is_prompt else y.transpose(0, 1)
        assert out is not None
        return out

    def advance(self, hidden_states: Tensor, states: Sequence[Tensor], **options: Any) -> Tensor:
        """The output (rows, tokens, ...) for the next tokens of some rows (rows, tokens, width).

        `states`: (rows, ...) for each of `kinds`; they are overwritten with those behind the tokens.
        """
        raise NotImplementedError
