"""How much of a machine is used: the limits of a container count, and not the resources of its host."""

from pathlib import Path

import psutil
import pytest
import torch

from app.core.machine import free_memory, usable_cpus
from app.core.step import Limits, RowStates
from app.errors import StartupError
from app.settings import Settings
from app.worker import resolve
from app.worker.execution import StepMemory
from app.worker.kv_storage import LayerGroup
from app.worker.resolve import Resolved, resolve_blocks, resolve_states


@pytest.mark.parametrize(
    ("quota", "cpus"), [("max 100000", 6), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 6), (None, 6)]
)
def test_threads(quota: str | None, cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(6)))
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert usable_cpus(tmp_path) == cpus
    monkeypatch.delattr("os.sched_getaffinity")  # macOS
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert usable_cpus(tmp_path) == cpus


def test_pages_of_files_that_were_read_do_not_count_as_used(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 200\nactive_file 100\ninactive_file 600\n")
    assert free_memory(tmp_path) == 700
    (tmp_path / "memory.stat").unlink()
    assert free_memory(tmp_path) == 100
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.5)


@pytest.mark.parametrize(
    ("free", "rows", "context", "blocks"),
    [
        (2**40, 64, 32768, 64 * 256),  # an eighth of the context for each
        (2**40, 64, 512, 64 * 32),  # all of a short one
        (2**40, 2, 8192, 512),  # one longest request
        (2**20 * 2048, 64, 8192, 1024),  # half of the memory, in blocks of 1 MiB
    ],
)
def test_kv_blocks_on_a_cpu_are_those_that_its_requests_can_use(
    free: int, rows: int, context: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "_free_memory", lambda _device: free)
    limits = Limits(groups=(), max_model_len=context, max_num_seqs=rows, max_num_batched_tokens=512, max_itl=0.2)
    resolved = Resolved(torch.device("cpu"), torch.bfloat16, torch.bfloat16, limits)
    groups = [LayerGroup(layers=[], window=None, block_bytes=2**20)]
    (group,) = resolve_blocks(Settings(), resolved, groups, StepMemory(0, 0)).groups
    assert group.num_blocks == blocks


def test_states_take_half_of_the_memory_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "_free_memory", lambda _device: 64 * 2**20)  # half of it is for what requests keep
    limits = Limits(groups=(), max_model_len=4096, max_num_seqs=64, max_num_batched_tokens=512, max_itl=0.2)
    resolved = Resolved(torch.device("cpu"), torch.bfloat16, torch.bfloat16, limits)
    few = resolve_states(Settings(), resolved, 2**20, True)
    assert (few.max_num_seqs, few.max_num_batched_tokens, few.chunked_prefill) == (8, 512, True)
    assert few.states == RowStates(num_snapshots=8)
    asked = resolve_states(Settings(max_num_seqs=14), resolved, 2**20, True)
    assert (asked.max_num_seqs, asked.states) == (14, RowStates(num_snapshots=2))
    without = resolve_states(Settings(prefix_caching=False), resolved, 2**20, True)
    assert (without.max_num_seqs, without.states) == (16, RowStates(num_snapshots=0))
    whole = resolve_states(Settings(), resolved, 2**10, False)
    assert (whole.max_num_seqs, whole.max_num_batched_tokens, whole.chunked_prefill) == (64, 4160, False)
    assert whole.states == RowStates(num_snapshots=0)
    with pytest.raises(StartupError, match="max_num_seqs: the recurrent states of 64 requests"):
        resolve_states(Settings(max_num_seqs=64), resolved, 2**20, True)
    groups = [LayerGroup(layers=[], window=None, block_bytes=2**20)]
    (group,) = resolve_blocks(Settings(), resolved, groups, StepMemory(0, 0), 16 * 2**20).groups
    assert group.num_blocks == 16
