"""Which attention backends there are, and what each is able to do."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..errors import StartupError
from ..kernels.ops import CPU_DTYPES, HAS_TRITON
from .backends.base import AttentionBackend
from .backends.torch_paged import TorchPagedBackend
from .config import AttentionConfig

log = logging.getLogger(__name__)

Recordable = Literal["nothing", "decodes", "steps"]
_ALL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Capabilities:
    """What a backend is able to do, and how to get one."""

    make: Callable[[list[AttentionConfig], int, bool], AttentionBackend[Any]]
    """From the configurations of all layers, the number of KV groups, and whether it has to be batch invariant; imports
    what the backend needs."""
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    kv_dtypes: tuple[torch.dtype, ...]
    """Of K and V in the cache, besides that of all else."""
    recordable: Recordable
    """What can be recorded once and replayed: see `AttentionBackend.metadata`."""
    keeps_values: bool
    """Whether it keeps values also where they are the beginnings of keys; see `AttentionConfig.values_in_keys`."""
    is_batch_invariant: bool
    """Whether it is able to compute a token alike in any batch, in a prompt and in a decode."""
    reason: str
    """Why it is the one to take where it fits."""


def _make_triton(configs: list[AttentionConfig], num_groups: int, batch_invariant: bool) -> AttentionBackend[Any]:
    from .backends.triton_paged import TritonPagedBackend

    return TritonPagedBackend(configs, num_groups, batch_invariant)


def _make_cpu(configs: list[AttentionConfig], num_groups: int, _batch_invariant: bool) -> AttentionBackend[Any]:
    from .backends.cpu_paged import CpuPagedBackend  # Numba is for the CPU only

    return CpuPagedBackend(configs, num_groups)


BACKENDS = {
    "triton": Capabilities(
        _make_triton,
        ("cuda",) if HAS_TRITON else (),
        _ALL_DTYPES,
        (torch.float8_e4m3fn,),
        "steps",
        keeps_values=False,
        is_batch_invariant=True,
        reason="kernels that CUDA graphs can hold",
    ),
    "cpu": Capabilities(
        _make_cpu,
        ("cpu",),
        CPU_DTYPES,
        (torch.int8,),
        "decodes",
        keeps_values=True,
        is_batch_invariant=True,
        reason="kernels that read KV blocks in place",
    ),
    "torch": Capabilities(
        lambda _configs, _num_groups, _batch_invariant: TorchPagedBackend(),
        ("cpu", "cuda"),
        _ALL_DTYPES,
        (),
        "nothing",
        keeps_values=True,
        is_batch_invariant=False,
        reason="no other kernels for this device and dtype",
    ),
}
"""By name, the fastest first; the setting `attention_backend` names the same."""


def choose_backend(
    asked: str,
    device: torch.device,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    batch_invariant: bool,
) -> Capabilities:
    """The backend that was asked for, or with "auto" the first that fits; StartupError if it does not run here."""
    chosen = _choose(asked, device, dtype, kv_dtype)
    if batch_invariant and not chosen.is_batch_invariant:
        name = next(name for name, one in BACKENDS.items() if one is chosen)
        raise StartupError(
            f"batch_invariant: with attention_backend {name}, what a token sees depends on the batch in its last digits"
        )
    return chosen


def _choose(asked: str, device: torch.device, dtype: torch.dtype, kv_dtype: torch.dtype) -> Capabilities:
    running = {name: one for name, one in BACKENDS.items() if device.type in one.devices and dtype in one.dtypes}
    fitting = {name: one for name, one in running.items() if kv_dtype in (dtype, *one.kv_dtypes)}
    if asked == "auto" and not fitting:
        able = {str(kind).removeprefix("torch.") for one in running.values() for kind in one.kv_dtypes}
        raise StartupError(
            f"kv_dtype: no attention on {device} with {dtype} keeps K and V in {kv_dtype}, only in "
            + " or ".join([str(dtype).removeprefix("torch."), *sorted(able)])
        )
    if asked == "auto":
        name, chosen = next(iter(fitting.items()))
        log.info("attention backend %s: %s", name, chosen.reason)
        return chosen
    # Triton's interpreter runs its kernels anywhere, if slowly: for tests.
    is_interpreted = asked == "triton" and HAS_TRITON and bool(os.environ.get("TRITON_INTERPRET"))
    if asked not in fitting and not is_interpreted:
        raise StartupError(
            f"attention_backend: {asked} does not run on {device} with {dtype}, and K and V in {kv_dtype}"
        )
    return BACKENDS[asked]
