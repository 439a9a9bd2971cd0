"""Errors of torch, raised as torch raises them."""

import pytest
import torch

from app.core.step import WorkerOutOfMemoryError
from app.worker.faults import named_faults


def test_the_hosts_memory_running_out_is_recognised() -> None:
    with pytest.raises(WorkerOutOfMemoryError), named_faults():
        torch.empty(2**50)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"), named_faults():
        torch.zeros(2, 3) @ torch.zeros(2, 3)


def test_a_librarys_panic_becomes_an_error() -> None:
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
    with pytest.raises(RuntimeError, match="failed inside"), named_faults():
        raise panic("index out of bounds")
    with pytest.raises(KeyboardInterrupt), named_faults():
        raise KeyboardInterrupt
