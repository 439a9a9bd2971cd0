"""From the bodies of other APIs to a chat: what their translations have in common."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from app.api.generation.fields import TokenFields
from app.errors import InvalidRequestError

Fields = dict[str, Any]


@contextmanager
def rename_errors(names: dict[str, str]) -> Iterator[None]:
    """Errors about fields of a chat name those of the API that was called: the first that fits of `names`."""
    try:
        yield
    except InvalidRequestError as error:
        for ours, theirs in names.items():
            if error.param is not None and error.param.startswith(ours):
                if error.message.startswith(error.param):
                    error.message = theirs + error.message.removeprefix(error.param)
                error.param = theirs
                break
        raise


def token_fields(body: TokenFields) -> Fields:
    """What a body says of sampling: these fields have the same names everywhere."""
    return body.model_dump(include=set(TokenFields.model_fields), exclude_unset=True)


def text_parts(texts: Sequence[str]) -> str | list[dict[str, str]]:
    """The content of a message: one text as it is, others as parts."""
    return "".join(texts) if len(texts) < 2 else [{"type": "text", "text": text} for text in texts]


def assistant_message(texts: Sequence[str], reasoning: str, tool_calls: Sequence[Fields]) -> Fields:
    """A message of the assistant, which has what is not empty."""
    message: Fields = {"role": "assistant"}
    if texts or not tool_calls:
        message["content"] = text_parts(texts)
    if reasoning:
        message["reasoning_content"] = reasoning
    if tool_calls:
        message["tool_calls"] = list(tool_calls)
    return message


def tool_call(id_: str, name: str, arguments: str | Fields) -> Fields:
    """A call in a message of the assistant."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": text}}


def function_tool(name: str, description: str | None, parameters: Fields | None, strict: bool | None) -> Fields:
    """A function that may be called."""
    given = {"name": name, "description": description, "parameters": parameters, "strict": strict}
    return {"type": "function", "function": {key: value for key, value in given.items() if value is not None}}


def json_schema_format(schema: Fields | None, name: str | None, strict: bool | None = None) -> Fields:
    """A `response_format`."""
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": strict}}
