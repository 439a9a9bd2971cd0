"""The end of a process that serves: what is open may end, nothing new begins."""

import time


class Drain:
    """Whether it has begun, and whether it is over."""

    def __init__(self, timeout: float) -> None:
        """`timeout`: seconds that open requests get."""
        self._timeout = timeout
        self._began_at: float | None = None
        self.num_open = 0
        """Requests that are worked on, those of probes aside. `RequestMiddleware` counts them."""

    def begin(self) -> None:
        """Refuse new requests from now on. A second call changes nothing."""
        if self._began_at is None:
            self._began_at = time.monotonic()

    @property
    def has_begun(self) -> bool:
        return self._began_at is not None

    @property
    def is_over(self) -> bool:
        """Whether this process may end."""
        if self._began_at is None:
            return False
        return self.num_open == 0 or time.monotonic() > self._began_at + self._timeout
