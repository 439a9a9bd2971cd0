"""transformers' modules that keep states, for all requests of a step at once.

Such a module is layers that take each token alone, and a few functions of transformers' that mix tokens along a row: a
convolution, and a recurrence. A copy of its `forward` has kernels in the place of these functions, which know where
requests begin, and where their states lie. So it takes all tokens of a step as one row, and what it does depends on the
shape of a step alone: it can be recorded. Whether it computes the same is tried, and nothing is known of families.
"""

import inspect
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from ..kernels import recurrent
from ..kernels.entries import chunks_of
from ..layers.recurrent import Recurrent, SlotStep, current_step, step_of
from .recurrent import RecurrentModule, are_alike

_TRIAL, _BESIDE = (70, 7, 1), (5, 1, 0)
"""Tokens of the pieces of a trial's prompt, and of another request in the same steps."""


class UnlikeError(Exception):
    """A module does something else with its states than the kernels."""


class AtOnce(Recurrent):
    """One of transformers' modules, with kernels for what mixes tokens."""

    at_once = True

    def __init__(self, of: RecurrentModule) -> None:
        super().__init__()
        self.module = of.module
        self.kinds = of.kinds
        self._places = [kind for kind, _ in of.places]
        self._no_cache = {of.argument: None}
        self._forward = _with_functions(
            type(of.module).forward,
            causal_conv1d_fn=self._convolve,
            torch_chunk_gated_delta_rule=self._delta_rule,
            chunk_kimi_delta_attention=self._delta_rule,
            mamba2_chunk_scan=self._scan,
        )
        self._left: dict[str, list[Tensor]] = {}
        """Of this pass: the memory of convolutions and of recurrences that were not computed yet."""

    def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:
        """(1, tokens, width) of a step to (1, tokens, width of the output)."""
        self._left = {}
        for kind, memory in zip(self._places, self.memory, strict=True):
            self._left.setdefault(kind, []).append(memory)
        out: Tensor = self._forward(self.module, hidden_states, **options | self._no_cache)
        if any(self._left.values()):
            raise UnlikeError("it does not go on with all of its states")
        return out

    def _memory(self, kind: str, shape: Sequence[int]) -> Tensor:
        """The states (slots, *shape) that the next function of a kind goes on with."""
        left = self._left.get(kind)
        if not left or left[0].shape[1:] != torch.Size(shape):
            raise UnlikeError("its states have another form")
        return left.pop(0)

    # ------------------------------------------------------------------ transformers' functions, with their arguments

    def _convolve(
        self, hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **_: Any
    ) -> Tensor:
        """hidden_states: (1, channels, tokens)."""
        step: SlotStep = current_step()
        memory, is_silu = self._memory("conv_states", weight.shape), activation in ("silu", "swish")
        out = recurrent.convolve(hidden_states[0].t(), weight, bias, is_silu, memory, *step)
        return (out if is_silu or activation is None else ACT2FN[activation](out)).t()[None]

    def _delta_rule(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        g: Tensor,
        beta: Tensor,
        use_qk_l2norm_in_kernel: bool = False,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """query, key, value: (1, tokens, heads, size); g: (1, tokens, heads) or (1, tokens, heads, size)."""
        memory = self._memory("recurrent_states", (value.shape[2], key.shape[3], value.shape[3]))
        q, k, v, g, beta = (x[0] for x in (query, key, value, g, beta))
        entries, _, chunks = current_step()
        return recurrent.delta_rule(q, k, v, g, beta, use_qk_l2norm_in_kernel, memory, entries, chunks)[None], None

    def _scan(
        self,
        hidden_states: Tensor,
        dt: Tensor,
        A: Tensor,  # noqa: N803
        B: Tensor,  # noqa: N803
        C: Tensor,  # noqa: N803
        chunk_size: int,  # noqa: ARG002
        D: Tensor | None = None,  # noqa: N803
        z: Tensor | None = None,
        dt_bias: Tensor | None = None,
        dt_softplus: bool = False,
        dt_limit: tuple[float, float] | None = None,
        **_: Any,
    ) -> Tensor:
        """hidden_states: (1, tokens, heads, size); B, C: (1, tokens, groups, state size)."""
        if z is not None or A.dim() > 1 or (D is not None and D.dim() > 1):
            raise UnlikeError("its scan is another one")
        x, b, c = hidden_states[0], B[0], C[0]
        memory = self._memory("recurrent_states", (*x.shape[1:], b.shape[-1]))
        limits = (0.0, float("inf")) if dt_limit is None else (float(dt_limit[0]), float(dt_limit[1]))
        entries = current_step().entries
        return recurrent.scan(x, dt[0], A, b, c, D, dt_bias, dt_softplus, limits, memory, entries)[None]

    # ------------------------------------------------------------------ the trial

    @torch.inference_mode()
    def check(self, of: RecurrentModule) -> None:
        """Compute a prompt in pieces, beside another request. UnlikeError if that differs from the module's own."""
        prompt, device = of.random_prompt(sum(_TRIAL)), of.like.device
        expected = of.module(prompt, **self._no_cache)
        self.memory = [torch.zeros(2, *kind.shape, dtype=kind.dtype, device=device) for kind in self.kinds]
        found = []
        for piece, beside in zip(prompt.split(_TRIAL, dim=1), _BESIDE, strict=True):
            end = beside + piece.shape[1]
            entries = [(0, 0, beside, -1, -1), (1, beside, end, -1, -1)]
            numbers = entries, [0] * beside + [1] * (end - beside), chunks_of(entries)
            step = SlotStep(*(torch.tensor(x, dtype=torch.int32, device=device) for x in numbers))
            with step_of(step):
                found.append(self(torch.cat([of.random_prompt(beside), piece], dim=1))[:, beside:])
        self.memory = ()
        if not are_alike(torch.cat(found, dim=1), expected):
            raise UnlikeError("the results differ")


def _with_functions(method: Callable[..., Any], **functions: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of a method, for which some names of its module mean other functions. Decorators are left away."""
    plain = inspect.unwrap(method)
    names = {**plain.__globals__, **functions}
    copy = FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__, plain.__closure__)
    copy.__kwdefaults__ = plain.__kwdefaults__
    return copy
