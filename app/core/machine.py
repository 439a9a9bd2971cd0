"""How much of the machine this process may use: a container may get a part of it only."""

import os
import re
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def usable_cpus(cgroup: Path = _CGROUP) -> int:
    """Cores that this process may use. A container may get the time of some cores only, on any of them."""
    # Not all systems have affinities.
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")  # microseconds; "max" is without limit
    # Rounded down: threads that wait for each other in every layer must not be stopped in turn.
    return min(cpus, max(1, int(quota) // int(period))) if quota.isdigit() else cpus


def free_memory(cgroup: Path = _CGROUP) -> int:
    """Bytes of main memory that this process may still take."""
    free = int(psutil.virtual_memory().available)
    limit, used = _read(cgroup / "memory.max"), _read(cgroup / "memory.current")
    if not limit.isdigit() or not used.isdigit():
        return free
    # Pages of files that nobody uses just now count as used, and are given back when they are needed: such as those of
    # the checkpoint that was just read.
    idle = re.search(r"^inactive_file (\d+)$", _read(cgroup / "memory.stat"), re.MULTILINE)
    return max(0, min(free, int(limit) - int(used) + (int(idle[1]) if idle else 0)))


def _read(path: Path) -> str:
    """A control group's file; nothing if there is none, as outside of containers."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
