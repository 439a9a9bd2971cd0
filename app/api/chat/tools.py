"""Functions that a model may call, and calls of them."""

from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.edge.body import Label, RequestBody
from app.api.edge.strict_json import parse_json
from app.errors import InvalidRequestError

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class FunctionDefinition(RequestBody):
    """What a function is called, and what it takes."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema of an object")
    strict: bool = Field(False, description="arguments of calls that are asked for match in either case")

    def schema_of_arguments(self) -> dict[str, Any]:
        """What a call's arguments match; a function without parameters takes none, as OpenAI has it."""
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
    """What the model called, by whatever name."""

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
        """As chat templates expect it: with the arguments as an object. InvalidRequestError if they are none."""
        where = f"{path}.function.arguments"
        arguments = parse_json(self.function.arguments or "{}", where, where)
        if not isinstance(arguments, dict):
            raise InvalidRequestError(f"{where}: a JSON object is expected", where)
        return {
            "id": self.id,
            "type": self.type,
            "function": {"name": self.function.name, "arguments": arguments},
        }
