"""Anthropic's Claude Code does a task through /v1/messages: its requests are accepted, its tools called, and so on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.clients.environments import node_environment
from tests.clients.scripted import events_in, run_program, scripted_server

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(shutil.which("npm") is None, reason="needs node and npm"),
]
SECONDS = 240
MODEL = "paceline"


@pytest.mark.parametrize(
    "calls",
    [
        [("Read", {"file_path": "note.txt"}), ("Bash", {"command": "cp note.txt made.txt", "description": "Copies"})],
        # Tools that it loads when the model asks for them; a call that fails; another agent.
        [
            ("ToolSearch", {"query": "select:WebFetch,NotebookEdit"}),
            ("NotebookEdit", {"notebook_path": "note.txt", "new_source": "1"}),
            ("Agent", {"description": "Helps", "prompt": "Say hello.", "subagent_type": "general-purpose"}),
            ("Write", {"file_path": "made.txt", "content": "a word from a file"}),
        ],
    ],
    ids=["files", "agents"],
)
def test_a_task_is_done(tmp_path: Path, calls: list[tuple[str, dict[str, str]]]) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "note.txt").write_text("a word from a file")
    texts = [_call(name, {key: _in(work, key, value) for key, value in given.items()}) for name, given in calls]

    def answer(prompt: str) -> str:
        """The next call of the task. Other agents, whose tasks do not name the file, say hello."""
        done = prompt.count("<tool_response>")
        return texts[done] if "Copy note.txt" in prompt and done < len(texts) else "<think>Hm</think>It is done."

    with scripted_server(tmp_path, MODEL, answer) as server:
        events = run_claude(tmp_path, server.url)
        assert "requests_with_ignored_fields_total 0.0" in server.get("/metrics").text
    assert (events[-1]["subtype"], events[-1]["is_error"], events[-1]["result"]) == ("success", False, "It is done.")
    assert (work / "made.txt").read_text() == "a word from a file"
    blocks = [block for event in events if event["type"] == "assistant" for block in event["message"]["content"]]
    assert [block["name"] for block in blocks if block["type"] == "tool_use"] == [name for name, _ in calls]


def _in(work: Path, key: str, value: str) -> str:
    return str(work / value) if key.endswith("_path") else value


def _call(name: str, arguments: dict[str, str]) -> str:
    return f"I look.\n<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def run_claude(folder: Path, url: str) -> list[dict[str, Any]]:
    """The events of a task in `folder`/work."""
    package = node_environment("claude_code") / "node_modules" / "@anthropic-ai" / "claude-code"
    environment = {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": "none",
        "ANTHROPIC_MODEL": MODEL,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": MODEL,
        "ENABLE_TOOL_SEARCH": "true",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    options = ("--output-format", "stream-json", "--verbose", "--allowedTools", "Bash,Read,Write,Agent,NotebookEdit")
    written = run_program(
        ["node", package / "cli-wrapper.cjs", "-p", "Copy note.txt to made.txt.", *options],
        folder,
        SECONDS,
        environment,
    )
    return events_in(written)
