"""llm, on the command line as people use it: whole, streamed, with a schema, in a conversation."""

import json
import os
import subprocess
import sys
from pathlib import Path

os.environ["LLM_USER_PATH"] = str(Path.cwd())
model = {
    "model_id": "paceline",
    "model_name": os.environ["MODEL"],
    "api_base": os.environ["BASE_URL"],
    "supports_schema": True,
}
Path("extra-openai-models.yaml").write_text(json.dumps([model]))  # JSON is YAML


def llm(*arguments: str) -> str:
    options = ["-o", "temperature", "0", "-o", "max_tokens", "60"]
    command = [sys.executable, "-m", "llm", "prompt", *arguments, "-m", "paceline", *options]
    run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


QUESTION = "What is the capital of France?"
streamed = llm(QUESTION)
assert "Paris" in streamed, streamed
assert llm(QUESTION, "--no-stream") == streamed
assert llm("And of Italy?", "--continue")
schema = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
filled = json.loads(llm("Ann is 30 years old.", "--schema", json.dumps(schema)))
assert filled["age"] == 30, filled
