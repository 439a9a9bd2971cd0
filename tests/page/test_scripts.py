"""The page's scripts that need no browser, in node."""

import subprocess
from pathlib import Path

from tests.page.conftest import needs_node


@needs_node
def test_scripts() -> None:
    script = Path(__file__).with_name("check_scripts.mjs")
    done = subprocess.run(["node", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
