"""Structured output: OpenAI's response_format, vLLM's structured_outputs and its older guided_* fields."""

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from ...errors import InvalidRequestError, UnsupportedError
from ...grammar import constraint
from ...grammar.constraint import GrammarError
from ..edge.body import RequestBody, Unsupported, refused
from ..service import Service
from .fields import SamplingFields

_UNSUPPORTED: Unsupported = refused("structural_tag whitespace_pattern") | {
    "disable_additional_properties": (False,),
    "disable_any_whitespace": (False,),
    "disable_fallback": (True, False),
}
Schema = dict[str, Any]
Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class Constraint(NamedTuple):
    """What the output has to match."""

    field: str
    """The field of the request."""
    size: int
    """Length of the field's content, in characters."""
    build: Callable[[], str]
    """Makes the grammar. Raises ValueError if it cannot."""
    parts: "Sequence[Constraint]" = ()
    """What it is made of: if it cannot be compiled, the first of these that cannot be either is named."""


class JsonSchema(RequestBody):
    """A named schema."""

    name: str = Field(max_length=64)
    description: str | None = None
    schema_: Schema | None = Field(None, alias="schema")
    strict: bool = Field(True, description="the output matches in either case")


class ResponseFormat(RequestBody):
    """OpenAI's field: any text, any JSON object, or JSON that matches a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def check(self) -> None:
        """See `RequestBody.check`."""
        if self.type == "json_schema" and (self.json_schema is None or self.json_schema.schema_ is None):
            where = "response_format.json_schema" + ("" if self.json_schema is None else ".schema")
            raise InvalidRequestError(f"{where}: Field required", where)


class StructuredOutputs(RequestBody):
    """vLLM's field: exactly one of these."""

    unsupported = _UNSUPPORTED
    json_: Schema | str | None = Field(None, alias="json")
    json_object: Literal[True] | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = Field(None, description="in llguidance's dialect of Lark, or in GBNF")


class GuidedFields(RequestBody):
    """vLLM's fields for structured output."""

    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | str | None = Field(None, description="a JSON schema")
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = Field(None, description="in llguidance's dialect of Lark, or in GBNF")


class StructuredFields(GuidedFields):
    """The fields for structured output."""

    response_format: ResponseFormat | None = None

    def constraint(self) -> Constraint | None:
        """What the output has to match, if anything. Raises InvalidRequestError if several fields are given."""
        found = [*self._response_format(), *self._structured_outputs(), *self._guided()]
        if len(found) > 1:
            names = " and ".join(one.field for one in found)
            raise InvalidRequestError(f"{names} exclude each other", found[1].field)
        return found[0] if found else None

    def _response_format(self) -> list[Constraint]:
        asked = self.response_format
        if asked is None or asked.type == "text":
            return []
        if asked.type == "json_object":
            return [Constraint("response_format", 0, constraint.json_object)]
        asked.check()
        assert asked.json_schema is not None
        return [_json("response_format.json_schema.schema", asked.json_schema.schema_ or {})]

    def _structured_outputs(self) -> list[Constraint]:
        asked = self.structured_outputs
        if asked is None:
            return []
        where = "structured_outputs"
        found = _constraints(asked.json_, asked.regex, asked.choice, asked.grammar, f"{where}.")
        if asked.json_object:
            found.append(Constraint(f"{where}.json_object", 0, constraint.json_object))
        if not found:
            raise InvalidRequestError(f"{where}: give one of json, json_object, regex, choice, grammar", where)
        return found

    def _guided(self) -> list[Constraint]:
        return _constraints(self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar, "guided_")


def _constraints(
    schema: Schema | str | None, regex: str | None, choice: list[str] | None, grammar: str | None, prefix: str
) -> list[Constraint]:
    found = []
    if schema is not None:
        found.append(_json(f"{prefix}json", schema))
    if regex is not None:
        found.append(Constraint(f"{prefix}regex", len(regex), lambda: constraint.regex(regex)))
    if choice is not None:
        found.append(Constraint(f"{prefix}choice", sum(map(len, choice)), lambda: constraint.choice(choice)))
    if grammar is not None:
        found.append(Constraint(f"{prefix}grammar", len(grammar), lambda: grammar))
    return found


def _json(field: str, schema: Schema | str) -> Constraint:
    """A constraint by a schema, which may be given as JSON text."""
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return Constraint(field, len(text), lambda: constraint.json_schema(_parsed(text)))


def _parsed(text: str) -> Any:
    schema = json.loads(text)
    if not isinstance(schema, dict | bool):
        raise ValueError("a schema is an object")
    return schema


async def grammar_of(service: Service, body: SamplingFields, constraint: Constraint | None) -> str:
    """The grammar that the output has to match, or "". Raises InvalidRequestError if it cannot be compiled."""
    if constraint is None:
        return ""
    field, limit = constraint.field, service.settings.request_limits.max_grammar_size
    if service.settings.worker == "echo":
        raise UnsupportedError(f"{field}: the echo worker follows no grammars", field)
    if constraint.size > limit:
        raise InvalidRequestError(f"{field}: at most {limit} characters (max_grammar_size)", field)
    for name in ("min_tokens", "ignore_eos"):  # the grammar determines where the text ends
        if getattr(body, name):
            raise InvalidRequestError(f"{name} and {field} exclude each other", name)
    try:
        return await service.grammars.check(constraint.build())
    except (GrammarError, ValueError, RecursionError) as error:
        for part in constraint.parts:
            await grammar_of(service, body, part)
        raise InvalidRequestError(f"{field}: {error}"[:1000], field) from error
