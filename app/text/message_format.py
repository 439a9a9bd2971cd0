"""The format of one model's messages: its tool calls and its reasoning."""

from collections.abc import Mapping
from dataclasses import dataclass

from .chat_template import ChatTemplate
from .harmony import ANALYSIS, HarmonyParser
from .message_parser import MessageParser, PlainText, WithoutContent
from .reasoning import TAGS, ReasoningParser, ReasoningTags
from .shape import Message
from .tokenizer import Tokenizer
from .tools.arguments import Schema
from .tools.choose import choose_format
from .tools.formats import ToolFormat, format_of_required_calls
from .tools.or_answer import CallsOrAnswer
from .tools.prompt import text_of


@dataclass(frozen=True)
class MessageFormat:
    """Chosen once for a model, from settings and its chat template."""

    tools: ToolFormat
    reasoning: ReasoningTags | None = None
    """The tags of reasoning, which is separated from the answer; None if nothing is."""

    @classmethod
    def choose(cls, tool_parser: str, reasoning_parser: str, template: ChatTemplate) -> "MessageFormat":
        """Choose by the settings, and where these are "auto", by the chat template."""
        tools = choose_format(tool_parser, template)
        if tools.has_channels:
            return cls(tools, ANALYSIS)  # these channels are told apart whatever the setting says
        if reasoning_parser == "auto":
            tags = next((tags for tags in TAGS.values() if any(tag in template.source for tag in tags)), None)
        else:
            tags = TAGS.get(reasoning_parser)
        return cls(tools, tags)

    def shown(self, tokenizer: Tokenizer, has_tools: bool) -> frozenset[int]:
        """Special tokens whose text the parser needs. With `has_tools` it looks for calls."""
        has_markers = has_tools or self.tools.has_channels
        texts = (*(self.tools.markers if has_markers else ()), *(self.reasoning.markers if self.reasoning else ()))
        return frozenset(id_ for text in texts if (id_ := tokenizer.added_id(text)) in tokenizer.special_ids)

    def ends_in_reasoning(self, prompt: str, continued: Message) -> bool:
        """Whether a rendered chat ends inside the model's reasoning.

        `continued`: the final message, whose own text may be inside of reasoning, if that is to be continued.
        """
        if self.reasoning is None:
            return False
        own = text_of(continued.get("content")) or continued.get("reasoning_content", "")
        before = prompt.rstrip().removesuffix(own.strip()).rstrip()
        begun = self.reasoning.open if before.endswith(self.reasoning.open.rstrip()) else ""
        return self.reasoning.end_open(begun + own)

    def parser(self, schemas: Mapping[str, Schema], in_reasoning: bool) -> MessageParser:
        """A parser of text that no grammar constrains. `schemas`: of the arguments of tools, by their names."""
        if self.tools.has_channels:
            return HarmonyParser(schemas, in_reasoning)
        parser = self.tools.parser(schemas) if schemas else PlainText()
        return self._behind_reasoning(parser, in_reasoning)

    def parser_of_required_calls(
        self, schemas: Mapping[str, Schema], in_reasoning: bool, or_answer: bool = False
    ) -> MessageParser:
        """A parser of text that a grammar constrains to calls, or to an answer, with reasoning in front of them."""
        format_ = format_of_required_calls(self.tools)
        if format_.has_channels:
            messages = HarmonyParser(schemas, in_reasoning)
            return messages if or_answer else WithoutContent(messages)
        parser = format_.parser(schemas)
        if format_.looks_like_json or not or_answer:
            parser = WithoutContent(parser)
        if format_.looks_like_json and or_answer:
            parser = CallsOrAnswer(parser, format_.beginnings(schemas))
        return self._behind_reasoning(parser, in_reasoning)

    def _behind_reasoning(self, parser: MessageParser, in_reasoning: bool) -> MessageParser:
        return parser if self.reasoning is None else ReasoningParser(parser, in_reasoning, self.reasoning)
