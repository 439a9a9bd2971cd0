"""The format of one model's messages: its tool calls and its reasoning."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.text.chat_template import ChatTemplate
from app.text.message_parser import MessageParser, PlainText, WithoutContent
from app.text.reasoning import CLOSE, OPEN, ReasoningParser
from app.text.tokenizer import Tokenizer
from app.text.tools.arguments import Schema
from app.text.tools.choose import choose_format
from app.text.tools.formats import ToolFormat, format_of_required_calls


@dataclass(frozen=True)
class MessageFormat:
    """Chosen once for a model, from settings and its chat template."""

    tools: ToolFormat
    reasons: bool
    """Whether reasoning is separated from the answer."""

    @classmethod
    def choose(cls, tool_parser: str, reasoning_parser: str, template: ChatTemplate) -> "MessageFormat":
        """Choose by the settings, and where these are "auto", by the chat template."""
        reasons = reasoning_parser == "think" or (reasoning_parser == "auto" and CLOSE in template.source)
        return cls(choose_format(tool_parser, template), reasons)

    def shown(self, tokenizer: Tokenizer, has_tools: bool) -> frozenset[int]:
        """Special tokens whose text the parser needs. With `has_tools` it looks for calls."""
        texts = (*(self.tools.markers if has_tools else ()), *((OPEN, CLOSE) if self.reasons else ()))
        return frozenset(id_ for text in texts if (id_ := tokenizer.added_id(text)) in tokenizer.special_ids)

    def ends_in_reasoning(self, prompt: str) -> bool:
        """Whether a rendered chat ends inside the model's reasoning."""
        return self.reasons and prompt.rstrip().endswith(OPEN)

    def parser(self, schemas: Mapping[str, Schema], in_reasoning: bool) -> MessageParser:
        """A parser of text that no grammar constrains. `schemas`: of the arguments of tools, by their names."""
        parser = self.tools.parser(schemas) if schemas else PlainText()
        return ReasoningParser(parser, in_reasoning) if self.reasons else parser

    def parser_of_required_calls(self, schemas: Mapping[str, Schema], in_reasoning: bool) -> MessageParser:
        """A parser of text that a grammar constrains to calls, with reasoning in front of them."""
        parser = WithoutContent(format_of_required_calls(self.tools).parser(schemas))
        return ReasoningParser(parser, in_reasoning) if self.reasons else parser
