"""Reasoning in front of output that a grammar constrains."""

import json
import re

from ..text.reasoning import ReasoningTags
from ..text.tokenizer import Tokenizer
from ..text.tools.formats import ToolFormat
from .literals import join, literal


def reasoning_prefix(
    tokenizer: Tokenizer, tags: ReasoningTags, is_open: bool, format_: ToolFormat
) -> tuple[str, list[str]]:
    """An expression of a Lark grammar that matches reasoning in front of the answer, and the rules that it needs.

    If the prompt has opened the reasoning (`is_open`), the model has to close it; otherwise reasoning is optional.
    """

    def fixed(text: str) -> str:
        return literal(text, (*tags.markers, *format_.markers), tokenizer)

    closing, space = fixed(tags.close), "" if format_.has_channels else "/\\n{0,2}/"
    if not closing.startswith("<["):
        rules = [join("reasoning: thought", space), f"thought[suffix={json.dumps(tags.close)}]: /(?s:.*)/"]
    else:
        rules = [join("reasoning: THOUGHT", closing, space)]
        rules += ["THOUGHT: /(?s:.*)/ & ~/(?s:.*)" + re.escape(tags.close).replace("/", "\\/") + "(?s:.*)/"]
    return ("reasoning" if is_open else f"({fixed(tags.open)} reasoning)?"), rules


def answer_behind(before: tuple[str, list[str]], answer: str, format_: ToolFormat, tokenizer: Tokenizer) -> str:
    """A grammar of an answer in its channel, behind reasoning. `before`: see `reasoning_prefix`.

    Raises ValueError for an answer's grammar in llguidance's other form, JSON, which nothing can stand in front of.
    """
    first, rules = before
    begin = literal(format_.before_answer, format_.markers, tokenizer)
    if answer.lstrip().startswith("{"):
        raise ValueError("this model answers in channels, for which a grammar has to be in Lark or GBNF, not in JSON")
    return "\n".join([f"start: {join(first, begin, 'answer')}", *rules, "answer: %lark {", answer, "}"])
