"""The format of one model's messages: its tool calls and its reasoning."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.text.message_parser import MessageParser, PlainText, WithoutContent
from app.text.reasoning import CLOSE, OPEN, ReasoningParser
from app.text.tokenizer import Tokenizer
from app.text.tools.formats import MISTRAL, ToolFormat, choose_format, format_of_required_calls
from app.text.tools.mistral import with_short_ids
from app.text.tools.prompt import describe_tools

Message = dict[str, Any]


@dataclass(frozen=True)
class MessageFormat:
    """Chosen once for a model, from settings and its chat template."""

    tools: ToolFormat
    template_has_tools: bool
    """Whether the chat template can describe tools to the model."""
    reasons: bool
    """Whether reasoning is separated from the answer."""
    template_has_developers: bool = False
    """Whether the chat template knows the role `developer`."""

    @classmethod
    def choose(cls, tool_parser: str, reasoning_parser: str, template: str) -> "MessageFormat":
        """Choose by the settings, and where these are "auto", by the chat template."""
        reasons = reasoning_parser == "think" or (reasoning_parser == "auto" and CLOSE in template)
        return cls(choose_format(tool_parser, template), "tools" in template, reasons, "developer" in template)

    def shown(self, tokenizer: Tokenizer, has_tools: bool) -> frozenset[int]:
        """Special tokens whose text the parser needs. With `has_tools` it looks for calls."""
        texts = (*(self.tools.markers if has_tools else ()), *((OPEN, CLOSE) if self.reasons else ()))
        return frozenset(id_ for text in texts if (id_ := tokenizer.added_id(text)) in tokenizer.special_ids)

    def ends_in_reasoning(self, prompt: str) -> bool:
        """Whether a rendered chat ends inside the model's reasoning."""
        return self.reasons and prompt.rstrip().endswith(OPEN)

    def for_template(
        self, messages: Sequence[Message], tools: Sequence[Message], override: str | None = None
    ) -> tuple[Sequence[Message], Sequence[Message]]:
        """Messages and tools in a form that the chat template, or `override`, accepts."""
        has_tools, has_developers = self.template_has_tools, self.template_has_developers
        if override is not None:
            has_tools, has_developers = "tools" in override, "developer" in override
        if not has_developers:  # most templates silently drop roles that they do not know
            messages = [{**one, "role": "system"} if one["role"] == "developer" else one for one in messages]
        if not has_tools:
            return describe_tools(messages, tools), ()
        return [with_short_ids(message) for message in messages] if self.tools is MISTRAL else messages, tools

    def parser(self, has_tools: bool, in_reasoning: bool) -> MessageParser:
        """A parser of text that no grammar constrains."""
        parser = self.tools.parser() if has_tools else PlainText()
        return ReasoningParser(parser, in_reasoning) if self.reasons else parser

    def parser_of_required_calls(self, in_reasoning: bool) -> MessageParser:
        """A parser of text that a grammar constrains to calls, with reasoning in front of them."""
        parser = WithoutContent(format_of_required_calls(self.tools).parser())
        return ReasoningParser(parser, in_reasoning) if self.reasons else parser
