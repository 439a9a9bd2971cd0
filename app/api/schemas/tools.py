"""Functions that a model may call, and calls of them."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.schemas.common import Label, RequestBody
from app.errors import InvalidRequestError

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class FunctionDefinition(RequestBody):
    """What a function is called, and what it takes."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema of an object")
    strict: bool = Field(False, description="arguments of calls that are asked for match in either case")


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
    """What the model called."""

    name: FunctionName
    arguments: str = Field(description="JSON")


class ToolCall(RequestBody):
    """A call that the model made earlier in the chat."""

    id: Label
    type: Literal["function"] = "function"
    function: FunctionCall

    def for_template(self, path: str) -> dict[str, Any]:
        """As chat templates expect it: with the arguments as an object. InvalidRequestError if they are none."""
        where = f"{path}.function.arguments"
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except (ValueError, RecursionError):
            raise InvalidRequestError(f"{where}: not JSON", where) from None
        if not isinstance(arguments, dict):
            raise InvalidRequestError(f"{where}: a JSON object is expected", where)
        return {
            "id": self.id,
            "type": self.type,
            "function": {"name": self.function.name, "arguments": arguments},
        }
