"""Renders chat messages to the text that a model was trained on, by the model's own Jinja template.

Templates come with models and, if the server allows it, with requests. They run in Jinja's sandbox, with the helpers
that transformers gives them, and with limits on their time and output.
"""

import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.errors import InvalidRequestError, ModelError
from app.text.time_limit import template_time_limit
from app.text.tokenizer import Tokenizer

Message = dict[str, Any]
Segments = list[tuple[str, bool]]
"""Pieces of a rendered chat: (text, whether it may contain control tokens)."""

_OPEN, _CLOSE = "\U000f0000", "\U000f0001"
_MAX_OUTPUT = 16 * 2**20
_MAX_SECONDS = 5.0
_RESERVED = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template"}


class _GenerationBlock(Extension):
    """{% generation %} ... {% endgeneration %} marks the model's text for training. It is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> Node:
        """Parse the tag to a block that renders its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict` in templates. Not the class itself, whose methods could change what the sandbox protects from changes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        """As `dict.fromkeys`."""
        return dict.fromkeys(keys, value)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` in templates. Refuses the names by which Python itself calls into an object."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_public(name)
        super().__init__(attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    extensions: list[type[Extension]] = [_GenerationBlock, loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda fmt: datetime.now().strftime(fmt)
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment


class ChatTemplate:
    """One model's chat template."""

    def __init__(
        self,
        source: str | None,
        special_tokens: Mapping[str, str],
        control_tokens: Sequence[str],
        tool_source: str | None = None,
    ) -> None:
        """`source` is None for a model without a template: `render` then raises. `tool_source` is for chats with tools.

        `special_tokens` are variables of the template. `control_tokens` stay plain text where users type them.
        """
        self._environment = _environment()
        self.source = "\n".join(filter(None, (source, tool_source)))
        self._special_tokens = dict(special_tokens)
        # Longer tokens first, so that a token is not mistaken for a shorter one inside it.
        self._control_tokens = sorted(filter(None, control_tokens), key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, self._control_tokens)) or "(?!)")
        self._index_of = {token: index for index, token in enumerate(self._control_tokens)}
        try:
            self._template = None if source is None else self._environment.from_string(source)
            self._tool_template = self._template if tool_source is None else self._environment.from_string(tool_source)
        # The last two are raised when Jinja compiles the template to Python.
        except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
            raise ModelError(f"the model's chat template is broken: {error}") from error

    @classmethod
    def from_folder(cls, folder: Path, tokenizer: Tokenizer) -> "ChatTemplate":
        """Read the templates of a model folder, from files of their own or from tokenizer_config.json."""
        named = _named_templates(folder, tokenizer.config.get("chat_template"))
        source = _read(folder / "chat_template.jinja") or named.get("default")
        tool_source = _read(folder / "additional_chat_templates" / "tool_use.jinja") or named.get("tool_use")
        return cls(source, tokenizer.special_tokens, tokenizer.control_tokens, tool_source)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Message] | None = None,
        override: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Segments:
        """Render a chat to text, in pieces that tell the template's control tokens from those that users typed.

        `tools` are functions that the model may call, `override` is a template to use instead, `kwargs` are further
        variables. Raises InvalidRequestError if the template does not accept the messages.
        """
        template = self._choose(override, bool(tools))
        if taken := sorted(_RESERVED & set(kwargs or {})):
            raise InvalidRequestError(f"{taken[0]} cannot be set here", "chat_template_kwargs")
        # Private-use characters and digits, because no filter of a template changes or escapes them.
        nonce = str(secrets.randbits(64))
        prepared = [self._prepare(message, nonce) for message in messages]
        final, mark = "", f"{_OPEN}{nonce}{_CLOSE} "
        if continue_final_message:
            if not prepared or "content" not in prepared[-1]:
                raise InvalidRequestError("the final message has no content to continue", "continue_final_message")
            final = prepared[-1]["content"]
            prepared[-1]["content"] = final + mark
        text = self._run(
            template,
            {
                **self._special_tokens,
                **self._guard(dict(kwargs or {}), nonce),
                "messages": prepared,
                # None instead of undefined, because templates ask `is not none`.
                "tools": self._guard(list(tools), nonce) if tools else None,
                "documents": None,
                "add_generation_prompt": add_generation_prompt and not continue_final_message,
            },
        )
        if continue_final_message:
            text = _cut_at(text, mark, final)
        return self._split(text, nonce)

    def _choose(self, override: str | None, has_tools: bool) -> jinja2.Template:
        if override is not None:
            try:
                return self._environment.from_string(override)
            except Exception as error:  # a stranger's program can raise more than Jinja's own errors
                raise InvalidRequestError(f"chat_template: {error}", "chat_template") from error
        template = self._tool_template if has_tools else self._template
        if template is None:
            raise InvalidRequestError("this model has no chat template: use /v1/completions", "messages")
        return template

    def _run(self, template: jinja2.Template, variables: dict[str, Any]) -> str:
        pieces, size = [], 0
        try:
            with template_time_limit(_MAX_SECONDS):
                for piece in template.generate(variables):
                    pieces.append(piece)
                    size += len(piece)
                    if size > _MAX_OUTPUT:
                        raise ValueError(f"the text is longer than {_MAX_OUTPUT} characters")
            text = "".join(pieces)
            text.encode()  # a template can write half a surrogate pair, which the tokenizer cannot read
        except Exception as error:  # a template is a program and can raise any error
            raise InvalidRequestError(f"the chat template refuses these messages: {error}", "messages") from error
        return text

    # ------------------------------------------------------------------ control tokens that users typed

    def _prepare(self, message: Message, nonce: str) -> Message:
        """A copy without empty fields, with the content as one text, and with placeholders for control tokens."""
        given = {name: value for name, value in message.items() if value is not None}
        if isinstance(content := given.get("content"), list):
            given["content"] = "\n".join(part["text"] for part in content)
        guarded: Message = self._guard(given, nonce)
        return guarded

    def _guard(self, value: Any, nonce: str) -> Any:
        """A copy of JSON data with a placeholder for each control token in its texts.

        A control token that two texts form together, where a template writes them side by side, is not found.
        """
        if isinstance(value, str):
            return self._control_pattern.sub(lambda match: f"{_OPEN}{nonce}:{self._index_of[match[0]]}{_CLOSE}", value)
        if isinstance(value, dict):
            return {self._guard(name, nonce): self._guard(item, nonce) for name, item in value.items()}
        if isinstance(value, list):
            return [self._guard(item, nonce) for item in value]
        return value

    def _split(self, text: str, nonce: str) -> Segments:
        """Cut a rendered chat at the placeholders, and put the text of the tokens back."""
        segments = []
        for index, piece in enumerate(re.split(f"{_OPEN}{nonce}:([0-9]+){_CLOSE}", text)):
            if index % 2:
                segments.append((self._control_tokens[int(piece)], False))
            elif piece:
                segments.append((piece, True))
        return segments


def _cut_at(text: str, mark: str, final: str) -> str:
    """The text up to the mark, which stands behind the final message.

    A template that trims messages also removes the blank at the end of the mark. The blanks in front of the mark are
    then removed as well, as transformers does.
    """
    end = text.rfind(mark.rstrip())
    if end < 0 or final.strip() not in text:
        raise InvalidRequestError("the chat template drops or changes the final message", "continue_final_message")
    return text[:end] if text.startswith(mark, end) else text[:end].rstrip()


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{file} is not UTF-8 text: {error}") from error


def _named_templates(folder: Path, value: Any) -> dict[str, str]:
    """Templates by name, from chat_template in tokenizer_config.json: a text, or a list of named texts."""
    if isinstance(value, str):
        return {"default": value}
    try:
        return {entry["name"]: str(entry["template"]) for entry in value or ()}
    except (KeyError, TypeError) as error:
        raise ModelError(f"{folder / 'tokenizer_config.json'}: chat_template has no names: {error!r}") from error
