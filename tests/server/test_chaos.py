"""The benchmarks that kill processes and break off requests, with fewer rounds."""

from pathlib import Path

from tests.patience import PATIENCE
from tests.server.process import run


def test_every_stream_survives_two_deaths_of_its_engine(tiny_model: Path) -> None:
    options = ("--kills", "2", "--clients", "12", "--tokens", "24", "--no-result", "--", "--model", str(tiny_model))
    code, output, log = run("benchmarks/chaos.py", *options, patience=5 * PATIENCE)  # it starts an engine three times
    assert code == 0, output + log[-5000:]
    assert "| equal | " in output


def test_nothing_stays_behind_after_many_requests_that_are_broken_off() -> None:
    code, output, log = run("benchmarks/soak.py", "--requests", "500", "--no-result")
    assert code == 0, output + log[-5000:]
