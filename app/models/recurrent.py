"""Modules of transformers that keep states: Mamba, gated delta rules, short convolutions.

transformers runs all of them on one interface: a module gets a cache, takes the state of its layer out of it, and puts
the new one in. So there is nothing to know about families. One pass with transformers' own cache shows which modules
keep what, and each gets a layer in its place that has the states of all requests.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import LinearAttentionLayer

from ..errors import ModelError
from ..layers.linear import Linear
from ..layers.methods.plain import Plain
from ..layers.recurrent import RecurrentInParts, StateKind

_KINDS = ("conv_states", "recurrent_states")
"""transformers' words for the last inputs of convolutions, and for what recurrences carry on."""
_Place = tuple[str, int]
"""One of these, and an index: a layer may have several of a kind."""
_TRIAL = (40, 8)
"""Tokens of the two pieces of a trial's prompt."""
_TOLERANCE = {torch.float32: 1e-3}
_TOLERANCE_OF_HALF = 2e-2
"""The difference that another order of additions makes, relative to the numbers' norm."""


class RecurrentModule(RecurrentInParts):
    """One of transformers' modules, with the states of all requests."""

    def __init__(
        self, module: nn.Module, layer: int, argument: str, states: dict[_Place, StateKind], like: Tensor
    ) -> None:
        """`layer`: its index in a cache; `argument`: its name for a cache; `like`: an input (rows, tokens, width)."""
        super().__init__()
        self.module = module
        self.kinds = list(states.values())
        self.places = list(states)
        self._layer = layer
        self.argument = argument
        self.like = like.new_empty(like.shape[-1])

    def advance(self, hidden_states: Tensor, states: Sequence[Tensor], **options: Any) -> Tensor:
        """See `RecurrentInParts.advance`. `options`: what the model gives to the module beside hidden states."""
        cached = LinearAttentionLayer(number_of_states=1 + max(index for _, index in self.places))
        for (kind, index), state in zip(self.places, states, strict=True):
            getattr(cached, kind)[index] = state
            getattr(cached, f"is_{kind}_initialized")[index] = True
            cached.has_previous_state[index] = True
            if kind == "conv_states":
                cached.conv_kernel_size[index] = state.shape[-1]
        options[self.argument] = Cache(layers=[cached] * (self._layer + 1))
        out: Tensor = self.module(hidden_states, **options)
        for (kind, index), state in zip(self.places, states, strict=True):
            new = getattr(cached, kind)[index]
            if new is not state:
                state.copy_(new)
        return out

    @torch.inference_mode()
    def continues_prompts(self) -> bool:
        """Whether the module computes a prompt in two pieces as it does in one. Not all of transformers' do.

        ModelError if it does not even compute a prompt with a new state as it does without one.
        """
        x, device = self.random_prompt(sum(_TRIAL)), self.like.device
        expected = self.module(x, **{self.argument: None})
        if not are_alike(self.advance(x, self._new_states(device)), expected):
            raise ModelError(
                f"{type(self.module).__name__} does not begin with a state of zeros, which is not supported"
            )
        states = self._new_states(device)
        pieces = [self.advance(piece, states) for piece in x.split(_TRIAL, dim=1)]
        return are_alike(torch.cat(pieces, dim=1), expected)

    def random_prompt(self, num_tokens: int) -> Tensor:
        """An input of the module's, (1, tokens, width)."""
        like = self.like
        return torch.randn(1, num_tokens, len(like), device=like.device, dtype=like.dtype)

    def _new_states(self, device: torch.device) -> list[Tensor]:
        """Of one row, before its first token."""
        return [torch.zeros(1, *kind.shape, dtype=kind.dtype, device=device) for kind in self.kinds]


