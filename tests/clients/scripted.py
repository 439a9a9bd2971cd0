"""A server for programs whose prompts are too long for the embedded model, or that need certain answers."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from app.core.request import FinishReason
from app.core.wire import GenerateCommand, RequestOutput
from tests.api.conftest import IM_END, Server, start_server, write_tokenizer
from tests.api.fake_engine import READY, say

CONTEXT = 2_000_000
"""Bytes. Agents send some hundred thousand."""


@contextmanager
def scripted_server(folder: Path, model: str, answer: Callable[[str], str]) -> Iterator[Server]:
    """The whole API with a model of this name, which answers to a prompt what `answer` says."""
    servers = start_server(write_tokenizer(folder), served_model_name=model, reasoning_parser="think")
    server = next(servers)

    def script(command: GenerateCommand) -> list[RequestOutput]:
        prompt = bytes(token for token in command.prompt_token_ids if token < 256).decode()
        return say([*answer(prompt).encode(), IM_END], reason=FinishReason.STOP)(command)

    server.engine.ready = msgspec.structs.replace(READY, max_model_len=CONTEXT)
    server.engine.script = script
    try:
        yield server
    finally:
        next(servers, None)


def run_program(command: Sequence[str | Path], home: Path, seconds: float, environment: Mapping[str, str]) -> str:
    """What a program writes to stdout in the folder `home`/work, with nothing on stdin. It has to succeed."""
    run = subprocess.run(
        command,
        cwd=home / "work",
        env={"PATH": os.environ["PATH"], "HOME": str(home), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    print(run.stdout, run.stderr)
    assert run.returncode == 0
    return run.stdout


def events_in(written: str) -> list[dict[str, Any]]:
    """The events that a program writes as lines of JSON, among other lines."""
    return [json.loads(line) for line in written.splitlines() if line.startswith("{")]
