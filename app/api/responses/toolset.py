"""All tools of a request as a chat has them, the choice among them, and whose a call of the model is."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ...errors import InvalidRequestError, UnsupportedError
from ..chat.parts import Fields, arguments_so_far, named_choice
from ..generation.kinds import Unknown
from .tools import AllowedTools, CustomTool, FunctionTool, NamedTool, Namespace, Tool, ToolChoice


class Given(NamedTuple):
    """A tool as the client named it."""

    name: str
    namespace: str | None = None
    takes_text: bool = False
    has_lark: bool = False


def name_for_model(name: str, namespace: str | None) -> str:
    """The one name by which a model knows a tool, in the form that clients of MCP use."""
    return name if namespace is None else f"{namespace.removesuffix('__')}__{name}"


def text_arguments(text: str) -> Fields:
    """The arguments of a call that gives a text to a tool, as the model writes them."""
    return {"input": text}


def text_of(arguments: str) -> str:
    """The text that a model gave to a tool that takes one: all that it wrote if that has another form."""
    text = (arguments_so_far(arguments) or {}).get("input")
    return text if isinstance(text, str) else arguments


class ToolSet:
    """The tools that a model is told of, by the names that it knows."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._given: dict[str, Given] = {}
        self._functions: list[Fields] = []
        for tool, namespace, about in _flat(tools):
            name = name_for_model(tool.name, namespace)
            has_lark = isinstance(tool, CustomTool) and tool.has_lark
            self._given[name] = Given(tool.name, namespace, isinstance(tool, CustomTool), has_lark)
            self._functions.append(tool.function(name, about))

    def given(self, name: str) -> Given:
        """The tool that a model calls by this name, which may be none of the request's.

        Instructions may tell a model of a tool without its namespace, so that it is called so.
        """
        alike = [given for given in self._given.values() if given.name == name]
        return self._given.get(name) or (alike[0] if len(alike) == 1 else Given(name))

    def fields(self, choice: ToolChoice | None) -> Fields:
        """The tools and the choice among them, as fields of a chat. Raises InvalidRequestError if one is not there."""
        wanted: list[str] = []
        told: Any = choice or "auto"
        if isinstance(choice, NamedTool):
            wanted = [self._name(choice, "tool_choice")]
            told = named_choice(wanted[0])
        elif isinstance(choice, AllowedTools):
            names = [self._name(one, f"tool_choice.tools[{index}]") for index, one in enumerate(choice.tools)]
            wanted = names if choice.mode == "required" else []
            allowed = {"mode": choice.mode, "tools": [named_choice(name) for name in names]}
            told = {"type": "allowed_tools", "allowed_tools": allowed}
        elif choice == "required":
            wanted = [*self._given]
        for name in wanted:
            if self._given[name].has_lark:
                raise UnsupportedError(f"tool_choice: a required call of {name} cannot be kept to Lark", "tool_choice")
        return {"tools": self._functions, "tool_choice": told}

    def _name(self, choice: NamedTool, where: str) -> str:
        """The model's name for a chosen tool, which a client may call by its own name or by the model's."""
        for name, given in self._given.items():
            if choice.name in (name, given.name):
                return name
        raise InvalidRequestError(f"{where}: there is no tool {choice.name!r:.80} among the tools", where)


def _flat(tools: Sequence[Tool]) -> Iterator[tuple[FunctionTool | CustomTool, str | None, str | None]]:
    """Each tool with its namespace. What describes the namespace stands before its first tool."""
    for tool in tools:
        if isinstance(tool, Namespace):
            for index, member in enumerate(tool.tools):
                if not isinstance(member, Unknown):
                    yield member, tool.name, tool.description if index == 0 else None
        elif isinstance(tool, FunctionTool | CustomTool):
            yield tool, None, None
