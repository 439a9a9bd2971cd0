"""Ends a child whose loop does not turn any more."""

import logging
import signal

from app.core.heartbeat import Heartbeat
from app.supervisor.child import Child

log = logging.getLogger(__name__)


class Watchdog:
    """Watches a child by its heartbeat: one that hangs does not come back, and does nothing for anybody."""

    def __init__(self, child: Child, heartbeat: Heartbeat, limit: float) -> None:
        """`limit`: seconds without a sign of life."""
        self._child = child
        self._heartbeat = heartbeat
        self._limit = limit
        self._has_barked = False

    def look(self) -> None:
        """Have the child's stacks written to the log after half of the limit, and end it after all of it.

        Never both in one look: when the whole service was halted for a while, this process may be the first to go on.
        """
        seconds = 0.0 if self._child.has_ended else self._heartbeat.seconds_silent
        if seconds <= self._limit / 2:
            self._has_barked = False
        elif not self._has_barked:
            log.warning("%s has been silent for %.1f s; what its threads are doing:", self._child.name, seconds)
            self._has_barked = True
            self._child.signal(signal.SIGUSR1)
        elif seconds > self._limit:
            log.error("%s has been silent for %.1f s, more than step_timeout; ending it", self._child.name, seconds)
            self._child.signal(signal.SIGKILL)
