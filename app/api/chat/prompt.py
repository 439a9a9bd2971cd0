"""From a chat to the token ids that its template makes of it."""

from typing import Any, NamedTuple

from app.api.chat.schema import ChatFields
from app.api.generation.prompts import LONG_TEXT, check_length, in_thread
from app.api.service import Service
from app.errors import UnsupportedError


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
        check_length(service, text, "messages")
        in_reasoning = service.message_format.ends_in_reasoning(text)
        return ChatPrompt(service.tokenizer.encode_segments(segments), in_reasoning)

    size = len(str(messages)) + len(str(tools)) + len(str(kwargs))
    return await in_thread(encode, LONG_TEXT if body.chat_template else size)


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
