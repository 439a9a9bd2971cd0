"""The engine process, as its parent sees it."""

import signal
import subprocess
from pathlib import Path

from ..core.heartbeat import EngineHeartbeat
from ..errors import EXIT_STARTUP_ERROR
from ..settings import Settings
from .child import Child, ChildLostError, start_module, stop
from .folder import PrivateFolder
from .watchdog import Watchdog


class EngineProcess:
    """One engine as a child of this process, and after its death the next one, at the same address."""

    def __init__(
        self, settings: Settings, model_folder: Path, folder: PrivateFolder | None = None, model: str = ""
    ) -> None:
        """Start the engine. API workers connect to it at `address`, in a folder of the caller's or one of its own.

        `model`: the name of one of several models, which its log lines have.
        """
        self._folder = folder or PrivateFolder()
        self.folder = self._folder.path
        self.address = f"ipc://{self.folder}/engine"
        self._socket = Path(self.folder, "engine")
        self._settings = settings
        self._model_folder = model_folder
        self._model = model
        self._heartbeat = EngineHeartbeat(self.address)
        self._steps_at_start = 0
        self._has_been_ready = False
        self.child = Child(
            f"the engine of {model}" if model else "the engine", self._start, settings.max_restarts, self.folder
        )
        self._watchdog = Watchdog(self.child, self._heartbeat, settings.step_timeout)

    def _start(self) -> subprocess.Popen[bytes]:
        self._socket.unlink(missing_ok=True)
        self._steps_at_start = self._heartbeat.num_steps
        self._heartbeat.reset()
        folder = str(self._model_folder.absolute())
        return start_module("engine.server", self._settings, self.address, folder, self._model)

    def check(self) -> None:
        """Restart the engine if it has died, and end it if it hangs. To be called about once a second.

        Raises ChildLostError if the first engine died before it was ready, or if engines die again and again.
        """
        self._has_been_ready = self._has_been_ready or self._socket.exists()
        self._watchdog.check()
        if not self._has_been_ready and (code := self.child.exit_code) is not None:
            message = self.child.reason or f"{self.child.how_it_ended} before it was ready"
            raise ChildLostError(message, code if code > 0 else EXIT_STARTUP_ERROR)
        self.child.restart_if_dead(
            # An engine that completes steps before it dies is better than none.
            was_useful=self._heartbeat.num_steps > self._steps_at_start,
            # The engine is not to blame for a request that kills engines; such a request gets only a few of them.
            has_excuse=self._heartbeat.has_begun and bool(self._heartbeat.suspect),
        )

    @property
    def is_ready(self) -> bool:
        """Whether the engine has loaded its model."""
        return self._socket.exists() and not self.child.has_ended

    def end(self) -> None:
        """End the engine. Its folder stays, so another one can take over."""
        if self._heartbeat.has_begun and not self.child.has_ended:
            self._heartbeat.end()
        self.child.signal(signal.SIGKILL)  # whoever sees that stdin is closed removes the folder
        stop(self.child)
        self._socket.unlink(missing_ok=True)

    def stop(self) -> None:
        """End the engine, and remove its folder."""
        stop(self.child)
        self._folder.remove()
