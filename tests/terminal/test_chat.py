"""`paceline chat` in a real pseudo-terminal."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pytest

from app.terminal.screen import _end_of_blocks
from tests.patience import PATIENCE
from tests.server.process import REPOSITORY, run, running_server

ENTER, CTRL_C, CTRL_D, ALT_ENTER = "\r", "\x03", "\x04", "\x1b\r"
PROMPT = r"\x1b\[\?2004h"
"""What prompt_toolkit sends when it begins to read a line: it wants to know what is pasted."""


@contextmanager
def terminal(*arguments: str, **environment: str) -> Iterator[pexpect.spawn]:
    """A chat on a terminal of 100 columns."""
    child = pexpect.spawn(
        sys.executable,
        ["-m", "app.cli", "chat", *arguments],
        cwd=str(REPOSITORY),
        env={**os.environ, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", **environment},
        encoding="utf-8",
        timeout=PATIENCE,
        dimensions=(40, 100),
    )
    try:
        yield child
    finally:
        child.close(force=True)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    keys = json.dumps(
        {"tenants": [{"name": "one", "keys": ["2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"]}]}
    )
    with running_server("--worker", "echo", "--served-model-name", "parrot", "--api-keys", keys) as server:
        yield server.url


def test_a_chat_with_a_server(url: str, tmp_path: Path) -> None:
    with terminal(url, "--max-tokens", "40", OPENAI_API_KEY="secret", XDG_CACHE_HOME=str(tmp_path)) as chat:
        chat.expect("parrot")
        chat.expect(PROMPT)
        chat.send("first line" + ALT_ENTER + "second line" + ENTER)
        chat.expect(r"\d+ tokens, [\d.]+ tokens/s, the first after [\d.]+ s")
        chat.send("/sytem" + ENTER)
        chat.expect("did you mean system")
        chat.send("/system Be short." + ENTER)
        chat.expect("system: Be short.")
        chat.send(f"/save {tmp_path}/chat.json" + ENTER)
        chat.expect("3 messages are in")
        chat.send("/set temprature 0" + ENTER)
        chat.expect("temprature")
        chat.send(CTRL_D)
        chat.expect(pexpect.EOF)
        assert chat.wait() == 0
    system, question, answer = json.loads((tmp_path / "chat.json").read_text())
    assert (system["role"], system["content"]) == ("system", "Be short.")
    assert (question["role"], question["content"]) == ("user", "first line\nsecond line")
    assert answer["role"] == "assistant"
    assert answer["content"]
    assert "first line" in (tmp_path / "paceline" / "chat_history").read_text()


def test_a_key_that_is_missing_and_a_server_that_is_none(url: str) -> None:
    with terminal(url) as chat:
        chat.expect("a valid API key is needed.*--api-key")
        chat.expect(pexpect.EOF)
        assert chat.wait() == 2
    with terminal("127.0.0.1:9") as chat:
        chat.expect("127.0.0.1:9/v1 does not answer")
    code, _, log = run("-m", "app.cli", "chat", url)
    assert (code, log.startswith("paceline: chat: this is no terminal")) == (2, True)


def test_ctrl_c_stops_an_answer_and_not_the_chat_with_an_engine_of_its_own(tmp_path: Path) -> None:
    with terminal("--worker", "echo", "--served-model-name", "parrot", XDG_CACHE_HOME=str(tmp_path)) as chat:
        chat.expect("parrot")
        chat.expect(PROMPT)
        chat.send("/set ignore_eos true" + ENTER)
        chat.expect("ignore_eos")
        chat.send("on and on" + ENTER)
        chat.expect(r"\?2004l")  # it does not read a line any more
        chat.expect("on and on")  # the echo worker repeats the prompt
        chat.send(CTRL_C)
        chat.expect("stopped")
        chat.send("/set ignore_eos" + ENTER)
        chat.expect("fields: ")
        chat.send("/set max_tokens 5" + ENTER)
        chat.expect("max_tokens")
        chat.send("/retry" + ENTER)
        chat.expect("5 tokens")
        chat.send("/set max_tokens -1" + ENTER + "again" + ENTER)
        chat.expect("error: max_tokens")
        chat.send(CTRL_C + "/exit" + ENTER)
        chat.expect(pexpect.EOF)
        assert chat.wait() == 0


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("one\n\ntwo", "one\n\n"),
        ("one", ""),
        ("```\na\n\nb", ""),
        ("one\n\n```\na\n\nb", "one\n\n"),
        ("```\na\n\n```\n\nb", "```\na\n\n```\n\n"),
    ],
)
def test_only_finished_blocks_are_printed_for_good(text: str, finished: str) -> None:
    assert text[: _end_of_blocks(text)] == finished
