"""Importing kernels has no side effects: where compiled kernels are kept is chosen later."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import importlib, json, os, pkgutil
import numba, torch, triton  # what these do is theirs to say
before = dict(os.environ)
import app.kernels
names = [module.name for module in pkgutil.walk_packages(app.kernels.__path__, "app.kernels.")]
for name in names:
    importlib.import_module(name)
print(json.dumps([names, {name: os.environ[name] for name in os.environ if os.environ[name] != before.get(name)}]))
"""


def test_importing_kernels_makes_no_folder_and_sets_no_variable(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=os.environ | home, capture_output=True, text=True, check=True
    )
    names, changed = json.loads(run.stdout)
    assert {"app.kernels.cpu.fused", "app.kernels.gpu.fused"} <= set(names)
    assert changed == {}
    assert list(tmp_path.iterdir()) == []
