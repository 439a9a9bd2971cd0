"""The tools of a request, each as the function that a chat has for it."""

from abc import abstractmethod
from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from ..chat.parts import Fields, function_tool
from ..chat.schema import FunctionName
from ..edge.body import RequestBody, Unsupported, hints
from ..generation.kinds import HostedTool, Unknown, by_type, refuse_unknown

_IN_TOOLS: Unsupported = {
    "allowed_callers": (["direct"],),
    "async": (False,),
}
_HOSTED = ("image_generation", "local_shell", "tool_search", "web_search")


class OwnTool(RequestBody):
    """Base of the tools that the client runs."""

    hints = hints("defer_loading output_schema")  # the model is told of all tools at once
    unsupported = _IN_TOOLS
    name: FunctionName
    description: str | None = None

    @abstractmethod
    def function(self, name: str, about: str | None) -> Fields:
        """The function of a chat. `name`: the model's name for it. `about`: what stands before its description."""


class FunctionTool(OwnTool):
    """A function that the model may call."""

    type: Literal["function"]
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema")
    strict: bool | None = None

    def function(self, name: str, about: str | None) -> Fields:
        """See `OwnTool`."""
        return function_tool(name, (about, self.description), self.parameters, self.strict)


class TextInput(RequestBody):
    """Any text."""

    type: Literal["text"]


class GrammarInput(RequestBody):
    """Texts that a grammar describes. The model reads it; a call that is required also matches an expression."""

    type: Literal["grammar"]
    syntax: Literal["lark", "regex"]
    definition: str


class CustomTool(OwnTool):
    """A tool that takes a text. The model sees a function with one argument, `input`."""

    type: Literal["custom"]
    format: Annotated[TextInput | GrammarInput, Field(discriminator="type")] = TextInput(type="text")

    @property
    def has_lark(self) -> bool:
        """Whether the text has to match a grammar that no JSON schema can hold."""
        return isinstance(self.format, GrammarInput) and self.format.syntax == "lark"

    def function(self, name: str, about: str | None) -> Fields:
        """See `OwnTool`."""
        told, schema = "The whole text is the argument `input`.", {"type": "string"}
        if isinstance(self.format, GrammarInput):
            told += f" It has to match this {self.format.syntax} grammar:\n{self.format.definition}"
            if self.format.syntax == "regex":
                schema["pattern"] = f"^(?:{self.format.definition})$"
        parameters = {"type": "object", "properties": {"input": schema}, "required": ["input"]}
        return function_tool(name, (about, self.description, told), parameters | {"additionalProperties": False})


class Namespace(RequestBody):
    """Tools with a name in common. The model calls them by both names: `namespace__name`."""

    type: Literal["namespace"]
    name: FunctionName
    description: str | None = None
    tools: list[
        Annotated[
            Annotated[FunctionTool, Tag("function")]
            | Annotated[CustomTool, Tag("custom")]
            | Annotated[Unknown, Tag("unknown")],
            by_type("function", "custom"),
        ]
    ]


Tool = Annotated[
    Annotated[FunctionTool, Tag("function")]
    | Annotated[CustomTool, Tag("custom")]
    | Annotated[Namespace, Tag("namespace")]
    | Annotated[HostedTool, Tag("hosted")]
    | Annotated[Unknown, Tag("unknown")],
    by_type("function", "custom", "namespace", hosted=_HOSTED),
]


class NamedTool(RequestBody):
    """One tool."""

    type: Literal["function", "custom"]
    name: FunctionName


class AllowedTools(RequestBody):
    """Some of the tools. The model is not told of the others."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1)]


ToolChoice = (
    Literal["none", "auto", "required"]
    | Annotated[
        Annotated[NamedTool, Tag("named")]
        | Annotated[AllowedTools, Tag("allowed_tools")]
        | Annotated[Unknown, Tag("unknown")],
        by_type("allowed_tools", others=dict.fromkeys(("function", "custom"), "named")),
    ]
)


def check_tools(tools: Any, path: str) -> None:
    """Raise UnsupportedError for tools of unknown types."""

    def check(tool: Any, where: str) -> None:
        if isinstance(tool, Namespace):
            refuse_unknown(tool.tools, f"{where}.tools", "a tool")

    refuse_unknown(tools, path, "a tool", check)
