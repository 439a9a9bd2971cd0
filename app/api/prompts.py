"""From what a client wrote to token ids.

Long texts are tokenized in a thread, which the other streams of this process do not feel.
"""

import asyncio

from app.api.schemas.chat import ChatFields
from app.api.service import Service
from app.errors import InvalidRequestError, UnsupportedError

_LONG_TEXT = 8192
"""Characters from which on tokenizing takes milliseconds."""


async def encode_texts(service: Service, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]:
    """Token ids of each text."""

    def encode() -> list[list[int]]:
        return [service.tokenizer.encode(text, add_special_tokens) for text in texts]

    return encode() if sum(map(len, texts)) < _LONG_TEXT else await asyncio.to_thread(encode)


async def encode_chat(service: Service, body: ChatFields) -> list[int]:
    """Render a chat and encode it. Raises InvalidRequestError for what the template does not accept."""
    if body.chat_template is not None and not service.settings.trust_request_chat_template:
        raise UnsupportedError(
            "chat_template: this server does not run templates of requests (trust_request_chat_template)",
            "chat_template",
        )
    segments = service.chat_template.render(
        [message.for_template() for message in body.messages],
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final_message=body.continue_final_message,
        override=body.chat_template,
        kwargs=body.chat_template_kwargs,
    )
    if sum(len(text) for text, _ in segments) < _LONG_TEXT:
        return service.tokenizer.encode_segments(segments)
    return await asyncio.to_thread(service.tokenizer.encode_segments, segments)


def check_token_ids(token_ids: list[int], vocab_size: int, param: str) -> None:
    """InvalidRequestError unless all tokens are in the vocabulary, and there is one."""
    if not token_ids:
        raise InvalidRequestError(f"{param}: must not be empty", param)
    if max(token_ids) >= vocab_size:
        raise InvalidRequestError(f"{param}: token ids are below {vocab_size}, the size of the vocabulary", param)
