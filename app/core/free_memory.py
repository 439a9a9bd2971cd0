"""Memory that a process has freed, but not returned."""

from ctypes import CDLL


def give_back() -> None:
    """Return free memory to the system. Holes between what is still in use would else remain with this process.

    Only glibc can do this.
    """
    if trim := getattr(CDLL(None), "malloc_trim", None):
        trim(0)
