"""From a validated chat to its prompt, its choices, and the parsers of their texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...core.media import Placed
from ...errors import UnsupportedError
from ...grammar.constraint import json_schema
from ...grammar.reasoning import answer_behind, reasoning_prefix
from ...grammar.tool_calls import tool_calls
from ...media.preparer import ChatImage
from ...text.message_parser import MessageParser, PlainText
from ...text.tools.formats import format_of_required_calls
from ..edge.request_log import RequestLog
from ..generation.choices import Choice, TokenLimit, check_count, check_logprobs, check_num_choices, make_choices
from ..generation.prompts import LONG_TEXT, check_length, check_token_ids, in_thread
from ..generation.reasoning import Reasoning
from ..generation.structured import Constraint, grammar_of
from ..service import Service
from .images import Gallery, ImagePart, prepare_images
from .schema import ChatFields, ChatRequest, NamedToolChoice, Tool


class ChatPrompt(NamedTuple):
    """The prompt that a chat template makes of a chat."""

    token_ids: list[int]
    ends_in_reasoning: bool
    placed: list[Placed]
    """The images among the tokens."""


async def encode_chat(
    service: Service,
    body: ChatFields,
    entry: RequestLog | None = None,
    named: Sequence[tuple[str, str]] | None = None,
) -> ChatPrompt:
    """Render a chat and tokenize it. Raises InvalidRequestError if the template does not accept it.

    entry: see `prepare_images`. named: of each image, the path of its field in the API that was called, and its type
    there; by default those of chats.
    """
    if body.chat_template is not None and not service.settings.trust_request_chat_template:
        raise UnsupportedError(
            "chat_template: this server does not run templates of requests (trust_request_chat_template)",
            "chat_template",
        )
    images = await prepare_images(service, _image_parts(body, named), entry)
    gallery = await _gallery(service, images)
    marks = iter(gallery.marks if gallery else ())
    messages = [message.for_template(marks) for message in body.messages]
    tools = [tool.for_template() for tool in body.usable_tools]
    kwargs = _template_kwargs(service, body)

    def encode() -> ChatPrompt:
        segments = service.chat_template.render(
            messages,
            tools=tools,
            add_generation_prompt=body.add_generation_prompt is not False,
            continue_final_message=body.continue_final_message,
            override=body.chat_template,
            kwargs=kwargs,
        )
        text = "".join(text for text, _ in segments)
        check_length(service, text, "messages")
        continued = messages[-1] if body.continue_final_message else {}
        in_reasoning = service.message_format.ends_in_reasoning(text, continued)
        if gallery is None:
            return ChatPrompt(service.tokenizer.encode_segments(segments), in_reasoning, [])
        segments, order = gallery.show(segments, service.chat_template.image_as_shown(gallery.placeholder))
        token_ids = service.tokenizer.encode_segments(segments)
        return ChatPrompt(token_ids, in_reasoning, gallery.placed(token_ids, order))

    size = len(str(messages)) + len(str(tools)) + len(str(kwargs))
    return await in_thread(encode, LONG_TEXT if body.chat_template else size)


def _image_parts(body: ChatFields, named: Sequence[tuple[str, str]] | None) -> list[ImagePart]:
    """The images of a chat."""
    found = [
        (f"messages[{at}].content[{index}].image_url", part)
        for at, message in enumerate(body.messages)
        for index, part in message.images
    ]
    names = [(path, "image_url") for path, _ in found] if named is None else named
    return [ImagePart(part, *name) for (_, part), name in zip(found, names, strict=True)]


async def _gallery(service: Service, images: Sequence[ChatImage]) -> Gallery | None:
    if not images or service.images is None:
        return None
    ready = await service.images.ready()
    return Gallery(images, ready.placeholder, ready.token_id)


def _template_kwargs(service: Service, body: ChatFields) -> dict[str, Any]:
    """Variables of the chat template. An effort is a hint: a template that does not know it is rendered without."""
    effort, source = body.reasoning_effort, body.chat_template or service.chat_template.source
    asked: dict[str, Any] = {}
    if effort is not None and "reasoning_effort" in source:
        asked = {"reasoning_effort": effort}
    elif effort == "none" and "enable_thinking" in source:
        asked = {"enable_thinking": False}
    return asked | body.chat_template_kwargs


@dataclass(frozen=True)
class Chat:
    """A chat that is ready to run."""

    choices: list[Choice]
    new_parser: Callable[[], MessageParser]
    """Makes the parser of a choice's text."""


