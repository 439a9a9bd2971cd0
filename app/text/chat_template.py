"""Renders chat messages to the text that a model was trained on, by the model's own Jinja template."""

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

from ..checkpoint.chat_templates import read_chat_templates
from ..checkpoint.folder import ModelFolder
from ..errors import InvalidRequestError, ModelError
from .control_tokens import ControlTokens, Segments
from .probe import calls_as_shown, find_shape, image_as_shown
from .sandbox import compile_template, run_template
from .shape import REASONING_NAMES, Message
from .tokenizer import Tokenizer

log = logging.getLogger(__name__)

_RESERVED = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template"}
_KEPT_OVERRIDES = 16
"""Templates of requests that are kept, because it takes some 20 ms to find out what one reads."""


class _Program:
    """A template, and what it reads."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], control_tokens: ControlTokens) -> None:
        """Raises what Jinja and Python's compiler raise for broken templates."""
        self.control_tokens = control_tokens
        self._template = compile_template(source)
        self._special_tokens = special_tokens
        self.shape = find_shape(self.write, "developer" in source)

    def write(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message],
        add_generation_prompt: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of messages and tools that have the template's shape. Raises InvalidRequestError."""
        variables = {
            **self._special_tokens,
            **(kwargs or {}),
            "messages": messages,
            "tools": tools or None,  # None instead of undefined, because templates ask `is not none`
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        return run_template(self._template, variables)


class ChatTemplate:
    """One model's chat template."""

    def __init__(
        self,
        source: str | None,
        special_tokens: Mapping[str, str],
        control_tokens: Sequence[str],
        tool_source: str | None = None,
        other_tokens: Sequence[str] = (),
    ) -> None:
        """`source` is None for a model without a template: `render` then raises. `tool_source` is for chats with tools.

        `special_tokens` are variables of the template. `control_tokens` stay plain text where users type them, and so
        do those of the `other_tokens` which the template contains, such as tags of reasoning and of calls.
        """
        self.source = "\n".join(filter(None, (source, tool_source)))

        def load(text: str) -> _Program:
            others = [token for token in other_tokens if token in text and not token.isspace()]
            return _Program(text, special_tokens, ControlTokens(control_tokens, others))

        self._load = lru_cache(_KEPT_OVERRIDES)(load)
        try:
            self._program = None if source is None else self._load(source)
            self._tool_program = self._program if tool_source is None else self._load(tool_source)
        # The last two are raised when Jinja compiles the template to Python.
        except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
            raise ModelError(f"the model's chat template is broken: {error}") from error

    @classmethod
    def from_folder(cls, folder: Path, tokenizer: Tokenizer) -> "ChatTemplate":
        """Read the templates of a model folder."""
        named = read_chat_templates(ModelFolder(folder))
        template = cls(
            named.get("default"),
            tokenizer.special_tokens,
            tokenizer.control_tokens,
            named.get("tool_use"),
            tokenizer.other_tokens,
        )
        if template._program is not None and not template._program.shape.system:
            log.info("the chat template has no system role: a system message goes in front of the first user message")
        return template

    @property
    def describes_tools(self) -> bool:
        """Whether the template describes tools to the model. Otherwise they are described in Hermes' words."""
        return self._tool_program is not None and self._tool_program.shape.tools

    def calls_as_shown(self) -> list[str]:
        """See `app.text.probe.calls_as_shown`."""
        program = self._tool_program
        return [] if program is None else calls_as_shown(program.write, program.shape)

    def image_as_shown(self, placeholder: str) -> str:
        """See `app.text.probe.image_as_shown`."""
        program = self._tool_program
        return placeholder if program is None else image_as_shown(program.write, placeholder)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Message] = (),
        override: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Segments:
        """Render a chat to text, in pieces that tell the template's control tokens from those that users typed.

        `messages` and `tools`, the functions that the model may call, are in the form of OpenAI's API. `override` is a
        template to use instead, `kwargs` are further variables. Raises InvalidRequestError if the template does not
        accept the messages.
        """
        program = self._choose(override, bool(tools))
        if taken := sorted(_RESERVED & set(kwargs or {})):
            raise InvalidRequestError(f"{taken[0]} cannot be set here", "chat_template_kwargs")
        guard = program.control_tokens.guard()
        shaped, described = program.shape.apply(messages, tools)
        chat, told, variables = guard.hide_in(shaped), guard.hide(described), guard.hide(dict(kwargs or {}))
        if not continue_final_message:
            return guard.split(program.write(chat, told, add_generation_prompt, variables))
        final = _mark_final(chat, guard.mark)
        return guard.split(_cut_at(program.write(chat, told, False, variables), guard.mark, final))

    def _choose(self, override: str | None, has_tools: bool) -> _Program:
        if override is not None:
            try:
                return self._load(override)
            except Exception as error:  # a stranger's program can raise more than Jinja's own errors
                raise InvalidRequestError(f"chat_template: {error}", "chat_template") from error
        program = self._tool_program if has_tools else self._program
        if program is None:
            raise InvalidRequestError("this model has no chat template: use /v1/completions", "messages")
        return program


def _mark_final(chat: list[Message], mark: str) -> str:
    """Put the mark behind the final message's text, and return the text. It is reasoning if there is nothing else."""
    message: Message = chat[-1] if chat else {}
    content = message.get("content")
    parts = content if isinstance(content, list) else [message]
    texts = [(part, name) for part in parts[::-1] for name in ("text", "content") if part.get(name) is not None][:1]
    thoughts = [(one, name) for one in (message, *parts) for name in REASONING_NAMES if one.get(name)]
    places = thoughts if thoughts and not any(part[name] for part, name in texts) else texts
    if not places:
        raise InvalidRequestError("the final message has no content to continue", "continue_final_message")
    final: str = places[0][0][places[0][1]]
    for place, name in places:
        place[name] = final + mark
    return final


def _cut_at(text: str, mark: str, final: str) -> str:
    """The text up to the mark, which stands behind the final message.

    A template that trims messages also removes the blank at the end of the mark. The blanks in front of the mark are
    then removed as well, as transformers does.
    """
    end = text.rfind(mark.rstrip())
    if end < 0 or final.strip() not in text:
        raise InvalidRequestError("the chat template drops or changes the final message", "continue_final_message")
    return text[:end] if text.startswith(mark, end) else text[:end].rstrip()
