"""The engine process, as its parent sees it."""

import logging
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from app.core.heartbeat import Heartbeat
from app.errors import EXIT_STARTUP_ERROR
from app.settings import Settings
from app.supervisor.child import Child, ChildLostError, start_module, stop

log = logging.getLogger(__name__)


class EngineProcess:
    """One engine, as a child of this process; after its death, the next one at the same address."""

    def __init__(self, settings: Settings, model_folder: Path) -> None:
        """Start it; `address` is where API workers find it."""
        # A folder that only this user may enter: whoever reaches the socket commands the engine.
        self.folder = Path(tempfile.mkdtemp(prefix="paceline-"))
        self.address = f"ipc://{self.folder}/engine"
        self._socket = Path(self.folder, "engine")
        self._settings = settings
        self._model_folder = model_folder
        self._heartbeat = Heartbeat(self.address)
        self._steps_at_start = 0
        self._has_been_ready = False
        self._is_dumped = False
        self.child = Child("the engine", self._start, settings.max_restarts)

    def _start(self) -> subprocess.Popen[bytes]:
        self._socket.unlink(missing_ok=True)
        self._steps_at_start = self._heartbeat.num_steps
        self._is_dumped = False
        return start_module("app.engine.process", self._settings, self.address, str(self._model_folder.absolute()))

    def tend(self) -> None:
        """Look after it, about once a second: start it again if it has died, end it if it hangs.

        Raises ChildLostError if it died before the first of its kind was ready, or does so time and again.
        """
        self._has_been_ready = self._has_been_ready or self._socket.exists()
        has_run_steps = self._heartbeat.num_steps > self._steps_at_start
        if has_run_steps and not self.child.has_ended:
            self._end_if_it_hangs()
        if not self._has_been_ready and (code := self.child.exit_code) is not None:
            said_why = code == EXIT_STARTUP_ERROR
            message = "" if said_why else f"the engine ended with exit code {code} before it was ready"
            raise ChildLostError(message, code if code > 0 else EXIT_STARTUP_ERROR)
        # An engine that runs steps before it dies is better than none.
        self.child.tend(was_useful=has_run_steps)

    def _end_if_it_hangs(self) -> None:
        """A step that takes far too long will not end: a call to the device hangs, or a thread waits for another."""
        seconds, limit = self._heartbeat.seconds_in_step, self._settings.step_timeout
        if seconds > limit / 2 and not self._is_dumped:
            log.warning("a step has been running for %.1f s; what the engine's threads are doing:", seconds)
            self._is_dumped = True
            self.child.signal(signal.SIGUSR1)
        if seconds > limit:
            log.error("a step has been running for %.1f s, which is more than step_timeout; ending the engine", seconds)
            self.child.signal(signal.SIGKILL)

    def stop(self) -> None:
        """End it, and remove its socket."""
        stop(self.child)
        shutil.rmtree(self.folder, ignore_errors=True)
