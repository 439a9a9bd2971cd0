"""Jinja's sandbox for chat templates, which come with models and, if the server allows it, with requests.

Templates have the helpers that transformers gives them, and limits on their time and output.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import InvalidRequestError
from .time_limit import template_time_limit

_MAX_OUTPUT = 16 * 2**20
_MAX_SECONDS = 5.0


class TemplateLimitError(InvalidRequestError):
    """A template takes too long, or writes too much."""


class _GenerationBlock(Extension):
    """{% generation %} ... {% endgeneration %} marks the model's text for training. It is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> Node:
        """Parse the tag to a block that renders its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict` in templates. Not the class itself, whose methods could change what the sandbox protects from changes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        """As `dict.fromkeys`."""
        return dict.fromkeys(keys, value)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` in templates. Refuses the names by which Python itself calls into an object."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_public(name)
        super().__init__(attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    extensions: list[type[Extension]] = [_GenerationBlock, loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda fmt: datetime.now().strftime(fmt)
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment


_ENVIRONMENT = _environment()


def compile_template(source: str) -> jinja2.Template:
    """A template from its text. Broken ones raise jinja2.TemplateError, or whatever Python's compiler raises."""
    return _ENVIRONMENT.from_string(source)


def run_template(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """The text that a template writes. Raises InvalidRequestError if it does not accept its variables."""
    pieces, size = [], 0
    try:
        with template_time_limit(_MAX_SECONDS):
            for piece in template.generate(variables):
                pieces.append(piece)
                size += len(piece)
                if size > _MAX_OUTPUT:
                    raise TemplateLimitError(_refusal(f"the text is longer than {_MAX_OUTPUT} characters"), "messages")
        text = "".join(pieces)
        text.encode()  # a template can write half a surrogate pair, which the tokenizer cannot read
    except TemplateLimitError:
        raise
    except TimeoutError as error:
        raise TemplateLimitError(_refusal(error), "messages") from error
    except Exception as error:  # a template is a program and can raise any error
        raise InvalidRequestError(_refusal(error), "messages") from error
    return text


def _refusal(reason: object) -> str:
    return f"the chat template refuses these messages: {reason}"