async def prepare_chat(
    service: Service,
    body: ChatRequest,
    limit: TokenLimit | None = None,
    entry: RequestLog | None = None,
    named: Sequence[tuple[str, str]] | None = None,
) -> Chat:
    """Raises InvalidRequestError that names the field.

    `limit`: of another API than chats; by default the body's. `entry`, `named`: see `encode_chat`.
    """
    service.check_model(body.model)
    service.check_task("generate")
    ready = service.ready()
    check_logprobs(service, body.top_logprobs, "top_logprobs")
    check_num_choices(service, 1, body.n)
    check_count("messages", len(body.messages), service.settings.request_limits.max_messages)
    check_count("tools", len(body.tools), service.settings.request_limits.max_tools)
    prompt = await encode_chat(service, body, entry, named)
    check_token_ids(prompt.token_ids, ready.vocab_size, "messages")
    schemas, in_reasoning = _schemas(body.usable_tools), prompt.ends_in_reasoning
    constraint, or_answer = body.constraint(), _may_call_or_answer(body)
    has_channels = service.message_format.tools.has_channels
    grammar = await grammar_of(service, body, constraint)
    if constraint is not None and has_channels and not or_answer and not body.continue_final_message:
        grammar = await grammar_of(service, body, _in_channel(service, constraint, grammar, in_reasoning))
    if or_answer:
        await _check_that_calls_are_no_answers(service, schemas, grammar)
    if calls := _calls(service, body, in_reasoning, grammar if or_answer else ""):
        grammar = await grammar_of(service, body, calls)
    # That leaves no room for reasoning, unless there is a channel for it.
    is_only_format = constraint is not None and calls is None and not has_channels
    choices = make_choices(
        service,
        body,
        [prompt.token_ids],
        limit or _limit(body),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        placed=prompt.placed,
        grammar=grammar,
        shown=service.message_format.shown(service.tokenizer, bool(schemas)),
        reasoning=None if is_only_format else _reasoning(service, body, in_reasoning),
    )
    if calls:
        return Chat(choices, lambda: service.message_format.parser_of_required_calls(schemas, in_reasoning, or_answer))
    if is_only_format:
        return Chat(choices, PlainText)
    return Chat(choices, lambda: service.message_format.parser(schemas, in_reasoning))


def _reasoning(service: Service, body: ChatRequest, in_reasoning: bool) -> Reasoning | None:
    tags = service.message_format.reasoning
    return None if tags is None else Reasoning(tags, in_reasoning, body.thinking_token_budget)


def _limit(body: ChatRequest) -> TokenLimit:
    if body.max_completion_tokens is not None:
        return TokenLimit(body.max_completion_tokens, None, "max_completion_tokens", "messages")
    return TokenLimit(body.max_tokens, None, "max_tokens", "messages")


def _schemas(tools: list[Tool]) -> dict[str, dict[str, Any]]:
    return {tool.function.name: tool.function.schema_of_arguments() for tool in tools}


def _may_call_or_answer(body: ChatRequest) -> bool:
    """Whether the model may call tools or give an answer that has a format."""
    has_format = body.response_format is not None and body.response_format.type != "text"
    return has_format and bool(body.usable_tools) and not body.wanted_tools


async def _check_that_calls_are_no_answers(service: Service, schemas: dict[str, Any], answer: str) -> None:
    """Raise UnsupportedError if an answer may begin as a call does, so that nobody could tell what it is."""
    format_ = format_of_required_calls(service.message_format.tools)
    if format_.looks_like_json and await service.grammars.allows_beginning(answer, format_.beginnings(schemas)):
        raise UnsupportedError(
            "response_format: it allows answers that begin as calls of tools do, which this model writes as "
            '{"name": ..., "parameters": ...}. Give a schema without these properties, or tool_choice none or required',
            "response_format",
        )


def _in_channel(service: Service, constraint: Constraint, grammar: str, in_reasoning: bool) -> Constraint:
    """The constraint of which this is the grammar, of the answer alone: reasoning may come before, in its channel."""
    before, format_ = _before(service, in_reasoning), service.message_format.tools
    return constraint._replace(build=lambda: answer_behind(before, grammar, format_, service.tokenizer))


def _before(service: Service, in_reasoning: bool) -> tuple[str, list[str]]:
    """What a grammar has in front of calls or an answer: see `reasoning_prefix`."""
    tags, format_ = service.message_format.reasoning, service.message_format.tools
    return ("", []) if tags is None else reasoning_prefix(service.tokenizer, tags, in_reasoning, format_)


def _calls(service: Service, body: ChatRequest, in_reasoning: bool, answer: str) -> Constraint | None:
    """A constraint to call one of the required tools, if there are any. Reasoning may come before.

    `answer`: the grammar of an answer that may be given instead, by calling none of the usable tools.
    """
    tools = body.usable_tools if answer else body.wanted_tools
    if not tools:
        return None
    schemas = _schemas(tools)
    several = body.parallel_tool_calls and not isinstance(body.tool_choice, NamedToolChoice)
    format_ = format_of_required_calls(service.message_format.tools)
    before = _before(service, in_reasoning)
    rule = answer.removeprefix("start: ")
    parts = [_arguments(index, schemas[tool.function.name]) for index, tool in enumerate(body.tools) if tool in tools]
    return Constraint(
        "tools",
        len(str(schemas)),
        lambda: tool_calls(format_, schemas, several, service.tokenizer, before, rule),
        parts,
    )


def _arguments(index: int, schema: dict[str, Any]) -> Constraint:
    """The arguments of one tool alone."""
    field = f"tools[{index}].function.parameters"
    return Constraint(field, 0, lambda: json_schema({**schema, "type": "object"}))
