"""A server for programs whose prompts are too long for the embedded model, or that need certain answers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
