"""The request of POST /v1/chat/completions"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from app.api.edge.body import Label, RequestBody, Unsupported, refused
from app.api.edge.strict_json import parse_json
from app.api.generation.fields import HINTS, UNSUPPORTED, Effort, SamplingFields
from app.api.generation.structured import StructuredFields
from app.errors import InvalidRequestError, UnsupportedError

_IN_MESSAGES: Unsupported = refused("file image_url input_audio video_url") | {
    "annotations": ([],),
    "reasoning": ("",),
    "refusal": ("",),
}


FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class FunctionDefinition(RequestBody):
    """A function's name and parameters."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema of an object")
    strict: bool = Field(False, description="arguments of calls that are asked for match in either case")

    def schema_of_arguments(self) -> dict[str, Any]:
        """The schema of a call's arguments. As in OpenAI's API, a function without parameters takes none."""
        return {"additionalProperties": False} if self.parameters is None else self.parameters


class Tool(RequestBody):
    """A function that the model may call."""

    type: Literal["function"]
    function: FunctionDefinition

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it."""
        return self.model_dump(exclude_none=True, exclude={"function": {"strict"}})


class FunctionChoice(RequestBody):
    """A function by its name."""

    name: FunctionName


class NamedToolChoice(RequestBody):
    """The one function that is to be called."""

    type: Literal["function"]
    function: FunctionChoice


class FunctionCall(RequestBody):
    """The function that the model called, by whatever name."""

    name: Label
    arguments: str = Field(description="JSON")
    parsed_arguments: Any = Field(
        None, description="of OpenAI's client, which sends back what it made; changes nothing"
    )


class ToolCall(RequestBody):
    """A call that the model made earlier in the chat."""

    id: Label
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = Field(None, description="of OpenAI's client, for a streamed call; changes nothing")

    def for_template(self, path: str) -> dict[str, Any]:
        """As chat templates expect it, with the arguments as an object. Raises InvalidRequestError if they are not."""
        where = f"{path}.function.arguments"
        arguments = parse_json(self.function.arguments or "{}", where, where)
        if not isinstance(arguments, dict):
            raise InvalidRequestError(f"{where}: a JSON object is expected", where)
        return {
            "id": self.id,
            "type": self.type,
            "function": {"name": self.function.name, "arguments": arguments},
        }


class ContentPart(RequestBody):
    """A part of a message. Only text is supported, and refusals of the assistant."""

    unsupported = _IN_MESSAGES
    type: str
    text: str | None = None
    refusal: str | None = Field(None, description="of the type refusal, of the assistant")

    def check_kind(self, path: str, role: str) -> None:
        """Raise InvalidRequestError for what is not text."""
        if self.type != "text" and (self.type, role) != ("refusal", "assistant"):
            raise UnsupportedError(f"{path}: content of type {self.type!r:.40} is not supported", path)
        for name in ("text", "refusal"):
            if (getattr(self, name) is not None) != (name == self.type):
                fault = "Field required" if name == self.type else f"not of the type {self.type}"
                raise InvalidRequestError(f"{path}.{name}: {fault}", f"{path}.{name}")

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it."""
        return {"type": "text", "text": getattr(self, self.type)}


class Message(RequestBody):
    """One turn of a chat."""

    unsupported = _IN_MESSAGES
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = Field(None, description="a text, or parts of type text")
    # Templates may print the name, so nothing in it may look like a control token.
    name: Annotated[str, Field(pattern=r"^[^\s<|\\/>]{1,64}$")] | None = None
    tool_calls: list[ToolCall] = Field(default_factory=list, description="of the assistant")
    tool_call_id: Label | None = Field(None, description="of the call whose result this is")
    reasoning_content: str | None = Field(None, description="of the assistant")
    parsed: Any = Field(None, description="of OpenAI's client, which sends back what it made; changes nothing")

    def for_template(self, path: str) -> dict[str, Any]:
        """The message as chat templates expect it. Raises InvalidRequestError if arguments of calls are not JSON."""
        message = self.model_dump(exclude_none=True, exclude={"tool_calls", "parsed", *(self.model_extra or ())})
        if isinstance(self.content, list):
            message["content"] = [part.for_template() for part in self.content]
        if self.tool_calls:
            calls = enumerate(self.tool_calls)
            message["tool_calls"] = [call.for_template(f"{path}.tool_calls[{index}]") for index, call in calls]
            message.setdefault("content", "")
        return message

    def check_content(self, path: str) -> None:
        """Raise InvalidRequestError unless the content is text, and only the assistant has calls and reasoning."""
        for name in ("tool_calls", "reasoning_content"):
            if getattr(self, name) and self.role != "assistant":
                raise InvalidRequestError(f"{path}.{name}: only the assistant has it", f"{path}.{name}")
        if self.content is None and not self.tool_calls:
            raise InvalidRequestError(f"{path}.content: Field required", f"{path}.content")
        for index, part in enumerate(self.content if isinstance(self.content, list) else []):
            part.check_kind(f"{path}.content[{index}]", self.role)


class ChatFields(RequestBody):
    """How a chat becomes a prompt."""

    hints = HINTS
    unsupported = UNSUPPORTED
    messages: list[Message] = Field(min_length=1)
    tools: list[Tool] = Field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice = "auto"
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
            *((f"tools[{index}]", tool) for index, tool in enumerate(tools)),
            ("tool_choice", given.get("tool_choice")),
        ]
        for where, value in places:
            if isinstance(value, dict) and value.get("type") not in (None, "function"):
                raise UnsupportedError(f"{where}: the type {value['type']!r:.60} is not supported", where)
        return data

    @property
    def usable_tools(self) -> list[Tool]:
        """The tools that the prompt describes."""
        return [] if self.tool_choice == "none" else self.tools

    @property
    def wanted_tools(self) -> list[Tool]:
        """The tools of which one has to be called; none if the model is free not to call."""
        if isinstance(self.tool_choice, NamedToolChoice):
            name = self.tool_choice.function.name
            return [tool for tool in self.tools if tool.function.name == name]
        return self.tools if self.tool_choice == "required" else []

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
        if self.tool_choice not in ("none", "auto") and not self.wanted_tools:
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
        """Required calls are all of the text: it has no other form, and a stop would cut off their arguments."""
        stops = [name for name in ("stop", "stop_token_ids") if getattr(self, name)]
        constraint = self.constraint()
        for name in [constraint.field] if constraint else stops:
            raise InvalidRequestError(f"{name} and a tool_choice that wants a call exclude each other", name)
