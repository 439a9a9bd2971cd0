"""Ends a child whose loop hangs."""

import logging
import signal

from ..core.heartbeat import Heartbeat
from .child import Child

log = logging.getLogger(__name__)


class Watchdog:
    """Watches the heartbeat of a child. A child that hangs does not recover, and serves nobody."""

    def __init__(self, child: Child, heartbeat: Heartbeat, limit: float) -> None:
        """`limit`: seconds without a heartbeat after which the child is ended."""
        self._child = child
        self._heartbeat = heartbeat
        self._limit = limit
        self._has_warned = False

    def check(self) -> None:
        """After half of the limit, have the child write its stacks to the log; after all of the limit, end it.

        One check never does both: after a while in which the whole service was suspended, this process may be the first
        to resume.
        """
        seconds = 0.0 if self._child.has_ended else self._heartbeat.seconds_silent
        if seconds <= self._limit / 2:
            self._has_warned = False
        elif not self._has_warned:
            log.warning("%s has been silent for %.1f s; what its threads are doing:", self._child.name, seconds)
            self._has_warned = True
            self._child.signal(signal.SIGUSR1)
        elif seconds > self._limit:
            log.error("%s has been silent for %.1f s, longer than step_timeout; ending it", self._child.name, seconds)
            self._child.signal(signal.SIGKILL)
