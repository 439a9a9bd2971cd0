"""Limits of a container count, and not the resources of its host."""

from pathlib import Path

import psutil
import pytest
import torch

from app.worker.resolve import _free_memory, _usable_cpus


@pytest.mark.parametrize(
    ("quota", "cpus"), [("max 100000", 6), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 6), (None, 6)]
)
def test_threads(quota: str | None, cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(6)))
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert _usable_cpus(tmp_path) == cpus
    monkeypatch.delattr("os.sched_getaffinity")  # macOS
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert _usable_cpus(tmp_path) == cpus


def test_pages_of_files_that_were_read_do_not_count_as_used(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 200\nactive_file 100\ninactive_file 600\n")
    assert _free_memory(torch.device("cpu"), tmp_path) == 700
    (tmp_path / "memory.stat").unlink()
    assert _free_memory(torch.device("cpu"), tmp_path) == 100
    (tmp_path / "memory.max").write_text("max\n")
    assert _free_memory(torch.device("cpu"), tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.5)
