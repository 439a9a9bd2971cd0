"""From a request's images and texts to what the model reads."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from fastapi import Request
from starlette.types import Scope

from ....checkpoint.image_models import ImageModelConfig
from ....core.media import Media
from ....errors import ContextLengthError, InvalidRequestError, UnsupportedError
from ....media.images import check_file, read_base64, read_data_url
from ...edge.request_log import RequestLog, Usage
from ...generation.prompts import in_thread
from ...service import Service
from ..inputs import check_number
from ..run import Encoded, Vectors, predict
from .schema import ImageFields, Part, Uploaded

_AT_ONCE = 16
"""Images of a call that are prepared at a time: they take a hundred times the memory of their files."""


class Given(NamedTuple):
    """An image or a text of a request."""

    path: str
    """Of its field."""
    text: str | None = None
    image: str | bytes | None = None
    """A data URL, the file in base64, or the file."""


def given_in(body: ImageFields, config: ImageModelConfig) -> list[Given]:
    """The images and texts of a request. Raises UnsupportedError for a text that the model does not read."""
    if body.messages:
        return [_of_message(body)]
    parts = body.input if isinstance(body.input, list) else [body.input]
    if not parts:
        raise InvalidRequestError("input: must not be empty", "input")
    reads_text = config.compares is not None
    are_texts = reads_text if body.modality is None else body.modality == "text"
    found = []
    for index, part in enumerate(parts):
        path = f"input[{index}]" if isinstance(body.input, list) else "input"
        if isinstance(part, Part):
            found.append(_of_part(part, path))
        else:
            found.append(Given(path, text=part) if are_texts else Given(path, image=part))
        if found[-1].text is not None and not reads_text:
            raise UnsupportedError(f"{path}: this model reads images, and no text", path)
    return found


def _of_part(part: Part, path: str) -> Given:
    if isinstance(part, Uploaded):
        return Given(part.path, image=part.file)
    if part.text is not None:
        return Given(path, text=part.text)
    url = part.image_url if isinstance(part.image_url, str) or part.image_url is None else part.image_url.url
    return Given(path, image=url if part.image is None else part.image)


def _of_message(body: ImageFields) -> Given:
    parts = [
        part
        for message in body.messages
        for part in ([Part(text=message.content)] if isinstance(message.content, str) else message.content)
    ]
    if len(parts) != 1:
        raise UnsupportedError("messages: one image or one text, of which one vector is made", "messages")
    parts[0].check()
    return _of_part(parts[0], "messages[0].content")


async def run_all(
    service: Service, request: Request, body: ImageFields, config: ImageModelConfig, given: Sequence[Given]
) -> Encoded:
    """The model's numbers for all inputs, in their order."""
    check_number(service, given, "input")
    vectors: Vectors = []
    num_tokens = 0
    for start in range(0, len(given), _AT_ONCE):
        some = given[start : start + _AT_ONCE]
        media = await asyncio.gather(*(_media(service, request.scope, body, config, one) for one in some))
        done = await predict(service, request, media, body.priority)
        vectors += done.vectors
        num_tokens += done.num_tokens
    entry: RequestLog = request.scope["request_log"]
    entry.usage = Usage(prompt_tokens=num_tokens)
    return Encoded(vectors, num_tokens, inputs=[])


async def _media(service: Service, scope: Scope, body: ImageFields, config: ImageModelConfig, one: Given) -> Media:
    if one.text is not None:
        return await _text(service, body, config, one.text, one.path)
    image, path = one.image, one.path
    assert image is not None
    assert service.images is not None
    limits, entry = service.settings.request_limits, scope["request_log"]

    def read() -> bytes:
        if isinstance(image, bytes):
            return check_file(image, None, path, limits.max_image_size)
        if image[:5].lower() == "data:" or "://" in image[:32]:
            return read_data_url(image, path, limits.max_image_size)
        return read_base64(image, None, path, limits.max_image_size)

    file = await in_thread(read, len(image))
    made = await service.images.prepare(file, path, limits.max_image_pixels, entry.tenant.name)
    media = config.image(made.media.digest, made.media.arrays)
    if media.num_tokens > config.max_len:
        raise InvalidRequestError(f"{path}: the image is too wide or too high for this model", one.path)
    return media


async def _text(service: Service, body: ImageFields, config: ImageModelConfig, text: str, path: str) -> Media:
    if not text:
        raise InvalidRequestError(f"{path}: must not be empty", path)
    most = service.settings.request_limits.max_prompt_size
    if len(text) > most:
        raise InvalidRequestError(f"{path}: at most {most} bytes of text (max_prompt_size)", path)
    limit = config.max_text_len if body.truncate_prompt_tokens == -1 else body.truncate_prompt_tokens
    text = text.lower() if config.lowercases else text
    ids = (await in_thread(lambda: service.tokenizer.encoder_input(text, limit), len(text))).token_ids
    if len(ids) > config.max_text_len:
        what = f"it has {len(ids)} tokens. Please shorten it, or give truncate_prompt_tokens"
        raise ContextLengthError(f"{path}: this model reads {config.max_text_len} tokens of a text, and {what}.", path)
    return config.text(ids)
