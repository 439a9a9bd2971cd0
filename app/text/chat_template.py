"""Chat messages to the text that a model was trained on, by its own Jinja template.

Templates come with models and, if the server allows it, with requests: they run in Jinja's sandbox, with the helpers
that transformers gives them, and with a limit on their output.
"""

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.errors import InvalidRequestError, ModelError
from app.text.tokenizer import Tokenizer

Message = dict[str, Any]
Segments = list[tuple[str, bool]]
"""(text, may it hold control tokens) pieces of a rendered chat."""

_MAX_OUTPUT = 16 * 2**20
_RESERVED = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template"}


class _GenerationBlock(Extension):
    """{% generation %} ... {% endgeneration %} marks what a model wrote, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> Node:
        """Parse to a block that renders its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Callable[[], str]) -> str:
        return caller()


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _environment() -> ImmutableSandboxedEnvironment:
    extensions: list[type[Extension]] = [_GenerationBlock, loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda fmt: datetime.now().strftime(fmt)
    return environment


class ChatTemplate:
    """One model's chat template."""

    def __init__(self, source: str | None, special_tokens: Mapping[str, str], control_tokens: Sequence[str]) -> None:
        """`source` is None for a model without one: `render` then refuses.

        `special_tokens` are variables of the template; `control_tokens` mean nothing where users type them.
        """
        self._environment = _environment()
        self._special_tokens = dict(special_tokens)
        self._control_tokens = sorted(control_tokens, key=len, reverse=True)
        try:
            self._template = None if source is None else self._environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"the model's chat template is broken: {error}") from error

    @classmethod
    def from_folder(cls, folder: Path, tokenizer: Tokenizer) -> "ChatTemplate":
        """The template of a model folder: chat_template.jinja, or in tokenizer_config.json."""
        file = folder / "chat_template.jinja"
        source = file.read_text() if file.is_file() else _default_template(tokenizer.config.get("chat_template"))
        return cls(source, tokenizer.special_tokens, tokenizer.control_tokens)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        override: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Segments:
        """The chat as text, in pieces that tell control tokens of the template from those that users typed.

        `override` is a template to use instead; `kwargs` are further variables. Raises InvalidRequestError for what
        the template does not accept.
        """
        template = self._choose(override)
        if taken := sorted(_RESERVED & set(kwargs or {})):
            raise InvalidRequestError(f"{taken[0]} cannot be set here", "chat_template_kwargs")
        nonce = secrets.token_hex(8)
        prepared = [self._prepare(message, nonce) for message in messages]
        if continue_final_message:
            prepared[-1]["content"] += f"<{nonce}>"
        text = self._run(
            template,
            {
                **self._special_tokens,
                **(kwargs or {}),
                "messages": prepared,
                "add_generation_prompt": add_generation_prompt and not continue_final_message,
            },
        )
        if continue_final_message:
            text = _cut_at(text, f"<{nonce}>")
        return self._split(text, nonce)

    def _choose(self, override: str | None) -> jinja2.Template:
        if override is not None:
            try:
                return self._environment.from_string(override)
            except jinja2.TemplateError as error:
                raise InvalidRequestError(f"chat_template: {error}", "chat_template") from error
        if self._template is None:
            raise InvalidRequestError("this model has no chat template: use /v1/completions", "messages")
        return self._template

    def _run(self, template: jinja2.Template, variables: dict[str, Any]) -> str:
        pieces, size = [], 0
        try:
            for piece in template.generate(variables):
                pieces.append(piece)
                size += len(piece)
                if size > _MAX_OUTPUT:
                    raise InvalidRequestError("the rendered chat is too long", "messages")
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise InvalidRequestError(f"the chat template refuses these messages: {error}", "messages") from error
        return "".join(pieces)

    # ------------------------------------------------------------------ control tokens that users typed

    def _prepare(self, message: Message, nonce: str) -> Message:
        """A copy with the content as one text, and a placeholder for each control token in it."""
        content = message.get("content")
        if isinstance(content, list):
            content = "\n".join(part["text"] for part in content)
        text = content or ""
        for index, token in enumerate(self._control_tokens):
            if token in text:
                text = text.replace(token, f"<{nonce}:{index}>")
        return {**message, "content": text}

    def _split(self, text: str, nonce: str) -> Segments:
        """Cut a rendered chat at the placeholders, and put the tokens' text back."""
        segments = []
        for index, piece in enumerate(re.split(f"<{nonce}:([0-9]+)>", text)):
            if index % 2:
                segments.append((self._control_tokens[int(piece)], False))
            elif piece:
                segments.append((piece, True))
        return segments


def _cut_at(text: str, mark: str) -> str:
    """The text before the mark at the end of the final message; templates may have trimmed what was around it."""
    end = text.rfind(mark)
    if end < 0:
        raise InvalidRequestError("the chat template drops the final message", "continue_final_message")
    return text[:end]


def _default_template(value: Any) -> str | None:
    """chat_template in tokenizer_config.json: a text, or a list of named ones."""
    if isinstance(value, list):
        named = {entry["name"]: entry["template"] for entry in value}
        value = named.get("default")
    return value if isinstance(value, str) else None
