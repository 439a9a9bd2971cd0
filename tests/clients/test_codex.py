"""OpenAI's Codex does tasks through /v1/responses: its requests are accepted, its tools called, their results read."""

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
PATCH = "*** Begin Patch\n*** Add File: made.txt\n+Made by a patch\n*** End Patch"
CODE = "const done = await tools.exec_command({cmd: 'cat note.txt'});\ntext(done.output);"
CONFIG = """
model = "{model}"
model_provider = "paceline"
model_verbosity = "low"

[model_providers.paceline]
name = "Paceline"
base_url = "{url}/v1"
wire_api = "responses"
"""


@pytest.mark.parametrize(
    ("model", "tool", "arguments", "result"),
    [
        # A model that Codex does not know: all tools are functions, some of them in a namespace.
        ("paceline", "exec_command", {"cmd": "cat note.txt"}, "a word from a file"),
        # Tools that take a text, with a grammar.
        ("gpt-5.5", "apply_patch", {"input": PATCH}, "Success. Updated the following files"),
        # Tools that come as items of the input, all in namespaces, and results in parts.
        ("gpt-6-sol", "functions__exec", {"input": CODE}, "a word from a file"),
    ],
)
def test_a_task_is_done(tmp_path: Path, model: str, tool: str, arguments: dict[str, str], result: str) -> None:
    call = f"<tool_call>\n{json.dumps({'name': tool, 'arguments': arguments})}\n</tool_call>"
    work = tmp_path / "work"
    work.mkdir()
    (work / "note.txt").write_text("a word from a file")
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "additionalProperties": False}))
    # A format of the last answer must not keep Codex from its tools. It is the scripted model that does not keep to it.
    options = ("--output-schema", str(schema)) if model == "paceline" else ()
    with scripted_server(tmp_path, model, lambda prompt: "It is done." if result in prompt else call) as server:
        events = run_codex(tmp_path, CONFIG.format(model=model, url=server.url), *options)
    assert [event["message"] for event in events if event["type"] == "error"] == []
    assert events[-1]["type"] == "turn.completed"
    assert events[-1]["usage"]["output_tokens"] == len(call.encode()) + len("It is done.") + 2
    assert events[-2]["item"]["text"] == "It is done."
    if tool == "apply_patch":
        assert (work / "made.txt").read_text() == "Made by a patch\n"


def run_codex(folder: Path, config: str, *more: str) -> list[dict[str, Any]]:
    """The events of a task in `folder`/work."""
    codex = node_environment("codex") / "node_modules" / ".bin" / "codex"
    home = folder / "codex"
    home.mkdir()
    (home / "config.toml").write_text(config)
    options = ("--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
    written = run_program([codex, "exec", *options, *more, "Do it."], folder, SECONDS, {"CODEX_HOME": str(home)})
    return events_in(written)
