"""Finds out what a chat template reads, by rendering small chats and looking for their texts in the result.

A template is a program: what it does with a field cannot be told from its source, but is seen in what it writes.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product, takewhile
from typing import Any, Literal

from ..errors import InvalidRequestError
from .sandbox import TemplateLimitError
from .shape import Message, Shape

Render = Callable[[list[Message], list[Message]], str]
"""Renders messages and tools as they are. Raises InvalidRequestError if the template refuses them."""

FUNCTION, KEY = "probe_function", "probe_key"
VALUES = ("Probeone", "Probetwo")
"""The arguments of two calls, or the texts of two parts."""
_RESULTS = ("Proberesultone", "Proberesulttwo")
_THOUGHT, _LAST = "Probethought", "Probelast"
_MISREAD = (f"'{KEY}'", f'\\"{KEY}', "'type'", '"type": "text"', '"type": "thinking"')
"""Signs that a template writes an object or a list where it expects a text, or the other way round."""
_INPUT = {"type": "string", "description": "Anything."}
_SCHEMA = {"type": "object", "properties": {"probe_input": _INPUT}, "required": ["probe_input"]}
_TOOL = {"type": "function", "function": {"name": FUNCTION, "description": "Probes.", "parameters": _SCHEMA}}
_CALLS: tuple[Literal["together", "one by one"], ...] = ("together", "one by one")
_IDS = ((False, False), (True, False), (False, True))
"""`short_ids` and `named_ids`."""
_NO_CONTENT: tuple[Literal["missing", "empty", "none"], ...] = ("missing", "empty", "none")
_USER = {"role": "user", "content": "Probeuser"}
_ASSISTANT = {"role": "assistant", "content": "Probeassistant"}
_LATER = {"role": "user", "content": _LAST}


def _call(*arguments: str) -> Message:
    calls = [
        {"id": f"call_probe_{index}", "type": "function", "function": {"name": FUNCTION, "arguments": text}}
        for index, text in enumerate(arguments)
    ]
    return {"role": "assistant", "tool_calls": calls}


_ARGUMENTS = [f'{{"{KEY}": "{value}"}}' for value in VALUES]
_TOOL_RESULTS = [
    {"role": "tool", "tool_call_id": f"call_probe_{index}", "content": text} for index, text in enumerate(_RESULTS)
]


def find_shape(render: Render, knows_developers: bool) -> Shape:
    """What the template reads; the defaults if it runs too long for small chats."""
    try:
        return _Probes(render).find(Shape(developer=knows_developers))
    except TemplateLimitError:
        return Shape(developer=knows_developers)


def calls_as_shown(render: Render, shape: Shape) -> list[str]:
    """What the template writes for a message with one call, `FUNCTION` with `KEY` as `VALUES[0]`.

    Where the message begins is not known for certain: the text behind the user's message comes first, then the text
    from the place where the message would have its content. The list is empty if the template does not show calls.
    """
    if shape.calls == "in words":
        return []
    try:
        render = _with_tools_it_needs(render)
        plain = render(*shape.apply([_USER, _ASSISTANT], []))
        written = render(*shape.apply([_USER, _call(_ARGUMENTS[0])], []))
    except InvalidRequestError:
        return []
    pairs = zip(written, plain[: plain.rfind(_ASSISTANT["content"])], strict=False)
    begin = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return [written.rpartition(_USER["content"])[2], written[begin:]]


def image_as_shown(render: Render, placeholder: str) -> str:
    """What the template writes for an image between two texts; the placeholder alone if it does not stand there."""
    one, two = ({"type": "text", "text": text} for text in VALUES)
    try:
        written = _with_tools_it_needs(render)([{"role": "user", "content": [one, {"type": "image"}, two]}], [])
    except InvalidRequestError:
        return placeholder
    between = written.partition(VALUES[0])[2].partition(VALUES[1])[0]
    return between if placeholder in between else placeholder


def _with_tools_it_needs(render: Render) -> Render:
    """The template itself, or one for chats with tools (`tool_use`) with a tool where there would be none."""
    try:
        render([_USER], [])
    except TemplateLimitError:
        raise
    except InvalidRequestError:
        return lambda messages, tools: render(messages, tools or [_TOOL])
    return render


class _Probes:
    def __init__(self, render: Render) -> None:
        self._render = _with_tools_it_needs(render)

    def find(self, shape: Shape) -> Shape:
        """Find out one property after the other, each with what is known already."""
        for role in ("user", "system", "assistant"):
            shape = self._with_content_of(shape, role)
        shape = replace(shape, system=self._shows(shape, _chat_with("system", VALUES[0]), VALUES[0]))
        shape = self._with_order(shape)
        knows_tools = replace(shape, tools=True)
        shape = knows_tools if self._shows(knows_tools, [_USER], FUNCTION, tools=[_TOOL], signs=()) else shape
        return self._with_reasoning(self._with_calls(shape))

    def _shows(
        self,
        shape: Shape,
        chat: Sequence[Message],
        *texts: str,
        tools: Sequence[Message] = (),
        signs: Sequence[str] = _MISREAD,
    ) -> bool:
        """Whether the template writes all of these texts, and none of the signs, for a chat in this shape."""
        try:
            written = self._render(*shape.apply(chat, tools))
        except TemplateLimitError:
            raise
        except InvalidRequestError:
            return False
        return all(text in written for text in texts) and not any(sign in written for sign in signs)

    def _with_content_of(self, shape: Shape, role: str) -> Shape:
        """The shape with whether a role's content is read as a text, in parts, or either way."""
        as_text = replace(shape, text_roles=shape.text_roles | {role}, part_roles=shape.part_roles - {role})
        as_parts = replace(shape, text_roles=shape.text_roles - {role}, part_roles=shape.part_roles | {role})
        parts = [{"type": "text", "text": text} for text in VALUES]
        if not self._shows(as_parts, _chat_with(role, parts), *VALUES):
            return as_text
        reads_text = self._shows(as_text, _chat_with(role, " ".join(VALUES)), *VALUES)
        return replace(as_parts, text_roles=as_text.text_roles) if reads_text else as_parts

    def _with_order(self, shape: Shape) -> Shape:
        """The shape with which orders of messages are read."""
        first, then = ({"role": "developer", "content": text} for text in VALUES)
        if shape.developer and not self._shows(shape, [first, _USER, _ASSISTANT, then, _LATER], *VALUES):
            shape = replace(shape, developer=False)
        one, two = ({"role": "system", "content": text} for text in VALUES)
        later = {"role": "system", "content": _THOUGHT}
        chat = [one, two, _USER, later, _ASSISTANT, _LATER, later]
        return replace(
            shape,
            later_systems=shape.system and self._shows(shape, chat, *VALUES, _THOUGHT, _LAST),
            users_apart=self._shows(shape, [_USER, _LATER], _USER["content"], _LAST),
        )

    def _with_calls(self, shape: Shape) -> Shape:
        """The shape with how calls and results are read, if they are."""
        chat = [_USER, _call(*_ARGUMENTS), *_TOOL_RESULTS]
        in_parts = replace(shape, text_roles=shape.text_roles - {"tool"}, part_roles=shape.part_roles | {"tool"})
        for calls, base, (short_ids, named_ids), no_content, as_text in product(
            _CALLS, (shape, in_parts), _IDS, _NO_CONTENT, (False, True)
        ):
            found = replace(base, calls=calls, short_ids=short_ids, named_ids=named_ids)
            found = replace(found, no_content=no_content, arguments_as_text=as_text)
            if self._shows(found, chat, FUNCTION, *VALUES, *_RESULTS):
                found = self._with_text_before_calls(self._with_content_of(found, "tool"))
                cut = [_USER, _call(_LAST), _TOOL_RESULTS[0]]
                return replace(
                    found,
                    any_arguments=self._shows(found, cut, _LAST),
                    user_after_results=self._shows(found, [*chat, _LATER], _LAST, *_RESULTS),
                )
        return replace(shape, user_after_results=shape.users_apart)

    def _with_text_before_calls(self, shape: Shape) -> Shape:
        """The shape with whether a call beside a text is lost or refused. A lost text is the template's own choice."""
        chat = [_USER, {**_ASSISTANT, **_call(_ARGUMENTS[0]), "reasoning_content": _THOUGHT}, _TOOL_RESULTS[0]]
        apart = replace(shape, text_before_calls=True)
        is_read = self._shows(shape, chat, FUNCTION, VALUES[0]) or not self._shows(apart, chat, FUNCTION, VALUES[0])
        return shape if is_read else apart

    def _with_reasoning(self, shape: Shape) -> Shape:
        """The shape with where reasoning is read. Many templates show it only in front of calls."""
        chats = [
            [_USER, _ASSISTANT | {"reasoning_content": _THOUGHT}],
            [_USER, _call(_ARGUMENTS[0]) | {"reasoning_content": _THOUGHT}, _TOOL_RESULTS[0]],
        ]
        for place in ("fields", "reasoning", "part"):
            found = replace(shape, reasoning=place)
            if any(self._shows(found, chat, _THOUGHT) for chat in chats):
                return found
        return shape


def _chat_with(role: str, content: Any) -> list[Message]:
    """A chat in which a message of the role has this content."""
    if role == "tool":
        return [_USER, _call(_ARGUMENTS[0]), _TOOL_RESULTS[0] | {"content": content}]
    message = {"role": role, "content": content}
    return {"user": [message], "system": [message, _USER], "assistant": [_USER, message, _USER]}[role]
