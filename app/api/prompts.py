"""From what a client wrote to token ids.

Long texts are tokenized in a thread, which the other streams of this process do not feel.
"""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from app.api.schemas.chat import ChatFields
from app.api.service import Service
from app.errors import ContextLengthError, InvalidRequestError, UnsupportedError

T = TypeVar("T")

_LONG_TEXT = 8192
"""Characters from which on rendering and tokenizing take milliseconds."""


def as_list(prompt: Any, param: str) -> list[Any]:
    """One or several texts, or lists of token ids, as a list of them. InvalidRequestError if there are none."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    if not prompt:
        raise InvalidRequestError(f"{param}: must not be empty", param)
    return list(prompt)


async def encode_texts(
    service: Service, texts: list[str], param: str, add_special_tokens: bool = True
) -> list[list[int]]:
    """Token ids of each text. Raises ContextLengthError for one that can only be too long, before the work is done."""
    for text in texts:
        _check_length(service, text, param)

    def encode() -> list[list[int]]:
        return [service.tokenizer.encode(text, add_special_tokens) for text in texts]

    return await aside(encode, sum(map(len, texts)))


class ChatPrompt(NamedTuple):
    """A chat as a model sees it."""

    token_ids: list[int]
    ends_in_reasoning: bool


async def encode_chat(service: Service, body: ChatFields) -> ChatPrompt:
    """Render a chat and encode it. Raises InvalidRequestError for what the template does not accept."""
    if body.chat_template is not None and not service.settings.trust_request_chat_template:
        raise UnsupportedError(
            "chat_template: this server does not run templates of requests (trust_request_chat_template)",
            "chat_template",
        )
    given = [message.for_template(f"messages[{index}]") for index, message in enumerate(body.messages)]
    told = [tool.for_template() for tool in body.usable_tools]
    messages, tools = service.message_format.for_template(given, told, body.chat_template)
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
        _check_length(service, text, "messages")
        in_reasoning = service.message_format.ends_in_reasoning(text)
        return ChatPrompt(service.tokenizer.encode_segments(segments), in_reasoning)

    size = len(str(messages)) + len(str(tools)) + len(str(kwargs))
    return await aside(encode, _LONG_TEXT if body.chat_template else size)


def _template_kwargs(service: Service, body: ChatFields) -> dict[str, Any]:
    """Variables of the chat template. UnsupportedError for a wish that it does not know."""
    effort, source = body.reasoning_effort, body.chat_template or service.chat_template.source
    asked: dict[str, Any] = {}
    if effort is not None and "reasoning_effort" in source:
        asked = {"reasoning_effort": effort}
    elif effort == "none" and "enable_thinking" in source:
        asked = {"enable_thinking": False}
    elif effort is not None and (effort != "none" or service.message_format.reasons):
        raise UnsupportedError("reasoning_effort: the model's chat template does not have it", "reasoning_effort")
    return asked | body.chat_template_kwargs


async def aside(work: Callable[[], T], size: int) -> T:
    """Do work on that many characters: in a thread if they are many."""
    return work() if size < _LONG_TEXT else await asyncio.to_thread(work)


def _check_length(service: Service, text: str, param: str) -> None:
    most = service.settings.max_prompt_size
    if len(text) > most or (4 * len(text) > most and len(text.encode()) > most):
        raise InvalidRequestError(f"{param}: at most {most} bytes of text (max_prompt_size)", param)
    longest = service.ready().max_model_len * service.tokenizer.longest_token
    if len(text) > longest:
        raise ContextLengthError(
            f"This model's maximum context length is {service.ready().max_model_len} tokens, which are {longest} "
            f"characters at most. However, the {param} has {len(text)} characters.",
            param,
        )


def check_token_ids(token_ids: list[int], vocab_size: int, param: str) -> None:
    """InvalidRequestError unless all tokens are in the vocabulary, and there is one."""
    if not token_ids:
        raise InvalidRequestError(f"{param}: must not be empty", param)
    if max(token_ids) >= vocab_size:
        raise InvalidRequestError(f"{param}: token ids are below {vocab_size}, the size of the vocabulary", param)
