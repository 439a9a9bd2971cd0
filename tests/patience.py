"""How long tests wait for something that has to happen.

The limit is generous: even on a busy machine, only something that never happens reaches it.
"""

import inspect
import os
import time
from collections.abc import Callable

PATIENCE = float(os.environ.get("TEST_PATIENCE", "240"))
"""In seconds; CI can raise it. It is not PACELINE_TEST_PATIENCE because the service refuses unknown variables."""


def wait_until(condition: Callable[[], object], pause: float = 0.02, patience: float = PATIENCE) -> None:
    """Poll a condition that another thread or process fulfils. `pause` and `patience` are in seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"this did not come true in {patience:g} s: {inspect.getsource(condition).strip()}")
        time.sleep(pause)
