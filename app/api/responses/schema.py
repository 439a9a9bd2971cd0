"""The request of POST /v1/responses"""

from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, Tag

from app.api.chat.schema import FunctionName
from app.api.edge.body import Label, RequestBody, Unsupported, refused
from app.api.generation.fields import Effort, TokenFields
from app.api.generation.kinds import Unknown, by_type, refuse_unknown
from app.errors import InvalidRequestError, UnsupportedError

_IN_REQUESTS: Unsupported = refused(
    "access_programs background_options conversation image max_tool_calls moderation prompt prompt_cache_options"
) | {
    "background": (False,),
    "context_management": ([],),
    "prompt_cache_retention": ("in_memory", "in-memory"),
    "service_tier": ("auto", "default"),
    "stream_options": ({}, {"include_obfuscation": False}),
    "truncation": ("disabled",),
}
_IN_ITEMS: Unsupported = {
    "async": (False,),
    "caller": ({"type": "direct"},),
    "encrypted_content": ("",),
    "namespace": (),
    "phase": ("final_answer",),
}
_IN_REASONING: Unsupported = refused("generate_summary summary")
LOGPROBS = "message.output_text.logprobs"
TextType = Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
Status = Literal["in_progress", "completed", "incomplete"]


class TextPart(RequestBody):
    """A piece of text."""

    type: TextType
    text: str
    annotations: list[Any] = Field(default_factory=list, description="changes nothing")
    logprobs: list[Any] = Field(default_factory=list, description="changes nothing")


class RefusalPart(RequestBody):
    """What a model said instead of an answer."""

    type: Literal["refusal"]
    refusal: str


Part = Annotated[
    Annotated[TextPart, Tag("text")] | Annotated[RefusalPart, Tag("refusal")] | Annotated[Unknown, Tag("unknown")],
    by_type("refusal", others=dict.fromkeys(get_args(TextType), "text")),
]
Content = str | list[Part]


class Item(RequestBody):
    """Base of all items."""

    unsupported = _IN_ITEMS
    id: Label | None = Field(None, description="changes nothing")
    status: Status | None = Field(None, description="changes nothing")


class MessageItem(Item):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class FunctionCallItem(Item):
    """What the model called."""

    type: Literal["function_call"]
    call_id: Label
    name: FunctionName
    arguments: str = Field(description="JSON text")


class FunctionCallOutputItem(Item):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: Label
    output: Content


class ReasoningItem(Item):
    """What the model thought."""

    type: Literal["reasoning"]
    summary: list[TextPart] = Field(default_factory=list)
    content: list[TextPart] = Field(default_factory=list)


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[Unknown, Tag("unknown")],
    by_type("message", "function_call", "function_call_output", "reasoning", default="message"),
]


class FunctionTool(RequestBody):
    """A function that the model may call."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema")
    strict: bool | None = None


Tool = Annotated[
    Annotated[FunctionTool, Tag("function")] | Annotated[Unknown, Tag("unknown")],
    by_type("function"),
]


class NamedFunction(RequestBody):
    """A choice of one tool."""

    type: Literal["function"]
    name: FunctionName


NamedTool = Annotated[
    Annotated[NamedFunction, Tag("function")] | Annotated[Unknown, Tag("unknown")],
    by_type("function"),
]


class TextFormat(RequestBody):
    """The format of the text."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(RequestBody):
    """Options of the text."""

    unsupported = {"verbosity": ("medium",)}  # noqa: RUF012 - declared as a class variable
    format: TextFormat = TextFormat()


class ReasoningConfig(RequestBody):
    """How much the model reasons."""

    unsupported = _IN_REASONING
    effort: Effort | None = Field(None, description="only where the chat template has it")


class ResponsesRequest(TokenFields):
    """Answer an input, which may continue an earlier response."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input": "Say hello.", "max_output_tokens": 32},
                {
                    "instructions": "Be brief.",
                    "input": [{"role": "user", "content": [{"type": "input_text", "text": "Say hello."}]}],
                    "temperature": 0,
                    "stream": True,
                },
            ]
        }
    )
    unsupported = _IN_REQUESTS

    input: str | Annotated[list[InputItem], Field(min_length=1)] = Field(description="a text, or items")
    instructions: str | None = Field(None, description="a system message; not kept for the next response")
    max_output_tokens: int | None = Field(None, ge=1, lt=2**31, description="by default what the context leaves")
    tools: list[Tool] = Field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig = TextConfig()
    reasoning: ReasoningConfig | None = None
    include: list[str] = Field(default_factory=list, description=f"{LOGPROBS}, or nothing")
    top_logprobs: int | None = Field(None, ge=0, description=f"needs {LOGPROBS} in include")
    previous_response_id: Label | None = Field(None, description="a response that was stored")
    store: bool | None = Field(None, description="keep the response, for a while; true where the server can")
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)] = Field(
        default_factory=dict, description="comes back with the response"
    )
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    user: Label | None = Field(None, description="changes nothing")
    safety_identifier: Label | None = Field(None, description="changes nothing")
    prompt_cache_key: Label | None = Field(None, description="changes nothing")

    @property
    def wants_logprobs(self) -> bool:
        """Whether logprobs are asked for."""
        return LOGPROBS in self.include

    def check(self) -> None:
        """See `RequestBody.check`."""
        refuse_unknown(self.input, "input", "an item", _check_item)
        refuse_unknown(self.tools, "tools", "a tool")
        if isinstance(self.tool_choice, Unknown):
            raise UnsupportedError(f"tool_choice: {self.tool_choice.type!r:.60} is not supported", "tool_choice")
        for wish in self.include:
            if wish != LOGPROBS:
                raise UnsupportedError(f"include: {wish!r:.60} is not supported", "include")
        if self.top_logprobs and not self.wants_logprobs:
            raise InvalidRequestError(f"top_logprobs needs {LOGPROBS} in include", "top_logprobs")


def _check_item(item: Any, path: str) -> None:
    if isinstance(item, MessageItem):
        refuse_unknown(item.content, f"{path}.content", "content")
    elif isinstance(item, FunctionCallOutputItem):
        refuse_unknown(item.output, f"{path}.output", "content")
