"""`paceline chat`: a chat in the terminal."""

import json
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from rich.console import Console

from ..core.nearest import did_you_mean
from ..errors import ApiError
from .screen import AnswerOnScreen, harmless
from .sources import Messages, Source

_HINT = "/help lists commands, Alt+Enter begins a new line, Ctrl-C stops an answer, Ctrl-D ends"

_OWN_FIELDS = ("messages", "n", "stream", "stream_options")


class Chat:
    """A chat, and the commands about it."""

    def __init__(self, source: Source, fields: dict[str, Any], system: str | None, console: Console) -> None:
        """`fields`: of the requests, such as a temperature."""
        self._source = source
        self._fields = fields
        self._console = console
        self._turns: Messages = []
        self._question = ""
        """The last one."""
        self._system = system or ""
        self._is_over = False
        self._commands: dict[str, Callable[[str], None]] = {
            "help": self._help,
            "system": self._set_system,
            "set": self._set,
            "retry": self._retry,
            "clear": self._clear,
            "save": self._save,
            "exit": self._exit,
        }

    def run(self) -> None:
        """Talk until the user ends it."""
        session = _session([f"/{name}" for name in self._commands])
        self._say(f"{self._source.name}. {_HINT}.")
        while not self._is_over:
            try:
                line = session.prompt("> ", prompt_continuation="  ").strip()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if line.startswith("/"):
                self._command(line)
            elif line:
                self._ask(line)

    def _ask(self, text: str) -> None:
        self._question = text
        self._turns.append({"role": "user", "content": text})
        with AnswerOnScreen(self._console) as answer:
            failure = self._take(answer)
        if answer.text:
            self._turns.append({"role": "assistant", "content": answer.text})
        else:
            self._turns.pop()  # as if it had not been asked
        self._say(failure or answer.speed())

    def _take(self, answer: AnswerOnScreen) -> str:
        """Show the answer to the chat. Returns why it is not whole; empty if it is."""
        system = [{"role": "system", "content": self._system}] if self._system else []
        try:
            with closing(self._source.answer([*system, *self._turns], self._fields)) as deltas:
                for delta in deltas:
                    answer.take(delta)
        except KeyboardInterrupt:
            return "stopped"
        except ApiError as error:
            return f"error: {error.message}"
        return ""

    def _say(self, text: str) -> None:
        self._console.print(harmless(text), style="dim", markup=False, highlight=False)

    # ------------------------------------------------------------------ commands

    def _command(self, line: str) -> None:
        name, _, rest = line.removeprefix("/").partition(" ")
        if name in self._commands:
            self._commands[name](rest.strip())
        else:
            self._say(f"there is no command /{name}{did_you_mean(name, self._commands)}; /help lists them")

    def _help(self, _rest: str) -> None:
        self._say(
            f"""/system TEXT     what the model is told before the chat; without TEXT, nothing
/set NAME VALUE  a field of the requests, such as temperature 0.7; without VALUE, its default
/retry           ask the last question again
/clear           forget the chat
/save FILE       write the chat: messages as JSON to FILE.json, else as Markdown
/exit            end
{_HINT}"""
        )

    def _set_system(self, text: str) -> None:
        self._system = text
        self._say(f"system: {text or 'nothing'}")

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if name in _OWN_FIELDS:
            self._say(f"{name} cannot be set: a chat shows one answer as it comes")
            return
        self._fields.pop(name, None)
        if value:
            self._fields[name] = _value(value)
        self._say(f"fields: {json.dumps(self._fields)}")

    def _retry(self, _rest: str) -> None:
        if not self._question:
            self._say("nothing has been asked")
            return
        if self._turns and self._turns[-2]["content"] == self._question:
            del self._turns[-2:]
        self._ask(self._question)

    def _clear(self, _rest: str) -> None:
        self._turns.clear()
        self._question = ""
        self._say("the chat is forgotten")

    def _save(self, name: str) -> None:
        file = Path(name or "chat.md").expanduser()
        system = [{"role": "system", "content": self._system}] if self._system else []
        messages = [*system, *self._turns]
        if file.suffix == ".json":
            text = json.dumps(messages, ensure_ascii=False, indent=2)
        else:
            text = "\n\n".join(f"## {message['role']}\n\n{message['content']}" for message in messages)
        try:
            file.write_text(f"{text}\n", encoding="utf-8")
        except OSError as error:
            self._say(f"{file} cannot be written: {error.strerror}")
        else:
            self._say(f"{len(messages)} messages are in {file}")

    def _exit(self, _rest: str) -> None:
        self._is_over = True


def _value(text: str) -> Any:
    """What a value means: JSON, or else a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _session(commands: list[str]) -> PromptSession[str]:
    """Reads lines with a history that outlives the program."""
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "paceline"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return PromptSession(
        history=FileHistory(str(folder / "chat_history")),
        completer=WordCompleter(commands, sentence=True),
        complete_while_typing=False,
        key_bindings=keys,
    )


def chat(source: Source, fields: dict[str, Any], system: str | None) -> None:
    """Talk to a model in the terminal, until the user ends it."""
    with source:
        Chat(source, fields, system, Console()).run()
