"""The other commands, as a user types them."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from app import __version__
from app.cli import main
from tests.server.process import run


@pytest.mark.parametrize("content", ["port: [1", "- port", "port: \x00", "port: 99999", "nothing: 1", "\udcff"])
def test_a_broken_configuration_file_is_one_line(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "paceline.yaml"
    file.write_text(content, errors="surrogateescape")
    monkeypatch.setenv("PACELINE_CONFIG", str(file))
    monkeypatch.setattr(sys, "argv", ["paceline", "serve"])
    with pytest.raises(SystemExit) as raised:
        main()
    assert raised.value.code == 2
    assert re.fullmatch(r"paceline: (config|settings): .+\n", capsys.readouterr().err)


def test_generate_fails_with_the_requests_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--worker", "echo", "--max-model-len", "16", "--raw"]
    monkeypatch.setattr(sys, "argv", ["paceline", "generate", *flags, "again " * 16])
    with pytest.raises(SystemExit) as raised:
        main()
    assert raised.value.code == 1
    assert re.fullmatch(r"paceline: This model's maximum context length is 16 tokens.+\n", capsys.readouterr().err)


def test_generate_takes_the_model_of_the_environment(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """This one has no chat template."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(tiny_model / name, tmp_path)
    monkeypatch.setenv("PACELINE_MODEL", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["paceline", "generate", "--worker", "echo", "the inn"])
    with pytest.raises(SystemExit):
        main()
    assert "no chat template: with --raw" in capsys.readouterr().err


def test_generate_without_a_server_reads_stdin_and_logs_nothing() -> None:
    code, output, log = run("-m", "app.cli", "generate", "-", given="Name the capital of France.")
    assert (code, log) == (0, "")
    assert "Paris" in output


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["paceline", "--version"])
    with pytest.raises(SystemExit) as raised:
        main()
    assert raised.value.code in (0, None)
    assert capsys.readouterr().out == f"paceline {__version__}\n"


def test_check_model_agrees_with_transformers(tiny_model: Path) -> None:
    code, output, log = run("-m", "app.cli", "check-model", str(tiny_model))
    assert code == 0, log
    assert "decoder: agrees with transformers" in output