def are_alike(found: Tensor, expected: Tensor) -> bool:
    """Whether two outputs of a module differ by roundings only.

    (rows, tokens, width), of which what the last tokens differ by counts."""
    found, expected = (x[:, -_TRIAL[1] :] for x in (found, expected))
    tolerance = _TOLERANCE.get(found.dtype, _TOLERANCE_OF_HALF)
    return bool((found - expected).float().norm() <= tolerance * expected.float().norm())


# ---------------------------------------------------------------------- which modules keep states


class _Call(NamedTuple):
    """A call of a module."""

    module: nn.Module
    options: dict[str, Any]
    """The arguments that are given by name."""
    input: Tensor


class _Observer(DynamicCache):
    """transformers' cache, which notes what modules keep in it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.calls: list[_Call] = []
        """Those that have begun and not ended, the innermost last."""
        self.called: set[nn.Module] = set()
        self.keepers: dict[int, tuple[_Call, str]] = {}
        """Of each layer that keeps states, the call that did it, and its name for the cache."""

    def update_conv_state(self, conv_states: Tensor, layer_idx: int, *arguments: Any, **options: Any) -> Tensor:
        self._note(layer_idx)
        return super().update_conv_state(conv_states, layer_idx, *arguments, **options)

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, *rest: Any, **options: Any) -> Tensor:
        self._note(layer_idx)
        return super().update_recurrent_state(recurrent_states, layer_idx, *rest, **options)

    def _note(self, layer: int) -> None:
        call = self.calls[-1]
        kind = type(call.module).__name__
        argument = next((name for name, value in call.options.items() if value is self), None)
        shapes = {tuple(x.shape[:2]) for x in call.options.values() if isinstance(x, Tensor)}
        if argument is None or shapes - {tuple(call.input.shape[:2])}:
            raise ModelError(f"{kind} keeps a state, and is not called with a cache and with what belongs to tokens")
        self.keepers[layer] = call, argument

    def states(self, layer: int) -> dict[_Place, StateKind]:
        """What a layer keeps for one row."""
        found = {}
        for kind in _KINDS:
            for index, state in getattr(self.layers[layer], kind).items():
                if state is not None:
                    found[kind, index] = StateKind(tuple(state.shape[1:]), state.dtype)
        return found


@torch.inference_mode()
def keep_states(body: Any, token_ids: Tensor, position_ids: Tensor) -> list[RecurrentModule]:
    """Have the modules that keep states, in the body of one of transformers' models, keep those of all requests.

    token_ids, position_ids: (1, tokens), for the pass that shows which these are. ModelError if one cannot be run.
    """
    observer = _Observer(body.config)
    is_old = "cache_params" in inspect.signature(body.forward).parameters
    cache = {"cache_params" if is_old else "past_key_values": observer}
    with _watched(body, observer):
        body(input_ids=token_ids, position_ids=position_ids, use_cache=True, **cache)
    paths = {module: path for path, module in body.named_modules()}
    layers = []
    for layer, (call, argument) in observer.keepers.items():
        path = paths.pop(call.module, None)
        if path is None:
            raise ModelError(f"{type(call.module).__name__} keeps the states of several layers, which is not supported")
        layers.append(RecurrentModule(call.module, layer, argument, observer.states(layer), call.input))
        body.set_submodule(path, layers[-1])
        for part in call.module.modules():
            if isinstance(part, Linear) and part not in observer.called:
                part.method = (
                    Plain()
                )  # the module reads its weight: it stays, whatever becomes of layers that are PLAIN
    return layers


@contextmanager
def _watched(body: nn.Module, observer: _Observer) -> Iterator[None]:
    """Have an observer know which modules are called."""

    def begin(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        x = options.get("hidden_states", arguments[0] if arguments else None)
        observer.calls.append(_Call(module, options, x if isinstance(x, Tensor) else torch.empty(0)))
        observer.called.add(module)

    def end(*_: Any) -> None:
        observer.calls.pop()

    hooks = [module.register_forward_pre_hook(begin, with_kwargs=True) for module in body.modules()]
    hooks += [module.register_forward_hook(end) for module in body.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
