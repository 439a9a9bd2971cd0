"""Blocks that go to host memory and come back to other places hold the same bytes, in every layout of K and V."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from app.attention.backends.cpu_paged import CpuPagedBackend
from app.attention.backends.torch_paged import TorchPagedBackend
from app.attention.backends.triton_paged import TritonPagedBackend
from app.attention.config import AttentionConfig
from app.attention.layer import Attention
from app.core.step import BlockCopies
from app.worker import host_blocks as module
from app.worker.host_blocks import HostBlocks
from app.worker.kv_storage import bind_kv_cache, group_layers

BLOCK_SIZE, NUM_BLOCKS = 4, 10
CPU = torch.device("cpu")


class Stream:
    """One that does everything at once, in the place of CUDA's."""

    def __init__(self, *_: object) -> None:
        pass

    def wait_stream(self, other: object) -> None:
        """Nothing is under way."""

    def wait_event(self, event: object) -> None:
        """Nothing is under way."""

    def record_event(self) -> object:
        return object()


@pytest.fixture(params=["here", "aside"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How blocks are copied: as on a CPU, or as on a GPU, in pieces, but one after the other."""
    if request.param == "aside":
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", nullcontext)
        monkeypatch.setattr(module, "_pin", lambda _: None)
        monkeypatch.setattr(module._Aside, "_numbers", lambda _, numbers: torch.tensor(numbers))
    return str(request.param)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (CpuPagedBackend, torch.bfloat16),
        (CpuPagedBackend, torch.int8),
        (TorchPagedBackend, torch.float32),
        (TritonPagedBackend, torch.float8_e4m3fn),
    ],
)
def test_blocks_come_back_as_they_went(kind: Any, dtype: torch.dtype, way: str) -> None:
    shapes = [(4, 2, 16, 16, None), (4, 1, 16, 8, None), (4, 2, 16, 16, 8)]
    layers = [
        Attention(AttentionConfig(heads, kv, dim, v_dim, 0.1, window)) for heads, kv, dim, v_dim, window in shapes
    ]
    backend = kind([], 2) if kind is CpuPagedBackend else kind.__new__(kind)
    groups = group_layers(layers, 64, BLOCK_SIZE, dtype, keeps_values=True)
    bind_kv_cache(groups, [NUM_BLOCKS, NUM_BLOCKS], backend, BLOCK_SIZE, dtype, CPU)
    kept = [tensor.transpose(0, backend.block_dim) for layer in layers for tensor in layer.cache.kv if tensor.numel()]
    for tensor in kept:
        tensor.view(torch.uint8).random_()
    before = [tensor.view(torch.uint8).clone() for tensor in kept]
    host = HostBlocks(groups, (5, 3), backend, CPU, most_rows=1)
    if way == "aside":
        host._groups = [module._Aside(group._group, CPU, 1) for group in host._groups]
    assert host.measure() > 0
    assert all(torch.equal(tensor.view(torch.uint8), same) for tensor, same in zip(kept, before, strict=True))
    # 7 goes to place 4 and comes back to 0 and, as 1 goes to place 2, in the same step to 3.
    host.copy([BlockCopies(out=[(7, 4)]), BlockCopies(out=[(7, 2)])])
    for tensor in kept:
        tensor[7].view(torch.uint8).zero_()
    host.copy([BlockCopies(out=[(1, 2)], into=[(2, 3), (4, 0)]), BlockCopies(into=[(2, 0)])])
    num_of_first_group = 2 * (4 if dtype in (torch.int8, torch.float8_e4m3fn) else 2)
    for at, (tensor, was) in enumerate(zip(kept, before, strict=True)):
        now = tensor.view(torch.uint8)
        assert torch.equal(now[0], was[7])
        assert torch.equal(now[3], was[1] if at < num_of_first_group else was[3])
        assert torch.equal(now[1], was[1])
        assert not now[7].any()
