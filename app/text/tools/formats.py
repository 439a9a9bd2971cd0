"""How models write tool calls, and which of the ways a model was taught."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from app.text.message_parser import MessageParser
from app.text.tools.hermes import HermesParser
from app.text.tools.llama import LlamaParser
from app.text.tools.mistral import MistralParser
from app.text.tools.pythonic import PythonicParser

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ToolFormat:
    """One way to write calls: how to read it, and how to write it where a call is wanted in any case.

    Written calls are `begin`, then for each call `before_name`, the name as JSON, `before_arguments`, the arguments as
    JSON, and `behind`, with `between` two of them, then `end`.
    """

    parser: Callable[[], MessageParser]
    before_name: str
    before_arguments: str
    behind: str
    between: str
    begin: str = ""
    end: str = ""
    markers: tuple[str, ...] = ()
    """Texts that may be special tokens of a model."""


HERMES = ToolFormat(
    HermesParser,
    before_name='<tool_call>\n{"name": ',
    before_arguments=', "arguments": ',
    behind="}\n</tool_call>",
    between="\n",
    markers=("<tool_call>", "</tool_call>"),
)
LLAMA = ToolFormat(
    LlamaParser,
    before_name='{"name": ',
    before_arguments=', "parameters": ',
    behind="}",
    between="; ",
    markers=("<|python_tag|>",),
)
MISTRAL = ToolFormat(
    MistralParser,
    begin="[TOOL_CALLS][",
    before_name='{"name": ',
    before_arguments=', "arguments": ',
    behind="}",
    between=", ",
    end="]",
    markers=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
)
PYTHONIC = ToolFormat(
    PythonicParser,
    before_name=LLAMA.before_name,
    before_arguments=LLAMA.before_arguments,
    behind=LLAMA.behind,
    between=LLAMA.between,
    markers=("<|python_tag|>",),
)
"""Arguments that have to match a schema are written as JSON, as LLAMA does it: see `written`."""

FORMATS = {"hermes": HERMES, "llama3_json": LLAMA, "mistral": MISTRAL, "pythonic": PYTHONIC}


def written(format_: ToolFormat) -> ToolFormat:
    """The format that reads what is written where a call is wanted in any case."""
    return LLAMA if format_ is PYTHONIC else format_


def choose_format(setting: str, template: str) -> ToolFormat:
    """The format that a setting names; with "auto", the one that a chat template shows to the model."""
    if setting != "auto":
        return FORMATS[setting]
    signs = {
        "hermes": ("<tool_call>",),
        "mistral": ("[TOOL_CALLS]",),
        "llama3_json": ('"parameters":', "<|python_tag|>"),
        "pythonic": ("func_name1(", "function_name("),
    }
    for name, words in signs.items():
        if any(word in template for word in words):
            log.info("tool parser %s: the chat template shows %s", name, " or ".join(words))
            return FORMATS[name]
    log.debug("tool parser hermes: the chat template shows no other")
    return HERMES
