"""The engines of several models: each is started when its model is wanted, and ended when it no longer is.

One model's death, or failure to start, is its own: the others go on.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ..core.lifecycle import Lifecycle, pause_after
from ..errors import EXIT_STARTUP_ERROR
from ..settings import Settings
from .child import ChildLostError
from .engine import EngineProcess
from .folder import PrivateFolder

log = logging.getLogger(__name__)


_LONGEST_PAUSE = 60.0
"""Seconds before a model that has failed again and again is tried once more, if it is wanted."""


class SleepingModel:
    """One of several models. Requests that it has when it is put to sleep, or dies, go on with the next engine."""

    def __init__(self, name: str, settings: Settings, model_folder: Path) -> None:
        """`settings`: of this model; see `Settings.of_model`."""
        self.name = name
        self._folder = PrivateFolder()
        self.folder = self._folder.path
        self.model_folder = model_folder
        self.address = f"ipc://{self.folder}/engine"
        self._settings = settings
        self._lifecycle = Lifecycle(self.address)
        self._engine: EngineProcess | None = None
        self._slept_at = self._retry_at = time.monotonic()
        self._failures = 0
        """In a row."""
        self.has_failed = False
        if settings.load_models == "start":
            self._lifecycle.want()
            self._wake()
        else:
            self._lifecycle.set("asleep")

    def check(self) -> None:
        """Do what has become necessary. To be called about twice a second."""
        unwanted, now = self._lifecycle.seconds_unwanted, time.monotonic()
        if self._engine is None:
            if unwanted < now - self._slept_at and now >= self._retry_at:
                self._wake()
            return
        if self._engine.is_ready:
            self._failures = 0
        try:
            self._engine.check()
        except ChildLostError as error:
            log.error("the model %s: %s", self.name, error)
            self._end("failed", str(error))
            return
        if not self._engine.is_ready:  # it counts as wanted until it can serve anybody
            self._lifecycle.want()
            return
        limit = self._settings.idle_timeout
        if limit is not None and unwanted > limit:
            log.info("the model %s goes to sleep: nobody has wanted it for %.0f s", self.name, unwanted)
            self._end("asleep")

    def _wake(self) -> None:
        log.info("the model %s is being loaded", self.name)
        self.has_failed = False
        self._lifecycle.set("awake")
        self._engine = EngineProcess(self._settings, self.model_folder, self._folder, self.name)

    def _end(self, state: Literal["asleep", "failed"], why: str = "") -> None:
        """Whoever wants the model from now on wakes it, and who was just too late as well."""
        assert self._engine is not None
        self._slept_at = time.monotonic()
        self.has_failed = state == "failed"
        if self.has_failed:
            self._failures += 1
            self._retry_at = self._slept_at + pause_after(self._failures, _LONGEST_PAUSE)
            self._lifecycle.set("failed", why, self._failures)
        else:
            self._lifecycle.set("asleep")
        self._engine.end()
        self._engine = None

    def stop(self) -> None:
        """End the engine for good."""
        if self._engine is not None:
            self._engine.stop()
        else:
            self._folder.remove()


class ModelProcesses:
    """All models of a service, as its supervisor sees them."""

    def __init__(self, settings: Settings, folders: Mapping[str, Path]) -> None:
        """`folders`: of each model."""
        self._models = [SleepingModel(name, settings.of_model(name), folder) for name, folder in folders.items()]
        self.folder, self.address = self._models[0].folder, self._models[0].address
        """Where the service's other processes leave what is not one model's."""

    @property
    def arguments(self) -> list[str]:
        """For API workers: name, address and folder of each model."""
        return [
            part for model in self._models for part in (model.name, model.address, str(model.model_folder.absolute()))
        ]

    def check(self) -> None:
        """See `SleepingModel.check`. Raises ChildLostError if no model could be started."""
        for model in self._models:
            model.check()
        if all(model.has_failed for model in self._models):
            raise ChildLostError("no model can be served, see above", EXIT_STARTUP_ERROR)

    def stop(self) -> None:
        """End all engines."""
        for model in self._models:
            model.stop()
