"""The request of POST /v1/chat/completions"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from ...errors import InvalidRequestError, UnsupportedError
from ..edge.body import RequestBody
from ..generation.cache_control import CacheControl, longest_wish
from ..generation.fields import HINTS, UNSUPPORTED, Effort, SamplingFields
from ..generation.structured import StructuredFields
from .message import Message

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
"""OpenAI's API allows 64 characters, Anthropic's and MCP 128."""


_NAMES_PROPERTIES_ELSEWHERE = {"$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "unevaluatedProperties"}
"""Keywords beside which `additionalProperties` would refuse properties that other parts of a schema name."""


class FunctionDefinition(RequestBody):
    """A function's name and parameters."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema of an object")
    strict: bool = Field(False, description="arguments of calls that are asked for match in either case")
    cache_control: CacheControl | None = None

    def schema_of_arguments(self) -> dict[str, Any]:
        """The schema of a call's arguments. As in OpenAI's API, a function without parameters takes none.

        A schema that does not say `additionalProperties` has none: a model that may invent arguments does so until its
        tokens run out.
        """
        schema = self.parameters or {}
        return schema if schema.keys() & _NAMES_PROPERTIES_ELSEWHERE else {"additionalProperties": False, **schema}


class Tool(RequestBody):
    """A function that the model may call."""

    type: Literal["function"]
    function: FunctionDefinition
    cache_control: CacheControl | None = None

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it, without `strict` and what other APIs have."""
        given = self.function.model_dump(exclude_none=True, include={"name", "description", "parameters"})
        return {"type": self.type, "function": given}


class FunctionChoice(RequestBody):
    """A function by its name."""

    name: FunctionName


class NamedToolChoice(RequestBody):
    """The one function that is to be called."""

    type: Literal["function"]
    function: FunctionChoice


class AllowedTools(RequestBody):
    """Some of the tools, which the model may call, or has to call one of."""

    mode: Literal["auto", "required"]
    tools: list[NamedToolChoice] = Field(min_length=1)


class AllowedToolsChoice(RequestBody):
    """Only some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class ChatFields(RequestBody):
    """How a chat becomes a prompt."""

    hints = HINTS
    unsupported = UNSUPPORTED
    messages: list[Message] = Field(min_length=1)
    tools: list[Tool] = Field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | AllowedToolsChoice = "auto"
    add_generation_prompt: bool | None = Field(None, description="true, unless the final message is continued")
    continue_final_message: bool = False
    reasoning_effort: Effort | None = Field(None, description="a hint, for chat templates that know it")
    chat_template: str | None = Field(None, description="only where the server allows it")
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_kinds(cls, data: Any) -> Any:
        """Raise UnsupportedError for tools, or choices of them, other than functions."""
        given = data if isinstance(data, dict) else {}
        tools = given["tools"] if isinstance(given.get("tools"), list) else []
        places = [
            *((f"tools[{index}]", tool, ("function",)) for index, tool in enumerate(tools)),
            ("tool_choice", given.get("tool_choice"), ("function", "allowed_tools")),
        ]
        for where, value, known in places:
            if isinstance(value, dict) and value.get("type") not in (None, *known):
                raise UnsupportedError(f"{where}: the type {value['type']!r:.60} is not supported", where)
        return data

    @property
    def usable_tools(self) -> list[Tool]:
        """The tools that the prompt describes."""
        if isinstance(self.tool_choice, AllowedToolsChoice):
            return self._named(self.tool_choice.allowed_tools.tools)
        return [] if self.tool_choice == "none" else self.tools

    @property
    def wanted_tools(self) -> list[Tool]:
        """The tools of which one has to be called; none if the model is free not to call."""
        choice = self.tool_choice
        if isinstance(choice, NamedToolChoice):
            return self._named([choice])
        if isinstance(choice, AllowedToolsChoice):
            return self.usable_tools if choice.allowed_tools.mode == "required" else []
        return self.tools if choice == "required" else []

    def _named(self, choices: list[NamedToolChoice]) -> list[Tool]:
        names = {choice.function.name for choice in choices}
        return [tool for tool in self.tools if tool.function.name in names]

    def check(self) -> None:
        """See `RequestBody.check`."""
        super().check()
        for index, message in enumerate(self.messages):
            message.check_content(f"messages[{index}]")
        self._check_tools()
        if not self.continue_final_message:
            return
        if self.add_generation_prompt:
            raise InvalidRequestError(
                "continue_final_message and add_generation_prompt exclude each other", "continue_final_message"
            )
        if not self.messages or self.messages[-1].role != "assistant":
            raise InvalidRequestError(
                "continue_final_message: the final message is not the assistant's", "continue_final_message"
            )
        if self.messages[-1].tool_calls:
            raise UnsupportedError(
                "continue_final_message: a message that calls tools cannot be continued", "continue_final_message"
            )

    def _check_tools(self) -> None:
        names = [tool.function.name for tool in self.tools]
        for index, name in enumerate(names):
            if name in names[:index]:
                where = f"tools[{index}].function.name"
                raise InvalidRequestError(f"{where}: there are two tools of the name {name}", where)
        choice = self.tool_choice
        allowed = choice.allowed_tools.tools if isinstance(choice, AllowedToolsChoice) else []
        chosen = [choice] if isinstance(choice, NamedToolChoice) else allowed
        is_empty = choice == "required" and not names
        if is_empty or any(one.function.name not in names for one in chosen):
            raise InvalidRequestError("tool_choice: there is no such tool among the tools", "tool_choice")


class ChatRequest(ChatFields, StructuredFields, SamplingFields):
    """Answer a chat."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 32}}
    )

    max_tokens: int | None = Field(None, ge=1, lt=2**31, description="by default what the context leaves")
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31, description="the newer name of max_tokens")
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, description="most probable tokens to report at each position")
    parallel_tool_calls: bool = Field(True, description="false: one call at most")
    thinking_token_budget: int | None = Field(
        None, ge=1, description="most tokens of reasoning; then it is closed, and the answer begins"
    )
    cache_control: CacheControl | None = Field(None, description="here and elsewhere: the longest time counts")

    @property
    def wished_retention(self) -> float:
        """See `TokenFields`; marks in the chat count as well."""
        parts = [part for message in self.messages for part in message.markable]
        functions = [tool.function for tool in self.tools]
        return max(super().wished_retention, longest_wish([self, *parts, *self.tools, *functions]))

    def check(self) -> None:
        """See `RequestBody.check`."""
        super().check()
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError("top_logprobs needs logprobs to be true", "top_logprobs")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise InvalidRequestError("max_tokens and max_completion_tokens differ; give one of them", "max_tokens")
        if self.wanted_tools:
            self._check_nothing_else_is_wanted()

    def _check_nothing_else_is_wanted(self) -> None:
        """Required calls are all of the text, which has no answer with a format, and no stop may cut them off."""
        constraint = self.constraint()
        others = [name for name in ("stop", "stop_token_ids") if getattr(self, name)]
        if constraint and not constraint.field.startswith("response_format"):
            others.append(constraint.field)
        for name in others:
            raise InvalidRequestError(f"{name} and a tool_choice that wants a call exclude each other", name)
