"""A child process that is restarted when it dies."""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..core.own_module import FOLDER, command
from ..core.parent import reason_of
from ..errors import PacelineError
from ..settings import Settings

log = logging.getLogger(__name__)

_FIRST_DELAY = 0.5
_LONGEST_DELAY = 30.0
_STOP_SECONDS = 3
"""Time for a child to end by itself once its stdin is closed."""


class ChildLostError(PacelineError):
    """A child could not be kept running: it ended before it was ready, or again and again."""

    def __init__(self, message: str, exit_code: int) -> None:
        """`exit_code` is for this process."""
        super().__init__(message)
        self.exit_code = exit_code


class Child:
    """One process of the service. It ends with this process, because its stdin is then closed (`app.core.parent`)."""

    def __init__(
        self, name: str, start: Callable[[], subprocess.Popen[bytes]], max_restarts: int, folder: Path
    ) -> None:
        """Start the child. `name` is for the log; `folder` is where the child says why it cannot start."""
        self.name = name
        self._folder = folder
        self._start = start
        self._max_restarts = max_restarts
        self._failures = 0  # in a row
        self._restart_at = 0.0
        self.process: subprocess.Popen[bytes] | None = start()

    def restart_if_dead(self, was_useful: bool, has_excuse: bool = False) -> bool:
        """Restart the child if it has died and its delay is over. Returns True if it has died since the last call.

        A child that `was_useful` is restarted at once. Otherwise the delay doubles each time, and ChildLostError is
        raised after `max_restarts` such deaths in a row. A death that `has_excuse` does not count.
        """
        if self.process is None:
            if time.monotonic() >= self._restart_at:
                self.process = self._start()
            return False
        if self.process.poll() is None:
            return False
        end = self.how_it_ended
        _close(self.process)
        self.process = None
        if was_useful:
            self._failures = 0
        elif not has_excuse:
            self._failures += 1
        if self._failures > self._max_restarts:
            raise ChildLostError(f"{end}, {self._failures} times in a row", 1)
        delay = min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** (self._failures - 1)) if self._failures else 0.0
        self._restart_at = time.monotonic() + delay
        log.error("%s; starting it again in %.1f s", end, delay)
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send the child a signal, if it is running."""
        if self.process is not None:
            self.process.send_signal(number)

    @property
    def exit_code(self) -> int | None:
        """None while the child is running and once its death has been handled; negative if a signal ended it."""
        return self.process.poll() if self.process else None

    @property
    def reason(self) -> str:
        """Why a child that has ended could not start; empty if it did not say so."""
        return reason_of(self._folder, self.process.pid) if self.process else ""

    @property
    def how_it_ended(self) -> str:
        """The exit code of a child that has ended, and its reason."""
        return f"{self.name} ended with exit code {self.exit_code}" + (f": {self.reason}" if self.reason else "")

    @property
    def has_ended(self) -> bool:
        """Whether the child is not running now."""
        return self.process is None or self.process.poll() is not None


def start_module(
    module: str, settings: Settings, *arguments: str, fds: tuple[int, ...] = (), **environment: str
) -> subprocess.Popen[bytes]:
    """Run a module, such as `engine.server`, as a child process.

    It reads its settings from stdin, and ends when stdin is closed.
    """
    # A terminal sends Ctrl-C to all processes, and it is the parent that decides. The child inherits what is blocked,
    # so that it is not interrupted while it still imports.
    blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process = subprocess.Popen(
            [*command(module), *arguments],
            cwd=FOLDER,
            stdin=subprocess.PIPE,
            pass_fds=fds,
            env=os.environ | environment,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # the child has ended already; the next check sees that
        process.stdin.write(settings.model_dump_json().encode() + b"\n")
        process.stdin.flush()
    return process


def stop(*children: Child) -> None:
    """Tell children to end now, and kill those that do not."""
    deadline = time.monotonic() + _STOP_SECONDS
    processes = [child.process for child in children if child.process is not None]
    for process in processes:
        _close(process)
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _close(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
