"""The formats of tool calls, and which of them a model was trained on."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from .. import harmony
from ..message_parser import MessageParser
from .gemma import FUNCTION_GEMMA, GEMMA4, GemmaParser
from .hermes import HermesParser
from .llama import LlamaParser
from .named import NamedParser
from .pythonic import PythonicParser
from .tagged import TaggedParser
from .tags import DEEPSEEK_V4, DEEPSEEK_V32, DSML, GLM, MINIMAX_M2, QWEN3_CODER, SEED, Tags


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
    tags: Tags | None = None
    """The tags in which required calls are written, where their arguments can be. Otherwise they are JSON."""
    quotes_names: bool = True
    """Whether names are written as JSON."""
    before_answer: str = ""
    """What an answer begins with, in a format of messages in channels."""

    @property
    def has_channels(self) -> bool:
        """Whether the parser reads all that a model writes: reasoning, answers and calls, each in its channel."""
        return bool(self.before_answer)

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
LLAMA = ToolFormat(
    LlamaParser,
    before_name='{"name": ',
    before_arguments=', "parameters": ',
    after_arguments="}",
    between="; ",
    markers=("<|python_tag|>",),
)
MISTRAL = ToolFormat(
    partial(
        NamedParser,
        opening=("[TOOL_CALLS]",),
        head=re.compile(r"([\w.-]{1,99})(?:\[CALL_ID\][\w-]{0,99})?\s{0,9}(?:\[ARGS\])?\s{0,9}(?=\{)"),
    ),
    begin="[TOOL_CALLS][",
    before_name='{"name": ',
    before_arguments=', "arguments": ',
    after_arguments="}",
    between=", ",
    end="]",
    markers=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
)
"""[TOOL_CALLS][{"name": ..., "arguments": ...}, ...], or newer [TOOL_CALLS]name[ARGS]{...}."""
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

_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>")
_DEEPSEEK_NAME = r"([\w.-]{1,256})"
DEEPSEEK_V31 = ToolFormat(
    partial(
        NamedParser,
        opening=_DEEPSEEK[:2],
        head=re.compile(rf"{_DEEPSEEK_NAME}\s{{0,9}}<｜tool▁sep｜>\s{{0,9}}(?=\{{)"),
        closing=_DEEPSEEK[2:],
    ),
    begin=_DEEPSEEK[0],
    before_name=_DEEPSEEK[1],
    before_arguments="<｜tool▁sep｜>",
    after_arguments=_DEEPSEEK[2],
    between="",
    end=_DEEPSEEK[3],
    markers=(*_DEEPSEEK, "<｜tool▁sep｜>"),
    quotes_names=False,
)
DEEPSEEK_V3 = replace(
    DEEPSEEK_V31,
    parser=partial(
        NamedParser,
        opening=_DEEPSEEK[:2],
        head=re.compile(rf"function<｜tool▁sep｜>{_DEEPSEEK_NAME}\s{{0,9}}(?:```json)?\s{{0,9}}(?=\{{)"),
        closing=("```", *_DEEPSEEK[2:]),
    ),
    before_name=f"{_DEEPSEEK[1]}function<｜tool▁sep｜>",
    before_arguments="\n```json\n",
    after_arguments=f"\n```{_DEEPSEEK[2]}",
    between="\n",
)
_KIMI = (
    *("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>"),
    "<|tool_call_argument_begin|>",
)
KIMI_K2 = ToolFormat(
    partial(
        NamedParser,
        opening=_KIMI[:2],
        head=re.compile(
            rf"(?:functions\.)?([\w.-]{{1,256}}?)(?::\d{{1,9}})?\s{{0,9}}{re.escape(_KIMI[4])}\s{{0,9}}(?=\{{)"
        ),
        closing=_KIMI[2:4],
    ),
    begin=_KIMI[0],
    before_name=f"{_KIMI[1]}functions.",
    before_arguments=f":0{_KIMI[4]}",
    after_arguments=_KIMI[2],
    between="",
    end=_KIMI[3],
    markers=_KIMI,
    quotes_names=False,
)
GRANITE = ToolFormat(
    partial(HermesParser, opening=("<|tool_call|>", "functools["), closing="<|/tool_call|>"),
    begin="<|tool_call|>[",
    before_name=MISTRAL.before_name,
    before_arguments=MISTRAL.before_arguments,
    after_arguments=MISTRAL.after_arguments,
    between=MISTRAL.between,
    end="]",
    markers=("<|tool_call|>", "<|/tool_call|>"),
)
"""Granite 3 and Phi-4 mini."""
COMMAND = replace(
    GRANITE,
    parser=partial(HermesParser, opening=("<|START_ACTION|>",), closing="<|END_ACTION|>"),
    begin="<|START_ACTION|>[",
    before_name='{"tool_call_id": "0", "tool_name": ',
    before_arguments=', "parameters": ',
    end="]<|END_ACTION|>",
    markers=("<|START_ACTION|>", "<|END_ACTION|>"),
)
"""Command R7B and Command A."""
MINIMAX = ToolFormat(
    partial(HermesParser, opening=("<tool_calls>",), closing="</tool_calls>"),
    begin="<tool_calls>\n",
    before_name=HERMES.before_name.removeprefix("<tool_call>\n"),
    before_arguments=HERMES.before_arguments,
    after_arguments="}",
    between="\n",
    end="\n</tool_calls>",
    markers=("<tool_calls>", "</tool_calls>"),
)
"""MiniMax M1."""
_GEMMA_MARKS = (FUNCTION_GEMMA, GEMMA4)
FUNCTION_GEMMA_CALLS, GEMMA4_CALLS = (
    replace(LLAMA, parser=partial(GemmaParser, marks=marks), markers=tuple(marks)) for marks in _GEMMA_MARKS
)


def _tagged(tags: Tags) -> ToolFormat:
    """Calls in tags. What these cannot hold is JSON between the first and the last."""
    return replace(
        HERMES,
        parser=partial(TaggedParser, tags=tags),
        before_name=HERMES.before_name.replace("<tool_call>", tags.opening),
        after_arguments=HERMES.after_arguments.replace("</tool_call>", tags.closing),
        markers=(tags.opening, tags.closing, *re.findall(rf"</?\w+>|{DSML}", tags.argument + tags.end_of_argument)),
        tags=tags,
    )


FORMATS = {
    "hermes": HERMES,
    "llama3_json": LLAMA,
    "mistral": MISTRAL,
    "pythonic": PYTHONIC,
    "glm45": _tagged(GLM),
    "minimax_m2": _tagged(MINIMAX_M2),
    "seed_oss": _tagged(SEED),
    "qwen3_coder": _tagged(QWEN3_CODER),
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v31": DEEPSEEK_V31,
    "deepseek_v32": _tagged(DEEPSEEK_V32),
    "deepseek_v4": _tagged(DEEPSEEK_V4),
    "kimi_k2": KIMI_K2,
    "granite": GRANITE,
    "command": COMMAND,
    "minimax": MINIMAX,
    "functiongemma": FUNCTION_GEMMA_CALLS,
    "gemma4": GEMMA4_CALLS,
    "harmony": HARMONY,
}
"""By name: vLLM's, where it has one."""
_READ_ONLY = (PYTHONIC, FUNCTION_GEMMA_CALLS, GEMMA4_CALLS)
"""Formats in which no grammar can have calls match a schema."""


def format_of_required_calls(format_: ToolFormat) -> ToolFormat:
    """The format in which a model of this format writes calls that a grammar requires."""
    return LLAMA if format_ in _READ_ONLY else format_
