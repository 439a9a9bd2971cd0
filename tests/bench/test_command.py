"""`paceline bench` as a user types it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from paceline_bench.command import bench
from tests.patience import PATIENCE

from .server import StreamServer

PNG = b"\x89PNG\r\n\x1a\n"


def invoke(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(bench)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.slow  # matplotlib's first plot starts a process that lists fonts
def test_a_sweep_writes_table_json_and_plot(tmp_path: Path) -> None:
    data, plot = tmp_path / "out.json", tmp_path / "out.png"
    lengths = ("--input-len", 4, "--output-len", 5)
    with StreamServer() as server:
        result = invoke(
            server.url + "/v1", "--concurrency", "1,3", "--num-requests", 6, *lengths, "--json", data, "--plot", plot
        )
    assert result.exit_code == 0, result.output
    assert all(word in result.output for word in ("concurrency 1", "concurrency 3", "TTFT", "ITL", "p99", "6 done"))
    written = json.loads(data.read_text())
    assert written["model"] == "tiny"
    assert [load["concurrency"] for load in written["loads"]] == [1, 3]
    for load in written["loads"]:
        assert (load["requests"], load["failed"], load["output_tokens"]) == (6, 0, 30)
        assert load["out_tok_s"] > 0
        assert load["ttft_ms"]["p50"] <= load["ttft_ms"]["p99"]
        assert load["client_cpu"] > 0
    assert len(server.bodies) == 1 + 12  # the first one warms up
    assert plot.read_bytes().startswith(PNG)


def test_failures_give_exit_code_1_and_their_text() -> None:
    with StreamServer(refuse_every=4) as server:
        result = invoke(server.url, "--rate", 200, "--num-requests", 7, "--input-len", 2, "--output-len", 2)
    assert result.exit_code == 1
    assert "2 of 7 requests failed" in result.output
    assert "queue full" in result.output


def test_an_unreachable_server_is_one_line_and_exit_code_2() -> None:
    with StreamServer() as server:
        url = server.url
    result = invoke(url)
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert line.startswith(f"paceline bench: cannot reach {url}")


def test_a_plot_without_matplotlib_is_refused_before_the_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # makes the import fail
    with StreamServer() as server:
        result = invoke(server.url, "--plot", tmp_path / "out.png")
    assert result.exit_code == 2
    assert f"{sys.executable} -m pip install matplotlib" in result.output
    assert not server.bodies


@pytest.mark.parametrize(
    "wrong", [("--concurrency", "1,x"), ("--concurrency", "0"), ("--rate", "1", "--concurrency", "1")]
)
def test_wrong_loads_are_refused(wrong: tuple[str, ...]) -> None:
    assert invoke("http://127.0.0.1:9", *wrong).exit_code == 2


@pytest.mark.slow
def test_ctrl_c_reports_what_was_measured(tmp_path: Path) -> None:
    data = tmp_path / "out.json"
    handler = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # a background job starts with it ignored
    code = f"import signal, typer; from paceline_bench.command import bench; {handler}; typer.run(bench)"
    with StreamServer(hold_after=6) as server:  # one to warm up, five that are measured
        options = ["--concurrency", "2", "--input-len", "2", "--output-len", "2", "--json", str(data)]
        process = subprocess.Popen(
            [sys.executable, "-c", code, server.url, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert all(server.held.acquire(timeout=PATIENCE) for _ in range(2))  # both lanes hang
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, errors
    assert "2 requests were in flight" in output
    written = json.loads(data.read_text())
    assert written["interrupted"]
    assert (written["loads"][0]["requests"], written["loads"][0]["output_tokens"]) == (5, 10)
