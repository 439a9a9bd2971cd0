"""How long tests wait for what has to happen.

It is so long that only what never happens fails, on a machine with other work too; a test that passes never takes it.
"""

import inspect
import os
import time
from collections.abc import Callable

PATIENCE = float(os.environ.get("TEST_PATIENCE", "120"))
"""Seconds. A slow machine's CI can raise it. (Not PACELINE_...: the service refuses what it does not know there.)"""


def wait_until(condition: Callable[[], object], pause: float = 0.02) -> None:
    """Poll a condition that another thread or process fulfils."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"this did not come true in {PATIENCE:g} s: {inspect.getsource(condition).strip()}")
        time.sleep(pause)
