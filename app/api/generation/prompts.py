"""From a client's texts to token ids. Long texts are tokenized in a thread, so that streams do not pause."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from ...errors import ContextLengthError, InvalidRequestError
from ..service import Service

T = TypeVar("T")

LONG_TEXT = 8192
"""Characters. Rendering and tokenizing as many takes milliseconds."""


def as_list(prompt: Any, param: str) -> list[Any]:
    """One or several texts, or lists of token ids, as a list. Raises InvalidRequestError if there are none."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    if not prompt:
        raise InvalidRequestError(f"{param}: must not be empty", param)
    return list(prompt)


async def encode_texts(
    service: Service, texts: list[str], param: str, add_special_tokens: bool = True
) -> list[list[int]]:
    """Token ids of each text. Raises ContextLengthError, before tokenizing, for one that is too long in any case."""
    for text in texts:
        check_length(service, text, param)

    def encode() -> list[list[int]]:
        return [service.tokenizer.encode(text, add_special_tokens) for text in texts]

    return await in_thread(encode, sum(map(len, texts)))


async def in_thread(work: Callable[[], T], size: int) -> T:
    """Do work on `size` characters or numbers: in a thread if they are many."""
    return work() if size < LONG_TEXT else await asyncio.to_thread(work)


def check_length(service: Service, text: str, param: str) -> None:
    """Raise ContextLengthError for a text that is too long in any case, InvalidRequestError above max_prompt_size."""
    most = service.settings.request_limits.max_prompt_size
    if len(text) > most or (4 * len(text) > most and len(text.encode()) > most):
        raise InvalidRequestError(f"{param}: at most {most} bytes of text (max_prompt_size)", param)
    most_tokens = service.ready().max_source_len or service.ready().max_model_len
    longest = most_tokens * service.tokenizer.longest_token
    if len(text) > longest:
        raise ContextLengthError(
            f"This model's maximum context length is {most_tokens} tokens, which are {longest} "
            f"characters at most. However, the {param} has {len(text)} characters.",
            param,
        )


def check_token_ids(token_ids: list[int], vocab_size: int, param: str) -> None:
    """Raise InvalidRequestError if there are no tokens, or one is not in the vocabulary."""
    if not token_ids:
        raise InvalidRequestError(f"{param}: must not be empty", param)
    if max(token_ids) >= vocab_size:
        raise InvalidRequestError(f"{param}: token ids are below {vocab_size}, the size of the vocabulary", param)
