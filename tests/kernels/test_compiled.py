"""Compiled kernels are kept in files, so that a second start does not compile."""

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


def test_a_kept_kernel_is_not_compiled_again(tmp_path: Path) -> None:
    assert _run(tmp_path) > 10
    files = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(files) == 2  # the kernel, and what runs operations
    assert _run(tmp_path) < 10
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == files
