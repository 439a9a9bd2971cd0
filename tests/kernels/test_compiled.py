"""Compiled kernels are kept in files, so that a second start does not compile."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
import torch
from app.kernels.cpu import compiled, fused
compiled.keep_in(Path(sys.argv[1]))
x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
weight = torch.ones(64, dtype=torch.bfloat16)
out = fused.rms_norm(x, weight, 0.0, 1e-6)
expected = torch.nn.functional.rms_norm(x.float(), (64,)).bfloat16()
torch.testing.assert_close(out, expected)
print(len([name for name in sys.modules if name.startswith("numba.cpython.")]))
"""


def _run(folder: Path) -> int:
    """Runs a kernel in a process of its own: how many modules Numba has imported to compile."""
    run = subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], capture_output=True, text=True, check=True)
    return int(run.stdout)


def test_a_kept_kernel_is_not_compiled_again_unless_its_file_is_broken(tmp_path: Path) -> None:
    assert _run(tmp_path) > 10
    files = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(files) == 2  # the kernel, and what runs operations
    assert _run(tmp_path) < 10
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == files
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:1000])
    assert _run(tmp_path) > 10
    assert {file.name for file in tmp_path.iterdir()} == set(files)
    assert min(file.stat().st_size for file in tmp_path.iterdir()) > 1000


ATTENTION = """
import sys
from pathlib import Path
from app.kernels.cpu import compiled
from tests.attention.test_backends import GROUPED, error_of_whole_numbers
compiled.keep_in(Path(sys.argv[1]))
assert error_of_whole_numbers(GROUPED) < 1e-4
"""


def test_kept_attention_is_as_right_as_when_it_was_compiled(tmp_path: Path) -> None:
    for _ in range(2):
        subprocess.run([sys.executable, "-c", ATTENTION, str(tmp_path)], check=True)


OF_A_NUMBER = """
import sys
from pathlib import Path
import numpy as np
from app.kernels.cpu import compiled
from app.kernels.cpu.kernel import kernel
compiled.keep_in(Path(sys.argv[1]))

def fill(number):
    @kernel
    def run(begin, end, out):
        least = np.sort(out)[0]  # so much code that it is not compiled into what calls it
        for i in range(begin, end):
            out[i] = number + np.sort(out[:i])[:1].sum() * least
    return run

for number in map(int, sys.argv[2:]):
    out = np.zeros(3, np.int64)
    fill(number)(3, False, out)
    assert out.tolist() == [number] * 3, (number, out)
"""


def test_kernels_that_differ_in_a_number_may_come_from_files_of_different_processes(tmp_path: Path) -> None:
    same_names = os.environ | {"PYTHONHASHSEED": "0"}  # Numba writes a set of options into the names
    for numbers in (["7"], ["8"], ["7", "8"]):
        subprocess.run([sys.executable, "-c", OF_A_NUMBER, str(tmp_path), *numbers], check=True, env=same_names)
