"""`paceline chat` in a real pseudo-terminal."""

import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pytest
from rich.console import Console

from app.errors import ApiError, StartupError
from app.terminal.screen import AnswerOnScreen, _end_of_blocks
from app.terminal.sources import Delta, Server, _read
from tests.patience import PATIENCE
from tests.server.process import REPOSITORY, run, running_server

ENTER, CTRL_C, CTRL_D, ALT_ENTER = "\r", "\x03", "\x04", "\x1b\r"
READS, READS_NOT = r"\x1b\[\?2004h", r"\x1b\[\?2004l"
"""What prompt_toolkit sends when it begins to read a line, because it wants to know what is pasted, and at its end."""
REDRAWN = r"\x1b\[2K"
"""What rich sends to draw a line again: it has shown something of an answer."""


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
        child.kill(signal.SIGKILL)
        child.wait()
        child.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    keys = json.dumps(
        {"tenants": [{"name": "one", "keys": ["2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"]}]}
    )
    with running_server("--worker", "echo", "--served-model-name", "parrot", "--api-keys", keys) as server:
        yield server.url


def enter(chat: pexpect.spawn, line: str) -> None:
    """Type a line, once the chat reads one, and wait until it does not any more."""
    chat.expect(READS)
    chat.send(line + ENTER)
    chat.expect(READS_NOT)


def test_a_chat_with_a_server(url: str, tmp_path: Path) -> None:
    with terminal(
        url, "--model", "parrot", "--max-tokens", "40", OPENAI_API_KEY="secret", XDG_STATE_HOME=str(tmp_path)
    ) as chat:
        chat.expect("parrot")
        enter(chat, "first line" + ALT_ENTER + "second line")
        chat.expect(r"\d+ tokens, [\d.]+ tokens/s, the first after [\d.]+ s")
        enter(chat, "/sytem")
        chat.expect("did you mean system")
        enter(chat, "/system Be short.")
        chat.expect("system: Be short.")
        enter(chat, f"/save {tmp_path}/chat.json")
        chat.expect("3 messages are in")
        chat.expect(READS)
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
    with pytest.raises(StartupError, match=r"127\.0\.0\.1:9/v1 does not answer"):
        Server("127.0.0.1:9", None, None)
    code, _, log = run("-m", "app.cli", "chat", url)
    assert (code, log.startswith("paceline: chat: this is no terminal")) == (2, True)


def test_ctrl_c_stops_an_answer_and_not_the_chat_with_an_engine_of_its_own(tiny_model: Path, tmp_path: Path) -> None:
    with terminal("--model", str(tiny_model), XDG_STATE_HOME=str(tmp_path)) as chat:
        enter(chat, "/set ignore_eos true")
        enter(chat, "Go on and on.")  # for half a minute at least
        chat.expect(REDRAWN)
        chat.send(CTRL_C)
        chat.expect("stopped")
        enter(chat, "/set max_tokens 5")
        enter(chat, "/retry")
        chat.expect("5 tokens")
        enter(chat, "/set max_tokens -1")
        enter(chat, "again")
        chat.expect("error: max_tokens")
        enter(chat, "/exit")
        chat.expect(pexpect.EOF)
        assert chat.wait() == 0


@pytest.mark.parametrize("data", ["[", "1", '{"choices": 1}', '{"choices": [{}, {}]}', '{"choices": [{"delta": [1]}]}'])
def test_an_event_that_is_none_ends_the_answer_and_not_the_chat(data: str) -> None:
    with pytest.raises(ApiError, match="does not stream as OpenAI's API does"):
        _read(data)


def test_an_address_that_is_none_is_named() -> None:
    with pytest.raises(StartupError, match=r"http://\[x/v1 does not answer"):
        Server("http://[x", None, None)


def test_the_terminal_obeys_no_answer() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=False)
    text = "a\x1b]52;c;aGk=\x07b\x9b2Jc\n\n"
    with AnswerOnScreen(console) as answer:
        answer.take(Delta(reasoning=text))
        answer.take(Delta(text))
        answer.take(Delta(f"`{text}`"))
    told = shown.getvalue()
    assert told.count("b2Jc") == 3
    assert not set(told) & {"\x1b", "\x07", "\x9b"}


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
