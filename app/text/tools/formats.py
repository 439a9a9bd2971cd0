"""The formats of tool calls, and which of them a model was trained on."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from .. import harmony
from ..message_parser import MessageParser
from .hermes import HermesParser
from .llama import LlamaParser
from .mistral import MistralParser
from .pythonic import PythonicParser
from .tagged import TaggedParser


@dataclass(frozen=True)
class ToolFormat:
    """One format of tool calls: a parser, and the texts from which a grammar of required calls is made.

    Required calls are `begin`, the calls with `between` them, then `end`. Each call is `before_name`, the name,
    `before_arguments`, the arguments as JSON, and `after_arguments`.
    """

    parser: Callable[..., MessageParser]
    """Makes a parser, if it needs them with the schemas of arguments by the functions' names."""
    before_name: str
    before_arguments: str
    after_arguments: str
    between: str
    begin: str = ""
    end: str = ""
    markers: tuple[str, ...] = ()
    """Texts of the format that may be special tokens of a model."""
    tagged: bool = False
    """Whether required calls are written in tags, where their arguments can be. Otherwise they are JSON."""

    quotes_names: bool = True
    """Whether names are written as JSON."""
    before_answer: str = ""
    """What an answer begins with, in a format of messages in channels. Its parser then reads all of them."""

    def head(self, name: str) -> str:
        """What stands in front of the arguments of a function."""
        return f"{self.before_name}{json.dumps(name) if self.quotes_names else name}{self.before_arguments}"

    @property
    def looks_like_json(self) -> bool:
        """Whether required calls may be told from an answer that is JSON by their beginnings only."""
        return f"{self.begin}{self.before_name}".startswith("{")

    def beginnings(self, names: Iterable[str]) -> tuple[str, ...]:
        """What a required call of one of these functions begins with, up to the brace of its arguments."""
        return tuple(f"{self.begin}{self.head(name)}{{" for name in names)


HERMES = ToolFormat(
    HermesParser,
    before_name='<tool_call>\n{"name": ',
    before_arguments=', "arguments": ',
    after_arguments="}\n</tool_call>",
    between="\n",
    markers=("<tool_call>", "</tool_call>"),
)
QWEN3_CODER = replace(HERMES, parser=TaggedParser, tagged=True)
LLAMA = ToolFormat(
    LlamaParser,
    before_name='{"name": ',
    before_arguments=', "parameters": ',
    after_arguments="}",
    between="; ",
    markers=("<|python_tag|>",),
)
MISTRAL = ToolFormat(
    MistralParser,
    begin="[TOOL_CALLS][",
    before_name='{"name": ',
    before_arguments=', "arguments": ',
    after_arguments="}",
    between=", ",
    end="]",
    markers=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
)
PYTHONIC = ToolFormat(
    PythonicParser,
    before_name=LLAMA.before_name,
    before_arguments=LLAMA.before_arguments,
    after_arguments=LLAMA.after_arguments,
    between=LLAMA.between,
    markers=("<|python_tag|>",),
)
"""Required calls are written as JSON, like LLAMA's, because their arguments have to match a schema."""
HARMONY = ToolFormat(
    harmony.HarmonyParser,
    before_name=harmony.TO_FUNCTION,
    before_arguments=harmony.BEFORE_ARGUMENTS,
    after_arguments="",
    between=harmony.BETWEEN,
    markers=harmony.MARKERS,
    quotes_names=False,
    before_answer=harmony.ANSWER,
)

FORMATS = {
    "hermes": HERMES,
    "llama3_json": LLAMA,
    "mistral": MISTRAL,
    "pythonic": PYTHONIC,
    "qwen3_coder": QWEN3_CODER,
    "harmony": HARMONY,
}


def format_of_required_calls(format_: ToolFormat) -> ToolFormat:
    """The format in which a model of this format writes calls that a grammar requires."""
    return LLAMA if format_ is PYTHONIC else format_
