"""How calls are written in tags: with a tag for each argument."""

import re
from dataclasses import dataclass
from functools import cached_property

_SPACE = re.compile(r"\s{0,99}")
_NAME = re.compile(r"[^\s<>\"]{0,256}")
_TRUTH = re.compile("[a-z]{0,9}")
_IS_STRING = "{is_string}"
_KEY = re.compile(r"[^<>\"\n]{0,256}")


@dataclass(frozen=True)
class Head:
    """A name in a text: parts that stand in front of it and behind it, with white space between them."""

    before: str
    name: re.Pattern[str]
    behind: tuple[str, ...]
    then: tuple[str, ...] = ()
    """One of these has to follow, if there are any, but is no part of the head."""

    def read(self, text: str) -> tuple[str, int] | None:
        """The name, and the length of what the text begins with, from the name on; None as long as more has to come.

        Raises ValueError for a text that begins otherwise.
        """
        match = self.name.match(text)
        name, at = ("", 0) if match is None else (match[0], match.end())
        for part in self.behind:
            if (place := _place(text, at, (part,))) is None:
                return None
            at = place + len(part)
        if self.then and _place(text, at, self.then) is None:
            return None
        if not name:
            raise ValueError("there is no name")
        return name, at


def _place(text: str, at: int, parts: tuple[str, ...]) -> int | None:
    """Where one of the parts begins, behind white space; None if this cannot be known yet. ValueError if none does."""
    space = _SPACE.match(text, at)
    place = at if space is None else space.end()
    if text.startswith(parts, place):
        return place
    if any(part.startswith(text[place:]) for part in parts):
        return None
    raise ValueError("something else is there")


@dataclass(frozen=True)
class Tags:
    """What a call consists of, with `{}` in the place of a name."""

    call: str
    argument: str
    """It may say whether the argument is a string, in the place of `{is_string}`."""
    end_of_argument: str
    end_of_call: str
    may_break_lines: bool = True
    """Whether a line break in front of an argument's value, and one behind it, is no part of it."""

    def begin_of(self, key: str, is_string: bool) -> str:
        """What stands in front of an argument."""
        return self.argument.replace("{}", key).replace(_IS_STRING, "true" if is_string else "false")

    @cached_property
    def opening(self) -> str:
        """The first tag, which models leave out at times if another one follows."""
        return self.call[: self.call.index(">") + 1]

    @cached_property
    def closing(self) -> str:
        """The last tag."""
        return self.end_of_call.split()[-1]

    @cached_property
    def end_of_function(self) -> str:
        """The tag in front of the last one; empty if there is none."""
        return self.end_of_call.removesuffix(self.closing).strip()

    @cached_property
    def function(self) -> Head:
        """What stands in front of the arguments, behind the first tag."""
        before, _, behind = self.call.removeprefix(self.opening).partition("{}")
        then = () if before.strip() else (self.parameter.before, self.closing)
        return Head(before.strip(), _NAME, tuple(behind.split()), then)

    @cached_property
    def parameter(self) -> Head:
        """What stands in front of an argument."""
        before, _, behind = self.argument.partition("{}")
        return Head(before, _KEY, tuple(behind.partition(_IS_STRING)[0].split()))

    @cached_property
    def is_string(self) -> Head | None:
        """What follows where that does not end an argument's tag: whether the argument is a string, true or false."""
        _, found, behind = self.argument.partition(_IS_STRING)
        return Head("", _TRUTH, tuple(behind.split())) if found else None

    @cached_property
    def end_of_parameter(self) -> str:
        """What ends an argument."""
        return self.end_of_argument.strip()


QWEN3_CODER = Tags("<tool_call>\n<function={}>\n", "<parameter={}>\n", "\n</parameter>\n", "</function>\n</tool_call>")
SEED = Tags("<seed:tool_call>\n<function={}>\n", "<parameter={}>", "</parameter>\n", "</function>\n</seed:tool_call>")
MINIMAX_M2 = Tags(
    '<minimax:tool_call>\n<invoke name="{}">\n',
    '<parameter name="{}">',
    "</parameter>\n",
    "</invoke>\n</minimax:tool_call>",
)
GLM = Tags("<tool_call>{}\n", "<arg_key>{}</arg_key>\n<arg_value>", "</arg_value>\n", "</tool_call>")


DSML = "\uff5cDSML\uff5c"
"""What DeepSeek's markup begins with."""


def _dsml(block: str) -> Tags:
    """DeepSeek's markup, of calls in a block. Values are written as they are."""
    argument = f'<{DSML}parameter name="{{}}" string="{_IS_STRING}">'
    call, end = f'<{DSML}{block}>\n<{DSML}invoke name="{{}}">\n', f"</{DSML}invoke>\n</{DSML}{block}>"
    return Tags(call, argument, f"</{DSML}parameter>\n", end, may_break_lines=False)


DEEPSEEK_V32, DEEPSEEK_V4 = _dsml("function_calls"), _dsml("tool_calls")
