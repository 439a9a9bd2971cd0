"""Arguments in tags become the JSON that the tool's schema asks for, and come back as they were."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.text.tools.formats import FORMATS
from tests.text.test_message_parsers import parse


def read(schema: dict[str, Any], value: str) -> str:
    """The JSON that an argument with this schema becomes."""
    text = f"<tool_call>\n<function=f>\n<parameter=x>\n{value}\n</parameter>\n</function>\n</tool_call>"
    parameters = {"properties": {"x": schema}, "$defs": {"n": {"type": "integer"}, "loop": {"$ref": "#/$defs/loop"}}}
    ((_, arguments),) = parse(FORMATS["qwen3_coder"].parser({"f": parameters}), list(text))[2]
    return arguments.removeprefix('{"x": ').removesuffix("}")


@pytest.mark.parametrize(
    ("schema", "value", "want"),
    [
        ({"type": "string"}, "Paris", '"Paris"'),
        ({"type": "string"}, "7", '"7"'),
        ({"type": "string"}, ' two\nlines\n and "quotes"\n', r'" two\nlines\n and \"quotes\"\n"'),
        ({"type": "string"}, "", '""'),
        ({"type": "string"}, "a </function> b </tool_call>", '"a </function> b </tool_call>"'),
        ({}, "7", '"7"'),
        ({"type": "integer"}, "7", "7"),
        ({"type": "integer"}, "9007199254740993", "9007199254740993"),
        ({"type": "integer"}, "7.0", "7.0"),
        ({"type": "integer"}, "7.5", '"7.5"'),
        ({"type": "integer"}, "seven", '"seven"'),
        ({"type": "number"}, " 7 ", "7"),
        ({"type": "number"}, "1e3", "1e3"),
        ({"type": "number"}, "NaN", '"NaN"'),
        ({"type": "boolean"}, "true", "true"),
        ({"type": "boolean"}, "False", "false"),
        ({"type": ["string", "null"]}, "None", "null"),
        ({"type": ["string", "null"]}, "nobody", '"nobody"'),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "7", "7"),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "7a", '"7a"'),
        ({"anyOf": [{"type": "integer"}, {}]}, "7", '"7"'),
        ({"allOf": [{"title": "N"}, {"type": "integer"}]}, "7", "7"),
        ({"enum": [1, 2]}, "2", "2"),
        ({"const": "2"}, "2", '"2"'),
        ({"$ref": "#/$defs/n"}, "7", "7"),
        ({"$ref": "#/$defs/loop"}, "7", '"7"'),
        ({"$ref": "elsewhere"}, "7", '"7"'),
        ({"type": "array"}, '[1, {"a": "é"}]', '[1, {"a": "é"}]'),
        ({"type": "object"}, '{\n  "a": [null]\n}', '{\n  "a": [null]\n}'),
        ({"type": "object"}, "[1]", '"[1]"'),
        ({"type": "array"}, "[" * 5000, json.dumps("[" * 5000)),
    ],
)
def test_values_are_typed_by_the_schema(schema: dict[str, Any], value: str, want: str) -> None:
    assert read(schema, value) == want


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "string": st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    "integer": st.integers(),
    "number": st.floats(allow_nan=False, allow_infinity=False),
    "boolean": st.booleans(),
    "array": st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=3),
    "object": st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), st.integers(), max_size=3),
}


@pytest.mark.parametrize("kind", VALUES)
def test_what_the_template_writes_is_read_back(kind: str) -> None:
    """The template writes strings as they are, objects and lists as JSON, and others as Python does."""

    @given(VALUES[kind])
    def check(value: Any) -> None:
        told = json.dumps(value, ensure_ascii=False) if kind in ("array", "object") else str(value)
        schema = {"type": kind}
        again = json.loads(read(schema, told))
        jsonschema.validate(again, schema)
        assert again == value

    check()
