"""Parts of a chat, for the translations from other APIs."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic_core import from_json

from ...errors import InvalidRequestError
from ..generation.fields import TokenFields
from ..generation.structured import GuidedFields

Fields = dict[str, Any]


@contextmanager
def rename_errors(names: dict[str, str]) -> Iterator[None]:
    """Make errors name the fields of the API that was called. `names`: by the beginning of a chat's field."""
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
    """The sampling fields that were given. They have the same names in all APIs."""
    names = {*TokenFields.model_fields, *GuidedFields.model_fields}
    return body.model_dump(include=names, exclude_unset=True, by_alias=True)


Content = Sequence[str | Fields]
"""Texts, and parts that are images."""


def as_parts(content: Content) -> str | list[Fields]:
    """The content of a message: a single text as it is, else parts."""
    if all(isinstance(one, str) for one in content) and len(content) < 2:
        return "".join(map(str, content))
    return [{"type": "text", "text": one} if isinstance(one, str) else one for one in content]


def image_part(url: str | None) -> Fields:
    """An image in a message."""
    return {"type": "image_url", "image_url": None if url is None else {"url": url}}


def message(role: str, content: Content, **fields: str) -> Fields:
    """A message of another role than the assistant's. `fields`: further ones, such as a result's `tool_call_id`."""
    return {"role": role, **fields, "content": as_parts(content)}


def assistant_message(texts: Sequence[str], reasoning: str, tool_calls: Sequence[Fields]) -> Fields:
    """A message of the assistant, without fields that would be empty."""
    said: Fields = {"role": "assistant"}
    if texts or not tool_calls:
        said["content"] = as_parts(texts)
    if reasoning:
        said["reasoning_content"] = reasoning
    if tool_calls:
        said["tool_calls"] = list(tool_calls)
    return said


def tool_call(id_: str, name: str, arguments: str | Fields) -> Fields:
    """A call in a message of the assistant."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": text}}


def function_tool(
    name: str, about: Sequence[str | None], parameters: Fields | None, strict: bool | None = None
) -> Fields:
    """A function that may be called. `about`: the texts that describe it; those that are None are left out."""
    description = "\n".join(filter(None, about)) or None
    given = {"name": name, "description": description, "parameters": parameters, "strict": strict}
    return {"type": "function", "function": {key: value for key, value in given.items() if value is not None}}


def named_choice(name: str) -> Fields:
    """A `tool_choice` of one function."""
    return {"type": "function", "function": {"name": name}}


def arguments_so_far(text: str) -> Fields | None:
    """The arguments of a call, as far as they were generated before the message reached its limit.

    None if they are no object.
    """
    try:
        value = from_json(text, allow_partial="trailing-strings")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def json_schema_format(schema: Fields | None, name: str | None, strict: bool | None = None) -> Fields:
    """A `response_format`."""
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": strict}}
