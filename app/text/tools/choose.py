"""Chooses the format of a model's tool calls: the one in which its chat template shows them."""

import json
import logging
from collections.abc import Iterable, Sequence
from itertools import chain

from ..chat_template import ChatTemplate
from ..probe import FUNCTION, KEY, VALUES
from .formats import FORMATS, ToolFormat
from .tags import DSML

log = logging.getLogger(__name__)

_SIGNS = {
    "qwen3_coder": ("<function=",),
    "glm45": ("<arg_key>",),
    "minimax_m2": ("<minimax:tool_call>",),
    "deepseek_v32": (f"<{DSML}function_calls>",),
    "deepseek_v4": (f"<{DSML}tool_calls>",),
    "hermes": ("<tool_call>",),
    "mistral": ("[TOOL_CALLS]",),
    "kimi_k2": ("<|tool_call_begin|>",),
    "command": ("<|START_ACTION|>",),
    "granite": ("<|tool_call|>",),
    "gemma4": ("<|tool_call>",),
    "functiongemma": ("<start_function_call>",),
    "llama3_json": ('"parameters":', "<|python_tag|>"),
    "pythonic": ("func_name1(", "function_name("),
}
"""How templates that show no calls describe them."""


def choose_format(setting: str, template: ChatTemplate) -> ToolFormat:
    """The format that a setting names, or with "auto" the one in which the template shows calls.

    Calls in a form that is not read are part of the content; a warning tells so, and names the form.
    """
    shown = template.calls_as_shown()
    name = _choose(shown, template) if setting == "auto" else setting
    if shown and template.describes_tools and not _reads(FORMATS[name], shown):
        log.warning(
            "the chat template shows tool calls as %.200r, which tool parser %s does not read: "
            "such calls will be part of the content",
            shown[-1],
            name,
        )
    else:
        log.info("tool parser %s reads the calls that the chat template shows", name)
    return FORMATS[name]


def _choose(shown: Sequence[str], template: ChatTemplate) -> str:
    left = {name: left for name, format_ in FORMATS.items() if (left := _left_by(format_, shown)) is not None}
    read = (name for name in sorted(left, key=lambda name: left[name]))
    described = (name for name, words in _SIGNS.items() if any(word in template.source for word in words))
    if (name := next(chain(read, described), None)) is not None:
        return name
    if template.describes_tools and not shown:
        log.warning("the chat template describes tools, but shows no form of calls that is known: hermes is tried")
    return "hermes"  # in whose words tools are described where the template does not


def _reads(format_: ToolFormat, shown: Iterable[str]) -> bool:
    return _left_by(format_, shown) is not None


def _left_by(format_: ToolFormat, shown: Iterable[str]) -> int | None:
    """How many characters a format's parser leaves beside the call that the template shows; None if it finds none.

    A parser may find calls of another format by their inner tags, but it leaves the outer ones.
    """
    parsed = (_parsed(format_, text) for text in shown)
    return min((left for calls, left in parsed if calls == [(FUNCTION, {KEY: VALUES[0]})]), default=None)


def _parsed(format_: ToolFormat, text: str) -> tuple[list[tuple[str, object]], int]:
    """Calls, and the length of the content."""
    parser = format_.parser()
    both = parser.feed(text), parser.finish()
    deltas = [*both[0].tool_calls, *both[1].tool_calls]
    names = [delta.name for delta in deltas if delta.name is not None]
    arguments = ("".join(delta.arguments for delta in deltas if delta.index == index) for index in range(len(names)))
    left = len(both[0].content + both[1].content)
    try:
        return [(name, json.loads(text)) for name, text in zip(names, arguments, strict=True)], left
    except ValueError:
        return [], left
