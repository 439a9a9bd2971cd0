"""aider edits a file through /v1/chat/completions."""

from pathlib import Path

import pytest

from tests.clients.environments import HERE, python_environment
from tests.clients.scripted import run_program, scripted_server

pytestmark = pytest.mark.clients
SECONDS = 240
MODEL = "paceline"
EDIT = "I make it.\n\nmade.txt\n```\n<<<<<<< SEARCH\n=======\na word from a file\n>>>>>>> REPLACE\n```\n"
OPTIONS = ("--edit-format", "diff", "--no-git", "--yes-always", "--no-show-model-warnings", "--no-show-release-notes")


def test_a_file_is_edited(tmp_path: Path) -> None:
    program = python_environment("aider", HERE / "aider" / "requirements.txt").parent / "aider"
    work = tmp_path / "work"
    work.mkdir()
    (work / "note.txt").write_text("a word from a file")
    with scripted_server(tmp_path, MODEL, lambda _: f"<think>Hm</think>{EDIT}") as server:
        environment = {
            "OPENAI_API_BASE": f"{server.url}/v1",
            "OPENAI_API_KEY": "none",
            "AIDER_ANALYTICS": "false",
            "AIDER_CHECK_UPDATE": "false",
        }
        written = run_program(
            [program, "--model", f"openai/{MODEL}", *OPTIONS, "--message", "Copy note.txt to made.txt.", "note.txt"],
            tmp_path,
            SECONDS,
            environment,
        )
    assert (work / "made.txt").read_text() == "a word from a file\n"
    assert "THINKING" in written
