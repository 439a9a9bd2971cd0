"""OpenCode does a task through /v1/chat/completions: its requests are accepted, and its tools called."""

import json
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.clients.environments import node_environment
from tests.clients.scripted import events_in, run_program, scripted_server

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm"),
    pytest.mark.skipif((platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="its program is for x86"),
]
SECONDS = 240
MODEL = "paceline"


def test_a_task_is_done(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    note = work / "note.txt"
    note.write_text("a word from a file")
    calls = [("read", {"filePath": str(note)}), ("bash", {"command": "cp note.txt made.txt", "description": "Copies"})]
    texts = [
        f"I look.\n<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
        for name, arguments in calls
    ]

    def answer(prompt: str) -> str:
        """The next call of the task. The request for a title has no tools."""
        done = prompt.count("<tool_response>")
        return texts[done] if "<tools>" in prompt and done < len(texts) else "<think>Hm</think>It is done."

    with scripted_server(tmp_path, MODEL, answer) as server:
        events = run_opencode(tmp_path, server.url)
        assert "requests_with_ignored_fields_total 0.0" in server.get("/metrics").text
    parts = [event["part"] for event in events]
    assert [part["text"] for part in parts if part["type"] == "text"] == ["I look.", "I look.", "It is done."]
    called = [(part["tool"], part["state"]["status"]) for part in parts if part["type"] == "tool"]
    assert called == [("read", "completed"), ("bash", "completed")]
    assert parts[-1]["tokens"]["output"] == len("<think>Hm</think>It is done.") + 1
    assert (work / "made.txt").read_text() == "a word from a file"


def run_opencode(folder: Path, url: str) -> list[dict[str, Any]]:
    """The events of a task in `folder`/work."""
    program = node_environment("opencode") / "node_modules" / "opencode-linux-x64-baseline" / "bin" / "opencode"
    model = {"name": MODEL, "tool_call": True, "reasoning": True, "limit": {"context": 200_000, "output": 8000}}
    options = {"baseURL": f"{url}/v1", "apiKey": "none"}
    provider = {"npm": "@ai-sdk/openai-compatible", "name": "Paceline", "options": options, "models": {MODEL: model}}
    names = {"model": f"paceline/{MODEL}", "small_model": f"paceline/{MODEL}"}
    config = {**names, "provider": {"paceline": provider}, "autoupdate": False, "share": "disabled"}
    (folder / "work" / "opencode.json").write_text(json.dumps(config))
    written = run_program(
        [program, "run", "--format", "json", "Copy note.txt to made.txt."],
        folder,
        SECONDS,
        {"OPENCODE_DISABLE_MODELS_FETCH": "1"},
    )
    return events_in(written)
