"""When a dead engine is restarted, and when one hangs, with small real processes in its place."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.core.heartbeat import EngineHeartbeat
from app.settings import Settings
from app.supervisor import child, engine
from app.supervisor.child import ChildLostError
from app.supervisor.engine import EngineProcess

pytestmark = pytest.mark.slow
PROGRAM = """
import sys
from app.core.heartbeat import EngineHeartbeat
address, *life = sys.argv[1:]
heartbeat = EngineHeartbeat(address)
open(address.removeprefix("ipc://"), "a").close()
for act in life:
    match act.split("="):
        case ["rest"]: heartbeat.rest()
        case ["begin", suspect]: heartbeat.begin_step(suspect)
        case ["end"]: heartbeat.end_step()
"""


class Engines:
    """Engines that do what the test says and then die."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.life = ["rest", "begin=", "end"]
        self.started: list[subprocess.Popen[bytes]] = []
        monkeypatch.setattr(engine, "start_module", self._start)
        monkeypatch.setattr(child, "_FIRST_DELAY", 0.0)
        self.process = EngineProcess(Settings(max_restarts=2), Path("/nowhere"))

    def _start(self, _module: str, _settings: Settings, address: str, *_arguments: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", PROGRAM, address, *self.life]
        self.started.append(subprocess.Popen(command, stdin=subprocess.PIPE))
        return self.started[-1]

    def live(self, *life: str, times: int) -> None:
        """Run some more engines, one after the other. The current one still does what was said before."""
        self.life = list(life)
        for _ in range(times):
            self.started[-1].wait()
            self.process.check()  # sees its death
            self.process.check()  # starts the next one


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engines]:
    engines = Engines(monkeypatch)
    yield engines
    engines.process.stop()


def test_engines_that_end_steps_are_started_for_ever(engines: Engines) -> None:
    engines.live("rest", "begin=", "end", "begin=", times=8)


def test_engines_that_never_end_a_step_are_given_up(engines: Engines) -> None:
    engines.live("rest", "begin=", times=3)
    with pytest.raises(ChildLostError, match="3 times in a row"):
        engines.live("rest", "begin=", times=3)


def test_deaths_while_a_suspect_runs_alone_do_not_count(engines: Engines) -> None:
    engines.live("rest", "begin=", times=2)
    engines.live("rest", "begin=suspect", times=8)
    with pytest.raises(ChildLostError, match="3 times in a row"):
        engines.live(times=3)  # these die while they load: what the last one left is not theirs


def test_an_engine_that_loads_is_not_silent(engines: Engines) -> None:
    heartbeat = EngineHeartbeat(engines.process.address)
    engines.live(times=1)
    assert not heartbeat.has_begun
    assert heartbeat.seconds_silent == 0
